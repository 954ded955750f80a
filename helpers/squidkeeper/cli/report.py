"""`squidkeeper report` (floor 6)."""

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
    from squidkeeper.report.figures import Report
    from squidkeeper.report.survey import Survey

_STDOUT = Path("-")


@click.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--html", metavar="PAGE", type=click.Path(path_type=Path), help="Write one HTML page, - to stdout.")
@json_option
@since_option
@until_option
@policy_option
@state_option(
    "Hold what was served against the revisions kept there; as installed, /var/lib/squidkeeper.", default=None
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
    """Report on a span of time: who went where, what was denied and how often it was tried again, and what failed.

    FILEs are those of the record, rotated and compressed ones too, `-` for standard input; or else
    /var/log/squid/access.log with all that it has been rotated to. What is older than --since tells which hosts are
    new. The policy gives the reasons of its rules.
    """
    from squidkeeper.errors import UnreadableLog
    from squidkeeper.record.listing import printable
    from squidkeeper.record.log_files import in_order
    from squidkeeper.report.survey import Survey
    from squidkeeper.rotated_logs import rotated

    if (html is None) is not as_json:
        raise click.UsageError("one of --html PAGE and --json says what to write")
    paths = in_order(files) if files else [*rotated(DEFAULT_LOG), DEFAULT_LOG]
    _check_page(html, paths)
    survey = Survey(since, until, _drift(state))
    try:
        _read(paths, survey)
    except UnreadableLog as error:
        raise click.ClickException(printable(str(error))) from error
    _write(survey.result(map(str, paths), datetime.now(UTC), _reasons(directory)), html)


def _check_page(html: Path | None, inputs: list[Path]) -> None:
    """Refuse to write over a file that is no page: the FILEs stand beside it on the command line."""
    if html is None or html == _STDOUT or not html.exists():
        return
    with html.open("rb") as file:
        is_page = file.read(15) == b"<!doctype html>"
    if html in inputs or not is_page:
        raise click.UsageError(f"--html {html}: there is a file that is no HTML page, and it is left as it is")


def _read(paths: list[Path], survey: Survey) -> None:
    from squidkeeper.record.log_files import read_blocks

    with progress(paths) as advance:
        for block in read_blocks(paths):
            survey.read(block.lines)
            advance(block)


def _drift(state: Path | None) -> DriftChecker | None:
    from squidkeeper.record.drift import DriftChecker
    from squidkeeper.record.past_policies import PastPolicies

    if state is None:
        return None
    folder = state / "revisions"
    if not os.path.isdir(folder):  # Path.is_dir raises where it may not look
        raise click.UsageError(f"--state {state}: there is no folder of revisions, or none that this account may see")
    judges = PastPolicies(folder)
    return DriftChecker(judges, replacing=judges.replacing)


def _reasons(directory: Path) -> Mapping[str, str | None]:
    from squidkeeper.errors import PolicyError
    from squidkeeper.policy_store.policy_watcher import load
    from squidkeeper.report.survey import VERDICTS, reasons_of

    try:
        return reasons_of(load(directory, datetime.now(UTC)).judge.policy)
    except PolicyError:
        click.echo(f"{directory} does not load: the reasons of rules are left out", err=True)
        return VERDICTS


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
    """Open a file that, where it is new, is no more for everybody than the record that it is made of."""
    return os.open(path, flags, 0o640)
