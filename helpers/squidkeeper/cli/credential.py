"""`squidkeeper credential` (floor 9)."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.options import helper_options, in_force_option, run_option, shown_option


@click.command()
@run_option
@shown_option(
    "--wait",
    "wait_seconds",
    metavar="SECONDS",
    type=click.FloatRange(0, 30),
    default=5,
    help="How long a request waits for the first value of a secret that is fetched.",
)
@click.option("--headers", "with_headers", is_flag=True, help="A line ends with the request headers that helpers read.")
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
    """Give Squid the headers to inject; its external_acl_type at adapted_http_access starts this.

    Reads a line for each request (channel-ID, client, user, method, scheme, host, port, SNI, tunnel, token, the
    URL asked for, the URL fetched, the parameters added, with --headers the request headers that helpers read) and
    answers each with a header's value an annotation, or ERR. Its output holds secrets: never call it by hand; use
    explain, which names the credentials.
    """
    from squidkeeper.credentials.fetched_values import FOLDER
    from squidkeeper.helpers.credential import Injector, answer
    from squidkeeper.helpers.loop import run as run_helper
    from squidkeeper.metrics import CREDENTIAL

    answers = partial(answer, concurrency=concurrency, with_headers=with_headers)
    prepare = partial(Injector, fetched=run / FOLDER, wait_seconds=wait_seconds, in_force=in_force)
    run_helper(CREDENTIAL, prepare, answers, directory, state, concurrency)
