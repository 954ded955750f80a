"""Edits of the policy that are refused: what a command says, in place of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from squidkeeper.base.errors import EditRefused
from squidkeeper.base.formatting import printable


@contextmanager
def shown_refusals() -> Iterator[None]:
    """Show why an edit is refused, and exit with 1."""
    try:
        yield
    except EditRefused as error:
        raise click.ClickException("\n".join(map(printable, str(error).split("\n")))) from error
