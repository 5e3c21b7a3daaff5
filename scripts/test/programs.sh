# shellcheck shell=bash

PROGRAMS=$ROOT/target/test-programs

# Cargo, for crates that are not this one: what they share is built once.
cargo_for_programs() { CARGO_TARGET_DIR=$PROGRAMS/build cargo "$@"; }
BUILT=$PROGRAMS/build/$TARGET/debug

# prints LINE... -- COMMAND...: the command succeeds and prints lines with these words, in this order.
prints() {
    local wanted=() text line
    while [ "$1" != -- ]; do wanted+=("$1") && shift; done
    shift
    text=$("$@" 2>&1 | tr -d '\r'; exit "${PIPESTATUS[0]}") || { echo "$text"; return 1; }
    echo "$text"
    for line in "${wanted[@]}"; do
        [[ "$text" == *"$line"* ]] || { echo "missing, or out of order: $line"; return 1; }
        text=${text#*"$line"}
    done
}

# status_is STATUS COMMAND...
status_is() {
    local status=0
    "${@:2}" || status=$?
    echo "status $status"
    [ "$status" = "$1" ]
}

# A crate outside of the repository, from the template: nothing but the path of the dependency is changed.
template_is_built() {
    cp -r examples/template "$OUTSIDE/greet" &&
        sed "s|path = .*|path = \"$ROOT\" }|" examples/template/Cargo.toml >"$OUTSIDE/greet/Cargo.toml" &&
        (cd "$OUTSIDE/greet" && cargo_for_programs build)
}

greet() { (cd "$OUTSIDE/greet" && cargo_for_programs run --quiet -- "$@"); }

template_runs() {
    local PINFOLD="--timeout 100"
    export PINFOLD
    prints 'Hello, world!' 'Hello, two words!' 'Hello, a "b; c\!' -- greet world "two words" 'a "b; c\' || return
    PINFOLD="--timeout 100 --env GREETING=Hi --env OTHER=x=y"
    prints 'Hi, world!' -- greet world || return
    status_is 2 greet
}

# The same on a Pi, from a card.
template_runs_from_a_card() {
    ./sdcard.sh --fresh "$PROGRAMS/card.img" --size 128M \
        --elf "$BUILT/greet" --program "run greet card" || return
    mcopy -n -i "$PROGRAMS/card.img@@1M" ::cmdline.txt ::kernel8.img "$PROGRAMS/" || return
    grep -q 'run greet card$' "$PROGRAMS/cmdline.txt" && cmp "$PROGRAMS/kernel8.img" "$BUILT/greet.img"
}

uses_is_built() { (cd tests/programs && cargo_for_programs build); }

uses() { ./qemu.sh --timeout 200 "$@"; }
USES=$BUILT/uses

make_disk() { mkfs.ext4 -q -F -b 4096 ${2:+-d "$2"} "$PROGRAMS/$1.img" "${3:-64M}"; }

all_uses_work() {
    make_disk uses || return
    prints 'environment: EMPTY_WORDS=a  b' 'environment: NAME=value' 'clock: 17' 'random: ' 'all uses work' -- \
        uses --disk "$PROGRAMS/uses.img" --icount --env NAME=value --env 'EMPTY_WORDS=a  b' --elf "$USES" one "two words" '' || return
    e2fsck -fn "$PROGRAMS/uses.img"
}

# Random numbers differ from boot to boot, and come from a virtio-rng where there is no seed in the tree.
random_numbers() {
    local said again
    said=$(uses --elf "$USES" | tr -d '\r' | grep '^random: [0-9a-f]\{16\}$') || return
    again=$(uses --elf "$USES" | tr -d '\r' | grep '^random: [0-9a-f]\{16\}$') || return
    echo "$said $again"
    [ "$said" != "$again" ] || return
    # Without a seed there is an error, never a number.
    run_elf -machine virt,dtb-randomness=off | tr -d '\r' | grep -q '^random: this machine has no source' || return
    run_elf -machine virt,dtb-randomness=off -device virtio-rng-device | tr -d '\r' | grep '^random: [0-9a-f]\{16\}$' || return
    uses --machine raspi3b --elf "$USES" | tr -d '\r' | grep '^random: [0-9a-f]\{16\}$' || return
    uses --machine raspi3b --elf "$USES" | tr -d '\r' | grep '^clock: none$'
}

# The image of `uses`, which takes no options for QEMU behind its words.
run_elf() {
    timeout 200 qemu-system-aarch64 -kernel "$USES.img" "$@" -cpu cortex-a72 -m 256M -display none -nic none -monitor none \
        -serial stdio -semihosting-config enable=on,target=native -global virtio-mmio.force-legacy=false -append "run uses" </dev/null
}

# Commands for the image of `uses`: in_uses COMMANDS
in_uses() {
    timeout 200 qemu-system-aarch64 -M virt -kernel "$USES.img" -cpu cortex-a72 -m 256M -display none -nic none -monitor none \
        -serial stdio -semihosting-config enable=on,target=native -append "$1"
}

programs_end() {
    status_is 33 in_uses "run leaves" </dev/null || return
    local said
    said=$(in_uses "run fails" </dev/null) && return 1
    [[ $said == *"fails: as it should"* ]] || return
    prints "you said hello" "you said there" -- in_uses "run echo" < <(sleep 15 && printf 'hello\rthere\r\004' && sleep 15)
}

make_text() {
    mkdir -p "$PROGRAMS/tree" && cp docs/src/*.md "$PROGRAMS/tree" || return
    awk 'BEGIN { for (i = 1; i <= 200000; i++) printf "key%06d\tvalue of %d, and %d\n", (i * 7919) % 200003, i, i * 31 }' \
        >"$PROGRAMS/tree/lines"
}

# What counts is what it prints.
box() { ./qemu.sh --timeout 200 --disk "$PROGRAMS/box.img" "$@" | tr -d '\r' || true; }

# What grep and wc of the PC print.
same_as_the_pc() {
    make_text && make_disk box "$PROGRAMS/tree" 96M || return
    cd "$PROGRAMS/tree" || return
    {
        grep -nF 'fault' maps.md mapped-files.md
        grep -ciF 'FAULT' maps.md
        grep -lF 'brk' maps.md exceptions.md testing.md
        grep -cF '77' lines
        grep -nF '31337' lines
    } >"$PROGRAMS/wanted"
    wc -l lines maps.md | awk '{ print $1, $2 }' >>"$PROGRAMS/wanted"
    wc maps.md | awk '{ print $1, $2, $3, $4 }' >>"$PROGRAMS/wanted"
    cd "$ROOT" || return
    box 'run grep -n fault maps.md mapped-files.md; run grep -ci FAULT maps.md; run grep -l brk maps.md exceptions.md testing.md; run grep -c 77 lines; run grep -n 31337 lines; run wc -l lines maps.md; run wc maps.md' |
        sed 's/^  *//; s/\(^[0-9]*\)  */\1 /; /maps.md$/s/  */ /g' >"$PROGRAMS/found"
    diff "$PROGRAMS/wanted" "$PROGRAMS/found"
}

kv_keeps() {
    make_text && make_disk box "$PROGRAMS/tree" 96M || return
    prints 'committed 10000' 'committed 200000' '200000 records in' '200000 lines are there, 0 are not' -- \
        box 'run kv /store import /lines; run kv /store compare /lines' || return
    e2fsck -fn "$PROGRAMS/box.img" || return
    prints 'value of 1, and 31' 'key000001' 'kv: /store: no key "key000001"' 'records  199999' -- \
        box 'run kv /store get key007919; run kv /store scan key000001; run kv /store delete key000001; run kv /store get key000001; run kv /store stats' || return
    prints 'kv: /maps.md: not a key-value store' 'kv: /none: ' 'kv: /lines: ' -- \
        box 'run kv /maps.md get a; run kv /none get a; run kv /store import /maps.md; run kv /lines stats' || return
    e2fsck -fn "$PROGRAMS/box.img"
}

# What was replaced takes no room for ever.
kv_is_compacted() {
    make_disk box || return
    prints ' bytes, were ' 'garbage  0 bytes' -- box 'run kv /s bench 20000; run kv /s bench 20000; run kv /s compact; run kv /s stats' || return
    e2fsck -fn "$PROGRAMS/box.img"
}

kv_survives_kills() { tests/campaign/kv.sh 5; }

iobench_measures() {
    make_disk box || return
    prints 'rw=write' 'write: IOPS=' 'rw=randread' 'read: IOPS=' '99.9th=[' 'iobench: direct=1 is not known here' -- \
        box 'run iobench filename=/io rw=write bs=64k size=16m fsync=1; run iobench filename=/io rw=randread size=16m iodepth=4 runtime=1 ioengine=mmap; run iobench filename=/io direct=1'
}

mapbench_measures() {
    prints 'anon_read' 'ns' -- ./qemu.sh --timeout 200 "run mapbench anon"
}

mkdir -p "$PROGRAMS"
OUTSIDE=$(mktemp -d)
check "the image is built" scripts/build.sh
check "a crate from the template is built" template_is_built
check "it runs with arguments, environment and an exit status" template_runs
check "it goes onto a card" template_runs_from_a_card
check "the program that uses everything is built" uses_is_built
check "everything that programs are given works" all_uses_work
check "random numbers come from the machine, or not at all" random_numbers
check "programs end with the status that is theirs" programs_end
check "grep and wc print what those of the PC do" same_as_the_pc
check "kv keeps what it is given" kv_keeps
check "kv leaves garbage behind" kv_is_compacted
check "kv has what it acknowledged, after each of 5 kills" kv_survives_kills
check "iobench measures" iobench_measures
check "mapbench measures" mapbench_measures
rm -rf "$OUTSIDE"
