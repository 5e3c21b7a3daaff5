#!/usr/bin/env bash
# Sees to it that this machine has what Pinfold needs, and installs what is missing: on Debian as root with apt, Rust's
# target with rustup. Elsewhere it says what to install. Where nothing is missing it only looks.
#
#   scripts/setup.sh build    what builds the image
#   scripts/setup.sh run      and QEMU
#   scripts/setup.sh disk     what makes an ext4 disk
#   scripts/setup.sh card     what builds the image, and what puts it on a card
#   scripts/setup.sh test     and what the tests use
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

QEMU_NEEDED=9

main() {
    case "${1-}" in
        build) rust ;;
        run) rust && qemu ;;
        disk) ext4_tools ;;
        card) rust && card_tools ;;
        test) rust && qemu && test_tools ;;
        *) usage_error "say what for: build, run, disk, card or test" ;;
    esac
}

rust() {
    find_rust
    [ "$RUST" = none ] || return 0
    if has rustup && has cargo; then
        say "Adding Rust's target $TARGET..."
        if rustup target add "$TARGET" >&2; then
            find_rust
            [ "$RUST" = none ] || return 0
        fi
        say "rustup could not add the target."
    fi
    if can_apt && apt-cache show rustc-web >/dev/null 2>&1; then
        say "Installing Debian's Rust compiler, which builds the core library from source..."
        apt_install rustc-web cargo-web rust-web-src lld gcc libc6-dev
        find_rust
        [ "$RUST" = none ] || return 0
    fi
    say "No Rust compiler here can build for $TARGET. Install one from https://rustup.rs, then"
    say "    rustup target add $TARGET"
    die "stopped"
}

qemu() {
    local have=0
    if has qemu-system-aarch64; then
        have=$(qemu_version)
        [ "$have" -lt "$QEMU_NEEDED" ] || return 0
        say "QEMU $have is here, $QEMU_NEEDED is needed."
    fi
    if can_apt; then
        say "Installing QEMU..."
        case "$(debian_release)" in
            bookworm)
                # Debian 12's own is version 7, which has no raspi4b.
                add_backports
                apt_install -t bookworm-backports qemu-system-arm
                ;;
            *) apt_install qemu-system-arm ;;
        esac
        if has qemu-system-aarch64 && [ "$(qemu_version)" -ge "$QEMU_NEEDED" ]; then
            return 0
        fi
        say "What apt installed is not QEMU $QEMU_NEEDED or later."
    fi
    name_packages "QEMU $QEMU_NEEDED or later" qemu-system-arm qemu-system-aarch64-core qemu
}

qemu_version() {
    qemu-system-aarch64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p;q'
}

ext4_tools() {
    if ! { has mkfs.ext4 && has e2fsck && has debugfs; }; then
        install_or_name "ext4's tools" e2fsprogs e2fsprogs e2fsprogs
    fi
}

card_tools() {
    ext4_tools
    if ! { has mkfs.vfat && has fsck.vfat; }; then
        install_or_name "FAT's tools" dosfstools dosfstools dosfstools
    fi
    if ! has mcopy; then
        install_or_name "the tools for FAT images" mtools mtools mtools
    fi
    if ! has xz; then
        install_or_name "xz" xz-utils xz xz
    fi
}

test_tools() {
    card_tools
    if ! has fdtput; then
        install_or_name "the device tree compiler" device-tree-compiler dtc dtc
    fi
    if ! has sfdisk; then
        install_or_name "sfdisk" fdisk util-linux util-linux
    fi
    if [ "$RUST" = debian ]; then
        # rustup's would go with another compiler.
        [ -x /usr/bin/cargo-clippy ] && [ -x /usr/bin/cargo-fmt ] || apt_install rustfmt-web rust-web-clippy
    elif ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        has rustup && rustup component add rustfmt clippy >&2 ||
            die "Rust's rustfmt and clippy are needed"
    fi
}

# install_or_name WHAT APT DNF BREW
install_or_name() {
    if can_apt; then
        say "Installing $1..."
        apt_install "$2"
    else
        name_packages "$@"
    fi
}

# name_packages WHAT APT DNF BREW
name_packages() {
    say "$1 is needed and cannot be installed from here (not root on Debian). Install it with one of"
    say "    sudo apt-get install $2"
    [ "$(debian_release)" != bookworm ] || [ "$2" != qemu-system-arm ] ||
        say "        (Debian 12: from bookworm-backports, sudo apt-get install -t bookworm-backports $2)"
    say "    sudo dnf install $3"
    say "    brew install $4"
    die "stopped"
}

can_apt() { [ "$(id -u)" = 0 ] && has apt-get && [ -n "$(debian_release)" ]; }

# Debian's name for its release; empty elsewhere.
debian_release() {
    [ ! -r /etc/os-release ] || (
        . /etc/os-release
        [ "${ID-}" != debian ] || printf '%s' "${VERSION_CODENAME-}"
    )
}

add_backports() {
    if ! apt-cache policy | grep -q 'a=.*backports\|n=bookworm-backports'; then
        echo 'deb http://deb.debian.org/debian bookworm-backports main' >/etc/apt/sources.list.d/pinfold-backports.list
    fi
}

apt_install() {
    local log
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install $*"
    fi
    rm -f "$log"
}

main "$@"
