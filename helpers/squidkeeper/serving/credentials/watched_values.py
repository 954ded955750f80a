"""Values that must not be in a request: found without being kept.

Of each value, and of each of its encodings, this keeps a keyed digest and its most
varied window: a text of zeros does not have that of `00000000-5d1c-…`. Windows are
folded to 16 classes by a random table, so that they cannot be turned back. One pass of
RE2 tells whether a text holds any window, at a cost that depends on its length alone.
Only where it does, the windows are located, and digests are made. Who knows a
placeholder can write its window as often as a text has room. So the digests for a name
are bounded, and a text that reaches the bound is taken to hold the value.
"""

import secrets
import sys
from base64 import b64encode
from binascii import a2b_qp
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import re2

from squidkeeper.policy.language.model import SHORTEST_WATCHED

_WINDOW = SHORTEST_WATCHED  # of each encoding at least
_DECODINGS_AT_MOST = 3  # Squid's own, and two of the client's
_VALUES_KEPT = 2  # of each name
_DIGESTS_AT_MOST = (
    20  # for a name in a text: one that holds no value has hardly ever any
)
_CLASSES = 16  # so few that a window does not tell the bytes that it was made of
# No value holds a line end. So line ends and NUL can stand for `=`, and `a2b_qp` finds
# nothing of its own syntax.
_PLAIN = bytes.maketrans(b"=\r\n", b"\0\0\0")
# Another case is the same, as is base64 for URLs, and a space as forms write it.
_SAME = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ- _=\r\n", b"abcdefghijklmnopqrstuvwxyz++/\0\0\0"
)
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
# the windows of some ten thousand values; little of it is used
_OPTIONS.max_mem = 256 << 20


class _Needle(NamedTuple):
    """One encoding of a value: its most varied window and where that is, its length,
    and its digest.
    """

    window: int
    offset: int
    length: int
    digest: bytes


# by the window, with the name of the value
_Known = dict[int, list[tuple[str, _Needle]]]
_NOTHING = rb"\A\b\B"  # matches no text


class WatchedValues:
    """Values by name, each with the one before it: a rotated value is still one that
    must not be sent.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        classes = secrets.SystemRandom().sample(range(256), _CLASSES)
        self._fold = bytes(secrets.choice(classes) for _ in range(256))
        self._folded_same = _SAME.translate(self._fold)
        self._latest: dict[
            str, list[tuple[bytes, tuple[_Needle, ...]]]
        ] = {}  # with the digest of the value
        self._known: _Known = {}
        self._windows: frozenset[int] = frozenset()
        self._any_window: Any = re2.compile(_NOTHING, _OPTIONS)

    def update(self, names: Iterable[str], values: Mapping[str, str]) -> None:
        """Take the values of now.

        One that cannot be read stays as it was, and one that is too short is not
        watched.

        `names` are all that there are now; others are forgotten.
        """
        gone = self._latest.keys() - {*names}
        for name in gone:
            del self._latest[name]
        changed = bool(gone)
        for name, value in values.items():
            known, digest = (
                self._latest.setdefault(name, []),
                self._digest(value.encode()),
            )
            if len(value) >= SHORTEST_WATCHED and (not known or known[0][0] != digest):
                known.insert(
                    0, (digest, tuple(map(self._needle, _encodings(value.encode()))))
                )
                del known[_VALUES_KEPT:]
                changed = True
        if changed:
            self._known = {}
            for name, versions in self._latest.items():
                for needle in (needle for _, needles in versions for needle in needles):
                    self._known.setdefault(needle.window, []).append((name, needle))
            self._windows = frozenset(self._known)
            self._any_window = re2.compile(
                b"|".join(map(_pattern, self._windows)) or _NOTHING, _OPTIONS
            )

    def find(self, text: bytes) -> frozenset[str]:
        """Name the values that a text holds; percent-encoding in it is decoded, also
        repeatedly.
        """
        found: set[str] = set()
        self._find(text, found)
        for _ in range(_DECODINGS_AT_MOST):
            if b"%" not in text:
                break
            text = percent_decoded(text)
            self._find(text, found)
        return frozenset(found)

    def _find(self, text: bytes, found: set[str]) -> None:
        folded = text.translate(self._folded_same)
        if not self._any_window.search(folded):
            return
        same, digests = text.translate(_SAME), Counter[str]()
        for window in _windows_in(folded, self._windows):
            wanted = [known for known in self._known[window] if known[0] not in found]
            at = folded.find(as_bytes := _bytes(window))
            while wanted and at >= 0:
                for name, needle in wanted:
                    digests[name] += 1
                    start = max(0, at - needle.offset)
                    is_same = (
                        self._digest(same[start : start + needle.length])
                        == needle.digest
                    )
                    if is_same or digests[name] == _DIGESTS_AT_MOST:
                        found.add(name)
                wanted = [known for known in wanted if known[0] not in found]
                at = folded.find(as_bytes, at + 1)

    def _needle(self, encoded: bytes) -> _Needle:
        same = encoded.translate(_SAME)
        folded = same.translate(self._fold)
        offset = max(
            range(len(folded) - _WINDOW + 1),
            key=lambda at: len({*folded[at : at + _WINDOW]}),
        )
        window = int.from_bytes(folded[offset : offset + _WINDOW], sys.byteorder)
        return _Needle(window, offset, len(same), self._digest(same))

    def _digest(self, text: bytes) -> bytes:
        return blake2b(text, digest_size=16, key=self._key).digest()


def percent_decoded(text: bytes) -> bytes:
    """Percent-decode a text that is to be searched, as `unquote_to_bytes` does, but at
    the speed of a copy.

    `=` and line ends become NUL, and one NUL is added: an escape of quoted-printable is
    no `%` at the end of a text.
    """
    plain = text.translate(_PLAIN).replace(b"%3D", b"\0").replace(b"%3d", b"\0")
    # in turn, as the first one skips every other pair
    escaped = plain.replace(b"%%", b"%25%").replace(b"%%", b"%25%")
    return a2b_qp(escaped.replace(b"%", b"=") + b"\0").replace(b"=", b"%")


def _windows_in(folded: bytes, windows: frozenset[int]) -> frozenset[int]:
    ends = (
        shift + (len(folded) - shift) // _WINDOW * _WINDOW for shift in range(_WINDOW)
    )
    views = (
        memoryview(folded)[shift:end].cast("@Q")
        for shift, end in enumerate(ends)
        if end > shift
    )
    return frozenset[int]().union(*map(windows.intersection, views))


def _bytes(window: int) -> bytes:
    return window.to_bytes(_WINDOW, sys.byteorder)


def _pattern(window: int) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in _bytes(window))


def _encodings(value: bytes) -> Iterator[bytes]:
    """Yield a value as it is, in hexadecimal, and in base64, wherever it stands in what
    was encoded.
    """
    yield value
    yield value.hex().encode()
    for before in range(3):
        bits_before, bits = 8 * before, 8 * (before + len(value))
        yield b64encode(b"\0" * before + value)[-(-bits_before // 6) : bits // 6]
