"""A table over an archive, rotated logs and the log: each line once, in one order."""

from __future__ import annotations

import bz2
import grp
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.squid_account import squid_account
from squidkeeper.cli import main
from squidkeeper.record.archive.archiver import Archiver
from squidkeeper.record.archive.retention import ArchiveBounds
from squidkeeper.record.table.lines import LineTable
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import Table, open_table
from tests.records import record_line

MIDNIGHT = datetime(2026, 11, 26, tzinfo=UTC)
TUNNEL = {
    "connection": "7",
    "worker": "2",
    "tunnel": "a.example%3A443",
    "request_bytes": 0,
}


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def at(seconds: float) -> str:
    return (MIDNIGHT + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%f")[
        :23
    ] + "Z"


def line(seconds: float, url: str, **fields: object) -> bytes:
    return record_line(
        **{"time": at(seconds), "url": url, "request_bytes": 0, **fields}
    )


def write(file: Path, *lines: bytes) -> Path:
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def urls(table: Table, view: str = "records") -> list[str]:
    return [
        row[0]
        for row in table.connection.execute(
            f"SELECT url FROM {view} ORDER BY time, position"
        ).fetchall()
    ]


@pytest.fixture
def gateway(tmp_path: Path) -> TableSources:
    """An archived log of two days, which still lies there; one that is not archived;
    and the log.
    """
    log = tmp_path / "access.log"
    write(
        tmp_path / "access.log.2",
        line(-20, "https://a.example/1", client="é"),
        line(
            -5,
            "a.example:443",
            **TUNNEL,
            method="CONNECT",
            verdict="deny",
            rule="no-a",
            duration_ms=40,
        ),
        line(
            1,
            "https://a.example/2",
            **TUNNEL,
            verdict="deny",
            rule="no-a",
            duration_ms=2,
            status=403,
        ),
        b"no record",
    )
    os.utime(tmp_path / "access.log.2", (MIDNIGHT.timestamp(),) * 2)
    (tmp_path / "archive").mkdir()
    Archiver(log, tmp_path / "archive", bounds=ArchiveBounds(36_500)).run()
    write(
        tmp_path / "access.log.1",
        line(30, "https://a.example/3"),
        line(
            40,
            "b.example:443",
            **{**TUNNEL, "tunnel": "b"},
            method="CONNECT",
            error="ERR_CONNECT_FAIL",
        ),
    )
    write(
        log,
        line(
            45,
            "https://b.example/4",
            **{**TUNNEL, "tunnel": "b"},
            verdict="-",
            rule="-",
            status=503,
        ),
        line(60, "https://a.example/5"),
    )
    for age, name in enumerate(("access.log", "access.log.1", "access.log.2")):
        os.utime(tmp_path / name, (MIDNIGHT.timestamp() + 300 - 100 * age,) * 2)
    return TableSources(log=log, archive=tmp_path / "archive")


def test_archive_rotated_logs_and_log_are_one_table_with_each_line_once(
    gateway: TableSources,
) -> None:
    with open_table(gateway, threads=1) as table:
        assert urls(table) == [
            *(
                "https://a.example/1",
                "a.example:443",
                "https://a.example/2",
                "https://a.example/3",
            ),
            *("b.example:443", "https://b.example/4", "https://a.example/5"),
        ]
        client = table.connection.execute(
            "SELECT client FROM records ORDER BY time LIMIT 1"
        ).fetchall()
        assert client == [("é",)]
        assert urls(table, "requests") == [
            # a denied tunnel across two parts: the request inside stands; a failed one
            # across two logs: the CONNECT
            *(
                "https://a.example/1",
                "https://a.example/2",
                "https://a.example/3",
                "b.example:443",
            ),
            "https://a.example/5",
        ]
        assert not table.skipped.damaged


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_a_rotated_log_that_is_archived_is_not_read_again_however_it_is_compressed(
    gateway: TableSources, suffix: str
) -> None:
    assert gateway.log is not None
    plain = gateway.log.with_name("access.log.2")
    packed = plain.with_name(f"access.log.2{suffix}")
    if suffix == ".zst":
        import duckdb

        with duckdb.connect() as connection:
            csv = f"read_csv('{plain}', columns={{a: 'VARCHAR'}}, delim='\\x01', quote='', escape='', header=false)"
            options = "(FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\\x01', COMPRESSION zstd)"
            connection.execute(f"COPY (FROM {csv}) TO '{packed}' {options}")
    else:
        packed.write_bytes(PACKED[suffix](plain.read_bytes()))
    if suffix:
        plain.unlink()
    with open_table(gateway, threads=1) as table:
        assert [path.name for path in table.paths if path.suffix != ".parquet"] == [
            "access.log.1",
            "access.log",
        ]
        assert len(urls(table)) == 7


@pytest.mark.parametrize("suffix", PACKED)
def test_of_a_log_that_grew_after_it_was_archived_what_is_new_is_read(
    gateway: TableSources, suffix: str
) -> None:
    assert gateway.log is not None
    plain = gateway.log.with_name("access.log.2")
    grown = plain.read_bytes() + line(3, "https://new.example/") + b"\nno record\n"
    plain.unlink()
    plain.with_name(f"{plain.name}{suffix}").write_bytes(PACKED[suffix](grown))
    with open_table(gateway, threads=1) as table:
        found = urls(table)
        assert len(found) == 8
        assert found.count("https://new.example/") == 1
        assert (table.skipped.count, ".log.2" in table.skipped.first) == (1, True)


def test_a_copy_that_was_cut_after_it_was_archived_is_not_read_again(
    gateway: TableSources,
) -> None:
    assert gateway.log is not None
    copy = gateway.log.with_name("access.log.2")
    copy.write_bytes(b"".join(copy.read_bytes().splitlines(keepends=True)[:2]))
    with open_table(gateway, threads=1) as table:
        assert len(urls(table)) == 7


def test_parts_outside_of_the_period_are_not_read(gateway: TableSources) -> None:
    with open_table(
        gateway, threads=1, since=MIDNIGHT + timedelta(seconds=0.5)
    ) as table:
        days = [path.parent.name for path in table.paths if path.suffix == ".parquet"]
        assert urls(table, "requests")[0] == "https://a.example/2"
    # its CONNECT ended the day before
    assert days == [
        "day=2026-11-25",
        "day=2026-11-26",
    ]
    with open_table(
        gateway, threads=1, since=MIDNIGHT + timedelta(seconds=20)
    ) as table:
        assert [
            path.parent.name for path in table.paths if path.suffix == ".parquet"
        ] == []
        assert "access.log.1" in [path.name for path in table.paths]
    with open_table(
        gateway, threads=1, since=MIDNIGHT + timedelta(seconds=42)
    ) as table:
        # the CONNECT of /4, which stands for it, was before
        assert urls(table, "requests") == ["https://a.example/5"]


def test_a_part_that_is_missing_cut_or_not_in_the_chain_is_not_used(
    gateway: TableSources,
) -> None:
    assert isinstance(gateway.archive, Path)
    first, second = sorted(gateway.archive.glob("day=*/*"))
    shutil.copy(first, first.with_name("part-00000099-0.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    with open_table(gateway, threads=1) as table:
        assert [file.split(":")[0] for file in table.skipped.damaged] == [
            str(first),
            str(second),
        ]
        assert urls(table)[0] == "https://a.example/3"


def test_a_part_of_an_earlier_release_lacks_columns(tmp_path: Path) -> None:
    import duckdb

    part = tmp_path / "part.parquet"
    with duckdb.connect() as connection:
        chosen = "SELECT TIMESTAMP '2026-11-25 12:00:00' AS time, 'GET' AS method, 200 AS status, 'h' AS client"
        connection.execute(f"COPY ({chosen}) TO '{part}' (FORMAT parquet)")
    with open_table(TableSources((part,)), threads=1) as table:
        found = table.connection.execute(
            "SELECT method, status, url, request_bytes, worker FROM requests"
        ).fetchall()
    assert found == [("GET", 200, None, 0, None)]


@pytest.mark.parametrize("command", ["log", "report", "why"])
def test_a_named_archive_is_read_with_files_and_each_line_once(
    gateway: TableSources, command: str
) -> None:
    assert isinstance(gateway.archive, Path)
    assert gateway.log
    files = [str(gateway.log.with_name(f"access.log{end}")) for end in ("", ".1", ".2")]
    reading = [
        command,
        "--json",
        *(("--last", "2026-11-25") if command == "why" else ()),
    ]
    told = (
        CliRunner()
        .invoke(main, [*reading, *files[:2], "--archive", str(gateway.archive)])
        .stdout
    )
    twice = (
        CliRunner()
        .invoke(main, [*reading, *files, "--archive", str(gateway.archive)])
        .stdout
    )
    if command == "log":
        assert [json.loads(line)["url"][-1] for line in told.splitlines()] == [
            "1",
            "2",
            "3",
            "3",
            "5",
        ]
        assert twice == told
    else:
        counted = "requests" if command == "why" else "summary"
        assert json.loads(told)[counted] == json.loads(twice)[counted]


# --- rotation meanwhile ---------------------------------------------------------------


@contextmanager
def meanwhile(
    monkeypatch: pytest.MonkeyPatch, actions: Sequence[Callable[[], object]]
) -> Iterator[None]:
    """Do one of the actions after each load of a file."""
    waiting = list(actions)
    load = LineTable.load

    def loaded(self: LineTable, file: Path, compression: str = "none") -> object:
        found = load(self, file, compression)
        if waiting:
            waiting.pop(0)()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(LineTable, "load", loaded)
        yield
    assert waiting == []


def test_a_log_that_is_cut_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(
        tmp_path / "access.log",
        line(1, "https://a.example/"),
        line(2, "https://b.example/"),
    )

    def cut() -> None:  # as copytruncate of logrotate does
        shutil.copy(log, tmp_path / "access.log.1")
        with log.open("r+b") as file:
            file.truncate(0)
            file.write(line(3, "https://c.example/") + b"\n")

    with (
        meanwhile(monkeypatch, [cut]),
        open_table(TableSources(log=log), threads=1) as table,
    ):
        assert urls(table) == [
            "https://a.example/",
            "https://b.example/",
            "https://c.example/",
        ]


def test_a_log_that_is_renamed_while_it_is_read_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(tmp_path / "access.log", line(1, "https://a.example/"))

    def rename() -> None:
        log.rename(tmp_path / "access.log.1")
        write(log, line(2, "https://b.example/"))

    with (
        meanwhile(monkeypatch, [rename]),
        open_table(TableSources(log=log), threads=1) as table,
    ):
        assert urls(table) == ["https://a.example/"]


# --- the rights of a query ------------------------------------------------------------


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_queries_a_closed_archive_as_nobody(gateway: TableSources) -> None:
    assert isinstance(gateway.archive, Path)
    with tempfile.TemporaryDirectory(
        dir="/var/tmp"
    ) as folder:  # pytest's own folders are closed
        Path(folder).chmod(0o755)
        archive = Path(shutil.copytree(gateway.archive, Path(folder, "archive")))
        for path in (archive, *archive.rglob("*")):
            shutil.chown(path, 0, 13)
            path.chmod(0o750 if path.is_dir() else 0o640)
        assert counted(gateway, archive) == ("n,hosts\n5,2\n", "", 0)
        closed = next(archive.glob("day=*/*"))
        closed.chmod(0o600)
        text = "nobody, as which root queries, cannot read it: "
        group = (
            grp.getgrgid(account.group).gr_name
            if (account := squid_account())
            else "GROUP"
        )
        commands = f"chgrp -R {group} {archive} && chmod -R g+rX {archive}"
        advice = f"{text}{commands}; the folders above must be open to every account (chmod o+x)\n"
        refused = f"Error: {closed}: {advice}"
        assert counted(gateway, archive) == ("", refused, 1)
        subprocess.run(commands, shell=True, check=True)
        assert counted(gateway, archive) == ("n,hosts\n5,2\n", "", 0)
        for path in (archive, *archive.rglob("*")):  # as a copy of root's
            shutil.chown(path, 0, 0)
        assert counted(gateway, archive)[1].endswith(f".parquet: {advice}")
        subprocess.run(commands, shell=True, check=True)
        assert counted(gateway, archive) == ("n,hosts\n5,2\n", "", 0)


def counted(gateway: TableSources, archive: Path) -> tuple[str, str, int]:
    program = "import squidkeeper.cli.options as o; from pathlib import Path; o.DEFAULT_LOG = Path({!r});"
    program = (
        program.format(str(gateway.log)) + "from squidkeeper.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "query",
        "--archive",
        str(archive),
        "--format",
        "csv",
    ]
    sql = "SELECT count(*) AS n, count(DISTINCT host) AS hosts FROM requests"
    ran = subprocess.run([*command, sql], capture_output=True, text=True, check=False)
    return ran.stdout, ran.stderr, ran.returncode
