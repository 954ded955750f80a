"""Requests as text: a table, the lines as logged, or drift.

The output is safe for a terminal.

Values are shown as they are logged, percent-encoded. Other characters that are not
printable are escaped, because the log may come from anywhere.
"""

import json
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote

from squidkeeper.policy.url import RECORDED_URL_LENGTH
from squidkeeper.record.log.record import NONE, Record, client_name

_COLOURS: Final = {
    "allow": "\x1b[32mallow\x1b[0m",
    "deny": "\x1b[31mdeny\x1b[0m",
    NONE: "\x1b[33m-\x1b[0m",
}
_FINDING: Final = "{:<24}  {:<15}  {:<10}  {:<18}  {:>6}  {:<7}  {}\n"
_FINDING_TITLES: Final = ("TIME", "CLIENT", "DRIFT", "RULE", "STATUS", "METHOD", "URL")
_WIDEST: Final = (
    40  # of a column whose width the first rows set; a longer value shifts its row
)


class RequestRow(NamedTuple):
    """What a table shows of a request; `client` is `user@address` where there is a
    proxy user.
    """

    time: str
    client: str
    verdict: str
    rule: str
    status: int
    method: str
    duration_ms: int
    error: str
    url: str


class FindingRow(NamedTuple):
    """What a table shows of a request that is drift."""

    time: str
    client: str
    kind: str
    rule: str
    status: int
    method: str
    url: str


def request_row(record: Record) -> RequestRow:
    """Make the row of a record."""
    client, error = client_name(record), record.error
    shown = (
        record.verdict,
        record.rule,
        record.status,
        record.method,
        record.duration_ms,
        error,
        record.url,
    )
    return RequestRow(record.time, client, *shown)


def finding_row(record: Record, kind: str, rule: str) -> FindingRow:
    """Make the row of a finding."""
    return FindingRow(
        record.time,
        client_name(record),
        kind,
        rule,
        record.status,
        record.method,
        record.url,
    )


class RequestTable:
    """A line for each request, under a header; the first rows set the widths.

    The URL is last and complete.
    """

    def __init__(self, *, coloured: bool, with_error: bool) -> None:
        self._coloured = coloured
        self._with_error = with_error
        self._row = ""

    def lines(self, rows: Iterable[RequestRow]) -> str:
        """Write rows."""
        rows = list(rows)
        header = "" if self._row or not rows else self._header(rows)
        return header + "".join(map(self._line, rows))

    def _header(self, rows: list[RequestRow]) -> str:
        client = _width("CLIENT", (row.client for row in rows))
        rule = _width("RULE", (row.rule for row in rows))
        error = (
            f"  {{:<{_width('ERROR', (row.error for row in rows))}}}"
            if self._with_error
            else ""
        )
        self._row = f"{{:<24}}  {{:<{client}}}  {{:<7}}  {{:<{rule}}}  {{:>6}}  {{:<7}}  {{:>6}}{error}  {{}}\n"
        titles = ("TIME", "CLIENT", "VERDICT", "RULE", "STATUS", "METHOD", "MS")
        return self._row.format(
            *titles, *(("ERROR",) if self._with_error else ()), "URL"
        )

    def _line(self, shown: RequestRow) -> str:
        values = (
            (*shown[:-2], shown.error, _url(shown.url))
            if self._with_error
            else (*shown[:-2], _url(shown.url))
        )
        row = self._row.format(*values)
        row = row if row[:-1].isprintable() else f"{printable(row[:-1])}\n"
        return self._colour(row, shown.verdict) if self._coloured else row

    def _colour(self, row: str, verdict: str) -> str:
        before, found, after = row.partition(f"  {verdict} ")
        return (
            f"{before}  {_COLOURS[verdict]} {after}"
            if found and verdict in _COLOURS
            else row
        )


class FindingTable:
    """A line for each finding, under a header."""

    def __init__(self) -> None:
        self._header = _FINDING.format(*_FINDING_TITLES)

    def lines(self, rows: Iterable[FindingRow]) -> str:
        """Write rows."""
        written = "".join(
            f"{printable(_FINDING.format(*row[:-1], _url(row.url))[:-1])}\n"
            for row in rows
        )
        header, self._header = (self._header, "") if written else ("", self._header)
        return header + written


def json_finding(kind: str, rule: str, reason: str, line: bytes) -> str:
    """Write a finding as a line of JSON, with the line of its record."""
    return f"{json.dumps({'drift': kind, 'rule': rule, 'reason': reason, 'record': json.loads(line)})}\n"


def json_line(line: bytes) -> str:
    """Write a line of the access log, as it was logged where that is safe."""
    text = line.decode("utf-8", "replace")
    return f"{text}\n" if text.isprintable() else f"{json.dumps(json.loads(text))}\n"


def printable(value: str) -> str:
    """Escape characters that are not printable."""
    return "".join(
        character if character.isprintable() else quote(character, errors="replace")
        for character in value
    )


def _url(url: str) -> str:
    return f"{url}… (cut)" if len(url) == RECORDED_URL_LENGTH else url


def _width(title: str, values: Iterable[str]) -> int:
    return min(_WIDEST, max(map(len, (title, *values))))
