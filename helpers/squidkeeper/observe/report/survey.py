"""From the record to a report (floor 5): one pass over the requests, in bounded memory.

Each section of the report has its counters here, and makes its own figures. Whatever a client can make up without end
(hosts, URLs, addresses) is counted in a `Heaviest`: a hit bound is said in the report.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.engine.query import CONNECT
from squidkeeper.errors import InvalidRecord
from squidkeeper.observe.record import urls
from squidkeeper.observe.record.events import Entry, Events, opened
from squidkeeper.observe.record.line import NONE, Record, moment_of, parse_record, text
from squidkeeper.observe.record.urls import cut, shown_url
from squidkeeper.observe.report import figures
from squidkeeper.observe.report.sketches import Durations, Heaviest, Timeline
from squidkeeper.policy.model import Policy

if TYPE_CHECKING:
    from squidkeeper.observe.record.drift import Drift, Finding

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
_STEPS_SHOWN = 96
_FINDINGS_SHOWN = 50
_RETRY_URL = 400  # characters that are kept of each; a digest stands for the rest
_UNREADABLE_HOST = "(no valid host)"
_SERVER_ERROR = 500
_REFUSED = (401, 403)


VERDICTS: Final[Mapping[str, str]] = {
    "default": "No rule matches.",
    "authority-mismatch": "Tunnel, SNI and request name different hosts or ports.",
    "ambiguous-path": "Servers would read the path in different ways, with different outcomes.",
    "private-address": "The host is, or resolves to, an address of a private network.",
    "invalid-request": "No rule may be asked about such a request.",
    "credential-unavailable": "A credential's value could not be had.",
    "policy-unavailable": "No helper answered, or none had a policy.",
}


def reasons_of(policy: Policy) -> dict[str, str | None]:
    """Give the reason of each rule, and of each verdict that is no rule's."""
    default = {"default": policy.default_reason} if policy.default_reason else {}
    return {**VERDICTS, **default, **{rule.name: rule.reason for rule in policy.rules}}


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
        """Whether it was allowed, and answered by 5xx or by an error of Squid's."""
        return not self.denied and (self.record.status >= _SERVER_ERROR or self.record.error != NONE)


@dataclass(slots=True)
class _Tally:
    """Requests of one thing."""

    allowed: int = 0
    denied: int = 0
    response_bytes: int = 0

    @property
    def total(self) -> int:
        return self.allowed + self.denied

    def add(self, request: Request) -> None:
        if request.denied:
            self.denied += 1
        else:
            self.allowed += 1
        self.response_bytes += max(0, request.record.bytes)

    def minus(self, others: Iterable[_Tally]) -> _Tally:
        rest = _Tally(self.allowed, self.denied, self.response_bytes)
        for other in others:
            rest.allowed -= other.allowed
            rest.denied -= other.denied
            rest.response_bytes -= other.response_bytes
        return rest


def _weight(tally: _Tally) -> int:
    return tally.total


class Survey:
    """Reads the lines of a span, and those before it for what had been seen; then makes the report of them.

    With `drift`, each record of the span is held against the policy that was in force.
    """

    def __init__(
        self, since: datetime | None = None, until: datetime | None = None, drift: Drift | None = None
    ) -> None:
        self._since = since
        self._until = until
        self._first = float("inf")
        self._last = float("-inf")
        self._events = Events()
        self._left_out: Counter[str] = Counter()
        self._tunnels = 0
        self._failed = 0
        self._time = Timeline[str]()
        self._durations = Durations()
        self._traffic = _Traffic()
        self._denials = _Denials()
        self._credentials = _Credentials()
        self._new = _NewHosts()
        self._upstreams = _Upstreams()
        self._drift = _Findings(drift) if drift else None

    def read(self, lines: Iterable[bytes]) -> None:
        """Read the next lines of the record, in the order of their time."""
        for entry in self._events.feed(self._in_span(lines)):
            self._add(_request(entry.record))

    def _in_span(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        for line in lines:
            try:
                record = parse_record(line)
                at = moment_of(record)
            except (InvalidRecord, ValueError):
                self._left_out["lines that are no record"] += 1
                continue
            if self._since and at < self._since:
                self._left_out["requests before the span"] += 1
                self._new.add_older(host_of(record.url), at.timestamp())
            elif self._until and at >= self._until:
                self._left_out["requests after the span"] += 1
            else:
                yield from self._requests(line, record)

    def _requests(self, line: bytes, record: Record) -> Iterator[Entry]:
        if self._drift:
            self._drift.add(record)
        if record.method == NONE or record.url.startswith("error:"):
            self._left_out["connections that ended without a request"] += 1
        elif opened(record):
            self._tunnels += 1
        else:
            yield Entry(line, record)

    def _add(self, request: Request) -> None:
        self._first = min(self._first, request.at)
        self._last = max(self._last, request.at)
        self._time.add(request.at, f"-{request.rule}" if request.denied else "+")
        self._traffic.add(request)
        if self._new.add(request):
            self._time.add(request.at, "new")
        if request.denied:
            self._denials.add(request)
        else:
            self._add_allowed(request)

    def _add_allowed(self, request: Request) -> None:
        self._failed += request.failed
        if request.record.method != CONNECT:
            self._durations.add(request.record.duration_ms)
        self._credentials.add(request)
        self._upstreams.add(request)

    def result(self, files: Iterable[str], now: datetime, reasons: Mapping[str, str | None]) -> figures.Report:
        """Make the report; `reasons` are those of the policy's rules."""
        for entry in self._events.flush():
            self._add(_request(entry.record))
        if self._events.merged:
            self._left_out["denied CONNECTs, as part of the request inside"] = self._events.merged
        since, until = self._span()
        steps = self._time.steps(_STEPS_SHOWN, since.timestamp(), until.timestamp()) if since and until else []
        return figures.Report(
            format=figures.FORMAT,
            made_at=now,
            files=tuple(files),
            since=since,
            until=until,
            summary=self._summary(),
            timeline=figures.Timeline(self._time.step_seconds, tuple(_step(start, step) for start, step in steps)),
            traffic=self._traffic.result(),
            denials=self._denials.result(reasons, [step for _, step in steps]),
            credentials=self._credentials.result(self._denials),
            first_seen=self._new.result(self._traffic.hosts),
            upstreams=self._upstreams.result(),
            drift=self._drift.result() if self._drift else None,
            left_out=tuple(figures.Count(what, count) for what, count in self._left_out.most_common()),
            limits=tuple(self._limits()),
        )

    def _span(self) -> tuple[datetime | None, datetime | None]:
        seen = self._first <= self._last
        first = datetime.fromtimestamp(self._first, UTC) if seen else None
        last = datetime.fromtimestamp(self._last, UTC) if seen else None
        return self._since or first, self._until or last

    def _summary(self) -> figures.Summary:
        whole = self._traffic.whole
        hosts = self._traffic.hosts
        return figures.Summary(
            requests=whole.total,
            allowed=whole.allowed,
            denied=whole.denied,
            tunnels=self._tunnels,
            failed=self._failed,
            response_bytes=whole.response_bytes,
            clients=len(self._traffic.clients) + self._traffic.clients.forgotten,
            hosts=len(hosts) + hosts.forgotten,
            hosts_allowed=sum(tally.allowed > 0 for _, tally in hosts.items()),
            median_ms=self._durations.quantile(0.5),
            p95_ms=self._durations.quantile(0.95),
        )

    def _limits(self) -> Iterator[str]:
        traffic = self._traffic
        for counter, what in (
            (traffic.hosts, "hosts"),
            (traffic.pairs, "pairs of client and host"),
            (traffic.clients, "clients"),
            (self._denials.requests, "denied requests"),
            (self._denials.hosts, "pairs of rule and denied host"),
            (self._credentials.uses, "pairs of credential and host"),
            (self._upstreams.hosts, "upstreams"),
        ):
            if counter.forgotten:
                yield what
        if self._new.full:
            yield "first-seen hosts"


def _request(record: Record) -> Request:
    at = moment_of(record).timestamp()
    user = text(record.user)
    client = record.client if user is None else f"{record.client} {user[:60]}"
    denied = record.verdict == "deny"
    return Request(record, at, client, host_of(record.url), text(record.rule) or NONE, denied)


def _step(start: int, step: Mapping[str, int]) -> figures.Step:
    denied = sum(count for series, count in step.items() if series.startswith("-"))
    return figures.Step(_moment(start), step.get("+", 0), denied, step.get("new", 0))


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def host_of(url: str) -> str:
    """Name the host of a URL of the record, or of the `host:port` of a CONNECT."""
    host = urls.host_of(url).text
    return _UNREADABLE_HOST if host == NONE else host


# --- Who went where -------------------------------------------------------------------------------------------------


class _Traffic:
    def __init__(self) -> None:
        self.whole = _Tally()
        self.hosts = Heaviest[str, _Tally](HOSTS_KEPT, _Tally, _weight)
        self.clients = Heaviest[str, _Tally](CLIENTS_KEPT, _Tally, _weight)
        self.pairs = Heaviest[tuple[str, str], _Tally](PAIRS_KEPT, _Tally, _weight)

    def add(self, request: Request) -> None:
        self.whole.add(request)
        self.hosts[request.host].add(request)
        self.clients[request.client].add(request)
        self.pairs[request.client, request.host].add(request)

    def result(self) -> figures.Traffic:
        clients = self.clients.heaviest(_CLIENTS_SHOWN)
        hosts = self.hosts.heaviest(_HOSTS_SHOWN)
        names = [client for client, _ in clients]
        rest = self.whole.minus(tally for _, tally in hosts)
        return figures.Traffic(
            clients=tuple(figures.Client(client, tally.allowed, tally.denied) for client, tally in clients),
            other_clients=len(self.clients) + self.clients.forgotten - len(clients),
            hosts=tuple(self._host(host, tally, names) for host, tally in hosts),
            other_hosts=len(self.hosts) + self.hosts.forgotten - len(hosts),
            rest=self._rest(rest, clients, [host for host, _ in hosts]) if rest.total else None,
        )

    def _host(self, host: str, tally: _Tally, clients: list[str]) -> figures.Host:
        pairs = [self._pair(client, host) for client in clients]
        return _host_row(host, tally, pairs)

    def _rest(self, rest: _Tally, clients: list[tuple[str, _Tally]], hosts: list[str]) -> figures.Host:
        pairs = [tally.minus(self._pair(client, host) for host in hosts) for client, tally in clients]
        return _host_row("", rest, pairs)

    def _pair(self, client: str, host: str) -> _Tally:
        return self.pairs[client, host] if (client, host) in self.pairs else _Tally()


def _host_row(host: str, tally: _Tally, pairs: list[_Tally]) -> figures.Host:
    by_client = [*pairs, tally.minus(pairs)]
    visits = tuple(figures.Visits(pair.allowed, pair.denied) for pair in by_client)
    return figures.Host(host, tally.allowed, tally.denied, tally.response_bytes, visits)


# --- What was denied ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Denied:
    rule: str = ""
    url: str = ""
    cut: int = 0
    times: int = 0
    first: float = 0.0
    last: float = 0.0


class _Denials:
    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.unavailable = Heaviest[str, list[int]](UPSTREAMS_KEPT, _zero, _only)
        self.hosts = Heaviest[tuple[str, str], list[int]](HOSTS_KEPT, _zero, _only)
        self.requests = Heaviest[tuple[str, str, str], _Denied](RETRIES_KEPT, _Denied, lambda denied: denied.times)

    def add(self, request: Request) -> None:
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

    def result(self, reasons: Mapping[str, str | None], steps: list[Counter[str]]) -> figures.Denials:
        retries = [item for item in self.requests.heaviest(_RETRIES_SHOWN) if item[1].times > 1]
        return figures.Denials(
            rules=tuple(self._rule(rule, reasons, steps) for rule, _ in self.rules.most_common()),
            retried=self.retried.total(),
            retries=tuple(_retried(client, method, denied) for (client, method, _), denied in retries),
        )

    def _rule(self, rule: str, reasons: Mapping[str, str | None], steps: list[Counter[str]]) -> figures.RuleDenials:
        hosts = [figures.Count(host, count) for (of, host), (count,) in self.hosts.items() if of == rule]
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
    first, last = _moment(denied.first), _moment(denied.last)
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


class _Credentials:
    def __init__(self) -> None:
        self.uses = Heaviest[tuple[str, str], _Use](HOSTS_KEPT, _Use, lambda use: use.requests)
        self._total = 0

    def add(self, request: Request) -> None:
        names = text(request.record.credential)
        for name in names.split(",") if names else ():
            use = self.uses[name, _upstream(request)]
            use.requests += 1
            use.refused += request.record.status in _REFUSED
            use.failed += request.failed
            self._total += 1

    def result(self, denials: _Denials) -> figures.Credentials:
        uses = [
            figures.CredentialUse(name, host, use.requests, use.refused, use.failed)
            for (name, host), use in self.uses.heaviest(_USES_SHOWN)
        ]
        return figures.Credentials(
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


class _NewHosts:
    def __init__(self) -> None:
        self.full = False
        self._known: set[int] = set()
        self._new: dict[str, tuple[float, str]] = {}
        self._total = 0
        self._compared = 0
        self._compared_since = float("inf")

    def add_older(self, host: str, at: float) -> None:
        self._compared += 1
        self._compared_since = min(self._compared_since, at)
        self._learn(host)

    def add(self, request: Request) -> bool:
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

    def result(self, hosts: Heaviest[str, _Tally]) -> figures.FirstSeen:
        rows = [
            figures.NewHost(host, _moment(at), client, tally.allowed, tally.denied)
            for host, (at, client) in self._new.items()
            for tally in [hosts[host] if host in hosts else _Tally()]
        ]
        rows.sort(key=lambda row: (row.allowed > 0, row.first), reverse=True)
        return figures.FirstSeen(
            compared=self._compared,
            compared_since=_moment(self._compared_since) if self._compared else None,
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


class _Upstreams:
    def __init__(self) -> None:
        self.hosts = Heaviest[str, _Answers](UPSTREAMS_KEPT, _Answers, lambda answers: answers.requests)

    def add(self, request: Request) -> None:
        record = request.record
        if record.upstream == NONE and record.error == NONE:
            return  # from the cache, or by Squid itself
        answers = self.hosts[_upstream(request)]
        answers.requests += 1
        if record.error != NONE:
            answers.errors[record.error[:60]] += 1
        elif record.status >= _SERVER_ERROR:
            answers.server_errors += 1
        if record.upstream_ms.isdecimal():
            answers.waited.add(int(record.upstream_ms))

    def result(self) -> figures.Upstreams:
        rows = [_upstream_row(host, answers) for host, answers in self.hosts.items()]
        slow = [row for row in rows if row.requests >= _LEAST_REQUESTS and row.p95_ms is not None]
        failing = [row for row in rows if _failures(row)]
        return figures.Upstreams(
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


# --- Drift ----------------------------------------------------------------------------------------------------------


class _Findings:
    def __init__(self, drift: Drift) -> None:
        self._drift = drift
        self._kinds: Counter[str] = Counter()
        self._latest: deque[tuple[Record, Finding]] = deque(maxlen=_FINDINGS_SHOWN)

    def add(self, record: Record) -> None:
        finding = self._drift.check(record)
        if finding:
            self._kinds[finding.kind] += 1
            self._latest.append((record, finding))

    def result(self) -> figures.Drift:
        return figures.Drift(
            total=self._kinds.total(),
            unchecked=self._drift.unchecked,
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
