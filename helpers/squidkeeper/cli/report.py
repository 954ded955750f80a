"""`squidkeeper report` (floor 9)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.options import DEFAULT_LOG, json_option, policy_option, since_option, state_option, until_option
from squidkeeper.cli.progress import progress

if TYPE_CHECKING:
    from squidkeeper.record.drift import DriftChecker
    from squidkeeper.report.builder import ReportBuilder
    from squidkeeper.report.figures import Report

_STDOUT = Path("-")


@click.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--html", metavar="PAGE", type=click.Path(path_type=Path), help="Write one HTML page, - to stdout.")
@json_option
@since_option
@until_option
@policy_option
@state_option(
    "Check for drift with the revisions in this state folder; as installed, /var/lib/squidkeeper.", default=None
)
def report(
    files: tuple[Path, ...],
    html: Path | None,
    as_json: bool,
    since: datetime | None,
    until: datetime | None,
    directory: Path,
    state: Path | None,
) -> None:
    """Report on a period: clients and hosts, denials and their retries, new hosts, failures, credentials and drift.

    FILEs are access logs, also rotated and compressed, `-` for standard input; by default /var/log/squid/access.log
    and its rotated files. Records from before --since show which hosts are new. The policy supplies the reasons of its
    rules.
    """
    from squidkeeper.errors import UnreadableLog
    from squidkeeper.record.listing import printable
    from squidkeeper.record.log_files import sorted_by_time
    from squidkeeper.report.builder import ReportBuilder
    from squidkeeper.rotated_logs import rotated

    if (html is None) is not as_json:
        raise click.UsageError("give one of --html PAGE and --json")
    paths = sorted_by_time(files) if files else [*rotated(DEFAULT_LOG), DEFAULT_LOG]
    _check_page(html, paths)
    builder = ReportBuilder(since, until, _drift(state))
    try:
        _read(paths, builder)
    except UnreadableLog as error:
        raise click.ClickException(printable(str(error))) from error
    _write(builder.result(map(str, paths), datetime.now(UTC), _reasons(directory)), html)


def _check_page(html: Path | None, inputs: list[Path]) -> None:
    """Refuse to overwrite a file that is not an HTML page: it could be one of the FILEs."""
    if html is None or html == _STDOUT or not html.exists():
        return
    with html.open("rb") as file:
        is_page = file.read(15) == b"<!doctype html>"
    if html in inputs or not is_page:
        raise click.UsageError(f"--html {html}: the file exists and is not an HTML page; it was not changed")


def _read(paths: list[Path], builder: ReportBuilder) -> None:
    from squidkeeper.record.log_files import read_blocks

    with progress(paths) as advance:
        for block in read_blocks(paths):
            builder.read(block.lines)
            advance(block)


def _drift(state: Path | None) -> DriftChecker | None:
    from squidkeeper.record.drift import DriftChecker
    from squidkeeper.record.past_policies import PastPolicies

    if state is None:
        return None
    folder = state / "revisions"
    if not os.path.isdir(folder):  # Path.is_dir raises in a folder that cannot be read
        raise click.UsageError(f"--state {state}: no folder of revisions there that this account can read")
    past = PastPolicies(folder)
    return DriftChecker(past, replacing=past.replacing)


def _reasons(directory: Path) -> Mapping[str, str | None]:
    from squidkeeper.errors import PolicyError
    from squidkeeper.policy_store.loading import load
    from squidkeeper.report.builder import BUILT_IN_REASONS, rule_reasons

    try:
        return rule_reasons(load(directory, datetime.now(UTC)).compiled.source)
    except PolicyError:
        click.echo(f"{directory} does not load: the reasons of its rules are left out", err=True)
        return BUILT_IN_REASONS


def _write(found: Report, html: Path | None) -> None:
    from squidkeeper.report.page import as_json, page

    if html is None:
        click.echo(as_json(found))
    elif html == _STDOUT:
        click.echo(page(found), nl=False)
    else:
        with open(html, "w", encoding="utf-8", opener=_private) as file:
            file.write(page(found))


def _private(path: str, flags: int) -> int:
    """Create the file as closed as the access log: mode 0640."""
    return os.open(path, flags, 0o640)
