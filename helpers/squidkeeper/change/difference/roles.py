"""The roles whose sessions two policies may treat differently.

A session has values that no policy knows, and belongs to clients by its address too. So
its requests are not cut into cells. They are the same where all that can hold for them
is the same, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import AnyEntry, Policy

_NOWHERE = Location("")


def unproven_roles(policies: tuple[CompiledPolicy, CompiledPolicy]) -> tuple[str, ...]:
    """Name the roles of which it is not known that their sessions do the same."""
    old, new = (policy.source for policy in policies)
    names = {role.name for policy in (old, new) for role in policy.roles}
    return tuple(
        name for name in sorted(names) if [*_parts(old, name)] != [*_parts(new, name)]
    )


def _parts(policy: Policy, name: str) -> Iterator[object]:
    """Yield all that a decision about a session of a role can depend on."""
    own = {name}
    for role in policy.roles:
        if role.name == name:
            yield replace(role, location=_NOWHERE)
    for client in policy.clients:
        if client.users is None and client.tokens is None:
            own.add(client.name)
            yield client.name, client.networks, client.connections
    yield policy.session_networks, policy.default, policy.observe_default is None
    yield bool(policy.sealing_keys), policy.watch is None
    for entry in (*policy.entries, *policy.upstreams):
        if entry.match.clients is None or not own.isdisjoint(entry.match.clients):
            yield _content(entry, own)
            yield [policy.lists[one].digest for one in entry.match.lists or ()]


def _content(entry: AnyEntry, own: set[str]) -> AnyEntry:
    named = entry.match.clients
    kept = None if named is None else named & own
    return replace(entry, location=_NOWHERE, match=replace(entry.match, clients=kept))
