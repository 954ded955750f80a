"""What shells and `man` read about the program: completion and the manual page, from
the tree of commands.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from squidkeeper.base.layout import Layout
from squidkeeper.cli import GROUPS, main
from squidkeeper.cli.options import DEFAULT_LAYOUT

NAME = "squidkeeper"


def shell_files(layout: Layout) -> dict[str, str]:
    """Return the texts of `Layout.shell_files` for a gateway, by the names of these
    files.
    """
    kinds = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    scripts = {
        name: kind(main, {}, NAME, f"_{NAME.upper()}_COMPLETE")
        for name, kind in kinds.items()
    }
    texts = {
        name: script.source_template % script.source_vars()
        for name, script in scripts.items()
    }
    return {**texts, "man": "\n".join([*_page(layout), ""])}


def _page(layout: Layout) -> Iterator[str]:
    context = click.Context(main, info_name=NAME)
    yield f'.TH {NAME.upper()} 1 "" "{NAME} {version(NAME)}"'
    yield from (
        ".SH NAME",
        rf"{NAME} \- the egress gateway of AI agents",
        ".SH SYNOPSIS",
        _usage(context),
    )
    yield from (".SH DESCRIPTION", *_texts(main), *_options(context, layout))
    for title, commands in GROUPS.items():
        yield f".SH {_escaped(title.upper())}"
        for name in commands:
            yield from _command(name, context, layout)


def _command(name: str, parent: click.Context, layout: Layout) -> Iterator[str]:
    command = (
        parent.command.get_command(parent, name)
        if isinstance(parent.command, click.Group)
        else None
    )
    assert command  # noqa: S101 - the group has listed it
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
        yield from (
            ".TP",
            rf"\fB{_escaped(names)}\fR",
            _escaped(_with_places(text, layout)),
        )


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
