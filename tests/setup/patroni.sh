#!/usr/bin/env bash
# Make Patroni available, and print the directory of its programs on stdout. It lives in a Python environment of its own
# below $PGLEAP_CACHE, made with Debian's python3; neither the machine's Python packages nor anybody's own are touched.
# An environment that is there is kept as it is; delete its directory to have it made again.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

recipe=1 # of the environment below; raise it to have it made again
version='4.1.*'
cache=$(cache_dir)
tree=$cache/patroni
stamp=$tree/complete

finished() { [ "$(head -n 1 "$stamp" 2>/dev/null)" = "recipe $recipe" ]; }

if finished; then
    echo "$tree/bin"
    exit
fi

# One builder at a time; whoever waited finds it made.
exec 9>"$cache/.lock-patroni"
flock 9
if finished; then
    echo "$tree/bin"
    exit
fi

say "installing Patroni $version"
# An environment knows its own path, so it is made at its final place; without the stamp it counts as not made.
rm -rf "$tree"
/usr/bin/python3 -m venv "$tree"
"$tree/bin/pip" --quiet --disable-pip-version-check --no-input install "patroni[etcd3,psycopg2-binary]==$version" >&2
"$tree/bin/patroni" --version >/dev/null || die "$tree/bin/patroni does not run"
{
    echo "recipe $recipe"
    "$tree/bin/pip" --disable-pip-version-check freeze
} >"$tree/.complete"
mv "$tree/.complete" "$stamp"
say "$("$tree/bin/patroni" --version) is in $tree/bin"
echo "$tree/bin"
