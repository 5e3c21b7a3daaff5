# shellcheck shell=bash

MAPS=$ROOT/target/test-maps

# QEMU with a disk whose errors and stalls are prescribed: blkdebug RULES DISK QEMU.SH-ARGUMENT...
with_errors() {
    local rules=$1 disk=$2
    shift 2
    ./qemu.sh --no-disk "$@" -- -drive "if=none,id=bad,driver=raw,file.driver=blkdebug,file.config=$rules,file.image.driver=file,file.image.filename=$disk" \
        -device virtio-blk-device,drive=bad
}

make_map_disks() {
    rm -rf "$MAPS" && mkdir -p "$MAPS/tree" || return
    printf 'Hello, file that is mapped\n' >"$MAPS/tree/hello"
    seq 1 3000000 >"$MAPS/tree/numbers"
    head -c 3000 "$MAPS/tree/numbers" >"$MAPS/tree/small"
    mkfs.ext4 -q -F -b 4096 -d "$MAPS/tree" "$MAPS/disk.img" 64M &&
        mkfs.ext4 -q -F -b 1024 -d "$MAPS/tree" "$MAPS/small-blocks.img" 64M
}

# What `says` runs on.
machine=(--memory 64M)

# says DISK COMMANDS PATTERN...: the console, given the commands, prints lines like these, in this order.
says() {
    local disk=$1 commands=$2 text line
    shift 2
    text=$(./qemu.sh --timeout 60 "${machine[@]}" --disk "$disk" <<<"$commands" | tr -d '\r')
    echo "$text"
    for line in "$@"; do
        [[ "$text" == *"$line"* ]] || { echo "missing, or out of order: $line"; return 1; }
        text=${text#*"$line"}
    done
}

# Where the first map of a boot is: each command prints the address of its own.
FIRST=0x800000008000
SECOND=0x800000009000
# Where the first map of 2 MiB or more is.
LARGE=0x800000200000

stores_reach_the_disk() {
    cp "$1" "$MAPS/work.img" || return
    says "$MAPS/work.img" "map /hello
map -p /hello
poke $FIRST JELLO
poke $SECOND Private
peek $FIRST 8
peek $SECOND 8
flush $FIRST
poke $FIRST SECOND
flush $FIRST
drop-caches
cat /hello" "$FIRST" "$SECOND" JELLO, Privatef "SECOND file" || return
    e2fsck -fn "$MAPS/work.img" || return
    debugfs -R "cat /hello" "$MAPS/work.img" 2>/dev/null | cmp - <(printf 'SECOND file that is mapped\n')
}

# The same without a flush: powering off writes everything back.
power_off_writes_back() {
    cp "$MAPS/disk.img" "$MAPS/work.img" || return
    says "$MAPS/work.img" "map /hello
poke $FIRST JELLO" "$FIRST" || return
    e2fsck -fn "$MAPS/work.img" || return
    debugfs -R "cat /hello" "$MAPS/work.img" 2>/dev/null | cmp - <(printf 'JELLO, file that is mapped\n')
}

faults_are_told() {
    cp "$MAPS/disk.img" "$MAPS/work.img" || return
    says "$MAPS/work.img" "map -r /hello
poke $FIRST no
truncate /hello 0
peek $FIRST
truncate /hello 5
peek $FIRST 8
rm /hello
peek $FIRST 8
unmap $FIRST
peek $FIRST" "the map does not allow it" "/hello + 0x0" "past the end of the mapped file" \
        "00 00 00 00 00 00 00 00" "00 00 00 00 00 00 00 00" "not all of it is mapped" || return
    e2fsck -fn "$MAPS/work.img"
}

# A file far larger than memory, through a map.
large_file_is_read() {
    local sum
    head -c 300M < <(seq 1 40000000) >"$MAPS/large" || return
    mkfs.ext4 -q -F -b 4096 "$MAPS/large.img" 400M || return
    debugfs -w -R "write $MAPS/large large" "$MAPS/large.img" 2>/dev/null || return
    sum=$(sha256sum <"$MAPS/large")
    rm "$MAPS/large"
    local machine=(--memory 16M)
    says "$MAPS/large.img" "mapsum /large
mapsum /large
mem" "${sum%% *}  /large" "${sum%% *}  /large" "page cache"
    local status=$?
    rm "$MAPS/large.img"
    return $status
}

# No room on the disk: a fault at the first store to a hole, an error from a write, and nothing is lost.
full_disk_is_told() {
    mkfs.ext4 -q -F -b 4096 -m 0 "$MAPS/full.img" 8M || return
    says "$MAPS/full.img" "truncate /sparse 64K
map /sparse
truncate /hog 7M
write /before here first
$(for i in $(seq 1 1000); do echo "cp /before /f$i"; done)
poke $FIRST room
poke $SECOND none
cat /before
df" "no space left on the device" "no space is left on the file system" "here first" || return
    e2fsck -fn "$MAPS/full.img"
}

# The device fails to read a page that a map touches; the console goes on, and later it is there.
read_errors_are_told() {
    local sector
    sector=$(debugfs -R "bmap /numbers 100" "$MAPS/disk.img" 2>/dev/null) || return
    cat >"$MAPS/read.rules" <<END
[inject-error]
event = "none"
iotype = "read"
errno = "5"
sector = "$((sector * 8))"
once = "on"
END
    with_errors "$MAPS/read.rules" "$MAPS/disk.img" --timeout 60 --memory 64M <<END | tee "$MAPS/read.txt"
map -r /numbers
advise $LARGE 1M random
peek 0x800000264000 16
peek 0x800000264000 16
cat /hello
END
    grep -q "the device reports an error at its byte $(printf '0x%x' $((sector * 4096)))" "$MAPS/read.txt" &&
        grep -q "/numbers + 0x0" "$MAPS/read.txt" &&
        grep -q "^800000264000  3" "$MAPS/read.txt" &&
        grep -q "Hello, file that is mapped" "$MAPS/read.txt"
}

# The device fails to write a page: flush says so, the page stays dirty, and the next flush brings it to the disk.
write_errors_are_told() {
    local sector
    cp "$MAPS/disk.img" "$MAPS/work.img" || return
    sector=$(debugfs -R "bmap /hello 0" "$MAPS/work.img" 2>/dev/null) || return
    cat >"$MAPS/write.rules" <<END
[inject-error]
event = "none"
iotype = "write"
errno = "5"
sector = "$((sector * 8))"
once = "on"
END
    with_errors "$MAPS/write.rules" "$MAPS/work.img" --timeout 60 --memory 64M <<END | tee "$MAPS/write.txt"
map /hello
poke $FIRST JELLO
flush $FIRST
cache
flush $FIRST
END
    grep -q "flush: $FIRST: the device reports an error" "$MAPS/write.txt" &&
        [ "$(grep -c "^flush: " "$MAPS/write.txt")" = 1 ] || return
    e2fsck -fn "$MAPS/work.img" || return
    debugfs -R "cat /hello" "$MAPS/work.img" 2>/dev/null | cmp - <(printf 'JELLO, file that is mapped\n')
}

# A disk that stops answering: QEMU holds its requests back from a moment on. What waits fails after the time limit, what
# is asked later fails at once, the console goes on, and the machine ends.
silent_disk_is_told() {
    local port=$((20000 + RANDOM % 20000)) status=0 out=$MAPS/silent.txt
    cp "$MAPS/disk.img" "$MAPS/work.img" && : >"$out" || return
    {
        printf 'map /numbers\npoke %s X\npeek %s 2\n' $LARGE $LARGE
        for _ in $(seq 400); do
            ! grep -q "^$(printf '%x' $LARGE)  58" "$out" || break
            sleep 0.1
        done
        exec 3<>"/dev/tcp/127.0.0.1/$port"
        echo "block_set_io_throttle silent 1 0 0 0 0 0" >&3
        # QEMU says so when it has done it.
        sleep 0.2
        # One request may be let through; it pays for all that follow.
        printf 'peek 0x800000800000 16\npeek 0x800000a00000\npeek 0x800000c00000\nflush %s\npeek %s 2\ncache\n' $LARGE $LARGE
    } | ./qemu.sh --no-disk --timeout 120 --memory 64M -- -drive "if=none,id=silent,format=raw,file=$MAPS/work.img" \
        -device virtio-blk-device,drive=silent -monitor "tcp:127.0.0.1:$port,server,nowait" >"$out" || status=$?
    cat "$out"
    [ $status != 0 ] && [ $status != 124 ] || { echo "status $status"; return 1; }
    grep -q "the device d.* not answer at its byte" "$out" && grep -q "the device is gone" "$out" &&
        grep -q "^flush: $LARGE: the" "$out" && [ "$(grep -c "^800000200000  58" "$out")" = 2 ] &&
        grep -q "^dirty  *1$" "$out" || return
    # What was not acknowledged may be lost; what is there is sound.
    e2fsck -p "$MAPS/work.img"
    e2fsck -fn "$MAPS/work.img"
}

read_only_disk_is_told() {
    local says_read_only status=0
    says_read_only=$(./qemu.sh --no-disk --timeout 60 -- -drive "if=none,id=ro,format=raw,readonly=on,file=$MAPS/disk.img" \
        -device virtio-blk-device,drive=ro <<<"map /hello
run churn /numbers 1
map -r /hello") || status=$?
    echo "$says_read_only (status $status)"
    [ $status = 1 ] && [[ "$says_read_only" == *"-r maps it to be read"*"the file cannot be written"*"0x8000"* ]]
}

# Random pages of a file much larger than memory are dirtied; after a reboot they are there, and the disk is sound.
churned_file_is_right() {
    mkfs.ext4 -q -F -b 4096 "$MAPS/churn.img" 200M || return
    ./qemu.sh --timeout 200 --memory 16M --disk "$MAPS/churn.img" \
        "truncate /file 128M; run churn /file 60000 7; run churn /file 60000 8" || return
    e2fsck -fn "$MAPS/churn.img" || return
    ./qemu.sh --timeout 200 --memory 64M --disk "$MAPS/churn.img" "run churn -c /file 60000 8"
}

# A run is recorded, printed between other lines, and drawn; and the same from a file on the disk.
recorded_run_is_drawn() {
    local draw=(cargo run --quiet --locked --package pinfold-tools -- trace)
    cp "$MAPS/disk.img" "$MAPS/work.img" || return
    ./qemu.sh --timeout 60 --memory 64M --disk "$MAPS/work.img" "trace on; mapsum /numbers; run churn /numbers 500; \
        trace dump; trace dump /dump; trace clear; trace" </dev/null >"$MAPS/dump.txt" || return
    grep -q "nothing is recorded" "$MAPS/dump.txt" || return
    "${draw[@]}" "$MAPS/dump.txt" "$MAPS/dump.svg" || return
    for part in /numbers 'class="ahead"' 'class="miss"' 'class="flush"' 'class="store"' 'class="clean part3"'; do
        grep -q "$part" "$MAPS/dump.svg" || { echo "no $part in the picture"; return 1; }
    done
    debugfs -R "dump /dump $MAPS/dump2.txt" "$MAPS/work.img" && "${draw[@]}" "$MAPS/dump2.txt" "$MAPS/dump2.svg" || return
    cmp "$MAPS/dump.svg" "$MAPS/dump2.svg" || return
    # Cut off in the middle, it is refused in words.
    head -c "$(($(wc -c <"$MAPS/dump2.txt") / 2))" "$MAPS/dump2.txt" >"$MAPS/cut.txt"
    ! "${draw[@]}" "$MAPS/cut.txt" "$MAPS/cut.svg" 2>"$MAPS/cut.err" && grep -q "it is cut off\|is no event" "$MAPS/cut.err"
}

# The live page: without control characters when it is printed once, and never wider than a terminal.
live_page_fits() {
    local status=0
    ./qemu.sh --timeout 60 --memory 64M --disk "$MAPS/disk.img" "run watch -1 -- mapsum /numbers" </dev/null |
        tr -d '\r' >"$MAPS/once.txt" || return
    cat "$MAPS/once.txt"
    grep -q "^/numbers .*####" "$MAPS/once.txt" && ! grep -q $'\x1b' "$MAPS/once.txt" || return
    # A page that changes is for terminals.
    script -qefc "./qemu.sh --timeout 60 --memory 64M --disk $MAPS/disk.img \
        \"run watch 60 -- 'mapsum /numbers; no-such-command'\"" "$MAPS/live.raw" >/dev/null </dev/null || status=$?
    tr -d '\r' <"$MAPS/live.raw" >"$MAPS/live.txt"
    # What the command prints is there, its status is the program's, and the terminal is as it was.
    [ "$status" = 2 ] && grep -q "  /numbers" "$MAPS/live.txt" && grep -q $'\x1b\[r.*\x1b\[?25h' "$MAPS/live.txt" || return
    sed $'s/\x1b[78]//g; s/\x1b\\[[0-9;?]*[A-Za-z]//g' "$MAPS/once.txt" "$MAPS/live.txt" >"$MAPS/page.txt"
    ! grep -nE '^.{81,}' <(grep -vE '^(Pinfold 0|Script )' "$MAPS/page.txt")
}

check "the image is built" scripts/build.sh
check "disks are made" make_map_disks
check "stores to a shared map reach the disk" stores_reach_the_disk "$MAPS/disk.img"
check "the same with blocks of 1 KiB" stores_reach_the_disk "$MAPS/small-blocks.img"
for pi in raspi3b raspi4b; do
    machine=(--machine $pi)
    check "the same on $pi" stores_reach_the_disk "$MAPS/disk.img"
done
machine=(--memory 64M)
check "powering off writes back what was stored" power_off_writes_back
check "faults in maps of files are told" faults_are_told
check "a file far larger than memory is read through a map" large_file_is_read
check "random stores to a file far larger than memory last" churned_file_is_right
check "a full disk is told at the first store" full_disk_is_told
check "a read error under a map is told" read_errors_are_told
check "a write error is told by flush, once" write_errors_are_told
check "a disk that stops answering is told" silent_disk_is_told
check "a read-only disk is told" read_only_disk_is_told
check "a run is recorded and drawn" recorded_run_is_drawn
check "the live page fits" live_page_fits
