"""Replacing a file that other processes read, also as a sign of life."""

import os
from contextlib import suppress
from pathlib import Path


def replace(
    file: Path, content: bytes, mode: int = 0o640, owner: tuple[int, int] | None = None
) -> None:
    """Replace a file by rename, after its content is on disk: a crash leaves the old
    file or the new one.

    `owner` is a user and a group; else it belongs to who writes it. OSError if it
    cannot be written.
    """
    new = file.with_name(f"{file.name}.new")
    with open(
        os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb"
    ) as opened:
        try:
            opened.write(content)
            opened.flush()
            if owner is not None:
                os.fchown(opened.fileno(), *owner)
            os.fchmod(opened.fileno(), mode)  # whatever the umask is
            os.fsync(opened.fileno())
        except OSError:
            new.unlink(missing_ok=True)  # a part of it would keep a full disk full
            raise
    new.rename(file)


class HeartbeatFile:
    """A file whose modification time is a sign of life.

    It is replaced when its content changes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = b""

    def write(self, content: bytes, owner: tuple[int, int] | None = None) -> None:
        """Write the content or, where the file has it, only the time; OSError if the
        file cannot be written.
        """
        if content == self._written:
            with suppress(OSError):
                os.utime(self._file)
                return
        replace(self._file, content, owner=owner)
        self._written = content
