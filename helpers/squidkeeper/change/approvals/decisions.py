"""What people have decided about tickets and counts, and what is in force meanwhile.

Decisions are in a file outside of the state folder, which only grows. Each line is a
JSON object: who decided what about which question or quota, when and why.
"""

import fcntl
import json
import os
import pwd
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import EditRefused, PolicyError
from squidkeeper.base.formatting import utc_time
from squidkeeper.base.places import revisions_folder
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load, load_stored_revision
from squidkeeper.policy.policy_store.revisions import revision_in_force
from squidkeeper.policy.policy_store.sources import read_sources

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
FILE: Final = (
    "decisions.jsonl"  # beside the folder of the policy, where root alone can write
)


@dataclass(frozen=True, slots=True)
class TicketDecision:
    """One decision. `grant` and `until` are those of an approval."""

    time: str
    who: str
    decision: str
    reason: str
    ticket: str
    client: str
    user: str
    method: str
    url: str
    scope: str = ""
    clients: tuple[str, ...] = ()
    grant: str = ""
    until: str = ""
    uses: int | None = None


@dataclass(frozen=True, slots=True)
class ResetDecision:
    """A decision to begin the counts of a quota again, for one holder or, without a
    name, for all.
    """

    time: str
    who: str
    quota: str
    holder: str
    decision: str = "reset"


class DecisionLog:
    """The file, open for one decision: what cannot be kept is not decided."""

    def __init__(self, policy: Path) -> None:
        self.path = policy.absolute().parent / FILE
        try:
            self._file = os.open(self.path, _APPEND, 0o600)
            # of two decisions at once, the later one sees the other's result
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise EditRefused(
                f"{self.path} cannot be written: {error.strerror}; nothing was decided"
            ) from error

    def keep(self, decision: TicketDecision | ResetDecision) -> None:
        """Append a decision, on disk when this returns."""
        os.write(self._file, json.dumps(asdict(decision)).encode() + b"\n")
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def keep_reset(policy: Path, quota: str, holder: str | None) -> None:
    """Keep who begins the counts of a quota again; `EditRefused` where it cannot be
    kept.
    """
    log = DecisionLog(policy)
    try:
        log.keep(
            ResetDecision(
                utc_time(datetime.now(UTC)), who_decides(), quota, holder or ""
            )
        )
    except OSError as error:
        raise EditRefused(
            f"{log.path} cannot be written: {error.strerror}; nothing was reset"
        ) from error
    finally:
        log.close()


def who_decides() -> str:
    """Name the person at the terminal: who called sudo, or the account."""
    caller = os.environ.get("SUDO_USER")
    if caller:
        return caller
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def waits_for_edit(directory: Path, state: Path) -> bool:
    """Whether the policy on disk, grants aside, is another one than is in force; False
    where nothing tells.
    """
    found = revision_in_force(revisions_folder(state))
    if found is None or not found.ungranted or found.directory != directory.absolute():
        return False
    return found.ungranted != read_sources(directory).revision_without_granted


def policy_in_force(directory: Path, state: Path) -> CompiledPolicy | None:
    """Load what helpers go by; None where the state folder is of another policy, or
    does not tell.
    """
    found = revision_in_force(revisions_folder(state))
    if found is None or found.directory != directory.absolute():
        return None
    try:
        return load_stored_revision(revisions_folder(state), found.revision)
    except (OSError, PolicyError):
        return None


def policies_now(
    directory: Path, state: Path, now: datetime
) -> tuple[CompiledPolicy, ...]:
    """Load the policy on disk, and before it the one in force where the one on disk
    waits or does not load.

    `PolicyError` where there is none.
    """
    try:
        on_disk = (load(directory, now).compiled,)
    except PolicyError:
        in_force = policy_in_force(directory, state)
        if in_force is None:
            raise
        return (in_force,)
    in_force = (
        policy_in_force(directory, state) if waits_for_edit(directory, state) else None
    )
    return (in_force, *on_disk) if in_force else on_disk
