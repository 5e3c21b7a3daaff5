#!/usr/bin/env bash
# Makes a card image for the Raspberry Pi; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

help() {
    cat <<'END'
usage: ./sdcard.sh OUT.img [DIRECTORY] [OPTION]...

Makes OUT.img, to be written to the SD card of a Raspberry Pi 3, Zero 2 W, 4, 400 or Compute Module 4, and beside it
OUT.img.xz, OUT.img.bmap and OUT.img.sha256. Its first partition has the boot firmware and Pinfold; the second one is the
root file system, with what is in DIRECTORY. Root is not needed. The same input makes the same image. An image that is
there stays as it is: it may hold files that were written since.

  --fresh             make OUT.img anew, whatever is in it
  --size SIZE         of the card image: 256M unless said, a power of two, as QEMU wants it
  --program "NAME.."  what runs after power-on, as on the kernel command line; without it there is a console
  --elf FILE          a program of your own that Cargo has built, instead of Pinfold's image; it runs after power-on
  --firmware DIR      firmware and device trees from DIR, instead of from Debian: bootcode.bin, start.elf, fixup.dat,
                      start4.elf, fixup4.dat, and bcm27*.dtb
  --help              this text
END
}

out='' directory='' size=256M program='' firmware='' elf='' fresh=no
while [ $# -gt 0 ]; do
    case "$1" in
        --size | --program | --firmware | --elf) [ $# -ge 2 ] || usage_error "$1 needs an argument" ;;
    esac
    case "$1" in
        --size) size=$2 && shift ;;
        --program) program=$2 && shift ;;
        --elf) elf=$2 && shift ;;
        --firmware) firmware=$2 && shift ;;
        --fresh) fresh=yes ;;
        --help | -h)
            help
            exit
            ;;
        -*) usage_error "unknown option $1" ;;
        *)
            if [ -z "$out" ]; then
                out=$1
            elif [ -z "$directory" ]; then
                directory=$1
            else
                usage_error "one directory at most, and $1 is another"
            fi
            ;;
    esac
    shift
done
[ -n "$out" ] || usage_error "say what the image is to be called"
[[ $out == *.img ]] || usage_error "the image's name ends in .img, and $out does not"
[ -d "$(dirname "$out")" ] || usage_error "there is no folder $(dirname "$out")"
[ "$fresh" = yes ] || [ ! -e "$out" ] || usage_error "$out is there, and may hold files of yours; --fresh makes it anew"
[ -z "$directory" ] || [ -d "$directory" ] || usage_error "there is no folder $directory"
[ -z "$firmware" ] || [ -d "$firmware" ] || usage_error "there is no folder $firmware"
[ -z "$elf" ] || [ -f "$elf" ] || usage_error "there is no program $elf"
[[ $program != *$'\n'* ]] || usage_error "--program is one line"
case "$size" in
    *[!0-9MG]* | '' | [!1-9]*) usage_error "--size takes a size such as 256M or 4G, not $size" ;;
    *M) mib=${size%M} ;;
    *G) mib=$((${size%G} * 1024)) ;;
    *) usage_error "--size takes a size such as 256M or 4G, not $size" ;;
esac
case "$mib" in *[!0-9]*) usage_error "--size takes a size such as 256M or 4G, not $size" ;; esac
[ $((mib & (mib - 1))) = 0 ] && [ "$mib" -ge 128 ] && [ "$mib" -le $((1024 * 1024)) ] ||
    usage_error "--size is a power of two from 128M on, and $size is not"

"$ROOT/scripts/setup.sh" card
if [ -n "$elf" ]; then
    kernel=$elf.img
    "$ROOT/scripts/image.sh" "$elf" "$kernel"
    program=${program:-run $(basename "$elf")}
else
    kernel=$ROOT/target/kernel8.img
    "$ROOT/scripts/build.sh"
fi
find_rust
if [ -z "$firmware" ]; then
    "$ROOT/scripts/pi-files.sh" firmware
    "$ROOT/scripts/pi-files.sh" trees
    sources=("$ROOT/target/firmware" "$ROOT/target/trees")
else
    sources=("$firmware")
fi

work=$(mktemp -d "$(realpath "$(dirname "$out")")/.sdcard.XXXXXX")
trap 'rm -rf "$work"' EXIT
boot=$work/boot image=$work/image
mkdir "$boot"

# Partitions at whole MiB: FAT32 wants 65525 clusters at least.
boot_start=1 boot_mib=40
root_start=$((boot_start + boot_mib)) root_mib=$((mib - boot_start - boot_mib))

for file in bootcode.bin start.elf fixup.dat start4.elf fixup4.dat; do
    found=''
    for source in "${sources[@]}"; do [ ! -s "$source/$file" ] || found=$source/$file; done
    [ -n "$found" ] || die "there is no $file in ${sources[*]}"
    cp "$found" "$boot/$file"
done
trees=0
for source in "${sources[@]}"; do
    for tree in bcm2837-rpi-3-b bcm2837-rpi-3-b-plus bcm2837-rpi-zero-2-w bcm2711-rpi-4-b bcm2711-rpi-400 bcm2711-rpi-cm4-io; do
        [ ! -s "$source/$tree.dtb" ] || { cp "$source/$tree.dtb" "$boot/" && trees=$((trees + 1)); }
    done
    for licence in copyright LICENCE.broadcom; do
        [ ! -s "$source/$licence" ] || cp "$source/$licence" "$boot/LICENCE.firmware.txt"
    done
done
[ $trees -gt 0 ] || die "there is no device tree in ${sources[*]}"
[ -s "$boot/LICENCE.firmware.txt" ] ||
    die "the firmware may only be passed on with its licence: ${sources[*]} has neither copyright nor LICENCE.broadcom"
cp "$kernel" "$boot/kernel8.img"
cat "$ROOT/LICENSE-MIT" >"$boot/LICENCE.pinfold.txt"

# What is on the card decides its numbers, so that the same input makes the same image.
sum_of() { (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum | cut -c1-64); }
identity=$({ sum_of "$boot"; [ -z "$directory" ] || sum_of "$directory"; echo "$size $program"; } | sha256sum | cut -c1-64)
signature=${identity:0:8}
uuid=${identity:8:8}-${identity:16:4}-4${identity:21:3}-8${identity:25:3}-${identity:28:12}
hash_seed=${identity:40:8}-${identity:48:4}-4${identity:53:3}-8${identity:57:3}-${identity:28:12}
epoch=1767225600 # 2026-01-01
export SOURCE_DATE_EPOCH=$epoch E2FSPROGS_FAKE_TIME=$epoch

# Source: Raspberry Pi documentation, "config.txt"; Debian's device trees of the Pi 3 family have Linux's names.
cat >"$boot/config.txt" <<'END'
arm_64bit=1
kernel=kernel8.img
enable_uart=1
disable_splash=1
[pi3]
device_tree=bcm2837-rpi-3-b.dtb
[pi3+]
device_tree=bcm2837-rpi-3-b-plus.dtb
[pi02]
device_tree=bcm2837-rpi-zero-2-w.dtb
[all]
END
printf '%s\n' "root=PARTUUID=$signature-02${program:+ $program}" >"$boot/cmdline.txt"
find "$boot" -exec touch -d "@$epoch" {} +

truncate -s "${boot_mib}M" "$work/boot.fat"
mkfs.vfat --invariant -F 32 -s 1 -n PINFOLD -i "$signature" "$work/boot.fat" >/dev/null
(cd "$boot" && LC_ALL=C mcopy -m -i "$work/boot.fat" ./* ::) || die "the boot partition could not be filled"

fill=() inodes=()
if [ -n "$directory" ]; then
    fill=(-d "$directory")
fi
mkfs.ext4 -q -F -b 4096 -L pinfold -U "$uuid" -E "hash_seed=$hash_seed,lazy_itable_init=0,lazy_journal_init=0" \
    ${fill[@]+"${fill[@]}"} ${inodes[@]+"${inodes[@]}"} "$work/root.ext4" "${root_mib}M" >"$work/log" 2>&1 ||
    die "the root file system of $root_mib MiB could not be made${directory:+ from $directory}: $(tail -n 1 "$work/log")"
# When files were read and put there is nobody's business, and never the same twice.
used=$(dumpe2fs -h "$work/root.ext4" 2>/dev/null |
    awk -F: '/^Inode count/ { count = $2 } /^Free inodes/ { free = $2 } END { print count - free }')
for ((inode = 11; inode <= used; inode++)); do
    printf 'set_inode_field <%s> atime @%s\nset_inode_field <%s> ctime @%s\n' $inode $epoch $inode $epoch
done | debugfs -w -f - "$work/root.ext4" >/dev/null 2>"$work/log" || die "debugfs: $(tail -n 1 "$work/log")"
e2fsck -fn "$work/root.ext4" >"$work/log" 2>&1 || die "the root file system is not sound: $(tail -n 3 "$work/log")"

# little_endian BYTES NUMBER
little_endian() {
    local i
    for ((i = 0; i < $1; i++)); do printf "\\x$(printf '%02x' $(($2 >> (8 * i) & 255)))"; done
}
# An entry of an MBR: start and length in MiB, its type. Cylinders are of no use to anybody today.
entry() {
    printf '\x00\xfe\xff\xff'
    printf "\\x$3\\xfe\\xff\\xff"
    little_endian 4 $(($1 * 2048))
    little_endian 4 $(($2 * 2048))
}
truncate -s "${mib}M" "$image"
{
    little_endian 4 $((16#$signature))
    printf '\0\0'
    entry $boot_start $boot_mib 0c
    entry $root_start $root_mib 83
    head -c 32 /dev/zero
    printf '\x55\xaa'
} | dd of="$image" bs=1 seek=440 conv=notrunc status=none
dd if="$work/boot.fat" of="$image" bs=1M seek=$boot_start conv=notrunc,sparse status=none
dd if="$work/root.ext4" of="$image" bs=1M seek=$root_start conv=notrunc,sparse status=none

# It says where it has put the map, which is not where it stays.
(cd "$ROOT" && cargo run --quiet --locked --package pinfold-tools -- bmap "$image" "$work/bmap") >/dev/null
xz -T1 -k -1 "$image"
mv "$work/bmap" "$out.bmap"
mv "$work/image.xz" "$out.xz"
mv "$image" "$out"
(cd "$(dirname "$out")" && sha256sum "$(basename "$out")" >"$(basename "$out").sha256")
say "$out: $size, root file system on PARTUUID=$signature-02"
say "Write it with one of"
say "    rpi-imager                      choose \"Use custom\" and $(basename "$out").xz"
say "    bmaptool copy $out.xz /dev/YOUR-CARD"
say "    xzcat $out.xz | sudo dd of=/dev/YOUR-CARD bs=4M conv=fsync"
