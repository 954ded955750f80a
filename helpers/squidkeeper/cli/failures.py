"""What a command could not do, in place of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from squidkeeper.base.errors import (
    InvalidSetting,
    NotInstalled,
    SquidkeeperError,
    UnreadableLog,
    UnreadableSessions,
)

MISSING: Final = "squidkeeper.missing"  # in the meta of the context
_OF_WRITING: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
)


class Failed(click.ClickException):
    """What a command could not do: exit status 1.

    What is not printable, such as another account's, is escaped.
    """

    def format_message(self) -> str:
        """Escape each line."""
        from squidkeeper.base.formatting import printable

        return "\n".join(map(printable, self.message.split("\n")))


class UnusableInput(Failed):
    """What was named cannot be used: exit status 2, as for a wrong option."""

    exit_code = 2


@contextmanager
def told_failures() -> Iterator[None]:
    """Make a `click.ClickException` of an error that no command has handled; a closed
    pipe is click's.
    """
    if sys.stdout is None:
        # Python's, where the descriptor is closed: the next file that is opened would
        # take it
        raise click.ClickException(
            "standard output is closed: give it a file, a pipe or /dev/null"
        )
    try:
        yield
    except (UnreadableLog, UnreadableSessions, InvalidSetting, NotInstalled) as error:
        raise UnusableInput(str(error)) from error
    except SquidkeeperError as error:
        raise Failed(str(error)) from error
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            # what is left in its buffer has no place
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.ClickException(
                f"cannot write: {(error.strerror or str(error)).lower()}"
            ) from error
        if error.filename is None:
            raise
        raise Failed(
            f"{os.fsdecode(error.filename)}: {(error.strerror or str(error)).lower()}"
        ) from error


@contextmanager
def told_missing(ctx: click.Context) -> Iterator[None]:
    """End with 2 where a gateway is missing, whatever else the command tells: a script
    must not take a part for the whole.
    """
    try:
        yield
    except SystemExit:
        if MISSING not in ctx.meta:
            raise
    if MISSING in ctx.meta:
        raise SystemExit(UnusableInput.exit_code)
