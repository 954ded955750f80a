"""The replay: the requests of a table judged by two policies, and what flips, counted.

Each distinct question is judged once, at the time at which it was asked: the start of
the request. The verdict of the old policy is computed too; that of the access log is
only compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from squidkeeper.change.replay.judge import Difference, ReplayJudge
from squidkeeper.change.replay.result import (
    Example,
    Flip,
    FlipGroup,
    FlipKind,
    ReplayResult,
    Total,
)
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.record.log.host_judging import clients_of
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)

# that the table has to have
from squidkeeper.record.table.questions import (
    COLUMNS as COLUMNS,
)
from squidkeeper.record.table.questions import KEY, QuestionTable, in_utc
from squidkeeper.record.table.questions import SET_APART as _SET_APART
from squidkeeper.record.table.row_judging import (
    Decisive,
    insert,
    judge_rows,
    record_from,
)

if TYPE_CHECKING:
    import duckdb

GROUPS_OF_CLIENT: Final = 1_000
UNSEEN: Final = "unseen"
UNREAD: Final = "unread"
SET_APART: Final[Mapping[str, str]] = {
    **_SET_APART,
    UNSEEN: "the tunnel passed through, and one of the policies would look into it",
    UNREAD: "the body decides by one of the policies, and no body is logged",
}
_LONGEST_DIVIDED: Final = timedelta(days=2000)
_A_MOMENT: Final = timedelta(microseconds=1)
# denied, whatever decides about the host
_OWN_PAGE: Final = "contains(lower(a.url), '/squid-internal-')"
DECISIVE: Final = Decisive(
    asker=("client", "user", "session"),
    host=("asker", "method", "origin", "sni", "tunnel", "hidden", "verdict"),
    record=(*KEY, "verdict"),
    time={
        "time": "strftime(a.asked_at, '%Y-%m-%dT%H:%M:%S.%fZ')"
    },  # a rule may end within a millisecond
    special=f"(a.hidden IS NOT NULL OR {_OWN_PAGE})",
)
_ROWS: Final = f"""
    CREATE OR REPLACE VIEW replay_rows AS
    SELECT {", ".join(KEY)}, verdict, host, used, time, request_id,
        coalesce(try(CASE WHEN time - to_milliseconds(duration_ms) > TIMESTAMP '0002-01-01'
            THEN time - to_milliseconds(duration_ms) END), time) AS asked_at
    FROM asked
"""
_TIMED: Final = """
    CREATE OR REPLACE VIEW replay_timed AS SELECT r.* REPLACE (s.since AS asked_at)
    FROM replay_rows r ASOF JOIN replay_spans s ON r.asked_at >= s.since
"""
_DIFFERING: Final = """
    CREATE OR REPLACE TABLE replay_differing AS
    SELECT answer, client, user, session, host, method, url, time, request_id, used FROM replay_judged
"""
_FLIPS: Final = "answer INTEGER, flip INTEGER, kind VARCHAR"
_TOTALS: Final = """
    SELECT kind, sum(requests)::BIGINT, sum(used)::BIGINT, count(*) FROM (
        SELECT kind, count(*) AS requests, count(*) FILTER (used) AS used
        FROM replay_differing JOIN replay_flips USING (answer) GROUP BY kind, flip, client, user, host
    ) GROUP BY kind
"""
_GROUPS: Final = """
    SELECT flip, any_value(kind) AS flips, client, user, host, count(*) AS requests,
        count(*) FILTER (used) AS used_requests, count(DISTINCT url), min(time), max(time),
        list(DISTINCT session) FILTER (session IS NOT NULL),
        arg_max(struct_pack(time := time, method := method, url := url, request_id := request_id),
            struct_pack(used := used, time := time, url := url))
    FROM replay_differing JOIN replay_flips USING (answer) GROUP BY flip, client, user, host
    QUALIFY row_number() OVER (PARTITION BY client, user, flips
        ORDER BY used_requests DESC, requests DESC, host, flip) <= {groups_of_client}
    ORDER BY list_position({kinds}, flips), used_requests DESC, requests DESC, host, client, user, flip
"""
_OBSERVED: Final = """
    SELECT observed, count(*), count(*) FILTER (used), count(DISTINCT struct_pack(client, user, host))
    FROM replay_differing JOIN replay_observed USING (answer) GROUP BY observed ORDER BY 2 DESC, 1
"""


def replay(
    connection: duckdb.DuckDBPyConnection,
    old: CompiledPolicy,
    new: CompiledPolicy,
    rows: str = "requests",
    groups_of_client: int = GROUPS_OF_CLIENT,
    sessions: RecordedSessions = NO_SESSIONS,
) -> ReplayResult:
    """Judge the rows of a table or view with the `COLUMNS` of `requests` by two
    policies.

    The tables `replay_differing` (a row for each request about which there is something
    to tell) and `replay_flips` (which of them flip) are left. `sessions` finds those of
    records.
    """
    questions = QuestionTable(connection, rows, sessions)
    timed = rows_at_their_times(connection, old, new)
    judge = ReplayJudge(old, new, sessions)
    judged = judge_rows(connection, "replay", timed, judge, DECISIVE)
    connection.execute(_DIFFERING)
    flips = _insert_flips(connection, judged.answers)
    ((requests, first, last),) = connection.execute(
        "SELECT count(*), min(time), max(time) FROM asked"
    ).fetchall()
    unknown = {
        UNSEEN: sum(
            count
            for answer, count in judged.counts.items()
            if answer is not None and answer.unseen
        ),
        UNREAD: sum(
            count
            for answer, count in judged.counts.items()
            if answer is not None and answer.unread
        ),
    }
    return ReplayResult(
        old=old.revision,
        new=new.revision,
        requests=requests - sum(unknown.values()),
        first=in_utc(first),
        last=in_utc(last),
        flips=tuple(_groups(connection, flips, groups_of_client, (old, new), sessions)),
        totals=_totals(connection),
        observed=_observed(connection, judged.answers),
        disagreeing=sum(
            count
            for answer, count in judged.counts.items()
            if answer is not None and answer.disagrees
        ),
        set_apart={
            **questions.set_apart,
            **{reason: count for reason, count in unknown.items() if count},
        },
    )


def rows_at_their_times(
    connection: duckdb.DuckDBPyConnection, *policies: CompiledPolicy
) -> str:
    """Add to the requests of the view `asked` the time at which policies are asked
    about them; return their view.
    """
    connection.execute(_ROWS)
    return _divide_by_time(connection, *policies)


def _divide_by_time(
    connection: duckdb.DuckDBPyConnection, *policies: CompiledPolicy
) -> str:
    """Add to each row the start of the span of time in which the same timed rules hold.

    Return the view of them.

    Then a question is asked once in each span. A period that is too long for that is
    asked about at each time.
    """
    ((first, last),) = connection.execute(
        "SELECT min(asked_at), max(asked_at) FROM replay_rows"
    ).fetchall()
    tables = [
        policy.timetable for policy in policies if policy.timetable.depends_on_time
    ]
    if not tables or first is None or last - first > _LONGEST_DIVIDED:
        return "replay_rows"
    changes = {
        change
        for table in tables
        for change in table.changes(in_utc(first), in_utc(last) + _A_MOMENT)
    }
    starts = [
        first,
        *(change.astimezone(UTC).replace(tzinfo=None) for change in sorted(changes)),
    ]
    insert(
        connection, "replay_spans", "since TIMESTAMP", [(start,) for start in starts]
    )
    connection.execute(_TIMED)
    return "replay_timed"


def _insert_flips(
    connection: duckdb.DuckDBPyConnection, answers: Iterable[Difference | None]
) -> list[Flip]:
    places: dict[Flip, int] = {}
    rows = [
        (answer, places.setdefault(replayed.flip, len(places)), str(replayed.flip.kind))
        for answer, replayed in enumerate(answers)
        if replayed is not None and replayed.flip is not None
    ]
    insert(connection, "replay_flips", _FLIPS, rows)
    return list(places)


def _totals(connection: duckdb.DuckDBPyConnection) -> Mapping[FlipKind, Total]:
    found = {
        kind: Total(*counts) for kind, *counts in connection.execute(_TOTALS).fetchall()
    }
    return {kind: found[kind] for kind in FlipKind if kind in found}


def _groups(
    connection: duckdb.DuckDBPyConnection,
    flips: list[Flip],
    groups_of_client: int,
    policies: tuple[CompiledPolicy, CompiledPolicy],
    sessions: RecordedSessions,
) -> Iterable[FlipGroup]:
    rows = connection.execute(
        _GROUPS.format(
            groups_of_client=groups_of_client, kinds=[str(kind) for kind in FlipKind]
        )
    ).fetchall()
    known: dict[tuple[str, str | None], tuple[str, ...]] = {}
    for flip, _, client, user, host, requests, used, urls, first, last, *rest in rows:
        asked, example = rest
        found = Example(**{**example, "time": in_utc(example["time"])})
        if (client, user) not in known:
            known[client, user] = _policy_clients(policies, client, user)
        roles = dict.fromkeys(
            session.role
            for number in asked or ()
            if (session := sessions.numbered(number)) and session is not Unknown.SESSION
        )
        names = (*known[client, user], *sorted(roles))
        yield FlipGroup(
            flips[flip],
            client,
            user,
            host,
            requests,
            used,
            urls,
            in_utc(first),
            in_utc(last),
            found,
            names,
        )


def _policy_clients(
    policies: tuple[CompiledPolicy, CompiledPolicy], client: str, user: str | None
) -> tuple[str, ...]:
    record = record_from((("client", client), ("user", user)))
    old, new = (clients_of(policy, record) for policy in policies)
    return old or new


def _observed(
    connection: duckdb.DuckDBPyConnection, answers: Iterable[Difference | None]
) -> Mapping[str, Total]:
    rows = [
        (place, one.observed)
        for place, one in enumerate(answers)
        if one is not None and one.observed is not None
    ]
    insert(connection, "replay_observed", "answer INTEGER, observed VARCHAR", rows)
    return {
        observed: Total(*counts)
        for observed, *counts in connection.execute(_OBSERVED).fetchall()
    }
