"""`squidkeeper publish`."""

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
@path_option("--access-log", help="The log that the reload gate counts by.")
@path_option("--archive", help="The archive of that log.")
def publish(
    directory: Path, state: Path, access_log: Path | None, archive: Path | None
) -> None:
    """Publish the policy to the helpers.

    A helper starts this process where no other publishes the policy. It ends when its
    standard input ends.

    \b
    Exit status:
      1  Another process publishes another policy in the state folder.
    """
    from squidkeeper.base.layout import Layout
    from squidkeeper.serving.helpers.cache_log import write_to_cache_log
    from squidkeeper.serving.publisher import PublisherOptions, run_publisher

    write_to_cache_log()
    usual = Layout.around(directory, state)
    options = PublisherOptions(
        directory, state, access_log or usual.access_log, archive or usual.archive
    )
    try:
        run_publisher(options)
    except StateInUse as error:
        raise click.ClickException(str(error)) from error
