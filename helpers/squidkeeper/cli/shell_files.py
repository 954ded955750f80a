"""What shells and `man` read about the program: completion, and a manual page for each
command, from the tree of commands.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from squidkeeper.base.layout import Layout
from squidkeeper.cli import GROUPS, main
from squidkeeper.cli.manual_tables import TABLES
from squidkeeper.cli.options import DEFAULT_LAYOUT

NAME = "squidkeeper"


def shell_files(layout: Layout) -> dict[Path, str]:
    """Return the files of shells and `man` for a gateway, each with its text."""
    kinds = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    scripts = {
        name: kind(main, {}, NAME, f"_{NAME.upper()}_COMPLETE")
        for name, kind in kinds.items()
    }
    files = {
        layout.completions[name]: script.source_template % script.source_vars()
        for name, script in scripts.items()
    }
    return {**files, **_manual(layout)}


def _manual(layout: Layout) -> dict[Path, str]:
    """Return the manual pages: one for the program, and one for each command."""
    context = click.Context(main, info_name=NAME)
    pages = {
        f"{NAME}-{command}": _page_of(command, does, context, layout)
        for commands in GROUPS.values()
        for command, does in commands.items()
    }
    pages[NAME] = _overview(context, layout)
    return {
        layout.manual / f"{name}.1": "\n".join([*lines, ""])
        for name, lines in pages.items()
    }


def _overview(context: click.Context, layout: Layout) -> Iterator[str]:
    yield from _head(NAME, "the egress gateway of AI agents")
    yield from (".SH SYNOPSIS", _usage(context))
    yield from (".SH DESCRIPTION", *_texts(main), *_options(context, layout))
    for title, commands in GROUPS.items():
        yield f".SH {_escaped(title.upper())}"
        for command, does in commands.items():
            yield from _item(rf"\fB{NAME}\-{_escaped(command)}\fR(1)", does)


def _page_of(
    name: str, does: str, parent: click.Context, layout: Layout
) -> Iterator[str]:
    command = _member(name, parent)
    context = click.Context(command, parent, name)
    yield from _head(f"{NAME}-{name}", f"{does[0].lower()}{does[1:]}")
    yield from (".SH SYNOPSIS", _usage(context))
    yield from (".SH DESCRIPTION", *_texts(command), *_options(context, layout))
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for member in command.list_commands(context):
            yield from _command(member, context, layout)
    for title, rows in TABLES.get(name, {}).items():
        yield f".SH {title}"
        for term, text in rows():
            yield from _item(rf"\fB{_escaped(term)}\fR", text)
    yield from (".SH SEE ALSO", rf"\fB{NAME}\fR(1)")


def _head(name: str, does: str) -> Iterator[str]:
    yield f'.TH {name.upper()} 1 "" "{NAME} {version(NAME)}"'
    yield from (".SH NAME", rf"{_escaped(name)} \- {_escaped(does)}")


def _item(term: str, text: str) -> Iterator[str]:
    yield from (".TP", term, _escaped(text))


def _member(name: str, parent: click.Context) -> click.Command:
    assert isinstance(parent.command, click.Group)  # noqa: S101 - only groups have members
    command = parent.command.get_command(parent, name)
    assert command  # noqa: S101 - the group has listed it
    return command


def _command(name: str, parent: click.Context, layout: Layout) -> Iterator[str]:
    command = _member(name, parent)
    context = click.Context(command, parent, name)
    yield f".SS {_usage(context)}"
    yield from (*_texts(command), *_options(context, layout))
    for one in (
        command.list_commands(context) if isinstance(command, click.Group) else ()
    ):
        yield from _command(one, context, layout)


def _usage(context: click.Context) -> str:
    return _escaped(
        " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
    )


def _texts(command: click.Command) -> Iterator[str]:
    r"""Yield the paragraphs of a help; one that begins with \b keeps its lines."""
    for number, text in enumerate(re.split(r"\n\s*\n", (command.help or "").strip())):
        first, *lines = text.splitlines()
        yield from [".PP"] * bool(number)
        yield from (
            (".nf", *map(_escaped, lines), ".fi")
            if first == "\b"
            else [_escaped(" ".join([first, *lines]))]
        )


def _options(context: click.Context, layout: Layout) -> Iterator[str]:
    records = [
        one.get_help_record(context)
        for one in context.command.params
        if isinstance(one, click.Option)
    ]
    for names, text in filter(None, records):
        yield from _item(rf"\fB{_escaped(names)}\fR", _with_places(text, layout))


def _with_places(text: str, layout: Layout) -> str:
    """Name the places of a gateway as the defaults of options, whichever gateway this
    process is of.
    """
    names = [field.name for field in fields(Layout)]
    places = {
        str(getattr(DEFAULT_LAYOUT, name)): str(getattr(layout, name)) for name in names
    }
    return re.sub(
        r"(?<=\[default: )[^\]]+", lambda found: places.get(found[0], found[0]), text
    )


def _escaped(text: str) -> str:
    escapes = str.maketrans(
        {
            "\\": r"\e",
            "-": r"\-",
            "'": r"\(aq",
            "`": r"\(ga",
            "~": r"\(ti",
            "^": r"\(ha",
        }
    )
    return r"\&" * text.startswith(".") + text.translate(escapes)
