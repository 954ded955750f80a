"""Grants as people read them on a terminal: hosts in punycode, what is not printable
escaped.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from squidkeeper.base.formatting import duration, printable, quantity
from squidkeeper.change.approvals.granting import Granted
from squidkeeper.change.approvals.new_grant import Effect, spelled
from squidkeeper.policy.engine import Decision
from squidkeeper.policy.language.matching.table import written
from squidkeeper.policy.language.model import Rule

_CLOSING_AT_MOST: Final = 5
_SHOWN: Final = ("hosts", "schemes", "ports", "paths", "methods")
WAITS: Final = (
    "Not in force yet: it waits for an edit of the policy that is not in "
    "force (`squidkeeper reload`, and cache.log)."
)


def granted_lines(
    granted: Granted, now: datetime, *, waits: bool = False
) -> Iterator[str]:
    """Tell what was granted, what its requests get, and what is closed all the same;
    `waits`: for an edit.
    """
    effect, one = granted.effect, granted.grant
    if granted.file is None:
        openers = ", ".join(
            f"{found.rule}{_at(found.location)}{_for_bodies(found)}"
            for found in effect.openers
        )
        yield f"Open already, by {printable(openers)}: nothing was granted."
        yield from _warnings(granted)
        if waits:
            yield WAITS
        return
    yield f"Granted {one.name} {until(one, now)}, in {granted.file}:"
    yield from (f"  {name:<11} {text}" for name, text in described(one))
    yield from (f"  {name:<11} {text}" for name, text in _effects(effect))
    yield from _warnings(granted)
    yield WAITS if waits else "In force within 3 seconds."


def _warnings(granted: Granted) -> Iterator[str]:
    yield from (f"  {'warning':<11} {printable(text)}" for text in granted.warnings)


def _effects(effect: Effect) -> Iterator[tuple[str, str]]:
    yield from (("credential", printable(name)) for name in effect.credentials)
    parts = (
        f"a part, by {found.rule}{_at(found.location)}{_for_bodies(found)}"
        for found in effect.openers
    )
    yield from (("open before", part) for part in parts)
    named = {found.rule: _at(found.location) for found in effect.deniers}
    named |= {rule.name: _at(rule.location) for rule in effect.closing}
    for number, (name, place) in enumerate(named.items()):
        if number == _CLOSING_AT_MOST:
            yield "not opened", quantity(len(named) - number, "more rule")
            return
        yield "not opened", f"what {printable(name)}{place} denies"


def _for_bodies(decision: Decision) -> str:
    return ", for some bodies" if decision.by_body else ""


def _at(location: object) -> str:
    return f" ({location})" if location else ""


def until(rule: Rule, now: datetime) -> str:
    """Tell when a grant lapses."""
    expires = rule.expires or now
    return f"until {expires.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({duration((expires - now).total_seconds())})"


def described(rule: Rule) -> Iterator[tuple[str, str]]:
    """Return the fields of a grant as text for a terminal."""
    match = rule.match
    texts = {name: _joined(values) for name, values in written(match).items()}
    texts["hosts"] = _joined(map(spelled, match.hosts or ()))
    shown = ("paths", "methods") if match.urls else _SHOWN
    fields = (
        ("clients", texts.get("clients", "any client")),
        ("URLs", texts.get("urls", "")),
        *((name, texts.get(name, "")) for name in shown),
        ("uses", f"{rule.uses:,} at most" if rule.uses is not None else ""),
        ("reason", printable(rule.reason or "")),
        ("by", printable(rule.owner or "")),
    )
    return ((name, text) for name, text in fields if text)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(map(printable, texts))
