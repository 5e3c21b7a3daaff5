# How a check is run, counted and shown. Sourced by test.sh.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

PASSED=0
FAILED=0
SKIPPED=()
LOGS=$ROOT/target/test-logs

# check NAME COMMAND...: passes if the command does.
check() {
    local name=$1 log status=0 started=$SECONDS
    shift
    log=$(log_of "$name")
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" = 0 ]; then
        PASSED=$((PASSED + 1))
        printf 'ok      %s (%s s)\n' "$name" $((SECONDS - started))
    else
        FAILED=$((FAILED + 1))
        printf 'FAILED  %s: status %s\n' "$name" "$status"
        show "$log"
    fi
}

# cargo_tests NAME COMMAND...: runs Cargo tests and counts each of them.
cargo_tests() {
    local name=$1 log status=0 passed failed started=$SECONDS
    shift
    log=$(log_of "$name")
    "$@" >"$log" 2>&1 </dev/null || status=$?
    passed=$(sum 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$log")
    failed=$(sum 's/^test result: .* \([0-9]*\) failed.*/\1/p' "$log")
    count "$name" "$status" "$passed" "$failed" "$log" "$started"
}

# image_tests NAME SECONDS COMMAND...: boots the image, which tests itself, and counts each of its tests. The count must
# be the one that the image announced: what ends early has failed.
image_tests() {
    local name=$1 limit=$2 log status=0 passed failed planned started=$SECONDS
    shift 2
    log=$(log_of "$name")
    within "$limit" "$@" >"$log" 2>&1 </dev/null || status=$?
    passed=$(grep -c '^ok [0-9]' "$log") || true
    failed=$(grep -c '^not ok [0-9]' "$log") || true
    planned=$(tr -d '\r' <"$log" | sed -n 's/^1\.\.\([0-9]*\).*/\1/p' | head -n 1)
    if [ "${planned:-0}" != $((passed + failed)) ] || [ "${planned:-0}" = 0 ]; then
        echo "# ${planned:-no} tests announced, $((passed + failed)) reported" >>"$log"
        [ "$status" != 0 ] || status=1
    fi
    count "$name" "$status" "$passed" "$failed" "$log" "$started"
}

# within SECONDS COMMAND...
within() {
    if [ "$(type -t "$2")" = function ]; then
        LIMIT=$1 "${@:2}" # it limits itself
    else
        timeout --kill-after=10 "$@"
    fi
}

skip() {
    SKIPPED+=("$1: $2")
    printf 'skipped %s: %s\n' "$1" "$2"
}

# The verdict, and its status.
summary() {
    if [ ${#SKIPPED[@]} -gt 0 ]; then
        printf '\nnot run:\n'
        printf '    %s\n' "${SKIPPED[@]}"
    fi
    printf '\n%s passed, %s failed\n' "$PASSED" "$FAILED"
    [ "$FAILED" = 0 ]
}

# Adds the tests of one run. A run that ends badly although all of its tests passed is one failure more.
count() {
    local name=$1 status=$2 passed=$3 failed=$4 log=$5 started=$6
    [ "$status" = 0 ] || [ "$failed" != 0 ] || failed=1
    PASSED=$((PASSED + passed))
    FAILED=$((FAILED + failed))
    if [ "$failed" = 0 ]; then
        printf 'ok      %s: %s tests (%s s)\n' "$name" "$passed" $((SECONDS - started))
    else
        printf 'FAILED  %s: %s of %s tests, status %s\n' "$name" "$failed" $((passed + failed)) "$status"
        show "$log"
    fi
}

# The sum of the numbers that a sed script prints.
sum() {
    sed -n "$1" "$2" | awk '{ total += $1 } END { print total + 0 }'
}

log_of() {
    mkdir -p "$LOGS"
    printf '%s/%s.log' "$LOGS" "$(printf '%s' "$1" | tr -c 'A-Za-z0-9\n' -)"
}

# What failed, and the end of what was printed.
show() {
    grep -a -E '^not ok|^error|panicked|FAILED' "$1" | head -n 20 | sed 's/^/    ! /' || true
    tail -n 60 "$1" | sed 's/^/    | /'
    printf '    (all of it: %s)\n' "$1"
}
