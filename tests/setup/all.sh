#!/usr/bin/env bash
# All that `make test` and `make demo` need on a Debian machine which has Rust: packages, the PostgreSQL majors, and an
# ordinary user to run them. Where things are is written to target/pg.env, for the test harness to read.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

./packages.sh

# PostgreSQL refuses to run as root; the harness then runs it as this user.
user=pgleap-test
if [ "$(id -u)" -eq 0 ]; then
    if ! id -u $user >/dev/null 2>&1; then
        say "creating the user $user"
        useradd --system --user-group --create-home --home-dir "/var/lib/$user" --shell /usr/sbin/nologin "$user"
    fi
    as_user() { runuser -u "$user" -- "$@"; }
else
    user=$(id -un)
    as_user() { "$@"; }
fi

env=../../target/pg.env
mkdir -p "$(dirname $env)"
new=$(mktemp "$env.XXXXXX")
trap 'rm -f "$new"' EXIT
echo "PGLEAP_USER=$user" >>"$new"
# PGLEAP_MAJORS: more of them, for `make matrix`.
for spec in 15 16 17 18 15-security ${PGLEAP_MAJORS:-}; do
    bin=$(./postgres.sh $spec)
    as_user "$bin/postgres" --version >/dev/null || die "$user cannot run $bin/postgres"
    name=${spec^^}
    echo "PGLEAP_PG${name/-/_}_BIN=$bin" >>"$new"
done
patroni=$(./patroni.sh)
as_user "$patroni/patroni" --version >/dev/null || die "$user cannot run $patroni/patroni"
echo "PGLEAP_PATRONI_BIN=$patroni" >>"$new"
cron=$(./pg_cron.sh)
[ -z "$cron" ] || echo "PGLEAP_PG18_CRON=$cron" >>"$new"
chmod 644 "$new"
mv "$new" $env
