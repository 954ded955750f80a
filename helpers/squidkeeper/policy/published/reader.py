"""The policy in force, as the process that publishes it has put it there."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from squidkeeper.base.errors import InvalidPublication, OtherPolicy, describe
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.published.list_file import read_list
from squidkeeper.policy.published.places import (
    list_file,
    marked_in_force,
    publication_file,
)
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.published.publication import read_publication
from squidkeeper.policy.published.state_file import read_state, written_at

_FIRST_SECONDS = 20  # a large policy, on a machine that is at work
_CHECK_EVERY_SECONDS = 0.2
_FIRST_CHECK_EVERY_SECONDS = 0.02
# what is wrong here, and not with the files
_OF_OURS = frozenset({FaultCode.NOT_READ, FaultCode.NOT_PUBLISHED})
_log = logging.getLogger(__name__)
T = TypeVar("T")


def load_published(folder: Path, revision: str, directory: Path) -> CompiledPolicy:
    """Read a revision of a directory that was published; OSError where it is not there,
    `InvalidPublication` where it cannot be read, or is that of another directory.
    """
    policy = read_publication(
        publication_file(folder, revision),
        lambda digest: read_list(list_file(folder, revision, digest)),
        directory,
    )
    if policy.revision != revision:
        raise InvalidPublication(f"{revision} holds revision {policy.revision}")
    return policy


class PolicyReader(Generic[T]):
    """The policy in force, as what `prepare` makes of it; None while there is none.

    `current` and `state` are replaced whole: take `current` once for each line, and use
    that until the line is done. A publication that cannot be read denies: `current` is
    None until another one is in force.
    """

    def __init__(
        self,
        directory: Path,
        folder: Path,
        prepare: Callable[[CompiledPolicy], T],
        each_check: Callable[[], None] | None = None,
    ) -> None:
        self.current: T | None = None
        self._own = PolicyState(faults=(_not_read(directory),))
        self.state = self._own
        self._is_damaged = False
        self._directory = directory
        self.folder = folder
        self._prepare = prepare
        self._each_check = each_check
        self._seen: tuple[object, object] = (None, None)
        self._told: str | None = None
        self._told_problem = ""

    def start(self) -> None:
        """Follow what is in force, in a thread that ends with the process; wait for the
        first policy, up to 20 s.
        """
        checked = threading.Event()
        threading.Thread(
            target=self._follow, args=(checked,), name="policy", daemon=True
        ).start()
        if not checked.wait(_FIRST_SECONDS):
            _log.error("%s: no policy after %d s", self._directory, _FIRST_SECONDS)

    def check(self) -> None:
        """Read what is in force, where another revision is."""
        if self._each_check:
            self._each_check()
        marked, told = marked_in_force(self.folder), written_at(self.folder)
        if (marked, told) == self._seen:
            return
        if marked is not None and marked != self._seen[0] and not self._read(marked[0]):
            marked = None  # it is read again
        self._seen = (marked, told)
        self.state = self._joined()
        self._tell()

    def _follow(self, checked: threading.Event) -> None:
        while True:
            self.check()
            if self.current is not None or self._is_settled():
                checked.set()
            time.sleep(
                _CHECK_EVERY_SECONDS if checked.is_set() else _FIRST_CHECK_EVERY_SECONDS
            )

    def _is_settled(self) -> bool:
        """Whether waiting helps nothing: the files do not load."""
        codes = {fault.code for fault in self.state.faults}
        return bool(codes) and FaultCode.NOT_READ not in codes

    def _read(self, revision: str) -> bool:
        """Read a revision; return whether another try is of no use.

        One that is damaged denies. Where this process cannot read, such as without a
        descriptor to spare, or where another policy was published, it goes on with the
        one before.
        """
        try:
            policy = load_published(self.folder, revision, self._directory)
            self.current = self._prepare(policy)
        except OtherPolicy as error:
            self._note(revision, str(error), self._own)
            return True
        except InvalidPublication as error:
            self.current = None
            self._note(revision, f"everything is denied: {error}", PolicyState())
            return True
        except Exception as error:  # noqa: BLE001 - a helper that fails on a policy denies, and goes on
            told = str(error) if isinstance(error, OSError) else describe(error)
            self._note(revision, told, self._own)
            return False
        self._own, self._is_damaged = PolicyState(revision, time.time(), ok=True), False
        return True

    def _note(self, revision: str, problem: str, before: PolicyState) -> None:
        place = Location(str(publication_file(self.folder, revision)))
        fault = Fault(place, FaultCode.NOT_READ, problem)
        if fault not in self._own.faults:
            _log.error("revision %s cannot be read: %s", revision, problem)
        self._is_damaged = True
        self._own = replace(before, ok=False, faults=(fault,))

    def _tell(self) -> None:
        """Log which revision is in force, and what is wrong with the files, once."""
        revision = None if self.current is None else self._own.revision
        if revision != self._told and revision is not None:
            _log.info("%s: revision %s is in force", self._directory, revision)
            for warning in self.state.warnings:
                _log.warning("%s", warning)
        self._told = revision or self._told
        if self.state.ok:
            self._told_problem = ""
            return
        of_files = [fault for fault in self.state.faults if fault.code not in _OF_OURS]
        problem = "\n".join(map(str, of_files))
        if problem and problem != self._told_problem:
            effect = (
                "everything is denied"
                if self.current is None
                else "the last good policy goes on"
            )
            _log.error("%s does not load, %s:\n%s", self._directory, effect, problem)
        self._told_problem = problem

    def _joined(self) -> PolicyState:
        """Join what was read here with what the publisher tells about the files."""
        told = read_state(self.folder)
        if told is None or self._is_damaged:
            return self._own
        return replace(told, revision=self._own.revision, loaded=self._own.loaded)


def _not_read(directory: Path) -> Fault:
    place = Location(str(directory))
    return Fault(place, FaultCode.NOT_READ, "the policy is not read yet")
