"""Whether a version may be put in place (floor 7): it loads as it would be in force, and stays below the ceiling.

The reload gate judges after that, in every process that reads the policy: an edit is an edit, whoever made it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.difference.report import DifferenceReport, report
from squidkeeper.engine import CompiledPolicy
from squidkeeper.errors import PolicyError, PullRefused
from squidkeeper.formatting import quantity
from squidkeeper.policy_store.loading import load_sources
from squidkeeper.policy_store.sources import Sources, local_file, read_sources

_SHOWN: Final = 5


def judge(folder: Path, policy: Path, ceiling: Path | None) -> None:
    """Refuse what would not load in place of `policy`, or opens more than the ceiling (`PullRefused`)."""
    sources = read_sources(folder, beside=policy.absolute().parent)
    if sources.local is None:
        place = local_file(policy)
        raise PullRefused(f"{place} is missing: with it alone a policy that others write gets no file of the gateway")
    _load(sources, folder)
    if ceiling is not None:
        _check_ceiling(sources, folder, ceiling, policy)


def _load(sources: Sources, folder: Path) -> CompiledPolicy:
    try:
        return load_sources(sources, datetime.now(UTC)).compiled
    except PolicyError as error:
        found = [str(fault).replace(f"{folder}/", "") for fault in error.faults]
        raise PullRefused(f"it does not load: {_first(found, 'fault')}") from error


def _check_ceiling(sources: Sources, folder: Path, ceiling: Path, policy: Path) -> None:
    """Compare what the version itself opens: what was granted here is neither its nor the ceiling's."""
    limit = replace(read_sources(ceiling, beside=policy.absolute().parent), granted=None)
    try:
        old = load_sources(limit, datetime.now(UTC)).compiled
    except PolicyError as error:
        raise PullRefused(f"the ceiling does not load: {error.faults[0]}") from error
    new = _load(replace(sources, granted=None), folder)
    found = report((old, new), ("ceiling", "version"), datetime.now(UTC), is_ceiling=True)
    if not found.same:
        raise PullRefused(f"it passes the ceiling {ceiling}: {_first(_texts(found), 'difference')}")


def _texts(found: DifferenceReport) -> list[str]:
    texts = []
    for one in found.differences:
        example = f", such as {one.example.method} {one.example.target}" if one.example else ""
        texts.append(f"{one.doubt or one.change} by {one.after.rule}{example}")
    texts += [f"{one.name}: {one.before} → {one.after}" for one in found.settings]
    return [*texts, *([found.limit] if found.limit else [])]


def _first(texts: list[str], kind: str) -> str:
    more = len(texts) - _SHOWN
    shown = "; ".join(texts[:_SHOWN])
    return f"{shown}; and {quantity(more, f'more {kind}')}" if more > 0 else shown
