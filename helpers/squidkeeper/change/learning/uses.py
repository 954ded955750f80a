"""What a draft is learned from: what clients used, or asked for while the policy
observed; which presets cover it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.language.hosts import HostForm
from squidkeeper.policy.policy_store.loading import load_preset
from squidkeeper.policy.presets import preset_names
from squidkeeper.policy.protocol.request import CONNECT, request_to
from squidkeeper.policy.url import is_private, parse_address
from squidkeeper.record.log.record import NONE
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.record.table.columns import time_literal
from squidkeeper.record.table.questions import COLUMNS as OF_QUESTIONS
from squidkeeper.record.table.questions import QuestionTable, in_utc

if TYPE_CHECKING:
    import duckdb

COLUMNS: Final = (*OF_QUESTIONS, "bytes", "upstream")
_BATCH: Final = 5000
_NEW: Final = timedelta(days=1)
_NEWNESS_NEEDS: Final = 2 * _NEW  # a shorter record does not tell which hosts are new
_DENIED_BY: Final = "CASE WHEN starts_with(observed, 'deny:') AND observed <> 'deny:default' THEN observed[6:] END"
# used; or allowed because the default observes; or what a rule that observes would
# allow
_WANTED: Final = (
    "(used OR coalesce(verdict = 'allow' AND observed = 'deny:default', false)"
    " OR coalesce(starts_with(observed, 'allow:'), false))"
)
# its own server, no parent
_REACHED: Final = "coalesce(contains(squid, '/HIER_DIRECT'), false) AND fetched IS NULL"
_IS_WEBSOCKET: Final = (
    "coalesce(starts_with(squid, 'TCP_TUNNEL') AND method <> 'CONNECT', false)"
)
_FIRST_USES: Final = f"""
    CREATE OR REPLACE TABLE learned_hosts AS SELECT host, min(time) AS first FROM asked WHERE {_WANTED} GROUP BY host
"""
_UPSTREAMS: Final = f"SELECT DISTINCT upstream FROM asked WHERE {{in_period}} AND {_REACHED} AND upstream IS NOT NULL"
_USES: Final = f"""
    SELECT client, coalesce(user, '{NONE}') AS user, coalesce(session, '{NONE}') AS session, a.host, method,
        CASE WHEN a.host IN (FROM learned_with_query) THEN url ELSE split_part(url, '?', 1) END AS base,
        count(*), min(time), max(time), list(DISTINCT time::DATE), sum(request_bytes)::BIGINT, sum(bytes)::BIGINT,
        {_IS_WEBSOCKET} AS websocket, bool_or({_REACHED} AND coalesce(upstream IN (FROM learned_private), false)),
        bool_or({{new}}), coalesce({_DENIED_BY}, '') AS denied_by
    FROM asked a JOIN learned_hosts f ON a.host = f.host
    WHERE {{in_period}} AND client IS NOT NULL
    GROUP BY ALL ORDER BY client, user, session, a.host, method, base, websocket, denied_by
"""


@dataclass(frozen=True, slots=True)
class Use:
    """What one client did with one method and URL, as the access log has them; `-` for
    none.

    The URL is without its query, except where a preset needs it. `host` is the URL's in
    its one spelling. `uploaded` and `downloaded` are bytes. `private` is whether the
    server had a private address, `new` whether the host was first used within the last
    day, `denied_by` names the rule that observes and would have denied it.
    """

    client: str
    user: str
    host: str
    method: str
    url: str
    count: int
    first: datetime
    last: datetime
    days: frozenset[date] = frozenset()
    uploaded: int = 0
    downloaded: int = 0
    websocket: bool = False
    private: bool = False
    new: bool = False
    denied_by: str = ""
    session: str = NONE


class UseTable:
    """The uses among the rows of the view `requests`, which has `COLUMNS`, in a period.

    All rows tell which hosts are new, also those before the period.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        since: datetime | None,
        until: datetime | None,
        sessions: RecordedSessions = NO_SESSIONS,
    ) -> None:
        self._connection = connection
        tests = [_WANTED, *([f"time >= {time_literal(since)}"] if since else [])]
        tests += [f"time < {time_literal(until)}"] if until else []
        self._in_period = " AND ".join(tests)
        self.set_apart = QuestionTable(connection, sessions=sessions).set_apart
        first, last = self._one("SELECT min(time), max(time) FROM requests")
        self.span = last - first if first and last else timedelta()
        self._new_from = last - _NEW if self.tells_new else None

    @property
    def tells_new(self) -> bool:
        """Whether the record is long enough to tell which hosts are new."""
        return self.span >= _NEWNESS_NEEDS

    def each(self, with_query: Collection[str]) -> Iterator[Use]:
        """Yield the uses in the order of client, user, session and host; of the hosts
        `with_query` with their queries.
        """
        self._insert("learned_private", "upstream", self._private())
        self._insert("learned_with_query", "host", list(with_query))
        new = (
            f"f.first >= {time_literal(self._new_from)}" if self._new_from else "false"
        )
        self._connection.execute(_FIRST_USES)
        rows = _USES.format(new=new, in_period=self._in_period)
        with (
            self._connection.cursor() as cursor
        ):  # others may use the connection meanwhile
            cursor.execute(rows)
            while fetched := cursor.fetchmany(_BATCH):
                for row in fetched:
                    yield _use(row)

    def _private(self) -> list[str]:
        rows = self._connection.execute(
            _UPSTREAMS.format(in_period=self._in_period)
        ).fetchall()
        return [upstream for (upstream,) in rows if _is_private(upstream)]

    def _one(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()

    def _insert(self, table: str, column: str, values: list[str]) -> None:
        statement = f"CREATE OR REPLACE TABLE {table} AS SELECT unnest(?::VARCHAR[]) AS {column}"
        self._connection.execute(statement, [values])


def _use(row: Any) -> Use:
    client, user, session, host, method, url, count, first, last, days, *rest = row
    times = in_utc(first), in_utc(last), frozenset(days)
    use = Use(client, user, host, method, url, count, *times, *rest)
    return replace(use, session=session, denied_by=unquote(use.denied_by))


def _is_private(upstream: str) -> bool:
    try:
        return is_private(parse_address(upstream))
    except InvalidUrl:
        return False


class PresetCover:
    """The newest version of each preset, by the hosts that it names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_host: dict[str, list[tuple[str, CompiledPolicy]]] = {}
        for name in sorted(names):
            preset = load_preset(name)
            patterns = (
                pattern
                for rule in preset.source.rules
                for pattern in rule.match.hosts or ()
            )
            for host in {
                pattern.name for pattern in patterns if pattern.form is HostForm.EXACT
            }:
                self._by_host.setdefault(host, []).append((name, preset))

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that presets name."""
        return frozenset(self._by_host)

    def covering(self, use: Use) -> tuple[str, ...]:
        """Name the presets that allow a use."""
        presets = self._by_host.get(use.host, ())
        if not presets or use.method == CONNECT:
            return ()
        request = request_to(use.method, use.url)
        return tuple(
            name
            for name, preset in presets
            if decide(preset, preset.match(request), use.last).allowed
        )


def newest_presets() -> list[str]:
    """Name the newest version of each preset."""
    newest: dict[str, int] = {}
    for name in preset_names():
        stem, _, version = name.rpartition("@")
        newest[stem] = max(int(version), newest.get(stem, 0))
    return [f"{stem}@{version}" for stem, version in newest.items()]
