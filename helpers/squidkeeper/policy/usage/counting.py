"""From a usage as an API writes it to tokens. What is not plainly a usage is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.json_form import parse
from squidkeeper.policy.usage.forms import UsageForm
from squidkeeper.policy.usage.tokens import Usage

MOST_TOKENS: Final = 10**9  # of a request; more is no plain number of tokens
_LONGEST_TEXT: Final = 256  # characters of a model's name or an ID
# types of usages that the usage around them includes
_INCLUDED: Final = frozenset({"message", "fallback_message"})
_OTHER_MODEL: Final = "other model"
Counts = dict[str, int]


def read_counts(form: UsageForm, written: bytes) -> Counts | None:
    """Return the members of a usage that are there; None where one of them is no number
    of tokens.
    """
    usage = read_value(written)
    if not isinstance(usage, dict) or not usage.keys().isdisjoint(form.foreign):
        return None
    try:
        counts = _members(form, usage)
        for entry in _added(form, usage):
            counts[_OTHER_MODEL] = counts.get(_OTHER_MODEL, 0) + ("model" in entry)
            for name, count in _members(form, entry).items():
                counts[_more(name)] = counts.get(_more(name), 0) + count
    except _NotTokensError:
        return None
    return counts


def usage_of(
    form: UsageForm, counts: Counts, model: str, answer_id: str
) -> Usage | None:
    """Return the usage that its members add up to; None where they are no plain usage.

    Some servers leave tokens out of `tokens_out` that the total has. The total then
    decides. Where a part is of another model, the usage has none: it then has the
    dearest price.
    """
    if (
        form.tokens_in[0] not in counts
        or not {*form.tokens_out[:1], form.total} & counts.keys()
    ):
        return None
    tokens_in, tokens_out, cached_in, cache_write = (
        sum(counts.get(name, 0) + counts.get(_more(name), 0) for name in names)
        for names in (
            form.tokens_in,
            form.tokens_out,
            (form.cached_in,),
            (form.cache_write,),
        )
    )
    tokens_out = max(tokens_out, counts.get(form.total, 0) - tokens_in)
    if (
        not 0 < tokens_in <= MOST_TOKENS
        or tokens_out > MOST_TOKENS
        or cached_in > tokens_in
    ):
        return None
    model = "" if counts.get(_OTHER_MODEL) else model
    return Usage(
        model,
        tokens_in,
        tokens_out,
        cached_in,
        min(cache_write, tokens_in - cached_in),
        answer_id,
    )


def read_value(written: bytes) -> object:
    """Parse a value of JSON; None where it is not plain."""
    try:
        return parse(written)
    except UnreadableBody:
        return None


def read_text(written: bytes) -> str:
    """Parse a text of JSON; empty where it is none, or too long for a name."""
    text = read_value(written)
    return text if isinstance(text, str) and len(text) <= _LONGEST_TEXT else ""


class _NotTokensError(Exception):
    """A member is no number of tokens. `read_counts` catches it."""


def _members(form: UsageForm, usage: dict[str, object]) -> Counts:
    found = ((name, _member(usage, name)) for name in form.names)
    return {name: _tokens(value) for name, value in found if value is not None}


def _member(value: object, name: str) -> object:
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _tokens(value: object) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value <= MOST_TOKENS
    ):
        raise _NotTokensError
    return value


def _added(form: UsageForm, usage: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield the usages of the list that the usage around them leaves out."""
    entries = (usage.get(form.added) if form.added else None) or []
    if not isinstance(entries, list):
        raise _NotTokensError
    for entry in entries:
        if not isinstance(entry, dict):
            raise _NotTokensError
        if entry.get("type") not in _INCLUDED:
            yield entry


def _more(name: str) -> str:
    return f"more {name}"
