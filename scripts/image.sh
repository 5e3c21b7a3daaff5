#!/usr/bin/env bash
# Makes a bootable image of a program that Cargo built, with the names of its functions in it:
#
#   scripts/image.sh ELF OUT
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# = 2 ] || usage_error "say which program, and where the image goes"
[ -f "$1" ] || die "there is no program $1"
elf=$(realpath "$1") out=$(realpath "$(dirname "$2")")/$(basename "$2")
cd "$ROOT"
scripts/setup.sh build
find_rust
cargo build --quiet --locked --package pinfold-tools
if [ ! "$out" -nt "$elf" ] || [ ! "$out" -nt target/debug/pinfold-tools ]; then
    target/debug/pinfold-tools image "$elf" "$out" >&2
fi
