#!/usr/bin/env bash
# Makes the packages of what cargo has built.
#
#   packaging/build.sh deb|rpm [REVISION]    into target/packages; PROFILE names cargo's profile (default release)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:?usage: build.sh deb|rpm [REVISION]}
revision=${2:-1}
profile=${PROFILE:-release}
tools=$(tests/setup/packagers.sh "$kind")
PATH=$tools:$PATH
mkdir -p target/packages
for package in pgleap-agent pgleap-coordinator; do
    case $kind in
        deb)
            # The programs of the test profile are large: quick is better than small.
            options=(--deb-revision "$revision" --output target/packages/)
            [ "$profile" = release ] || options+=(--fast --no-strip --quiet)
            cargo-deb deb --package "$package" --profile "$profile" --no-build "${options[@]}"
            ;;
        rpm)
            options=(--set-metadata "release = \"$revision\"" --output target/packages/)
            [ "$profile" = release ] || options+=(--payload-compress none)
            cargo-generate-rpm generate-rpm --package "${package#pgleap-}" --profile "$profile" "${options[@]}"
            ;;
        *)
            echo "build.sh: deb or rpm, not '$kind'" >&2
            exit 2
            ;;
    esac
done
