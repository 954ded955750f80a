"""Run this inside the VM: it tells for each program there whether the gateway lets it
through, and what to fix.

It needs Python 3.8 and nothing else. `squidkeeper probe` prints this file with the line
KIT filled in. Exit status: 0 when nothing is to be fixed, else 1.
"""

import argparse
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, NamedTuple, Optional, Tuple  # noqa: UP035 - for Python 3.8

KIT: Dict[str, Any] = json.loads("{}")  # noqa: UP006 - replaced by `squidkeeper probe`

DIRECT = ["1.1.1.1:443", "8.8.8.8:443", "[2606:4700:4700::1111]:443"]
RESOLVERS = ["1.1.1.1", "8.8.8.8"]
NAME = "example.com"
# which only the resolver of a transparent gateway knows
GATEWAYS_NAME = "squidkeeper-probe.example"
PROGRAM_SECONDS = 90  # Java compiles first
TIMEOUT_SECONDS = 2  # of what must not answer
CLOSE = "the host group of the VM has to drop 0.0.0.0/0 and to allow the gateway alone"


class Outcome(NamedTuple):
    """What became of one request, a detail of it, and what to fix."""

    # allowed, denied, failed after the policy, broken, or absent: the program is not
    # there
    result: str
    detail: str = ""
    fix: str = ""


def main() -> None:
    """Check the environment, the ways around the gateway and each program; exit with 1
    if something is to be fixed.
    """
    options = parse_options()
    say(KIT["title"])
    gateway = addresses_of(GATEWAYS_NAME) if KIT["transparent"] else []
    fixes = [check_environment(), *check_files()]
    with ThreadPoolExecutor(8) as pool:
        routes = [pool.submit(check_direct, authority) for authority in options.direct]
        routes += [pool.submit(check_name, gateway)]
        routes += [
            pool.submit(check_resolver, address, gateway)
            for address in options.resolver
        ]
        for route in routes:
            found, fix = route.result()
            say(found)
            fixes.append(fix)
    say(f"\n{'PROGRAM':<9} {'RESULT':<8} URL")
    tries = [
        (program, url, wanted)
        for program in KIT["programs"]
        for url, wanted in urls(options)
    ]
    with ThreadPoolExecutor(4) as pool:
        for (program, url, _), outcome in zip(tries, pool.map(try_program, tries)):  # noqa: B905 - for Python 3.8
            show(program["name"], asked_url(program, url), outcome)
            fixes.append(outcome.fix)
    needed = list(dict.fromkeys(filter(None, fixes)))
    say(
        "\n"
        + "\n".join(
            ["Fix:", *(f"  - {fix}" for fix in needed)]
            if needed
            else ["Nothing to fix."]
        )
    )
    sys.exit(1 if needed else 0)


def parse_options() -> argparse.Namespace:
    """Read what to try instead of what this file holds."""
    parser = argparse.ArgumentParser(
        description="Tell whether the programs here get through the gateway."
    )
    parser.add_argument(
        "--allowed", action="append", metavar="URL", help="a URL that the policy allows"
    )
    parser.add_argument(
        "--denied", action="append", metavar="URL", help="a URL that the policy denies"
    )
    parser.add_argument(
        "--direct",
        action="append",
        metavar="HOST:PORT",
        help="an address that must not be reached",
    )
    parser.add_argument(
        "--resolver",
        action="append",
        metavar="ADDRESS",
        help="a name server that must not answer",
    )
    options = parser.parse_args()
    options.direct = options.direct or DIRECT
    options.resolver = options.resolver or [*configured_resolvers(), *RESOLVERS]
    return options


def urls(options: argparse.Namespace) -> List[Tuple[str, str]]:  # noqa: UP006
    """List the URLs, each with the result that it has to have."""
    allowed, denied = options.allowed or KIT["allowed"], options.denied or KIT["denied"]
    return [
        *((url, "allowed") for url in allowed),
        *((url, "denied") for url in denied),
    ]


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# --- the environment ------------------------------------------------------------------


def check_environment() -> str:
    """Compare the variables with what `squidkeeper env` prints, the user of the proxy
    left out.
    """
    wrong = [name for name in KIT["variables"] if is_wrong(name)]
    say(
        f"variables  {'missing or different: ' + ', '.join(wrong) if wrong else 'as they have to be'}"
    )
    return (
        "set the variables: export "
        + " ".join(f"{name}='{KIT['variables'][name]}'" for name in wrong)
        if wrong
        else ""
    )


def is_wrong(name: str) -> bool:
    """Whether a variable is missing or different."""
    return bare(os.environ.get(name, "")) != bare(KIT["variables"][name])


def bare(value: str) -> str:
    """Leave out the user and the password of a proxy's URL."""
    return re.sub("//[^/]*@", "//", value)


def check_files() -> List[str]:  # noqa: UP006
    """Check that the root of the gateway is in the files that the variables name."""
    fixes = []
    if not holds_root(KIT["ca_path"]):
        fixes.append(f"put the root of the gateway into {KIT['ca_path']} (above: ROOT)")
    if not holds_root(KIT["bundle_path"]):
        fixes.append(
            f"add the root of the gateway to {KIT['bundle_path']}: cp {KIT['ca_path']} "
            "/usr/local/share/ca-certificates/squidkeeper.crt && update-ca-certificates "
            "(Fedora: /etc/pki/ca-trust/source/anchors/ and update-ca-trust)"
        )
    say(
        f"roots      {'of the gateway: missing' if fixes else 'of the gateway: in both files'}"
    )
    if fixes:
        say("ROOT\n" + KIT["root"].strip())
    return fixes


def holds_root(path: str) -> bool:
    """Whether a file holds the root of the gateway."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "".join(KIT["root"].split()) in "".join(file.read().split())
    except OSError:
        return False


# --- ways around the gateway ----------------------------------------------------------


def check_direct(authority: str) -> Tuple[str, str]:  # noqa: UP006
    """Try to connect to an address on the internet; give the line to print and what to
    fix.
    """
    host, _, port = authority.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_SECONDS).close()
    except OSError:
        return f"direct     closed: {authority}", ""
    return (
        f"direct     OPEN: {authority}",
        f"{authority} is reached without the gateway: {CLOSE}",
    )


def check_resolver(address: str, gateway: List[str]) -> Tuple[str, str]:  # noqa: UP006
    """Ask a name server by UDP; give the line to print and what to fix.

    The gateway's may answer with its address.
    """
    name = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
    question = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + name + b"\0\0\1\0\1"
    with socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    ) as asking:
        asking.settimeout(TIMEOUT_SECONDS)
        try:
            asking.connect((address, 53))
            asking.send(question)
            answer = asking.recv(512)
        except OSError:
            answer = b""
    if answer[6:8] in (b"", b"\0\0"):  # no answer, or one without an address
        return f"DNS        closed: the name server {address} does not answer", ""
    if any(socket.inet_aton(own) in answer for own in gateway if ":" not in own):
        return f"DNS        of the gateway: the name server {address}", ""
    fix = f"the name server {address} answers, so data can leave in names: {CLOSE}"
    return f"DNS        OPEN: the name server {address} answers", fix


def addresses_of(name: str) -> List[str]:  # noqa: UP006
    """Look a name up as programs do; give its addresses, none where it does not
    resolve.
    """
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, 443)})
    except OSError:
        return []


def check_name(gateway: List[str]) -> Tuple[str, str]:  # noqa: UP006
    """Look a name up; give the line to print and what to fix."""
    found = addresses_of(NAME)
    if KIT["transparent"]:
        if found and found == gateway:
            return f"DNS        of the gateway: every name is {', '.join(found)}", ""
        fix = "let the gateway resolve names: its address alone in dns_servers of the host group of the VM"
        return (
            f"DNS        not of the gateway: {NAME} is {', '.join(found) or 'unknown'}",
            fix,
        )
    if not found:
        return f"DNS        closed: {NAME} does not resolve", ""
    fix = (
        'names resolve here: set dns_servers: ["127.0.0.1"] in the host group of the VM'
    )
    return f"DNS        OPEN: {NAME} resolves", fix


def configured_resolvers() -> List[str]:  # noqa: UP006
    """List the name servers of resolv.conf that are not on this machine."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            found = re.findall(
                r"^nameserver\s+([0-9a-fA-F.:]+)", file.read(), re.MULTILINE
            )
    except OSError:
        return []
    return [
        address
        for address in found
        if not address.startswith("127.") and address != "::1"
    ]


# --- programs -------------------------------------------------------------------------


def try_program(work: Tuple[Dict[str, Any], str, str]) -> Outcome:  # noqa: UP006
    """Run a program for a URL, and compare the result with the one that it has to have,
    unless it asks for another URL.
    """
    program, url, wanted = work
    if not shutil.which(program["program"]):
        return Outcome("absent")
    outcome = read_output(program, *run(program["command"], url))
    if (
        program["asks_below"]
        or outcome.result == wanted
        or outcome.result not in ("allowed", "denied")
    ):
        return outcome
    return outcome._replace(
        fix=f"{url} is {outcome.result}, expected {wanted}: ask the operator for squidkeeper explain"
    )


def asked_url(program: Dict[str, Any], url: str) -> str:  # noqa: UP006
    """Name the URL that a program asks for first."""
    below = program["asks_below"]
    return url.rstrip("/") + below if below else url


def run(command: str, url: str) -> Tuple[int, str]:  # noqa: UP006
    """Run a command; give its exit status and what it printed."""
    folder = tempfile.mkdtemp(prefix="probe-")
    try:
        done = subprocess.run(  # noqa: S603
            ["sh", "-c", command],  # noqa: S607
            env={**os.environ, "URL": url, "TMP": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_output(program: Dict[str, Any], code: int, output: str) -> Outcome:  # noqa: UP006
    """Tell from what a program printed what became of its request."""
    found = re.search(KIT["status"], output, re.IGNORECASE)
    status = re.findall("[0-9]{3}", found.group())[0] if found else ""
    if status == "403":
        return Outcome(
            "denied",
            line_of_page(KIT["rule"], output) or "this program does not show the page",
        )
    if status in ("502", "503", "504"):
        return Outcome(
            "failed",
            line_of_page(KIT["reason"], output) or f"status {status}, after the policy",
        )
    if status != "407" and (status or code == 0):
        return Outcome("allowed", f"status {status}" if status else "")
    return read_symptoms(program, output) or read_rest(program, output)


def line_of_page(pattern: str, output: str) -> str:
    """Find a line of the gateway's page, whatever its form; empty where it is not
    shown.
    """
    found = filter(
        None, (re.search(pattern, line, re.IGNORECASE) for line in output.splitlines())
    )
    return next(
        (re.sub('"|<[a-z]+>', "", line.group()).strip()[:200] for line in found), ""
    )


def read_symptoms(program: Dict[str, Any], output: str) -> Optional[Outcome]:  # noqa: UP006, UP045
    """Find what is known to go wrong."""
    for pattern, meaning, fix, of_gateway in KIT["symptoms"]:
        if re.search(pattern, output, re.IGNORECASE):
            whose = "" if of_gateway else f"{program['name']}: "
            return (
                Outcome("broken", meaning, whose + fill(fix, program))
                if fix
                else Outcome("absent")
            )
    return None


def read_rest(program: Dict[str, Any], output: str) -> Outcome:  # noqa: UP006
    """Tell an answer of the origin that the program cannot use from a failure that is
    not known.
    """
    if re.search(KIT["reached"], output, re.IGNORECASE):
        return Outcome("allowed")
    last = (
        [line.strip() for line in output.splitlines() if line.strip()]
        or ["it printed nothing"]
    )[-1]
    return Outcome(
        "broken",
        last[:200],
        f"{program['name']}: this probe does not know the failure; its last line is above",
    )


def fill(fix: str, program: Dict[str, Any]) -> str:  # noqa: UP006
    """Put the values of this client into a remedy."""
    fills = dict(KIT["fills"])
    for name in ("set_proxy", "set_roots"):
        variables, unset, if_set = program[name]
        fills[name] = unset if any(map(is_wrong, variables)) else if_set
    return re.sub(
        "{(" + "|".join(fills) + ")}", lambda found: fills[found.group(1)], fix
    )


def show(name: str, url: str, outcome: Outcome) -> None:
    """Print the outcome of a program that is there."""
    if outcome.result != "absent":
        say(
            f"{name:<9} {outcome.result:<8} {url}{'  (' + outcome.detail + ')' if outcome.detail else ''}"
        )


if __name__ == "__main__":
    main()
