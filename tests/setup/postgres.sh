#!/usr/bin/env bash
# Make one PostgreSQL major available, and print the directory of its programs on stdout.
#
#   postgres.sh 18           what this machine has in /usr/lib/postgresql/18/bin, else from the Debian suite that carries it
#   postgres.sh 16           the same, else from a wheel of PyPI, as no suite carries it: without contrib, ICU and OpenSSL
#   postgres.sh 15-security  the newer minor of the security suite, beside the other (for tests that must refuse it)
#
# Nothing of the machine's own apt and dpkg changes: the packages are fetched through an apt root of their own, unpacked
# below $PGLEAP_CACHE and patched to use the loader and the libraries of their own suite. A tree that is there is kept as
# it is; delete its directory to fetch the suite's present minor.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source-path=SCRIPTDIR
. ./lib.sh

recipe=1 # of the trees below; raise it to have them built again
spec=${1:?usage: postgres.sh MAJOR[-security]}
major=${spec%%-*}
# The suite, and the newest minor whose tables the new majors of this table can restore: later ones have a column option
# (pg_attver) which PostgreSQL 18.6 rejects, so one that a security update left on this machine is passed over.
case $major in
    13) suite=bullseye newest=99 ;;
    15) suite=bookworm newest=18 ;;
    16) suite= newest=99 ;;
    17) suite=trixie newest=11 ;;
    18) suite=forky newest=99 ;;
    *) die "no Debian suite carries PostgreSQL '$major' (13, 15, 16, 17 and 18 can be had)" ;;
esac
case $spec in
    "$major") source=main ;;
    "$major-security") source=security suite=$suite-security ;;
    *) die "usage: postgres.sh MAJOR[-security], not '$spec'" ;;
esac

system=/usr/lib/postgresql/$major/bin
if [ "$source" = main ] && [ -x "$system/pg_upgrade" ] && [ -x "$system/postgres" ]; then
    minor=$("$system/postgres" --version | sed -nE 's/^postgres \(PostgreSQL\) [0-9]+\.([0-9]+).*/\1/p')
    if [ -n "$minor" ] && [ "$minor" -le "$newest" ]; then
        echo "$system"
        exit
    fi
    say "PostgreSQL $major.${minor:-?} of this machine is newer than $major.$newest: taking that of $suite instead"
fi

cache=$(cache_dir)
tree=$cache/postgresql-$spec
bin=$tree/usr/lib/postgresql/$major/bin
stamp=$tree/complete

finished() { [ "$(head -n 1 "$stamp" 2>/dev/null)" = "recipe $recipe" ]; }

if finished; then
    echo "$bin"
    exit
fi

require_debian "PostgreSQL $major is taken from ${suite:-a wheel}"
for program in flock patchelf dpkg apt-get; do
    command -v $program >/dev/null || die "$program is missing: run tests/setup/packages.sh first"
done

# One builder of a tree at a time; whoever waited finds it made.
exec 9>"$cache/.lock-$spec"
flock 9
if finished; then
    echo "$bin"
    exit
fi

say "fetching PostgreSQL $major from ${suite:-PyPI}"
rm -rf "$cache/.new-$spec".* # what a killed run left
work=$(mktemp -d "$cache/.new-$spec.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/tree"

# The tree made is put at its final place; the paths patched in are those of there, so the programs can be tried only then.
complete() {
    rm -rf "$tree"
    mv -T "$work/tree" "$tree"
    for program in postgres psql pg_dump pg_upgrade pg_basebackup; do
        "$bin/$program" --version >/dev/null || die "$bin/$program does not run"
    done
    {
        echo "recipe $recipe"
        cat "$work/packages"
    } >"$work/complete"
    mv "$work/complete" "$stamp"
    say "$("$bin/postgres" --version) is in $bin"
    echo "$bin"
}

if [ -z "$suite" ]; then
    wheel=pgserver==0.1.4 # PostgreSQL 16.2
    [ "$source" = main ] || die "PyPI has no other minor of PostgreSQL $major"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" --quiet --disable-pip-version-check download --no-deps --only-binary :all: --dest "$work" "$wheel" >&2
    # pip's own unpacking keeps the permissions of programs.
    "$work/venv/bin/pip" --quiet --disable-pip-version-check install --no-deps --no-compile --target "$work/unpacked" "$work"/*.whl >&2
    mkdir -p "$work/tree/usr/lib/postgresql"
    mv "$work/unpacked/pgserver/pginstall" "$work/tree/usr/lib/postgresql/$major"
    [ ! -d "$work/unpacked/pgserver.libs" ] || mv "$work/unpacked/pgserver.libs" "$work/tree/usr/lib/"
    for program in "$work/tree/usr/lib/postgresql/$major/bin"/*; do
        patchelf --force-rpath --set-rpath "$tree/usr/lib/postgresql/$major/lib:$tree/usr/lib/pgserver.libs" "$program"
    done
    echo "$wheel" >"$work/packages"
    complete
    exit
fi

address=$(mirror "$source")
apt=$work/apt
apt_root "$apt" "$address" "$suite"
in_suite() { apt-get -c "$apt/apt.conf" -qq "$@" >&2; }

in_suite update
if [ "$source" = main ]; then
    in_suite install -y --no-install-recommends --download-only "postgresql-$major" libc-bin
else
    # The security suite has the fixed packages only: what else they need is this machine's, of the same release.
    [ "$(os_release VERSION_CODENAME)-security" = "$suite" ] ||
        die "PostgreSQL $spec runs only on the release of its suite $suite"
    (cd "$apt/archives" && in_suite download "postgresql-$major" "postgresql-client-$major" libpq5)
fi
for package in "$apt"/archives/*.deb; do
    dpkg -x "$package" "$work/tree"
    basename "$package" .deb
done | sort >"$work/packages"
rm -rf "$work/tree/usr/share/"{doc,man,lintian,locale}

# Libraries are looked for below the tree (RPATH, because only that is inherited by libraries loaded at run time). A glibc
# newer than the machine's brings its own loader; with an older one the machine's serves, and the tree's must not be found.
libpq=$(cd "$work/tree" && ls usr/lib/*/libpq.so.5)
multiarch=$(basename "$(dirname "$libpq")")
patch=(--force-rpath --set-rpath "$tree/usr/lib/$multiarch:$tree/lib/$multiarch")
loader=$(find "$work/tree" -path "*/$multiarch/ld-linux*" | head -n 1)
if [ -n "$loader" ]; then
    glibc=$(sed -nE 's/^libc6_([0-9]+\.[0-9]+).*/\1/p' "$work/packages")
    machine=$(getconf GNU_LIBC_VERSION | awk '{ print $2 }')
    if dpkg --compare-versions "$glibc" gt "$machine"; then
        patch+=(--set-interpreter "$tree${loader#"$work/tree"}")
    else
        for package in "$apt"/archives/{libc6,libgcc-s1,libstdc++6}_*.deb; do
            dpkg --fsys-tarfile "$package" | tar -t | grep -E '\.so[.0-9]*$' | (cd "$work/tree" && xargs -r rm -f)
        done
    fi
fi
for program in "$work/tree/usr/lib/postgresql/$major/bin"/*; do
    if [ "$(head -c 4 "$program" | tail -c 3)" = ELF ]; then
        patchelf "${patch[@]}" "$program"
    fi
done

complete
