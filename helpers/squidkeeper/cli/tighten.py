"""`squidkeeper tighten`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.places import revisions_folder
from squidkeeper.cli.arguments import (
    check_judged,
    policy_in_force,
    policy_named,
    table_options,
)
from squidkeeper.cli.failures import UnusableInput
from squidkeeper.cli.helper_options import path_option, shown_option, state_option
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import (
    check_new_file,
    open_new_file,
    progress,
    show_json,
    write,
)

if TYPE_CHECKING:
    from squidkeeper.change.tightening.edits import Edits
    from squidkeeper.change.tightening.findings import Findings
    from squidkeeper.cli.arguments import NamedPolicy, TableOptions
    from squidkeeper.policy.language.document import Document
    from squidkeeper.policy.policy_store.sources import Sources


@click.command()
@table_options
@click.option(
    "--policy",
    "named",
    metavar="POLICY",
    help="A folder, or a stored revision. [default: the one in force]",
)
@shown_option(
    "--min-days",
    metavar="N",
    type=click.IntRange(0),
    default=30,
    help="Days of the access log that --diff and --output require.",
)
@json_option
@click.option(
    "--diff",
    "as_diff",
    is_flag=True,
    help="Print the narrowed policy as a unified diff.",
)
@path_option(
    "--output",
    callback=check_new_file,
    help="Write the narrowed policy to a new folder.",
)
@state_option()
def tighten(
    read: TableOptions,
    named: str | None,
    min_days: int,
    as_json: bool,
    as_diff: bool,
    output: Path | None,
    state: Path,
) -> None:
    """Show what of a policy nobody used: rules, parts of rules, clients, lists,
    credentials.

    The policy tells which rule decided each recorded request. Each narrower form is
    replayed on the same requests, and allows all that the policy allows.

    FILEs are access logs, also compressed, or archived parts; `-` is standard input.
    Without FILE: the archive, the access log and its rotated files.

    \b
    Example:
      squidkeeper tighten --diff > narrower.diff

    \b
    Exit status:
      1  The access log is too short for --diff or --output.
      2  A policy or log cannot be used, or no request was judged.
    """
    from squidkeeper.change.tightening import text

    if as_json and as_diff:
        raise click.UsageError("give one of --json and --diff")
    policy = policy_in_force(state) if named is None else policy_named(named, state)
    found, edits = _found(read, policy, state)
    check_judged(found.use.requests, read.files)
    short = text.too_short(found, min_days)
    if short and (as_diff or output):
        raise click.ClickException(short)
    changes = (
        _write_edit(policy, named, state, edits, output) if as_diff or output else ""
    )
    if as_diff:
        write(changes)
    elif as_json:
        result = text.as_object(
            found, policy.name, policy.compiled.revision, read.since, min_days
        )
        show_json(result)
    else:
        write("".join(text.as_text(found, policy.name, read.since, min_days)))


def _found(
    read: TableOptions, policy: NamedPolicy, state: Path
) -> tuple[Findings, Edits]:
    from squidkeeper.change.tightening.edits import proposed_edits
    from squidkeeper.change.tightening.findings import findings
    from squidkeeper.change.tightening.proof import proven
    from squidkeeper.change.tightening.usage import COLUMNS, measure
    from squidkeeper.record.log.recorded_sessions import RecordedSessions

    sessions = RecordedSessions.of_gateway(state)
    source, now = policy.compiled.source, datetime.now(UTC)
    with progress("judging the recorded requests"), read.open(COLUMNS) as table:
        connection = table.connection
        use = measure(connection, policy.compiled, sessions=sessions)
        proposed = proposed_edits(source, use, now)
        edits = proven(connection, source, proposed, now, sessions=sessions)
        return findings(source, use, edits, now), edits


def _write_edit(
    policy: NamedPolicy,
    named: str | None,
    state: Path,
    edits: Edits,
    output: Path | None,
) -> str:
    from squidkeeper.change.tightening.edits import edited_documents, unified_diff

    sources, lists = _sources(policy, named, state)
    documents = edited_documents(sources, policy.compiled.source, edits, lists)
    if output is not None:
        _write_files(output, documents)
    return "".join(unified_diff(sources.documents, documents))


def _sources(
    policy: NamedPolicy, named: str | None, state: Path
) -> tuple[Sources, Path | None]:
    """Read the files that a policy was loaded from, and where its lists are
    compiled.
    """
    from squidkeeper.policy.policy_store.revisions import compiled_lists, read_revision
    from squidkeeper.policy.policy_store.sources import read_sources

    revision, folder = policy.compiled.revision, revisions_folder(state)
    if named is not None and os.path.isdir(named):
        sources = read_sources(Path(named))
        if sources.revision != revision:
            raise click.ClickException(f"{named} was changed meanwhile: try again")
        return sources, None
    try:
        return read_revision(folder, revision), compiled_lists(folder, revision)
    except OSError as error:
        raise UnusableInput(
            f"{folder / revision}: {(error.strerror or str(error)).lower()}"
        ) from error


def _write_files(folder: Path, documents: Iterable[Document]) -> None:
    try:
        folder.mkdir(mode=0o750)
    except OSError as error:
        raise click.UsageError(
            f"--output {folder}: {(error.strerror or str(error)).lower()}"
        ) from error
    for document in documents:
        with open_new_file(folder / document.path.name) as file:
            file.write(document.content)
