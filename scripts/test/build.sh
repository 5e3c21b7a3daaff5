# shellcheck shell=bash

# design.md section 9: all of it in 1.5 MB.
image_is_small() {
    local size
    size=$(wc -c <target/kernel8.img)
    echo "kernel8.img: $size bytes"
    [ "$size" -le 1500000 ]
}

# A clean build of the same sources in another folder, with Cargo's files in another folder too.
image_is_reproducible() {
    local elsewhere status=0
    elsewhere=$(mktemp -d)
    ln -s "${CARGO_HOME:-$HOME/.cargo}" "$elsewhere/cargo-home"
    list_sources | tar -cf - -T - | tar -xf - -C "$elsewhere" &&
        CARGO_HOME=$elsewhere/cargo-home "$elsewhere/scripts/build.sh" &&
        sha256sum target/kernel8.img "$elsewhere/target/kernel8.img" &&
        cmp target/kernel8.img "$elsewhere/target/kernel8.img" || status=1
    rm -rf "$elsewhere"
    return "$status"
}

list_sources() {
    git ls-files --cached --others --exclude-standard 2>/dev/null ||
        find . -path ./target -prune -o -type f -print
}

check "the image is built" scripts/build.sh
check "the image is at most 1.5 MB" image_is_small
check "a clean build elsewhere gives the same image" image_is_reproducible
