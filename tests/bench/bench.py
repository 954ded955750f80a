#!/usr/bin/env python3
"""Requests per second of the gateway beside what it is held against, all in one run.

    sudo tests/bench/bench.py [--rounds 5] [--seconds 4] [--mitmdump PROGRAM] [--json FILE]

Plain HTTP, every URL unique, 32 connections; origin (nginx), Squid and load (wrk) on this machine, in a network
namespace of their own. All variants run in turn, round after round, each round beginning with another one; a ratio is
taken within each round, and its median and spread over the rounds are what counts. "cpu" is the processor time of the
proxy's process for each request, its helpers left out, which other work on the machine touches less. Needs nginx, wrk,
gcc, iproute2 and what install.sh installs; squidGuard and mitmproxy (`pip install mitmproxy` in an environment of its
own) are left out where they are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
ORIGIN = "203.0.113.10"  # public by the policy language, and on the namespace's own loopback interface
CONNECTIONS = 32
LISTEN = "203.0.113.20"  # clients come from it too: none is "localhost", as none is on a gateway
NAMESPACE = f"squidkeeper-bench-{os.getpid()}"
INSIDE = ("ip", "netns", "exec", NAMESPACE)

WALKTHROUGH = """
http_port {listen}:{port} ssl-bump cert={root}/etc/ca/ca.crt key={root}/etc/ca/ca.key \\
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
{more}
"""
SQUIDGUARD = """
url_rewrite_program /usr/bin/squidGuard -c {root}/etc/squidGuard.conf
url_rewrite_children 5 startup=1 idle=1
"""
SQUIDGUARD_CONF = """
dbhome {root}/state
logdir {root}/state
dest listed {{
 domainlist domains
}}
acl {{
 default {{
  pass !listed all
  redirect http://blocked.example/
 }}
}}
"""


Figures = dict[str, list[dict[str, float]]]  # of each variant, those of each round


@dataclass(frozen=True)
class Variant:
    """A Squid to measure: its name and what is changed in the gateway's configuration, as (pattern, replacement)."""

    name: str
    policy: str = "policy.yaml"
    changes: tuple[tuple[str, str], ...] = ()
    plain: bool = False
    more: str = ""  # for the walkthrough's own configuration
    program: str = ""  # that has to be there


NATIVE = (
    (r"(?m)^acl sk_judged_by_host external .*$", "acl sk_judged_by_host dstdomain bench.example"),
    (r"(?ms)^external_acl_type sk_host .*?\n\n", ""),
)
NOOP_REQUEST = ((r"\S+/bin/squidkeeper acl --scope request", "{noop} acl --scope request"),)
VARIANTS = (
    Variant("walkthrough", plain=True),
    Variant("native dstdomain", changes=NATIVE),
    Variant("host scope"),
    Variant("C no-op, request", "policy-request.yaml", NOOP_REQUEST),
    Variant("request scope", "policy-request.yaml"),
    Variant("squidGuard", plain=True, more=SQUIDGUARD, program="squidGuard"),
)
MITMPROXY = "mitmproxy"
RATIOS = (
    ("host scope", "native dstdomain"),
    ("host scope", "walkthrough"),
    ("request scope", "C no-op, request"),
    ("request scope", "walkthrough"),
    ("host scope", "squidGuard"),
    ("request scope", "squidGuard"),
    ("host scope", MITMPROXY),
    ("request scope", MITMPROXY),
)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=4, help="of load, for each variant in each round")
    options.add_argument("--mitmdump", type=Path, help="the program, where mitmproxy is to be measured too")
    options.add_argument("--json", type=Path, help="write the figures here too")
    chosen = options.parse_args()
    figures = measure(chosen.rounds, chosen.seconds, chosen.mitmdump)
    print(table(figures))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


def measure(rounds: int, seconds: int, mitmdump: Path | None) -> Figures:
    """Measure every variant in each round."""
    variants = [variant for variant in VARIANTS if not variant.program or shutil.which(variant.program)]
    running: dict[str, tuple[int, int]] = {}  # the port and the process of each
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-bench-")))
        folder.chmod(0o755)
        installed = install(folder)
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        for port, variant in enumerate(variants, 4200):
            running[variant.name] = port, stack.enter_context(squid(variant, folder, installed, port))
        if mitmdump:
            running[MITMPROXY] = 4250, stack.enter_context(mitmproxy(mitmdump, folder, 4250))
        return rounds_of(running, rounds, seconds)


def rounds_of(running: dict[str, tuple[int, int]], rounds: int, seconds: int) -> Figures:
    """Load all in turn, round after round."""
    figures: Figures = {name: [] for name in running}
    names = list(running)
    for number in range(rounds + 1):  # the first warms up and does not count
        for name in names[number % len(names) :] + names[: number % len(names)]:
            port, process = running[name]
            before = processor_seconds(process)
            per_second, requests = load(port, seconds)
            cpu = (processor_seconds(process) - before) / requests * 1e6
            if number:
                figures[name].append({"per_second": per_second, "cpu_microseconds": cpu})
            print(f"\rround {number}/{rounds} {name:<20} {per_second:8.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return figures


def install(folder: Path) -> Path:
    """Install a gateway, not started, as the model of every variant."""
    root = folder / "installed"
    subprocess.run([TOP / "install.sh", "--root", root, "--no-start"], check=True, stdout=subprocess.DEVNULL)
    return root


@contextmanager
def namespace() -> Iterator[None]:
    """Make the network namespace, with the origin's address on its loopback interface."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        for command in ("ip link set lo up", *(f"ip address add {one}/32 dev lo" for one in (ORIGIN, LISTEN))):
            subprocess.run([*INSIDE, *command.split()], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextmanager
def origin(folder: Path) -> Iterator[None]:
    """Serve a small answer on port 80 of the origin's address."""
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000; server {{ listen {ORIGIN}:80;"
        ' location / { add_header Cache-Control no-store; return 200 "hello\\n"; } } }\n'
    )
    with subprocess.Popen([*INSIDE, "nginx", "-c", str(config)]) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def squid(variant: Variant, folder: Path, installed: Path, port: int) -> Iterator[int]:
    """Run the installed gateway in a folder and on a port of its own, changed into the variant; gives its process."""
    root = folder / f"gateway-{port}"
    shutil.copytree(installed, root, symlinks=True, ignore=shutil.ignore_patterns("venv-*"))
    written = [root / name for name in ("state", "log", "run", "etc/ca/ca.key", "etc/policy")]
    subprocess.run(["chown", "-R", f"--reference={installed}/state", *written], check=True)
    shutil.copy(HERE / variant.policy, root / "etc/policy/policy.yaml")
    (root / "etc/hosts").write_text(f"{ORIGIN} bench.example\n")
    with (root / "etc/local.conf").open("a") as local:
        local.write(f"hosts_file {root}/etc/hosts\nhttp_port 127.0.0.1:{port}\n")  # the second: for the exporter
    for name in ("squid.conf", "squidkeeper.conf"):
        config = root / "etc" / name
        text = config.read_text().replace(f"{installed}/bin", "PROGRAM").replace(str(installed), str(root))
        text = re.sub(r"(?m)^http_port \S+", f"http_port {LISTEN}:{port}", text)
        config.write_text(text.replace("PROGRAM", f"{installed}/bin"))
    change(root, variant, folder, port)
    config = root / "etc/squid.conf"
    with subprocess.Popen([*INSIDE, "squid", "--foreground", "-n", f"bench{port}", "-f", str(config)]) as process:
        try:
            wait_until_it_answers(port)
            yield worker(process.pid)
        finally:
            process.send_signal(signal.SIGINT)  # at once, without waiting for connections


def change(root: Path, variant: Variant, folder: Path, port: int) -> None:
    """Change the configuration of a gateway into that of a variant."""
    fragment, config = root / "etc/squidkeeper.conf", root / "etc/squid.conf"
    text = fragment.read_text()
    for pattern, replacement in variant.changes:
        text, count = re.subn(pattern, replacement.format(noop=noop(folder)), text)
        if not count:
            raise SystemExit(f"{pattern} is nowhere in {fragment}")
    fragment.write_text(text)
    if variant.plain:
        certgen = re.findall(r"^sslcrtd_program (\S+)", config.read_text(), re.MULTILINE)
        more = variant.more.format(root=root)
        config.write_text(WALKTHROUGH.format(port=port, root=root, certgen=certgen[0], listen=LISTEN, more=more))
        squidguard(root)


def squidguard(root: Path) -> None:
    """Give squidGuard the same list as the others, and itself the right to open it."""
    (root / "state/domains").write_text("wikipedia.org\n")
    config = root / "etc/squidGuard.conf"
    config.write_text(SQUIDGUARD_CONF.format(root=root))
    if shutil.which("squidGuard"):
        subprocess.run(["squidGuard", "-c", config, "-C", "all"], check=True, capture_output=True)
    subprocess.run(["chown", "-R", f"--reference={root}/log", root / "state"], check=True)


@contextmanager
def mitmproxy(mitmdump: Path, folder: Path, port: int) -> Iterator[int]:
    """Run mitmproxy with an add-on that does the same job; gives its process."""
    command = [*INSIDE, str(mitmdump), "-q", "--listen-host", LISTEN, "-p", str(port)]
    command += ["--set", f"confdir={folder}/mitmproxy", "-s", str(HERE / "mitmproxy_rules.py")]
    command += ["--set", f"record={folder}/mitmproxy.log", "--set", "connection_strategy=lazy"]
    mount = f"mount --bind {folder}/hosts /etc/hosts && exec"  # it resolves names by the system's means alone
    (folder / "hosts").write_text(f"{ORIGIN} bench.example\n")
    wrapped = [*INSIDE, "unshare", "--mount", "sh", "-c", f'{mount} "$@"', "sh", *command[len(INSIDE) :]]
    with subprocess.Popen(wrapped) as process:
        try:
            wait_until_it_answers(port)
            yield process.pid
        finally:
            process.terminate()


def worker(master: int) -> int:
    """Tell the process that serves, of a Squid's master."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return next(int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "squid\n")


def processor_seconds(process: int) -> float:
    """Tell the processor time of all threads of a process."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def noop(folder: Path) -> Path:
    """Build the helper that does nothing."""
    program = folder / "noop"
    if not program.exists():
        subprocess.run(["gcc", "-O2", "-o", str(program), str(HERE / "noop.c")], check=True)
    return program


def wait_until_it_answers(port: int) -> None:
    """Wait until a request of the kind that is measured gets its 200."""
    curl = [*INSIDE, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-x", f"http://{LISTEN}:{port}"]
    for _ in range(100):
        done = subprocess.run([*curl, "http://bench.example/a/0"], capture_output=True, text=True, check=False)
        if done.stdout == "200":
            return
        time.sleep(0.1)
    raise SystemExit(f"the gateway on port {port} answers {done.stdout}, not 200")


def load(port: int, seconds: int) -> tuple[float, int]:
    """Load a proxy; gives requests per second and their number. A failed request ends the benchmark."""
    script = ["-s", str(HERE / "urls.lua"), f"http://{LISTEN}:{port}"]
    command = [*INSIDE, "wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", *script]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"requests failed on port {port}:\n{output}")
    number, rate = (re.search(form, output) for form in (r"(\d+) requests in", r"Requests/sec:\s+([0-9.]+)"))
    assert number
    assert rate
    return float(rate[1]), int(number[1])


def table(figures: Figures) -> str:
    """Write the figures and the ratios, each as median and spread."""
    lines = [f"{'variant':<42}{'median/s':>10}{'min':>10}{'max':>10}{'cpu us':>10}{'min':>10}{'max':>10}"]
    lines += (variant_line(name, rounds) for name, rounds in figures.items())
    lines.append(f"\n{'ratio':<42}{'by rate':>10}{'min':>10}{'max':>10}{'by cpu':>10}{'min':>10}{'max':>10}")
    lines += (ratio_line(ours, theirs, figures) for ours, theirs in RATIOS if theirs in figures)
    return "\n".join(lines)


def variant_line(name: str, rounds: list[dict[str, float]]) -> str:
    """Write a variant's requests per second, and the processor time of each."""
    rates, cpu = (_spread([one[what] for one in rounds], "10.0f") for what in ("per_second", "cpu_microseconds"))
    return f"{name:<42}{rates}{cpu}"


def ratio_line(ours: str, theirs: str, figures: Figures) -> str:
    """Write how many times as fast ours is, by requests per second and by processor time."""
    pairs = list(zip(figures[ours], figures[theirs], strict=True))
    rates = _spread([one["per_second"] / other["per_second"] for one, other in pairs], "10.3f")
    cpu = _spread([other["cpu_microseconds"] / one["cpu_microseconds"] for one, other in pairs], "10.3f")
    return f"{f'{ours} / {theirs}':<42}{rates}{cpu}"


def _spread(values: list[float], form: str) -> str:
    return "".join(format(value, form) for value in (statistics.median(values), min(values), max(values)))


def machine() -> dict[str, str]:
    """Tell what the figures were taken on."""
    version = subprocess.run(["squid", "-v"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "squid": version,
        "python": sys.version.split()[0],
        "cores": str(os.cpu_count()),
        "kernel": os.uname().release,
    }


if __name__ == "__main__":
    main()
