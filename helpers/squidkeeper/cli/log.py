"""`squidkeeper log`: its options.

`log_table.py` reads files, `log_follow.py` follows one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.base.places import revisions_folder
from squidkeeper.cli import helper_options, options
from squidkeeper.cli.output import progress, terminal_width
from squidkeeper.cli.session_keys import OF_SESSIONS, CountKey, check_sessions
from squidkeeper.cli.wanted_requests import WantedRequests

if TYPE_CHECKING:
    from squidkeeper.record.chain.store_settings import StoreSettings
    from squidkeeper.record.log.drift import DriftChecker, PastPolicies
    from squidkeeper.record.log.filters import Selecting
    from squidkeeper.record.log.follower import Follower
    from squidkeeper.record.log.recorded_sessions import RecordedSessions
    from squidkeeper.record.table.sources import TableSources

# of record/table/listing.py
_KEYS = (
    "host",
    "rule",
    "observed",
    "client",
    "gateway",
    *OF_SESSIONS,
    "model",
    "status",
    "path",
)
# of record/log/filters.py
_FILTERS = (
    "host",
    "rule",
    "verdict",
    "status",
    "request_id",
    "observed",
    "gateway",
)


@click.command()
@click.argument(
    "files",
    metavar="[FILE]...",
    nargs=-1,
    type=click.Path(readable=False, path_type=Path),
)
@options.since_option
@options.until_option
@click.option(
    "--client",
    metavar="WHO",
    multiple=True,
    help="An address, a network, a client of the policy or a proxy user.",
)
@click.option(
    "--host",
    metavar="PATTERN",
    multiple=True,
    help="A host pattern, such as .example.com.",
)
@click.option("--rule", metavar="NAME", multiple=True, help="The rule that decided.")
@click.option(
    "--verdict", type=click.Choice(["allow", "deny", "-"]), help="-: no helper decided."
)
@click.option(
    "--observed",
    metavar="WHAT",
    multiple=True,
    help="What a rule observed: allow, deny, allow:RULE or deny:RULE.",
)
@click.option(
    "--status", metavar="STATUS", multiple=True, help="A status such as 403 or 4xx."
)
@click.option(
    "--request-id",
    metavar="ID",
    multiple=True,
    help="The request ID that an error page shows.",
)
@click.option(
    "--session",
    "session",
    metavar="NAME|NUMBER",
    multiple=True,
    help="A session, also one that has ended. A name stands for all sessions that had it.",
)
@options.gateway_option
@click.option(
    "--failed",
    is_flag=True,
    help="Requests that failed (5xx, errors of Squid), without denials and the client's errors.",
)
@click.option(
    "--follow", "-f", is_flag=True, help="Show requests as they end, until interrupted."
)
@click.option(
    "-n",
    "newest",
    metavar="N",
    type=click.IntRange(1),
    help="Show the newest N requests or findings.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the lines as Squid logged them; with --by, the counts.",
)
@click.option(
    "--by",
    type=CountKey(_KEYS),
    help="Count requests, denials, tunnels and bytes by this, and what metered requests used.",
)
@click.option("--connects", is_flag=True, help="Show every CONNECT.")
@click.option(
    "--drift",
    is_flag=True,
    help="Show requests that were served although the policy denied them.",
)
@helper_options.policy_option
@helper_options.state_option()
@options.archive_read_option
def log(
    files: tuple[Path, ...],
    newest: int | None,
    follow: bool,
    as_json: bool,
    by: str | None,
    connects: bool,
    drift: bool,
    directory: Path,
    state: Path,
    archive: Path,
    **given: Any,
) -> None:
    """Show requests from the access log, in the order of time.

    FILEs are access logs, also compressed, or archived parts; `-` is standard input.
    Without FILE: the access log and its newest rotated file. With --since or -n: all
    rotated files and the archive.

    A repeated option matches any of its values. Different options must all match.

    The CONNECT of an opened tunnel is hidden. For a denied or failed tunnel, either the
    CONNECT or its requests are shown.

    --drift decides each request again, by the stored policy that its record names.

    \b
    Examples:
      squidkeeper log --since 1h --verdict deny --by rule
      squidkeeper log --follow --client agents

    \b
    Exit status:
      1  --drift found a request.
      2  A log cannot be read, or a gateway of --fleet is missing.
    """
    from squidkeeper.cli.arguments import past_policies
    from squidkeeper.record.log.drift import DriftChecker
    from squidkeeper.record.log.recorded_sessions import RecordedSessions

    _check(follow=follow, drift=drift, by=by, newest=newest, files=files)
    check_sessions(state, by, given["session"])
    past = past_policies(directory, state)
    sessions = RecordedSessions.of_gateway(state)
    policies = DriftChecker(past, replacing=past.replacing, sessions=sessions)
    wanted = WantedRequests(
        filters=chosen_filters(given, directory, sessions),
        since=given["since"],
        until=given["until"],
        newest=newest,
        by=by,
        as_json=as_json,
        connects=connects,
        drift=drift,
        coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        terminal=terminal_width(),
        rules=given["rule"],
    )
    try:
        if follow:
            _report_unknown_rules(wanted.rules, directory, ())
            found = _follow(
                wanted, files[0] if files else options.DEFAULT_LOG, policies
            )
        else:
            found, recorded = _read(
                wanted,
                _sources(wanted, files, archive, given["gateway"]),
                policies,
                past,
                state,
                sessions,
            )
            _report_unknown_rules(wanted.rules, directory, recorded)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if drift:
        _end_drift(policies, revisions_folder(state), found)


def _check(
    *,
    follow: bool,
    drift: bool,
    by: str | None,
    newest: int | None,
    files: tuple[Path, ...],
) -> None:
    from squidkeeper.record.log.log_files import STDIN

    if follow and (by or newest is not None or len(files) > 1 or STDIN in files):
        raise click.UsageError(
            "--follow reads one log while it is written: it excludes --by, -n, several FILEs and -"
        )
    if drift and by:
        raise click.UsageError(
            "--drift shows each request that it finds: it excludes --by"
        )
    if by and newest is not None:
        raise click.UsageError("--by counts all requests: it excludes -n")


# --- what to show ---------------------------------------------------------------------


def _sources(
    wanted: WantedRequests,
    files: tuple[Path, ...],
    archive: Path | StoreSettings,
    gateways: tuple[str, ...],
) -> TableSources:
    from squidkeeper.base.rotated_logs import rotated

    with_rotated = (
        wanted.since is not None
        or wanted.newest is not None
        or archive != options.DEFAULT_ARCHIVE
    )
    if not files and not with_rotated:  # right after a rotation the log itself is empty
        files = (*rotated(options.DEFAULT_LOG)[-1:], options.DEFAULT_LOG)
    return options.table_sources(
        files, archive, with_rotated=with_rotated, gateways=gateways
    )


def _read(
    wanted: WantedRequests,
    sources: TableSources,
    checker: DriftChecker,
    past: PastPolicies,
    state: Path,
    sessions: RecordedSessions,
) -> tuple[int, set[str]]:
    """Show what files hold; return the number of findings, and the rules of --rule that
    decided a request there.
    """
    from squidkeeper.cli.log_table import TableLog
    from squidkeeper.record.log.log_files import files_since, sorted_by_time

    files = (
        sorted_by_time(sources.files)
        if sources.files
        else files_since(options.DEFAULT_LOG, wanted.since)
    )
    table = TableLog(wanted, sources, files, checker, state, sessions)
    with progress("reading the access log"):
        table.show(past.effective())
    return table.found, table.recorded_rules


def _follow(wanted: WantedRequests, path: Path, checker: DriftChecker) -> int:
    from squidkeeper.cli.log_follow import FollowedLog

    log = FollowedLog(wanted, checker)
    try:
        log.follow(_follower(path, wanted.since))
    except KeyboardInterrupt:
        log.end()
    return log.found


def _follower(path: Path, since: datetime | None) -> Follower:
    from squidkeeper.record.log.follower import Follower, beginning
    from squidkeeper.record.log.log_files import files_since

    if since is None:
        return Follower(path, at_end=True)
    return Follower(path, beginning(files_since(path, since)[0]))


def _end_drift(checker: DriftChecker, folder: Path, found: int) -> None:
    if unknown := checker.of_unknown_sessions:
        what = quantity(unknown, "served request")
        click.echo(f"{what} not checked: session unknown", err=True)
    if unstored := checker.unchecked - unknown:
        what = quantity(unstored, "served request")
        click.echo(
            f"{what} not checked: the revision that decided is not stored in {folder}",
            err=True,
        )
    if checker.cut:
        what = quantity(checker.cut, "served request")
        click.echo(
            f"{what} not checked: the access log has only the beginning of a URL that decides",
            err=True,
        )
    if found:
        raise SystemExit(1)


def _report_unknown_rules(
    given: tuple[str, ...], directory: Path, recorded: Collection[str]
) -> None:
    """Report on stderr the names of --rule that neither the policy nor the record
    has.
    """
    from squidkeeper.cli.arguments import policy_on_disk
    from squidkeeper.policy.language.model import VERDICT_NAMES
    from squidkeeper.policy.language.schema import suggestion

    unknown = [name for name in given if name not in recorded]
    compiled = policy_on_disk(directory) if unknown else None
    if compiled is None:
        return
    policy = compiled.source
    entries = (*policy.rules, *policy.grants)
    known = VERDICT_NAMES | {entry.name for entry in entries}
    for name in unknown:
        if name not in known:
            places = f"neither in the policy ({directory}) nor in what was read"
            what = f"--rule {name}: no such rule, {places}{suggestion(name, known)}"
            click.echo(printable(what), err=True)


# --- filters --------------------------------------------------------------------------


def chosen_filters(
    given: dict[str, Any], directory: Path, sessions: RecordedSessions
) -> tuple[Selecting, ...]:
    """Return the filters that must all hold."""
    from squidkeeper.cli.arguments import clients_named
    from squidkeeper.record.log import filters

    wanted = [_filter(name, given[name]) for name in _FILTERS if given[name]]
    if given["client"]:
        wanted.append(
            filters.of_client(
                given["client"], clients_named(directory, given["client"])
            )
        )
    if given["session"]:
        wanted.append(filters.of_session(given["session"], sessions.name_of))
    if given["failed"]:
        wanted.append(filters.failed())
    return tuple(wanted)


def _filter(name: str, value: Any) -> Selecting:
    from squidkeeper.record.log import filters

    try:
        made: Selecting = getattr(filters, f"of_{name}")(value)
        return made
    except (PatternError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint=f"--{name}") from error
