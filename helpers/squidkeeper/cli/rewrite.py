"""`squidkeeper rewrite` (floor 9)."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.options import helper_options, run_option


@click.command()
@run_option
@helper_options(concurrency=0)
def rewrite(directory: Path, state: Path, run: Path, concurrency: int) -> None:
    """Rewrite URLs as the policy says; Squid's url_rewrite_program starts this.

    Reads a line for each request (the URL, then client, user, method, scheme, host, port, SNI, tunnel, token) and
    answers each with the URL that is to be fetched. Its output can hold secrets, as parameters: never call it by hand;
    use explain.
    """
    from squidkeeper.credentials.fetched_values import FOLDER
    from squidkeeper.helpers.loop import run as run_helper
    from squidkeeper.helpers.rewrite import Rewriter, answer
    from squidkeeper.metrics import REWRITE

    run_helper(REWRITE, partial(Rewriter, fetched=run / FOLDER), answer, directory, state, concurrency)
