"""What the keeper of sessions cuts, and when."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from squidkeeper.base.faults import Location
from squidkeeper.base.shared_database import SharedDatabase
from squidkeeper.policy.language.roles import Role
from squidkeeper.services.sessions import keeper as keeping
from squidkeeper.services.sessions.connections import Cut
from squidkeeper.services.sessions.content import ContentKey
from squidkeeper.services.sessions.keeper import (
    KEPT_SECONDS,
    ClientSide,
    GatewayOfSessions,
    SessionKeeper,
)
from squidkeeper.services.sessions.models import PolicyTerms, SessionState
from squidkeeper.services.sessions.orchestrators import Orchestrator
from squidkeeper.services.sessions.problems import CallRefused
from squidkeeper.services.sessions.session_secrets import SessionSecrets
from squidkeeper.serving.sessions.store import SessionRow, SessionStore

from ..serving.sessions_made import START, Clock, new
from ..waiting import wait_for

VM = "192.0.2.1/32"
PLATFORM, OTHER = Orchestrator("platform"), Orchestrator("other")
TERMS = PolicyTerms(
    "1" * 12,
    {"agent": Role("agent", Location(""))},
    (ip_network("192.0.2.0/24"),),
    frozenset({"key"}),
)
ASKED = {"role": "agent", "address": "192.0.2.1", "ttl": 600}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SessionStore]:
    store = SessionStore(tmp_path / "sessions", clock)
    store.start()
    with closing(store):
        yield store


class Waited:
    """The time of the keeper: to wait sets it."""

    def __init__(self) -> None:
        self.waited = 0.0

    def monotonic(self) -> float:
        return self.waited

    def wait(self, seconds: float) -> None:
        self.waited += seconds


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Waited:
    waited = Waited()
    clock = SimpleNamespace(monotonic=waited.monotonic, sleep=waited.wait)
    monkeypatch.setattr(keeping, "time", clock)
    return waited


def kept(
    store: SessionStore, folder: Path, cuts: list[str], clock: Clock | None = None
) -> SessionKeeper:
    def cut(rows: Sequence[SessionRow]) -> Cut:
        cuts.extend(row.name for row in rows)
        return Cut()

    (folder / "secrets").mkdir(exist_ok=True)
    around = GatewayOfSessions(
        lambda: TERMS, cut, lambda *_: ClientSide("http://gateway:3129", {})
    )
    return SessionKeeper(
        store,
        SessionSecrets(folder / "secrets"),
        ContentKey(folder),
        around,
        clock or Clock(),
    )


def test_what_an_active_session_has_open_is_not_cut_by_the_end_of_another(
    store: SessionStore, tmp_path: Path
) -> None:
    store.create(new("vm", VM))
    store.create(new("evil", VM, token_sha256="0" * 64, orchestrator="other"))
    cuts: list[str] = []
    keeper = kept(store, tmp_path, cuts)
    keeper.end(OTHER, "evil")
    assert cuts == []
    keeper.end(PLATFORM, "vm")
    assert cuts == ["vm"]


def test_a_neighbour_in_a_network_does_not_keep_what_an_address_has_open(
    store: SessionStore, tmp_path: Path
) -> None:
    store.create(new("vm-5", "2001:db8::5/128"))
    store.create(new("vm-6", "2001:db8::6/128"))
    cuts: list[str] = []
    kept(store, tmp_path, cuts).end(PLATFORM, "vm-5")
    assert cuts == ["vm-5"]


def test_what_ended_ahead_of_a_start_is_cut_after_it(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_CUT_AGAIN_SECONDS", 0.0)
    row = store.create(new("vm", VM))
    store.end(row.number, "deleted")
    cuts: list[str] = []
    kept(store, tmp_path, cuts).check()
    assert cuts == ["vm"]


def test_a_session_named_like_an_address_gives_nobody_that_address_early(
    store: SessionStore, tmp_path: Path, waited: Waited
) -> None:
    store.create(new("192.0.2.1", "192.0.2.9/32"))
    store.create(new("first", VM))
    keeper = kept(store, tmp_path, [])
    keeper.end(PLATFORM, "first")
    keeper.put(PLATFORM, "second", ASKED)
    assert waited.waited == KEPT_SECONDS


def test_a_successor_waits_for_a_cut_that_is_under_way(
    store: SessionStore, tmp_path: Path, waited: Waited
) -> None:
    begun, may_end = Event(), Event()

    def cut(_: Sequence[SessionRow]) -> Cut:
        begun.set()
        assert may_end.wait(60)
        return Cut()

    keeper = kept(store, tmp_path, [])
    keeper.put(PLATFORM, "first", ASKED)
    keeper._around = replace(keeper._around, cut=cut)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(keeper.end, PLATFORM, "first")
        assert begun.wait(60)
        made = pool.submit(keeper.put, PLATFORM, "second", ASKED)
        wait_for(lambda: made.done() or waited.waited > 10 * KEPT_SECONDS)
        early = made.done()
        may_end.set()
        assert (ended.result(60).left, made.result(60).is_new) == (0, True)
    assert not early


def test_a_session_is_extended_though_the_clock_was_set_back(
    store: SessionStore, tmp_path: Path, clock: Clock, waited: Waited
) -> None:
    keeper = kept(store, tmp_path, [], clock)
    made = keeper.put(PLATFORM, "vm", ASKED)
    clock.set(wall=START.wall - 3_600, since_boot=START.since_boot + 300)
    again = keeper.put(PLATFORM, "vm", ASKED)
    assert (made.is_new, again.is_new, again.shown.extended) == (True, False, True)
    clock.set(since_boot=START.since_boot + 700)  # its first end
    keeper.check()
    assert keeper.get(PLATFORM, "vm").shown.state == SessionState.ACTIVE
    clock.set(since_boot=START.since_boot + 1_000)
    keeper.check()
    assert keeper.get(PLATFORM, "vm").shown.state == SessionState.ENDED


def test_a_change_that_is_refused_leaves_the_secrets_as_they_were(
    store: SessionStore, tmp_path: Path, waited: Waited
) -> None:
    keeper = kept(store, tmp_path, [])
    made = keeper.put(PLATFORM, "vm", {**ASKED, "secrets": {"key": "old"}})
    store.create(new("other", "192.0.2.2/32"))
    change = {"address": "192.0.2.2", "secrets": {"key": "new"}}
    with pytest.raises(CallRefused, match="another session has this address"):
        keeper.change(PLATFORM, "vm", change, "*")
    values = SessionSecrets(tmp_path / "secrets").of(made.shown.number)
    assert values == {"key": "old"}


def test_the_sessions_of_a_list_reach_the_disk_once_and_end_at_once(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction that is synced waits for the disk, and others wait for it."""
    levels: list[bool] = []
    transaction = SharedDatabase.transaction

    @contextmanager
    def counted(
        database: SharedDatabase, *, synced: bool = True
    ) -> Iterator[sqlite3.Connection]:
        levels.append(synced)
        with transaction(database, synced=synced) as connection:
            yield connection

    keeper = kept(store, tmp_path, [])
    monkeypatch.setattr(keeping, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(SharedDatabase, "transaction", counted)
    listed = [{"name": f"vm-{number}", "role": "agent"} for number in range(50)]
    keeper.take_list(PLATFORM, {"sessions": listed})
    assert (levels.count(False), levels.count(True)) == (50, 1)
    levels.clear()
    keeper.take_list(PLATFORM, {"sessions": []})
    assert levels.count(True) <= 2
    assert store.active() == []
