# shellcheck shell=bash

SD=$ROOT/target/test-sd

# QEMU.SH-OPTIONS for a card in an SD host on PCI: pci_card FILE [OPTION-OF-THE-DRIVE...]
pci_card() {
    local drive=file=$1
    [ $# = 1 ] || drive=$2
    echo "-- -device sdhci-pci -drive if=none,id=card,format=raw,$drive -device sd-card,drive=card"
}

make_cards() {
    rm -rf "$SD" && mkdir -p "$SD" && mkfs.ext4 -q -F -d src "$SD/card.img" 64M
}

# What each method is to do: read some files, and change the file system in many places.
method_commands() {
    local file
    for file in lib.rs fs/mod.rs mm/manager.rs; do
        echo "sum /$file; cp /$file /copy-${file##*/}; sum /copy-${file##*/};"
    done
    for file in 1 2 3 4 5; do
        echo "mkdir /d$file; write /d$file/words words of $file; truncate /d$file/words $((file * 3000));"
    done
    echo "rm /kernel.rs; mv /thread.rs /d1/moved; sync; disks"
}

# method METHOD WORDS QEMU.SH-OPTION...: the sums are the PC's; names and bytes are the same whatever the method and machine.
method() {
    local method=$1 words=$2 said file sum
    shift 2
    cp "$SD/card.img" "$SD/work.img" || return
    # shellcheck disable=SC2046
    said=$(./qemu.sh --no-disk --timeout 60 "$@" "sd=$method $(method_commands | tr '\n' ' ')" \
        $([[ "$*" == *--machine* ]] || pci_card "$SD/work.img")) || return
    echo "$said"
    grep -q "$words, by interrupt" <<<"$said" || return
    for file in lib.rs fs/mod.rs mm/manager.rs; do
        sum=$(sha256sum <"src/$file")
        [ "$(grep -c "^${sum%% *}" <<<"$said")" = 2 ] || { echo "$file is not as on the PC"; return 1; }
    done
    e2fsck -fn "$SD/work.img" || return
    [ "$(debugfs -R "cat /copy-manager.rs" "$SD/work.img" 2>/dev/null | sha256sum)" = "$(sha256sum <src/mm/manager.rs)" ] &&
        [ "$(debugfs -R "cat /d3/words" "$SD/work.img" 2>/dev/null | head -c 10)" = "words of 3" ] || return
    # Not the whole image: only some machines know what time it is.
    rm -rf "$SD/tree" && mkdir "$SD/tree" && debugfs -R "rdump / $SD/tree" "$SD/work.img" 2>/dev/null || return
    sum=$(cd "$SD/tree" && find . | sort && find . -type f | sort | xargs sha256sum)
    [ -e "$SD/sum" ] || echo "$sum" >"$SD/sum"
    [ "$sum" = "$(cat "$SD/sum")" ] || { echo "the files are not what the other methods make"; return 1; }
}

pi_method() {
    method "$2" "$3" --machine "$1" --disk "$SD/work.img"
}

missing_method_is_told() {
    local said
    said=$(./qemu.sh --machine raspi3b --timeout 60 --disk "$SD/card.img" "sd=adma2 disks") || return
    echo "$said"
    grep -q "an SD host offers no ADMA2; DMA engine it is" <<<"$said" && grep -q "DMA engine, by interrupt" <<<"$said"
}

suite_passes() {
    cp "$SD/card.img" "$SD/work.img" || return
    # shellcheck disable=SC2046
    ./qemu.sh --no-disk --timeout 170 selftest $(pci_card "$SD/work.img") -machine highmem=off || return
    e2fsck -fn "$SD/work.img"
}

# until_said FILE WORDS [TIMES]: waits until the file has that many lines with them.
until_said() {
    local _
    for _ in $(seq 300); do
        [ "$(grep -ac -- "$2" "$1")" -lt "${3:-1}" ] || return 0
        sleep 0.1
    done
}

# card_is_taken_out DRIVE QEMU.SH-OPTION...: what needs it fails with these words, and works when it is back. (All of
# QEMU's cards say that they are the same one: what becomes of another card is for the PC's tests.)
card_is_taken_out() {
    local drive=$1 out=$SD/out.txt monitor=$SD/monitor.txt _
    shift
    cp "$SD/card.img" "$SD/work.img" || return
    rm -f "$SD/monitor.in" "$SD/monitor.out"
    mkfifo "$SD/monitor.in" "$SD/monitor.out" || return
    : >"$out" >"$monitor"
    cat "$SD/monitor.out" >"$monitor" &
    {
        echo "write /before yes; sync; sum /lib.rs"
        until_said "$out" "  /lib.rs"
        # Each line at a prompt is answered by the next prompt.
        echo "eject $drive" >"$SD/monitor.in"
        until_said "$monitor" "^(qemu)" 2
        echo "sum /fs/mod.rs"
        until_said "$out" "sum: /fs/mod.rs"
        echo "sum /fs/mod.rs"
        until_said "$out" "sum: /fs/mod.rs" 2
        echo "change $drive $SD/work.img raw" >"$SD/monitor.in"
        for _ in $(seq 20); do
            sleep 1
            ! grep -q "the SD card is back" "$out" || break
            echo "sum /mm/manager.rs"
        done
        echo "sum /mm/manager.rs; write /after yes"
    } | ./qemu.sh --no-disk --timeout 60 "$@" -chardev "pipe,id=monitor,path=$SD/monitor" -mon chardev=monitor,mode=readline >"$out"
    cat "$out"
    [ "$(grep -c "the SD card is gone" "$out")" = 1 ] && [ "$(grep -c "the SD card is back" "$out")" = 1 ] &&
        [ "$(grep -c "sum: /fs/mod.rs: the device is gone" "$out")" = 2 ] || return
    grep -q "^$(sha256sum <src/mm/manager.rs | cut -c1-64)" "$out" || return
    e2fsck -fn "$SD/work.img" && [ "$(debugfs -R "cat /after" "$SD/work.img" 2>/dev/null)" = yes ]
}

# QEMU's card keeps errors of its image to itself, so they are told by who finds out: a checksum, and the console lives.
errors_are_told() {
    local said block size sum
    cp "$SD/card.img" "$SD/work.img" || return
    size=$(dumpe2fs -h "$SD/work.img" 2>/dev/null | sed -n 's/^Block size: *//p')
    block=$(debugfs -R "blocks /mm" "$SD/work.img" 2>/dev/null | tr -d ' ')
    sum=$(sha256sum <src/fs/mod.rs)
    for event in read_aio write_aio; do
        printf '[inject-error]\nevent = "%s"\nerrno = "5"\nonce = "off"\nsector = "%s"\n' \
            $event $((block * size / 512)) >"$SD/rules"
        # shellcheck disable=SC2046
        said=$(./qemu.sh --no-disk --timeout 60 "ls /mm; write /mm/new words; sync; sum /fs/mod.rs" $(pci_card "" \
            "file.driver=blkdebug,file.config=$SD/rules,file.image.driver=file,file.image.filename=$SD/work.img") 2>&1) || true
        echo "$said"
        grep -q "error on host side" <<<"$said" && grep -q "^${sum%% *}" <<<"$said" || return
        [ $event = write_aio ] || grep -q "ls: /mm: damaged file system: directory checksum at $block" <<<"$said" || return
    done
}

large_card_is_used() {
    local said
    mkfs.ext4 -q -F -E lazy_itable_init=1 "$SD/large.img" 4G || return
    # shellcheck disable=SC2046
    said=$(./qemu.sh --no-disk --timeout 60 "disks; write /new words; cp /new /copy; sync" $(pci_card "$SD/large.img")) || return
    echo "$said"
    grep -q "^mmcblk0 *4 GiB" <<<"$said" && grep -q "(SDHC," <<<"$said" || return
    e2fsck -fn "$SD/large.img" && [ "$(debugfs -R "cat /copy" "$SD/large.img" 2>/dev/null)" = words ] && rm "$SD/large.img"
}

empty_slot_is_no_disk() {
    local said
    said=$(./qemu.sh --no-disk --timeout 60 "root=mmcblk0 disks; echo-is-no-command; mem" -- -device sdhci-pci) || true
    echo "$said"
    ! grep -q "^mmcblk\|SD host\|PCI device" <<<"$said" && grep -q "mmcblk0: no such disk" <<<"$said"
}

damaged_table_is_told() {
    local said
    truncate -s 64M "$SD/table.img" &&
        printf '\0\0\2\0\356\377\377\377\1\0\0\0\377\377\1\0' | dd of="$SD/table.img" bs=1 seek=446 conv=notrunc status=none &&
        printf '\125\252' | dd of="$SD/table.img" bs=1 seek=510 conv=notrunc status=none || return
    # shellcheck disable=SC2046
    said=$(./qemu.sh --no-disk --timeout 60 "disks" $(pci_card "$SD/table.img")) || return
    echo "$said"
    grep -q "mmcblk0: its partitions cannot be read: the GPT at sector 1 is damaged, and so is its backup" <<<"$said" &&
        grep -q "^mmcblk0 *64 MiB" <<<"$said"
}

check "the image is built" scripts/build.sh
check "a card is made" make_cards
for how in "pio PIO" "sdma SDMA" "adma2 ADMA2"; do
    # shellcheck disable=SC2086
    check "virt reads and writes a card by ${how#* }" method $how
done
for pi in raspi3b raspi4b; do
    check "$pi does the same by PIO" pi_method $pi pio PIO
    check "$pi does the same by its DMA engine" pi_method $pi dma "DMA engine"
done
check "a method that a host does not offer is told of" missing_method_is_told
image_tests "selftest on virt from a card, by ADMA2" 180 suite_passes
# shellcheck disable=SC2046
check "virt's card is taken out and put back" card_is_taken_out card $(pci_card "$SD/work.img")
check "raspi3b's card is taken out and put back" card_is_taken_out sd0 --machine raspi3b --disk "$SD/work.img" --
check "errors of a card's image are told by checksums" errors_are_told
check "a card of 4 GiB is used" large_card_is_used
check "an empty slot is no disk" empty_slot_is_no_disk
check "a damaged partition table is told of" damaged_table_is_told
