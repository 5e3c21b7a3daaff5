#!/usr/bin/env bash
# Linux and Pinfold side by side on the same emulator and the same disk image; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"
cd "$ROOT"

help() {
    cat <<'END'
usage: bench/compare.sh [--rounds N] [--to DIR] [--keep]

Boots Debian's arm64 Linux and Pinfold in turn, runs the same benchmark on both, and writes performance.md and
performance.svg to DIR (docs/src unless said).

  --rounds N   rounds of what is measured by the clock, of which the median counts; 3 unless said. What is counted in
               instructions repeats exactly, and is measured once
  --to DIR     where table and picture go
  --keep       adds to the logs of an earlier run in target/compare/logs

Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, cpio, python3, and 4 GiB of disk. The programs, the procedure and the
names of figures are bench/linux/mmapbench.c and Pinfold's `bench`.
END
}

rounds=3 to=docs/src keep=no
while [ $# -gt 0 ]; do
    case "$1" in
        --rounds | --to) [ $# -ge 2 ] || usage_error "$1 needs an argument" ;;
    esac
    case "$1" in
        --rounds)
            case "$2" in
                '' | 0* | *[!0-9]*) usage_error "--rounds takes a number from 1, not $2" ;;
            esac
            rounds=$2
            shift
            ;;
        --to)
            [ -d "$2" ] || usage_error "there is no folder $2"
            to=$2
            shift
            ;;
        --keep) keep=yes ;;
        --help | -h)
            help
            exit
            ;;
        *) usage_error "unknown option $1" ;;
    esac
    shift
done

work=$ROOT/target/compare
logs=$work/logs
mkdir -p "$work"
[ $keep = yes ] || rm -rf "$logs"
mkdir -p "$logs"
export WORK=$work

scripts/setup.sh run
scripts/build.sh
bench/linux/run-linux.sh setup
find_rust
gcc -O2 -o "$work/mkpat" bench/linux/mkpat.c

# make_image NAME SIZE FILE:MIB...
make_image() {
    local name=$1 size=$2 file tree
    [ ! -e "$work/$name.ext4" ] || return 0
    tree=$(mktemp -d -p "$work")
    for file in "${@:3}"; do "$work/mkpat" "$tree/${file%%:*}" "${file##*:}"; done
    mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$work/$name.ext4" "$size"
    rm -rf "$tree"
}
make_image bench 512M warm.dat:64 wr.dat:64 cold.dat:256
make_image big 1280M big.dat:1024

# Each run starts from the same image.
fresh() { cp --sparse=always "$work/$1.ext4" "$work/disk.ext4"; }

linux() { # LOG IMAGE SECTION...
    fresh "$2"
    bench/linux/run-linux.sh run "$work/disk.ext4" "${@:3}" >"$logs/linux-$1.log" ||
        die "Linux: see $logs/linux-$1.log"
    grep -q '^# done, 0 failed' "$logs/linux-$1.log" || die "Linux did not end well: see $logs/linux-$1.log"
}

pinfold() { # LOG IMAGE MEMORY COMMANDS [QEMU.SH-OPTION]...
    fresh "$2"
    ./qemu.sh --timeout 900 --memory "$3M" --disk "$work/disk.ext4" "${@:5}" "$4" >"$logs/pinfold-$1.log" ||
        die "Pinfold: see $logs/pinfold-$1.log"
    ! grep -q 'FAIL' "$logs/pinfold-$1.log" || die "Pinfold: see $logs/pinfold-$1.log"
}

counted="floor anon warm cow mmap mprotect maps frames"
say "Instructions: Linux"
MODE=icount linux icount bench floor anon warm cow mmap mprotect maps
say "Instructions: Pinfold"
pinfold icount bench 1024 "$(for group in $counted; do printf 'bench %s; ' $group; done)" --icount
# What `run hello` says of its first instruction. While the disk is waited for, timers go on, for longer where the PC is busy,
# and count as instructions: of several boots the least was disturbed least.
for ((boot = 1; boot <= 9; boot++)); do
    pinfold "icount-boot-$boot" bench 1024 "run hello" --icount
    tr -d '\r' <"$logs/pinfold-icount-boot-$boot.log" | sed -n 's/.* KiB, \([0-9]*\) instructions$/boot_first_user \1 ns/p'
done | sort -n -k 2 | head -n 1 >>"$logs/pinfold-icount.log"
for ((round = 1; round <= rounds; round++)); do
    say "By the clock, round $round of $rounds"
    stamp=$(date +%s)
    linux "clock-$stamp" bench msync copy cold raw
    pinfold "clock-$stamp" bench 1024 "bench msync; bench copy; bench cold; bench raw"
    MEMORY=256 linux "large-$stamp" big large largewr
    pinfold "large-$stamp" big 256 "bench large"
done
rm -f "$work/disk.ext4"

kernel=$(basename "$work"/kernel/boot/vmlinuz-*)
qemu=$(qemu-system-aarch64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p;q')
about="Measured by \`bench/compare.sh --rounds $rounds\` on $(date -u +%Y-%m-%d): QEMU $qemu, virt, cortex-a72, one core, 1 GiB of memory
(256 MiB for \`large\`), virtio-blk on MMIO, ext4 with blocks of 4 KiB, the same image for both; Linux ${kernel#vmlinuz-} without
page-table isolation; the host an x86-64 PC of $(nproc) cores that others use, too. Medians of $rounds rounds, one system after the other."
cargo run --quiet --release --locked --package pinfold-tools -- compare "$logs" "$to" "$about"
