"""Which process listens where, and whether it has ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from squidkeeper.operate.setup.sockets import has_ended, is_free, process_listens, wait_until

LISTENING = "import socket, signal; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"


def test_a_process_listens_on_a_port_by_itself_or_by_a_descendant() -> None:
    command = [sys.executable, "-c", f"{LISTENING}; signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert process_listens(child.pid, port)
        assert process_listens(os.getpid(), port)
        assert not process_listens(child.pid, port + 1)
        assert not process_listens(None, port)
        child.kill()
        assert wait_until(10, lambda: not process_listens(child.pid, port))


def test_a_process_that_has_ended_is_gone_though_nobody_waits_for_it() -> None:
    """As in a container whose first process waits for no child of others: a Squid that has ended stays a zombie."""
    with subprocess.Popen(["sleep", "300"]) as process:
        assert not has_ended(process.pid)
        process.kill()
        assert wait_until(10, lambda: has_ended(process.pid))
    assert has_ended(process.pid)


def test_a_taken_address_is_not_free_and_an_unknown_one_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not is_free(f"127.0.0.1:{taken.getsockname()[1]}")
        assert not is_free(str(taken.getsockname()[1])), "a bare port is every address"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert not is_free(f"127.0.0.1:{port}", socket.SOCK_DGRAM)
        assert is_free(f"127.0.0.1:{port}")
    with pytest.raises(OSError, match="assign requested address"):
        is_free("192.0.2.1:3129")


def test_a_wait_ends_with_its_condition_or_its_time() -> None:
    began = time.monotonic()
    assert wait_until(60, lambda: True)
    assert not wait_until(0.2, lambda: False)
    assert 0.2 <= time.monotonic() - began < 10
