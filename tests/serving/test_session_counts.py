"""Quotas that count sessions: by their numbers and labels, in the helper and by the
log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.services.sessions.reports import QuotaUsage
from squidkeeper.serving.helpers.meter import QuotaScope
from squidkeeper.serving.quotas.counts import holder
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.sessions.index import SessionIndex
from squidkeeper.serving.sessions.store import SessionStore
from tests.conftest import compiled_of
from tests.serving.sessions_made import new

POLICY = """
session_networks: [192.0.2.0/24]
clients: {office: {networks: [203.0.113.0/24]}}
roles: {agent: {ttl: 8h}, reader: {ttl: 8h}}
rules: [{name: open, action: allow, hosts: [open.example]}]
quotas:
  - {name: each, per: session, clients: [agent], requests: 2, every: day}
  - {name: tenants, per: "label:tenant", requests: 3, every: day}
  - {name: clients, per: client, clients: [agent], requests: 100, every: day}
"""
REFUSED = "quota:tenants"
ONE, TWO, READER, OFFICE = "192.0.2.1", "192.0.2.2", "192.0.2.3", "203.0.113.1"


@dataclass
class Gateway:
    """A policy whose meter follows a store of sessions."""

    policy: CompiledPolicy
    store: SessionStore
    index: SessionIndex
    counts: LocalCounts

    def __post_init__(self) -> None:
        self.policy.follow(self.index)
        self.scope = QuotaScope(self.policy, Meter(self.counts))
        self.number = 0

    def passes(self, client: str) -> str:
        """Ask for one request; the quota that refuses it, or nothing."""
        self.number += 1
        told = f"open - - 1.001 {self.number} 5 - -"
        line = f"{client} - GET http open.example 80 - - - {told}"
        reply = self.scope.answer(line.encode())
        notes = dict(reply.annotations)
        assert (reply.result is Result.OK) == ("found_" not in notes)
        return notes.get("found_", "")

    def begin(
        self,
        name: str,
        network: str,
        role: str = "agent",
        orchestrator: str = "platform",
        **labels: str,
    ) -> int:
        asked = new(
            name,
            f"{network}/32",
            role=role,
            variables={},
            labels=labels,
            orchestrator=orchestrator,
        )
        return self.store.create(asked).number

    def holders(self) -> dict[str, int]:
        return {use.count.holder: use.used for use in self.counts.uses()}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    policy = compiled_of(tmp_path / "policy", POLICY)
    store = SessionStore(tmp_path / "sessions")
    index, counts = SessionIndex(tmp_path / "sessions"), LocalCounts(tmp_path)
    with closing(store), closing(index), closing(counts):
        yield Gateway(policy, store, index, counts)


def test_each_session_has_its_own_count_and_none_inherits_one(
    gateway: Gateway,
) -> None:
    first = gateway.begin("vm", ONE, tenant="1")
    other = gateway.begin("other", TWO, tenant="2")
    assert [gateway.passes(ONE) for _ in range(3)] == ["", "", "quota:each"]
    assert gateway.passes(TWO) == ""
    gateway.store.end(first, "deleted")
    again = gateway.begin("vm", ONE, tenant="3")
    assert [gateway.passes(ONE) for _ in range(3)] == ["", "", "quota:each"]
    of_each = {
        use.count.holder: use.used
        for use in gateway.counts.uses()
        if use.count.quota == "each"
    }
    assert of_each == {
        f"session:{first}": 2,
        f"session:{other}": 1,
        f"session:{again}": 2,
    }


def test_sessions_with_a_label_share_a_count_that_no_new_session_refills(
    gateway: Gateway,
) -> None:
    first = gateway.begin("a", READER, role="reader", tenant="acme / x")
    assert [gateway.passes(READER) for _ in range(2)] == ["", ""]
    gateway.store.end(first, "deleted")
    gateway.begin("b", READER, role="reader", tenant="acme / x")
    assert [gateway.passes(READER) for _ in range(2)] == ["", "quota:tenants"]
    gateway.begin("c", TWO, role="reader", tenant="other")
    assert gateway.passes(TWO) == ""
    assert gateway.holders()["label:platform:tenant=acme%20%2F%20x"] == 3


def test_sessions_without_the_label_have_one_count_together(
    gateway: Gateway,
) -> None:
    gateway.begin("a", READER, role="reader", task="1")
    gateway.begin("b", TWO, role="reader")
    asked = (READER, TWO)
    assert [gateway.passes(client) for client in asked * 2] == [*3 * [""], REFUSED]
    assert gateway.holders() == {"label:platform:tenant": 3}


def test_requests_of_no_session_are_not_counted_by_sessions(gateway: Gateway) -> None:
    assert [gateway.passes(OFFICE) for _ in range(4)] == [""] * 4
    assert gateway.holders() == {}


def test_a_value_of_a_label_is_that_of_one_orchestrator(gateway: Gateway) -> None:
    gateway.begin("a", READER, role="reader", tenant="1")
    gateway.begin("b", TWO, role="reader", orchestrator="other", tenant="1")
    asked = 3 * [READER] + 3 * [TWO]
    assert [gateway.passes(client) for client in asked] == [""] * 6
    assert gateway.passes(TWO) == gateway.passes(READER) == REFUSED
    assert gateway.holders() == {
        "label:platform:tenant=1": 3,
        "label:other:tenant=1": 3,
    }


def test_a_session_inherits_no_count_of_a_client_with_its_name_or_address() -> None:
    quota = Quota("q", Location(""), QuotaUnit.REQUESTS, 1, Window.DAY, Counted.CLIENT)
    first, again = (Session(number, "vm", "agent", {}) for number in (7, 8))
    for user in (None, "vm"):
        named = [holder(quota, ONE, user, "", one) for one in (first, again)]
        assert named == ["session:7", "session:8"]


def test_a_call_shows_what_the_session_has_used(
    gateway: Gateway, tmp_path: Path
) -> None:
    for name, place, tenant in (("a", ONE, {"tenant": "a / b"}), ("b", TWO, {})):
        gateway.begin(name, place, **tenant)
        gateway.passes(place)
    usage = QuotaUsage(tmp_path)
    for row in gateway.store.active():
        shown = usage.of(gateway.policy, row)["quotas"]
        assert {one["quota"]: one["used"] for one in shown} == {
            "each": 1,
            "tenants": 1,
            "clients": 1,
        }


def test_a_session_that_has_ended_is_found_for_the_record(gateway: Gateway) -> None:
    number = gateway.begin("a", ONE, tenant="acme")
    gateway.store.end(number, "deleted")
    assert gateway.index.numbered(number) is None
    found = gateway.index.recorded(number)
    assert found
    assert (found.role, dict(found.labels)) == ("agent", {"tenant": "acme"})
    assert gateway.index.recorded(number + 1) is None
