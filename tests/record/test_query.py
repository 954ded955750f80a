"""`squidkeeper query`: one SELECT over the records, which reads nothing else and writes
nothing.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import QueryRefused
from squidkeeper.record.table.database import open_database
from squidkeeper.record.table.rows import as_csv, as_json, as_table
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.statement import lock, parse_select
from squidkeeper.record.table.table import open_table
from tests.records import after_noon, record_line
from tests.waiting import pause, wait_for

AS_PARQUET = ("--format", "parquet", "--output")
PROGRAM = (sys.executable, "-m", "squidkeeper")


def log_file(folder: Path, *records: dict[str, Any]) -> Path:
    lines = (
        record_line(**{"time": after_noon(second), "request_bytes": 0, **record})
        for second, record in enumerate(
            records or ({}, {"status": 403, "verdict": "deny", "method": "POST"})
        )
    )
    file = folder / "access.log"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def query(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "query", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


# --- what is refused ------------------------------------------------------------------

REFUSED = [
    *("", "-- a comment", "SELECT 1; SELECT 2", "SELEC 1", "SELECT 1 INTO x"),
    *(
        "COPY (SELECT 1) TO '{file}'",
        "COPY requests TO '{file}'",
        "COPY requests FROM '{file}'",
    ),
    "EXPLAIN COPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "/* SELECT */ COPY (SELECT 1) TO '{file}' -- SELECT 1",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1)",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1)",
    "SELECT 1 UNION ALL (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1)",
    "DESCRIBE (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1)",
    "SUMMARIZE (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1)",
    "WITH x AS (INSERT INTO loaded_lines (url) VALUES ('x') RETURNING url) SELECT * FROM x",
    "WITH x AS (DELETE FROM loaded_lines RETURNING url) SELECT * FROM x",
    "WITH x AS (UPDATE loaded_lines SET url = 'x' RETURNING url) SELECT * FROM x",
    *(
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "PREPARE p AS COPY (SELECT 1) TO '{file}'",
        "DEALLOCATE p",
    ),
    *(
        "ATTACH '{file}'",
        "DETACH memory",
        "EXPORT DATABASE '{file}'",
        "IMPORT DATABASE '{file}'",
        "USE memory",
    ),
    *(
        "SET threads = 4",
        "RESET threads",
        "SET VARIABLE a = 1",
        "PRAGMA version",
        "PRAGMA enable_profiling",
    ),
    *(
        "INSTALL httpfs",
        "LOAD json",
        "CALL range(3)",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
        "CREATE TABLE t AS SELECT 1",
    ),
    *(
        "CREATE MACRO f() AS TABLE SELECT 1",
        "CREATE SECRET (TYPE s3)",
        "INSERT INTO requests VALUES (1)",
        "DROP VIEW requests",
    ),
    *(
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_blob('{file}')",
        "SELECT * FROM READ_CSV('{file}')",
    ),
    *(
        "SELECT * FROM main.read_json('{file}')",
        "SELECT * FROM glob('/*')",
        "FROM read_parquet('{file}')",
    ),
    *(
        "SELECT * FROM sniff_csv('{file}')",
        "SELECT * FROM parquet_metadata('{file}')",
        "FROM read_duckdb('{file}')",
    ),
    "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{file}'') SELECT 1')",
    "SELECT * FROM query('COPY (SELECT 1) ' || 'TO ''{file}''')",
    *(
        "FROM query_table('requests')",
        "SELECT * FROM json_execute_serialized_sql('x')",
        "FROM which_secret('a', 's3')",
    ),
    *(
        "SELECT * FROM enable_logging(storage_path = '{file}')",
        "SELECT * FROM checkpoint()",
        "FROM duckdb_secrets()",
    ),
    *(
        "SELECT * FROM requests, LATERAL (SELECT * FROM read_text(url))",
        "SELECT (FROM read_text('{file}'))",
    ),
    "SELECT * FROM enable_profiling()",
    "SELECT * FROM register_external_resource('x')",
    "PIVOT requests ON status",
    *(
        "FROM loaded_lines",
        "FROM every_record",
        "DESCRIBE every_record",
        "SHOW TABLES",
        "FROM main.requests",
    ),
    *(
        "FROM duckdb_settings",
        "FROM sqlite_master",
        "FROM information_schema.tables",
        "FROM '{file}'",
    ),
    "WITH a AS (FROM every_record), every_record AS (SELECT 1) FROM a",
    "WITH every_record AS (FROM every_record) FROM every_record",
    "WITH RECURSIVE every_record(n) AS (FROM every_record UNION ALL SELECT n FROM every_record) FROM every_record",
    "SELECT (WITH every_record AS (SELECT 1) FROM every_record) FROM every_record",
    *("SELECT '\udcff'", "SELECT " * 2_000),
    "(SELECT * FROM " * 400 + "requests" + ")" * 400,
]
ALLOWED = [
    *(
        "SELECT 1",
        "VALUES (1)",
        "FROM range(3)",
        "DESCRIBE requests",
        "SUMMARIZE requests",
        "TABLE requests",
    ),
    *(
        "/* a */ SELECT 1 -- b",
        "SELECT 1;",
        "SELECT unnest([1, 2])",
        "SELECT * FROM unnest([1, 2])",
    ),
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t",
    "SELECT method, count(*) OVER (PARTITION BY host) FROM requests QUALIFY row_number() OVER (ORDER BY time) < 3",
    "SELECT * FROM requests UNION ALL BY NAME SELECT * FROM records",
    "WITH every_record AS (SELECT 1), b AS (FROM every_record) SELECT (FROM b) WHERE 1 IN (WITH c AS (FROM b) FROM c)",
    "SELECT 'COPY (SELECT 1) TO ''x''; DROP TABLE y'",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_except_one_select_that_reads_the_records_is_refused(
    tmp_path: Path, sql: str
) -> None:
    file = tmp_path / "file"
    with pytest.raises(QueryRefused):
        parse_select(sql.format(file=file))
    assert not file.exists()


@pytest.mark.parametrize("sql", ALLOWED)
def test_a_select_is_allowed(sql: str) -> None:
    assert parse_select(sql).text == sql


@pytest.mark.parametrize(
    "sql",
    [
        *("COPY (SELECT 1) TO '{file}'", "EXPORT DATABASE '{file}'", "ATTACH '{file}'"),
        *(
            "SELECT * FROM '{log}'",
            "SELECT * FROM read_text('{log}')",
            "SELECT * FROM glob('/*')",
        ),
        *(
            "SELECT * FROM read_csv('{log}')",
            "SELECT * FROM read_blob('{log}')",
            "SELECT * FROM read_json('{log}')",
        ),
        *(
            "COPY (SELECT 1) TO '{part}'",
            "INSTALL httpfs",
            "SET allowed_paths = []",
            "RESET enable_external_access",
        ),
        *(
            "SET lock_configuration = false",
            "SELECT * FROM enable_logging(storage_path = '{file}')",
            "FROM python_variable",
        ),
        *("SELECT getenv('PATH')", "SELECT * FROM 'https://127.0.0.1/x.parquet'"),
        "WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1",
    ],
)
def test_a_locked_connection_refuses_by_itself_what_a_statement_should_not_do(
    tmp_path: Path, sql: str
) -> None:
    import duckdb

    python_variable = [1]
    file, log, part = tmp_path / "file", log_file(tmp_path), tmp_path / "part.parquet"
    with open_database(threads=1) as database:
        database.connection.execute(f"COPY (SELECT 5 AS a) TO '{part}'")
        before = part.read_bytes()
        lock(database, [part])
        with pytest.raises(duckdb.Error):
            database.connection.execute(
                sql.format(file=file, log=log, part=part)
            ).fetchall()
        assert database.connection.execute(
            f"SELECT a FROM read_parquet('{part}')"
        ).fetchall() == [(5,)]
    assert (file.exists(), part.read_bytes(), python_variable) == (False, before, [1])


# --- what is read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT count(*) FROM requests", set()),
        (
            "SELECT r.Host FROM requests AS r WHERE r.status = 403 ORDER BY time",
            {"host", "status", "time"},
        ),
        ("SELECT 1 FROM requests JOIN records USING (url, position)", {"url"}),
        ("WITH x AS (SELECT url AS u FROM requests) SELECT u FROM x", {"url"}),
        *(
            (sql, None)
            for sql in (
                "FROM requests",
                "SELECT r.* FROM requests r",
                "DESCRIBE requests",
            )
        ),
        *(
            (sql, None)
            for sql in (
                "SELECT COLUMNS('u.*') FROM requests",
                "SELECT requests FROM requests",
            )
        ),
        *(
            (sql, None)
            for sql in (
                "SELECT r FROM requests AS r",
                "SELECT main.requests FROM requests",
            )
        ),
        *(
            (sql, None)
            for sql in ("SELECT a FROM requests AS r(a)", "SELECT #2 FROM requests")
        ),
        ("SELECT url FROM requests NATURAL JOIN records", None),
    ],
)
def test_only_the_columns_that_a_statement_needs_are_loaded(
    sql: str, columns: set[str] | None
) -> None:
    assert parse_select(sql).columns == columns


# --- what is written ------------------------------------------------------------------


@pytest.mark.system
def test_a_table_is_aligned_and_skipped_lines_are_counted_on_stderr(
    tmp_path: Path,
) -> None:
    log = log_file(tmp_path)
    log.write_bytes(log.read_bytes() + b"x\x1b\n")
    ran = query("SELECT time, method, status, user FROM requests ORDER BY time", log)
    assert ran.stdout == (
        "TIME                      METHOD  STATUS  USER\n"
        "2026-11-25T12:00:00.000Z  GET        200  -\n"
        "2026-11-25T12:00:01.000Z  POST       403  -\n"
    )
    assert ran.stderr.startswith(
        f"1 invalid line skipped; the first: {log}:3: not a squidkeeper record"
    )


@pytest.mark.system
def test_a_table_ends_after_a_thousand_rows_with_a_note(tmp_path: Path) -> None:
    ran = query("SELECT range FROM range(1001)", log_file(tmp_path))
    assert len(ran.stdout.splitlines()) == 1 + 1_000
    assert (
        ran.stderr
        == "only the first 1,000 rows are shown: --format csv or json writes all\n"
    )


def test_csv_and_json_hold_every_kind_of_value(tmp_path: Path) -> None:
    sql = """SELECT time, user, [1, 2] AS l, {'a': 1} AS s, 1.5::DECIMAL(4, 2) AS d, 'a"b,c' AS t, 'NaN'::DOUBLE AS n,
        DATE '2026-11-25' AS day, INTERVAL 1 HOUR AS i, true AS b, '\\x00\\xFF'::BLOB AS raw, sum(bytes) OVER () AS z
        FROM requests ORDER BY time LIMIT 1"""
    with open_table(TableSources((log_file(tmp_path),)), threads=1) as table:
        rows = table.connection.execute(sql).fetchall()
    expected = {
        "time": "2026-11-25T12:00:00.000Z",
        "user": None,
        "l": [1, 2],
        "s": {"a": 1},
        "d": 1.5,
        "t": 'a"b,c',
        "n": "nan",
        "day": "2026-11-25",
        "i": "1:00:00",
        "b": True,
        "raw": "\x00\\xff",
        "z": 1000,
    }
    assert [json.loads(line) for line in as_json(list(expected), rows)] == [expected]
    header, row = csv.reader(io.StringIO("".join(as_csv(list(expected), rows))))
    assert header == list(expected)
    assert row[:6] == [
        "2026-11-25T12:00:00.000Z",
        "",
        "[1, 2]",
        '{"a": 1}',
        "1.5",
        'a"b,c',
    ]


def test_a_csv_cell_with_text_of_a_client_is_no_formula() -> None:
    texts = (
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        b"=1",
        "a=1",
        "-",
        "",
        None,
        -1,
        [-1],
    )
    cells = [
        row[0]
        for row in csv.reader(
            io.StringIO(
                "".join(as_csv(["-a"], [(text,) for text in texts])), newline=""
            )
        )
    ]
    escaped = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "'\n=1", "'=1"]
    assert cells == ["'-a", *escaped, "a=1", "-", "", "", "-1", "[-1]"]


def test_what_json_csv_and_a_table_cannot_say_is_said_in_another_way() -> None:
    rows = [(datetime.max, date.min, [datetime.max.replace(tzinfo=UTC)])]
    assert list(as_json(["a", "a", "a_1"], rows)) == [
        '{"a": "infinity", "a_2": "-infinity", "a_1": ["infinity"]}\n'
    ]
    assert list(as_table(["a\x1b\n"], [])) == ["A%1B%0A\n"]


@pytest.mark.system
def test_a_result_goes_to_a_new_file_that_others_cannot_read_and_a_query_that_failed_leaves_none(
    tmp_path: Path,
) -> None:
    import duckdb

    output, log = tmp_path / "out.parquet", log_file(tmp_path)
    ran = query("SELECT none FROM requests", log, "--output", output, check=False)
    assert (ran.returncode, output.exists()) == (1, False)
    assert ran.stderr.startswith(
        'Error: Binder Error: Referenced column "none" not found'
    )
    query(
        "SELECT url, status FROM requests ORDER BY status",
        log,
        "--format",
        "parquet",
        "--output",
        output,
    )
    assert output.stat().st_mode & 0o777 == 0o640
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT status FROM read_parquet(?)", [str(output)]
        ).fetchall()
    assert found == [(200,), (403,)]


@pytest.mark.system
def test_no_file_is_overwritten_also_no_empty_one_and_no_link(tmp_path: Path) -> None:
    log = log_file(tmp_path)
    before, empty, link = log.read_bytes(), tmp_path / "empty", tmp_path / "link"
    empty.touch()
    link.symlink_to(tmp_path / "elsewhere")
    for output in (log, empty, link):
        ran = query("SELECT 1", log, "--output", output, check=False)
        assert ran.returncode == 2
        assert f"--output {output}: the file exists; it was not changed" in ran.stderr
    assert (
        log.read_bytes(),
        empty.read_bytes(),
        (tmp_path / "elsewhere").exists(),
    ) == (before, b"", False)


@pytest.mark.system
def test_a_file_that_has_no_space_for_a_parquet_result_ends_the_query() -> None:
    import resource

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        output = Path(folder) / "out.parquet"
        sql = "SELECT range, hash(range) FROM range(1000000)"
        command = [
            *PROGRAM,
            "query",
            sql,
            "--format",
            "parquet",
            "--output",
            str(output),
            str(log_file(Path(folder))),
        ]
        small = partial(
            resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)
        )
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=small
        )
        assert (ran.returncode, ran.stderr) == (
            1,
            "Error: cannot write: file too large\n",
        )
        assert not output.exists()


@pytest.mark.system
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 4000000000))",
        "SELECT repeat('x', 300000000) FROM range(1000)",
    ],
)
def test_a_query_that_needs_more_memory_than_it_has_is_refused(
    tmp_path: Path, sql: str
) -> None:
    ran = query(sql, log_file(tmp_path), check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        "Error: out of memory: DuckDB has 1GB, and half of the free space of "
    )
    assert resident_bytes() < 2 * 1024**3


def resident_bytes() -> int:
    """Return the most that a child of the tests has taken so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


@pytest.mark.system
@pytest.mark.parametrize(
    ("sql", "reason"),
    [("SELECT INTERVAL 999999999 MONTH", "too large"), ("SELECT '\udcff'", "UTF-8")],
)
def test_what_cannot_be_shown_or_read_is_an_error_in_a_line(
    tmp_path: Path, sql: str, reason: str
) -> None:
    ran = query(sql, log_file(tmp_path), check=False)
    assert (ran.returncode, ran.stderr.count("\n"), reason in ran.stderr) == (
        1,
        1,
        True,
    )


@pytest.mark.system
def test_a_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    receiver, terminal = pty.openpty()
    command = [
        *PROGRAM,
        "query",
        "SELECT chr(27) || '[2J' AS a",
        str(log_file(tmp_path)),
        "--format",
        "csv",
    ]
    subprocess.run(command, stdout=terminal, check=True)
    os.close(terminal)
    assert os.read(receiver, 1000).replace(b"\r", b"").splitlines()[1] == b"%1B[2J"
    os.close(receiver)
    assert list(as_table(["a"], [("\x1b[2J",)])) == ["A\n", "%1B[2J\n"]


@pytest.mark.system
def test_a_parquet_file_is_one_file_whatever_its_name_is(parent: Path) -> None:
    query(
        "SELECT * REPLACE ('a[1]' AS url) FROM records LIMIT 1",
        log_file(parent),
        *AS_PARQUET,
        parent / "a[1].parquet",
    )
    with open_database(threads=1) as database:
        for name in ("a1", "p*", "px"):
            row = (
                f"SELECT TIMESTAMP '2026-11-25' AS time, 'h' AS client, 'GET' AS "
                f"method, 200 AS status, '{name}' AS url"
            )
            database.connection.execute(f"COPY ({row}) TO '{parent}/{name}.parquet'")
    for file in parent.glob("*.parquet"):
        file.chmod(0o644)
    read = [
        query("SELECT url FROM records", parent / f"{name}.parquet").stdout
        for name in ("a[1]", "p*", "a1")
    ]
    assert read == ["URL\na[1]\n", "URL\np*\n", "URL\na1\n"]
    (parent / "none.parquet").write_text("no Parquet\n" * 9)
    for name, reason in (("q*", "no such file"), ("none", "magic bytes")):
        ran = query("SELECT 1", parent / f"{name}.parquet", check=False)
        assert (ran.returncode, ran.stderr.count("\n"), reason in ran.stderr) == (
            2,
            1,
            True,
        )


BUSY = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3"
DEAF = "SELECT sleep_ms(100000)"  # DuckDB does not hear an interrupt in it


@pytest.fixture
def parent() -> Iterator[Path]:
    """Make a folder for spill folders, which any account can write in."""
    with tempfile.TemporaryDirectory(
        dir="/var/tmp"
    ) as folder:  # pytest's own folders are closed
        os.chmod(folder, 0o1777)
        yield Path(folder)


def started_query(parent: Path, sql: str, *options: object) -> subprocess.Popen[bytes]:
    """Start a query, and wait until DuckDB is there."""
    before = spilled(parent)
    command = [*PROGRAM, "query", sql, "-", *map(str, options)]
    environment = os.environ | {"TMPDIR": str(parent)}
    running = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    wait_for(lambda: running.poll() is not None or spilled(parent) != before, "DuckDB")
    assert running.poll() is None
    pause(1, "DuckDB begins with the query")
    return running


def spilled(parent: Path) -> list[Path]:
    return sorted(parent.glob("squidkeeper-table-*"))


@pytest.mark.system
@pytest.mark.parametrize(
    ("number", "sql", "ended"),
    [
        (signal.SIGINT, BUSY, (1, b"\nAborted!\n")),
        (signal.SIGINT, DEAF, (1, b"\nAborted!\n")),
        (signal.SIGTERM, DEAF, (143, b"")),
        (signal.SIGHUP, BUSY, (129, b"")),
    ],
)
def test_a_signal_ends_a_query_and_it_leaves_nothing(
    tmp_path: Path,
    parent: Path,
    number: signal.Signals,
    sql: str,
    ended: tuple[int, bytes],
) -> None:
    output = tmp_path / "out.csv"
    with started_query(parent, sql, "--format", "csv", "--output", output) as running:
        running.send_signal(number)
        errors = running.communicate(timeout=20)[1]
    assert (running.returncode, errors) == ended
    assert (output.exists(), spilled(parent)) == (False, [])


@pytest.mark.system
def test_what_a_killed_query_left_is_removed_by_the_next_one_and_nothing_else(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(parent))
    other, link = parent / "squidkeeper-table-other", parent / "squidkeeper-table-link"
    other.mkdir(mode=0o755)  # not as we make them
    link.symlink_to(other)
    with started_query(parent, DEAF) as killed:
        killed.kill()
        killed.communicate(timeout=20)  # until the child has closed stderr too
    with open_database(threads=1):
        assert len(spilled(parent)) == 2 + 1
        with open_database(threads=1):
            assert len(spilled(parent)) == 2 + 2  # that of a living process stays
    assert spilled(parent) == [link, other]


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_table_as_an_exit_does(
    parent: Path, number: signal.Signals
) -> None:
    code = f"""if True:
    from squidkeeper.record.table.database import open_database
    with open_database(threads=1) as database:
        database.connection.execute({BUSY!r}).fetchall()
    """
    environment = os.environ | {"TMPDIR": str(parent)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment
    ) as running:
        wait_for(lambda: spilled(parent), "DuckDB")
        pause(1, "DuckDB begins with the query")
        running.send_signal(number)
    ended = {signal.SIGINT: -signal.SIGINT}.get(number, 128 + number)
    assert (running.returncode, spilled(parent)) == (ended, [])


def test_what_is_no_finite_number_is_no_null() -> None:
    rows = [(inf, -inf, nan)]
    assert list(as_table("abc", rows))[1].split() == ["inf", "-inf", "nan"]
    assert list(as_json("abc", rows)) == ['{"a": "inf", "b": "-inf", "c": "nan"}\n']
    assert list(as_csv("abc", rows)) == ["a,b,c\n", "inf,-inf,nan\n"]


@pytest.mark.system
def test_a_refusal_advises_nothing_that_cannot_be_done(tmp_path: Path) -> None:
    told = query("SELECT stem('a', 'b')", log_file(tmp_path), check=False).stderr
    assert "exists in the fts extension" in told
    assert "INSTALL" not in told
    told = query(
        "PIVOT requests ON status USING count(*)", log_file(tmp_path), check=False
    ).stderr
    assert told.startswith(
        "Error: a PIVOT without IN (…), which is several statements: expected one SELECT"
    )


@pytest.mark.system
def test_a_parquet_file_without_the_columns_of_a_part_is_refused(
    tmp_path: Path,
) -> None:
    log = log_file(tmp_path)
    few, whole = tmp_path / "few.parquet", tmp_path / "whole.parquet"
    query(
        "SELECT status, count(*) AS n FROM requests GROUP BY status",
        "--format",
        "parquet",
        "--output",
        few,
        log,
    )
    query("FROM records", "--format", "parquet", "--output", whole, log)
    with open_table(TableSources((whole,)), threads=1) as table:
        assert table.connection.execute("SELECT count(*) FROM requests").fetchall() == [
            (2,)
        ]
    counted = "SELECT count(*) AS n FROM requests"
    refused = query(counted, few, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    text = f"{few}: its columns are not those of an archived part: there is no time, no client, no method: "
    assert refused.stderr.startswith(f"Error: {text}")
    (tmp_path / "no.parquet").write_bytes(b"no Parquet")
    refused = query(counted, tmp_path / "no.parquet", check=False)
    assert refused.stderr.startswith(f"Error: {tmp_path}/no.parquet: ")


# --- as root --------------------------------------------------------------------------

AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another account"
)
RIGHTS = """
import os, sys
from squidkeeper.record.table.database import open_database
from squidkeeper.record.table.statement import drop_rights
from pathlib import Path
with open_database(threads=1) as database:
    drop_rights(database, [Path(one) for one in sys.argv[1:]])
    database.connection.execute("SET memory_limit = '50MB'")
    database.connection.execute("SELECT range % 7, range::VARCHAR FROM range(3000000) ORDER BY ALL").fetchone()
    print(os.getresuid(), os.getgroups(), database.spill.stat().st_uid == os.getuid())
print(database.spill.exists())
"""


def rights(parts: Iterable[Path]) -> list[str]:
    command = [sys.executable, "-c", RIGHTS, *map(str, parts)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.system
@AS_ROOT
def test_root_becomes_nobody_with_the_groups_that_read_the_archive() -> None:
    with tempfile.NamedTemporaryFile(
        dir="/var/tmp", suffix=".parquet"
    ) as part:  # pytest's own folders are closed
        os.chmod(part.name, 0o640)
        os.chown(part.name, 0, 13)
        assert rights([Path(part.name)]) == ["(65534, 65534, 65534) [13] True", "False"]
    assert rights([]) == ["(65534, 65534, 65534) [] True", "False"]
