"""`squidkeeper bodies`."""

import logging
import sys
from pathlib import Path

import click

from squidkeeper.base.errors import ListenFailed
from squidkeeper.cli.exporter import Address
from squidkeeper.cli.helper_options import policy_option, shown_option, state_option
from squidkeeper.cli.options import DEFAULT_LAYOUT


@click.command()
@shown_option(
    "--listen",
    metavar="ADDRESS:PORT",
    type=Address(),
    default=DEFAULT_LAYOUT.bodies,
    help="Where Squid asks. Several processes can share it.",
)
@policy_option
@state_option()
@shown_option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=5,
    help="Denials a second of one client, by this process.",
)
@shown_option(
    "--burst",
    metavar="N",
    type=click.IntRange(1),
    default=100,
    help="Denials of one client without delay, after a quiet time.",
)
def bodies(
    listen: tuple[str, int], directory: Path, state: Path, rate: float, burst: int
) -> None:
    """Judge the bodies of requests, until SIGTERM.

    Squid asks this service over ICAP where a rule of the policy has `body`. It denies a
    request while no process of it answers.

    \b
    Exit status:
      1  It cannot listen.
    """
    from squidkeeper.services.bodies.process import BodiesOptions, run_bodies

    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    logging.getLogger("squidkeeper").setLevel(logging.INFO)
    try:
        run_bodies(BodiesOptions(listen, directory, state, DEFAULT_LAYOUT, rate, burst))
    except ListenFailed as error:
        raise click.ClickException(
            f"{error}: stop what listens there or choose another"
        ) from error
