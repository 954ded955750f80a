"""The columns of `records` and `requests`: made from the fields of `Record`, in their order.

A field that is added to `Record` is a column without a change here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec

from squidkeeper.record.log.record import Record


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and its SQL type. `optional` fields lack in lines of earlier releases."""

    name: str
    sql_type: str
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the field is a number in a line."""
        return self.sql_type == _NUMBER


_NUMBER: Final = "BIGINT"
_TEXT: Final = "VARCHAR"
TIME: Final = "time"
HOST: Final = "host"
RAW: Final = "raw"
POSITION: Final = "position"
_FIELDS: Final = msgspec.structs.fields(Record)
FIELDS: Final = tuple(
    Column(
        field.name,
        "TIMESTAMP" if field.name == TIME else _NUMBER if field.type is int else _TEXT,
        optional=not field.required,
    )
    for field in _FIELDS
)
_TIME_FIRST: Final = sorted(FIELDS, key=lambda column: column.name != TIME)
COLUMNS: Final = (
    *_TIME_FIRST,
    Column(HOST, _TEXT),  # in its one spelling: lower case, without port
    Column(RAW, "BLOB"),  # the line as logged, where the columns cannot reproduce it
)
NAMES: Final = tuple(column.name for column in COLUMNS)
KIND: Final = (TIME, "method", "status", "verdict", "error", "squid")  # what tells tunnels and requests apart
FOLDED: Final = (*KIND, "client", "url", "connection", "worker", "gateway")  # what folding needs
JUDGED: Final = (  # what the policy judges a record by, beside its time
    *("client", "user", "method", "url", "status", "duration_ms", "verdict", "rule", "revision", "credential"),
    *("fetched", "sni", "tunnel", "error", "squid", "hidden"),
)


def selected(names: Collection[str] | None) -> tuple[Column, ...]:
    """Return the columns with these names, in their order; all for None."""
    if names is None:
        return COLUMNS
    return tuple(column for column in COLUMNS if column.name in names)
