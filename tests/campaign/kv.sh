#!/usr/bin/env bash
# Kills QEMU at random moments while kv imports: tests/campaign/kv.sh [KILLS]
#
# A million records are imported, batch by batch, and each batch that is committed is told. At a random moment (KILLS of
# them, 100 unless said) the machine is killed. The next one must find every record that was acknowledged, and goes on
# importing from there. After each, e2fsck looks at a copy of the disk whose journal was replayed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
kills=${1:-100}
work=$ROOT/target/campaign-kv.$$
mkdir -p "$work/tree"
# What failed is kept.
trap '[ $? != 0 ] || rm -rf "$work"' EXIT

records=1000000
seq 1 $records | awk '{ printf "key%07d\tvalue of %d, and %d\n", ($1 * 7919) % 1000003, $1, $1 * 31 }' >"$work/tree/lines"
make_disk() { mkfs.ext4 -q -F -b 4096 -d "$work/tree" "$work/disk.img" 256M 2>/dev/null; }
make_disk
"$ROOT/scripts/build.sh"
# One image for all of it, whatever is built meanwhile.
cp target/kernel8.img "$work/"

# Not by qemu.sh or timeout, whose child would go on when they are killed.
boot() {
    exec qemu-system-aarch64 -M virt -cpu cortex-a72 -m 256M -kernel "$work/kernel8.img" -display none -nic none \
        -monitor none -serial stdio -semihosting-config enable=on,target=native -global virtio-mmio.force-legacy=false \
        -drive "if=none,id=disk,format=raw,file=$work/disk.img" -device virtio-blk-device,drive=disk -append "$1" </dev/null
}

acknowledged=0 moments=0
for ((kill = 1; kill <= kills; kill++)); do
    commands="run kv /store import /lines $acknowledged"
    [ "$acknowledged" = 0 ] || commands="run kv /store compare /lines $acknowledged; $commands"
    : >"$work/log" # what the last one said is not to be taken for this one's
    boot "$commands" >"$work/log" 2>&1 &
    machine=$!
    # The moment counts from when the import begins: a busy PC makes everything slower.
    for ((i = 0; i < 3000; i++)); do
        if grep -q '^committed' "$work/log" || ! kill -0 $machine 2>/dev/null; then break; fi
        sleep 0.1
    done
    sleep "$((RANDOM % 3)).$((RANDOM % 1000))"
    # Nobody else is to end it: that says nothing about kv.
    status=0
    command kill -KILL $machine 2>/dev/null || status=ended
    [ "$status" = 0 ] || grep -q "^committed $records" "$work/log" || grep -q 'are not' "$work/log" || {
        wait $machine || status=$?
        cat "$work/log"
        die "kill $kill: the emulator ended by itself, with status $status"
    }
    wait $machine 2>/dev/null || true
    tr -d '\r' <"$work/log" >"$work/said"
    [ "$acknowledged" = 0 ] || grep -q "^$acknowledged lines are there, 0 are not" "$work/said" ||
        { cat "$work/said"; die "kill $kill: of $acknowledged acknowledged records some are missing"; }
    # A line that was being printed is half there, and its number not to be trusted.
    last=$(sed -n '$!s/^committed \([0-9]*\)$/\1/p' "$work/said" | tail -n 1)
    acknowledged=${last:-$acknowledged}
    moments=$((moments + 1))
    # The journal is replayed in a copy, as e2fsck -fn alone does not.
    if ((kill % 10 == 0 || kill == kills)); then
        cp --sparse=always "$work/disk.img" "$work/copy.img"
        e2fsck -fp "$work/copy.img" >"$work/fsck" 2>&1 || [ $? -le 1 ] || { cat "$work/fsck"; die "kill $kill: e2fsck is not satisfied"; }
        e2fsck -fn "$work/copy.img" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "kill $kill: e2fsck is not satisfied"; }
    fi
    say "kill $kill: $acknowledged records acknowledged"
    if [ "$acknowledged" = $records ]; then
        acknowledged=0
        make_disk
    fi
done
[ "$acknowledged" = 0 ] || ./qemu.sh --timeout 600 --disk "$work/disk.img" "run kv /store compare /lines $acknowledged" >"$work/log" || { cat "$work/log"; die "records are missing at the end"; }
e2fsck -fn "$work/disk.img" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck is not satisfied at the end"; }
say "$moments kills; every acknowledged record was there, and e2fsck is satisfied."
