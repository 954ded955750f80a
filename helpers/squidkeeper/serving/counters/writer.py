"""Counting in a counter file."""

import errno
import fcntl
import json
import logging
import os
import stat
import threading
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from squidkeeper.serving.counters import layout

_log = logging.getLogger(__name__)
# keys without a label from the policy: some twenty for each helper, and each `other`
_RESERVED = 128
_RESERVED_BYTES = 128
_ERRORS_OF_ONE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO}
)


class CounterWriter:
    """The counter file of this process: `beat` takes one and holds it, `add` counts.

    Thread-safe; neither fails.

    Without a file, or while the disk cannot be written, the counts stay in memory and
    are written later. `overflow` bounds the keys: when the file is almost full, a new
    key gets these values for these labels.
    """

    def __init__(self, folder: Path, overflow: Mapping[str, str]) -> None:
        self._folder = folder
        self._overflow = overflow
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._descriptor = -1
        self._identity = ""
        self._problem = ""
        self._reset()

    def add(
        self, amounts: Mapping[layout.Key, float], ones: Iterable[layout.Key] = ()
    ) -> None:
        """Add amounts, and one for each of `ones`; write the counts to the file."""
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
                    self._log_problem(error)

    def beat(self, status: layout.HelperStatus | None) -> None:
        """Write the heartbeat and all unwritten counts; take a counter file if there is
        none.

        None: there is no status yet. Readers then do not see the status of the process
        before.
        """
        with self._lock:
            try:
                if not self._is_intact():
                    self._release()
                    self._take()
                self._flush()
                self._write_status(status)
            except OSError as error:
                self._log_problem(error)
            else:
                self._problem = ""

    def _log_problem(self, error: OSError) -> None:
        problem = error.strerror or str(error)
        if problem != self._problem:
            _log.warning(
                "%s: the metrics of this helper cannot be written: %s",
                self._folder,
                problem,
            )
        self._problem = problem

    # The counts

    def _reset(self) -> None:
        self._indices: dict[layout.Key, int] = {}
        self._lines: list[bytes] = []  # of the keys, in their order
        self._lines_bytes = 0
        self._lines_written = 0
        self._lines_end = layout.KEYS_AT
        # one more, for keys without room
        self._values = array("d", bytes(layout.VALUES_BYTES + 8))
        self._in_use = memoryview(self._values).cast("B")[:0]

    def _index(self, key: layout.Key) -> int:
        known = self._indices.get(key)
        if known is not None:
            return known
        line = layout.key_line(key)
        bounded = self._bounded(key)
        reserved = _RESERVED if bounded != key else 0
        full = len(self._lines) >= layout.KEYS_AT_MOST - reserved
        if (
            full
            or self._lines_bytes + len(line)
            > layout.KEYS_BYTES - reserved * _RESERVED_BYTES
        ):
            return self._index(bounded) if bounded != key else layout.KEYS_AT_MOST
        self._lines.append(line)
        self._lines_bytes += len(line)
        self._indices[key] = len(self._lines) - 1
        return len(self._lines) - 1

    def _bounded(self, key: layout.Key) -> layout.Key:
        labels = {
            label: self._overflow.get(label, value)
            for label, value in layout.key_labels(key).items()
        }
        return layout.make_key(key[0], labels)

    def _flush(self) -> None:
        if self._lines_written < len(self._lines):
            self._write_keys()
        _pwrite(self._descriptor, self._in_use, layout.VALUES_AT)

    def _write_keys(self) -> None:
        new = b"".join(self._lines[self._lines_written :])
        _pwrite(self._descriptor, new, self._lines_end)
        self._lines_written = len(self._lines)
        self._lines_end += len(new)
        self._in_use = memoryview(self._values).cast("B")[: 8 * self._lines_written]

    # The counter file

    def _is_intact(self) -> bool:
        if self._path is None:
            return False
        try:
            found = _is_found(self._descriptor, self._path)
        except OSError:
            return False
        return found and layout.read_identity(self._descriptor) == self._identity

    def _release(self) -> None:
        if self._path is not None:
            self._path = None
            os.close(self._descriptor)
            self._reset()

    def _take(self) -> None:
        path, descriptor = _take_free(self._folder)
        try:
            identity = layout.read_identity(descriptor) or _create(descriptor)
            values = layout.read_values(descriptor)
            keys, length = layout.read_keys(descriptor)
            _wipe_torn(descriptor, len(keys), length)
        except OSError:
            os.close(descriptor)
            raise
        unwritten = {key: self._values[index] for key, index in self._indices.items()}
        self._reset()
        self._path, self._descriptor, self._identity = path, descriptor, identity
        self._continue(keys, length, values)
        for key, amount in unwritten.items():
            self._values[self._index(key)] += amount

    def _continue(
        self, keys: list[layout.Key], length: int, values: list[float]
    ) -> None:
        self._lines = [layout.key_line(key) for key in keys]
        self._lines_bytes = length
        self._lines_written = len(keys)
        self._lines_end = layout.KEYS_AT + length
        self._indices = {key: index for index, key in enumerate(keys)}
        for index, value in enumerate(values[: len(keys)]):
            self._values[index] = value
        self._in_use = memoryview(self._values).cast("B")[: 8 * len(keys)]

    def _write_status(self, status: layout.HelperStatus | None) -> None:
        text = json.dumps(asdict(status)).encode() if status else b""
        if len(text) <= layout.STATUS_BYTES:
            _pwrite(
                self._descriptor,
                layout.STATUS_HEAD.pack(len(text), zlib.crc32(text)) + text,
                layout.STATUS_AT,
            )


def _take_free(folder: Path) -> tuple[Path, int]:
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    refused: OSError | None = None
    for number in range(layout.COUNTER_FILES):
        path = folder / layout.file_name(number)
        try:
            descriptor = _open_locked(path)
        except OSError as error:
            if error.errno not in _ERRORS_OF_ONE_FILE:
                raise
            refused = refused or error
            continue
        if descriptor is not None:
            return path, descriptor
    raise refused or OSError(
        errno.EBUSY, f"all {layout.COUNTER_FILES} counter files are taken"
    )


def _open_locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | layout.CAREFULLY, 0o640)
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
    own, found = os.fstat(descriptor), os.stat(path)
    return stat.S_ISREG(own.st_mode) and (own.st_dev, own.st_ino) == (
        found.st_dev,
        found.st_ino,
    )


def _create(descriptor: int) -> str:
    os.ftruncate(descriptor, 0)
    os.posix_fallocate(descriptor, 0, layout.FILE_BYTES)
    identity = os.urandom(layout.IDENTITY_BYTES)
    _pwrite(descriptor, layout.HEADER.pack(layout.MAGIC, identity), 0)
    return identity.hex()


def _wipe_torn(descriptor: int, keys: int, length: int) -> None:
    """Wipe what follows the last whole key: a key that was not finished, or garbage."""
    if os.pread(descriptor, 1, layout.KEYS_AT + length).strip(b"\0"):
        _pwrite(descriptor, bytes(layout.KEYS_BYTES - length), layout.KEYS_AT + length)
        _pwrite(
            descriptor,
            bytes(8 * (layout.KEYS_AT_MOST - keys)),
            layout.VALUES_AT + 8 * keys,
        )


def _pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
