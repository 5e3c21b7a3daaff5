#!/usr/bin/env bash
# Files far larger than memory: tests/campaign/large.sh [SECONDS]
#
# A file of 4 GiB is summed through a map on a machine of 64 MiB, and its SHA-256 is compared with the PC's. Then pages
# of a file of 1 GiB are stored to at random on the same machine, for so many seconds (120), each run checked after a
# reboot, and e2fsck looks at the disk. Needs 6 GiB of disk and some minutes; test.sh runs the same, smaller.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$ROOT"
seconds=${1:-120}
work=$ROOT/target/campaign-large
rm -rf "$work" && mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

say "A file of 4 GiB:"
openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 </dev/zero 2>/dev/null | head -c 4G >"$work/file" || true
sum=$(sha256sum <"$work/file")
mkfs.ext4 -q -F -b 4096 "$work/large.img" 4600M
debugfs -w -R "write $work/file file" "$work/large.img" 2>/dev/null
rm "$work/file"
ours=$(./qemu.sh --timeout 3000 --memory 64M --disk "$work/large.img" "mapsum /file" | tr -d '\r')
echo "$ours"
[[ "$ours" == *"${sum%% *}  /file"* ]] || die "the PC says ${sum%% *}"
e2fsck -fn "$work/large.img" >/dev/null || die "e2fsck is not satisfied after reading"
rm "$work/large.img"

say "Stores at random to a file of 1 GiB:"
mkfs.ext4 -q -F -b 4096 "$work/churn.img" 1200M
./qemu.sh --timeout 60 --memory 64M --disk "$work/churn.img" "truncate /file 1G"
end=$((SECONDS + seconds)) seed=1 stores=0
while [ $SECONDS -lt $end ] || [ $seed -lt 3 ]; do
    ./qemu.sh --timeout 3000 --memory 64M --disk "$work/churn.img" "run churn /file 200000 $seed" >"$work/log" ||
        { cat "$work/log"; die "churn with seed $seed failed"; }
    e2fsck -fn "$work/churn.img" >"$work/log" || { cat "$work/log"; die "e2fsck is not satisfied"; }
    ./qemu.sh --timeout 3000 --memory 64M --disk "$work/churn.img" "run churn -c /file 200000 $seed" >"$work/log" ||
        { cat "$work/log"; die "stores of seed $seed are missing after a reboot"; }
    stores=$((stores + 200000))
    seed=$((seed + 1))
done
say "$stores stores in $((seed - 1)) runs, all there; e2fsck is satisfied."
