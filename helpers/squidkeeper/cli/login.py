"""`squidkeeper login` (floor 9)."""

from pathlib import Path

import click

from squidkeeper.cli.options import helper_options


@click.command()
@helper_options(concurrency=100)
def login(directory: Path, state: Path, concurrency: int) -> None:
    """Check the tokens of clients; Squid's auth_param starts this.

    Reads a line for each login (channel-ID, name, token, client, header) and answers OK and the token's ID, or ERR.
    Its input holds tokens: never call it by hand; `squidkeeper client list` shows who has which.
    """
    from squidkeeper.helpers.login import Logins, answer
    from squidkeeper.helpers.loop import run
    from squidkeeper.metrics import LOGIN

    run(LOGIN, Logins, answer, directory, state, concurrency)
