"""Which of several globs match a text together: one automaton reads all of them at once."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase, digits

from squidkeeper.policy.language.paths import FOLDERS, IN_SEGMENT, OVER_SEGMENTS

Matched = frozenset[str]  # the globs that match a text
May = Callable[[str, str], bool]  # whether a character may come after the text before it

_STATES_AT_MOST = 20_000
_ANY_OTHER = "x" + ascii_lowercase + digits + ascii_uppercase + "_-~"  # for a character that no glob names there
_UNUSUAL = (chr(code) for code in range(0x100, 0x180))
_OTHERS = _ANY_OTHER + "".join(_UNUSUAL)


class TooManyStatesError(Exception):
    """The globs have more combinations than are looked through."""


class Automaton:
    """Reads a text for some globs. A state is the set of the places in them that the text may have led to."""

    def __init__(self, globs: Mapping[str, Sequence[str]]) -> None:
        self._skips: list[tuple[int, ...]] = []  # places that are reached without a character
        self._stays: list[str | None] = []  # the wildcard whose characters stay at a place
        self._literals: list[tuple[str, int] | None] = []  # a character, and the place that it leads to
        self._ends: dict[int, str] = {}
        starts = [self._add(name, parts) for name, parts in globs.items()]
        self._reached = [self._reach(place) for place in range(len(self._skips))]
        self.start = frozenset(place for start in starts for place in self._reached[start])

    def step(self, state: frozenset[int], character: str) -> frozenset[int]:
        """Give the state after one more character."""
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
        """Give a character of each kind that the state tells apart."""
        literals = {literal[0] for literal in (self._literals[place] for place in state) if literal}
        other = next((one for one in _OTHERS if one not in literals), None)
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
            more = [one for one in self._skips[waiting.pop()] if one not in found]
            found.update(more)
            waiting += more
        return frozenset(found)


def texts_of(globs: Mapping[str, Sequence[str]], beginning: str = "", may: May | None = None) -> dict[Matched, str]:
    """Find every set of globs that match some text together and no other of the globs does; with a shortest text.

    Only texts with this beginning count. `may` leaves out texts that no client usually sends.
    `TooManyStatesError` where there are too many combinations.
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
    """Reach each state by a shortest text; with `may`, each state and kind of last character."""
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
