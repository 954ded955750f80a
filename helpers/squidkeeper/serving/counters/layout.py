"""The layout of a counter file, and the parts that both reader and writer read."""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from squidkeeper.base.helper_metrics import Metric
from squidkeeper.base.places import BODIES_FOLDER, TRANSPARENT_FOLDER

Key = tuple[str, ...]  # a metric's name, then its labels: name, value, name, value, …
# a metric's name, its labels by name, the value
Sample = tuple[str, dict[str, str], float]
FOLDER = "helpers"  # of the state folder
COUNTER_FILES = (
    800  # 25 helpers at most of each of 16 workers, twice while Squid is reconfigured
)
INFINITY = "+Inf"

# The parts of a counter file: offset and size in bytes.
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
    """The heartbeat of a helper process. Times are seconds since 1970.

    `beat` is when this was written, once a second. `revision` is the one in force;
    None: no policy has loaded. `reload_ok` tells whether the policy on disk loads,
    `faults` counts its faults, `reloaded` is when one last loaded. `busy_since` is when
    the lines that are being answered were read; None: it waits for lines.
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


def counter_folders(state: Path) -> tuple[Path, ...]:
    """List the folders of counter files: the helpers', and those of services that have
    another account.
    """
    return (
        state / FOLDER,
        state / BODIES_FOLDER / FOLDER,
        state / TRANSPARENT_FOLDER / FOLDER,
    )


def file_name(number: int) -> str:
    """Name a counter file."""
    return f"slot-{number:02}"


def make_key(metric: str, labels: Mapping[str, str]) -> Key:
    """Make the key of a counter."""
    return (metric, *(text for pair in labels.items() for text in pair))


def counter_key(metric: Metric, *values: str) -> Key:
    """Make the key of one of our counters; `values` are those of its labels."""
    return (metric.name, *chain.from_iterable(zip(metric.labels, values, strict=True)))


def key_labels(key: Key) -> dict[str, str]:
    """Return the labels of a counter, by name."""
    return dict(zip(key[1::2], key[2::2], strict=True))


def histogram_keys(
    metric: str, labels: Mapping[str, str], bounds: Sequence[float]
) -> tuple[Key, ...]:
    """Make the keys of a histogram: one for each bucket (`le`; not cumulative), then
    one for the sum.
    """
    buckets = (
        make_key(f"{metric}_bucket", {**labels, "le": bound})
        for bound in (*map(str, bounds), INFINITY)
    )
    return (*buckets, make_key(f"{metric}_sum", labels))


def read_identity(descriptor: int) -> str | None:
    """Read the identity of a counter file; None if the file is not whole, or has
    another format.
    """
    content = os.pread(descriptor, HEADER.size, 0)
    if len(content) < HEADER.size or os.fstat(descriptor).st_size < FILE_BYTES:
        return None
    magic, identity = HEADER.unpack(content)
    return identity.hex() if magic == MAGIC else None


def read_values(descriptor: int) -> list[float]:
    """Read the values until two reads agree, so no value is torn.

    A value that cannot be a count is 0.
    """
    content = b""
    for _ in range(TRIES):
        again = os.pread(descriptor, VALUES_BYTES, VALUES_AT)
        if again == content:
            break
        content = again
    return [
        value if 0 <= value < math.inf else 0.0 for value in _VALUES.unpack(content)
    ]


def read_keys(descriptor: int) -> tuple[list[Key], int]:
    """Read the keys up to the first that is torn or invalid, and their length
    in bytes.
    """
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
        # a lone surrogate is invalid
        return found if all(text.encode() or True for text in found) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def key_line(key: Key) -> bytes:
    """Format a key as a line of a counter file."""
    return json.dumps([key[0], key_labels(key)]).encode() + b"\n"
