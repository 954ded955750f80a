"""A stand-in for the service of bodies: it records what Squid sends, and answers as a
test wants it.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from squidkeeper.services.bodies.icap import (
    CONTINUE,
    LAST_CHUNK,
    IcapParser,
    IcapRequest,
    Mark,
    format_chunk,
    format_echo,
    format_options,
    format_unchanged,
)

ALLOWED = {"X-SK-Rule": "stub", "X-SK-Verdict": "allow"}


class Asked:
    """One request on a connection of Squid's."""

    def __init__(
        self, connection: socket.socket, parser: IcapParser, request: IcapRequest
    ) -> None:
        self.request = request
        self._connection = connection
        self._parser = parser
        self.body = b""

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def preview(self) -> Mark:
        """Read the body, as far as Squid sends it without being told to go on."""
        return self._read()

    def rest(self) -> Mark:
        """Have Squid send the rest, and read it."""
        self.send(CONTINUE)
        self._parser.resume()
        return self._read()

    def more(self, size: int) -> None:
        """Have Squid go on, and read some of the rest."""
        self.send(CONTINUE)
        self._parser.resume()
        before = len(self.body)
        while len(self.body) < before + size:
            self._next()

    def close(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Mark:
        while not isinstance(event := self._next(), Mark):
            pass
        return event

    def _next(self) -> object:
        while (event := self._parser.next_event()) is None:
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("Squid has closed the connection")
            self._parser.receive(data)
        if isinstance(event, bytes):
            self.body += event
        return event


Behaviour = Callable[[Asked], None]


def skip(asked: Asked) -> None:
    """Let every request pass."""
    ends = asked.preview()
    asked.send(format_unchanged(ALLOWED))
    if ends is Mark.PREVIEW_ENDS:
        asked._parser.finish()


def echo(asked: Asked) -> None:
    """Let every request pass, by an echo."""
    if asked.preview() is Mark.PREVIEW_ENDS:
        asked.rest()
    asked.send(
        format_echo(asked.request.http, ALLOWED) + format_chunk(asked.body) + LAST_CHUNK
    )


class IcapStub:
    """Listens where the service would.

    `behaves` answers each request; it can be replaced at any time.
    """

    def __init__(self, address: str, behaves: Behaviour = skip) -> None:
        host, _, port = address.rpartition(":")
        self.behaves = behaves
        self.received = b""
        self.requests: list[IcapRequest] = []
        self._server = socket.create_server((host, int(port)), backlog=128)
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for connection in (self._server, *self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                threading.Thread(
                    target=self._serve, args=(connection,), daemon=True
                ).start()

    def _serve(self, connection: socket.socket) -> None:
        parser = IcapParser()
        with suppress(OSError):
            while data := connection.recv(65536):
                self.received += data
                parser.receive(data)
                while isinstance(request := parser.next_event(), IcapRequest):
                    self._answer(connection, parser, request)
        connection.close()

    def _answer(
        self, connection: socket.socket, parser: IcapParser, request: IcapRequest
    ) -> None:
        asked = Asked(connection, parser, request)
        if request.method == "OPTIONS":
            asked.preview()
            asked.send(format_options())
            return
        self.requests.append(request)
        self.behaves(asked)
