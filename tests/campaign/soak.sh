#!/usr/bin/env bash
# Everything at once: tests/campaign/soak.sh [SECONDS [SEED]]
#
# Threads map, store, flush, cut, rename, evict and pin on a machine of 64 MiB, for so many seconds (3600). Then frames,
# maps and heap must be as they were at the start, and e2fsck satisfied.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
seconds=${1:-3600}
seed=${2:-1}
disk=$ROOT/target/campaign-soak.img
trap 'rm -f "$disk"' EXIT

mkdir -p target
mkfs.ext4 -q -F "$disk" 256M
./qemu.sh --timeout $((seconds * 2 + 300)) --memory 64M --disk "$disk" "run soak $seconds $seed"
e2fsck -fn "$disk"
