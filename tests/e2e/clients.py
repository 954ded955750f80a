"""The clients that agents use, what each shows of an answer, and the table of
squid/CLIENTS.md made from that.

The environment is the one that `squidkeeper env` prints; the programs of the probe are
run by the probe's own commands.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

from squidkeeper.operate.client_kit.probe_table import PROGRAMS
from tests.waiting import wait_for

from .gateway import Gateway
from .network import VirtualMachine, run
from .origin import Origins

REASON = "Closed here: ask the platform team."
RULES = f"""
  - {{name: closed, action: deny, hosts: [closed.example], reason: "{REASON}"}}
  - {{name: secrets, action: deny, hosts: [open.example], paths: ["/secret/**"], reason: "{REASON}"}}
  - {{name: open, action: allow, clients: [agents], hosts: [open.example, rewritten.example, untrusted.example]}}
rewrites:
  - {{name: mirror, hosts: [rewritten.example], to: "https://mirror.example{{path}}{{query}}"}}
"""  # of a policy with the client `agents`


class Case(StrEnum):
    """What is asked of the gateway."""

    ALLOWED = "allowed"
    DENIED_HOST = "denied host"
    DENIED_PATH = "denied by path"
    REWRITTEN = "rewritten host"
    BAD_CERTIFICATE = "bad origin certificate"


URLS = {
    Case.ALLOWED: "https://open.example/{token}/",
    Case.DENIED_HOST: "https://closed.example/{token}/",
    Case.DENIED_PATH: "https://open.example/secret/{token}/",
    Case.REWRITTEN: "https://rewritten.example/{token}/",
    Case.BAD_CERTIFICATE: "https://untrusted.example/{token}/",
}


class Shown(StrEnum):
    """What a client shows of the answer."""

    ORIGIN = "the origin's answer"
    PAGE = "the page"
    STATUS = "the status"
    NOTHING = "no reason"
    TLS = "a TLS error"


class Login(StrEnum):
    """When a client sends the login that its proxy's URL holds."""

    AT_ONCE = "at once"
    WHEN_ASKED = "when asked"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Client:
    """A client: the name in the table, the command, what it shows of a denial and of a
    failure after the policy.
    """

    name: str
    command: str
    denial: Shown
    failure: Shown
    reads: str  # what the user reads of a denial, in the table
    footnote: str = ""  # in the table, beside that of `strict`
    transparent: str = "same"  # without proxy settings, in the table
    login: Login = Login.AT_ONCE
    strict: bool = (
        False  # checks the extensions of certificates, as Python does from 3.13 on
    )

    def shows(self, case: Case, *, generator: str) -> Shown:
        """Return what the client has to show."""
        if case in _WITHOUT_ORIGIN and self.strict and generator == SQUID:
            return Shown.TLS
        if case is Case.BAD_CERTIFICATE:
            return self.failure
        return Shown.ORIGIN if case in (Case.ALLOWED, Case.REWRITTEN) else self.denial


GENERATORS = OURS, SQUID = ("squidkeeper", "squid")  # of install.sh --certificates
_FAILED = (Case.DENIED_HOST, Case.DENIED_PATH, Case.BAD_CERTIFICATE)
# The leaf is made without an origin's certificate to copy.
_WITHOUT_ORIGIN = (Case.DENIED_HOST, Case.REWRITTEN, Case.BAD_CERTIFICATE)
_COMMANDS = {program.name: program.command for program in PROGRAMS}
_FULL = "the whole page"
# as the package ca-certificates-java makes it
_JAVA_STORE = Path("/etc/ssl/certs/java/cacerts")
_HTTPX = """
import sys, httpx
answer = httpx.get(sys.argv[1], timeout=20)
print("status=%d" % answer.status_code)
print(answer.text)
"""
_AIOHTTP = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(sys.argv[1]) as answer:
        print("status=%d" % answer.status)
        print(await answer.text())
asyncio.run(main())
"""
_PYCURL = """
import sys, pycurl
curl = pycurl.Curl()
curl.setopt(pycurl.URL, sys.argv[1])
print(curl.perform_rs())
print("status=%d" % curl.getinfo(pycurl.RESPONSE_CODE))
"""
GO = """
package main

import ("fmt"; "io"; "net/http"; "os")

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil { fmt.Println(err); os.Exit(1) }
	body, _ := io.ReadAll(answer.Body)
	fmt.Printf("status=%d\\n%s\\n", answer.StatusCode, body)
}
"""  # built as $CLIENTS/get
_CARGO = 'CARGO_HOME="$TMP" CARGO_NET_RETRY=0 cargo search --index "sparse+$URL" squidkeeper-probe'
_BROWSER = 'chromium --headless=new --no-sandbox --disable-gpu --user-data-dir="$TMP/profile" --dump-dom "$URL"'

IN_EVERY_RUN = (
    Client("curl (OpenSSL)", _COMMANDS["curl"], Shown.PAGE, Shown.PAGE, _FULL),
    Client(
        "Python urllib",
        _COMMANDS["python"],
        Shown.PAGE,
        Shown.PAGE,
        "`HTTP Error 403`; the page in `error.read()`",
        strict=True,
    ),
    Client(
        "git",
        _COMMANDS["git"],
        Shown.PAGE,
        Shown.PAGE,
        "the page as `remote:` lines, then `error: 403`",
        "²",
    ),
)
ON_REQUEST = (
    Client(
        "Python requests",
        _COMMANDS["requests"],
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
        strict=True,
    ),
    Client(
        "Python httpx",
        f"python3 -c '{_HTTPX}' \"$URL\"",
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
        strict=True,
    ),
    Client(
        "Python aiohttp",
        f"python3 -c '{_AIOHTTP}' \"$URL\"",
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
        strict=True,
    ),
    Client(
        "curl (GnuTLS)",
        f"/usr/bin/python3 -c '{_PYCURL}' \"$URL\"",
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
    ),
    Client(
        "wget",
        _COMMANDS["wget"],
        Shown.PAGE,
        Shown.PAGE,
        "`ERROR 403: Forbidden`; the page with `--content-on-error`",
    ),
    Client(
        "pip",
        _COMMANDS["pip"],
        Shown.STATUS,
        Shown.STATUS,
        "`No matching distribution found`; the status with `-vv`",
    ),
    Client(
        "uv",
        _COMMANDS["uv"],
        Shown.STATUS,
        Shown.STATUS,
        "`returned a 403 Forbidden error`",
    ),
    Client("npm", _COMMANDS["npm"], Shown.STATUS, Shown.STATUS, "`E403 403 Forbidden`"),
    Client(
        "Node fetch",
        _COMMANDS["node"],
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
        transparent="same, and `http://` works",
    ),
    Client("Go net/http", '"$CLIENTS/get" "$URL"', Shown.PAGE, Shown.PAGE, _FULL),
    Client(
        "Go modules", _COMMANDS["go"], Shown.STATUS, Shown.STATUS, "`403 Forbidden`"
    ),
    Client(
        "Cargo",
        _CARGO,
        Shown.PAGE,
        Shown.PAGE,
        "the beginning of the page, below `got 403`",
    ),
    Client(
        "Java HttpClient",
        _COMMANDS["java"],
        Shown.PAGE,
        Shown.PAGE,
        _FULL,
        login=Login.NEVER,
    ),
    Client("apt", _COMMANDS["apt"], Shown.STATUS, Shown.STATUS, "`403  Forbidden`"),
    Client(
        "Chromium",
        _BROWSER,
        Shown.PAGE,
        Shown.PAGE,
        "the page, as HTML",
        login=Login.NEVER,
    ),
)

# Cargo shows the beginning
_PAGE = re.compile(r"request[ _]id\"?: |^ *reason: ", re.IGNORECASE | re.MULTILINE)
_STATUS = re.compile(r"\b(403|502|503)\b")
_TLS = re.compile(r"certificate|x509|PKIX|SSL", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM in which clients run: with the variables of a client, and programs that are
    not the system's.
    """

    vm: VirtualMachine
    variables: dict[str, str]

    def run(self, command: str, url: str, folder: Path, *, seconds: int = 60) -> str:
        """Run a command for a URL as an agent would; give what it printed."""
        environment = {**self.variables, "URL": url, "TMP": str(folder)}
        done = subprocess.run(
            self.vm.command("timeout", str(seconds), "sh", "-c", command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.stdout.decode(errors="replace")


def machine_of(
    vm: VirtualMachine,
    gateway: Gateway,
    programs: Path,
    home: Path,
    *options: str | Path,
) -> Machine:
    """A machine with the variables of the gateway's clients, and the CA in Chromium's
    own trust store.
    """
    store = f"sql:{home}/.pki/nssdb"  # beside the system's
    (home / ".pki/nssdb").mkdir(parents=True)
    run("certutil", "-d", store, "-N", "--empty-password")
    run("certutil", "-d", store, "-A", "-t", "C,,", "-n", "gateway", "-i", gateway.ca)
    path = f"{programs}/node/node_modules/.bin:{programs}/python/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = gateway_variables(gateway, *options)
    return Machine(
        vm, {**variables, "PATH": path, "HOME": str(home), "CLIENTS": str(programs)}
    )


def cargo_folder() -> Path:
    """Where cargo itself is: rustup's stand-in for it looks into the home of
    its user.
    """
    found = (
        run("rustup", "which", "cargo").strip()
        if shutil.which("rustup")
        else shutil.which("cargo")
    )
    return Path(found or "/usr/bin/cargo").parent


def trust_in_java(vm: VirtualMachine, ca: Path, store: Path) -> None:
    """Add a CA to Java's trust store in the VM."""
    shutil.copy(_JAVA_STORE, store)
    words = ("-importcert", "-noprompt", "-storepass", "changeit", "-alias", "gateway")
    run("keytool", *words, "-file", ca, "-keystore", store)
    vm.run("mount", "--bind", store, _JAVA_STORE)


def gateway_variables(gateway: Gateway, *options: str | Path) -> dict[str, str]:
    """The variables that the gateway's own program prints for the client `agents`."""
    of_client = (
        "--root",
        gateway.root,
        "--client",
        "agents",
        "--ca-path",
        gateway.ca,
        *options,
    )
    variables: dict[str, str] = json.loads(
        run(gateway.root / "bin/squidkeeper", "env", *of_client, "--format", "json")
    )
    return variables


def ask(
    machine: Machine, client: Client, case: Case, origins: Origins, folder: Path
) -> Shown:
    """Let a client ask for the URL of a case; give what it shows."""
    origins.untrusted.add("untrusted.example")
    token = uuid4().hex
    own = folder / token
    own.mkdir()
    output = machine.run(client.command, URLS[case].format(token=token), own)
    return what_is_shown(
        output, reached=any(token in seen.target for seen in origins.seen)
    )


def log_in(
    machine: Machine, client: Client, gateway: Gateway, origins: Origins, folder: Path
) -> Login:
    """Let a client ask for what is open to everybody, then for what its login opens;
    tell when it sends that.
    """
    token = uuid4().hex
    for number, host in enumerate(("anybody.example", "open.example")):
        own = folder / f"{token}{number}"
        own.mkdir()
        machine.run(client.command, f"https://{host}/{token}/", own)
    if "open.example" not in {
        request.sni for request in origins.seen if token in request.target
    }:
        return Login.NEVER
    wait_for(lambda: _users(gateway, "open.example", token), f"the lines of {token}")
    return (
        Login.AT_ONCE
        if _users(gateway, "anybody.example", token) == {"agents"}
        else Login.WHEN_ASKED
    )


def _users(gateway: Gateway, host: str, token: str) -> set[str]:
    return {
        line["user"]
        for line in gateway.log()
        if line["url"].startswith(f"https://{host}/{token}")
    }


def what_is_shown(output: str, *, reached: bool) -> Shown:
    """Tell what a client shows, from what it printed and whether the request reached an
    origin.
    """
    if reached:
        return Shown.ORIGIN
    tries = ((_PAGE, Shown.PAGE), (_STATUS, Shown.STATUS), (_TLS, Shown.TLS))
    return next(
        (shown for pattern, shown in tries if pattern.search(output)), Shown.NOTHING
    )


def clients_table() -> str:
    """Write the table of squid/CLIENTS.md, for our own generator of certificates."""
    rows = [
        [
            "client",
            "shows of a denied or failed request",
            "the user reads of a denial",
            "without proxy settings",
        ],
        ["---"] * 4,
    ]
    for client in (*IN_EVERY_RUN, *ON_REQUEST):
        name = " ".join(
            filter(None, (client.name, "¹" if client.strict else "", client.footnote))
        )
        [shown] = {client.shows(case, generator=OURS) for case in _FAILED}
        rows.append([name, shown, client.reads, client.transparent])
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        .replace("| --- ", "|---")
        .replace("---|", "---|")
    )


def logins_table() -> str:
    """Write the table of squid/CLIENTS.md that tells when each client sends
    its login.
    """
    clients = (*IN_EVERY_RUN, *ON_REQUEST)
    rows = [
        (login, ", ".join(client.name for client in clients if client.login is login))
        for login in Login
    ]
    return "| the login is sent | by |\n|---|---|\n" + "".join(
        f"| {login} | {names} |\n" for login, names in rows if names
    )
