"""`squidkeeper log` (floor 9)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.cli.options import DEFAULT_LOG, policy_option, since_option, state_option, until_option
from squidkeeper.cli.progress import progress
from squidkeeper.errors import PatternError, PolicyError, UnreadableLog
from squidkeeper.formatting import quantity
from squidkeeper.record import filters
from squidkeeper.record.drift import DriftChecker
from squidkeeper.record.events import Events, LoggedRecord
from squidkeeper.record.follower import Follower, beginning
from squidkeeper.record.groups import KEYS
from squidkeeper.record.listing import DriftListing, GroupListing, JsonListing, TableListing, printable
from squidkeeper.record.log_file import STDIN
from squidkeeper.record.log_files import files_since, read_blocks, sorted_by_time
from squidkeeper.record.past_policies import PastPolicies
from squidkeeper.record.record_reader import RecordReader

if TYPE_CHECKING:
    from squidkeeper.engine import CompiledPolicy
    from squidkeeper.policy.model import Client
    from squidkeeper.record.filters import Predicate
    from squidkeeper.record.listing import Listing

_POLL_SECONDS = 0.25
_REVISIONS = "revisions"  # of the state folder
_FLUSH_SECONDS = 2.0  # how long --follow waits for the request inside a denied CONNECT


@click.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(readable=False, path_type=Path))
@since_option
@until_option
@click.option(
    "--client", metavar="WHO", multiple=True, help="An address, a network, a client of the policy, or a proxy user."
)
@click.option("--host", metavar="PATTERN", multiple=True, help="A host pattern as in a policy, such as .example.com.")
@click.option("--rule", metavar="NAME", multiple=True, help="The rule that decided.")
@click.option("--verdict", type=click.Choice(["allow", "deny", "-"]), help="-: no helper decided.")
@click.option("--status", metavar="STATUS", multiple=True, help="A status such as 403, or a class such as 4xx.")
@click.option("--request-id", metavar="ID", multiple=True, help="The request ID, as a page of the gateway shows it.")
@click.option("--follow", "-f", is_flag=True, help="Show requests as they end, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as Squid logged them.")
@click.option("--by", type=click.Choice(list(KEYS)), help="Count requests, denials, tunnels and bytes by this.")
@click.option("--connects", is_flag=True, help="Show every CONNECT, not only those without a request inside.")
@click.option("--drift", is_flag=True, help="Show requests that were served although the policy in force denied them.")
@policy_option
@state_option("The state folder, with the revisions that were in force.")
def log(
    files: tuple[Path, ...],
    follow: bool,
    as_json: bool,
    by: str | None,
    connects: bool,
    drift: bool,
    directory: Path,
    state: Path,
    **given: Any,
) -> None:
    """Show requests from the access log: FILEs, `-` for standard input, by default /var/log/squid/access.log.

    FILEs may be rotated and compressed (.gz, .bz2, .xz); they are read in the order of time. Without FILE, --since
    also reads the rotated files. A repeated option matches any of its values; different options must all match.

    A denied CONNECT and the request inside it are one event. The CONNECT of an opened tunnel is no event. --connects
    shows both.

    --drift decides each request again, by the revision of the policy that its record names; the state folder stores
    these revisions. Exit status: 1 if it finds drift, else 0.
    """
    if follow and (by or len(files) > 1 or STDIN in files):
        raise click.UsageError("--follow reads one log while it is written: it excludes --by, several FILEs and -")
    if drift and by:
        raise click.UsageError("--drift shows each request that it finds: it excludes --by")
    policies = DriftChecker(past := _past_policies(directory, state), replacing=past.replacing)
    audit = DriftAudit(policies, state, as_json=as_json) if drift else None
    listing = audit.findings if audit else _listing(by, as_json=as_json)
    events = None if connects or drift else Events(decide=policies.verdict)
    reader = LogCommand(_combined_filter(given, directory), listing, events)
    try:
        if follow:
            reader.follow(_follower(files[0] if files else DEFAULT_LOG, given["since"]))
        else:
            reader.read(sorted_by_time(files) if files else files_since(DEFAULT_LOG, given["since"]))
        reader.end()
        if audit:
            audit.end()
    except UnreadableLog as error:
        raise click.ClickException(printable(str(error))) from error
    except KeyboardInterrupt:
        reader.end()
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _listing(by: str | None, *, as_json: bool) -> Listing:
    if by:
        return GroupListing(by, as_json=as_json)
    return JsonListing() if as_json else TableListing(coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


class DriftAudit:
    """The check of --drift and its findings."""

    def __init__(self, policies: DriftChecker, state: Path, *, as_json: bool) -> None:
        self._folder = state / _REVISIONS
        self._drift = policies
        self.findings = DriftListing(self._drift, as_json=as_json)

    def end(self) -> None:
        """Report what could not be checked; exit with status 1 if there are findings."""
        if self._drift.unchecked:
            what = quantity(self._drift.unchecked, "served request")
            click.echo(f"{what} not checked: the revision that decided is not stored in {self._folder}", err=True)
        if self._drift.cut:
            what = quantity(self._drift.cut, "served request")
            click.echo(f"{what} not checked: the access log has only the beginning of a URL that decides", err=True)
        if self.findings.found:
            raise SystemExit(1)


def _past_policies(directory: Path, state: Path) -> PastPolicies:
    """Return the policies that were in force; the one on disk is loaded on demand."""
    return PastPolicies(state / _REVISIONS, cache(partial(_policy_in_force, directory)))


def _policy_in_force(directory: Path) -> CompiledPolicy | None:
    from squidkeeper.policy_store.loading import load

    try:
        return load(directory, datetime.now(UTC)).compiled
    except PolicyError:
        return None  # `check` reports why; the stored revisions decide


# --- filters ----------------------------------------------------------------------------------------------------

_FILTERS: dict[str, Callable[[Any], Predicate]] = {
    "since": filters.since,
    "until": filters.until,
    "host": filters.of_host,
    "rule": filters.of_rule,
    "verdict": filters.of_verdict,
    "status": filters.of_status,
    "request_id": filters.of_request_id,
}


def _combined_filter(given: dict[str, Any], directory: Path) -> Predicate | None:
    wanted = [_filter(name, given[name]) for name in _FILTERS if given[name]]
    if given["client"]:
        wanted.append(filters.of_client(given["client"], _clients(directory, given["client"])))
    return filters.all_of(wanted) if wanted else None


def _clients(directory: Path, given: tuple[str, ...]) -> tuple[Client, ...]:
    """Read the policy's clients if --client has a name; report on stderr the names that the policy does not have."""
    names = [one for one in given if filters.network_of(one) is None]
    if not names:
        return ()
    compiled = _policy_in_force(directory)
    if compiled is None:
        click.echo(f"{directory} does not load: --client finds proxy users only, no clients of it.", err=True)
        return ()
    clients = compiled.source.clients
    known = {name for client in clients for name in (client.name, *(client.users or ()))}
    for name in names:
        if name not in known:
            unknown = f"--client {name}: not an address, network, client or user of the policy in {directory}."
            click.echo(printable(f"{unknown} Only a proxy user of this name matches."), err=True)
    return clients


def _filter(name: str, value: Any) -> Predicate:
    try:
        return _FILTERS[name](value)
    except (PatternError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint=f"--{name}") from error


def _follower(path: Path, since: datetime | None) -> Follower:
    if since is None:
        return Follower(path, at_end=True)
    return Follower(path, beginning(files_since(path, since)[0]))


# --- from files to output -----------------------------------------------------------------------------------------


class LogCommand:
    """One call of the command: the filter, the listing, and the counts so far."""

    def __init__(self, wanted: Predicate | None, listing: Listing, events: Events | None) -> None:
        self._wanted = wanted
        self._listing = listing
        self._events = events
        self._reader = RecordReader()
        self._shown = 0

    def read(self, files: list[Path]) -> None:
        """Show the events of files."""
        with progress(files, hidden=self._listing.prints_early and sys.stdout.isatty()) as advance:
            for block in read_blocks(files):
                self._feed(block.lines, str(block.path), block.number)
                advance(block)
            self._flush()

    def follow(self, follower: Follower) -> None:
        """Show a log while it is written, until interrupted."""
        lost, quiet_since = 0, time.monotonic()
        lines = follower.read()
        if not follower.readable:
            click.echo(f"{printable(str(follower.path))}: missing or unreadable; waiting for it.", err=True)
        while True:
            if lines:
                self._feed(lines, "a line", None)
                quiet_since = time.monotonic()
                lines = follower.read()
                continue
            if time.monotonic() - quiet_since > _FLUSH_SECONDS:
                self._flush()
            if follower.lost > lost:
                lost = follower.lost
                click.echo("Part of the log was gone before it was read.", err=True)
            time.sleep(_POLL_SECONDS)
            lines = follower.read()

    def end(self) -> None:
        """Show what the listing has at the end; report on stderr what was left out."""
        _write(self._listing.end())
        reader, events = self._reader, self._events
        if events and (events.connects or events.merged) and not isinstance(self._listing, JsonListing):
            click.echo(
                f"{quantity(reader.records, 'record')} read, {quantity(self._shown, 'event')} shown. Not shown: "
                f"the CONNECTs of {quantity(events.connects, 'tunnel')}, and {events.merged:,} merged into the request "
                "inside (--connects shows all).",
                err=True,
            )
        if reader.invalid:
            skipped = f"{quantity(reader.invalid, 'invalid line')} skipped"
            click.echo(f"{skipped}; the first: {printable(reader.first_invalid)}", err=True)

    def _feed(self, lines: list[bytes], name: str, number: int | None) -> None:
        records = self._reader.parse(lines, name, number)
        self._show(self._events.feed(records) if self._events else records)

    def _flush(self) -> None:
        if self._events:
            self._show(self._events.flush())

    def _show(self, events: Iterable[LoggedRecord]) -> None:
        _write(self._listing.add(self._select(events)))

    def _select(self, events: Iterable[LoggedRecord]) -> Iterator[LoggedRecord]:
        wanted = self._wanted
        for logged in events:
            if wanted is None or wanted(logged.record):
                self._shown += 1
                yield logged


def _write(text: str) -> None:
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()
