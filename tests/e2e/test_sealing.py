"""A real Squid's log, archived and sealed: its lines fit Squid's own counter, and lines
that are missing are found.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from squidkeeper.base.squid_counters import (
    FILE,
    SquidSample,
    read_samples,
    write_samples,
)
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.log.record import parse_record
from squidkeeper.services.maintenance.squid_process import SquidProcess
from squidkeeper.services.maintenance.squid_watch import SquidSampler
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway
from .maintained import maintained
from .origin import Origins

POLICY = """
version: 1
rules:
  - {name: some, action: allow, hosts: [good.example]}
"""


@pytest.fixture(scope="module")
def lines(gateway: Gateway, all_origins: Origins) -> list[bytes]:
    """What Squid logged between two samples of its counter, and one line of a minute
    later.
    """
    sampler = SquidSampler(
        gateway.root / "state",
        SquidProcess(gateway.root / "run/squid.pid"),
        gateway.address,
    )
    # several workers do once each of them has started
    before = wait_for(sampler.sample, "Squid to count")
    for number in range(4):
        for host in ("good.example", "denied.example"):
            curl(gateway, f"https://{host}/{number}")
    gateway.logged("https://denied.example/3")
    after = sampler.sample()
    assert after is not None
    # no request is within the tolerance of them
    samples = (
        shifted(before, -3),
        shifted(after, 3),
    )
    write_samples(gateway.root / "state", samples)
    logged = (gateway.root / "log/access.log").read_bytes().splitlines(keepends=True)
    return [*logged, a_minute_later(logged[-1])]


def shifted(sample: SquidSample, seconds: float) -> SquidSample:
    return replace(
        sample, asked=sample.asked + seconds, answered=sample.answered + seconds
    )


def a_minute_later(line: bytes) -> bytes:
    time = parse_record(line).time
    later = datetime.fromisoformat(time) + timedelta(minutes=1)
    return line.replace(
        time.encode(),
        later.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode(),
    )


def archived_and_verified(
    gateway: Gateway, lines: list[bytes], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Archive these lines, as a rotated log, and verify the archive by the head that
    the run has printed.
    """
    key, archive, log = ArchiveKey.new(), folder / "archive", folder / "access.log"
    (folder / "archive.pub").write_bytes(key.public.pem)
    (folder / "archive.key").write_bytes(key.pem)
    archive.mkdir()
    rotated = folder / "access.log.1"
    rotated.write_bytes(b"".join(lines))
    os.utime(rotated, (0, 0))  # nobody has written to it for long
    options: list[str | Path] = [
        "--access-log",
        log,
        "--archive",
        archive,
        "--key",
        folder / "archive.key",
    ]
    ran = command(gateway, "run", *options, "--state", gateway.root / "state")
    assert ran.returncode == 0, ran.stderr
    number, digest = (
        ran.stdout.splitlines()[-1].removeprefix("archive head ").split(":")
    )
    return command(
        gateway,
        "verify",
        "--key",
        folder / "archive.pub",
        "--head",
        f"{number}:{digest}",
        archive,
    )


def command(
    gateway: Gateway, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    return gateway.command("archive", *arguments)


def test_the_lines_of_a_real_squid_fit_its_own_counter(
    gateway: Gateway, lines: list[bytes], tmp_path: Path
) -> None:
    verified = archived_and_verified(gateway, lines, tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.endswith("OK: everything is as it was signed\n")


def test_a_line_that_was_removed_before_it_was_archived_is_found(
    gateway: Gateway, lines: list[bytes], tmp_path: Path
) -> None:
    verified = archived_and_verified(gateway, lines[:2] + lines[3:], tmp_path)
    assert verified.returncode == 1
    assert (
        f"Squid counted {len(lines) - 1} requests, and the archive has {len(lines) - 2} lines"
        in verified.stdout
    )
    assert "1 or more are missing" in verified.stdout


def test_a_line_that_squid_did_not_write_is_found(
    gateway: Gateway, lines: list[bytes], tmp_path: Path
) -> None:
    verified = archived_and_verified(gateway, lines[:3] + lines[2:], tmp_path)
    assert verified.returncode == 1
    assert "it holds lines that Squid did not count" in verified.stdout


def test_the_maintenance_process_notes_the_counter_for_the_archive(
    gateway: Gateway, lines: list[bytes]
) -> None:
    state = gateway.root / "state"
    (state / FILE).unlink()
    with maintained(gateway, "--squid", gateway.authority):
        (sample,) = wait_for(lambda: read_samples(state), "a sample of Squid's counter")
    run = SquidProcess(gateway.root / "run/squid.pid").run()
    assert run is not None
    assert (sample.run, sample.started, sample.requests) == (
        run.id,
        run.started,
        len(lines) - 1,
    )
    assert (state / FILE).stat().st_mode & 0o777 == 0o640
