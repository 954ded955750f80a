"""Values that must not be in a request (floor 4): found without being kept.

Of each value, and of each of its encodings, this keeps a keyed digest and the window that it begins with. Windows are
folded to 16 classes by a random table, so that they cannot be turned back. A pass over a text finds the positions whose
window is known, at the speed of a set; only there a digest is made. The time depends on the length of the text alone:
nobody knows the table.
"""

from __future__ import annotations

import secrets
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from squidkeeper.policy.model import SHORTEST_WATCHED

_WINDOW = SHORTEST_WATCHED  # of each encoding at least
_DECODINGS_AT_MOST = 2
_VALUES_KEPT = 2  # of each name
_CLASSES = 16  # so few that a window does not tell the bytes that it was made of
# Another case is the same, as is base64 for URLs, and a space as forms write it.
_SAME = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ- _", b"abcdefghijklmnopqrstuvwxyz++/")


class _Needle(NamedTuple):
    """One encoding of a value: the window that it begins with, its length, and its digest."""

    window: int
    length: int
    digest: bytes


class WatchedValues:
    """Values by name, each with the one before it: a rotated value is still one that must not be sent."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        classes = secrets.SystemRandom().sample(range(256), _CLASSES)
        self._fold = bytes(secrets.choice(classes) for _ in range(256))
        self._folded_same = _SAME.translate(self._fold)
        self._latest: dict[str, list[tuple[bytes, tuple[_Needle, ...]]]] = {}  # with the digest of the value
        self._known: dict[int, list[tuple[str, _Needle]]] = {}
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
        for shift in shifts:
            for number, window in enumerate(_windows(folded, shift)):
                for name, needle in self._known.get(window, ()):
                    start = shift + number * _WINDOW
                    same = text[start : start + needle.length].translate(_SAME)
                    if name not in found and self._digest(same) == needle.digest:
                        found.add(name)
        return frozenset(found)

    def _needle(self, encoded: bytes) -> _Needle:
        same = encoded.translate(_SAME)
        window = int.from_bytes(same[:_WINDOW].translate(self._fold), sys.byteorder)
        return _Needle(window, len(same), self._digest(same))

    def _digest(self, text: bytes) -> bytes:
        return blake2b(text, digest_size=16, key=self._key).digest()


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
