"""What the keeper of sessions cuts, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.roles import Role
from squidkeeper.services.sessions import keeper as keeping
from squidkeeper.services.sessions.connections import Cut
from squidkeeper.services.sessions.content import ContentKey
from squidkeeper.services.sessions.keeper import (
    ClientSide,
    GatewayOfSessions,
    SessionKeeper,
)
from squidkeeper.services.sessions.models import PolicyTerms
from squidkeeper.services.sessions.orchestrators import Orchestrator
from squidkeeper.services.sessions.session_secrets import SessionSecrets
from squidkeeper.serving.sessions.store import SessionRow, SessionStore

from ..serving.sessions_made import new

VM = "192.0.2.1/32"
PLATFORM, OTHER = Orchestrator("platform"), Orchestrator("other")
TERMS = PolicyTerms("1" * 12, {"agent": Role("agent", Location(""))})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    store = SessionStore(tmp_path / "sessions")
    store.start()
    with closing(store):
        yield store


def kept(store: SessionStore, folder: Path, cuts: list[str]) -> SessionKeeper:
    def cut(rows: Sequence[SessionRow]) -> Cut:
        cuts.extend(row.name for row in rows)
        return Cut()

    (folder / "secrets").mkdir(exist_ok=True)
    around = GatewayOfSessions(
        lambda: TERMS, cut, lambda *_: ClientSide("http://gateway:3129", {})
    )
    return SessionKeeper(
        store, SessionSecrets(folder / "secrets"), ContentKey(folder), around
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
