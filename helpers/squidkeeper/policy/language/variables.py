"""Where a policy names the variables of sessions: `{session.NAME}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

from squidkeeper.base.errors import PatternError

VariableValues = Mapping[str, tuple[str, ...]]
BEGINNING: Final = "{session."
REFERENCE: Final = re.compile(r"\{session\.([a-z][a-z0-9_]{0,31})\}")


def named_variables(text: str) -> tuple[str, ...]:
    """Name the variables that a text refers to, each once; `PatternError` for what
    looks like a reference and is none.
    """
    if BEGINNING not in text:
        return ()
    if BEGINNING in REFERENCE.sub("", text):
        raise PatternError(
            f"{text!r} holds {BEGINNING!r} and no name, expected one such as {{session.repo}}"
        )
    return tuple(dict.fromkeys(REFERENCE.findall(text)))


def with_values(text: str, values: VariableValues) -> Iterator[str]:
    """Yield a text with every choice of values in place of its variables.

    No value holds what a pattern or a reference begins with.
    """
    names = tuple(dict.fromkeys(REFERENCE.findall(text)))
    for chosen in product(*(values[name] for name in names)):
        value_of = dict(zip(names, chosen, strict=True))
        yield REFERENCE.sub(lambda found: value_of[found[1]], text)  # noqa: B023 - used at once
