"""Records as text (floor 5): a table, the lines as logged, counts, or drift. The output is safe for a terminal.

Values are shown as they are logged, percent-encoded. Other characters that are not printable are escaped, because the
log may come from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, Protocol
from urllib.parse import quote

from squidkeeper.record.drift import DriftChecker, Finding
from squidkeeper.record.events import LoggedRecord
from squidkeeper.record.groups import Group, Groups
from squidkeeper.record.record import NONE, Record, client_name
from squidkeeper.url import RECORDED_URL_LENGTH

_COLOURS: Final = {"allow": "\x1b[32mallow\x1b[0m", "deny": "\x1b[31mdeny\x1b[0m", NONE: "\x1b[33m-\x1b[0m"}
_FINDING: Final = "{:<24}  {:<15}  {:<10}  {:<18}  {:>6}  {:<7}  {}\n"
_FINDING_TITLES: Final = ("TIME", "CLIENT", "DRIFT", "RULE", "STATUS", "METHOD", "URL")
_WIDEST: Final = 40  # of a column whose width the first rows set; a longer value shifts its row


class Listing(Protocol):
    """One way to print events."""

    prints_early: bool  # whether it prints before the end

    def add(self, events: Iterable[LoggedRecord]) -> str:
        """Add events; return the text to print now."""

    def end(self) -> str:
        """Return the text to print at the end."""


class TableListing:
    """A line for each event, under a header; the first events set the widths. The URL is last and complete."""

    prints_early = True

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured
        self._row = ""

    def add(self, events: Iterable[LoggedRecord]) -> str:
        """Write the rows."""
        records = [logged.record for logged in events]
        header = "" if self._row or not records else self._header(records)
        return header + "".join(map(self._line, records))

    def end(self) -> str:
        """Return nothing."""
        return ""

    def _header(self, records: list[Record]) -> str:
        client = _width("CLIENT", map(client_name, records))
        rule = _width("RULE", (record.rule for record in records))
        self._row = f"{{:<24}}  {{:<{client}}}  {{:<7}}  {{:<{rule}}}  {{:>6}}  {{:<7}}  {{:>6}}  {{}}\n"
        return self._row.format("TIME", "CLIENT", "VERDICT", "RULE", "STATUS", "METHOD", "MS", "URL")

    def _line(self, one: Record) -> str:
        client = client_name(one)
        row = self._row.format(
            one.time, client, one.verdict, one.rule, one.status, one.method, one.duration_ms, _url(one)
        )
        row = row if row[:-1].isprintable() else f"{printable(row[:-1])}\n"
        return self._colour(row, one.verdict) if self._coloured else row

    def _colour(self, row: str, verdict: str) -> str:
        before, found, after = row.partition(f"  {verdict} ")
        return f"{before}  {_COLOURS[verdict]} {after}" if found and verdict in _COLOURS else row


class JsonListing:
    """The lines as Squid logged them."""

    prints_early = True

    def add(self, events: Iterable[LoggedRecord]) -> str:
        """Return the lines."""
        return "".join([_json_line(logged.line) for logged in events])

    def end(self) -> str:
        """Return nothing."""
        return ""


class GroupListing:
    """Requests counted by one key, as a table or as JSON lines, at the end."""

    prints_early = False

    def __init__(self, by: str, *, as_json: bool) -> None:
        self._by = by
        self._as_json = as_json
        self._groups = Groups(by)

    def add(self, events: Iterable[LoggedRecord]) -> str:
        """Count events."""
        add = self._groups.add
        for logged in events:
            add(logged.record)
        return ""

    def end(self) -> str:
        """Write the counts, the key with the most requests first."""
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
    """A line for each finding, or a JSON object with the record in it."""

    prints_early = True

    def __init__(self, drift: DriftChecker, *, as_json: bool) -> None:
        self.found = 0
        self._drift = drift
        self._write = self._object if as_json else self._row
        self._header = "" if as_json else _FINDING.format(*_FINDING_TITLES)

    def add(self, events: Iterable[LoggedRecord]) -> str:
        """Check the records; write the findings."""
        findings = ((logged, finding) for logged in events if (finding := self._drift.check(logged.record)))
        written = [self._write(logged, finding) for logged, finding in findings]
        header = self._header if written and not self.found else ""
        self.found += len(written)
        return header + "".join(written)

    def end(self) -> str:
        """Return nothing."""
        return ""

    def _row(self, logged: LoggedRecord, finding: Finding) -> str:
        one = logged.record
        row = (one.time, client_name(one), finding.kind, finding.rule, one.status, one.method, _url(one))
        return f"{printable(_FINDING.format(*row)[:-1])}\n"

    def _object(self, logged: LoggedRecord, finding: Finding) -> str:
        columns = {"drift": finding.kind, "rule": finding.rule, "reason": finding.reason}
        return f"{json.dumps({**columns, 'record': json.loads(logged.line)})}\n"


def printable(value: str) -> str:
    """Escape characters that are not printable."""
    return "".join(one if one.isprintable() else quote(one, errors="replace") for one in value)


def _url(record: Record) -> str:
    """Return a record's URL, with a mark if Squid truncated it."""
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
