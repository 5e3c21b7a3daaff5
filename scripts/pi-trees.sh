#!/usr/bin/env bash
# Fetches the device trees of the Raspberry Pi 3 and 4 into target/trees/, out of Debian's kernel package for arm64.
# Neither root nor a change to this machine's apt settings is needed; Debian's archive key is.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

trees=$ROOT/target/trees
wanted=(bcm2837-rpi-3-b.dtb bcm2711-rpi-4-b.dtb)

missing=no
for tree in "${wanted[@]}"; do
    [ -s "$trees/$tree" ] || missing=yes
done
[ "$missing" = yes ] || exit 0

key=/usr/share/keyrings/debian-archive-keyring.gpg
for need in apt-get apt-cache dpkg-deb; do
    has "$need" || die "$need is needed to fetch device trees from Debian"
done
[ -r "$key" ] || die "$key is needed to fetch device trees from Debian"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$trees"
echo "deb [signed-by=$key] http://deb.debian.org/debian stable main" >"$work/sources.list"
apt=(-o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o "Dir::Etc::SourceList=$work/sources.list"
    -o Dir::Etc::SourceParts=/dev/null -o APT::Architecture=arm64 -o APT::Architectures::=arm64
    -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un)" -q)

say "Fetching device trees from Debian's kernel package..."
cd "$work"
apt-get "${apt[@]}" update >apt.log 2>&1 || die "apt-get update failed: $(tail -n 3 apt.log)"
package=$(apt-cache "${apt[@]}" depends linux-image-arm64 | sed -n 's/.*Depends: *\(linux-image-[^ ]*\).*/\1/p' | head -n 1)
[ -n "$package" ] || die "Debian's linux-image-arm64 names no kernel package"
apt-get "${apt[@]}" download "$package" >apt.log 2>&1 || die "apt-get download failed: $(tail -n 3 apt.log)"
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --wildcards "${wanted[@]/#/*/broadcom/}"
for tree in "${wanted[@]}"; do
    find . -name "$tree" -exec cp {} "$trees/$tree" \;
    [ -s "$trees/$tree" ] || die "$package has no $tree"
done
