"""`squidkeeper rewrite`."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.helper_options import helper_options, run_option


@click.command()
@run_option
@helper_options(concurrency=0)
def rewrite(directory: Path, state: Path, run: Path, concurrency: int) -> None:
    """Rewrite URLs as the policy says.

    Squid starts this helper (url_rewrite_program). It answers each line with the URL to
    fetch, which can hold secrets. Never run it by hand: use `squidkeeper explain`.
    """
    from squidkeeper.base.helper_metrics import REWRITE
    from squidkeeper.serving.credentials.brought_values import brought_values_folder
    from squidkeeper.serving.credentials.fetched_values import FOLDER
    from squidkeeper.serving.helpers.policy_helper import run as run_helper
    from squidkeeper.serving.helpers.rewrite import Rewriter, answer

    run_helper(
        REWRITE,
        partial(Rewriter, fetched=run / FOLDER, brought=brought_values_folder(run)),
        answer,
        directory,
        state,
        concurrency,
    )
