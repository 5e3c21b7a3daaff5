#!/usr/bin/env bash
# Faults: tests/campaign/faults.sh [NAME=VALUE]...
#
# Every read, write and flush of a workload fails, or a share of them (points=N of each kind); memory from the least up in
# small steps; command lines of random bytes; random bytes at the console; damaged device trees. The machine must end by
# itself, say what was wrong, and leave a sound disk. `faults.sh points=1000 stalls=2` lets every single request fail.
#
# ROUNDS=N in the environment: that many command lines and trees (10).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
use_memory_for_images
scripts/setup.sh test
scripts/build.sh
rounds=${ROUNDS:-10}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Bytes that look random, and are the same each time: noise SEED COUNT
noise() {
    openssl enc -aes-128-ctr -nosalt -K "$(printf '%032x' "$1")" -iv 00 </dev/zero 2>/dev/null | head -c "$2" || true
}

# boot QEMU-OPTION...: the console gets Ctrl-D and no more; what it says goes to $work/log.
boot() {
    printf '\004' | timeout 60 qemu-system-aarch64 -machine virt -cpu cortex-a72 -m 64M -display none -nic none \
        -monitor none -chardev stdio,id=console,signal=off -serial chardev:console \
        -semihosting-config enable=on,target=native -kernel target/kernel8.img "$@" >"$work/log" 2>&1
}

# boots WHAT QEMU-OPTION...: it ends by itself, and not in silence.
boots() {
    local what=$1 status=0
    shift
    boot "$@" || status=$?
    [ "$status" != 124 ] && [ -s "$work/log" ] || {
        cat "$work/log"
        die "$what: status $status"
    }
}

say "Requests that fail:"
cargo run --quiet --release --locked --package pinfold-campaign faults target/kernel8.img "$@"

say "Memory from 12 MiB up:"
mkfs.ext4 -q -F "$work/disk.img" 32M
for kib in 12288 12544 12800 13312 14336 15360; do
    ./qemu.sh --timeout 120 --memory ${kib}K --disk "$work/disk.img" "run workload $kib 150" >"$work/log" </dev/null ||
        { cat "$work/log"; die "with $kib KiB"; }
    e2fsck -fn "$work/disk.img" >"$work/log" 2>&1 || { cat "$work/log"; die "e2fsck, with $kib KiB"; }
done

say "$rounds command lines of random bytes:"
for seed in $(seq "$rounds"); do
    boots "command line $seed" -append "$(noise "$seed" 300 | tr -d '\0')"
done

say "$rounds device trees with bytes changed:"
qemu-system-aarch64 -machine "virt,dumpdtb=$work/tree" -cpu cortex-a72 -m 64M -display none -nic none >"$work/log" 2>&1
for seed in $(seq "$rounds"); do
    cp "$work/tree" "$work/damaged"
    for at in $(noise "$seed" 40 | od -An -v -t u2); do
        noise $((seed * 65536 + at)) 1 | dd of="$work/damaged" bs=1 seek=$((at % 8192)) conv=notrunc 2>"$work/log"
    done
    # QEMU itself refuses some of them, and says so.
    boots "device tree $seed" -dtb "$work/damaged"
done

say "Random bytes at the console:"
{
    noise 1 300K | tr -d '\0\004'
    printf '\n\003\nmem\n'
} | ./qemu.sh --timeout 200 >"$work/log" || true
tail -n 20 "$work/log" | grep -aq 'page cache' || { tail -n 40 "$work/log"; die "the console took no command afterwards"; }
say "All ended by themselves, none in silence."
