"""The sections of the report (floor 7): each counts the requests of the period and returns its figures.

Values that a client can invent without limit (hosts, URLs, addresses) are counted in `HeavyHitters`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.record import urls
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, decode_field, is_unseen, parse_time
from squidkeeper.record.urls import redacted_url, truncate
from squidkeeper.report import figures
from squidkeeper.report.bounded_counters import DurationHistogram, HeavyHitters

if TYPE_CHECKING:
    from squidkeeper.record.drift import DriftChecker, Finding

HOST_LIMIT: Final = 20_000
PAIR_LIMIT: Final = 50_000
CLIENT_LIMIT: Final = 5_000
RETRY_LIMIT: Final = 10_000
UPSTREAM_LIMIT: Final = 2_000
KNOWN_HOST_LIMIT: Final = 500_000
NEW_HOST_LIMIT: Final = 20_000
_CLIENTS_SHOWN = 8
_HOSTS_SHOWN = 25
_DENIED_HOSTS_SHOWN = 5
_RETRIES_SHOWN = 20
_USES_SHOWN = 50
_NEW_HOSTS_SHOWN = 50
_UPSTREAMS_SHOWN = 15
_LEAST_REQUESTS = 10  # of a host, for a meaningful p95
_CLIENT_ERRORS_SHOWN = 30
_FINDINGS_SHOWN = 50
_RETRY_URL = 400  # characters that are stored of each; a digest replaces the rest
_UNREADABLE_HOST = "(no valid host)"
_SERVER_ERROR = 500
_REFUSED = (401, 403)


class ReportedRequest(NamedTuple):
    """A record and the values that the sections need; `at` is in seconds since 1970."""

    record: Record
    at: float
    client: str
    host: str
    rule: str
    denied: bool

    @property
    def failed(self) -> bool:
        """Whether it was allowed and ended in 5xx or an error of Squid, unless its client caused the error."""
        if self.denied or self.ended_by_client:
            return False
        return self.record.status >= _SERVER_ERROR or self.record.error != NONE

    @property
    def ended_by_client(self) -> bool:
        """Whether its client caused the error."""
        return self.record.error in CLIENT_ERRORS


@dataclass(slots=True)
class RequestTotals:
    """Totals of the requests of a host, a client, or both."""

    allowed: int = 0
    denied: int = 0
    response_bytes: int = 0

    @property
    def total(self) -> int:
        """The number of requests."""
        return self.allowed + self.denied

    def add(self, request: ReportedRequest) -> None:
        """Count a request."""
        if request.denied:
            self.denied += 1
        else:
            self.allowed += 1
        self.response_bytes += max(0, request.record.bytes)

    def minus(self, others: Iterable[RequestTotals]) -> RequestTotals:
        """Subtract others."""
        rest = RequestTotals(self.allowed, self.denied, self.response_bytes)
        for other in others:
            rest.allowed -= other.allowed
            rest.denied -= other.denied
            rest.response_bytes -= other.response_bytes
        return rest


def _weight(totals: RequestTotals) -> int:
    return totals.total


def datetime_of(at: float) -> datetime:
    """Convert seconds since 1970 to a time."""
    return datetime.fromtimestamp(at, UTC)


def host_of(url: str) -> str:
    """Return the host of a URL, or of the `host:port` of a CONNECT."""
    host = urls.host_of(url).text
    return _UNREADABLE_HOST if host == NONE else host


# --- Traffic --------------------------------------------------------------------------------------------------------


class TrafficSection:
    """Traffic by host and client."""

    def __init__(self) -> None:
        self.all_requests = RequestTotals()
        self.hosts = HeavyHitters[str, RequestTotals](HOST_LIMIT, RequestTotals, _weight)
        self.clients = HeavyHitters[str, RequestTotals](CLIENT_LIMIT, RequestTotals, _weight)
        self.pairs = HeavyHitters[tuple[str, str], RequestTotals](PAIR_LIMIT, RequestTotals, _weight)

    def add(self, request: ReportedRequest) -> None:
        """Count a request."""
        self.all_requests.add(request)
        self.hosts[request.host].add(request)
        self.clients[request.client].add(request)
        self.pairs[request.client, request.host].add(request)

    def result(self) -> figures.TrafficFigures:
        """Return the figures."""
        clients = self.clients.heaviest(_CLIENTS_SHOWN)
        hosts = self.hosts.heaviest(_HOSTS_SHOWN)
        names = [client for client, _ in clients]
        rest = self.all_requests.minus(totals for _, totals in hosts)
        return figures.TrafficFigures(
            clients=tuple(figures.ClientFigures(client, totals.allowed, totals.denied) for client, totals in clients),
            other_clients=len(self.clients) + self.clients.removed - len(clients),
            hosts=tuple(self._host(host, totals, names) for host, totals in hosts),
            other_hosts=len(self.hosts) + self.hosts.removed - len(hosts),
            rest=self._rest(rest, clients, [host for host, _ in hosts]) if rest.total else None,
        )

    def _host(self, host: str, totals: RequestTotals, clients: list[str]) -> figures.HostFigures:
        pairs = [self._pair(client, host) for client in clients]
        return _host_row(host, totals, pairs)

    def _rest(
        self, rest: RequestTotals, clients: list[tuple[str, RequestTotals]], hosts: list[str]
    ) -> figures.HostFigures:
        pairs = [totals.minus(self._pair(client, host) for host in hosts) for client, totals in clients]
        return _host_row("", rest, pairs)

    def _pair(self, client: str, host: str) -> RequestTotals:
        return self.pairs[client, host] if (client, host) in self.pairs else RequestTotals()


def _host_row(host: str, totals: RequestTotals, pairs: list[RequestTotals]) -> figures.HostFigures:
    by_client = [*pairs, totals.minus(pairs)]
    visits = tuple(figures.Visits(pair.allowed, pair.denied) for pair in by_client)
    return figures.HostFigures(host, totals.allowed, totals.denied, totals.response_bytes, visits)


# --- Denials --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Denied:
    rule: str = ""
    url: str = ""
    cut: int = 0
    times: int = 0
    first: float = 0.0
    last: float = 0.0


class DenialsSection:
    """Denials, and their retries."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.unavailable = HeavyHitters[str, list[int]](UPSTREAM_LIMIT, _zero, _only)
        self.hosts = HeavyHitters[tuple[str, str], list[int]](HOST_LIMIT, _zero, _only)
        self.requests = HeavyHitters[tuple[str, str, str], _Denied](RETRY_LIMIT, _Denied, lambda denied: denied.times)

    def add(self, request: ReportedRequest) -> None:
        """Count a request."""
        rule = request.rule
        self.rules[rule] += 1
        self.hosts[rule, request.host][0] += 1
        if rule == "credential-unavailable":
            self.unavailable[request.host][0] += 1
        url = redacted_url(request.record.url)
        denied = self.requests[request.client, request.record.method[:40], _key(url)]
        if denied.times:
            self.retried[rule] += 1
        else:
            denied.first = request.at
            denied.url, denied.cut = truncate(url, _RETRY_URL)
        denied.times += 1
        denied.rule, denied.last = rule, request.at

    def result(self, reasons: Mapping[str, str | None], steps: list[Counter[str]]) -> figures.DenialFigures:
        """Return the figures."""
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
    first, last = datetime_of(denied.first), datetime_of(denied.last)
    return figures.Retried(
        client, decode_field(method) or NONE, denied.url, denied.cut, denied.rule, denied.times, first, last
    )


def _key(url: str) -> str:
    """Shorten a long URL to its start and a digest: 8 KB each would take too much memory."""
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
    """Injected credentials, by host."""

    def __init__(self) -> None:
        self.uses = HeavyHitters[tuple[str, str], _Use](HOST_LIMIT, _Use, lambda use: use.requests)
        self._total = 0

    def add(self, request: ReportedRequest) -> None:
        """Count a request."""
        names = decode_field(request.record.credential)
        for name in names.split(",") if names else ():
            use = self.uses[name, _upstream(request)]
            use.requests += 1
            use.refused += request.record.status in _REFUSED
            use.failed += request.failed
            self._total += 1

    def result(self, denials: DenialsSection) -> figures.CredentialFigures:
        """Return the figures."""
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


def _upstream(request: ReportedRequest) -> str:
    fetched = decode_field(request.record.fetched)
    return request.host if fetched is None else host_of(fetched)


# --- First seen -----------------------------------------------------------------------------------------------------


class NewHostsSection:
    """Hosts that no earlier request asked for; known hosts are stored as digests, which are small."""

    def __init__(self) -> None:
        self.full = False
        self._known: set[int] = set()
        self._new: dict[str, tuple[float, str]] = {}
        self._total = 0
        self._compared = 0
        self._compared_since = float("inf")

    def add_older(self, host: str, at: float) -> None:
        """Add the host of a request from before the period."""
        self._compared += 1
        self._compared_since = min(self._compared_since, at)
        self._learn(host)

    def add(self, request: ReportedRequest) -> bool:
        """Add a request; tell whether its host is new."""
        if not self._learn(request.host):
            return False
        self._total += 1
        if len(self._new) < NEW_HOST_LIMIT:
            self._new[request.host] = (request.at, request.client)
        return True

    def _learn(self, host: str) -> bool:
        digest = int.from_bytes(blake2b(host.encode(), digest_size=7).digest())
        if digest in self._known:
            return False
        if len(self._known) >= KNOWN_HOST_LIMIT:
            self.full = True
            return False
        self._known.add(digest)
        return True

    def result(self, hosts: HeavyHitters[str, RequestTotals]) -> figures.FirstSeen:
        """Return the figures."""
        rows = [
            figures.NewHost(host, datetime_of(at), client, totals.allowed, totals.denied)
            for host, (at, client) in self._new.items()
            for totals in [hosts[host] if host in hosts else RequestTotals()]
        ]
        rows.sort(key=lambda row: (row.allowed > 0, row.first), reverse=True)
        return figures.FirstSeen(
            compared=self._compared,
            compared_since=datetime_of(self._compared_since) if self._compared else None,
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
    waited: DurationHistogram = field(default_factory=DurationHistogram)


class UpstreamsSection:
    """How upstream hosts answered."""

    def __init__(self) -> None:
        self.hosts = HeavyHitters[str, _Answers](UPSTREAM_LIMIT, _Answers, lambda answers: answers.requests)

    def add(self, request: ReportedRequest) -> None:
        """Count a request."""
        record = request.record
        if request.ended_by_client or (record.upstream == NONE and record.error == NONE):
            return  # no answer of the host: its client disconnected, or Squid or the cache answered
        answers = self.hosts[_upstream(request)]
        answers.requests += 1
        if record.error != NONE:
            answers.errors[record.error[:60]] += 1
        elif record.status >= _SERVER_ERROR:
            answers.server_errors += 1
        if record.upstream_ms.isdecimal() and not is_unseen(record):
            answers.waited.add(int(record.upstream_ms))

    def result(self) -> figures.UpstreamFigures:
        """Return the figures."""
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
    quantiles = waited.quantile(0.5), waited.quantile(0.95), waited.longest
    return figures.Upstream(host, answers.requests, *quantiles, answers.server_errors, errors)


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
    """Requests that their clients ended."""

    def __init__(self) -> None:
        self.rows = HeavyHitters[tuple[str, str], _Ended](CLIENT_LIMIT, _Ended, lambda ended: ended.requests)
        self._total = 0

    def add(self, request: ReportedRequest) -> None:
        """Count a request that its client ended."""
        ended = self.rows[request.client, request.record.error]
        ended.requests += 1
        ended.last, ended.host = request.at, request.host
        self._total += 1

    def result(self) -> figures.ClientErrorFigures:
        """Return the figures."""
        rows = tuple(
            figures.ClientError(
                client,
                error,
                CLIENT_ERRORS[error],
                ended.requests,
                datetime_of(ended.last),
                truncate(ended.host, _RETRY_URL)[0],
            )
            for (client, error), ended in self.rows.heaviest(_CLIENT_ERRORS_SHOWN)
        )
        return figures.ClientErrorFigures(self._total, rows)


# --- Drift ----------------------------------------------------------------------------------------------------------


class DriftSection:
    """Drift: requests that were served although the policy in force denied them."""

    def __init__(self, drift: DriftChecker) -> None:
        self._drift = drift
        self._kinds: Counter[str] = Counter()
        self._latest: deque[tuple[Record, Finding]] = deque(maxlen=_FINDINGS_SHOWN)

    def add(self, record: Record) -> None:
        """Check a record against the policy that was in force."""
        finding = self._drift.check(record)
        if finding:
            self._kinds[finding.kind] += 1
            self._latest.append((record, finding))

    def result(self) -> figures.DriftFigures:
        """Return the figures."""
        return figures.DriftFigures(
            total=self._kinds.total(),
            unchecked=self._drift.unchecked,
            cut=self._drift.cut,
            kinds=tuple(figures.Count(kind, count) for kind, count in self._kinds.most_common()),
            latest=tuple(_finding_row(record, finding) for record, finding in reversed(self._latest)),
        )


def _finding_row(record: Record, finding: Finding) -> figures.DriftRow:
    url, missing = truncate(redacted_url(record.url), _RETRY_URL)
    return figures.DriftRow(
        time=parse_time(record),
        client=record.client,
        method=decode_field(record.method) or NONE,
        url=url,
        cut=missing,
        rule=finding.rule,
        reason=finding.reason,
        kind=finding.kind,
    )
