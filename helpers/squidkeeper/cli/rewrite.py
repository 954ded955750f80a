"""`squidkeeper rewrite` (floor 9)."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.options import helper_options, run_option


@click.command()
@run_option
@helper_options(concurrency=0)
def rewrite(directory: Path, state: Path, run: Path, concurrency: int) -> None:
    """Rewrite URLs as the policy says.

    Squid starts this helper (url_rewrite_program). It answers each line with the URL to fetch, which can hold
    secrets. Never run it by hand: use `squidkeeper explain`.
    """
    from squidkeeper.credentials.fetched_values import FOLDER
    from squidkeeper.helpers.loop import run as run_helper
    from squidkeeper.helpers.rewrite import Rewriter, answer
    from squidkeeper.metrics import REWRITE

    run_helper(REWRITE, partial(Rewriter, fetched=run / FOLDER), answer, directory, state, concurrency)
