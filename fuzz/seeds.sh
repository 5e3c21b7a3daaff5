#!/usr/bin/env bash
# Makes what the fuzz targets begin with, into fuzz/seeds/ and fuzz/corpus/. Nothing of it is committed.
#
#   fuzz/seeds.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

seeds=$ROOT/fuzz/seeds
corpus=$ROOT/fuzz/corpus

main() {
    [ $# -eq 0 ] || usage_error "it takes no arguments"
    rm -rf "$seeds"
    mkdir -p "$seeds"/{ext4,journal,fat,partition,device_tree}
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    fill "$source"
    ext4_images
    fat_volumes
    partition_tables
    device_trees
    corpora
    say "Seeds are in fuzz/seeds, first inputs in fuzz/corpus."
}

# Files with every structure of ext4: a directory large enough for a tree, many extents, a long symbolic link.
fill() {
    mkdir -p "$1/directory/below"
    for i in $(seq 100 5 250); do
        head -c $((i * 20)) /dev/zero | tr '\0' "x" >"$1/directory/file number $i with a long name"
    done
    for i in $(seq 0 39); do
        echo data | dd of="$1/sparse" bs=1 seek=$((i * 100000)) conv=notrunc status=none
    done
    ln -s "$(printf 'x%.0s' {1..100})" "$1/link"
}

ext4_images() {
    local n=0 options
    for options in "" "^metadata_csum" "^extents,^has_journal,^64bit" "^extents,^64bit,^metadata_csum,^flex_bg" \
        "orphan_file,metadata_csum_seed"; do
        truncate -s 2M "$seeds/ext4/$n"
        mkfs.ext4 -q -b 1024 -N 192 -O "$options" -d "$source" "$seeds/ext4/$n"
        # Makes a tree of the directory.
        e2fsck -fyD "$seeds/ext4/$n" >/dev/null 2>&1 || [ $? -eq 1 ]
        # The journal's target writes a log first.
        [ "$options" = "^extents,^has_journal,^64bit" ] || cp "$seeds/ext4/$n" "$seeds/journal/$n"
        n=$((n + 1))
    done
}

fat_volumes() {
    local width
    for width in 12 16; do
        truncate -s "$([ $width = 12 ] && echo 1M || echo 5M)" "$seeds/fat/$width"
        mkfs.vfat -F "$width" -s 1 "$seeds/fat/$width" >/dev/null
        mcopy -s -i "$seeds/fat/$width" "$source/directory" ::/
    done
}

partition_tables() {
    truncate -s 3M "$seeds/partition/gpt" "$seeds/partition/mbr"
    printf 'label: gpt\nsize=1M, name=one\nsize=1M, name=two\n' | sfdisk -q "$seeds/partition/gpt"
    printf 'label: dos\nsize=512K, type=c\ntype=5\nsize=256K\nsize=256K\n' | sfdisk -q "$seeds/partition/mbr"
}

device_trees() {
    local version tree
    for version in 2 3; do
        tree=$seeds/device_tree/virt-gic$version
        qemu-system-aarch64 -machine "virt,gic-version=$version,dumpdtb=$tree" -cpu cortex-a72 -nic none \
            -display none >/dev/null 2>&1
        # QEMU pads to 1 MiB.
        dtc -q -I dtb -O dtb -o "$tree.small" "$tree"
        mv "$tree.small" "$tree"
    done
    "$ROOT/scripts/pi-files.sh" trees
    # Firmware puts in how much memory there is.
    for tree in "$ROOT"/target/trees/bcm*.dtb; do
        cp "$tree" "$seeds/device_tree/"
        tree=$seeds/device_tree/${tree##*/}
        case $tree in
            */bcm2711-*) fdtput -t x "$tree" /memory@0 reg 0 0 3c000000 ;;
            *) fdtput -t x "$tree" /memory@0 reg 0 3c000000 ;;
        esac
    done
}

# An input for each seed, without a patch, and command lines as they are typed.
corpora() {
    local target n
    for target in ext4 journal fat partition device_tree; do
        mkdir -p "$corpus/$target"
        n=0
        for _ in "$seeds/$target"/*; do
            # shellcheck disable=SC2059
            printf "\\x$(printf %02x $n)" >"$corpus/$target/whole-$n"
            n=$((n + 1))
        done
    done
    mkdir -p "$corpus/command_line"
    printf '%s' 'ls /; cat "a b" '"'c d'"' \# # no more' >"$corpus/command_line/quotes"
    printf '%s' 'selftest maps; run hello a "b \" c"' >"$corpus/command_line/run"
}

main "$@"
