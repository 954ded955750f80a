"""`squidkeeper certificate` (floor 9)."""

from pathlib import Path

import click

from squidkeeper.cli.options import written_state_option


@click.command()
@written_state_option("Where counts are kept.")
def certificate(state: Path) -> None:
    """Make the certificates of hosts; Squid's sslcrtd_program starts this.

    Reads a request for each tunnel (the host, the CA with its key, and the certificate of the origin, if it was asked)
    and answers with a certificate and its key. They are kept in memory only. Not to be called by hand.
    """
    from squidkeeper.helpers.certificate import run

    run(state)
