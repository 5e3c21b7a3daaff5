#!/usr/bin/env bash
# Looks for undefined behaviour in what a PC can run of the library, with Miri.
#
#   scripts/miri.sh           all of it: an hour and more
#   scripts/miri.sh --short   frames, heap, tables, maps, faults, locks: minutes
#
# Miri is a component of nightly Rust: where rustup can be had, it is added. Elsewhere this says so, and does nothing.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGES=$ROOT/target/miri-images

# Tests of the library that take minutes each, of tables that are the same for every page.
LONG=(a_whole_table_of_memory a_store_in_shared_zeros a_group_can_be_split many_pages_are_forgotten
    no_frame_for_a_table the_highest_page_of_the_half one_pass_over_a_huge a_tree_with_any_word a_damaged_tree)

main() {
    local short=no skip=()
    case "${1-}" in
        "") ;;
        --short) short=yes ;;
        *) usage_error "say nothing, or --short" ;;
    esac
    cd "$ROOT"
    if ! has_miri; then
        say "skipped: there is no Miri here (rustup toolchain install nightly --component miri rust-src)"
        exit 0
    fi
    # Files are read, and time passes; the buddy allocator makes pointers of numbers; machines of tests live for ever.
    local flags="-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks"
    export MIRIFLAGS=$flags PINFOLD_CAMPAIGN=1
    if [ "$short" = yes ]; then
        export PROPTEST_CASES=2
        for test in "${LONG[@]}"; do skip+=(--skip "$test"); done
        miri --lib -- mm:: sync symbols arch::aarch64::page_table "${skip[@]}"
        miri --test fault_path --test memory_maps
    else
        export PROPTEST_CASES=16 PINFOLD_MUTATIONS=3
        images
        miri --lib
        # The other tests make their disks with mkfs, which Miri cannot run.
        miri --test fault_path --test memory_maps
        PINFOLD_IMAGES=$IMAGES miri --test fuzz_targets images_of_a_folder
    fi
}

has_miri() {
    has cargo && has rustup || return 1
    cargo +nightly miri --version >/dev/null 2>&1 ||
        rustup component add --toolchain nightly miri rust-src >&2 || return 1
}

miri() { cargo +nightly miri test --locked "$@"; }

# Small ones of every kind.
images() {
    local i options=(^resize_inode,^has_journal ^resize_inode,^has_journal,^extents,^64bit,^metadata_csum ^resize_inode)
    rm -rf "$IMAGES" && mkdir -p "$IMAGES"
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    mkdir "$source/directory"
    for i in 1 2 3 4; do echo "words $i" >"$source/directory/file $i"; done
    ln -s "$(printf 'x%.0s' {1..100})" "$source/link"
    for i in 1 2 3; do
        truncate -s "$([ "$i" = 3 ] && echo 2M || echo 128K)" "$IMAGES/ext4-$i"
        mkfs.ext4 -q -b 1024 -N 32 -O "${options[i - 1]}" -d "$source" "$IMAGES/ext4-$i"
    done
    truncate -s 64K "$IMAGES/fat-12"
    mkfs.vfat -F 12 -s 1 -r 16 "$IMAGES/fat-12" >/dev/null
    mcopy -s -i "$IMAGES/fat-12" "$source/directory" ::/
    if has qemu-system-aarch64 && has dtc; then
        qemu-system-aarch64 -machine "virt,dumpdtb=$source/tree" -nic none -display none >/dev/null 2>&1
        dtc -q -I dtb -O dtb -o "$IMAGES/tree-virt" "$source/tree"
    fi
}

main "$@"
