"""Entries that name variables, with the values of a session in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.policy.engine.fields import holds_for_host
from squidkeeper.policy.engine.rule_index import positions_of_variables
from squidkeeper.policy.language.bodies import GitBody
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.language.model import (
    Credential,
    HostFacts,
    Match,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.language.variables import with_values

EntryT = TypeVar("EntryT", Rule, Rewrite, Credential)
_CACHE_BYTES, _ENTRY_BYTES = 4 * 1024 * 1024, 1_500


class Section(Generic[EntryT]):
    """The entries of a section, as they are for a session.

    Without a session, an entry that names variables has its widest hosts, and its paths
    match nothing.
    """

    def __init__(
        self, entries: Sequence[EntryT], of_variables: frozenset[int] | None = None
    ) -> None:
        self._entries: Sequence[EntryT] = entries
        self._of_variables = (
            positions_of_variables(entries) if of_variables is None else of_variables
        )
        self._bound: BoundedCache[tuple[int, int], EntryT] = BoundedCache(_CACHE_BYTES)

    def held(self, positions: tuple[int, ...], facts: HostFacts) -> tuple[int, ...]:
        """Leave out the positions of entries of which the session does not name
        the host.
        """
        if facts.session is None or self._of_variables.isdisjoint(positions):
            return positions
        return tuple(
            position
            for position in positions
            if position not in self._of_variables
            or _holds_host(self._entries[position].match, facts, facts.session)
        )

    def are_bound(self, positions: tuple[int, ...]) -> bool:
        """Whether one of the entries depends on the session."""
        return not self._of_variables.isdisjoint(positions)

    def holding(self, positions: tuple[int, ...], facts: HostFacts) -> Iterator[EntryT]:
        """Return the entries at these positions whose fields hold without the URL, with
        the values of the session.
        """
        if facts.session is None or not self.are_bound(positions):
            return (
                self._entries[position]
                for position in positions
                if holds_for_host(self._entries[position], facts)
            )
        return (
            self.at(position, facts.session)
            for position in positions
            if holds_for_host(self._entries[position], facts)
        )

    def each(self, positions: Iterable[int], facts: HostFacts) -> Iterator[EntryT]:
        """Return the entries at these positions, whether their fields hold or not."""
        session = facts.session
        for position in positions:
            entry = self._entries[position]
            yield entry if session is None else bound_for(entry, session)

    def at(self, position: int, session: Session) -> EntryT:
        """Return an entry with the values of a session."""
        entry = self._entries[position]
        if position not in self._of_variables:
            return entry
        key = (position, session.stamp)
        bound = self._bound.get(key)
        if bound is None:
            bound = with_session(entry, session)
            texts = len(bound.match.paths or ()) + len(bound.match.hosts or ())
            self._bound.add(key, bound, _ENTRY_BYTES + 500 * texts)
        return bound


def bound_for(entry: EntryT, session: Session) -> EntryT:
    """Put the values of a session into an entry, where it names variables of the
    session's role.
    """
    if not entry.variables or session.role not in (entry.match.clients or ()):
        return entry
    return with_session(entry, session)


def with_session(entry: EntryT, session: Session) -> EntryT:
    """Put the values of a session into an entry.

    The entry is as one that the policy has in full: what follows sees plain patterns.
    """
    bound = replace(entry, match=_match(entry.match, session))
    if isinstance(bound, Rule) and isinstance(bound.body, GitBody):
        push = (
            ref for glob in bound.body.push for ref in with_values(glob, session.values)
        )
        return replace(bound, body=replace(bound.body, push=tuple(push)))
    return bound


def _match(match: Match, session: Session) -> Match:
    paths = match.paths and tuple(
        bound
        for pattern in match.paths
        for bound in (
            pattern.with_values(session.values) if pattern.variables else (pattern,)
        )
    )
    hosts = match.hosts and tuple(dict.fromkeys(_hosts(match.hosts, session)))
    return replace(match, hosts=hosts, paths=paths)


def _holds_host(match: Match, facts: HostFacts, session: Session) -> bool:
    """Whether the hosts of an entry hold for a host of its widest ones."""
    patterns = match.hosts or ()
    if all(pattern.variable is None for pattern in patterns):
        return True
    return any(
        pattern.matches(facts.host)
        if pattern.variable is None
        else session.holds_host(pattern.variable, facts.host)
        for pattern in patterns
    )


def _hosts(
    patterns: tuple[HostPattern, ...], session: Session
) -> Iterator[HostPattern]:
    for pattern in patterns:
        if pattern.variable is None:
            yield pattern
        else:
            for name in session.values[pattern.variable]:
                yield HostPattern(name, HostForm.EXACT, name)
