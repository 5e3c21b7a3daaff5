#!/usr/bin/env bash
# How costs grow with how much there is; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"
cd "$ROOT"

help() {
    cat <<'END'
usage: bench/growth.sh [--most N] [--to DIR] [--keep] [PART...]

Measures what Pinfold does with more and more maps, memory, files, directory entries and disk, in instructions as QEMU
counts them, and writes growth.md and its plots to DIR (docs/src unless said).

  PART       maps, memory, files, directory, disk; all of them unless said
  --most N   entries of the largest directory, 100000 unless said. A million takes an hour
  --to DIR   where page and plots go
  --keep     takes what an earlier run has measured, in target/growth, and measures what is missing

Needs 10 GiB of memory for the largest machine, e2fsprogs and python3. The disks are sparse.
END
}

most=100000 to=docs/src keep=no parts=()
while [ $# -gt 0 ]; do
    case "$1" in
        --most | --to) [ $# -ge 2 ] || usage_error "$1 needs an argument" ;;
    esac
    case "$1" in
        --most)
            case "$2" in
                '' | 0* | *[!0-9]*) usage_error "--most takes a number from 1, not $2" ;;
            esac
            most=$2
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
        maps | memory | files | directory | disk) parts+=("$1") ;;
        *) usage_error "unknown argument $1" ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(maps memory files directory disk)

work=$ROOT/target/growth
[ $keep = yes ] || rm -rf "$work"
mkdir -p "$work"
scripts/setup.sh run
scripts/build.sh --growth
has python3 || die "python3 is needed"

# measure LOG MEMORY COMMAND [DISK]: unless it was measured before.
measure() {
    local log=$work/$1.log disk=()
    [ -z "${4-}" ] || disk=(--disk "$4")
    [ ! -s "$log" ] || return 0
    say "$1"
    # Unlike --icount, time passes while the machine waits for the disk: else what it does every few seconds is done
    # thousands of times meanwhile, and counted.
    ./qemu.sh --timeout 7200 --cpu cortex-a72 --memory "$2" ${disk[@]+"${disk[@]}"} "$3" -- -kernel target/kernel8-growth.img \
        -icount shift=0,sleep=on -seed 1 >"$log.part" </dev/null || die "$1 failed: see $log.part"
    tr -d '\r' <"$log.part" >"$log"
    rm "$log.part"
}

# figures LOG NUMBER NAME=LABEL...: lines "LABEL NUMBER VALUE".
figures() {
    local log=$work/$1.log number=$2 pair value
    shift 2
    for pair in "$@"; do
        value=$(sed -n "s/^${pair%%=*} \([0-9.]*\) .*/\1/p" "$log")
        [ -z "$value" ] || echo "${pair#*=} $number $value"
    done
}

# A new sparse disk of $2.
disk() {
    rm -f "$work/$1.img"
    truncate -s "$2" "$work/$1.img"
    mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "${@:3}" "$work/$1.img" 2>/dev/null
}

maps() {
    local n plot=$work/maps.plot
    printf 'title: Maps: a fault, a lookup, a map and its removal, with so many\nx: maps\ny: instructions\n' >"$plot"
    for n in 1 10 100 1000 10000 100000; do
        measure "maps-$n" 256M "run growth maps $n"
        figures "maps-$n" $n growth_maps_read_fault="read fault" growth_maps_write_fault="write fault" \
            growth_maps_lookup="look up" growth_maps_map_unmap="map and unmap" >>"$plot"
    done
}

# A file of 17 GiB of which the disk has every block, and the PC none: allocated by debugfs as not yet written, and then
# called written.
big_file() {
    disk big 20G -N 64 -O ^metadata_csum,^uninit_bg
    : >"$work/empty"
    debugfs -w -R "write $work/empty growth.dat" "$work/big.img" 2>/dev/null >&2
    debugfs -w -R "fallocate growth.dat 0 4456447" "$work/big.img" 2>/dev/null >&2
    debugfs -w -R "set_inode_field growth.dat size $((17 << 30))" "$work/big.img" 2>/dev/null >&2
    debugfs -R "ex growth.dat" "$work/big.img" 2>/dev/null | python3 -c '
import re, struct, subprocess, sys
image = sys.argv[1]
imap = subprocess.run(["debugfs", "-R", "imap growth.dat", image], capture_output=True, text=True).stdout
block, offset = re.search(r"block (\d+), offset 0x([0-9a-f]+)", imap).groups()
with open(image, "r+b") as disk:
    # The header of a node, at the start of 60 bytes in the inode or of a block: magic, entries, .., depth.
    def node(at):
        disk.seek(at)
        magic, entries, _, depth, _ = struct.unpack("<HHHHI", disk.read(12))
        assert magic == 0xf30a, hex(magic)
        for i in range(entries):
            disk.seek(at + 12 + 12 * i)
            entry = disk.read(12)
            if depth:
                low, high = struct.unpack("<IH", entry[4:10])
                node((high << 32 | low) * 4096)
            else:
                length = struct.unpack("<H", entry[4:6])[0]
                if length > 32768:
                    disk.seek(at + 12 + 12 * i + 4)
                    disk.write(struct.pack("<H", length - 32768))
    node(int(block) * 4096 + int(offset, 16) + 40)
' "$work/big.img"
    e2fsck -fn "$work/big.img" >&2 || die "the disk with the large file is not sound"
}

memory() {
    local mib plot=$work/memory.plot
    printf 'title: Reading a file twice as large as memory\nx: MiB of memory\ny: instructions for a page\n' >"$plot"
    for mib in 16 64 256 1024 4096 8192; do
        [ -s "$work/memory-$mib.log" ] || [ -e "$work/big.img" ] || big_file
        measure "memory-$mib" "${mib}M" "run growth scan" "$work/big.img"
        figures "memory-$mib" $mib growth_scan_read="read, in order" \
            growth_scan_read_and_reclaim="read and reclaim, in order" growth_scan_random="the same, in no order" >>"$plot"
    done
    rm -f "$work/big.img"
}

files() {
    local n plot=$work/files.plot
    printf 'title: Files of a page each in the cache\nx: files\ny: instructions for a file\nscale: logarithmic\n' >"$plot"
    for n in 1 10 100 1000 10000 100000; do
        [ -s "$work/files-$n.log" ] || disk files 2G -N 200000
        measure "files-$n" 2G "run growth files $n" "$work/files.img"
        figures "files-$n" $n growth_files_open_read="open and read, cached" growth_files_read_cold="the same, not cached" \
            growth_files_reclaim="reclaim a page" growth_files_sync_nothing="sync, nothing to do (in all)" \
            growth_files_tidy="look for unused files (in all)" growth_files_counts="counters (in all)" >>"$plot"
    done
    rm -f "$work/files.img"
}

directory() {
    local n plot=$work/directory.plot
    printf 'title: A directory with so many entries\nx: entries\ny: instructions for an entry\nscale: logarithmic\n' >"$plot"
    for n in 1 10 100 1000 10000 100000 1000000; do
        [ $n -le "$most" ] || [ -s "$work/directory-$n.log" ] || continue
        [ -s "$work/directory-$n.log" ] || disk directory 4G -N 1100000
        measure "directory-$n" 512M "run growth directory $n" "$work/directory.img"
        figures "directory-$n" $n growth_directory_create="create" growth_directory_lookup="look up" \
            growth_directory_lookup_missing="look up what is missing" growth_directory_list="list" \
            growth_directory_remove="remove" >>"$plot"
    done
    rm -f "$work/directory.img"
}

disk_size() {
    local gib plot=$work/disk.plot memory=$work/disk-memory.plot
    printf 'title: Disks of so many GiB\nx: GiB\ny: instructions\n' >"$plot"
    printf 'title: Memory in use with disks of so many GiB\nx: GiB\ny: KiB\n' >"$memory"
    for gib in 1 4 16 64 256 1024; do
        [ -s "$work/disk-$gib.log" ] || disk disk "${gib}G"
        measure "disk-$gib" 256M "run growth write" "$work/disk.img"
        figures "disk-$gib" $gib growth_disk_boot="power-on, root mounted" growth_disk_write_first="first file, durable" \
            growth_disk_write_second="second file, durable" >>"$plot"
        figures "disk-$gib" $gib growth_disk_memory="root mounted" growth_disk_memory_then="two files later" >>"$memory"
    done
    rm -f "$work/disk.img"
}

for part in "${parts[@]}"; do
    case "$part" in
        disk) disk_size ;;
        *) $part ;;
    esac
done

qemu=$(qemu-system-aarch64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p;q')
{
    cat <<END
# Growth

Measured by \`bench/growth.sh\` on $(date -u +%Y-%m-%d): QEMU $qemu, virt, cortex-a72, instructions as \`--icount\` counts them, one
run each: they repeat but for what waits for the disk, and that takes no instructions of its own.
END
    for plot in maps memory files directory disk disk-memory; do
        [ -s "$work/$plot.plot" ] || continue
        printf '\n## %s\n\n' "$(sed -n 's/^title: //p' "$work/$plot.plot")"
        [ ! -e "bench/growth/$plot.md" ] || { cat "bench/growth/$plot.md" && echo; }
        printf '![%s](growth-%s.svg)\n\n' "$(sed -n 's/^title: //p' "$work/$plot.plot")" "$plot"
        cargo run --quiet --locked --package pinfold-tools -- plot "$work/$plot.plot" "$to/growth-$plot.svg"
    done
} >"$work/growth.md"
cat -s "$work/growth.md" >"$to/growth.md"
say "$to/growth.md"
