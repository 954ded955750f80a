"""Groups of failures as text and as JSON. Both are safe for a terminal, and hold no
query of a URL.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from squidkeeper.base.formatting import quantity, thousands
from squidkeeper.policy.language.quotas import shown_cost
from squidkeeper.record.log.listing import printable_field
from squidkeeper.record.log.record import NONE, Record, decode_field, format_time
from squidkeeper.record.usage_ledger import UsageEntry, UsageState
from squidkeeper.record.why.cache_log import CacheLine, CacheLog
from squidkeeper.record.why.causes import (
    BY_CODE,
    SHOWN_OF_MESSAGE,
    KnownCause,
    shown,
    shown_url,
)
from squidkeeper.record.why.details import Detail
from squidkeeper.record.why.search import FailureGroup
from squidkeeper.serving.squid_crashes import NAMED, SquidCrash

_CLIENTS_SHOWN: Final = 3
_WITHOUT_RECORD: Final = ("no-descriptors", "squid-ended")
# causes whose newest line of cache.log is shown
_EVIDENCE: Final = (
    "no-helper",
    "no-policy",
    "parent-failed",
)


@dataclass(frozen=True, slots=True)
class Explained:
    """A group of failures with one cause: its sentence, what to do, and the newest
    requests.
    """

    cause: KnownCause
    sentence: str
    remedy: str
    likely: bool
    count: int
    first: str
    last: str
    clients: tuple[str, ...] = ()
    newest: tuple[Record, ...] = ()
    values: Mapping[str, object] | None = None
    cache_line: CacheLine | None = None

    @property
    def heading(self) -> str:
        """The line above the sentence."""
        times = "once" if self.count == 1 else f"{thousands(self.count)} times"
        clients = ", ".join(map(shown, self.clients[:_CLIENTS_SHOWN]))
        more = len(self.clients) - _CLIENTS_SHOWN
        by = (
            f", by {clients}" + (f" and {quantity(more, 'other')}" if more > 0 else "")
            if clients
            else ""
        )
        return f"{self.cause.code}{' (likely)' if self.likely else ''}: {times}, last {self.last}{by}"


def explained(group: FailureGroup, detail: Detail, log: CacheLog) -> Explained:
    """Explain a group by its newest failure."""
    cause, newest = group.cause, group.newest[0].record
    known = {**(group.facts or {}), **detail.facts}
    sentence = cause.say(known)
    if (
        newest.method == "CONNECT"
        and cause.code != "ca-not-trusted"
        and (alert := log.alert(newest))
    ):
        sentence += f" The client did not see that: it does not trust the gateway's CA (alert `{alert}`)."
    return Explained(
        cause,
        sentence,
        cause.advise(known),
        cause.likely and not detail.is_sure,
        group.count,
        group.first,
        group.last,
        tuple(group.clients),
        tuple(failure.record for failure in group.newest),
        detail.values,
        log.near(cause.code, newest) if cause.code in _EVIDENCE else None,
    )


def without_record(log: CacheLog, since: str) -> Iterator[Explained]:
    """Explain what is in cache.log alone, from a time on."""
    for code in _WITHOUT_RECORD:
        lines = [line for line in log.of(code) if format_time(line.at) >= since]
        if lines:
            newest, cause = lines[0], BY_CODE[code]
            facts = {
                name: shown(value).rstrip(".")
                for name, value in newest.parts.items()
                if value
            }
            times = format_time(lines[-1].at), format_time(newest.at)
            yield Explained(
                cause,
                cause.say(facts),
                cause.advise(facts),
                False,
                len(lines),
                *times,
                cache_line=newest,
            )


def crashes(known: Iterable[SquidCrash], since: str) -> Iterator[Explained]:
    """Explain the crashes of Squid from a time on: those of which it said the same, as
    one. The newest come first.
    """
    cause = BY_CODE["squid-crashed"]
    groups: dict[str, list[SquidCrash]] = {}
    for crash in sorted(known, key=lambda crash: crash.at, reverse=True):
        if _time_of(crash) >= since:
            groups.setdefault(crash.told, []).append(crash)
    for told, group in groups.items():
        origins = dict.fromkeys(name for crash in group for name in crash.origins)
        clients = dict.fromkeys(name for crash in group for name in crash.clients)
        facts = {
            "told": told,
            "origins": ", ".join([*origins][:NAMED]) or "unknown",
            "clients": ", ".join([*clients][:NAMED]) or "unknown",
        }
        yield Explained(
            cause,
            cause.say(facts),
            cause.advise(facts),
            False,
            len(group),
            _time_of(group[-1]),
            _time_of(group[0]),
            tuple(clients),
        )


def _time_of(crash: SquidCrash) -> str:
    return format_time(datetime.fromtimestamp(crash.at, UTC))


def about_usage(entry: UsageEntry) -> str:
    """Say what a metered request counts for."""
    cached = f" ({thousands(entry.cached_in)} cached)" if entry.cached_in else ""
    tokens = f"{quantity(entry.tokens_in, 'token')} in{cached} and {thousands(entry.tokens_out)} out"
    used = (
        f"{tokens} of {shown(decode_field(entry.model) or 'an unknown model')}, "
        f"at a cost of {shown_cost(entry.cost)}"
    )
    if entry.state is UsageState.METERED:
        return f"{entry.request_id} used {used}, as its API reported."
    reason = decode_field(entry.reason) or (
        "not read" if entry.settled else "the answer has not ended"
    )
    return f"{entry.request_id} counts for its reserve, {used}: {shown(reason)}."


def newest_first(groups: Iterable[Explained]) -> list[Explained]:
    """Sort groups by their newest failure."""
    return sorted(groups, key=lambda group: group.last, reverse=True)


def totals(groups: Iterable[FailureGroup | Explained]) -> str:
    """Count failures by cause, the most first."""
    counts: Counter[str] = Counter()
    for group in groups:
        counts[group.cause.code] += group.count
    return ", ".join(
        f"{code} {thousands(count)}" for code, count in counts.most_common()
    )


def as_text(groups: Iterable[Explained], *, with_gateways: bool = False) -> str:
    """Write groups, each with its newest requests; of many gateways, name that of each
    request.
    """
    return "\n".join(_text(group, with_gateways=with_gateways) for group in groups)


def as_json(groups: Iterable[Explained], more: Mapping[str, object]) -> str:
    """Write groups as one JSON object in ASCII."""
    return json.dumps(
        {**more, "causes": [_object(group) for group in groups]}, indent=2
    )


def _text(answer: Explained, *, with_gateways: bool) -> str:
    lines = [answer.heading, f"  {answer.sentence}", f"  To do: {answer.remedy}"]
    lines += [
        f"  {_row(record, with_gateway=with_gateways)}" for record in answer.newest
    ]
    if answer.cache_line:
        lines.append(f"  cache.log: {shown(answer.cache_line.text, SHOWN_OF_MESSAGE)}")
    return "".join(f"{printable_field(line)}\n" for line in lines)


def _row(record: Record, *, with_gateway: bool) -> str:
    method = shown(decode_field(record.method) or NONE)
    gateway = f"{shown(record.gateway)}  " if with_gateway else ""
    request = f"{record.status}  {method} {shown_url(record)}  ({record.request_id})"
    return f"{record.time}  {gateway}{record.client}  {request}"


def _object(answer: Explained) -> dict[str, object]:
    return {
        "cause": answer.cause.code,
        "likely": answer.likely,
        "sentence": answer.sentence,
        "remedy": answer.remedy,
        "count": answer.count,
        "first": answer.first,
        "last": answer.last,
        "clients": list(answer.clients),
        "details": dict(answer.values or {}),
        "cache_log": shown(answer.cache_line.text, SHOWN_OF_MESSAGE)
        if answer.cache_line
        else None,
        "newest": [_request(record) for record in answer.newest],
    }


def _request(record: Record) -> dict[str, object]:
    return {
        "time": record.time,
        "client": record.client,
        "user": decode_field(record.user),
        "method": shown(decode_field(record.method) or NONE),
        "url": shown_url(record),
        "status": record.status,
        "request_id": record.request_id,
        "gateway": shown(record.gateway),
    }
