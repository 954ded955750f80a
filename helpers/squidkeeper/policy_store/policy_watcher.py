"""The policy in force (floor 4): watch, load, swap whole, keep the last good."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from squidkeeper.engine import CompiledPolicy
from squidkeeper.engine.selftest import run_tests
from squidkeeper.errors import PolicyError, describe
from squidkeeper.policy.faults import Fault
from squidkeeper.policy.revisions import InForce, in_force, keep, put_in_force, read
from squidkeeper.policy.sources import Sources, fingerprint, policy_files, read_sources
from squidkeeper.policy_store.open_writes import OpenWrites, UnfinishedFile

_FIRST_LOAD_SECONDS = 8
_LOOK_EVERY_SECONDS = 0.2
_SETTLE_SECONDS = 0.05
_KEEP_AGAIN_SECONDS = 10.0
_WRITE_SECONDS = 5.0  # a file that is open for writing for longer is a problem to report
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that loads, ready to decide by, and what is legal in it but surely unmeant."""

    compiled: CompiledPolicy
    warnings: tuple[Fault, ...]


def load(directory: Path, now: datetime, list_cache: Path | None = None) -> LoadedPolicy:
    """Load a policy and run its tests; `PolicyError` with every fault where it does not load."""
    return load_sources(read_sources(directory), now, list_cache)


def load_sources(
    sources: Sources, now: datetime, list_cache: Path | None = None, ended: frozenset[str] = frozenset()
) -> LoadedPolicy:
    """Load a policy from what was read, and run its tests; `PolicyError` with every fault where it does not load.

    `ended` names the files that ended with `end: true` in the revision before.
    """
    from squidkeeper.policy.load import build  # late: the sources come to rest while it is imported

    built = build(sources, list_cache=sources.compiled or list_cache, ended=ended)
    compiled = CompiledPolicy(built.policy)
    faults, warnings = run_tests(compiled, now)
    all_warnings = (*built.warnings, *warnings)
    if faults:
        raise PolicyError(faults, all_warnings)
    return LoadedPolicy(compiled, all_warnings)


def load_kept(folder: Path, revision: str) -> CompiledPolicy:
    """Load a revision that was in force, to decide by it once more; its tests held then, and are not run.

    OSError where it is not kept, or not whole; `PolicyError` where this release does not take it any more.
    """
    from squidkeeper.policy.load import build  # late, as above

    sources = read(folder, revision)
    compiled = CompiledPolicy(build(sources, list_cache=sources.compiled).policy)
    if compiled.revision != revision:
        raise OSError(errno.EIO, f"what is kept is revision {compiled.revision}", str(folder / revision))
    return compiled


@dataclass(frozen=True, slots=True)
class PolicyState:
    """How the policy on disk is, at the last look that found it changed.

    `revision` is in force since `loaded` (seconds since 1970), None where none has ever loaded. `ok`: it is what is on
    disk; else `problem` says why not, with the faults where it has some. `warnings` are those of the one in force.
    """

    revision: str | None = None
    loaded: float | None = None
    ok: bool = False
    problem: str = "it was not looked at yet"
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


class PolicyWatcher(Generic[T]):
    """The policy in force, as what a helper makes of it by `prepare`; None until one has loaded.

    `current` is replaced whole: take it once for each line, and finish the line with what was taken. So is `state`.
    What was loaded is kept in the folder `revisions`, by the thread that watches: nobody waits for that.
    A file that is being written is not loaded. A process that starts meanwhile begins with the revision that was in
    force before, until the file is complete.
    """

    def __init__(
        self,
        directory: Path,
        list_cache: Path | None,
        prepare: Callable[[CompiledPolicy], T],
        revisions: Path | None = None,
    ) -> None:
        self.current: T | None = None
        self.state = PolicyState()
        self._directory = directory
        self._list_cache = list_cache
        self._prepare = prepare
        self._named: tuple[Path, ...] = ()
        self._lists: tuple[Path, ...] = ()
        self._documents: object = None
        self._seen: object = None
        self._refused = ""
        self._revisions = revisions
        self._unkept: tuple[Sources, str] | None = None
        self._keep_at = 0.0
        self._not_kept = ""
        self._before: InForce | None = None
        self._began_with_before = False
        self._writes: OpenWrites | None = None
        self._unwatched = ""

    def start(self) -> None:
        """Load the policy and watch it, in a thread that ends with the process; wait for the first one, not for ever.

        Who goes on without one denies: a directory on a file system that hangs must not keep those waiting who ask.
        """
        looked = threading.Event()
        threading.Thread(target=self._watch, args=(looked,), name="policy watch", daemon=True).start()
        if not looked.wait(_FIRST_LOAD_SECONDS):
            _log.error("%s: not read after %d s, which goes on", self._directory, _FIRST_LOAD_SECONDS)

    def look(self) -> None:
        """Load the policy if it has changed since the last look, and has come to rest."""
        try:
            self._look()
        except PolicyError as error:
            self._end_with_before()
            self._refuse(str(error), error.faults)
        except Exception as error:  # noqa: BLE001 - a policy that we fail on must not end the watch, nor the helper
            self._end_with_before()
            self._refuse(f"squidkeeper itself failed on it: {describe(error)}")

    def _watch(self, looked: threading.Event) -> None:
        self.look()
        looked.set()
        while True:
            self._keep()
            time.sleep(_LOOK_EVERY_SECONDS)
            self.look()

    def _keep(self) -> None:
        """Keep what was loaded last; where that fails, again after some seconds."""
        if self._unkept is None or self._revisions is None or time.monotonic() < self._keep_at:
            return
        sources, revision = self._unkept
        try:
            keep(sources, revision, self._revisions, self._list_cache)
            put_in_force(self._revisions, revision)
        except Exception as error:  # noqa: BLE001 - nor may one that we fail to keep end the watch
            self._keep_at = time.monotonic() + _KEEP_AGAIN_SECONDS
            why = str(error) if isinstance(error, OSError) else describe(error)
            self._complain(f"revision {revision} is not kept, so the record cannot be held against it: {why}")
        else:
            self._unkept, self._not_kept = None, ""

    def _complain(self, problem: str) -> None:
        if problem != self._not_kept:
            _log.warning("%s", problem)
        self._not_kept = problem

    def _look(self) -> None:
        writes = self._begin() if self._writes is None else self._writes
        if fingerprint(self._directory, self._named) == self._seen:
            writes.read()
            return
        documents = fingerprint(self._directory)
        lists = self._lists if documents == self._documents else ()  # an edit may name others
        unfinished = self._unfinished(writes, lists)
        if self.current is not None and self._waits(unfinished):
            return
        settled = time.monotonic() + _SETTLE_SECONDS
        sources = read_sources(self._directory)
        self._lists, self._documents = tuple(sources.lists), documents
        loaded = self._load(sources)
        time.sleep(max(0.0, settled - time.monotonic()))
        if fingerprint(self._directory, sources.named) != sources.fingerprint:
            return  # an edit is under way; the next look finds it done
        if not self._is_in_force(loaded) and self._waits(self._unfinished(writes, self._lists)):
            return
        writes.take_as_complete()
        self._named, self._seen, self._refused = sources.named, sources.fingerprint, ""
        if isinstance(loaded, PolicyError):
            raise loaded
        self._take(sources, loaded)

    def _begin(self) -> OpenWrites:
        """Begin to watch for writes, and find out what was in force before this process."""
        self._writes = writes = OpenWrites(self._revisions and self._revisions / "being-written.lock")
        before = in_force(self._revisions) if self._revisions else None
        self._before = before if before and before.directory == self._directory.absolute() else None
        return writes

    def _take(self, sources: Sources, loaded: LoadedPolicy) -> None:
        """Put a policy in force."""
        compiled, revision = loaded.compiled, loaded.compiled.revision
        self.current = self._prepare(compiled)
        self.state = PolicyState(revision, time.time(), ok=True, problem="", warnings=loaded.warnings)
        self._unkept = (sources, revision)
        self._before = InForce(revision, self._directory.absolute(), sources.ended)
        self._began_with_before = False
        _log.info("%s: revision %s is in force", self._directory, revision)
        for warning in loaded.warnings:
            _log.warning("%s", warning)

    def _load(self, sources: Sources) -> LoadedPolicy | PolicyError:
        ended = self._before.ended if self._before else frozenset()
        try:
            return load_sources(sources, datetime.now(UTC), self._list_cache, ended)
        except PolicyError as error:
            return error

    def _is_in_force(self, loaded: LoadedPolicy | PolicyError) -> bool:
        """Tell whether what is on disk is the revision that was in force before."""
        before = self._before
        return isinstance(loaded, LoadedPolicy) and before is not None and loaded.compiled.revision == before.revision

    # Files that are being written

    def _unfinished(self, writes: OpenWrites, lists: tuple[Path, ...]) -> UnfinishedFile | None:
        """Find a file that is being written among those of the policy's directory and some of its lists."""
        files = policy_files(self._directory)
        writes.watch(self._directory, files, self._lists)
        if writes.problem != self._unwatched:
            _log.warning("%s: %s", self._directory, writes.problem)
        self._unwatched = writes.problem
        return writes.find((*files, *lists))

    def _waits(self, unfinished: UnfinishedFile | None) -> bool:
        """Tell whether to wait until a file is complete; what was in force before goes on meanwhile."""
        if unfinished is None:
            return False
        if self.current is None:
            self._begin_with_before()
        if self.current is None and not unfinished.known:
            return False  # the first policy of all: nothing could go on meanwhile
        if time.time() - unfinished.since > _WRITE_SECONDS:
            self._refuse(_still_open(unfinished))
        return True

    def _begin_with_before(self) -> None:
        """Begin with the revision that was in force before this process."""
        if self._before is None or self._revisions is None:
            return
        revision = self._before.revision
        try:
            compiled = load_kept(self._revisions, revision)
        except (OSError, PolicyError) as error:
            _log.warning("revision %s, which was in force before, cannot be loaded: %s", revision, error)
            return
        self.current = self._prepare(compiled)
        self.state = PolicyState(revision, time.time(), ok=True, problem="")
        self._began_with_before = True
        _log.info("%s: being written, so revision %s goes on", self._directory, revision)

    def _end_with_before(self) -> None:
        """Deny everything where the files are complete and do not load, as in a process that starts then."""
        if self._began_with_before:
            self.current, self.state, self._began_with_before = None, PolicyState(), False

    def _refuse(self, why: str, faults: tuple[Fault, ...] = ()) -> None:
        self.state = replace(self.state, ok=False, problem=why, faults=faults)
        if why == self._refused:
            return
        self._refused = why
        kept = "everything is denied" if self.current is None else "the last good policy goes on"
        _log.error("%s does not load, %s:\n%s", self._directory, kept, why)


def _still_open(unfinished: UnfinishedFile) -> str:
    since = datetime.fromtimestamp(unfinished.since, UTC).strftime("%H:%M:%S UTC")
    return (
        f"{unfinished.path}: open for writing since {since}, so it is not loaded: "
        "close it, or replace it by a file that is complete (mv); touch declares it complete as it is"
    )
