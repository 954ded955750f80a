"""The file of sessions: what its writer promises, and who can read it when."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from squidkeeper.base.errors import SessionGone, SessionTaken
from squidkeeper.serving.sessions.counter import FILE as COUNTER
from squidkeeper.serving.sessions.counter import ChangeCounter, MappedCounter
from squidkeeper.serving.sessions.store import (
    EXPIRED,
    FILE,
    SessionStore,
)
from tests.serving.sessions_made import START, Clock, let_others_in, new
from tests.waiting import wait_for

# Runs as another account, which may only read: with the modules of the system alone.
READER = """
import sqlite3, sys
query = "mode=ro&readonly_shm=1" + sys.argv[2]
database = sqlite3.connect(f"file:{sys.argv[1]}?{query}", uri=True)
print([row[0] for row in database.execute("SELECT name FROM sessions ORDER BY number")])
"""
WRITER = """
import sys
from pathlib import Path
from squidkeeper.serving.sessions.store import NewSession, SessionStore
store = SessionStore(Path(sys.argv[1]))
store.start()
def new(name):
    return NewSession(name, "agent", None, "0" * 64, {}, {}, (), "platform", 600, "")
print(store.create(new("first")).number, flush=True)
with store._changing() as database:
    database.execute("UPDATE sessions SET role = 'other'")
    print("changing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def store(folder: Path, clock: Clock) -> Iterator[SessionStore]:
    store = SessionStore(folder, clock)
    store.start()
    yield store
    store.close()


def test_a_session_is_stored_as_it_was_given(store: SessionStore) -> None:
    made = store.create(new("vm-1", "192.0.2.1/32", secrets=("github",)))
    assert made == store.by_name("vm-1") == store.by_number(made.number)
    assert (made.role, made.network, made.secrets) == (
        "agent",
        "192.0.2.1/32",
        ("github",),
    )
    assert made.variables == {"repo": ("acme/app",)}
    assert (made.ends, made.boot_ends, made.boot) == (1_800_000_600, 1_600, "boot-1")
    assert store.active() == store.active("platform") == [made]
    assert store.active("another") == []


def test_a_name_and_an_address_belong_to_one_active_session(
    store: SessionStore,
) -> None:
    first = store.create(new("vm-1", "192.0.2.1/32"))
    with pytest.raises(SessionTaken) as named:
        store.create(new("vm-1", "192.0.2.2/32"))
    with pytest.raises(SessionTaken) as at_address:
        store.create(new("vm-2", "192.0.2.1/32"))
    assert (named.value.field, named.value.number) == ("name", first.number)
    assert (at_address.value.field, at_address.value.number) == (
        "address",
        first.number,
    )
    store.create(new("vm-2", "192.0.2.1/32", token_sha256="1" * 64))
    store.end(first.number, "deleted")
    store.create(new("vm-1", "192.0.2.1/32"))


@pytest.mark.parametrize(
    ("there", "wanted"),
    [("2001:db8::/64", "2001:db8::1/128"), ("2001:db8::1/128", "2001:db8::/64")],
)
def test_an_address_within_a_network_is_taken_too(
    store: SessionStore, there: str, wanted: str
) -> None:
    store.create(new("vm-1", there))
    with pytest.raises(SessionTaken, match="address"):
        store.create(new("vm-2", wanted))
    warm = store.create(new("vm-2", token_sha256="0" * 64))
    store.change(warm.number, network=wanted)  # a session with a token takes none
    store.create(new("vm-3", "2001:db8:0:1::/64"))


def test_a_change_keeps_all_else_and_has_a_number_of_its_own(
    store: SessionStore, clock: Clock
) -> None:
    made = store.create(new("vm-1", "192.0.2.1/32"))
    clock.set(wall=START.wall + 60, since_boot=START.since_boot + 60)
    changed = store.change(made.number, network="192.0.2.9/32", lifetime=100)
    assert changed.change > made.change
    assert changed == dataclasses.replace(
        made,
        network="192.0.2.9/32",
        ends=START.wall + 160,
        boot_ends=START.since_boot + 160,
        change=changed.change,
    )
    store.create(new("vm-2", "192.0.2.1/32"))
    with pytest.raises(SessionTaken):
        store.change(made.number, network="192.0.2.1/32")
    store.end(made.number, "deleted")
    with pytest.raises(SessionGone, match="is not active"):
        store.change(made.number, lifetime=100)


@pytest.mark.parametrize(
    "passed",
    [
        {"wall": START.wall + 600},
        {"since_boot": START.since_boot + 600},  # the clock of the wall was set back
        {"wall": START.wall + 600, "since_boot": 5.0, "boot": "boot-2"},
    ],
)
def test_a_session_expires_by_either_clock(
    store: SessionStore, clock: Clock, passed: dict[str, float | str]
) -> None:
    made = store.create(new("vm-1", "192.0.2.1/32"))
    assert store.end_expired() == []
    clock.set(**passed)
    assert made.expired(clock())
    (ended,) = store.end_expired()
    assert (ended.number, ended.ended_why) == (made.number, EXPIRED)
    assert ended.ended == clock().wall
    assert ended.change > made.change
    assert store.active() == store.end_expired() == []


def test_an_age_counts_within_one_start_of_the_machine(
    store: SessionStore, clock: Clock
) -> None:
    store.create(new("vm-1", "192.0.2.1/32"))
    clock.set(since_boot=9_999.0, boot="boot-2")
    assert store.end_expired() == []


def test_an_expired_session_gives_its_name_and_address_free(
    store: SessionStore, clock: Clock
) -> None:
    former = store.create(new("vm-1", "192.0.2.1/32"))
    clock.set(wall=START.wall + 600)
    made = store.create(new("vm-1", "192.0.2.1/32"))
    assert [row.number for row in store.ended_since(START.wall)] == [former.number]
    assert store.active() == [made]


def test_no_number_is_used_twice(folder: Path, clock: Clock) -> None:
    numbers = []
    for lost in (False, False, True):
        store = SessionStore(folder, clock)
        store.start()
        made = store.create(new("vm-1", "192.0.2.1/32"))
        numbers += [made.number, made.change]
        ended = store.end(made.number, "deleted")
        assert ended
        assert store.end(made.number, "again") is None
        clock.set(wall=clock().wall + 10)
        assert store.purge(clock().wall) == 1
        store.close()
        with closing(sqlite3.connect(folder / FILE)) as database:
            database.execute("VACUUM")
        if lost:
            for path in folder.iterdir():
                path.unlink()
    store = SessionStore(folder, clock)
    numbers.append(store.create(new("vm-1", "192.0.2.1/32")).number)
    store.close()
    assert numbers[::2] == sorted(set(numbers[::2]))
    assert numbers[1::2] == sorted(set(numbers[1::2]))


def test_a_power_cut_takes_nothing_back(store: SessionStore) -> None:
    with store._database.opened() as database:
        (synchronous,) = database.execute("PRAGMA synchronous").fetchone()
    assert synchronous == 2  # FULL


def test_a_full_disk_refuses_new_sessions_alone(store: SessionStore) -> None:
    made = store.create(new("vm-1", "192.0.2.1/32"))
    with store._database.opened() as database:
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
    labels = {"task": "x" * 100_000}
    with pytest.raises(OSError, match="full"):
        store.create(new("vm-2", "192.0.2.2/32", labels=labels))
    assert [row.name for row in store.active()] == ["vm-1"]
    store.end(made.number, "deleted")


def test_a_damaged_file_is_not_started_with(folder: Path, clock: Clock) -> None:
    store = SessionStore(folder, clock)
    for number in range(50):
        store.create(new(f"vm-{number}", f"192.0.2.{number}/32"))
    store.close()
    with (folder / FILE).open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * 8_192)
    store = SessionStore(folder, clock)
    with pytest.raises(OSError, match="sessions"):
        store.start()
    store.close()


# --- the counter ----------------------------------------------------------------------


def test_each_change_raises_the_counter(store: SessionStore, folder: Path) -> None:
    counter, seen = MappedCounter(folder), []
    changes: list[Callable[[], object]] = [
        lambda: store.create(new("vm-1", "192.0.2.1/32")),
        lambda: store.change(store.active()[0].number, lifetime=5),
        lambda: store.end(store.active()[0].number, "deleted"),
        store.start,
    ]
    for change in changes:
        before = counter.counts[0]
        change()
        seen.append(counter.counts[0] > before)
    assert seen == [True] * 4
    assert counter.is_current
    counter.close()


@pytest.mark.parametrize("content", [None, b"", b"123"])
def test_a_counter_that_is_not_whole_is_replaced(
    folder: Path, content: bytes | None
) -> None:
    folder.mkdir()
    counter = ChangeCounter(folder)
    counter.advance()
    mapped = MappedCounter(folder)
    before = mapped.counts[0]
    (folder / COUNTER).unlink()
    if content is not None:
        (folder / COUNTER).write_bytes(content)
    counter.advance()
    assert not mapped.is_current
    assert mapped.counts[0] == before  # and no SIGBUS
    mapped.close()
    again = MappedCounter(folder)
    assert again.counts[0] > before
    again.close()


def test_no_counter_is_told_apart(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MappedCounter(folder)
    folder.mkdir()
    (folder / COUNTER).write_bytes(b"")
    with pytest.raises(ValueError, match="mmap length"):
        MappedCounter(folder)


def test_a_change_holds_though_the_counter_cannot_be_raised(
    store: SessionStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / COUNTER).unlink()
    (folder / COUNTER).mkdir()
    made = store.create(new("vm-1", "192.0.2.1/32"))
    assert store.active() == [made]
    assert "counter cannot be raised" in caplog.text


# --- readers of another account -------------------------------------------------------


def read(folder: Path, more: str = "") -> str:
    """Read the names as an account that may only read."""
    for path in (folder, *folder.iterdir()):
        os.chown(path, -1, 65534)
    before = sorted(os.listdir(folder))
    done = subprocess.run(
        ["/usr/bin/python3", "-c", READER, folder / FILE, more],
        user="nobody",
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(os.listdir(folder)) == before  # a reader makes no file
    return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]


@pytest.fixture
def open_folder(folder: Path) -> Path:
    """A folder below which another account may read."""
    let_others_in(folder)
    return folder


@pytest.mark.system
@pytest.mark.skipif(os.getuid() != 0, reason="changes its account")
def test_another_account_reads_beside_the_service_and_without_it(
    open_folder: Path, clock: Clock
) -> None:
    folder = open_folder
    store = SessionStore(folder, clock)
    store.start()
    store.create(new("vm-1", "192.0.2.1/32"))
    assert read(folder) == "['vm-1']"
    store.create(new("vm-2", "192.0.2.2/32"))
    assert read(folder) == "['vm-1', 'vm-2']"
    assert (folder / FILE).stat().st_mode & 0o777 == 0o640
    assert (folder / f"{FILE}-wal").stat().st_mode & 0o777 == 0o640
    store.close()
    assert not (folder / f"{FILE}-wal").exists()
    assert "OperationalError" in read(folder)  # so a reader takes the file as immutable
    assert read(folder, "&immutable=1") == "['vm-1', 'vm-2']"


def started(folder: Path) -> subprocess.Popen[str]:
    """Start a writer, and wait until it is in a transaction."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout
    assert writer.stdout.readline()
    assert writer.stdout.readline() == "changing\n"
    return writer


@pytest.mark.system
@pytest.mark.skipif(os.getuid() != 0, reason="changes its account")
def test_another_account_reads_after_the_service_was_killed(open_folder: Path) -> None:
    writer = started(open_folder)
    assert read(open_folder) == "['first']"
    writer.kill()
    writer.communicate()
    assert read(open_folder) == "['first']"


@pytest.mark.system
def test_a_service_killed_in_a_change_has_changed_nothing(folder: Path) -> None:
    writer = started(folder)
    mapped = MappedCounter(folder)
    before = mapped.counts[0]
    writer.kill()
    writer.communicate()
    store = SessionStore(folder)
    store.start()
    assert [row.role for row in store.active()] == ["agent"]
    wait_for(lambda: mapped.counts[0] > before, seconds=1)
    mapped.close()
    store.close()
