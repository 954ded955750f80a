#!/usr/bin/env bash
# One command from a fresh Debian, Ubuntu, Fedora or RHEL to a running gateway: `sudo ./install.sh` (see --help).
# This script checks the arguments, installs packages and builds the virtual environment. It ends in `squidkeeper setup`
# (helpers/squidkeeper/operate/setup), which plans the rest, applies it, and puts back what was there if that fails.
set -euo pipefail
umask 022 && unset PYTHONPATH PYTHONHOME
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# ── Messages, and the end of a run that fails ────────────────────────────────────────────────────────────────────────
# A reader that goes away (install.sh | head) is no reason to stop half-way. With the signal ignored, a command inside a pipe
# complains when its reader ends early: so no pipe here ends in `head` or `grep -q`.
trap '' PIPE
say() { printf '%-13s %s\n' "$1" "$2" 2>/dev/null || true; }
# A step has a name, which a terminal shows and a failure is reported under, and advice for that case.
step() { STEP=$1 ADVICE=$2 && { [ ! -t 2 ] || printf '%s …\r' "$1" >&2; }; }

die() {
    printf 'install.sh: %s\n' "$1" >&2
    ADVICE=${2-$ADVICE} && exit 1
}

bad_usage() { printf 'install.sh: %s\n            ./install.sh --help explains the options.\n' "$1" >&2 && exit 2; }

quietly() {
    local output
    output=$("$@" 2>&1 9<&-) || { tail -n 20 <<<"$output" >&2 && die "this failed: $*"; }
}

interrupted() { ADVICE="it was interrupted: run it again" && exit "$1"; }

on_exit() {
    local status=$? n && trap - EXIT && trap '' HUP INT TERM
    rm -rf "$WORK"
    for ((n = ${#MADE[@]} - 1; n >= 0; n--)); do rm -rf "${MADE[n]}"; done
    [ "$status" -ne 0 ] || exit 0
    printf '\ninstall.sh: step "%s" failed.\n  to do: %s\n  What was in place before is as it was.\n' "$STEP" "$ADVICE" >&2
    exit "$status"
}

# ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────
read_arguments() {
    local value check
    ROOT="" WHEELS="" EXTRAS="" DRY_RUN="" ACTION=install ARGUMENTS=()
    while [ $# -gt 0 ]; do
        case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
        case $1 in
        --listen | --exporter-listen | --health-listen) check=check_listen ;;
        --log-bytes | --archive-bytes) check=check_size ;;
        --certificates | --archive-days | --ca | --intermediate-days | --status-from | --tls-name | --behind | --transparent | --upstream | --bump | --gateway | --workers) check=checked_later ;;
        --policy | --ca-dir | --wheels) check=check_directory ;;
        --root) check=check_root ;;
        --extras) check=check_extras ;;
        --open | --no-exporter | --no-start | --tls | --no-tls) check="" && ARGUMENTS+=("$1") ;;
        --dry-run) check="" && DRY_RUN=yes && ARGUMENTS+=("$1") ;;
        --uninstall) check="" ACTION=uninstall && ARGUMENTS+=("$1") ;;
        --demo) check="" ACTION=demo ;;
        --install-package) check="" && ACTION="install_these ${2-}" && shift ;; # for `squidkeeper setup`
        --help | -h) cat "$SOURCE/helpers/squidkeeper/operate/setup/usage.txt" && exit ;;
        *) bad_usage "unknown argument: $1" ;;
        esac
        if [ -n "$check" ]; then
            [ -n "${2-}" ] || bad_usage "$1 needs a value"
            value=$("$check" "$1" "$2")
            case $1 in --wheels) WHEELS=$value ;; --extras) EXTRAS=$value ;; *) ARGUMENTS+=("$1" "${value:-$2}") ;; esac
            [ "$1" != --root ] || ROOT=$value
            shift
        fi
        shift
    done
    case $DRY_RUN$ACTION in yesuninstall | yesdemo) bad_usage "--dry-run is for an installation, not for --$ACTION" ;; esac
    PREFIX=${ROOT:-/opt/squidkeeper}
}

# PORT, ADDRESS:PORT or [ADDRESS]:PORT, as http_port takes it.
check_listen() {
    [[ ${2##*:} =~ ^[1-9][0-9]{0,4}$ && ${2##*:} -le 65535 ]] || bad_usage "$1 $2: the port is a number from 1 to 65535"
    [[ $2 != *:* || ${2%:*} =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ || ${2%:*} =~ ^\[[0-9A-Fa-f:.]+\]$ ]] ||
        bad_usage "$1 $2: ADDRESS is an IPv4 address or an IPv6 address in brackets, such as 192.168.137.1:3129"
}

check_size() {
    [[ $2 =~ ^(6[4-9]M|[7-9][0-9]M|[1-9][0-9]{2,}M|[1-9][0-9]*G|auto)$ ]] ||
        bad_usage "$1 $2: SIZE is a number of bytes such as 512M or 20G, 64M at least, or auto"
}
checked_later() { :; } # by `squidkeeper setup`, ahead of any change

check_extras() { # sorted, so that their order makes no other environment
    local name='(aws|oauth2|otlp|s3|sealed|valkey)'
    [[ $2 =~ ^(none|$name(,$name)*)$ ]] || bad_usage "$1 $2: NAME is aws, oauth2, otlp, s3, sealed or valkey; for no extra, none alone"
    tr , '\n' <<<"$2" | sort -u | paste -sd,
}

check_root() { # squid.conf and AppArmor's profiles have no quoting that both accept
    local root && root=$(realpath -m "$2")
    [[ $root =~ ^[A-Za-z0-9/._+@-]+$ ]] || bad_usage "$1 $2: use letters, digits and . _ + @ - / only"
    [ "$root" != / ] || bad_usage "$1 /: leave it out for the system's own places"
    [ ! -e "$root" ] || [ -d "$root" ] || bad_usage "$1 $2: this is not a directory"
    printf '%s' "$root"
}

check_directory() { # hatchling builds squidkeeper from its sources; the other wheels pip names itself
    [ -d "$2" ] || bad_usage "$1 $2: there is no such directory"
    case $1 in
    --policy) compgen -G "$2/*.y*ml" >/dev/null || bad_usage "$1 $2: no *.yaml file is in it" ;;
    --wheels) compgen -G "$2/hatchling-*.whl" >/dev/null || bad_usage "$1 $2: no hatchling-*.whl is in it, which builds squidkeeper" ;;
    --ca-dir) for name in ca.crt ca.key; do [ -r "$2/$name" ] || [ -z "$(ls -A "$2")" ] || bad_usage "$1 $2: there is no readable $name in it"; done ;;
    esac
    realpath "$2"
}

# ── Packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────
install_packages() {
    local missing names=(squid python3.12) # RHEL's own python3 is too old; Fedora's is not, and found
    ! command -v apt-get >/dev/null || names=(squid-openssl python3-venv)
    read -ra missing < <(missing_parts "${names[@]}") || true
    if [ ${#missing[@]} -gt 0 ]; then
        [ -z "$DRY_RUN" ] || { say would "install ${missing[*]}; what else is to do cannot be planned without" && exit; }
        install_these "${missing[@]}"
        [ -z "$(missing_parts squid python)" ] || die "Squid with OpenSSL or a Python is missing still: $(missing_parts squid python)"
    fi
    say packages "${missing[*]:-there}"
}

missing_parts() {
    local version
    { version=$(squid -v 2>/dev/null) && [[ $version == *--with-openssl* && $version == *ssl-crtd* ]]; } || printf '%s ' "$1"
    find_python >/dev/null || printf '%s ' "$2"
}

install_these() {
    if command -v apt-get >/dev/null; then
        quietly apt-get update
        quietly apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" ca-certificates
    elif command -v dnf >/dev/null; then
        quietly dnf install -y --quiet "$@"
    else
        die "neither apt-get nor dnf is here" "use Debian, Ubuntu, Fedora or RHEL, or install Squid with OpenSSL by hand as squid/INSTALL.md says"
    fi
}

# The distribution's own Python: one of pyenv's or conda's, first on PATH, may be unreadable for Squid's account.
find_python() {
    local python least
    least=$(sed -n 's/^requires-python *= *">= *\([0-9]*\)\.\([0-9]*\).*/(\1, \2)/p' "$SOURCE/pyproject.toml")
    for python in /usr/bin/python3 /usr/bin/python3.[0-9][0-9]; do
        ! "$python" -I -c "import sys, ensurepip, venv; sys.exit(sys.version_info[:2] < $least)" 2>/dev/null || { echo "$python" && return; }
    done
    return 1
}

# With what is missing above it. A run that fails removes it.
make_directory() { [ -d "$1" ] || { make_directory "$(dirname "$1")" && mkdir "$1" && MADE+=("$1"); }; }

# One run at a time for each gateway, `squidkeeper render` included, which takes seconds. The lock ends with `squidkeeper setup`.
lock() { { exec 9<"$PREFIX" && flock -w 15 9; } || die "another run of install.sh is at work on $PREFIX" "wait for it"; }

# Each version of the sources has an environment of its own, beside the one whose helpers run. What leaves nothing behind
# builds its own elsewhere, which is not below /run: that can be mounted noexec.
prepare_program() {
    local hash build former
    step program "see pip's lines above; it needs a package index (PIP_INDEX_URL, a proxy: see pip's documentation), or --wheels DIR"
    PYTHON=$(find_python) || die "there is no Python here" "install python3-venv"
    former=$(realpath -m "$PREFIX/bin/squidkeeper") # the environment in use holds the names of its extras
    EXTRAS=${EXTRAS:-$(cat "${former%/bin/*}/complete" 2>/dev/null || true)} EXTRAS=${EXTRAS:-none}
    hash=$(cd "$SOURCE" && { "$PYTHON" -VV && echo "$EXTRAS" && find pyproject.toml helpers -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum; } | sha256sum)
    VENV=$PREFIX/venv-${hash:0:12} build=$PREFIX/venv-${hash:0:12}
    if [ -e "$VENV/complete" ]; then
        say program "as built before in $VENV"
    elif [ "$ACTION$DRY_RUN" = install ]; then
        rm -rf "$VENV" && make_directory "$VENV"
        build_venv "$VENV"
    else
        build=$(mktemp -d /var/tmp/squidkeeper-install.XXXXXX) && MADE+=("$build") && chmod 755 "$build"
        build+=/${VENV##*/}
        # A dry run asks no package index: it borrows the packages of the environment in use, or tells the outline.
        [ -z "$DRY_RUN" ] || "$PYTHON" -I -B "$SOURCE/helpers/squidkeeper/operate/setup/borrowed.py" "${former%/bin/*}" "$build" "$VENV" "$ROOT" "$WHEELS" || exit 0
        [ -e "$build/complete" ] || build_venv "$build"
    fi
    ADVICE="see the lines above; with $VENV moved away, it is built again"
    RUN=("$build/bin/python" -I -m squidkeeper)
    quietly "${RUN[@]}" setup --help
}

# From a copy: building in the checkout would leave files of root's there.
build_venv() {
    local wheels=() extras="[$EXTRAS]"
    if [ -n "$WHEELS" ]; then
        unset "${!PIP_@}" # what pip is set to could name an index, or another folder of wheels
        export PIP_CONFIG_FILE=/dev/null
        wheels=(--no-index --find-links "$WHEELS")
        ADVICE="every wheel must be for $("$PYTHON" -V) and this architecture: make the folder again with that version, as --help says"
    fi
    mkdir "$WORK/sources" && cp -R "$SOURCE"/{pyproject.toml,helpers,README.md,LICENSE} "$WORK/sources"
    quietly "$PYTHON" -m venv "$1"
    # Wheels alone: a source package could want a compiler, or fetch from elsewhere than the index. Compiled to bytecode now:
    # Squid's account may not write it later.
    quietly "$1/bin/pip" --quiet --disable-pip-version-check install "${wheels[@]}" --only-binary :all: --compile "$WORK/sources${extras#"[none]"}"
    echo "$EXTRAS" >"$1/complete"
    say program "built in $1 with $PYTHON, extras: $EXTRAS"
}

install() {
    step packages "see what the package manager says above; with no network, install the packages by hand and run this again"
    install_packages
    step directories "make the directory, or choose another --root"
    [ "$ACTION$DRY_RUN" != install ] || make_directory "$PREFIX"
    [ ! -d "$PREFIX" ] || [ "$ACTION" = demo ] || lock
    prepare_program
    [ "$ACTION" = demo ] || set_up
}

demo() {
    install
    step demo "see the lines above"
    type curl ip nft >/dev/null 2>&1 || install_these curl iproute2 nftables
    "${RUN[@]}" demo --source "$SOURCE"
}

# By the code of these sources, with the packages of an environment that is installed; where none works, one is built.
uninstall() {
    local python run="import sys; sys.path.insert(0, sys.argv.pop(1)); from squidkeeper.cli import main; main()"
    step uninstall "see the lines above"
    compgen -G "$PREFIX/venv-*" >/dev/null || compgen -G "${ROOT:-/etc/squid}/squidkeeper*.conf" >/dev/null ||
        compgen -G "$ROOT/etc/squidkeeper*.conf" >/dev/null || { say uninstall "no gateway of squidkeeper's is in ${ROOT:-/etc/squid}: nothing to do" && exit; }
    lock
    for python in "$PREFIX"/venv-*/bin/python; do
        RUN=("$python" -I -B -c "$run" "$SOURCE/helpers")
        ! "${RUN[@]}" setup --help >/dev/null 2>&1 || set_up
    done
    prepare_program; set_up
}

# squidkeeper goes on in this process: it is sent the signals, keeps the lock, and removes what is in WORK.
set_up() {
    local path
    for path in "${MADE[@]}"; do ARGUMENTS+=(--made "$path"); done
    trap '' HUP INT TERM # until squidkeeper handles them: one that came in between would end it, and nothing be removed
    exec "${RUN[@]}" setup --source "$SOURCE" --work "$WORK" --venv "$VENV" "${ARGUMENTS[@]}"
}

STEP=arguments ADVICE="./install.sh --help explains the options" MADE=() VENV=""
read_arguments "$@"
[ "$(id -u)" -eq 0 ] || die "run it as root: sudo ./install.sh"
WORK=$(mktemp -d /run/squidkeeper-install.XXXXXX)
trap on_exit EXIT && trap 'interrupted 129' HUP && trap 'interrupted 130' INT && trap 'interrupted 143' TERM
chmod 755 "$WORK" && cd /
$ACTION
