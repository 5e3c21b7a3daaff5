#!/usr/bin/env bash
# Builds Pinfold and boots it in QEMU; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

help() {
    cat <<'END'
usage: ./qemu.sh [OPTION]... [COMMAND...] [-- QEMU-OPTION...]

Boots Pinfold in QEMU. COMMAND goes on its command line: the machine runs it and powers off, and its exit status is
this script's. Without COMMAND there is a console. The first run installs what is missing and builds the image.

    ./qemu.sh                           a console
    ./qemu.sh selftest                  all self-tests of the image
    ./qemu.sh "ls -l /; sum /big"       several commands
    echo help | ./qemu.sh               commands from a pipe
    ./qemu.sh "cat /big" >copy          what they print, and nothing else

  --machine NAME      virt (default), raspi3b or raspi4b
  --memory SIZE       memory of virt, 256M unless said; the Pis have 1 and 2 GiB
  --cpu NAME          processor of virt, cortex-a72 unless said; also cortex-a53, cortex-a76, max, ...
  --smp N             cores of virt, 1 unless said; the Pis have 4
  --disk FILE         a disk image (raw) instead of the default one, target/pinfold.img, which has the book and a
                      large file on it and is kept between runs; may be given again on virt. A Pi has one card, its
                      size a power of two
  --no-disk           no disk
  --fresh             make the default disk anew
  --plain             neither colours nor editing, as in a pipe; the terminal's own line editing serves
  --env NAME=VALUE    a variable for programs; may be given again
  --elf FILE WORD...  boot FILE instead, a program of your own that Cargo has built, with these arguments
  --icount            count instructions: one takes one nanosecond, and what does not wait for a disk is the same in
                      each run (with --no-disk, all)
  --gdb               wait for a debugger; says how to attach it
  --debug             the unoptimised image
  --timeout SECONDS   give up after so long, with status 124
  --help              this text
  -- QEMU-OPTION...   given to QEMU as they are, such as -- -machine gic-version=3

At a terminal, Ctrl-C goes to Pinfold and interrupts what runs there; Ctrl-A X ends QEMU.
END
}

# A whole number from 1 for option $1.
number() {
    case "$2" in
        '' | 0* | *[!0-9]*) usage_error "$1 takes a number from 1, not $2" ;;
    esac
}

# A word for the grammar of commands, whatever is in it.
quoted() {
    local word=${1//\\/\\\\}
    case "$1" in
        '' | *[!A-Za-z0-9_./:=@%+,-]*) printf '"%s"' "${word//\"/\\\"}" ;;
        *) printf '%s' "$1" ;;
    esac
}

machine=virt memory='' cpu='' smp='' timeout=''
icount=no gdb=no plain=no fresh=no default_disk=yes build=()
disks=() command=() options=() variables=() elf=''
while [ $# -gt 0 ]; do
    case "$1" in
        --machine | --memory | --cpu | --smp | --disk | --timeout | --env | --elf)
            [ $# -ge 2 ] || usage_error "$1 needs an argument"
            ;;
    esac
    case "$1" in
        --machine) machine=$2 && shift ;;
        --memory) memory=$2 && shift ;;
        --cpu) cpu=$2 && shift ;;
        --smp) number "$1" "$2" && smp=$2 && shift ;;
        --disk) disks+=("$2") && default_disk=no && shift ;;
        --no-disk) default_disk=no ;;
        --fresh) fresh=yes ;;
        --plain) plain=yes ;;
        --timeout) number "$1" "$2" && timeout=$2 && shift ;;
        --env)
            [[ $2 =~ ^[A-Z_][A-Z0-9_]*= ]] || usage_error "--env takes NAME=VALUE, with a NAME of A to Z, 0 to 9 and _, not $2"
            variables+=("$(quoted "$2")") && shift
            ;;
        --elf)
            elf=$2
            [ -f "$elf" ] || usage_error "there is no program $elf"
            shift 2
            command=(run "$(quoted "$(basename "$elf")")")
            while [ $# -gt 0 ]; do command+=("$(quoted "$1")") && shift; done
            break
            ;;
        --icount) icount=yes ;;
        --gdb) gdb=yes ;;
        --debug) build=(--debug) ;;
        --help | -h)
            help
            exit
            ;;
        --)
            shift
            options=("$@")
            break
            ;;
        -*) usage_error "unknown option $1" ;;
        *) command+=("$1") ;;
    esac
    shift
done

case "$machine" in
    virt) ;;
    raspi3b | raspi4b)
        # QEMU builds these boards as they are sold.
        [ -z "$memory" ] || usage_error "$machine's memory is fixed; --memory is for virt"
        [ -z "$cpu" ] || usage_error "$machine's processor is fixed; --cpu is for virt"
        [ -z "$smp" ] || usage_error "$machine has 4 cores; --smp is for virt"
        [ ${#disks[@]} -le 1 ] || usage_error "$machine has one card slot, and ${#disks[@]} disks are given"
        ;;
    *) usage_error "unknown machine $machine; there are virt, raspi3b and raspi4b" ;;
esac
[[ -z $memory || $memory =~ ^[1-9][0-9]*[KMGkmg]?$ ]] ||
    usage_error "--memory takes a size such as 256M, not $memory"
[ "$fresh$default_disk" != yesno ] || usage_error "--fresh makes the default disk, which --disk and --no-disk rule out"
for disk in ${disks[@]+"${disks[@]}"}; do
    [ -e "$disk" ] || usage_error "no disk image $disk"
    [ -r "$disk" ] || usage_error "the disk image $disk cannot be read"
done
if [ -n "$timeout" ]; then
    has timeout || die "--timeout needs the command timeout (coreutils)"
    limit=(timeout --foreground "$timeout")
fi

"$ROOT/scripts/setup.sh" run
if [ -n "$elf" ]; then
    image=$elf.img
    "$ROOT/scripts/image.sh" "$elf" "$image"
else
    "$ROOT/scripts/build.sh" ${build[@]+"${build[@]}"}
    image=$ROOT/target/kernel8.img elf=$ROOT/target/$TARGET/release/pinfold
    if [ ${#build[@]} -gt 0 ]; then
        image=$ROOT/target/kernel8-debug.img elf=$ROOT/target/$TARGET/debug/pinfold
    fi
fi

# The default disk: the book and this repository's README, and a large file. Made aside, so that what is there is whole.
make_default_disk() {
    local work numbers=(seq)
    # Not GNU's: that would write 1e+06.
    seq --version >/dev/null 2>&1 || numbers=(seq -f %.0f)
    "$ROOT/scripts/setup.sh" disk
    say "Making the disk $1, once..."
    work=$(mktemp -d "$ROOT/target/disk.XXXXXX")
    # shellcheck disable=SC2064 # this folder
    trap "rm -rf '$work'" EXIT
    mkdir "$work/tree" "$work/tree/docs"
    cp "$ROOT"/README.md "$ROOT"/CHANGELOG.md "$work/tree"
    cp "$ROOT"/docs/src/*.md "$work/tree/docs"
    printf 'Hello from a file.\n' >"$work/tree/hello"
    # Numbers, a line each: more than memory is unless --memory says so, and known byte for byte.
    { "${numbers[@]}" 1 62000000 || true; } 2>/dev/null | head -c $((512 << 20)) >"$work/tree/big"
    chmod -R u=rwX,go=rX "$work/tree"
    # A card's size must be a power of two.
    mkfs.ext4 -q -F -L pinfold -d "$work/tree" "$work/disk" 1G >/dev/null </dev/null
    mv "$work/disk" "$1"
    rm -rf "$work"
    trap - EXIT
}

if [ "$default_disk" = yes ]; then
    disk=$ROOT/target/pinfold.img
    if [ "$fresh" = yes ] || [ ! -e "$disk" ]; then
        make_default_disk "$disk"
    elif [ -t 2 ]; then
        say "The disk is $disk; --fresh makes it anew."
    fi
    disks=("$disk")
fi

# A host of the same kind runs the image itself, unless what is asked for needs emulation.
accelerator() {
    [ "$machine$icount$gdb$cpu" = virtnono ] || return 0
    case "$(uname -sm)" in
        "Linux aarch64") [ ! -w /dev/kvm ] || echo kvm ;;
        "Darwin arm64") echo hvf ;;
    esac
}

qemu=(-kernel "$image" -display none -nic none -semihosting-config enable=on,target=native)
accelerator=$(accelerator)
if [ -n "$accelerator" ]; then
    qemu+=(-machine "virt,accel=$accelerator" -cpu host)
else
    qemu+=(-machine "$machine")
    [ "$machine" != virt ] || qemu+=(-cpu "${cpu:-cortex-a72}")
fi
[ "$machine" != virt ] || qemu+=(-m "${memory:-256M}" -smp "${smp:-1}")
command=(${variables[@]+"${variables[@]}"} ${command[@]+"${command[@]}"})

# Options of the image stand before commands; without a command there is a console.
words=${command[*]-}
option='^ *([^ ]*=[^ ]*|plain)( +|$)(.*)'
while [[ $words =~ $option ]]; do
    words=${BASH_REMATCH[3]}
done

# Closed is as good as empty.
{ : 3<&0; } 2>/dev/null || exec </dev/null
if [ ! -t 0 ] || [ ! -t 1 ]; then
    plain=yes
fi
[ "$plain" = no ] || command=(plain ${command[@]+"${command[@]}"})
[ ${#command[@]} -eq 0 ] || qemu+=(-append "${command[*]}")

# Only a terminal has keys for QEMU, and only if it is the console's; in a pipe, Ctrl-A is a byte like any other.
if [ "$plain" = no ]; then
    qemu+=(-serial mon:stdio)
else
    qemu+=(-chardev stdio,id=console,signal=off -serial chardev:console -monitor none)
fi

number=0
for disk in ${disks[@]+"${disks[@]}"}; do
    drive=file=${disk//,/,,},format=raw,discard=unmap
    [ -w "$disk" ] || drive=$drive,readonly=on
    if [ "$machine" = virt ]; then
        qemu+=(-drive "if=none,id=disk$number,$drive" -device "virtio-blk-device,drive=disk$number")
    else
        qemu+=(-drive "if=sd,$drive")
    fi
    number=$((number + 1))
done
[ "$machine" != virt ] || qemu+=(-global virtio-mmio.force-legacy=false)

# The clock starts at a fixed time and follows the instructions, and random numbers are the same ones.
[ "$icount" = no ] || qemu+=(-icount shift=0,sleep=off -rtc base=2026-01-01,clock=vm -seed 1)

if [ "$gdb" = yes ]; then
    qemu+=(-S -gdb tcp:127.0.0.1:1234)
    say "Waiting for a debugger. In another terminal:"
    say "    gdb-multiarch -ex 'target remote 127.0.0.1:1234' $elf"
fi
[ "$plain" = yes ] || say "Ctrl-A X ends QEMU."

# Hands on the lines of standard input. A serial line has no end of file; the console takes Ctrl-D for it.
feed() {
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line"
    done
    [ -z "$line" ] || printf '%s\n' "$line"
    printf '\004'
}

run() {
    ${limit[@]+"${limit[@]}"} qemu-system-aarch64 "${qemu[@]}" ${options[@]+"${options[@]}"}
}

status=0
if [ "$plain" = no ] || [[ $words == *[![:space:]]* ]]; then
    run || status=$?
else
    exec 3<&0
    exec 4< <(feed <&3)
    feeder=${!:-}
    # QEMU does not get the terminal itself: it would let no reader of it wait, us neither.
    run <&4 | cat || status=$?
    # It may wait for input that nobody will take.
    kill "$feeder" 2>/dev/null || true
fi
[ "$status" != 124 ] || [ -z "$timeout" ] || say "qemu.sh: stopped after $timeout seconds"
exit "$status"
