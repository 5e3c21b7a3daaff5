# The image as a Raspberry Pi's firmware starts it: see tests/firmware/src/main.rs.
# shellcheck shell=bash

TREE_AT=0x2eff1e00

build_firmware() {
    (cd tests/firmware && for_target build --release --locked --target-dir "$ROOT/target/firmware")
}

# What the firmware writes into the tree before it hands it over: $1 the tree, $2 cells of an address, $3 the result.
finish_tree() {
    cp "$1" "$3"
    fdtput -t s "$3" /chosen bootargs selftest
    if [ "$2" = 2 ]; then
        fdtput -t x "$3" /memory@0 reg 0 0 3c000000
    else
        fdtput -t x "$3" /memory@0 reg 0 3c000000
    fi
}

# hand_over MACHINE TREE LEVEL: LEVEL 0 enters the kernel in EL3, 1 in EL2.
hand_over() {
    timeout --kill-after=5 "${LIMIT:-60}" qemu-system-aarch64 -machine "$1" -display none -nic none -monitor none \
        -chardev stdio,id=console,signal=off -serial chardev:console -semihosting-config enable=on,target=native \
        -device "loader,file=target/firmware/$TARGET/release/firmware" \
        -device "loader,file=target/kernel8.img,addr=0x200000,force-raw=on" \
        -device "loader,file=$2,addr=$TREE_AT,force-raw=on" \
        -device "loader,addr=0x1000,data=$TREE_AT,data-len=8" \
        -device "loader,addr=0x1008,data=$3,data-len=8"
}

# damaged_tree OFFSET BYTES WORDS: with those bytes in its tree, the machine says WORDS.
damaged_tree() {
    local said
    cp target/trees/pi3.dtb target/trees/damaged.dtb
    # shellcheck disable=SC2059 # the bytes are escapes of printf's
    printf "$2" | dd of=target/trees/damaged.dtb bs=1 seek="$1" conv=notrunc status=none
    said=$(LIMIT=10 hand_over raspi3b target/trees/damaged.dtb 1 </dev/null) || true
    echo "--- $2 at $1: $said"
    [[ $said == *"$3"* ]]
}

# Never silence. Without the magic number it is no tree, and a Pi is known without one.
damaged_tree_is_told() {
    damaged_tree 0 zzzz "Raspberry Pi 3" &&
        damaged_tree 4 '\0\0\0\20' "device tree" &&
        damaged_tree 4 '\377\377\377\377' "device tree" &&
        damaged_tree 200 '\377\377\377\377' "device tree"
}

too_little_memory_is_told() {
    local said status=0
    cp target/trees/pi3.dtb target/trees/small.dtb
    fdtput -t x target/trees/small.dtb /memory@0 reg 0 1000
    said=$(LIMIT=30 hand_over raspi3b target/trees/small.dtb 1 </dev/null) || status=$?
    echo "$said (status $status)"
    [ "$status" = 2 ] && [[ $said == *"too little memory"* ]]
}

check "the image is built" scripts/build.sh
check "the firmware's stand-in is built" build_firmware
if scripts/pi-files.sh trees; then
    finish_tree target/trees/bcm2837-rpi-3-b.dtb 1 target/trees/pi3.dtb
    finish_tree target/trees/bcm2711-rpi-4-b.dtb 2 target/trees/pi4.dtb
    image_tests "selftest on raspi3b, firmware enters at EL2" 240 hand_over raspi3b target/trees/pi3.dtb 1
    image_tests "selftest on raspi4b, firmware enters at EL2" 240 hand_over raspi4b target/trees/pi4.dtb 1
    image_tests "selftest on raspi3b, entered at EL3" 240 hand_over raspi3b target/trees/pi3.dtb 0
    image_tests "selftest on raspi4b, entered at EL3" 240 hand_over raspi4b target/trees/pi4.dtb 0
    check "a damaged device tree is told of" damaged_tree_is_told
    check "too little memory is told of" too_little_memory_is_told
else
    skip "start by firmware" "the Pis' device trees could not be fetched"
fi
