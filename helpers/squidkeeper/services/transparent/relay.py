"""The loop that takes clients, tells Squid about them, and passes bytes.

Nothing of what passes is kept here. Bytes are taken from one end when the other end has
taken them, so a slow reader slows down whoever sends to it (back-pressure), and costs
no memory of this process.

epoll(7) tells each change once (edge-triggered). So an end is read until it has no more
bytes, or the other is full.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import HelloIncomplete, HelloRefused, describe
from squidkeeper.base.helper_metrics import TransparentResult
from squidkeeper.services.transparent.client_hello import HELLO_BYTES, server_name
from squidkeeper.services.transparent.connection import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    UNAVAILABLE,
    UNRECOGNIZED_NAME,
    Caller,
    ClientConnection,
    End,
    Port,
    Step,
    tune,
)

HELLO_SECONDS: Final = 5.0
FIRST_BYTE_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0  # while Squid restarts, a client waits so long
ANSWER_SECONDS: Final = 30.0
HALF_CLOSED_SECONDS: Final = 60.0  # without a byte, after Squid has ended its half
ASKING_OF_ONE: Final = (
    32  # connections of a client that wait for Squid's answer; the others wait here
)
CHECK_EVERY_SECONDS: Final = 0.25
_AT_ONCE: Final = HELLO_BYTES
_SHARE: Final = 4  # of the room that is left, a client has one part at most
_ACCEPTED_AT_ONCE: Final = 64
_EVENTS_AT_ONCE: Final = 256
_ANSWER_BYTES: Final = 8 << 10
_BOTH: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_ENDING: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
# SO_LINGER, socket(7): what Squid has not taken is dropped
_RESET: Final = struct.pack("ii", 1, 0)
_TOLD: Final = {
    ("https", TransparentResult.NO_SERVER_NAME): UNRECOGNIZED_NAME,
    ("https", TransparentResult.SQUID_REFUSED): ACCESS_DENIED,
    ("https", TransparentResult.SQUID_UNREACHABLE): INTERNAL_ERROR,
    ("http", TransparentResult.SQUID_UNREACHABLE): UNAVAILABLE,
}
_log = logging.getLogger(__name__)


class TransparentRelay:
    """All connections. `count` gets what became of each, and its client."""

    def __init__(
        self,
        count: Callable[[TransparentResult, str], None],
        most: int,
        most_of_one: int,
    ) -> None:
        self._count = count
        self._most, self._most_of_one = most, most_of_one
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Port]] = {}
        self._ends: dict[int, End] = {}
        self._clients: dict[str, Caller] = {}
        self._connections = 0
        self._timed: set[ClientConnection] = set()
        self._more: list[End] = []  # may have bytes that no event tells of
        self._closing: list[socket.socket] = []
        self._last_failure = ""
        self._room = bytearray(_AT_ONCE)
        self._view = memoryview(self._room)

    def listen(self, listener: socket.socket, port: Port) -> None:
        """Take clients from a listening socket."""
        tune(listener)  # accepted connections inherit it
        self._listeners[listener.fileno()] = (listener, port)
        self._poll.register(listener, select.EPOLLIN)

    def run(self, tick: Callable[[], bool]) -> None:
        """Pass bytes, and call `tick` some times a second, until it returns False; then
        close all.
        """
        check_at = 0.0
        while True:
            now = time.monotonic()
            if now >= check_at:
                if not tick():
                    self._close_all()
                    return
                self._check(now)
                check_at = now + CHECK_EVERY_SECONDS
            more, self._more = self._more, []
            for descriptor, events in self._poll.poll(
                0 if more else CHECK_EVERY_SECONDS, _EVENTS_AT_ONCE
            ):
                if (end := self._ends.get(descriptor)) is not None:
                    self._take(end, events)
                elif descriptor in self._listeners:
                    self._accept(*self._listeners[descriptor])
            for end in more:
                self._take(end, select.EPOLLIN)
            self._close()

    # --- clients ----------------------------------------------------------------------

    def _accept(self, listener: socket.socket, port: Port) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, (address, *_) = listener.accept()
            except OSError:  # none waits any more, or it has gone
                return
            self._begin(client, address, port)

    def _begin(self, client: socket.socket, address: str, port: Port) -> None:
        network = client_network(address)
        # The more connections there are, the fewer one client may have: there is always
        # room for another client.
        room = min(self._most_of_one, (self._most - self._connections) // _SHARE)
        owner = self._clients.get(network) or Caller(network)
        if owner.connections >= room:
            self._count(TransparentResult.TOO_MANY, network)
            client.close()
            return
        client.setblocking(False)
        patience = HELLO_SECONDS if port.is_tls else FIRST_BYTE_SECONDS
        connection = ClientConnection(client, owner, port, time.monotonic() + patience)
        self._connections += 1
        self._clients[network] = owner
        owner.connections += 1
        self._timed.add(connection)
        self._register(connection.client)

    def _register(self, end: End) -> None:
        self._ends[end.socket.fileno()] = end
        self._poll.register(end.socket, _BOTH)

    def _take(self, end: End, events: int) -> None:
        connection = end.connection
        try:
            self._advance(end, events)
        except HelloRefused as refused:
            self._end(connection, refused.result)
        except BlockingIOError:
            pass  # there is nothing to read
        except OSError:
            self._end(connection, TransparentResult.GONE)
        except Exception as error:  # noqa: BLE001 - what one client sends ends no other connection
            self._log_failure(describe(error))
            self._end(connection, TransparentResult.GONE)

    def _advance(self, end: End, events: int) -> None:
        connection = end.connection
        end.is_ending |= bool(events & _ENDING)
        if connection.step is Step.OPEN:
            self._pass(end, events)
        elif connection.step is Step.FIRST_BYTES:
            self._read_first(connection)
        elif end is connection.squid:
            self._ask(connection, end)
        elif end.is_ending:
            self._end(connection, TransparentResult.GONE)

    def _log_failure(self, failure: str) -> None:
        if failure != self._last_failure:
            _log.error("a connection has failed: %s", failure)
        self._last_failure = failure

    def _read_first(self, connection: ClientConnection) -> None:
        """Connect to Squid once the client has said where to.

        What it has sent stays with the kernel until then.
        """
        got = connection.client.socket.recv_into(self._room, 0, socket.MSG_PEEK)
        request = (
            _connect_request(connection.client.socket, self._view[:got])
            if connection.port.is_tls
            else b""
        )
        if connection.client.is_ending:  # a client that is gone costs Squid nothing
            self._end(connection, TransparentResult.GONE)
        elif request is not None:
            connection.head, connection.step = (
                connection.name_client() + request,
                Step.QUEUED,
            )
            connection.until = time.monotonic() + ANSWER_SECONDS
            connection.owner.queue[connection] = None
            self._next(connection.owner)

    def _next(self, client: Caller) -> None:
        """Connect those of a client's connections whose turn it is: no client's wait
        for Squid is long for another.
        """
        while client.queue and client.asking < ASKING_OF_ONE:
            connection = next(iter(client.queue))
            del client.queue[connection]
            client.asking += 1
            connection.step = Step.CONNECTING
            connection.until = connection.connect_until = (
                time.monotonic() + CONNECT_SECONDS
            )
            with suppress(OSError):  # `_check` connects again
                self._connect(connection)

    def _leave(self, connection: ClientConnection, step: Step) -> None:
        """Let the next one of the client have the turn."""
        was, connection.step = connection.step, step
        connection.owner.queue.pop(connection, None)
        if was in {Step.CONNECTING, Step.ASKING}:
            connection.owner.asking -= 1
            self._next(connection.owner)

    # --- Squid ------------------------------------------------------------------------

    def _connect(self, connection: ClientConnection) -> None:
        family = socket.AF_INET6 if ":" in connection.port.to[0] else socket.AF_INET
        squid = socket.socket(family)
        tune(squid)
        if squid.connect_ex(connection.port.to) not in (0, errno.EINPROGRESS):
            squid.close()  # `_check` connects again
            return
        connection.squid = End(connection, squid)
        connection.squid.other, connection.client.other = (
            connection.client,
            connection.squid,
        )
        self._register(connection.squid)

    def _ask(self, connection: ClientConnection, squid: End) -> None:
        """Tell Squid who calls and, for TLS, where to; then read its answer.

        Connect again if it has none.

        Squid never reads a ClientHello that has come with the CONNECT, so the hello
        waits for the answer.
        """
        try:
            if connection.step is Step.CONNECTING:
                self._tell(connection, squid.socket)
            if connection.step is Step.ASKING:
                self._read_answer(connection, squid.socket)
        except BlockingIOError:
            pass
        except OSError:
            self._forget(squid)
            connection.squid, connection.step, connection.until = (
                None,
                Step.CONNECTING,
                connection.connect_until,
            )

    def _tell(self, connection: ClientConnection, squid: socket.socket) -> None:
        if error := squid.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        squid.send(connection.head)  # less than the buffer of a new connection
        if connection.port.is_tls:
            connection.step, connection.until = (
                Step.ASKING,
                time.monotonic() + ANSWER_SECONDS,
            )
        else:
            self._open(connection)

    def _read_answer(self, connection: ClientConnection, squid: socket.socket) -> None:
        got = squid.recv_into(self._room, _ANSWER_BYTES, socket.MSG_PEEK)
        if not got:
            raise ConnectionResetError
        head, end, _ = bytes(self._view[:got]).partition(b"\r\n\r\n")
        if end and head.startswith(b"HTTP/1.1 200 "):
            squid.recv_into(self._room, len(head + end))
            self._open(connection)
        elif end or got == _ANSWER_BYTES:
            self._end(connection, TransparentResult.SQUID_REFUSED)

    def _open(self, connection: ClientConnection) -> None:
        """Pass bytes from now on, and those that are there already."""
        self._leave(connection, Step.OPEN)
        connection.until, connection.head = 0.0, b""
        self._timed.discard(connection)
        self._count(TransparentResult.OPENED, connection.owner.network)
        self._more += connection.client, connection.client.other

    # --- bytes ------------------------------------------------------------------------

    def _pass(self, end: End, events: int) -> None:
        connection = end.connection
        if end.is_ending and end is connection.squid and not connection.until:
            connection.until = time.monotonic() + HALF_CLOSED_SECONDS
            self._timed.add(connection)
        if events & select.EPOLLOUT and end.is_full:
            end.is_full = False
            self._more.append(end.other)
        if events & ~select.EPOLLOUT:
            self._move(end)

    def _move(self, source: End) -> None:
        """Move bytes to the other end, as far as it takes them."""
        target, connection = source.other, source.connection
        if target.is_full or source.ended:
            return
        got = source.socket.recv_into(self._room, 0, socket.MSG_PEEK)
        if not got:
            self._end_half(source)
            return
        sent = _send(target, self._view[:got])
        if sent:  # what is taken off now is not copied again
            source.socket.recv_into(self._room, sent, socket.MSG_TRUNC)
            if connection.until:
                connection.until = time.monotonic() + HALF_CLOSED_SECONDS
        if not target.is_full and (source.is_ending or got == _AT_ONCE):
            self._more.append(source)

    def _end_half(self, source: End) -> None:
        source.ended = True
        if source.other.ended:
            self._end(source.connection, TransparentResult.ENDED)
        else:
            source.other.socket.shutdown(socket.SHUT_WR)

    # --- ends -------------------------------------------------------------------------

    def _check(self, now: float) -> None:
        """End what takes too long, and connect again where Squid did not listen."""
        for connection in [*self._timed]:
            if now >= connection.until:
                self._expire(connection)
            elif connection.step is Step.CONNECTING and connection.squid is None:
                with suppress(OSError):
                    self._connect(connection)
        self._close()

    def _expire(self, connection: ClientConnection) -> None:
        late = {
            Step.FIRST_BYTES: TransparentResult.TIMEOUT,
            Step.QUEUED: TransparentResult.TOO_MANY,
            Step.CONNECTING: TransparentResult.SQUID_UNREACHABLE,
            Step.ASKING: TransparentResult.SQUID_UNREACHABLE,
            Step.OPEN: TransparentResult.ENDED,
        }
        self._end(connection, late[connection.step])

    def _end(self, connection: ClientConnection, result: TransparentResult) -> None:
        if connection.step is Step.ENDED:
            return
        if result is TransparentResult.GONE and connection.squid is not None:
            connection.squid.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
        if connection.step is Step.OPEN:
            result = TransparentResult.ENDED
        self._leave(connection, Step.ENDED)
        self._count(result, connection.owner.network)
        if told := _TOLD.get((connection.port.name, result)):
            with suppress(OSError):
                connection.client.socket.send(told)
                # unread bytes would reset it
                connection.client.socket.recv_into(self._room, 0, socket.MSG_TRUNC)
        for end in filter(None, (connection.client, connection.squid)):
            self._forget(end)
        self._timed.discard(connection)
        self._connections -= 1
        connection.owner.connections -= 1
        if not connection.owner.connections:
            del self._clients[connection.owner.network]

    def _forget(self, end: End) -> None:
        """Close a socket, after these events: until then no other gets its number."""
        del self._ends[end.socket.fileno()]
        self._closing.append(end.socket)

    def _close_all(self) -> None:
        for listener, _ in self._listeners.values():
            listener.close()
        for connection in {end.connection for end in self._ends.values()}:
            self._end(connection, TransparentResult.GONE)
        self._close()
        self._poll.close()

    def _close(self) -> None:
        for closing in self._closing:
            closing.close()
        self._closing.clear()


def _connect_request(client: socket.socket, data: memoryview) -> bytes | None:
    """Ask Squid for the server that a hello names; None while it is not whole.

    An event tells of more bytes when there are as many as are needed: all are read
    again, which at each byte would cost a processor.
    """
    try:
        name = server_name(bytes(data))
    except HelloIncomplete as incomplete:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, incomplete.needed)
        return None
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode()


def _send(end: End, data: memoryview) -> int:
    """Return how many bytes an end takes now."""
    try:
        sent = end.socket.send(data)
    except BlockingIOError:
        sent = 0
    end.is_full = sent < len(data)
    return sent
