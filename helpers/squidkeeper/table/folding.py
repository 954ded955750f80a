"""Records to requests, in SQL (floor 6): a denied or failed CONNECT and the request inside it are one row.

`record/events.py` tells why, and follows a log by the same rules. A CONNECT and the next record of its connection that
was not served are one, if that is a request and ended within ten seconds: the request, if it names the host and port of
the CONNECT; the CONNECT, if the request is withheld. Connections are told apart by client, number, worker
and gateway: each worker of Squid numbers its connections from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from squidkeeper.record.events import HTTPS_PORT, WAIT, Decide, Judgement
from squidkeeper.record.record import NONE
from squidkeeper.table.columns import FOLDED, JUDGED, POSITION, RAW, Column
from squidkeeper.table.conditions import IS_ANSWERED_INSIDE, IS_REQUEST_IF_SERVED, IS_SERVED
from squidkeeper.table.database import Database
from squidkeeper.table.lines import record_of

_KEY: Final = "client, connection, worker, gateway"
_CHANGED: Final = ("user", "duration_ms", "verdict", "rule", "revision", "observed")  # by what the CONNECT adds
_DECISION: Final = ("verdict", "rule", "revision")
_FOLDED: Final = "folded_records"  # by position: requests with what their CONNECT adds, and what is `absorbed`
_PREVIOUS: Final = (*_CHANGED, "time", "url", "tunnel", POSITION, "waits")
_WITHHELD: Final = "(url IS NULL AND tunnel IS NULL AND (rule IS NULL OR rule IS NOT DISTINCT FROM c_rule))"
_NAMES_TUNNEL: Final = (  # as `events.names_tunnel`
    "coalesce(tunnel IS NOT DISTINCT FROM c_tunnel"
    f" AND starts_with(url, 'https://' || regexp_replace(c_url, '{HTTPS_PORT}$', '') || '/'), false)"
)
# Most of a log is served, and folding changes none of it. From constants DuckDB derives others.
_SERVED_VALUES: Final = {"verdict": "'allow'", "error": "NULL::VARCHAR"}
_NOT_SERVED: Final = "records_not_served"
_OF_CONNECTION: Final = f"hash({_KEY})"
_WAITING: Final = f"SELECT connection_hash FROM {_NOT_SERVED} WHERE waits"


def fold(database: Database, records: str, columns: tuple[Column, ...], decide: Decide | None) -> str:
    """Fold the records of a relation; return a SELECT of requests. `position` orders those of one millisecond.

    What is neither denied nor failed is read in place, and joined with nothing.
    """
    connection = database.connection
    connection.execute(f"CREATE OR REPLACE TABLE {_NOT_SERVED} AS {_not_served(records)}")
    connection.execute(f"CREATE OR REPLACE TABLE {_FOLDED} AS {_pairs()}")
    if decide:
        _judge(database, decide)
    absorbed = f"SELECT connect, true FROM {_FOLDED} WHERE NOT absorbed"
    connection.execute(f"INSERT INTO {_FOLDED} ({POSITION}, absorbed) {absorbed}")
    return _requests(records, columns)


def _requests(records: str, columns: tuple[Column, ...]) -> str:
    served = ", ".join(f"{_SERVED_VALUES.get(column.name, column.name)} AS {column.name}" for column in columns)
    values = ", ".join(_value(column.name) for column in columns)
    return (
        f"SELECT {served}, {POSITION} FROM {records} WHERE {IS_SERVED} AND {IS_REQUEST_IF_SERVED} UNION ALL"
        f" SELECT {values}, r.{POSITION} FROM {_NOT_SERVED} AS r"
        f" LEFT JOIN {_FOLDED} AS f ON r.{POSITION} = f.{POSITION} WHERE NOT coalesce(f.absorbed, false)"
    )


def _not_served(records: str) -> str:
    added = f"{_OF_CONNECTION} AS connection_hash, {IS_ANSWERED_INSIDE} AS waits"
    return f"SELECT *, {added} FROM {records} WHERE NOT {IS_SERVED}"


def _value(name: str) -> str:
    if name in _CHANGED:
        return f"CASE WHEN f.{POSITION} IS NULL THEN r.{name} ELSE f.{name} END AS {name}"
    if name == RAW:
        return f"CASE WHEN f.{POSITION} IS NULL THEN r.{name} END AS {name}"
    return f"r.{name}"


def _pairs() -> str:
    """Pair each request with the record before it of its connection, if that is a CONNECT that waits.

    Only connections with such a CONNECT are sorted, by their hash first.
    """
    kept = f"SELECT {', '.join(FOLDED)}, {POSITION}, connection_hash, waits FROM {_NOT_SERVED}"
    before = ", ".join(f"lag({name}) OVER in_order AS c_{name}" for name in _PREVIOUS)
    paired = (
        f"SELECT *, {before} FROM (SELECT * FROM ({kept}) WHERE connection_hash IN ({_WAITING}))"
        f" WINDOW in_order AS (PARTITION BY connection_hash, {_KEY} ORDER BY time, {POSITION})"
    )
    judged = "(verdict IS NOT NULL OR coalesce(c_verdict = 'deny', false))"
    decision = ", ".join(f"CASE WHEN {judged} THEN coalesce({name}, c_{name}) END AS {name}" for name in _DECISION)
    observed = f"CASE WHEN verdict IS NOT NULL THEN observed WHEN {judged} THEN coalesce(observed, c_observed) END"
    return (
        f"SELECT {POSITION}, c_{POSITION} AS connect, coalesce(user, c_user) AS user,"
        f" least(duration_ms::HUGEINT + c_duration_ms, {2**63 - 1})::BIGINT AS duration_ms, {decision},"
        f" {observed} AS observed,"
        f" NOT {judged} AND NOT {_WITHHELD} AS unjudged, c_revision, {_WITHHELD} AS absorbed FROM ({paired})"
        f" WHERE c_waits AND method IS DISTINCT FROM 'CONNECT' AND ({_WITHHELD} OR {_NAMES_TUNNEL})"
        f" AND time <= c_time + to_milliseconds({WAIT // timedelta(milliseconds=1)})"
    )


# --- requests that no helper decided ----------------------------------------------------------------------------------


def _judge(database: Database, decide: Decide) -> None:
    """Give a decision to requests that no helper decided: inside a tunnel that was allowed and failed."""
    judged = list(_judgements(database, decide))
    types = {POSITION: "BIGINT", **dict.fromkeys(Judgement._fields, "VARCHAR")}
    columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
    database.connection.execute(f"CREATE OR REPLACE TEMP TABLE judged ({columns})")
    database.insert("judged", types, judged)
    given = ", ".join(f"{name} = nullif(j.{name}, '{NONE}')" for name in Judgement._fields)
    database.connection.execute(
        f"UPDATE {_FOLDED} SET {given}, revision = c_revision FROM judged AS j"
        f" WHERE j.{POSITION} = {_FOLDED}.{POSITION}"
    )


def _judgements(database: Database, decide: Decide) -> Iterator[dict[str, object]]:
    names = sorted({*FOLDED, *JUDGED} - {"revision"})
    chosen = ", ".join(f"r.{name}" for name in names)
    rows = database.connection.execute(
        f"SELECT r.{POSITION}, f.c_revision, {chosen} FROM {_NOT_SERVED} AS r JOIN {_FOLDED} AS f"
        f" ON r.{POSITION} = f.{POSITION} WHERE f.unjudged"
    ).fetchall()
    for position, revision, *values in rows:
        found = decide(record_of([revision, *values], ["revision", *names]))
        if found is not None:
            yield {POSITION: position, **found._asdict()}
