"""Drift of many records: each distinct question is judged once, and its answer joined
back.

`DriftChecker` is the one judge; `row_judging.py` asks it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.drift import DriftChecker, Effective, Finding, was_served
from squidkeeper.record.log.record import NONE
from squidkeeper.record.log.requests import asks_splice
from squidkeeper.record.table.columns import JUDGED
from squidkeeper.record.table.row_judging import (
    AT,
    Decisive,
    each,
    insert,
    judge_rows,
    numbered,
    record_from,
    same,
)

if TYPE_CHECKING:
    import duckdb

# decide whether a record was served
_KIND: Final = (
    "squid",
    "method",
    "status",
    "verdict",
    "error",
)
_OF_POLICIES: Final = ("revision", "newer")
_DECISIVE: Final = Decisive(
    asker=(*_OF_POLICIES, "without_start", "client", "user", "session"),
    host=(
        *(
            "asker",
            *_OF_POLICIES,
            "without_start",
            "method",
            "origin",
            "sni",
            "tunnel",
            "hidden",
            "splice",
        ),
        *("denied_by", "unasked"),
    ),
    record=JUDGED,
    url=("credential", "fetched"),
    policies=_OF_POLICIES,
    time={"time": AT.format(name="time"), "duration_ms": "a.duration_ms"},
    special="a.credential IS NOT NULL",
)
_WITHOUT_START: Final = (  # as `datetime` has no such time
    "coalesce(try(time - to_milliseconds(duration_ms)) NOT BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31',"
    " true)"
)


class DriftTable:
    """The findings among the rows of a table or view with the columns of `records`, as
    the view `drift`.

    The view has these columns, and `kind`, `finding_rule` and `reason`. `checker`
    counts the records that could not be checked. `effective` are the revisions of its
    `replacing`.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        rows: str,
        checker: DriftChecker,
        effective: Iterable[Effective] = (),
    ) -> None:
        self._connection = connection
        self._checker = checker
        self._choose_served(rows)
        self._add_newer(tuple(effective))
        self._judge()

    def _choose_served(self, rows: str) -> None:
        self._run(
            numbered(
                "drift_kinds", _KIND, f"SELECT DISTINCT {', '.join(_KIND)} FROM {rows}"
            )
        )
        found = each(self._connection, "drift_kinds")
        kinds = [
            (number, record_from(zip(_KIND, kind, strict=True)))
            for number, *kind in found
        ]
        served = [
            (number, asks_splice(kind)) for number, kind in kinds if was_served(kind)
        ]
        insert(
            self._connection,
            "drift_served_kinds",
            "number BIGINT, splice BOOLEAN",
            served,
        )
        self._run(
            f"CREATE OR REPLACE VIEW drift_served AS SELECT r.*, s.splice, {_WITHOUT_START} AS without_start,"
            f" CASE WHEN r.verdict = 'deny' THEN coalesce(rule, '{NONE}') END AS denied_by,"
            " rule IS NULL OR revision IS NULL AS unasked"
            f" FROM {rows} r JOIN drift_kinds k ON {same('r', 'k', _KIND)} JOIN drift_served_kinds s USING (number)"
        )

    def _add_newer(self, effective: tuple[Effective, ...]) -> None:
        rows = [
            (kept.revision, kept.since.replace(tzinfo=None), place)
            for place, kept in enumerate(effective)
        ]
        insert(
            self._connection,
            "drift_effective",
            "revision VARCHAR, since TIMESTAMP, place INTEGER",
            rows,
        )
        start = "CASE WHEN s.without_start THEN s.time ELSE s.time - to_milliseconds(s.duration_ms) END"
        self._run(
            "CREATE OR REPLACE VIEW drift_dated AS SELECT s.*, CASE WHEN n.place > o.place THEN n.revision END AS newer"
            f" FROM drift_served s ASOF LEFT JOIN drift_effective n ON {start} >= n.since"
            " LEFT JOIN drift_effective o ON s.revision = o.revision"
            if len(effective) > 1
            else "CREATE OR REPLACE VIEW drift_dated AS SELECT *, NULL::VARCHAR AS newer FROM drift_served"
        )

    def _judge(self) -> None:
        judged = judge_rows(
            self._connection, "drift", "drift_dated", self._checker, _DECISIVE
        )
        for answer, rows in judged.counts.items():
            self._checker.count(answer, rows)
        findings = [
            (place, str(finding.kind), finding.rule, finding.reason)
            for place, finding in enumerate(judged.answers)
            if isinstance(finding, Finding)
        ]
        columns = "answer INTEGER, kind VARCHAR, finding_rule VARCHAR, reason VARCHAR"
        insert(self._connection, "drift_findings", columns, findings)
        self._run(
            "CREATE OR REPLACE VIEW drift AS SELECT j.*, f.kind, f.finding_rule, f.reason FROM drift_judged j"
            " JOIN drift_findings f USING (answer)"
        )

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)
