#!/usr/bin/env bash
# Runs all checks; --help says how.
. "$(dirname "${BASH_SOURCE[0]}")/scripts/test/harness.sh"
cd "$ROOT"

help() {
    cat <<'END'
usage: ./test.sh [GROUP]...

Checks all that can be checked on this machine, or only the groups named:

    style       rustfmt and clippy, for the PC and for the image
    pc          the tests that run on the PC
    docs        the API documentation, the book, and every command in README and book
    build       the image is built, is the same in another folder, and is not too large
    scripts     qemu.sh and setup.sh do what they say
    virt        the image tests itself on QEMU's virt machine, in many shapes
    console     the console: transcripts, pipes, a terminal, and disks that are none
    disks       ext4 on virtio disks, and on the Pis' cards
    maps        files in maps: what is stored reaches the disk, what fails is told
    programs    programs: those in the box, and crates of one's own
    pi          the same on raspi3b and raspi4b, with and without a device tree
    firmware    the same when firmware hands over, in EL3 or EL2, and with a damaged device tree
    card        the card image: made, sound, the same each time, and started by U-Boot
    sd          SD cards: by every method the same, taken out, damaged, empty, large
    campaign    short runs of tests/campaign: power cuts, failing requests, everything at once

The last line is "N passed, N failed"; the status is 0 if none failed. Logs are kept in target/test-logs.
END
}

all=(style pc docs build scripts virt console disks maps programs pi firmware card sd campaign)
case "${1-}" in
    --help | -h)
        help
        exit
        ;;
esac
for group in "$@"; do
    case " ${all[*]} " in
        *" $group "*) ;;
        *) usage_error "no group of checks is called $group" ;;
    esac
done

scripts/setup.sh test
find_rust
[ $# -gt 0 ] || set -- "${all[@]}"
for group in "$@"; do
    printf '\n%s\n' "$group"
    . "scripts/test/$group.sh"
done
summary
