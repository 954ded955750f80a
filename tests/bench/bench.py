#!/usr/bin/env python3
"""What the gateway costs beside what it is compared with, all in one run.

    sudo tests/bench/bench.py [--rounds 5] [--seconds 4] [--load fresh] [--only PATTERN]
    [--parts] [--before DIR]
                              [--json FILE]

Every URL is unique; origin (nginx), Squid and load are on this machine, in a network
namespace of their own. The loads:

  http         plain, by wrk, 32 connections
  kept-alive   https by clients.py: all requests of a client in one tunnel
  fresh        the same, each request in a tunnel of its own; the clients take more of
               the processor than Squid does
  chat, keys   the same, POST of 10 KB of JSON: long texts, many members
  push         uploads of 200 MB, as git pushes, by two curls
  far          an origin 30 ms away, and a new curl for each request: a ratio by rate of
               2.2 is 0.45 of the time. "20 GETs" are one curl, as an installer of
               packages is

--load measures one of them alone, --only the variants whose names match. --parts
measures each part of the configuration too: requests that use it, and requests that do
not while it is in force. --before is a checkout of another revision, as `git worktree
add --detach DIR REVISION` makes it: its gateway is measured beside.

Before it is measured, a request of each variant shows that the origin sees what it is
to see. All run in turn, round after round, each round beginning with another one; a
ratio is taken within each round, and its median and spread over the rounds are what
counts. "cpu" is the processor time of the proxy's workers for each request, "helpers"
that of its helpers, and of the exporter or HAProxy where it serves too (with TLS to
HAProxy in the load "http" alone: wrk speaks one TLS), or of the ports for clients
without proxy settings; other work on the machine touches both less than the rate. Needs
nginx, wrk, curl, gcc, openssl, iproute2, haproxy and what install.sh installs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import monotonic

import far  # type: ignore[import-not-found] # beside this script
import policies  # type: ignore[import-not-found]
from command import options_of, require, save, scratch, show, spread, table  # type: ignore[import-not-found]
from policies import FAR_OWN, FAR_SHARED, HOST, PUSHES, SECRET, USED

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
FAR_ORIGIN = "203.0.113.11"  # the same origin, by the relay of far.py
# public by the policy language, and on the namespace's own loopback interface
ORIGIN = "203.0.113.10"
CONNECTIONS = 32
# clients come from it too: none is "localhost", as none is on a gateway
LISTEN = "203.0.113.20"
METRICS = "127.0.0.1:4199"
BEHIND_HAPROXY = "127.53.53.53"
LOADS = HTTP, KEPT_ALIVE, FRESH, FAR, CHAT, KEYS, PUSH = (
    "http",
    "kept-alive",
    "fresh",
    "far",
    "chat",
    "keys",
    "push",
)
POSTS = (CHAT, KEYS, PUSH)
MANY, MANY_PLAIN = "20 GETs", "20 GETs by http"  # to the far origin
PUSHED = "application/x-git-receive-pack-request"
SINK = "203.0.113.12"  # reads uploads, and answers when they have come
NAMES = {ORIGIN: (HOST, USED), SINK: (PUSHES,), FAR_ORIGIN: (FAR_SHARED, FAR_OWN)}
NAMESPACE = f"squidkeeper-bench-{os.getpid()}"
INSIDE = ("ip", "netns", "exec", NAMESPACE)

WALKTHROUGH = """
http_port {listen}:{port} ssl-bump cert={root}/etc/ca/signing.crt key={root}/etc/ca/signing.key \\
    generate-host-certificates=on dynamic_cert_mem_cache_size=4MB
sslcrtd_program {certgen} -s {root}/state/ssl_db -M 4MB
sslcrtd_children 5
acl step1 at_step SslBump1
ssl_bump peek step1
ssl_bump bump all
acl banned dstdomain .wikipedia.org
http_access deny banned
http_access allow all
access_log {root}/log/access.log squid
cache_log {root}/log/cache.log
pid_filename {root}/run/squid.pid
hosts_file {root}/etc/hosts
pinger_enable off
{trust}
"""
TRUST = "tls_outgoing_options cafile={folder}/origin.crt"
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000; keepalive_timeout 1h;
    server {{
        listen {origin}:80; listen {origin}:443 ssl;
        ssl_certificate {folder}/origin.crt; ssl_certificate_key {folder}/origin.key;
        location / {{
            add_header Cache-Control no-store;
            return 200 "$request_uri $http_authorization hello\\n";
        }}
    }}
}}
"""
RENDER = """
import sys
from pathlib import Path
from pwd import getpwuid
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.operate.setup.entries import File
from squidkeeper.operate.setup.rendering import named_values, read_values, rendered_anew
import msgspec

layout = Layout.of(Path(sys.argv[1]))
owner = layout.state.stat()
account = Account(getpwuid(owner.st_uid).pw_name, owner.st_uid, owner.st_gid)
named = named_values(account, layout, layout.policy, layout.state / "lists").values
values = msgspec.structs.replace(named, default=read_values(layout).default)
folder = layout.generation.resolve()
files = rendered_anew(layout, values, account, folder)
for path in [*layout.parts.iterdir()]:
    path.unlink()
for name, file in files.items():
    if isinstance(file, File):
        (folder / name).write_bytes(file.content)
"""
Figures = dict[str, list[dict[str, float]]]  # of each variant, those of each round


@dataclass(frozen=True)
class Model:
    """How a gateway is installed."""

    # the key of the CA that is given, in openssl's words; empty: install.sh makes a CA
    ca: str = ""
    options: tuple[str, ...] = ()
    before: bool = False  # by the revision of --before

    @property
    def name(self) -> str:
        return re.sub(
            r"[^\w-]+",
            "-",
            f"installed-{self.before}-{self.ca}-{' '.join(self.options)}",
        )


@dataclass(frozen=True)
class Variant:
    """A Squid to measure: its name and what is changed in the gateway's configuration,
    as (pattern, replacement).
    """

    name: str
    loads: tuple[str, ...] = (HTTP,)
    policy: str = policies.HOST_SCOPE
    changes: tuple[tuple[str, str], ...] = ()
    plain: bool = False
    noop: bool = False  # its helper does nothing
    origin_sees: str = (
        "/a/0"  # of a request for that path: the path, and the credential
    )
    haproxy: str = ""  # HAProxy takes the clients, which call it by this scheme
    transparent: bool = False  # the clients have no proxy settings
    exporter: bool = False  # it runs too, and is scraped every second
    bodies: bool = False  # what judges bodies runs too
    model: Model = Model()
    # it is measured with requests to both hosts, which use the part or do not
    part: bool = False


@dataclass(frozen=True)
class Running:
    """A proxy that runs, under one of its loads."""

    name: str
    load: str
    port: int
    processes: tuple[int, ...]  # those that serve
    scheme: str = "http"  # by which clients call it
    beside: int = 0  # the process of HAProxy, or of the exporter
    host: str = HOST
    method: str = "GET"
    transparent: bool = False  # the clients have no proxy settings

    @property
    def title(self) -> str:
        return f"{self.load}: {self.name}"

    @property
    def client_port(self) -> int:
        """The port that clients call."""
        if not self.transparent:
            return self.port
        return 80 if self.load == HTTP else 443


# which goes on in a second line
COMMAND = r"\S+/bin/squidkeeper {helper}\b.*\n.*--state \S+(?: --run \S+)?"
NOOP_REQUEST = ((COMMAND.format(helper="acl --scope request"), "{noop}"),)
NOOP_CREDENTIAL = ((COMMAND.format(helper="credential"), "{noop}"),)
SEEN = f"/a/0 Bearer {SECRET}"
BEFORE = "the revision before"
RSA_2048 = "rsa:2048"  # the CA's key, in openssl's words
DIRECT = ("--ca", "direct", "--certificates", "squid")  # as the walkthrough has it
VARIANTS = (
    Variant(
        "walkthrough",
        (HTTP, KEPT_ALIVE, FRESH, FAR),
        plain=True,
        model=Model(RSA_2048, DIRECT),
    ),
    Variant(BEFORE, (HTTP, KEPT_ALIVE, FRESH), model=Model(before=True)),
    Variant("host scope", (HTTP, KEPT_ALIVE, FRESH, *POSTS)),
    Variant("bodies", (HTTP, *POSTS), policies.BODIES, bodies=True),
    Variant("host scope, shared", (HTTP, KEPT_ALIVE, FRESH), policies.SHARED),
    Variant("host scope, exporter", exporter=True),
    Variant("host scope, HAProxy", (HTTP, KEPT_ALIVE, FRESH), haproxy="http"),
    Variant("host scope, TLS to HAProxy", (HTTP,), haproxy="https"),
    Variant(
        "host scope, transparent",
        (HTTP, KEPT_ALIVE, FRESH),
        transparent=True,
        model=Model(options=("--transparent", LISTEN)),
    ),
    Variant(
        "C no-op, request",
        (HTTP, KEPT_ALIVE),
        policies.REQUEST_SCOPE,
        NOOP_REQUEST,
        noop=True,
    ),
    Variant("request scope", (HTTP, KEPT_ALIVE, FRESH), policies.REQUEST_SCOPE),
    Variant(
        "C no-op, injection",
        (KEPT_ALIVE,),
        policies.INJECTION,
        NOOP_CREDENTIAL,
        noop=True,
    ),
    Variant("injection", (KEPT_ALIVE,), policies.INJECTION, origin_sees=SEEN),
    Variant("gateway", (FAR,), policies.FAR),
    *(
        Variant(f"part {name}", (HTTP, KEPT_ALIVE), policy, part=True)
        for name, policy in policies.PARTS.items()
    ),
)
NOT_USED, IS_USED = ", not used", ", used"
RATIOS: tuple[
    tuple[str, str, str, float | None], ...
] = (  # the last is what is to be reached
    (HTTP, "host scope, shared", "walkthrough", 0.85),
    (HTTP, "host scope", "walkthrough", None),
    (KEPT_ALIVE, "host scope", "walkthrough", 0.88),
    (KEPT_ALIVE, "host scope, shared", "walkthrough", 0.88),
    (HTTP, "request scope", "C no-op, request", 0.97),
    (KEPT_ALIVE, "request scope", "C no-op, request", 0.97),
    (KEPT_ALIVE, "injection", "C no-op, injection", 0.97),
    (FRESH, "host scope, shared", "walkthrough", 2.2),
    (FRESH, "host scope", "walkthrough", 1.25),
    (FAR, "GET, shared", "GET, direct", 1 / 0.45),
    (FAR, "GET, own", "GET, direct", 1 / 1.06),
    (FAR, "GET, walkthrough", "GET, direct", None),
    *(
        (FAR, f"{load}, {kind}", f"{load}, {than}", None)
        for load in (MANY, MANY_PLAIN)
        for kind, than in (("own", "direct"), ("shared", "direct"), ("own", "shared"))
    ),
    (FAR, "GET, own", "GET, shared", None),
    (FAR, "POST, own", "POST, direct", 1 / 1.06),
    (HTTP, "bodies", "host scope", None),
    *(
        (load, "bodies", "host scope", target)
        for load, target in zip(POSTS, (0.70, 0.60, 0.95), strict=True)
    ),
    *(
        (load, "request scope", "walkthrough", None)
        for load in (HTTP, KEPT_ALIVE, FRESH)
    ),
    (KEPT_ALIVE, "injection", "walkthrough", None),
    *(
        (load, "host scope, HAProxy", "host scope", None)
        for load in (HTTP, KEPT_ALIVE, FRESH)
    ),
    (HTTP, "host scope, TLS to HAProxy", "host scope", None),
    (HTTP, "host scope, transparent", "host scope", None),
    (KEPT_ALIVE, "host scope, transparent", "host scope", 0.75),
    (FRESH, "host scope, transparent", "host scope", 0.85),
    (HTTP, "host scope, exporter", "host scope", None),
    *((load, "host scope", BEFORE, None) for load in (HTTP, KEPT_ALIVE, FRESH)),
    *(
        (load, f"part {name}{use}", "host scope", 1 if use == NOT_USED else None)
        for name in policies.PARTS
        for use in (NOT_USED, IS_USED)
        for load in (HTTP, KEPT_ALIVE)
    ),
)


def main() -> None:
    """Run the benchmark."""
    options = options_of(__doc__, rounds=5, seconds=4)
    options.add_argument(
        "--load",
        choices=LOADS,
        action="append",
        help="this load alone; may be given twice",
    )
    options.add_argument(
        "--only", default="", help="a regular expression of the variants' names"
    )
    options.add_argument(
        "--parts",
        action="store_true",
        help="measure each part of the configuration too",
    )
    options.add_argument(
        "--before", type=Path, help="a checkout of another revision, to be measured too"
    )
    chosen = options.parse_args()
    require(("squid", "nginx", "wrk", "curl", "openssl", "ip", "haproxy", "gcc"))
    found = chosen_variants(
        chosen.load or LOADS, chosen.only, before=chosen.before is not None
    )
    variants = [variant for variant in found if chosen.parts or not variant.part]
    figures = measure(variants, chosen.rounds, chosen.seconds, chosen.before)
    print("\n".join(tables(figures)))
    save(chosen.json, {"figures": figures})


def chosen_variants(
    loads: Collection[str], only: str, *, before: bool
) -> Iterator[Variant]:
    """Choose the variants that have one of the loads, each with those alone."""
    for variant in VARIANTS:
        wanted = tuple(load for load in variant.loads if load in loads)
        if (
            wanted
            and re.search(only, variant.name)
            and (before or not variant.model.before)
        ):
            yield replace(variant, loads=wanted)


def measure(
    variants: list[Variant], rounds: int, seconds: int, before: Path | None
) -> Figures:
    """Measure each variant in each round."""
    running: list[Running] = []
    with scratch() as folder, ExitStack() as stack:
        installed = {
            model: install(folder, model, before)
            for model in dict.fromkeys(one.model for one in variants)
        }
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        for port, variant in enumerate(variants, 4200):
            beside = (
                stack.enter_context(haproxy(folder, port)) if variant.haproxy else 0
            )
            workers = stack.enter_context(
                squid(variant, folder, installed[variant.model], port)
            )
            if variant.bodies:
                beside = int((folder / f"gateway-{port}/bodies.pid").read_text())
            if variant.transparent:
                root = folder / f"gateway-{port}"
                beside = stack.enter_context(
                    service(root, "transparent", f"{LISTEN}:443")
                )
            if variant.exporter:
                beside = stack.enter_context(
                    exporter(installed[variant.model], folder / f"gateway-{port}")
                )
            running += runs_of(variant, port, workers, beside)
        return rounds_of(running, rounds, seconds, folder)


def runs_of(
    variant: Variant, port: int, workers: tuple[int, ...], beside: int
) -> Iterator[Running]:
    """Name what is measured of a variant."""
    base = Running(variant.name, HTTP, port, workers, variant.haproxy or "http", beside)
    base = replace(base, transparent=variant.transparent)
    for load in variant.loads:
        if load == FAR:
            yield from far_runs(replace(base, load=FAR))
        elif variant.part:
            yield from part_runs(replace(base, load=load))
        else:
            yield replace(base, load=load)


def far_runs(base: Running) -> Iterator[Running]:
    """Name the requests to the far origin: through the walkthrough, or directly and
    through both kinds of tunnels.
    """
    if base.name == "walkthrough":
        yield replace(base, name="GET, walkthrough", host=FAR_OWN)
        return
    for method in ("GET", "POST"):
        yield Running(
            f"{method}, direct",
            FAR,
            base.port,
            (),
            scheme="",
            host=FAR_OWN,
            method=method,
        )
        yield replace(base, name=f"{method}, own", host=FAR_OWN, method=method)
    yield replace(base, name="GET, shared", host=FAR_SHARED)
    for name in (MANY, MANY_PLAIN):
        direct = replace(base, name=f"{name}, direct", host=FAR_OWN, processes=())
        yield replace(direct, scheme="")
        yield replace(base, name=f"{name}, own", host=FAR_OWN)
        yield replace(base, name=f"{name}, shared", host=FAR_SHARED)


def part_runs(base: Running) -> Iterator[Running]:
    """Name the requests that use a part, and those that do not."""
    part = base.name.removeprefix("part ")
    if part not in policies.EVERY_REQUEST:
        yield replace(base, name=base.name + NOT_USED)
    if part not in policies.WITHOUT_USE and (part, base.load) != (
        "rewrites",
        KEPT_ALIVE,
    ):
        yield replace(base, name=base.name + IS_USED, host=USED)


def rounds_of(
    running: list[Running], rounds: int, seconds: int, folder: Path
) -> Figures:
    """Load all in turn, round after round."""
    figures: Figures = {measuring.title: [] for measuring in running}
    for number in range(rounds + 1):  # the first warms up and does not count
        for measured in (
            running[number % len(running) :] + running[: number % len(running)]
        ):
            found = figures_of(measured, seconds, folder)
            if number:
                figures[measured.title].append(found)
            rate = found["per_second"]
            show(number, rounds, f"{measured.title:<32} {rate:8.0f}/s")
    show(rounds, rounds, "")
    return figures


def figures_of(running: Running, seconds: int, folder: Path) -> dict[str, float]:
    """Load a proxy for some seconds."""
    if running.load in (HTTP, CHAT, KEYS):
        before = spent(running)
        rate, requests = load(running, seconds)
    elif running.load == PUSH:
        before = spent(running)
        rate, requests = push(running, 5 * seconds, folder)  # each takes seconds
    elif running.load == FAR:
        before = spent(running)
        rate, requests = far.load(curl(running, folder), seconds)
    else:
        with tunnels(running, seconds, folder) as answered:
            before = spent(running)
            requests = answered()
        rate = requests / seconds
    if not requests:
        raise SystemExit(f"{running.title}: no request was answered")
    cpu, helpers = (
        (now - then) / requests * 1e6
        for now, then in zip(spent(running), before, strict=True)
    )
    return {
        "per_second": rate,
        "cpu_microseconds": cpu,
        "helpers_microseconds": helpers,
    }


def curl(running: Running, folder: Path) -> list[str]:
    """Return the command of one client of the far origin; a proxy without a scheme is
    none.
    """
    scheme = "http" if running.name.startswith(MANY_PLAIN) else "https"
    path = "/a/[1-20]" if running.name.startswith(MANY) else "/a/0"
    # `ip netns exec` takes as long as the request
    inside = (
        "nsenter",
        f"--net=/run/netns/{NAMESPACE}",
    )
    command = [
        *inside,
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}\\n",
        f"{scheme}://{running.host}{path}",
    ]
    command += ["-d", "x=1"] if running.method == "POST" else []
    if not running.scheme:
        return [
            *command,
            "--resolve",
            f"{running.host}:443:{FAR_ORIGIN}",
            "--resolve",
            f"{running.host}:80:{FAR_ORIGIN}",
            "--cacert",
            str(folder / "origin.crt"),
        ]
    ca = folder / f"gateway-{running.port}/etc/ca/ca.crt"
    return [
        *command,
        "-x",
        f"{running.scheme}://{LISTEN}:{running.port}",
        "--cacert",
        str(ca),
    ]


def install(folder: Path, model: Model = Model(), before: Path | None = None) -> Path:
    """Install a gateway, not started, as the model of variants."""
    root, source = folder / model.name, before if model.before and before else TOP
    root.mkdir()
    for venv in [] if model.before else [*folder.glob("installed-False-*/venv-*")][:1]:
        # what takes long; the other models have the same
        (root / venv.name).symlink_to(venv.resolve())
    options = [
        *model.options,
        *(("--ca-dir", given_ca(folder, model.ca)) if model.ca else ()),
    ]
    command = [
        source / "install.sh",
        "--root",
        root,
        "--listen",
        "127.0.0.1:3129",
        "--no-start",
        *options,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root


def given_ca(folder: Path, key: str) -> Path:
    """Make a CA with a key of this kind, as slicer does."""
    ca = folder / f"ca-{len(list(folder.glob('ca-*')))}"
    ca.mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        *key.split(),
        "-nodes",
        "-days",
        "900",
        "-subj",
        "/CN=bench CA",
    ]
    # which Python asks for
    command += [
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]
    subprocess.run(
        [*command, "-keyout", ca / "ca.key", "-out", ca / "ca.crt"],
        check=True,
        capture_output=True,
    )
    return ca


@contextmanager
def namespace() -> Iterator[None]:
    """Make the network namespace, with the origin's address on its loopback
    interface.
    """
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        for command in (
            "ip link set lo up",
            *(f"ip address add {address}/32 dev lo" for address in (*NAMES, LISTEN)),
        ):
            subprocess.run([*INSIDE, *command.split()], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextmanager
def origin(folder: Path) -> Iterator[None]:
    """Serve a small answer on ports 80 and 443 of the origin's address, which says what
    has arrived.
    """
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench.example"
    names = ",".join(f"DNS:{name}" for hosts in NAMES.values() for name in hosts)
    command += f" -addext subjectAltName={names} -addext basicConstraints=CA:FALSE"
    command += f" -keyout {folder}/origin.key -out {folder}/origin.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    (folder / "origin.crt").chmod(0o644)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, origin=ORIGIN))
    relay = [*INSIDE, sys.executable, str(HERE / "far.py"), FAR_ORIGIN, ORIGIN]
    sink = [*INSIDE, sys.executable, str(HERE / "sink.py"), SINK]
    commands = ([*INSIDE, "nginx", "-c", str(config)], relay, sink)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command)) for command in commands
        ]
        try:
            yield
        finally:
            for process in processes:
                process.terminate()


@contextmanager
def squid(
    variant: Variant, folder: Path, installed: Path, port: int
) -> Iterator[tuple[int, ...]]:
    """Run the installed gateway in a folder and on a port of its own, changed into the
    variant; gives its workers.
    """
    root = folder / f"gateway-{port}"
    shutil.copytree(
        installed, root, symlinks=True, ignore=shutil.ignore_patterns("venv-*")
    )
    (root / "etc/policy/policy.yaml").write_text(variant.policy)
    (root / "etc/policy/key").write_text(f"{SECRET}\n")
    (root / "etc/policy/key").chmod(0o600)
    written = [
        root / name
        for name in ("state", "log", "run", "etc/ca/signing.key", "etc/policy")
    ]
    subprocess.run(
        [
            "chown",
            "-R",
            f"--reference={installed}/state",
            *filter(Path.exists, written),
        ],
        check=True,
    )
    (root / "etc/hosts").write_text(
        "".join(f"{address} {' '.join(hosts)}\n" for address, hosts in NAMES.items())
    )
    generation = root / "etc/generations/current"
    copy = generation if generation.exists() else root / "etc"
    with (copy / "local.conf").open("a") as local:
        local.write(f"hosts_file {root}/etc/hosts\n{TRUST.format(folder=folder)}\n")
        local.write(f"http_port 127.0.0.1:{port}\n")  # for the exporter
    behind = (
        f"{BEHIND_HAPROXY}:{port} require-proxy-header"
        if variant.haproxy
        else f"{LISTEN}:{port}"
    )
    for config in configurations(root):
        text = (
            config.read_text()
            .replace(f"{installed}/bin", "PROGRAM")
            .replace(str(installed), str(root))
        )
        text = re.sub(r"(?m)^http_port \S+:3129", f"http_port {behind}", text)
        text = text.replace(
            "#proxy_protocol_access allow localhost",
            "proxy_protocol_access allow localhost",
        )
        config.write_text(text.replace("PROGRAM", f"{installed}/bin"))
    if (root / "etc/generations").exists():  # an earlier revision has none
        python = (installed / "bin/squidkeeper").resolve().with_name("python")
        subprocess.run([python, "-c", RENDER, root], check=True)
    change(root, variant, folder, port)
    config = root / "etc/squid.conf"
    reads = bodies(installed, root) if variant.bodies else nullcontext()
    with (
        reads,
        subprocess.Popen(
            [*INSIDE, "squid", "--foreground", "-n", f"bench{port}", "-f", str(config)]
        ) as process,
    ):
        try:
            for one in variant.loads:
                ca = root / "etc/ca/ca.crt"
                wait_until_it_answers(
                    port, one, variant.origin_sees, ca, USED if variant.part else HOST
                )
            yield checked_workers(process.pid, variant)
        finally:
            # at once, without waiting for connections
            process.send_signal(signal.SIGINT)


def configurations(root: Path) -> list[Path]:
    """List the files of a gateway's Squid, and what they are rendered from."""
    generation = root / "etc/generations/current"
    folders = [generation / name for name in (".", "templates", "squidkeeper.d")]
    found = [
        *(root / "etc").glob("*.conf"),
        *(path for folder in folders if folder.exists() for path in folder.iterdir()),
    ]
    return [*{path.resolve() for path in found if path.is_file()}]


@contextmanager
def haproxy(folder: Path, port: int) -> Iterator[int]:
    """Run HAProxy with the installed configuration in front of the Squid of a port;
    gives its process.
    """
    root, text = folder / f"haproxy-{port}", (TOP / "squid/haproxy.cfg").read_text()
    root.mkdir()
    (root / "server.pem").write_bytes(
        (folder / "origin.crt").read_bytes() + (folder / "origin.key").read_bytes()
    )
    text = text.replace("    bind [::]:3129 v6only\n", "").replace(
        "0.0.0.0:3129", f"{LISTEN}:{port}"
    )
    text = text.replace("127.53.53.53:13129", f"{BEHIND_HAPROXY}:{port}").replace(
        "/var/lib/squidkeeper/tls", f"{root}"
    )
    (root / "haproxy.cfg").write_text(text)
    with subprocess.Popen(
        [*INSIDE, "haproxy", "-db", "-f", str(root / "haproxy.cfg")]
    ) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


@contextmanager
def exporter(
    installed: Path, root: Path, log: Path | None = None, state: Path | None = None
) -> Iterator[int]:
    """Run the exporter of a gateway, and scrape it every second; gives its process when
    it has counted the log.
    """
    state = state or root / "state"
    command = [
        *as_owner(state),
        f"{installed}/bin/squidkeeper",
        "exporter",
        "--listen",
        METRICS,
        "--state",
        str(state),
    ]
    command += ["--access-log", str(log or root / "log/access.log")]
    command += ["--policy", f"{root}/etc/policy", "--ca", f"{root}/etc/ca/signing.crt"]
    backlog = (
        f"curl -sf {METRICS}/metrics | grep -q '^squidkeeper_record_backlog_bytes 0'"
    )
    scrape = f"while sleep 1; do curl -so /dev/null {METRICS}/metrics; done"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            subprocess.run(
                [*INSIDE, "sh", "-c", f"until {backlog}; do sleep 0.2; done"],
                check=True,
                timeout=120,
            )
            with subprocess.Popen([*INSIDE, "sh", "-c", scrape]) as scraping:
                yield process.pid
                scraping.terminate()
        finally:
            process.terminate()


@contextmanager
def bodies(installed: Path, root: Path) -> Iterator[None]:
    """Run what judges bodies for a gateway; `bodies.pid` in its folder names the
    process.
    """
    [address] = re.findall(
        r"(?m)^icap_service sk_bodies \S+ icap://(\S+)/",
        (root / "etc/squidkeeper.conf").read_text(),
    )
    command = [*INSIDE, f"{installed}/bin/squidkeeper", "bodies", "--listen", address]
    with subprocess.Popen(
        [*command, "--policy", f"{root}/etc/policy", "--state", f"{root}/state"]
    ) as process:
        try:
            (root / "bodies.pid").write_text(str(process.pid))
            wait_until_it_listens(address)
            yield
        finally:
            process.terminate()


@contextmanager
def service(root: Path, name: str, address: str) -> Iterator[int]:
    """Run a service of a gateway by its unit, until it listens; gives its process."""
    [command] = re.findall(
        r"(?m)^ExecStart=(.*)$", (root / f"etc/squidkeeper-{name}.service").read_text()
    )
    with subprocess.Popen([*as_owner(root / "state"), *command.split()]) as process:
        try:
            wait_until_it_listens(address)
            yield process.pid
        finally:
            process.terminate()


def as_owner(state: Path) -> list[str]:
    """Return the beginning of a command that runs as the owner of a folder, and may use
    ports below 1024.
    """
    account = (
        f"--reuid={state.stat().st_uid}",
        f"--regid={state.stat().st_gid}",
        "--clear-groups",
    )
    return [
        *INSIDE,
        "setpriv",
        *account,
        *(f"--{kind}-caps=+net_bind_service" for kind in ("inh", "ambient")),
    ]


def wait_until_it_listens(address: str) -> None:
    """Wait for a TCP listener at an address and port of the namespace."""
    command = f"until ss -Hltn | grep -qF {address}; do sleep 0.1; done"
    subprocess.run([*INSIDE, "sh", "-c", command], check=True, timeout=60)


def change(root: Path, variant: Variant, folder: Path, port: int) -> None:
    """Change the configuration of a gateway into that of a variant."""
    config = root / "etc/squid.conf"
    if variant.noop and not (folder / "noop").exists():
        subprocess.run(
            ["gcc", "-O2", "-o", folder / "noop", HERE / "noop.c"], check=True
        )
    for pattern, replacement in variant.changes:
        changed = 0
        for file in configurations(root):
            text, count = re.subn(
                pattern, replacement.format(noop=folder / "noop"), file.read_text()
            )
            file.write_text(text)
            changed += count
        if not changed:
            raise SystemExit(
                f"{pattern} is nowhere in the configuration of {variant.name}"
            )
    if variant.plain:
        certgen = re.findall(
            r"^sslcrtd_program (\S+)", config.read_text(), re.MULTILINE
        )[0]
        trust = TRUST.format(folder=folder)
        config.write_text(
            WALKTHROUGH.format(
                port=port, root=root, certgen=certgen, listen=LISTEN, trust=trust
            )
        )


def checked_workers(master: int, variant: Variant) -> tuple[int, ...]:
    """Tell the processes that serve, of a Squid's master; one with a helper that does
    nothing has asked it.
    """
    workers = tuple(
        child
        for child, name in children(master)
        if name == "squid" and not _only_adds_up(child)
    )
    if variant.noop and "noop" not in (name for _, name in children(workers[0])):
        raise SystemExit(f"{variant.name} has not asked its helper")
    return workers


def _only_adds_up(process: int) -> bool:
    return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"(squid-coord-")


def children(process: int) -> list[tuple[int, str]]:
    """Tell the children of a process and their names."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [
        (int(child), Path(f"/proc/{child}/comm").read_text().strip()) for child in found
    ]


def spent(running: Running) -> tuple[float, float]:
    """Tell the processor time of a proxy's process, and of what works for it."""
    beside = [child for process in running.processes for child, _ in children(process)]
    beside += [running.beside] if running.beside else []
    return sum(map(processor_seconds, running.processes)), sum(
        map(processor_seconds, beside)
    )


def processor_seconds(process: int) -> float:
    """Tell the processor time of all threads of a process."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wait_until_it_answers(
    port: int, load: str, origin_sees: str, ca: Path, host: str
) -> None:
    """Wait until a request of the kind that is measured gets its 200, and check what of
    it arrived at the origin.
    """
    curl = [
        *INSIDE,
        "curl",
        "-s",
        "-w",
        "%{http_code}",
        "-x",
        f"http://{LISTEN}:{port}",
    ]
    curl += (
        [f"http://{host}/a/0"]
        if load == HTTP
        else ["--cacert", str(ca), f"https://{host}/a/0"]
    )
    for _ in range(100):
        answer = subprocess.run(
            curl, capture_output=True, text=True, check=False
        ).stdout
        if answer.endswith("\n200"):
            break
        Event().wait(0.1)
    if (
        answer.split() != [*origin_sees.split(), "hello", "200"] and host == HOST
    ):  # else by a part
        raise SystemExit(
            f"the gateway on port {port} answers {answer!r}; the origin was to see {origin_sees!r}"
        )


def load(running: Running, seconds: int) -> tuple[float, int]:
    """Load a proxy over plain http; gives requests per second and their number.

    A failed request ends the benchmark.
    """
    script = [
        "-s",
        str(HERE / "urls.lua"),
        f"{running.scheme}://{LISTEN}:{running.client_port}",
        "--",
        running.host,
    ]
    script += [running.load] if running.load in POSTS else []
    command = [*INSIDE, "wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", *script]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"requests failed on port {running.port}:\n{output}")
    number, rate = (
        re.search(form, output)
        for form in (r"(\d+) requests in", r"Requests/sec:\s+([0-9.]+)")
    )
    assert number
    assert rate
    return float(rate[1]), int(number[1])


def push(running: Running, seconds: int, folder: Path) -> tuple[float, int]:
    """Upload 200 MB again and again, by two clients; gives uploads per second and their
    number.
    """
    file, size = folder / "push", 200 << 20
    if not file.exists():
        refs = f"{'0' * 40} {'1' * 40} refs/heads/agent\0report-status".encode()
        file.write_bytes(
            f"{len(refs) + 4:04x}".encode() + refs + b"0000PACK" + bytes(size)
        )
    url = f"http://{PUSHES}/x.git/git-receive-pack"
    curl = f"curl -sf -o /dev/null -H Expect: -H Content-Type:{PUSHED} -x {LISTEN}:{running.port}"
    command = [
        *INSIDE,
        "timeout",
        str(seconds),
        "sh",
        "-c",
        f"while {curl} --data-binary @{file} {url}; do echo; done; exit 1",
    ]
    began = monotonic()
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    pushed = sum(len(client.communicate()[0]) for client in clients)
    if any(client.returncode == 1 for client in clients):
        raise SystemExit(f"uploads failed on port {running.port}")
    return pushed / (monotonic() - began), pushed


@contextmanager
def tunnels(one: Running, seconds: int, folder: Path) -> Iterator[Callable[[], int]]:
    """Load a proxy over https; when the tunnels are open, gives what waits for the end
    and tells the requests.
    """
    what = "transparent" if one.transparent else "load"
    command = [
        *clients(what, folder / f"gateway-{one.port}", one.client_port),
        one.load,
        str(seconds),
        one.host,
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        opened = process.stdout.readline()

        def answered() -> int:
            output, errors = process.communicate()
            if errors or not opened:
                raise SystemExit(f"requests failed on port {one.port}:\n{errors}")
            requests, closed = map(int, output.split())
            if closed:
                print(
                    f"\n{closed} tunnels were closed before a request, of {requests}",
                    file=sys.stderr,
                )
            return requests

        yield answered


def clients(what: str, root: Path, port: int) -> list[str]:
    """Return the command of clients.py, for the gateway in a folder."""
    return [
        *INSIDE,
        sys.executable,
        str(HERE / "clients.py"),
        what,
        LISTEN,
        str(port),
        str(root / "etc/ca/ca.crt"),
    ]


def tables(figures: Figures) -> Iterator[str]:
    """Write the figures and the ratios, each as median and spread."""
    each = {
        name: {
            what: spread([measured[what] for measured in rounds], ".0f")
            for what in rounds[0]
        }
        for name, rounds in figures.items()
    }
    yield from table("variant", each)
    rows = {
        f"{load}: {ours} / {theirs}": ratio(
            figures[f"{load}: {ours}"], figures[f"{load}: {theirs}"]
        )
        | {"target": "" if target is None else f"{target:.2f}"}
        for load, ours, theirs, target in RATIOS
        if f"{load}: {theirs}" in figures and f"{load}: {ours}" in figures
    }
    if rows:
        yield from table("ratio; above 1 is in favour of the first", rows)


def ratio(
    ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> dict[str, str]:
    """Write how many times as fast ours is, by requests per second and by processor
    time.
    """
    pairs = list(zip(ours, theirs, strict=True))
    rates = [one["per_second"] / other["per_second"] for one, other in pairs]
    times = [
        (one["cpu_microseconds"], other["cpu_microseconds"]) for one, other in pairs
    ]
    by_cpu = (
        spread([other / one for one, other in times]) if all(map(all, times)) else ""
    )
    return {"by rate": spread(rates), "by cpu": by_cpu}


if __name__ == "__main__":
    main()
