"""`squidkeeper throttle` (floor 9)."""

from pathlib import Path

import click

from squidkeeper.cli.options import shown_option, written_state_option


@click.command()
@click.option(
    "--scope",
    type=click.Choice(["client", "surplus"]),
    required=True,
    help="client: hold a denial until it is the client's turn. surplus: hold what would wait longer than --longest.",
)
@shown_option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=10,
    help="Denials a second of one client, and of all the surplus together.",
)
@shown_option(
    "--burst",
    metavar="N",
    type=click.IntRange(1),
    default=200,
    help="Denials of one client that are answered at once, after a quiet time.",
)
@shown_option(
    "--longest",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=5,
    help="The longest wait for a client's turn; what would wait longer is surplus, and waits for a minute at most.",
)
@written_state_option("Where counts are kept.")
@shown_option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(100, 600),
    default=600,
    help="The same number as concurrency= in squid.conf.",
)
def throttle(scope: str, rate: float, burst: int, longest: float, state: Path, concurrency: int) -> None:
    """Delay the denials of a client that has too many of them; Squid's external_acl_type starts this.

    Reads a line for each denial (channel-ID and client; at surplus scope channel-ID and the time that the first answer
    named) and answers it when it is due. The answer changes nothing but the time. Not to be called by hand.
    """
    from squidkeeper.helpers.delayed_replies import ReleaseChannel, run
    from squidkeeper.helpers.throttle import Limits, Throttle, answer_surplus
    from squidkeeper.metrics import THROTTLE

    releases = ReleaseChannel(listens=scope == "surplus")
    if scope == "client":
        turns = Throttle(Limits(rate, burst, longest), concurrency, releases.send)
        run(THROTTLE, turns.answer, state, concurrency, releases)
    else:
        run(THROTTLE, answer_surplus, state, concurrency, releases)
