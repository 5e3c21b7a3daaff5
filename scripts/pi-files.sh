#!/usr/bin/env bash
# Fetches what a Raspberry Pi needs beside the image, out of Debian's packages for arm64, into target/:
#
#   scripts/pi-files.sh trees      device trees, to target/trees/
#   scripts/pi-files.sh firmware   the boot firmware and its licence, to target/firmware/
#   scripts/pi-files.sh u-boot     U-Boot for both boards, to target/u-boot/
#
# Neither root nor a change to this machine's apt settings is needed; Debian's archive key is. Nothing that is there is
# fetched again.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

what=${1-}
case "$what" in
    trees) wanted=(bcm2837-rpi-3-b.dtb bcm2837-rpi-3-b-plus.dtb bcm2837-rpi-zero-2-w.dtb bcm2711-rpi-4-b.dtb
        bcm2711-rpi-400.dtb bcm2711-rpi-cm4-io.dtb) ;;
    # What a Pi 3 reads, what a Pi 4 reads, and what must go with them.
    firmware) wanted=(bootcode.bin start.elf fixup.dat start4.elf fixup4.dat copyright) ;;
    u-boot) wanted=(u-boot.bin) ;;
    *) usage_error "say what: trees, firmware or u-boot" ;;
esac
to=$ROOT/target/$what
missing=no
for file in "${wanted[@]}"; do
    [ -s "$to/$file" ] || missing=yes
done
[ "$missing" = yes ] || exit 0

key=/usr/share/keyrings/debian-archive-keyring.gpg
for need in apt-get apt-cache dpkg-deb; do
    has "$need" || die "$need is needed to fetch packages from Debian"
done
[ -r "$key" ] || die "$key is needed to fetch packages from Debian"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$to"
echo "deb [signed-by=$key] http://deb.debian.org/debian stable main non-free-firmware" >"$work/sources.list"
apt=(-o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o "Dir::Etc::SourceList=$work/sources.list"
    -o Dir::Etc::SourceParts=/dev/null -o APT::Architecture=arm64 -o APT::Architectures::=arm64
    -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un)" -q)

say "Fetching $what for the Raspberry Pi from Debian..."
cd "$work"
apt-get "${apt[@]}" update >apt.log 2>&1 || die "apt-get update failed: $(tail -n 3 apt.log)"
case "$what" in
    trees)
        package=$(apt-cache "${apt[@]}" depends linux-image-arm64 |
            sed -n 's/.*Depends: *\(linux-image-[^ ]*\).*/\1/p' | head -n 1)
        [ -n "$package" ] || die "Debian's linux-image-arm64 names no kernel package"
        within=(--wildcards '*/broadcom/*.dtb')
        ;;
    firmware)
        package=raspi-firmware
        within=(./usr/lib/raspi-firmware ./usr/share/doc/raspi-firmware)
        ;;
    u-boot)
        package=u-boot-rpi
        within=(--wildcards '*/rpi_arm64/u-boot.bin')
        ;;
esac
apt-get "${apt[@]}" download "$package" >apt.log 2>&1 || die "apt-get download failed: $(tail -n 3 apt.log)"
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x "${within[@]}"
for file in "${wanted[@]}"; do
    find . -name "$file" -type f -exec cp {} "$to/$file" \;
    [ -s "$to/$file" ] || die "$package has no $file"
done
