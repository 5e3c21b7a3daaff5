# shellcheck shell=bash

# refuses WORDS ARGUMENT...: qemu.sh ends with status 2 and says WORDS.
refuses() {
    local words=$1 status=0 said
    shift
    said=$(./qemu.sh "$@" 2>&1) || status=$?
    echo "$said (status $status)"
    [ "$status" = 2 ] && [[ $said == *"$words"* ]]
}

wrong_arguments_are_refused() {
    refuses "unknown option --frob" --frob &&
        refuses "unknown machine pc" --machine pc &&
        refuses "--machine needs an argument" --machine &&
        refuses "--memory takes a size such as 256M, not lots" --memory lots &&
        refuses "--smp takes a number from 1, not 0" --smp 0 &&
        refuses "--timeout takes a number from 1, not soon" --timeout soon &&
        refuses "no disk image /nowhere.img" --disk /nowhere.img &&
        refuses "raspi3b's memory is fixed" --machine raspi3b --memory 1G &&
        refuses "raspi4b has 4 cores" --smp 2 --machine raspi4b &&
        refuses "raspi4b's processor is fixed" --machine raspi4b --cpu max &&
        refuses "--fresh makes the default disk" --no-disk --fresh &&
        refuses "raspi3b has one card slot" --machine raspi3b --disk README.md --disk README.md
}

help_names_every_option() {
    local option
    ./qemu.sh --help
    for option in $(sed -n 's/^        \(--[a-z]*\)[) ].*/\1/p' qemu.sh); do
        ./qemu.sh --help | grep -q -e "^  $option" || return 1
    done
}

# A machine that has Rust but not QEMU, for a user who may not install.
setup_names_the_packages() {
    local bin status=0 tool said
    bin=$(mktemp -d)
    for tool in bash sh env cargo rustc ld.lld dirname uname sed cat; do
        ! has "$tool" || ln -s "$(command -v "$tool")" "$bin/$tool"
    done
    printf '#!/bin/sh\necho 1000\n' >"$bin/id"
    chmod +x "$bin/id"
    said=$(PATH=$bin scripts/setup.sh run 2>&1) || status=$?
    rm -rf "$bin"
    echo "$said (status $status)"
    [ "$status" = 1 ] && [[ $said == *apt-get* && $said == *"dnf install"* && $said == *"brew install"* ]]
}

# Nothing is left to do, and that takes a moment only.
setup_is_idle_the_second_time() {
    local started said
    started=$(date +%s%N)
    said=$(scripts/setup.sh test 2>&1)
    echo "$said $((($(date +%s%N) - started) / 1000000)) ms"
    [ -z "$said" ]
}

gdb_is_told_how_to_attach() {
    local status=0 said
    said=$(./qemu.sh --gdb --no-disk --timeout 3 </dev/null 2>&1) || status=$?
    echo "$said (status $status)"
    [ "$status" = 124 ] && [[ $said == *"target remote"* && $said == *"stopped after 3 seconds"* ]]
}

# The default disk: made when asked for, kept from run to run, and sound.
default_disk_is_kept() {
    local said
    said=$(./qemu.sh --fresh --timeout 60 "stat /big; write /kept by the next run" </dev/null 2>&1) || { echo "$said"; return 1; }
    echo "$said"
    [[ $said == *"Making the disk"*"(536870912 bytes)"* ]] || return
    said=$(./qemu.sh --timeout 60 "cat /kept; rm /kept" </dev/null 2>&1) || { echo "$said"; return 1; }
    echo "$said"
    [ "$said" = "by the next run" ] && e2fsck -fn target/pinfold.img
}

check "wrong arguments are refused with words" wrong_arguments_are_refused
check "--help names every option" help_names_every_option
check "without QEMU and root, setup names the packages" setup_names_the_packages
check "setup has nothing to say the second time" setup_is_idle_the_second_time
check "the default disk is made once, and kept" default_disk_is_kept
check "--gdb waits and says how to attach" gdb_is_told_how_to_attach
