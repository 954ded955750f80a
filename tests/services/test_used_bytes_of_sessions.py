"""Bytes of quotas that count sessions, from the log: also after a session's end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from squidkeeper.policy.language.roles import Session
from squidkeeper.record.log.recorded_sessions import RecordedSessions
from squidkeeper.services.exporter.used_bytes import UsedBytes
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.opening import GatewayCounts
from tests.conftest import compiled_of
from tests.records import record

POLICY = """
clients: {all: {networks: [0.0.0.0/0]}}
roles: {agent: {ttl: 8h}}
rules: [{name: open, action: allow, hosts: [open.example]}]
quotas:
  - {name: each, per: session, clients: [agent], bytes_in: 1GB, every: day}
  - {name: tenants, per: "label:tenant", bytes_out: 1GB, every: day}
"""
SESSIONS = {
    7: Session(7, "vm", "agent", {}, labels={"tenant": "acme"}, orchestrator="slicer")
}


def test_the_log_counts_by_the_number_of_the_session(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY)
    state = tmp_path / "state"
    state.mkdir()
    shared = GatewayCounts(tmp_path / "policy", state)
    used = UsedBytes(state, lambda: policy, shared, RecordedSessions(SESSIONS.get))
    for session in ("7", "7", "8", "-"):
        used.count(record(session=session, bytes=500, request_bytes=120))
    with closing(used._counts):
        used.flush()
    with closing(LocalCounts(state)) as counts:
        found = {use.count.holder: use.used for use in counts.uses()}
    assert found == {"session:7": 1000, "label:slicer:tenant=acme": 240}
