"""The table gives what a plain Python reading gives, of any lines, in any files."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.log.log_files import LINE_LIMIT
from squidkeeper.record.log.record import NONE, Record, format_time, host_of
from squidkeeper.record.table import database
from squidkeeper.record.table.columns import COLUMNS, FIELDS, Partial
from squidkeeper.record.table.database import open_database
from squidkeeper.record.table.lines import LineTable, Loaded, record_of
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import Table, open_table, standing
from tests.conftest import few_and_many, hold_for
from tests.plain_reading import Reading, fold, read_lines, time_of
from tests.records import NOON, USUAL, after_noon, record_line

FIELD_NAMES = [column.name for column in FIELDS]


def records_in(table: Table, view: str = "records") -> list[Record]:
    names = ", ".join(FIELD_NAMES)
    rows = table.connection.execute(
        f"SELECT {names} FROM {view} ORDER BY time, position"
    ).fetchall()
    return [record_of(row, FIELD_NAMES) for row in rows]


def as_columns(record: Record) -> Record:
    """Return a record as columns hold it: its time in UTC, to the millisecond, and its
    status in 64 bits.
    """
    return msgspec.structs.replace(
        record, time=format_time(time_of(record)), status=min(record.status, 2**63 - 1)
    )


def written(folder: Path, lines: Iterable[bytes], name: str = "access.log") -> Path:
    file = folder / name
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def assert_same(table: Table, plain: Reading) -> None:
    assert records_in(table) == [as_columns(record) for record in plain.records]
    assert table.skipped.count == plain.invalid
    assert (table.skipped.first == "") == (plain.invalid == 0)
    if plain.first_invalid:
        assert f":{plain.first_invalid}: " in table.skipped.first
    folded = fold(plain.records)
    assert records_in(table, "requests") == [
        as_columns(record) for record in folded.requests
    ]


# --- any lines ------------------------------------------------------------------------

STRANGE_TEXTS = [
    "-",
    "a",
    "%22",
    "A\\u00e9",
    "é",
    "a\x7fb",
    '"',
    "\\",
    "\x00",
    "\U0001f600",
    "",
    "x" * 300,
]
STRANGE_URLS = [
    "https://open.example/x?y#z",
    "http://OPEN.example:8080/",
    "open.example:443",
    "https://a.b.:1/",
    "https://192.168.0.1/",
    "://",
    "https://010.1/",
    "https://[::1]:443/",
    "::1:443",
    "error:transaction-end",
    "error:80",
    "https://x%C3%BC.example/",
    "ftp://a_b/c://d",
    "a.com/x://y",
    "https://h?q",
    "a.example:99999",
    "a:00080",
    "https://u@h.example/",
    "https://1a.example/",
    "https://1.2.3.4.5/",
    "1.2.3.256:1",
    "h.example:70000",
    "https://h.example:/",
    "https://-/",
    "https://xn--e1afmkfd/",
    "http://0x7f.1/",
    "https://",
    "1.2.3.4:80",
    f"https://{'a' * 64}.example/",
    f"https://{'a.' * 130}b/",
]
STRANGE_TIMES = [
    "2026-11-25T12:00:00Z",
    "2026-11-25T12:00:00.123456Z",
    "2026-11-25T12:00:00.000",
    "-",
    "20261125T120000Z",
    "2026-11-25T13:00:00.500+01:00",
    "2026-02-30T12:00:00.000Z",
    "0001-01-01T00:00:00.000Z",
    "9999-12-31T23:59:59.999Z",
    "2026-11-25T23:59:60.000Z",
    "2026-11-25T24:00:00.000Z",
    "2026-W48-3T12:00:00.000Z",
    "0002-01-01T00:00:00.000Z",
    "2026-11-25 12:00:00.000Z",
]
ODD_NUMBERS = [2**53 + 1, 2**62, -0.0, 200.0, 1e3, 200.7, "200", True, None]
TEXTS = st.sampled_from(STRANGE_TEXTS) | st.text(max_size=12)
URLS = st.sampled_from(STRANGE_URLS)
NUMBERS = st.integers(-5, 700) | st.sampled_from(ODD_NUMBERS)
TIMES = st.integers(0, 30_000).map(
    lambda after: after_noon(after / 1000)
) | st.sampled_from(STRANGE_TIMES)


def changed_field(name: str) -> st.SearchStrategy[Any]:
    if name == "v":
        return st.sampled_from([1, 1, 1, 2, "1", 1.0, None])
    if name == "time":
        return TIMES
    if name == "url":
        return URLS | TEXTS
    return NUMBERS if isinstance(USUAL[name], int) or name == "request_bytes" else TEXTS


@st.composite
def records_as_json(draw: st.DrawFn) -> bytes:
    """Write a record as Squid does, with fields changed, left out, repeated, unknown,
    or out of order.
    """
    names = draw(st.sets(st.sampled_from(FIELD_NAMES), max_size=4))
    fields = {
        **USUAL,
        "request_bytes": 0,
        **{name: draw(changed_field(name)) for name in sorted(names)},
    }
    dropped = draw(st.sampled_from([0, 0, 0, 1, 3, 7, 8, 20]))
    pairs = list(fields.items())[: len(fields) - dropped]
    if draw(st.integers(0, 9)) == 0:
        pairs = draw(st.permutations(pairs))
    if draw(st.integers(0, 9)) == 0:
        pairs += [
            draw(
                st.sampled_from(
                    [
                        ("unknown", {"a": [1]}),
                        ("client", "10.0.0.9"),
                        ("status", 7),
                        ("url", 5),
                    ]
                )
            )
        ]
    ascii_only = draw(st.booleans())
    separators = draw(
        st.sampled_from([(",", ":"), (",", ":"), (",", ":"), (", ", ": ")])
    )
    encoded = (
        f"{json.dumps(name)}{separators[1]}{json.dumps(value, ensure_ascii=ascii_only)}"
        for name, value in pairs
    )
    return ("{" + separators[0].join(encoded) + "}").encode("utf-8", "surrogatepass")


SPOILT: Sequence[Callable[[bytes], bytes]] = (
    lambda line: line[:-3],
    lambda line: line + b" ",
    lambda line: b"\t" + line,
    lambda line: line + b"{}",
    lambda line: line + b"\r",
    lambda line: line.replace(b",", b",\r", 1),
    lambda line: line + b"\r" + line,
    lambda line: line.replace(b'"-"', b'"\xff"', 1),
    lambda line: line.replace(b'"-"', b'"\x00"', 1),
    lambda line: line.replace(b'"-"', b"NaN", 1),
    lambda line: line.replace(b"}", b",}"),
    lambda line: b"[" + line + b"]",
    lambda line: line.replace(b'"-"', b'"' + b"x" * 5_000 + b'"', 1),
    lambda line: line.replace(b'"-"', b'"' + b"x" * LINE_LIMIT + b'"', 1),
    lambda line: line.replace(b'"-"', rb'"\ud800"', 1),
    lambda line: line.replace(b'"-"', b"1e3", 1),
    lambda line: line.replace(b'"-"', b'["-"]', 1),
    lambda line: line.replace(b'"-"', b'{"v":1}', 1),
    lambda line: line.replace(b'"status":', b'"status":1e400,"status":', 1),
    lambda line: line.replace(b'"status":', b'"status":9' + b"9" * 40 + b',"x":', 1),
    lambda line: line.replace(b'"rule":', b'"rule":1,"rule":', 1),
    lambda line: line.replace(b'"rule":', b'"RULE":"x","rule":', 1),
    lambda line: line[:-1] + b',"client":"10.9.9.9"}',
    lambda line: line[: len(line) // 2],
)
LINES = st.one_of(
    records_as_json(),
    records_as_json(),
    st.tuples(records_as_json(), st.sampled_from(SPOILT)).map(
        lambda both: both[1](both[0]).replace(b"\n", b"")
    ),
    st.sampled_from(
        [
            b"",
            b"  ",
            b"null",
            b"5",
            b"\xff\xfe",
            b"#",
            b'"',
            b"\x00",
            b"\xef\xbb\xbf{}",
            b"[" * 5000,
        ]
    ),
)


def assert_read_alike(folder: Path, lines: list[bytes]) -> None:
    """Compare records, requests, hosts and what is skipped with a plain reading."""
    file = written(folder, lines)
    plain = read_lines(line.removesuffix(b"\r") for line in lines)
    with open_table(TableSources((file,)), threads=1) as table:
        assert_same(table, plain)
        hosts = table.connection.execute(
            "SELECT host FROM records ORDER BY time, position"
        ).fetchall()
        assert [row[0] for row in hosts] == [
            text_or_none(host_of(record.url).text) for record in plain.records
        ]


def text_or_none(text: str) -> str | None:
    return None if text == NONE else text


ANY = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


@few_and_many(8, 300)
def test_any_lines_are_the_records_that_a_plain_reading_finds(
    tmp_path: Path, examples: int
) -> None:
    hold_for(
        lambda lines: assert_read_alike(tmp_path, lines),
        st.lists(LINES, max_size=12),
        examples=examples,
    )


def test_every_strange_value_of_every_field_is_read_as_a_plain_reading_does(
    tmp_path: Path,
) -> None:
    of_field = {"url": [*STRANGE_URLS, *STRANGE_TEXTS], "time": STRANGE_TIMES}
    lines = [
        record_line(**{"request_bytes": 0, name: value})
        for name in FIELD_NAMES
        for value in (*of_field.get(name, STRANGE_TEXTS), *ODD_NUMBERS)
    ]
    assert_read_alike(tmp_path, lines)


@pytest.mark.parametrize("place", range(len(SPOILT)))
def test_a_spoilt_line_among_others_is_read_as_a_plain_reading_does(
    tmp_path: Path, place: int
) -> None:
    whole = record_line(request_bytes=0)
    assert_read_alike(tmp_path, [whole, SPOILT[place](whole), whole])


# --- folding --------------------------------------------------------------------------


ODD_TARGETS = (
    "-",
    "https://b.example/",
    "a.example:8443",
    "https://a.example:8443/",
    "https://a.example",
    "urn:x",
)


@st.composite
def tunnels(draw: st.DrawFn) -> list[bytes]:
    """Make records of few tunnels and close times, so that many are folded."""
    lines, at = [], 0.0
    for _ in range(draw(st.integers(0, 14))):
        at += draw(st.sampled_from([0, 0, 0.001, 1, 5, 9.999, 10, 10.001]))
        fields = {
            "method": draw(st.sampled_from(["CONNECT", "CONNECT", "GET"])),
            "url": draw(
                st.sampled_from(
                    [*["a.example:443", "https://a.example/x"] * 3, *ODD_TARGETS]
                )
            ),
            "status": draw(st.sampled_from([200, 200, 403])),
            "verdict": draw(st.sampled_from(["allow", "deny", "-"])),
            "error": draw(
                st.sampled_from(["-", "-", "ERR_DNS_FAIL", "ERR_CLIENT_GONE"])
            ),
            "squid": draw(
                st.sampled_from(
                    [
                        "NONE_NONE/HIER_NONE",
                        "NONE_NONE_ABORTED/-",
                        "TCP_TUNNEL/HIER_DIRECT",
                        "-",
                    ]
                )
            ),
            "connection": draw(st.sampled_from(["1", "2"])),
            "worker": draw(st.sampled_from(["1", "1", "2"])),
            "tunnel": draw(
                st.sampled_from(["-", "a.example%3A443", "a.example%3A443"])
            ),
            "user": draw(st.sampled_from(["-", "vm-7"])),
            "rule": draw(st.sampled_from(["-", "a", "b"])),
            "duration_ms": draw(st.integers(0, 9)),
            "request_bytes": 0,
        }
        lines.append(record_line(time=after_noon(at), **fields))
    return lines


@ANY
@given(tunnels(), st.integers(0, 14))
def test_tunnels_are_folded_as_a_plain_reading_does_also_across_files(
    tmp_path: Path, lines: list[bytes], border: int
) -> None:
    files = (
        written(tmp_path, lines[:border], "first.log"),
        written(tmp_path, lines[border:], "second.log"),
    )
    with open_table(TableSources(files), threads=1) as table:
        assert_same(table, read_lines(lines))


def test_what_is_allowed_and_did_not_fail_is_a_request_unless_it_opened_a_tunnel(
    tmp_path: Path,
) -> None:
    kinds = itertools.product(
        ("CONNECT", "GET", "-"),
        (200, 503),
        ("NONE_NONE/HIER_NONE", "NONE_NONE_ABORTED/-", "TCP_TUNNEL/HIER_DIRECT", "-"),
    )
    lines = [
        record_line(
            method=method,
            status=status,
            squid=squid,
            connection=str(number),
            request_bytes=0,
        )
        for number, (method, status, squid) in enumerate(kinds)
    ]
    with open_table(TableSources((written(tmp_path, lines),)), threads=1) as table:
        assert_same(table, read_lines(lines))


def test_a_denied_tunnel_counts_with_its_requests_and_a_failed_one_stands_for_its_request(
    tmp_path: Path,
) -> None:
    denied = {"verdict": "deny", "rule": "no"}
    undecided = {
        "verdict": "-",
        "rule": "-",
        "revision": "-",
        "status": 503,
        "error": "ERR_DNS_FAIL",
    }
    former = {
        "verdict": "-",
        "rule": "-",
        "revision": "-",
        "status": 403,
        "error": "403:ERR_SQUIDKEEPER_DENIED",
    }
    tunnels: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        (denied, [{**denied, "url": "https://a.example/x"}, denied]),
        (denied, [denied]),
        ({"error": "ERR_DNS_FAIL"}, [undecided]),
        ({**denied, "error": "403:ERR_SQUIDKEEPER_DENIED"}, [former]),
    ]
    lines = []
    for number, (connect, insides) in enumerate(tunnels):
        on = {"connection": str(number), "request_bytes": 0, "time": after_noon(number)}
        lines.append(
            record_line(
                **on,
                method="CONNECT",
                url="a.example:443",
                request_id=f"{number}",
                **connect,
            )
        )
        for place, inside in enumerate(insides):
            lines.append(
                record_line(
                    **{**on, "status": 403, "request_id": f"{number}.{place}", **inside}
                )
            )
    with open_table(TableSources((written(tmp_path, lines),)), threads=1) as table:
        rows = table.connection.execute(
            "SELECT request_id FROM requests ORDER BY time, position"
        ).fetchall()
        assert standing(
            table.database, ["0", "0.0", "1", "1.0", "2.0", "3.0", "4"]
        ) == {
            "0": "0.0",
            "2.0": "2",
            "3.0": "3",
        }
    assert [version for (version,) in rows] == ["0.0", "0.1", "1", "1.0", "2", "3"]


def test_rows_that_were_served_lack_the_columns_that_only_others_need(
    tmp_path: Path,
) -> None:
    served = {"verdict": "allow", "error": NONE, "url": "https://a.example/"}
    lines = [
        record_line(**served, status=200),
        record_line(**served, status=503),
        record_line(**{**served, "verdict": "deny", "status": 403}),
    ]
    odd = lines[0].replace(b'"v":1', b'"v": 1')  # Python decodes it
    some = Partial(frozenset({"url"}), "status >= 500")
    for text in (lines, [*lines, odd]):
        with open_table(
            TableSources((written(tmp_path, text),)),
            threads=1,
            columns=("status",),
            partial=some,
        ) as table:
            rows = table.connection.execute(
                "SELECT status, url FROM requests ORDER BY position LIMIT 3"
            ).fetchall()
        assert rows == [
            (200, None),
            (503, "https://a.example/"),
            (403, "https://a.example/"),
        ]


def test_tables_of_large_logs_are_on_disk_and_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, [record_line(status=number) for number in range(200, 300)])
    rows = []
    for most in (database.MEMORY_LOGS, 0):
        monkeypatch.setattr(database, "MEMORY_LOGS", most)
        with open_table(TableSources((file,)), threads=1) as table:
            assert table.database.on_disk == (most == 0)
            folder = table.database.spill
            assert folder.stat().st_mode & 0o777 == 0o700
            found = table.connection.execute("FROM requests ORDER BY position")
            rows.append(found.fetchall())
        assert not folder.exists()
    assert rows[0] == rows[1]
    assert len(rows[0]) == 100


def test_a_disk_without_room_is_told_and_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = record_line(url="https://a.example/@")
    lines = (line.replace(b"@", token_hex(100).encode()) for _ in range(130_000))
    file = written(tmp_path, lines)
    monkeypatch.setattr(database, "MEMORY_LOGS", 0)
    monkeypatch.setattr(database, "room", lambda _: 12 * 10**6)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = pytest.raises(UnreadableLog, match=r"of the free space of .*--since")
    with told, open_table(TableSources((file,)), threads=1):
        pass
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit
    monkeypatch.setattr(database, "room", lambda _: 0)
    with open_table(TableSources((file,)), threads=1) as table:
        assert not table.database.on_disk, "what fits into memory needs no disk"


# --- files ----------------------------------------------------------------------------

PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def zstd(folder: Path, content: bytes) -> bytes:
    """Compress as zstd; Python has none before 3.14."""
    import duckdb

    plain, packed = folder / "plain", folder / "packed"
    plain.write_bytes(content)
    csv = f"read_csv('{plain}', columns={{a: 'VARCHAR'}}, delim='\\x01', quote='', escape='', header=false)"
    options = "(FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\\x01', COMPRESSION zstd)"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM {csv}) TO '{packed}' {options}")
    return packed.read_bytes()


def usual_lines(count: int, **fields: Any) -> list[bytes]:
    return [
        record_line(time=after_noon(second), request_bytes=0, **fields)
        for second in range(count)
    ]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_log_is_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"access.log.1{suffix}"
    file.write_bytes(
        PACKED[suffix](b"".join(line + b"\n" for line in usual_lines(9)) + b"x\n")
    )
    with open_table(TableSources((file,)), threads=1) as table:
        assert len(records_in(table)) == 9
        assert table.skipped.first.startswith(f"{file}:10: not a squidkeeper record")
        assert not table.skipped.damaged


def test_a_zstd_log_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "access.log.1.zst"
    packed = zstd(
        tmp_path,
        b"".join(line + b"\n" for line in [*usual_lines(9), b"x", *usual_lines(1)]),
    )
    file.write_bytes(packed)
    with open_table(TableSources((file,)), threads=1) as table:
        assert len(records_in(table)) == 10
        assert table.skipped.first.startswith(f"{file}:10: ")
    with open_table(TableSources((file,)), threads=1, since=NOON) as table:
        assert table.skipped.first.startswith(f"{file}: not a squidkeeper record")
    for whole in (
        packed,
        packed + packed,
        packed + b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab",
    ):
        file.write_bytes(whole)
        with open_table(TableSources((file,)), threads=1) as table:
            assert table.skipped.damaged == []
    for cut in (1, 9, len(packed) // 2):
        file.write_bytes(packed[:-cut])
        with open_table(TableSources((file,)), threads=1) as table:
            assert table.skipped.damaged == [
                f"{file}: damaged or truncated: it ends within a frame"
            ]
    file.write_bytes(b"no zstd" + packed)
    with open_table(TableSources((file,)), threads=1) as table:
        assert (records_in(table), table.skipped.count) == ([], 0)
        assert table.skipped.damaged[0].startswith(
            f"{file}: damaged, or has bytes that are not UTF-8"
        )


@pytest.mark.system
def test_a_pipe_is_read(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "query",
        "SELECT count(*) AS n FROM records",
        "-",
    ]
    content = b"".join(line + b"\n" for line in usual_lines(3)) + b'{"half'
    ran = subprocess.run(command, input=content, capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"N\n3\n", b"")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_what_is_readable_of_a_damaged_file_is_used_and_the_damage_named(
    tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"access.log.1{suffix}"
    packed = PACKED[suffix](
        b"".join(
            line + b"\n" for line in usual_lines(2_000, user=os.urandom(500).hex())
        )
    )
    file.write_bytes(packed[: len(packed) - 40])
    with open_table(TableSources((file,)), threads=1) as table:
        assert len(table.skipped.damaged) == 1
        assert str(file) in table.skipped.damaged[0]
        assert (suffix == ".bz2") or 0 < len(records_in(table)) <= 2_000
        assert table.skipped.count == 0


@pytest.mark.parametrize("period", [{}, {"since": NOON}])
def test_a_gzip_with_a_wrong_checksum_is_named_and_used(
    tmp_path: Path, period: dict[str, Any]
) -> None:
    file = tmp_path / "access.log.1.gz"
    lines = [*usual_lines(2), b"no record", *usual_lines(1), b"no record"]
    packed = bytearray(gzip.compress(b"".join(line + b"\n" for line in lines)))
    packed[-8] ^= 1
    file.write_bytes(packed)
    with open_table(TableSources((file,)), threads=1, **period) as table:
        assert len(records_in(table)) == 3
        assert [
            other.startswith(f"{file}: damaged or truncated: ")
            for other in table.skipped.damaged
        ] == [True]
        assert table.skipped.count == 2
    file.rename(tmp_path / "access.log.2.gz")
    (tmp_path / "access.log").write_bytes(b"")
    with open_table(
        TableSources(log=tmp_path / "access.log"), threads=1, **period
    ) as table:
        assert (len(records_in(table)), len(table.skipped.damaged)) == (3, 1)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[pytest.mark.long] * (place > 3))
        for place in range(200)
    ],
)
def test_a_flipped_bit_of_a_gzip_is_always_named(tmp_path: Path, place: int) -> None:
    file = tmp_path / "access.log.1.gz"
    packed = bytearray(
        gzip.compress(
            b"".join(
                line + b"\n" for line in usual_lines(300, user=os.urandom(200).hex())
            )
        )
    )
    bit = random.Random(place).randrange(8 * 20, 8 * len(packed))  # behind the header
    packed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(packed)
    with open_table(TableSources((file,)), threads=1) as table:
        assert table.skipped.damaged, bit


def test_a_half_last_line_is_no_invalid_line_and_a_whole_one_without_its_newline_is_a_record(
    tmp_path: Path,
) -> None:
    file = tmp_path / "access.log"
    for end, records in ((b'{"v":1,', 2), (record_line(request_bytes=0), 3), (b"", 2)):
        file.write_bytes(b"\n".join([*usual_lines(2), end]))
        with open_table(TableSources((file,)), threads=1) as table:
            assert (len(records_in(table)), table.skipped.count) == (records, 0)


def test_of_a_period_the_rest_is_left_out_and_a_connect_ahead_of_it_is_still_folded(
    tmp_path: Path,
) -> None:
    of_tunnel = {
        "connection": "1",
        "tunnel": "a.example%3A443",
        "request_bytes": 0,
        "verdict": "deny",
    }
    lines = [
        record_line(
            **of_tunnel,
            time=after_noon(1),
            method="CONNECT",
            url="a.example:443",
            duration_ms=30,
        ),
        record_line(
            **of_tunnel,
            time=after_noon(3),
            url="https://a.example/",
            status=403,
            duration_ms=4,
        ),
        record_line(
            time=after_noon(3), client="not in [the] form "[:5], request_bytes=0
        ),
        b" " + record_line(time=after_noon(20), request_bytes=0),
        b"no record",
    ]
    since, until = NOON + timedelta(seconds=2), NOON + timedelta(seconds=20)
    with open_table(
        TableSources((written(tmp_path, lines),)), threads=1, since=since, until=until
    ) as table:
        durations = table.connection.execute(
            "SELECT duration_ms FROM requests ORDER BY ALL"
        ).fetchall()
        assert durations == [(3,), (4,)]
        assert len(records_in(table)) == 2
        assert ":5: " in table.skipped.first


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-25T14:00:10.000+02:00",
        "2026-11-25 12:00:10.000Z",
        "2026-W48-3T12:00:10.000Z",
        "20261125T120010.000000Z",
    ],
)
def test_a_time_in_another_form_or_zone_is_in_its_period(
    tmp_path: Path, time: str
) -> None:
    sources = TableSources(
        (written(tmp_path, [record_line(time=time, request_bytes=0)]),)
    )
    since, until = NOON + timedelta(seconds=10), NOON + timedelta(seconds=11)
    for period, there in (((since, until), 1), ((until, None), 0), ((None, since), 0)):
        with open_table(sources, *period) as table:
            assert len(records_in(table)) == there, period


@pytest.mark.parametrize(
    "strange", [b"", b"\xff"]
)  # the second has Python read the file
def test_a_byte_order_mark_is_ignored_in_both_ways_of_reading(
    tmp_path: Path, strange: bytes
) -> None:
    file = tmp_path / "access.log"
    first, second = usual_lines(2)
    file.write_bytes(b"\xef\xbb\xbf" + first + b"\n" + strange + b"\n" + second + b"\n")
    with open_table(TableSources((file,)), threads=1) as table:
        assert (len(records_in(table)), table.skipped.count) == (2, 1)


@pytest.mark.parametrize(
    "length", [LINE_LIMIT, LINE_LIMIT + 1, LINE_LIMIT + 2, 5 * LINE_LIMIT]
)
def test_a_line_that_is_far_too_long_is_no_record(tmp_path: Path, length: int) -> None:
    short = len(record_line(request_bytes=0, user=""))
    lines = [
        record_line(request_bytes=0, user="x" * (length - short)),
        record_line(request_bytes=0),
    ]
    with open_table(TableSources((written(tmp_path, lines),)), threads=1) as table:
        too_long = length > LINE_LIMIT + 1
        assert (len(records_in(table)), table.skipped.count) == (2 - too_long, too_long)


def test_a_log_that_is_missing_is_named(tmp_path: Path) -> None:
    for sources in (
        TableSources((tmp_path / "none.log",)),
        TableSources(log=tmp_path / "access.log"),
    ):
        with (
            pytest.raises(UnreadableLog, match=r"no such file"),
            open_table(sources, threads=1),
        ):
            pass


def test_the_spill_folder_is_private_and_goes_away_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    file = written(tmp_path, usual_lines(1))

    def folders() -> list[int]:
        return [file.stat().st_mode & 0o777 for file in (tmp_path / "spill").iterdir()]

    with open_table(TableSources((file,)), threads=1):
        assert folders() == [0o700]
    assert folders() == []
    with pytest.raises(ZeroDivisionError), open_table(TableSources((file,)), threads=1):
        raise ZeroDivisionError
    assert folders() == []


@pytest.mark.parametrize(("free_megabytes", "fits"), [(64, False), (2048, True)])
def test_what_spills_takes_half_of_the_free_space_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_megabytes: int, fits: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=free_megabytes * 1024**2)
    monkeypatch.setattr(
        "squidkeeper.record.table.database.shutil.disk_usage", lambda _: usage
    )
    large = "SELECT max(n) FROM (SELECT n FROM (SELECT hash(range) AS n FROM range(8_000_000)) ORDER BY n OFFSET 1)"
    told = (
        nullcontext()
        if fits
        else pytest.raises(UnreadableLog, match="half of the free space")
    )
    with told, open_database(threads=1, memory_limit="40MB") as database:
        database.connection.execute(f"CREATE TABLE sorted AS {large}")


def test_a_spill_folder_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it's [a] *").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "it's [a] *"))
    # the last one is decoded in Python
    lines = [
        *usual_lines(2),
        b" " + record_line(request_bytes=0),
    ]
    file = tmp_path / "access.log.1.xz"  # Python reads it, in pieces
    file.write_bytes(lzma.compress(b"".join(line + b"\n" for line in lines)))
    with open_table(TableSources((file,)), threads=1) as table:
        assert (len(records_in(table)), table.skipped.count) == (3, 0)


@pytest.mark.system
def test_helpers_and_exporter_do_not_import_duckdb() -> None:
    modules = "squidkeeper.serving.helpers.acl, squidkeeper.services.exporter.process, squidkeeper.cli.log"
    code = f"import sys, {modules}; sys.exit('duckdb' in sys.modules or '_duckdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_of_a_record_is_a_column_in_its_order() -> None:
    names = [column.name for column in COLUMNS]
    assert names == [
        "time",
        *(name for name in Record.__struct_fields__ if name != "time"),
        "host",
        "raw",
    ]


def test_the_time_is_utc_to_the_millisecond(tmp_path: Path) -> None:
    file = written(
        tmp_path, [record_line(time="2026-11-25T13:00:00.1239+01:00", request_bytes=0)]
    )
    with open_table(TableSources((file,)), threads=1) as table:
        (time,) = table.connection.execute("SELECT time FROM records").fetchall()[0]
    assert time.replace(tzinfo=UTC) == datetime(
        2026, 11, 25, 12, 0, 0, 123_000, tzinfo=UTC
    )


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_lines_as_squid_writes_them_are_loaded_the_fast_way(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"".join(line + b"\n" for line in usual_lines(9))
    packed = {
        "none": content,
        "gzip": gzip.compress(content),
        "zstd": zstd(tmp_path, content),
    }
    file = tmp_path / "access.log"
    file.write_bytes(packed[compression])
    monkeypatch.setattr(LineTable, "_insertion", None)  # the slow way
    with open_database(threads=1) as database:
        lines = LineTable(database)
        assert lines.load(file, compression) == Loaded(0, 9)
        found = database.connection.execute(
            f"SELECT count(time), count(raw) FROM ({lines.relation()})"
        ).fetchall()
    assert found == [(9, 0)]


@pytest.mark.parametrize(
    "fields", range(sum(not field.optional for field in FIELDS), len(FIELDS) + 1)
)
def test_lines_of_each_earlier_release_need_no_decoder(
    tmp_path: Path, fields: int
) -> None:
    known = [field.name for field in FIELDS[:fields]]
    line = json.dumps(
        {name: USUAL[name] for name in known}, separators=(",", ":")
    ).encode()
    with open_database(threads=1) as database:
        lines = LineTable(
            database, [column for column in COLUMNS if column.name in {*known, "host"}]
        )
        assert list(lines.deviating(lines.load(written(tmp_path, [line])))) == []
        assert database.connection.execute(
            f"SELECT count(*) FROM ({lines.relation()})"
        ).fetchall() == [(1,)]
