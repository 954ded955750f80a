"""`squidkeeper maintain` of a gateway, run by Squid's account as its unit or
`supervise` runs it.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import wait_for

from .gateway import Gateway
from .observer import AS_SQUID


@contextmanager
def maintained(gateway: Gateway, *options: str) -> Iterator[Path]:
    """Run it while the block runs; gives the file of what it says."""
    root = gateway.root
    command = [
        *AS_SQUID,
        f"{root}/bin/squidkeeper",
        "maintain",
        "--state",
        f"{root}/state",
    ]
    command += [
        "--access-log",
        f"{root}/log/access.log",
        "--cache-log",
        f"{root}/log/cache.log",
    ]
    command += ["--squid-pid", f"{root}/run/squid.pid", *options]
    said = root / "log/maintenance.txt"
    with said.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield said
        assert process.poll() is None, said.read_text()
    finally:
        process.terminate()
        status = process.wait(60)
        # an old failure in it would make later tests fail
        (root / "state/maintenance.json").unlink(missing_ok=True)
        assert status == 0, said.read_text()


def has_checked(gateway: Gateway) -> None:
    """Wait for two whole checks, each of which ends with a heartbeat: what the first
    one finds, the second judges.
    """
    heartbeat = gateway.root / "state/maintenance.json"
    for _ in range(3):  # the first can be of a check that is under way
        since = time.time()
        wait_for(
            lambda since=since: (  # type: ignore[misc]
                heartbeat.exists() and heartbeat.stat().st_mtime > since
            ),
            "a check",
        )
