"""The service over HTTP, on a Unix socket: who calls, and bounds on what comes."""

from __future__ import annotations

import errno
import logging
import re
import socket
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.utilities import Error

from squidkeeper.base.errors import ListenFailed
from squidkeeper.services.bounded_connection import BoundedConnection
from squidkeeper.services.sessions.problems import TYPE, CallProblem, ProblemCode

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from waitress.server import BaseWSGIServer
    from waitress.task import Task

SESSIONS_PATH: Final = "/v1/sessions"
BODY_BYTES: Final = 64 * 1024
LIST_BYTES: Final = 8 * 1024 * 1024  # of a whole list: 20,000 sessions
_HELD_BYTES: Final = 2 * LIST_BYTES  # of bodies and unread answers of one caller
_IN_MEMORY: Final = 1 << 30  # bodies and answers hold secrets, and reach no disk
_THREADS: Final = 12  # of each caller; one that waits for an address is a thread
_ASK_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 20  # also for a whole request
_CLEANUP_SECONDS: Final = 5
_HEAD_BYTES: Final = 16 * 1024
_CREDENTIALS: Final = struct.Struct("3i")  # of the peer: process, user, group
_CODES: Final = {
    400: ProblemCode.INVALID_REQUEST,
    413: ProblemCode.TOO_LARGE,
    429: ProblemCode.TOO_MUCH_AT_ONCE,
    431: ProblemCode.HEAD_TOO_LARGE,
    501: ProblemCode.NOT_IMPLEMENTED,
}
_ENCODING: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)


def bind(path: Path, mode: int = 0o666) -> socket.socket:
    """Listen on a Unix socket in place of one that a former process has left;
    `ListenFailed` where that cannot be, or another process listens.

    Everybody may connect: whom the kernel names as the peer decides.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            _check_left(path)
            path.unlink()
        bound.bind(str(path))
        path.chmod(mode)
        bound.listen(128)
    except OSError as error:
        bound.close()
        why = (error.strerror or str(error)).lower()
        raise ListenFailed(f"cannot listen on {path} ({why})") from error
    return bound


def _check_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ASK_SECONDS)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another process listens")


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the user and the process at the other end of a Unix socket."""
    found = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    process, user, _ = _CREDENTIALS.unpack(found)
    return user, process


class _TooMuch(Error):
    """The caller has too much under way."""

    code = 429
    reason = "Too Many Requests"


class _Parser(HTTPRequestParser):
    """Reads a request. Only a whole list may be longer than `BODY_BYTES`."""

    def __init__(self, connection: CallerConnection, adjustments: Adjustments) -> None:
        super().__init__(adjustments)
        self._connection = connection

    def received(self, data: bytes) -> int:
        """Read some bytes."""
        is_head = not self.headers_finished
        read = super().received(data)
        if is_head and self.headers_finished and self._connection.holds_too_much():
            said = f"more than {_HELD_BYTES:,} bytes of bodies and unread answers"
            self.error = _TooMuch(said)
            self.completed = True
        return read

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head; what other readers take in another way is refused."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError("no target or length of HTTP") from error
        target: str = vars(self)["request_uri"]  # the types of waitress lack it
        if "#" in target or "%" in target.partition("?")[0]:
            raise ParsingError("expected a target without '#', and a path without '%'")
        has_both = _ENCODING.search(header_plus) and _LENGTH.search(header_plus)
        if has_both or "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("expected Content-Length, or chunks of HTTP/1.1")
        if vars(self)["command"] == "PUT" and vars(self)["path"] == SESSIONS_PATH:
            self.adj = _of_lists()

    @property
    def announced(self) -> int:
        """How long the body may become."""
        return self.adj.max_request_body_size if self.chunked else self.content_length


class _Refusal(ErrorTask):
    """Answers what is no request of HTTP."""

    def execute(self) -> None:
        """Write the answer."""
        error = self.request.error  # type: ignore[attr-defined] # the type of a request is wrong
        code = _CODES.get(error.code, ProblemCode.FAILED)
        problem = CallProblem(code, str(error.body))
        body = problem.document()
        self.status = f"{problem.status} {error.reason}"
        self.response_headers = [("Content-Type", TYPE)]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class CallerConnection(BoundedConnection):
    """A connection of a caller: its user is the address that the kernel tells."""

    error_task_class = _Refusal
    per_client = 64
    in_all = 512

    def __init__(
        self,
        server: BaseWSGIServer,
        connection: socket.socket,
        _address: object,
        *others: Any,
        **named: Any,
    ) -> None:
        user, process = peer_of(connection)
        self.parser_class = partial(_Parser, self)  # type: ignore[assignment] # makes one
        super().__init__(server, connection, (str(user), process), *others, **named)

    def holds_too_much(self) -> bool:
        """Whether the caller has too much under way, on all of its connections."""
        channels = cast("dict[int, CallerConnection]", self.server.active_channels)
        own = (other for other in [*channels.values()] if other.network == self.network)
        return sum(other.held for other in own) > _HELD_BYTES

    @property
    def held(self) -> int:
        """How much of it is here: bodies, and answers that were not taken."""
        requests = cast("list[_Parser | None]", [*self.requests, self.request])
        announced = sum(request.announced for request in requests if request)
        return announced + self.total_outbufs_len


class _CallersThreads:
    """Threads for each caller: nobody waits for the calls of another."""

    def __init__(self) -> None:
        self._of: dict[str, ThreadedTaskDispatcher] = {}

    def add_task(self, connection: CallerConnection) -> None:
        """Have a request answered."""
        own = self._of.get(connection.network)
        if own is None:
            own = self._of[connection.network] = ThreadedTaskDispatcher()
            own.set_thread_count(_THREADS)
        own.add_task(cast("Task", connection))  # it serves itself

    def shutdown(self) -> None:
        """End the threads."""
        for own in self._of.values():
            own.shutdown()


def _of_lists() -> Adjustments:
    return Adjustments(
        max_request_header_size=_HEAD_BYTES,
        max_request_body_size=LIST_BYTES + 1,
        inbuf_overflow=_IN_MEMORY,
    )


def serve(
    application: WSGIApplication, bound: socket.socket, knows: Callable[[int], bool]
) -> BaseWSGIServer:
    """Make a server for a bound socket, and for users that `knows` knows: a connection
    of another one is closed before a byte is read.

    Its `run` answers until `SystemExit` is raised in its thread.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    made = create_server(
        application,
        sockets=[bound],
        _dispatcher=_CallersThreads(),  # type: ignore[arg-type] # has what is called
        connection_limit=2 * CallerConnection.in_all,  # never reached
        channel_timeout=_IDLE_SECONDS,
        cleanup_interval=_CLEANUP_SECONDS,
        max_request_header_size=_HEAD_BYTES,
        max_request_body_size=BODY_BYTES + 1,
        inbuf_overflow=_IN_MEMORY,
        outbuf_overflow=_IN_MEMORY,
        asyncore_use_poll=True,
        ident="",
    )
    server = cast("BaseWSGIServer", made)  # the type for one socket

    def accept(
        _: BaseWSGIServer, connection: socket.socket, *others: Any, **named: Any
    ) -> None:
        if knows(peer_of(connection)[0]):
            CallerConnection(server, connection, *others, **named)
        else:
            connection.close()

    server.channel_class = accept  # type: ignore[assignment] # it is called alone
    return server
