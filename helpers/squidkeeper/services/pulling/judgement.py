"""Whether a version may be put in place: it loads as it would be in force, and stays
below the ceiling.

The reload gate judges after that, in every process that reads the policy: an edit is an
edit, whoever made it. What gateways would refuse is refused where a bundle is made,
too: on the machine of the person who signs it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import PolicyError, PullRefused
from squidkeeper.base.formatting import quantity
from squidkeeper.change.difference.consequences import Change
from squidkeeper.change.difference.report import DifferenceReport, report
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.sources import Sources, local_file, read_sources
from squidkeeper.services.pulling.bundle import Bundle
from squidkeeper.services.pulling.versions import (
    SMALLER,
    NewVersion,
    check_files,
    is_policy_file,
    listed_paths,
)

LOAD_SECONDS: Final = (
    8  # a helper that starts waits so long for its policy, and denies until it has it
)
LOAD_BYTES: Final = 400 << 20  # of each helper: ten thousand rules need about 50 MB
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used: processor time, and memory at most."""

    seconds: float
    bytes: int

    @classmethod
    def now(cls) -> Used:
        """Tell what this one has used."""
        return cls(
            time.process_time(),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        )


def judge(new: NewVersion, policy: Path, ceiling: Path | None, before: Used) -> None:
    """Refuse what would not load in place of `policy`, or opens more than the ceiling
    (`PullRefused`).

    `before` is what this process had used before it read the version.
    """
    sources = read_sources(new.policy, beside=policy.absolute().parent)
    if sources.local is None:
        place = local_file(policy)
        raise PullRefused(
            f"{place} is missing: with it alone a policy that others write gets no file of the gateway"
        )
    load_version(sources, new.policy, new.lists)
    _check_cost(before, Used.now())
    if ceiling is not None:
        _check_ceiling(sources, new, ceiling, policy)


def _check_cost(before: Used, after: Used) -> None:
    """Refuse what each helper would load for long, or need much memory for.

    Long lists do not count: one process compiles them for all, and they are mapped into
    memory.
    """
    seconds, size = after.seconds - before.seconds, after.bytes - before.bytes
    if seconds > LOAD_SECONDS:
        taken, bound = f"{seconds:.0f} s of processor time", f"{LOAD_SECONDS} s"
    elif size > LOAD_BYTES:
        taken, bound = f"{size >> 20:,} MB of memory", f"{LOAD_BYTES >> 20:,} MB"
    else:
        return
    raise PullRefused(
        f"each helper would need {taken} to load it, expected {bound} at most: {SMALLER}"
    )


def load_version(
    sources: Sources, policy: Path, lists: Path | None = None
) -> CompiledPolicy:
    """Load a version from the files of its folder `policy`; `PullRefused` with the
    faults if it does not load.
    """
    try:
        return load_sources(sources, datetime.now(UTC), lists).compiled
    except PolicyError as error:
        shown = [
            str(fault).replace(f"{policy}/", "") for fault in error.faults[:_SHOWN]
        ]
        raise PullRefused(
            f"it does not load: {_first(shown, len(error.faults), 'fault')}"
        ) from error


def _check_ceiling(
    sources: Sources, new: NewVersion, ceiling: Path, policy: Path
) -> None:
    """Compare what the version itself opens: what was granted here is neither its nor
    the ceiling's.
    """
    limit = replace(
        read_sources(ceiling, beside=policy.absolute().parent), granted=None
    )
    try:
        old = load_sources(limit, datetime.now(UTC), new.lists).compiled
    except PolicyError as error:
        raise PullRefused(f"the ceiling does not load: {error.faults[0]}") from error
    compiled = load_version(replace(sources, granted=None), new.policy, new.lists)
    found = report(
        (old, compiled), ("ceiling", "version"), datetime.now(UTC), is_ceiling=True
    )
    if not found.same:
        texts = _texts(found)
        raise PullRefused(
            f"it passes the ceiling {ceiling}: {_first(texts[:_SHOWN], len(texts), 'difference')}"
        )


def _texts(found: DifferenceReport) -> list[str]:
    texts = []
    for difference in found.differences:
        example = (
            f", such as {difference.example.method} {difference.example.target}"
            if difference.example
            else ""
        )
        if difference.change is Change.GRANTABLE:
            texts.append(
                f"grants and approvals could open what {difference.before.rule} of the ceiling denies{example}"
            )
        else:
            texts.append(
                f"{difference.doubt or difference.change} by {difference.after.rule}{example}"
            )
    texts += [
        f"{setting.name}: {setting.before} → {setting.after}"
        for setting in found.settings
    ]
    texts += [f"unproven for sessions of the role {role}" for role in found.roles]
    return [*texts, *([found.limit] if found.limit else [])]


def _first(shown: list[str], number: int, kind: str) -> str:
    more = number - len(shown)
    text = "; ".join(shown)
    return f"{text}; and {quantity(more, f'more {kind}')}" if more else text


_LEAST_LOCAL: Final = b"version: 1\n"  # every gateway has a local setup


def make_bundle(folder: Path, number: int) -> bytes:
    """Make a bundle of a policy's folder, to be signed; `PullRefused` if no gateway
    would take it.
    """
    files = _read(
        folder,
        sorted(path.name for path in folder.iterdir() if is_policy_file(path.name)),
    )
    files |= _read(folder, sorted(listed_paths(files)))
    check_files({path: len(content) for path, content in files.items()})
    _check_loads(folder)
    texts = {path: content.decode() for path, content in files.items()}
    return msgspec.json.encode(Bundle(number, texts))


def _read(folder: Path, paths: Collection[str]) -> dict[str, bytes]:
    """Read regular files below the folder: a link would publish any file that this
    account can read.
    """
    check_files(dict.fromkeys(paths, 0))
    for path in paths:
        place = folder / path
        if place.resolve() != folder.resolve() / path:
            raise PullRefused(
                f"{path!r} is a link, or in a folder that is one, expected a regular file in its place"
            )
        if place.exists() and not place.is_file():
            raise PullRefused(f"{path!r} is no regular file, expected one in its place")
    return {path: (folder / path).read_bytes() for path in paths}


def _check_loads(folder: Path) -> None:
    sources = read_sources(folder)
    local = sources.local or parse_document(local_file(folder), _LEAST_LOCAL)
    load_version(replace(sources, local=local, granted=None), folder)
