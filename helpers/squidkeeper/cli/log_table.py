"""What `squidkeeper log` reads from files, by the table.

`--follow` has no table: `log_follow.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.base.formatting import quantity, timestamp
from squidkeeper.cli.output import report_skipped, write
from squidkeeper.policy.language.prices import MILLIONTHS
from squidkeeper.record.log.listing import (
    FindingTable,
    RequestTable,
    json_finding,
    json_line,
    printable_field,
    shortened,
)
from squidkeeper.record.table import listing
from squidkeeper.record.table.columns import JUDGED
from squidkeeper.record.table.database import yield_to_squid
from squidkeeper.record.table.drift_table import DriftTable
from squidkeeper.record.table.lines import Skipped
from squidkeeper.record.table.listing import (
    KEY_FIELDS,
    MODEL,
    Groups,
    early_times,
    fields_of,
    late_times,
    select_rows,
    with_usage,
)
from squidkeeper.record.table.sessions import (
    SESSION,
    SESSION_KEY,
    is_of_sessions,
    with_session_keys,
)
from squidkeeper.record.table.table import Table, open_table
from squidkeeper.record.table.usage import create_usage
from squidkeeper.record.usage_ledger import ledger_files

if TYPE_CHECKING:
    from squidkeeper.cli.wanted_requests import WantedRequests
    from squidkeeper.record.log.drift import DriftChecker, Effective
    from squidkeeper.record.log.recorded_sessions import RecordedSessions
    from squidkeeper.record.table.sources import TableSources

_SHORT_KEY = 20  # columns of a terminal


class TableLog:
    """One call of the command.

    `files` are the logs among the sources, the oldest first; `state` has the ledger.
    """

    def __init__(
        self,
        wanted: WantedRequests,
        sources: TableSources,
        files: list[Path],
        checker: DriftChecker,
        state: Path,
        sessions: RecordedSessions,
    ) -> None:
        self.found = 0  # findings of --drift
        self.recorded_rules: set[str] = set()  # of --rule, which decided a record
        self._wanted = wanted
        self._sources = sources
        self._files = files
        self._checker = checker
        self._state = state
        self._sessions = sessions
        self._requests: RequestTable | None = None
        self._skipped = Skipped()
        self._records = self._tunnels = self._merged = self._shown = 0

    def show(self, effective: Iterable[Effective] = ()) -> None:
        """Show what is wanted; report on stderr what is left out. `effective`: the
        revisions, for --drift.
        """
        yield_to_squid()
        if self._wanted.drift:
            with self._open() as table:
                self._show_drift(table, effective)
        elif self._wanted.by:
            with self._open() as table:
                self._show_groups(table, self._wanted.by)
        elif self._wanted.newest is None:
            self._show_all()
        else:
            self._show_newest(self._wanted.newest)
        self._report()

    def _show_all(self) -> None:
        since, until = self._wanted.since, self._wanted.until
        times = [
            at
            for at in early_times(self._files[0])
            if (not since or at > since) and (not until or at < until)
        ]
        for start, end in pairwise([since, *times, until]):
            with self._open(start, end) as table:
                self._show_requests(table, self._select(table), in_periods=bool(times))

    def _show_newest(self, newest: int) -> None:
        """Show the newest requests: read the end of the log, and more of it until it
        holds enough of them.
        """
        given = self._wanted.since
        for since in (
            *(
                at
                for at in late_times(self._files[-1], newest)
                if not given or at > given
            ),
            given,
        ):
            with self._open(since, self._wanted.until) as table:
                view = self._select(table)
                if (
                    since is given
                    or listing.count_rows(table.connection, view) >= newest
                ):
                    self._show_requests(table, view)
                    return

    def _show_requests(
        self, table: Table, view: str, *, in_periods: bool = False
    ) -> None:
        newest = self._wanted.newest
        if self._wanted.as_json:
            for lines in listing.lines(table.connection, view, newest):
                write("".join(map(json_line, lines)))
        else:
            self._requests = self._requests or self._request_table(
                table, view, in_periods=in_periods
            )
            for rows in listing.request_rows(table.connection, view, newest):
                self._shown += len(rows)
                write(self._requests.lines(rows))
        self._add_counts(table)

    def _request_table(
        self, table: Table, view: str, *, in_periods: bool
    ) -> RequestTable:
        with_error = in_periods or listing.has_error(
            table.connection, view, self._wanted.newest
        )
        return RequestTable(
            coloured=self._wanted.coloured,
            with_error=with_error,
            terminal=self._wanted.terminal,
        )

    def _show_groups(self, table: Table, by: str) -> None:
        view, records = (
            self._select(table),
            select_rows(table.connection, "records", self._wanted.filters),
        )
        metered = self._has_usage(table, view, by) or by == MODEL
        key = by
        if is_of_sessions(by):
            view, records = with_session_keys(
                table.connection, (view, records), by, self._sessions
            )
            key = SESSION_KEY
        counted = with_usage(table.connection, view) if metered else view
        groups = Groups.count(table.connection, counted, records, key, metered=metered)
        if self._wanted.as_json:
            for group in groups.most_first():
                numbers = {name: getattr(group, name) for name in groups.shown}
                write(f"{json.dumps({by: group.key, **numbers, 'last': group.last})}\n")
        else:
            _write_groups(groups, by, self._wanted.terminal)
        self._shown = listing.count_rows(table.connection, view)
        self._add_counts(table)

    def _show_drift(self, table: Table, effective: Iterable[Effective]) -> None:
        DriftTable(table.connection, self._select(table), self._checker, effective)
        if self._wanted.as_json:
            for found in listing.findings(table.connection, self._wanted.newest):
                self.found += len(found)
                write("".join(json_finding(*finding) for finding in found))
        else:
            findings = FindingTable(self._wanted.terminal)
            for rows in listing.finding_rows(table.connection, self._wanted.newest):
                self.found += len(rows)
                write(findings.lines(rows))
        self._skipped = table.skipped

    # --- reading ----------------------------------------------------------------------

    @contextmanager
    def _open(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Table]:
        wanted = self._wanted
        period = since or wanted.since, until or wanted.until
        folds = self._view == "requests"
        with open_table(
            self._sources, *period, columns=self._columns(), folds=folds
        ) as table:
            yield table
            if wanted.rules:
                found = listing.recorded_rules(table.connection, wanted.rules)
                self.recorded_rules |= found

    def _has_usage(self, table: Table, view: str, by: str) -> bool:
        """Read what the requests of a view have used; whether anything is known."""
        files = ledger_files(self._state, listing.oldest_time(table.connection, view))
        try:
            return create_usage(table.database, files)
        except UnreadableLog:  # a FILE may be all that this account can read
            if by == MODEL:
                raise
            return False

    def _columns(self) -> set[str] | None:
        wanted = self._wanted
        if wanted.as_json and not wanted.by:
            return None  # for whole lines
        by = SESSION if is_of_sessions(wanted.by) else wanted.by
        shown = (
            (*KEY_FIELDS.get(by, (by,)), "bytes", "request_id")
            if by
            else listing.ROW_FIELDS
        )
        return {*shown, *fields_of(wanted.filters), *(JUDGED if wanted.drift else ())}

    @property
    def _view(self) -> str:
        """The view to show. Every record is one row of `records`, which needs no
        folding.
        """
        return "records" if self._wanted.connects or self._wanted.drift else "requests"

    def _select(self, table: Table) -> str:
        return select_rows(table.connection, self._view, self._wanted.filters)

    # --- what was left out ------------------------------------------------------------

    def _add_counts(self, table: Table) -> None:
        self._skipped = table.skipped
        if self._wanted.as_json:
            return
        records, tunnels = listing.count_records(table.connection)
        self._records += records
        if self._wanted.connects:
            return
        self._tunnels += tunnels
        self._merged += (
            records - tunnels - listing.count_rows(table.connection, "requests")
        )

    def _period(self) -> str:
        since, until = self._wanted.since, self._wanted.until
        return f"{f' from {timestamp(since)}' if since else ''}{f' until {timestamp(until)}' if until else ''}"

    def _report(self) -> None:
        if (self._tunnels or self._merged) and self._wanted.newest is None:
            click.echo(
                f"{quantity(self._records, 'record')} read, {quantity(self._shown, 'request')} shown. Not shown: "
                f"the CONNECTs of {quantity(self._tunnels, 'tunnel')}, and {self._merged:,} that count with another "
                "(--connects shows all).",
                err=True,
            )
        elif not self._shown and not self._wanted.as_json and not self._wanted.drift:
            click.echo(
                f"{quantity(self._records, 'record')} read{self._period()}, no request shown.",
                err=True,
            )
        report_skipped(self._skipped)


def _write_groups(groups: Groups, by: str, terminal: int | None) -> None:
    widths = {
        name: max(len(name), len(_number(name, most)))
        for name, most in groups.largest().items()
    }
    numbers_take = sum(widths.values()) + 2 * (len(widths) + 1)
    last = 24 if terminal is None else len("2026-12-02T09:15")
    if terminal is not None and numbers_take + last + _SHORT_KEY > terminal:
        last = len("2026-12-02")
    row = "  ".join(
        [*(f"{{:>{width}}}" for width in widths.values()), f"{{:<{last}.{last}}}", "{}"]
    )
    if widths:
        write(f"{row.format(*map(str.upper, widths), 'LAST', by.upper())}\n")
    for group in groups.most_first():
        numbers = (_number(name, getattr(group, name)) for name in widths)
        key = group.key
        if terminal is not None:
            key = shortened(key, max(_SHORT_KEY // 2, terminal - numbers_take - last))
        write(f"{printable_field(row.format(*numbers, group.last, key))}\n")


def _number(name: str, value: int) -> str:
    return f"{value / MILLIONTHS:.6f}" if name == "cost" else str(value)
