"""The paths and queries that patterns tell apart: cells, in each of which the same patterns hold."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import re2

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.difference.languages import Matched, TooManyStatesError, texts_of
from squidkeeper.policy.engine.fields import Entry, is_deny
from squidkeeper.policy.language.globs import compile_regex
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.language.paths import OVER_SEGMENTS, PathPattern
from squidkeeper.policy.url import Reading, ReadPath, normalize_escapes

_REGEXES_AT_MOST = 6  # they are true and false in every combination
_CELLS_AT_MOST = 5_000
_SAMPLE_LENGTH = 200
_PLAIN = re.compile(r"[A-Za-z0-9._~!&'()*+,=:@/-]")
_ANYTHING = re.compile(r"(?<!\\)(?:\.|\[\^/\])[*+]")
_QUERY_PART = re.compile(r"\*+|[^*]+")


class QueryAtom(NamedTuple):
    """A key of a query with its pattern: one of the values has to match, as in a deny, or all of them."""

    key: str
    pattern: str
    one: bool


Held = frozenset[QueryAtom]


@dataclass(frozen=True, slots=True)
class UrlCells:
    """The cells of some entries: each set of path patterns that hold together, with paths; the same of the query.

    A cell that only paths with several readings reach, or that an expression makes, may be without a path.
    """

    paths: Mapping[Matched, tuple[str, ...]]
    queries: Mapping[Held, str | None]


def url_cells(entries: Iterable[Entry], samples: Iterable[str] = ()) -> UrlCells:
    """Find the cells of the paths and queries of some entries; `samples` are paths to try for expressions.

    Raises `TooManyStatesError`.
    """
    kept = list(entries)
    patterns = {one.text: one for entry in kept for one in entry.match.paths or () if not entry.match.any_path}
    atoms = {QueryAtom(one.key, one.pattern, is_deny(entry)) for entry in kept for one in entry.match.query or ()}
    cells = UrlCells(_path_cells(list(patterns.values()), samples), _query_cells(atoms))
    if len(cells.paths) * len(cells.queries) > _CELLS_AT_MOST:
        raise TooManyStatesError
    return cells


def path_holds(match: Match, matched: Matched) -> bool:
    """Tell whether `paths` hold in a cell."""
    return match.any_path or any(pattern.text in matched for pattern in match.paths or ())


def query_holds(match: Match, held: Held, *, one: bool) -> bool:
    """Tell whether `query` holds in a cell: for a deny with `one` value, else with all."""
    return all(QueryAtom(pattern.key, pattern.pattern, one) in held for pattern in match.query or ())


# --- paths --------------------------------------------------------------------------------------------------------


def _path_cells(patterns: Sequence[PathPattern], samples: Iterable[str]) -> dict[Matched, tuple[str, ...]]:
    globs = [pattern for pattern in patterns if pattern.is_glob]
    regexes = [pattern for pattern in patterns if not pattern.is_glob]
    if len(regexes) > _REGEXES_AT_MOST:
        raise TooManyStatesError
    cells, texts = _glob_cells(globs)
    if regexes:
        texts += [*samples, *(text for pattern in regexes for text in _samples_of(pattern))]
        chosen = [frozenset(texts_) for texts_ in _subsets([pattern.text for pattern in regexes])]
        cells = {cell | regex for cell in cells for regex in chosen}
    if len(cells) > _CELLS_AT_MOST:
        raise TooManyStatesError
    return _with_paths(cells, patterns, texts)


def _glob_cells(globs: Sequence[PathPattern]) -> tuple[set[Matched], list[str]]:
    """Find the sets of globs that hold together in any reading, and paths for them.

    A glob is read as the path is, so the globs of each reading are looked through; most are the same in all.
    """
    cells: set[Matched] = set()
    texts: list[str] = []
    seen: set[tuple[tuple[str, ...], ...]] = set()
    for reading in Reading:
        read = tuple(glob.parts(reading) for glob in globs)
        if read in seen:
            continue
        seen.add(read)
        by_name = {glob.text: parts for glob, parts in zip(globs, read, strict=True)}
        usual, found = texts_of(by_name, "/", _is_usual), texts_of(by_name, "/")
        cells |= found.keys()
        texts += [*map(_as_sent, usual.values()), *map(_as_sent, found.values())]
    return cells, texts


def _with_paths(
    cells: Iterable[Matched], patterns: Sequence[PathPattern], texts: Iterable[str]
) -> dict[Matched, tuple[str, ...]]:
    found: dict[Matched, list[str]] = {cell: [] for cell in sorted(cells, key=sorted)}
    for text in dict.fromkeys(texts):
        path = ReadPath(Reading.SENT, text)
        matched = frozenset(pattern.text for pattern in patterns if pattern.match(path) is not None)
        if matched in found:
            found[matched].append(text)
    return {cell: tuple(paths) for cell, paths in found.items()}


def _is_usual(text: str, character: str) -> bool:
    last = text[-1:]
    if not character:
        return last != "."
    if character == "/":
        return last not in ("/", ".")
    return _PLAIN.match(character) is not None and not (character == "." and last == "/")


def _as_sent(text: str) -> str:
    try:
        return normalize_escapes(text)
    except InvalidUrl:
        return quote(text)


def _samples_of(pattern: PathPattern) -> Iterator[str]:
    """Give the least text that an expression may match, where RE2 finds one; also with a letter for anything."""
    expression = pattern.text.removeprefix("regex:")
    for text in dict.fromkeys((expression, _ANYTHING.sub("x", expression))):
        with suppress(re2.error, UnicodeDecodeError):
            least, _ = compile_regex(f"^(?:{text})$").possiblematchrange(_SAMPLE_LENGTH)
            yield least.decode()


def _subsets(names: Sequence[str]) -> Iterator[list[str]]:
    for chosen in product((False, True), repeat=len(names)):
        yield [name for name, is_in in zip(names, chosen, strict=True) if is_in]


# --- queries ------------------------------------------------------------------------------------------------------


def _query_cells(atoms: set[QueryAtom]) -> dict[Held, str | None]:
    by_key: dict[str, set[str]] = {}
    for atom in atoms:
        by_key.setdefault(atom.key, set()).add(atom.pattern)
    cells: dict[Held, str | None] = {frozenset(): None}
    for key, patterns in sorted(by_key.items()):
        of_key = _key_cells(key, sorted(patterns), atoms)
        cells = {
            held | more: "&".join(filter(None, (query, text))) or None
            for (held, query), (more, text) in product(cells.items(), of_key.items())
        }
        if len(cells) > _CELLS_AT_MOST:
            raise TooManyStatesError
    return cells


def _key_cells(key: str, patterns: Sequence[str], atoms: set[QueryAtom]) -> dict[Held, str | None]:
    """Find what can hold of the patterns of one key: for no value, one value, or several that match differently."""
    alone = texts_of({pattern: _parts(pattern) for pattern in patterns})
    found = {(matched, matched): [value] for matched, value in alone.items()}
    waiting = list(found)
    while waiting:
        of_all, of_one = waiting.pop()
        for matched, value in alone.items():
            more = (of_all & matched, of_one | matched)
            if more not in found:
                found[more] = [*found[of_all, of_one], value]
                waiting.append(more)
                if len(found) > _CELLS_AT_MOST:
                    raise TooManyStatesError
    cells: dict[Held, str | None] = {frozenset(): None}
    for (of_all, of_one), values in found.items():
        holding = {QueryAtom(key, pattern, one=False) for pattern in of_all}
        held = atoms & (holding | {QueryAtom(key, pattern, one=True) for pattern in of_one})
        text = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for value in values)
        cells.setdefault(frozenset(held), text)
    return cells


def _parts(pattern: str) -> tuple[str, ...]:
    return tuple(OVER_SEGMENTS if part.startswith("*") else part for part in _QUERY_PART.findall(pattern))
