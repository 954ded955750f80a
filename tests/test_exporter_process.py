"""What the exporter's process keeps from others on its machine."""

import resource
import socket
from pathlib import Path

import pytest

from squidkeeper.exporter.process import _bound

from .test_exporter import policy, running

__all__ = ["policy"]  # a fixture


def test_it_leaves_no_core_dump_as_it_looks_at_secrets(tmp_path: Path, policy: Path) -> None:
    with running(tmp_path) as exporter:
        assert resource.prlimit(exporter.process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_nobody_else_opens_its_port_while_it_counts_what_there_is() -> None:
    with _bound(("127.0.0.1", 0)) as bound, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(bound.getsockname())
