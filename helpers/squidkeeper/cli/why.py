"""`squidkeeper why`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.base.errors import EditRefused, InvalidUrl, PatternError
from squidkeeper.base.formatting import quantity
from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.base.layout import Layout
from squidkeeper.base.places import revisions_folder
from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    run_option,
    shown_option,
    state_option,
)
from squidkeeper.cli.options import (
    ABSOLUTE_URL,
    HOST_AND_PORT,
    Moment,
    archive_read_option,
    gateway_option,
    is_missing,
    json_option,
    table_sources,
)
from squidkeeper.cli.output import progress, show_text

if TYPE_CHECKING:
    from squidkeeper.cli.why_table import ReadFailures
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.url import Address
    from squidkeeper.record.chain.store_settings import StoreSettings
    from squidkeeper.record.log.filters import Filter
    from squidkeeper.record.table.sources import LiveGateways, TableSources
    from squidkeeper.record.usage_ledger import UsageEntry
    from squidkeeper.record.why.answer import Explained
    from squidkeeper.record.why.details import Surroundings
    from squidkeeper.record.why.search import FailureGroup, Search
    from squidkeeper.serving.tickets.store import Ticket
    from squidkeeper.serving.tickets.ticket import AskedRequest

# The gateway, seconds, milliseconds, the number of the request, the client's port:
# REQUEST_ID of setup/error_pages.py. Squid writes `-` for what it does not have. Former
# versions wrote no gateway.
_REQUEST_ID = re.compile(
    r"(?:(?P<gateway>[A-Za-z0-9._-]+)\.)?(?P<second>[0-9]{9,11})\.[0-9]+\.(?:[0-9]+|-)\.(?:[0-9]+|-)"
)
_LONGEST_REQUEST: Final = timedelta(days=1)  # client_lifetime of Squid
_USUAL_SPAN: Final = timedelta(hours=1)
_DNS_SECONDS: Final = 3.0
_NAMES_RESOLVED: Final = 5  # for one call: a name takes seconds if nothing answers
_FAILED = 1
_NOTHING_TO_SAY = 2
_REFUSED: Final = (
    "Not among them: connections that the transparent ports refused, as those without a TLS server name. They are in"
    " `journalctl -u squidkeeper-transparent`, or transparent.log in the run folder.\n"
)
_SOME_ID = "gw-1.1795714530.880.73.57132"


def _checked_url(
    _context: click.Context, _option: click.Parameter, url: str | None
) -> str | None:
    if url is None or HOST_AND_PORT.fullmatch(url):
        return url
    if scheme := ABSOLUTE_URL.match(url):
        return url if "/" in url[scheme.end() :] else f"{url}/"  # as the record has it
    expected = "expected a URL with its scheme, such as https://example.com/, or HOST:PORT of a CONNECT"
    raise click.BadParameter(f"{url!r} is not an absolute URL, {expected}")


@click.command()
@click.argument("given", metavar="[ID|FILE]...", nargs=-1)
@click.option(
    "--client",
    metavar="WHO",
    multiple=True,
    help="An address, a network or a client of the policy.",
)
@click.option("--user", "users", metavar="NAME", multiple=True, help="The proxy user.")
@click.option(
    "--host",
    "hosts",
    metavar="PATTERN",
    multiple=True,
    help="A host pattern, such as .example.com.",
)
@click.option(
    "--url",
    metavar="URL",
    callback=_checked_url,
    help="A URL (without a query: any query), or HOST:PORT of a CONNECT.",
)
@click.option(
    *("--last", "--since", "since"),
    metavar="TIME",
    type=Moment(),
    help="The start: 10m, 2h or 3d ago, or an ISO time. [default: 1h]",
)
@shown_option(
    "-n",
    "number",
    metavar="N",
    type=click.IntRange(1),
    default=10,
    help="Causes to show.",
)
@archive_read_option
@gateway_option
@path_option(
    "--cache-log",
    metavar="FILE",
    help="Squid's cache.log. [default: the one beside the access log]",
)
@json_option
@policy_option
@state_option()
@run_option
def why(
    given: tuple[str, ...],
    client: tuple[str, ...],
    users: tuple[str, ...],
    hosts: tuple[str, ...],
    url: str | None,
    since: datetime | None,
    number: int,
    archive: Path | StoreSettings | LiveGateways,
    gateway: tuple[str, ...],
    cache_log: Path | None,
    as_json: bool,
    directory: Path,
    state: Path,
    run: Path,
) -> None:
    """Tell why requests failed, and what to do: by cause, the newest first.

    ID is the request ID that an error page shows. FILEs are access logs. Without FILE:
    the archive, the access log and its rotated files. The cache.log beside the access
    log is read too.

    "likely" marks an inferred cause. squid/TROUBLESHOOTING.md lists the causes. A name
    that had a private address is resolved again. With --fleet, the gateway of the ID is
    asked; without ID, all.

    \b
    Examples:
      squidkeeper why --last 10m
      squidkeeper why --client agents --host .example.com

    \b
    Exit status:
      0  No request failed.
      1  A request failed.
      2  Nothing can be read, or no request has the ID.
    """
    from squidkeeper.cli.why_fleet import ask_fleet
    from squidkeeper.record.log.record import format_time
    from squidkeeper.record.table.sources import LiveGateways
    from squidkeeper.record.usage_ledger import usage_of
    from squidkeeper.record.why.search import Inquiry, Search

    ids, files = _ids_and_files(given)
    if isinstance(archive, LiveGateways):
        if files or cache_log:
            raise click.UsageError(
                "--fleet reads the logs of its gateways: it excludes FILEs and --cache-log"
            )
        options = {
            "--client": client,
            "--user": users,
            "--host": hosts,
            "--url": (url,) if url else (),
        }
        words = [
            *sorted(ids),
            *(
                word
                for name, values in options.items()
                for one in values
                for word in (name, one)
            ),
        ]
        words += [
            "-n",
            str(number),
            *(["--since", format_time(since)] if since else []),
            *["--json"] * as_json,
        ]
        raise SystemExit(
            ask_fleet(
                archive, gateway or _gateways_of(ids, archive), words, as_json=as_json
            )
        )
    policies = _Policies(directory, state)
    question = Inquiry(
        ids, tuple(_filters(client, hosts, policies)), frozenset(users), url
    )
    search = Search(question, since or _start(ids, files))
    sources = table_sources(files, archive, gateways=gateway)
    with progress("looking for failures"):
        known = _surroundings(policies, run, cache_log or _beside(sources), search)
        answer = _Answer(
            search,
            _read(search, sources, number),
            known,
            usage_of(state, ids, search.since),
        )
        layout = Layout.around(directory, state, run=run)
        newest = answer.newest(number, layout)
    if as_json:
        click.echo(answer.as_json(newest))
    else:
        has_ports = not ids and os.access(layout.transparent_state, os.F_OK)
        show_text(
            answer.as_text(newest, sources)
            + with_commands(_REFUSED, layout) * has_ports,
            nl=False,
        )
    if search.unknown_ids:
        raise SystemExit(_NOTHING_TO_SAY)
    raise SystemExit(_FAILED if newest else 0)


def _gateways_of(ids: frozenset[str], fleet: LiveGateways) -> set[str]:
    """Name the gateways that IDs begin with; none, where one begins with no gateway of
    the fleet: all are asked.
    """
    names = {
        found["gateway"]
        for request_id in ids
        if (found := _REQUEST_ID.fullmatch(request_id))
    }
    return names if names <= fleet.addresses.keys() else set()


def _ids_and_files(given: tuple[str, ...]) -> tuple[frozenset[str], tuple[Path, ...]]:
    from squidkeeper.record.log.log_files import STDIN

    ids = frozenset(argument for argument in given if _REQUEST_ID.fullmatch(argument))
    files = tuple(Path(argument) for argument in given if argument not in ids)
    for file in files:
        if file != STDIN and is_missing(file):
            message = (
                f"{file}: no such file, and no request ID, which looks like {_SOME_ID}"
            )
            raise click.BadParameter(message, param_hint="ID or FILE")
    return ids, files


def _start(ids: frozenset[str], files: tuple[Path, ...]) -> datetime | None:
    """Return the time from which to read: an ID has the second at which its request
    began.
    """
    seconds = [
        int(found["second"])
        for request_id in ids
        if (found := _REQUEST_ID.fullmatch(request_id))
    ]
    if seconds:
        return datetime.fromtimestamp(min(seconds), UTC)
    return None if files else datetime.now(UTC) - _USUAL_SPAN


def _filters(
    client: tuple[str, ...], hosts: tuple[str, ...], policies: _Policies
) -> Iterator[Filter]:
    from squidkeeper.cli.arguments import clients_named
    from squidkeeper.record.log.filters import of_client, of_host

    if client:
        yield of_client(client, clients_named(policies.directory, client))
    try:
        if hosts:
            yield of_host(hosts)
    except PatternError as error:
        raise click.BadParameter(str(error), param_hint="--host") from error


class _Policies:
    """The policy on disk, and the revisions that were in force."""

    def __init__(self, directory: Path, state: Path) -> None:
        from squidkeeper.cli.arguments import policy_on_disk
        from squidkeeper.record.log.drift import PastPolicies

        self.directory = directory
        self.state = state
        self.current = cache(partial(policy_on_disk, directory))
        self.of = PastPolicies(revisions_folder(state), self.current)

    def in_force(self) -> str:
        """Name the revision that helpers have loaded last; empty where it is
        unknown.
        """
        from squidkeeper.policy.policy_store.revisions import revision_in_force

        found = revision_in_force(revisions_folder(self.state))
        return (
            found.revision
            if found and found.directory == self.directory.absolute()
            else ""
        )


def _read(search: Search, sources: TableSources, shown: int) -> ReadFailures:
    from squidkeeper.cli.why_table import read_failures

    end = (
        search.since + _LONGEST_REQUEST
        if search.since and search.question.ids
        else None
    )
    return read_failures(sources, search, end, shown)


def _beside(sources: TableSources) -> Path | None:
    log = sources.files[-1] if sources.files else sources.log
    return log.with_name("cache.log") if log else None


def _surroundings(
    policies: _Policies, run: Path, cache_log: Path | None, search: Search
) -> Surroundings:
    from squidkeeper.record.log.recorded_sessions import RecordedSessions
    from squidkeeper.record.why.cache_log import CacheLog, read_cache_log
    from squidkeeper.record.why.details import Surroundings
    from squidkeeper.serving.quotas.store_settings import quota_store_file
    from squidkeeper.serving.squid_crashes import read_crashes

    log = read_cache_log(cache_log, search.since) if cache_log else CacheLog()
    secret_problem, ticket_of = (
        partial(_secret_problem, run),
        partial(_ticket_of, policies.state),
    )
    is_shared = quota_store_file(policies.directory).exists()
    crashes = read_crashes(policies.state) if search.since else ()
    sessions = RecordedSessions.of_gateway(policies.state)
    told = (log, is_shared, crashes, policies.in_force(), sessions)
    return Surroundings(
        policies.of, policies.current, _Resolver(), secret_problem, ticket_of, *told
    )


class _Answer:
    """One call of the command: what was read, and what was found.

    Only what is shown is explained.
    """

    def __init__(
        self,
        search: Search,
        read: ReadFailures,
        known: Surroundings,
        usage: list[UsageEntry],
    ) -> None:
        from squidkeeper.record.log.record import format_time
        from squidkeeper.record.why.answer import crashes, without_record

        self._search = search
        self._read = read
        self._known = known
        self._usage = usage
        self._since = format_time(search.since) if search.since else ""
        self._groups = read.groups
        unrecorded = (
            *crashes(known.crashes, self._since),
            *without_record(known.cache_log, self._since),
        )
        self._unrecorded = [] if search.question.ids else unrecorded

    def newest(self, number: int, layout: Layout) -> list[Explained]:
        """Explain the newest causes, the newest first; `layout` is the gateway whose
        commands they name.
        """
        from squidkeeper.record.why.answer import newest_first

        found = [self._explained(group) for group in self._groups[:number]]
        newest = newest_first([*found, *self._unrecorded])[:number]
        return [
            replace(answer, remedy=with_commands(answer.remedy, layout))
            for answer in newest
        ]

    def _explained(self, group: FailureGroup) -> Explained:
        from squidkeeper.record.why.answer import explained
        from squidkeeper.record.why.details import detail_of
        from squidkeeper.record.why.search import is_unsure_of_user

        answer = explained(
            group, detail_of(group.newest[0], self._known), self._known.cache_log
        )
        return (
            replace(answer, likely=True)
            if is_unsure_of_user(self._search.question, answer.cause.code)
            else answer
        )

    def as_text(self, shown: list[Explained], sources: TableSources) -> str:
        """Write the answer for people."""
        from squidkeeper.record.why.answer import as_text

        read = quantity(self._read.requests, "request")
        since = f" since {self._since}" * bool(self._since)
        told = [
            *self._about_ids(sources),
            *self._left_out(len(shown)),
            *self._not_read(),
        ]
        if not shown and not self._search.question.ids:
            told.insert(0, "No such failure.")
        told.append(f"{read} read, {self._search.failed:,} failed{since}.")
        causes = as_text(shown, with_gateways=self._read.gateways > 1)
        return f"{causes}\n" * bool(shown) + "".join(
            f"{_printable(text)}\n" for text in told
        )

    def _about_ids(self, sources: TableSources) -> Iterator[str]:
        from squidkeeper.record.why.answer import about_usage
        from squidkeeper.record.why.search import about_other

        yield from map(about_other, self._search.others.values())
        yield from map(about_usage, self._usage)
        for one in sorted(self._search.unknown_ids):
            yield (
                f"No request has the ID {one} in {_described(sources)}: an ID looks like {_SOME_ID}, as a page of the"
                " gateway shows it, and has the gateway and the time of its request in seconds."
            )

    def _left_out(self, shown: int) -> Iterator[str]:
        from squidkeeper.record.why.answer import totals

        left = self._causes - shown
        if left:
            more = totals([*self._groups, *self._unrecorded])
            yield f"{quantity(left, 'older cause')} not shown: `-n` shows more. In all: {more}."
        if self._search.beyond:
            yield f"{quantity(self._search.beyond, 'failure')} of further causes not shown."

    def _not_read(self) -> Iterator[str]:
        skipped, problem = self._read.skipped, self._known.cache_log.problem
        if problem:
            yield f"cache.log was not read: {problem}"
        if older := self._read.older:
            yield f"{quantity(older, 'older request')} that may have failed not read: choose a shorter time."
        yield from (f"damaged: {file}" for file in skipped.damaged)
        if skipped.count:
            yield f"{quantity(skipped.count, 'invalid line')} skipped; the first: {skipped.first}"

    @property
    def _causes(self) -> int:
        return len(self._groups) + len(self._unrecorded)

    def as_json(self, shown: list[Explained]) -> str:
        """Write the answer for programs."""
        from msgspec import to_builtins

        from squidkeeper.record.why.answer import as_json
        from squidkeeper.record.why.search import about_other

        search = self._search
        return as_json(
            shown,
            {
                "since": self._since or None,
                "requests": self._read.requests,
                "failed": search.failed,
                "causes_not_shown": self._causes - len(shown),
                "not_failed": [
                    about_other(record) for record in search.others.values()
                ],
                "usage": [to_builtins(entry) for entry in self._usage],
                "unknown_ids": sorted(search.unknown_ids),
                "older_not_read": bool(self._read.older),
                "requests_not_read": self._read.older,
                "invalid_lines": self._read.skipped.count,
                "damaged": self._read.skipped.damaged,
                "cache_log_problem": self._known.cache_log.problem or None,
            },
        )


def _described(sources: TableSources) -> str:
    if sources.files:
        return ", ".join(map(str, sources.files))
    log = [f"{sources.log} and its rotated files"] if sources.log else []
    return ", or ".join([*log, "the archive"])


def _printable(text: str) -> str:
    from squidkeeper.record.log.listing import printable_field

    return printable_field(text)


def _secret_problem(run: Path, policy: CompiledPolicy, name: str) -> str | None:
    """Return why a secret is unavailable now; None for a variable, which is set for
    Squid alone.
    """
    from squidkeeper.policy.language.secret_sources import (
        EnvironmentSource,
        SessionSource,
    )
    from squidkeeper.serving.credentials import SecretStore

    secrets = policy.source.secrets
    if isinstance(secrets[name].source, EnvironmentSource):
        return None
    if isinstance(secrets[name].source, SessionSource):
        return f"secret {name}: the session had no value for it, or a restart has lost it: it has to be given again"
    problem = SecretStore(secrets, os.environ, run / "secrets").problem(name)
    return None if problem is None else str(problem)


def _ticket_of(state: Path, asked: AskedRequest) -> Ticket | None:
    from squidkeeper.change.approvals.waiting import ticket_of

    try:
        return ticket_of(state, asked)
    except EditRefused:
        return None


class _Resolver:
    """Resolves names as this machine does, a few of them, each for some seconds at
    most.
    """

    def __init__(self) -> None:
        self._left = _NAMES_RESOLVED
        self._known: dict[str, tuple[Address, ...]] = {}

    def __call__(self, name: str) -> tuple[Address, ...]:
        """List the addresses of a name; none if it does not resolve in time."""
        if name not in self._known and self._left:
            self._left -= 1
            self._known[name] = _resolve(name)
        return self._known.get(name, ())


def _resolve(name: str) -> tuple[Address, ...]:
    answer: Future[tuple[Address, ...]] = Future()
    Thread(
        target=lambda: answer.set_result(_addresses(name)), daemon=True
    ).start()  # getaddrinfo(3) has no time limit
    done, _ = wait([answer], _DNS_SECONDS)
    return answer.result() if done else ()


def _addresses(name: str) -> tuple[Address, ...]:
    import socket

    from squidkeeper.policy.url import parse_address

    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return tuple(
            dict.fromkeys(parse_address(str(address[0])) for *_, address in found)
        )
    except (OSError, UnicodeError, InvalidUrl):
        return ()
