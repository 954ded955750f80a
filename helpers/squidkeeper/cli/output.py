"""What commands write: JSON, new files, and progress."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from threading import Event, Thread
from time import monotonic
from typing import IO, TYPE_CHECKING, Final

import click

from squidkeeper.cli.failures import MISSING

if TYPE_CHECKING:
    from squidkeeper.record.table.lines import Skipped

_EXISTS: Final = "--output {}: the file exists; it was not changed"
_SILENT_SECONDS: Final = 2.0  # before a command shows that it works
_NARROWEST: Final = 60  # columns of a terminal
_shown: list[tuple[Event, Thread]] = []  # the progress that is shown


def show_json(value: object) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2))


def show_text(text: str, *, nl: bool = True) -> None:
    """Print a text for people. On a terminal, a long line goes on below its last
    column.
    """
    if width := terminal_width():
        text = "\n".join(
            part for line in text.split("\n") for part in _wrapped(line, width)
        )
    click.echo(text, nl=nl)


def terminal_width() -> int | None:
    """Return how many columns the terminal has; None where stdout is none."""
    if not sys.stdout.isatty():
        return None
    return max(_NARROWEST, get_terminal_size().columns)


def _wrapped(line: str, width: int) -> list[str]:
    label = re.match(r" *(?:\S+(?: \S+)* {2,})?", line)
    indent = " " * (label.end() if label else 0)
    return wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def confirm(question: str, *, yes: str, err: bool) -> None:
    """Ask a question, and abort unless the answer is yes.

    `yes` says what to do where nobody can answer.
    """
    try:
        agreed = click.confirm(question, err=err)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        raise click.UsageError(
            f"nobody answered, because standard input is no terminal: {yes}"
        ) from None
    if not agreed:
        raise click.Abort


def write(text: str) -> None:
    """Write to stdout at once; `BrokenPipeError` where its reader has gone."""
    if text:
        end_progress()
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal what the block does, once it takes long, until the block or
    `end_progress` ends it.
    """
    if sys.stderr.isatty():
        ended = Event()
        _shown.append(
            (ended, Thread(target=_count_seconds, args=(what, ended), daemon=True))
        )
        _shown[-1][1].start()
    try:
        yield
    finally:
        end_progress()


def end_progress() -> None:
    """Clear the line of the progress, because output follows."""
    while _shown:
        ended, thread = _shown.pop()
        ended.set()
        thread.join()


def _count_seconds(what: str, ended: Event) -> None:
    began, line = monotonic(), ""
    while not ended.wait(1.0 if line else _SILENT_SECONDS):
        line = f"{what}: {monotonic() - began:.0f} s"
        click.echo(f"\r{line}", nl=False, err=True)
    if line:
        click.echo(f"\r{' ' * len(line)}\r", nl=False, err=True)


def report_skipped(skipped: Skipped) -> None:
    """Report on stderr what the table could not read."""
    from squidkeeper.base.formatting import printable

    report_invalid(skipped.count, skipped.first)
    for what, names in (("Missing", skipped.missing), ("Damaged", skipped.damaged)):
        for name in names:
            end_progress()
            click.echo(f"{what}: {printable(name)}", err=True)
    if skipped.missing:
        click.get_current_context().meta[MISSING] = True


def report_invalid(count: int, first: str) -> None:
    """Report invalid lines on stderr."""
    from squidkeeper.base.formatting import printable, quantity

    if count:
        end_progress()
        click.echo(
            f"{quantity(count, 'invalid line')} skipped; the first: {printable(first)}",
            err=True,
        )


def check_new_file(
    ctx: click.Context,  # noqa: ARG001 - click's signature
    param: click.Parameter,  # noqa: ARG001
    output: Path | None,
) -> Path | None:
    """Refuse a file that exists, as the callback of the option: before a command has
    worked for it.
    """
    if output is not None and os.path.lexists(output):
        raise click.UsageError(_EXISTS.format(output))
    return output


def open_new_file(output: Path | None) -> IO[bytes]:
    """Open a new file, mode 0640; standard output where none is named."""
    if output is None:
        return sys.stdout.buffer
    try:
        return open(output, "xb", opener=partial(os.open, mode=0o640))
    except FileExistsError as error:
        raise click.UsageError(_EXISTS.format(output)) from error
    except OSError as error:
        raise click.UsageError(
            f"--output {output}: {(error.strerror or str(error)).lower()}"
        ) from error
