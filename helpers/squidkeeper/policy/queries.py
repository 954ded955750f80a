"""Query patterns (floor 2): the names and values of a form-encoded query."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_plus

from squidkeeper.policy.globs import ANYTHING, Matcher, glob_matcher

_PART = re.compile(r"\*+|[^*]+")


@dataclass(frozen=True, slots=True)
class QueryPattern:
    """One key of a query and the pattern of its values; `*` is any text."""

    key: str
    pattern: str

    def matches_all(self, values: QueryValues) -> bool:
        """Tell whether the key is there and all its values match: what an allow asks."""
        return values.hold(self, all)

    def matches_one(self, values: QueryValues) -> bool:
        """Tell whether the key is there and one of its values matches: what a deny asks."""
        return values.hold(self, any)


class QueryValues(dict[str, tuple[str, ...]]):
    """The values of each name, each of them once.

    What a pattern makes of them is worked out once: every reading of a path comes with the same query.
    """

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(values)
        self._known: dict[tuple[QueryPattern, Callable[..., bool]], bool] = {}

    def hold(self, pattern: QueryPattern, how_many: Callable[[Iterable[bool]], bool]) -> bool:
        """Tell whether a pattern's key is there and `all` or `any` of its values match."""
        key = (pattern, how_many)
        known = self._known.get(key)
        if known is None:
            texts = self.get(pattern.key)
            known = self._known[key] = texts is not None and how_many(map(_matcher(pattern.pattern), texts))
        return known


@lru_cache(maxsize=1)  # the readings of one path, and the entries asked about each, share one query
def parse_query(query: str | None) -> QueryValues:
    """Decode the names and values of a form-encoded query; `+` is a space, a name without `=` has the value ''.

    Some servers also part pairs at `;`: what only they would read is among the values too, so that it can neither hide
    from a deny nor ride along with an allow.
    """
    values: dict[str, dict[str, None]] = {}
    pairs = (query or "").split("&")
    if query and ";" in query:
        pairs += re.split("[&;]", query)
    for pair in pairs:
        name, _, value = pair.partition("=")
        if pair:
            values.setdefault(_decode(name), {})[_decode(value)] = None
    return QueryValues({name: tuple(texts) for name, texts in values.items()})


def _decode(text: str) -> str:
    return unquote_plus(text, errors="replace")


@lru_cache(maxsize=1 << 16)
def _matcher(pattern: str) -> Matcher:
    parts = tuple("*" if part.startswith("*") else part for part in _PART.findall(pattern))
    return glob_matcher(parts, {"*": ANYTHING})
