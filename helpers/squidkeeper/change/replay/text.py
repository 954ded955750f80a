"""A replay as a table for a terminal, and as Markdown for a pull request.

Others chose the URLs.

Query, fragment and password of a URL are left out: `squidkeeper log --request-id ID`
shows the whole record.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from squidkeeper.base.formatting import quantity, timestamp
from squidkeeper.change.replay.replay import SET_APART
from squidkeeper.change.replay.result import (
    Flip,
    FlipGroup,
    FlipKind,
    ReplayResult,
    Total,
)
from squidkeeper.record.log.listing import printable_field
from squidkeeper.record.log.record import format_time, redacted_url, truncate
from squidkeeper.record.table.rows import as_table

_ROWS_SHOWN: Final = 50  # of each kind
_ADDRESSES_SHOWN: Final = 3  # of no client of the policies, of what flips alike
_URL_SHOWN: Final = 120
_NAME_SHOWN: Final = 80
_NONE: Final = "-"
_TITLES: Final = {
    FlipKind.DENIED: "would be denied",
    FlipKind.OPENED: "would be opened",
    FlipKind.CHANGED: "would get another credential or rewrite",
}
# In a code span, `|` still ends a cell of a table, and a backtick the span.
_UNSAFE_IN_CODE: Final = re.compile(r"[`|\r\n]")


@dataclass(frozen=True, slots=True)
class ReplayedNames:
    """How the two policies were named."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a table: a group, or several of one host that flip alike, as those of a
    client of the policy.
    """

    flip: Flip
    client: str
    host: str
    requests: int
    used: int
    urls: int | None
    last: datetime
    example: str

    @property
    def rule(self) -> str:
        """The rule, and that it asks a person."""
        return f"{self.flip.rule} (ask)" if self.flip.asks else self.flip.rule


_COLUMNS: Final[Mapping[str, Callable[[_Row], object]]] = {
    "rule": lambda row: row.rule,
    "was": lambda row: row.flip.was,
    "client": lambda row: row.client,
    "host": lambda row: row.host,
    "requests": lambda row: row.requests,
    "used": lambda row: row.used,
    "urls": lambda row: row.urls,
    "last": lambda row: timestamp(row.last),
    "changes": lambda row: ", ".join(row.flip.changes) or None,
    "observed": lambda row: row.flip.observed,
    "example": lambda row: row.example,
}
# columns that are left out where no row has a value
_WHERE_GIVEN: Final = {
    "urls",
    "changes",
    "observed",
}


def as_text(result: ReplayResult, names: ReplayedNames) -> Iterator[str]:
    """Write the result for a terminal."""
    yield f"{_judged(result)}\nOLD: {printable_field(names.old)}\nNEW: {printable_field(names.new)}\n"
    for kind in result.totals:
        rows, left_out = _rows(result, kind)
        columns = _columns(rows)
        yield f"\n{_heading(result, kind)}\n"
        yield from as_table(
            columns, [[_COLUMNS[name](row) for name in columns] for row in rows]
        )
        yield left_out
    remarks = "".join(f"{line}\n" for line in _remarks(result, printable_field))
    yield f"\n{remarks}" if remarks else ""


def as_markdown(result: ReplayResult, names: ReplayedNames) -> Iterator[str]:
    """Write the result for a pull request: what others chose stands in code spans, so
    nothing in it is Markdown.
    """
    yield f"{_judged(result)} OLD is {_code(names.old)}, NEW is {_code(names.new)}.\n"
    for kind in result.totals:
        rows, left_out = _rows(result, kind)
        columns = _columns(rows)
        yield f"\n### {_heading(result, kind).capitalize()}\n\n"
        yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
        yield from (
            f"| {' | '.join(_cell(_COLUMNS[name](row)) for name in columns)} |\n"
            for row in rows
        )
        yield f"\n{left_out}" if left_out else ""
    remarks = "".join(f"- {line}\n" for line in _remarks(result, _code))
    yield f"\n{remarks}" if remarks else ""


def as_object(result: ReplayResult, names: ReplayedNames) -> Mapping[str, object]:
    """Return the result as an object of JSON, with every group that it has."""
    return {
        "old": {"name": names.old, "revision": result.old},
        "new": {"name": names.new, "revision": result.new},
        "requests": result.requests,
        "first": result.first and format_time(result.first),
        "last": result.last and format_time(result.last),
        "totals": {str(kind): _total(result.total(kind)) for kind in FlipKind},
        "flips": [_flip(group) for group in result.flips],
        "observed": {name: _total(total) for name, total in result.observed.items()},
        "disagreeing": result.disagreeing,
        "set_apart": dict(result.set_apart),
    }


def _flip(group: FlipGroup) -> Mapping[str, object]:
    flip, example = group.flip, group.example
    return {
        "kind": str(flip.kind),
        "rule": flip.rule,
        "was": flip.was,
        "asks": flip.asks,
        "credentials_gained": list(flip.gained),
        "credentials_lost": list(flip.lost),
        "rewrite": flip.rewrite,
        "rewrite_was": flip.rewrite_was,
        "observed": flip.observed,
        "client": group.client,
        "user": group.user,
        "policy_clients": list(group.policy_clients),
        "host": group.host,
        "requests": group.requests,
        "used": group.used,
        "urls": group.urls,
        "first": format_time(group.first),
        "last": format_time(group.last),
        "example": {
            "time": format_time(example.time),
            "method": example.method,
            "url": redacted_url(example.url),
            "request_id": example.request_id,
        },
    }


def _total(total: Total) -> Mapping[str, int]:
    return {"requests": total.requests, "used": total.used, "groups": total.groups}


def _judged(result: ReplayResult) -> str:
    if not result.requests or result.first is None or result.last is None:
        return "No request was judged."
    period = f"{timestamp(result.first)} to {timestamp(result.last)} UTC"
    return f"{quantity(result.requests, 'request')} judged by both policies, {period}."


def _heading(result: ReplayResult, kind: FlipKind) -> str:
    return f"{_TITLES[kind]}: {_requests(result.total(kind))}"


def _rows(result: ReplayResult, kind: FlipKind) -> tuple[list[_Row], str]:
    alike: dict[tuple[Flip, str], list[FlipGroup]] = {}
    for group in result.of(kind):
        alike.setdefault((group.flip, group.host), []).append(group)
    blocks = sorted(alike.values(), key=_most_used_first)
    rows = [
        row
        for groups in blocks
        for row in (*_rows_of_clients(groups), *_rows_of_addresses(groups))
    ]
    more = max(0, len(rows) - _ROWS_SHOWN)
    groups_not_there = result.total(kind).groups - len(result.of(kind))
    if not more and not groups_not_there:
        return rows, ""
    return rows[
        :_ROWS_SHOWN
    ], f"… and {quantity(more + groups_not_there, 'more row')}: --json has more\n"


def _most_used_first(groups: list[FlipGroup]) -> tuple[int, int]:
    return -sum(group.used for group in groups), -sum(
        group.requests for group in groups
    )


def _rows_of_clients(groups: list[FlipGroup]) -> Iterator[_Row]:
    members: dict[tuple[str, ...], list[FlipGroup]] = {}
    for group in groups:
        if group.policy_clients:
            members.setdefault(group.policy_clients, []).append(group)
    for names, members_of_client in sorted(
        members.items(), key=lambda item: _most_used_first(item[1])
    ):
        yield _row(
            members_of_client, f"{', '.join(names)}: {_members(members_of_client)}"
        )


def _members(groups: list[FlipGroup]) -> str:
    if len(groups) == 1:
        return groups[0].client_name
    addresses = quantity(
        len({group.client for group in groups}), "address", "addresses"
    )
    users = {group.user for group in groups if group.user is not None}
    return f"{quantity(len(users), 'user')}, {addresses}" if users else addresses


def _rows_of_addresses(groups: list[FlipGroup]) -> Iterator[_Row]:
    others = [group for group in groups if not group.policy_clients]
    shown = len(others) if len(others) <= _ADDRESSES_SHOWN + 1 else _ADDRESSES_SHOWN
    yield from (_row([group], group.client_name) for group in others[:shown])
    if rest := others[shown:]:
        yield _row(rest, f"{len(rest)} others")


def _row(groups: list[FlipGroup], client: str) -> _Row:
    shown = max(groups, key=lambda group: (group.used > 0, group.last))
    return _Row(
        flip=shown.flip,
        client=truncate(client, _NAME_SHOWN)[0],
        host=truncate(shown.host, _NAME_SHOWN)[0],
        requests=sum(group.requests for group in groups),
        used=sum(group.used for group in groups),
        urls=shown.urls if len(groups) == 1 else None,
        last=max(group.last for group in groups),
        example=_example(shown),
    )


def _example(group: FlipGroup) -> str:
    url, cut = truncate(redacted_url(group.example.url), _URL_SHOWN)
    return f"{truncate(group.example.method, _NAME_SHOWN)[0]} {url}{'…' if cut else ''}"


def _remarks(result: ReplayResult, quoted: Callable[[str], str]) -> Iterator[str]:
    if result.requests and not result.totals:
        yield "nothing would be denied, opened or changed"
    for observed, total in result.observed.items():
        yield f"NEW would record {quoted(observed)} as observed: {_requests(total)}"
    if result.disagreeing:
        yield f"decided otherwise than by OLD when they were logged: {quantity(result.disagreeing, 'request')}"
    for reason, count in result.set_apart.items():
        yield f"not judged ({reason}): {quantity(count, 'request')}: {SET_APART[reason]}"


def _requests(total: Total) -> str:
    return f"{quantity(total.requests, 'request')}, {total.used:,} of them used"


def _columns(rows: list[_Row]) -> list[str]:
    return [
        name
        for name, value in _COLUMNS.items()
        if name not in _WHERE_GIVEN or any(map(value, rows))
    ]


def _cell(value: object) -> str:
    if value is None:
        return _NONE
    return f"{value:,}" if isinstance(value, int) else _code(str(value))


def _code(text: str) -> str:
    escaped = _UNSAFE_IN_CODE.sub(lambda found: f"%{ord(found[0]):02X}", text)
    return f"`{printable_field(escaped)}`"
