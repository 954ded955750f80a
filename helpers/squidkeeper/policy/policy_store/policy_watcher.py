"""The policy in force: watch its files, load them, replace it whole, keep the last good
one.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from squidkeeper.base.errors import PolicyError, describe
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import (
    LoadedPolicy,
    load_sources,
    load_stored_revision,
)
from squidkeeper.policy.policy_store.open_writes import OpenWrites, UnfinishedFile
from squidkeeper.policy.policy_store.reload_gate import (
    PATIENCE_SECONDS,
    Edit,
    EditGate,
    EditJudge,
    Passage,
    gate_faults,
)
from squidkeeper.policy.policy_store.revisions import (
    InForce,
    RevisionWriter,
    revision_in_force,
)
from squidkeeper.policy.policy_store.sources import (
    Sources,
    fingerprint,
    fingerprint_of_folders,
    folders_of,
    grants_file,
    policy_file_names,
    read_sources,
)
from squidkeeper.policy.published.policy_state import PolicyState

_FIRST_LOAD_SECONDS = 8
_CHECK_EVERY_SECONDS = 0.2
_SETTLE_SECONDS = 0.05
_LOOKING_SHARE = 1 / 400  # of a core, in each process
_WRITE_SECONDS = 5.0  # a file that is open for writing for longer is reported
_log = logging.getLogger(__name__)
T = TypeVar("T")


class FileWatch:
    """The files of one policy, as one thread sees them: whether they have changed, and
    whether they are complete.

    The state of each file is read when inotify reports something, or a folder is not
    as it was. On a file system of a network nothing reports an edit in place. So the
    files are also read without a report, as often as `_LOOKING_SHARE` allows: a small
    policy at each check, one of 2,000 files every few seconds.

    `lock_file` is the one that all processes share; see `OpenWrites`.
    """

    def __init__(self, directory: Path, lock_file: Path | None) -> None:
        self._directory = directory
        self._writes = OpenWrites(lock_file)
        self._lists: tuple[Path, ...] = ()  # of the documents that were read last
        self._documents: object = None  # their fingerprint
        self._named: tuple[Path, ...] = ()
        self._taken: object = None
        self._folders: frozenset[str] = frozenset()
        self._folders_taken: object = None
        self._look_at = 0.0  # by the monotonic clock

    @property
    def problem(self) -> str:
        """Why inotify cannot be used, else empty."""
        return self._writes.problem

    def changed(self) -> bool:
        """Whether a file has changed since `take`."""
        self._writes.read()
        folders = fingerprint_of_folders(self._folders)
        is_due = time.monotonic() >= self._look_at
        if folders == self._folders_taken and not self._writes.reported and not is_due:
            return False
        self._writes.reported = False  # what is reported from here on counts again
        began = time.thread_time()
        if fingerprint(self._directory, self._named) != self._taken:
            self._writes.reported = True
            return True
        cost = time.thread_time() - began
        self._look_at = time.monotonic() + cost / _LOOKING_SHARE
        self._folders_taken = folders
        return False

    def read(self) -> Sources:
        """Read the files."""
        sources = read_sources(self._directory)
        self._lists = tuple(sources.lists)
        self._documents = sources.fingerprint_of_documents
        return sources

    def is_current(self, sources: Sources) -> bool:
        """Whether the files on disk are still those that were read."""
        return fingerprint(self._directory, sources.named) == sources.fingerprint

    def unfinished(self, *, edited: bool) -> UnfinishedFile | None:
        """Find a file that is being written: a policy file, or a list that the policy
        names.

        With `edited`, the policy files may have changed since `read`, and then may name
        other lists: only they count.
        """
        lists = self._lists
        if lists and edited and fingerprint(self._directory) != self._documents:
            lists = ()
        files = policy_file_names(self._directory)
        self._writes.watch(
            (self._directory, grants_file(self._directory).parent), files, self._lists
        )
        return self._writes.find((*files, *lists))

    def take(self, sources: Sources) -> None:
        """Take the files that were read as complete: only a later change
        counts as one.
        """
        self._writes.take_as_complete()
        self._named, self._taken = sources.named, sources.fingerprint
        self._folders = folders_of(self._directory, sources.fingerprint)
        self._folders_taken = None  # the next check reads the files once more

    def forget(self) -> None:
        """Take the files as changed, whatever they are."""
        self._taken, self._look_at = None, 0.0
        self._folders_taken = None


class PolicyWatcher(Generic[T]):
    """The policy in force, as what `prepare` makes of it; None until one has loaded.

    `current` and `state` are replaced whole: take `current` once for each line, and use
    that until the line is done. The watching thread stores what was loaded in the
    folder `revisions`; nobody waits for that. A file that is being written is not
    loaded. A process that starts meanwhile, or while an edit replaces another, starts
    with the revision that was in force before, until the files are complete.
    """

    def __init__(
        self,
        directory: Path,
        list_cache: Path | None,
        prepare: Callable[[CompiledPolicy], T],
        revisions: Path | None = None,
        *,
        logs: bool = True,
        published: Callable[[CompiledPolicy], bytes] = lambda _: b"",
        judge: EditJudge | None = None,
    ) -> None:
        self.current: T | None = None
        self._not_read = PolicyState(
            faults=(
                Fault(
                    Location(str(directory)),
                    FaultCode.NOT_READ,
                    "the policy is not read yet",
                ),
            )
        )
        self.state = self._not_read
        self._directory = directory
        self._list_cache = list_cache
        self._prepare = prepare
        self._revisions = revisions
        self._logs = logs  # else whoever reads what is published tells it
        self._published = published
        self._writer = RevisionWriter(revisions, list_cache)
        self._gate = EditGate(directory, revisions, judge)
        self._files: FileWatch | None = None
        self._compiled: CompiledPolicy | None = None  # as the files had it last
        self._watch_problem = self.store_problem = self._gate_problem = ""
        self._refused = ""
        self._previous: InForce | None = None
        self._started_with_previous = False

    def start(self) -> None:
        """Load the policy and watch it, in a thread that ends with the process; wait
        for the first load, up to 8 s.

        A process without a policy denies. So a directory on a file system that hangs
        does not hold up its requests.
        """
        checked = threading.Event()
        threading.Thread(
            target=self._watch, args=(checked,), name="policy watch", daemon=True
        ).start()
        if not checked.wait(_FIRST_LOAD_SECONDS):
            _log.error(
                "%s: not read after %d s; reading goes on",
                self._directory,
                _FIRST_LOAD_SECONDS,
            )

    def check(self) -> None:
        """Load the policy if it has changed since the last check, and is complete."""
        try:
            self._check()
        except PolicyError as error:
            self._drop_previous()
            self._refuse(error.faults)
        except Exception as error:  # noqa: BLE001 - a policy that we fail on must not end the watch, nor the helper
            self._drop_previous()
            message = f"squidkeeper itself failed on it: {describe(error)}"
            self._refuse(
                (
                    Fault(
                        Location(str(self._directory)),
                        FaultCode.INTERNAL_ERROR,
                        message,
                    ),
                )
            )

    def store(self) -> None:
        """Store the revision that was loaded last, if that is still to be done.

        A failure is logged once.
        """
        problem = ""
        try:
            self._restore()
            self._writer.write()
        except Exception as error:  # noqa: BLE001 - nor may a revision that we fail to store end the watch
            problem = str(error) if isinstance(error, OSError) else describe(error)
            if problem != self.store_problem:
                _log.error(
                    "revision %s cannot be published, so it is not in force: %s",
                    self.state.revision,
                    problem,
                )
            self.store_problem = problem
        if not problem and not self._writer.is_pending:
            self.store_problem = ""

    def _restore(self) -> None:
        """Publish the revision in force again, where its files were altered."""
        revision = self._writer.altered()
        if revision is None or revision != self.state.revision or not self._compiled:
            return
        try:
            self._writer.publish(revision, self._published(self._compiled))
        except FileNotFoundError:  # nor is the revision stored any more
            if self._files:
                self._files.forget()
        _log.warning(
            "what was published of revision %s was altered: it is published again",
            revision,
        )

    def _watch(self, checked: threading.Event) -> None:
        self.check()
        checked.set()
        while True:
            self.store()
            time.sleep(_CHECK_EVERY_SECONDS)
            self.check()

    def _check(self) -> None:
        files = self._files or self._begin()
        edited = files.changed()
        if not edited and not self._ends_hold():
            return
        unfinished = self._unfinished(files, edited=True)
        if self.current is not None and self._waits(unfinished):
            return
        settled = time.monotonic() + _SETTLE_SECONDS
        sources = files.read()
        loaded = self._load(sources)
        time.sleep(max(0.0, settled - time.monotonic()))
        if not files.is_current(
            sources
        ):  # an edit is under way; the next check finds it complete
            if self.current is None:
                self._start_with_previous("being edited")
            return
        if not self._is_previous(loaded) and self._waits(
            self._unfinished(files, edited=False)
        ):
            return
        files.take(sources)
        if isinstance(loaded, PolicyError):
            self._gate.release()
            self._refused = ""
            raise loaded
        passage = self._passage(
            loaded.compiled.revision, sources.revision_without_granted, again=edited
        )
        if passage in (Passage.ACCEPTED, Passage.UNJUDGED):
            self._refused = ""
            self._gate.release()
            self._put_in_force(sources, loaded, unjudged=passage is Passage.UNJUDGED)

    def _begin(self) -> FileWatch:
        self._files = files = FileWatch(
            self._directory, self._revisions and self._revisions / "being-written.lock"
        )
        self._previous = self._marked()
        return files

    def _marked(self) -> InForce | None:
        found = revision_in_force(self._revisions) if self._revisions else None
        return (
            found if found and found.directory == self._directory.absolute() else None
        )

    def _load(self, sources: Sources) -> LoadedPolicy | PolicyError:
        ended = self._previous.ended if self._previous else frozenset()
        try:
            return load_sources(sources, datetime.now(UTC), self._list_cache, ended)
        except PolicyError as error:
            return error

    def _put_in_force(
        self, sources: Sources, loaded: LoadedPolicy, *, unjudged: bool
    ) -> None:
        compiled, revision = loaded.compiled, loaded.compiled.revision
        warnings = (
            (*loaded.warnings, self._unjudged(revision))
            if unjudged
            else loaded.warnings
        )
        self.current = self._prepare(compiled)
        self._compiled = compiled
        self.state = PolicyState(revision, time.time(), ok=True, warnings=warnings)
        self._writer.loaded(sources, revision, self._published(compiled))
        ungranted = sources.revision_without_granted
        self._previous = InForce(
            revision,
            self._directory.absolute(),
            sources.ended,
            sources.gated,
            ungranted,
        )
        self._started_with_previous = False
        if self._logs:
            _log.info("%s: revision %s is in force", self._directory, revision)
            for warning in warnings:
                _log.warning("%s", warning)

    def _refuse(self, faults: tuple[Fault, ...]) -> None:
        self.state = replace(self.state, ok=False, faults=faults, held=None)
        problem = self.state.problem
        if problem == self._refused:
            return
        self._refused = problem
        effect = (
            "everything is denied"
            if self.current is None
            else "the last good policy goes on"
        )
        if self._logs:
            _log.error("%s does not load, %s:\n%s", self._directory, effect, problem)

    # --- edits that a reload gate holds back ------------------------------------------

    def _passage(self, revision: str, ungranted: str, *, again: bool) -> Passage:
        """Ask the reload gate of the policy in force about the revision on disk; not
        about what commands grant.
        """
        previous = self._previous
        if previous is None or not previous.gated or previous.revision == revision:
            return Passage.ACCEPTED
        if previous.ungranted == ungranted:
            return Passage.ACCEPTED
        is_start = self.current is None
        if is_start and self._revisions:
            self._start_with_previous("an edit waits for the reload gate")
        if self.current is None:
            return Passage.ACCEPTED  # there is nothing that could go on
        self._started_with_previous = False
        passage = self._ask(
            Edit(previous.revision, revision), again=again and not is_start
        )
        if passage is Passage.HELD:
            self.state = replace(self.state, ok=False, faults=(), held=revision)
            limit = f"{PATIENCE_SECONDS:.0f} s"
            _log.info(
                "%s: the reload gate judges revision %s, for %s at most",
                self._directory,
                revision,
                limit,
            )
        elif passage is Passage.REFUSED:
            self._refuse(self._gated())
        return passage

    def _ask(self, edit: Edit, *, again: bool) -> Passage:
        problem = ""
        try:
            passage = self._gate.ask(edit, again=again)
        except OSError as error:
            passage, problem = Passage.HELD, error.strerror or str(error)
            if problem != self._gate_problem:
                _log.warning(
                    "%s: the reload gate cannot be asked: %s", self._directory, problem
                )
        self._gate_problem = problem
        return passage

    def _ends_hold(self) -> bool:
        if self._gate.held is None:
            return False
        passage = self._gate.answer()
        if passage is Passage.REFUSED:
            self._refuse(self._gated())
        return passage in (Passage.ACCEPTED, Passage.UNJUDGED)

    def _gated(self) -> tuple[Fault, ...]:
        verdict = self._gate.verdict
        return gate_faults(self._directory, verdict) if verdict else ()

    def _unjudged(self, revision: str) -> Fault:
        message = (
            f"revision {revision} is in force without a verdict of the reload gate, which gave none within"
            f" {PATIENCE_SECONDS:.0f} s: the log of the publisher says why"
        )
        return Fault(Location(str(self._directory)), FaultCode.RELOAD_UNJUDGED, message)

    # --- files that are being written -------------------------------------------------

    def _unfinished(self, files: FileWatch, *, edited: bool) -> UnfinishedFile | None:
        found = files.unfinished(edited=edited)
        if files.problem != self._watch_problem:
            _log.warning("%s: %s", self._directory, files.problem)
        self._watch_problem = files.problem
        return found

    def _waits(self, unfinished: UnfinishedFile | None) -> bool:
        if unfinished is None:
            return False
        if self.current is None:
            self._start_with_previous("being written")
        if self.current is None and not unfinished.known:
            return False  # the first policy of all: there is nothing that could go on
        if time.time() - unfinished.since > _WRITE_SECONDS:
            self._refuse((_still_open(unfinished),))
        return True

    def _is_previous(self, loaded: LoadedPolicy | PolicyError) -> bool:
        previous = self._previous.revision if self._previous else None
        return isinstance(loaded, LoadedPolicy) and loaded.compiled.revision == previous

    def _start_with_previous(self, why: str) -> None:
        self._started_with_previous = self._load_previous(why)

    def _load_previous(self, why: str) -> bool:
        """Put the revision in force that another process, or one before this, has
        loaded; tell whether it loads.
        """
        if self._previous is None or self._revisions is None:
            return False
        revision = self._previous.revision
        try:
            compiled = load_stored_revision(self._revisions, revision)
        except (OSError, PolicyError) as error:
            _log.warning(
                "revision %s, which was in force before, cannot be loaded: %s",
                revision,
                error,
            )
            return False
        self.current = self._prepare(compiled)
        self.state = PolicyState(revision, time.time(), ok=True)
        _log.info("%s: %s, so revision %s goes on", self._directory, why, revision)
        return True

    def _drop_previous(self) -> None:
        """Deny everything if the files are complete and do not load, as in a process
        that starts then.
        """
        if self._started_with_previous:
            self.current, self.state, self._started_with_previous = (
                None,
                self._not_read,
                False,
            )


def _still_open(unfinished: UnfinishedFile) -> Fault:
    since = datetime.fromtimestamp(unfinished.since, UTC).strftime("%H:%M:%S UTC")
    message = (
        f"open for writing since {since}, so it is not loaded: "
        "close it, or replace it by a file that is complete (mv); touch declares it complete as it is"
    )
    return Fault(Location(str(unfinished.path)), FaultCode.BEING_WRITTEN, message)
