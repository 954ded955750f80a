"""The access log read in plain Python, as the reference that the table is compared with.

It is written to be obviously right: whole in memory, without bounds, each step a loop. Nothing in the program uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from squidkeeper.errors import InvalidRecord
from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.log_file import LINE_LIMIT
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, is_spliced, parse_record, parse_time
from squidkeeper.record.urls import host_of

WAIT = timedelta(seconds=10)
LONG_AGO = datetime.min.replace(tzinfo=UTC)
Decide = Callable[[Record], tuple[str, str, str] | None]  # verdict, rule, observed


# --- records --------------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """The records of a log in the order of their time; those of one millisecond in the order of their lines."""

    records: list[Record] = field(default_factory=list)
    invalid: int = 0
    first_invalid: int | None = None  # line number


def read_lines(lines: Iterable[bytes]) -> Reading:
    """Read lines without their newlines, the files one after the other. What is longer than a line can be is cut."""
    reading = Reading()
    for number, line in enumerate(lines, 1):
        try:
            record = parse_record(line[: LINE_LIMIT + 1])
            time_of(record)
        except (InvalidRecord, ValueError):
            reading.invalid += 1
            reading.first_invalid = reading.first_invalid or number
        else:
            reading.records.append(record)
    reading.records.sort(key=time_of)
    return reading


def time_of(record: Record) -> datetime:
    """Give the time of a record, UTC, in whole milliseconds."""
    at = parse_time(record).astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass
class Requests:
    """The records folded to requests: `tunnels` CONNECTs were opened, `merged` records are part of another request."""

    requests: list[Record]
    tunnels: int = 0
    merged: int = 0


def fold(records: list[Record], decide: Decide = lambda _: None) -> Requests:
    """Fold records, in their order, to requests.

    A CONNECT that Squid answers inside the tunnel, and the next record of its connection that was not served, are one,
    if that is a request and ended within 10 seconds: the request, if it names the host of the CONNECT; the CONNECT, if
    the request is withheld.
    """
    insides = {connect: inside for connect in range(len(records)) if (inside := inside_of(records, connect))}
    merged_into = {inside: connect for connect, inside in insides.items() if names(records[inside], records[connect])}
    withheld = {inside for connect, inside in insides.items() if is_withheld(records[inside], records[connect])}
    merged = {*merged_into.values(), *withheld}
    requests = [
        merge(records[merged_into[place]], record, decide) if place in merged_into else record
        for place, record in enumerate(records)
        if place not in merged and not is_opened(record)
    ]
    return Requests(requests, sum(map(is_opened, records)), len(merged))


def inside_of(records: list[Record], place: int) -> int | None:
    """Find the request inside the tunnel of the CONNECT at this place, if Squid answered it for the CONNECT."""
    if not waits(records[place]):
        return None
    inside = next_of_connection(records, place)
    if inside is None or records[inside].method == CONNECT:
        return None
    return inside if time_of(records[inside]) - time_of(records[place]) <= WAIT else None


def is_withheld(inside: Record, connect: Record) -> bool:
    """Tell whether a record is without what the client sent, and has no rule of its own."""
    return (inside.url, inside.tunnel) == (NONE, NONE) and inside.rule in (NONE, connect.rule)


def names(inside: Record, connect: Record) -> bool:
    """Tell whether a request is for the host and port of a CONNECT, and in its tunnel."""
    if NONE in (inside.url, connect.url) or inside.tunnel != connect.tunnel:
        return False
    scheme, _, rest = inside.url.partition("://")
    authority, slash, _ = rest.partition("/")
    return (scheme, slash, authority) == ("https", "/", connect.url.removesuffix(":443"))


def is_opened(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an opened tunnel, whose requests have records of their own."""
    return (
        record.method == CONNECT
        and record.status == 200
        and record.verdict == "allow"
        and record.error == NONE
        and "_ABORTED/" not in record.squid
        and not is_spliced(record)
    )


def waits(record: Record) -> bool:
    """Tell whether a record is a CONNECT that Squid answers inside the tunnel: denied, or its origin failed."""
    if record.method != CONNECT or record.status != 200 or is_opened(record) or record.error in CLIENT_ERRORS:
        return False
    return record.verdict == "deny" or record.error != NONE


def next_of_connection(records: list[Record], place: int) -> int | None:
    """Find the next record of the same connection that was denied, failed or not judged."""
    for later in range(place + 1, len(records)):
        is_served = records[later].verdict == "allow" and records[later].error == NONE
        if connection_key(records[later]) == connection_key(records[place]) and not is_served:
            return later
    return None


def connection_key(record: Record) -> tuple[str, str, str, str]:
    """Name the connection of a record. Each worker of each gateway numbers its own."""
    return record.client, record.connection, record.worker, record.gateway


def merge(connect: Record, inside: Record, decide: Decide) -> Record:
    """Merge a CONNECT into the request inside: the client has waited for both."""
    if inside.user == NONE:
        inside = msgspec.structs.replace(inside, user=connect.user)
    inside = msgspec.structs.replace(inside, duration_ms=connect.duration_ms + inside.duration_ms)
    if inside.verdict != NONE or connect.verdict == "deny":
        names = ("verdict", "rule", "revision", *(("observed",) if inside.verdict == NONE else ()))
        lacking = [name for name in names if getattr(inside, name) == NONE]
        return msgspec.structs.replace(inside, **{name: getattr(connect, name) for name in lacking})
    decided = decide(msgspec.structs.replace(inside, revision=connect.revision))
    if decided is None:
        return msgspec.structs.replace(inside, verdict=NONE, rule=NONE, revision=NONE, observed=NONE)
    decision = {"verdict": decided[0], "rule": decided[1], "revision": connect.revision, "observed": decided[2]}
    return msgspec.structs.replace(inside, **decision)


# --- counts ---------------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """What `squidkeeper log --by` counts for one key."""

    requests: int = 0
    denied: int = 0
    tunnels: int = 0
    bytes: int = 0
    last: datetime = LONG_AGO


KEYS: dict[str, Callable[[Record], str]] = {
    "host": lambda record: host_of(record.url).text,
    "rule": lambda record: record.rule,
    "observed": lambda record: record.observed,
    "client": lambda record: record.client if record.user == NONE else f"{record.user}@{record.client}",
    "gateway": lambda record: record.gateway,
    "status": lambda record: str(record.status),
    "path": lambda record: shortened(record.url.partition("?")[0]),
}


def shortened(path: str) -> str:
    """Cut a path at 500 characters."""
    return path if len(path) <= 500 else f"{path[:500]}…"


def counted(requests: Iterable[Record], records: Iterable[Record], by: str) -> dict[str, Count]:
    """Count requests, and the tunnels among the records, by one of KEYS."""
    counts: dict[str, Count] = {}
    for request in requests:
        count = counts.setdefault(KEYS[by](request), Count())
        count.requests += not is_tunnel(request)
        count.denied += request.verdict == "deny"
        count.bytes += request.bytes
        count.last = max(count.last, time_of(request))
    for record in filter(is_tunnel, records):
        count = counts.setdefault(KEYS[by](record), Count())
        count.tunnels += 1
        count.last = max(count.last, time_of(record))
    return counts


def is_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of a tunnel, opened or not: it was allowed. What passed through is none."""
    return record.method == CONNECT and record.verdict == "allow" and not is_spliced(record)
