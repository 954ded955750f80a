"""A progress bar on stderr for commands that read logs (floor 9)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from squidkeeper.record.log_files import Block


@contextmanager
def progress(files: list[Path], *, hidden: bool = False) -> Iterator[Callable[[Block], None]]:
    """Draw a bar if stderr is a terminal and the sizes are known; call the result with each block that was read."""
    from squidkeeper.record.log_files import size_on_disk

    total = 0 if hidden or not sys.stderr.isatty() else size_on_disk(files)
    if not total:
        yield lambda _: None
        return
    done: dict[Path, int] = {}
    with click.progressbar(length=total, label="Reading", file=sys.stderr) as bar:

        def advance(block: Block) -> None:
            bar.update(block.consumed - done.get(block.path, 0))
            done[block.path] = block.consumed

        yield advance
