"""`squidkeeper maintain` of a gateway, run by Squid's account as its unit or `supervise` runs it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .gateway import Gateway
from .observer import AS_SQUID


@contextmanager
def maintained(gateway: Gateway, *options: str) -> Iterator[Path]:
    """Run it while the block runs; gives the file of what it says."""
    root = gateway.root
    command = [*AS_SQUID, f"{root}/bin/squidkeeper", "maintain", "--state", f"{root}/state"]
    command += ["--access-log", f"{root}/log/access.log", "--cache-log", f"{root}/log/cache.log"]
    command += ["--squid-pid", f"{root}/run/squid.pid", *options]
    said = root / "log/maintenance.txt"
    with said.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield said
        assert process.poll() is None, said.read_text()
    finally:
        process.terminate()
        status = process.wait(60)
        (root / "state/maintenance.json").unlink(missing_ok=True)  # an old failure in it would make later tests fail
        assert status == 0, said.read_text()
