"""A file that hangs whoever opens it, as on a file server that is gone."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FAN_CLASS_CONTENT, _FAN_CLOEXEC, _FAN_MARK_ADD, _FAN_OPEN_PERM, _AT_FDCWD = (
    0x04,
    0x01,
    0x01,
    0x10000,
    -100,
)


@contextmanager
def opening_hangs(file: Path) -> Iterator[None]:
    """Let the kernel ask whether this file may be opened, and never answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY)
    if group < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init: needs root")
    try:
        asked = ctypes.c_uint64(_FAN_OPEN_PERM)
        if libc.fanotify_mark(
            group, _FAN_MARK_ADD, asked, _AT_FDCWD, os.fsencode(file)
        ):
            raise OSError(ctypes.get_errno(), f"fanotify_mark: {file}")
        yield
    finally:
        os.close(group)  # which lets everyone in
