"""The URLs of one client, method and host that two policies treat differently."""

from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.difference.consequences import Change, Consequence, changes
from squidkeeper.change.difference.languages import (
    Held,
    Matched,
    TooManyStatesError,
    UrlCells,
    url_cells,
)
from squidkeeper.change.difference.sides import Side, consequence_in
from squidkeeper.policy.language.model import Match, PolicyTest, is_deny
from squidkeeper.policy.protocol.request import Request
from squidkeeper.policy.url import DEFAULT_PORTS, format_authority, parse_url

Keys = tuple[Hashable, ...]
_UNNAMED = "any-other"  # a key that no policy names


class Doubt(StrEnum):
    """Why it is not decided whether requests differ."""

    EXPRESSION = "expression"  # no request is known that an expression tells apart
    PATHS = "paths"  # no path of one reading is known that the policies tell apart
    # paths with several readings could be ambiguous for one policy alone
    READINGS = "readings"
    TARGET = "target"  # what a rewrite leads to
    LIMIT = "limit"  # more is to be compared than is compared


@dataclass(frozen=True, slots=True)
class UrlDifference:
    """A cell of URLs for which two sides differ; `doubt` is why, where no request shows
    it.
    """

    matched: Matched
    held: Held
    changes: tuple[Change, ...]
    before: Consequence
    after: Consequence
    doubt: Doubt
    cells: UrlCells | None

    def urls(self, request: Request) -> Iterator[str]:
        """Return URLs of the cell, of the host of a request."""
        if self.cells is None:
            return
        port = (
            "" if request.port == DEFAULT_PORTS[request.scheme] else f":{request.port}"
        )
        authority = (
            format_authority(request.host, request.port).rpartition(":")[0] + port
        )
        query = self.cells.queries[self.held]
        for path in self.cells.paths[self.matched]:
            url = f"{request.scheme}://{authority}{path}"
            yield url + (f"?{query}" if query else "")
            # where a grant is for the other one
            yield url + (f"?{query}&{_UNNAMED}" if query else f"?{_UNNAMED}")


@dataclass(slots=True)
class UrlComparison:
    """Compares what two policies do with the URLs of a cell, once for all cells that
    the same entries are for.

    `samples` are paths to try for expressions.
    """

    samples: tuple[str, ...]
    _known: dict[Hashable, list[UrlDifference]] = field(default_factory=dict)
    _cells: dict[Hashable, UrlCells | None] = field(default_factory=dict)

    def differences(self, old: Side, new: Side) -> list[UrlDifference]:
        """List the cells of URLs for which two sides differ."""
        key = (old.key, new.key)
        known = self._known.get(key)
        if known is None:
            cells = self._cells_of(old, new)
            known = self._known[key] = (
                [_too_many(old, new)]
                if cells is None
                else list(_differences(old, new, cells))
            )
        return known

    def _cells_of(self, old: Side, new: Side) -> UrlCells | None:
        entries = [*old.entries, *new.entries]
        key = frozenset((is_deny(entry), _texts(entry.match)) for entry in entries)
        if key not in self._cells:
            try:
                self._cells[key] = url_cells(entries, self.samples)
            except TooManyStatesError:
                self._cells[key] = None
        return self._cells[key]


def sample_paths(tests: Iterable[PolicyTest]) -> Iterator[str]:
    """Return the paths of a policy's tests; a test may be of a URL that is none."""
    for test in tests:
        with suppress(InvalidUrl):
            yield parse_url(test.url).path


def _too_many(old: Side, new: Side) -> UrlDifference:
    before, after = (
        consequence_in(side, frozenset(), frozenset())[0] for side in (old, new)
    )
    return UrlDifference(
        frozenset(), frozenset(), (Change.OPENED,), before, after, Doubt.LIMIT, None
    )


def _differences(old: Side, new: Side, cells: UrlCells) -> Iterator[UrlDifference]:
    for held in cells.queries:
        allowed: set[tuple[Keys, Keys]] = set()
        unchanged: set[tuple[Keys, Keys]] = set()
        redirects_denied = False
        for matched in cells.paths:
            (before, old_keys), (after, new_keys) = (
                consequence_in(side, matched, held) for side in (old, new)
            )
            if before.allowed and after.allowed:
                allowed.add((old_keys, new_keys))
            changed = _own_changes(before, after)
            if changed:
                yield UrlDifference(
                    matched, held, changed, before, after, _doubt(cells, matched), cells
                )
            else:
                unchanged.add((old_keys, new_keys))
            redirects_denied |= _redirects_denied(before, after)
        if (
            redirects_denied
            or _opens_ambiguous(allowed)
            or not _are_ambiguous_alike(unchanged)
        ):
            yield UrlDifference(
                matched, held, (Change.CLOSED,), before, after, Doubt.READINGS, cells
            )


def _own_changes(before: Consequence, after: Consequence) -> tuple[Change, ...]:
    """List the changes, less that of credentials where the target changes: they are
    those for the target.
    """
    found = changes(before, after)
    return tuple(
        change
        for change in found
        if change is not Change.CREDENTIALS or Change.REWRITE not in found
    )


def _doubt(cells: UrlCells, matched: Matched) -> Doubt:
    if any(text.startswith("regex:") for cell in cells.paths for text in cell):
        return Doubt.EXPRESSION
    return Doubt.TARGET if cells.paths[matched] else Doubt.PATHS


def _opens_ambiguous(allowed: set[tuple[Keys, Keys]]) -> bool:
    """Whether the new policy may allow a path that the old one denies as ambiguous, of
    cells that both allow.

    It does where cells with one key for the new policy have several for the old one,
    while as many grants are spent.
    """
    for spent in range(
        max((len(keys) for pair in allowed for keys in pair), default=0)
    ):
        now = {
            (old[min(spent, len(old) - 1)], new[min(spent, len(new) - 1)])
            for old, new in allowed
        }
        kept = {(old, new) for old, new in now if not isinstance(new, bool)}
        if len(kept) > len({new for _, new in kept}):
            return True
    return False


def _redirects_denied(before: Consequence, after: Consequence) -> bool:
    """Whether the new policy may redirect a path that a rewrite of the old one denies,
    of a cell that both allow.
    """
    return after.redirects and before.denies not in ("", after.denies)


def _are_ambiguous_alike(keys: set[tuple[Keys, Keys]]) -> bool:
    """Whether both policies deny the same paths as ambiguous, as readings with other
    keys are.

    They do where two cells have one key for the old policy exactly if they have one for
    the new.
    """
    return len(keys) == len({old for old, _ in keys}) == len({new for _, new in keys})


def _texts(match: Match) -> Hashable:
    return tuple(pattern.text for pattern in match.paths or ()), match.query
