# What the scripts share. Sourced; ROOT is the checkout.
# Written for the bash of Debian and of macOS (3.2).
# shellcheck shell=bash

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=aarch64-unknown-none-softfloat

# The build's own settings come from .cargo/config.toml; these variables would replace them.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# A mistake on the command line.
usage_error() {
    say "${0##*/}: $*"
    say "Try ${0##*/} --help."
    exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

# e2fsprogs lies in /usr/sbin, which is not on every user's PATH.
PATH=$PATH:/usr/sbin:/sbin

# Images that are written to be looked at once: a disk takes longer to write them than e2fsck to read them.
use_memory_for_images() {
    if [ -z "${TMPDIR-}" ] && [ -d /dev/shm ] && [ -w /dev/shm ]; then
        export TMPDIR=/dev/shm
    fi
}

# Which Rust builds the image, in RUST: "target", one that has the target's core library; "debian", Debian's rustc-web,
# which builds core and alloc from source; "none".
find_rust() {
    RUST=none
    if has cargo && has rustc && [ -d "$(rustc --print sysroot)/lib/rustlib/$TARGET/lib" ]; then
        RUST=target
    elif [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && has ld.lld &&
        [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/core" ]; then
        RUST=debian
        export PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER=ld.lld
    fi
}

# Runs Cargo for the target: for_target build --release ...
for_target() {
    local command=$1 core=()
    shift
    if [ "$RUST" = debian ]; then
        core=(-Zbuild-std=core,alloc,compiler_builtins -Zbuild-std-features=compiler-builtins-mem)
    fi
    cargo "$command" --target "$TARGET" ${core[@]+"${core[@]}"} "$@"
}
