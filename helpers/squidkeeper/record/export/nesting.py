"""From a table of dotted names to objects in objects."""

from collections.abc import Mapping
from typing import Any

from squidkeeper.record.export.facts import Fact, Facts

Rows = Mapping[str, str]  # the name in a format, and the name of the fact that stands there


def mapped(rows: Rows, facts: Facts) -> dict[str, Fact]:
    """Name the facts of a record as a format does; a fact that the record lacks is left out."""
    return {name: facts[fact] for name, fact in rows.items() if fact in facts}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make an object of each part of a dotted name: `a.b` is `b` in `a`."""
    top: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        inner = top
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return top
