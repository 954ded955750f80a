"""`squidkeeper credential` (floor 6)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.options import helper_options


@click.command()
@click.option("--headers", "with_headers", is_flag=True, help="A line ends with the request headers that helpers read.")
@helper_options(concurrency=4)
def credential(directory: Path, state: Path, concurrency: int, *, with_headers: bool) -> None:
    """Give Squid the headers to inject; its external_acl_type at adapted_http_access starts this.

    Reads a line for each request (channel-ID, client, user, method, scheme, host, port, SNI, tunnel, the URL asked
    for, the URL fetched) and answers each with a header's value an annotation, or ERR. Its output holds secrets: never
    call it by hand; use explain, which names the credentials.
    """
    from squidkeeper.helpers.credential import Injector, answer
    from squidkeeper.helpers.loop import run
    from squidkeeper.metrics import CREDENTIAL

    answers = partial(answer, concurrency=concurrency, with_headers=with_headers)
    run(CREDENTIAL, Injector, answers, directory, state, concurrency)
