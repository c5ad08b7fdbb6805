#!/usr/bin/env bash
# Ansible and ansible-lint in a virtual environment below target/. Prints the directory of their programs on stdout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

lint=26.10.1
environment=$(cd ../.. && pwd)/target/ansible
if [ "$(cat "$environment/complete" 2>/dev/null)" != "ansible-lint $lint" ]; then
    say "installing ansible-lint $lint and the Ansible that it brings"
    rm -rf "$environment"
    mkdir -p "$(dirname "$environment")"
    python3 -m venv "$environment" || die 'python3 cannot make a virtual environment: apt-get install python3-venv'
    "$environment/bin/pip" --quiet install "ansible-lint==$lint" >&2
    echo "ansible-lint $lint" >"$environment/complete"
fi
echo "$environment/bin"
