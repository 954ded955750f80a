"""A file that an agent on this machine reads, such as Vector.

It is complete on disk before it counts.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from squidkeeper.base.errors import DeliveryFailed
from squidkeeper.record.export.messages import Message


class FileSender:
    """Appends a line for each message.

    A file that is renamed, as logrotate does, is followed by a new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def open(self) -> None:
        """Open the file, or the new one if it was renamed.

        A torn last line, of a crash, gets an end.
        """
        try:
            if self._file is not None and not self._is_at_path(self._file):
                self.close()
            if self._file is None:
                self._file = self._opened()
        except OSError as error:
            self.close()
            raise DeliveryFailed(f"{self._path}: {error.strerror or error}") from None

    def send(self, messages: Sequence[Message]) -> int:
        """Append the messages."""
        content = b"".join(message.payload + b"\n" for message in messages)
        assert self._file is not None  # noqa: S101 - `open` was called
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            raise DeliveryFailed(
                f"{self._path}: {error.strerror or error}", uncertain=True
            ) from None
        return 0

    def is_due(self, now: float) -> bool:  # noqa: ARG002 - as every sender has it
        """Tell that each batch is confirmed at once."""
        return True

    def confirm(self) -> None:
        """Wait until the disk has it."""
        assert self._file is not None  # noqa: S101 - something was written
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise DeliveryFailed(
                f"{self._path}: {error.strerror or error}", uncertain=True
            ) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        file = os.open(
            self._path,
            os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK,
            0o640,
        )
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            os.close(file)
            raise OSError("not a regular file")
        if about.st_size and os.pread(file, 1, about.st_size - 1) != b"\n":
            os.write(file, b"\n")
        return file
