"""Reading the counter files of a folder, and adding them up."""

import fcntl
import json
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from squidkeeper.serving.counters import layout

_FILE_NAME = re.compile(r"slot-([0-9]{2}|[1-9][0-9]{2})")
_STATUS_FIELDS = tuple(field.name for field in fields(layout.HelperStatus))
_FLOCK = struct.Struct("@hhqqi0q")  # struct flock of a 64-bit Linux
_FOLDED = "folded"


@dataclass(frozen=True, slots=True)
class CounterFile:
    """A counter file as it was read.

    `running` tells whether a process has it now; status and samples of an ended process
    stay. There is no status while a process starts. `identity` changes when the file is
    created again. `problem` says why the file cannot be read; it then has neither
    status nor samples.
    """

    number: int
    running: bool
    identity: str = ""
    status: layout.HelperStatus | None = None
    samples: tuple[layout.Sample, ...] = ()
    problem: str | None = None


def read_all_counter_files(state: Path) -> Iterator[CounterFile]:
    """Read the counter files of a gateway, by its state folder; as
    `read_counter_files`.
    """
    for folder in layout.counter_folders(state):
        yield from read_counter_files(folder)


def read_counter_files(folder: Path) -> Iterator[CounterFile]:
    """Read the counter files of a folder in order; none if there is no folder, OSError
    if it cannot be read.

    Not for a process that has a counter file itself: closing a file releases the
    process's own lock on it.
    """
    for number in _counter_file_numbers(folder):
        file = _read_file(folder, number)
        if file:
            yield file


def _counter_file_numbers(folder: Path) -> list[int]:
    try:
        return sorted(
            int(found[1])
            for name in os.listdir(folder)
            if (found := _FILE_NAME.fullmatch(name))
        )
    except FileNotFoundError:
        return []


class Totals:
    """Adds counter files up so that no sum goes back, even if a file is unreadable,
    gone, or created again.

    `known` holds the last values of each file, by identity; pass it to a new `Totals`
    to continue after a restart.
    """

    def __init__(
        self, known: Mapping[str, Mapping[layout.Key, float]] | None = None
    ) -> None:
        self.known: dict[str, dict[layout.Key, float]] = {
            name: dict(values) for name, values in (known or {}).items()
        }

    def add_up(self, files: Iterable[CounterFile]) -> dict[layout.Key, float]:
        """Add up the samples of all files, and the last values of files that
        are gone.
        """
        for file in files:
            if file.problem is None:
                last = self.known.pop(file.identity, {})
                self.known[file.identity] = (
                    last  # at the end, so that the first are those unseen for longest
                )
                for metric, labels, value in file.samples:
                    key = layout.make_key(metric, labels)
                    last[key] = max(value, last.get(key, 0.0))
        self._fold()
        return _sum(self.known.values())

    def _fold(self) -> None:
        """Merge the files that are gone into one entry, so that `known` is bounded."""
        for identity in list(self.known)[: -2 * layout.COUNTER_FILES]:
            self.known[_FOLDED] = _sum(
                (self.known.pop(_FOLDED, {}), self.known.pop(identity, {}))
            )


def _sum(parts: Iterable[Mapping[layout.Key, float]]) -> dict[layout.Key, float]:
    total: dict[layout.Key, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _read_file(folder: Path, number: int) -> CounterFile | None:
    try:
        descriptor = os.open(
            folder / layout.file_name(number), os.O_RDONLY | layout.CAREFULLY
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        return CounterFile(
            number, running=False, problem=f"cannot be read: {error.strerror}"
        )
    try:
        return _read_open(number, descriptor)
    except (OSError, struct.error) as error:  # struct.error: it was just truncated
        return CounterFile(number, running=False, problem=f"cannot be read: {error}")
    finally:
        os.close(descriptor)


def _read_open(number: int, descriptor: int) -> CounterFile | None:
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        return CounterFile(number, running=False, problem="not a regular file")
    if not state.st_size:
        return None
    running = _is_locked(descriptor)
    identity = layout.read_identity(descriptor)
    if identity is None:
        return CounterFile(
            number, running, problem="not a counter file of this release"
        )
    values = layout.read_values(descriptor)
    # after the values, so that each value that counts has its key
    keys, _ = layout.read_keys(descriptor)
    samples = tuple(
        (key[0], layout.key_labels(key), value)
        for key, value in zip(keys, values, strict=False)
    )
    return CounterFile(number, running, identity, _read_status(descriptor), samples)


def _is_locked(descriptor: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)


def _read_status(descriptor: int) -> layout.HelperStatus | None:
    for _ in range(layout.TRIES):
        length, checksum = layout.STATUS_HEAD.unpack(
            os.pread(descriptor, layout.STATUS_HEAD.size, layout.STATUS_AT)
        )
        text = os.pread(
            descriptor,
            min(length, layout.STATUS_BYTES),
            layout.STATUS_AT + layout.STATUS_HEAD.size,
        )
        if zlib.crc32(text) == checksum:  # else it is being written
            return _parse_status(text)
    return None


def _parse_status(text: bytes) -> layout.HelperStatus | None:
    try:
        raw = json.loads(text)
        return layout.HelperStatus(
            **{name: raw[name] for name in _STATUS_FIELDS if name in raw}
        )
    except (ValueError, TypeError, RecursionError):
        return None
