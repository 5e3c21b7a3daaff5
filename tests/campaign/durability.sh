#!/usr/bin/env bash
# Power cuts: tests/campaign/durability.sh [NAME=VALUE]...
#
# The image works in QEMU on a disk that records every write and flush. Then the power fails at every flush and anywhere
# between, what was not flushed is there or not, in any order and torn, and what the image had acknowledged is looked for.
# `durability.sh seeds=100 cuts=100` makes ten thousand cuts; `cargo run --package pinfold-campaign` tells of the options.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
use_memory_for_images
scripts/setup.sh test
scripts/build.sh
cargo run --quiet --release --locked --package pinfold-campaign durability target/kernel8.img "$@"
