"""What was found, as a table for a terminal and as JSON. Clients chose the hosts and
paths.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import duration, percent, quantity, timestamp
from squidkeeper.change.replay.replay import SET_APART
from squidkeeper.change.tightening.findings import Findings, KeptFor, Kind, NarrowedRule
from squidkeeper.policy.language.body_texts import body_text
from squidkeeper.policy.language.matching.table import written
from squidkeeper.policy.language.model import Rule
from squidkeeper.record.log.listing import printable_field
from squidkeeper.record.log.record import format_time
from squidkeeper.record.table.rows import as_table

_NARROWED: Final = (
    "rule",
    "requests",
    "share",
    "days",
    "clients",
    "last",
    "holds",
    "field",
    "closes",
    "narrower",
)
_KEPT: Final[Mapping[KeptFor, str]] = {
    KeptFor.CLOSES: "it may be what protects",
    KeptFor.OBSERVES: "it only observes, and nothing that it matches was asked for",
    KeptFor.SCHEDULED: "it holds at some times only",
    KeptFor.TUNNELS: "tunnels were opened by it; no request came in them",
    KeptFor.SESSIONS: "it is for sessions: another one has other values, or some are not known any more",
    KeptFor.BODIES: "bodies decide between it and other rules, and no body is logged",
    KeptFor.DEFAULT: "the default allows, so without it nothing is closed",
    KeptFor.NEEDED: "a test or a quota needs it, or a rule below it would do something else",
}
_OTHERS: Final[Mapping[Kind, str]] = {
    Kind.CLIENT: "clients from which no request came",
    Kind.ROLE: "roles of which no session sent a request",
    Kind.LIST: "lists that held no host of a request",
    Kind.CREDENTIAL: "credentials that no request got",
    Kind.REWRITE: "rewrites that no request needed",
    Kind.PRESET: "presets that nobody used",
    Kind.GRANT: "grants that nobody used",
    Kind.LAPSED_GRANT: "grants that have expired (squidkeeper grant --prune, or --fleet REPOSITORY --prune)",
}
_SHORT: Final = "the access log covers {}: too short to narrow a policy by it, expected {} (--min-days {})"
_NARROWING: Final = ("schemes", "ports", "methods", "paths", "query")
_MONTHLY: Final = "What a monthly job needs looks unused."


def as_text(
    found: Findings, name: str, since: datetime | None, min_days: int
) -> Iterator[str]:
    """Write the findings for a terminal."""
    yield from _head(found, name, since, min_days)
    yield from _unused(found.unused)
    yield from _narrowed(found)
    yield from _kept(found)
    for kind, title in _OTHERS.items():
        names = [other.name for other in found.others if other.kind is kind]
        if names:
            yield f"\n{title}: {printable_field(', '.join(names))}\n"
    if not (found.unused or found.narrowed):
        yield "\nno rule is wider than its use\n"
    remarks = [
        f"not judged ({reason}): {quantity(count, 'request')}: {SET_APART[reason]}\n"
        for reason, count in found.use.set_apart.items()
    ]
    yield "".join(["\n", *remarks]) if remarks else ""


def too_short(found: Findings, min_days: int) -> str | None:
    """Say that the access log is too short to edit a policy by it; None where it is
    not.
    """
    if found.span >= timedelta(days=min_days):
        return None
    covered = duration(found.span.total_seconds())
    return _SHORT.format(
        covered, quantity(min_days, "day"), f"{min_days}; 0 takes any length"
    )


def as_object(
    found: Findings, name: str, revision: str, since: datetime | None, min_days: int
) -> Mapping[str, object]:
    """Return the findings as an object of JSON."""
    use = found.use
    return {
        "policy": {"name": name, "revision": revision},
        "requests": use.requests,
        "addresses": use.addresses,
        "since": since and format_time(since),
        "first": use.first and format_time(use.first),
        "last": use.last and format_time(use.last),
        "too_short": too_short(found, min_days),
        "unused": [
            {**_named(rule), "closes": opened_by(rule)} for rule in found.unused
        ],
        "narrowed": [_narrowed_object(rule, use.requests) for rule in found.narrowed],
        "kept": [{**_named(rule), "reason": reason} for rule, reason in found.kept],
        "others": [{"kind": other.kind, "name": other.name} for other in found.others],
        "set_apart": dict(use.set_apart),
    }


def opened_by(rule: Rule) -> str:
    """Say what a rule opens."""
    fields = written(rule.match)
    lists = [f"list {name}" for name in fields.get("lists", ())]
    parts = [", ".join([*fields.get("hosts", ()), *lists]) or "every host"]
    parts += [
        f"{name} {', '.join(fields[name])}" for name in _NARROWING if name in fields
    ]
    parts += [f"where the body is {body_text(rule.body)}"] if rule.body else []
    parts += [f"meter: {rule.meter}"] if rule.meter else []
    parts += [f"for {', '.join(fields['clients'])}"] if "clients" in fields else []
    return "; ".join(parts)


def _head(
    found: Findings, name: str, since: datetime | None, min_days: int
) -> Iterator[str]:
    use = found.use
    if use.first is None or use.last is None:
        yield "No request was judged.\n"
        return
    period = f"{timestamp(use.first)} to {timestamp(use.last)} UTC"
    addresses = quantity(use.addresses, "address", "addresses")
    yield f"{quantity(use.requests, 'request')} from {addresses} judged by {printable_field(name)}, {period}.\n"
    if since and use.first - since > timedelta(days=1):
        yield f"The access log begins on {timestamp(use.first)}, not at {timestamp(since)}.\n"
    short = too_short(found, min_days)
    if short:
        yield f"{short[0].upper()}{short[1:]}. {_MONTHLY}\n"


def _unused(rules: Iterable[Rule]) -> Iterator[str]:
    rows = [
        [rule.name, _place(rule), _holding(rule), opened_by(rule)] for rule in rules
    ]
    if rows:
        yield f"\nnever used, and closed without them: {quantity(len(rows), 'rule')}\n"
        yield from as_table(*_given(("rule", "place", "holds", "closes"), rows))


def _narrowed(found: Findings) -> Iterator[str]:
    if not found.narrowed:
        return
    requests = quantity(sum(rule.requests for rule in found.narrowed), "request")
    rules = quantity(len(found.narrowed), "rule")
    yield f"\nwider than their use: {rules}; narrower, they still allow all {requests}\n"
    yield from as_table(
        *_given(
            _NARROWED,
            [row for rule in found.narrowed for row in _rows(rule, found.use.requests)],
        )
    )


def _rows(rule: NarrowedRule, requests: int) -> Iterator[list[object]]:
    seen = rule.evidence
    first: list[object] = [
        rule.rule.name,
        rule.requests,
        percent(rule.requests / requests),
        len(seen.days),
    ]
    first += [seen.clients, timestamp(seen.last), _holding(rule.rule)]
    for change in rule.narrowings:
        yield [
            *first,
            str(change.field),
            change.closes,
            ", ".join(change.narrower or ("(left out)",)),
        ]
        first = [""] * len(first)


def _kept(found: Findings) -> Iterator[str]:
    rows = [
        [rule.name, _place(rule), str(rule.action), _holding(rule), _KEPT[why]]
        for rule, why in found.kept
    ]
    if rows:
        yield f"\nnever used, and kept: {quantity(len(rows), 'rule')}\n"
        yield from as_table(
            *_given(("rule", "place", "action", "holds", "because"), rows)
        )


def _given(
    names: tuple[str, ...], rows: Sequence[Sequence[object]]
) -> tuple[list[str], list[list[object]]]:
    places = [place for place in range(len(names)) if any(row[place] for row in rows)]
    return [names[place] for place in places], [
        [row[place] for place in places] for row in rows
    ]


def _named(rule: Rule) -> Mapping[str, object]:
    return {
        "rule": rule.name,
        "place": str(rule.location),
        "holds": _holding(rule) or None,
    }


def _place(rule: Rule) -> str:
    return f"{Path(rule.location.file).name}:{rule.location.line}"


def _holding(rule: Rule) -> str:
    parts = [f"until {timestamp(rule.expires)}"] if rule.expires else []
    return ", ".join([*parts, *([str(rule.when)] if rule.when else [])])


def _narrowed_object(rule: NarrowedRule, requests: int) -> Mapping[str, object]:
    seen = rule.evidence
    return {
        **_named(rule.rule),
        "requests": rule.requests,
        "share": rule.requests / requests,
        "days": len(seen.days),
        "clients": seen.clients,
        "first": format_time(seen.first),
        "last": format_time(seen.last),
        "keeps": rule.requests,
        "fields": [
            {
                "field": change.field,
                "now": change.now,
                "narrower": change.narrower,
                "closes": change.closes,
            }
            for change in rule.narrowings
        ],
    }
