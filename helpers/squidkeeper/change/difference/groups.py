"""Cells that differ alike, joined for people to read."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

from squidkeeper.change.difference import descriptions
from squidkeeper.change.difference.comparison import Cell, CellDifference, Comparison
from squidkeeper.change.difference.consequences import Asked, Change, Consequence
from squidkeeper.change.difference.descriptions import host_texts
from squidkeeper.change.difference.url_comparison import Doubt


@dataclass(frozen=True, slots=True)
class Scope:
    """Which requests: every combination of these. An empty tuple stands for all."""

    clients: tuple[str, ...]
    methods: tuple[str, ...]
    ports: tuple[str, ...]
    hosts: tuple[str, ...]
    paths: tuple[str, ...]
    queries: tuple[str, ...]
    times: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestDifference:
    """Requests that differ in one way, by the same two rules; `example` is one, and
    `before` and `after` are of it.

    Without an example it is not proven that they differ, nor that they do not, for the
    reason of `doubt`.
    """

    change: Change
    before: Consequence
    after: Consequence
    scopes: tuple[Scope, ...]
    example: Asked | None
    doubt: Doubt | None


@dataclass(frozen=True, slots=True)
class _Box:
    """Cells of one difference, as the product of what their fields hold."""

    moments: frozenset[Hashable]
    clients: frozenset[Hashable]
    ports: frozenset[Hashable]
    methods: frozenset[Hashable]
    hosts: frozenset[Hashable]
    paths: frozenset[Hashable]
    queries: frozenset[Hashable]


def groups(comparison: Comparison) -> list[RequestDifference]:
    """Join the cells of a comparison by what is different and by the rules that decide
    before and after.
    """
    found: dict[Hashable, list[CellDifference]] = {}
    for difference in comparison.found:
        found.setdefault(_key(difference), []).append(difference)
    order = list(Change)
    joined = [_group(comparison, cells) for cells in found.values()]
    return sorted(
        joined,
        key=lambda differing: (
            differing.doubt is not None,
            order.index(differing.change),
        ),
    )


def _key(difference: CellDifference) -> Hashable:
    sides = (
        (side.rule, side.location) for side in (difference.before, difference.after)
    )
    return difference.change, *sides, _detail(difference), difference.doubt


def _detail(difference: CellDifference) -> Hashable:
    """Return what else has to be the same: which credentials are gained, but not which
    URL each is rewritten to.
    """
    if difference.change in (Change.OPENED, Change.CLOSED, Change.REWRITE):
        return None
    return tuple(
        value_of(difference.change, side)
        for side in (difference.before, difference.after)
    )


def value_of(change: Change, consequence: Consequence) -> object:
    """Return what a change is about, of one side."""
    if change is Change.USES:
        return consequence.counts, consequence.spent and consequence.spent.rule
    return getattr(consequence, change, None)


def _group(comparison: Comparison, cells: list[CellDifference]) -> RequestDifference:
    first = min(cells, key=_unlikeliness)
    scopes = _scopes(comparison, cells)
    return RequestDifference(
        first.change,
        first.before,
        first.after,
        tuple(scopes),
        first.example,
        first.doubt,
    )


def _unlikeliness(difference: CellDifference) -> tuple[bool, ...]:
    asked = difference.example
    return (
        asked is None,
        asked is None or asked.method != "GET",
        asked is None or asked.target.startswith("http:"),
    )


def _scopes(comparison: Comparison, cells: list[CellDifference]) -> list[Scope]:
    boxes: list[_Box] = []
    for universe, some in _by_urls(cells).items():
        joined = _joined(
            [_box(cell) for cell in some],
            ("moments", "methods", "ports", "paths", "queries"),
        )
        boxes += [_described(box, universe) for box in joined]
    boxes = _joined(boxes, ("clients", "ports", "methods", "hosts", "moments"))
    return [_scope(comparison, box) for box in boxes]


def _by_urls(
    cells: Iterable[CellDifference],
) -> dict[tuple[frozenset[Hashable], ...], list[Cell]]:
    found: dict[tuple[frozenset[Hashable], ...], list[Cell]] = {}
    for one in cells:
        known = (
            (frozenset(one.cells.paths), frozenset(one.cells.queries))
            if one.cells
            else (frozenset(), frozenset())
        )
        found.setdefault(known, []).append(one.cell)
    return found


def _box(cell: Cell) -> _Box:
    path: Hashable = cell.matched if cell.exact is None else cell.exact
    part = (frozenset({cell.hosts}), frozenset({path}), frozenset({cell.held}))
    return _Box(cell.moments, cell.clients, cell.ports, cell.methods, *part)


def _described(box: _Box, universe: tuple[frozenset[Hashable], ...]) -> _Box:
    """Write paths and queries, so that hosts with other patterns can be joined where
    these are the same.
    """
    paths, queries = (
        descriptions.path_texts(box.paths, universe[0]),
        descriptions.query_texts(box.queries, universe[1]),
    )
    return replace(box, paths=frozenset({paths}), queries=frozenset({queries}))


def _joined(boxes: list[_Box], fields: Iterable[str]) -> list[_Box]:
    for name in fields:
        found: dict[_Box, list[_Box]] = {}
        for box in boxes:
            without: dict[str, frozenset[Hashable]] = {name: frozenset()}
            found.setdefault(replace(box, **without), []).append(box)
        boxes = [_union(box, some, name) for box, some in found.items()]
    return boxes


def _union(box: _Box, some: Iterable[_Box], name: str) -> _Box:
    values: dict[str, frozenset[Hashable]] = {
        name: frozenset().union(*(getattr(cell, name) for cell in some))
    }
    return replace(box, **values)


def _scope(comparison: Comparison, box: _Box) -> Scope:
    (paths,), (queries,), parts = box.paths, box.queries, comparison.parts
    return Scope(
        clients=descriptions.client_texts(box.clients, parts.clients),
        methods=descriptions.method_texts(box.methods, parts.methods),
        ports=descriptions.port_texts(box.ports, parts.ports),
        hosts=host_texts(box.hosts, parts.hosts),
        paths=paths,  # type: ignore[arg-type] # as _described wrote it
        queries=queries,  # type: ignore[arg-type]
        times=descriptions.time_texts(box.moments, parts.moments, comparison.holding),
    )
