"""Compiles long host lists: once, into a file that all helpers map into memory."""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

import marisa_trie

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.host_lists import (
    HostList,
    ListLine,
    ListSummary,
    network_key,
    stored_key,
)
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.policy_store.list_lines import LineReader, is_exception
from squidkeeper.policy.published.list_file import (
    FORMAT,
    UNFINISHED,
    host_list,
    read_compiled,
    write_compiled,
)


class ListChangedError(Exception):
    """The file has changed since its digest was taken."""


def list_digest(path: Path) -> str:
    """Hash the content of a list, without holding it in memory; OSError where it cannot
    be read.
    """
    with _open_list(path) as file:
        digest = _new_digest()
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def load_list(
    path: Path, digest: str, cache: Path | None = None, *, writes: bool = True
) -> HostList:
    """Load the list at `path`, whose content has this digest: from the cache, or
    compiled (into the cache).

    If several processes need the same list, one compiles it. If the cache cannot be
    written, the list stays in memory. A cached file that is damaged is compiled again.
    `ListChangedError`: the file has changed since the digest. Where the cache is
    another account's, it is read alone: not `writes`.
    """
    cached = cache / f"{digest}{_SUFFIX}" if cache else None
    found = read_compiled(cached)
    if found is None and not writes:
        found = _compile(path, digest, None)
    elif found is None:
        with _lock(cache) as lock:
            found = (
                read_compiled(cached)
                or _compile_long(path, digest, cached, lock)
                or _compile(path, digest, cached)
            )
    summary, trie = found
    return host_list(summary, trie, digest)


def prune_cache(cache: Path, used: Iterable[str]) -> None:
    """Delete compiled lists of other digests, except the newest few, and what a crash
    left half-written.
    """
    in_use = {f"{digest}{_SUFFIX}" for digest in used}
    try:
        spare = [
            path
            for path in cache.iterdir()
            if path.suffix == _SUFFIX and path.name not in in_use
        ]
        spare.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        torn = [
            path
            for path in cache.glob(f"*{UNFINISHED}")
            if path.stat().st_mtime < time.time() - _UNFINISHED_SECONDS
        ]
    except OSError:
        return  # another process is pruning, or there is no cache
    for path in (*spare[_SPARE_AT_MOST:], *torn):
        with suppress(
            OSError
        ):  # `squidkeeper secrets` reads the cache, and cannot change it
            path.unlink(missing_ok=True)


# --- compiling ------------------------------------------------------------------------


class _Compiler:
    """Turns the lines of a list into keys, and collects its summary."""

    def __init__(self) -> None:
        self.digest = _new_digest()
        self.patterns = 0
        self.prefixes: set[tuple[int, int]] = set()
        self.strange = 0
        self.first_strange: list[ListLine] = []
        self.widest: ListLine | None = None
        self.wide: ListLine | None = None
        self.exception: ListLine | None = None

    def keys(self, file: BinaryIO) -> Iterator[str]:
        """Yield the keys of all patterns; a host and all under it, in two lines of an
        RPZ zone, are one pattern.
        """
        held = ""
        for key in self._keys(file):
            if key == f"{HostForm.UNDER}{held}":
                held = f"{HostForm.TREE}{held}"
                continue
            if held:
                self.patterns += 1
                yield held
            held = key
        if held:
            self.patterns += 1
            yield held

    def _keys(self, file: BinaryIO) -> Iterator[str]:
        reader = LineReader()
        for number, line in enumerate(self._lines(file), 1):
            key = reader.plain_key(line)
            if key:
                yield key
            elif line:
                yield from self._read_keys(reader, ListLine(number, line))

    def _lines(self, file: BinaryIO) -> Iterator[str]:
        rest = b""
        while block := file.read(_BLOCK):
            self.digest.update(block)
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield from whole.decode("utf-8", "replace").split("\n")
            rest = rest[:_BLOCK]  # of a line without an end, enough that it is too long
        yield rest.decode("utf-8", "replace")

    def summary(self) -> ListSummary:
        prefixes = tuple(sorted(self.prefixes))
        noted = (self.widest, self.wide, self.exception)
        return ListSummary(
            self.patterns, prefixes, self.strange, tuple(self.first_strange), *noted
        )

    def _read_keys(self, reader: LineReader, line: ListLine) -> Iterator[str]:
        try:
            patterns = reader.patterns(line.text)
        except PatternError:
            self._note_strange(
                ListLine(line.number, line.text[:_SHOWN_LENGTH].strip()),
                is_exception(line.text.strip()),
            )
            return
        for pattern in patterns:
            yield self._key(
                ListLine(line.number, line.text[:_SHOWN_LENGTH].strip()), pattern
            )

    def _note_strange(self, line: ListLine, exception: bool) -> None:
        self.strange += 1
        if exception:
            self.exception = self.exception or line
        if len(self.first_strange) < _STRANGE_SHOWN:
            self.first_strange.append(line)

    def _key(self, line: ListLine, pattern: HostPattern) -> str:
        key = pattern.key
        if pattern.network is not None:
            self.prefixes.add((pattern.network.version, pattern.network.prefixlen))
            key = network_key(
                pattern.network.network_address, pattern.network.prefixlen
            )
        elif pattern.form is HostForm.ANY:
            self.widest = self.widest or line
        elif pattern.covers_top_level:
            self.wide = self.wide or line
        return key


def _compile_long(
    path: Path, digest: str, cached: Path | None, lock: int | None
) -> tuple[ListSummary, Any] | None:
    """Compile a long list in a child process, so that the helper neither grows nor
    stalls; None if that fails.

    The child holds the lock too: if the helper ends meanwhile, the next one waits and
    does not compile it again.
    """
    if (
        cached is None
        or lock is None
        or path.stat().st_size < _LONG_BYTES
        or not os.access(cached.parent, os.W_OK)
    ):
        return None
    command = [sys.executable, "-P", "-m", __name__, str(path), digest, str(cached)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    with suppress(OSError):
        subprocess.run(  # noqa: S603 - our own module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(lock,),
            check=False,
        )
    return read_compiled(cached)


def _compile(path: Path, digest: str, cached: Path | None) -> tuple[ListSummary, Any]:
    compiler = _Compiler()
    with _open_list(path) as file:
        trie = marisa_trie.Trie(map(stored_key, compiler.keys(file)))
    if compiler.digest.hexdigest() != digest:
        raise ListChangedError(str(path))
    summary = compiler.summary()
    if cached:
        with suppress(OSError):  # a full disk or a foreign directory: in memory then
            write_compiled(cached, summary, trie)
            return read_compiled(cached) or (summary, trie)
    return summary, trie


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16, person=FORMAT)


def _open_list(path: Path) -> Any:
    # a FIFO cannot hold us
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(EINVAL, "it is not a regular file", str(path))
    return open(opened, "rb")


# --- the cache ------------------------------------------------------------------------


@contextmanager
def _lock(cache: Path | None) -> Iterator[int | None]:
    """Let one process at a time compile.

    None: there is no cache that can be written, so each process compiles.
    """
    descriptor = None
    if cache:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


_SUFFIX = ".hosts"
_UNFINISHED_SECONDS = 3600
_SPARE_AT_MOST = 8
_STRANGE_SHOWN = 3
_BLOCK = 1 << 18
_LONG_BYTES = 1 << 18  # some ten thousand lines: compiled in 30 ms
_SHOWN_LENGTH = 60

if __name__ == "__main__":
    with suppress(
        ListChangedError, OSError
    ):  # the parent finds no compiled list, and compiles it itself
        _compile(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
