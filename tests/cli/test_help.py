"""The help texts of the command line: short, and true.

What is made of them: completion, and the manual pages.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.cli import main
from squidkeeper.cli.manual_tables import TABLES
from squidkeeper.cli.shell_files import shell_files

ROOT = Layout.of(Path("/srv/gw"))
REPOSITORY = next(
    folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file()
)
LONGEST_OPTION = 18  # words of the help of one option
LONGEST_SENTENCE = 25  # words
WIDEST = 76  # characters of a line that click does not wrap


def each_command(
    command: click.Command = main, name: str = ""
) -> Iterator[tuple[str, click.Command]]:
    if name:
        yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for subcommand in command.list_commands(context):
            found = command.get_command(context, subcommand)
            assert found is not None
            yield from each_command(found, f"{name} {subcommand}".strip())


COMMANDS = dict(each_command())


def paragraphs(command: click.Command) -> list[str]:
    return re.split(r"\n\s*\n", command.help or "")


def examples(name: str) -> list[list[str]]:
    """Return the words of each call in a help text, up to a pipe or a redirection."""
    lines = [line.strip() for line in (COMMANDS[name].help or "").splitlines()]
    calls = [
        re.split(r" [|<>] ", part)[0] for line in lines for part in line.split(" | ")
    ]
    return [
        shlex.split(call.removeprefix("sudo "))
        for call in calls
        if re.match(r"(sudo )?squidkeeper ", call)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_has_one_short_sentence(name: str) -> None:
    shown = [
        one
        for one in COMMANDS[name].params
        if isinstance(one, click.Option) and not one.hidden
    ]
    assert [
        option.opts
        for option in shown
        if not option.help or len(option.help.split()) > LONGEST_OPTION
    ] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_has_short_sentences_and_lines(name: str) -> None:
    prose = [
        paragraph
        for paragraph in paragraphs(COMMANDS[name])
        if not paragraph.startswith("\b")
    ]
    sentences = [
        sentence for text in prose for sentence in re.split(r"(?<=[.:;])\s+", text)
    ]
    assert [
        sentence for sentence in sentences if len(sentence.split()) > LONGEST_SENTENCE
    ] == []
    fixed = [
        line
        for text in paragraphs(COMMANDS[name])
        if text.startswith("\b")
        for line in text.splitlines()
    ]
    assert [line for line in fixed if len(line) > WIDEST] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if examples(name)])
def test_an_example_names_a_command_and_its_options(name: str) -> None:
    for _, *words in examples(name):
        called = max(
            (
                command
                for command in COMMANDS
                if words[: len(command.split())] == command.split()
            ),
            key=len,
        )
        options = {option for param in COMMANDS[called].params for option in param.opts}
        assert {word for word in words if re.match(r"-+[a-z]", word)} <= options, words


def test_the_operators_table_has_each_exit_status_that_a_help_names() -> None:
    section = (
        (REPOSITORY / "squid/OPERATING.md")
        .read_text()
        .split("\n## Exit statuses\n")[1]
        .split("\n## ")[0]
    )
    rows = {
        row[1].strip(" `"): row[2:4]
        for row in (line.split("|") for line in section.splitlines())
        if len(row) > 4
    }
    # 1: it could not do it, as of every command
    ones_own = {
        "bodies",
        "demo",
        "render",
        "export",
        "exporter",
        "publish",
        "sessions",
        "transparent",
    }
    told = {
        name
        for name, command in COMMANDS.items()
        if "Exit status" in (command.help or "")
    } - ones_own
    assert told == rows.keys() - {"command", "---"}
    for name in told:
        statuses = {
            int(found)
            for found in re.findall(
                r"^ +([12])  ", COMMANDS[name].help or "", re.MULTILINE
            )
        }
        assert statuses == {
            number for number, cell in enumerate(rows[name], 1) if cell.strip()
        }, name


def pages() -> dict[str, str]:
    return {
        path.name.removesuffix(".1"): text
        for path, text in shell_files(ROOT).items()
        if path.parent == ROOT.manual
    }


def shown(text: str, folder: Path) -> str:
    """What `man` shows of a page, which it takes without a warning."""
    (folder / "page").write_text(text)
    done = subprocess.run(
        ["man", "--warnings", "-l", "page"],
        cwd=folder,
        env={**os.environ, "MANWIDTH": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_each_command_has_a_manual_page() -> None:
    own = {name for name in COMMANDS if " " not in name}
    assert pages().keys() == {"squidkeeper", *(f"squidkeeper-{name}" for name in own)}
    assert "squidkeeper-COMMAND(1)" in (main.help or "")


@pytest.mark.system
def test_the_manual_has_every_command_option_and_row(tmp_path: Path) -> None:
    overview = shown(pages()["squidkeeper"], tmp_path)
    for name, command in COMMANDS.items():
        group = name.split()[0]
        text = shown(pages()[f"squidkeeper-{group}"], tmp_path)
        assert f"squidkeeper-{group}(1)" in overview
        assert f"   squidkeeper {name}" in text
        assert {
            word
            for option in command.params
            if not getattr(option, "hidden", True)
            for word in option.opts
            if word.startswith("--")
        } <= set(re.findall(r"--[a-z-]+", text)), name
    check = shown(pages()["squidkeeper-check"], tmp_path)
    assert "[default: /srv/gw/etc/policy]" in check
    assert "/etc/squidkeeper/policy]" not in check
    for name, tables in TABLES.items():
        text = shown(pages()[f"squidkeeper-{name}"], tmp_path)
        for title, rows in tables.items():
            assert f"\n{title}\n" in text
            assert [term for term, _ in rows() if term not in text] == []


@pytest.mark.system
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("pre", "preset"),
        ("explain --cl", "--client"),
        ("preset show an", "anthropic@1"),
    ],
)
def test_bash_completes(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "script").write_text(shell_files(ROOT)[ROOT.completions["bash"]])
    script = f"""
        PATH={Path(sys.executable).parent}:$PATH
        . {tmp_path}/script
        COMP_WORDS=(squidkeeper {line}) COMP_CWORD={len(line.split())}
        _squidkeeper_completion squidkeeper
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [word]
