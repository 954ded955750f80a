"""What is in force while the policy on disk is another one: an edit may be held back or refused."""

from datetime import datetime
from pathlib import Path

from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load, load_stored_revision
from squidkeeper.policy.policy_store.revisions import revision_in_force
from squidkeeper.policy.policy_store.sources import read_sources


def waits_for_edit(directory: Path, state: Path) -> bool:
    """Tell whether the policy on disk, grants aside, is another one than is in force; False where nothing tells."""
    found = revision_in_force(state / "revisions")
    if found is None or not found.ungranted or found.directory != directory.absolute():
        return False
    return found.ungranted != read_sources(directory).revision_without_granted


def policy_in_force(directory: Path, state: Path) -> CompiledPolicy | None:
    """Load what helpers go by; None where the state folder is of another policy, or does not tell."""
    found = revision_in_force(state / "revisions")
    if found is None or found.directory != directory.absolute():
        return None
    try:
        return load_stored_revision(state / "revisions", found.revision)
    except (OSError, PolicyError):
        return None


def policies_now(directory: Path, state: Path, now: datetime) -> tuple[CompiledPolicy, ...]:
    """Load the policy on disk, and before it the one in force where the one on disk waits or does not load.

    `PolicyError` where there is none.
    """
    try:
        on_disk = (load(directory, now).compiled,)
    except PolicyError:
        in_force = policy_in_force(directory, state)
        if in_force is None:
            raise
        return (in_force,)
    in_force = policy_in_force(directory, state) if waits_for_edit(directory, state) else None
    return (in_force, *on_disk) if in_force else on_disk
