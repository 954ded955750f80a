"""`squidkeeper publish`."""

import logging
import sys
from pathlib import Path

import click

from squidkeeper.base.errors import StateInUse
from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    written_state_option,
)


@click.command()
@policy_option
@written_state_option
@click.option(
    "--service", is_flag=True, help="Publish into the folder STATE-published."
)
@path_option("--access-log", help="The log that the reload gate counts by.")
@path_option("--archive", help="The archive of that log.")
def publish(
    directory: Path,
    state: Path,
    service: bool,
    access_log: Path | None,
    archive: Path | None,
) -> None:
    """Publish the policy to the helpers.

    install.sh has a service run it, as an account of its own, until SIGTERM. Without
    that service, a helper starts it where no other process publishes the policy. It
    then ends when its standard input does.

    \b
    Exit status:
      1  Another process publishes there, or this account cannot write there.
    """
    from squidkeeper.base.layout import Layout
    from squidkeeper.serving.helpers.cache_log import write_to_cache_log
    from squidkeeper.serving.publisher import (
        PublisherOptions,
        run_as_child,
        run_as_service,
    )

    usual = Layout.around(directory, state)
    options = PublisherOptions(
        directory, state, access_log or usual.access_log, archive or usual.archive
    )
    if not service:
        write_to_cache_log()
        run_as_child(options)
        return
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    try:
        run_as_service(options)
    except StateInUse as error:
        raise click.ClickException(str(error)) from error
