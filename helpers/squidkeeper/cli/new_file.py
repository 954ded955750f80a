"""The new file of --output: it never replaces one, and is as closed as the access log."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import IO, Final

import click

_EXISTS: Final = "--output {}: the file exists; it was not changed"


def check_new_file(ctx: click.Context, param: click.Parameter, output: Path | None) -> Path | None:  # noqa: ARG001 - click's signature
    """Refuse a file that exists, as the callback of the option: before a command has worked for it."""
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
        raise click.UsageError(f"--output {output}: {(error.strerror or str(error)).lower()}") from error
