"""`squidkeeper reload`."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.faults import Fault
from squidkeeper.base.places import lists_folder, revisions_folder
from squidkeeper.cli import helper_options, options
from squidkeeper.cli.failures import UnusableInput
from squidkeeper.cli.output import show_json, show_text

if TYPE_CHECKING:
    from squidkeeper.policy.policy_store.reload_gate import GateVerdict
    from squidkeeper.policy.policy_store.revisions import InForce


@click.command()
@helper_options.policy_option
@helper_options.state_option()
@click.option(
    "--force",
    "forces",
    is_flag=True,
    help="Accept the edit on disk, whatever the gate says.",
)
@options.json_option
@click.option(
    "--judge",
    metavar="OLD-NEW",
    hidden=True,
    help="Judge an edit, as `squidkeeper publish` has it done.",
)
@helper_options.path_option(
    "--access-log", default=options.DEFAULT_LOG, hidden=True
)  # of --judge
@helper_options.path_option("--archive", hidden=True)  # as above
def reload(
    directory: Path,
    state: Path,
    forces: bool,
    as_json: bool,
    judge: str | None,
    access_log: Path,
    archive: Path | None,
) -> None:
    """Show whether the policy on disk is in force; or accept an edit.

    Helpers load edits by themselves, unless the reload gate holds an edit back or
    refuses it. Then this command lists what the edit would deny. --force, as root, puts
    exactly this edit in force within a second.

    \b
    Exit status:
      0  The policy on disk is in force, or was accepted.
      1  The gate holds the edit back, or has refused it.
      2  The policy does not load, or the revision in force is unknown.
    """
    if judge is not None:
        _judge(directory, state, judge, access_log, archive)
        return
    found = how_it_stands(directory, state)
    if forces and found.standing in _FORCED:
        found = _force(directory, found)
    if as_json:
        show_json(_as_object(found))
    else:
        show_text(_text(directory, found))
    raise SystemExit(_STATUS[found.standing])


class Standing(StrEnum):
    """How the policy on disk stands."""

    IN_FORCE = "in-force"
    LOADING = "loading"  # no gate holds it: helpers load it
    HELD = "held"
    REFUSED = "refused"
    FORCED = "forced"
    FAULTY = "faulty"


_STATUS = {Standing.HELD: 1, Standing.REFUSED: 1, Standing.FAULTY: 2} | dict.fromkeys(
    (Standing.IN_FORCE, Standing.LOADING, Standing.FORCED), 0
)
WAITS_OR_FAILS = frozenset(_STATUS) - {
    Standing.IN_FORCE,
    Standing.LOADING,
    Standing.FORCED,
}
_NICENESS = 5  # a verdict that comes too late is none
_FORCED = (Standing.HELD, Standing.REFUSED)


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """How the policy on disk stands; `on_disk` is None where it does not load."""

    standing: Standing
    in_force: str
    on_disk: str | None
    verdict: GateVerdict | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def told(self) -> str:
        """What that means."""
        return _SAID[self.standing].format(old=self.in_force, new=self.on_disk)


def how_it_stands(directory: Path, state: Path) -> ReloadReport:
    """Compare the policy on disk with the one in force; `UnusableInput` where the state
    does not name that.
    """
    from squidkeeper.policy.policy_store.loading import load_sources
    from squidkeeper.policy.policy_store.reload_gate import (
        Edit,
        is_forced,
        read_verdict,
    )
    from squidkeeper.policy.policy_store.sources import read_sources

    before = _in_force(directory, state)
    old, sources = before.revision, read_sources(directory)
    try:
        new = load_sources(
            sources, datetime.now(UTC), None, before.ended
        ).compiled.revision
    except PolicyError as error:
        return ReloadReport(Standing.FAULTY, old, None, faults=error.faults)
    if old == new:
        return ReloadReport(Standing.IN_FORCE, old, new)
    if not before.gated or before.ungranted == sources.revision_without_granted:
        return ReloadReport(Standing.LOADING, old, new)
    verdict = read_verdict(revisions_folder(state), Edit(old, new))
    if is_forced(directory, new):
        return ReloadReport(Standing.FORCED, old, new, verdict)
    if verdict is None:
        return ReloadReport(Standing.HELD, old, new)
    return ReloadReport(
        Standing.LOADING if verdict.accepts else Standing.REFUSED, old, new, verdict
    )


def _in_force(directory: Path, state: Path) -> InForce:
    """Find the revision in force of this policy: without it nothing is known about a
    gate.
    """
    from squidkeeper.policy.policy_store.revisions import revision_in_force

    found = revision_in_force(revisions_folder(state))
    if found is None:
        unknown = (
            "does not tell which policy is in force, as far as this account can read"
        )
        raise UnusableInput(f"{state} {unknown}: run as root, or name --state")
    if found.directory != directory.absolute():
        raise UnusableInput(
            f"{state} is the state of {found.directory}, not of {directory}: name --policy or --state"
        )
    return found


def _force(directory: Path, found: ReloadReport) -> ReloadReport:
    from squidkeeper.policy.policy_store.reload_gate import force, forced_file

    try:
        force(directory, found.on_disk or "")
    except OSError as error:
        advice = (
            "run this as root"
            if isinstance(error, PermissionError)
            else "make the folder writable"
        )
        raise click.ClickException(
            f"{forced_file(directory)}: {error.strerror}: {advice}"
        ) from error
    return replace(found, standing=Standing.FORCED)


def _text(directory: Path, found: ReloadReport) -> str:
    from squidkeeper.policy.policy_store.reload_gate import verdict_texts

    said = f"{directory}: {found.told}"
    if found.standing is Standing.FAULTY:
        return "\n".join(
            [
                *(f"{fault.location}: fault: {fault.text}" for fault in found.faults),
                said,
            ]
        )
    if found.standing is Standing.REFUSED and found.verdict:
        return "\n".join(
            [said, *verdict_texts(found.verdict, len(found.verdict.named))]
        )
    return said


_SAID = {
    Standing.IN_FORCE: "revision {new} is in force",
    Standing.LOADING: "revision {new} is not in force yet, but {old}: helpers that run load it within a second",
    Standing.HELD: "revision {new} waits for the reload gate, for 20 s at most, and {old} stays in force meanwhile:"
    " `squidkeeper reload --force` accepts it at once",
    Standing.REFUSED: "revision {new} is refused, and {old} stays in force",
    Standing.FORCED: "revision {new} is accepted by hand: helpers that run put it in force within a second",
    Standing.FAULTY: "does not load, and {old} stays in force",
}


def _as_object(found: ReloadReport) -> dict[str, object]:
    verdict = found.verdict
    return {
        "state": found.standing,
        "in_force": found.in_force,
        "on_disk": found.on_disk,
        "verdict": verdict and {"accepts": verdict.accepts, **asdict(verdict)},
        "faults": [
            {
                "file": fault.location.file,
                "line": fault.location.line,
                "code": fault.code,
                "message": fault.message,
            }
            for fault in found.faults
        ],
    }


def _judge(
    directory: Path,
    state: Path,
    edit_named: str,
    access_log: Path,
    archive: Path | None,
) -> None:
    """Leave a verdict about an edit; nothing if the policy's files hold another one by
    now.
    """
    from squidkeeper.change.replay.gate import JUDGE_BYTES, judge_edit
    from squidkeeper.policy.policy_store.loading import load, load_stored_revision
    from squidkeeper.policy.policy_store.reload_gate import (
        PATIENCE_SECONDS,
        parse_edit,
        write_verdict,
    )
    from squidkeeper.policy.published.places import published_folder
    from squidkeeper.record.log.recorded_sessions import RecordedSessions
    from squidkeeper.record.table.database import bound_memory, spare_threads
    from squidkeeper.record.table.sources import TableSources

    signal.alarm(int(PATIENCE_SECONDS))  # ends this process: later the edit is in force
    end_first()
    bound_memory(spare_threads(), JUDGE_BYTES)
    edit = parse_edit(edit_named)
    if edit is None:
        raise click.BadParameter(
            f"{edit_named!r} is no edit, expected OLD-NEW, two revisions",
            param_hint="--judge",
        )
    folder = published_folder(directory, state)
    new = load(directory, datetime.now(UTC), lists_folder(state)).compiled
    if new.revision != edit.new:
        return
    old = load_stored_revision(folder, edit.old)
    kept = archive if archive and archive.is_dir() else None
    sources = TableSources(log=access_log, archive=kept)
    sessions = RecordedSessions.of_gateway(state)
    write_verdict(folder, judge_edit(old, new, sources, datetime.now(UTC), sessions))


def end_first() -> None:
    """Let Squid go first, and let the kernel end this process rather than Squid where
    memory is short.
    """
    with suppress(OSError):
        os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
