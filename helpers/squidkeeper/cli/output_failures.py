"""Errors of the output: what a command that cannot write, or reach a file, says in place of a traceback."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

_OF_WRITING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


@contextmanager
def told_output_failures() -> Iterator[None]:
    """Make a `click.ClickException` of an OSError that no command has handled; a closed pipe is click's."""
    if sys.stdout is None:  # Python's, where the descriptor is closed: the next file that is opened would take it
        raise click.ClickException("standard output is closed: give it a file, a pipe or /dev/null")
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer has no place
            raise click.ClickException(f"cannot write: {(error.strerror or str(error)).lower()}") from error
        if error.filename is None:
            raise
        raise click.ClickException(_of_file(error)) from error


def _of_file(error: OSError) -> str:
    from squidkeeper.record.log.listing import printable

    return printable(f"{os.fsdecode(error.filename)}: {(error.strerror or str(error)).lower()}")
