"""`squidkeeper meter`."""

from pathlib import Path

import click

from squidkeeper.cli.helper_options import helper_options


@click.command()
@helper_options(concurrency=32)
def meter(directory: Path, state: Path, concurrency: int) -> None:
    """Count requests that are under a quota of the policy.

    Squid starts this helper (external_acl_type). It answers each line with OK, or with
    ERR and the quota that is used up.
    """
    from functools import partial

    from squidkeeper.base.helper_metrics import METER
    from squidkeeper.serving.helpers.meter import QuotaScope, answer
    from squidkeeper.serving.helpers.policy_helper import run
    from squidkeeper.serving.quotas.opening import open_meter

    prepare = partial(QuotaScope, meter=open_meter(directory, state))
    run(METER, prepare, answer, directory, state, concurrency)
