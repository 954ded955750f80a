"""What the service of sessions does when something around it fails."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from squidkeeper.base.errors import ListenFailed
from squidkeeper.services.sessions.server import bind
from squidkeeper.serving.sessions.store import FILE

from ..waiting import wait_for
from .test_sessions_calls import CODING, Service, serving

pytestmark = pytest.mark.system


@pytest.fixture
def service() -> Iterator[Service]:
    yield from serving()


@contextmanager
def small_disk(place: Path, *, size: str) -> Iterator[None]:
    options = f"size={size},mode=2750"
    mounting = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_refuses_new_sessions_and_ends_others(service: Service) -> None:
    service.end()
    with small_disk(service.folder, size="12m"):
        service.start()
        for number in range(20):
            assert service.put(f"vm-{number}", CODING).status == 201
        filler = service.folder / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):  # noqa: PT011, PT012 - it is full
            while True:
                file.write(bytes(4096))
        refused = None
        for number in range(20, 400):
            made = service.put(f"vm-{number}", CODING)
            if made.status != 201:
                refused = made
                break
        assert refused
        assert (refused.status, refused.code) == (503, "store-unavailable")
        assert "log of this service" in refused.body["detail"]
        assert str(service.folder) not in str(refused.body)
        assert "full" not in str(refused.body)
        assert "disk is full" in service.told()
        assert service.get("vm-1").body["state"] == "active"
        for number in range(5):
            assert service.delete(f"vm-{number}").status == 200
        filler.unlink()
        assert service.put("after", CODING).status == 201
        service.end()


def test_a_damaged_store_keeps_the_service_from_starting(service: Service) -> None:
    service.put("vm", CODING)
    service.end()
    file = service.folder / FILE
    for beside in service.folder.glob(f"{FILE}-*"):
        beside.unlink()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(AssertionError):
        service.start()
    assert service.process
    assert service.process.wait(60) != 0
    assert "file is not a database" in service.told()


def test_a_second_service_does_not_take_the_socket(service: Service) -> None:
    with pytest.raises(ListenFailed, match="another process listens"):
        bind(service.socket)
    assert service.put("vm", CODING).status == 201


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    for _ in range(2):
        bind(path).close()
    with closing(bind(path)), closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(path))


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_socket_that_was_replaced_ends_the_process(
    service: Service, is_replaced: bool
) -> None:
    """Whoever has started it starts it again, and it binds its own."""
    assert service.process
    service.socket.unlink()
    if is_replaced:
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(service.socket))
        other.close()
    wait_for(lambda: service.process and service.process.poll() == 0, "its end")
    assert "is another file: this process ends" in service.told()
    service.start()
    assert service.put("vm", CODING).status == 201


def test_an_audit_log_that_cannot_be_written_is_told(service: Service) -> None:
    service.put("vm", CODING)
    service.audit.unlink()
    os.symlink("/nowhere/audit", service.audit)
    assert service.put("other", CODING).status == 201
    wait_for(lambda: "not in the audit log" in service.told())
