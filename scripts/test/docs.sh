# shellcheck shell=bash

# Each chapter is listed, each listed chapter is there, and links lead somewhere.
book() {
    local status=0 page file link
    for page in $(sed -n 's/.*](\([^)]*\.md\)).*/\1/p' docs/src/SUMMARY.md); do
        [ -f "docs/src/$page" ] || { echo "SUMMARY.md lists $page, which is not there"; status=1; }
    done
    for file in docs/src/*.md; do
        page=${file#docs/src/}
        [ "$page" = SUMMARY.md ] || grep -q "](\(./\)\?$page)" docs/src/SUMMARY.md ||
            { echo "SUMMARY.md does not list $page"; status=1; }
    done
    for file in README.md CONTRIBUTING.md CHANGELOG.md docs/src/*.md; do
        for link in $(grep -o '](\([^)#: ]*\)[)#]' "$file" | sed 's/^](//; s/[)#]$//'); do
            [ -z "$link" ] || [ -e "$(dirname "$file")/$link" ] || { echo "$file: no $link"; status=1; }
        done
    done
    return "$status"
}

# What README and the book tell a user to type, but for the command that runs this.
commands() {
    cat README.md CONTRIBUTING.md docs/src/*.md | sed -n '/^```sh/,/^```/p' | grep -v '^```' | sed 's/ *#.*//' |
        grep -v '^$\|^\./test\.sh' | sort -u
}

export RUSTDOCFLAGS="-D warnings"
check "cargo doc, PC" cargo doc --locked --no-deps
check "cargo doc, image" for_target doc --locked --no-deps --lib
unset RUSTDOCFLAGS
check "the book is whole" book
if has mdbook; then
    check "mdbook" mdbook build docs --dest-dir "$ROOT/target/book"
else
    skip "mdbook" "not installed"
fi
while IFS= read -r command; do
    check "$command" timeout --kill-after=10 240 bash -c "$command"
done < <(commands)
