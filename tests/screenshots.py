#!/usr/bin/env python3
"""Take the screenshots of the documents: the status page and the report of a gateway
that has had traffic.

As root, in the repository, with the environment of the tests: `sudo .venv/bin/python
tests/screenshots.py`. Writes squid/observe/status.png and report.png. The gateway is
real; for the report, the times of its access log are spread over a day.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from squidkeeper.operate.demo.gateway import DemoGateway, installed  # noqa: E402 - the path above is for the tests' modules
from squidkeeper.operate.demo.network import VirtualMachine, internet, run  # noqa: E402
from tests.e2e.origin import Answer, Origins, Seen  # noqa: E402
from tests.waiting import pause  # noqa: E402

PAGES = REPOSITORY / "squid/observe"
ROOT = Path("/srv/gateway")  # the pages show it
STATUS_PAGE = "http://127.0.0.1:9129/"
SIZES = {"status": (1280, 820), "report": (1280, 1150)}
CREDENTIAL = """
clients:
  agents:
    networks: [192.168.137.0/24]
secrets:
  anthropic-key: {file: secrets/anthropic-key}
credentials:
  - name: anthropic
    clients: [agents]
    hosts: [api.anthropic.com]
    paths: [/v1/messages, /v1/messages/count_tokens]
    header: X-Api-Key
    value: "{anthropic-key}"
"""
CLIENTS = {
    "192.168.137.11": 60,
    "192.168.137.12": 35,
    "192.168.137.13": 20,
    "192.168.137.14": 8,
}
ALLOWED = {
    "https://github.com/acme/app": 8,
    "https://github.com/acme/app.git/info/refs?service=git-upload-pack": 6,
    "https://api.github.com/repos/acme/app/pulls": 9,
    "https://raw.githubusercontent.com/acme/app/main/README.md": 4,
    "https://packages.example/simple/requests/": 14,
    "https://packages.example/files/requests-2.32.4-py3-none-any.whl": 10,
    "https://example.com/": 2,
}
DENIED = {
    "https://en.wikipedia.org/wiki/Squid": 3,
    "https://pastebin.com/raw/0a1b2c": 2,
    "https://github.com/acme/app.git/info/refs?service=git-receive-pack": 2,
    "https://telemetry.example/v1/events": 5,
    "https://registry.npmjs.example/left-pad": 1,
}
POSTED = {
    "https://api.anthropic.com/v1/messages": 8,
    "https://api.openai.com/v1/chat/completions": 3,
}
NAMES = sorted({url.split("/")[2] for url in (*ALLOWED, *DENIED, *POSTED)})
SLOWEST_MS = {"api.anthropic.com": 420, "api.openai.com": 260, "api.github.com": 90}


def main() -> None:
    """Install a gateway, send requests, and take both screenshots."""
    random.seed(7)
    folder = Path(tempfile.mkdtemp(prefix="squidkeeper-screenshots-"))
    folder.chmod(0o755)
    ROOT.mkdir()
    try:
        with gateway_and_vm(folder) as (gateway, vm):
            send_requests(vm, folder)
            pause(3, "the exporter reads the log")
            take("status", STATUS_PAGE, folder)
            take("report", f"file://{report(gateway, folder)}", folder)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(ROOT)


@contextmanager
def gateway_and_vm(folder: Path) -> Iterator[tuple[DemoGateway, VirtualMachine]]:
    with internet():
        vm = VirtualMachine(folder)
        for address in CLIENTS:
            vm.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        origins = Origins(folder / "origins")
        origins.fallback = answer
        address, ca = f"{vm.gateway}:3129", origins.authority.certificate
        try:
            with installed(
                REPOSITORY, ROOT, address, policy(folder), NAMES, ca
            ) as gateway:
                vm.trust(gateway.ca)
                yield gateway, vm
        finally:
            origins.stop()
            vm.stop()


def policy(folder: Path) -> Path:
    """Copy the example policy and add its credential."""
    copy = folder / "policy"
    shutil.copytree(REPOSITORY / "policy", copy)
    (copy / "secrets").mkdir()
    (copy / "secrets/anthropic-key").write_text("sk-screenshots-0000")
    (copy / "credentials.yaml").write_text(f"version: 1\n{CREDENTIAL}")
    return copy


def answer(seen: Seen) -> Answer:
    host = "".join(seen.values("Host"))
    pause(
        random.uniform(0.1, 1) * SLOWEST_MS.get(host, 25) / 1000,
        "an origin as slow as the real one",
    )
    fails = host == "api.openai.com" and random.random() < 0.3
    return Answer(503 if fails else 200, b"x" * random.randint(500, 40_000))


def send_requests(vm: VirtualMachine, folder: Path) -> None:
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        list(pool.map(lambda client: send_as(vm, client, CLIENTS[client]), CLIENTS))
    # lacks the CA
    curl(
        vm,
        "192.168.137.14",
        "--cacert",
        folder / "origins/origins.crt",
        "https://example.com/",
    )


def send_as(vm: VirtualMachine, client: str, number: int) -> None:
    urls = ALLOWED | (DENIED if number > 10 else {})
    for url in random.choices(list(urls), list(urls.values()), k=number):
        curl(vm, client, url)
        if random.random() < 0.15:
            curl(
                vm,
                client,
                "--data",
                "{}",
                random.choices(list(POSTED), list(POSTED.values()))[0],
            )


def curl(vm: VirtualMachine, client: str, *arguments: str | Path) -> None:
    proxy = f"http://{vm.gateway}:3129"
    command = vm.command(
        "curl", "-q", "-s", "--interface", client, "--proxy", proxy, *arguments
    )
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
    )


def report(gateway: DemoGateway, folder: Path) -> Path:
    """Write the report of the gateway's access log, its times spread over a day."""
    records = [json.loads(line) for line in gateway.access_log.read_text().splitlines()]
    times = [datetime.fromisoformat(record["time"]) for record in records]
    first, last = min(times), max(times)
    factor = timedelta(days=1) / (last - first)
    for record, at in zip(records, times, strict=True):
        record["time"] = (
            f"{(last - (last - at) * factor).astimezone(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
        )
    (folder / "access.log").write_text(
        "".join(f"{json.dumps(record)}\n" for record in records)
    )
    page = folder / "report.html"
    command: list[str | Path] = [
        gateway.program,
        "report",
        "access.log",
        "--html",
        page,
        "--policy",
        gateway.policy,
    ]
    subprocess.run(command, cwd=folder, check=True)
    return page


def take(name: str, url: str, folder: Path) -> None:
    width, height = SIZES[name]
    run(
        *(
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
        ),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ),
        *(
            f"--user-data-dir={folder}/browser",
            "--blink-settings=preferredColorScheme=1",
        ),
        *(f"--window-size={width},{height}", f"--screenshot={PAGES}/{name}.png", url),
    )
    sys.stdout.write(
        f"{PAGES.relative_to(REPOSITORY)}/{name}.png: {(PAGES / f'{name}.png').stat().st_size:,} bytes\n"
    )


if __name__ == "__main__":
    main()
