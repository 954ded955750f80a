#!/usr/bin/env python3
"""What serving clients without proxy settings takes: memory of open tunnels, and
answers of the resolver.

    sudo tests/bench/transparent.py [--tunnels 5000] [--seconds 4] [--json FILE]

bench.py has the rates of requests. The tunnels are idle. A stand-in for Squid accepts
each CONNECT, so that only the memory of `squidkeeper transparent` is measured. The
resolver is asked for unique names, by eight addresses.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import resource
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

from bench import (  # type: ignore[import-not-found] # beside this script
    LISTEN,
    NAMESPACE,
    Model,
    install,
    namespace,
    processor_seconds,
    service,
)
from command import options_of, require, save, scratch, written  # type: ignore[import-not-found]

# one has an eighth of all connections at most
CLIENTS = [f"127.0.0.{number}" for number in range(2, 10)]
WINDOW = 32  # questions of one client under way


def main() -> None:
    """Measure, and print."""
    chosen = options_of(__doc__, tunnels=5000, seconds=4).parse_args()
    require(("ip", "unbound"))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2
    )
    with scratch() as folder, namespace():
        root = install(folder, Model(options=("--transparent", LISTEN)))
        assert not ctypes.CDLL(None).setns(
            os.open(f"/run/netns/{NAMESPACE}", os.O_RDONLY), 0
        )
        figures = tunnels(root, chosen.tunnels) | answers(root, chosen.seconds)
    print("\n".join(f"{name:<52}{written(figure)}" for name, figure in figures.items()))
    save(chosen.json, {"figures": figures})


def tunnels(root: Path, number: int) -> dict[str, float]:
    """Open tunnels; gives the memory of the process in MB, without and with them."""
    [address, port] = re.findall(
        r"(?m)^http_port (\S+):(\d+) .*require-proxy-header ssl-bump",
        (root / "etc/squid.conf").read_text(),
    )[0]
    hello = client_hello()
    with ExitStack() as held, service(root, "transparent", f"{LISTEN}:443") as process:
        squid = held.enter_context(
            socket.create_server((address, int(port)), backlog=1024)
        )
        squid.settimeout(10)
        before = memory(process)
        for _, client in zip(range(number), itertools.cycle(CLIENTS)):
            opened = socket.create_connection((LISTEN, 443), source_address=(client, 0))
            held.enter_context(opened).sendall(hello)
            held.enter_context(accepted(squid, len(hello)))
        return {
            "memory without tunnels, MB": before,
            f"memory with {number:,} open tunnels, MB": memory(process),
        }


def client_hello() -> bytes:
    """Return the first bytes of a TLS client."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), out, server_hostname="bench.example"
    )
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError


def accepted(squid: socket.socket, size: int) -> socket.socket:
    """Accept a CONNECT as Squid does, and wait for the bytes of the tunnel."""
    tunnel, _ = squid.accept()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += tunnel.recv(65536)
    tunnel.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    while size > 0:
        size -= len(tunnel.recv(size))
    return tunnel


def memory(process: int) -> float:
    """Tell the resident memory of a process, in MB."""
    [size] = re.findall(
        r"(?m)^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text()
    )
    return int(size) / 1000


def answers(root: Path, seconds: int) -> dict[str, float]:
    """Ask the resolver without a pause; gives answers a second, and what each
    costs it.
    """
    with service(root, "dns", f"{LISTEN}:53") as process, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in CLIENTS
        ]
        for client, address in zip(clients, CLIENTS, strict=True):
            client.bind((address, 0))
            client.connect((LISTEN, 53))
            client.settimeout(2)
        began, before, number = time.monotonic(), processor_seconds(process), 0
        while time.monotonic() < began + seconds:
            for client in clients:
                for asked in range(number, number + WINDOW):
                    client.send(question(asked))
                number += WINDOW
            for client in clients:
                for _ in range(WINDOW):
                    assert client.recv(512).endswith(socket.inet_aton(LISTEN))
        rate, spent = (
            number / (time.monotonic() - began),
            processor_seconds(process) - before,
        )
    return {
        "answers of the resolver a second": rate,
        "processor time of an answer, us": spent / number * 1e6,
    }


def question(number: int) -> bytes:
    """Return a question for the IPv4 address of a name."""
    name = b"n%08d" % number
    return b"sk\1\0\0\1\0\0\0\0\0\0" + b"\x09" + name + b"\x07example\0\0\1\0\1"


if __name__ == "__main__":
    main()
