"""`squidkeeper secrets` (floor 9)."""

import logging
import sys
from pathlib import Path

import click

from squidkeeper.cli.options import policy_option, run_option, shown_option, state_option


@click.command()
@policy_option
@state_option("The state folder, of which the revision in force is read.")
@run_option
@shown_option(
    "--commands",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/squidkeeper/commands"),
    help="The only folder whose programs a secret of the kind 'command' may run.",
)
def secrets(directory: Path, state: Path, run: Path, commands: Path) -> None:
    """Fetch the secrets of the policy that have a source to fetch them from, and renew them, until SIGTERM.

    Run it beside Squid, as an account of its own in Squid's group. It writes each value into a file in the run folder,
    which Squid's account can read, and what it did, without values, into `secrets/status.json` there.
    """
    from squidkeeper.fetching.process import FetchingOptions, run_fetching

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="squidkeeper: %(message)s")
    logging.getLogger("squidkeeper").setLevel(logging.INFO)  # libraries log words of a source's answer at this level
    run_fetching(FetchingOptions(directory, state, run, commands))
