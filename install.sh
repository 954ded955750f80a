#!/usr/bin/env bash
# One command from a fresh Debian, Ubuntu, Fedora or RHEL to a running gateway: `sudo ./install.sh` (see --help).
#
# Everything is prepared beside what is installed and tried there (the program as Squid's account, the policy by
# `squidkeeper check`, the configuration by `squid -k parse`); only then it is put in place. A run that fails after that
# puts back what it replaced. A second run finds everything equal and changes nothing.
# shellcheck disable=SC2153,SC2154 # find_places sets the variables that PATHS names
set -euo pipefail
umask 022
unset PYTHONPATH PYTHONHOME
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
CA_SUBJECT="/CN=squidkeeper egress CA"
CA_DAYS=3650
MARK="# Written by squidkeeper's install.sh, which replaces it: lines of your own go into local.conf."

# The paths that the files under squid/ document. This is all that install.sh replaces in them, with where Squid and the exporter
# listen, the exporter's account, and how the runbooks' commands reach a gateway of its own.
# First as documented; then in a gateway of its own under --root DIR.
PATHS="
CONF         /etc/squid/squid.conf                   etc/squid.conf
FRAGMENT     /etc/squid/squidkeeper.conf             etc/squidkeeper.conf
LOGFORMAT    /etc/squid/squidkeeper-logformat.conf   etc/squidkeeper-logformat.conf
LOCAL        /etc/squid/local.conf                   etc/local.conf
ERRORS       /etc/squid/errors/squidkeeper           etc/errors
CA_CERT      /etc/squid/slicer-ca.crt                etc/ca/ca.crt
CA_KEY       /etc/squid/slicer-ca.key                etc/ca/ca.key
POLICY       /etc/squidkeeper/policy                 etc/policy
PROGRAM      /opt/squidkeeper/bin/squidkeeper        bin/squidkeeper
SSL_DB       /var/spool/squid/ssl_db                 state/ssl_db
ACCESS_LOG   /var/log/squid/access.log               log/access.log
CACHE_LOG    /var/log/squid/cache.log                log/cache.log
STATE        /var/lib/squidkeeper                    state
RUN          /run/squidkeeper                        run
PID_FILE     /run/squid.pid                          run/squid.pid
CERTGEN      /usr/lib/squid/security_file_certgen    -
OBSERVE      /etc/squidkeeper/observe                etc/observe
SUPERVISE    /opt/squidkeeper/bin/supervise          bin/supervise
EXPORTER_UNIT /etc/systemd/system/squidkeeper-exporter.service  etc/squidkeeper-exporter.service
EXPORTER_PID /run/squidkeeper/exporter.pid           run/exporter.pid
EXPORTER_LOG /var/log/squid/exporter.log             log/exporter.log
MAINTENANCE_UNIT /etc/systemd/system/squidkeeper-maintenance.service  etc/squidkeeper-maintenance.service
MAINTENANCE_PID /run/squidkeeper/maintenance.pid     run/maintenance.pid
MAINTENANCE_LOG /var/log/squid/maintenance.log       log/maintenance.log
"

# What runs beside Squid. Of each, PATHS has NAME_UNIT, NAME_PID and NAME_LOG.
SERVICES=(maintenance exporter)

usage() {
    cat <<'END'
Usage: sudo ./install.sh [OPTION...]

Installs a gateway for the egress of AI agents: Squid with SSL-bump, the squidkeeper helpers, a CA, an example policy, an
exporter for metrics, and a maintenance process.
Run it again after an update or a change: it replaces only what differs, and restarts only what must be.
A squid.conf of your own that includes squidkeeper.conf stays in force; any other is replaced, and kept beside it.

  --listen ADDRESS:PORT  where Squid listens: PORT, ADDRESS:PORT or [ADDRESS]:PORT (as installed before, else 3129)
  --open                 let Squid listen where the internet reaches it, though rules of the policy allow any client: for a
                         gateway behind a firewall. A new gateway is refused otherwise, unless --listen names an ADDRESS.
  --policy DIR           put this policy in place instead of the example; one that is in place is never overwritten
  --ca-dir DIR           use the ca.crt and ca.key in DIR, such as slicer's .slicer/ca/GROUP (else the CA in place, else
                         one is made); a different CA in place is kept beside it as *.previous
  --root DIR             a whole gateway in DIR, beside others; outside of DIR only packages are installed and, where
                         AppArmor confines Squid, its local additions extended. Never uses systemd.
  --exporter-listen ADDRESS:PORT
                         where metrics and status page are served: PORT (on 127.0.0.1), ADDRESS:PORT or [ADDRESS]:PORT (as
                         installed before, else 127.0.0.1:9129; with --root, Squid's port + 6000)
  --wheels DIR           take what Python needs from the wheels in DIR, and ask no package index. To make DIR, on a machine
                         with an index and the same distribution, in this repository:
                         /usr/bin/python3 -m pip download --only-binary :all: --dest DIR . hatchling
  --no-exporter          no exporter, now and in later runs, until --exporter-listen is given
  --log-bytes SIZE       bound the access log with its rotations, such as 20G; the oldest records are deleted. cache.log
                         may have a sixteenth of it (as installed before; auto: 8G, at most half of the file system)
  --no-start             install, but neither start nor restart Squid and the services beside it
  --uninstall            stop the gateway; remove its program, configuration, certificate store and state; put back the
                         squid.conf that was there before (and, with systemd, restart Squid with it if it parses).
                         The policy, the CA, local.conf, the logs and the packages stay: they are yours to delete.
  --help                 this text

Without --root:  /etc/squid/{squid.conf,squidkeeper.conf,squidkeeper-logformat.conf,local.conf,slicer-ca.crt,slicer-ca.key,errors/squidkeeper}
                 /etc/squidkeeper/{policy,ca,observe}  /opt/squidkeeper/bin/squidkeeper  /var/lib/squidkeeper
                 /var/log/squid  /etc/systemd/system/squidkeeper-{exporter,maintenance}.service
                 /usr/local/bin/squidkeeper, a link to the program, unless something else has that name
With --root DIR: DIR/etc/{squid.conf,squidkeeper.conf,squidkeeper-logformat.conf,local.conf,errors,policy,ca/ca.crt,ca/ca.key,observe}
                 DIR/bin/squidkeeper  DIR/state  DIR/log/{access.log,cache.log,exporter.log,maintenance.log}  DIR/run
END
}

# ── What is said, and what happens when a step fails ─────────────────────────────────────────────────────────────────

# A reader that went away (install.sh | head) is no reason to stop half-way. With the signal ignored, a command inside a pipe
# complains when its reader ends early: so no pipe here ends in `head` or `grep -q`.
trap '' PIPE
say() { printf '%-13s %s\n' "$1" "$2" 2>/dev/null || true; }

# A step has a name, which a failure is reported under, and what to do then.
step() {
    STEP=$1 ADVICE=$2
}

die() {
    printf 'install.sh: %s\n' "$1" >&2
    [ $# -eq 1 ] || ADVICE=$2
    exit 1
}

bad_usage() {
    printf 'install.sh: %s\n            ./install.sh --help tells the options.\n' "$1" >&2
    exit 2
}

# Run a command whose output matters only when it fails.
quietly() {
    "$@" >"$WORK/output" 2>&1 || {
        tail -n 20 "$WORK/output" >&2
        die "this failed: $*"
    }
}

interrupted() {
    ADVICE="it was interrupted: run it again"
    exit "$1"
}

on_exit() {
    local status=$?
    trap - EXIT
    trap '' HUP INT TERM
    set +e
    [ "$status" -eq 0 ] || fail_safely
    allow_starts
    [ -z "${WORK-}" ] || rm -rf "$WORK"
    exit "$status"
}

fail_safely() {
    {
        printf '\ninstall.sh: step "%s" failed.\n' "$STEP"
        printf '  to do: %s\n' "$ADVICE"
        if put_back; then
            printf '  What was in place before is as it was.\n'
        else
            printf '  The files are as they were, but Squid does not start with them any more: read %s\n' "$CACHE_LOG"
        fi
    } >&2
}

# ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────

read_arguments() {
    LISTEN="" EXPORTER="" LOG_BYTES="" NEW_POLICY="" CA_DIR="" WHEELS="" OPEN="" ROOT="" START=yes START_SERVICES=yes ACTION=install_gateway
    while [ $# -gt 0 ]; do
        case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        case $1 in
        --listen | --exporter-listen | --log-bytes | --policy | --ca-dir | --wheels | --root) [ -n "${2-}" ] || bad_usage "$1 needs a value" ;;
        esac
        case $1 in
        --listen) LISTEN=$(read_listen "$1" "$2") ;;
        --exporter-listen) EXPORTER=$(read_listen "$1" "$2") ;;
        --log-bytes) LOG_BYTES=$(read_size "$1" "$2") ;;
        --policy) NEW_POLICY=$(read_directory "$1" "$2") ;;
        --ca-dir) CA_DIR=$(read_directory "$1" "$2") ;;
        --wheels) WHEELS=$(read_directory "$1" "$2") ;;
        --root) ROOT=$(read_root "$2") ;;
        --open) OPEN=yes && set -- "" "$@" ;;
        --no-exporter) EXPORTER=none && set -- "" "$@" ;;
        --no-start) START=no START_SERVICES=no && set -- "" "$@" ;;
        --uninstall) ACTION=uninstall && set -- "" "$@" ;;
        --help | -h) usage && exit 0 ;;
        *) bad_usage "unknown argument: $1" ;;
        esac
        shift 2
    done
    ADDRESS_GIVEN=no
    [ "$LISTEN" = "${LISTEN##*:}" ] || ADDRESS_GIVEN=yes
    [[ ! $EXPORTER =~ ^[0-9]+$ ]] || EXPORTER=127.0.0.1:$EXPORTER
    [ -z "$NEW_POLICY" ] || check_policy_directory "$NEW_POLICY"
    [ -z "$CA_DIR" ] || check_ca_directory "$CA_DIR"
    [ -z "$WHEELS" ] || check_wheels_directory "$WHEELS"
}

# PORT, ADDRESS:PORT or [ADDRESS]:PORT, as http_port takes it.
read_listen() {
    local port=${2##*:} address=""
    [ "$port" = "$2" ] || address=${2%:*}
    if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || [ "$port" -gt 65535 ]; then
        bad_usage "$1 $2: the port is a number from 1 to 65535"
    fi
    [ "$port" = "$2" ] || [[ $address =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ || $address =~ ^\[[0-9A-Fa-f:.]+\]$ ]] ||
        bad_usage "$1 $2: ADDRESS is an IPv4 address or an IPv6 address in brackets, such as 192.168.137.1:3129"
    printf '%s' "$2"
}

read_size() {
    [[ $2 =~ ^(6[4-9]M|[7-9][0-9]M|[1-9][0-9]{2,}M|[1-9][0-9]*G|auto)$ ]] ||
        bad_usage "$1 $2: SIZE is a number of bytes such as 512M or 20G, 64M at least, or auto"
    printf '%s' "$2"
}

# ADDRESS:PORT at which this machine reaches what listens on $1.
reachable() {
    case ${1%:*} in
    "$1" | 0.0.0.0 | "[::]") printf '127.0.0.1:%s' "${1##*:}" ;;
    *) printf '%s' "$1" ;;
    esac
}

read_directory() {
    [ -d "$2" ] || bad_usage "$1 $2: there is no such directory"
    realpath "$2"
}

# squid.conf and AppArmor's profiles have no quoting that both would take.
read_root() {
    local root
    root=$(realpath -m "$1")
    [[ $root =~ ^[A-Za-z0-9/._+@-]+$ ]] || bad_usage "--root $1: use letters, digits and . _ + @ - / only"
    [ "$root" != / ] || bad_usage "--root /: leave it out for the system's own places"
    [ ! -e "$root" ] || [ -d "$root" ] || bad_usage "--root $1: this is not a directory"
    printf '%s' "$root"
}

check_policy_directory() {
    compgen -G "$1/*.yaml" >/dev/null || compgen -G "$1/*.yml" >/dev/null ||
        bad_usage "--policy $1: no *.yaml file is in it"
}

check_ca_directory() {
    local name
    for name in ca.crt ca.key; do
        [ -r "$1/$name" ] || bad_usage "--ca-dir $1: there is no readable $name in it"
    done
}

# Building squidkeeper from its sources needs hatchling; the other wheels pip names itself.
check_wheels_directory() {
    compgen -G "$1/hatchling-*.whl" >/dev/null || bad_usage "--wheels $1: no hatchling-*.whl is in it, which builds squidkeeper"
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "run it as root: sudo ./install.sh"
}

# ── Places ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# PLACES: documented path → path in this gateway. Each also gets the variable that PATHS names.
find_places() {
    local name documented rooted place
    declare -gA PLACES=()
    while read -r name documented rooted; do
        [ -n "$name" ] || continue
        place=$documented
        [ -z "$ROOT" ] || [ "$rooted" = - ] || place=$ROOT/$rooted
        PLACES[$documented]=$place
        printf -v "$name" '%s' "$place"
    done <<<"$PATHS"
    PREFIX=${ROOT:-/opt/squidkeeper}
    APPLIED=$PREFIX/applied
    EXPORTER_APPLIED=$PREFIX/applied-exporter
    MAINTENANCE_APPLIED=$PREFIX/applied-maintenance
    COMMAND=/usr/local/bin/squidkeeper
    BEFORE=$CONF.before-squidkeeper
    SERVICE=squid
    OWN_RESOLVER=127.53.53.53
    [ -z "$ROOT" ] || name_by_root "$(printf '%s' "$ROOT" | sha256sum)"
}

# Gateways beside each other have a service name and a loopback address of their own, the same in each run.
name_by_root() {
    SERVICE=sk${1:0:16}
    OWN_RESOLVER=127.$((64 + 16#${1:0:2} % 128)).$((16#${1:2:2})).$((1 + 16#${1:4:2} % 254))
}

# A folder for what is prepared, and for what it replaces. Squid's account must be able to read it.
begin() {
    cd /
    PUT=() TOUCHED=no WAS_RUNNING=no
    declare -gA SERVICE_TOUCHED=([exporter]=no [maintenance]=no) SERVICE_WAS_RUNNING=()
    ! squid_runs || WAS_RUNNING=yes
    local service
    for service in "${SERVICES[@]}"; do
        ! service_runs "$service" || SERVICE_WAS_RUNNING[$service]=yes
    done
    WORK=$(mktemp -d /run/squidkeeper-install.XXXXXX)
    chmod 755 "$WORK"
    mkdir "$WORK/old"
    chmod 700 "$WORK/old"
}

# One run at a time for each gateway.
lock() {
    make_directory "$PREFIX"
    exec 9<"$PREFIX"
    flock -n 9 || die "another run of install.sh is at work on $PREFIX" "wait for it"
}

# ── Packages and what they bring ─────────────────────────────────────────────────────────────────────────────────────

install_packages() {
    local missing
    if command -v apt-get >/dev/null; then
        missing=$(missing_parts squid-openssl python3-venv)
        [ -z "$missing" ] || apt_install "$missing"
    elif command -v dnf >/dev/null; then
        missing=$(missing_parts squid python3.12) # RHEL's own python3 is too old; Fedora's is not, and found
        # shellcheck disable=SC2086 # one word a package
        [ -z "$missing" ] || quietly dnf install -y --quiet $missing
    else
        die "neither apt-get nor dnf is here" "use Debian, Ubuntu, Fedora or RHEL, or install Squid with OpenSSL by hand as squid/INSTALL.md says"
    fi
    [ -z "$missing" ] || [ -z "$(missing_parts squid python)" ] || die "Squid with OpenSSL, openssl or a Python is missing still: $(missing_parts squid python)"
    say packages "${missing:-there}"
}

# Packages for what does not work yet, by the names that this distribution has for Squid and Python.
missing_parts() {
    squid_with_openssl || printf '%s ' "$1"
    find_python >/dev/null || printf '%s ' "$2"
    command -v openssl >/dev/null || printf 'openssl '
}

apt_install() {
    quietly apt-get update
    # shellcheck disable=SC2086 # one word a package
    quietly apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 $1 ca-certificates
}

# Debian starts and enables what it installs. unbound's own service would take port 53 of 127.0.0.1, and with the package
# resolvconf the host's resolv.conf. Where the package was there before, its service stays as it is.
install_unbound() {
    [ "$RESOLVER" != none ] && [ ! -x /usr/sbin/unbound ] || return 0
    if command -v apt-get >/dev/null; then
        deny_starts
        apt_install unbound
        allow_starts
        ! command -v systemctl >/dev/null || quietly systemctl disable unbound.service unbound-resolvconf.service
        ! command -v update-rc.d >/dev/null || quietly update-rc.d unbound disable
    else
        quietly dnf install -y --quiet unbound
    fi
    say resolver "the package unbound is installed, its own service disabled"
}

# policy-rc.d(8): no package starts a service meanwhile.
deny_starts() {
    [ ! -e /usr/sbin/policy-rc.d ] || return 0
    DENIES_STARTS=yes
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
}

allow_starts() {
    [ -z "${DENIES_STARTS-}" ] || rm -f /usr/sbin/policy-rc.d
    DENIES_STARTS=""
}

# Read whole: with pipefail a grep that stops early would make squid the failure.
squid_with_openssl() {
    local version
    version=$(squid -v 2>/dev/null) && [[ $version == *--with-openssl* && $version == *ssl-crtd* ]]
}

# The distribution's own Python: one of pyenv's or conda's, first on PATH, may lie where Squid's account cannot read.
find_python() {
    local python least
    least=$(sed -n 's/^requires-python *= *">= *\([0-9]*\)\.\([0-9]*\).*/(\1, \2)/p' "$SOURCE/pyproject.toml")
    for python in /usr/bin/python3 /usr/bin/python3.[0-9][0-9]; do
        [ -x "$python" ] || continue
        "$python" -I -c "import sys, ensurepip, venv; sys.exit(sys.version_info[:2] < $least)" 2>/dev/null || continue
        echo "$python" && return
    done
    return 1
}

# What differs between distributions is asked of the Squid that is installed.
ask_squid() {
    PYTHON=$(find_python)
    ACCOUNT=$(build_option with-default-user)
    id "$ACCOUNT" >/dev/null 2>&1 || die "Squid's account '$ACCOUNT' does not exist" "install the distribution's own Squid"
    GROUP=$(id -gn "$ACCOUNT")
    CERTGEN=$(first_of "$(build_option libexecdir)/security_file_certgen" /usr/{lib,lib64,libexec}/squid/security_file_certgen)
    PLACES[/usr/lib/squid/security_file_certgen]=$CERTGEN
    STOCK_ERRORS=$(first_of {"$(build_option datadir)",/usr/share/squid}/errors/{templates,en})
}

build_option() {
    squid -v | tr -s " '" '\n' | sed -n "s/^--$1=//p" | sed -n 1p
}

first_of() {
    local path
    for path in "$@"; do
        [ ! -e "$path" ] || { echo "$path" && return; }
    done
    die "none of these exists: $*" "install the distribution's own Squid"
}

as_squid() { runuser -u "$ACCOUNT" -- "$@"; }

# ── Directories ──────────────────────────────────────────────────────────────────────────────────────────────────────

make_directories() {
    [ -z "$ROOT" ] || check_way_to "$ROOT"
    lock
    local place
    for place in "$CONF" "$ERRORS" "$POLICY" "$CA_CERT" "$PROGRAM"; do
        make_directory "$(dirname "$place")"
    done
    own_directory 750 "$(dirname "$ACCESS_LOG")"
    own_directory 750 "$STATE"
    own_directory 755 "$RUN"
}

# Squid leaves root behind, and its helpers never are root: their account must get through every parent.
check_way_to() {
    [ "$1" = / ] || check_way_to "$(dirname "$1")"
    [ ! -d "$1" ] || as_squid test -x "$1" ||
        die "Squid's account $ACCOUNT cannot enter $1" "chmod o+x $1, or choose another --root, such as /srv/gateway"
}

# With what is missing above it. A run that fails takes it away again.
make_directory() {
    [ ! -d "$1" ] || return 0
    make_directory "$(dirname "$1")"
    mkdir "$1"
    PUT+=("$1")
}

own_directory() {
    [ ! -d "$2" ] || return 0
    make_directory "$2"
    chmod "$1" "$2"
    chown "$ACCOUNT:$GROUP" "$2"
}

# What runs on holds its place in the state, and makes none anew where it was moved away. Squid's account owns what is in it, and
# could have put a link there, a hard one to a file of root's as well: so root only makes what is gone by that account, and gives it
# a folder only.
open_state() {
    local counts=$STATE/exporter
    if ! can_write "$STATE"; then
        chown "$ACCOUNT:$GROUP" "$STATE"
        chmod 750 "$STATE"
        say state "given to $ACCOUNT: $STATE"
    fi
    [ "$EXPORTER" != none ] || return 0
    if [ ! -e "$counts" ]; then
        as_squid mkdir -m 750 "$counts"
        PUT+=("$counts")
    elif [ -L "$counts" ] || [ ! -d "$counts" ]; then
        die "$counts is not a folder" "move it away"
    elif ! can_write "$counts"; then
        chown -h "$ACCOUNT:$GROUP" "$counts"
        as_squid chmod 750 "$counts"
        say state "given to $ACCOUNT: $counts"
    fi
}

# Squid reads files of the state folder that the maintenance process keeps up to date.
prepare_state() { quietly as_squid "$VENV/bin/squidkeeper" maintain --prepare --state "$1"; }

can_write() { as_squid test -r "$1" -a -w "$1" -a -x "$1"; }

# ── The program ──────────────────────────────────────────────────────────────────────────────────────────────────────

# Each version of the sources has a virtual environment of its own, beside the one whose helpers run.
prepare_program() {
    VENV=$PREFIX/venv-$(sources_hash)
    if [ -e "$VENV/complete" ]; then
        say program "as built before in $VENV"
    else
        build_venv
        say program "built in $VENV with $PYTHON"
    fi
    ln -s "../${VENV##*/}/bin/squidkeeper" "$WORK/program"
    check_readable "$VENV"
    ADVICE="see the lines above; with $VENV moved away, it is built anew"
    quietly as_squid "$VENV/bin/squidkeeper" --help
}

# Modes may have been changed since it was built. The first that Squid's account cannot read or enter is named.
check_readable() {
    local closed
    closed=$(as_squid find -H "$1" ! -type l \( ! -readable -o -type d ! -executable \) -print -quit 2>/dev/null) || true
    [ -z "$closed" ] || die "Squid's account $ACCOUNT cannot read $closed" "chmod -R go+rX $1"
}

sources_hash() {
    (
        cd "$SOURCE"
        "$PYTHON" -VV
        find pyproject.toml helpers -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -c 1-12
}

# From a copy: building in the checkout would leave files of root's there.
build_venv() {
    local file wheels=()
    if [ -n "$WHEELS" ]; then
        unset "${!PIP_@}" # what pip is set to could name an index, or another place for wheels
        export PIP_CONFIG_FILE=/dev/null
        wheels=(--no-index --find-links "$WHEELS")
        ADVICE="every wheel must be for $("$PYTHON" -V) and this architecture: make the folder again with that version, as --help says"
    fi
    mkdir "$WORK/sources"
    for file in pyproject.toml helpers README.md LICENSE; do
        [ ! -e "$SOURCE/$file" ] || cp -R "$SOURCE/$file" "$WORK/sources"
    done
    rm -rf "$VENV"
    make_directory "$VENV"
    quietly "$PYTHON" -m venv "$VENV"
    # Wheels alone: a source package could want a compiler, or fetch from elsewhere than the index. Compiled to bytecode now:
    # Squid's account may not write it later.
    quietly "$VENV/bin/pip" --quiet --disable-pip-version-check install "${wheels[@]}" --only-binary :all: --compile "$WORK/sources"
    touch "$VENV/complete"
}

# Before anything is replaced, a new program answers a question as Squid asks it, by Squid's account. Any verdict will do.
try_program() {
    [ ! -e "$VENV/answered" ] || return 0
    local policy=$POLICY answer
    [ ! -e "$WORK/policy" ] || policy=$WORK/policy
    mkdir "$WORK/try"
    chown "$ACCOUNT:$GROUP" "$WORK/try"
    answer=$(as_squid "$VENV/bin/squidkeeper" acl --scope host --concurrency 16 --policy "$policy" --state "$WORK/try" \
        <<<"1 127.0.0.1 - CONNECT - squidkeeper.invalid 443 - - -" 2>"$WORK/output") || true
    if [[ ! $answer =~ ^1\ (OK|ERR)\  ]]; then
        cat "$WORK/output" >&2
        die "the program does not answer: expected '1 OK …' or '1 ERR …', got '$answer'"
    fi
    touch "$VENV/answered"
}

# The environment before this one stays until the next run, and as long as a process runs from it: Squid may not have been told of
# the new one yet (--no-start, a squid.conf of yours), and its helpers load modules as they need them.
remove_old_venvs() {
    local venv
    for venv in "$PREFIX"/venv-*; do
        [ "$venv" = "$VENV" ] || [ "$venv" = "$OLD_VENV" ] || is_in_use "$venv" || rm -rf "$venv"
    done
}

is_in_use() { grep -qs "$1/[b]in/" /proc/[0-9]*/cmdline; } # [b], so that the command line of grep itself does not match

# ── The CA and its certificate store ─────────────────────────────────────────────────────────────────────────────────

prepare_ca() {
    local from="in place"
    mkdir "$WORK/ca"
    if [ -n "$CA_DIR" ]; then
        from="from $CA_DIR"
        cp "$CA_DIR/ca.crt" "$CA_DIR/ca.key" "$WORK/ca"
    elif [ -e "$CA_CERT" ] || [ -e "$CA_KEY" ]; then
        require_file "$CA_CERT" && require_file "$CA_KEY"
        cp "$CA_CERT" "$WORK/ca/ca.crt"
        cp "$CA_KEY" "$WORK/ca/ca.key"
    else
        from="made, for ten years"
        make_ca
    fi
    check_ca
    chown "$ACCOUNT:$GROUP" "$WORK/ca/ca.crt" "$WORK/ca/ca.key"
    chmod 644 "$WORK/ca/ca.crt"
    say CA "$from: $CA_CERT"
}

require_file() {
    [ -e "$1" ] || die "$1 is missing, and its other half is there" "put it there, give both by --ca-dir, or move the other half away for a new CA"
}

make_ca() {
    cat >"$WORK/ca.conf" <<-END
		[req]
		distinguished_name = name
		x509_extensions = ca
		[name]
		[ca]
		basicConstraints = critical, CA:TRUE, pathlen:0
		keyUsage = critical, keyCertSign, cRLSign
		subjectKeyIdentifier = hash
	END
    # P-256: Squid gives every leaf the CA's key, so its kind decides what a tunnel costs (tests/bench/bench.py --load fresh).
    (umask 077 && openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$WORK/ca/ca.key")
    quietly openssl req -x509 -new -config "$WORK/ca.conf" -sha256 -days "$CA_DAYS" -subj "$CA_SUBJECT" \
        -key "$WORK/ca/ca.key" -out "$WORK/ca/ca.crt"
}

check_ca() {
    local crt=$WORK/ca/ca.crt key=$WORK/ca/ca.key
    chmod 600 "$key"
    openssl x509 -in "$crt" -noout 2>/dev/null || die "ca.crt is not a certificate in PEM form"
    openssl pkey -in "$key" -passin pass: -noout 2>/dev/null || die "ca.key is not a private key in PEM form without a passphrase"
    [ "$(openssl x509 -in "$crt" -noout -pubkey)" = "$(openssl pkey -in "$key" -pubout)" ] ||
        die "ca.key is not the key of ca.crt"
    [[ $(openssl x509 -in "$crt" -noout -ext basicConstraints 2>/dev/null) == *CA:TRUE* ]] ||
        die "ca.crt is not the certificate of a CA (basicConstraints CA:TRUE is missing)"
    openssl x509 -in "$crt" -noout -checkend 0 >/dev/null || die "ca.crt has expired"
}

# Leaves in the store are signed by the CA that was in force when they were made: another CA needs a new store. Each store has
# a copy of its CA's certificate in it, as the one in place may have been put there by hand. One without it could be any CA's.
prepare_certificate_store() {
    ! cmp -s "$WORK/ca/ca.crt" "$SSL_DB/ca.crt" || return 0
    mkdir "$WORK/store"
    chown "$ACCOUNT:$GROUP" "$WORK/store"
    quietly as_squid "$CERTGEN" -c -s "$WORK/store/ssl_db" -M 4MB
    quietly as_squid cp "$WORK/ca/ca.crt" "$WORK/store/ssl_db" # in a folder of that account, where root could follow a link
}

# ── The policy ───────────────────────────────────────────────────────────────────────────────────────────────────────

prepare_policy() {
    local policy=$POLICY
    if [ -e "$POLICY" ]; then
        say policy "kept: $POLICY"
        [ -z "$NEW_POLICY" ] || diff -rq "$NEW_POLICY" "$POLICY" >/dev/null 2>&1 ||
            say "" "it differs from $NEW_POLICY, and one in place is never overwritten: move it away, or edit it"
    else
        policy=$WORK/policy
        cp -RL "${NEW_POLICY:-$SOURCE/policy}" "$policy"
        chown -R "root:$GROUP" "$policy"
        chmod -R u=rwX,g=rX,o= "$policy"
        say policy "from ${NEW_POLICY:-$SOURCE/policy}: $POLICY"
    fi
    check_policy "$policy"
}

# As Squid's account: what it cannot read is as wrong as a fault.
check_policy() {
    local line loads=yes
    as_squid "$VENV/bin/squidkeeper" check --policy "$1" --state "$STATE" >"$WORK/output" 2>&1 || loads=no
    sed -i "s|$WORK/policy|${NEW_POLICY:-$SOURCE/policy}|g" "$WORK/output"
    if [ "$loads" = no ]; then
        cat "$WORK/output" >&2
        die "the policy does not load, as Squid's account $ACCOUNT reads it"
    fi
    while read -r line; do say "" "$line"; done <"$WORK/output"
}

# ── The configuration ────────────────────────────────────────────────────────────────────────────────────────────────

prepare_configuration() {
    [ -n "$LISTEN" ] || LISTEN=$(installed_listen)
    [ -n "$LISTEN" ] || LISTEN=3129
    if is_yours_with_ours; then START=no; fi
    render "$SOURCE/squid/squidkeeper-logformat.conf" PLACES >"$WORK/logformat.conf"
    { name_logformat && render "$SOURCE/squid/squidkeeper.conf" PLACES; } >"$WORK/squidkeeper.conf"
    [ -e "$LOCAL" ] || write_local_conf >"$WORK/local.conf"
    mkdir "$WORK/errors"
    cp -RL "$STOCK_ERRORS/." "$WORK/errors"
    cp -R "$SOURCE/squid/errors/." "$WORK/errors"
    chmod -R u=rwX,go=rX "$WORK/errors"
}

# Our squid.conf includes the format of the record by itself, ahead of local.conf. A squid.conf of yours that includes the fragment
# alone gets it by the fragment: Squid takes a second definition for an error.
name_logformat() { ! is_yours_with_ours || names "$CONF" "$LOGFORMAT" || echo "include $LOGFORMAT"; }

# Where the gateway in place listens; if squid.conf is not ours now, where ours last did.
installed_listen() {
    if is_ours "$CONF"; then listen_of "$CONF"; else sed 's/ .*//' "$APPLIED" 2>/dev/null || true; fi
}

is_ours() {
    [ -e "$1" ] && [ "$(head -n 1 "$1")" = "$MARK" ]
}

# A squid.conf of yours that includes our fragment stays in force, and is yours to start Squid with.
is_yours_with_ours() { ! is_ours "$CONF" && names "$CONF" "$FRAGMENT"; }

listen_of() {
    sed -n 's/^http_port[[:space:]]\{1,\}\([^[:space:]]*\).*/\1/p' "$1" | sed -n 1p
}

# A file of squid/ with the documented paths replaced, by way of marks: no replacement is replaced again.
render() {
    local -n places=$2
    local documented to_marks="" from_marks="" n=0
    for documented in "${!places[@]}"; do
        n=$((n + 1))
        to_marks+="s|${documented//./\\.}|<<place $n>>|g;"
        from_marks+="s|<<place $n>>|${places[$documented]}|g;"
    done
    sed -e "s|^http_port 3129\>|http_port $LISTEN|;$to_marks" -e "$from_marks" "$1"
}

# How this gateway's Squid is spoken to by hand.
squid_command() { if [ -z "$ROOT" ]; then echo squid; else echo "squid -n $SERVICE -f $CONF"; fi; }

write_local_conf() {
    local again="./install.sh" squid
    [ -z "$ROOT" ] || again="./install.sh --root $ROOT"
    squid=$(squid_command)
    cat <<-END
		# Your own Squid lines, included by squid.conf. install.sh made this file once and never overwrites it.
		# After an edit, this checks it and tells Squid: sudo $again
		# Or: sudo $squid -k parse && sudo $squid -k reconfigure

		# Name servers that Squid asks itself, instead of the gateway's own resolver, which forwards to the host's. Run
		# install.sh after such an edit: it takes its own line out of squid.conf, and Squid would ask both.
		#dns_nameservers 192.0.2.53

		# A CA of your own in front of the internet, or of internal servers (besides the system's):
		#tls_outgoing_options cafile=/etc/ssl/certs/ca-certificates.crt

		# The record, sent to a collector too (by UDP, which may lose lines):
		#access_log udp://192.0.2.20:5140 logformat=squidkeeper buffer-size=0bytes !sk_scrape

		# Answers kept in memory, and served to every client with access to the same URL (never those that a credential opened):
		#cache allow all

		# A parent proxy that everything must go through:
		#cache_peer proxy.example.net parent 3128 0 no-query default
		#never_direct allow all
	END
}

# The same files, naming each other where they are prepared, and the program where it was built.
# shellcheck disable=SC2034 # render reads staged by its name
parse_configuration() {
    local documented
    local -A staged=()
    for documented in "${!PLACES[@]}"; do staged[$documented]=${PLACES[$documented]}; done
    staged[/etc/squid/squid.conf]=$WORK/parse/squid.conf
    staged[/etc/squid/squidkeeper.conf]=$WORK/parse/squidkeeper.conf
    staged[/etc/squid/squidkeeper-logformat.conf]=$WORK/logformat.conf
    [ ! -e "$WORK/local.conf" ] || staged[/etc/squid/local.conf]=$WORK/local.conf
    staged[/etc/squid/errors/squidkeeper]=$WORK/errors
    staged[/etc/squid/slicer-ca.crt]=$WORK/ca/ca.crt
    staged[/etc/squid/slicer-ca.key]=$WORK/ca/ca.key
    staged[/opt/squidkeeper/bin/squidkeeper]=$VENV/bin/squidkeeper
    mkdir "$WORK/parse"
    render "$SOURCE/squid/squid.conf" staged >"$WORK/parse/squid.conf"
    render "$SOURCE/squid/squidkeeper.conf" staged | sed "s|$STATE/own-addresses|$WORK/state/own-addresses|" >"$WORK/parse/squidkeeper.conf"
    mkdir "$WORK/state"
    chown "$ACCOUNT:$GROUP" "$WORK/state"
    prepare_state "$WORK/state"
    squid_accepts "$WORK/parse/squid.conf"
    if is_yours_with_ours; then
        say configuration "the fragment accepted by squid -k parse in our squid.conf, listening on $LISTEN; yours was not checked"
    else
        say configuration "accepted by squid -k parse, listening on $LISTEN"
    fi
    tell_warnings
    choose_resolver
    { echo "$MARK" && render "$SOURCE/squid/squid.conf" PLACES | name_resolver; } >"$WORK/squid.conf"
}

# What squid -k parse has read, includes of local.conf as well: Squid joins all dns_nameservers lines, and would ask both.
choose_resolver() {
    RESOLVER=$OWN_RESOLVER
    if reads_local_conf && grep -q '| Processing: dns_nameservers ' "$WORK/output"; then
        RESOLVER=none
        say resolver "as $LOCAL says, by dns_nameservers"
    fi
}

# Ours includes local.conf. A squid.conf of yours may not.
reads_local_conf() { ! is_yours_with_ours || names "$CONF" "$LOCAL"; }

# The squid.conf or unit on standard input, with the resolver's address, or without it.
name_resolver() {
    if [ "$RESOLVER" = none ]; then
        sed "s| --resolver 127\.53\.53\.53||; s|^#dns_nameservers 127\.53\.53\.53$|# Left out: $LOCAL has a dns_nameservers line.|"
    else
        sed "s|^#dns_nameservers 127\.53\.53\.53$|dns_nameservers 127.53.53.53|; s|127\.53\.53\.53|$RESOLVER|"
    fi
}

# Squid reports some faults, such as a missing program, and still exits 0.
squid_accepts() {
    if ! squid -n "$SERVICE" -k parse -f "$1" >"$WORK/output" 2>&1 || grep -Eq '\| (FATAL|ERROR): ' "$WORK/output"; then
        grep -E '\| (FATAL|ERROR): |unrecognized: ' "$WORK/output" | sed "s|$WORK/parse/|prepared |g" >&2
        die "squid -k parse does not accept the configuration"
    fi
}

# Of our own lines squid -k parse has none: it warns of what local.conf has, such as a CA file that it cannot read and goes on without.
tell_warnings() {
    local line
    while read -r line; do say "" "$line"; done < <(sed -n 's/^.*| \(WARNING: \)/\1/p' "$WORK/output")
}

# ── AppArmor ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# The programs that Debian's AppArmor confines, and that get lines of ours.
CONFINED=(squid unbound)

apparmor_confines() {
    [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ] && [ -e "/etc/apparmor.d/usr.sbin.$1" ] &&
        [ ! -e "/etc/apparmor.d/disable/usr.sbin.$1" ] && command -v apparmor_parser >/dev/null
}

apparmor_additions() { echo "/etc/apparmor.d/local/usr.sbin.$1"; }

# Our lines in the local additions stand between two marks that name the gateway.
open_apparmor() {
    apparmor_confines "$1" || return 0
    {
        other_apparmor_lines "$1"
        echo "# squidkeeper $PREFIX begin"
        "apparmor_lines_of_$1"
        echo "# squidkeeper $PREFIX end"
    } >"$WORK/apparmor"
    ! same "$WORK/apparmor" "$(apparmor_additions "$1")" || return 0
    put "$WORK/apparmor" "$(apparmor_additions "$1")"
    quietly reload_apparmor "$1"
    say AppArmor "lets $1 use $PREFIX ($(apparmor_additions "$1"))"
}

# What this script's own layout needs beyond the documented paths: AppArmor goes by a link's target.
apparmor_lines_of_squid() {
    render "$SOURCE/squid/apparmor" PLACES
    echo "$PREFIX/venv-*/bin/squidkeeper Ux,"
    echo "/run/squidkeeper-install.*/** r,"
    [ -z "$ROOT" ] || printf '%s,\n' "$ROOT/etc/** r" "$ROOT/log/* rw" "$ROOT/run/* rwk" "$ROOT/state/** rwk"
}

apparmor_lines_of_unbound() { echo "$STATE/resolver/* r,"; }

other_apparmor_lines() {
    local additions
    additions=$(apparmor_additions "$1")
    [ ! -e "$additions" ] || sed "\|^# squidkeeper $PREFIX begin\$|,\|^# squidkeeper $PREFIX end\$|d" "$additions"
}

reload_apparmor() { apparmor_parser -r "/etc/apparmor.d/usr.sbin.$1"; }

# ── Putting it in place, and back ────────────────────────────────────────────────────────────────────────────────────

# Put a prepared file, link or directory in place, by rename; what equals it already stays. What was there is kept until the end.
put() { same "$1" "$2" || replace "$1" "$2"; }

replace() {
    if [ -e "$2" ] || [ -L "$2" ]; then cp -a "$2" "$WORK/old/${#PUT[@]}"; fi
    PUT+=("$2")
    rm -rf "$2.new"
    mv -T "$1" "$2.new"
    [ ! -d "$2" ] || [ -L "$2" ] || rm -rf "$2"
    mv -fT "$2.new" "$2"
}

# Take away what is in place. It is kept until the end.
take_away() {
    [ -e "$1" ] || return 0
    cp -a "$1" "$WORK/old/${#PUT[@]}"
    PUT+=("$1")
    rm -rf "$1"
}

# Equal in content, or in target, and in mode and owner.
same() {
    if [ -L "$1" ]; then [ "$(readlink "$1")" = "$(readlink "$2")" ] && return; fi
    [ -e "$2" ] && [ ! -L "$1" ] && diff -rq "$1" "$2" >/dev/null 2>&1 &&
        [ "$(stat -c '%a %u %g' "$1")" = "$(stat -c '%a %u %g' "$2")" ]
}

put_all() {
    OLD_VENV=$(dirname "$(dirname "$(readlink -f "$PROGRAM")")")
    keep_before
    is_yours_with_ours || put "$WORK/squid.conf" "$CONF"
    put "$WORK/logformat.conf" "$LOGFORMAT"
    put "$WORK/squidkeeper.conf" "$FRAGMENT"
    [ ! -e "$WORK/local.conf" ] || put "$WORK/local.conf" "$LOCAL"
    put "$WORK/errors" "$ERRORS"
    put "$WORK/ca/ca.crt" "$CA_CERT"
    put "$WORK/ca/ca.key" "$CA_KEY"
    [ ! -e "$WORK/store" ] || put "$WORK/store/ssl_db" "$SSL_DB"
    [ ! -e "$WORK/policy" ] || put "$WORK/policy" "$POLICY"
    put "$WORK/program" "$PROGRAM"
    put_services
    open_state
    prepare_state "$STATE"
    [ -n "$ROOT" ] || link_ca
    [ -n "$ROOT" ] || link_program
    [ -n "$ROOT" ] || label_for_selinux
}

# Without --root the CA lives where the walkthrough has it; its other name is the one that it has under --root.
link_ca() {
    make_directory /etc/squidkeeper/ca
    ln -s "$CA_CERT" "$WORK/ca.crt" && put "$WORK/ca.crt" /etc/squidkeeper/ca/ca.crt
    ln -s "$CA_KEY" "$WORK/ca.key" && put "$WORK/ca.key" /etc/squidkeeper/ca/ca.key
}

# For everybody's PATH. The name may be somebody else's already.
link_program() {
    if [ ! -e "$COMMAND" ] && [ ! -L "$COMMAND" ] || is_our_command; then
        make_directory "$(dirname "$COMMAND")"
        ln -s "$PROGRAM" "$WORK/command" && put "$WORK/command" "$COMMAND"
    else
        say command "$COMMAND is not squidkeeper's and stays: the program is $PROGRAM"
    fi
}

is_our_command() { [ -z "$ROOT" ] && [ "$(readlink "$COMMAND")" = "$PROGRAM" ]; }

# Under SELinux, systemd's Squid may write only what is labelled as its own. (One under --root runs unconfined.)
label_for_selinux() {
    selinuxenabled 2>/dev/null || return 0
    quietly restorecon -R "$PREFIX" "$(dirname "$CONF")" /etc/squidkeeper "$SSL_DB"
    quietly chcon -R -t squid_cache_t "$STATE"
}

# A squid.conf of yours stays beside ours; so does one of ours that was edited, and a CA that another replaces.
keep_before() {
    if is_yours_with_ours; then
        say squid.conf "yours, which includes $FRAGMENT, stays in force"
    elif [ -e "$CONF" ] && ! is_ours "$CONF"; then
        if [ -e "$BEFORE" ] && ! cmp -s "$CONF" "$BEFORE"; then keep "$BEFORE" "$BEFORE.previous"; fi
        keep "$CONF" "$BEFORE"
        [ ! -e "$APPLIED" ] || sed -i 's/ .*//' "$APPLIED" # what Squid was told since is not known: it restarts
        say squid.conf "what was there is kept as $BEFORE"
    elif [ -e "$CONF" ] && ! same "$WORK/squid.conf" "$CONF"; then
        keep "$CONF" "$CONF.previous"
    fi
    if [ -e "$CA_CERT" ] && ! cmp -s "$WORK/ca/ca.crt" "$CA_CERT"; then
        keep "$CA_CERT" "$CA_CERT.previous"
        keep "$CA_KEY" "$CA_KEY.previous"
    fi
}

keep() {
    cp -a "$1" "$WORK/kept"
    put "$WORK/kept" "$2"
}

# Undo every put and every directory made, newest first, and give Squid what it had.
put_back() {
    local n service
    [ "$TOUCHED" = no ] || ! squid_runs || (stop_squid)
    for service in "${SERVICES[@]}"; do
        [ "${SERVICE_TOUCHED[$service]}" = no ] || (stop_service "$service")
    done
    for ((n = ${#PUT[@]} - 1; n >= 0; n--)); do
        rm -rf "${PUT[n]}" "${PUT[n]}.new"
        if [ -e "$WORK/old/$n" ] || [ -L "$WORK/old/$n" ]; then cp -a "$WORK/old/$n" "${PUT[n]}"; fi
        [[ ${PUT[n]} != /etc/apparmor.d/local/usr.sbin.* ]] || reload_apparmor "${PUT[n]##*.}"
    done
    for service in "${SERVICES[@]}"; do
        [ "${SERVICE_TOUCHED[$service]}" = yes ] || continue
        ! has_systemd || systemctl daemon-reload
        [ -z "${SERVICE_WAS_RUNNING[$service]-}" ] || start_service "$service"
    done
    [ "$TOUCHED" = yes ] && [ "$WAS_RUNNING" = yes ] || return 0
    LISTEN=$(listen_of "$CONF")
    start_squid && squid_came_up || return
    [ ! -e "$APPLIED" ] || touch "$APPLIED" # Squid has read what was put back: it is no news to the next run
}

# ── Squid ────────────────────────────────────────────────────────────────────────────────────────────────────────────

has_systemd() { [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }

squid_pid() { cat "$PID_FILE" 2>/dev/null; }

squid_runs() {
    local pid
    pid=$(squid_pid) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = squid ]
}

start_squid() {
    if has_systemd; then
        systemctl enable --quiet squid && systemctl restart squid
    else
        squid -n "$SERVICE" -f "$CONF" 9<&-
        wait_until 10 squid_runs || true # it has gone into the background, and writes its pid file there
    fi
}

# Squid waits for its clients for shutdown_lifetime; a second signal ends that.
stop_squid() {
    local pid
    pid=$(squid_pid)
    if has_systemd; then
        systemctl stop squid
    else
        kill -TERM "$pid"
        wait_until 10 gone "$pid" || kill -INT "$pid"
    fi
    wait_until 30 gone "$pid" || die "Squid (process $pid) does not end"
}

# Ended; its parent may not have noticed yet.
gone() { ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }

wait_until() {
    local tries=$(($1 * 10))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# Can one listen on $1, or with a second argument receive datagrams there? 0 yes; 1 somebody does; 2 the address is not this machine's.
can_listen() {
    "$PYTHON" -I - "$@" <<-'END'
		import errno, socket, sys
		address, _, port = sys.argv[1].rpartition(":")
		both = not address and socket.has_dualstack_ipv6()
		family = socket.AF_INET6 if both or "[" in address else socket.AF_INET
		try:
		    if sys.argv[2:]:
		        socket.socket(family, socket.SOCK_DGRAM).bind((address, int(port)))
		    else:
		        socket.create_server((address.strip("[]"), int(port)), family=family, dualstack_ipv6=both)
		except OSError as error:
		    sys.exit(1 if error.errno == errno.EADDRINUSE else 2)
	END
}

# Before anything is replaced: a Squid that cannot listen ends at once.
check_listen() {
    [ "$START" = no ] || check_one_listen "$LISTEN" --listen squid_pid
    [ "$START_SERVICES" = no ] || [ "$RESOLVER" = none ] || check_resolver
    [ "$START_SERVICES" = no ] || [ "$EXPORTER" = none ] || check_one_listen "$EXPORTER" --exporter-listen "service_pid exporter"
}

# An open proxy: the internet reaches where Squid listens, and the policy allows requests of any client. A new one is refused,
# unless it was asked for; one in place goes on with a warning, and so does a squid.conf of yours.
check_open() {
    local listen=$LISTEN policy=$POLICY public rules line
    ! is_yours_with_ours || listen=$(listen_of "$CONF")
    [ ! -e "$WORK/policy" ] || policy=$WORK/policy
    public=$(public_addresses "$listen")
    [ -n "$public" ] || return 0
    ! as_squid "$VENV/bin/squidkeeper" check --require-clients --policy "$policy" --state "$STATE" >"$WORK/output" 2>&1 || return 0
    rules=$(sed -n "s|$WORK/policy|${NEW_POLICY:-$SOURCE/policy}|g; s/: warning: \(.* allows any client\)/: \1/p" "$WORK/output")
    public="an open proxy: Squid listens on $listen, which the internet reaches at $public, and the policy allows any client"
    if [ -n "$OPEN" ] || [ "$ADDRESS_GIVEN" = yes ] || [ -e "$FRAGMENT" ] || is_yours_with_ours; then
        say WARNING "$public"
        while read -r line; do say "" "$line"; done <<<"$rules"
        return
    fi
    printf '%s\n' "$rules" >&2
    die "$public (see the lines above)" "--listen ADDRESS:PORT with the address that the VMs reach, such as 192.168.137.1:3129; or clients in those rules (--policy DIR); or --open where a firewall keeps others out"
}

# The addresses at which the internet reaches what listens on $1, joined by commas.
public_addresses() {
    "$VENV/bin/python" -I -c 'import sys
from squidkeeper.maintenance.own_addresses import reached_at
print(*reached_at(sys.argv[1]), sep=", ")' "$1"
}

# The address, the option that gives it, and what tells the process that may listen there already.
check_one_listen() {
    local status=0
    can_listen "$1" || status=$?
    case $status in
    0) ;;
    1) process_listens "$($3)" "${1##*:}" || die "something else listens on $1 already" "end it, or choose another $2" ;;
    *) die "$1 is not an address of this machine (yet)" "set the network up first, choose another $2, or install with --no-start" ;;
    esac
}

# dns_nameservers takes no port, so it must be 53. Our own resolver may be there already.
check_resolver() {
    ! process_listens "$(service_pid maintenance || true)" 53 || return 0
    { can_listen "$RESOLVER:53" && can_listen "$RESOLVER:53" udp; } ||
        die "something else listens on port 53 of every address, or of $RESOLVER: $(ss -Hlnup 'sport = :53' | awk '{ print $4, $6 }' | paste -sd ' ')" \
            "let it listen on its own addresses alone (dnsmasq: bind-interfaces; BIND: listen-on), or name it in $LOCAL, by dns_nameservers"
}

# Start, restart or reconfigure Squid, or leave it alone: as what it was last told differs from what is there now.
apply() {
    local told now
    if is_yours_with_ours; then say squid "not told yet, as its squid.conf is yours: squid -k parse && squid -k reconfigure (or start it)" && return; fi
    if [ "$START" = no ]; then
        [ "$(sed 's/ .*//' "$APPLIED" 2>/dev/null)" = "$LISTEN" ] || echo "$LISTEN" >"$APPLIED" # for a later run to go on with
        say squid "not started (--no-start)" && return
    fi
    told=$(cat "$APPLIED" 2>/dev/null || true)
    now=$(what_squid_reads)
    echo "$now" >"$WORK/applied" # dated before Squid is told: what is written from now on is news to the next run
    if ! squid_runs; then
        bring_up "started"
    elif [ "${told% *}" != "${now% *}" ]; then
        TOUCHED=yes
        stop_squid
        bring_up "restarted"
    elif [ "$told" != "$now" ] || written_since_applied; then
        TOUCHED=yes
        kill -HUP "$(squid_pid)"
        sleep 1
        squid_came_up || explain_silence
        say squid "reconfigured"
    else
        say squid "runs, unchanged" && return
    fi
    replace "$WORK/applied" "$APPLIED" # equal or not: its date counts
}

# Where it listens, and two hashes: what only a restart changes besides (the CA), and all that a reconfigure reads.
what_squid_reads() {
    printf '%s %s %s\n' "$(listen_of "$CONF")" "$(sha256sum <"$CA_CERT" | cut -c 1-16)" \
        "$({ cat "$CONF" "$FRAGMENT" "$LOGFORMAT" "$LOCAL" "$ERRORS"/ERR_* && readlink "$PROGRAM"; } | sha256sum | cut -c 1-16)"
}

# Squid may have been told what such a file held in between.
written_since_applied() {
    [ -n "$(find "$CONF" "$FRAGMENT" "$LOGFORMAT" "$LOCAL" "$ERRORS" "$CA_CERT" "$CA_KEY" "$PROGRAM" -newercm "$APPLIED")" ]
}

bring_up() {
    TOUCHED=yes
    start_squid || explain_silence
    squid_came_up || explain_silence
    say squid "$1, process $(squid_pid)"
}

squid_came_up() {
    wait_until 20 squid_has_settled && squid_listens
}

squid_has_settled() { squid_listens || ! squid_runs; }

# Does one of this Squid's own sockets listen on the port? (A trial bind could take the port from under Squid as it starts.)
squid_listens() { squid_runs && process_listens "$(squid_pid)" "${LISTEN##*:}"; }

# Does the process $1, or a child of it, listen on the port $2?
process_listens() { [ -n "$1" ] && [ -n "$(comm -12 <(sockets_of "$1" | sort) <(listening_sockets "$2" | sort))" ]; }

# Of its children as well, and of theirs.
sockets_of() {
    local pid children
    read -ra children < <(cat "/proc/$1/task/$1/children" 2>/dev/null) || true
    find "/proc/$1/fd" -lname 'socket:*' -printf '%l\n' 2>/dev/null || true
    for pid in "${children[@]}"; do
        sockets_of "$pid"
    done
}

listening_sockets() {
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port { print "socket:[" $10 "]" }'
}

explain_silence() {
    tail -n 15 "$CACHE_LOG" >&2 || true
    die "Squid does not listen on $LISTEN" "read the lines above, from $CACHE_LOG"
}

# ── The services beside Squid ────────────────────────────────────────────────────────────────────────────────────────

# The place $2 (UNIT, PID, LOG or APPLIED) of the service $1.
place_of() {
    local variable=${1^^}_$2
    printf '%s' "${!variable}"
}

# The unit of the service $1, from its file under squid/, with the paths and the account of this gateway.
render_unit() {
    render "$2" PLACES | sed "s/^User=proxy$/User=$ACCOUNT/; s/^Group=proxy$/Group=$GROUP/" >"$WORK/$1.service"
}

prepare_services() {
    cp "$SOURCE/squid/supervise" "$WORK/supervise"
    chmod 755 "$WORK/supervise"
    prepare_exporter
    prepare_maintenance
}

# The bound of the logs is as said, or as before.
prepare_maintenance() {
    [ -n "$LOG_BYTES" ] || LOG_BYTES=$(sed -n 's/^ExecStart=.* --log-bytes \([^ ]*\).*/\1/p' "$MAINTENANCE_UNIT" 2>/dev/null || true)
    name_resolver <"$SOURCE/squid/squidkeeper-maintenance.service" >"$WORK/maintenance.unit"
    render_unit maintenance "$WORK/maintenance.unit"
    [ "${LOG_BYTES:-auto}" = auto ] || sed -i "/^ExecStart=/s/\$/ --log-bytes $LOG_BYTES/" "$WORK/maintenance.service"
}

put_services() {
    has_systemd || put "$WORK/supervise" "$SUPERVISE"
    put "$WORK/maintenance.service" "$MAINTENANCE_UNIT"
    put_exporter
}

# The process that systemd started, or the one that supervises; nothing where there is none. A process id alone could be another's by now.
service_pid() {
    local pid
    if has_systemd; then
        systemctl show --property MainPID --value "squidkeeper-$1" 2>/dev/null | grep -v '^0$'
    else
        pid=$(cat "$(place_of "$1" PID)" 2>/dev/null) &&
            [ "$(grep -czFx -e "$SUPERVISE" -e "$(place_of "$1" UNIT)" "/proc/$pid/cmdline" 2>/dev/null)" = 2 ] && echo "$pid"
    fi
}

service_runs() { [ -n "$(service_pid "$1")" ]; }

start_service() {
    if has_systemd; then
        systemctl daemon-reload && systemctl enable --quiet "squidkeeper-$1" && systemctl restart "squidkeeper-$1"
    else
        supervise_service "$1"
        wait_until 10 service_runs "$1" || true # one that ends at once is never seen to run: whoever asked looks, and explains
    fi
}

# With the signals as usual: this may run where they are ignored, which it could not undo. With the capabilities that the unit gives.
supervise_service() {
    local unit capabilities
    unit=$(place_of "$1" UNIT)
    capabilities=-all$(sed -n 's/^AmbientCapabilities=//p' "$unit" | tr ' ' '\n' | sed -n 's/^CAP_/,+/p' | tr -d '\n' | tr '[:upper:]' '[:lower:]')
    setsid --fork env --default-signal setpriv --reuid "$ACCOUNT" --regid "$GROUP" --init-groups \
        --bounding-set "$capabilities" --inh-caps "$capabilities" --ambient-caps "$capabilities" \
        "$SUPERVISE" "$unit" "$(place_of "$1" PID)" "$(place_of "$1" LOG)" </dev/null >/dev/null 2>&1 9<&-
}

# Whether it runs or not: systemd may be about to start it again.
stop_service() {
    local pid
    pid=$(service_pid "$1" || true)
    if has_systemd; then quietly systemctl disable --now "squidkeeper-$1"; elif [ -n "$pid" ]; then kill -TERM "$pid"; fi
    [ -z "$pid" ] || wait_until 30 gone "$pid" || die "the $1 (process $pid) does not end"
}

# What the service $1 was started with: its unit, what supervises it and the program, as a hash.
what_service_reads() {
    { cat "$(place_of "$1" UNIT)" "$SUPERVISE" 2>/dev/null || true; } | cat - <(readlink "$PROGRAM") | sha256sum | cut -c 1-16
}

# Restart the service $1, and wait until the command $2 holds, the service has ended, or $3 seconds have passed.
restart_service() {
    SERVICE_TOUCHED[$1]=yes
    stop_service "$1"
    start_service "$1"
    wait_until "$3" service_has_settled "$@" || true
    "$2"
}

service_has_settled() { "$2" || service_has_died "$1"; }

service_has_died() {
    if ! has_systemd; then
        [ -z "$(service_pid "$1")" ]
        return
    fi
    [ "$(systemctl show --property NRestarts --value "squidkeeper-$1")" != 0 ]
}

show_service_log() {
    if has_systemd; then journalctl --unit "squidkeeper-$1" --lines 15 --no-pager >&2; else tail -n 15 "$(place_of "$1" LOG)" >&2; fi
}

# Start maintenance, restart it where its unit or the program has changed, or leave it alone.
apply_maintenance() {
    local now
    now=$(what_service_reads maintenance)
    if [ "$START_SERVICES" = no ]; then
        say maintenance "not started (--no-start)"
    elif maintenance_works && [ "$(cat "$MAINTENANCE_APPLIED" 2>/dev/null)" = "$now" ]; then
        say maintenance "runs, unchanged"
    else
        restart_service maintenance maintenance_works 20 || explain_maintenance
        echo "$now" >"$WORK/applied-maintenance" && put "$WORK/applied-maintenance" "$MAINTENANCE_APPLIED"
        say maintenance "started"
    fi
}

# With its resolver, where it has one.
maintenance_works() {
    if [ "$RESOLVER" = none ]; then service_runs maintenance; else process_listens "$(service_pid maintenance)" 53; fi
}

explain_maintenance() {
    show_service_log maintenance
    [ "$RESOLVER" = none ] || die "the resolver does not listen on $RESOLVER port 53" "read the lines above"
    die "the maintenance process does not run" "read the lines above"
}

# ── The exporter ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Where it listens, or none: as said, as before, or as usual. Then its unit, and what Prometheus and Grafana are given.
prepare_exporter() {
    [ -n "$EXPORTER" ] || EXPORTER=$(sed 's/ .*//' "$EXPORTER_APPLIED" 2>/dev/null || true)
    [ -n "$EXPORTER" ] || EXPORTER=$(usual_exporter)
    mkdir "$WORK/observe"
    render_alerts >"$WORK/observe/alerts.yaml"
    render_addresses "$SOURCE/squid/observe/prometheus.yaml" >"$WORK/observe/prometheus.yaml"
    cp "$SOURCE/squid/observe/dashboard.json" "$WORK/observe"
    chmod 644 "$WORK/observe"/*
    render_addresses "$SOURCE/squid/observe/squidkeeper-exporter.service" >"$WORK/exporter.unit"
    render_unit exporter "$WORK/exporter.unit"
}

# Gateways beside each other have ports of their own.
usual_exporter() {
    local port=$((${LISTEN##*:} + 6000))
    if [ -z "$ROOT" ]; then port=9129; elif [ "$port" -gt 65535 ]; then port=$((port - 12000)); fi
    echo "127.0.0.1:$port"
}

render_addresses() {
    local squid=$LISTEN
    ! is_yours_with_ours || squid=$(listen_of "$CONF")
    sed "s|127\.0\.0\.1:9129|<<exporter>>|g; s|127\.0\.0\.1:3129|$(reachable "$squid")|g; s|<<exporter>>|$EXPORTER|g" "$1"
}

# The commands of the runbooks are for this gateway: under --root neither the program nor Squid looks in DIR by itself. What they
# say of systemctl and journalctl stays.
# shellcheck disable=SC2034 # render reads commands by its name
render_alerts() {
    local documented filter
    local -A commands=()
    for documented in "${!PLACES[@]}"; do commands[$documented]=${PLACES[$documented]}; done
    commands[127.0.0.1:9129]=$(reachable "$EXPORTER")
    if [ -n "$ROOT" ]; then
        commands[/var/log/squid]=$(dirname "$ACCESS_LOG")
        commands[/etc/squid/[*].conf]="$(dirname "$CONF")/*.conf"
        commands[squid -k]="$(squid_command) -k"
        commands[squidkeeper check]="$PROGRAM check --policy $POLICY --state $STATE"
        commands[squidkeeper explain]="$PROGRAM explain --policy $POLICY"
        for filter in --by --rule --since --status "--drift --since"; do
            commands[squidkeeper log $filter]="$PROGRAM log --state $STATE $ACCESS_LOG* $filter"
        done
        commands[squidkeeper log --drift FILE]="$PROGRAM log --state $STATE --drift FILE"
        commands[./install.sh]="./install.sh --root $ROOT"
    fi
    render "$SOURCE/squid/observe/alerts.yaml" commands
}

put_exporter() {
    if [ "$EXPORTER" = none ]; then
        if [ -e "$EXPORTER_UNIT" ]; then SERVICE_TOUCHED[exporter]=yes && stop_service exporter; fi
        take_away "$EXPORTER_UNIT"
        take_away "$OBSERVE"
    else
        put "$WORK/exporter.service" "$EXPORTER_UNIT"
        put "$WORK/observe" "$OBSERVE"
    fi
}

# Start it, restart it where its unit or the program has changed, or leave it alone.
apply_exporter() {
    local told now
    told=$(cat "$EXPORTER_APPLIED" 2>/dev/null || true)
    now="$EXPORTER $(what_service_reads exporter)"
    if [ "$EXPORTER" = none ]; then
        say exporter "none (--no-exporter)" && now=none
    elif [ "$START_SERVICES" = no ]; then
        say exporter "not started (--no-start)" && now=$EXPORTER # for a later run to go on with
        [ "${told% *}" != "$EXPORTER" ] || return 0
    elif exporter_listens && [ "$told" = "$now" ]; then
        say exporter "runs, unchanged"
    else
        bring_up_exporter
    fi
    [ "$told" = "$now" ] || echo "$now" >"$EXPORTER_APPLIED"
}

bring_up_exporter() {
    restart_service exporter exporter_listens 90 || explain_exporter
    say exporter "started, on http://$EXPORTER/"
}

exporter_listens() { process_listens "$(service_pid exporter)" "${EXPORTER##*:}"; }

explain_exporter() {
    show_service_log exporter
    die "the exporter does not listen on $EXPORTER" "read the lines above; --no-exporter does without it"
}

# ── The end of a good run ────────────────────────────────────────────────────────────────────────────────────────────

tell_how_to_try() {
    ! is_yours_with_ours || LISTEN=$(listen_of "$CONF")
    local address curl
    address=$(reachable "$LISTEN")
    curl="curl --proxy http://$address --cacert $CA_CERT -sS -o /dev/null -w '%{http_code}\n'"
    local sudo=${SUDO_USER:+sudo } explain="$PROGRAM explain --policy $POLICY"
    if is_our_command && [ "$(command -v squidkeeper)" = "$COMMAND" ]; then explain="squidkeeper explain"; fi
    cat <<-END 2>/dev/null || true

		Try it (200 and 403 with the example policy):
		  $curl https://example.com/
		  $curl https://en.wikipedia.org/
		  ${sudo}tail -n 2 $ACCESS_LOG
		Why:
		  $sudo$explain GET https://en.wikipedia.org/
		Edit $POLICY: helpers take it up by themselves. Lines of your own for Squid: $LOCAL
	END
    [ "$EXPORTER" = none ] ||
        printf 'Status: http://%s/  metrics: /metrics there  alerts, dashboard: %s\n' "$(reachable "$EXPORTER")" "$OBSERVE" 2>/dev/null || true
}

# ── Uninstall ────────────────────────────────────────────────────────────────────────────────────────────────────────

# A squid.conf of yours, in force or kept, stays, and must be able to do without what goes.
uninstall() {
    local yours=$CONF runs=
    step uninstall "see the lines above"
    lock
    ! is_ours "$CONF" || yours=$BEFORE
    ! names "$yours" "$FRAGMENT" ||
        die "$yours includes $FRAGMENT, which --uninstall removes" "take that line out, tell Squid if it runs with it, and run this again"
    [ ! -e "$EXPORTER_UNIT" ] || stop_service exporter
    if is_ours "$CONF"; then
        ! squid_runs || stop_squid
        rm -f "$CONF"
    fi
    [ ! -e "$MAINTENANCE_UNIT" ] || stop_service maintenance
    ! squid_runs || runs=yes # asked before its pid file goes
    names "$yours" "$SSL_DB" || rm -rf "$SSL_DB"
    rm -rf "$CONF.previous" "$FRAGMENT" "$LOGFORMAT" "$ERRORS" "$STATE" "$RUN" "$APPLIED" "$PROGRAM" "$PREFIX"/venv-*
    rm -rf "$OBSERVE" "$EXPORTER_UNIT" "$MAINTENANCE_UNIT" "$SUPERVISE" "$EXPORTER_APPLIED" "$MAINTENANCE_APPLIED"
    ! has_systemd || systemctl daemon-reload
    [ -n "$ROOT" ] || rm -f /etc/squidkeeper/ca/ca.crt /etc/squidkeeper/ca/ca.key
    ! is_our_command || rm -f "$COMMAND"
    close_apparmor
    remove_empty "$(dirname "$ERRORS")" "$(dirname "$PROGRAM")" /etc/squidkeeper/ca "$PREFIX"
    [ -e "$CONF" ] || [ ! -e "$BEFORE" ] || restore_squid
    [ -z "$runs" ] || [ "$yours" != "$CONF" ] ||
        say squid "runs on, and $CONF is yours: unless you told Squid of it, it has lost its helpers and denies all until: $(squid_command) -k reconfigure"
    say uninstall "done. Yours to delete: $POLICY $CA_CERT $CA_KEY (and *.previous, *.before-squidkeeper) $LOCAL $(dirname "$ACCESS_LOG")"
}

# Is anything here that install.sh made and --uninstall takes away?
is_installed() {
    local path
    for path in "$FRAGMENT" "$LOGFORMAT" "$PROGRAM" "$APPLIED" "$STATE" "$ERRORS" "$PREFIX"/venv-*; do
        if [ -e "$path" ] || [ -L "$path" ]; then return; fi
    done
    is_ours "$CONF"
}

# Does the squid.conf $1 name the path $2, outside of comments?
names() { [ -e "$1" ] && grep -q "^[^#]*${2//./\\.}" "$1"; }

restore_squid() {
    mv "$BEFORE" "$CONF"
    if squid -k parse -f "$CONF" >"$WORK/output" 2>&1; then
        say squid.conf "the former one is back, and squid -k parse accepts it"
        ! has_systemd || systemctl restart squid || say squid "does not start with it all the same: journalctl -u squid"
    else
        grep -E 'FATAL: |ERROR: |unrecognized: ' "$WORK/output" >&2 || cat "$WORK/output" >&2
        say squid.conf "the former one is back, but squid -k parse does not accept it (see above): Squid is not started"
    fi
}

close_apparmor() {
    local program additions
    for program in "${CONFINED[@]}"; do
        additions=$(apparmor_additions "$program")
        grep -q "^# squidkeeper $PREFIX begin\$" "$additions" 2>/dev/null || continue
        other_apparmor_lines "$program" >"$WORK/apparmor"
        cat "$WORK/apparmor" >"$additions"
        ! apparmor_confines "$program" || reload_apparmor "$program"
    done
}

remove_empty() {
    local directory
    for directory in "$@"; do
        [ ! -d "$directory" ] || rmdir --ignore-fail-on-non-empty "$directory"
    done
}

# ── The steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

install_gateway() {
    step packages "see what the package manager says above; with no network, install the packages by hand and run this again"
    install_packages
    ask_squid
    step directories "make the directory, or choose another --root"
    make_directories
    step program "see pip's lines above; it needs a package index (PIP_INDEX_URL, a proxy: see pip's documentation), or --wheels DIR"
    prepare_program
    step CA "give slicer's ca.crt and ca.key by --ca-dir, or leave it out and move both $CA_CERT and $CA_KEY away for a new one"
    prepare_ca
    prepare_certificate_store
    step policy "fix it where the lines above name it, and run this again (of one in place, $PROGRAM check --policy $POLICY --state $STATE shows every fault)"
    prepare_policy
    step program "see the lines above; with $VENV moved away, it is built anew"
    try_program
    step AppArmor "see the lines above; squid/apparmor holds what is added"
    open_apparmor squid
    step configuration "fix the line, most likely in $LOCAL, and run this again"
    prepare_configuration
    parse_configuration
    step resolver "install the package unbound by hand, or name other name servers in $LOCAL, by dns_nameservers"
    install_unbound
    open_apparmor unbound
    prepare_services
    step listen "end what listens there, or choose another --listen"
    check_listen
    check_open
    step "put in place" "see the lines above"
    put_all
    step maintenance "see the lines above"
    apply_maintenance
    step start "see the lines above"
    apply
    step exporter "see the lines above; --no-exporter does without it"
    apply_exporter
    remove_old_venvs
    tell_how_to_try
}

STEP=arguments ADVICE="./install.sh --help tells the options"
read_arguments "$@"
require_root
find_places
if [ "$ACTION" = uninstall ] && ! is_installed; then
    say uninstall "no gateway of squidkeeper's is in ${ROOT:-/etc/squid}: nothing to do"
    exit
fi
trap on_exit EXIT
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
begin
"$ACTION"
