"""The sections of the report (floor 5): each counts the requests of the span, and makes its own figures.

Whatever a client can make up without end (hosts, URLs, addresses) is counted in a `Heaviest`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.record import urls
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, moment_of, text
from squidkeeper.record.urls import cut, shown_url
from squidkeeper.report import figures
from squidkeeper.report.sketches import Durations, Heaviest

if TYPE_CHECKING:
    from squidkeeper.record.drift import DriftChecker, Finding

HOSTS_KEPT: Final = 20_000
PAIRS_KEPT: Final = 50_000
CLIENTS_KEPT: Final = 5_000
RETRIES_KEPT: Final = 10_000
UPSTREAMS_KEPT: Final = 2_000
KNOWN_HOSTS: Final = 500_000
NEW_HOSTS_KEPT: Final = 20_000
_CLIENTS_SHOWN = 8
_HOSTS_SHOWN = 25
_DENIED_HOSTS_SHOWN = 5
_RETRIES_SHOWN = 20
_USES_SHOWN = 50
_NEW_HOSTS_SHOWN = 50
_UPSTREAMS_SHOWN = 15
_LEAST_REQUESTS = 10  # of a host, for its p95 to mean anything
_CLIENT_ERRORS_SHOWN = 30
_FINDINGS_SHOWN = 50
_RETRY_URL = 400  # characters that are kept of each; a digest stands for the rest
_UNREADABLE_HOST = "(no valid host)"
_SERVER_ERROR = 500
_REFUSED = (401, 403)


class Request(NamedTuple):
    """A record, with what the sections need of it; `at` is in seconds since 1970."""

    record: Record
    at: float
    client: str
    host: str
    rule: str
    denied: bool

    @property
    def failed(self) -> bool:
        """Whether it was allowed, and answered by 5xx or by an error of Squid's; not where its client ended it."""
        if self.denied or self.ended_by_client:
            return False
        return self.record.status >= _SERVER_ERROR or self.record.error != NONE

    @property
    def ended_by_client(self) -> bool:
        """Whether it came to nothing by its client's doing."""
        return self.record.error in CLIENT_ERRORS


@dataclass(slots=True)
class RequestTotals:
    """Requests of one thing."""

    allowed: int = 0
    denied: int = 0
    response_bytes: int = 0

    @property
    def total(self) -> int:
        """Give how many there were."""
        return self.allowed + self.denied

    def add(self, request: Request) -> None:
        """Count a request."""
        if request.denied:
            self.denied += 1
        else:
            self.allowed += 1
        self.response_bytes += max(0, request.record.bytes)

    def minus(self, others: Iterable[RequestTotals]) -> RequestTotals:
        """Give what is left without others."""
        rest = RequestTotals(self.allowed, self.denied, self.response_bytes)
        for other in others:
            rest.allowed -= other.allowed
            rest.denied -= other.denied
            rest.response_bytes -= other.response_bytes
        return rest


def _weight(tally: RequestTotals) -> int:
    return tally.total


def moment(at: float) -> datetime:
    """Make a time of seconds since 1970."""
    return datetime.fromtimestamp(at, UTC)


def host_of(url: str) -> str:
    """Name the host of a URL of the record, or of the `host:port` of a CONNECT."""
    host = urls.host_of(url).text
    return _UNREADABLE_HOST if host == NONE else host


# --- Who went where -------------------------------------------------------------------------------------------------


class TrafficSection:
    """Who went where."""

    def __init__(self) -> None:
        self.whole = RequestTotals()
        self.hosts = Heaviest[str, RequestTotals](HOSTS_KEPT, RequestTotals, _weight)
        self.clients = Heaviest[str, RequestTotals](CLIENTS_KEPT, RequestTotals, _weight)
        self.pairs = Heaviest[tuple[str, str], RequestTotals](PAIRS_KEPT, RequestTotals, _weight)

    def add(self, request: Request) -> None:
        """Count a request."""
        self.whole.add(request)
        self.hosts[request.host].add(request)
        self.clients[request.client].add(request)
        self.pairs[request.client, request.host].add(request)

    def result(self) -> figures.TrafficFigures:
        """Make the figures."""
        clients = self.clients.heaviest(_CLIENTS_SHOWN)
        hosts = self.hosts.heaviest(_HOSTS_SHOWN)
        names = [client for client, _ in clients]
        rest = self.whole.minus(tally for _, tally in hosts)
        return figures.TrafficFigures(
            clients=tuple(figures.ClientFigures(client, tally.allowed, tally.denied) for client, tally in clients),
            other_clients=len(self.clients) + self.clients.forgotten - len(clients),
            hosts=tuple(self._host(host, tally, names) for host, tally in hosts),
            other_hosts=len(self.hosts) + self.hosts.forgotten - len(hosts),
            rest=self._rest(rest, clients, [host for host, _ in hosts]) if rest.total else None,
        )

    def _host(self, host: str, tally: RequestTotals, clients: list[str]) -> figures.HostFigures:
        pairs = [self._pair(client, host) for client in clients]
        return _host_row(host, tally, pairs)

    def _rest(
        self, rest: RequestTotals, clients: list[tuple[str, RequestTotals]], hosts: list[str]
    ) -> figures.HostFigures:
        pairs = [tally.minus(self._pair(client, host) for host in hosts) for client, tally in clients]
        return _host_row("", rest, pairs)

    def _pair(self, client: str, host: str) -> RequestTotals:
        return self.pairs[client, host] if (client, host) in self.pairs else RequestTotals()


def _host_row(host: str, tally: RequestTotals, pairs: list[RequestTotals]) -> figures.HostFigures:
    by_client = [*pairs, tally.minus(pairs)]
    visits = tuple(figures.Visits(pair.allowed, pair.denied) for pair in by_client)
    return figures.HostFigures(host, tally.allowed, tally.denied, tally.response_bytes, visits)


# --- What was denied ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Denied:
    rule: str = ""
    url: str = ""
    cut: int = 0
    times: int = 0
    first: float = 0.0
    last: float = 0.0


class DenialsSection:
    """What was denied, and what of it was asked for again."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.unavailable = Heaviest[str, list[int]](UPSTREAMS_KEPT, _zero, _only)
        self.hosts = Heaviest[tuple[str, str], list[int]](HOSTS_KEPT, _zero, _only)
        self.requests = Heaviest[tuple[str, str, str], _Denied](RETRIES_KEPT, _Denied, lambda denied: denied.times)

    def add(self, request: Request) -> None:
        """Count a request."""
        rule = request.rule
        self.rules[rule] += 1
        self.hosts[rule, request.host][0] += 1
        if rule == "credential-unavailable":
            self.unavailable[request.host][0] += 1
        url = shown_url(request.record.url)
        denied = self.requests[request.client, request.record.method[:40], _key(url)]
        if denied.times:
            self.retried[rule] += 1
        else:
            denied.first = request.at
            denied.url, denied.cut = cut(url, _RETRY_URL)
        denied.times += 1
        denied.rule, denied.last = rule, request.at

    def result(self, reasons: Mapping[str, str | None], steps: list[Counter[str]]) -> figures.DenialFigures:
        """Make the figures."""
        hosts: dict[str, list[figures.Count]] = {rule: [] for rule in self.rules}
        for (rule, host), (count,) in self.hosts.items():
            hosts[rule].append(figures.Count(host, count))
        retries = [item for item in self.requests.heaviest(_RETRIES_SHOWN) if item[1].times > 1]
        return figures.DenialFigures(
            rules=tuple(self._rule(rule, hosts[rule], reasons, steps) for rule, _ in self.rules.most_common()),
            retried=self.retried.total(),
            retries=tuple(_retried(client, method, denied) for (client, method, _), denied in retries),
        )

    def _rule(
        self,
        rule: str,
        hosts: Iterable[figures.Count],
        reasons: Mapping[str, str | None],
        steps: list[Counter[str]],
    ) -> figures.RuleDenials:
        shown = sorted(hosts, key=lambda host: -host.count)[:_DENIED_HOSTS_SHOWN]
        return figures.RuleDenials(
            rule=rule,
            reason=reasons.get(rule),
            denied=self.rules[rule],
            retried=self.retried[rule],
            hosts=tuple(shown),
            other_hosts=self.rules[rule] - sum(host.count for host in shown),
            over_time=tuple(step[f"-{rule}"] for step in steps),
        )


def _retried(client: str, method: str, denied: _Denied) -> figures.Retried:
    first, last = moment(denied.first), moment(denied.last)
    return figures.Retried(client, text(method) or NONE, denied.url, denied.cut, denied.rule, denied.times, first, last)


def _key(url: str) -> str:
    """Keep a long URL by its start and a digest: many of 8 KB would not fit."""
    return url if len(url) <= _RETRY_URL else url[:100] + blake2b(url.encode(), digest_size=12).hexdigest()


def _zero() -> list[int]:
    return [0]


def _only(counts: list[int]) -> int:
    return counts[0]


# --- Credentials ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Use:
    requests: int = 0
    refused: int = 0
    failed: int = 0


class CredentialsSection:
    """What was put in, and where it went."""

    def __init__(self) -> None:
        self.uses = Heaviest[tuple[str, str], _Use](HOSTS_KEPT, _Use, lambda use: use.requests)
        self._total = 0

    def add(self, request: Request) -> None:
        """Count a request."""
        names = text(request.record.credential)
        for name in names.split(",") if names else ():
            use = self.uses[name, _upstream(request)]
            use.requests += 1
            use.refused += request.record.status in _REFUSED
            use.failed += request.failed
            self._total += 1

    def result(self, denials: DenialsSection) -> figures.CredentialFigures:
        """Make the figures."""
        uses = [
            figures.CredentialUse(name, host, use.requests, use.refused, use.failed)
            for (name, host), use in self.uses.heaviest(_USES_SHOWN)
        ]
        return figures.CredentialFigures(
            uses=tuple(sorted(uses, key=lambda use: (use.credential, -use.requests))),
            other_uses=self._total - sum(use.requests for use in uses),
            unavailable=tuple(
                figures.Count(host, count) for host, (count,) in denials.unavailable.heaviest(_USES_SHOWN)
            ),
        )


def _upstream(request: Request) -> str:
    fetched = text(request.record.fetched)
    return request.host if fetched is None else host_of(fetched)


# --- First seen -----------------------------------------------------------------------------------------------------


class NewHostsSection:
    """Hosts that were not asked for before: by their digests, which take little room."""

    def __init__(self) -> None:
        self.full = False
        self._known: set[int] = set()
        self._new: dict[str, tuple[float, str]] = {}
        self._total = 0
        self._compared = 0
        self._compared_since = float("inf")

    def add_older(self, host: str, at: float) -> None:
        """Take a host that was asked for before the span."""
        self._compared += 1
        self._compared_since = min(self._compared_since, at)
        self._learn(host)

    def add(self, request: Request) -> bool:
        """Take a request; tell whether its host is new."""
        if not self._learn(request.host):
            return False
        self._total += 1
        if len(self._new) < NEW_HOSTS_KEPT:
            self._new[request.host] = (request.at, request.client)
        return True

    def _learn(self, host: str) -> bool:
        digest = int.from_bytes(blake2b(host.encode(), digest_size=7).digest())
        if digest in self._known:
            return False
        if len(self._known) >= KNOWN_HOSTS:
            self.full = True
            return False
        self._known.add(digest)
        return True

    def result(self, hosts: Heaviest[str, RequestTotals]) -> figures.FirstSeen:
        """Make the figures."""
        rows = [
            figures.NewHost(host, moment(at), client, tally.allowed, tally.denied)
            for host, (at, client) in self._new.items()
            for tally in [hosts[host] if host in hosts else RequestTotals()]
        ]
        rows.sort(key=lambda row: (row.allowed > 0, row.first), reverse=True)
        return figures.FirstSeen(
            compared=self._compared,
            compared_since=moment(self._compared_since) if self._compared else None,
            total=self._total,
            allowed=sum(row.allowed > 0 for row in rows),
            hosts=tuple(rows[:_NEW_HOSTS_SHOWN]),
        )


# --- Upstreams ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Answers:
    requests: int = 0
    server_errors: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    waited: Durations = field(default_factory=Durations)


class UpstreamsSection:
    """How the hosts answered that requests were sent on to."""

    def __init__(self) -> None:
        self.hosts = Heaviest[str, _Answers](UPSTREAMS_KEPT, _Answers, lambda answers: answers.requests)

    def add(self, request: Request) -> None:
        """Count a request."""
        record = request.record
        if request.ended_by_client or (record.upstream == NONE and record.error == NONE):
            return  # says nothing of the host: its client left, or it is from the cache, or by Squid itself
        answers = self.hosts[_upstream(request)]
        answers.requests += 1
        if record.error != NONE:
            answers.errors[record.error[:60]] += 1
        elif record.status >= _SERVER_ERROR:
            answers.server_errors += 1
        if record.upstream_ms.isdecimal():
            answers.waited.add(int(record.upstream_ms))

    def result(self) -> figures.UpstreamFigures:
        """Make the figures."""
        rows = [_upstream_row(host, answers) for host, answers in self.hosts.items()]
        slow = [row for row in rows if row.requests >= _LEAST_REQUESTS and row.p95_ms is not None]
        failing = [row for row in rows if _failures(row)]
        return figures.UpstreamFigures(
            slowest=_first(slow, lambda row: row.p95_ms or 0),
            least_requests=_LEAST_REQUESTS,
            failing=_first(failing, _failures),
        )


def _upstream_row(host: str, answers: _Answers) -> figures.Upstream:
    waited = answers.waited
    errors = tuple(figures.Count(name, count) for name, count in answers.errors.most_common(5))
    return figures.Upstream(
        host,
        answers.requests,
        waited.quantile(0.5),
        waited.quantile(0.95),
        waited.longest,
        answers.server_errors,
        errors,
    )


def _failures(row: figures.Upstream) -> int:
    return row.server_errors + sum(error.count for error in row.errors)


def _first(rows: list[figures.Upstream], key: Callable[[figures.Upstream], int]) -> tuple[figures.Upstream, ...]:
    return tuple(sorted(rows, key=key, reverse=True)[:_UPSTREAMS_SHOWN])


# --- Client errors --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ended:
    requests: int = 0
    last: float = 0.0
    host: str = ""


class ClientErrorsSection:
    """What clients ended themselves."""

    def __init__(self) -> None:
        self.rows = Heaviest[tuple[str, str], _Ended](CLIENTS_KEPT, _Ended, lambda ended: ended.requests)
        self._total = 0

    def add(self, request: Request) -> None:
        """Count a request that its client ended."""
        ended = self.rows[request.client, request.record.error]
        ended.requests += 1
        ended.last, ended.host = request.at, request.host
        self._total += 1

    def result(self) -> figures.ClientErrorFigures:
        """Make the figures."""
        rows = tuple(
            figures.ClientError(
                client, error, CLIENT_ERRORS[error], ended.requests, moment(ended.last), cut(ended.host, _RETRY_URL)[0]
            )
            for (client, error), ended in self.rows.heaviest(_CLIENT_ERRORS_SHOWN)
        )
        return figures.ClientErrorFigures(self._total, rows)


# --- Drift ----------------------------------------------------------------------------------------------------------


class DriftSection:
    """What was served and should not have been."""

    def __init__(self, drift: DriftChecker) -> None:
        self._drift = drift
        self._kinds: Counter[str] = Counter()
        self._latest: deque[tuple[Record, Finding]] = deque(maxlen=_FINDINGS_SHOWN)

    def add(self, record: Record) -> None:
        """Hold a record against the policy that was in force."""
        finding = self._drift.check(record)
        if finding:
            self._kinds[finding.kind] += 1
            self._latest.append((record, finding))

    def result(self) -> figures.DriftFigures:
        """Make the figures."""
        return figures.DriftFigures(
            total=self._kinds.total(),
            unchecked=self._drift.unchecked,
            cut=self._drift.cut,
            kinds=tuple(figures.Count(kind, count) for kind, count in self._kinds.most_common()),
            latest=tuple(_finding_row(record, finding) for record, finding in reversed(self._latest)),
        )


def _finding_row(record: Record, finding: Finding) -> figures.DriftRow:
    url, missing = cut(shown_url(record.url), _RETRY_URL)
    return figures.DriftRow(
        time=moment_of(record),
        client=record.client,
        method=text(record.method) or NONE,
        url=url,
        cut=missing,
        rule=finding.rule,
        reason=finding.reason,
        kind=finding.kind,
    )
