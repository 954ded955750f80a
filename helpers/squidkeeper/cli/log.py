"""`squidkeeper log` (floor 6)."""

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
from squidkeeper.record.log_files import holding_since, in_order, read_blocks
from squidkeeper.record.past_policies import PastPolicies
from squidkeeper.record.record_reader import RecordReader

if TYPE_CHECKING:
    from squidkeeper.engine import Judge
    from squidkeeper.policy.model import Client
    from squidkeeper.record.filters import Predicate
    from squidkeeper.record.listing import Listing

_LOOK_EVERY_SECONDS = 0.25
_REVISIONS = "revisions"  # of the state folder
_SETTLE_SECONDS = 2.0  # how long --follow waits for the request that a denied CONNECT answers


@click.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(readable=False, path_type=Path))
@since_option
@until_option
@click.option(
    "--client", metavar="WHO", multiple=True, help="An address, a network, a client of the policy, or a proxy user."
)
@click.option("--host", metavar="PATTERN", multiple=True, help="A host pattern as in a policy, such as .example.com.")
@click.option("--rule", metavar="NAME", multiple=True, help="The rule that decided.")
@click.option("--verdict", type=click.Choice(["allow", "deny", "-"]), help="-: the policy was not asked.")
@click.option("--status", metavar="STATUS", multiple=True, help="A status such as 403, or a class such as 4xx.")
@click.option("--follow", "-f", is_flag=True, help="Show requests as they end, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print the record's own lines.")
@click.option("--by", type=click.Choice(list(KEYS)), help="Count requests, denials, tunnels and bytes by this.")
@click.option("--connects", is_flag=True, help="Show every CONNECT, also those that another line stands for.")
@click.option("--drift", is_flag=True, help="Show requests that were served although the policy in force denied them.")
@policy_option
@state_option("Where the revisions that were in force are kept.")
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
    """Show the record of requests: FILEs, `-` for standard input, or else /var/log/squid/access.log.

    Files may be rotated and compressed (.gz, .bz2, .xz) and are read in the order of time. Without FILE, --since reads
    what the log has been rotated to as well. Options given several times mean any of their values; different options
    must all hold.

    A tunnel and what passed through it are one event: the CONNECT of a denied tunnel is shown as the request it
    answered, that of an opened one not at all; --connects shows them.

    --drift holds each record against the revision of the policy that it names, of those kept in the state folder. Exit
    status: 1 where it finds something, else 0.
    """
    if follow and (by or len(files) > 1 or STDIN in files):
        raise click.UsageError("--follow reads one log as it is written, and does not go with --by, several FILEs or -")
    if drift and by:
        raise click.UsageError("--drift shows each request that it finds, and does not go with --by")
    policies = DriftChecker(judges := _judges(directory, state), replacing=judges.replacing)
    audit = Audit(policies, state, as_json=as_json) if drift else None
    listing = audit.findings if audit else _listing(by, as_json=as_json)
    events = None if connects or drift else Events(judge=policies.verdict)
    run = Run(_predicate(given, directory), listing, events)
    try:
        if follow:
            run.follow(_follower(files[0] if files else DEFAULT_LOG, given["since"]))
        else:
            run.read(in_order(files) if files else holding_since(DEFAULT_LOG, given["since"]))
        run.end()
        if audit:
            audit.end()
    except UnreadableLog as error:
        raise click.ClickException(printable(str(error))) from error
    except KeyboardInterrupt:
        run.end()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _listing(by: str | None, *, as_json: bool) -> Listing:
    if by:
        return GroupListing(by, as_json=as_json)
    return JsonListing() if as_json else TableListing(coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


class Audit:
    """What --drift checks by, and what came of it."""

    def __init__(self, policies: DriftChecker, state: Path, *, as_json: bool) -> None:
        self._kept = state / _REVISIONS
        self._drift = policies
        self.findings = DriftListing(self._drift, as_json=as_json)

    def end(self) -> None:
        """Say what could not be checked, and end with the status of what was found."""
        if self._drift.unchecked:
            what = quantity(self._drift.unchecked, "served request")
            click.echo(f"{what} not checked: the revision that decided is not kept in {self._kept}", err=True)
        if self._drift.cut:
            what = quantity(self._drift.cut, "served request")
            click.echo(f"{what} not checked: the record holds only the beginning of a URL that decides", err=True)
        if self.findings.found:
            raise SystemExit(1)


def _judges(directory: Path, state: Path) -> PastPolicies:
    """Give the judges of the policies that were in force; the one on disk is loaded when it is asked for."""
    return PastPolicies(state / _REVISIONS, cache(partial(_judge_in_force, directory)))


def _judge_in_force(directory: Path) -> Judge | None:
    from squidkeeper.policy_store.policy_watcher import load

    try:
        return load(directory, datetime.now(UTC)).judge
    except PolicyError:
        return None  # `check` says why; records are held against the revisions that are kept


# --- what is asked for --------------------------------------------------------------------------------------------

_FILTERS: dict[str, Callable[[Any], Predicate]] = {
    "since": filters.since,
    "until": filters.until,
    "host": filters.of_host,
    "rule": filters.of_rule,
    "verdict": filters.of_verdict,
    "status": filters.of_status,
}


def _predicate(given: dict[str, Any], directory: Path) -> Predicate | None:
    wanted = [_filter(name, given[name]) for name in _FILTERS if given[name]]
    if given["client"]:
        wanted.append(filters.of_client(given["client"], _clients(directory, given["client"])))
    return filters.all_of(wanted) if wanted else None


def _clients(directory: Path, given: tuple[str, ...]) -> tuple[Client, ...]:
    """Read the policy's clients where --client has a name; say on stderr which names the policy does not have."""
    names = [one for one in given if filters.network_of(one) is None]
    if not names:
        return ()
    judge = _judge_in_force(directory)
    if judge is None:
        click.echo(f"{directory} does not load: --client finds proxy users, and no clients of the policy.", err=True)
        return ()
    clients = judge.policy.clients
    known = {name for client in clients for name in (client.name, *(client.users or ()))}
    for name in names:
        if name not in known:
            unknown = f"--client {name}: no address or network, and no client or user of the policy in {directory}."
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
    return Follower(path, beginning(holding_since(path, since)[0]))


# --- from files to what is shown ----------------------------------------------------------------------------------


class Run:
    """One call of the command: which events are wanted, how they are shown, and what has been read so far."""

    def __init__(self, wanted: Predicate | None, listing: Listing, events: Events | None) -> None:
        self._wanted = wanted
        self._listing = listing
        self._events = events
        self._reading = RecordReader()
        self._shown = 0

    def read(self, files: list[Path]) -> None:
        """Show whole files."""
        with progress(files, hidden=self._listing.scrolls and sys.stdout.isatty()) as advance:
            for block in read_blocks(files):
                self._feed(block.lines, str(block.path), block.number)
                advance(block)
            self._settle()

    def follow(self, follower: Follower) -> None:
        """Show a log as it is written, for ever."""
        lost, quiet_since = 0, time.monotonic()
        lines = follower.read()
        if not follower.readable:
            click.echo(f"{printable(str(follower.path))}: not there, or not readable; waiting for it.", err=True)
        while True:
            if lines:
                self._feed(lines, "a line", None)
                quiet_since = time.monotonic()
                lines = follower.read()
                continue
            if time.monotonic() - quiet_since > _SETTLE_SECONDS:
                self._settle()
            if follower.lost > lost:
                lost = follower.lost
                click.echo("A stretch of the log was gone before it was read.", err=True)
            time.sleep(_LOOK_EVERY_SECONDS)
            lines = follower.read()

    def end(self) -> None:
        """Show what is shown at the end; say on stderr what was left out."""
        _write(self._listing.end())
        reading, events = self._reading, self._events
        if events and (events.connects or events.merged) and not isinstance(self._listing, JsonListing):
            click.echo(
                f"{quantity(reading.records, 'record')} read, {quantity(self._shown, 'event')} shown. Left out: the "
                f"CONNECTs of {quantity(events.connects, 'tunnel')} that opened, and of {events.merged:,} that did not "
                "and whose request is an event (--connects shows them).",
                err=True,
            )
        if reading.invalid:
            left_out = f"{quantity(reading.invalid, 'line')} left out, no record being on them"
            click.echo(f"{left_out}; the first: {printable(reading.first_invalid)}", err=True)

    def _feed(self, lines: list[bytes], name: str, number: int | None) -> None:
        entries = self._reading.entries(lines, name, number)
        self._show(self._events.feed(entries) if self._events else entries)

    def _settle(self) -> None:
        if self._events:
            self._show(self._events.flush())

    def _show(self, entries: Iterable[LoggedRecord]) -> None:
        _write(self._listing.take(self._select(entries)))

    def _select(self, entries: Iterable[LoggedRecord]) -> Iterator[LoggedRecord]:
        wanted = self._wanted
        for entry in entries:
            if wanted is None or wanted(entry.record):
                self._shown += 1
                yield entry


def _write(text: str) -> None:
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()
