"""The difference of meaning between two policies.

All requests are cut into cells, in each of which both policies do one thing. Two that
are the same in every cell are the same for every request. A cell that differs gets an
example, which the engine confirms; without one it is unproven.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import product
from typing import NamedTuple

from squidkeeper.change.difference.consequences import (
    Asked,
    Change,
    Consequence,
    changes,
    judge,
)
from squidkeeper.change.difference.dimensions import (
    ClientKind,
    Entries,
    Ports,
    alike,
    client_key,
    client_kinds,
    method_key,
    methods,
    ports,
    ports_key,
)
from squidkeeper.change.difference.hosts import (
    HostClass,
    TooManyHostsError,
    host_classes,
)
from squidkeeper.change.difference.languages import Held, Matched, UrlCells
from squidkeeper.change.difference.sides import Side, side_of
from squidkeeper.change.difference.url_comparison import (
    Doubt,
    UrlComparison,
    UrlDifference,
    sample_paths,
)
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.timetable import times_of_each
from squidkeeper.policy.language.exact_urls import ExactUrl
from squidkeeper.policy.language.model import AnyEntry, Rule
from squidkeeper.policy.protocol.request import CONNECT, Request
from squidkeeper.policy.url import format_authority

_CELLS_AT_MOST = 300_000

Policies = tuple[CompiledPolicy, CompiledPolicy]


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests of which neither policy tells two apart.

    Each field has all values that are in the cell.

    `matched` are the patterns of paths that hold, `held` those of queries. `exact` is a
    URL that a grant names.
    """

    moments: frozenset[int]
    clients: frozenset[ClientKind]
    ports: frozenset[Ports]
    methods: frozenset[str]
    hosts: HostClass
    matched: Matched = frozenset()
    held: Held = frozenset()
    exact: ExactUrl | None = None


@dataclass(frozen=True, slots=True)
class CellDifference:
    """A cell for which the policies differ: how, and a request that shows it.

    Without one it is unproven for the reason of `doubt`, or where that is None may be
    empty: a cell beside it has one.
    """

    cell: Cell
    change: Change
    before: Consequence
    after: Consequence
    example: Asked | None
    doubt: Doubt | None = None
    cells: UrlCells | None = None  # all that the host's entries tell apart


@dataclass(frozen=True, slots=True)
class Parts:
    """What the requests of two policies are cut into: the finest parts that the
    policies could tell apart.

    `moments` are the times as of which they are compared.
    """

    moments: tuple[datetime, ...]
    hosts: tuple[HostClass, ...] = ()
    clients: tuple[ClientKind, ...] = ()
    ports: tuple[Ports, ...] = ()
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells that differ or are unproven.

    `holding` names, for each moment, the entries with a schedule or an end that hold;
    it is empty where none has a schedule, as each of the moments then lasts until the
    next. `limit` is what was not compared.
    """

    parts: Parts
    found: tuple[CellDifference, ...] = ()
    holding: tuple[frozenset[str], ...] = ()
    limit: str | None = None
    checked: int = 0

    @property
    def same(self) -> bool:
        """Whether every request is known to be decided in the same way."""
        return not self.found and self.limit is None


def compare(policies: Policies, at: datetime) -> Comparison:
    """Compare two policies, as of a time, and of a later time for each combination of
    entries that hold together.
    """
    moments = tuple(times_of_each([policy.timetable for policy in policies], at))
    try:
        hosts = tuple(host_classes(policies))
    except TooManyHostsError:
        return Comparison(Parts(moments), limit="the lists hold too many hosts")
    everyone, every_port, every_method = (
        client_kinds(policies),
        ports(policies),
        methods(policies),
    )
    run = _Run(
        policies,
        Parts(moments, hosts, tuple(everyone), tuple(every_port), tuple(every_method)),
    )
    limit = run.compare()
    return Comparison(
        run.parts, tuple(run.found), _holding(policies, moments), limit, run.checked
    )


def _holding(
    policies: Policies, moments: Iterable[datetime]
) -> tuple[frozenset[str], ...]:
    """Name the entries that hold at each moment; one that holds in one policy alone is
    named with that.
    """
    timed = [
        {rule.name: rule for rule in _timed(policy.source.rules_and_grants)}
        for policy in policies
    ]
    if not any(rule.when for rules in timed for rule in rules.values()):
        return ()
    found = []
    for at in moments:
        before, after = (
            {name for name, rule in rules.items() if rule.in_force(at)}
            for rules in timed
        )
        alone = (
            *(f"{name} (before)" for name in before - after),
            *(f"{name} (after)" for name in after - before),
        )
        found.append(frozenset([*(before & after), *alone]))
    return tuple(found)


def _timed(rules: Iterable[Rule]) -> Iterator[Rule]:
    return (rule for rule in rules if rule.expires is not None or rule.when is not None)


class _Example(NamedTuple):
    """A request of a cell, without its URL, and its time: both policies do the same
    with all others of the cell.
    """

    request: Request
    at: datetime

    def asked(self, target: str) -> Asked:
        """Ask for a URL, or a tunnel, as this request does."""
        client = self.request.client and self.request.client.text
        return Asked(self.request.method, target, client, self.request.user, self.at)


@dataclass(slots=True)
class _Run:
    """Goes through all cells.

    A cell is for hosts first, then for times, clients, ports, methods and URLs.
    """

    policies: Policies
    parts: Parts
    found: list[CellDifference] = field(default_factory=list)
    checked: int = 0
    urls: UrlComparison = field(init=False)

    def __post_init__(self) -> None:
        """Take the paths of both policies' tests as samples."""
        tests = (test for policy in self.policies for test in policy.source.tests)
        self.urls = UrlComparison(tuple(sample_paths(tests)))

    def compare(self) -> str | None:
        """Compare all cells; tell what was left out, where there are too many."""
        hosts = self.parts.hosts
        for number, host in enumerate(hosts):
            if self.checked > _CELLS_AT_MOST:
                return f"{len(hosts) - number} of {len(hosts)} kinds of hosts, from {host.example.text} on"
            self._compare_host(host)
        return None

    def _compare_host(self, host: HostClass) -> None:
        entries = [self._entries(side, host) for side in (0, 1)]
        every_method = alike(self.parts.methods, partial(method_key, entries=entries))
        for cell, example in self._cells(host, entries):
            inside: list[CellDifference] = []
            for some in every_method:
                here = replace(cell, methods=frozenset(some))
                inside += self._differences(
                    here,
                    example._replace(request=example.request._replace(method=some[0])),
                )
            self.found += inside
            if example.request.scheme == "https":
                self.found += self._of_tunnels(cell, example, inside)

    def _cells(
        self, host: HostClass, entries: Entries
    ) -> Iterator[tuple[Cell, _Example]]:
        quotas = [policy.source.quotas for policy in self.policies]
        spans = alike(self.parts.ports, partial(ports_key, entries=entries))
        for moments in self._moments_of(entries):
            at = self.parts.moments[min(moments)]
            kinds = alike(
                self.parts.clients,
                partial(client_key, entries=entries, quotas=quotas, at=at),
            )
            for kind, span in product(kinds, spans):
                client, ports = kind[0], span[0]
                request = Request(
                    CONNECT,
                    client.host,
                    client.user,
                    ports.scheme,
                    ports.example,
                    host.example,
                    login=client.login,
                )
                yield (
                    Cell(
                        moments,
                        frozenset(kind),
                        frozenset(span),
                        frozenset({CONNECT}),
                        host,
                    ),
                    _Example(request, at),
                )

    def _entries(self, side: int, host: HostClass) -> list[AnyEntry]:
        source, (rules, grants, _, credentials, upstreams) = (
            self.policies[side].source,
            host.positions[side],
        )
        kept = [
            *(source.rules[at] for at in rules),
            *(source.grants[at] for at in grants),
        ]
        if any(rewrites for _, _, rewrites, _, _ in host.positions):
            return [*kept, *source.rewrites, *source.credentials, *source.upstreams]
        return [
            *kept,
            *(source.credentials[at] for at in credentials),
            *(source.upstreams[at] for at in upstreams),
        ]

    def _moments_of(self, entries: Entries) -> Iterator[frozenset[int]]:
        timed = list(
            _timed(
                entry for side in entries for entry in side if isinstance(entry, Rule)
            )
        )
        clients = [
            client for policy in self.policies for client in policy.source.clients
        ]
        tokens = [token for client in clients for token in client.tokens or ()]
        found: dict[Hashable, list[int]] = {}
        for number, at in enumerate(self.parts.moments):
            state = (
                *(rule.in_force(at) for rule in timed),
                *(token.lapsed(at) for token in tokens),
            )
            found.setdefault(state, []).append(number)
        return (frozenset(numbers) for numbers in found.values())

    def _differences(self, cell: Cell, example: _Example) -> Iterator[CellDifference]:
        old, new = (
            side_of(policy, example.request, example.at) for policy in self.policies
        )
        self.checked += 1
        yield from self._of_urls(cell, example, self.urls.differences(old, new))
        yield from self._of_exact_urls(cell, example, (old, new))

    def _of_urls(
        self, cell: Cell, example: _Example, some: Sequence[UrlDifference]
    ) -> Iterator[CellDifference]:
        """Return what differs in some cells of URLs, with examples that the engine
        confirms.

        A cell without one that is predicted to differ in the same way, by the same
        rules, as a cell with one is no doubt of its own: it may be empty.
        """
        found = [
            (differing, self._shown(cell, example, differing)) for differing in some
        ]
        proven = {
            (change, one.before.rule, one.after.rule)
            for one, shown in found
            for change in shown
        }
        for difference, shown in found:
            yield from shown.values()
            for change in difference.changes:
                if change not in shown:
                    is_proven = (
                        change,
                        difference.before.rule,
                        difference.after.rule,
                    ) in proven
                    doubt = (
                        None
                        if is_proven
                        and difference.doubt in (Doubt.EXPRESSION, Doubt.PATHS)
                        else difference.doubt
                    )
                    here = replace(
                        cell, matched=difference.matched, held=difference.held
                    )
                    yield CellDifference(
                        here,
                        change,
                        difference.before,
                        difference.after,
                        None,
                        doubt,
                        difference.cells,
                    )

    def _shown(
        self, cell: Cell, example: _Example, difference: UrlDifference
    ) -> dict[Change, CellDifference]:
        here = replace(cell, matched=difference.matched, held=difference.held)
        shown: dict[Change, CellDifference] = {}
        for url in difference.urls(example.request):
            asked = example.asked(url)
            before, after = (judge(policy, asked) for policy in self.policies)
            changed = changes(before, after)
            # One request does not tell what becomes of another that is for the target
            # already.
            before = replace(before, otherwise=difference.before.otherwise)
            after = replace(after, otherwise=difference.after.otherwise)
            for change in changed:
                shown.setdefault(
                    change,
                    CellDifference(
                        here, change, before, after, asked, cells=difference.cells
                    ),
                )
            if shown.keys() >= set(difference.changes):
                break
        return shown

    def _of_exact_urls(
        self, cell: Cell, example: _Example, sides: Sequence[Side]
    ) -> Iterator[CellDifference]:
        grants = {
            grant.name: grant
            for side in sides
            for grant in side.grants
            if grant.match.urls is not None
        }
        exact = dict.fromkeys(
            one for grant in grants.values() for one in grant.match.urls or ()
        )
        for url in exact:
            if not any(span.holds(url.url.scheme, url.url.port) for span in cell.ports):
                continue
            asked = example.asked(str(url.url))
            before, after = (judge(policy, asked) for policy in self.policies)
            if grants.keys() & (before.rules | after.rules):
                here = replace(cell, exact=url)
                yield from (
                    CellDifference(here, change, before, after, asked)
                    for change in changes(before, after)
                )

    def _of_tunnels(
        self, cell: Cell, example: _Example, inside: Iterable[CellDifference]
    ) -> Iterator[CellDifference]:
        """Compare whether a tunnel opens, and passes through; not where a request
        inside shows the same.
        """
        asked = example.asked(
            format_authority(example.request.host, example.request.port)
        )
        before, after = (judge(policy, asked) for policy in self.policies)
        # of requests, or of tunnels
        shown = {one.change for one in inside if one.doubt is None} - {Change.QUOTAS}
        for change in changes(before, after):
            if change not in shown:
                yield CellDifference(cell, change, before, after, asked)
