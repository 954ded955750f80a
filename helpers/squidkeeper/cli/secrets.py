"""`squidkeeper secrets`."""

import logging
import sys
from pathlib import Path

import click

from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    run_option,
    state_option,
)
from squidkeeper.cli.options import DEFAULT_LAYOUT


@click.command()
@policy_option
@state_option()
@run_option
@path_option(
    "--commands",
    default=DEFAULT_LAYOUT.commands,
    help="The folder of the programs that secrets of the kind 'command' may run.",
)
def secrets(directory: Path, state: Path, run: Path, commands: Path) -> None:
    """Fetch the secrets of the policy that have a source, and renew them.

    Run it beside Squid until SIGTERM, as an account of its own in Squid's group. It
    writes values into files of the run folder, for Squid's account.
    `secrets/status.json` there has the results.
    """
    from squidkeeper.services.fetching.process import FetchingOptions, run_fetching

    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    # libraries log words of a source's answer at this level
    logging.getLogger("squidkeeper").setLevel(logging.INFO)
    run_fetching(FetchingOptions(directory, state, run, commands))
