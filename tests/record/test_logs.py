"""The access log as files: read whole, and followed through every rotation."""

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.base.rotated_logs import next_name, rotated
from squidkeeper.record.log import log_files
from squidkeeper.record.log.follower import Follower, Position
from squidkeeper.record.log.log_files import files_since, read_log_lines, sorted_by_time


def lines(start: int, end: int) -> list[bytes]:
    return [b"line %d" % number for number in range(start, end)]


def write(path: Path, start: int, end: int, mode: str = "ab") -> None:
    with path.open(mode) as file:
        file.writelines(line + b"\n" for line in lines(start, end))


def read(*paths: Path) -> list[bytes]:
    return [*read_log_lines(paths)]


# ── Whole files ───────────────────────────────────────────────────────────────────────

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_a_log_is_read_whatever_its_form(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"access.log.2{suffix}"
    packed = PACK[suffix](b"".join(line + b"\n" for line in lines(0, 5000)))
    path.write_bytes(packed)
    assert read(path) == lines(0, 5000)
    if suffix:
        # files that follow each other, and padding
        path.write_bytes(packed + packed + b"\0" * 512)
        assert read(path) == lines(0, 5000) * 2
        path.write_bytes(PACK[suffix](b""))
        assert read(path) == []


def test_a_last_line_without_its_newline_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"one\ntwo")
    assert read(path) == [b"one", b"two"]


def test_of_an_endless_line_no_more_than_the_limit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "access.log.1.gz"
    path.write_bytes(gzip.compress(b"x" * 50_000_000 + b"\nnext\n"))  # 50 KB on disk
    first, second = read(path)
    assert len(first) == log_files.LINE_LIMIT + 1
    assert second == b"next"


@pytest.mark.system
def test_what_unpacks_to_much_more_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "access.log.1.gz"
    with path.open("wb") as file:
        member = gzip.compress((b"y" * 999 + b"\n") * 20_000)
        file.writelines([member] * 10)  # of 20 MB each, one after the other
    program = (
        "from pathlib import Path; from squidkeeper.record.log.log_files import read_log_lines\n"
        f"print(sum(1 for _ in read_log_lines([Path({str(path)!r})])))\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 200_000
    assert kilobytes < 80_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "access.log.1.gz",
            gzip.compress(b"line\n" * 1000, mtime=0)[:-9],
            "damaged or truncated",
        ),
        ("access.log.1.gz", b"no gzip at all", "damaged or truncated"),
        ("access.log.1.xz", b"no xz at all", "damaged or truncated"),
        ("access.log.1.bz2", b"no bzip2 at all", "damaged or truncated"),
        ("access.log.1.zst", b"", "zstd -d"),
    ],
)
def test_a_log_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableLog) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableLog, match=r"access\.log: no such file or directory"):
        read(tmp_path / "access.log")


@pytest.mark.parametrize(
    "names",
    [
        ["access.log.10.gz", "access.log.2.xz", "access.log.1", "access.log.0"],
        [
            "access.log-20251231.gz",
            "access.log-20260101",
            "access.log-2026010207",
            "access.log-20260103-1767398400",
        ],
    ],
)
def test_rotated_logs_come_oldest_first_and_nothing_else_comes(
    tmp_path: Path, names: list[str]
) -> None:
    strangers = [
        "access.log",
        "access.log.old",
        "access.log.1.bak",
        "other.log.1",
        "access.log.gz",
        "xaccess.log.1",
    ]
    for name in [*names, *strangers]:
        (tmp_path / name).touch()
    assert [path.name for path in rotated(tmp_path / "access.log")] == names


def test_logs_rotated_by_number_and_by_date_come_in_the_order_of_their_last_write(
    tmp_path: Path,
) -> None:
    """logrotate and `squidkeeper maintain` rotate the same log."""
    names = [
        "access.log-20261125093000",
        "access.log.2.gz",
        "access.log-20261126010000",
        "access.log-20261126",
    ]
    names += [
        "access.log-20261126120000",
        "access.log.1",
        "access.log-20261126120000-1",
    ]
    for hour, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, hour * 3600))
    assert [path.name for path in rotated(tmp_path / "access.log")] == names


def test_the_next_name_is_of_a_rotated_log_and_not_taken(tmp_path: Path) -> None:
    path, at = tmp_path / "access.log", datetime(2026, 11, 25, 6, 30)
    for expected in (
        "access.log-20261125063000",
        "access.log-20261125063000-1",
        "access.log-20261125063000-2",
    ):
        assert next_name(path, at).name == expected
        next_name(path, at).touch()
        assert rotated(path)[-1].name == expected


def test_a_log_that_is_being_compressed_counts_once(tmp_path: Path) -> None:
    (tmp_path / "access.log.1").touch()
    (tmp_path / "access.log.1.gz").touch()
    assert [path.name for path in rotated(tmp_path / "access.log")] == ["access.log.1"]


def test_a_span_is_looked_for_in_the_files_that_can_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for hours, name in enumerate(["access.log", "access.log.1", "access.log.2.gz"]):
        (tmp_path / name).touch()
        os.utime(
            tmp_path / name,
            (0, datetime(2026, 11, 25, 12 - hours, tzinfo=UTC).timestamp()),
        )
    since = datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
    assert files_since(path, None) == [path]
    assert files_since(path, since) == [tmp_path / "access.log.1", path]


RECORD = (
    b'{"v":1,"time":"%b","client":"","user":"-","method":"GET","url":"","status":200,"bytes":0,"duration_ms":0,'
    b'"verdict":"","rule":"","revision":"","credential":"","fetched":"","sni":"","tunnel":"","upstream":"",'
    b'"upstream_ms":"","error":"","user_agent":"","squid":"","connection":""}\n'
)


def test_files_in_any_order_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    for day, name in enumerate(["access.log.2.gz", "access.log.1", "access.log"], 1):
        record = RECORD % f"2026-11-0{day}T00:00:00.000Z".encode()
        (tmp_path / name).write_bytes(
            gzip.compress(record) if name.endswith(".gz") else record
        )
    given = [
        tmp_path / name
        for name in ["access.log", "access.log.1", "access.log.2.gz", "access.log"]
    ]
    assert [path.name for path in sorted_by_time(given)] == [
        "access.log.2.gz",
        "access.log.1",
        "access.log",
    ]


# ── Followed ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def follower(path: Path) -> Iterator[Follower]:
    follower = Follower(path)
    yield follower
    follower.close()


def everything(follower: Follower, limit: int = 1 << 20) -> list[bytes]:
    found: list[bytes] = []
    while more := follower.read(limit):
        found += more
    return found


def test_what_is_written_is_given_once_in_order(path: Path, follower: Follower) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    assert everything(follower) == []
    write(path, 10, 12)
    assert everything(follower) == lines(10, 12)
    assert (follower.lost, follower.readable, follower.backlog_bytes) == (0, True, 0)


def test_a_small_limit_gives_whole_lines_all_the_same(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert follower.read(3) == lines(0, 1)
    assert everything(follower, 3) == lines(1, 10)


def test_a_torn_last_line_waits_for_its_newline(path: Path, follower: Follower) -> None:
    path.write_bytes(b"line 0\nli")
    assert everything(follower) == lines(0, 1)
    assert follower.position.offset == len(b"line 0\n")
    assert follower.backlog_bytes == len(b"li")
    with path.open("ab") as file:
        file.write(b"ne 1\n")
    assert everything(follower) == lines(1, 2)


def test_a_missing_log_is_waited_for(path: Path, follower: Follower) -> None:
    assert everything(follower) == []
    assert (follower.readable, follower.backlog_bytes) == (False, 0)
    write(path, 0, 3)
    assert everything(follower) == lines(0, 3)
    assert (follower.readable, follower.lost) == (True, 0)


@pytest.mark.parametrize(
    "gone", [Path.unlink, lambda path: path.rename(path.with_suffix(".away"))]
)
def test_a_log_that_is_deleted_or_renamed_is_not_readable_until_squid_writes_a_new_one(
    path: Path, follower: Follower, gone: Callable[[Path], object]
) -> None:
    write(path, 0, 3)
    everything(follower)
    gone(path)
    assert everything(follower) == []
    assert not follower.readable
    write(path, 3, 5)
    assert everything(follower) == lines(3, 5)
    assert (follower.readable, follower.lost) == (True, 0)


@pytest.mark.system
def test_a_log_in_a_folder_that_was_closed_is_not_readable_until_it_is_opened(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 3)
    everything(follower)
    write(path, 3, 5)
    path.parent.chmod(0o700)
    os.seteuid(65534)
    try:
        assert everything(follower) == lines(3, 5)  # it is open
        assert not follower.readable
    finally:
        os.seteuid(0)
    assert everything(follower) == []
    assert (follower.readable, follower.lost) == (True, 0)


def test_what_is_no_regular_file_is_not_waited_for(
    path: Path, follower: Follower
) -> None:
    os.mkfifo(path)
    assert everything(follower) == []
    assert not follower.readable


def test_a_renamed_log_is_read_to_its_end_before_the_new_one(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    path.rename(path.with_name("access.log.1"))
    # Squid has not opened the new one yet
    write(path.with_name("access.log.1"), 10, 15)
    assert everything(follower) == lines(10, 15)
    path.touch()
    write(path.with_name("access.log.1"), 15, 20)
    assert everything(follower) == lines(15, 20)
    write(path, 20, 30)
    assert everything(follower) == lines(20, 30)
    assert follower.lost == 0


def test_what_is_written_to_the_old_log_while_the_new_one_is_found_is_not_lost(
    path: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    find = Follower._next

    def find_then_write(following: Follower, tail: Any) -> Any:
        found = find(following, tail)
        if not path.with_name("access.log.1").exists():
            path.rename(path.with_name("access.log.1"))
            write(path, 15, 20)
            found = find(following, tail)
            write(path.with_name("access.log.1"), 10, 15)
        return found

    monkeypatch.setattr(Follower, "_next", find_then_write)
    assert everything(follower) == lines(10, 20)


def test_several_rotations_between_two_looks_lose_nothing(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    write(path, 10, 12)
    rotate(path, 12, 20)
    rotate(path, 20, 30)
    rotate(path, 30, 40)
    assert everything(follower) == lines(10, 40)
    assert follower.lost == 0


def rotate(path: Path, start: int, end: int) -> None:
    """Rotate as logrotate does with `compress` and `delaycompress`, then write on."""
    for number in range(9, 0, -1):
        for suffix in ("", ".gz"):
            old = path.with_name(f"access.log.{number}{suffix}")
            if old.exists():
                compressed = (
                    gzip.compress(old.read_bytes()) if not suffix else old.read_bytes()
                )
                path.with_name(f"access.log.{number + 1}.gz").write_bytes(compressed)
                old.unlink()
    path.rename(path.with_name("access.log.1"))
    write(path, start, end)


def test_a_truncated_log_goes_on_in_its_copy(path: Path, follower: Follower) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    write(path, 10, 15)
    copy_and_truncate(path)
    write(path, 15, 20)
    assert everything(follower) == lines(10, 20)
    assert follower.lost == 0


def test_a_truncated_log_that_has_grown_again_is_still_seen_to_be_another(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    copy_and_truncate(path)
    write(path, 10, 100)
    assert everything(follower) == lines(10, 100)
    assert follower.lost == 0


def copy_and_truncate(path: Path) -> None:
    shutil.copy(path, path.with_name("access.log.1"))
    os.truncate(path, 0)


def test_a_log_truncated_without_a_copy_is_a_loss(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    os.truncate(path, 0)
    write(path, 10, 12)
    assert everything(follower) == lines(10, 12)
    assert follower.lost == 1


def test_a_log_deleted_under_squid_is_read_as_long_as_squid_writes_it(
    path: Path, follower: Follower
) -> None:
    with path.open("ab", buffering=0) as squid:
        squid.write(b"line 0\n")
        assert everything(follower) == lines(0, 1)
        path.unlink()
        squid.write(b"line 1\n")
        assert everything(follower) == lines(1, 2)
        write(path, 2, 4)
        assert everything(follower) == lines(2, 4)
    assert follower.lost == 0


def test_a_line_cut_off_by_a_full_disk_is_given_when_the_next_file_begins(
    path: Path, follower: Follower
) -> None:
    path.write_bytes(b"line 0\ntorn")
    assert everything(follower) == lines(0, 1)
    rotate(path, 1, 3)
    assert everything(follower) == [b"torn", *lines(1, 3)]


def test_an_endless_line_takes_no_memory(path: Path, follower: Follower) -> None:
    path.write_bytes(b"line 0\n" + b"x" * 2_000_000)
    assert everything(follower) == lines(0, 1)
    with path.open("ab") as file:
        file.write(b"x\nline 1\n")
    long, after = everything(follower)
    assert (len(long), after) == (log_files.LINE_LIMIT + 1, b"line 1")


# ── Gone on with, by another process ──────────────────────────────────────────────────


def resumed(path: Path, position: Position) -> tuple[list[bytes], int]:
    follower = Follower(path, position)
    found = everything(follower)
    follower.close()
    return found, follower.lost


@pytest.mark.parametrize("rotations", range(4))
def test_a_position_is_found_again_after_rotations_and_compression(
    path: Path, follower: Follower, rotations: int
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    write(path, 10, 20)
    for number in range(rotations):
        rotate(path, 20 + number, 21 + number)
    assert resumed(path, follower.position) == (lines(10, 20 + rotations), 0)


def test_a_position_within_a_torn_line_is_before_it(
    path: Path, follower: Follower
) -> None:
    path.write_bytes(b"line 0\nli")
    everything(follower)
    with path.open("ab") as file:
        file.write(b"ne 1\n")
    assert resumed(path, follower.position) == (lines(1, 2), 0)


def test_a_position_in_a_file_that_is_gone_is_a_loss_counted_once(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    everything(follower)
    path.unlink()
    other = Follower(path, follower.position)
    assert everything(other) == []
    assert (other.lost, other.readable) == (0, False)
    write(path, 20, 22)
    assert everything(other) == lines(20, 22)
    assert everything(other) == []
    assert other.lost == 1
    other.close()


def begun(path: Path, second: int) -> bytes:
    """Write a file of one record, and give its line."""
    record = RECORD % f"2026-11-25T12:00:0{second}.000Z".encode()
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](record))
    return record.rstrip()


@pytest.mark.parametrize("held", [False, True], ids=["of-another-process", "open"])
def test_newer_rotated_logs_are_read_after_one_that_is_gone(
    path: Path, follower: Follower, held: bool
) -> None:
    begun(path.with_name("access.log.4.gz"), 0)
    begun(path, 1)
    assert len(everything(follower)) == 1
    path.unlink()
    newer = [
        begun(path.with_name(name), second)
        for second, name in ((2, "access.log.2.gz"), (3, "access.log.1"))
    ]
    newer.append(begun(path, 4))
    if held:
        assert (everything(follower), follower.lost) == (newer, 0)
    else:
        assert resumed(path, follower.position) == (newer, 1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_file_is_read_up_to_its_damage(
    path: Path, follower: Follower, restarted: bool
) -> None:
    write(path, 0, 1)
    assert everything(follower) == lines(0, 1)
    rotate(path, 1, 51)
    rotate(path, 51, 53)
    packed = gzip.compress(b"".join(line + b"\n" for line in lines(1, 51)))
    # without a part of its checksum
    path.with_name("access.log.1.gz").write_bytes(packed[:-4])
    path.with_name("access.log.1").unlink()
    if restarted:
        with closing(Follower(path, follower.position)) as other:
            assert (everything(other), other.damaged, other.deleted) == (
                lines(1, 53),
                1,
                0,
            )
    else:
        assert (everything(follower), follower.damaged, follower.deleted) == (
            lines(1, 53),
            1,
            0,
        )


def test_a_part_that_cannot_be_read_is_not_told_as_deleted(
    path: Path, follower: Follower
) -> None:
    begun(path, 1)
    everything(follower)
    begun(path, 2)
    damaged = path.with_name("access.log.1.gz")
    damaged.write_bytes(b"garbage")
    with closing(Follower(path, follower.position)) as other:
        assert (len(everything(other)), other.damaged, other.deleted) == (1, 1, 0)
    damaged.unlink()
    with closing(Follower(path, follower.position)) as other:
        assert (len(everything(other)), other.damaged, other.deleted) == (1, 0, 1)


def test_a_damaged_file_between_is_a_loss_and_not_the_end(
    path: Path, follower: Follower
) -> None:
    write(path, 0, 10)
    assert everything(follower) == lines(0, 10)
    rotate(path, 10, 20)
    rotate(path, 20, 30)
    rotate(path, 30, 40)
    path.with_name("access.log.2.gz").write_bytes(b"garbage")
    assert everything(follower) == lines(20, 40)
    assert follower.lost == 1


def test_at_the_end_only_what_comes_is_given(path: Path) -> None:
    path.write_bytes(b"line 0\nli")
    follower = Follower(path, at_end=True)
    assert everything(follower) == []
    with path.open("ab") as file:
        file.write(b"ne 1\nline 2\n")
    assert everything(follower) == lines(1, 3)
    assert follower.lost == 0
    follower.close()


def test_at_the_end_of_a_log_that_is_not_there_is_its_beginning(path: Path) -> None:
    follower = Follower(path, at_end=True)
    assert everything(follower) == []
    write(path, 0, 2)
    assert everything(follower) == lines(0, 2)
    follower.close()
