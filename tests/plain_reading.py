"""The access log read in plain Python, as the reference that the table is compared
with.

It is written to be obviously right: whole in memory, without bounds, each step a loop.
Nothing in the program uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.log_files import LINE_LIMIT
from squidkeeper.record.log.record import (
    CLIENT_ERRORS,
    NONE,
    Record,
    host_of,
    is_spliced,
    parse_record,
    parse_time,
)

WAIT = timedelta(seconds=10)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


# --- records --------------------------------------------------------------------------


@dataclass
class Reading:
    """The records of a log in the order of their time; those of one millisecond in the
    order of their lines.
    """

    records: list[Record] = field(default_factory=list)
    invalid: int = 0
    first_invalid: int | None = None  # line number


def read_lines(lines: Iterable[bytes]) -> Reading:
    """Read lines without their newlines, the files one after the other.

    What is longer than a line can be is cut.
    """
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
    """Return the time of a record, UTC, in whole milliseconds."""
    at = parse_time(record).astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


# --- requests -------------------------------------------------------------------------


@dataclass
class Requests:
    """The records that are requests; `tunnels` CONNECTs were opened."""

    requests: list[Record]
    tunnels: int = 0


def fold(records: list[Record]) -> Requests:
    """Leave out what is no request of its own, of records in their order.

    A CONNECT that Squid answers inside the tunnel is left out where a request to its
    host with a verdict follows on its connection within 10 seconds. A request there
    without a verdict is left out: the CONNECT stands.
    """
    left_out = set()
    for place, connect in enumerate(records):
        for inside in insides_of(records, place) if waits(connect) else ():
            if records[inside].verdict == NONE:
                left_out.add(inside)
            elif records[inside].url.startswith(
                f"https://{connect.url.removesuffix(':443')}/"
            ):
                left_out.add(place)
    requests = [
        record
        for place, record in enumerate(records)
        if place not in left_out and not is_opened(record)
    ]
    return Requests(requests, sum(map(is_opened, records)))


def insides_of(records: list[Record], connect: int) -> list[int]:
    """Find what came on the connection of a CONNECT within 10 seconds and was not
    served.
    """
    return [
        place
        for place in range(connect + 1, len(records))
        if connection_key(records[place]) == connection_key(records[connect])
        and records[place].method != CONNECT
        and not (records[place].verdict == "allow" and records[place].error == NONE)
        and time_of(records[place]) - time_of(records[connect]) <= WAIT
    ]


def is_opened(record: Record) -> bool:
    """Whether a record is the CONNECT of an opened tunnel, whose requests have records
    of their own.
    """
    return (
        record.method == CONNECT
        and record.status == 200
        and record.verdict == "allow"
        and record.error == NONE
        and "_ABORTED/" not in record.squid
        and not is_spliced(record)
    )


def waits(record: Record) -> bool:
    """Whether a record is a CONNECT that Squid answers inside the tunnel: denied, or
    its origin failed.
    """
    if (
        record.method != CONNECT
        or record.status != 200
        or is_opened(record)
        or record.error in CLIENT_ERRORS
    ):
        return False
    return record.verdict == "deny" or record.error != NONE


def connection_key(record: Record) -> tuple[str, str, str, str]:
    """Name the connection of a record. Each worker of each gateway numbers its own."""
    return record.client, record.connection, record.worker, record.gateway


# --- counts ---------------------------------------------------------------------------


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
    "client": lambda record: (
        record.client if record.user == NONE else f"{record.user}@{record.client}"
    ),
    "gateway": lambda record: record.gateway,
    "status": lambda record: str(record.status),
    "path": lambda record: shortened(record.url.partition("?")[0]),
}


def shortened(path: str) -> str:
    """Cut a path at 500 characters."""
    return path if len(path) <= 500 else f"{path[:500]}…"


def counted(
    requests: Iterable[Record], records: Iterable[Record], by: str
) -> dict[str, Count]:
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
    """Whether a record is the CONNECT of a tunnel, opened or not: it was allowed.

    What passed through is none.
    """
    return (
        record.method == CONNECT
        and record.verdict == "allow"
        and not is_spliced(record)
    )
