"""Which patterns match a text together, and the cells of URLs that they tell apart.

One automaton reads all globs.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import re2

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.language.globs import compile_regex
from squidkeeper.policy.language.model import Entry, Match, is_deny
from squidkeeper.policy.language.paths import (
    FOLDERS,
    IN_SEGMENT,
    OVER_SEGMENTS,
    PathPattern,
)
from squidkeeper.policy.url import Reading, ReadPath, normalize_escapes

Matched = frozenset[str]  # the globs that match a text
# whether a character may come after the text before it
May = Callable[[str, str], bool]

_STATES_AT_MOST = 20_000
# for a character that no glob names there
_ANY_OTHER = "x" + ascii_lowercase + digits + ascii_uppercase + "_-~"
_UNUSUAL = (chr(code) for code in range(0x100, 0x180))
_OTHERS = _ANY_OTHER + "".join(_UNUSUAL)
_REGEXES_AT_MOST = 6  # they are true and false in every combination
_CELLS_AT_MOST = 5_000
_SAMPLE_LENGTH = 200
_PLAIN = re.compile(r"[A-Za-z0-9._~!&'()*+,=:@/-]")
_ANYTHING = re.compile(r"(?<!\\)(?:\.|\[\^/\])[*+]")
_QUERY_PART = re.compile(r"\*+|[^*]+")


class TooManyStatesError(Exception):
    """The globs have more combinations than are looked through."""


class Automaton:
    """Reads a text for some globs.

    A state is the set of the places in them that the text may have led to.
    """

    def __init__(self, globs: Mapping[str, Sequence[str]]) -> None:
        self._skips: list[
            tuple[int, ...]
        ] = []  # places that are reached without a character
        self._stays: list[
            str | None
        ] = []  # the wildcard whose characters stay at a place
        self._literals: list[
            tuple[str, int] | None
        ] = []  # a character, and the place that it leads to
        self._ends: dict[int, str] = {}
        starts = [self._add(name, parts) for name, parts in globs.items()]
        self._reached = [self._reach(place) for place in range(len(self._skips))]
        self.start = frozenset(
            place for start in starts for place in self._reached[start]
        )

    def step(self, state: frozenset[int], character: str) -> frozenset[int]:
        """Return the state after one more character."""
        after: set[int] = set()
        for place in state:
            stays, literal = self._stays[place], self._literals[place]
            if stays is not None and (stays == OVER_SEGMENTS or character != "/"):
                after |= self._reached[place]
            if literal is not None and literal[0] == character:
                after |= self._reached[literal[1]]
        return frozenset(after)

    def matched(self, state: frozenset[int]) -> Matched:
        """Name the globs that match a text which leads to this state."""
        return frozenset(self._ends[place] for place in state if place in self._ends)

    def characters(self, state: frozenset[int]) -> list[str]:
        """Return a character of each kind that the state tells apart."""
        literals = {
            literal[0]
            for literal in (self._literals[place] for place in state)
            if literal
        }
        other = next(
            (character for character in _OTHERS if character not in literals), None
        )
        return [*([other] if other else []), *sorted(literals | {"/"})]

    def _add(self, name: str, parts: Sequence[str]) -> int:
        start = place = self._place()
        for part in parts:
            place = self._append(place, part)
        self._ends[place] = name
        return start

    def _append(self, place: int, part: str) -> int:
        if part in (IN_SEGMENT, OVER_SEGMENTS):
            self._stays[place] = part
            after = self._place()
            self._skips[place] = (after,)
            return after
        if part == FOLDERS:  # nothing, or anything that ends with a slash
            within = self._place()
            self._stays[within] = OVER_SEGMENTS
            after = self._place()
            self._literals[within] = ("/", after)
            self._skips[place] = (within, after)
            return after
        for character in part:
            after = self._place()
            self._literals[place] = (character, after)
            place = after
        return place

    def _place(self) -> int:
        self._skips.append(())
        self._stays.append(None)
        self._literals.append(None)
        return len(self._skips) - 1

    def _reach(self, place: int) -> frozenset[int]:
        found, waiting = {place}, [place]
        while waiting:
            more = [state for state in self._skips[waiting.pop()] if state not in found]
            found.update(more)
            waiting += more
        return frozenset(found)


def texts_of(
    globs: Mapping[str, Sequence[str]], beginning: str = "", may: May | None = None
) -> dict[Matched, str]:
    """Find every set of globs that match some text together and no other of the globs
    does; with a shortest text.

    Only texts with this beginning count. `may` leaves out texts that no client usually
    sends. `TooManyStatesError` where there are too many combinations.
    """
    automaton = Automaton(globs)
    state = automaton.start
    for character in beginning:
        state = automaton.step(state, character)
    found: dict[Matched, str] = {}
    for reached, text in _walk(automaton, state, beginning, may):
        if may is None or may(text, ""):
            found.setdefault(automaton.matched(reached), text)
    return found


def _walk(
    automaton: Automaton, start: frozenset[int], beginning: str, may: May | None
) -> Iterator[tuple[frozenset[int], str]]:
    """Reach each state by a shortest text; with `may`, each state and kind of last
    character.
    """
    seen = {(start, _kind(beginning, may))}
    waiting = deque([(start, beginning)])
    while waiting:
        state, text = waiting.popleft()
        yield state, text
        for character in automaton.characters(state) if state else ():
            if may is not None and not may(text, character):
                continue
            after = automaton.step(state, character)
            key = (after, _kind(character, may))
            if key not in seen:
                if len(seen) >= _STATES_AT_MOST:
                    raise TooManyStatesError
                seen.add(key)
                waiting.append((after, text + character))


def _kind(text: str, may: May | None) -> str:
    last = text[-1:]
    return last if may is not None and last in ("/", ".") else ""


class QueryAtom(NamedTuple):
    """A key of a query with its pattern: one of the values has to match, as in a deny,
    or all of them.
    """

    key: str
    pattern: str
    one: bool


Held = frozenset[QueryAtom]


@dataclass(frozen=True, slots=True)
class UrlCells:
    """The cells of some entries: each set of path patterns that hold together, with
    paths; the same of the query.

    A cell that only paths with several readings reach, or that an expression makes, may
    be without a path.
    """

    paths: Mapping[Matched, tuple[str, ...]]
    queries: Mapping[Held, str | None]


def url_cells(entries: Iterable[Entry], samples: Iterable[str] = ()) -> UrlCells:
    """Find the cells of the paths and queries of some entries; `samples` are paths to
    try for expressions.

    Raises `TooManyStatesError`.
    """
    kept = list(entries)
    patterns = {
        path.text: path
        for entry in kept
        for path in entry.match.paths or ()
        if not entry.match.any_path
    }
    atoms = {
        QueryAtom(pattern.key, pattern.pattern, is_deny(entry))
        for entry in kept
        for pattern in entry.match.query or ()
    }
    cells = UrlCells(_path_cells(list(patterns.values()), samples), _query_cells(atoms))
    if len(cells.paths) * len(cells.queries) > _CELLS_AT_MOST:
        raise TooManyStatesError
    return cells


def path_holds(match: Match, matched: Matched) -> bool:
    """Whether `paths` hold in a cell."""
    return match.any_path or any(
        pattern.text in matched for pattern in match.paths or ()
    )


def query_holds(match: Match, held: Held, *, one: bool) -> bool:
    """Whether `query` holds in a cell: for a deny with `one` value, else with all."""
    return all(
        QueryAtom(pattern.key, pattern.pattern, one) in held
        for pattern in match.query or ()
    )


# --- paths ----------------------------------------------------------------------------


def _path_cells(
    patterns: Sequence[PathPattern], samples: Iterable[str]
) -> dict[Matched, tuple[str, ...]]:
    globs = [pattern for pattern in patterns if pattern.is_glob]
    regexes = [pattern for pattern in patterns if not pattern.is_glob]
    if len(regexes) > _REGEXES_AT_MOST:
        raise TooManyStatesError
    cells, texts = _glob_cells(globs)
    if regexes:
        texts += [
            *samples,
            *(text for pattern in regexes for text in _samples_of(pattern)),
        ]
        chosen = [
            frozenset(texts_)
            for texts_ in _subsets([pattern.text for pattern in regexes])
        ]
        cells = {cell | regex for cell in cells for regex in chosen}
    if len(cells) > _CELLS_AT_MOST:
        raise TooManyStatesError
    return _with_paths(cells, patterns, texts)


def _glob_cells(globs: Sequence[PathPattern]) -> tuple[set[Matched], list[str]]:
    """Find the sets of globs that hold together in any reading, and paths for them.

    A glob is read as the path is, so the globs of each reading are looked through; most
    are the same in all.
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
        matched = frozenset(
            pattern.text for pattern in patterns if pattern.match(path) is not None
        )
        if matched in found:
            found[matched].append(text)
    return {cell: tuple(paths) for cell, paths in found.items()}


def _is_usual(text: str, character: str) -> bool:
    last = text[-1:]
    if not character:
        return last != "."
    if character == "/":
        return last not in ("/", ".")
    return _PLAIN.match(character) is not None and not (
        character == "." and last == "/"
    )


def _as_sent(text: str) -> str:
    try:
        return normalize_escapes(text)
    except InvalidUrl:
        return quote(text)


def _samples_of(pattern: PathPattern) -> Iterator[str]:
    """Return the least text that an expression may match, where RE2 finds one; also
    with a letter for anything.
    """
    expression = pattern.text.removeprefix("regex:")
    for text in dict.fromkeys((expression, _ANYTHING.sub("x", expression))):
        with suppress(re2.error, UnicodeDecodeError):
            least, _ = compile_regex(f"^(?:{text})$").possiblematchrange(_SAMPLE_LENGTH)
            yield least.decode()


def _subsets(names: Sequence[str]) -> Iterator[list[str]]:
    for chosen in product((False, True), repeat=len(names)):
        yield [name for name, is_in in zip(names, chosen, strict=True) if is_in]


# --- queries --------------------------------------------------------------------------


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


def _key_cells(
    key: str, patterns: Sequence[str], atoms: set[QueryAtom]
) -> dict[Held, str | None]:
    """Find what can hold of the patterns of one key: for no value, one value, or
    several that match differently.
    """
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
        held = atoms & (
            holding | {QueryAtom(key, pattern, one=True) for pattern in of_one}
        )
        text = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for value in values)
        cells.setdefault(frozenset(held), text)
    return cells


def _parts(pattern: str) -> tuple[str, ...]:
    return tuple(
        OVER_SEGMENTS if part.startswith("*") else part
        for part in _QUERY_PART.findall(pattern)
    )
