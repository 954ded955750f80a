"""What the exporter's process keeps from others on its machine."""

import resource
import socket
import time
from pathlib import Path

import pytest

from squidkeeper.services.exporter.process import _bound

from ..waiting import pause
from .test_exporter import policy, running
from .test_log_counter import line

__all__ = ["policy"]  # a fixture


def test_it_leaves_no_core_dump_as_it_looks_at_secrets(tmp_path: Path, policy: Path) -> None:
    with running(tmp_path) as exporter:
        assert resource.prlimit(exporter.process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_nobody_else_opens_its_port_while_it_counts_what_there_is() -> None:
    with _bound(("127.0.0.1", 0)) as bound, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(bound.getsockname())


def test_health_writes_nothing_however_often_it_is_asked(tmp_path: Path, policy: Path) -> None:
    with running(tmp_path) as exporter:
        counts, files, begun = tmp_path / "state/exporter/counts.json", set(), time.monotonic()
        for _ in range(20):
            with exporter.log.open("ab") as log:
                log.write(line())
            pause(0.05, "the exporter reads the log four times a second")
            exporter.get("/healthz")
            files.add(counts.stat().st_mtime_ns if counts.exists() else None)
        saves = (time.monotonic() - begun) / 5 + 1
        assert len(files) <= 1 + saves, "the exporter itself saves once in five seconds"
