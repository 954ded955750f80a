"""What `squidkeeper why` reads of the access log, by the table: records that can belong
to a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.requests import WAIT
from squidkeeper.record.table.columns import POSITION, TIME, time_literal
from squidkeeper.record.table.database import yield_to_squid
from squidkeeper.record.table.lines import record_of
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table, standing
from squidkeeper.record.why.causes import SERVER_ERROR

if TYPE_CHECKING:
    from squidkeeper.record.log.record import Record
    from squidkeeper.record.table.lines import Skipped
    from squidkeeper.record.table.table import Table

NEWEST: Final = 50_000  # records that are judged; older ones are left out
_COLUMNS: Final = (  # that a cause, its sentence and the policy's decision need
    *(
        TIME,
        "client",
        "client_port",
        "user",
        "method",
        "url",
        "status",
        "verdict",
        "rule",
        "revision",
        "credential",
    ),
    *(
        "fetched",
        "sni",
        "tunnel",
        "upstream",
        "error",
        "squid",
        "connection",
        "worker",
        "tls_error",
        "cut",
        "hidden",
    ),
    *("request_id", "found", "gateway", "page", "error_detail"),
)
# What `judge` of why/causes.py takes for a failure, and the requests that are asked
# about by their IDs.
_MAY_HAVE_FAILED: Final = (
    f"verdict = 'deny' OR error IS NOT NULL OR status >= "
    f"{SERVER_ERROR} OR list_contains(?, request_id)"
)


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """The requests that may have failed, oldest first, and what could not be read.

    `requests` and `gateways`: how many requests there are, and how many gateways served
    them. `standing`: the IDs of requests that stand for records that were asked about.
    """

    records: tuple[Record, ...]
    requests: int
    gateways: int
    skipped: Skipped
    standing: Mapping[str, str]

    @property
    def is_cut(self) -> bool:
        """Whether older records were left out."""
        return len(self.records) == NEWEST


def read_records(
    sources: TableSources,
    since: datetime | None,
    until: datetime | None,
    ids: Iterable[str],
) -> ReadRecords:
    """Read a period, and the CONNECTs shortly before it; `UnreadableLog` if a source
    cannot be read.
    """
    yield_to_squid()
    early = since and since - WAIT
    with open_table(sources, early, until, columns=_COLUMNS) as table:
        stand = standing(table.connection, ids)
        records = tuple(reversed(_newest(table, [*ids, *stand.values()])))
        return ReadRecords(records, *_count(table, since), table.skipped, stand)


def _newest(table: Table, ids: list[str]) -> list[Record]:
    found = f"SELECT {', '.join(_COLUMNS)} FROM requests WHERE {_MAY_HAVE_FAILED}"  # noqa: S608 - our own names
    newest = f"{found} ORDER BY {TIME} DESC, {POSITION} DESC LIMIT {NEWEST}"
    return [
        record_of(row, _COLUMNS)
        for row in table.connection.execute(newest, [ids]).fetchall()
    ]


def _count(table: Table, since: datetime | None) -> tuple[int, int]:
    period = f" WHERE {TIME} >= {time_literal(since)}" if since else ""
    what = "count(*), count(DISTINCT gateway)"
    counted = table.connection.execute(f"SELECT {what} FROM requests{period}")  # noqa: S608 - our own names
    requests, gateways = counted.fetchall()[0]
    return int(requests), int(gateways)
