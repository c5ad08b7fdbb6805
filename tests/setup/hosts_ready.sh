#!/usr/bin/env bash
# What the scenarios on real hosts need besides `make setup` and `make build`: packages of two revisions of what was built, Ansible, and the root
# of the hosts, whose directory is printed on stdout. Without root nothing is made, nothing is printed, and these scenarios say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

if [ "$(id -u)" -ne 0 ]; then
    say 'not root: nothing is prepared for real hosts'
    exit
fi
export PROFILE=dev
../../packaging/build.sh deb 1 >&2
../../packaging/build.sh deb 2 >&2
./ansible.sh >&2
./hosts.sh
