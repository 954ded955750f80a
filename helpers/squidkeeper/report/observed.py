"""What the policy observed, and what it asked about (floor 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.record.record import NONE, decode_field
from squidkeeper.report import figures

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN: Final = 50
_BY_DEFAULT: Final = "deny:default"
_SUMS: Final = """
    SELECT count(observed), count(*) FILTER (denied AND page = 'asked') FROM reported
"""
_OBSERVED: Final = f"""
    SELECT observed, count(*) AS requests, count(DISTINCT (client, "user")), count(DISTINCT host)
    FROM reported WHERE observed IS NOT NULL GROUP BY observed
    ORDER BY observed <> '{_BY_DEFAULT}', requests DESC, observed LIMIT {_SHOWN}
"""


def observed(connection: DuckDBPyConnection) -> figures.ObservedFigures:
    """Return what rules that observe would have decided, what the default would deny first."""
    ((total, asked),) = connection.execute(_SUMS).fetchall()
    rows = connection.execute(_OBSERVED).fetchall() if total else []
    return figures.ObservedFigures(
        total=total,
        asked=asked,
        rows=tuple(figures.ObservedRow(decode_field(name) or NONE, *counts) for name, *counts in rows),
    )
