"""`squidkeeper login`."""

from pathlib import Path

import click

from squidkeeper.cli.helper_options import helper_options


@click.command()
@helper_options(concurrency=100)
def login(directory: Path, state: Path, concurrency: int) -> None:
    """Check the tokens of clients.

    Squid starts this helper (auth_param). It answers each line with OK and the token's
    ID, or ERR. Its input holds tokens. Never run it by hand: `squidkeeper client list`
    shows who has which token.
    """
    from squidkeeper.base.helper_metrics import LOGIN
    from squidkeeper.serving.helpers.login import Logins, answer
    from squidkeeper.serving.helpers.policy_helper import run

    run(LOGIN, Logins, answer, directory, state, concurrency)
