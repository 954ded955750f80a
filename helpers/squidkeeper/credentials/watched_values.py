"""Values that must not be in a request (floor 4): found without being kept.

Of each value, and of each of its encodings, this keeps a keyed digest and its most varied window: a text of zeros does
not have that of `00000000-5d1c-…`. Windows are folded to 16 classes by a random table, so that they cannot be turned
back. A pass over a text finds the positions whose window is known, at the speed of a set; only there a digest is made.
Who knows a placeholder can write its window as often as a text has room. So the digests for a name are bounded, and a
text that reaches the bound is taken to hold the value.
"""

from __future__ import annotations

import secrets
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from squidkeeper.policy.model import SHORTEST_WATCHED

_WINDOW = SHORTEST_WATCHED  # of each encoding at least
_DECODINGS_AT_MOST = 2
_VALUES_KEPT = 2  # of each name
_DIGESTS_AT_MOST = 100  # for a name in a text: one that holds no value has hardly ever any
_CLASSES = 16  # so few that a window does not tell the bytes that it was made of
# Another case is the same, as is base64 for URLs, and a space as forms write it.
_SAME = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ- _", b"abcdefghijklmnopqrstuvwxyz++/")


class _Needle(NamedTuple):
    """One encoding of a value: its most varied window and where that is, its length, and its digest."""

    window: int
    offset: int
    length: int
    digest: bytes


_Known = dict[int, list[tuple[str, _Needle]]]  # by the window, with the name of the value


class WatchedValues:
    """Values by name, each with the one before it: a rotated value is still one that must not be sent."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        classes = secrets.SystemRandom().sample(range(256), _CLASSES)
        self._fold = bytes(secrets.choice(classes) for _ in range(256))
        self._folded_same = _SAME.translate(self._fold)
        self._latest: dict[str, list[tuple[bytes, tuple[_Needle, ...]]]] = {}  # with the digest of the value
        self._known: _Known = {}
        self._windows: frozenset[int] = frozenset()

    def update(self, names: Iterable[str], values: Mapping[str, str]) -> None:
        """Take the values of now. One that cannot be read stays as it was, and one that is too short is not watched.

        `names` are all that there are now; others are forgotten.
        """
        gone = self._latest.keys() - {*names}
        for name in gone:
            del self._latest[name]
        changed = bool(gone)
        for name, value in values.items():
            known, digest = self._latest.setdefault(name, []), self._digest(value.encode())
            if len(value) >= SHORTEST_WATCHED and (not known or known[0][0] != digest):
                known.insert(0, (digest, tuple(map(self._needle, _encodings(value.encode())))))
                del known[_VALUES_KEPT:]
                changed = True
        if changed:
            self._known = {}
            for name, versions in self._latest.items():
                for needle in (needle for _, needles in versions for needle in needles):
                    self._known.setdefault(needle.window, []).append((name, needle))
            self._windows = frozenset(self._known)

    def find(self, text: bytes) -> frozenset[str]:
        """Name the values that a text holds; percent-encoding in it is decoded, also where it was encoded twice."""
        found = self._find(text)
        for _ in range(_DECODINGS_AT_MOST):
            if b"%" not in text:
                break
            text = unquote_to_bytes(text)
            found |= self._find(text)
        return found

    def _find(self, text: bytes) -> frozenset[str]:
        if len(text) < _WINDOW or not self._windows:
            return frozenset()
        folded = memoryview(text.translate(self._folded_same))
        hits = [shift for shift in range(_WINDOW) if not self._windows.isdisjoint(_windows(folded, shift))]
        return self._verified(text, folded, hits) if hits else frozenset()

    def _verified(self, text: bytes, folded: memoryview, shifts: Iterable[int]) -> frozenset[str]:
        found: set[str] = set()
        digests: Counter[str] = Counter()
        same, known = text.translate(_SAME), self._known
        for shift in shifts:
            for number, window in enumerate(_windows(folded, shift)):
                for name, needle in known.get(window, ()):
                    start = shift + number * _WINDOW - needle.offset
                    if name in found or start < 0:
                        continue
                    digests[name] += 1
                    is_same = self._digest(same[start : start + needle.length]) == needle.digest
                    if is_same or digests[name] == _DIGESTS_AT_MOST:
                        found.add(name)
                        known = _without(name, known)
        return frozenset(found)

    def _needle(self, encoded: bytes) -> _Needle:
        same = encoded.translate(_SAME)
        folded = same.translate(self._fold)
        offset = max(range(len(folded) - _WINDOW + 1), key=lambda at: len({*folded[at : at + _WINDOW]}))
        window = int.from_bytes(folded[offset : offset + _WINDOW], sys.byteorder)
        return _Needle(window, offset, len(same), self._digest(same))

    def _digest(self, text: bytes) -> bytes:
        return blake2b(text, digest_size=16, key=self._key).digest()


def _without(name: str, known: _Known) -> _Known:
    return {window: [one for one in needles if one[0] != name] for window, needles in known.items()}


def _windows(folded: memoryview, shift: int) -> memoryview[int]:
    """Read every eighth window of a text, as numbers."""
    whole = (len(folded) - shift) // _WINDOW * _WINDOW
    return folded[shift : shift + max(0, whole)].cast("@Q")


def _encodings(value: bytes) -> Iterator[bytes]:
    """Give a value as it is, in hexadecimal, and in base64, wherever it stands in what was encoded."""
    yield value
    yield value.hex().encode()
    for before in range(3):
        bits_before, bits = 8 * before, 8 * (before + len(value))
        yield b64encode(b"\0" * before + value)[-(-bits_before // 6) : bits // 6]
