"""What a slot holds and where (floor 4): keys, values, status; what reader and writer both read."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Key = tuple[str, ...]  # a metric's name, then its labels: name, value, name, value, …
Sample = tuple[str, dict[str, str], float]  # a metric's name, its labels by name, the value
FOLDER = "helpers"  # of the state folder
COUNTER_FILES = 64
INFINITY = "+Inf"

# The parts of a slot: where each begins, and how many bytes it has.
MAGIC = b"sqkslot1"  # changes with anything below
IDENTITY_BYTES = 8
HEADER = struct.Struct(f">8s{IDENTITY_BYTES}s")
STATUS_AT = 64
STATUS_HEAD = struct.Struct(">II")  # the length of the JSON, and its CRC-32
STATUS_BYTES = 1024
VALUES_AT = 4096
KEYS_AT_MOST = 1024
_VALUES = struct.Struct(f"={KEYS_AT_MOST}d")
VALUES_BYTES = _VALUES.size
KEYS_AT = VALUES_AT + VALUES_BYTES
KEYS_BYTES = 128 << 10
FILE_BYTES = KEYS_AT + KEYS_BYTES
CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
TRIES = 10
_BLOCK = 16 << 10


@dataclass(frozen=True, slots=True)
class HelperStatus:
    """The sign of life of a helper process. Times are seconds since 1970.

    `beat` is when this was written, once a second. `revision` is what the process judges by, None while nothing has
    loaded. `reload_ok` is whether the policy on disk loads, with the number of its faults where it does not;
    `reloaded` is when one last did. `busy_since` is when the lines were read that are being answered; None: it waits.
    """

    helper: str
    pid: int
    started: float
    beat: float
    revision: str | None = None
    reload_ok: bool = False
    reloaded: float | None = None
    faults: int = 0
    busy_since: float | None = None


def make_key(metric: str, labels: Mapping[str, str]) -> Key:
    """Make the key of a counter."""
    return (metric, *(text for pair in labels.items() for text in pair))


def key_labels(key: Key) -> dict[str, str]:
    """Give the labels of a counter, by name."""
    return dict(zip(key[1::2], key[2::2], strict=True))


def histogram_keys(metric: str, labels: Mapping[str, str], bounds: Sequence[float]) -> tuple[Key, ...]:
    """Make the keys of a histogram: of each bucket (`le`; what fell into it alone), and at last of the sum."""
    buckets = (make_key(f"{metric}_bucket", {**labels, "le": bound}) for bound in (*map(str, bounds), INFINITY))
    return (*buckets, make_key(f"{metric}_sum", labels))


def read_identity(descriptor: int) -> str | None:
    """Read what a slot is called in its header; None where it is no whole slot of this format."""
    content = os.pread(descriptor, HEADER.size, 0)
    if len(content) < HEADER.size or os.fstat(descriptor).st_size < FILE_BYTES:
        return None
    magic, identity = HEADER.unpack(content)
    return identity.hex() if magic == MAGIC else None


def read_values(descriptor: int) -> list[float]:
    """Read the values until two readings agree: none is torn then. What cannot be a count is 0."""
    content = b""
    for _ in range(TRIES):
        again = os.pread(descriptor, VALUES_BYTES, VALUES_AT)
        if again == content:
            break
        content = again
    return [value if 0 <= value < math.inf else 0.0 for value in _VALUES.unpack(content)]


def read_keys(descriptor: int) -> tuple[list[Key], int]:
    """Read the keys and how many bytes they take: up to the first that is torn, or is no key."""
    keys: list[Key] = []
    length = 0
    for line in _key_lines(descriptor):
        key = _parse_key(line)
        if key is None or len(keys) == KEYS_AT_MOST:
            break
        keys.append(key)
        length += len(line) + 1
    return keys, length


def _key_lines(descriptor: int) -> Iterator[bytes]:
    """Give the whole lines ahead of the first NUL."""
    rest = b""
    for at in range(KEYS_AT, FILE_BYTES, _BLOCK):
        block, nul, _ = os.pread(descriptor, _BLOCK, at).partition(b"\0")
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if nul or len(block) < _BLOCK:
            return


def _parse_key(line: bytes) -> Key | None:
    try:
        metric, labels = json.loads(line)
        found = make_key(metric, labels)
        return found if all(text.encode() or True for text in found) else None  # also no lone surrogate
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def key_line(key: Key) -> bytes:
    """Write a key as it stands in a slot."""
    return json.dumps([key[0], key_labels(key)]).encode() + b"\n"
