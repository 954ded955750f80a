"""The reload gate: an edit that would deny too much of what was used is held back, and
refused.

The process that publishes the policy asks here whether an edit may be put in force. A
judge of its own leaves a verdict about the edit from one revision to another:
`verdict.json` in the folder of revisions, which commands read too. Without a verdict in
20 seconds the edit loads.

A verdict never puts anything in force but what the policy's files say. `reload-forced`
beside the policy's folder, which names the revision that `squidkeeper reload --force`
has accepted, is root's.
"""

import os
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.base.status_file import StatusFile
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.policy.policy_store.revisions import InForce
from squidkeeper.policy.policy_store.sources import Sources

PATIENCE_SECONDS: Final = 20.0
NAMED_AT_MOST: Final = 100  # denials that a verdict names
FORCED: Final = "reload-forced"
_VERDICT: Final = "verdict.json"
# an edit that is made again later is judged again
_ACCEPTED_SECONDS: Final = 60.0
_EDIT: Final = re.compile(r"([0-9a-f]{12})-([0-9a-f]{12})")
_ROOT: Final = 0
_SHOWN_AT_MOST: Final = 10
_TEXT_AT_MOST: Final = 600


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit of the policy: the revision in force, and the one on disk."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old}-{self.new}"


@dataclass(frozen=True, slots=True)
class GatedDenial:
    """What an edit would deny to one client at one host by one rule, that was allowed
    and used before.

    `count` requests, the last one at `last`; `example` is one of them. All text is as
    in the access log.
    """

    client: str
    rule: str
    host: str
    count: int
    last: str
    example: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict about an edit.

    `denials` distinct denials were found. `counted` of them count, because those of one
    client count up to a bound; more than `allowed` refuse the edit. `named` are the
    most used ones.
    """

    old: str
    new: str
    judged: float  # seconds since 1970
    denials: int = 0
    counted: int = 0
    allowed: int = 0
    named: tuple[GatedDenial, ...] = ()

    @property
    def accepts(self) -> bool:
        """Whether the edit may be put in force."""
        return self.counted <= self.allowed

    def is_of(self, edit: Edit) -> bool:
        """Whether it is about an edit."""
        return (self.old, self.new) == (edit.old, edit.new)


class Passage(StrEnum):
    """What the gate says about an edit."""

    ACCEPTED = "accepted"
    HELD = "held"  # no verdict yet
    REFUSED = "refused"
    UNJUDGED = "unjudged"  # no verdict in time: it passes


class EditJudge(Protocol):
    """Judges one edit at a time."""

    def begin(self, edit: Edit) -> None:
        """Judge an edit, and no other any more; OSError where that is not possible."""

    def check(self) -> None:
        """See that it goes on."""

    def end(self) -> None:
        """Judge nothing any more."""


class EditGate:
    """The gate: `ask` about an edit, then `answer` until it passes.

    `folder` is that of the revisions, where the judge leaves its verdict; None: there
    is no gate.
    """

    def __init__(
        self, directory: Path, folder: Path | None, judge: EditJudge | None = None
    ) -> None:
        self._directory = directory
        self._folder = folder
        self._judge = judge
        self._held: Edit | None = None
        self._until = 0.0
        self.verdict: GateVerdict | None = None

    def ask(self, edit: Edit, *, again: bool) -> Passage:
        """Ask about an edit.

        OSError if it cannot be judged: `answer` is UNJUDGED after 20 seconds.

        `again`: one that was refused before is judged again.
        """
        if again or self._held != edit:
            self._held, self._until = edit, time.monotonic() + PATIENCE_SECONDS
        answer = self.answer()
        asks = answer is Passage.HELD or (again and answer is Passage.REFUSED)
        if asks and self._judge:
            self._judge.begin(edit)
        return answer

    def answer(self) -> Passage:
        """Tell what the gate says about the edit that it holds; nothing held is
        ACCEPTED.
        """
        if self._held is None or self._folder is None:
            return Passage.ACCEPTED
        if self._judge:
            self._judge.check()
        self.verdict = verdict = read_verdict(self._folder, self._held)
        if is_forced(self._directory, self._held.new) or (
            verdict and _accepts_now(verdict)
        ):
            return Passage.ACCEPTED
        if verdict and not verdict.accepts:
            return Passage.REFUSED
        return Passage.UNJUDGED if time.monotonic() > self._until else Passage.HELD

    @property
    def held(self) -> str | None:
        """The revision that is held back or refused."""
        return self._held.new if self._held else None

    def release(self) -> None:
        """Hold nothing any more."""
        self._held = self.verdict = None
        if self._judge:
            self._judge.end()


def _accepts_now(verdict: GateVerdict) -> bool:
    return verdict.accepts and abs(time.time() - verdict.judged) <= _ACCEPTED_SECONDS


def parse_edit(text: str) -> Edit | None:
    """Parse OLD-NEW; None if it names no two revisions."""
    match = _EDIT.fullmatch(text)
    return Edit(match[1], match[2]) if match else None


def read_verdict(folder: Path, edit: Edit) -> GateVerdict | None:
    """Read the verdict about an edit; None if there is none."""
    verdict = _verdict_file(folder).read()
    return verdict if verdict and verdict.is_of(edit) else None


def refusal(
    folder: Path, directory: Path, in_force: InForce, sources: Sources
) -> GateVerdict | None:
    """Find the verdict that keeps the policy on disk from being in force; None if there
    is none.
    """
    if not in_force.gated or in_force.ungranted == sources.revision_without_granted:
        return None
    if is_forced(directory, sources.revision):
        return None
    verdict = read_verdict(folder, Edit(in_force.revision, sources.revision))
    return verdict if verdict and not verdict.accepts else None


def write_verdict(folder: Path, verdict: GateVerdict) -> None:
    """Leave a verdict; OSError if it cannot be written."""
    _verdict_file(folder).write(verdict)


def _verdict_file(folder: Path) -> StatusFile[GateVerdict]:
    return StatusFile(folder / _VERDICT, GateVerdict)


def gate_faults(directory: Path, verdict: GateVerdict) -> tuple[Fault, ...]:
    """Write why an edit is refused: how much it would deny, and the first of that."""
    place = Location(str(directory))
    return tuple(
        Fault(place, FaultCode.RELOAD_GATED, text)
        for text in verdict_texts(verdict, _SHOWN_AT_MOST)
    )


def verdict_texts(verdict: GateVerdict, shown: int) -> list[str]:
    """Write a refusal, one text a line: how much would be denied, so many of the
    denials, how many there are more.
    """
    texts = [_summary(verdict), *map(denial_text, verdict.named[:shown])]
    if (more := verdict.denials - len(texts) + 1) > 0:
        texts.append(
            f"and {more:,} more"
            + ": `squidkeeper reload` shows them" * (shown < len(verdict.named))
        )
    return texts


def _summary(verdict: GateVerdict) -> str:
    found = f"{verdict.denials:,} combinations of client, rule and host that were used"
    bounded = f" ({verdict.counted:,} count: those of one client up to a bound)" * (
        verdict.counted != verdict.denials
    )
    return (
        f"the reload gate refuses revision {verdict.new}: it would deny {found}{bounded}, expected {verdict.allowed:,}"
        " at most: change the edit, or accept it by `squidkeeper reload --force`"
    )


def denial_text(denial: GatedDenial) -> str:
    """Write one denial in one line, whatever the verdict holds."""
    requests = quantity(denial.count, "request")
    text = (
        f"client {denial.client} would be denied {denial.host} by {denial.rule}: {requests},"
        f" the last at {denial.last}, such as {denial.example}"
    )
    return printable(text if len(text) <= _TEXT_AT_MOST else f"{text[:_TEXT_AT_MOST]}…")


def is_forced(directory: Path, revision: str) -> bool:
    """Whether root, or who owns the policy's folder, has accepted exactly this
    revision.
    """
    try:
        with open_untrusted(forced_file(directory)) as file:
            is_trusted = os.fstat(file.fileno()).st_uid in (
                _ROOT,
                directory.stat().st_uid,
            )
            return is_trusted and file.read(100).strip() == revision.encode()
    except OSError:
        return False


def force(directory: Path, revision: str) -> None:
    """Accept a revision, whatever the gate says; OSError if that cannot be written."""
    replace(forced_file(directory), f"{revision}\n".encode(), 0o644)


def forced_file(directory: Path) -> Path:
    """Name the file that names the revision which was accepted by hand."""
    return directory.absolute().parent / FORCED
