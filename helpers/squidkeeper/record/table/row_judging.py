"""Rows judged by policies: each distinct question once, and its answer joined back.

The judge is asked first what is the same for all rows of the same clients of a policy,
a method, a host and a tunnel. That settles most of them. The others are judged by URL,
and by time where a rule lapses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec

from squidkeeper.policy.url import LONG_URL, UNUSUAL_CHARACTER
from squidkeeper.record.log.host_judging import SameFor
from squidkeeper.record.log.record import NONE, Record, format_time
from squidkeeper.record.table.database import quoted

if TYPE_CHECKING:
    import duckdb

    from squidkeeper.policy.language.paths import Beginning

AnswerT = TypeVar("AnswerT", bound=Hashable)
AnswerT_co = TypeVar("AnswerT_co", bound=Hashable, covariant=True)

_BATCH: Final = 5000
# A path that has one reading, and a usual query; fewer than there are. In both, no
# escapes.
_PLAIN: Final = r"((/[A-Za-z0-9_~-]+([.][A-Za-z0-9_~-]+)*)+/?|/)([?][A-Za-z0-9._~!$&()*+,;=:@/?-]*)?"
_BEGINNINGS_AT_MOST: Final = 64  # of paths that are compared with each URL
_HOST_ANSWERS: Final = (
    "number BIGINT, silent BOOLEAN, every_url BOOLEAN, "
    "usual_urls BOOLEAN, timed BOOLEAN, begins BOOLEAN"
)
_NOTHING: Final = {
    field.name: 0 if field.type is int else NONE
    for field in msgspec.structs.fields(Record)
}
_ORIGIN: Final = "CASE WHEN contains(url, '://') THEN regexp_extract(url, '(?s)^.*?://[^/?]*') ELSE url END"
# As `is_unusual`, or wider: an escape may hide any character. Such a URL is judged.
_UNUSUAL: Final = f"(length(a.url) >= {LONG_URL} OR regexp_matches(a.url, '{UNUSUAL_CHARACTER.pattern}|%'))"
AT: Final = "strftime(a.{name}, '%Y-%m-%dT%H:%M:%S.%gZ')"  # a time as records have it


class AskedOfHost(Protocol[AnswerT_co]):
    """What is asked about all rows of one asker, method, host and tunnel."""

    @property
    def same_for(self) -> SameFor:
        """For which URLs the answer is the same."""

    @property
    def silent(self) -> bool:
        """Whether the answer for usual URLs is None; such rows are left out."""

    @property
    def depends_on_time(self) -> bool:
        """Whether the time of a row matters."""

    @property
    def beginnings(self) -> frozenset[Beginning] | None:
        """What decides about a usual URL whose path has one reading; None where more of
        the URL does.
        """

    def judge(self, record: Record) -> AnswerT_co:
        """Answer for one of these rows."""


class Judge(Protocol[AnswerT_co]):
    """Judges records: first what is the same for many."""

    def askers(self, record: Record) -> tuple[str, ...]:
        """Return what the answers depend on of client and user: few values for many of
        them.
        """

    def question(self, record: Record) -> AskedOfHost[AnswerT_co]:
        """Return what to ask about all records of the same asker, method, host and
        tunnel.
        """


@dataclass(frozen=True, slots=True)
class Decisive:
    """The columns that decide: which clients of a policy ask, what is asked about all
    URLs of a host, and the rest.

    `record` are those that a record is made of. `url` decide beside the URL. `policies`
    tell which policies are asked. `time` are fields of a record, with their SQL, where
    the time matters. `special` is a condition of rows of which each URL is judged.
    """

    asker: tuple[str, ...]
    host: tuple[str, ...]
    record: tuple[str, ...]
    url: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    time: Mapping[str, str] = field(
        default_factory=lambda: {"time": AT.format(name="time")}
    )
    special: str = "false"


@dataclass(frozen=True, slots=True)
class Judgements(Generic[AnswerT]):
    """The answers, by their numbers, and how many rows have each."""

    answers: list[AnswerT]
    counts: Counter[AnswerT]


def judge_rows(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    rows: str,
    judge: Judge[AnswerT],
    decisive: Decisive,
) -> Judgements[AnswerT]:
    """Judge the rows of a table or view; leave the view NAME_judged: the rows with the
    number of their answer.

    Rows whose answer is None are left out of it. The tables NAME_… hold how the answers
    were found.
    """
    judging = _Judging(connection, name, judge, decisive)
    judging.add_askers(rows)
    judging.add_hosts()
    return judging.judge_urls()


@dataclass(frozen=True, slots=True)
class _Judging(Generic[AnswerT]):
    _connection: duckdb.DuckDBPyConnection
    _name: str
    _judge: Judge[AnswerT]
    _decisive: Decisive

    @property
    def _first(self) -> str:
        columns = ", ".join(
            f"{column} := {column}"
            for column in dict.fromkeys(("time", *self._decisive.record))
        )
        return f"first(struct_pack({columns})) AS one"

    def add_askers(self, rows: str) -> None:
        """Assign a number to each combination of clients of the policies."""
        name, key = self._name, self._decisive.asker
        self._run(
            numbered(
                f"{name}_askers",
                key,
                f"SELECT {_names(key)}, {self._first} FROM {rows}",
                grouped=True,
            )
        )
        places: dict[tuple[str, ...], int] = {}
        askers = [
            (
                number,
                places.setdefault(
                    self._judge.askers(record_from(row.items())), len(places)
                ),
            )
            for number, row in self._each(
                f"{name}_askers", "number, one", self._in_order(key)
            )
        ]
        self._insert(f"{name}_asker_numbers", "number BIGINT, asker BIGINT", askers)
        self._run(
            f"CREATE OR REPLACE VIEW {name}_asked AS SELECT d.*, {_ORIGIN} AS origin, n.asker FROM {rows} d"
            f" JOIN {name}_askers a ON {same('d', 'a', key)} JOIN {name}_asker_numbers n USING (number)"
        )

    def add_hosts(self) -> None:
        """Ask what is the same for all URLs of a host."""
        name, key = self._name, self._decisive.host
        hosts: list[tuple[object, ...]] = []
        found: set[Beginning] = set()
        self._run(
            numbered(
                f"{name}_hosts",
                key,
                f"SELECT {_names(key)}, {self._first} FROM {name}_asked",
                grouped=True,
            )
        )
        for number, row in self._each(
            f"{name}_hosts", "number, one", self._in_order(key)
        ):
            asked = self._judge.question(record_from(row.items()))
            every, usual = (
                asked.same_for is same_for
                for same_for in (SameFor.EVERY_URL, SameFor.USUAL_URLS)
            )
            begins = None if every or usual else asked.beginnings
            hosts.append(
                (
                    number,
                    asked.silent,
                    every,
                    usual,
                    asked.depends_on_time,
                    begins is not None,
                )
            )
            found |= begins or set()
        self._insert(f"{name}_host_answers", _HOST_ANSWERS, hosts)
        joined = f"SELECT * FROM {name}_hosts JOIN {name}_host_answers USING (number)"
        self._run(f"CREATE OR REPLACE TABLE {name}_answered AS {joined}")
        # Two queries: few URLs of all hosts, and all URLs of few hosts.
        opened = self._open(found)
        rows = f"{opened} WHERE h.silent AND {self._unusual()}"
        if not all(silent for _, silent, *_ in hosts):
            rows += f" UNION ALL {opened} WHERE NOT h.silent"
        self._run(f"CREATE OR REPLACE VIEW {name}_open AS {rows}")

    def judge_urls(self) -> Judgements[AnswerT]:
        """Judge what is left, each question once."""
        name, decisive = self._name, self._decisive
        key = (
            "host_number",
            *(f"q_{column}" for column in ("url", *decisive.url, *decisive.time)),
        )
        grouped = f"SELECT {_names(key)}, count(*) AS rows, first(url) AS one_url FROM {name}_open"
        self._run(numbered(f"{name}_questions", key, grouped, grouped=True))
        places: dict[AnswerT, int] = {}
        counts: Counter[AnswerT] = Counter()
        numbers = []
        for number, count, answer in self._answers(key):
            counts[answer] += count
            if answer is not None:
                numbers.append((number, places.setdefault(answer, len(places))))
        self._insert(f"{name}_answers", "number BIGINT, answer INTEGER", numbers)
        self._run(
            f"CREATE OR REPLACE VIEW {name}_judged AS SELECT o.*, answer FROM {name}_open o"
            f" JOIN {name}_questions q ON {same('o', 'q', key)} JOIN {name}_answers USING (number)"
        )
        return Judgements(list(places), counts)

    def _answers(self, key: tuple[str, ...]) -> Iterator[tuple[int, int, AnswerT]]:
        name, texts, times = self._name, self._decisive.url, self._decisive.time
        asked = self._each(
            f"{name}_questions",
            f"host_number, number, rows, one_url, {_names(key[2:])}",
        )
        firsts = self._each(
            f"{name}_hosts WHERE number IN (SELECT host_number FROM {name}_questions)",
            "number, one",
        )
        for (_, row), (_, rows) in zip(
            firsts, groupby(asked, itemgetter(0)), strict=True
        ):
            first = record_from(row.items())
            question = self._judge.question(first)
            for _, number, count, url, *values in rows:
                changes = {
                    column: value or NONE
                    for column, value in zip(texts, values, strict=False)
                }
                given = zip(times, values[len(texts) :], strict=True)
                changes |= {
                    column: value for column, value in given if value is not None
                }
                yield (
                    number,
                    count,
                    question.judge(
                        msgspec.structs.replace(first, url=url or first.url, **changes)
                    ),
                )

    def _open(self, begins: Collection[Beginning]) -> str:
        decisive = self._decisive
        values = [
            f"CASE WHEN h.every_url THEN NULL WHEN h.usual_urls THEN CASE WHEN {self._unusual()} THEN a.url END"
            f" ELSE {_decisive_part(begins, decisive.special)} END AS q_url",
            *(
                f"CASE WHEN NOT h.every_url THEN a.{column} END AS q_{column}"
                for column in decisive.url
            ),
            *(
                f"CASE WHEN h.timed THEN {value} END AS q_{column}"
                for column, value in decisive.time.items()
            ),
        ]
        return (
            f"SELECT a.*, h.number AS host_number, {', '.join(values)} FROM {self._name}_asked a"
            f" JOIN {self._name}_answered h ON {same('a', 'h', decisive.host)}"
        )

    def _unusual(self) -> str:
        return f"({self._decisive.special} OR {_UNUSUAL})"

    def _in_order(self, key: tuple[str, ...]) -> str:
        """Sort by policy, as few of them are in memory at a time."""
        return (
            _names(column for column in self._decisive.policies if column in key)
            or "number"
        )

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)

    def _each(self, table: str, columns: str, order: str = "1") -> Iterator[Any]:
        return each(self._connection, table, columns, order)

    def _insert(self, table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
        insert(self._connection, table, columns, rows)


def each(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: str = "*",
    order: str = "1",
) -> Iterator[Any]:
    """Yield the rows of a table of our own, read while other statements run."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM {table} ORDER BY {order}")
        while rows := cursor.fetchmany(_BATCH):
            yield from rows


def insert(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: str,
    rows: list[tuple[Any, ...]],
) -> None:
    """Create a table and fill it, a column at a time: rows one by one take a tenth of a
    millisecond each.
    """
    connection.execute(f"CREATE OR REPLACE TABLE {table} ({columns})")
    if rows:
        kinds = [f"unnest(?::{column.split()[1]}[])" for column in columns.split(", ")]
        connection.execute(
            f"INSERT INTO {table} SELECT {', '.join(kinds)}",
            [list(values) for values in zip(*rows, strict=True)],
        )


def numbered(
    table: str, key: Iterable[str], query: str, *, grouped: bool = False
) -> str:
    """Write a statement that creates a table of the distinct rows of a query, with a
    number.
    """
    group = f" GROUP BY {_names(key)}" if grouped else ""
    return f"CREATE OR REPLACE TABLE {table} AS SELECT row_number() OVER () AS number, * FROM ({query}{group})"


def same(one: str, other: str, names: Iterable[str]) -> str:
    """Write the condition that two rows have the same values; NULL is one."""
    return " AND ".join(
        f"{one}.{name} IS NOT DISTINCT FROM {other}.{name}" for name in names
    )


def record_from(fields: Iterable[tuple[str, Any]]) -> Record:
    """Make a record of some of its fields; NULL is none, and what is no field is left
    out.
    """
    values = {
        name: _text(value)
        for name, value in fields
        if value is not None and name in _NOTHING
    }
    return Record(**{**_NOTHING, **values})


def _text(value: Any) -> Any:
    return (
        format_time(value.replace(tzinfo=UTC)) if isinstance(value, datetime) else value
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _decisive_part(begins: Collection[Beginning], special: str) -> str:
    """Write what decides of a URL: which beginnings its path has, where that is all;
    else the URL.
    """
    if not begins or len(begins) > _BEGINNINGS_AT_MOST:
        return "a.url"
    rest = "a.url[length(a.origin) + 1:]"
    tests = (
        f"{rest} = {quoted(text)} OR starts_with({rest}, {quoted(f'{text}?')})"
        if whole
        else f"starts_with({rest}, {quoted(text)})"
        for text, whole in begins
    )
    has = " || ".join(f"CASE WHEN {test} THEN '1' ELSE '0' END" for test in tests)
    plain = f"length(a.url) < {LONG_URL} AND regexp_full_match({rest}, '{_PLAIN}')"
    return f"CASE WHEN h.begins AND NOT {special} AND {plain} THEN {has} ELSE a.url END"
