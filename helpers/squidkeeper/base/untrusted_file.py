"""Reading a file that another account can replace, as Squid's account can each file of
the state folder.

It can put a link there, which leads to what only the reader may read, a pipe, which
blocks, or a file without an end.
"""

import os
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO


def open_untrusted(path: Path, *, folder: int | None = None) -> BinaryIO:
    """Open a file; OSError where it is a link or no regular file.

    A relative path starts at `folder`, a descriptor.
    """
    opened = os.open(
        path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
    )
    if not S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(EINVAL, "not a regular file", str(path))
    return open(opened, "rb")


def read_regular(path: Path, longest: int = 65_536) -> bytes:
    """Read a file that may be a link, at most so many bytes; OSError where it is no
    regular file, such as a FIFO.
    """
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    ) as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(EINVAL, "not a regular file", str(path))
        return file.read(longest)


def read_untrusted(path: Path, longest: int) -> bytes:
    """Read a file, at most so many bytes; OSError where it is a link or no regular
    file.
    """
    with open_untrusted(path) as file:
        return file.read(longest)
