"""Records of sessions compared with the policy: each by its own session, also after
that has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from squidkeeper.base.places import sessions_folder
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.record.log.drift import DriftChecker, DriftKind
from squidkeeper.record.log.record import NONE, Record
from squidkeeper.record.log.recorded_sessions import RecordedSessions, Unknown
from squidkeeper.serving.sessions.following import Following
from squidkeeper.serving.sessions.store import FILE, SessionRow, SessionStore

from .. import records
from ..serving.sessions_made import new

VM = "10.20.0.7"
POLICY = """
version: 1
session_networks: [10.20.0.0/16]
clients:
  office: {networks: [192.0.2.0/24]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z]+/[a-z]+"}}}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: docs, action: allow, clients: [agent], hosts: [docs.example]}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CompiledPolicy:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.yaml").write_text(POLICY)
    return load(folder, datetime(2026, 11, 25, tzinfo=UTC)).compiled


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(state: Path) -> Iterator[SessionStore]:
    sessions = SessionStore(sessions_folder(state))
    with closing(sessions):
        sessions.start()
        yield sessions


@pytest.fixture
def made(store: SessionStore) -> SessionRow:
    return store.create(new("vm-7", f"{VM}/32"))


@pytest.fixture
def drift(policy: CompiledPolicy, state: Path) -> Iterator[DriftChecker]:
    with closing(Following(state)) as following:
        sessions = RecordedSessions(following.recorded)
        yield DriftChecker(lambda _: policy, lambda: policy, sessions=sessions)


@pytest.fixture
def record(policy: CompiledPolicy) -> Callable[..., Record]:
    def make(url: str, session: object = NONE, **fields: Any) -> Record:
        host = url.split("/")[2]
        tunnel = f"{host}:443" if session == NONE else f"{host}:443 s={session}"
        values = {
            "client": VM,
            "url": url,
            "revision": policy.revision,
            "sni": host,
            "tunnel": quote(tunnel, safe=""),
            "session": str(session),
        }
        return records.record(**values | fields)

    return make


@pytest.mark.parametrize("has_ended", [False, True])
def test_what_a_session_may_is_no_drift_also_after_its_end(
    drift: DriftChecker,
    store: SessionStore,
    made: SessionRow,
    record: Callable[..., Record],
    has_ended: bool,
) -> None:
    if has_ended:
        store.end(made.number, "deleted")
    for url in ("https://docs.example/", "https://git.example/acme/app/x"):
        assert drift.check(record(url, made.number)) is None
    assert drift.unchecked == 0
    assert drift.client_name(record("https://docs.example/", made.number)) == "agent"


def test_what_a_session_may_not_is_drift(
    drift: DriftChecker, made: SessionRow, record: Callable[..., Record]
) -> None:
    for url in ("https://closed.example/", "https://git.example/acme/other/x"):
        found = drift.check(record(url, made.number))
        assert found
        assert found.kind is DriftKind.ALLOWED
    found = drift.check(record("https://docs.example/"))
    assert found
    assert found.rule == "session-required"


def test_two_sessions_of_one_address_are_judged_each_by_its_own(
    drift: DriftChecker,
    store: SessionStore,
    made: SessionRow,
    record: Callable[..., Record],
) -> None:
    store.end(made.number, "deleted")
    other = store.create(
        new("vm-8", f"{VM}/32", variables={"repo": ("acme/other",)})
    ).number
    for number, own, foreign in (
        (made.number, "app", "other"),
        (other, "other", "app"),
    ):
        url = f"https://git.example/acme/{own}/x"
        assert drift.check(record(url, number)) is None
        assert drift.check(record(url.replace(own, foreign), number))


@pytest.mark.parametrize("session", ["1", "999999999999999", "no-number", "9" * 40])
def test_a_session_that_is_unknown_is_not_checked_and_no_drift(
    drift: DriftChecker,
    made: SessionRow,
    record: Callable[..., Record],
    session: str,
) -> None:
    assert made
    assert drift.check(record("https://docs.example/", session)) is None
    assert (drift.unchecked, drift.of_unknown_sessions) == (1, 1)


def test_without_a_store_that_can_be_read_every_session_is_unknown(
    state: Path, store: SessionStore, made: SessionRow, record: Callable[..., Record]
) -> None:
    asked = record("https://docs.example/", made.number)
    elsewhere = RecordedSessions.of_gateway(state / "elsewhere")
    assert elsewhere.of(asked) is Unknown.SESSION
    store.close()
    (sessions_folder(state) / FILE).write_bytes(b"no database" * 1000)
    with closing(Following(state)) as following:
        sessions = RecordedSessions(following.recorded)
        assert sessions.of(asked) is Unknown.SESSION
        assert sessions.known(asked) is None
        assert sessions.of(record("https://docs.example/")) is None
