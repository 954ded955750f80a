"""Replacing a file that other processes read (floor 5)."""

from __future__ import annotations

import os
from pathlib import Path


def replace(file: Path, text: str, mode: int = 0o640) -> None:
    """Replace a file by rename, after its content is on disk: a crash leaves the old file or the new one.

    OSError if it cannot be written.
    """
    new = file.with_name(f"{file.name}.new")
    with new.open("w") as opened:
        opened.write(text)
        os.fchmod(opened.fileno(), mode)
        opened.flush()
        os.fsync(opened.fileno())
    new.rename(file)
