#!/usr/bin/env python3
"""Requests per second of the gateway beside what it is held against, all in one run.

    sudo tests/bench/bench.py [--rounds 5] [--seconds 4] [--json FILE]

Plain HTTP, every URL unique, 32 connections; origin (nginx), Squid and load (wrk) on this machine, in a network
namespace of their own. All variants run in turn, round after round; a ratio is taken within each round, and its median
and spread over the rounds are what counts. Needs nginx, wrk, gcc, iproute2 and what install.sh installs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
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
NAMESPACE = f"squidkeeper-bench-{os.getpid()}"
INSIDE = ("ip", "netns", "exec", NAMESPACE)

WALKTHROUGH = """
http_port 127.0.0.1:{port} ssl-bump cert={root}/etc/ca/ca.crt key={root}/etc/ca/ca.key \\
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
"""


@dataclass(frozen=True)
class Variant:
    """A Squid to measure: its name and what is changed in the gateway's configuration, as (pattern, replacement)."""

    name: str
    policy: str = "policy.yaml"
    changes: tuple[tuple[str, str], ...] = ()
    plain: bool = False


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
)
RATIOS = (
    ("host scope", "native dstdomain"),
    ("host scope", "walkthrough"),
    ("request scope", "C no-op, request"),
    ("request scope", "walkthrough"),
)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=4, help="of load, for each variant in each round")
    options.add_argument("--json", type=Path, help="write the figures here too")
    chosen = options.parse_args()
    figures = measure(chosen.rounds, chosen.seconds)
    print(table(figures))
    if chosen.json:
        chosen.json.write_text(json.dumps({"requests_per_second": figures, "machine": machine()}, indent=2))


def measure(rounds: int, seconds: int) -> dict[str, list[float]]:
    """Measure every variant in each round; gives requests per second."""
    figures: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-bench-")))
        folder.chmod(0o755)
        installed = install(folder)
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        ports = {}
        for number, variant in enumerate(VARIANTS):
            ports[variant.name] = 4200 + number
            stack.enter_context(squid(variant, folder, installed, ports[variant.name]))
        for round_number in range(rounds + 1):  # the first warms up and does not count
            for variant in VARIANTS:
                figure = load(ports[variant.name], seconds)
                if round_number:
                    figures[variant.name].append(figure)
                print(f"\rround {round_number}/{rounds} {variant.name:<20} {figure:8.0f}/s", end="", file=sys.stderr)
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
        for command in ("ip link set lo up", f"ip address add {ORIGIN}/32 dev lo"):
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
def squid(variant: Variant, folder: Path, installed: Path, port: int) -> Iterator[None]:
    """Run the installed gateway in a folder and on a port of its own, with what the variant changes."""
    root = folder / f"gateway-{port}"
    shutil.copytree(installed, root, symlinks=True, ignore=shutil.ignore_patterns("venv-*"))
    written = [root / name for name in ("state", "log", "run", "etc/ca/ca.key")]
    subprocess.run(["chown", "-R", f"--reference={installed}/state", *written], check=True)
    shutil.copy(HERE / variant.policy, root / "etc/policy/policy.yaml")
    (root / "etc/hosts").write_text(f"{ORIGIN} bench.example\n")
    with (root / "etc/local.conf").open("a") as local:
        local.write(f"hosts_file {root}/etc/hosts\n")
    for name in ("squid.conf", "squidkeeper.conf"):
        config = root / "etc" / name
        text = config.read_text().replace(f"{installed}/bin", "PROGRAM").replace(str(installed), str(root))
        text = re.sub(r"(?m)^http_port \S+", f"http_port 127.0.0.1:{port}", text)
        config.write_text(text.replace("PROGRAM", f"{installed}/bin"))
    change(root, variant, folder, port)
    config = root / "etc/squid.conf"
    with subprocess.Popen([*INSIDE, "squid", "--foreground", "-n", f"bench{port}", "-f", str(config)]) as process:
        try:
            wait_until_it_answers(port)
            yield
        finally:
            process.terminate()


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
        config.write_text(WALKTHROUGH.format(port=port, root=root, certgen=certgen[0]))


def noop(folder: Path) -> Path:
    """Build the helper that does nothing."""
    program = folder / "noop"
    if not program.exists():
        subprocess.run(["gcc", "-O2", "-o", str(program), str(HERE / "noop.c")], check=True)
    return program


def wait_until_it_answers(port: int) -> None:
    """Wait until a request of the kind that is measured gets its 200."""
    curl = [*INSIDE, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-x", f"http://127.0.0.1:{port}"]
    for _ in range(100):
        done = subprocess.run([*curl, "http://bench.example/a/0"], capture_output=True, text=True, check=False)
        if done.stdout == "200":
            return
        time.sleep(0.1)
    raise SystemExit(f"the gateway on port {port} answers {done.stdout}, not 200")


def load(port: int, seconds: int) -> float:
    """Load a Squid; gives requests per second. A failed request ends the benchmark."""
    script = ["-s", str(HERE / "urls.lua"), f"http://127.0.0.1:{port}"]
    command = [*INSIDE, "wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", *script]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"requests failed on port {port}:\n{output}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    assert found
    return float(found[1])


def table(figures: dict[str, list[float]]) -> str:
    """Write the figures and the ratios, each as median and spread."""
    lines = [f"{'variant':<42}{'median/s':>10}{'min':>10}{'max':>10}"]
    lines += (f"{name:<42}{_spread(values, '10.0f')}" for name, values in figures.items())
    lines.append(f"\n{'ratio':<42}{'median':>10}{'min':>10}{'max':>10}")
    for ours, theirs in RATIOS:
        values = [one / other for one, other in zip(figures[ours], figures[theirs], strict=True)]
        lines.append(f"{ours + ' / ' + theirs:<42}{_spread(values, '10.3f')}")
    return "\n".join(lines)


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
