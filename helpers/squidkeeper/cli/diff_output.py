"""The difference of two policies as text, JSON or Markdown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from squidkeeper.base.formatting import printable, quantity, utc_time
from squidkeeper.change.difference.consequences import Asked, Change, Consequence
from squidkeeper.change.difference.url_comparison import Doubt

if TYPE_CHECKING:
    from squidkeeper.change.difference.groups import RequestDifference, Scope
    from squidkeeper.change.difference.report import DifferenceReport

_SHOWN = 6
_LONGEST = 240  # characters, as of a list of exceptions
# What each change means, and what it means the other way round.
_MEANINGS = {
    Change.OPENED: ("", ""),
    Change.CLOSED: ("", ""),
    Change.ASKS: ("a person may now grant it", "no person may grant it any longer"),
    Change.GRANTABLE: ("grants and approvals could open it", ""),
    Change.PRIVATE: (
        "may now be at a private address",
        "may no longer be at a private address",
    ),
    Change.PASSTHROUGH: ("is no longer decrypted", "is decrypted again"),
    Change.WEBSOCKET: (
        "may now become a WebSocket",
        "may no longer become a WebSocket",
    ),
}
_DOUBTS = {
    Doubt.EXPRESSION: "no request is known that the expressions (regex:) tell apart: read them",
    Doubt.PATHS: "only paths that servers read in several ways can differ",
    Doubt.READINGS: "a path that servers read in several ways may be ambiguous for one of the policies alone",
    Doubt.TARGET: "it depends on where a rewrite leads: read the rewrites, and the credentials for their targets",
    Doubt.LIMIT: "there are too many combinations of patterns",
}


def as_text(found: DifferenceReport) -> str:
    """Write it for a terminal."""
    blocks = [
        "\n".join(_block(difference, found.at, _sides(found)))
        for difference in found.differences
    ]
    blocks += [
        "\n".join(
            f"{'SETTING':<12} {one.name}: {one.before} → {one.after}"
            for one in found.settings
        )
    ]
    return "\n\n".join([*filter(None, blocks), _summary(found)])


def _sides(found: DifferenceReport) -> tuple[str, str]:
    return ("ceiling", "new") if found.is_ceiling else ("before", "after")


def _block(
    difference: RequestDifference, now: datetime, sides: tuple[str, str]
) -> Iterator[str]:
    title = "UNPROVEN" if difference.doubt else difference.change.upper()
    scopes = [scope_text(scope) for scope in difference.scopes]
    yield f"{title:<12} {scopes[0]}"
    yield from (f"{'':<12} {text}" for text in scopes[1:_SHOWN])
    if len(scopes) > _SHOWN:
        yield f"{'':<12} and {quantity(len(scopes) - _SHOWN, 'more line')} (--json has all)"
    yield from (f"  {name:<10} {text}" for name, text in _rows(difference, now, sides))


def _rows(
    difference: RequestDifference, now: datetime, sides: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    if difference.doubt:
        yield "doubt", f"whether {difference.change}: {_DOUBTS[difference.doubt]}"
    elif meaning := _meaning(difference):
        yield "meaning", meaning
    yield sides[0], _consequence_text(difference.before, difference.change)
    yield sides[1], _consequence_text(difference.after, difference.change)
    if difference.example:
        yield "example", example_text(difference.example, now)


def _meaning(difference: RequestDifference) -> str:
    gained, lost = _MEANINGS.get(difference.change, ("", ""))
    return gained if getattr(difference.after, difference.change, False) else lost


def scope_text(scope: Scope) -> str:
    """Write which requests: `agents: GET https on example.com, path /v1/**`."""
    clients, methods = (
        _list(scope.clients) or "any client",
        _list(scope.methods) or "every method",
    )
    ports, hosts = (
        _list(scope.ports) or "on every port",
        _list(scope.hosts) or "every host",
    )
    limits = (("path", scope.paths), ("query", scope.queries), ("", scope.times))
    rest = "".join(
        f", {name} {_list(texts)}".replace(",  ", ", ")
        for name, texts in limits
        if texts
    )
    return printable(f"{clients}: {methods} {ports} on {hosts}{rest}")


def _list(texts: tuple[str, ...]) -> str:
    shown = [
        text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… (--json has all)"
        for text in texts[:_SHOWN]
    ]
    if len(texts) > _SHOWN:
        shown.append(f"{len(texts) - _SHOWN:,} more")
    # a comma may belong to an exception
    return ("; or " if any(", " in text for text in shown) else ", ").join(shown)


def example_text(asked: Asked, now: datetime) -> str:
    """Write a request as `squidkeeper explain` takes it, with its time where that is
    not now.
    """
    at = "" if asked.at == now else f" --at {utc_time(asked.at)}"
    client = f" --client {asked.client}" if asked.client else ""
    user = f" --user {shlex.quote(asked.user)}" if asked.user else ""
    return printable(f"{asked.method} {asked.target}{client}{user}{at}")


def _consequence_text(consequence: Consequence, change: Change) -> str:
    where = (
        f" ({consequence.location.file}:{consequence.location.line})"
        if consequence.location
        else ""
    )
    facts = [text for text in _facts(consequence, change) if text]
    return printable(
        "; ".join([f"{_verdict(consequence)} by {consequence.rule}{where}", *facts])
    )


def _verdict(consequence: Consequence) -> str:
    return "allow" if consequence.allowed else "ask" if consequence.asks else "deny"


def _then(consequence: Consequence) -> str | None:
    spent = consequence.spent
    return f"{_verdict(spent)} by {spent.rule}" if spent else None


def _quotas(consequence: Consequence) -> str:
    return ", then by ".join(
        ", ".join(sorted(counts)) or "no quota" for counts in consequence.quotas
    )


def _meters(consequence: Consequence) -> str:
    return " or ".join(sorted(str(meter or "none") for meter in consequence.meters))


def _facts(consequence: Consequence, change: Change) -> Iterator[str]:
    yield consequence.rewrite
    yield (
        f"credentials {', '.join(consequence.credentials)}"
        if consequence.credentials
        else ""
    )
    yield f"without {', '.join(consequence.strip)}" if consequence.strip else ""
    yield f"connections {consequence.connections}" if consequence.connections else ""
    yield f"through {consequence.upstream}" if consequence.upstream else ""
    if consequence.bodies and change in (Change.BODIES, Change.OPENED, Change.CLOSED):
        yield f"by the first that holds: {', then '.join(map(str, consequence.bodies))}"
    yield f"meter: {_meters(consequence)}" if change is Change.METER else ""
    for count in consequence.counts:
        yield f"{quantity(count.uses, 'use')} of {count.grant}"
    yield f"then {_then(consequence)}" if consequence.spent else ""
    yield f"counted by {_quotas(consequence)}" if change is Change.QUOTAS else ""
    yield (
        f"observed {consequence.observed}"
        if consequence.observed and change is Change.OBSERVED
        else ""
    )


def _summary(found: DifferenceReport) -> str:
    old, new = found.names
    limit = (
        f"\nNOT COMPARED  {found.limit}: there is more than is compared"
        if found.limit
        else ""
    )
    limit += "".join(f"\nUNPROVEN     {_of_sessions(role)}" for role in found.roles)
    if found.same:
        text = (
            f"{new} is within {old}"
            if found.is_ceiling
            else f"{old} and {new} mean the same"
        )
    else:
        proven = sum(
            difference.doubt is None for difference in found.differences
        ) + len(found.settings)
        unproven = sum(difference.doubt is not None for difference in found.differences)
        kind = "wider than" if found.is_ceiling else "different from"
        text = f"{new} is {kind} {old}: {quantity(proven, 'difference')}, {unproven} unproven"
    return f"{text}{limit}"


def _of_sessions(role: str) -> str:
    return f"sessions of the role {role}: entries that can hold for them differ"


def as_json(found: DifferenceReport) -> str:
    """Write it for programs."""
    return json.dumps(
        {
            "same": found.same,
            "old": {
                "name": found.names[0],
                "revision": found.revisions[0],
                "ceiling": found.is_ceiling,
            },
            "new": {"name": found.names[1], "revision": found.revisions[1]},
            "at": found.at.isoformat(timespec="seconds"),
            "differences": [
                _difference_row(difference) for difference in found.differences
            ],
            "settings": [
                {"name": one.name, "before": one.before, "after": one.after}
                for one in found.settings
            ],
            "not_compared": found.limit,
            "unproven_roles": found.roles,
        },
        indent=2,
    )


def _difference_row(difference: RequestDifference) -> dict[str, object]:
    return {
        "change": difference.change,
        "proven": difference.doubt is None,
        "doubt": difference.doubt,
        "requests": [asdict(scope) for scope in difference.scopes],
        "before": _consequence_row(difference.before),
        "after": _consequence_row(difference.after),
        "example": difference.example
        and {
            "method": difference.example.method,
            "url": difference.example.target,
            "client": difference.example.client,
            "user": difference.example.user,
            "at": difference.example.at.isoformat(timespec="seconds"),
        },
    }


def _consequence_row(consequence: Consequence) -> dict[str, object]:
    return {
        "verdict": _verdict(consequence),
        "rule": consequence.rule,
        "location": f"{consequence.location.file}:{consequence.location.line}"
        if consequence.location
        else None,
        "private": consequence.private,
        "passthrough": consequence.passthrough,
        "websocket": consequence.websocket,
        "rewrite": consequence.rewrite or None,
        "credentials": consequence.credentials,
        "strip": consequence.strip,
        "connections": consequence.connections,
        "upstream": consequence.upstream or None,
        "bodies": list(map(str, consequence.bodies)),
        "meter": _meters(consequence),
        "quotas": [sorted(counts) for counts in consequence.quotas],
        "uses": consequence.uses,
        "then": _then(consequence),
        "observed": consequence.observed or None,
    }


def as_markdown(found: DifferenceReport) -> str:
    """Write it for a pull request."""
    lines = [f"**{_escaped(_summary(found))}**"]
    if found.differences:
        lines += [
            "",
            f"| | requests | {' | '.join(_sides(found))} | example |",
            "|---|---|---|---|---|",
        ]
        lines += [
            _markdown_row(difference, found.at) for difference in found.differences
        ]
    if found.settings:
        lines += ["", "| setting | before | after |", "|---|---|---|"]
        lines += [
            f"| {_code(one.name)} | {_code(one.before)} | {_code(one.after)} |"
            for one in found.settings
        ]
    return "\n".join(lines)


def _markdown_row(difference: RequestDifference, now: datetime) -> str:
    title = (
        f"unproven: {difference.change}"
        if difference.doubt
        else f"**{difference.change}**"
    )
    scopes = "<br>".join(
        _code(scope_text(scope)) for scope in difference.scopes[:_SHOWN]
    )
    more = (
        f"<br>{len(difference.scopes) - _SHOWN} more"
        if len(difference.scopes) > _SHOWN
        else ""
    )
    consequences = (
        _code(_consequence_text(consequence, difference.change))
        for consequence in (difference.before, difference.after)
    )
    example = (
        _code(example_text(difference.example, now))
        if difference.example
        else _escaped(_DOUBTS[difference.doubt])
        if difference.doubt
        else ""
    )
    return f"| {title} | {scopes}{more} | {' | '.join(consequences)} | {example} |"


def _code(text: str) -> str:
    """Write text as code in a cell of a table, where nothing of it is markup."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _escaped(text: str) -> str:
    return "".join(
        f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|" else letter for letter in text
    ).replace("\n", "<br>")
