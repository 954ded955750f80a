"""Logs are bounded in bytes: rotated by size with a real Squid that opens new ones, and
the oldest deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record.archive_status import (
    ArchiveStatus,
    DeletedLogs,
    FileOnDisk,
    read_deleted_logs,
)
from squidkeeper.services.maintenance.rotation import Rotation
from squidkeeper.services.maintenance.squid_process import RateLimit, SquidProcess
from tests.bare_squid import BareSquid, bare_squid
from tests.e2e.network import run
from tests.waiting import wait_for

SECOND = 1_800_000_000
KILOBYTE = 1024


@pytest.fixture(scope="module")
def running() -> Iterator[BareSquid]:
    with bare_squid() as squid:
        yield squid


@pytest.fixture
def squid(running: BareSquid) -> BareSquid:
    """A Squid with nothing but its logs, which are empty."""
    for log in (running.access_log, running.cache_log):
        for file in rotated(log):
            file.unlink()
        os.truncate(log, 0)
    return running


def rotation(
    squid: BareSquid, limit_bytes: int, pace: RateLimit | None = None
) -> Rotation:
    return Rotation(
        squid.access_log,
        squid.cache_log,
        SquidProcess(squid.pid_file),
        limit_bytes,
        pace,
    )


def without_squid(folder: Path, limit_bytes: int | None) -> Rotation:
    return Rotation(
        folder / "access.log",
        folder / "cache.log",
        SquidProcess(folder / "squid.pid"),
        limit_bytes,
    )


def write(folder: Path, **sizes: int) -> None:
    """Make files of a folder, each written a second after the one before."""
    for second, (name, size) in enumerate(sizes.items()):
        file = folder / name
        file.write_bytes(b"x" * size)
        os.utime(file, (SECOND + second, SECOND + second))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ── Rotated ───────────────────────────────────────────────────────────────────────────


@pytest.mark.system
def test_a_log_that_is_too_long_is_renamed_and_squid_opens_a_new_one(
    squid: BareSquid,
) -> None:
    squid.ask("before.example")
    task = rotation(squid, 32 * squid.access_log.stat().st_size)
    task.check()
    assert rotated(squid.access_log) == [], (
        "a thirty-second of the limit is not too long"
    )
    squid.ask("more.example")
    task.check()
    [old] = rotated(squid.access_log)
    wait_for(squid.access_log.exists, "the new log")
    squid.ask("after.example")
    assert squid.logged() == ["after.example", "before.example", "more.example"]
    assert old.read_text().count("\n") == 2


@pytest.mark.system
def test_a_cache_log_that_is_too_long_is_renamed_too(squid: BareSquid) -> None:
    with squid.cache_log.open("a") as log:
        log.write("said by a helper\n" * 1000)
    # cache.log may have 64 KB, and 2 KB before it is rotated
    task = rotation(squid, 2**20)
    task.check()
    wait_for(squid.cache_log.exists, "the new log")
    [old] = rotated(squid.cache_log)
    assert old.read_text().count("said by a helper") == 1000
    wait_for(
        lambda: "Rotate log file" in squid.cache_log.read_text(), "Squid to write to it"
    )


@pytest.mark.system
def test_squid_is_told_no_more_often_than_the_pace_allows(squid: BareSquid) -> None:
    now = 0.0
    task = rotation(squid, 32 * 50, RateLimit((60.0, 1), clock=lambda: now))
    for now, count in ((0.0, 1), (1.0, 1), (59.0, 1), (60.0, 2)):  # noqa: B007 - the clock reads it
        squid.ask("one.example")
        task.check()
        assert len(rotated(squid.access_log)) == count
        wait_for(squid.access_log.exists, "the new log")
    assert squid.logged().count("one.example") == 4


@pytest.mark.system
def test_what_a_process_before_this_one_renamed_is_told_to_squid(
    squid: BareSquid,
) -> None:
    """It ended between the two."""
    squid.ask("before.example")
    squid.access_log.rename(squid.folder / "access.log-20261125000000")
    rotation(squid, 2**30).check()
    wait_for(squid.access_log.exists, "the new log")


def test_while_squid_does_not_run_no_log_is_renamed(tmp_path: Path) -> None:
    """Nobody would make a new one."""
    write(tmp_path, **{"access.log": 100})
    without_squid(tmp_path, 1024).check()
    assert names(tmp_path) == ["access.log"]


# ── Deleted ───────────────────────────────────────────────────────────────────────────


def test_the_oldest_are_deleted_until_the_log_keeps_within_its_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = (
        "access.log-20261120010203",
        "access.log.3.gz",
        "access.log.2",
        "access.log-20261125010203",
        "access.log",
    )
    write(tmp_path, **dict.fromkeys(files, 100))
    task = without_squid(tmp_path, 500)
    task.check()
    assert names(tmp_path) == sorted(files), "at the bound, not over it"
    write(tmp_path, **{"access.log": 250})
    task.check()
    assert names(tmp_path) == sorted(files[2:])
    assert (
        f"deleted {tmp_path}/access.log.3.gz (100 bytes): the limit for {tmp_path}/access.log is 500 bytes"
        in caplog.text
    )


def test_nothing_but_rotated_logs_is_deleted(tmp_path: Path) -> None:
    strangers = (
        "access.log",
        "access.log.old",
        "access.log.1.bak",
        "other.log.1",
        "xaccess.log.1",
        "report.html",
    )
    write(tmp_path, **dict.fromkeys(strangers, 100))
    (tmp_path / "access.log.7").mkdir()
    target = tmp_path / "elsewhere"
    target.write_bytes(b"x" * 10_000)
    (tmp_path / "access.log.8").symlink_to(target)
    os.mkfifo(tmp_path / "access.log.9")
    before = names(tmp_path)
    without_squid(tmp_path, 32).check()
    assert names(tmp_path) == before


def test_lines_of_cache_log_delete_no_record(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{
            "access.log.1": 1000,
            "access.log": 600,
            "cache.log.2": 90,
            "cache.log.1": 90,
            "cache.log": 90,
        },
    )
    without_squid(tmp_path, 1600).check()
    assert names(tmp_path) == ["access.log", "access.log.1", "cache.log"]


@pytest.mark.system
def test_unless_a_limit_is_given_half_of_a_small_disk_is_used(tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path)
    try:
        files = {f"access.log.{number}": 1000 * KILOBYTE for number in range(6, 0, -1)}
        write(tmp_path, **files, **{"access.log": 90 * KILOBYTE})
        without_squid(tmp_path, None).check()
        assert names(tmp_path) == [
            "access.log",
            "access.log.1",
            "access.log.2",
            "access.log.3",
            "access.log.4",
        ]
    finally:
        run("umount", "--lazy", tmp_path)


@pytest.fixture
def busy(squid: BareSquid) -> Iterator[Path]:
    """A log that is a mount of its own, as a container's can be: it can be neither
    renamed nor deleted.
    """
    run("mount", "--bind", squid.access_log, squid.access_log)
    yield squid.access_log
    run("umount", "--lazy", squid.access_log)


@pytest.mark.system
def test_a_log_that_cannot_be_renamed_keeps_nothing_else_from_its_bound(
    squid: BareSquid, busy: Path
) -> None:
    write(squid.folder, **{"access.log.1": 300_000, "access.log.2": 900_000})
    for log in (squid.access_log, squid.cache_log):
        with log.open("a") as file:
            file.write("x" * 100_000 + "\n")
    task = rotation(squid, 2**20)
    for _ in range(2):  # told for as long as it lasts
        with pytest.raises(OSError, match=r"busy: '.*access\.log'"):
            task.check()
    wait_for(squid.cache_log.exists, "the new log")
    assert names(squid.folder).count("access.log.2") == 0, (
        "the oldest, by the time of its last write"
    )


@pytest.mark.system
def test_a_rotation_that_cannot_be_deleted_keeps_no_other_from_deletion(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        **{
            "access.log.3": 400,
            "access.log.2": 400,
            "access.log.1": 400,
            "cache.log.1": 400,
        },
    )
    run("mount", "--bind", tmp_path / "access.log.3", tmp_path / "access.log.3")
    try:
        with pytest.raises(OSError, match=r"busy: '.*access\.log\.3'"):
            without_squid(tmp_path, 800).check()
        assert names(tmp_path) == ["access.log.1", "access.log.3"]
    finally:
        run("umount", tmp_path / "access.log.3")


def test_a_folder_that_is_not_there_is_an_error_until_it_is(tmp_path: Path) -> None:
    task = without_squid(tmp_path / "log", None)
    with pytest.raises(FileNotFoundError):
        task.check()
    (tmp_path / "log").mkdir()
    task.check()


# ── Archived ──────────────────────────────────────────────────────────────────────────


def with_archive(folder: Path, limit_bytes: int, *archived: str) -> Rotation:
    """A rotation beside an archive that holds these files; its notes are in `state`."""
    archive, state = folder / "archive", folder / "state"
    for place in (archive, state):
        place.mkdir(exist_ok=True)
    files = frozenset(
        file for name in archived if (file := FileOnDisk.of(folder / name))
    )
    (archive / "status.json").write_bytes(
        msgspec.json.encode(ArchiveStatus(archived=files))
    )
    squid = SquidProcess(folder / "squid.pid")
    return Rotation(
        folder / "access.log",
        folder / "cache.log",
        squid,
        limit_bytes,
        archive=archive,
        state=state,
    )


def logs_in(folder: Path) -> list[str]:
    return [name for name in names(folder) if ".log" in name]


def test_over_the_bound_archived_files_go_before_older_ones_that_are_not(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        **{
            "access.log.3.gz": 100,
            "access.log.2": 100,
            "access.log.1": 100,
            "access.log": 100,
        },
    )
    with_archive(tmp_path, 300, "access.log.2", "access.log.1").check()
    assert logs_in(tmp_path) == ["access.log", "access.log.1", "access.log.3.gz"]
    assert read_deleted_logs(tmp_path / "state") == DeletedLogs()


def test_what_is_deleted_before_it_is_archived_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, **{"access.log.2": 100, "access.log.1": 110, "access.log": 100})
    with_archive(tmp_path, 105).check()
    gone = read_deleted_logs(tmp_path / "state")
    assert (gone.files, gone.bytes, gone.last) == (2, 210, "access.log.1")
    assert (
        f"deleted {tmp_path}/access.log.2 (100 bytes) before it was archived: its records are lost"
        in caplog.text
    )


def test_an_old_file_goes_when_it_is_archived_and_no_sooner(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{
            "access.log.3": 100,
            "access.log.2": 100,
            "access.log.1": 100,
            "cache.log.1": 10,
        },
    )
    now = time.time()
    for name, days in {
        "access.log.3": 30,
        "access.log.2": 2.1,
        "access.log.1": 1.9,
        "cache.log.1": 2.1,
    }.items():
        os.utime(tmp_path / name, (now - days * 86_400, now - days * 86_400))
    without_squid(tmp_path, 10_000).check()
    assert logs_in(tmp_path) == ["access.log.1", "access.log.2", "access.log.3"], (
        "without an archive they stay"
    )
    with_archive(tmp_path, 10_000, "access.log.2", "access.log.1").check()
    assert logs_in(tmp_path) == ["access.log.1", "access.log.3"]


def test_a_file_that_was_written_to_since_it_was_archived_is_not_archived(
    tmp_path: Path,
) -> None:
    write(tmp_path, **{"access.log.1": 100})
    task = with_archive(tmp_path, 10_000, "access.log.1")
    with (tmp_path / "access.log.1").open("a") as log:
        log.write("more")
    os.utime(tmp_path / "access.log.1", (0, 0))
    task.check()
    assert logs_in(tmp_path) == ["access.log.1"]
