"""Tickets of sessions: each is of one session alone, and ends with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.protocol.lines import Reply
from squidkeeper.serving.helpers.acl import HostScope, RequestScope
from squidkeeper.serving.helpers.asking import Asking
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.sessions.answers import (
    ANSWERS_AT_MOST,
    StoredAnswer,
    with_answer,
)
from squidkeeper.serving.sessions.index import SessionIndex
from squidkeeper.serving.sessions.store import SessionRow, SessionStore
from squidkeeper.serving.tickets.store import (
    SESSION_PENDING_AT_MOST,
    NoTicket,
    TicketStore,
)
from squidkeeper.serving.tickets.ticket import AskedRequest, Holder, ticket_number
from tests.conftest import compiled_of

from .sessions_made import START, Clock, new

VM, OTHER = "192.0.2.1", "192.0.2.2"
URL = "https://a.example/x"
NOW = 1_800_000_000.0
POLICY = """
session_networks: [192.0.2.0/24]
roles: {agent: {ttl: 8h}, other: {ttl: 8h}}
rules:
  - {name: asked, action: ask, clients: [agent], hosts: [a.example]}
  - {name: closed, action: deny, hosts: [closed.example]}
defaults: {ask: true}
quotas: [{name: few, per: session, clients: [agent], tickets: 2, every: hour}]
"""


@dataclass
class Gateway:
    policy: CompiledPolicy
    sessions: SessionStore
    asking: Asking
    host: HostScope
    request: RequestScope
    clock: Clock

    def begin(self, client: str = VM, role: str = "agent", name: str = "vm") -> int:
        made = new(name, f"{client}/32", role=role, variables={}, lifetime=9e3)
        return self.sessions.create(made).number

    def ask(self, url: str = URL, client: str = VM) -> Reply:
        return self.request.answer(self.tokens(url, client), url)

    def tokens(self, url: str, client: str) -> bytes:
        host = url.split("/")[2]
        number = self.numbered(client)
        tag = f"{host}%3A443%20s%3D{number}" if number else f"{host}%3A443"
        return f"{client} - GET https {host} 443 {host} {tag} -".encode()

    def numbered(self, client: str) -> int:
        rows = [row for row in self.sessions.active() if row.network == f"{client}/32"]
        return rows[0].number if rows else 0

    def ticket(self, url: str = URL, client: str = VM) -> str:
        return dict(self.ask(url, client).annotations)["ticket_"]

    def look(self) -> None:
        """Read the sessions again, as a helper does twice a second."""
        assert self.policy.sessions is not None
        assert isinstance(self.policy.sessions.active, SessionIndex)
        self.policy.sessions.active._look()

    def page(self, ticket: str, client: str = VM) -> object:
        url = f"http://squidkeeper.internal/tickets/{ticket}"
        line = f"{client} - GET http squidkeeper.internal 80 - - -".encode()
        shown = dict(self.request.answer(line, url).annotations).get("ticket_state_")
        return None if shown is None else json.loads(shown)["state"]

    def answer(self, number: int, ticket: str, **values: object) -> SessionRow:
        row = self.sessions.by_number(number)
        assert row is not None
        given = replace(approval(ticket, self.clock), **values)  # type: ignore[arg-type]
        return self.sessions.answer(number, (*row.answers, given))


def approval(ticket: str, clock: Clock) -> StoredAnswer:
    at = clock()
    return StoredAnswer(
        ticket=ticket,
        approved=True,
        by="test",
        at=at.wall,
        method="GET",
        url=URL,
        seconds=600,
        boot=at.boot,
        since_boot=at.since_boot,
    )


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    folder, state, clock = tmp_path / "sessions", tmp_path / "state", Clock()
    folder.mkdir()
    state.mkdir()
    policy = compiled_of(tmp_path, POLICY)
    counts = LocalCounts(state)
    asking = Asking(state, Meter(counts))
    with (
        closing(SessionStore(folder, clock)) as sessions,
        closing(SessionIndex(folder, clock)) as index,
        closing(asking._store),
        closing(counts),
    ):
        sessions.start()
        policy.follow(index)
        host = HostScope(policy)
        request = RequestScope(policy, GrantUses(state), lambda: asking)
        yield Gateway(policy, sessions, asking, host, request, clock)


def verdict(reply: Reply) -> str:
    return dict(reply.annotations)["rule_"]


def test_what_was_approved_is_open_for_its_session_alone_and_ends_with_it(
    gateway: Gateway,
) -> None:
    number = gateway.begin()
    gateway.begin(OTHER, name="other")
    ticket = gateway.ticket()
    assert gateway.ticket(client=OTHER) != ticket
    gateway.answer(number, ticket)
    assert verdict(gateway.ask()) == "session-approval"
    assert gateway.page(ticket) == "approved"
    assert verdict(gateway.ask(client=OTHER)) == "asked"
    assert verdict(gateway.ask(URL + "?more")) == "asked"
    gateway.sessions.end(number, "deleted")
    gateway.begin()
    assert gateway.page(ticket) is None
    assert verdict(gateway.ask()) == "asked"
    assert gateway.ticket() != ticket
    assert gateway.page(ticket) is None


def test_no_other_sees_the_ticket_of_a_session(gateway: Gateway) -> None:
    gateway.begin()
    gateway.begin(OTHER, name="other")
    ticket = gateway.ticket()
    assert gateway.page(ticket) == "pending"
    assert gateway.page(ticket, OTHER) is None
    assert gateway.page(ticket, "203.0.113.9") is None


def test_an_approval_lapses_though_no_service_ends_it(gateway: Gateway) -> None:
    number = gateway.begin()
    ticket = gateway.ticket()
    gateway.answer(number, ticket)
    assert verdict(gateway.ask()) == "session-approval"
    gateway.clock.set(wall=START.wall + 601)
    gateway.look()
    assert gateway.page(ticket) == "lapsed"
    assert verdict(gateway.ask()) == "asked"
    gateway.clock.set(wall=START.wall)
    assert verdict(gateway.ask()) == "asked"


def test_an_approval_lapses_by_its_age_too(gateway: Gateway) -> None:
    number = gateway.begin()
    gateway.answer(number, gateway.ticket())
    gateway.clock.set(wall=START.wall - 5_000, since_boot=START.since_boot + 601)
    gateway.look()
    assert verdict(gateway.ask()) == "asked"


def test_a_denied_ticket_says_why_and_waits_no_longer(gateway: Gateway) -> None:
    number = gateway.begin()
    ticket = gateway.ticket()
    gateway.answer(number, ticket, approved=False, reason="Use the mirror")
    reply = gateway.ask()
    assert f"denied it (ticket {ticket}): Use the mirror" in (reply.message or "")
    assert gateway.page(ticket) == "denied"


def test_no_approval_overrides_a_deny(gateway: Gateway) -> None:
    number, url = gateway.begin(), "https://closed.example/"
    gateway.answer(number, "a" * 12, url=url)
    assert verdict(gateway.ask(url)) == "closed"


def test_a_quota_of_tickets_for_a_role_counts_for_its_sessions(
    gateway: Gateway,
) -> None:
    gateway.begin()
    gateway.begin(OTHER, "other", name="other")
    for n in range(2):
        gateway.ticket(f"https://a.example/{n}")
    assert "quota" in (gateway.ask("https://a.example/3").message or "")
    for n in range(4):
        gateway.ticket(f"https://b.example/{n}", OTHER)


def asked(session: int, url: str = URL, client: str = VM) -> AskedRequest:
    return AskedRequest(client, "", "GET", url, session)


def test_the_session_is_a_part_of_the_number() -> None:
    numbers = {ticket_number(b"k", asked(session)) for session in range(3)}
    assert len(numbers) == 3


def test_each_session_has_a_place_of_its_own(tmp_path: Path) -> None:
    with closing(TicketStore(tmp_path)) as store:
        for session in range(1, 600):
            given = store.ask(asked(session), Holder.of_session(session), "r", NOW)
            assert not isinstance(given, NoTicket)
        for n in range(1, SESSION_PENDING_AT_MOST):
            store.ask(asked(1, f"{URL}{n}"), Holder.of_session(1), "r", NOW)
        more = asked(1, f"{URL}more")
        given = store.ask(more, Holder.of_session(1), "r", NOW)
        assert given is NoTicket.TOO_MANY
        client = asked(0, client="203.0.113.9")
        holder = Holder("203.0.113.0/24", "203.0.113.9")
        assert not isinstance(store.ask(client, holder, "r", NOW), NoTicket)


def test_the_tickets_of_5_000_sessions_do_not_fill_the_file(tmp_path: Path) -> None:
    sessions, length = 50, 400
    with closing(TicketStore(tmp_path)) as store:
        for session in range(1, sessions + 1):
            for n in range(40):
                url = f"{URL}{n}".ljust(length, "x")
                store.ask(asked(session, url), Holder.of_session(session), "r", NOW)
        with store._database.opened() as database:
            pages = database.execute("PRAGMA page_count").fetchone()[0]
    assert 5_000 / sessions * pages * 4096 < 128_000_000


def test_the_tickets_of_a_session_leave_with_it(tmp_path: Path) -> None:
    with closing(TicketStore(tmp_path)) as store:
        number = store.ask(asked(1), Holder.of_session(1), "r", NOW)
        holder = Holder.of_session(2)
        store.ask(asked(2), holder, "r", NOW, is_active=lambda one: one == 2)
        assert store.find(str(number)) is None
        assert [ticket.session for ticket in store.pending(NOW)] == [2]


def test_the_answers_of_a_session_are_bounded() -> None:
    clock = Clock()
    kept: tuple[StoredAnswer, ...] | None = ()
    for n in range(ANSWERS_AT_MOST):
        assert kept is not None
        kept = with_answer(kept, replace(approval(f"a{n}", clock), at=n + 1e9), START)
    assert kept is not None
    assert len(kept) == ANSWERS_AT_MOST
    late = replace(approval("late", clock), approved=False)
    kept = with_answer(kept, late, START)  # what has lapsed leaves
    assert kept is not None
    assert ["a0" in [one.ticket for one in kept], len(kept)] == [False, ANSWERS_AT_MOST]
    live = [approval(f"b{n}", clock) for n in range(ANSWERS_AT_MOST)]
    assert with_answer(live, approval("more", clock), START) is None
