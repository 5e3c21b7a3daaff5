# shellcheck shell=bash
cargo_tests "cargo test" cargo test --locked
cargo_tests "cargo test, tools" cargo test --locked --package pinfold-tools
