# shellcheck shell=bash

# The test that always fails is seen to fail, by its line and by the status.
canary_fails() {
    local status=0
    ./qemu.sh --no-disk --timeout 60 selftest canary >"$LOGS/canary.txt" 2>&1 </dev/null || status=$?
    cat "$LOGS/canary.txt"
    [ "$status" = 1 ] && grep -q '^not ok 1' "$LOGS/canary.txt"
}

# Two runs that count instructions print the same to the last byte.
icount_repeats() {
    local run
    for run in 1 2; do
        ./qemu.sh --no-disk --icount --timeout 60 "machine; mem" </dev/null >"$LOGS/icount-$run.txt" || return
    done
    cat "$LOGS/icount-1.txt"
    diff "$LOGS/icount-1.txt" "$LOGS/icount-2.txt"
}

# From power-on to a program's first instruction: 2 million instructions at most (1000 a microsecond here), in 4 MiB.
program_starts_soon() {
    local said cost us kib
    said=$(./qemu.sh --no-disk --icount --timeout 60 run hello </dev/null)
    echo "$said"
    cost=$(sed -n '/^Hello/{n;p;}' <<<"$said")
    us=${cost%% us since power-on*}
    kib=${cost#*power-on, } kib=${kib%% KiB of RAM*}
    [ "$us" -le 2000 ] && [ "$kib" -le 4096 ]
}

# Commands on standard input, and the end of it, give a transcript and a status.
console_reads_a_pipe() {
    local said status=0
    said=$(echo help | ./qemu.sh --no-disk --timeout 60) || return
    echo "$said"
    [[ $said == *selftest* ]] || return
    echo no-such-command | ./qemu.sh --no-disk --timeout 60 || status=$?
    [ "$status" = 2 ]
}

# A pipe is faster than the commands it brings, and the console's buffer is small: the pipe waits.
console_loses_no_input() {
    local number answers
    answers=$(
        {
            echo selftest sleep
            for number in $(seq 2000); do echo "no-such-command-$number"; done
        } | ./qemu.sh --no-disk --timeout 100 | grep -c 'no such command'
        true # the status is that of the last of them
    )
    echo "$answers of 2000 commands answered"
    [ "$answers" = 2000 ]
}

# selftest_on WHAT OPTION...
selftest_on() {
    local what=$1
    shift
    image_tests "selftest on virt, $what" 180 ./qemu.sh --no-disk --timeout 170 "$@"
}

check "the image is built" scripts/build.sh
check "the unoptimised image is built" scripts/build.sh --debug
selftest_on "as it comes" selftest
selftest_on "unoptimised" --debug selftest
selftest_on "12 MiB" --memory 12M selftest
selftest_on "8 GiB" --memory 8G selftest
selftest_on "8 cores" --smp 8 selftest
selftest_on "cpu max" --cpu max selftest
selftest_on "cpu cortex-a53" --cpu cortex-a53 selftest
selftest_on "cpu cortex-a76" --cpu cortex-a76 selftest
selftest_on "entered at EL2" selftest -- -machine virtualization=on
selftest_on "entered at EL2, cpu max" --cpu max selftest -- -machine virtualization=on
selftest_on "GICv3" selftest -- -machine gic-version=3
selftest_on "GICv3, entered at EL2" selftest -- -machine gic-version=3,virtualization=on
selftest_on "counting instructions" --icount selftest
check "selftest canary fails" canary_fails
check "--icount gives the same output each time" icount_repeats
check "a program starts within 2 million instructions and 4 MiB" program_starts_soon
check "commands come from a pipe" console_reads_a_pipe
check "the console takes more input than it has room for" console_loses_no_input
