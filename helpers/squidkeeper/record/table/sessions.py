"""Rows by the sessions that asked: by each one, by role, or by the value of a label.

The access log has the number of a session. Its role and labels are in the store of
sessions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.record import NONE
from squidkeeper.record.log.recorded_sessions import RecordedSessions, Unknown
from squidkeeper.record.table.row_judging import insert

if TYPE_CHECKING:
    import duckdb

    from squidkeeper.policy.language.roles import Session

SESSION, ROLE = "session", "role"
SESSION_KEY: Final = "session_key"  # the column by which rows are counted
LABEL: Final = re.compile(r"label:([a-z][a-z0-9._-]{0,31})")
_KEYS: Final = "session_keys"


def is_of_sessions(by: str | None) -> bool:
    """Whether rows are counted by what sessions are."""
    return by in (SESSION, ROLE) or (by or "").startswith("label:")


def with_session_keys(
    connection: duckdb.DuckDBPyConnection,
    views: tuple[str, ...],
    by: str,
    sessions: RecordedSessions,
) -> tuple[str, ...]:
    """Create a view of each view that has `SESSION_KEY`; return their names.

    It is NULL for rows of no session.
    """
    named = " UNION ".join(
        f"SELECT DISTINCT session FROM {view} WHERE session IS NOT NULL"
        for view in views
    )
    numbers = [number for (number,) in connection.execute(named).fetchall()]
    rows = [(number, _key(number, by, sessions.numbered(number))) for number in numbers]
    insert(connection, _KEYS, f"session VARCHAR, {SESSION_KEY} VARCHAR", rows)
    for view in views:
        connection.execute(
            f"CREATE OR REPLACE VIEW {view}_of_sessions AS"
            f" SELECT r.*, k.{SESSION_KEY} FROM {view} r LEFT JOIN {_KEYS} k USING (session)"
        )
    return tuple(f"{view}_of_sessions" for view in views)


def _key(number: str, by: str, found: Session | Unknown | None) -> str:
    if found is None or found is Unknown.SESSION:
        unknown = Unknown.SESSION.value
        return f"{number} ({unknown})" if by == SESSION else unknown
    if by == SESSION:
        return f"{number} {found.name}"
    label = LABEL.fullmatch(by)
    return found.labels.get(label[1], NONE) if label else found.role
