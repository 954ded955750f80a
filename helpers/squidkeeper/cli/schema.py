"""`squidkeeper schema`."""

import click

from squidkeeper.cli.output import show_json


@click.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors.

    `squidkeeper check` finds more.
    """
    from squidkeeper.policy.editor.json_schema import json_schema

    show_json(json_schema())
