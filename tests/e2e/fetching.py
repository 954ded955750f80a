"""`squidkeeper secrets` of a gateway, run as install.sh runs it without systemd."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squidkeeper.setup.layout import Layout

from .gateway import Gateway


@contextmanager
def fetching(gateway: Gateway) -> Iterator[Path]:
    """Run it while the block runs; gives the folder of the values, which goes with it."""
    root, layout = gateway.root, Layout.of(gateway.root)
    layout.secrets.mkdir()
    shutil.chown(layout.secrets, layout.fetcher, "proxy")
    layout.secrets.chmod(0o2750)
    command = ["setpriv", "--reuid", str(layout.fetcher), "--regid", "proxy", "--clear-groups", "--pdeathsig", "KILL"]
    command += [f"{root}/bin/squidkeeper", "secrets", "--policy", f"{root}/etc/policy", "--state", f"{root}/state"]
    command += ["--run", f"{root}/run", "--commands", f"{root}/etc/commands"]
    said = root / "log/secrets.txt"
    with said.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield layout.secrets
        assert process.poll() is None, said.read_text()
    finally:
        process.terminate()
        status = process.wait(60)
        shutil.rmtree(layout.secrets)
        assert status == 0, said.read_text()


def put_command(gateway: Gateway, name: str, script: str) -> None:
    """Put a program into the gateway's folder of commands."""
    program = gateway.root / "etc/commands" / name
    program.parent.mkdir(exist_ok=True)
    new = program.with_name(f".{name}")
    new.write_text(f"#!/bin/sh\n{script}\n")
    new.chmod(0o755)
    os.replace(new, program)
