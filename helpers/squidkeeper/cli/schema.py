"""`squidkeeper schema`."""

import click

from squidkeeper.cli.output import show_json


@click.command()
@click.option(
    "--gateway",
    is_flag=True,
    help="Print that of gateway.yaml, which install.sh reads.",
)
@click.option(
    "--sessions",
    is_flag=True,
    help="Print that of sessions.yaml, which names who makes sessions.",
)
def schema(gateway: bool, sessions: bool) -> None:
    """Print the JSON Schema of a policy file, for editors.

    `squidkeeper check` finds more; of gateway.yaml, `install.sh --dry-run`.
    """
    if gateway and sessions:
        raise click.UsageError("expected one of --gateway and --sessions")
    from squidkeeper.operate.setup.gateway_settings import settings_schema
    from squidkeeper.policy.editor.json_schema import json_schema
    from squidkeeper.services.sessions.orchestrators import orchestrators_schema

    if gateway:
        show_json(settings_schema())
    else:
        show_json(orchestrators_schema() if sessions else json_schema())
