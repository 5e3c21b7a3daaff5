# shellcheck shell=bash
check "the image is built" scripts/build.sh
for pi in raspi3b raspi4b; do
    image_tests "selftest on $pi" 240 ./qemu.sh --no-disk --machine $pi --timeout 230 selftest
done
if scripts/pi-files.sh trees; then
    image_tests "selftest on raspi3b with a device tree" 240 \
        ./qemu.sh --no-disk --machine raspi3b --timeout 230 selftest -- -dtb target/trees/bcm2837-rpi-3-b.dtb
    image_tests "selftest on raspi4b with a device tree" 240 \
        ./qemu.sh --no-disk --machine raspi4b --timeout 230 selftest -- -dtb target/trees/bcm2711-rpi-4-b.dtb
else
    skip "the Pis with a device tree" "their trees could not be fetched"
fi
