"""Builds the report from the access log (floor 7): one pass over the requests, in bounded memory.

Each section (`sections.py`) counts its part; the report names each limit that was reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.errors import InvalidRecord
from squidkeeper.policy.model import Policy
from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.events import Events, LoggedRecord, is_opened_tunnel
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, decode_field, is_unseen, parse_record, parse_time
from squidkeeper.report import figures
from squidkeeper.report.bounded_counters import DurationHistogram, Timeline
from squidkeeper.report.sections import (
    ClientErrorsSection,
    CredentialsSection,
    DenialsSection,
    DriftSection,
    NewHostsSection,
    ReportedRequest,
    TrafficSection,
    UpstreamsSection,
    datetime_of,
    host_of,
)

if TYPE_CHECKING:
    from squidkeeper.record.drift import DriftChecker


_STEPS_SHOWN = 96
_NOT_HTTP = (501, 505)  # beside 4xx, the statuses for input that is not valid HTTP


BUILT_IN_REASONS: Final[Mapping[str, str]] = {
    "default": "No rule matches.",
    "login-refused": "The token of the login was revoked or has expired.",
    "authority-mismatch": "Tunnel, SNI and request name different hosts or ports.",
    "ambiguous-path": "Servers may read the path in different ways, with different decisions.",
    "private-address": "The host is, or resolves to, an address of a private network.",
    "invalid-request": "No rule can allow such a request.",
    "credential-unavailable": "The value of a credential was unavailable.",
    "sealed-token-refused": "A sealed token was presented elsewhere than it is for, had expired, or was altered.",
    "secret-leaving": "The request held a value that must not leave the gateway.",
    "placeholder-misdirected": "The request held the placeholder of a credential that is not for it.",
    "header-too-long": "URL and headers were too long to be read.",
    "policy-unavailable": "No helper replied, or the helper had no policy.",
    "not-rendered": "Squid's configuration lacks lines that the policy needs.",
}


def rule_reasons(policy: Policy) -> dict[str, str | None]:
    """Return the reason of each rule, built-in rules included."""
    default = {"default": policy.default_reason} if policy.default_reason else {}
    return {**BUILT_IN_REASONS, **default, **{rule.name: rule.reason for rule in policy.rules}}


class ReportBuilder:
    """Builds the report of a period from the access log. Lines from before the period show which hosts are new.

    With `drift`, each record of the period is checked against the policy that was in force.
    """

    def __init__(
        self, since: datetime | None = None, until: datetime | None = None, drift: DriftChecker | None = None
    ) -> None:
        self._since = since
        self._until = until
        self._first = float("inf")
        self._last = float("-inf")
        self._events = Events(decide=drift.verdict) if drift else Events()
        self._left_out: Counter[str] = Counter()
        self._tunnels = 0
        self._failed = 0
        self._time = Timeline[str]()
        self._durations = DurationHistogram()
        self._traffic = TrafficSection()
        self._denials = DenialsSection()
        self._credentials = CredentialsSection()
        self._new = NewHostsSection()
        self._upstreams = UpstreamsSection()
        self._client_errors = ClientErrorsSection()
        self._drift = DriftSection(drift) if drift else None

    def read(self, lines: Iterable[bytes]) -> None:
        """Read the next lines of the access log, in the order of their time."""
        for event in self._events.feed(self._in_period(lines)):
            self._add(_request(event.record))

    def _in_period(self, lines: Iterable[bytes]) -> Iterator[LoggedRecord]:
        for line in lines:
            try:
                record = parse_record(line)
                at = parse_time(record)
            except (InvalidRecord, ValueError):
                self._left_out["invalid lines"] += 1
                continue
            if self._since and at < self._since:
                self._left_out["requests before the period"] += 1
                self._new.add_older(host_of(record.url), at.timestamp())
            elif self._until and at >= self._until:
                self._left_out["requests after the period"] += 1
            else:
                yield from self._requests(line, record)

    def _requests(self, line: bytes, record: Record) -> Iterator[LoggedRecord]:
        if self._drift:
            self._drift.add(record)
        if record.verdict == NONE and (record.method == NONE or record.url.startswith("error:")):
            self._left_out["connections that ended without a request"] += 1
        elif _is_refused(record):
            self._left_out["requests that Squid refused before a rule was asked"] += 1
        elif is_opened_tunnel(record):
            self._tunnels += 1
        elif record.verdict == NONE and not record.status and record.error in CLIENT_ERRORS:
            self._left_out["requests whose client disconnected before a decision"] += 1
            self._client_errors.add(_request(record))
        else:
            yield LoggedRecord(line, record)

    def _add(self, request: ReportedRequest) -> None:
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

    def _add_allowed(self, request: ReportedRequest) -> None:
        self._failed += request.failed
        if request.ended_by_client:
            self._client_errors.add(request)
        if request.record.method != CONNECT and not is_unseen(request.record):
            self._durations.add(request.record.duration_ms)
        self._credentials.add(request)
        self._upstreams.add(request)

    def result(self, files: Iterable[str], now: datetime, reasons: Mapping[str, str | None]) -> figures.Report:
        """Build the report; `reasons` are the reasons of rules."""
        for event in self._events.flush():
            self._add(_request(event.record))
        if self._events.merged:
            self._left_out["denied CONNECTs, merged into the request inside"] = self._events.merged
        since, until = self._period()
        steps = self._time.steps(_STEPS_SHOWN, since.timestamp(), until.timestamp()) if since and until else []
        return figures.Report(
            format=figures.FORMAT,
            made_at=now,
            files=tuple(files),
            since=since,
            until=until,
            summary=self._summary(),
            timeline=figures.TimelineFigures(
                self._time.step_seconds, tuple(_step(start, step) for start, step in steps)
            ),
            traffic=self._traffic.result(),
            denials=self._denials.result(reasons, [step for _, step in steps]),
            credentials=self._credentials.result(self._denials),
            first_seen=self._new.result(self._traffic.hosts),
            upstreams=self._upstreams.result(),
            client_errors=self._client_errors.result(),
            drift=self._drift.result() if self._drift else None,
            left_out=tuple(figures.Count(what, count) for what, count in self._left_out.most_common()),
            limits=tuple(self._limits()),
        )

    def _period(self) -> tuple[datetime | None, datetime | None]:
        seen = self._first <= self._last
        first = datetime.fromtimestamp(self._first, UTC) if seen else None
        last = datetime.fromtimestamp(self._last, UTC) if seen else None
        return self._since or first, self._until or last

    def _summary(self) -> figures.SummaryFigures:
        everything = self._traffic.all_requests
        hosts = self._traffic.hosts
        return figures.SummaryFigures(
            requests=everything.total,
            allowed=everything.allowed,
            denied=everything.denied,
            tunnels=self._tunnels,
            failed=self._failed,
            response_bytes=everything.response_bytes,
            clients=len(self._traffic.clients) + self._traffic.clients.removed,
            hosts=len(hosts) + hosts.removed,
            hosts_allowed=sum(totals.allowed > 0 for _, totals in hosts.items()),
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
            (self._client_errors.rows, "client errors"),
        ):
            if counter.removed:
                yield what
        if self._new.full:
            yield "first-seen hosts"


def _is_refused(record: Record) -> bool:
    """Tell whether Squid answered without a helper: 400, 407 (no password), 501, a deny in local configuration."""
    answered = record.verdict == NONE and record.upstream == NONE and record.error != NONE
    return answered and (400 <= record.status < 500 or record.status in _NOT_HTTP)


def _request(record: Record) -> ReportedRequest:
    at = parse_time(record).timestamp()
    user = decode_field(record.user)
    client = record.client if user is None else f"{record.client} {user[:60]}"
    denied = record.verdict == "deny"
    return ReportedRequest(record, at, client, host_of(record.url), decode_field(record.rule) or NONE, denied)


def _step(start: int, step: Mapping[str, int]) -> figures.TimelineStep:
    denied = sum(count for series, count in step.items() if series.startswith("-"))
    return figures.TimelineStep(datetime_of(start), step.get("+", 0), denied, step.get("new", 0))
