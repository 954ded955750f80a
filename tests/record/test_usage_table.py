"""What `log --by`, `query` and `why` tell of metered requests, by the ledger
of usage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.cli import main
from squidkeeper.record.table.database import open_database
from squidkeeper.record.table.usage import create_usage
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageState,
    append_entry,
    ledger_file,
    ledger_files,
    usage_entry,
)

from ..records import NOON, after_noon, record_line

RESERVE = Amounts(1000, 4096, 41_200)
USED = Amounts(800, 120, 3_200, cached_in=512)
NEXT_DAY = datetime(2026, 11, 26, tzinfo=UTC)


def request_id(number: int) -> str:
    return f"gw-1.{int(NOON.timestamp())}.1.{number}.5000"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three metered requests and one that is not: `gpt-4o` answered, the client left,
    the service was killed.
    """
    file = ledger_file(tmp_path)
    file.parent.mkdir(parents=True)

    def write(number: int, *more: Any, model: str = "gpt-4o") -> None:
        client = f"192.168.137.{number}"
        about = MeteredRequest(
            request_id(number), client, "-", "models", "0123456789ab", "api.example"
        )
        append_entry(file, usage_entry(about, NOON, model, *more))

    for number in (1, 2, 3):
        write(number, RESERVE)
    write(1, USED, RESERVE, UsageState.METERED, model="gpt-4o-2024-08-06")
    write(2, RESERVE, RESERVE, UsageState.RESERVED, "the client left")
    fields = {"rule": "models", "url": "https://api.example/v1/chat"}
    lines = [
        record_line(
            time=after_noon(n),
            request_id=request_id(n),
            client=f"192.168.137.{n}",
            connection=str(n),
            **fields,
        )
        for n in (1, 2, 3, 4)
    ]
    (tmp_path / "access.log").write_bytes(b"".join(line + b"\n" for line in lines))
    return tmp_path


def run(state: Path, *arguments: object) -> Result:
    options = ("--state", state, state / "access.log")
    return CliRunner().invoke(
        main, [str(argument) for argument in (*arguments, *options)]
    )


# --- log --by -------------------------------------------------------------------------


def test_requests_are_counted_by_model_the_dearest_first(state: Path) -> None:
    assert run(state, "log", "--by", "model").output.splitlines() == [
        "REQUESTS  BYTES  RESERVED  TOKENS_IN  TOKENS_OUT      COST  LAST                      MODEL",
        "       2   1000         2       2000        8192  0.082400  2026-11-25T12:00:03.000Z  gpt-4o",
        "       1    500         0        800         120  0.003200  2026-11-25T12:00:01.000Z  gpt-4o-2024-08-06",
    ]


def test_requests_are_counted_by_rule_with_what_they_used(state: Path) -> None:
    assert run(state, "log", "--by", "rule").output.splitlines() == [
        "REQUESTS  DENIED  TUNNELS  BYTES  RESERVED  TOKENS_IN  TOKENS_OUT      COST  LAST                      RULE",
        "       4       0        0   2000         2       2800        8312  0.085600  2026-11-25T12:00:04.000Z  models",
    ]


def test_filters_hold_for_what_was_used(state: Path) -> None:
    found = run(
        state, "log", "--by", "client", "--client", "192.168.137.1", "--json"
    ).output
    assert json.loads(found) == {
        "client": "192.168.137.1",
        **dict(
            zip(("requests", "denied", "tunnels", "bytes"), (1, 0, 0, 500), strict=True)
        ),
        **dict(
            zip(
                ("reserved", "tokens_in", "tokens_out", "cost"),
                (0, 800, 120, 3200),
                strict=True,
            )
        ),
        "last": "2026-11-25T12:00:01.000Z",
    }


def test_the_ledger_of_before_the_log_is_not_read(state: Path) -> None:
    file = ledger_file(state)
    older = file.with_name(f"{file.name}-20261124000000")
    file.rename(older)
    os.utime(older, (NOON.timestamp() - 30,) * 2)
    assert "TOKENS_IN" in run(state, "log", "--by", "rule").output
    os.utime(older, (NOON.timestamp() - 90,) * 2)
    assert "TOKENS_IN" not in run(state, "log", "--by", "rule").output


def test_where_nothing_is_metered_counts_are_as_before(state: Path) -> None:
    ledger_file(state).unlink()
    assert run(state, "log", "--by", "rule").output.splitlines()[0].split() == [
        *("REQUESTS", "DENIED", "TUNNELS", "BYTES", "LAST", "RULE")
    ]
    assert run(state, "log", "--by", "model").output == ""


def test_a_ledger_that_cannot_be_read_hides_tokens_alone(state: Path) -> None:
    file = ledger_file(state)
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert "TOKENS_IN" not in run(state, "log", "--by", "rule").output
    assert run(state, "log", "--by", "model").exit_code == 2
    with pytest.raises(UnreadableLog, match="usage"):
        rows(state, "*")
    assert "token" not in run(state, "why", request_id(1), "--policy", state).output


# --- query ----------------------------------------------------------------------------


def rows(
    state: Path,
    columns: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Any]:
    with open_database(1) as database:
        create_usage(database, ledger_files(state, since), since, until)
        return database.connection.execute(
            f"SELECT {columns} FROM usage ORDER BY request_id"
        ).fetchall()


def test_a_metered_request_is_one_row(state: Path) -> None:
    assert rows(
        state,
        "client, state, settled, reason, tokens_in, cached_in, cost, reserved_cost",
    ) == [
        ("192.168.137.1", "metered", True, None, 800, 512, 3200, 41_200),
        (
            "192.168.137.2",
            "reserved",
            True,
            "the%20client%20left",
            1000,
            0,
            41_200,
            41_200,
        ),
        ("192.168.137.3", "reserved", False, None, 1000, 0, 41_200, 0),
    ]


def test_a_row_is_of_the_time_at_which_it_was_settled(state: Path) -> None:
    about = MeteredRequest(
        request_id(9), "192.168.137.9", "-", "models", "0123456789ab", "api.example"
    )
    append_entry(ledger_file(state), usage_entry(about, NOON, "m", RESERVE))
    append_entry(
        ledger_file(state),
        usage_entry(about, NEXT_DAY, "m", USED, RESERVE, UsageState.METERED),
    )
    assert [
        len(rows(state, "*", *period))
        for period in ((NOON, NEXT_DAY), (NEXT_DAY, None))
    ] == [3, 1]


@pytest.mark.system
def test_a_query_reads_the_table(state: Path) -> None:
    sql = (
        "SELECT model, status, cost / 1e6 AS cost FROM usage JOIN requests USING "
        "(request_id) WHERE settled ORDER BY 1"
    )
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "query",
        sql,
        "--state",
        str(state),
        str(state / "access.log"),
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert [line.split() for line in found.splitlines()] == [
        ["MODEL", "STATUS", "COST"],
        ["gpt-4o", "200", "0.0412"],
        ["gpt-4o-2024-08-06", "200", "0.0032"],
    ]


OUT = "800 tokens in (512 cached) and 120 out of gpt-4o-2024-08-06"
HELD = "counts for its reserve, 1,000 tokens in and 4,096 out of gpt-4o, at a cost of 0.0412"


# --- why ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1, f"used {OUT}, at a cost of 0.0032, as its API reported."),
        (2, f"{HELD}: the client left."),
        (3, f"{HELD}: the answer has not ended."),
    ],
)
def test_why_tells_what_a_request_used(state: Path, number: int, told: str) -> None:
    output = run(state, "why", request_id(number), "--policy", state).output
    assert f"{request_id(number)} {told}" in output.splitlines()
    usage = json.loads(
        run(state, "why", request_id(number), "--policy", state, "--json").output
    )["usage"]
    assert [entry["request_id"] for entry in usage] == [request_id(number)]


def test_why_tells_nothing_of_usage_where_a_request_has_none(state: Path) -> None:
    assert "token" not in run(state, "why", request_id(4), "--policy", state).output
    assert "token" not in run(state, "why", "--last", "3650d", "--policy", state).output
