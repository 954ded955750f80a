"""`squidkeeper rewrite` (floor 6)."""

from __future__ import annotations

from pathlib import Path

import click

from squidkeeper.cli.options import helper_options


@click.command()
@helper_options(concurrency=0)
def rewrite(directory: Path, state: Path, concurrency: int) -> None:
    """Rewrite URLs as the policy says; Squid's url_rewrite_program starts this.

    Reads a line for each request (the URL, then client, user, method, scheme, host, port, SNI, tunnel) and answers
    each with the URL that is to be fetched. Not to be called by hand: use explain.
    """
    from squidkeeper.helpers.host_matches import HostMatches
    from squidkeeper.helpers.loop import run
    from squidkeeper.helpers.rewrite import answer
    from squidkeeper.metrics import REWRITE

    run(REWRITE, HostMatches, answer, directory, state, concurrency)
