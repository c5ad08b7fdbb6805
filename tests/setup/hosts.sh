#!/usr/bin/env bash
# What `make hosts` needs besides: the tools that make and boot Debian systemd containers, and one root file system for all of them
# (the hosts' roots are overlays over it), with sshd, PostgreSQL, etcd and nothing of pgleap. Prints its directory on stdout.
# A root that is there is kept; delete it to have it made anew.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

recipe=2 # of the root; raise it to have it made anew
require_debian 'its hosts are Debian systemd containers'
[ "$(id -u)" -eq 0 ] || die 'hosts are containers, and making them needs root'

missing=()
for package in mmdebstrap systemd-container openssh-client iproute2 python3-venv; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o DPkg::Use-Pty=0)
    "${apt[@]}" update >&2
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2
fi

cache=$(cache_dir)
root=$cache/host-bookworm
stamp=$root.complete
exec 9>"$cache/.lock-host"
flock 9
if [ "$(cat "$stamp" 2>/dev/null)" != "recipe $recipe" ]; then
    say 'making the root of the hosts (a few minutes)'
    rm -rf "$root" "$stamp" "$cache/.new-host".*
    work=$(mktemp -d "$cache/.new-host.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # python3-apt is what Ansible installs packages with; the rest is what a database host has.
    mmdebstrap --quiet --variant=minbase \
        --include=systemd,systemd-sysv,dbus,python3,python3-apt,iproute2,openssh-server,rsync,polkitd,etcd-server,postgresql-15 \
        --customize-hook='chroot "$1" pg_dropcluster 15 main' \
        bookworm "$work" "$(mirror main)" >&2
    mv -T "$work" "$root"
    chmod 755 "$root"
    echo "recipe $recipe" >"$stamp"
fi
echo "$root"
