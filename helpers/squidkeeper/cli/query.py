"""`squidkeeper query`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from squidkeeper.base.errors import QueryRefused
from squidkeeper.cli.arguments import table_options
from squidkeeper.cli.helper_options import path_option, state_option
from squidkeeper.cli.output import end_progress, open_new_file, progress, report_skipped

if TYPE_CHECKING:
    from squidkeeper.cli.arguments import TableOptions
    from squidkeeper.record.table.rows import QueryFormat
    from squidkeeper.record.table.table import Table

_FETCHED = 1_000  # rows at once
_FORMATS = ("table", "csv", "json", "parquet")


@click.command()
@click.argument("sql")
@table_options
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="How to print rows.",
)
@path_option(
    "--output", metavar="FILE", help="Write to a new file, as parquet requires."
)
@state_option("The state folder, for the table `usage`.")
def query(
    sql: str, read: TableOptions, form: str, output: Path | None, state: Path
) -> None:
    """Run one SELECT of DuckDB over the tables `requests`, `records` and `usage`.

    `requests` and `records` hold the archive, the access log and its rotated files; or
    FILEs: logs, also compressed, Parquet files, and `-` for standard input. `usage`
    holds the tokens and the cost of metered requests.

    The SELECT cannot read or write a file. As root, it runs as nobody. A table shows
    the first 1,000 rows.

    \b
    Examples:
      squidkeeper query "DESCRIBE requests"
      squidkeeper query "SELECT host, count(*) FROM requests GROUP BY host"
      squidkeeper query "SELECT model, sum(cost) FROM usage GROUP BY model"

    \b
    Exit status:
      1  The SELECT was refused or failed.
      2  A log cannot be read, memory is too short, or a gateway of --fleet is
         missing: then there is no file of --output.
    """
    from squidkeeper.record.table.database import (
        bound_memory,
        continue_as_child,
        spare_threads,
        yield_to_squid,
    )
    from squidkeeper.record.table.rows import QueryFormat

    if form == QueryFormat.PARQUET and output is None:
        raise click.UsageError("--format parquet needs --output FILE")
    yield_to_squid()
    threads, file = read.threads or spare_threads(), open_new_file(output)
    try:
        continue_as_child(undo=partial(_remove, output))
        bound_memory(threads)
        with progress("querying"):
            _run(sql, replace(read, threads=threads), QueryFormat(form), file, state)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _remove(output: Path | None) -> None:
    if output is not None:
        output.unlink(missing_ok=True)


def _run(
    sql: str, read: TableOptions, form: QueryFormat, file: IO[bytes], state: Path
) -> None:
    from squidkeeper.record.table.database import QUERY_MEMORY
    from squidkeeper.record.table.statement import drop_rights, lock, parse_select
    from squidkeeper.record.table.table import open_table
    from squidkeeper.record.table.usage import USAGE, create_usage
    from squidkeeper.record.usage_ledger import ledger_files

    statement = parse_select(sql)
    with open_table(
        read.sources,
        *read.period,
        read.threads,
        statement.columns,
        memory_limit=QUERY_MEMORY,
    ) as table:
        if USAGE in statement.tables:
            create_usage(table.database, ledger_files(state, read.since), *read.period)
        drop_rights(table.database, table.parts)
        lock(table.database, table.parts)
        report_skipped(table.skipped)
        _write(table, statement.text, form, file)
    file.flush()


def _write(table: Table, sql: str, form: QueryFormat, file: IO[bytes]) -> None:
    import duckdb

    from squidkeeper.record.table.rows import QueryFormat

    try:
        if form is QueryFormat.PARQUET:
            _write_parquet(table, sql, file)
        else:
            _write_text(table, sql, form, file)
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        # there are no extensions here
        text = str(error).partition("\nPlease try installing")[0]
        raise QueryRefused(text.rstrip()) from error
    except OverflowError as error:
        raise QueryRefused(
            "a value is too large to show, such as an interval: cast it, as in x::VARCHAR"
        ) from error


def _write_text(table: Table, sql: str, form: QueryFormat, file: IO[bytes]) -> None:
    from squidkeeper.record.log.listing import printable_field
    from squidkeeper.record.table.rows import ROWS_SHOWN, WRITERS, QueryFormat

    result = table.connection.execute(sql)
    names = [column[0] for column in result.description or ()]
    is_table = form is QueryFormat.TABLE
    on_terminal = file is sys.stdout.buffer and sys.stdout.isatty()
    rows = result.fetchmany(ROWS_SHOWN) if is_table else _rows(table)
    if file is sys.stdout.buffer:
        end_progress()
    for line in WRITERS[form](names, rows):
        file.write(
            (f"{printable_field(line[:-1])}\n" if on_terminal else line).encode(
                "utf-8", "backslashreplace"
            )
        )
    file.flush()
    if is_table and result.fetchone() is not None:
        click.echo(
            f"only the first {ROWS_SHOWN:,} rows are shown: --format csv or json writes all",
            err=True,
        )


def _rows(table: Table) -> Iterator[tuple[object, ...]]:
    while rows := table.connection.fetchmany(_FETCHED):
        yield from rows


def _write_parquet(table: Table, sql: str, file: IO[bytes]) -> None:
    """Let DuckDB write into a pipe in its spill folder, where it may, so that the
    result takes no space there.
    """
    pipe = table.database.spill / "result"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # open until DuckDB has written: before, a reader would be at the end
    writer = os.open(pipe, os.O_WRONLY)
    os.set_blocking(reader, True)
    with ThreadPoolExecutor(1) as pool:
        copied = pool.submit(_copy, reader, file)
        try:
            table.connection.sql(sql).write_parquet(str(pipe), compression="zstd")
        finally:
            os.close(writer)
            copied.result()  # if the file cannot be written, that is the error


def _copy(reader: int, file: IO[bytes]) -> None:
    with open(reader, "rb") as content:
        shutil.copyfileobj(content, file)
