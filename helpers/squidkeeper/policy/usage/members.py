"""Finds members of JSON objects in bytes that come in pieces.

The rest is passed over, and never kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from squidkeeper.policy.bodies.json_form import folded

KEPT_AT_MOST: Final = 16 * 1024  # bytes of a member
_UNREAD_AT_MOST: Final = (
    2048  # bytes that wait for more: a name with its colon has up to 1,091
)
_DEEPEST: Final = 256
_NAMES_AT_MOST: Final = 4096  # that are read of one object
Path = tuple[str, ...]


class FoundMember(NamedTuple):
    """The value of a member as it is written, empty where it is too long; how many
    bytes come before it and before what follows it.
    """

    value: bytes
    start: int
    end: int


Found = dict[Path, FoundMember]


class WantedMembers:
    """The members that are to be found, by paths such as `usage.total_tokens`.

    `spelled` has each name as it is written, at its place.
    """

    __slots__ = ("containers", "paths", "spelled")

    def __init__(self, paths: Iterable[str]) -> None:
        written = [tuple(path.split(".")) for path in paths]
        self.paths = frozenset(_folded(path) for path in written)
        self.containers = frozenset(
            path[:end] for path in self.paths for end in range(len(path))
        )
        self.spelled = frozenset(
            (*_folded(path[:end]), path[end])
            for path in written
            for end in range(len(path))
        )


@lru_cache(maxsize=1024)
def path_of(name: str) -> Path:
    """Return the path that a name such as `usage.total_tokens` stands for."""
    return _folded(tuple(name.split(".")))


def _folded(path: Path) -> Path:
    return tuple(map(folded, path))


class MemberScanner:
    """Reads a JSON object; with `is_array` several, as the items of an array or one
    after the other.

    `is_plain` turns false where a parser could take another member for a wanted one: a
    wanted name is there twice, or in a spelling that only lenient parsers take for it
    (`folded`); a name beside it is not ASCII, or has an escape. It also turns false
    where the bytes are no JSON. Then nothing more is read. The values that are passed
    over are not checked.
    """

    __slots__ = (
        *(
            "_at",
            "_depth",
            "_found",
            "_in_text",
            "_is_after_one",
            "_is_array",
            "_is_long",
            "_kept",
            "_names",
            "_path",
            "_rest",
            "_seen",
            "_start",
            "_state",
        ),
        *("_value", "_wanted", "is_plain", "objects"),
    )

    def __init__(self, wanted: WantedMembers, *, is_array: bool = False) -> None:
        self._wanted = wanted
        self._is_array = is_array
        self._state: _State = MemberScanner._between
        self._rest = b""
        self._at = 0  # how many bytes come before `_rest`
        self._path: Path = ()  # of the object whose names are read
        self._value: Path = ()  # of the value that is read
        self._found: Found = {}
        self._seen: set[Path] = set()
        self._kept: bytearray | None = None
        self._start = self._depth = self._names = 0
        self._in_text = self._is_long = self._is_after_one = False
        self.objects: list[Found] = []
        self.is_plain = True

    @property
    def is_whole(self) -> bool:
        """Whether all that came is plain, and ends after an object."""
        return (
            self.is_plain and not self._rest and self._state is MemberScanner._between
        )

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Each object that they end is added to `objects`."""
        if not self.is_plain:
            return
        data = self._rest + data
        at, state = 0, None
        while at < len(data) and self.is_plain:
            before, state = at, self._state
            at = state(self, data, at)
            if at == before and self._state is state:
                break
        self._rest = data[at:]
        self._at += at
        self.is_plain = self.is_plain and len(self._rest) <= _UNREAD_AT_MOST

    def _between(self, data: bytes, at: int) -> int:
        """Find the next object."""
        end = _matched(_BETWEEN if self._is_array else _SPACES, data, at)
        if data[end : end + 1] == b"{" and (self._is_array or not self._is_after_one):
            self._found, self._seen, self._path, self._names = {}, set(), (), 0
            self._state = MemberScanner._name
            return end + 1
        self.is_plain = end == len(data)
        return end

    def _name(self, data: bytes, at: int) -> int:
        """Read the name of the next member, or the end of the object."""
        at = _matched(_GAP, data, at)
        if data[at : at + 1] == b"}":
            self._leave()
            return at + 1
        match = _NAME.match(data, at)
        if match is None:
            return at
        self._names += 1
        self.is_plain = self._names <= _NAMES_AT_MOST
        name = match[1].decode()
        self._value = (*self._path, folded(name))
        if self._value in self._wanted.containers or self._value in self._wanted.paths:
            self.is_plain = (
                self._value not in self._seen
                and (*self._path, name) in self._wanted.spelled
            )
            self._seen.add(self._value)
        self._state = MemberScanner._first_byte
        return match.end()

    def _leave(self) -> None:
        if self._path:
            self._path = self._path[:-1]
        else:
            self.objects.append(self._found)
            self._is_after_one = True
            self._state = MemberScanner._between

    def _first_byte(self, data: bytes, at: int) -> int:
        """Tell by the first byte of a value whether its members are read, too."""
        at = _matched(_SPACES, data, at)
        if at == len(data):
            return at
        if data[at : at + 1] == b"{" and self._value in self._wanted.containers:
            self._path = self._value
            self._state = MemberScanner._name
            return at + 1
        self._start, self._depth = self._at + at, 0
        self._in_text = self._is_long = False
        self._kept = bytearray() if self._value in self._wanted.paths else None
        self._state = MemberScanner._pass
        return at

    def _pass(self, data: bytes, at: int) -> int:
        """Pass over a part of a value: the rest of a text, or all up to the next
        bracket or its end.
        """
        end = _matched(_TEXT if self._in_text else _RUNS[self._depth > 0], data, at)
        mark = data[end : end + 1]
        if mark == b'"':
            self._in_text = not self._in_text
        elif mark in (b"{", b"["):
            self._depth += 1
            self.is_plain = self._depth <= _DEEPEST
        elif mark and mark != b"\\" and self._depth == 0:
            self._keep(data[at:end])
            self._end_value(mark, self._at + end)
            return end
        elif mark in (b"}", b"]"):
            self._depth -= 1
        end += mark not in (b"", b"\\")
        self._keep(data[at:end])
        return end

    def _keep(self, data: bytes) -> None:
        if self._kept is not None and not self._is_long:
            self._kept += data
            if len(self._kept) > KEPT_AT_MOST:
                self._kept = bytearray()
                self._is_long = True

    def _end_value(self, mark: bytes, end: int) -> None:
        self.is_plain = mark != b"]"
        if self._kept is not None:
            self._found[self._value] = FoundMember(
                bytes(self._kept).rstrip(), self._start, end
            )
            self._kept = None
        self._state = MemberScanner._name


_State = Callable[[MemberScanner, bytes, int], int]
_BETWEEN: Final = re.compile(rb"[ \t\r\n,\[\]]*+")
_SPACES: Final = re.compile(rb"[ \t\r\n]*+")
_GAP: Final = re.compile(rb"[ \t\r\n,]*+")
_NAME: Final = re.compile(rb'"([ !#-\[\]-~]{0,1024}+)"[ \t\r\n]{0,64}+:')
_TEXT: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_RUN: Final = rb'(?:[^"{}\[\]%b]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|%b)*+'
_SHALLOW: Final = (
    rb"[{\[]"
    + _RUN % (b"", rb"[{\[]" + _RUN % (b"", rb"[{\[][^\"{}\[\]]*+[}\]]") + rb"[}\]]")
    + rb"[}\]]"
)
# in a value, and below it
_RUNS: Final = tuple(
    re.compile(_RUN % (ends, _SHALLOW), re.DOTALL) for ends in (b",", b"")
)


def _matched(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return match.end() if match else at
