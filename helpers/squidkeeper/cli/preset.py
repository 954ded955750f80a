"""`squidkeeper preset`."""

import click
from click.shell_completion import CompletionItem

from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import show_json
from squidkeeper.policy.presets import preset_names, preset_text


def _matching(
    _: click.Context, __: click.Parameter, beginning: str
) -> list[CompletionItem]:
    return [
        CompletionItem(name)
        for name in sorted(preset_names())
        if name.startswith(beginning)
    ]


@click.group()
def preset() -> None:
    """Show the presets: rules that are shipped with squidkeeper.

    A policy takes them by name: presets: [npm@2].
    """


@preset.command("list")
@json_option
def list_presets(as_json: bool) -> None:
    """List the presets, and what each opens."""
    from squidkeeper.policy.presets.summary import summarize

    opens = {name: summarize(name).opens for name in sorted(preset_names())}
    if as_json:
        show_json(
            {"presets": [{"name": name, "opens": text} for name, text in opens.items()]}
        )
        return
    width = max(map(len, opens))
    for name, text in opens.items():
        click.echo(f"{name:{width}}  {text}")


@preset.command()
@click.argument("name", shell_complete=_matching)
def show(name: str) -> None:
    """Print a preset as YAML, with its sources.

    The output can be a policy file: a start for rules of your own, under other names.
    """
    names = preset_names()
    if name not in names:
        raise click.BadParameter(
            f"there is no preset {name!r}, expected one of {', '.join(sorted(names))}"
        )
    click.echo(preset_text(name), nl=False)
