"""The figures of a report counted in plain Python, as the reference that the report's SQL is compared with.

It is written to be obviously right: whole in memory, without bounds. Nothing in the program uses it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from squidkeeper.record.log.record import CLIENT_ERRORS, NONE, Record, decode_field, host_of, is_unseen, redacted_url
from squidkeeper.record.report import figures
from squidkeeper.record.report.traffic import STEPS_SECONDS

from .plain_reading import fold, is_opened, is_tunnel, time_of

Client = tuple[str, str]  # address and user as logged


@dataclass
class Counted:
    """The records of a period, sorted by what they count as."""

    requests: list[Record] = field(default_factory=list)
    client_left: list[Record] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def plain_report(
    records: list[Record],
    since: datetime | None,
    until: datetime | None,
    *,
    now: datetime,
    reasons: Mapping[str, str | None],
    invalid: int = 0,
) -> figures.Report:
    """Count everything that a report without drift holds."""
    older = [one for one in records if since and time_of(one) < since]
    newer = [one for one in records if until and time_of(one) >= until]
    within = [one for one in records if is_within(one, since, until)]
    opened = sum(map(is_opened, within))
    events = [one for one in fold(records).requests if is_within(one, since, until)]
    counted = count(events)
    counted.left_out += Counter(
        {
            "invalid lines": invalid,
            "records before the period": len(older),
            "records after the period": len(newer),
            "CONNECTs and requests that count with another": len(within) - opened - len(events),
        }
    )
    requests = counted.requests
    times = [time_of(one) for one in requests]
    start, end = since or min(times, default=None), until or max(times, default=None)
    steps = steps_of(start, end)
    new = new_hosts(requests, older)
    return figures.Report(
        format=2,
        made_at=now,
        files=(),
        since=start,
        until=end,
        summary=summary(requests, sum(map(is_tunnel, within))),
        timeline=figures.TimelineFigures(steps.seconds, tuple(timeline(requests, new, steps))),
        traffic=traffic(requests),
        denials=denials(requests, reasons, steps),
        observed=observed(requests),
        credentials=credentials(requests),
        first_seen=figures.FirstSeen(
            compared=len(older),
            compared_since=min(map(time_of, older), default=None),
            total=len(new),
            allowed=sum(one.allowed > 0 for one in new),
            hosts=tuple(sorted(new, key=lambda one: (one.allowed <= 0, -one.first.timestamp(), one.host))[:50]),
        ),
        upstreams=upstreams(requests),
        client_errors=client_errors([*requests, *counted.client_left]),
        drift=None,
        left_out=tuple(figures.Count(*one) for one in most(counted.left_out)),
        damaged=(),
    )


# --- requests -------------------------------------------------------------------------------------------------------


def is_within(record: Record, since: datetime | None, until: datetime | None) -> bool:
    """Tell whether a record is in the period."""
    return (since is None or time_of(record) >= since) and (until is None or time_of(record) < until)


def count(events: Iterable[Record]) -> Counted:
    """Sort events: requests, and what is in no figure."""
    counted = Counted()
    for event in events:
        if event.verdict == NONE and (event.method == NONE or event.url.startswith("error:")):
            counted.left_out["connections that ended without a request"] += 1
        elif is_refused(event):
            counted.left_out["requests that Squid refused before a rule was asked"] += 1
        elif event.verdict == NONE and not event.status and event.error in CLIENT_ERRORS:
            counted.left_out["requests whose client disconnected before a decision"] += 1
            counted.client_left.append(event)
        else:
            counted.requests.append(event)
    return counted


def is_refused(record: Record) -> bool:
    """Tell whether Squid refused a request before a rule was asked."""
    unasked = record.verdict == NONE and record.upstream == NONE and record.error != NONE
    return unasked and (400 <= record.status < 500 or record.status in (501, 505))


def is_denied(record: Record) -> bool:
    return record.verdict == "deny"


def is_failed(record: Record) -> bool:
    """Tell whether a request was allowed and failed, not by its client."""
    if is_denied(record) or record.error in CLIENT_ERRORS:
        return False
    return record.status >= 500 or record.error != NONE


def host(record: Record) -> str:
    return no_valid(host_of(record.url).text)


def upstream_host(record: Record) -> str:
    fetched = decode_field(record.fetched)
    return host(record) if fetched is None else no_valid(host_of(fetched).text)


def no_valid(name: str) -> str:
    return "(no valid host)" if name == NONE else name


def client(record: Record) -> Client:
    return record.client, record.user


def label(of: Client) -> str:
    name = decode_field(of[1])
    return of[0] if name is None else f"{of[0]} {name[:60]}"


def rule(record: Record) -> str:
    return decode_field(record.rule) or NONE


def most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Sort counts, the highest first, by name where they are equal; zeros are left out."""
    return sorted(((name, number) for name, number in counts.items() if number), key=lambda one: (-one[1], one[0]))


def quantile(values: Iterable[int], percent: int) -> int | None:
    """Give the smallest value that at least so many percent of all do not exceed."""
    ordered = sorted(values)
    return next((one for place, one in enumerate(ordered, 1) if place * 100 >= percent * len(ordered)), None)


# --- sections -------------------------------------------------------------------------------------------------------


def summary(requests: list[Record], tunnels: int) -> figures.SummaryFigures:
    denied = sum(map(is_denied, requests))
    timed = [
        one.duration_ms for one in requests if not is_denied(one) and one.method != "CONNECT" and not is_unseen(one)
    ]
    return figures.SummaryFigures(
        requests=len(requests),
        allowed=len(requests) - denied,
        denied=denied,
        tunnels=tunnels,
        failed=sum(map(is_failed, requests)),
        response_bytes=sum(max(0, one.bytes) for one in requests),
        clients=len(set(map(client, requests))),
        hosts=len(set(map(host, requests))),
        hosts_allowed=len({host(one) for one in requests if not is_denied(one)}),
        median_ms=quantile(timed, 50),
        p95_ms=quantile(timed, 95),
    )


@dataclass(frozen=True)
class PlainSteps:
    """The start of each step, and their length."""

    seconds: int
    starts: tuple[int, ...]

    def counts(self, times: Iterable[datetime]) -> list[int]:
        within = Counter(int(at.timestamp() // self.seconds) * self.seconds for at in times)
        return [within[start] for start in self.starts]


def steps_of(since: datetime | None, until: datetime | None) -> PlainSteps:
    if since is None or until is None:
        return PlainSteps(1, ())
    for seconds in STEPS_SECONDS:
        first, last = (int(at.timestamp() // seconds) * seconds for at in (since, until))
        if (until - since).total_seconds() / seconds <= 96 or seconds == STEPS_SECONDS[-1]:
            return PlainSteps(seconds, tuple(range(first, last + 1, seconds)))
    raise AssertionError("the last step is always taken")


def timeline(
    requests: list[Record], new: Iterable[figures.NewHost], steps: PlainSteps
) -> Iterable[figures.TimelineStep]:
    allowed = steps.counts(time_of(one) for one in requests if not is_denied(one))
    denied = steps.counts(time_of(one) for one in requests if is_denied(one))
    hosts = steps.counts(one.first for one in new)
    for start, *counts in zip(steps.starts, allowed, denied, hosts, strict=True):
        yield figures.TimelineStep(datetime.fromtimestamp(start, UTC), *counts)


def traffic(requests: list[Record]) -> figures.TrafficFigures:
    of_clients, of_hosts = Counter(map(client, requests)), Counter(map(host, requests))
    clients = sorted(of_clients, key=lambda one: (-of_clients[one], one))[:8]
    hosts = sorted(of_hosts, key=lambda one: (-of_hosts[one], one))[:25]
    others = [one for one in requests if host(one) not in hosts]
    return figures.TrafficFigures(
        clients=tuple(
            figures.ClientFigures(label(one), visits.allowed, visits.denied)
            for one in clients
            for visits in [visits_of(record for record in requests if client(record) == one)]
        ),
        other_clients=len(of_clients) - len(clients),
        hosts=tuple(host_row(name, [one for one in requests if host(one) == name], clients) for name in hosts),
        other_hosts=len(of_hosts) - len(hosts),
        rest=host_row("", others, clients) if others else None,
    )


def visits_of(requests: Iterable[Record]) -> figures.Visits:
    verdicts = [is_denied(one) for one in requests]
    return figures.Visits(verdicts.count(False), verdicts.count(True))


def host_row(name: str, requests: list[Record], clients: list[Client]) -> figures.HostFigures:
    whole = visits_of(requests)
    by_client = [visits_of(one for one in requests if client(one) == of) for of in clients]
    by_client.append(visits_of(one for one in requests if client(one) not in clients))
    sent = sum(max(0, one.bytes) for one in requests)
    return figures.HostFigures(name, whole.allowed, whole.denied, sent, tuple(by_client))


def denials(requests: list[Record], reasons: Mapping[str, str | None], steps: PlainSteps) -> figures.DenialFigures:
    of_rules: defaultdict[str, list[Record]] = defaultdict(list)
    same: defaultdict[tuple[Client, str, str], list[Record]] = defaultdict(list)
    for one in filter(is_denied, requests):
        of_rules[one.rule].append(one)
        same[client(one), one.method, bare(one.url)].append(one)
    for group in same.values():
        group.sort(key=lambda one: (time_of(one), one.rule))
    retried = Counter(one.rule for group in same.values() for one in group[1:])
    rules = most({name: len(denied) for name, denied in of_rules.items()})
    again = sorted((item for item in same.items() if len(item[1]) > 1), key=lambda item: (-len(item[1]), item[0]))
    return figures.DenialFigures(
        rules=tuple(rule_row(name, of_rules[name], retried[name], reasons, steps) for name, _ in rules),
        retried=retried.total(),
        retries=tuple(retry_row(*item) for item in again[:20]),
    )


def observed(requests: list[Record]) -> figures.ObservedFigures:
    of_names: defaultdict[str, list[Record]] = defaultdict(list)
    for one in requests:
        if one.observed != NONE:
            of_names[one.observed].append(one)
    shown = sorted(of_names, key=lambda name: (name != "deny:default", -len(of_names[name]), name))[:50]
    return figures.ObservedFigures(
        total=sum(map(len, of_names.values())),
        asked=sum(is_denied(one) and one.page == "asked" for one in requests),
        rows=tuple(
            figures.ObservedRow(
                decode_field(name) or NONE,
                len(of_names[name]),
                len(set(map(client, of_names[name]))),
                len(set(map(host, of_names[name]))),
            )
            for name in shown
        ),
    )


def bare(url: str) -> str:
    """Remove query, fragment and password."""
    return re.sub(r"^((?:[A-Za-z][A-Za-z0-9+.-]*)://)?[^/?#]*@", r"\1***@", re.split(r"[?#]", url)[0])


def rule_row(
    logged: str, denied: list[Record], retried: int, reasons: Mapping[str, str | None], steps: PlainSteps
) -> figures.RuleDenials:
    name = decode_field(logged) or NONE
    hosts = most(Counter(map(host, denied)))[:5]
    return figures.RuleDenials(
        rule=name,
        reason=reasons.get(name),
        denied=len(denied),
        retried=retried,
        hosts=tuple(figures.Count(*one) for one in hosts),
        other_hosts=len(denied) - sum(number for _, number in hosts),
        over_time=tuple(steps.counts(map(time_of, denied))),
    )


def retry_row(of: tuple[Client, str, str], denied: list[Record]) -> figures.Retried:
    who, method, url = of
    shown = redacted_url(url)
    return figures.Retried(
        client=label(who),
        method=(decode_field(method) or NONE)[:40],
        url=shown[:400],
        cut=max(0, len(shown) - 400),
        rule=rule(denied[-1]),
        denied=len(denied),
        first=time_of(denied[0]),
        last=time_of(denied[-1]),
    )


def credentials(requests: list[Record]) -> figures.CredentialFigures:
    uses: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for one in requests:
        if one.credential not in (NONE, "") and not is_denied(one):
            for name in re.split(",|%2[Cc]", one.credential):
                uses[name, upstream_host(one)].append(one)
    shown = sorted(uses, key=lambda one: (-len(uses[one]), one))[:50]
    rows = [use_row(name, at, uses[name, at]) for name, at in shown]
    unavailable = Counter(host(one) for one in requests if is_denied(one) and one.rule == "credential-unavailable")
    return figures.CredentialFigures(
        uses=tuple(sorted(rows, key=lambda row: (row.credential, -row.requests))),
        other_uses=sum(map(len, uses.values())) - sum(row.requests for row in rows),
        unavailable=tuple(figures.Count(*one) for one in most(unavailable)[:50]),
    )


def use_row(name: str, at: str, requests: list[Record]) -> figures.CredentialUse:
    refused = sum(one.status in (401, 403) for one in requests)
    return figures.CredentialUse(decode_field(name) or NONE, at, len(requests), refused, sum(map(is_failed, requests)))


def new_hosts(requests: list[Record], older: list[Record]) -> list[figures.NewHost]:
    known = set(map(host, older))
    of_hosts: defaultdict[str, list[Record]] = defaultdict(list)
    for one in requests:
        if host(one) not in known:
            of_hosts[host(one)].append(one)
    return [
        figures.NewHost(name, time_of(first), label(client(first)), visits.allowed, visits.denied)
        for name, of_host in of_hosts.items()
        for first in [min(of_host, key=lambda one: (time_of(one), client(one)))]
        for visits in [visits_of(of_host)]
    ]


def upstreams(requests: list[Record]) -> figures.UpstreamFigures:
    of_hosts: defaultdict[str, list[Record]] = defaultdict(list)
    for one in requests:
        answered = one.upstream != NONE or one.error != NONE
        if answered and not is_denied(one) and one.error not in CLIENT_ERRORS:
            of_hosts[upstream_host(one)].append(one)
    rows = {name: upstream_row(name, answers) for name, answers in sorted(of_hosts.items())}
    failures = {name: sum(map(is_failed, answers)) for name, answers in of_hosts.items()}
    slow = [row for row in rows.values() if row.requests >= 10 and row.p95_ms is not None]
    return figures.UpstreamFigures(
        slowest=tuple(sorted(slow, key=lambda row: -(row.p95_ms or 0))[:15]),
        least_requests=10,
        failing=tuple(rows[name] for name, _ in most(failures)[:15]),
    )


def upstream_row(name: str, answers: list[Record]) -> figures.Upstream:
    waited = [
        int(one.upstream_ms)
        for one in answers
        if re.fullmatch("[0-9]{1,18}", one.upstream_ms, re.ASCII) and not is_unseen(one)
    ]
    errors = most(Counter(one.error[:60] for one in answers if one.error != NONE))[:5]
    return figures.Upstream(
        host=name,
        requests=len(answers),
        median_ms=quantile(waited, 50),
        p95_ms=quantile(waited, 95),
        longest_ms=max(waited, default=0),
        server_errors=sum(one.error == NONE and one.status >= 500 for one in answers),
        errors=tuple(figures.Count(*one) for one in errors),
    )


def client_errors(requests: list[Record]) -> figures.ClientErrorFigures:
    ended: defaultdict[tuple[Client, str], list[Record]] = defaultdict(list)
    for one in requests:
        if one.error in CLIENT_ERRORS and not is_denied(one):
            ended[client(one), one.error].append(one)
    shown = sorted(ended.items(), key=lambda item: (-len(item[1]), item[0]))[:30]
    return figures.ClientErrorFigures(
        total=sum(map(len, ended.values())),
        rows=tuple(
            figures.ClientError(label(who), error, CLIENT_ERRORS[error], len(of), time_of(last), host(last))
            for (who, error), of in shown
            for last in [max(of, key=lambda one: (time_of(one), host(one)))]
        ),
    )
