"""Counters of helper processes, on disk, where one exporter reads them all (floor 4).

Each helper process takes one of the files `slot-00` to `slot-63` of a folder, by a lock that the kernel lets go however
the process ends, and counts on from what the slot holds: nothing goes back, and the folder holds as many files as
helpers ever ran at once. A slot has a fixed size and three parts, each written in place:

    header and status   what the slot is, and the sign of life of the process that has it, under a checksum
    values              an array of doubles, written whole after each batch of answers
    keys                a line `["metric", {"label": "value"}]` for each value, in the same order, only ever added to

Nothing is mapped into memory (a full disk would be a SIGBUS) and nothing is synced: a machine that loses its power can
lose what was counted last. A process that is killed loses at most what `add` was not given yet. A key is on disk before
its first value, so that values without a key are not counted, and a torn key is written over.

A file that is no slot of this format (torn, truncated, overwritten, of another release) is begun anew by the helper
that takes it; what it held is lost, and its `identity` is another one. `Totals` adds slots up, and remembers what it
last read of such a one. A machine with more helpers than slots has some that are not counted, and say so.
Any error of the disk ends the writing, for as long as it lasts, and never reaches who counts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import stat
import struct
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

Key = tuple[str, ...]  # a metric's name, then its labels: name, value, name, value, …
Sample = tuple[str, dict[str, str], float]  # a metric's name, its labels by name, the value

FOLDER = "helpers"  # of the state folder
SLOTS = 64
INFINITY = "+Inf"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
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


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as it was read.

    `running` tells whether a process has it now; the status and the samples of one that has ended stay. There is no
    status while a process starts. `identity` changes when a slot was begun anew. `problem` says why a slot could not be
    read: it has neither status nor samples.
    """

    number: int
    running: bool
    identity: str = ""
    status: Status | None = None
    samples: tuple[Sample, ...] = ()
    problem: str | None = None


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


# --- reading ------------------------------------------------------------------------------------------------------


def read_slots(folder: Path) -> Iterator[Slot]:
    """Read every slot of a folder, in their order; nothing where there is no folder, OSError where it cannot be read.

    Not for a process that has a slot itself: closing a file lets go of the process's own lock on it.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if _SLOT_NAME.fullmatch(name))
    except FileNotFoundError:
        return
    for name in names:
        slot = _read_slot(folder / name)
        if slot:
            yield slot


def slot_owner(folder: Path, number: int) -> int | None:
    """Ask which process has a slot; None where none has it, or it is not seen from here.

    Not for a process that has a slot itself, as above.
    """
    try:
        descriptor = os.open(folder / f"slot-{number:02}", os.O_RDONLY | _CAREFULLY)
    except OSError:
        return None
    try:
        return _lock_owner(descriptor) or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


class Totals:
    """Adds slots up so that no sum goes back, also where a slot cannot be read, is gone, or was begun anew.

    `known` is what was last read of each slot, by its identity; give it to a new `Totals` to go on after a restart.
    """

    def __init__(self, known: Mapping[str, Mapping[Key, float]] | None = None) -> None:
        self.known: dict[str, dict[Key, float]] = {name: dict(values) for name, values in (known or {}).items()}

    def add_up(self, slots: Iterable[Slot]) -> dict[Key, float]:
        """Add up the samples of all slots, and what was last read of those that are no more."""
        for slot in slots:
            if slot.problem is None:
                last = self.known.pop(slot.identity, {})
                self.known[slot.identity] = last  # at the end, so that those unseen for longest are the first
                for sample in slot.samples:
                    key = sample_key(sample)
                    last[key] = max(sample[2], last.get(key, 0.0))
        self._fold()
        return _sum(self.known.values())

    def _fold(self) -> None:
        """Make one of all those that are surely no more, so that `known` is bounded."""
        for identity in list(self.known)[: -2 * SLOTS]:
            self.known[_FOLDED] = _sum((self.known.pop(_FOLDED, {}), self.known.pop(identity, {})))


def sample_key(sample: Sample) -> Key:
    """Give the key of a sample."""
    metric, labels, _ = sample
    return make_key(metric, labels)


def _sum(parts: Iterable[Mapping[Key, float]]) -> dict[Key, float]:
    total: dict[Key, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _read_slot(path: Path) -> Slot | None:
    """Read one slot; None where it is only about to be made, or gone by now."""
    number = int(path.name[-2:])
    try:
        descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Slot(number, running=False, problem=f"it cannot be read: {error.strerror}")
    try:
        return _read_open(number, descriptor)
    except (OSError, struct.error) as error:  # the latter: it has just been truncated
        return Slot(number, running=False, problem=f"it cannot be read: {error}")
    finally:
        os.close(descriptor)


def _read_open(number: int, descriptor: int) -> Slot | None:
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        return Slot(number, running=False, problem="it is not a regular file")
    if not state.st_size:
        return None
    running = _is_locked(descriptor)
    identity = _read_identity(descriptor)
    if identity is None:
        return Slot(number, running, problem="it is no slot of this release")
    values = _read_values(descriptor)
    keys, _ = _read_keys(descriptor)  # after the values: each value that counts has its key by now
    samples = tuple((key[0], key_labels(key), value) for key, value in zip(keys, values, strict=False))
    return Slot(number, running, identity, _read_status(descriptor), samples)


def _is_locked(descriptor: int) -> bool:
    return _lock_owner(descriptor) is not None


def _lock_owner(descriptor: int) -> int | None:
    """Ask which process holds the lock, if one does, without taking it even for a moment; 0: one that is not seen."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _read_identity(descriptor: int) -> str | None:
    """Read what a slot is called in its header; None where it is no whole slot of this format."""
    content = os.pread(descriptor, _HEADER.size, 0)
    if len(content) < _HEADER.size or os.fstat(descriptor).st_size < _SLOT_BYTES:
        return None
    magic, identity = _HEADER.unpack(content)
    return identity.hex() if magic == _MAGIC else None


def _read_status(descriptor: int) -> Status | None:
    for _ in range(_TRIES):
        length, checksum = _STATUS_HEAD.unpack(os.pread(descriptor, _STATUS_HEAD.size, _STATUS_AT))
        text = os.pread(descriptor, min(length, _STATUS_BYTES), _STATUS_AT + _STATUS_HEAD.size)
        if zlib.crc32(text) == checksum:  # else it is being written
            return _parse_status(text)
    return None


def _parse_status(text: bytes) -> Status | None:
    try:
        raw = json.loads(text)
        return Status(**{name: raw[name] for name in _STATUS_FIELDS if name in raw})
    except (ValueError, TypeError, RecursionError):
        return None


def _read_values(descriptor: int) -> list[float]:
    """Read the values until two readings agree: none is torn then. What cannot be a count is 0."""
    content = b""
    for _ in range(_TRIES):
        again = os.pread(descriptor, _VALUES_BYTES, _VALUES_AT)
        if again == content:
            break
        content = again
    return [value if 0 <= value < math.inf else 0.0 for value in _VALUES.unpack(content)]


def _read_keys(descriptor: int) -> tuple[list[Key], int]:
    """Read the keys and how many bytes they take: up to the first that is torn, or is no key."""
    keys: list[Key] = []
    length = 0
    for line in _key_lines(descriptor):
        key = _parse_key(line)
        if key is None or len(keys) == _KEYS_AT_MOST:
            break
        keys.append(key)
        length += len(line) + 1
    return keys, length


def _key_lines(descriptor: int) -> Iterator[bytes]:
    """Give the whole lines ahead of the first NUL."""
    rest = b""
    for at in range(_KEYS_AT, _SLOT_BYTES, _BLOCK):
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


# --- writing ------------------------------------------------------------------------------------------------------


class SlotWriter:
    """The slot of this process: `beat` takes one and keeps it, `add` counts; both from any thread, neither fails.

    While there is no slot, or the disk takes nothing, counting goes on in memory, and is written when that is over.
    `overflow` bounds the keys: when a slot is almost full, a new key gets these values for these labels.
    """

    def __init__(self, folder: Path, overflow: Mapping[str, str]) -> None:
        self._folder = folder
        self._overflow = overflow
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._descriptor = -1
        self._identity = ""
        self._problem = ""
        self._forget()

    def add(self, amounts: Mapping[Key, float], ones: Iterable[Key] = ()) -> None:
        """Count amounts, and one for each of `ones`; write the counts to the slot."""
        with self._lock:
            values, indices = self._values, self._indices
            for key in ones:
                index = indices.get(key)
                values[self._index(key) if index is None else index] += 1.0
            for key, amount in amounts.items():
                index = indices.get(key)
                values[self._index(key) if index is None else index] += amount
            if self._path and not self._problem:
                try:
                    self._flush()
                except OSError as error:
                    self._complain(error)

    def beat(self, status: Status | None) -> None:
        """Give the sign of life; take a slot where there is none, and write what could not be written before.

        None: there is nothing to tell yet, and readers do not see what the process before has told.
        """
        with self._lock:
            try:
                if not self._is_intact():
                    self._release()
                    self._take()
                self._flush()
                self._write_status(status)
            except OSError as error:
                self._complain(error)
            else:
                self._problem = ""

    def _complain(self, error: OSError) -> None:
        problem = error.strerror or str(error)
        if problem != self._problem:
            _log.warning("%s: this helper's metrics are not kept for now: %s", self._folder, problem)
        self._problem = problem

    # The counts

    def _forget(self) -> None:
        self._indices: dict[Key, int] = {}
        self._lines: list[bytes] = []  # of the keys, in their order
        self._lines_bytes = 0
        self._lines_written = 0
        self._lines_end = _KEYS_AT
        self._values = array("d", bytes(_VALUES_BYTES + 8))  # one more, for what has no room
        self._shown = memoryview(self._values).cast("B")[:0]

    def _index(self, key: Key) -> int:
        """Find the place of a key, made where there is none; of another one where there is no room for it."""
        known = self._indices.get(key)
        if known is not None:
            return known
        line = _key_line(key)
        bounded = self._bounded(key)
        kept_free = _RESERVED if bounded != key else 0
        full = len(self._lines) >= _KEYS_AT_MOST - kept_free
        if full or self._lines_bytes + len(line) > _KEYS_BYTES - kept_free * _RESERVED_BYTES:
            return self._index(bounded) if bounded != key else _KEYS_AT_MOST
        self._lines.append(line)
        self._lines_bytes += len(line)
        self._indices[key] = len(self._lines) - 1
        return len(self._lines) - 1

    def _bounded(self, key: Key) -> Key:
        labels = {label: self._overflow.get(label, value) for label, value in key_labels(key).items()}
        return make_key(key[0], labels)

    def _flush(self) -> None:
        if self._lines_written < len(self._lines):
            self._write_keys()
        _pwrite(self._descriptor, self._shown, _VALUES_AT)

    def _write_keys(self) -> None:
        new = b"".join(self._lines[self._lines_written :])
        _pwrite(self._descriptor, new, self._lines_end)
        self._lines_written = len(self._lines)
        self._lines_end += len(new)
        self._shown = memoryview(self._values).cast("B")[: 8 * self._lines_written]

    # The slot

    def _is_intact(self) -> bool:
        """Whether there is a slot, and it is still the file that readers find."""
        if self._path is None:
            return False
        try:
            found = _is_found(self._descriptor, self._path)
        except OSError:
            return False
        return found and _read_identity(self._descriptor) == self._identity

    def _release(self) -> None:
        """Let go of a slot that was lost: what it held was read, or is gone with it."""
        if self._path is not None:
            self._path = None
            os.close(self._descriptor)
            self._forget()

    def _take(self) -> None:
        """Take a slot, and count on from what it holds."""
        path, descriptor = _take_free(self._folder)
        try:
            identity = _read_identity(descriptor) or _begin_anew(descriptor)
            values = _read_values(descriptor)
            keys, length = _read_keys(descriptor)
            _wipe_torn(descriptor, len(keys), length)
        except OSError:
            os.close(descriptor)
            raise
        counted = {key: self._values[index] for key, index in self._indices.items()}
        self._forget()
        self._path, self._descriptor, self._identity = path, descriptor, identity
        self._take_over(keys, length, values)
        for key, amount in counted.items():
            self._values[self._index(key)] += amount

    def _take_over(self, keys: list[Key], length: int, values: list[float]) -> None:
        self._lines = [_key_line(key) for key in keys]
        self._lines_bytes = length
        self._lines_written = len(keys)
        self._lines_end = _KEYS_AT + length
        self._indices = {key: index for index, key in enumerate(keys)}
        for index, value in enumerate(values[: len(keys)]):
            self._values[index] = value
        self._shown = memoryview(self._values).cast("B")[: 8 * len(keys)]

    def _write_status(self, status: Status | None) -> None:
        text = json.dumps(asdict(status)).encode() if status else b""
        if len(text) <= _STATUS_BYTES:
            _pwrite(self._descriptor, _STATUS_HEAD.pack(len(text), zlib.crc32(text)) + text, _STATUS_AT)


def _take_free(folder: Path) -> tuple[Path, int]:
    """Open and lock the first slot that no process has."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    refused: OSError | None = None
    for number in range(SLOTS):
        path = folder / f"slot-{number:02}"
        try:
            descriptor = _open_locked(path)
        except OSError as error:
            if error.errno not in _OF_THIS_FILE:
                raise
            refused = refused or error
            continue
        if descriptor is not None:
            return path, descriptor
    raise refused or OSError(errno.EBUSY, f"all {SLOTS} slots are taken")


def _open_locked(path: Path) -> int | None:
    """Open and lock a slot, made where there is none; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o640)
    try:
        if _lock(descriptor) and _is_found(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_found(descriptor: int, path: Path) -> bool:
    """Whether this is a regular file, and the one that stands at the path."""
    own, found = os.fstat(descriptor), os.stat(path)
    return stat.S_ISREG(own.st_mode) and (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def _begin_anew(descriptor: int) -> str:
    """Make an empty slot of a file; its header comes last, so that it is a slot only when it is whole."""
    os.ftruncate(descriptor, 0)
    os.posix_fallocate(descriptor, 0, _SLOT_BYTES)
    identity = os.urandom(_IDENTITY_BYTES)
    _pwrite(descriptor, _HEADER.pack(_MAGIC, identity), 0)
    return identity.hex()


def _wipe_torn(descriptor: int, keys: int, length: int) -> None:
    """Wipe what stands behind the last whole key: one that its writer did not live to finish, or garbage."""
    if os.pread(descriptor, 1, _KEYS_AT + length).strip(b"\0"):
        _pwrite(descriptor, bytes(_KEYS_BYTES - length), _KEYS_AT + length)
        _pwrite(descriptor, bytes(8 * (_KEYS_AT_MOST - keys)), _VALUES_AT + 8 * keys)


def _key_line(key: Key) -> bytes:
    return json.dumps([key[0], key_labels(key)]).encode() + b"\n"


def _pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the format ---------------------------------------------------------------------------------------------------

_MAGIC = b"sqkslot1"  # changes with anything below
_IDENTITY_BYTES = 8
_HEADER = struct.Struct(f">8s{_IDENTITY_BYTES}s")
_STATUS_AT = 64
_STATUS_HEAD = struct.Struct(">II")  # the length of the JSON, and its CRC-32
_STATUS_BYTES = 1024
_VALUES_AT = 4096
_KEYS_AT_MOST = 1024
_VALUES = struct.Struct(f"={_KEYS_AT_MOST}d")
_VALUES_BYTES = _VALUES.size
_KEYS_AT = _VALUES_AT + _VALUES_BYTES
_KEYS_BYTES = 128 << 10
_SLOT_BYTES = _KEYS_AT + _KEYS_BYTES
_RESERVED = 128  # keys for what has no label of the policy's: some twenty for each helper, and each `other`
_RESERVED_BYTES = 128

_SLOT_NAME = re.compile(r"slot-[0-9]{2}")
_STATUS_FIELDS = tuple(one.name for one in fields(Status))
_FLOCK = struct.Struct("@hhqqi0q")  # struct flock of a 64-bit Linux
_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OF_THIS_FILE = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO})
_TRIES = 10
_FOLDED = "folded"
_BLOCK = 16 << 10
