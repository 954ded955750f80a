"""`squidkeeper meter` (floor 9)."""

from pathlib import Path

import click

from squidkeeper.cli.options import helper_options


@click.command()
@helper_options(concurrency=32)
def meter(directory: Path, state: Path, concurrency: int) -> None:
    """Count requests that are under a quota of the policy; Squid's external_acl_type starts this.

    Reads a line for each request (channel-ID, client, user, method, scheme, host, port, SNI, tunnel, token, rule,
    Content-Length, Transfer-Encoding, and the three parts of the request ID). Answers OK, or ERR with the quota that is
    used up. Not to be called by hand.
    """
    from functools import partial

    from squidkeeper.helpers.loop import run
    from squidkeeper.helpers.meter import QuotaScope, answer
    from squidkeeper.metrics import METER
    from squidkeeper.quotas.opening import open_meter

    prepare = partial(QuotaScope, meter=open_meter(directory, state))
    run(METER, prepare, answer, directory, state, concurrency)
