#!/usr/bin/env bash
# cargo-deb or cargo-generate-rpm below target/. Prints the directory of the program on stdout.
#
#   packagers.sh deb|rpm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

tools=$(cd ../.. && pwd)/target/tools
case ${1:-} in
    deb) tool=cargo-deb@3.8.0 ;;
    rpm) tool=cargo-generate-rpm@0.21.1 ;;
    *) die "usage: packagers.sh deb|rpm, not '${1:-}'" ;;
esac
name=${tool%@*}
if [ ! -x "$tools/bin/$name" ] || ! grep -qs "\"$name ${tool#*@} " "$tools/.crates.toml"; then
    say "installing $tool"
    CARGO_TARGET_DIR=$tools/build ${CARGO:-cargo} install --quiet --locked --root "$tools" "$tool" >&2
    rm -rf "$tools/build"
fi
echo "$tools/bin"
