# shellcheck shell=bash
check "rustfmt" cargo fmt --check
check "rustfmt, tools" cargo fmt --check --manifest-path tools/Cargo.toml
check "rustfmt, campaign" cargo fmt --check --manifest-path tests/campaign/Cargo.toml
check "rustfmt, firmware" cargo fmt --check --manifest-path tests/firmware/Cargo.toml
check "each unsafe block has its reason, and the book their number" scripts/unsafe.sh --check
check "each planted bug fits the tree" git apply --check tests/campaign/bugs/*.patch
check "rustfmt, programs" cargo fmt --check --manifest-path tests/programs/Cargo.toml
check "rustfmt, template" cargo fmt --check --manifest-path examples/template/Cargo.toml
check "clippy, PC" cargo clippy --locked --all-targets -- -D warnings
check "clippy, tools" cargo clippy --locked --package pinfold-tools --all-targets -- -D warnings
check "clippy, campaign" cargo clippy --locked --package pinfold-campaign --all-targets -- -D warnings
check "clippy, image's library" for_target clippy --locked --lib -- -D warnings
check "clippy, what measures growth" for_target clippy --locked --lib --features growth -- -D warnings
check "clippy, what refuses frames" for_target clippy --locked --lib --features refusal -- -D warnings
check "clippy, image" for_target clippy --locked --bin pinfold -- -D warnings
