# shellcheck shell=bash

# Short runs of what tests/campaign does for hours.
cargo_tests "cargo test, campaign" cargo test --locked --release --package pinfold-campaign
check "power cuts lose nothing" tests/campaign/durability.sh seeds=4 cuts=25 boots=1 kills=5
check "failing requests lose nothing, and are told" tests/campaign/faults.sh points=4
check "everything at once leaves nothing behind" tests/campaign/soak.sh 20
