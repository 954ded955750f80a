"""The distinct questions of a period: what clients asked for, each once, and how often.

A question is what the policy decides by: client, user, method, URL as it was logged,
TLS server name and tunnel. The view `asked` has a row for each request that can be
asked about again; all that judges a record by another policy reads it. A CONNECT of an
opened tunnel is none: each request in it is one. A request inside a tunnel that was
denied is asked about as if the tunnel had been opened: another policy may open it, and
one that allows a request opens its tunnel. What cannot be asked about again is counted
by its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.record.log.record import LENGTHS, NONE, Record
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)
from squidkeeper.record.log.requests import NOT_BY_THE_POLICY
from squidkeeper.record.table.columns import ASKS_SPLICE, FOLDED, WAS_USED
from squidkeeper.record.table.lines import record_of
from squidkeeper.record.table.row_judging import insert

if TYPE_CHECKING:
    import duckdb

_CUT, _WITHHELD, _PRIVATE_NAME, _CERTIFICATE, _UNASKED = (
    "cut",
    "withheld",
    "private-name",
    "certificate",
    "unasked",
)
SESSION_UNKNOWN: Final = "session-unknown"
SET_APART: Final[Mapping[str, str]] = {  # why a request cannot be asked about again
    _UNASKED: NOT_BY_THE_POLICY[NONE],
    _PRIVATE_NAME: "a name had a private address, which only Squid knew",
    _CERTIFICATE: "the server's certificate did not cover the host, which only Squid knew",
    _WITHHELD: "the record withholds what the client sent",
    _CUT: "the record holds only the beginning of what decides",
    SESSION_UNKNOWN: "its session is not known any more, so what it was allowed is unproven",
    **{rule: reason for rule, reason in NOT_BY_THE_POLICY.items() if rule != NONE},
}
# tells questions apart
KEY: Final = (
    "client",
    "user",
    "method",
    "url",
    "sni",
    "tunnel",
    "hidden",
    "session",
)
COLUMNS: Final = (
    *(
        *FOLDED,
        *KEY,
        "host",
        "rule",
        "revision",
        "duration_ms",
        "credential",
        "fetched",
        "request_bytes",
        "request_id",
    ),
    "observed",
)
# and not what a policy decided: fetched, credential
_DECISIVE: Final = (
    "url",
    "user",
    "method",
    "sni",
    "tunnel",
)
_BATCH: Final = 5000
_ADDRESS: Final = (
    "coalesce(contains(host, ':') OR regexp_full_match(host, '[0-9.]+'), false)"
)
# The reply to a CONNECT names its tunnel in the record; what Squid asks once more has a
# tunnel around it.
_OWN_NAME: Final = f"(coalesce(method = 'CONNECT', false) AND NOT {ASKS_SPLICE} AND revision IS NOT NULL)"
_REPLACED: Final = {
    "sni": f"CASE WHEN NOT {_OWN_NAME} THEN sni END",
    "tunnel": f"CASE WHEN NOT {_OWN_NAME} THEN regexp_replace(tunnel, '(?s)%20.*$', '') END",
}
_NAMED_RULES: Final = ", ".join(
    f"'{rule}'" for rule in NOT_BY_THE_POLICY if rule != NONE
)
_UNKNOWN: Final = "unknown_sessions"
_REASON: Final = (
    f"CASE WHEN rule IS NULL THEN '{_UNASKED}' WHEN rule IN ({_NAMED_RULES}) THEN rule"
    f" WHEN rule = 'private-address' AND NOT {_ADDRESS} THEN '{_PRIVATE_NAME}'"
    f" WHEN rule = 'authority-mismatch' AND revision IS NULL THEN '{_CERTIFICATE}'"
    f" WHEN url IS NULL OR method IS NULL THEN '{_WITHHELD}'"
    f" WHEN {' OR '.join(f'coalesce(length({name}) = {LENGTHS[name]}, false)' for name in _DECISIVE)} THEN '{_CUT}'"
    f" WHEN session IN (SELECT session FROM {_UNKNOWN}) THEN '{SESSION_UNKNOWN}' END"
)
_KEYS: Final = f"""
    SELECT {", ".join(KEY)}, any_value(host), count(*), count(*) FILTER (verdict = 'allow'), count(*) FILTER (used),
        min(time) AS first, max(time) AS last, arg_max(rule, time), arg_max(observed, time), max(credential),
        max(fetched), sum(request_bytes)::BIGINT, arg_max(request_id, time)
    FROM asked WHERE {{condition}} GROUP BY ALL ORDER BY first, {", ".join(KEY)}
"""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, as a record has it, percent-encoded, `-` for none; and how often
    in the period.

    `allowed` counts what was allowed, `used` what was also answered with a status of
    1xx to 3xx. `rule`, `observed` and `request_id` are of the newest of these requests;
    for `observed`, of the newest that has one.
    """

    client: str
    user: str
    method: str
    url: str
    sni: str
    tunnel: str
    hidden: str
    session: str
    host: str
    count: int
    allowed: int
    used: int
    first: datetime
    last: datetime
    rule: str
    observed: str
    credential: str
    fetched: str
    request_bytes: int
    request_id: str

    def record(self) -> Record:
        """Return what `record/log/requests.py` makes a request of, at the time of the
        newest.
        """
        return record_of(
            [self.last.replace(tzinfo=None), *(getattr(self, name) for name in KEY)],
            ("time", *KEY),
        )


class QuestionTable:
    """The questions among the rows of a table or view with the columns of `requests`,
    as the view `asked`.

    The view has the columns of the rows, of which `sni` and `tunnel` are those of the
    question, and `used`. `COLUMNS` are what the rows have to have. What is of a session
    that `sessions` does not find is set apart.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        rows: str = "requests",
        sessions: RecordedSessions = NO_SESSIONS,
    ) -> None:
        self._connection = connection
        self._rows = rows
        self._insert_unknown(sessions)
        replaced = ", ".join(f"{value} AS {name}" for name, value in _REPLACED.items())
        connection.execute(
            f"CREATE OR REPLACE VIEW asked AS SELECT * REPLACE ({replaced}), {WAS_USED} AS used FROM {rows}"
            f" WHERE {_REASON} IS NULL"
        )

    def _insert_unknown(self, sessions: RecordedSessions) -> None:
        named = f"SELECT DISTINCT session FROM {self._rows} WHERE session IS NOT NULL"
        unknown = [
            (number,)
            for (number,) in self._connection.execute(named).fetchall()
            if sessions.numbered(number) is Unknown.SESSION
        ]
        insert(self._connection, _UNKNOWN, "session VARCHAR", unknown)

    @cached_property
    def set_apart(self) -> Mapping[str, int]:
        """Count the requests that cannot be asked about again, by reason; `SET_APART`
        explains each.
        """
        counts = f"SELECT {_REASON} AS reason, count(*) FROM {self._rows} GROUP BY reason HAVING reason IS NOT NULL"
        return dict(self._connection.execute(f"{counts} ORDER BY 2 DESC, 1").fetchall())

    def each(self, condition: str = "true") -> Iterator[Question]:
        """Yield the questions of the rows that a condition in SQL holds for, in the
        order of their first request.
        """
        with (
            self._connection.cursor() as cursor
        ):  # others may use the connection meanwhile
            cursor.execute(_KEYS.format(condition=condition))
            while rows := cursor.fetchmany(_BATCH):
                for row in rows:
                    yield Question(*map(_logged, row))


def in_utc(at: Any) -> Any:
    """Add to a time of the table its zone, which DuckDB leaves out. NULL stays None."""
    return None if at is None else at.replace(tzinfo=UTC)


def _logged(value: Any) -> Any:
    if isinstance(value, datetime):
        return in_utc(value)
    return NONE if value is None else value
