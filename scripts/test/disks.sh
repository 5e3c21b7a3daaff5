# shellcheck shell=bash

DISKS=$ROOT/target/test-disks

# ext4 disks, made as a user makes them.
make_disks() {
    rm -rf "$DISKS" && mkdir -p "$DISKS" &&
        mkfs.ext4 -q -F -d src "$DISKS/source.img" 64M &&
        mkfs.ext4 -q -F "$DISKS/empty.img" 32M
}

# lists WORDS QEMU.SH-ARGUMENT...: `disks` prints a line with those words for each of them.
lists() {
    local words=$1 word said
    shift
    said=$(./qemu.sh --timeout 60 "$@" </dev/null) || return
    echo "$said"
    for word in $words; do
        grep -qE "^vd[a-z] .*\b${word/_/ }\b" <<<"$said" || return
    done
}

disks_are_listed() {
    lists "64_MiB" --disk "$DISKS/source.img" disks &&
        lists "64_MiB 32_MiB" --disk "$DISKS/source.img" --disk "$DISKS/empty.img" disks &&
        lists "read-only" --disk "$DISKS/source.img" disks -- \
            -drive "if=none,id=ro,format=raw,readonly=on,file=$DISKS/empty.img" -device virtio-blk-device,drive=ro
}

# The same SHA-256 of each file as on the PC, of a real tree. Arguments are for qemu.sh.
files_are_read() {
    (cd src && find . -type f | sort | sed 's/^\./sum /') |
        ./qemu.sh "$@" --timeout 120 --disk "$DISKS/source.img" | tr -d '\r' |
        grep -oE '^[0-9a-f]{64}  /.*' | sort >"$DISKS/image.txt"
    (cd src && find . -type f -exec sha256sum {} + | sed 's/  \./  /' | sort) >"$DISKS/pc.txt"
    wc -l "$DISKS/image.txt"
    diff "$DISKS/pc.txt" "$DISKS/image.txt"
}

# Files in each of eight folders.
FILES=60

# The same commands for Pinfold's console and, by way of run_on_pc, for a folder.
tree_commands() {
    local i j
    for i in 1 2 3 4 5 6 7 8; do
        echo "mkdir /d$i"
        for j in $(seq $FILES); do
            echo "write /d$i/file-$j words of $i and $j"
        done
        echo "mv /d$i/file-7 /d$i/moved"
        echo "mv /d$i/file-8 /d$i/file-9"
        echo "rm /d$i/file-10 /d$i/file-11"
        echo "cp /d$i/moved /d$i/copied"
        echo "truncate /d$i/file-12 100000"
        echo "truncate /d$i/file-13 5"
        echo "ln /d$i/file-14 /d$i/linked"
        echo "ln -s file-15 /d$i/symbolic"
        echo "mkdir /d$i/sub /d$i/gone"
        echo "rmdir /d$i/gone"
    done
}

run_on_pc() {
    local command a b rest
    while read -r command a b rest; do
        case "$command" in
            write) echo "$b $rest" >".$a" ;;
            mkdir | rmdir | rm) "$command" ".$a" ${b:+".$b"} ;;
            mv | cp) "$command" ".$a" ".$b" ;;
            truncate) truncate -s "$b" ".$a" ;;
            ln) if [ "$a" = -s ]; then ln -s "$b" ".$rest"; else ln ".$a" ".$b"; fi ;;
        esac || return
    done
}

# What the image writes, e2fsck finds sound and debugfs reads, byte for byte.
tree_is_written() {
    mkfs.ext4 -q -F "$DISKS/empty.img" 32M || return
    tree_commands | ./qemu.sh "$@" --timeout 120 --disk "$DISKS/empty.img" || return
    e2fsck -fn "$DISKS/empty.img" || return
    rm -rf "$DISKS/pc" "$DISKS/image"
    mkdir "$DISKS/pc" "$DISKS/image"
    (cd "$DISKS/pc" && mkdir lost+found && tree_commands | run_on_pc) || return
    debugfs -R "rdump / $DISKS/image" "$DISKS/empty.img" || return
    diff -r --no-dereference "$DISKS/pc" "$DISKS/image"
}

# QEMU ends in the middle of the work. What `sync` had answered for is there, and the disk is sound.
cut_short() {
    local i done
    mkfs.ext4 -q -F "$DISKS/cut.img" 32M || return
    for i in $(seq 400); do
        echo "write /file-$i number $i; sync; cat /file-$i"
    done | ./qemu.sh --timeout "$1" --disk "$DISKS/cut.img" >"$DISKS/cut.txt" 2>/dev/null
    # What is printed says that it was synced before; the last line may be cut.
    done=$(grep -ac '^number [0-9]*$' "$DISKS/cut.txt") || true
    [ "$done" = 0 ] || done=$((done - 1))
    echo "$done files were synced"
    ./qemu.sh --timeout 60 --disk "$DISKS/cut.img" "ls /" </dev/null >"$DISKS/after.txt" || return
    e2fsck -fn "$DISKS/cut.img" || return
    for i in $(seq "$done"); do
        [ "$(debugfs -R "cat /file-$i" "$DISKS/cut.img" 2>/dev/null)" = "number $i" ] ||
            { echo "file-$i is lost"; return 1; }
    done
}

cuts_lose_nothing() {
    cut_short 1 && cut_short 2
}

# The same numbers as dumpe2fs has, of a disk that is mounted and of one that is not.
superblock_is_told() {
    local said word
    said=$(./qemu.sh --timeout 60 --disk "$DISKS/source.img" --disk "$DISKS/empty.img" "fsck-info; fsck-info vdb; fsck-info vdc" </dev/null) || true
    echo "$said"
    [[ "$said" == *"fsck-info: vdc: no such disk or partition"* ]] || return
    dumpe2fs -h "$DISKS/empty.img" 2>/dev/null >"$DISKS/dump.txt" || return
    # mke2fs calls the feature "extents", dumpe2fs "extent".
    for word in $(sed -n 's/ extent / extents /; s/^Filesystem UUID: *//p; s/^Filesystem features: *//p; s/^Inode count: *//p; s/^Blocks per group: *//p' "$DISKS/dump.txt"); do
        grep -q -- "\b$word\b" <<<"$said" || { echo "no $word"; return 1; }
    done
}

# A FAT volume: mounted by a command beside the root, listed, read and written; sound afterwards.
fat_is_mounted() {
    truncate -s 40M "$DISKS/fat.img" && mkfs.vfat -F 32 -n BOOT "$DISKS/fat.img" >/dev/null &&
        mcopy -i "$DISKS/fat.img" README.md ::README.md || return
    ./qemu.sh --timeout 60 --disk "$DISKS/empty.img" --disk "$DISKS/fat.img" <<END | tr -d '\r' | tee "$DISKS/fat.txt"
mkdir /boot
mount vdb /boot
mount
ls /boot
sum /boot/README.md
write /boot/said.txt written by the image
cp /boot/README.md /copy.md
sum /copy.md
mv /boot/said.txt /boot/again.txt
umount /boot
ls /boot
mount vdb /boot/no
END
    local sum
    sum=$(sha256sum <README.md)
    [ "$(grep -c "^${sum%% *}" "$DISKS/fat.txt")" = 2 ] && grep -q "^vdb on /boot" "$DISKS/fat.txt" || return
    fsck.vfat -n "$DISKS/fat.img" && e2fsck -fn "$DISKS/empty.img" || return
    [ "$(mtype -i "$DISKS/fat.img" ::again.txt)" = "written by the image" ]
}

# No disk is mounted twice, by whatever name; a mount that fails changes no byte of its disk; mount points stay.
mounts_are_refused() {
    local two=$DISKS/two.img before
    rm -f "$two" && truncate -s 64M "$two" && sfdisk -q "$two" <<<$'label: gpt\nstart=2048, size=40960, name=a\nname=b' &&
        mkfs.ext4 -q -F -E offset=1048576 "$two" 20480k && mkfs.ext4 -q -F "$DISKS/empty.img" 32M || return
    before=$(sha256sum <"$DISKS/empty.img")
    ./qemu.sh --timeout 60 --disk "$two" --disk "$DISKS/empty.img" root=/dev/vda1 <<'END' | tr -d '\r' | tee "$DISKS/said.txt"
mkdir /m
mount vda1 /m
mount -r vda /m
mount PARTLABEL=a /m
mount vdb /none
END
    [ "$(grep -c '^mount: .*: vda1 is mounted on /$' "$DISKS/said.txt")" = 3 ] || return
    [ "$(sha256sum <"$DISKS/empty.img")" = "$before" ] || { echo "a mount that failed has changed the disk"; return 1; }
    ./qemu.sh --timeout 60 --disk "$two" --disk "$DISKS/empty.img" root=vda1 <<'END' | tr -d '\r' | tee "$DISKS/said.txt"
mount vdb /m
write /m/file kept
rm -r /m
rmdir /m
mv /m /n
cat /m/file
END
    [ "$(grep -c ': in use$' "$DISKS/said.txt")" = 3 ] && grep -q '^kept' "$DISKS/said.txt" &&
        e2fsck -fn "$DISKS/empty.img" && e2fsck -fn "$two?offset=1048576"
}

# Disks on PCI, two of them, modern and transitional: written and read, sound afterwards; a legacy one is told of.
pci_disks_work() {
    local i said
    mkfs.ext4 -q -F "$DISKS/empty.img" 32M && mkfs.ext4 -q -F "$DISKS/pci.img" 32M || return
    local devices=(-drive "if=none,id=a,format=raw,file=$DISKS/empty.img" -device virtio-blk-pci,drive=a
        -drive "if=none,id=b,format=raw,file=$DISKS/pci.img" -device virtio-blk-pci,drive=b,disable-legacy=on)
    ./qemu.sh --no-disk --timeout 120 -- "${devices[@]}" <<END || return
mkdir /b
mount vdb /b
$(for i in $(seq 100); do echo "write /file-$i number $i; cp /file-$i /b/file-$i"; done)
END
    e2fsck -fn "$DISKS/empty.img" && e2fsck -fn "$DISKS/pci.img" || return
    [ "$(debugfs -R "cat /file-77" "$DISKS/pci.img" 2>/dev/null)" = "number 77" ] || return
    ./qemu.sh --no-disk --timeout 120 "selftest files" -- "${devices[@]}" || return
    said=$(./qemu.sh --no-disk --timeout 60 disks -- -drive "if=none,id=a,format=raw,file=$DISKS/empty.img" \
        -device virtio-blk-pci,drive=a,disable-modern=on </dev/null)
    echo "$said"
    [[ "$said" == *"PCI device 00:01.0: "* ]]
}

# A disk that a thread of QEMU's own serves, so that it answers while the machine runs.
threaded_disk_works() {
    mkfs.ext4 -q -F "$DISKS/threaded.img" 512M || return
    ./qemu.sh --no-disk --timeout 120 "bench file" -- -object iothread,id=thread \
        -drive "if=none,id=a,format=raw,file=$DISKS/threaded.img" -device virtio-blk-device,drive=a,iothread=thread &&
        e2fsck -fn "$DISKS/threaded.img" && rm "$DISKS/threaded.img"
}

# What is free is given back to the PC's disk; what is not free stays.
free_space_is_given_back() {
    local folder=$DISKS/trim before after
    rm -rf "$folder" && mkdir "$folder" && cp -r src "$folder/src" &&
        head -c 24M /dev/urandom >"$folder/big" && head -c 1M /dev/urandom >"$folder/kept" &&
        mkfs.ext4 -q -F -d "$folder" "$DISKS/trim.img" 64M || return
    before=$(du -k "$DISKS/trim.img" | cut -f1)
    ./qemu.sh --timeout 120 --disk "$DISKS/trim.img" "disks; rm /big; trim; trim /src" || return
    after=$(du -k "$DISKS/trim.img" | cut -f1)
    echo "$before KiB before, $after KiB after"
    [ "$after" -lt $((before - 20000)) ] && e2fsck -fn "$DISKS/trim.img" &&
        debugfs -R "dump /kept $DISKS/kept" "$DISKS/trim.img" && cmp "$folder/kept" "$DISKS/kept"
}

check "the image is built" scripts/build.sh
check "disks are made" make_disks
check "disks are listed" disks_are_listed
image_tests "selftest on virt, with a disk" 180 ./qemu.sh --timeout 170 --disk "$DISKS/source.img" selftest
check "a source tree is read, each SHA-256 as on the PC" files_are_read
FILES=400
check "what is free is given back with trim" free_space_is_given_back
check "a tree of thousands of files is read by debugfs, and sound" tree_is_written
FILES=60
for pi in raspi3b raspi4b; do
    check "$pi reads a source tree from its card" files_are_read --machine $pi
    check "$pi writes a tree to its card" tree_is_written --machine $pi
done
check "disks on PCI work" pci_disks_work
check "a disk with a thread of its own works" threaded_disk_works
check "fsck-info says what dumpe2fs says" superblock_is_told
check "a FAT volume is mounted, read and written" fat_is_mounted
check "what is mounted is not mounted again, nor removed" mounts_are_refused
check "a machine cut short loses nothing that was synced" cuts_lose_nothing
check "the disk that was only read is sound" e2fsck -fn "$DISKS/source.img"
