#!/usr/bin/env bash
# Makes the pictures of docs/src/trace.md from real runs; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"
cd "$ROOT"

help() {
    cat <<'END'
usage: bench/pictures.sh [--to DIR]

Records two runs with `trace` and draws them, to DIR (target/pictures unless said):

  trace-patterns.svg   a file read in order through a map, and another stored to in no order, on a machine of 64 MiB
  trace-scan.svg       a working set of 32 MiB in use while another thread goes through a file of 192 MiB, on the same machine
END
}

to=target/pictures
while [ $# -gt 0 ]; do
    case "$1" in
        --to)
            [ $# -ge 2 ] || usage_error "$1 needs an argument"
            to=$2
            shift
            ;;
        --help | -h)
            help
            exit
            ;;
        *) usage_error "unknown argument $1" ;;
    esac
    shift
done

scripts/setup.sh run
scripts/build.sh
work=$ROOT/target/pictures
mkdir -p "$work/tree" "$to"
trap 'rm -rf "$work/tree" "$work/disk.img"' EXIT

# Files of which no two pages are the same, and every run has the same ones.
numbers() { seq 1 30000000 | head -c "$1" || true; }

numbers 32M >"$work/tree/ordered"
cp "$work/tree/ordered" "$work/tree/warm.dat"
head -c 16M "$work/tree/ordered" >"$work/tree/random"
numbers 192M >"$work/tree/big.dat"
mkfs.ext4 -q -F -b 4096 -d "$work/tree" "$work/disk.img" 400M
rm -rf "$work/tree"

# picture NAME COMMANDS
picture() {
    ./qemu.sh --timeout 200 --memory 64M --disk "$work/disk.img" "trace on; $2; trace dump" >"$work/$1.txt" </dev/null
    cargo run --quiet --locked --package pinfold-tools -- trace "$work/$1.txt" "$to/$1.svg"
}

picture trace-patterns "mapsum /ordered; run churn /random 2500"
picture trace-scan "bench scan"
