"""The sessions that a helper knows: which request belongs to which, and since when."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from squidkeeper.policy.engine.sessions import SESSIONS_UNAVAILABLE, Refused
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.url import Host, address_host, parse_address
from squidkeeper.serving.sessions.counter import FILE as COUNTER
from squidkeeper.serving.sessions.index import SessionIndex
from squidkeeper.serving.sessions.store import FILE, SessionStore
from tests.serving.sessions_made import START, Clock, let_others_in, new

VM, OTHER = "192.0.2.1", "192.0.2.2"
TOKEN = sha256(b"a token").hexdigest()
ID = TOKEN[:12]
# Reads the sessions as another account, which may only read.
READER = """
import os, sys
from pathlib import Path
from squidkeeper.serving.sessions.index import SessionIndex
from squidkeeper.policy.url import address_host, parse_address
os.setgroups([]); os.setgid(65534); os.setuid(65534)
index = SessionIndex(Path(sys.argv[1]))
for line in sys.stdin:
    index.refresh()
    print(index.find(address_host(parse_address(line.strip())), None, None), flush=True)
"""


def at(address: str) -> Host:
    return address_host(parse_address(address))


def line(client: str, user: str = "-") -> bytes:
    return f"{client} {user} GET http example.com 80 - - -".encode()


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


@pytest.fixture
def index(folder: Path, store: SessionStore, clock: Clock) -> Iterator[SessionIndex]:
    index = SessionIndex(folder, clock)
    yield index
    index.close()


def look_again(index: SessionIndex) -> None:
    """Have the index look, as it does twice a second."""
    index._look_at = 0.0


def found(index: SessionIndex, client: str, *login: str) -> str | None:
    """Return the name of the session, or the reason for which there is none."""
    user, token = login or (None, None)
    index.refresh()
    session = index.find(at(client), user, token)
    if session is None:
        return None
    return session.name if isinstance(session, Session) else session.reason


def test_a_request_belongs_to_the_session_of_its_address(
    store: SessionStore, index: SessionIndex
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    store.create(new("vm-6", "2001:db8::/64"))
    store.create(new("vm-7", "2001:db8:0:1::7/128"))
    assert found(index, VM) == "vm-1"
    assert found(index, OTHER) is None
    assert found(index, "2001:db8::5") == "vm-6"
    assert found(index, "2001:db8:0:1::7") == "vm-7"
    assert found(index, "2001:db8:0:1::8") is None
    assert index.find(None, None, None) is None
    session = index.find(at(VM), None, None)
    assert isinstance(session, Session)
    assert (session.role, session.values) == ("agent", {"repo": ("acme/app",)})


def test_a_login_comes_before_the_address(
    store: SessionStore, index: SessionIndex
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    store.create(new("bot", token_sha256=TOKEN))
    assert found(index, VM, "bot", ID) == "bot"
    assert found(index, VM, "bot", "*") == "bot"
    assert found(index, VM, "nobody", "*") == "vm-1"
    assert found(index, VM, "vm-1", "*") == "vm-1"
    assert "another ID" in (found(index, VM, "bot", "0" * 12) or "")


def test_a_login_counts_within_the_network_of_its_session(
    store: SessionStore, index: SessionIndex
) -> None:
    store.create(new("bot", f"{VM}/32", token_sha256=TOKEN))
    assert found(index, VM, "bot", ID) == "bot"
    assert "does not hold this address" in (found(index, OTHER, "bot", ID) or "")
    assert found(index, VM) is None  # the address alone is not enough
    assert index.have_tokens
    assert index.log_in("bot", TOKEN, parse_address(VM)) == "accepted"
    assert index.log_in("bot", TOKEN, parse_address(OTHER)) == "other_network"
    assert index.log_in("bot", "0" * 64, parse_address(VM)) == "wrong_token"
    assert index.log_in("nobody", "0" * 64, parse_address(VM)) == "unknown_client"


def test_a_change_holds_at_the_next_line(
    store: SessionStore, index: SessionIndex
) -> None:
    assert found(index, VM) is None
    made = store.create(new("vm-1", f"{VM}/32"))
    assert found(index, VM) == "vm-1"
    store.change(made.number, network=f"{OTHER}/32")
    assert (found(index, VM), found(index, OTHER)) == (None, "vm-1")
    store.end(made.number, "deleted")
    assert found(index, OTHER) is None
    assert index.former(at(OTHER)) == (
        "The last one ended at 2027-01-15 08:00:00 UTC (deleted)."
    )
    assert index.former(at(VM)) == ""


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (VM, f"{VM}/32"),
        ("2001:db8::5", "2001:db8::/64"),
        ("2001%3Adb8%3A%3A5", "2001:db8::5/128"),
    ],
)
def test_a_stamp_changes_with_its_session_alone(
    store: SessionStore, index: SessionIndex, client: str, network: str
) -> None:
    other = store.create(new("other", "192.0.2.99/32"))
    stamps = [index.stamp_of(line(client))]
    made = store.create(new("vm-1", network))
    stamps.append(index.stamp_of(line(client)))
    store.change(made.number, lifetime=60)
    stamps.append(index.stamp_of(line(client)))
    before = index.stamp_of(line(client)), index.stamp_of(line(VM, "bot"))
    store.change(other.number, lifetime=60)
    store.create(new("more", "192.0.2.98/32"))
    assert (index.stamp_of(line(client)), index.stamp_of(line(VM, "bot"))) == before
    assert len(set(stamps)) == 3
    store.end(made.number, "deleted")
    assert index.stamp_of(line(client)) == stamps[0] == 0


def test_a_stamp_of_a_login_is_that_of_its_session(
    store: SessionStore, index: SessionIndex
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    bot = store.create(new("bot", token_sha256=TOKEN))
    vm = index.stamp_of(line(VM))
    found = index.numbered(bot.number)
    assert found is not None
    assert index.stamp_of(line(VM, "bot")) == (found.stamp, vm)
    store.end(bot.number, "deleted")
    assert index.stamp_of(line(VM, "bot")) == index.stamp_of(line(VM))


@pytest.mark.parametrize(
    "passed",
    [
        {"wall": START.wall + 600},
        {"since_boot": START.since_boot + 600},  # the clock of the wall was set back
        {"wall": START.wall + 600, "boot": "boot-2", "since_boot": 1.0},
    ],
)
def test_a_session_ends_by_time_without_the_service(
    store: SessionStore, index: SessionIndex, clock: Clock, passed: dict[str, float]
) -> None:
    store.create(new("vm-1", f"{VM}/32", lifetime=600.0))
    store.create(new("vm-2", f"{OTHER}/32", lifetime=9_000.0))
    store.close()
    assert found(index, VM) == "vm-1"
    clock.set(**passed)
    look_again(index)
    assert found(index, VM) is None
    assert index.stamp_of(line(VM)) == 0
    assert found(index, OTHER) == "vm-2"


def test_an_extended_session_does_not_end_at_its_former_time(
    store: SessionStore, index: SessionIndex, clock: Clock
) -> None:
    made = store.create(new("vm-1", f"{VM}/32"))
    assert found(index, VM) == "vm-1"
    store.change(made.number, lifetime=9_000.0)
    clock.set(wall=START.wall + 700, since_boot=START.since_boot + 700)
    look_again(index)
    assert found(index, VM) == "vm-1"


def test_a_change_holds_soon_though_nobody_raises_the_counter(
    store: SessionStore, index: SessionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.create(new("vm-1", f"{VM}/32"))
    assert found(index, VM) == "vm-1"
    monkeypatch.setattr(store._counter, "advance", lambda: None)
    store.end(made.number, "deleted")
    assert found(index, VM) == "vm-1"
    look_again(index)
    assert found(index, VM) is None


def test_an_end_that_was_purged_is_not_missed(
    store: SessionStore, index: SessionIndex, clock: Clock
) -> None:
    made = store.create(new("vm-1", f"{VM}/32"))
    store.create(new("vm-2", f"{OTHER}/32"))
    assert found(index, VM) == "vm-1"
    store.end(made.number, "deleted")
    clock.set(wall=START.wall + 1)
    assert store.purge(clock().wall) == 1
    assert (found(index, VM), found(index, OTHER)) == (None, "vm-2")


def test_sessions_are_read_while_the_service_is_down(
    folder: Path, store: SessionStore, clock: Clock
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    store.close()
    assert not (folder / f"{FILE}-wal").exists()
    with closing(SessionIndex(folder, clock)) as index:
        assert found(index, VM) == "vm-1"
        again = SessionStore(folder, clock)
        again.start()
        again.create(new("vm-2", f"{OTHER}/32"))
        assert found(index, OTHER) == "vm-2"
        again.close()


@pytest.mark.parametrize("damage", ["missing", "damaged", "no counter", "values"])
def test_a_file_that_cannot_be_read_refuses_all_until_it_can(
    folder: Path,
    store: SessionStore,
    index: SessionIndex,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    assert found(index, VM) == "vm-1"
    index.close()
    store.close()
    file, whole = folder / FILE, (folder / FILE).read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "damaged":
        file.write_bytes(b"x" * len(whole))
    elif damage == "no counter":
        (folder / COUNTER).unlink()
    else:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE sessions SET variables = '[1]', change = 9e15")
            database.execute("UPDATE changes SET change = 9e15")

    for _ in range(2):
        look_again(index)
        index.refresh()
        session = index.find(at(VM), None, None)
        assert isinstance(session, Refused)
        assert session.rule == SESSIONS_UNAVAILABLE
    assert index.stamp_of(line(VM)) == index.stamp_of(line(OTHER)) == -1
    assert caplog.text.count("the sessions cannot be read") == 1
    file.unlink(missing_ok=True)
    file.write_bytes(whole)
    again = SessionStore(folder, clock)
    again.start()
    look_again(index)
    assert found(index, VM) == "vm-1"
    again.close()


def test_sessions_of_a_lost_file_are_forgotten(
    folder: Path, store: SessionStore, index: SessionIndex, clock: Clock
) -> None:
    store.create(new("vm-1", f"{VM}/32"))
    assert found(index, VM) == "vm-1"
    store.close()
    index._file.close()
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    again = SessionStore(folder, clock)
    again.start()
    again.create(new("vm-2", f"{OTHER}/32"))
    look_again(index)
    assert (found(index, VM), found(index, OTHER)) == (None, "vm-2")
    again.close()


@pytest.mark.system
@pytest.mark.skipif(os.getuid() != 0, reason="changes its account")
def test_an_account_that_may_only_read_follows_all_that_happens(
    folder: Path,
) -> None:
    let_others_in(folder)
    store = SessionStore(folder)
    store.start()
    os.chown(folder, -1, 65534)
    folder.chmod(0o2750)
    for path in folder.iterdir():
        os.chown(path, -1, 65534)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def read(address: str = VM) -> str:
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write(f"{address}\n")
        reader.stdin.flush()
        return reader.stdout.readline()

    for _ in range(2):
        made = store.create(new("vm-1", f"{VM}/32"))
        assert "'vm-1'" in read()
        store.close()  # while the reader has it open
        assert "'vm-1'" in read()
        store.start()
        store.end(made.number, "deleted")
        assert read() == "None\n"
    assert "'vm-1'" not in read(OTHER)
    store.close()
    reader.communicate("")


@pytest.mark.system
def test_5_000_sessions_take_15_mb_at_most(folder: Path, clock: Clock) -> None:
    store = SessionStore(folder, clock)
    store.start()
    with store._database.opened() as database:
        database.execute("PRAGMA synchronous = OFF")  # only here: 5,000 transactions
    for number in range(5_000):
        address = f"10.1.{number // 250}.{number % 250}/32"
        values = {
            "repo": (f"an-owner/a-repository-{number}",),
            "branch": (f"agent/task-{number}",),
            "docs": (f"docs-{number}.example.com", "more.example.com"),
        }
        store.create(new(f"session-{number}", address, variables=values))
    program = f"""
import resource
from pathlib import Path
from squidkeeper.serving.sessions.index import SessionIndex
def megabytes():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 1e6
index, before = SessionIndex(Path({str(folder)!r})), megabytes()
index.refresh()
print(len(index._by_number), megabytes() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    count, megabytes = done.stdout.split()
    store.close()
    assert int(count) == 5_000
    assert float(megabytes) <= 15, done.stdout
