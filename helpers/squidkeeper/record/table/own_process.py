"""The process of a command that runs DuckDB: how it ends, its memory, and a user's SQL in one of its own."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from squidkeeper.base.errors import QueryRefused
from squidkeeper.record.table.spill import remove_abandoned

QUERY_BYTES: Final = 2 * 1024**3  # DuckDB's own limit does not count long values
_THREAD_BYTES: Final = 16 * 1024**2  # a stack, and what malloc keeps for it
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED: Final = "Query interrupted"  # what DuckDB makes of a signal's exception; it has no class of its own
_KILLED: Final = 128  # exit status of a process that a signal has ended: as shells have it


@contextmanager
def ending_by_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block by `SystemExit`, so that it is cleaned up after, as after Ctrl-C."""
    received: list[int] = []

    def end(number: int, _frame: object) -> NoReturn:
        received.append(number)
        raise SystemExit(_KILLED + number)

    is_main = threading.current_thread() is threading.main_thread()
    replaced = [one for one in _ENDING if is_main and signal.getsignal(one) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise (SystemExit(_KILLED + received[0]) if received else KeyboardInterrupt) from None
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def bound_memory(threads: int, most: int = QUERY_BYTES) -> None:
    """Bound what this process can allocate, for good; DuckDB then refuses a query that needs more."""
    size = most + threads * _THREAD_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def continue_as_child(undo: Callable[[], None]) -> None:
    """Return in a child process. This process ends with its exit status, and calls `undo` where it fails.

    What ends this process ends the child at once, whatever it does. This process keeps the rights that the child drops,
    and removes the spill folder with them. `QueryRefused` if a signal has ended the child.
    """
    sys.stdout.flush()
    life, held = os.pipe()  # the child ends when nobody holds it any more
    with ending_by_exit():
        child = os.fork()
        if child:
            os.close(life)
            _end_as(child, undo)
    os.close(held)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()


def _end_as(child: int, undo: Callable[[], None]) -> NoReturn:
    status = None
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        remove_abandoned()
        if status != 0:
            undo()
    if status < 0:
        raise QueryRefused(f"its process was ended by signal {-status}, which can be for want of memory")
    raise SystemExit(status)


def _end_with(life: int) -> None:
    os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)
