"""`squidkeeper preset` (floor 9)."""

import click
from click.shell_completion import CompletionItem

from squidkeeper.presets import preset_names, preset_text


def _matching(_: click.Context, __: click.Parameter, beginning: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(preset_names()) if name.startswith(beginning)]


@click.group()
def preset() -> None:
    """Show the presets: rules that are shipped, which a policy takes by name (presets: [npm@1])."""


@preset.command("list")
def list_presets() -> None:
    """List the presets, and what each opens."""
    from squidkeeper.presets.summary import summarize

    names = sorted(preset_names())
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:{width}}  {summarize(name).opens}")


@preset.command()
@click.argument("name", shell_complete=_matching)
def show(name: str) -> None:
    """Print the preset NAME as YAML, with the documents that it comes from.

    What is printed can be a file of a policy: as a start for rules of your own, under other names.
    """
    names = preset_names()
    if name not in names:
        raise click.BadParameter(f"there is no preset {name!r}, expected one of {', '.join(sorted(names))}")
    click.echo(preset_text(name), nl=False)
