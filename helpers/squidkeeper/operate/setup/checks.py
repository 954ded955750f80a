"""What is checked before anything is replaced: as Squid's account, and by
Squid itself.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from shutil import which
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.faults import FaultCode
from squidkeeper.base.squid_account import call_as, unreadable_for
from squidkeeper.operate.setup.machine import Machine, run
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.sockets import is_free, process_listens
from squidkeeper.services.maintenance.own_addresses import answers_at

# of the environment that this process runs from
PROGRAM = Path(sys.prefix) / "bin/squidkeeper"
_QUESTION = "1 127.0.0.1 - CONNECT - squidkeeper.invalid 443 - - -\n"
_LOGIN = re.compile(r"login=\S+")
_PARENT_SECONDS = 2.0
_LEAVES_DUPLICATES: Final = (3, 21)  # the version of logrotate
_FAULTY = re.compile(r".*(?:\| (?:FATAL|ERROR): |unrecognized: ).*")


def check_way_to(machine: Machine, folder: Path) -> None:
    """Check that Squid's account can enter a folder and what is above it: helpers never
    are root.
    """
    ways = [
        str(parent) for parent in (*reversed(folder.parents), folder) if parent.is_dir()
    ]
    closed = call_as(
        machine.account,
        lambda: next((way for way in ways if not os.access(way, os.X_OK)), ""),
    )
    if closed:
        raise SetupFailed(
            f"Squid's account {machine.account.name} cannot enter {closed}",
            f"chmod o+x {closed}, or choose another --root, such as /srv/gateway",
        )


def check_readable(machine: Machine, venv: Path) -> None:
    """Check that Squid's account can read the program: modes may have been changed
    since it was built.
    """
    closed = unreadable_for(machine.account, [venv, *venv.rglob("*")])
    if closed:
        first = next(iter(closed.values()))
        raise SetupFailed(
            f"Squid's account {machine.account.name} cannot read {first}",
            f"chmod -R go+rX {venv}",
        )


def check_answer(machine: Machine, policy: Path, state: Path) -> None:
    """Ask a new program a question as Squid asks it; any verdict will do."""
    command = (
        PROGRAM,
        "acl",
        "--scope",
        "host",
        "--concurrency",
        "16",
        "--policy",
        policy,
        "--state",
        state,
    )
    told = machine.run_as_squid(*command, input=_QUESTION).stdout
    answer = next((line for line in told.splitlines() if line.startswith("1 ")), "")
    if not re.match("1 (OK|ERR) ", answer):
        raise SetupFailed(
            f"the program does not answer: expected '1 OK …' or '1 ERR …', got '{answer}'",
            details=told,
        )


def check_policy(machine: Machine, policy: Path, state: Path) -> tuple[bool, str]:
    """Run `squidkeeper check` as Squid's account; give whether the policy loads, and
    what the command says.
    """
    # it is rendered next
    command = (
        PROGRAM,
        "check",
        "--policy",
        policy,
        "--state",
        state,
        "--fragment",
        "",
    )
    done = machine.run_as_squid(*command)
    return done.returncode == 0, done.stdout


def check_exports(folder: Path) -> tuple[bool, str]:
    """Check the files of the exports; give whether they are good, and what the command
    says.
    """
    done = run(PROGRAM, "export", "--config", folder, "--check")
    return done.returncode == 0, done.stdout


def open_rules(machine: Machine, policy: Path, state: Path) -> list[str]:
    """List the rules of a policy that allow any client, each with its place."""
    command = (
        PROGRAM,
        "check",
        "--json",
        "--require-clients",
        "--policy",
        policy,
        "--state",
        state,
    )
    found = json.loads(
        machine.run_as_squid(*command, stderr=subprocess.DEVNULL).stdout
    )["faults"]
    line = "{file}:{line}:{column}: {message}"
    return [
        line.format(**fault) for fault in found if fault["code"] == FaultCode.ANY_CLIENT
    ]


def squid_parses(service: str, conf: Path) -> tuple[bool, str]:
    """Have Squid parse a configuration; it reports some faults, such as a missing
    program, and exits with 0.
    """
    done = run("squid", "-n", service, "-k", "parse", "-f", conf)
    # it repeats every line, passwords of parent proxies included
    said = _LOGIN.sub("login=…", done.stdout)
    return done.returncode == 0 and re.search(r"\| (FATAL|ERROR): ", said) is None, said


def check_prepared(service: str, conf: Path) -> str:
    """Have Squid parse what lies prepared beside a squid.conf, and return what it says;
    `SetupFailed` for faults.
    """
    good, told = squid_parses(service, conf)
    if not good:
        faults = faults_of(told).replace(f"{conf.parent}/", "prepared ")
        raise SetupFailed(
            "squid -k parse does not accept the configuration", details=faults
        )
    return told


def unnamed_tests(parsed: str) -> list[str]:
    """List the ACLs with a name like ours that Squid has read, and that no line names:
    lines of the operator's add to one that is not there.
    """
    lines = [line.split() for line in re.findall(r"\| Processing: (.*)", parsed)]
    tests = {line[1] for line in lines if line[0] == "acl" and line[1][:3] == "sk_"}
    named = {
        word.removeprefix("!")
        for line in lines
        for word in line[2 if line[0] == "acl" else 1 :]
    }
    return sorted(tests - named)


def unsafe_directives(parsed: str) -> list[str]:
    """List directives of the operator's, as Squid repeats them, that take requests past
    the closing of addresses.
    """
    found = re.findall(r"\| Processing: ((?:cache_peer|always_direct) .*)", parsed)
    return [directive for directive in found if " name=sk_" not in directive]


def faults_of(parsed: str) -> str:
    """Return the lines about faults of what Squid said while it parsed."""
    return "".join(f"{line}\n" for line in _FAULTY.findall(parsed))


def leaves_duplicates() -> bool:
    """Whether logrotate is installed and knows `ignoreduplicates`."""
    found = (
        re.search(r"logrotate (\d+)\.(\d+)", run("logrotate", "--version").stdout)
        if which("logrotate")
        else None
    )
    return found is not None and (int(found[1]), int(found[2])) >= _LEAVES_DUPLICATES


def check_listener(address: str, option: str, *pids: int | None) -> None:
    """Check that a process of ours can listen, unless one does so already: a Squid that
    cannot ends at once.
    """
    other = f"choose another {option}"
    try:
        free = is_free(address)
    except OSError as error:
        what = f"{address} is not an address of this machine (yet)"
        raise SetupFailed(
            what, f"set the network up first, {other}, or install with --no-start"
        ) from error
    if not free and not any(process_listens(pid, port_of(address)) for pid in pids):
        raise SetupFailed(_taken(address), f"end it, or {other}")


def check_ports(address: str, pids: Mapping[int, int | None]) -> bool:
    """Check that processes of ours can listen on ports of an address; give whether this
    machine has the address.
    """
    host = f"[{address}]" if ":" in address else address
    for port, pid in pids.items():
        try:
            if is_free(f"{host}:{port}") or process_listens(pid, port):
                continue
        except OSError:
            return False
        raise SetupFailed(
            _taken(f"{host}:{port}"), "end it, or choose another --transparent"
        )
    return True


def _taken(listen: str) -> str:
    return f"something else listens on {listen} already: {_listeners(port_of(listen), '-Hlntp')}"


def _listeners(port: int, options: str) -> str:
    return " ".join(run("ss", options, f"sport = :{port}").stdout.split())


def check_parent(name: str, host: str, port: int, *listens: str) -> str:
    """Check that a parent is not this gateway, which would send itself each request;
    give what keeps it from answering.

    `listens` is where the gateway listens. The text is empty where the parent takes
    connections.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"its name does not resolve on this machine ({error.strerror})"
    addresses = {
        ip_address(str(resolved[4][0]).partition("%")[0]) for resolved in found
    }
    if any(
        port_of(listen) == port and addresses & answers_at(listen) for listen in listens
    ):
        raise SetupFailed(
            f"the parent proxy {name}, {host}:{port}, is this gateway",
            "name another proxy",
        )
    try:
        socket.create_connection((host.strip("[]"), port), _PARENT_SECONDS).close()
    except OSError as error:
        return f"nothing answers there now ({error.strerror or error})"
    return ""


def check_resolver(address: str, pid: int | None, local: Path) -> None:
    """Check that the resolver can listen. dns_nameservers takes no port, so it must be
    53.
    """
    listen = f"{address}:53"
    if process_listens(pid, 53) or (
        is_free(listen) and is_free(listen, socket.SOCK_DGRAM)
    ):
        return
    raise SetupFailed(
        f"something else listens on port 53 of every address, or of {address}: {_listeners(53, '-Hlnup')}",
        "let it listen on its own addresses alone (dnsmasq: bind-interfaces; BIND: listen-on), or name it in"
        f" {local}, by dns_nameservers",
    )
