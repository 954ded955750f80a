"""The archive holds every line of each rotated log once, in its order, whatever happens
to a run or to the log.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.errors import ArchiveInUse
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.base.squid_counters import SquidSample, write_samples
from squidkeeper.cli import main
from squidkeeper.record.archive import archiver
from squidkeeper.record.archive.archiver import Archiver, RunReport
from squidkeeper.record.archive.part_writer import NewPart, PartWriter
from squidkeeper.record.archive.retention import ArchiveBounds, days_of
from squidkeeper.record.archive_status import ArchiveStatus, read_archive_status
from squidkeeper.record.chain.chain import read_chain, write_lock
from squidkeeper.record.chain.entries import EntryKind
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.places import FolderPlace
from squidkeeper.record.chain.verification import verify
from tests.archived import CHUNK_BYTES, archived_lines
from tests.records import record_line
from tests.waiting import wait_for

HOUR_AGO = time.time() - 3600
DAY, NEXT_DAY = "2026-11-20", "2026-11-21"
INVALID = [
    b"",
    b"no record",
    b"\xff\xfe not UTF-8 \x00 \x1b[31m",
    b'{"v":1,"time":"2026-11-20T1',
    b'{"v":9}',
    b"x" * 300_000,
    b"ends in a carriage return\r",
    b"a bare \r in it",
]


def lines_of(day: str, count: int, first: int = 0) -> list[bytes]:
    """Make records of a day, each another one."""
    times = [
        f"{day}T10:{n // 60 % 60:02d}:{n % 60:02d}.{n % 1000:03d}Z"
        for n in range(first, first + count)
    ]
    return [
        record_line(time=at, url=f"https://a.example/{n}", request_id=day)
        for n, at in enumerate(times, first)
    ]


def write_log(
    path: Path,
    lines: Iterable[bytes],
    pack: Callable[[bytes], bytes] = bytes,
    end: bytes = b"\n",
) -> Path:
    """Write a rotated log that was complete an hour ago."""
    path.write_bytes(pack(b"\n".join(lines) + end))
    os.utime(path, (HOUR_AGO, HOUR_AGO))
    return path


def status_of(folder: Path) -> ArchiveStatus:
    status = read_archive_status(folder)
    assert status
    return status


def zstd(content: bytes) -> bytes:
    return subprocess.run(
        ["zstd", "-c"], input=content, capture_output=True, check=True
    ).stdout


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


EACH_SUFFIX = pytest.mark.parametrize(
    "suffix", ["gz", "xz", "bz2", pytest.param("zst", marks=pytest.mark.system)]
)


def run_command(logs: Path, folder: Path) -> list[str | Path]:
    command = [sys.executable, "-m", "squidkeeper", "archive", "run"]
    return [*command, "--access-log", logs / "access.log", "--archive", folder]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir(mode=0o750)
    return tmp_path / "archive"


def run(
    logs: Path,
    folder: Path,
    key: ArchiveKey | None = None,
    bounds: ArchiveBounds | None = None,
) -> RunReport:
    return Archiver(
        logs / "access.log", folder, key, bounds or ArchiveBounds(36_500), CHUNK_BYTES
    ).run()


# ── What is archived ──────────────────────────────────────────────────────────────────


def test_each_form_of_a_rotated_log_is_archived_once_line_by_line(
    logs: Path, folder: Path
) -> None:
    packed: dict[str, Callable[[bytes], bytes]] = {
        "access.log.4.gz": gzip.compress,
        "access.log.3.bz2": bz2.compress,
        "access.log.2.xz": lzma.compress,
        "access.log.1": bytes,
        "access.log-20261121.gz": gzip.compress,
        "access.log-20261121063000": bytes,
    }
    expected = []
    for number, (name, pack) in enumerate(packed.items()):
        lines = lines_of(DAY, 40, 100 * number)
        expected += lines
        write_log(logs / name, lines, pack)
    (logs / "access.log").write_bytes(b"the log that Squid writes\n")
    report = run(logs, folder)
    assert (report.failures, report.waiting) == ([], [])
    assert sorted(archived_lines(folder)) == sorted(expected)
    assert run(logs, folder).archived == []
    (
        folder / "status.json"
    ).unlink()  # what is known of files on disk: without it the chain tells
    (logs / "access.log.1").rename(logs / "access.log.9")
    write_log(logs / "access.log.10.gz", lines_of(DAY, 40, 500), gzip.compress)
    (logs / "access.log-20261121063000").unlink()
    assert run(logs, folder).archived == []
    assert sorted(archived_lines(folder)) == sorted(expected)


def test_a_log_becomes_parts_of_its_utc_days_in_the_order_of_its_lines(
    logs: Path, folder: Path
) -> None:
    lines = [*lines_of(DAY, 30), b"no record", *lines_of(NEXT_DAY, 30), b"nor this"]
    write_log(logs / "access.log.1", lines)
    run(logs, folder)
    assert archived_lines(folder) == lines
    days = days_of(read_chain(folder))
    assert [(day.day, day.lines, day.invalid) for day in days] == [
        (DAY, 31, 1),
        (NEXT_DAY, 31, 1),
    ]
    assert len(days[0].parts) > 1, "more than one chunk"
    assert days[0].parts[0].first == f"{DAY}T10:00:00.000Z"
    last = max(part.last for part in days[-1].parts)  # the last chunk can lack a time
    assert last == f"{NEXT_DAY}T10:00:29.029Z"
    modes = {path.stat().st_mode & 0o777 for path in folder.glob("day=*/*")}
    folders = [*folder.glob("day=*"), folder / "incoming"]  # Squid's group verifies too
    assert (modes, {path.stat().st_mode & 0o777 for path in folders}) == (
        {0o640},
        {0o750},
    )


def test_invalid_lines_are_kept_as_they_are(logs: Path, folder: Path) -> None:
    unknown = lines_of(DAY, 1)[0][:-1] + b',"later":"field"}'
    odd = lines_of(DAY, 1)[0].replace(b'"v":1,', b'"v": 1, ')
    lines = [*INVALID, *lines_of(DAY, 3), unknown, *INVALID, odd, b"no newline follows"]
    write_log(logs / "access.log.1", lines, end=b"")
    report = run(logs, folder)
    assert (report.failures, [log.lines for log in report.archived]) == (
        [],
        [len(lines)],
    )
    assert archived_lines(folder) == lines
    assert (
        sum(day.invalid for day in days_of(read_chain(folder))) == 2 * len(INVALID) + 1
    )


def test_a_log_without_a_record_has_the_day_of_its_last_write(
    logs: Path, folder: Path
) -> None:
    write_log(logs / "access.log.1", [b"no record"])
    write_log(logs / "access.log.2", [], end=b"")
    assert run(logs, folder).failures == []
    assert [day.day for day in days_of(read_chain(folder))] == [
        f"{datetime.fromtimestamp(HOUR_AGO, UTC):%Y-%m-%d}"
    ]
    assert status_of(folder).unarchived(rotated(logs / "access.log")) == []


# ── What is complete ──────────────────────────────────────────────────────────────────


def test_a_log_that_may_still_be_written_to_waits(logs: Path, folder: Path) -> None:
    log = write_log(logs / "access.log.1", lines_of(DAY, 3))
    os.utime(log)
    assert run(logs, folder).waiting == ["access.log.1"]
    assert archived_lines(folder) == []
    os.utime(log, (HOUR_AGO, HOUR_AGO))
    assert [log.lines for log in run(logs, folder).archived] == [3]


def test_of_a_log_that_grew_after_all_the_rest_is_archived(
    logs: Path, folder: Path
) -> None:
    """Squid writes on into a renamed file until it is told to open a new one."""
    lines = lines_of(DAY, 50)
    for count in (20, 35, 50):
        write_log(logs / "access.log.1", lines[:count])
        assert len(run(logs, folder).archived) == 1
    assert archived_lines(folder) == lines


def test_a_copy_that_is_also_renamed_is_archived_once(logs: Path, folder: Path) -> None:
    """As where `copytruncate` could copy, and not truncate."""
    lines = lines_of(DAY, 50)
    write_log(logs / "access.log.2", lines[:30])
    write_log(logs / "access.log.1", lines)
    run(logs, folder)
    assert sorted(archived_lines(folder)) == sorted(lines)


def test_a_log_that_is_being_compressed_is_read_as_it_was(
    logs: Path, folder: Path
) -> None:
    lines = lines_of(DAY, 50)
    log = write_log(logs / "access.log.1", lines)
    half = gzip.compress(log.read_bytes())[:300]
    (logs / "access.log.1.gz").write_bytes(half)
    os.utime(logs / "access.log.1.gz", (HOUR_AGO, HOUR_AGO))
    run(logs, folder)
    assert archived_lines(folder) == lines


@EACH_SUFFIX
def test_of_a_damaged_log_what_is_readable_is_archived(
    logs: Path, folder: Path, suffix: str
) -> None:
    name = f"access.log.1.{suffix}"
    lines = [line + os.urandom(200).hex().encode() for line in lines_of(DAY, 3000)]
    whole = PACKS[suffix](b"\n".join(lines) + b"\n")
    (logs / name).write_bytes(whole[: len(whole) * 3 // 4])
    os.utime(logs / name, (HOUR_AGO, HOUR_AGO))
    report = Archiver(logs / "access.log", folder).run()
    found = archived_lines(folder)
    assert 300 < len(found) < 3000
    assert found[:-1] == lines[: len(found) - 1]
    assert lines[len(found) - 1].startswith(found[-1])
    assert (report.failures, [bool(log.damage) for log in report.archived]) == (
        [],
        [True],
    )
    assert status_of(folder).damaged[0].startswith(f"{name}: ")
    assert Archiver(logs / "access.log", folder).run().archived == []


def damaged(kind: str, packed: bytes) -> bytes:
    middle = len(packed) // 2
    kinds = {
        "cut": packed[:-4],
        "changed": packed[:middle]
        + bytes([packed[middle] ^ 0x40])
        + packed[middle + 1 :],
        "followed": packed + b"garbage",
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["cut", "changed", "followed"])
@EACH_SUFFIX
def test_the_damage_of_a_short_log_is_named_too(
    logs: Path, folder: Path, suffix: str, kind: str
) -> None:
    lines = lines_of(DAY, 500)
    packed = PACKS[suffix](b"\n".join(lines) + b"\n")
    log = write_log(logs / f"access.log.1.{suffix}", [damaged(kind, packed)], end=b"")
    report = Archiver(logs / "access.log", folder).run()
    found, status = archived_lines(folder), status_of(folder)
    assert report.failures == []
    if found:
        assert [bool(log.damage) for log in report.archived] == [True]
        assert (len(status.damaged), status.refused) == (1, ())
    else:
        assert (len(status.refused), status.unarchived([log])) == (1, [log])
    if kind == "followed" or (kind, suffix == "zst") == ("cut", False):
        assert found == lines


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\n".join(lines_of(DAY, 3)) + b"\n"]
)
@EACH_SUFFIX
def test_a_file_of_which_nothing_can_be_read_stays_and_is_named(
    logs: Path, folder: Path, suffix: str, content: bytes
) -> None:
    log = write_log(logs / f"access.log.1.{suffix}", [content], end=b"")
    report = run(logs, folder)
    assert (report.archived, report.failures) == ([], [])
    assert [
        refusal.partition(": damaged from its start: ")[0] for refusal in report.refused
    ] == [log.name]
    status = status_of(folder)
    assert (status.refused, status.unarchived([log])) == (tuple(report.refused), [log])
    assert status.succeeded == status.ended, (
        "Squid's account, which writes the logs, makes no run fail"
    )


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_no_link_and_nothing_but_a_file_is_read(
    logs: Path, folder: Path, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "archive.key").write_text("what this account alone may read")
    (logs / f"access.log.2{suffix}").symlink_to(tmp_path / "archive.key")
    (logs / f"access.log.3{suffix}").hardlink_to(tmp_path / "archive.key")
    (logs / f"access.log.4{suffix}").mkdir()
    os.mkfifo(logs / f"access.log.5{suffix}")
    write_log(logs / "access.log.1", lines_of(DAY, 3))
    for path in logs.iterdir():
        os.utime(path, (HOUR_AGO, HOUR_AGO), follow_symlinks=False)
    report = run(logs, folder)
    assert sorted(report.refused) == [
        f"access.log.2{suffix}: a symbolic link",
        f"access.log.3{suffix}: a file with several names",
        f"access.log.4{suffix}: not a regular file",
        f"access.log.5{suffix}: not a regular file",
    ]
    assert (report.failures, archived_lines(folder)) == ([], lines_of(DAY, 3)), (
        "they stop no other"
    )


@pytest.mark.parametrize(
    "at",
    [
        "10000-01-01T00:00:00.000Z",
        "20260-11-20T10:00:00.000Z",
        "0001-01-01T00:00:00.000Z",
    ],
)
def test_a_time_that_no_clock_has_is_kept_as_it_is(
    logs: Path, folder: Path, at: str
) -> None:
    lines = [*lines_of(DAY, 1), record_line(time=at, url="https://a.example/")]
    write_log(logs / "access.log.1", lines)
    assert run(logs, folder).failures == []
    assert archived_lines(folder) == lines


def test_of_a_line_that_is_far_too_long_the_beginning_is_kept(
    logs: Path, folder: Path
) -> None:
    lines = [
        *lines_of(DAY, 3),
        b"\0" * 40_000_000,
        *lines_of(DAY, 3, 10),
        b"x" * 20_000_000,
    ]
    write_log(logs / "access.log.1", lines)
    report = Archiver(logs / "access.log", folder).run()
    assert report.failures == []
    assert [log.damage for log in report.archived] == [
        "2 lines of more than 8 MiB: only the beginning is kept"
    ]
    assert archived_lines(folder) == [line[: 8 * 1024 * 1024] for line in lines]
    assert run(logs, folder).archived == []


def test_a_full_disk_costs_no_line(
    logs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lines_of(DAY, 50)
    write_log(logs / "access.log.1", lines)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(archiver, "append_entry", full)
        assert run(logs, folder).failures == [
            "access.log.1: [Errno 28] No space left on device"
        ]
    assert archived_lines(folder) == []
    run(logs, folder)
    assert archived_lines(folder) == lines
    assert {str(path.relative_to(folder)) for path in folder.glob("day=*/*")} == set(
        read_chain(folder).parts
    )


# ── How long it is kept ───────────────────────────────────────────────────────────────


def test_days_that_are_too_old_go_with_a_tombstone(logs: Path, folder: Path) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for number, day in enumerate(("2020-01-01", "2020-01-02", today), 1):
        write_log(logs / f"access.log-2026112{number}", lines_of(day, 5))
    key = ArchiveKey.new()
    report = run(logs, folder, key, ArchiveBounds(90))
    assert [part.partition(":")[0] for part in report.removed] == [
        "2020-01-01",
        "2020-01-02",
    ]
    assert {path.name for path in folder.glob("day=*")} == {f"day={today}"}
    assert [entry.kind for entry in read_chain(folder).entries].count(
        EntryKind.TOMBSTONE
    ) == 2
    assert verify(FolderPlace(folder), (key.public,), ()).faults == ()
    assert run(logs, folder, key, ArchiveBounds(90)).archived == [], (
        "what went is not archived again"
    )


def test_the_oldest_days_go_while_the_archive_is_too_large(
    logs: Path, folder: Path
) -> None:
    for number in range(1, 4):
        write_log(
            logs / f"access.log-2026112{number}", lines_of(f"2026-11-2{number}", 50)
        )
    run(logs, folder)
    sizes = [day.bytes for day in days_of(read_chain(folder))]
    report = run(logs, folder, bounds=ArchiveBounds(36_500, sizes[1] + sizes[2]))
    assert report.removed == [
        f"2026-11-21: the archive was over its limit of {(sizes[1] + sizes[2]) / 1000:.0f} KB"
    ]
    assert [day.day for day in days_of(read_chain(folder))] == [
        "2026-11-22",
        "2026-11-23",
    ]


# ── Killed ────────────────────────────────────────────────────────────────────────────


class Killer:
    """Runs of the archive that are killed at a step."""

    def __init__(self, logs: Path, folder: Path, days: int = 36_500) -> None:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.archived",
            logs / "access.log",
            folder,
            str(days),
        ]
        root = Path(__file__).parents[2]
        self._process: subprocess.Popen[str] = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, step: int) -> bool:
        """Run, and tell whether it was killed at this step."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{step}\n")
        self._process.stdin.flush()
        ended = str(self._process.stdout.readline()).strip()
        assert ended in ("killed", "ended 0"), ended
        return ended == "killed"

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def hold_lines(folder: Path, lines: list[bytes]) -> None:
    """Nothing is in the archive twice, and nothing that is no line of the logs."""
    found = archived_lines(folder)
    assert len(found) == len(set(found))
    assert set(found) <= set(lines)


@pytest.mark.system
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "steps", [range(3, 93, 9), pytest.param(range(1, 201), marks=pytest.mark.long)]
)
def test_a_run_that_is_killed_at_any_step_loses_nothing_and_doubles_nothing(
    logs: Path, folder: Path, steps: range
) -> None:
    """Each run goes on where the one before was killed, with another log; some are
    killed while they clean up.
    """
    lines: list[bytes] = []
    killed = 0
    with Killer(logs, folder) as killer:
        for number, step in enumerate(steps):
            new = lines_of(DAY, 20, 100 * number) + lines_of(NEXT_DAY, 10, 100 * number)
            lines += new
            write_log(logs / f"access.log-{20200101000000 + number}", new)
            killed += killer.run(step)
            hold_lines(folder, lines)
    assert killed > len(steps) / 2
    assert run(logs, folder).failures == []
    assert sorted(archived_lines(folder)) == sorted(lines)
    assert {str(path.relative_to(folder)) for path in folder.glob("day=*/*")} == set(
        read_chain(folder).parts
    )


def test_a_part_that_no_entry_names_is_never_removed(logs: Path, folder: Path) -> None:
    """As where an older chain was put back."""
    write_log(logs / "access.log.2", lines_of(DAY, 5))
    run(logs, folder)
    before = (folder / "chain.jsonl").read_bytes()
    write_log(logs / "access.log.1", lines_of(DAY, 5, 10))
    run(logs, folder)
    newer = f"day={DAY}/part-00000002-0000-0.parquet"
    content = (folder / newer).read_bytes()
    (folder / "chain.jsonl").write_bytes(before)
    report = run(logs, folder)
    assert report.archived == []
    assert [failure.partition(":")[0] for failure in report.failures] == [
        f"{newer} is in no entry of chain.jsonl, which may be an older one",
        "access.log.1",
    ]
    assert (folder / newer).read_bytes() == content
    (folder / newer).rename(folder / "elsewhere")
    assert run(logs, folder).failures == []
    assert archived_lines(folder) == [*lines_of(DAY, 5), *lines_of(DAY, 5, 10)]
    assert list((folder / "incoming").iterdir()) == [], "what a run leaves is gone"


def test_a_log_that_fails_leaves_no_part(
    logs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(logs / "access.log.2", lines_of(DAY, 100))
    write_log(logs / "access.log.1", lines_of(NEXT_DAY, 3))
    write = PartWriter.write
    failures = iter([None, RuntimeError("what nobody foresaw")])

    def failing(
        self: PartWriter, folder: Path, name: str, day: str
    ) -> Iterator[NewPart]:
        if error := next(failures, None):
            raise error
        yield from write(self, folder, name, day)

    with monkeypatch.context() as patched:
        patched.setattr(PartWriter, "write", failing)
        report = run(logs, folder)
    assert [failure.partition(" in ")[0] for failure in report.failures] == [
        "access.log.2: RuntimeError"
    ]
    assert [log.name for log in report.archived] == ["access.log.1"], (
        "one that fails does not stop the others"
    )
    assert [path.parent.name for path in folder.glob("day=*/*")] == [f"day={NEXT_DAY}"]
    assert run(logs, folder).failures == []
    assert len(archived_lines(folder)) == 103


def test_a_run_that_ends_by_an_error_has_not_succeeded(
    logs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(archiver, "remove_over_bounds", failing)
    with pytest.raises(RuntimeError):
        run(logs, folder)
    status = status_of(folder)
    assert (
        status.failure.startswith("RuntimeError in failing"),
        status.succeeded == status.ended,
    ) == (True, False)


@pytest.mark.long
def test_a_run_that_is_killed_while_it_removes_days_removes_them_later(
    logs: Path, folder: Path
) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for step in range(1, 120):
        shutil.rmtree(folder)
        folder.mkdir()
        for number, day in enumerate(("2020-01-01", "2020-01-02", today), 1):
            write_log(logs / f"access.log-2026112{number}", lines_of(day, 5))
        run(logs, folder)
        with Killer(logs, folder, 90) as killer:
            killed = killer.run(step)
        run(logs, folder, bounds=ArchiveBounds(90))
        assert archived_lines(folder) == lines_of(today, 5)
        assert {path.name for path in folder.glob("day=*")} == {f"day={today}"}
        if not killed:
            return
    pytest.fail("no run came to its end")


# ── The command ───────────────────────────────────────────────────────────────────────


def test_one_run_at_a_time(logs: Path, folder: Path) -> None:
    with write_lock(folder), pytest.raises(ArchiveInUse):
        run(logs, folder)


def command(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["archive", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command_says_what_it_archived_and_lists_days(
    logs: Path, folder: Path
) -> None:
    write_log(logs / "access.log.1", [*lines_of(DAY, 3), b"no record"])
    where = ("--access-log", logs / "access.log", "--archive", folder)
    assert command("run", *where) == (
        0,
        "archived access.log.1: 4 lines, 1 of them invalid\n",
    )
    assert command("run", *where) == (0, "")
    size = days_of(read_chain(folder))[0].bytes
    listed = json.loads(command("list", "--archive", folder, "--json")[1])
    assert listed == [{"day": DAY, "lines": 4, "invalid": 1, "bytes": size, "parts": 1}]
    assert command("list", "--archive", folder)[1].splitlines()[1].split()[:3] == [
        DAY,
        "4",
        "1",
    ]
    status, told = command(
        "run", "--access-log", logs / "access.log", "--archive", folder / "missing"
    )
    assert (status, "there is no such folder" in told) == (1, True)
    status, told = command(
        "run", "--access-log", logs / "missing" / "access.log", "--archive", folder
    )
    assert (status, told) == (
        1,
        f"Error: {logs}/missing: there is no such folder: name Squid's by --access-log\n",
    )
    for other in (logs, logs / "missing"):
        status, told = command("list", "--archive", other)
        assert (status, told.splitlines()[-1]) == (
            2,
            f"Error: Invalid value for --archive: {other}: there is no archive here",
        )


@pytest.mark.parametrize(
    "before", [0, 3]
)  # without a line there is a head, and no entry yet
def test_a_sealed_archive_gets_no_entry_without_a_signature(
    logs: Path, folder: Path, before: int
) -> None:
    write_log(
        logs / "access.log.1", lines_of(DAY, before), end=b"\n" if before else b""
    )
    key = ArchiveKey.new()
    assert len(run(logs, folder, key).archived) == (before > 0)
    write_log(logs / "access.log.1", lines_of(NEXT_DAY, 4))
    status, told = command(
        "run", "--access-log", logs / "access.log", "--archive", folder
    )
    assert (status, told.startswith(f"Error: {folder} is sealed: add --key FILE")) == (
        1,
        True,
    )
    assert len(run(logs, folder, key).archived) == 1
    assert verify(FolderPlace(folder), [key.public]).faults == ()


@pytest.mark.parametrize("named", [(), ("--key", "other.key")])
def test_the_archive_of_the_system_is_sealed_by_the_key_of_the_system(
    logs: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: tuple[str, ...],
) -> None:
    keys = {name: ArchiveKey.new() for name in ("own.key", "other.key")}
    for name, key in keys.items():
        (tmp_path / name).write_bytes(key.pem)
        (tmp_path / name).chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "squidkeeper.cli.options.DEFAULT_ARCHIVE_KEY", tmp_path / "own.key"
    )
    monkeypatch.setattr("squidkeeper.cli.options.DEFAULT_ARCHIVE", folder)
    write_log(logs / "access.log.1", lines_of(DAY, 3))
    assert (
        command(
            "run", "--access-log", logs / "access.log", "--archive", folder, *named
        )[0]
        == 0
    )
    assert (
        verify(
            FolderPlace(folder), [keys[named[1] if named else "own.key"].public]
        ).faults
        == ()
    )


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_an_account_that_may_not_read_the_archive_is_told_who_may(
    logs: Path, folder: Path
) -> None:
    write_log(logs / "access.log.1", lines_of(DAY, 3))
    run(logs, folder)
    (folder.parent / "archive.pub").write_bytes(ArchiveKey.new().public.pem)
    for path in (
        folder,
        *takewhile(
            lambda parent: parent != Path(tempfile.gettempdir()), folder.parents
        ),
    ):
        path.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o700 if path.is_dir() else 0o600)
    reason = "permission denied: only root and Squid's account can read the archive, only root and its owner write it"
    for arguments in (
        ("run", "--access-log", logs / "access.log", "--archive", folder),
        ("list", "--archive", folder),
        ("verify", "--key", folder.parent / "archive.pub", folder),
    ):
        called = [sys.executable, "-m", "squidkeeper", "archive", *map(str, arguments)]
        done = subprocess.run(
            called, user="nobody", capture_output=True, text=True, check=False
        )
        assert (
            done.returncode,
            done.stderr.rpartition(": permission")[0].count("\n"),
        ) == (1, 0)
        assert reason in done.stderr


def test_the_command_names_what_it_leaves(logs: Path, folder: Path) -> None:
    for name in (
        "access.log",
        "access.logs",
        "access.log.1.gz.tmp",
        *(f"access.log.old{n}" for n in range(11)),
    ):
        (logs / name).touch()
    write_log(logs / "access.log.1", [b"garbage"], end=b"").rename(
        logs / "access.log.2.gz"
    )
    status, told = command(
        "run", "--access-log", logs / "access.log", "--archive", folder
    )
    assert (status, len(told.splitlines())) == (0, 11)
    assert "left as it is: access.log.2.gz: damaged from its start" in told
    assert (
        "left as it is: 'access.log.1.gz.tmp': not the name of a rotated log, such as access.log.1.gz"
        in told
    )
    assert told.endswith("left as they are: 3 other files\n")


def test_a_sealed_run_takes_squids_counter_along_and_tells_the_head(
    logs: Path, folder: Path, tmp_path: Path
) -> None:
    write_log(logs / "access.log.1", lines_of(DAY, 3))
    write_log(logs / "access.log.2", [b"no record"])
    sampled = datetime.fromisoformat(f"{DAY}T10:00:01Z").timestamp()
    sample = SquidSample(run="1", asked=sampled, answered=sampled, requests=2)
    write_samples(tmp_path, (sample,))
    (tmp_path / "archive.key").write_bytes(ArchiveKey.new().pem)
    where = (
        "--access-log",
        logs / "access.log",
        "--archive",
        folder,
        "--state",
        tmp_path,
    )
    told = command("run", *where, "--key", tmp_path / "archive.key")[1]
    assert told.startswith(
        "archived access.log.2: 1 line, 1 of them invalid\narchived access.log.1: 3 lines\n"
    )
    assert re.search("^archive head 2:[0-9a-f]{64}$", told, re.MULTILINE)
    _, entry = read_chain(folder).entries
    assert entry.source
    assert entry.source.squid == (sample,)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_run_of_root_by_hand_leaves_nothing_of_roots(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(
        dir="/var/tmp"
    ) as place:  # pytest's own folders are closed
        Path(place).chmod(0o755)
        logs, folder, key = (
            Path(place, "log"),
            Path(place, "archive"),
            tmp_path / "archive.key",
        )
        for made in (logs, folder):
            made.mkdir()
        write_log(logs / "access.log.1", lines_of(DAY, 3))
        key.write_bytes(ArchiveKey.new().pem)
        key.chmod(0o600)  # root's alone
        shutil.chown(folder, 4242, 4243)
        ran = subprocess.run(
            [*run_command(logs, folder), "--key", key],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout.startswith(
            "archived access.log.1: 3 lines\narchive head 1:"
        ), ran.stderr
        assert {
            (path.stat().st_uid, path.stat().st_gid) for path in folder.rglob("*")
        } == {(4242, 4243)}


@pytest.mark.system
def test_every_so_often_it_runs_again(logs: Path, folder: Path) -> None:
    with subprocess.Popen([*run_command(logs, folder), "--every", "1"]) as process:
        for number in (1, 2):
            write_log(
                logs / f"access.log-2026112{number}", lines_of(DAY, 3, 10 * number)
            )
            wait_for(
                partial(lambda least: len(read_chain(folder).entries) >= least, number),
                "the next run",
            )
        process.terminate()
    assert len(archived_lines(folder)) == 6
