"""`squidkeeper maintain` (floor 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from squidkeeper.maintenance.process import Task


@click.command()
def maintain() -> None:
    """Keep the gateway's surroundings in order, until it is told to end (SIGTERM).

    Run it beside Squid, as Squid's account. A task that fails is logged and tried again each second.
    """
    import logging
    import sys

    from squidkeeper.maintenance.process import run

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s")
    tasks: list[Task] = []
    run(tasks)
