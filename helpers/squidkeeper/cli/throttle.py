"""`squidkeeper throttle`."""

from pathlib import Path

import click

from squidkeeper.cli.helper_options import shown_option, written_state_option


@click.command()
@click.option(
    "--scope",
    type=click.Choice(["client", "surplus"]),
    required=True,
    help="client: wait for the client's turn. surplus: wait longer than --longest.",
)
@shown_option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=10,
    help="Denials a second of one client, and of all the surplus.",
)
@shown_option(
    "--burst",
    metavar="N",
    type=click.IntRange(1),
    default=200,
    help="Denials of one client without delay, after a quiet time.",
)
@shown_option(
    "--longest",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=5,
    help="The longest wait for a client's turn; longer waits are surplus (a minute at most).",
)
@written_state_option
@shown_option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(100, 600),
    default=600,
    help="concurrency= of squid.conf.",
)
def throttle(
    scope: str, rate: float, burst: int, longest: float, state: Path, concurrency: int
) -> None:
    """Delay the denials of a client that has too many of them.

    Squid starts this helper (external_acl_type). It answers each line when it is due.
    """
    from squidkeeper.base.helper_metrics import THROTTLE
    from squidkeeper.serving.helpers.delayed_replies import ReleaseChannel, run
    from squidkeeper.serving.helpers.throttle import Limits, Throttle, answer_surplus

    releases = ReleaseChannel(listens=scope == "surplus")
    if scope == "client":
        turns = Throttle(Limits(rate, burst, longest), concurrency, releases.send)
        run(THROTTLE, turns.answer, state, concurrency, releases)
    else:
        run(THROTTLE, answer_surplus, state, concurrency, releases)
