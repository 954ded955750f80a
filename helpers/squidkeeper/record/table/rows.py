"""Rows of a query as text: a table, CSV, or JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import chain, count
from math import isfinite
from typing import Final

from squidkeeper.record.log.listing import printable_field
from squidkeeper.record.log.record import NONE, format_time

Row = Sequence[object]
ROWS_SHOWN: Final = 1_000  # of a table; the other forms have all
# how a cell begins that a spreadsheet may run
_FORMULAS: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
)
_WIDEST: Final = 60  # of a column that is not the last
_INFINITE: Final = {  # as DuckDB gives them to Python
    **dict.fromkeys(
        (datetime.max, datetime.max.replace(tzinfo=UTC), date.max), "infinity"
    ),
    **dict.fromkeys(
        (datetime.min, datetime.min.replace(tzinfo=UTC), date.min), "-infinity"
    ),
}


class QueryFormat(StrEnum):
    """The forms of a result."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def as_table(names: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """Write aligned columns under a header; numbers to the right.

    The rows are few: `ROWS_SHOWN`.
    """
    kept = list(rows)
    texts = ([name.upper() for name in names], *(map(_shown, row) for row in kept))
    cells = [[printable_field(text) for text in row] for row in texts]
    widths = [
        min(_WIDEST, max(map(len, column))) for column in zip(*cells, strict=True)
    ]
    right = [any(_is_number(row[place]) for row in kept) for place in range(len(names))]
    for row in cells:
        aligned = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(aligned).rstrip() + "\n"


def as_csv(names: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """Write RFC 4180, except that a line ends in a newline; NULL is empty, and no text
    is a formula.
    """
    for row in chain([names], rows):
        yield _csv_line([_csv_cell(value) for value in row])


def as_json(names: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """Write an object a line, in ASCII; a name that is there already gets a number, as
    in Parquet.
    """
    keys = _distinct(names)
    for row in rows:
        yield json.dumps(dict(zip(keys, map(_plain, row), strict=True))) + "\n"


def _distinct(names: Sequence[str]) -> list[str]:
    keys: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(1))
        keys.append(
            name
            if name not in keys
            else next(key for key in numbered if key not in (*keys, *names))
        )
    return keys


WRITERS: Final[
    dict[QueryFormat, Callable[[Sequence[str], Iterable[Row]], Iterator[str]]]
] = {
    QueryFormat.TABLE: as_table,
    QueryFormat.CSV: as_csv,
    QueryFormat.JSON: as_json,
}


def _csv_line(row: Row) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row)
    return line.getvalue()


def _csv_cell(value: object) -> str:
    text = "" if value is None else _shown(value)
    is_formula = (
        isinstance(value, str | bytes) and text.startswith(_FORMULAS) and text != NONE
    )
    return f"'{text}" if is_formula else text


def _shown(value: object) -> str:
    plain = NONE if value is None else _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _plain(value: object) -> object:
    if isinstance(value, date):
        return _INFINITE.get(value) or _plain_date(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        # JSON has no NaN and no infinity
        return value if isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def _plain_date(value: date) -> str:
    return (
        format_time(value.replace(tzinfo=value.tzinfo or UTC))
        if isinstance(value, datetime)
        else value.isoformat()
    )
