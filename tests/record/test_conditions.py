"""The conditions in SQL are those in Python: the two are compared on every combination
of the fields that they read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path

import pytest

from squidkeeper.base.helper_metrics import NONE as NONE_OF_POLICY
from squidkeeper.record.log import filters
from squidkeeper.record.log.record import CLIENT_ERRORS, NONE, Record
from squidkeeper.record.log.requests import (
    asks_splice,
    is_answered_inside,
    is_opened_tunnel,
    is_served,
    is_tunnel,
    was_used,
)
from squidkeeper.record.table import columns
from squidkeeper.record.table.columns import time_literal
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table
from squidkeeper.services.exporter.counts import RequestCounter, RequestCounts
from tests.records import record, record_line

VALUES: dict[str, tuple[object, ...]] = {
    "method": ("GET", "CONNECT", NONE),
    "status": (200, 0, 99, 101, 399, 400, 407, 499, 500, 501, 502, 505),
    "verdict": ("allow", "deny", NONE),
    "error": (NONE, "503:ERR_SQUIDKEEPER_NO_ADDRESS", *CLIENT_ERRORS),
    "upstream": (NONE, "192.0.2.1"),
    "squid": (
        *(
            "TCP_MISS/HIER_DIRECT",
            "TCP_TUNNEL/HIER_DIRECT",
            "TCP_DENIED/HIER_NONE",
            "NONE_NONE_ABORTED/HIER_NONE",
        ),
        NONE,
    ),
}
COMBINATIONS = [
    dict(zip(VALUES, values, strict=True)) for values in product(*VALUES.values())
]
NO_REQUEST = "verdict IS NULL AND method IS NULL"


def is_refused(record: Record) -> bool:
    return filters.is_refused(
        record.verdict, record.status, record.error, record.upstream
    )


BOTH: dict[str, Callable[[Record], bool]] = {
    columns.IS_TUNNEL: is_tunnel,
    columns.IS_OPENED_TUNNEL: is_opened_tunnel,
    columns.IS_ANSWERED_INSIDE: is_answered_inside,
    columns.IS_SERVED: is_served,
    f"{columns.IS_SERVED} AND {columns.IS_REQUEST_IF_SERVED}": (
        lambda record: is_served(record) and not is_opened_tunnel(record)
    ),
    columns.ENDED_BY_CLIENT: lambda record: record.error in CLIENT_ERRORS,
    columns.IS_REFUSED: is_refused,
    columns.ASKS_SPLICE: asks_splice,
    columns.WAS_USED: was_used,
    f"{columns.HAS_FAILED} AND NOT {columns.IS_REFUSED} AND NOT ({NO_REQUEST})": filters.failed().holds,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "access.log"
    path.write_bytes(
        b"".join(record_line(**combination) + b"\n" for combination in COMBINATIONS)
    )
    return path


def test_each_condition_holds_in_sql_where_it_holds_in_python(log: Path) -> None:
    with open_table(TableSources(files=(log,)), threads=1, columns={*VALUES}) as table:
        found = table.connection.execute(
            f"SELECT {', '.join(BOTH)} FROM records ORDER BY position"
        ).fetchall()
    for place, (sql, holds) in enumerate(BOTH.items()):
        expected = [holds(record(**combination)) for combination in COMBINATIONS]
        assert [row[place] for row in found] == expected, sql
        assert {True, False} <= {*expected}


def test_the_exporter_counts_the_same_tunnels() -> None:
    counter = RequestCounter(RequestCounts())
    records = [record(**combination) for combination in COMBINATIONS]
    for served in records:
        counter.count(served, "agents")
    assert (
        sum(number for _, number in counter.counts().tunnels)
        == sum(map(is_tunnel, records))
        > 0
    )


def test_a_time_is_compared_in_the_milliseconds_that_records_have() -> None:
    at = datetime(2026, 11, 25, 14, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=2)))
    assert time_literal(at) == "TIMESTAMP '2026-11-25T12:00:00.123'"


@pytest.mark.parametrize("verdict", ["deny", "-"])
def test_the_exporter_counts_a_denied_tunnel_and_the_first_request_inside_as_one(
    verdict: str,
) -> None:
    """Squid answers the request by itself (`-`) where no helper answered about the
    CONNECT.
    """
    counter = RequestCounter(RequestCounts())
    connect = record(
        method="CONNECT",
        url="a.example:443",
        verdict="deny",
        observed="deny:x",
        connection="7",
    )
    inside = record(
        status=403,
        verdict=verdict,
        error="403:ERR_SQUIDKEEPER_TEXT",
        observed="deny:x",
        connection="7",
    )
    for served in (connect, inside):
        counter.count(served, NONE_OF_POLICY)
    counts = counter.counts()
    assert sum(number for _, number in counts.requests) == 1
    assert [number for _, number in (*counts.unnamed_denials, *counts.observed)] == [
        1,
        1,
    ]
    counter.count(inside, NONE_OF_POLICY)
    assert sum(number for _, number in counter.counts().requests) == 2
