#!/usr/bin/env bash
# Builds the bootable image.
#
#   scripts/build.sh            target/kernel8.img, optimised
#   scripts/build.sh --debug    target/kernel8-debug.img, from the dev profile
#   scripts/build.sh --growth   target/kernel8-growth.img, with what bench/growth.sh runs
#   scripts/build.sh --refusal  target/kernel8-refusal.img, with what tests/campaign/allocations.sh runs
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

profile=(--release)
folder=release
image=target/kernel8.img
case "${1-}" in
    '') ;;
    --debug)
        profile=()
        folder=debug
        image=target/kernel8-debug.img
        ;;
    --growth)
        profile=(--release --features growth)
        image=target/kernel8-growth.img
        ;;
    --refusal)
        profile=(--release --features refusal)
        image=target/kernel8-refusal.img
        ;;
    *) usage_error "unknown argument $1" ;;
esac

scripts/setup.sh build
find_rust

# Nothing to say where nothing changed: Cargo decides that, this only whether to show its progress.
quiet=()
if [ -f "$image" ] &&
    [ -z "$(find src linker.ld Cargo.toml Cargo.lock .cargo tools -newer "$image" -print -quit)" ]; then
    quiet=(--quiet)
fi

# Panic messages carry file names: without this machine's folders in them, everyone gets the same image.
sysroot=$(rustc --print sysroot)
commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
remap="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
remap_rust="--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$commit"
for_target build ${profile[@]+"${profile[@]}"} ${quiet[@]+"${quiet[@]}"} --locked --bin pinfold \
    --config "target.$TARGET.rustflags=['$remap', '$remap_rust']"

cargo build ${quiet[@]+"${quiet[@]}"} --locked --package pinfold-tools
elf=target/$TARGET/$folder/pinfold
if [ ! "$image" -nt "$elf" ] || [ ! "$image" -nt target/debug/pinfold-tools ]; then
    target/debug/pinfold-tools image "$elf" "$image" >&2
fi
