"""`squidkeeper check` (floor 6)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.options import counted, json_option, policy_option
from squidkeeper.policy.faults import Fault

if TYPE_CHECKING:
    from squidkeeper.policy.lists import HostList
    from squidkeeper.policy.model import Policy
    from squidkeeper.policy.sources import Sources


@click.command()
@policy_option
@json_option
def check(directory: Path, as_json: bool) -> None:
    """Check the policy: print every fault and warning, how old its lists are, and run its tests.

    Exit status: 0 when it loads (warnings allowed), 1 when it does not.
    """
    from squidkeeper.errors import PolicyError
    from squidkeeper.live import load_sources
    from squidkeeper.policy.lint import lint
    from squidkeeper.policy.sources import read_sources

    now = datetime.now(UTC)
    try:
        sources = read_sources(directory)
        loaded = load_sources(sources, now)
        policy = loaded.judge.policy
        report = Report(
            directory,
            policy.revision,
            len(policy.rules),
            warnings=(*loaded.warnings, *lint(policy, now), *_unusable_secrets(policy, loaded.warnings)),
            lists=tuple(_list_reports(sources, policy.lists, now)),
        )
    except PolicyError as error:
        report = Report(directory, faults=error.faults, warnings=error.warnings)
    click.echo(_json(report) if as_json else _text(report))
    raise SystemExit(1 if report.faults else 0)


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found; `revision` is None where the policy does not load."""

    directory: Path
    revision: str | None = None
    rules: int = 0
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    lists: tuple[ListReport, ...] = ()


@dataclass(frozen=True, slots=True)
class ListReport:
    """One list of a policy that loads: what it holds, and how old its file is."""

    name: str
    file: Path
    hosts: int
    not_understood: int
    changed: datetime
    age_seconds: float


def _unusable_secrets(policy: Policy, warnings: tuple[Fault, ...]) -> Iterator[Fault]:
    """Read the secrets as the helper that puts them in does; those that loading has warned of are not said twice."""
    from squidkeeper.errors import SecretUnavailable
    from squidkeeper.secrets import SecretStore

    store = SecretStore(policy.secrets, os.environ)
    for name, source in policy.secrets.items():
        if any(warning.message.startswith(f"secret {name!r} cannot be had") for warning in warnings):
            continue
        try:
            store.get(name)
        except SecretUnavailable as error:
            yield Fault(source.location, str(error))


def _list_reports(sources: Sources, lists: Mapping[str, HostList], now: datetime) -> Iterator[ListReport]:
    from squidkeeper.policy.sources import file_entries

    for _, name, path in file_entries(sources.documents, "lists"):
        summary = lists[name].summary
        with suppress(OSError):  # gone since it was read: its place is a fault of the next load
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            age_seconds = (now - changed).total_seconds()
            yield ListReport(name, path, summary.patterns, summary.strange, changed, age_seconds)


def _text(report: Report) -> str:
    lines = [f"{fault.location}: fault: {fault.message}" for fault in sorted(report.faults)]
    lines += [f"{warning.location}: warning: {warning.message}" for warning in sorted(report.warnings)]
    lines += [_list_text(one) for one in report.lists]
    found = f"{counted(len(report.faults), 'fault')}, {counted(len(report.warnings), 'warning')}"
    if report.faults:
        return "\n".join([*lines, f"{report.directory} does not load: {found}"])
    return "\n".join(
        [*lines, f"{report.directory} loads: revision {report.revision}, {counted(report.rules, 'rule')}, {found}"]
    )


def _list_text(one: ListReport) -> str:
    left_out = f", {counted(one.not_understood, 'line')} not understood" if one.not_understood else ""
    return f"{one.file}: list {one.name}: {counted(one.hosts, 'host')}, {_age(one.age_seconds)}{left_out}"


def _age(seconds: float) -> str:
    """Say how old a file is in whole units, the largest that fits."""
    if seconds < 0:
        return "from the future"
    for unit_seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit_seconds:
            return f"{counted(int(seconds // unit_seconds), unit)} old"
    return "less than a minute old"


def _json(report: Report) -> str:
    return json.dumps(
        {
            "loads": not report.faults,
            "revision": report.revision,
            "rules": report.rules,
            "faults": _rows(report.faults),
            "warnings": _rows(report.warnings),
            "lists": [_list_row(one) for one in report.lists],
        },
        indent=2,
    )


def _list_row(one: ListReport) -> dict[str, object]:
    return {
        "name": one.name,
        "file": str(one.file),
        "hosts": one.hosts,
        "not_understood": one.not_understood,
        "changed": one.changed.isoformat(timespec="seconds"),
        "age_seconds": round(one.age_seconds),
    }


def _rows(found: tuple[Fault, ...]) -> list[dict[str, object]]:
    return [
        {
            "file": fault.location.file,
            "line": fault.location.line,
            "column": fault.location.column,
            "message": fault.message,
        }
        for fault in sorted(found)
    ]
