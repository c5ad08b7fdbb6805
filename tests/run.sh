#!/usr/bin/env bash
# Runs every test of the workspace: as many test programs at once as there are processors, since most of their time is spent waiting
# for servers; after them, one by one, those that measure or load the whole machine. What a program printed is shown when it has
# ended, with how long it took. Fails when one of them did, and names all that did.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo}

# By name of the program.
alone='switchover group_load'

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# One program, in the directory of its package, where cargo runs it too.
one() {
    local package=$1 name=$2 program=$3 results=$4
    local label out began=$SECONDS state=ok
    label="$(basename "$package") $name"
    echo "---- $label"
    out=$(mktemp "$results/out.XXXXXX")
    (cd "$package" && exec "$program") >"$out" 2>&1 </dev/null || {
        state=FAILED
        echo "$label" >>"$results/failed"
    }
    {
        flock 9
        printf '==== %s: %s, %d s\n' "$label" "$state" $((SECONDS - began))
        cat "$out"
        printf '\n'
    } 9>"$results/lock"
    grep '^SKIPPED' "$out" >>"$results/skipped" || true
    rm -f "$out"
}
export -f one

programs=$results/programs
$cargo test --workspace --no-run --message-format=json-render-diagnostics |
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable)
        | [(.manifest_path | rtrimstr("/Cargo.toml")), .target.name, .executable] | @tsv' |
    # Those of whole fleets first: they are the long ones.
    sort -t $'\t' -k 1,1r -k 2,2 >"$programs"
[ -s "$programs" ] || { echo 'no test programs were built' >&2; exit 1; }

are_alone() { awk -F '\t' -v names="$alone" -v wanted="$1" '((" " names " ") ~ (" " $2 " ")) == wanted' "$programs"; }
run() { tr '\t\n' '\0\0' | xargs -0 -r -n 3 -P "$1" bash -c 'one "$1" "$2" "$3" "$0"' "$results"; }
are_alone 0 | run "$(nproc)"
are_alone 1 | run 1
$cargo test --workspace --doc || echo 'the examples in the documentation' >>"$results/failed"

# Programs write it past the capture of what their tests print: what was left out on this machine is told.
grep -hs '^SKIPPED' "$results"/skipped || true

if [ -s "$results/failed" ]; then
    echo 'FAILED:'
    sort "$results/failed"
    exit 1
fi
