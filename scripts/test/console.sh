# The console: a script of commands, a terminal, and what is not as it should be.
# shellcheck shell=bash

CONSOLE=$ROOT/target/test-console

# Where the first map of a boot is.
FIRST=0x800000008000

# The same disk each time: the time of its making and its names are fixed.
make_console_disk() {
    rm -rf "$CONSOLE" && mkdir -p "$CONSOLE/tree/docs" || return
    printf 'Hello, console\n' >"$CONSOLE/tree/hello"
    printf 'no line feed' >"$CONSOLE/tree/docs/short"
    seq 1 20000 >"$CONSOLE/tree/docs/numbers"
    printf 'blank\n' >"$CONSOLE/tree/docs/a blank"
    touch -d '2026-01-01 00:00:00 UTC' "$CONSOLE"/tree/docs/* "$CONSOLE"/tree/*
    E2FSPROGS_FAKE_TIME=1767225600 mkfs.ext4 -q -F -b 4096 -L console -U 00000000-0000-4000-8000-000000000001 \
        -E hash_seed=00000000-0000-4000-8000-000000000002,root_owner=0:0 -d "$CONSOLE/tree" "$CONSOLE/disk.img" 16M
}

# Commands; what each prints follows it in the transcript.
console_script() {
    cat <<END
help
help ls
help map
ls
ls /docs
ls -b /hello
cat /hello
cat /docs/short
cat "/docs/a blank"; cat /docs/a\ blank
cat /nowhere
stat /nowhere
sum /docs/numbers /hello
mapsum /docs/numbers
write /new some words, and more
cat /new
cp /new /copy
mv /copy /docs/moved
ls /docs
ln /new /linked
ln -s /docs/moved /symbolic
ln -s /hello /docs
ln -s /hello /docs
cat /docs/hello
rm /docs/hello
cat /linked /symbolic
mkdir /folder /folder/inside
write /folder/inside/file deep
rmdir /folder
rm -r /folder
rm /linked /symbolic /docs/moved
ls /
truncate /hole 1M
ls -b /hole
truncate /hole many
residency /docs/numbers
map -p /hello
peek $FIRST 15
poke $FIRST Jelly
peek $FIRST 15
cat /hello
unmap $FIRST
peek $FIRST
map /nowhere
flush 0
advise 1 2 sometimes
drop-caches
residency /docs/numbers
mount
mount nodisk /mnt
umount /mnt
df
disks -b
sync
log
log loud
run
run nothing
hlep
exit
kv
ls 'unclosed
# a comment
write /a b; cat /a; no-such; rm /a
cp /docs /new; cp /new /; cp /new /nodir/x; cat /new
ln /new /other; cp /new /other; cat /other
ln -s /new /link; write /link through a link; cp /docs/short /link; cat /new /link; rm /other /link
mv /new /nodir/x; ln /new /nodir/x; cp /new ""; write / x; rm /; rm -r /docs/.
mkdir -x /p; mkdir -p /p/q /p; ls /p; rmdir -p /p; rm -r /p; ln -s a; map -x /new
truncate /none 0; map /none; map /new 1M; map -r /new
peek 800000008000 8; peek 0x800000008000 0xffffffffffffffff; flush 0x800000008000 1M; flush 0x12345; unmap 0x800000008010
unmap 0x800000008000; sync; residency /new; stat /nowhere; ls -b /none
run kv /none get key; ls -b /none; demo /none
run grep "" /new; run iobench filename=/none size=0; run iobench filename=/none iodepth=0
env A=1 B=2; env A; env; ps; cd; man; help grep
fsck-info vdz
END
}

# A transcript: the commands, and what each printed. Plain consoles echo nothing.
transcript() {
    cp "$CONSOLE/disk.img" "$CONSOLE/work.img" || return
    console_script | ./qemu.sh --icount --timeout 100 --memory 64M --disk "$CONSOLE/work.img"
}

# The same each time, and what it was when somebody looked at it: scripts/test/console.txt.
transcript_is_the_same() {
    local status run
    for run in 1 2; do
        status=0
        transcript >"$CONSOLE/transcript-$run.txt" || status=$?
        [ "$status" = 1 ] || { echo "status $status, of the first that failed: 1"; return 1; }
    done
    diff "$CONSOLE/transcript-1.txt" "$CONSOLE/transcript-2.txt" || return
    e2fsck -fn "$CONSOLE/work.img" || return
    diff scripts/test/console.txt "$CONSOLE/transcript-1.txt" ||
        { echo "where that is as it should be: cp $CONSOLE/transcript-1.txt scripts/test/console.txt"; return 1; }
}

# prints STATUS OUTPUT QEMU.SH-ARGUMENT...: nothing but OUTPUT, byte for byte, and ends with STATUS.
prints() {
    local wanted=$1 output=$2 status=0
    shift 2
    ./qemu.sh --timeout 60 --disk "$CONSOLE/disk.img" "$@" >"$CONSOLE/out" || status=$?
    printf '%b' "$output" | cmp - "$CONSOLE/out" && [ "$status" = "$wanted" ] || {
        echo "$*: status $status; $(cat "$CONSOLE/out")"
        return 1
    }
}

pipes_are_clean() {
    prints 0 'Hello, console\n' "cat /hello" </dev/null &&
        prints 0 'no line feed' "cat /docs/short" </dev/null &&
        prints 1 'cat: /no: no such file or directory\nHello, console\n' "cat /no; cat /hello" </dev/null &&
        prints 2 'frob: no such command; `help` lists them\n' frob <<<"not for a console" &&
        prints 0 '' <&- && prints 0 '' </dev/null &&
        prints 0 'Hello, console\n' <<<"cat /hello" &&
        prints 2 'frob: no such command; `help` lists them\nHello, console\nls: /no: no such file or directory\n' \
            <<<$'frob\ncat /hello\nls /no' || return
    ./qemu.sh --timeout 60 --disk "$CONSOLE/disk.img" "cat /docs/numbers" </dev/null | cmp - "$CONSOLE/tree/docs/numbers"
}

# says WORDS QEMU.SH-ARGUMENT...: the machine starts, WORDS is printed, and the console answers.
says() {
    local words=$1 said
    shift
    said=$(./qemu.sh --timeout 60 "$@" <<<"help mem") || return
    echo "$said"
    [[ $said == *"$words"*"who has how much memory"* ]]
}

odd_disks_are_told() {
    head -c 4M /dev/zero >"$CONSOLE/zeros.img"
    head -c 4M < <(yes) >"$CONSOLE/yes.img"
    { printf '\353\122\220NTFS    ' && head -c 4M /dev/zero; } | head -c 4M >"$CONSOLE/ntfs.img"
    says "vda is not mounted: no ext4; it looks like nothing yet" --disk "$CONSOLE/zeros.img" &&
        says "it looks like nothing that is known here" --disk "$CONSOLE/yes.img" &&
        says "it looks like NTFS" --disk "$CONSOLE/ntfs.img" &&
        says "root=vdz: no such disk" --disk "$CONSOLE/disk.img" root=vdz &&
        says "root=vda: neither ext4 nor FAT; it looks like NTFS" --disk "$CONSOLE/ntfs.img" root=vda &&
        says "\"frob=1\" on the command line is no option" --no-disk frob=1 log=warn || return
    # Two disks: the first that is ext4 is the root.
    [ "$(./qemu.sh --timeout 60 --disk "$CONSOLE/ntfs.img" --disk "$CONSOLE/disk.img" "mount" </dev/null)" = "vdb on /" ]
}

# A UART whose interrupt the device tree does not tell: it is polled.
console_is_polled() {
    qemu-system-aarch64 -machine "virt,dumpdtb=$CONSOLE/virt.dtb" -cpu cortex-a72 -m 256M -nic none 2>/dev/null || return
    fdtput -d "$CONSOLE/virt.dtb" /pl011@9000000 interrupts || return
    says "the console is polled" --no-disk -- -dtb "$CONSOLE/virt.dtb"
}

# at_terminal OUT QEMU.SH-ARGUMENT...: qemu.sh at a pseudo-terminal that types what comes on standard input.
at_terminal() {
    local out=$1
    shift
    : >"$out"
    script -qefc "./qemu.sh $*" "$out" >/dev/null
}

# waits_for OUT WORDS [COUNT]: until WORDS have been printed so often.
waits_for() {
    local i
    for i in $(seq 600); do
        [ "$(grep -aoF -e "$2" "$1" | wc -l)" -lt "${3:-1}" ] || return 0
        sleep 0.1
    done
    echo "no \"$2\"" >&2
    return 1
}

# Types OUT's keys one after the other, each when what the one before brought about is there.
keys_for_lines() {
    waits_for "$1" "Ctrl-D powers off" && printf 'cat /he\t\r' && waits_for "$1" "Hello, console" &&
        printf '\033[A' && waits_for "$1" "cat /hello" 2 && printf '\r' && waits_for "$1" "Hello, console" 2 &&
        printf 'cat /docs/\t\t' && waits_for "$1" 'numbers' && printf 'sh\t\003' && waits_for "$1" '^C' &&
        printf 'cat /hellx\033[D\004o\r' && waits_for "$1" "Hello, console" 3 &&
        printf '\022hello' && waits_for "$1" "(search) hello: cat /hello" && printf '\007' && printf 'poweroff 7\r'
    sleep 1
}

lines_are_edited() {
    local status=0
    keys_for_lines "$CONSOLE/lines.txt" |
        at_terminal "$CONSOLE/lines.txt" --timeout 90 --disk "$CONSOLE/disk.img" || status=$?
    cat "$CONSOLE/lines.txt"
    [ "$status" = 7 ] && [ "$(grep -ac '^Hello, console' "$CONSOLE/lines.txt")" = 3 ]
}

# Ctrl-C, once the row of progress is there, ends the command and those behind it with 130.
keys_for_interrupt() {
    waits_for "$1" "s left" && printf '\003'
    sleep 1
}

ctrl_c_interrupts() {
    local status=0
    mkfs.ext4 -q -F -O ^has_journal "$CONSOLE/large.img" 16M || return
    keys_for_interrupt "$CONSOLE/interrupt.txt" |
        at_terminal "$CONSOLE/interrupt.txt" --timeout 90 --disk "$CONSOLE/large.img" \
            "'truncate /zeros 4G; sum /zeros; write /after no'" || status=$?
    cat "$CONSOLE/interrupt.txt"
    [ "$status" = 130 ] && grep -q "sum: interrupted" "$CONSOLE/interrupt.txt" || return
    ! debugfs -R "cat /after" "$CONSOLE/large.img" 2>/dev/null | grep . && e2fsck -fn "$CONSOLE/large.img"
}

# No row is wider than a terminal has columns, and the list of commands fits on one screen.
screens_fit() {
    ./qemu.sh --timeout 60 --disk "$CONSOLE/disk.img" \
        "help; mem; df; disks; machine; threads; cache; faults; ls -l /docs; stat /hello; demo /docs/numbers" \
        </dev/null >"$CONSOLE/screens.txt" || return
    # What the user's own words and names are is not ours.
    ! sed '/backtrace:/,/^[^ ]/d; /^command line /d' "$CONSOLE/screens.txt" | grep -nE '^.{81}' &&
        grep -q "not resolved: past the end of the mapped file" "$CONSOLE/screens.txt" &&
        [ "$(./qemu.sh --timeout 60 --no-disk help </dev/null | wc -l)" -le 22 ]
}

# What `help` says of each command, as the book has it, by topic.
reference() {
    local names said
    said=$(./qemu.sh --timeout 60 --no-disk help </dev/null | sed '/^$/,$d') || return
    names=$(sed 's/^.\{17\}//' <<<"$said")
    # shellcheck disable=SC2086 # word by word
    printf 'help %s\n' $names | ./qemu.sh --timeout 60 --no-disk >"$CONSOLE/reference.txt" || return
    awk -v topics="$said" '
        BEGIN {
            count = split(topics, rows, "\n")
            for (i = 1; i <= count; i++) {
                if (rows[i] !~ /^ /) topic = substr(rows[i], 1, 16)
                sub(/ *$/, "", topic)
                words = split(substr(rows[i], 18), names, " ")
                for (j = 1; j <= words; j++) of[names[j]] = topic
            }
        }
        /^[^ ]/ {
            if (last != "") print "```"
            if (of[$1] != last) printf "\n### %s\n", last = of[$1]
            printf "\n#### `%s`\n\n```text\n", $1
        }
        { lines[NR] = $0; print }
        END { print "```" }' "$CONSOLE/reference.txt"
}

# The book's reference is what `help` says; each command has an example.
commands_are_in_the_book() {
    reference >"$CONSOLE/reference.md" || return
    [ "$(grep -c '^#### ' "$CONSOLE/reference.md")" = "$(grep -c '^    Example: ' "$CONSOLE/reference.md")" ] ||
        { cat "$CONSOLE/reference.md"; echo "a command has no example"; return 1; }
    ! grep -nE '^.{81}' "$CONSOLE/reference.md" || return
    { sed '/^<!-- from the image -->/q' docs/src/console.md && cat "$CONSOLE/reference.md"; } >"$CONSOLE/console.md"
    diff docs/src/console.md "$CONSOLE/console.md" ||
        { echo "where that is as it should be: cp $CONSOLE/console.md docs/src/console.md"; return 1; }
}

check "the image is built" scripts/build.sh
check "a disk is made" make_console_disk
check "a script of commands gives the same transcript each time" transcript_is_the_same
check "pipes get what commands print, and nothing else" pipes_are_clean
check "disks that cannot be the root are told, and options that are none" odd_disks_are_told
check "a console without interrupt is polled" console_is_polled
if has script; then
    check "lines are edited, completed and recalled at a terminal" lines_are_edited
    check "Ctrl-C interrupts a command with status 130" ctrl_c_interrupts
else
    skip "the console at a terminal" "there is no script (util-linux)"
fi
check "screens fit into 80 columns, and demo runs" screens_fit
check "the book's reference is what help says" commands_are_in_the_book
