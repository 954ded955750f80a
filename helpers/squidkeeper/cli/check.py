"""`squidkeeper check` (floor 6)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from squidkeeper.cli.options import json_option, policy_option
from squidkeeper.policy.faults import Fault


@click.command()
@policy_option
@json_option
def check(directory: Path, as_json: bool) -> None:
    """Check the policy: print every fault and warning, and run its tests.

    Exit status: 0 when it loads (warnings allowed), 1 when it does not.
    """
    from squidkeeper.errors import PolicyError
    from squidkeeper.live import load
    from squidkeeper.policy.lint import lint

    now = datetime.now(UTC)
    try:
        loaded = load(directory, now)
        policy = loaded.judge.policy
        report = Report(directory, policy.revision, len(policy.rules), (), (*loaded.warnings, *lint(policy, now)))
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


def _text(report: Report) -> str:
    lines = [f"{fault.location}: fault: {fault.message}" for fault in sorted(report.faults)]
    lines += [f"{warning.location}: warning: {warning.message}" for warning in sorted(report.warnings)]
    found = f"{_count(report.faults, 'fault')}, {_count(report.warnings, 'warning')}"
    if report.faults:
        return "\n".join([*lines, f"{report.directory} does not load: {found}"])
    return "\n".join([*lines, f"{report.directory} loads: revision {report.revision}, {report.rules} rules, {found}"])


def _count(found: tuple[Fault, ...], noun: str) -> str:
    return f"{len(found)} {noun}" if len(found) == 1 else f"{len(found)} {noun}s"


def _json(report: Report) -> str:
    return json.dumps(
        {
            "loads": not report.faults,
            "revision": report.revision,
            "rules": report.rules,
            "faults": _rows(report.faults),
            "warnings": _rows(report.warnings),
        },
        indent=2,
    )


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
