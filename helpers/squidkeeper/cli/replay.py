"""`squidkeeper replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.arguments import (
    check_judged,
    policy_in_force,
    policy_named,
    table_options,
)
from squidkeeper.cli.helper_options import DEFAULT_POLICY, shown_option, state_option
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import progress, show_json, write

if TYPE_CHECKING:
    from squidkeeper.change.replay.result import ReplayResult
    from squidkeeper.cli.arguments import NamedPolicy, TableOptions


@click.command()
@table_options
@shown_option(
    "--policy",
    "new",
    metavar="NEW",
    default=str(DEFAULT_POLICY),
    help="The draft: a folder, or a stored revision.",
)
@click.option(
    "--against",
    "old",
    metavar="OLD",
    help="The policy to compare with. [default: the one in force]",
)
@shown_option(
    "--allow-denials",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="How many used requests may be denied.",
)
@json_option
@click.option("--markdown", is_flag=True, help="Print Markdown for a pull request.")
@state_option()
def replay(
    read: TableOptions,
    new: str,
    old: str | None,
    allow_denials: int,
    as_json: bool,
    markdown: bool,
    state: Path,
) -> None:
    """Judge recorded requests by a draft, and show what it would deny, open or change.

    Both policies judge each request, as of its own time. A request was used if it was
    allowed and answered with a status of 1xx to 3xx. A draft without grants beside its
    folder gets those of OLD.

    FILEs are access logs, also compressed, or archived parts; `-` is standard input.
    Without FILE: the archive, the access log and its rotated files.

    \b
    Example:
      squidkeeper replay --policy ./draft --since 7d

    \b
    Exit status:
      1  More used requests would be denied than --allow-denials.
      2  A policy or log cannot be used, or no request was judged.
    """
    from squidkeeper.change.replay import text

    if as_json and markdown:
        raise click.UsageError("give one of --json and --markdown")
    if folder := next((file for file in read.files if file.is_dir()), None):
        raise click.UsageError(
            f"{folder} is a folder, expected an access log. A draft is named by --policy {folder}"
        )
    before = policy_in_force(state) if old is None else policy_named(old, state)
    after = policy_named(new, state, lender=before)
    result = _replayed(read, before, after, state)
    names = text.ReplayedNames(before.name, after.name)
    if as_json:
        show_json(text.as_object(result, names))
    else:
        write("".join((text.as_markdown if markdown else text.as_text)(result, names)))
    check_judged(result.requests, read.files)
    if result.denied_and_used > allow_denials:
        raise SystemExit(1)


def _replayed(
    read: TableOptions, old: NamedPolicy, new: NamedPolicy, state: Path
) -> ReplayResult:
    from squidkeeper.change.replay.replay import COLUMNS, replay
    from squidkeeper.record.log.recorded_sessions import RecordedSessions

    sessions = RecordedSessions.of_gateway(state)
    with progress("judging the recorded requests"), read.open(COLUMNS) as table:
        return replay(table.connection, old.compiled, new.compiled, sessions=sessions)
