"""`squidkeeper certificate`."""

from pathlib import Path

import click

from squidkeeper.cli.helper_options import written_state_option


@click.command()
@written_state_option
def certificate(state: Path) -> None:
    """Make the certificates of hosts.

    Squid starts this helper (sslcrtd_program). It answers each request with a
    certificate and its key, which stay in memory.
    """
    from squidkeeper.serving.helpers.certificate import run

    run(state)
