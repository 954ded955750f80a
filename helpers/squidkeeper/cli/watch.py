"""`squidkeeper watch`."""

from functools import partial
from pathlib import Path

import click

from squidkeeper.cli.helper_options import helper_options, lane_option, run_option


@click.command()
@lane_option
@helper_options(concurrency=32)
@run_option
def watch(lane: str, directory: Path, state: Path, concurrency: int, run: Path) -> None:
    """Search requests for secrets, canaries and placeholders of the policy.

    Squid starts this helper (external_acl_type). It answers each line with OK, or with
    ERR, the rule and the reason.
    """
    from squidkeeper.base.helper_metrics import WATCH
    from squidkeeper.serving.credentials.brought_values import brought_values_folder
    from squidkeeper.serving.credentials.fetched_values import FOLDER
    from squidkeeper.serving.credentials.watched_values import WatchedValues
    from squidkeeper.serving.helpers import policy_helper
    from squidkeeper.serving.helpers.watch import Watch, answer

    prepare = partial(
        Watch,
        values=WatchedValues(),
        fetched=run / FOLDER,
        brought=brought_values_folder(run),
    )
    policy_helper.run(
        WATCH,
        prepare,
        answer,
        directory,
        state,
        concurrency,
        policy_helper.Lane(lane),
    )
