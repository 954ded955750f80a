"""What a process tells the service manager that started it."""

import socket
from pathlib import Path

import pytest

from squidkeeper.base.service_notify import ALIVE, READY, notify


@pytest.mark.system
@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_process_tells_its_manager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_abstract: bool
) -> None:
    address = f"@{tmp_path.name}-notify" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(5)
        notify(READY)
        notify(ALIVE)
        assert [manager.recv(64), manager.recv(64)] == [b"READY=1", b"WATCHDOG=1"]


def test_a_manager_that_is_gone_or_none_at_all_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify(READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify(READY)
