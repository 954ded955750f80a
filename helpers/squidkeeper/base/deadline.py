"""One deadline for a whole exchange with a server.

The timeout of a socket is for each read and write, and a server can send a byte at a
time.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ETIMEDOUT
from threading import Event, Timer


@contextmanager
def whole_exchange(seconds: float, cut: Callable[[], object]) -> Iterator[None]:
    """Run the block for so long at most.

    Another thread then calls `cut`, and the block ends in a TimeoutError.

    It does so too where what came until then looks like a whole answer. `cut` has to
    make the block fail.
    """
    is_late = Event()

    def end() -> None:
        is_late.set()
        cut()

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_late.is_set():
            raise TimeoutError(
                ETIMEDOUT, f"none that is whole within {seconds:g} s"
            ) from None


def shut(connection: socket.socket) -> None:
    """End a connection that another thread waits for; not by TLS's own way, which
    changes what that thread is using.
    """
    with suppress(OSError):  # it is closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
