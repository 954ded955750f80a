"""Slots: what processes count that are started and killed at any instant is read whole,
and never goes back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.serving.counters.layout import (
    COUNTER_FILES,
    HelperStatus,
    Key,
    make_key,
)
from squidkeeper.serving.counters.reader import CounterFile, Totals, read_counter_files
from squidkeeper.serving.counters.writer import CounterWriter
from tests.waiting import pause, wait_for

pytestmark = pytest.mark.system

HITS: Key = ("hits", "rule", "open", "verdict", "allow")


class Forked:
    """A copy of this process that runs a function; what it logs is kept."""

    def __init__(self, run: Callable[[Connection], object]) -> None:
        self.connection, other = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as it runs
        self.pid = os.fork()
        if not self.pid:
            try:
                logging.root.handlers = [
                    logging.StreamHandler(os.fdopen(self._log.fileno(), "w"))
                ]
                run(other)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        other.close()

    def kill(self) -> str:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self._log.seek(0)
            self._told = self._log.read().decode()
            self._log.close()
            self.connection.close()
        return self._told


def status() -> HelperStatus:
    return HelperStatus(
        "host", os.getpid(), time.time(), time.time(), "0123456789ab", True
    )


class Writer(Forked):
    """A process that takes a counter file, and counts what it is told."""

    def __init__(self, folder: Path, account: int = 0) -> None:
        super().__init__(partial(self._count_for, folder, account))

    def _count_for(self, folder: Path, account: int, told: Connection) -> None:
        if account:
            os.setgroups([])
            os.setgid(account)
            os.setuid(account)
        writer = CounterWriter(folder, {"rule": "other"})
        while True:
            writer.beat(status())
            told.send("done")
            for key, amount in told.recv():
                writer.add({key: amount})

    def ready(self) -> Writer:
        assert self.connection.poll(60)
        self.connection.recv()
        return self

    def count(self, *keys: Key, amount: float = 1.0) -> Writer:
        self.connection.send([(key, amount) for key in keys])
        return self.ready()


def count_forever(folder: Path, _: Connection) -> None:
    writer = CounterWriter(folder, {})
    writer.beat(status())
    for number in count():
        writer.add({("hits", "rule", f"r{number % 300}"): 1, ("all",): 1})


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(folder: Path = tmp_path / "helpers", account: int = 0) -> Writer:
        made.append(Writer(folder, account))
        return made[-1].ready()

    yield make
    for process in made:
        process.kill()


def start_and_kill(folder: Path, amounts: dict[Key, float]) -> None:
    """Start a process that takes a counter file, counts this and is killed."""
    pid = os.fork()
    if not pid:
        try:
            child = CounterWriter(folder, {})
            child.beat(HelperStatus("host", os.getpid(), 0, 0))
            child.add(amounts)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def samples(folder: Path) -> dict[Key, float]:
    return Totals().add_up(read_counter_files(folder))


def counter_files(folder: Path) -> list[CounterFile]:
    return list(read_counter_files(folder))


# --- taken and read -------------------------------------------------------------------


def test_no_folder_holds_no_counter_files(tmp_path: Path) -> None:
    assert counter_files(tmp_path / "none") == []


def test_a_counter_file_tells_whose_it_is_and_what_was_counted(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    process = writer().count(HITS, HITS, ("starts",))
    (file,) = counter_files(tmp_path / "helpers")
    assert (file.number, file.running, file.problem) == (0, True, None)
    assert file.samples == (
        ("hits", {"rule": "open", "verdict": "allow"}, 2.0),
        ("starts", {}, 1.0),
    )
    assert file.status
    assert (file.status.helper, file.status.pid) == ("host", process.pid)
    assert (file.status.revision, file.status.reload_ok, file.status.busy_since) == (
        "0123456789ab",
        True,
        None,
    )


def test_the_next_process_goes_on_in_the_counter_file_of_one_that_was_killed(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    writer().count(HITS).kill()
    (dead,) = counter_files(tmp_path / "helpers")
    assert (dead.running, dead.samples[0][2]) == (False, 1.0)
    writer().count(("starts",), HITS)
    (file,) = counter_files(tmp_path / "helpers")
    assert (file.running, file.identity) == (True, dead.identity)
    assert file.samples == (
        ("hits", {"rule": "open", "verdict": "allow"}, 2.0),
        ("starts", {}, 1.0),
    )


def test_a_process_that_starts_is_not_taken_for_the_one_before(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    writer().count(HITS).kill()
    pid = os.fork()
    if not pid:
        try:
            starting = CounterWriter(tmp_path / "helpers", {})
            starting.add({("starts",): 1})
            starting.beat(None)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (file,) = counter_files(tmp_path / "helpers")
    assert (file.status, samples(tmp_path / "helpers")) == (
        None,
        {HITS: 1.0, ("starts",): 1.0},
    )


def test_processes_that_start_at_once_take_a_counter_file_each(tmp_path: Path) -> None:
    writers = [Writer(tmp_path) for _ in range(8)]
    try:
        for process in writers:
            process.ready().count(HITS)
        found = counter_files(tmp_path)
        assert [file.number for file in found] == list(range(8))
        assert {file.status.pid for file in found if file.status} == {
            writer.pid for writer in writers
        }
        assert samples(tmp_path) == {HITS: 8.0}
    finally:
        for process in writers:
            process.kill()


def test_a_reader_never_takes_a_counter_file_from_a_process_that_starts(
    tmp_path: Path,
) -> None:
    def read(_: Connection) -> None:
        while True:
            counter_files(tmp_path)

    reading = Forked(read)
    try:
        for _ in range(8):
            Writer(tmp_path).ready().kill()
        assert [path.name for path in tmp_path.iterdir()] == ["slot-00"]
    finally:
        reading.kill()


def test_many_starts_leave_one_file_that_is_read_whole(tmp_path: Path) -> None:
    """A start is all that a helper's start is to a file, without that of Python."""
    starts = 100
    for _ in range(starts):
        start_and_kill(tmp_path, {("starts",): 1, HITS: 2})
    assert [path.name for path in tmp_path.iterdir()] == ["slot-00"]
    assert (tmp_path / "slot-00").stat().st_size < 200_000
    assert samples(tmp_path) == {("starts",): starts, HITS: 2 * starts}


def test_where_every_counter_file_is_taken_a_process_says_so_once_and_takes_one_that_becomes_free(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    tmp_path = tmp_path / "helpers"
    tmp_path.mkdir()
    holder = _locked(
        [tmp_path / f"slot-{number:02}" for number in range(COUNTER_FILES)]
    )
    late = writer().count(HITS).count(HITS)
    holder.kill()
    late.count(HITS)
    assert samples(tmp_path) == {HITS: 3.0}
    assert late.kill().count(f"all {COUNTER_FILES} counter files are taken") == 1
    assert len(list(tmp_path.iterdir())) == COUNTER_FILES


def _locked(paths: list[Path]) -> Forked:
    def lock(told: Connection) -> None:
        files = [path.open("ab") for path in paths]
        for file in files:
            fcntl.lockf(file, fcntl.LOCK_EX)
        told.send("locked")
        signal.pause()

    holder = Forked(lock)
    holder.connection.recv()
    return holder


# --- killed ---------------------------------------------------------------------------


def test_killed_at_any_instant_nothing_goes_back_and_at_most_one_batch_is_lost(
    tmp_path: Path,
) -> None:
    instants = random.Random(1)
    totals, before = Totals(), dict[Key, float]()
    for _ in range(25):
        one = Forked(partial(count_forever, tmp_path))
        try:
            known = before.get(("all",), 0.0)
            wait_for(
                partial(
                    lambda known: samples(tmp_path).get(("all",), 0.0) > known, known
                ),
                "another count",
            )
            pause(instants.random() / 100, "any instant")
        finally:
            one.kill()
        after = totals.add_up(read_counter_files(tmp_path))
        assert all(after[key] >= value for key, value in before.items())
        hits = sum(value for key, value in after.items() if key[0] == "hits")
        assert hits == after[("all",)]
        before = after
    assert [path.name for path in tmp_path.iterdir()] == ["slot-00"]


def test_what_is_read_under_way_never_goes_back(tmp_path: Path) -> None:
    one = Forked(partial(count_forever, tmp_path))
    try:
        before: dict[Key, float] = {}
        deadline = time.monotonic() + 60
        while before.get(("all",), 0.0) < 5_000:
            assert time.monotonic() < deadline
            after = samples(tmp_path)
            assert all(after[key] >= value for key, value in before.items())
            assert all(value == int(value) for value in after.values())
            before = after
    finally:
        one.kill()


# --- damaged --------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated to nothing": lambda content: b"",
    "truncated in the header": lambda content: content[:10],
    "truncated in the keys": lambda content: content[:-4000],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"not a file\n" * 10,
    "of an older format": lambda content: b"sqkslot0" + content[8:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_counter_file_is_created_again_and_its_totals_do_not_go_back(
    tmp_path: Path, writer: Callable[..., Writer], damage: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "helpers"
    totals = Totals()
    writer().count(HITS, HITS).kill()
    assert totals.add_up(read_counter_files(folder)) == {HITS: 2.0}
    path = folder / "slot-00"
    path.write_bytes(damage(path.read_bytes()))
    assert [file.problem for file in counter_files(folder)] in (
        [],
        ["not a counter file of this release"],
    )
    assert totals.add_up(read_counter_files(folder)) == {HITS: 2.0}
    writer().count(HITS)
    assert samples(folder) == {HITS: 1.0}
    assert totals.add_up(read_counter_files(folder)) == {HITS: 3.0}
    assert Totals(totals.known).add_up(read_counter_files(folder)) == {HITS: 3.0}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_counter_file_damaged_under_its_process_is_created_again(
    tmp_path: Path, writer: Callable[..., Writer], damage: Callable[[bytes], bytes]
) -> None:
    process = writer().count(HITS)
    path = tmp_path / "helpers/slot-00"
    path.write_bytes(damage(path.read_bytes()))
    process.count(("lost",)).count(HITS)
    assert samples(tmp_path / "helpers")[HITS] == 1.0
    assert [file.running for file in counter_files(tmp_path / "helpers")] == [True]


def test_a_key_that_was_torn_is_written_over(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    writer().count(HITS).kill()
    path = tmp_path / "helpers/slot-00"
    content = path.read_bytes()
    end = content.rindex(b"\n") + 1
    torn = b'["torn", {"rule": "a very long rule whose line was never finis'
    path.write_bytes(content[:end] + torn + content[end + len(torn) :])
    assert samples(tmp_path / "helpers") == {HITS: 1.0}
    writer().count(("new",), amount=5)
    assert samples(tmp_path / "helpers") == {HITS: 1.0, ("new",): 5.0}
    assert b"never finis" not in path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 20_000))
def test_garbage_in_a_counter_file_is_read_without_an_error(
    garbage: bytes, offset: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start_and_kill(Path(folder), {HITS: 1})
        path = Path(folder) / "slot-00"
        content = path.read_bytes()
        path.write_bytes(
            (content[:offset] + garbage + content[offset + len(garbage) :])[
                : len(content)
            ]
        )
        assert all(
            value >= 0
            for file in counter_files(Path(folder))
            for *_, value in file.samples
        )


def test_what_is_no_counter_file_is_no_counter_file(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    folder = tmp_path / "helpers"
    folder.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    (folder / "slot-00").symlink_to(target)
    (folder / "slot-01").mkdir()
    os.mkfifo(folder / "slot-02")
    (folder / "slot-03.bak").write_text("x")
    writer().count(HITS)
    assert [(file.number, file.problem is None) for file in counter_files(folder)] == [
        (0, False),
        (1, False),
        (2, False),
        (3, True),
    ]
    assert samples(folder) == {HITS: 1.0}
    assert target.read_text() == "precious"


def test_a_folder_removed_under_its_process_is_made_again(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    process, folder, totals = writer().count(HITS), tmp_path / "helpers", Totals()
    totals.add_up(read_counter_files(folder))
    (folder / "slot-00").unlink()
    folder.rmdir()
    assert counter_files(folder) == []
    process.count()
    process.count(HITS)
    assert samples(folder) == {HITS: 1.0}
    assert totals.add_up(read_counter_files(folder)) == {HITS: 2.0}


def test_a_counter_file_that_went_back_is_not_followed() -> None:
    """As one can be that was restored from a backup, or that a machine lost when it
    lost its power.
    """
    totals = Totals()
    for value, expected in ((5.0, 5.0), (2.0, 5.0), (6.0, 6.0)):
        file = CounterFile(
            0, running=False, identity="a", samples=(("hits", {}, value),)
        )
        assert totals.add_up([file]) == {("hits",): expected}


def test_totals_remember_a_bounded_number_of_counter_files_that_are_no_more() -> None:
    totals = Totals()
    for number in range(1000):
        totals.add_up(
            [
                CounterFile(
                    0, running=False, identity=str(number), samples=(("hits", {}, 1.0),)
                )
            ]
        )
    assert totals.add_up([]) == {("hits",): 1000.0}
    assert len(totals.known) <= 2 * COUNTER_FILES + 1


# --- a disk that takes nothing --------------------------------------------------------


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Callable[[str], None]]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_on_a_full_disk_counting_goes_on_in_memory(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    with mounted(tmp_path / "disk", "size=1m"):
        folder, filler = tmp_path / "disk/helpers", tmp_path / "disk/filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(2 << 20))
        process = writer(folder).count(HITS).count(HITS)
        assert samples(folder) == {}
        filler.unlink()
        process.count(HITS)
        assert samples(folder) == {HITS: 3.0}
        assert process.kill().count("No space left on device") == 1


def test_a_counter_file_is_whole_before_the_disk_is_full(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    with mounted(tmp_path / "disk", "size=1m"):
        folder = tmp_path / "disk/helpers"
        process = writer(folder)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk/filler").write_bytes(bytes(2 << 20))
        process.count(*(("hits", "rule", f"rule {number}") for number in range(500)))
        assert len(samples(folder)) == 500
        assert process.kill() == ""


def test_on_a_read_only_disk_counting_goes_on_in_memory(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    with mounted(tmp_path / "disk", "size=1m") as remount:
        folder = tmp_path / "disk/helpers"
        writer(folder).count(HITS).kill()
        remount("ro")
        process = writer(folder).count(HITS)
        assert samples(folder) == {HITS: 1.0}
        remount("rw")
        process.count(HITS)
        assert samples(folder) == {HITS: 3.0}
        assert process.kill().count("Read-only file system") == 1


LIMITED = """
import os, resource, sys
from pathlib import Path
from squidkeeper.serving.counters.layout import HelperStatus
from squidkeeper.serving.counters.writer import CounterWriter
writer, status = CounterWriter(Path(sys.argv[1]), {}), HelperStatus("host", os.getpid(), 0, 0)
writer.beat(status)
writer.add({("hits",): 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
for _ in range(3):
    writer.add({("hits",): 1, ("new",): 1})
    writer.beat(status)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.beat(status)
writer.add({("hits",): 1})
"""


def test_writes_that_fail_under_way_are_made_up_for_when_they_succeed(
    tmp_path: Path,
) -> None:
    """The bound on a file's size stands for a disk that fails: a file has all of its
    blocks already.
    """
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert samples(tmp_path) == {("hits",): 5.0, ("new",): 3.0}
    assert done.stderr.count("File too large") == 1


def test_an_account_without_rights_runs_without_metrics(
    writer: Callable[..., Writer],
) -> None:
    with tempfile.TemporaryDirectory(
        prefix="squidkeeper-"
    ) as name:  # pytest's own folders are closed to others
        closed = Path(name)
        closed.chmod(0o755)
        process = writer(closed / "helpers", account=65_534).count(HITS)
        assert list(closed.iterdir()) == []
        assert process.kill().count("Permission denied") == 1


# --- keys -----------------------------------------------------------------------------


def test_rules_beyond_the_bound_are_counted_as_other(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    process = writer().count(
        *(
            ("hits", "rule", f"rule {number}", "verdict", "deny")
            for number in range(3000)
        )
    )
    found = samples(tmp_path / "helpers")
    assert sum(found.values()) == 3000
    assert 500 < len(found) <= 1024
    assert found[("hits", "rule", "other", "verdict", "deny")] == 3001 - len(found)
    process.count(
        ("starts", "helper", "host"), ("hits", "rule", "rule 7", "verdict", "deny")
    ).kill()
    writer().count(("hits", "rule", "new", "verdict", "deny"))
    found = samples(tmp_path / "helpers")
    assert found[("starts", "helper", "host")] == 1
    assert found[("hits", "rule", "rule 7", "verdict", "deny")] == 2
    assert sum(found.values()) == 3003


def test_long_names_are_bounded_in_bytes(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    writer().count(
        *(("hits", "rule", "\N{SNOWMAN}" * 100 + str(number)) for number in range(900)),
        ("starts",),
    )
    found = samples(tmp_path / "helpers")
    assert sum(found.values()) == 901
    assert found[("starts",)] == 1
    assert found[("hits", "rule", "other")] > 300


def test_keys_without_end_that_no_rule_names_do_not_break_a_counter_file(
    tmp_path: Path, writer: Callable[..., Writer]
) -> None:
    writer().count(
        HITS, *(("hits", "kind", str(number)) for number in range(2000))
    ).count(HITS)
    found = samples(tmp_path / "helpers")
    assert (found[HITS], len(found)) == (2.0, 1024)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)
)
def test_a_name_in_any_letters_comes_back_as_it_was(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start_and_kill(Path(folder), {("hits", "rule", name): 1 for name in names})
        (file,) = counter_files(Path(folder))
        assert {make_key(*sample[:2]) for sample in file.samples} == {
            ("hits", "rule", name) for name in names
        }
