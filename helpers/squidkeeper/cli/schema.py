"""`squidkeeper schema`."""

import click

from squidkeeper.cli.output import show_json


@click.command()
@click.option(
    "--gateway",
    is_flag=True,
    help="Print that of gateway.yaml, which install.sh reads.",
)
def schema(gateway: bool) -> None:
    """Print the JSON Schema of a policy file, for editors.

    `squidkeeper check` finds more; of gateway.yaml, `install.sh --dry-run`.
    """
    from squidkeeper.operate.setup.gateway_settings import settings_schema
    from squidkeeper.policy.editor.json_schema import json_schema

    show_json(settings_schema() if gateway else json_schema())
