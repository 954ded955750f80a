"""`squidkeeper report`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING

import click

from squidkeeper.base.places import revisions_folder
from squidkeeper.cli.arguments import table_options
from squidkeeper.cli.helper_options import (
    DEFAULT_STATE,
    path_option,
    policy_option,
    state_option,
)
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import progress, report_skipped
from squidkeeper.cli.session_keys import OF_SESSIONS, CountKey, check_sessions

if TYPE_CHECKING:
    from squidkeeper.cli.arguments import TableOptions
    from squidkeeper.record.log.drift import PastPolicies
    from squidkeeper.record.report.denials import Reasons
    from squidkeeper.record.report.figures import Report
    from squidkeeper.record.report.period import Period
    from squidkeeper.record.table.sources import TableSources
    from squidkeeper.record.table.table import Table

_STDOUT = Path("-")


@click.command()
@table_options
@path_option(
    "--html", metavar="PAGE", help="Write one HTML page; - for standard output."
)
@click.option(
    "--by",
    type=CountKey(OF_SESSIONS),
    help="What a client is, in place of an address and a proxy user.",
)
@json_option
@policy_option
@state_option(
    "Also report drift, by the revisions in this state folder, and what metered requests used.",
    default=None,
)
def report(
    read: TableOptions,
    html: Path | None,
    by: str | None,
    as_json: bool,
    directory: Path,
    state: Path | None,
) -> None:
    """Report on a period: clients, hosts, denials, new hosts, failures, credentials,
    and tokens of metered requests.

    FILEs are access logs, also compressed, or archived parts; `-` is standard input.
    Without FILE: the archive, the access log and its rotated files. Records before
    --since show which hosts are new.

    \b
    Example:
      squidkeeper report --since 7d --html report.html

    \b
    Exit status:
      2  A log cannot be read, or a gateway of --fleet is missing.
    """
    from squidkeeper.record.report.period import Period

    if html is not None and as_json:
        raise click.UsageError("give one of --html PAGE and --json")
    _check_page(html, read.files)
    check_sessions(state or DEFAULT_STATE, by)
    past = _past_policies(state)
    reasons = _reasons(directory, state or DEFAULT_STATE)
    ledger = state or (DEFAULT_STATE if read.sources.log else None)
    with progress("reading the access log"):
        found = _build(
            read.sources,
            Period(*read.period),
            read.threads,
            past,
            reasons,
            ledger,
            state,
            by,
        )
    _write(found, html, as_json=as_json)


def _check_page(html: Path | None, inputs: tuple[Path, ...]) -> None:
    """Refuse to overwrite a file that is not an HTML page: it could be one of the
    FILEs.
    """
    if html is None or html == _STDOUT:
        return
    if html.is_dir() or not html.parent.is_dir():
        raise click.UsageError(
            f"--html {html}: expected the name of a page in a folder that is there"
        )
    if not html.exists():
        return
    with html.open("rb") as file:
        is_page = file.read(15) == b"<!doctype html>"
    if html in inputs or not is_page:
        raise click.UsageError(
            f"--html {html}: the file exists and is not an HTML page; it was not changed"
        )


def _build(
    sources: TableSources,
    period: Period,
    threads: int | None,
    past: PastPolicies | None,
    reasons: Reasons,
    ledger: Path | None,
    state: Path | None,
    by: str | None,
) -> Report:
    from squidkeeper.record.log.drift import DriftChecker
    from squidkeeper.record.log.recorded_sessions import RecordedSessions
    from squidkeeper.record.report.builder import (
        COLUMNS,
        OF_DENIALS,
        CountedClients,
        build_report,
        drift,
    )
    from squidkeeper.record.table.columns import JUDGED
    from squidkeeper.record.table.database import yield_to_squid
    from squidkeeper.record.table.sources import LiveGateways
    from squidkeeper.record.table.table import open_table

    yield_to_squid()
    # else all that was before it, too
    since = period.since if isinstance(sources.archive, LiveGateways) else None
    checker = None
    sessions = RecordedSessions.of_gateway(state or DEFAULT_STATE)
    clients = CountedClients(by, sessions) if by else CountedClients()
    if past and state:
        checker = DriftChecker(past, replacing=past.replacing, sessions=sessions)
    columns = {*COLUMNS, *clients.columns, *(JUDGED if checker else ())}
    with open_table(
        sources, since, threads=threads, columns=columns, partial=OF_DENIALS
    ) as table:
        report_skipped(table.skipped)
        return build_report(
            table.connection,
            period,
            files=map(str, table.paths),
            now=datetime.now(UTC),
            reasons=reasons,
            invalid=table.skipped.count,
            damaged=[*table.skipped.missing, *table.skipped.damaged],
            with_usage=_has_usage(table, ledger, period),
            clients=clients,
            drift=drift(table.connection, period, checker, past.effective())
            if checker and past
            else None,
        )


def _has_usage(table: Table, state: Path | None, period: Period) -> bool:
    from squidkeeper.base.errors import UnreadableLog
    from squidkeeper.record.table.usage import create_usage
    from squidkeeper.record.usage_ledger import ledger_files

    try:
        files = ledger_files(state, period.since) if state else ()
        return create_usage(table.database, files, period.since, period.until)
    except UnreadableLog:  # a FILE may be all that this account can read
        return False


def _past_policies(state: Path | None) -> PastPolicies | None:
    from squidkeeper.record.log.drift import PastPolicies

    if state is None:
        return None
    folder = revisions_folder(state)
    if not os.path.isdir(folder):  # Path.is_dir raises in a folder that cannot be read
        raise click.UsageError(
            f"--state {state}: no folder of revisions there that this account can read"
        )
    return PastPolicies(folder)


def _reasons(directory: Path, state: Path) -> Reasons:
    """Tell the reason of a rule by the revision that a denial names; where it is not
    stored, by the policy on disk.
    """
    from squidkeeper.cli.arguments import past_policies, policy_on_disk
    from squidkeeper.policy.language.model import BUILT_IN_REASONS

    past, current = past_policies(directory, state), policy_on_disk(directory)
    if current is None:
        text = f"{directory} does not load: reasons of rules may be missing"
        click.echo(text, err=True)

    def reason(rule: str, revision: str) -> str | None:
        policy = past(revision) or current
        if policy is None:
            return BUILT_IN_REASONS.get(rule)
        default = policy.source.default_reason
        if rule == "default" and default:
            return default
        named = {each.name: each.reason for each in policy.source.rules_and_grants}
        return {**BUILT_IN_REASONS, **named}.get(rule)

    return reason


def _write(found: Report, html: Path | None, *, as_json: bool) -> None:
    if html is None:
        from squidkeeper.record.report.figures import as_json as json_of
        from squidkeeper.record.report.text import text

        click.echo(json_of(found) if as_json else text(found), nl=as_json)
        return

    # Jinja, which takes longer to import than a small log to read
    from squidkeeper.record.report.page import (
        page,
    )

    if html == _STDOUT:
        click.echo(page(found), nl=False)
    else:
        _replace(html.resolve(), page(found).encode())


def _replace(html: Path, content: bytes) -> None:
    """Replace the page whole, with the mode and owner that it has; a new one is as
    closed as the access log.
    """
    from squidkeeper.base.atomic_write import replace

    if not html.exists():
        replace(html, content, 0o640)
        return
    about = html.stat()
    owner = (about.st_uid, about.st_gid) if os.geteuid() == 0 else None
    replace(html, content, S_IMODE(about.st_mode), owner)
