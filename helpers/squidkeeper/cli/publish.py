"""`squidkeeper publish`."""

from pathlib import Path

import click

from squidkeeper.base.errors import StateInUse
from squidkeeper.cli.helper_options import policy_option, written_state_option


@click.command()
@policy_option
@written_state_option
def publish(directory: Path, state: Path) -> None:
    """Publish the policy to the helpers.

    A helper starts this process where no other publishes the policy. It ends when its
    standard input ends.

    \b
    Exit status:
      1  Another process publishes another policy in the state folder.
    """
    from squidkeeper.serving.helpers.cache_log import write_to_cache_log
    from squidkeeper.serving.publisher import run_publisher

    write_to_cache_log()
    try:
        run_publisher(directory, state)
    except StateInUse as error:
        raise click.ClickException(str(error)) from error
