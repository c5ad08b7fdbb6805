# shellcheck shell=bash
# Shared by the scripts in this directory; sourced, never run.

say() { printf '%s\n' "setup: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# Run a command with the rights of root: as root directly, otherwise through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# Where what was made or fetched once is kept; made if absent.
cache_dir() {
    local cache
    if [ "$(id -u)" -eq 0 ]; then
        cache=${PGLEAP_CACHE:-/var/cache/pgleap}
    else
        cache=${PGLEAP_CACHE:-$HOME/.cache/pgleap}
    fi
    mkdir -p "$cache"
    (cd "$cache" && pwd)
}

# One field of /etc/os-release, empty if absent.
os_release() (
    # shellcheck source=/dev/null
    . /etc/os-release
    eval "printf '%s\n' \"\${$1:-}\""
)

require_debian() {
    [ "$(os_release ID)" = debian ] || die "only Debian is supported ($1)"
}

# mirror main|security: the address this machine itself takes Debian from.
mirror() {
    local codename want path
    codename=$(os_release VERSION_CODENAME)
    case $1 in
        main) want="^($codename|stable|oldstable)\$" path='/debian/?$' ;;
        security) want="^($codename|stable|oldstable)-security\$" path='/debian-security/?$' ;;
        *) die "mirror: main or security, not '$1'" ;;
    esac
    # A repository of someone else can carry the same suite name: the path of the address tells them apart, and so does
    # the origin, which apt knows once it has fetched the index.
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
        awk -v want="$want" -v path="$path" '
            $2 ~ want && $3 == "main" && $4 == "Debian" { found = $1; exit }
            $2 ~ want && $3 == "main" && $1 ~ path && !guess { guess = $1 }
            END { if (found) print found; else if (guess) print guess }' |
        grep . || die "no source of Debian's $1 suite for '$codename' among this machine's apt sources"
}

# apt_root DIR ADDRESS SUITE: a root for apt in DIR, of that suite alone, to be used by `apt-get -c DIR/apt.conf`: nothing of the
# machine's own apt and dpkg changes.
apt_root() {
    local apt=$1 address=$2 suite=$3 keyring option
    mkdir -p "$apt"/{lists,archives}/partial "$apt/log"
    touch "$apt/status"

    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ -r $keyring ]; then
        option="[signed-by=$keyring] "
    fi
    echo "deb ${option-}$address $suite main" >"$apt/sources.list"
    # Read after the machine's own configuration, so that its proxy and the like stay in force.
    cat >"$apt/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::State::extended_states "$apt/extended_states";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Log "$apt/log";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "$(id -un)";
APT::Default-Release "";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
}
