#!/bin/sh
# Run this inside the VM: it tells for each program there whether the gateway lets it through, and what to fix.
# It needs a POSIX shell, grep, sed, head, tail and mktemp. `squidkeeper probe --format sh` fills in what @…@ stands for.
# Exit status: 0 when all is as it has to be, else 1.
# shellcheck disable=SC2016,SC2154 # commands are run later, by a shell of their own; variables come from outside

set -f # a URL is no pattern for files

CA_PATH=@CA_PATH@
BUNDLE_PATH=@BUNDLE_PATH@
ROOT=@ROOT@
STATUS=@STATUS@
RULE=@RULE@
REASON=@REASON@
REACHED=@REACHED@
ALLOWED=@ALLOWED@
DENIED=@DENIED@
DIRECT=${DIRECT-1.1.1.1:443 8.8.8.8:443} # that must not be reached
NAME=example.com
GATEWAYS_NAME=squidkeeper-probe.example # which only the resolver of a transparent gateway knows
TRANSPARENT=@TRANSPARENT@

WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
: >"$WORK/fixes"

has() { command -v "$1" >/dev/null 2>&1; }

LIMIT=''
has timeout && LIMIT='timeout 90' # for one program: Java compiles first

fix() { printf '  - %s\n' "$1" >>"$WORK/fixes"; }

# --- the environment ---------------------------------------------------------------------------------------------------

without_user() { printf '%s\n' "$1" | sed 's|//[^/]*@|//|'; }

# variable NAME VALUE CURRENT
variable() {
    [ "$(without_user "$2")" = "$(without_user "$3")" ] && return
    missing="$missing $1='$2'"
    wrong="${wrong:+$wrong, }$1"
}

check_environment() {
    missing='' wrong=''
@VARIABLES@
    if [ -z "$missing" ]; then
        echo 'variables  as they have to be'
    else
        echo "variables  missing or different: $wrong"
        fix "set the variables: export$missing"
    fi
}

holds_root() {
    [ -r "$1" ] || return 1
    printf '%s\n' "$ROOT" | while read -r line; do
        grep -qxF -e "$line" "$1" || exit 1
    done
}

check_files() {
    lacking=''
    if ! holds_root "$CA_PATH"; then
        lacking=yes
        fix "put the root of the gateway into $CA_PATH (above: ROOT)"
    fi
    if ! holds_root "$BUNDLE_PATH"; then
        lacking=yes
        fix "add the root of the gateway to $BUNDLE_PATH: cp $CA_PATH /usr/local/share/ca-certificates/squidkeeper.crt && update-ca-certificates (Fedora: /etc/pki/ca-trust/source/anchors/ and update-ca-trust)"
    fi
    if [ -z "$lacking" ]; then
        echo 'roots      of the gateway: in both files'
    else
        echo 'roots      of the gateway: missing'
        printf 'ROOT\n%s\n' "$ROOT"
    fi
}

# --- ways around the gateway -------------------------------------------------------------------------------------------

connects() {
    if has python3; then
        python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)' "$1" "$2"
    elif has nc; then
        nc -z -w 2 "$1" "$2"
    else
        curl -s -o /dev/null --noproxy '*' --connect-timeout 2 -m 4 -k "https://$1:$2/"
    fi >/dev/null 2>&1
}

check_direct() {
    for authority in $DIRECT; do
        if connects "${authority%:*}" "${authority##*:}"; then
            echo "direct     OPEN: $authority"
            fix "$authority is reached without the gateway: the host group of the VM has to drop 0.0.0.0/0 and to allow the gateway alone"
        else
            echo "direct     closed: $authority"
        fi
    done
}

address_of() { getent hosts "$1" | head -n 1 | sed 's/[[:space:]].*//'; }

check_transparent_name() {
    found=$(address_of "$NAME")
    if [ -n "$found" ] && [ "$found" = "$(address_of "$GATEWAYS_NAME")" ]; then
        echo "DNS        of the gateway: every name is $found"
    else
        echo "DNS        not of the gateway: $NAME is ${found:-unknown}"
        fix 'let the gateway resolve names: its address alone in dns_servers of the host group of the VM'
    fi
}

check_name() {
    if [ "$TRANSPARENT" = yes ] && has getent; then
        check_transparent_name
    elif has getent && getent hosts "$NAME" >/dev/null 2>&1; then
        echo "DNS        OPEN: $NAME resolves"
        fix 'names resolve here: set dns_servers: ["127.0.0.1"] in the host group of the VM'
    elif has getent; then
        echo "DNS        closed: $NAME does not resolve"
    else
        echo 'DNS        not tried: there is no getent'
    fi
}

# --- programs ----------------------------------------------------------------------------------------------------------

say() { printf '%-9s %-8s %s%s\n' "$program" "$1" "$asked" "${2:+  ($2)}"; }

# symptom PATTERN MEANING FIX OF_GATEWAY: succeeds where the program has printed it
symptom() {
    grep -Eqi -e "$1" "$WORK/output" || return 1
    [ -z "$3" ] && return 0
    say broken "$2"
    [ "$4" = yes ] && whose='' || whose="$program: "
    fix "$whose$3"
}

read_symptoms() {
@SYMPTOMS@
    return 1
}

# line_of_page PATTERN: prints a line of the gateway's page, whatever its form
line_of_page() {
    grep -Eio -e "$1" "$WORK/output" | head -n 1 | sed 's/"//g; s/<[a-z]*>//; s/[[:space:]]*$//' | cut -c 1-200
}

# read_output EXIT_STATUS: sets `result`
read_output() {
    status=$(grep -Eio -e "$STATUS" "$WORK/output" | head -n 1 | grep -Eo '[0-9]{3}' | head -n 1)
    result=''
    case "$status" in
        403)
            result=denied
            line=$(line_of_page "$RULE")
            say denied "${line:-this program does not show the page}"
            ;;
        502 | 503 | 504)
            result=failed
            line=$(line_of_page "$REASON")
            say failed "${line:-status $status, after the policy}"
            ;;
        407) read_symptoms ;;
        *)
            if [ -n "$status" ] || [ "$1" -eq 0 ]; then
                result=allowed
                say allowed "${status:+status $status}"
            elif read_symptoms; then
                result=broken
            elif grep -Eqi -e "$REACHED" "$WORK/output"; then
                result=allowed
                say allowed
            else
                result=broken
                say broken "$(grep -v '^[[:space:]]*$' "$WORK/output" | tail -n 1 | cut -c 1-200)"
                fix "$program: this probe does not know the failure; its last line is above"
            fi
            ;;
    esac
}

# remedy NAMES UNSET SET: prints what to do while one of the variables is wrong, and what once none is
remedy() {
    for name in $1; do
        case ", $wrong," in *", $name,"*)
            printf '%s\n' "$2"
            return
            ;;
        esac
    done
    printf '%s\n' "$3"
}

# try PROGRAM COMMAND_NAME ASKS_BELOW ROOTS UNSET SET PROXY UNSET SET COMMAND
try() {
    has "$2" || return
    program=$1 asks_below=$3
    set_roots=$(remedy "$4" "$5" "$6")
    set_proxy=$(remedy "$7" "$8" "$9")
    shift 9
    for wanted in allowed denied; do
        [ "$wanted" = allowed ] && urls=$ALLOWED || urls=$DENIED
        for url in $urls; do
            [ -n "$asks_below" ] && asked=${url%/}$asks_below || asked=$url
            mkdir "$WORK/tmp"
            URL=$url TMP=$WORK/tmp $LIMIT sh -c "$1" </dev/null >"$WORK/output" 2>&1
            read_output "$?"
            rm -rf "$WORK/tmp"
            case "$asks_below$result" in
                allowed | denied) # another URL may be decided differently
                    [ "$result" = "$wanted" ] ||
                        fix "$url is $result, expected $wanted: ask the operator for squidkeeper explain"
                    ;;
            esac
        done
    done
}

printf '%s\n' @TITLE@
check_environment
check_files
check_direct
check_name
printf '\n%-9s %-8s %s\n' PROGRAM RESULT URL
@PROGRAMS@

if [ -s "$WORK/fixes" ]; then
    printf '\nFix:\n'
    # each once
    while IFS= read -r line; do
        grep -qxF -e "$line" "$WORK/shown" 2>/dev/null || printf '%s\n' "$line" | tee -a "$WORK/shown"
    done <"$WORK/fixes"
    exit 1
fi
printf '\nNothing to fix.\n'
