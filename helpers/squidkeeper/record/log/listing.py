"""Requests as text: a table, the lines as logged, or drift.

The output is safe for a terminal.

Values are shown as they are logged, percent-encoded. Other characters that are not
printable are escaped, because the log may come from anywhere.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

from squidkeeper.policy.url import RECORDED_URL_LENGTH
from squidkeeper.record.log.record import NONE, Record, client_name, decode_field

_COLOURS: Final = {
    "allow": "\x1b[32mallow\x1b[0m",
    "deny": "\x1b[31mdeny\x1b[0m",
    NONE: "\x1b[33m-\x1b[0m",
}
_REQUEST_TITLES: Final = (
    "TIME",
    "CLIENT",
    "VERDICT",
    "RULE",
    "STATUS",
    "METHOD",
    "MS",
    "ERROR",
    "URL",
)
_FINDING_TITLES: Final = ("TIME", "CLIENT", "DRIFT", "RULE", "STATUS", "METHOD", "URL")
_FINDING_WIDTHS: Final = {
    "TIME": 24,
    "CLIENT": 15,
    "DRIFT": 10,
    "RULE": 18,
    "STATUS": 6,
    "METHOD": 7,
}
_NUMBERS: Final = ("STATUS", "MS")
# Columns to shorten, or to leave out (0), in this order, until the rest has room.
_SHORTER: Final = (
    ("TIME", 19),
    ("MS", 0),
    ("CLIENT", 15),
    ("RULE", 18),
    ("METHOD", 0),
    ("TIME", 8),
    ("RULE", 12),
    ("ERROR", 0),
    ("CLIENT", 12),
    ("RULE", 10),
    ("CLIENT", 0),
    ("RULE", 0),
)
_GAP: Final = "  "
_LEAST_URL: Final = 20
_TIME_OF_DAY: Final = slice(11, 19)
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
    return RequestRow(
        time=record.time,
        client=client_name(record),
        verdict=record.verdict,
        rule=record.rule,
        status=record.status,
        method=record.method,
        duration_ms=record.duration_ms,
        error=record.error,
        url=record.url,
    )


def finding_row(record: Record, kind: str, rule: str) -> FindingRow:
    """Make the row of a finding."""
    return FindingRow(
        time=record.time,
        client=client_name(record),
        kind=kind,
        rule=rule,
        status=record.status,
        method=record.method,
        url=record.url,
    )


class _Columns:
    """The format of a row. Without `terminal`, the columns of a terminal, no value is
    cut.
    """

    def __init__(
        self, titles: tuple[str, ...], widths: Mapping[str, int], terminal: int | None
    ) -> None:
        self._titles = titles
        self._widths = widths if terminal is None else _fitting(widths, terminal)
        taken = sum(self._widths.values()) + len(_GAP) * len(self._widths)
        self._left = None if terminal is None else terminal - taken
        fields = [
            f"{{{number}:{'>' if title in _NUMBERS else '<'}{self._widths[title]}}}"
            for number, title in enumerate(titles)
            if title in self._widths
        ]
        self._row = _GAP.join((*fields, f"{{{len(titles) - 1}}}\n"))

    @property
    def header(self) -> str:
        """The line of the titles."""
        return self._row.format(*self._titles)

    def line(self, values: Sequence[object]) -> str:
        """Write a row; `values` has one for each title."""
        if self._left is not None:
            values = [*map(self._cut, self._titles, map(str, values))]
        row = self._row.format(*values)
        return row if row[:-1].isprintable() else f"{printable_field(row[:-1])}\n"

    def _cut(self, title: str, value: str) -> str:
        width = self._widths.get(title)
        if width is None:
            return shortened(value, self._left or 0)
        if title == "TIME":
            return value[_TIME_OF_DAY if width < len("2026-12-02") else slice(width)]
        return shortened(value, width)


def shortened(value: str, width: int) -> str:
    """Leave out the middle of a longer value, which may be a URL; its host comes
    first.
    """
    value = printable_field(value)
    value = value.removeprefix("https://") if len(value) > width else value
    if len(value) <= width:
        return value
    end = max(0, width - 1) // 3
    return f"{value[: max(0, width - 1 - end)]}…{value[len(value) - end :]}"


def _fitting(widths: Mapping[str, int], terminal: int) -> dict[str, int]:
    fitting = dict(widths)
    for title, width in _SHORTER:
        taken = sum(fitting.values()) + len(_GAP) * len(fitting)
        if taken + _LEAST_URL <= terminal:
            break
        if title in fitting:
            fitting[title] = min(fitting[title], width)
        if not width:
            fitting.pop(title, None)
    return fitting


class RequestTable:
    """A line for each request, under a header; the first rows set the widths.

    The URL is last, and complete unless a terminal has no room for it.
    """

    def __init__(
        self, *, coloured: bool, with_error: bool, terminal: int | None = None
    ) -> None:
        self._coloured = coloured
        self._with_error = with_error
        self._terminal = terminal
        self._columns: _Columns | None = None

    def lines(self, rows: Iterable[RequestRow]) -> str:
        """Write rows."""
        rows = list(rows)
        if not rows:
            return ""
        header, columns = "", self._columns
        if columns is None:
            self._columns = columns = self._measured(rows)
            header = columns.header
        return header + "".join(self._line(columns, row) for row in rows)

    def _measured(self, rows: list[RequestRow]) -> _Columns:
        widths = {
            "TIME": 24,
            "CLIENT": _width("CLIENT", (row.client for row in rows)),
            "VERDICT": 7,
            "RULE": _width("RULE", (row.rule for row in rows)),
            "STATUS": 6,
            "METHOD": 7,
            "MS": 6,
        }
        if self._with_error:
            widths["ERROR"] = _width("ERROR", (row.error for row in rows))
        return _Columns(_REQUEST_TITLES, widths, self._terminal)

    def _line(self, columns: _Columns, shown: RequestRow) -> str:
        row = columns.line((*shown[:-1], _url(shown.url)))
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

    def __init__(self, terminal: int | None = None) -> None:
        self._columns = _Columns(_FINDING_TITLES, _FINDING_WIDTHS, terminal)
        self._header = self._columns.header

    def lines(self, rows: Iterable[FindingRow]) -> str:
        """Write rows."""
        written = "".join(
            self._columns.line((*row[:-1], _url(row.url))) for row in rows
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


def printable_field(value: str) -> str:
    """Escape characters that are not printable."""
    return "".join(
        character if character.isprintable() else quote(character, errors="replace")
        for character in value
    )


def shown_field(value: str) -> str | None:
    """Decode a field for a page, a label or a message: what is not printable in it
    stays encoded.
    """
    decoded = decode_field(value)
    return None if decoded is None else printable_field(decoded)


def _url(url: str) -> str:
    return f"{url}… (cut)" if len(url) == RECORDED_URL_LENGTH else url


def _width(title: str, values: Iterable[str]) -> int:
    return min(_WIDEST, max(map(len, (title, *values))))
