"""What `squidkeeper why` reads of the access log, by the table: records that can belong
to a failure, the newest first, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.requests import WAIT
from squidkeeper.record.table.columns import POSITION, TIME, Partial, time_literal
from squidkeeper.record.table.database import quoted, yield_to_squid
from squidkeeper.record.table.lines import record_of
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table, standing
from squidkeeper.record.why.causes import SERVER_ERROR

if TYPE_CHECKING:
    from squidkeeper.record.log.record import Record
    from squidkeeper.record.table.lines import Skipped
    from squidkeeper.record.table.table import Table
    from squidkeeper.record.why.search import FailureGroup, Search

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
    *("request_id", "found", "gateway", "page", "error_detail", "session"),
)
_FETCHED: Final = 1_000  # rows at once


@dataclass(frozen=True, slots=True)
class ReadFailures:
    """The failures that were found, in groups, and what was not read.

    `requests` and `gateways`: how many requests there are, and how many gateways served
    them. `older`: how many may have failed too, and were not judged.
    """

    groups: list[FailureGroup]
    requests: int
    gateways: int
    older: int
    skipped: Skipped


def read_failures(
    sources: TableSources, search: Search, until: datetime | None, shown: int
) -> ReadFailures:
    """Read a period, and the CONNECTs shortly before it; `UnreadableLog` if a source
    cannot be read.

    Only the records of the newest `shown` groups are kept.
    """
    yield_to_squid()
    since, ids = search.since, search.question.ids
    early = since and since - WAIT
    partial = Partial(frozenset(_COLUMNS), _may_have_failed(ids))
    with open_table(
        sources, early, until, columns=(TIME, "gateway"), partial=partial
    ) as table:
        search.ask_for(standing(table.database, ids))
        chosen = f"FROM requests WHERE {_may_have_failed(search.question.ids)}"
        ((found,),) = table.connection.execute(f"SELECT count(*) {chosen}").fetchall()
        groups = search.groups(_newest(table, chosen), shown)
        older = max(0, found - NEWEST)
        return ReadFailures(groups, *_count(table, since), older, table.skipped)


def _may_have_failed(ids: Iterable[str]) -> str:
    """Write what `judge` of why/causes.py takes for a failure, and the requests that
    are asked about by their IDs.
    """
    asked = "".join(f" OR request_id = {quoted(one)}" for one in sorted(ids))
    return f"(verdict = 'deny' OR error IS NOT NULL OR status >= {SERVER_ERROR}{asked})"


def _newest(table: Table, chosen: str) -> Iterator[Record]:
    newest = f"ORDER BY {TIME} DESC, {POSITION} DESC LIMIT {NEWEST}"
    found = table.connection.execute(f"SELECT {', '.join(_COLUMNS)} {chosen} {newest}")
    while rows := found.fetchmany(_FETCHED):
        yield from (record_of(row, _COLUMNS) for row in rows)


def _count(table: Table, since: datetime | None) -> tuple[int, int]:
    period = f" WHERE {TIME} >= {time_literal(since)}" if since else ""
    what = "count(*), count(DISTINCT gateway)"
    counted = table.connection.execute(f"SELECT {what} FROM requests{period}")  # noqa: S608 - our own names
    requests, gateways = counted.fetchall()[0]
    return int(requests), int(gateways)
