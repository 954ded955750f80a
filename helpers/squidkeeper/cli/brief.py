"""`squidkeeper brief` (floor 9): what a client may reach, for the instructions of its agent."""

from pathlib import Path

import click

from squidkeeper.cli.client_options import client_options, read_client


@click.command()
@client_options
def brief(client: str | None, user: str | None, root: Path | None, directory: Path | None) -> None:
    """Print what a client may reach, and why not the rest, as Markdown for the instructions of its agent.

    It holds the rules, rewrites and credentials (by header) of this client alone, and no secret.
    """
    from squidkeeper.client_kit.brief import write_brief

    found = read_client(client, user, root, directory)
    click.echo(write_brief(found.policy.source, found.client, found.now), nl=False)
