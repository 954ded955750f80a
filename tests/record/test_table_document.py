"""The document of the table: its columns are those of the program, and its
queries run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from squidkeeper.record.log.record import Record
from squidkeeper.record.table.columns import COLUMNS, POSITION
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.statement import parse_select
from squidkeeper.record.table.table import Table, open_table
from squidkeeper.record.table.usage import create_usage
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    append_entry,
    ledger_file,
    usage_entry,
)
from tests.records import NOON, after_noon, record_line

DOCUMENT = (Path(__file__).parents[2] / "squid/observe/RECORD.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)

_OF_CLIENTS = (
    "user",
    "method",
    "sni",
    "tunnel",
    "user_agent",
    "found",
    "content_type",
    "referrer",
    "hidden",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    usual = {
        "request_bytes": 5,
        "credential": "a,b",
        "upstream_ms": "7",
        "upstream": "192.0.2.1",
        "worker": "1",
    }
    usual |= {
        "content_type": "application/json",
        "connection": "17",
        "user_agent": "curl%2F8.14.1",
    }
    failed = {"status": 503, "error": "ERR_CONNECT_FAIL"}
    denied = {"status": 403, "verdict": "deny", "rule": "no-push"}
    lines = [
        *(record_line(time=after_noon(second), **usual) for second in range(12)),
        *(
            record_line(time=after_noon(20 + second), **{**usual, **denied})
            for second in range(12)
        ),
        record_line(time=after_noon(90), **{**usual, **failed}),
        record_line(
            time=after_noon(91),
            **{
                **usual,
                **dict.fromkeys(_OF_CLIENTS, "x%9B%20y"),
                "url": "http://b.example/%9B",
            },
        ),
    ]
    file = tmp_path_factory.mktemp("log") / "access.log"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    ledger = ledger_file(file.parent)
    ledger.parent.mkdir(parents=True)
    for request_id, user in (("1.2.3.4", "alice"), ("1.2.3.5", "bob")):
        about = MeteredRequest(
            request_id, "192.0.2.1", user, "models", "-", "a.example"
        )
        append_entry(
            ledger, usage_entry(about, NOON, "gpt-4o", Amounts(800, 120, 3_200))
        )
    with open_table(TableSources((file,)), threads=1) as opened:
        create_usage(opened.database, [ledger])
        yield opened


def test_the_columns_of_the_document_are_those_of_the_table(table: Table) -> None:
    kinds = {"TIMESTAMP": "`time`", "BIGINT": "number fields", "VARCHAR": "text fields"}
    fields = {field.name for field in msgspec.structs.fields(Record)}
    expected = {
        (kinds[column.sql_type], column.sql_type)
        for column in COLUMNS
        if column.name in fields
    }
    expected |= {
        (f"`{column.name}`", column.sql_type)
        for column in COLUMNS
        if column.name not in fields
    }
    expected |= {(f"`{POSITION}`", "BIGINT")}
    rows = re.findall(r"^\| (`\w+`|\w+ fields) \| ([A-Z]+) \|", DOCUMENT, re.MULTILINE)
    assert sorted(rows) == sorted(expected)
    described = table.connection.execute("DESCRIBE requests").fetchall()
    assert [row[:2] for row in described] == [
        *((one.name, one.sql_type) for one in COLUMNS),
        (POSITION, "BIGINT"),
    ]
    assert table.connection.execute("DESCRIBE records").fetchall() == described


def test_there_are_ten_queries_or_more() -> None:
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("sql", QUERIES, ids=range(len(QUERIES)))
def test_a_query_of_the_document_is_allowed_and_finds_something(
    table: Table, sql: str
) -> None:
    assert table.connection.execute(parse_select(sql).text).fetchall() != []


def test_users_at_one_address_have_rows_of_their_own(table: Table) -> None:
    costs = next(sql for sql in QUERIES if "FROM usage" in sql)
    rows = table.connection.execute(parse_select(costs).text).fetchall()
    assert sorted(row[:2] for row in rows) == [
        ("192.0.2.1", "alice"),
        ("192.0.2.1", "bob"),
    ]


def test_a_byte_of_a_client_that_is_not_utf_8_ends_no_query(table: Table) -> None:
    texts = [column.name for column in COLUMNS if column.sql_type == "VARCHAR"]
    decoded = ", ".join(f"url_decode({name})" for name in texts)
    assert (
        len(table.connection.execute(f"SELECT {decoded} FROM records").fetchall()) > 20
    )
    agents = table.connection.execute(
        "SELECT DISTINCT url_decode(user_agent) FROM records ORDER BY 1"
    ).fetchall()
    assert agents == [("curl/8.14.1",), ("x%9B%20y",)]


def test_a_line_that_is_not_utf_8_is_decoded_with_escapes(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    line = record_line(time=after_noon(0), user_agent="@").replace(b"@", b"\x9b")
    file.write_bytes(line + b"\n" + record_line(time=after_noon(1), unknown=1) + b"\n")
    with open_table(TableSources((file,)), threads=1) as opened:
        rows = opened.connection.execute(
            "SELECT decode(raw), decode('a\\x9B'::BLOB) FROM records"
        ).fetchall()
    assert [row[1] for row in rows] == ["a\\x9B"] * len(rows)
