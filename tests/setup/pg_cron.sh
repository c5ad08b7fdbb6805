#!/usr/bin/env bash
# pg_cron for PostgreSQL 18, unpacked beside it, and printed on stdout is the directory below which it lies: a test's server finds it
# by dynamic_library_path and extension_control_path. Fetched as postgres.sh fetches a server; kept as it is once it is there.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

system=/usr/lib/postgresql/18
if [ -x $system/bin/postgres ]; then
    # This machine's own server, which does not load what was built for another release: it needs the package from where it came.
    [ -e $system/lib/pg_cron.so ] || say "install postgresql-18-cron beside this machine's PostgreSQL 18: its tests are left out"
    exit
fi
suite=forky
cache=$(cache_dir)
tree=$cache/pg_cron-18
if [ -e "$tree/complete" ]; then
    echo "$tree/usr"
    exit
fi
require_debian "pg_cron is taken from its suite $suite"
exec 9>"$cache/.lock-pg_cron"
flock 9
if [ ! -e "$tree/complete" ]; then
    say "fetching pg_cron for PostgreSQL 18 from $suite"
    work=$(mktemp -d "$cache/.new-pg_cron.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    apt_root "$work/apt" "$(mirror main)" "$suite"
    apt-get -c "$work/apt/apt.conf" -qq update >&2
    (cd "$work/apt/archives" && apt-get -c "$work/apt/apt.conf" -qq download postgresql-18-cron >&2)
    dpkg -x "$work/apt/archives"/postgresql-18-cron_*.deb "$work/tree"
    rm -rf "$work/tree/usr/share/doc" "$tree"
    touch "$work/tree/complete"
    mv -T "$work/tree" "$tree"
fi
echo "$tree/usr"
