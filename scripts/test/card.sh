# shellcheck shell=bash

CARD=$ROOT/target/test-card

make_card() {
    rm -rf "$CARD" && mkdir -p "$CARD/tree/src" || return
    cp -r src/fs "$CARD/tree/src/" && printf 'Hello, card\n' >"$CARD/tree/hello" || return
    ./sdcard.sh "$CARD/card.img" "$CARD/tree"
}

cards_are_the_same() {
    mkdir -p "$CARD/again" && ./sdcard.sh "$CARD/again/card.img" "$CARD/tree" || return
    (cd "$CARD" && sha256sum -c card.img.sha256) && (cd "$CARD/again" && sha256sum -c ../card.img.sha256) || return
    cmp "$CARD/card.img.bmap" "$CARD/again/card.img.bmap" &&
        xz -dc "$CARD/card.img.xz" | cmp - "$CARD/again/card.img" || return
    rm -r "$CARD/again"
}

# The two partitions of a card are sound.
card_is_sound() {
    dd if="$1" of="$CARD/boot" bs=1M skip=1 count=40 status=none
    dd if="$1" of="$CARD/root" bs=1M skip=41 status=none
    fsck.vfat -n "$CARD/boot" && e2fsck -fn "$CARD/root"
}

card_has_what_is_needed() {
    local file name
    card_is_sound "$CARD/card.img" || return
    for file in kernel8.img config.txt cmdline.txt bootcode.bin start.elf fixup.dat start4.elf fixup4.dat \
        bcm2837-rpi-3-b.dtb bcm2711-rpi-4-b.dtb LICENCE.firmware.txt; do
        mtype -i "$CARD/boot" "::$file" >"$CARD/file" && [ -s "$CARD/file" ] || { echo "no $file"; return 1; }
    done
    mtype -i "$CARD/boot" ::kernel8.img | cmp - target/kernel8.img || return
    while read -r name; do
        debugfs -R "cat $name" "$CARD/root" 2>/dev/null | cmp - "$CARD/tree/$name" || return
    done < <(cd "$CARD/tree" && find . -type f)
}

# MACHINE TREE: with the root that the card's command line names.
card_runs() {
    local line
    line=$(mtype -i "$CARD/boot" ::cmdline.txt)
    cp "$CARD/card.img" "$CARD/work.img"
    ./qemu.sh --machine "$1" --timeout 230 --disk "$CARD/work.img" "$line selftest" -- -dtb "target/trees/$2"
}

card_keeps_what_is_written() {
    card_is_sound "$CARD/work.img" || return
    cp "$CARD/card.img" "$CARD/work.img"
    ./qemu.sh --machine "$1" --timeout 60 --disk "$CARD/work.img" \
        "$(mtype -i "$CARD/boot" ::cmdline.txt) write /new written on a Pi; cp /src/fs/mod.rs /copy; mkdir /boot;
        mount PARTUUID=$(mtype -i "$CARD/boot" ::cmdline.txt | sed 's/.*=//; s/-.*//')-01 /boot; cat /boot/config.txt" |
        grep arm_64bit=1 || return
    card_is_sound "$CARD/work.img" || return
    debugfs -R "cat /new" "$CARD/root" 2>/dev/null | cmp - <(echo "written on a Pi") &&
        debugfs -R "cat /copy" "$CARD/root" 2>/dev/null | cmp - src/fs/mod.rs
}

# MACHINE TREE: U-Boot reads the card, and starts what is on it.
u_boot_starts_the_card() {
    local out=$CARD/u-boot.txt status=0
    cp "$CARD/card.img" "$CARD/work.img"
    # Its console is the second UART of the Pi 4's tree, and the first of the Pi 3's.
    {
        sleep 1
        for _ in $(seq 20); do printf ' ' && sleep 0.3; done
        printf '\nfatload mmc 0:1 0x80000 cmdline.txt\nfatload mmc 0:1 ${kernel_addr_r} kernel8.img\n'
        sleep 4
        printf 'setenv bootargs "%s cat /hello; sum /hello"\n' "$(mtype -i "$CARD/boot" ::cmdline.txt)"
        printf 'booti ${kernel_addr_r} - ${fdt_addr}\n'
        sleep 12
    } | timeout 60 qemu-system-aarch64 -machine "$1" -display none -nic none -monitor none \
        -kernel target/u-boot/u-boot.bin -dtb "target/trees/$2" -drive "if=sd,format=raw,file=$CARD/work.img" \
        -semihosting-config enable=on,target=native -serial "file:$CARD/first.txt" -serial stdio >"$out" || status=$?
    cat "$out" "$CARD/first.txt"
    [ $status = 0 ] && grep -q "Hello, card" "$CARD/first.txt"
}

wrong_input_is_refused() {
    local words
    sha256sum "$CARD/card.img" >"$CARD/before" || return
    ! ./sdcard.sh "$CARD/card.img" "$CARD/tree" && sha256sum -c "$CARD/before" ||
        { echo "an image that was there is another"; return 1; }
    while read -r words; do
        # shellcheck disable=SC2086
        ! ./sdcard.sh $words || { echo "accepted: $words"; return 1; }
    done <<END

$CARD/x
$CARD/no/x.img
$CARD/x.img $CARD/none
$CARD/x.img --size 100M
$CARD/x.img --size 64M
$CARD/x.img --size big
$CARD/x.img --firmware $CARD/tree
$CARD/x.img --colour red
END
    [ ! -e "$CARD/x.img" ] || return
    head -c 120M /dev/zero | tr '\0' x >"$CARD/tree/large"
    ! ./sdcard.sh "$CARD/x.img" "$CARD/tree" --size 128M || return
    rm "$CARD/tree/large"
    [ -z "$(find "$CARD" -name '.sdcard*')" ] || { echo "something is left behind"; return 1; }
}

if scripts/pi-files.sh firmware && scripts/pi-files.sh trees; then
    check "a card image is made" make_card
    check "it is the same each time" cards_are_the_same
    check "it has what is needed, and is sound" card_has_what_is_needed
    check "wrong input is refused" wrong_input_is_refused
    for pi in "raspi3b bcm2837-rpi-3-b.dtb" "raspi4b bcm2711-rpi-4-b.dtb"; do
        # shellcheck disable=SC2086
        image_tests "selftest on ${pi% *} from the card" 240 card_runs $pi
        check "${pi% *} leaves the card sound, and the PC reads it" card_keeps_what_is_written "${pi% *}"
    done
    if scripts/pi-files.sh u-boot; then
        # shellcheck disable=SC2086
        for pi in "raspi3b bcm2837-rpi-3-b.dtb" "raspi4b bcm2711-rpi-4-b.dtb"; do
            check "U-Boot starts the card on ${pi% *}" u_boot_starts_the_card $pi
        done
    else
        skip "U-Boot" "it could not be fetched"
    fi
else
    skip "card images" "firmware and device trees could not be fetched"
fi
