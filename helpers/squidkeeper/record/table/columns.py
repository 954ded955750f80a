"""The columns of `records` and `requests`, and what rows are, in SQL.

The columns are made from the fields of `Record`, in their order: one that is added is a
column without a change here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from squidkeeper.record.log.filters import REFUSED_STATUSES, SERVER_ERROR
from squidkeeper.record.log.record import (
    CLIENT_ERRORS,
    TICKET_ANSWERED,
    Record,
    format_time,
)
from squidkeeper.record.log.requests import CLIENT_GONE, SUCCESSES

_CLIENT_ERRORS: Final = ", ".join(f"'{error}'" for error in CLIENT_ERRORS)
IS_TUNNEL: Final = (  # `requests.is_tunnel`
    "(coalesce(method = 'CONNECT' AND verdict = 'allow', false)"
    " AND NOT coalesce(starts_with(squid, 'TCP_TUNNEL'), false))"
)
# `tunnels.is_served`
IS_SERVED: Final = "(verdict IS NOT NULL AND verdict = 'allow' AND error IS NULL)"
# an OR ends at the first condition that holds, most often that of the method
IS_REQUEST_IF_SERVED: Final = (
    "(method IS DISTINCT FROM 'CONNECT' OR status IS DISTINCT FROM 200"
    " OR coalesce(contains(squid, '_ABORTED/') OR starts_with(squid, 'TCP_TUNNEL'), false))"
)
IS_OPENED_TUNNEL: Final = (
    f"({IS_SERVED} AND NOT {IS_REQUEST_IF_SERVED})"  # `tunnels.is_opened_tunnel`
)
ENDED_BY_CLIENT: Final = f"coalesce(error IN ({_CLIENT_ERRORS}), false)"
IS_ANSWERED_INSIDE: Final = (  # `tunnels.is_answered_inside`
    f"(coalesce(method = 'CONNECT' AND status = 200, false) AND NOT {ENDED_BY_CLIENT}"
    " AND (coalesce(verdict = 'deny', false) OR error IS NOT NULL))"
)
IS_REFUSED: Final = (  # `filters.is_refused`
    "(verdict IS NULL AND upstream IS NULL AND error IS NOT NULL"
    f" AND status IN ({', '.join(map(str, sorted(REFUSED_STATUSES)))}))"
)
# `filters.has_failed` for requests that `is_refused` does not hold for
HAS_FAILED: Final = (
    f"(verdict IS DISTINCT FROM 'deny' AND NOT {ENDED_BY_CLIENT}"
    f" AND (status >= {SERVER_ERROR} OR coalesce(error <> '{TICKET_ANSWERED}', false)))"
)

ASKS_SPLICE: Final = (  # `requests.asks_splice`
    "coalesce(method = 'CONNECT' AND (starts_with(squid, 'TCP_TUNNEL')"
    " OR (starts_with(squid, 'TCP_DENIED') AND status IS DISTINCT FROM 200)), false)"
)
WAS_USED: Final = (  # `requests.was_used`
    f"(coalesce(verdict = 'allow', false) AND coalesce(error = '{CLIENT_GONE}', true)"
    f" AND status BETWEEN {SUCCESSES.start} AND {SUCCESSES.stop - 1})"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and its SQL type.

    `optional` fields lack in lines of earlier releases.
    """

    name: str
    sql_type: str
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the field is a number in a line."""
        return self.sql_type == _NUMBER


_NUMBER: Final = "BIGINT"
_TEXT: Final = "VARCHAR"
TIME: Final = "time"
HOST: Final = "host"
RAW: Final = "raw"
POSITION: Final = "position"
_FIELDS: Final = msgspec.structs.fields(Record)
FIELDS: Final = tuple(
    Column(
        field.name,
        "TIMESTAMP" if field.name == TIME else _NUMBER if field.type is int else _TEXT,
        optional=not field.required,
    )
    for field in _FIELDS
)
_TIME_FIRST: Final = sorted(FIELDS, key=lambda column: column.name != TIME)
COLUMNS: Final = (
    *_TIME_FIRST,
    Column(HOST, _TEXT),  # in its one spelling: lower case, without port
    Column(RAW, "BLOB"),  # the line as logged, where the columns cannot reproduce it
)
NAMES: Final = tuple(column.name for column in COLUMNS)
# what tells tunnels and requests apart
KIND: Final = (
    TIME,
    "method",
    "status",
    "verdict",
    "error",
    "squid",
)
# what folding needs
FOLDED: Final = (
    *KIND,
    "client",
    "url",
    "connection",
    "worker",
    "gateway",
)
JUDGED: Final = (  # what the policy judges a record by, beside its time
    *(
        "client",
        "user",
        "method",
        "url",
        "status",
        "duration_ms",
        "verdict",
        "rule",
        "revision",
        "credential",
    ),
    *("fetched", "sni", "tunnel", "error", "squid", "hidden", "session"),
)


@dataclass(frozen=True, slots=True)
class Partial:
    """Columns that only some rows of logs need: those that were not served, and those
    for which `where` holds.

    Most rows were served: in these the columns are NULL, which takes little memory.
    """

    names: frozenset[str] = frozenset()
    where: str = "false"

    @property
    def condition(self) -> str:
        """The condition in SQL for rows that have the columns."""
        return f"(NOT {IS_SERVED} OR {self.where})"


EVERY_ROW: Final = Partial()  # has all columns


def selected(names: Collection[str] | None) -> tuple[Column, ...]:
    """Return the columns with these names, in their order; all for None."""
    if names is None:
        return COLUMNS
    return tuple(column for column in COLUMNS if column.name in names)


# What rows are, in SQL: the conditions that Python has in `record/` as functions of a
# record.
#
# A test compares each with its function. Columns have NULL where a record has `-`; no
# condition is NULL itself.


def time_literal(at: datetime) -> str:
    """Write a time, in milliseconds as records have it: the filters of `squidkeeper
    log` compare these.
    """
    return f"TIMESTAMP '{format_time(at)[:-1]}'"


def in_period(since: datetime | None, until: datetime | None) -> str:
    """Write the WHERE of a period; empty for all times."""
    tests = [f"{TIME} >= {time_literal(since)}"] if since else []
    tests += [f"{TIME} < {time_literal(until)}"] if until else []
    return f" WHERE {' AND '.join(tests)}" if tests else ""
