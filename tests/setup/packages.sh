#!/usr/bin/env bash
# Debian packages that the tests and the demo need. Does nothing, and asks no mirror, when all are there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

# PostgreSQL 15 is the default old major. Its minor comes from the main suite, never from the security suite, because
# tables made by the newer minors cannot be restored in the PostgreSQL 18 that the suites carry; see postgres.sh.
postgresql=(postgresql-15 postgresql-client-15)
tools=(ca-certificates gcc iproute2 jq libc6-dev make nftables patchelf procps python3-venv rsync tzdata util-linux)
# Those that one target alone needs.
read -ra more <<<"${PGLEAP_PACKAGES:-}"
# Servers that the tests start by themselves: Debian's own services of them are kept from being enabled and started.
servers=(etcd-server haproxy pgbouncer)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
version() { dpkg-query -W -f '${Version}' "$1"; }

require_debian 'its packages are installed with apt-get'
missing=()
for package in "${postgresql[@]}" "${tools[@]}" "${more[@]}" "${servers[@]}"; do
    installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
say "installing ${missing[*]}"

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o DPkg::Use-Pty=0 "$@" >&2
}

# The version of a package in the main suite of this release.
main_version() {
    local codename suites
    codename=$(os_release VERSION_CODENAME)
    suites="^($codename|stable|oldstable)/main\$"
    apt-cache madison "$1" | awk -F ' *[|] *' -v suites="$suites" '
        { split($3, source, " ") }
        source[2] ~ suites && !done { print $2; done = 1 }' | grep . || die "no $1 in the main suite of $codename"
}

apt update
wanted=()
for package in "${missing[@]}"; do
    case $package in
        postgresql-*) wanted+=("$package=$(main_version "$package")") ;;
        *) wanted+=("$package") ;;
    esac
done
for package in "${postgresql[@]}"; do
    # What is installed stays what it is: naming the version keeps apt from replacing it.
    if installed "$package"; then
        wanted+=("$package=$(version "$package")")
    fi
done

if ! installed postgresql-15; then
    # Keep Debian from making and starting a cluster 'main'.
    apt install -y --no-install-recommends postgresql-common
    settings=/etc/postgresql-common/createcluster.conf
    if ! grep -qsE '^[[:space:]]*create_main_cluster' "$settings"; then
        echo 'create_main_cluster = false' | as_root tee -a "$settings" >/dev/null
    fi
fi
# A masked unit is neither enabled nor started by its package. What was installed before is somebody's own: left alone.
for package in "${servers[@]}"; do
    unit=/etc/systemd/system/${package%-server}.service
    if ! installed "$package" && [ ! -e "$unit" ] && [ ! -L "$unit" ]; then
        as_root mkdir -p "${unit%/*}"
        as_root ln -s /dev/null "$unit"
    fi
done
apt install -y --no-install-recommends "${wanted[@]}"
