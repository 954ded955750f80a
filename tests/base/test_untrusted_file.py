"""A file that another account can replace is read, and nothing else that it can put
there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squidkeeper.base.errors import CountsUnavailable, PullFailed, WebhookFailed
from squidkeeper.base.squid_counters import FILE, read_samples
from squidkeeper.base.untrusted_file import read_regular, read_untrusted
from squidkeeper.record.archive_status import DELETED, DeletedLogs, read_deleted_logs
from squidkeeper.services.exporter.certificate import read_certificate
from squidkeeper.services.pulling.settings import read_token
from squidkeeper.services.webhook import read_webhook_settings
from squidkeeper.serving.quotas.store_settings import read_quota_store


def put_link(file: Path) -> None:
    file.with_name("secret").write_text("what the reader alone may read")
    file.symlink_to(file.with_name("secret"))


KINDS: dict[str, Callable[[Path], None]] = {
    "link": put_link,
    "pipe": os.mkfifo,
    "folder": os.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_a_pipe_and_a_folder_are_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "file")
    with pytest.raises(OSError, match=r"symbolic links|not a regular file"):
        read_untrusted(tmp_path / "file", 9)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_keeps_no_descriptor(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "file")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            read_regular(tmp_path / "file", 9)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert [read_untrusted(tmp_path / "file", longest) for longest in (4, 10, 99)] == [
        b"0123",
        *2 * [b"0123456789"],
    ]


def test_a_pipe_that_somebody_holds_open_blocks_no_reader_of_the_state_folder(
    tmp_path: Path,
) -> None:
    for name in (FILE, DELETED):
        os.mkfifo(tmp_path / name)
    held = [os.open(tmp_path / name, os.O_RDWR) for name in (FILE, DELETED)]
    try:
        assert (read_samples(tmp_path), read_deleted_logs(tmp_path)) == (
            (),
            DeletedLogs(),
        )
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.timeout(20)
def test_a_pipe_that_the_settings_name_is_waited_for_by_nobody(tmp_path: Path) -> None:
    pipe, store, webhook = (
        tmp_path / "pipe",
        tmp_path / "quota-store.yaml",
        tmp_path / "webhook.yaml",
    )
    os.mkfifo(pipe, 0o640)
    named = f"password_file: {pipe}, tls_ca: {pipe}"
    store.write_text(
        f"{{address: '127.0.0.1:6379', user: gw, {named}, on_unavailable: deny, gateways: 2}}"
    )
    webhook.write_text(f"{{url: 'https://hooks.example/x', key_file: {pipe}}}")
    with pytest.raises(PullFailed, match="pipe"):
        read_token(pipe)
    with pytest.raises(CountsUnavailable, match="not a regular file"):
        read_quota_store(store)
    with pytest.raises(WebhookFailed, match="pipe"):
        read_webhook_settings(webhook)
    assert read_certificate(pipe).problem == "not a regular file"
