# shellcheck shell=bash
check "rustfmt" cargo fmt --check
check "rustfmt, tools" cargo fmt --check --manifest-path tools/Cargo.toml
check "rustfmt, campaign" cargo fmt --check --manifest-path tests/campaign/Cargo.toml
check "rustfmt, firmware" cargo fmt --check --manifest-path tests/firmware/Cargo.toml
check "clippy, PC" cargo clippy --locked --all-targets -- -D warnings
check "clippy, tools" cargo clippy --locked --package pinfold-tools --all-targets -- -D warnings
check "clippy, campaign" cargo clippy --locked --package pinfold-campaign --all-targets -- -D warnings
check "clippy, image's library" for_target clippy --locked --lib -- -D warnings
check "clippy, image" for_target clippy --locked --bin pinfold -- -D warnings
