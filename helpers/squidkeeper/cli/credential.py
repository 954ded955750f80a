"""`squidkeeper credential` (floor 6)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.options import helper_options


@click.command()
@helper_options(concurrency=4)
def credential(directory: Path, state: Path, concurrency: int) -> None:
    """Give Squid the headers to inject; its external_acl_type at adapted_http_access starts this.

    Reads a line for each request (channel-ID, client, user, method, scheme, host, port, SNI, tunnel, the URL asked
    for, the URL fetched) and answers each with a header's value an annotation, or ERR. Its output holds secrets: never
    call it by hand; use explain, which names the credentials.
    """
    from squidkeeper.helpers.credential import Injector, answer
    from squidkeeper.helpers.loop import run
    from squidkeeper.metrics import CREDENTIAL

    run(CREDENTIAL, Injector, partial(answer, concurrency=concurrency), directory, state, concurrency)
