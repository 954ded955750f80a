"""`squidkeeper log --follow`: each request as it ends.

It reads lines one by one, and needs no table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from squidkeeper.base.errors import InvalidRecord, UnreadableLog
from squidkeeper.cli.output import report_invalid, write
from squidkeeper.record.log import listing
from squidkeeper.record.log.filters import of_period
from squidkeeper.record.log.log_files import open_log, read_failure
from squidkeeper.record.log.record import Record, parse_timed_record
from squidkeeper.record.log.requests import is_opened_tunnel

if TYPE_CHECKING:
    from squidkeeper.cli.wanted_requests import WantedRequests
    from squidkeeper.record.log.drift import DriftChecker, Finding
    from squidkeeper.record.log.follower import Follower
    from squidkeeper.record.log.record import Record


_POLL_SECONDS = 0.25


class FollowedLog:
    """One call of the command."""

    def __init__(self, wanted: WantedRequests, checker: DriftChecker) -> None:
        self.found = 0  # findings of --drift
        self._filters = (*wanted.filters, of_period(wanted.since, wanted.until))
        self._checker = checker
        self._reader = RecordReader()
        self._shows_tunnels = wanted.connects or wanted.drift
        self._requests = listing.RequestTable(
            coloured=wanted.coloured, with_error=True, terminal=wanted.terminal
        )
        self._findings = listing.FindingTable(wanted.terminal)
        self._text = _TEXTS[wanted.drift, wanted.as_json]

    def follow(self, follower: Follower) -> None:
        """Show a log while it is written, until interrupted."""
        lost = 0
        lines = follower.read()
        if not follower.readable:
            _refuse_closed(follower.path)
            click.echo(
                f"{listing.printable_field(str(follower.path))}: missing or unreadable; waiting for it.",
                err=True,
            )
        while True:
            if lines:
                self._feed(lines)
                lines = follower.read()
                continue
            if follower.lost > lost:
                lost = follower.lost
                click.echo("Part of the log was gone before it was read.", err=True)
            time.sleep(_POLL_SECONDS)
            lines = follower.read()

    def end(self) -> None:
        """Report on stderr what was left out."""
        report_invalid(self._reader.invalid, self._reader.first_invalid)

    def _feed(self, lines: list[bytes]) -> None:
        write(
            self._text(
                self,
                [
                    parsed
                    for parsed in self._reader.parse(lines)
                    if self._is_wanted(parsed.record)
                ],
            )
        )

    def _is_wanted(self, record: Record) -> bool:
        is_shown = self._shows_tunnels or not is_opened_tunnel(record)
        return is_shown and all(wanted.holds(record) for wanted in self._filters)

    def _rows(self, records: list[LoggedRecord]) -> str:
        return self._requests.lines(
            listing.request_row(record.record) for record in records
        )

    def _json_lines(self, records: list[LoggedRecord]) -> str:
        return "".join(listing.json_line(record.line) for record in records)

    def _finding_rows(self, records: list[LoggedRecord]) -> str:
        return self._findings.lines(
            listing.finding_row(parsed.record, found.kind, found.rule)
            for parsed, found in self._found(records)
        )

    def _json_findings(self, records: list[LoggedRecord]) -> str:
        found = self._found(records)
        return "".join(
            listing.json_finding(
                finding.kind, finding.rule, finding.reason, parsed.line
            )
            for parsed, finding in found
        )

    def _found(self, records: list[LoggedRecord]) -> list[tuple[LoggedRecord, Finding]]:
        found = [
            (record, finding)
            for record in records
            if (finding := self._checker.check(record.record))
        ]
        self.found += len(found)
        return found


def _refuse_closed(path: Path) -> None:
    """Raise `UnreadableLog` for a log that this account may not read: waiting does not
    change that.
    """
    try:
        open_log(path, regular=True).close()
    except PermissionError as error:
        raise UnreadableLog(f"{path}: {read_failure(error)}") from error
    except (OSError, UnreadableLog):
        return


_TEXTS = {  # (drift, JSON)
    (False, False): FollowedLog._rows,
    (False, True): FollowedLog._json_lines,
    (True, False): FollowedLog._finding_rows,
    (True, True): FollowedLog._json_findings,
}


class LoggedRecord(NamedTuple):
    """A record and its line."""

    line: bytes
    record: Record


@dataclass(slots=True)
class RecordReader:
    """Parses lines, and counts those that are invalid."""

    invalid: int = 0
    first_invalid: str = ""  # why it is

    def parse(self, lines: Iterable[bytes]) -> Iterator[LoggedRecord]:
        """Yield the records among lines."""
        for line in lines:
            try:
                yield LoggedRecord(line, parse_timed_record(line))
            except InvalidRecord as error:
                self.invalid += 1
                self.first_invalid = self.first_invalid or str(error)
