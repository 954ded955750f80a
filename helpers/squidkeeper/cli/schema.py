"""`squidkeeper schema`."""

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors.

    `squidkeeper check` finds more.
    """
    from squidkeeper.policy.editor.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
