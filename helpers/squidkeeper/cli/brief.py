"""`squidkeeper brief`: what a client may reach, for the instructions of its agent."""

import click

from squidkeeper.cli.client_options import ClientOfGateway, client_options
from squidkeeper.cli.role_options import role_options


@click.command()
@client_options
@role_options
def brief(found: ClientOfGateway, role: str | None, variables: tuple[str, ...]) -> None:
    """Print what a client may reach, as Markdown for its agent's instructions.

    The text has the rules, rewrites and credentials (by header) of this client, and why
    other requests are denied. It has no secret.

    \b
    Example:
      squidkeeper brief --client agents > gateway.md
      squidkeeper brief --role agent --variable repo=acme/app
    """
    from squidkeeper.operate.client_kit.brief import write_brief

    found = found.as_session(role, variables)
    click.echo(
        write_brief(
            found.policy.source, found.client, found.now, transparent=found.transparent
        ),
        nl=False,
    )
