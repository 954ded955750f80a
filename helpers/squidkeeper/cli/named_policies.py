"""Policies that a command's arguments name: a folder, a stored revision, or the one in force."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from squidkeeper.base.errors import PolicyError
from squidkeeper.cli.output import UnusableInput

if TYPE_CHECKING:
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.language.document import Document


def check_judged(requests: int, files: Iterable[Path]) -> None:
    """Refuse to tell anything by an access log of which no request was judged."""
    if not requests:
        read = ", ".join(map(str, files)) or "the access log and the archive"
        raise UnusableInput(f"no request of {read} was judged: nothing can be told")


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy, how it is named for people, and what commands granted: the file beside its folder."""

    name: str
    compiled: CompiledPolicy
    granted: Document | None


def policy_named(text: str, state: Path, lender: NamedPolicy | None = None) -> NamedPolicy:
    """Load the policy of a folder, or a revision that is stored in the state folder; `UnusableInput` if it does not.

    Commands write grants beside the folder in force, so a draft elsewhere has none: a folder without them is loaded
    with those of the lender, as if it were in force.
    """
    if not os.path.isdir(text):  # Path.is_dir raises in a folder that cannot be read
        return _revision(text, state, f"revision {text}")
    from squidkeeper.policy.policy_store.loading import load_sources
    from squidkeeper.policy.policy_store.sources import read_sources

    sources, lent = read_sources(Path(text)), ""
    if lender and lender.granted and sources.granted is None:
        sources, lent = replace(sources, granted=lender.granted), ", with the grants of OLD"
    compiled = _loaded(lambda: load_sources(sources, datetime.now(UTC)).compiled, text)
    return NamedPolicy(f"{text} (revision {compiled.revision}{lent})", compiled, sources.granted)


def policy_in_force(state: Path) -> NamedPolicy:
    """Load the policy that the helpers loaded last; `UnusableInput` if the state folder does not tell."""
    from squidkeeper.policy.policy_store.revisions import revision_in_force

    found = revision_in_force(state / "revisions")
    if found is None:
        raise UnusableInput(f"{state}: no policy is in force here, as far as this account can read: name OLD instead")
    return _revision(found.revision, state, f"revision {found.revision}, in force")


def _revision(text: str, state: Path, name: str) -> NamedPolicy:
    from squidkeeper.policy.policy_store.loading import load_stored_revision
    from squidkeeper.policy.policy_store.revisions import read_revision

    folder = state / "revisions"
    try:
        compiled = _loaded(lambda: load_stored_revision(folder, text), f"revision {text}")
        return NamedPolicy(name, compiled, read_revision(folder, text).granted)
    except OSError as error:
        if os.sep in text or os.path.exists(text):
            raise UnusableInput(f"{text} is no folder, as far as this account can read") from error
        why = (error.strerror or str(error)).lower()
        expected = f"neither a folder nor a revision that is stored in {folder} ({why})"
        raise UnusableInput(
            f"{text!r} is {expected}: `squidkeeper check DIR` prints the revision of a folder"
        ) from error


def _loaded(load: Callable[[], CompiledPolicy], name: str) -> CompiledPolicy:
    try:
        return load()
    except PolicyError as error:
        raise UnusableInput(f"{error}\n{name} does not load") from error
