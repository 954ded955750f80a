"""`squidkeeper why --fleet`: each gateway answers for itself, with its policy, secrets
and cache.log.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.cli.output import show_json
from squidkeeper.record.log.listing import printable_field

if TYPE_CHECKING:
    from squidkeeper.record.table.sources import Answer, LiveGateways

_SHOWN_BYTES: Final = 1_000_000  # of each gateway
_NOTHING_TO_SAY: Final = 2


def ask_fleet(
    fleet: LiveGateways, names: Collection[str], words: Sequence[str], *, as_json: bool
) -> int:
    """Show what `why` tells on gateways, of `names` if there are any; return the exit
    status.
    """
    from squidkeeper.record.table.sources import ask

    with TemporaryDirectory(prefix="squidkeeper-why-") as folder:
        answers = [*ask(fleet.of(names), ("why", *words), Path(folder))]
        told = {
            answer.gateway: _output(answer) for answer in answers if not answer.problem
        }
    problems = [answer.problem for answer in answers if answer.problem]
    if as_json:
        show_json(
            {
                "gateways": {name: _parsed(text) for name, text in told.items()},
                "missing": problems,
            }
        )
    for name, text in ({} if as_json else told).items():
        click.echo(
            f"{name}:\n"
            + "".join(f"{printable_field(line)}\n" for line in text.splitlines())
        )
    for problem in problems:
        click.echo(printable_field(f"Not answered: {problem}"), err=True)
    statuses = {answer.status for answer in answers}
    return (
        _NOTHING_TO_SAY
        if problems or statuses == {_NOTHING_TO_SAY}
        else int(1 in statuses)
    )


def _output(answer: Answer) -> str:
    with answer.output.open("rb") as file:
        return file.read(_SHOWN_BYTES).decode("utf-8", "replace")


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
