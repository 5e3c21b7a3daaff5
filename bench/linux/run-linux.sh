#!/usr/bin/env bash
# Linux on the same emulator: run-linux.sh setup | run-linux.sh run IMAGE SECTION...
#
# Boots Debian's arm64 cloud kernel with an initramfs of one program, mounts the ext4 IMAGE (a copy of it) from virtio-blk
# on MMIO and runs mmapbench, whose figures go to standard output.
#
#   MODE=tcg|icount   plain emulation, or one instruction a nanosecond
#   MEMORY=1024       MiB
#   LIMIT=900         seconds after which QEMU is killed
#   WORK=DIR          where the kernel and the programs are kept
#
# Page-table isolation and address randomisation are off: Pinfold has neither user mode nor anything to isolate.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
WORK=${WORK:-$here/../../target/compare}
MODE=${MODE:-tcg} MEMORY=${MEMORY:-1024} LIMIT=${LIMIT:-900}
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)

fail() {
    echo "run-linux.sh: $*" >&2
    exit 1
}

# A private state of apt for arm64, from this machine's own sources: its lists and architectures stay as they are.
fetch_kernel() {
    local package
    ! compgen -G "$WORK/kernel/boot/vmlinuz-*" >/dev/null || return 0
    mkdir -p "$WORK"/apt/{lists,archives}/partial "$WORK/kernel"
    cat >"$WORK/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State::lists "$WORK/apt/lists";
Dir::Cache::archives "$WORK/apt/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::State::status "/dev/null";
END
    export APT_CONFIG=$WORK/apt/apt.conf
    apt-get -qq update || fail "apt-get update failed"
    package=$(apt-get install -s --no-install-recommends linux-image-cloud-arm64 2>/dev/null |
        sed -n 's/^Inst \(linux-image-[0-9][^ ]*\) .*/\1/p' | head -n 1)
    [ -n "$package" ] || fail "Debian's linux-image-cloud-arm64 cannot be found"
    (cd "$WORK/apt" && apt-get -qq download "$package") || fail "$package cannot be fetched"
    unset APT_CONFIG
    dpkg -x "$WORK/apt/$package"_*.deb "$WORK/kernel"
}

setup() {
    for tool in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu cpio:cpio python3:python3; do
        command -v "${tool%:*}" >/dev/null || fail "needs ${tool%:*}: sudo apt-get install ${tool#*:} libc6-dev-arm64-cross"
    done
    fetch_kernel
    aarch64-linux-gnu-gcc -O2 -Wall -Wextra -static -o "$WORK/mmapbench" "$here/mmapbench.c"
    aarch64-linux-gnu-gcc -O2 -Wall -Wextra -static -no-pie -Wl,-e,first_insn -o "$WORK/init" "$here/init.c"
    initramfs
}

# The programs, and the modules for the disk and its file system, each after those it depends on.
initramfs() {
    local tree
    tree=$(mktemp -d -p "$WORK")
    python3 - "$WORK/kernel" "$tree" <<'END'
import lzma, os, re, sys
kernel, tree = sys.argv[1:]
modules = {}
for base, _, files in os.walk(kernel):
    for file in files:
        if match := re.fullmatch(r"(.+)\.ko(\.xz)?", file):
            modules[match[1].replace("-", "_")] = os.path.join(base, file)
order = []
def need(name):
    name = name.replace("-", "_")
    if name in order or name not in modules:
        return  # done, or built in
    data = open(modules[name], "rb").read()
    if modules[name].endswith(".xz"):
        data = lzma.decompress(data)
    for key in (b"depends=", b"softdep=pre: "):
        for match in re.finditer(rb"\0" + key + rb"([^\0]*)\0", data):
            for other in re.split(r"[ ,]+", match[1].decode()):
                if other:
                    need(other)
    order.append(name)
    open(f"{tree}/{name}.ko", "wb").write(data)
for name in ("virtio_mmio", "virtio_blk", "crc32c_generic", "ext4"):
    need(name)
open(f"{tree}/modules", "w").write("".join(f"/{name}.ko\n" for name in order))
for name in ("proc", "sys", "dev", "mnt"):
    os.mkdir(f"{tree}/{name}")
END
    cp "$WORK/init" "$WORK/mmapbench" "$tree"
    (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$WORK/initramfs"
    rm -rf "$tree"
}

run() {
    local image=$1 words=${*:2} accelerator=()
    [ -e "$WORK/initramfs" ] || fail "run-linux.sh setup comes first"
    case $MODE in
        tcg) words="-i $words" ;;
        icount) accelerator=(-icount shift=0,sleep=off -seed 1) ;;
        *) fail "MODE is tcg or icount, not $MODE" ;;
    esac
    timeout -k 5 "$LIMIT" qemu-system-aarch64 -M virt,gic-version=2 -cpu cortex-a72 -smp 1 -m "${MEMORY}M" -accel tcg \
        ${accelerator[@]+"${accelerator[@]}"} -nographic -nic none -no-reboot \
        -kernel "$WORK"/kernel/boot/vmlinuz-* -initrd "$WORK/initramfs" \
        -drive "file=$image,if=none,id=disk,format=raw,cache=writeback" \
        -global virtio-mmio.force-legacy=false -device virtio-blk-device,drive=disk \
        -append "console=ttyAMA0 quiet panic=-1 nokaslr kpti=off ram=$MEMORY mmb=${words// /,}" </dev/null | tr -d '\r'
}

case ${1-} in
    setup) setup ;;
    run) run "${@:2}" ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
