"""Records as text (floor 5): a table, the record's own lines, or counts. Nothing in them can steer a terminal.

Values are shown as they are logged, in percent-encoding; what a log holds beside that (it may be of anyone's making)
is escaped where it is not printable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, Protocol
from urllib.parse import quote

from squidkeeper.record.drift import DriftChecker, Finding
from squidkeeper.record.events import LoggedRecord
from squidkeeper.record.groups import Group, Groups
from squidkeeper.record.record import NONE, Record, client_of
from squidkeeper.url import RECORDED_URL_LENGTH

_COLOURS: Final = {"allow": "\x1b[32mallow\x1b[0m", "deny": "\x1b[31mdeny\x1b[0m", NONE: "\x1b[33m-\x1b[0m"}
_FINDING: Final = "{:<24}  {:<15}  {:<10}  {:<18}  {:>6}  {:<7}  {}\n"
_FINDING_TITLES: Final = ("TIME", "CLIENT", "DRIFT", "RULE", "STATUS", "METHOD", "URL")
_WIDEST: Final = 40  # of a column that the first rows set; what is longer pushes its row aside


class Listing(Protocol):
    """What is printed of events."""

    scrolls: bool  # whether there is output before the end

    def take(self, entries: Iterable[LoggedRecord]) -> str:
        """Take events; give what is to be printed now."""

    def end(self) -> str:
        """Give what is to be printed at the end."""


class TableListing:
    """A line for each event, under a header; the first ones set the columns' widths. The URL is last, and whole."""

    scrolls = True

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured
        self._row = ""

    def take(self, entries: Iterable[LoggedRecord]) -> str:
        """Write the rows."""
        records = [entry.record for entry in entries]
        header = "" if self._row or not records else self._header(records)
        return header + "".join(map(self._line, records))

    def end(self) -> str:
        """Give nothing more."""
        return ""

    def _header(self, records: list[Record]) -> str:
        client = _width("CLIENT", map(client_of, records))
        rule = _width("RULE", (record.rule for record in records))
        self._row = f"{{:<24}}  {{:<{client}}}  {{:<7}}  {{:<{rule}}}  {{:>6}}  {{:<7}}  {{:>6}}  {{}}\n"
        return self._row.format("TIME", "CLIENT", "VERDICT", "RULE", "STATUS", "METHOD", "MS", "URL")

    def _line(self, one: Record) -> str:
        client = client_of(one)
        row = self._row.format(
            one.time, client, one.verdict, one.rule, one.status, one.method, one.duration_ms, _url(one)
        )
        row = row if row[:-1].isprintable() else f"{printable(row[:-1])}\n"
        return self._colour(row, one.verdict) if self._coloured else row

    def _colour(self, row: str, verdict: str) -> str:
        before, found, after = row.partition(f"  {verdict} ")
        return f"{before}  {_COLOURS[verdict]} {after}" if found and verdict in _COLOURS else row


class JsonListing:
    """The record's own lines."""

    scrolls = True

    def take(self, entries: Iterable[LoggedRecord]) -> str:
        """Give the lines."""
        return "".join([_json_line(entry.line) for entry in entries])

    def end(self) -> str:
        """Give nothing more."""
        return ""


class GroupListing:
    """Requests counted by what they have in common, as a table or as JSON lines, at the end."""

    scrolls = False

    def __init__(self, by: str, *, as_json: bool) -> None:
        self._by = by
        self._as_json = as_json
        self._groups = Groups(by)

    def take(self, entries: Iterable[LoggedRecord]) -> str:
        """Count."""
        add = self._groups.add
        for entry in entries:
            add(entry.record)
        return ""

    def end(self) -> str:
        """Write the counts, that of the most requests first."""
        groups = self._groups.most_first()
        if self._as_json:
            return "".join(f"{json.dumps(self._object(key, group))}\n" for key, group in groups)
        rows = [("REQUESTS", "DENIED", "TUNNELS", "BYTES", "LAST", self._by.upper())]
        rows += [(*_numbers(one), one.last, key) for key, one in groups]
        return _aligned(rows)

    def _object(self, key: str, group: Group) -> dict[str, object]:
        return {
            self._by: key,
            "requests": group.requests,
            "denied": group.denied,
            "tunnels": group.tunnels,
            "bytes": group.bytes,
            "last": group.last,
        }


class DriftListing:
    """What was served and should not have been, a line for each, or an object with the record in it."""

    scrolls = True

    def __init__(self, drift: DriftChecker, *, as_json: bool) -> None:
        self.found = 0
        self._drift = drift
        self._write = self._object if as_json else self._row
        self._header = "" if as_json else _FINDING.format(*_FINDING_TITLES)

    def take(self, entries: Iterable[LoggedRecord]) -> str:
        """Check the records; write the findings."""
        findings = ((entry, finding) for entry in entries if (finding := self._drift.check(entry.record)))
        written = [self._write(entry, finding) for entry, finding in findings]
        header = self._header if written and not self.found else ""
        self.found += len(written)
        return header + "".join(written)

    def end(self) -> str:
        """Give nothing more."""
        return ""

    def _row(self, entry: LoggedRecord, finding: Finding) -> str:
        one = entry.record
        what = (one.time, client_of(one), finding.kind, finding.rule, one.status, one.method, _url(one))
        return f"{printable(_FINDING.format(*what)[:-1])}\n"

    def _object(self, entry: LoggedRecord, finding: Finding) -> str:
        said = {"drift": finding.kind, "rule": finding.rule, "reason": finding.reason}
        return f"{json.dumps({**said, 'record': json.loads(entry.line)})}\n"


def printable(value: str) -> str:
    """Escape what is not printable."""
    return "".join(one if one.isprintable() else quote(one, errors="replace") for one in value)


def _url(record: Record) -> str:
    """Give a record's URL, with a mark where it is cut off."""
    return f"{record.url}… (cut)" if len(record.url) == RECORDED_URL_LENGTH else record.url


def _width(title: str, values: Iterable[str]) -> int:
    return min(_WIDEST, max(map(len, (title, *values))))


def _numbers(group: Group) -> tuple[str, str, str, str]:
    return str(group.requests), str(group.denied), str(group.tunnels), str(group.bytes)


def _aligned(rows: list[tuple[str, str, str, str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    row = "  ".join([*(f"{{:>{width}}}" for width in widths[:4]), f"{{:<{widths[4]}}}", "{}"])
    return "".join(f"{printable(row.format(*values))}\n" for values in rows)


def _json_line(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return f"{text}\n" if text.isprintable() else f"{json.dumps(json.loads(text))}\n"
