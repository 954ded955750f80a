"""The verdict of the reload gate about an edit: what it would deny of what was used.

What counts is a client, a rule and a host. Of one client at most half of the denials
that the gate allows count, and one more, so the traffic of one client cannot hold back
the edit that closes it: an edit is refused only where others lose as much. A client is
a machine (policy/machines.py), and it is a login: neither several addresses or logins
of one machine, nor several machines with one login, count for more.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.replay.replay import COLUMNS, GROUPS_OF_CLIENT, replay
from squidkeeper.change.replay.result import FlipGroup, FlipKind
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.machines import Machines
from squidkeeper.policy.language.model import ReloadGate
from squidkeeper.policy.policy_store.reload_gate import (
    NAMED_AT_MOST,
    GatedDenial,
    GateVerdict,
)
from squidkeeper.policy.url import parse_address
from squidkeeper.record.log.record import format_time, redacted_url
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table

# of the process; the unit of `squidkeeper maintain` has more
JUDGE_BYTES: Final = 800 * 1024**2
MEMORY_LIMIT: Final = "384MB"  # DuckDB's
_EXAMPLE_AT_MOST: Final = 300
_NAME_AT_MOST: Final = 300


def judge_edit(
    old: CompiledPolicy,
    new: CompiledPolicy,
    sources: TableSources,
    now: datetime,
    sessions: RecordedSessions = NO_SESSIONS,
) -> GateVerdict:
    """Judge what the new policy would deny of the requests that the old one's gate
    counts.

    `UnreadableLog` where the record cannot be read. A policy without a gate allows
    everything.
    """
    gate = old.source.reload_gate
    if gate is None:
        return GateVerdict(old.revision, new.revision, now.timestamp())
    since = now - timedelta(seconds=gate.since_seconds)
    with open_table(
        sources, since, columns=COLUMNS, memory_limit=MEMORY_LIMIT
    ) as table:
        found = replay(
            table.connection,
            old,
            new,
            groups_of_client=max(GROUPS_OF_CLIENT, bound_of_client(gate)),
            sessions=sessions,
        )
    return verdict(
        (old.revision, new.revision), gate, found.of(FlipKind.DENIED), now, old.machines
    )


def bound_of_client(gate: ReloadGate) -> int:
    """Return how many denials of one client count."""
    return gate.denials // 2 + 1


def verdict(
    revisions: tuple[str, str],
    gate: ReloadGate,
    groups: Iterable[FlipGroup],
    now: datetime,
    machines: Machines,
) -> GateVerdict:
    """Count what would be denied and was used, and decide."""
    denials = _denials(groups, machines)
    counted = min(
        _bounded({(key.machine, key.rule, key.host) for key in denials}, gate),
        _bounded({(key.sender, key.rule, key.host) for key in denials}, gate),
    )
    named = sorted(
        denials.values(),
        key=lambda denial: (-denial.count, denial.client, denial.host, denial.rule),
    )
    shown = tuple(named[:NAMED_AT_MOST])
    return GateVerdict(
        *revisions, now.timestamp(), len(denials), counted, gate.denials, shown
    )


class _Denied(NamedTuple):
    machine: str
    sender: str  # the login, or the machine without one
    rule: str
    host: str


def _bounded(denied: set[tuple[str, str, str]], gate: ReloadGate) -> int:
    of_clients = Counter(who for who, *_ in denied)
    return sum(min(number, bound_of_client(gate)) for number in of_clients.values())


def _denials(
    groups: Iterable[FlipGroup], machines: Machines
) -> dict[_Denied, GatedDenial]:
    """Return each client, rule and host once: the groups also tell apart which rule
    allowed the requests.
    """
    found: dict[_Denied, GatedDenial] = {}
    for group in groups:
        if not group.used:
            continue
        machine = _machine(group.client, machines)
        sender = machine if group.user is None else f"user {group.user}"
        key = _Denied(machine, sender, group.flip.rule, group.host)
        known = found.get(key)
        found[key] = _denial(group, known.count if known else 0)
    return found


def _machine(client: str, machines: Machines) -> str:
    try:
        return machines.of(parse_address(client))
    except InvalidUrl:
        return client


def _denial(group: FlipGroup, counted: int) -> GatedDenial:
    example = f"{group.example.method} {redacted_url(group.example.url)}"
    return GatedDenial(
        group.client_name[:_NAME_AT_MOST],
        group.flip.rule,
        group.host[:_NAME_AT_MOST],
        counted + group.used,
        format_time(group.last),
        example[:_EXAMPLE_AT_MOST],
    )
