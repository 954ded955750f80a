"""`squidkeeper credential`."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.helper_options import (
    helper_options,
    in_force_option,
    run_option,
    shown_option,
)


@click.command()
@run_option
@shown_option(
    "--wait",
    "wait_seconds",
    metavar="SECONDS",
    type=click.FloatRange(0, 30),
    default=5,
    help="How long a request waits for a secret's first value.",
)
@click.option(
    "--headers",
    "with_headers",
    is_flag=True,
    help="Lines end with the request headers that helpers read.",
)
@in_force_option
@helper_options(concurrency=4)
def credential(
    directory: Path,
    state: Path,
    run: Path,
    wait_seconds: float,
    in_force: frozenset[str],
    concurrency: int,
    *,
    with_headers: bool,
) -> None:
    """Give Squid the headers to inject.

    Squid starts this helper (external_acl_type at adapted_http_access). It answers each
    line with headers, which hold secrets. Never run it by hand: `squidkeeper explain`
    names the credentials.
    """
    from squidkeeper.base.helper_metrics import CREDENTIAL
    from squidkeeper.serving.credentials.brought_values import brought_values_folder
    from squidkeeper.serving.credentials.fetched_values import FOLDER
    from squidkeeper.serving.helpers.credential import Injector, answer
    from squidkeeper.serving.helpers.policy_helper import run as run_helper

    answers = partial(answer, concurrency=concurrency, with_headers=with_headers)
    prepare = partial(
        Injector,
        fetched=run / FOLDER,
        brought=brought_values_folder(run),
        wait_seconds=wait_seconds,
        in_force=in_force,
    )
    run_helper(CREDENTIAL, prepare, answers, directory, state, concurrency)
