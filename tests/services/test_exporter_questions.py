"""The count of questions that wait: without those that the policy decides by now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.protocol.lines import Reply, Result
from squidkeeper.services.exporter.process import WaitingQuestions
from squidkeeper.serving.helpers.asking import Asking
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.tickets.store import PENDING_AT_MOST, TicketStore
from squidkeeper.serving.tickets.ticket import AskedRequest, Holder

from ..conftest import compiled_of

VM = "192.168.137.10"
ASKING = "defaults: {ask: true}\n"
CLOSING = (
    ASKING
    + "rules: [{name: closed, action: deny, hosts: [a.example], paths: [/1, /2]}]\n"
)
DENIAL = Reply(Result.ERR)


def policy(tmp_path: Path, text: str) -> CompiledPolicy:
    return compiled_of(tmp_path / "policy", text)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TicketStore]:
    with closing(TicketStore(tmp_path)) as store:
        yield store


def ask(store: TicketStore, count: int) -> None:
    for n in range(count):
        asked = AskedRequest(VM, "", "GET", f"https://a.example/{n}")
        store.ask(asked, Holder("192.168.137.0/24", VM), "default", time.time())


def test_where_nobody_ever_asked_there_is_no_count(tmp_path: Path) -> None:
    assert (
        WaitingQuestions(tmp_path).count(policy(tmp_path, ASKING), time.time()) is None
    )
    assert not (tmp_path / "tickets").exists()


def test_what_an_edit_decides_counts_no_longer(
    tmp_path: Path, store: TicketStore
) -> None:
    ask(store, 5)
    waiting = WaitingQuestions(tmp_path)
    assert waiting.count(None, time.time()) == 5
    assert waiting.count(policy(tmp_path, ASKING), time.time()) == 5
    assert waiting.count(policy(tmp_path, CLOSING), time.time()) == 3
    ask(store, 5)  # a helper that has the edit does not ask; one that has not yet does
    assert waiting.count(policy(tmp_path, CLOSING), time.time()) == 5
    assert waiting.count(policy(tmp_path, CLOSING), time.time() + 601) == 3


def test_many_questions_are_judged_some_at_a_time(
    tmp_path: Path, store: TicketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.services.exporter.process._AT_ONCE", 2)
    ask(store, 5)
    waiting, closing_some = WaitingQuestions(tmp_path), policy(tmp_path, CLOSING)
    counts = [waiting.count(closing_some, time.time()) for _ in range(4)]
    assert counts[-1] == 3


def test_a_row_that_no_helper_writes_holds_up_no_count(
    tmp_path: Path, store: TicketStore
) -> None:
    ask(store, 3)
    with store._database.opened() as database:
        database.execute("UPDATE tickets SET url = 'no url' WHERE url LIKE '%/2'")
    assert WaitingQuestions(tmp_path).count(policy(tmp_path, CLOSING), time.time()) == 2


def test_a_client_at_its_bound_has_room_again_where_an_edit_decides_its_questions(
    tmp_path: Path, store: TicketStore
) -> None:
    ask(store, PENDING_AT_MOST)
    asking, tokens = (
        Asking(tmp_path, Meter(LocalCounts(tmp_path))),
        f"{VM} - GET https b.example 443 b.example b.example%3A443 -".encode(),
    )

    def has_ticket(url: str, by: CompiledPolicy) -> bool:
        return any(
            name == "ticket_"
            for name, _ in asking.deny(DENIAL, tokens, url, "default", by).annotations
        )

    with closing(asking._store):
        assert not has_ticket("https://b.example/1", policy(tmp_path, ASKING))
        by = policy(tmp_path, CLOSING)
        assert [has_ticket(f"https://b.example/{n}", by) for n in range(3)] == [
            True,
            True,
            False,
        ]
