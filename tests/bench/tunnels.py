#!/usr/bin/env python3
"""Bumped https: the gateway beside the walkthrough's own configuration, over kept-alive tunnels and fresh ones.

    sudo tests/bench/tunnels.py [--rounds 5] [--seconds 3] [--json FILE]

As bench.py, whose parts it uses, with a TLS origin (nginx) and clients of its own, which open a tunnel through Squid
and ask in it. They take more of the processor than Squid, so what counts is "cpu": the processor time of Squid's worker
for each request.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import (  # type: ignore[import-not-found] # it lies beside this script
    INSIDE,
    LISTEN,
    ORIGIN,
    Figures,
    Variant,
    install,
    machine,
    namespace,
    origin,
    processor_seconds,
    ratio_line,
    squid,
    variant_line,
)

TRUST = "tls_outgoing_options cafile={folder}/origin.crt"
KINDS = ("kept-alive", "fresh")
NAMES = ("walkthrough", "host scope", "request scope")
CLIENT = """
import socket, ssl, sys, threading, time
address, port, kind, seconds, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5]
context = ssl.create_default_context(cafile=ca)
counts, closed, ends = [0] * 8, [0], time.monotonic() + seconds

def tunnel():
    plain = socket.create_connection((address, port))
    plain.sendall(b"CONNECT bench.example:443 HTTP/1.1\\r\\nHost: bench.example:443\\r\\n\\r\\n")
    assert b" 200 " in plain.recv(65536)
    return context.wrap_socket(plain, server_hostname="bench.example")

def client(number):
    tls = tunnel()
    while time.monotonic() < ends:
        url = f"/a/{number}/{counts[number]}"
        tls.sendall(f"GET {url} HTTP/1.1\\r\\nHost: bench.example\\r\\n\\r\\n".encode())
        answer = b""
        while not answer.endswith(b"hello\\n"):
            got = tls.recv(65536)
            if not got and not answer:
                break
            assert got, answer
            answer += got
        if not answer:  # closed while nothing was asked, which HTTP allows
            closed[0] += 1
            tls = tunnel()
            continue
        assert answer.startswith(b"HTTP/1.1 200"), answer
        counts[number] += 1
        if kind == "fresh":
            tls.close()
            tls = tunnel()

threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print(sum(counts), closed[0])
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=3, help="of load, for each in each round")
    options.add_argument("--json", type=Path, help="write the figures here too")
    chosen = options.parse_args()
    figures = measure(chosen.rounds, chosen.seconds)
    for name, rounds in figures.items():
        print(variant_line(name, rounds))
    for kind in KINDS:
        for name in NAMES[1:]:
            ours, theirs = f"{name}, {kind}", f"{NAMES[0]}, {kind}"
            print(ratio_line(ours, theirs, figures))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


def measure(rounds: int, seconds: int) -> Figures:
    """Measure all in turn, round after round."""
    figures: Figures = {f"{name}, {kind}": [] for kind in KINDS for name in NAMES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-bench-")))
        folder.chmod(0o755)
        installed = install(folder)
        stack.enter_context(namespace())
        trusted = TRUST.format(folder=folder)
        stack.enter_context(tls_origin(folder))
        with (installed / "etc/local.conf").open("a") as local:
            local.write(f"{trusted}\n")
        variants = [
            Variant(NAMES[0], plain=True, more=trusted),
            Variant(NAMES[1]),
            Variant(NAMES[2], "policy-request.yaml"),
        ]
        stack.enter_context(origin(folder))
        running = {
            variant.name: (port, stack.enter_context(squid(variant, folder, installed, port)))
            for port, variant in enumerate(variants, 4200)
        }
        for number in range(rounds + 1):  # the first warms up and does not count
            for kind in KINDS:
                for name, (port, process) in running.items():
                    before = processor_seconds(process)
                    requests = load(port, kind, seconds, installed / "etc/ca/ca.crt")
                    cpu = (processor_seconds(process) - before) / requests * 1e6
                    if number:
                        found = {"per_second": requests / seconds, "cpu_microseconds": cpu}
                        figures[f"{name}, {kind}"].append(found)
                    print(f"\rround {number}/{rounds} {name:<16}{kind:<12}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return figures


@contextmanager
def tls_origin(folder: Path) -> Iterator[None]:
    """Serve a small answer over TLS."""
    key, certificate = folder / "origin.key", folder / "origin.crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=bench.example", "-addext", "subjectAltName=DNS:bench.example"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    certificate.chmod(0o644)
    config = folder / "tls.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/tls.pid; error_log stderr crit;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000; server {{ listen {ORIGIN}:443 ssl;"
        f" ssl_certificate {certificate}; ssl_certificate_key {key};"
        ' location / { add_header Cache-Control no-store; return 200 "hello\\n"; } } }\n'
    )
    with subprocess.Popen([*INSIDE, "nginx", "-c", str(config)]) as process:
        try:
            yield
        finally:
            process.terminate()


def load(port: int, kind: str, seconds: int, ca: Path) -> int:
    """Ask in tunnels; gives the number of requests. A failed one ends the benchmark."""
    command = [*INSIDE, shutil.which("python3") or sys.executable, "-c", CLIENT]
    command += [LISTEN, str(port), kind, str(seconds), str(ca)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    if done.stderr:
        raise SystemExit(f"requests failed on port {port}:\n{done.stderr}")
    requests, closed = map(int, done.stdout.split())
    if closed:
        print(f"\n{closed} tunnels were closed before a request, of {requests}", file=sys.stderr)
    return requests


if __name__ == "__main__":
    main()
