#!/usr/bin/env bash
# cargo-deb and cargo-generate-rpm below target/. Prints the directory of the programs on stdout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

tools=$(cd ../.. && pwd)/target/tools
for tool in cargo-deb@3.8.0 cargo-generate-rpm@0.21.1; do
    name=${tool%@*}
    if [ ! -x "$tools/bin/$name" ] || ! grep -qs "\"$name ${tool#*@} " "$tools/.crates.toml"; then
        say "installing $tool"
        CARGO_TARGET_DIR=$tools/build ${CARGO:-cargo} install --quiet --locked --root "$tools" "$tool" >&2
        rm -rf "$tools/build"
    fi
done
echo "$tools/bin"
