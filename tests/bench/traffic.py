#!/usr/bin/env python3
"""A record of real requests: clients, a real Squid with its helpers, and origins over TLS, on this machine.

    sudo PYTHONPATH=. .venv/bin/python tests/bench/traffic.py FOLDER [--requests 100000] [--policy DIR]

FOLDER gets `access.log`, `state` (with the revisions of the policy) and `policy`. It is what `replay`, `learn` and
`tighten` are shown with in the documents. The same requests are made each time, in another order. Nothing leaves the
machine: clients, gateway, names and origins are in a network namespace in which every address is this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import ssl
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final
from zlib import crc32

from tests.bench.sessions import AGENTS, BUILDERS, HOSTILE, Asked, requests_of
from tests.e2e.dns import Names
from tests.e2e.gateway import NAMESERVER, Gateway, Site, install_prototype
from tests.e2e.network import internet, run
from tests.e2e.origin import Answer, Origins, Seen

SESSIONS: Final = 24  # at a time
LISTEN: Final = ("203.0.113.20", 3129)
POLICY: Final = """\
version: 1
defaults: {action: deny, reason: Ask the platform team to open a host.}
clients:
  agents: {networks: [192.168.137.0/24]}
  builders: {networks: [192.168.138.0/24]}
  auditors: {networks: [192.168.139.0/24]}
rules:
  - name: no-push
    action: deny
    hosts: [github.com]
    paths: ["/**/git-receive-pack"]
    reason: Read-only.
  - {name: github, action: allow, hosts: [github.com, api.github.com, codeload.github.com]}
  - {name: packages, action: allow, hosts: [pypi.org, files.pythonhosted.org, registry.npmjs.org], methods: [GET, HEAD]}
  - {name: debian, action: allow, clients: [builders], hosts: [.debian.org], schemes: [http, https]}
  - {name: model, action: allow, clients: [agents], hosts: [api.anthropic.com]}
  - {name: vendor, action: allow, hosts: ["**.vendor.example"]}
  - {name: old-mirror, action: allow, hosts: [mirror.acme.example]}
  - {name: audit, action: allow, clients: [auditors], hosts: [audit.acme.example]}
"""


class Traffic:
    """The clients. `counts` has the requests by status."""

    def __init__(self, gateway: Gateway, requests: int) -> None:
        self.counts: Counter[int] = Counter()
        self._gateway, self._left = gateway, requests
        self._random = random.Random(14)
        self._context = ssl.create_default_context(cafile=str(gateway.ca))

    async def run(self) -> None:
        """Make all requests, some sessions at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SESSIONS):
                group.create_task(self._client())

    async def _client(self) -> None:
        while self._left > 0:
            address = HOSTILE if self._random.random() < 0.01 else self._random.choice((*AGENTS, *BUILDERS))
            asked = list(requests_of(address, self._random))
            self._left -= len(asked)
            try:
                await asyncio.wait_for(self._session(address, asked), 60)
            except (OSError, EOFError, TimeoutError) as error:
                self.counts[0] += 1
                print(f"a session of {address} ended: {type(error).__name__}: {error}")

    async def _session(self, address: str, asked: list[Asked]) -> None:
        reader, writer = await asyncio.open_connection(*LISTEN, local_addr=(address, 0))
        try:
            host = asked[0].host
            if asked[0].scheme == "https" and not await self._tunnel(reader, writer, host):
                return
            for one in asked:
                target = one.path if one.scheme == "https" else f"http://{host}{one.path}"
                head = f"{one.method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: traffic/1\r\n"
                head += f"Content-Length: {one.body}\r\n" if one.body else ""
                writer.write(head.encode() + b"\r\n" + b"x" * one.body)
                closed = await self._answer(reader)
                if closed:
                    return
        finally:
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> bool:
        writer.write(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            self.counts[int(head.split()[1])] += 1
            return False
        await writer.start_tls(self._context, server_hostname=host)
        return True

    async def _answer(self, reader: asyncio.StreamReader) -> bool:
        """Read an answer; True where the connection ends with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        self.counts[int(head.split()[1])] += 1
        if b"transfer-encoding: chunked" in head:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        else:
            length = [line for line in head.splitlines() if line.startswith(b"content-length:")]
            await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
        return b"connection: close" in head


def answer(seen: Seen) -> Answer:
    """Answer as an origin does: most requests with 200."""
    number = crc32(seen.target.encode())
    status = 404 if number % 50 == 0 and seen.method == "GET" else 200
    return Answer(status, b"x" * (200 + number % 3000), {"Content-Type": "application/json"})


def main() -> None:
    """Make the record."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--requests", type=int, default=100_000)
    options.add_argument("--policy", type=Path, help="another policy than the one of this script: a folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="squidkeeper-traffic-") as made:
        work = Path(made)
        work.chmod(0o755)
        prototype = install_prototype(work / "prototype")
        with internet():
            for address in (*AGENTS, *BUILDERS, HOSTILE, LISTEN[0]):
                run("ip", "address", "add", f"{address}/32", "dev", "lo")
            _make(work, prototype, chosen.folder, chosen.requests, chosen.policy)


def _make(work: Path, prototype: Path, folder: Path, requests: int, policy: Path | None) -> None:
    origins, names = Origins(work / "origins"), Names(NAMESERVER)
    origins.fallback = answer
    origins.seen = origins.connections = origins.peers = _Forgetful()  # type: ignore[assignment]
    try:
        gateway = Gateway(Site(work, prototype, origins.authority.certificate, {}), "gateway", LISTEN)
        for file in policy.glob("*.yaml") if policy else ():
            gateway.write(file.name, file.read_text())
        if policy is None:
            gateway.write("policy.yaml", POLICY)
        gateway.start()
        traffic = Traffic(gateway, requests)
        asyncio.run(traffic.run())
        gateway.stop()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(gateway.root / "log/access.log", folder)
        for name, place in (("state", gateway.root / "state"), ("policy", gateway.policy_folder)):
            shutil.copytree(place, folder / name, symlinks=True, dirs_exist_ok=True)
        print(dict(sorted(traffic.counts.items())))
    finally:
        origins.stop()
        names.stop()


class _Forgetful(list[object]):
    """What origins note of each request, which nobody reads here."""

    def append(self, _: object) -> None:
        """Forget it."""


if __name__ == "__main__":
    main()
