#!/usr/bin/env bash
# Memory that is refused: tests/campaign/allocations.sh [NAME=VALUE]...
#
# Of all requests for frames of a workload each, or a share of them (points=N), is refused once. The machine must end by
# itself, say what was wrong, and leave a sound disk. `allocations.sh points=100000` refuses every single one.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
use_memory_for_images
scripts/setup.sh test
scripts/build.sh --refusal
cargo run --quiet --release --locked --package pinfold-campaign allocations target/kernel8-refusal.img "$@"
