"""What both ways of `squidkeeper log` share: what is wanted, how it is written, what was left out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from squidkeeper.base.formatting import quantity
from squidkeeper.record.log.filters import Selecting
from squidkeeper.record.log.listing import printable

if TYPE_CHECKING:
    from squidkeeper.record.table.lines import Skipped


@dataclass(frozen=True, slots=True)
class WantedRequests:
    """What to show, and how. `newest`: no more than the newest so many."""

    filters: tuple[Selecting, ...]
    since: datetime | None
    until: datetime | None
    newest: int | None
    by: str | None
    as_json: bool
    connects: bool
    drift: bool
    coloured: bool


def write(text: str) -> None:
    """Write to stdout at once; `BrokenPipeError` where its reader has gone."""
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()


def report_skipped(skipped: Skipped) -> None:
    """Report on stderr what the table could not read."""
    report_invalid(skipped.count, skipped.first)
    for damage in skipped.damaged:
        click.echo(f"Damaged: {printable(damage)}", err=True)


def report_invalid(count: int, first: str) -> None:
    """Report invalid lines on stderr."""
    if count:
        click.echo(f"{quantity(count, 'invalid line')} skipped; the first: {printable(first)}", err=True)
