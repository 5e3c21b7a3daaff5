#!/usr/bin/env bash
# Tells where the library and the image are unsafe, and why that is sound.
#
#   scripts/unsafe.sh           every unsafe block and impl: file, line, reason
#   scripts/unsafe.sh --page    the book's page about it, with counts by module
#   scripts/unsafe.sh --check   whether that page is current, and no block is without a reason
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PAGE=docs/src/unsafe.md

main() {
    cd "$ROOT"
    case "${1-}" in
        "") blocks ;;
        --page) page ;;
        --check)
            ! blocks | grep -n ": ?$" || die "these have no SAFETY comment"
            page | cmp -s - "$PAGE" || die "$PAGE is not current: scripts/unsafe.sh --page >$PAGE"
            ;;
        *) usage_error "say nothing, --page or --check" ;;
    esac
}

sources() { find src -name '*.rs' | LC_ALL=C sort; }

# FILE:LINE: REASON for each block and impl. The reason is the SAFETY comment nearest above, which must be near.
blocks() {
    # shellcheck disable=SC2046
    awk '
        FNR == 1 { reason = ""; in_reason = 0 }
        /^ *\/\/ SAFETY:/ { sub(/^ *\/\/ SAFETY: */, ""); reason = $0; last = FNR; in_reason = 1; next }
        in_reason && /^ *\/\/ / { sub(/^ *\/\/ */, ""); reason = reason " " $0; last = FNR; next }
        { in_reason = 0 }
        /^ *\/\// { next }
        /unsafe (\{|impl)/ {
            print FILENAME ":" FNR ": " (FNR - last <= 12 && reason != "" ? reason : "?")
        }
    ' $(sources)
}

# COUNT lines of the kind PATTERN in what find is told.
count() { { xargs grep -hE "$1" || true; } | grep -cvE '^ *//' || true; }

row() {
    local name=$1 files
    shift
    files=$(find "$@" -name '*.rs')
    echo "| $name | $(echo "$files" | count 'unsafe \{') | $(echo "$files" | count 'unsafe impl') |" \
        "$(echo "$files" | count 'unsafe (extern "C" )?fn') |"
}

page() {
    cat <<'TEXT'
# Unsafe code

Made by `scripts/unsafe.sh --page`; a test sees to it that it is current. `scripts/unsafe.sh` lists every block with its
reason.

| Where | Blocks | `unsafe impl` | `unsafe fn` |
| --- | --- | --- | --- |
TEXT
    row '`arch`: boot, exceptions, tables, registers' src/arch
    row '`driver`: registers of devices, DMA' src/driver
    row '`mm`: frames, heap, maps, faults' src/mm
    row '`fs`: block devices and file systems' src/fs
    row '`thread`, `sync`: stacks and locks' src/thread.rs src/sync.rs
    row '`file`, `mmap`, `program`: what programs use' src/file.rs src/mmap.rs src/program.rs
    row 'self-tests' src/selftest
    row 'the simulated machine' src/sim.rs
    # shellcheck disable=SC2046
    row 'the rest' $(find src -maxdepth 1 -name '*.rs' ! -name thread.rs ! -name sync.rs ! -name file.rs \
        ! -name mmap.rs ! -name program.rs ! -name sim.rs) src/disk src/files
    row '**all**' src
    cat <<'TEXT'

The rules, which lints enforce where they can (`Cargo.toml`):

- A block does one thing, and its `// SAFETY:` proves it from what can be read beside it. `clippy::undocumented_unsafe_blocks`
  is an error.
- An `unsafe fn` says under `# Safety` what its caller must promise; its body is not unsafe by that
  (`unsafe_op_in_unsafe_fn`).
- Where nothing needs it, it is forbidden:

TEXT
    { grep -rl 'forbid(unsafe_code)' src || true; } | LC_ALL=C sort | sed 's/.*/  - `&`, and what is in it/'
    cat <<'TEXT'

- What a program can get wrong is not unsafe but an error or a fault: a map is memory of its own, and its addresses are
  checked before the kernel touches them.

Miri runs what a PC can run of it (`scripts/miri.sh`).
TEXT
}

main "$@"
