"""The service over HTTP, on a Unix socket: who calls, and bounds on what comes."""

from __future__ import annotations

import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask

from squidkeeper.base.errors import ListenFailed
from squidkeeper.services.bounded_connection import BoundedConnection
from squidkeeper.services.sessions.problems import TYPE, CallProblem, ProblemCode

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from waitress.server import BaseWSGIServer

SESSIONS_PATH: Final = "/v1/sessions"
BODY_BYTES: Final = 64 * 1024
LIST_BYTES: Final = 16 * 1024 * 1024  # of a whole list: 20,000 sessions
_THREADS: Final = 48  # one that waits for an address is a thread
_IDLE_SECONDS: Final = 20  # also for a whole request
_CLEANUP_SECONDS: Final = 5
_HEAD_BYTES: Final = 16 * 1024
_CREDENTIALS: Final = struct.Struct("3i")  # of the peer: process, user, group
_CODES: Final = {
    400: ProblemCode.INVALID_REQUEST,
    413: ProblemCode.TOO_LARGE,
    431: ProblemCode.HEAD_TOO_LARGE,
    501: ProblemCode.NOT_IMPLEMENTED,
}


def bind(path: Path, mode: int = 0o666) -> socket.socket:
    """Listen on a Unix socket in place of one that a former process has left;
    `ListenFailed` where that cannot be.

    Everybody may connect: whom the kernel names as the peer decides.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
        bound.bind(str(path))
        path.chmod(mode)
        bound.listen(128)
    except OSError as error:
        bound.close()
        why = (error.strerror or str(error)).lower()
        raise ListenFailed(f"cannot listen on {path} ({why})") from error
    return bound


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the user and the process at the other end of a Unix socket."""
    found = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    process, user, _ = _CREDENTIALS.unpack(found)
    return user, process


class _Parser(HTTPRequestParser):
    """Reads a request. Only a whole list may be longer than `BODY_BYTES`."""

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        # the types of waitress lack both
        if vars(self)["command"] == "PUT" and vars(self)["path"] == SESSIONS_PATH:
            self.adj = _of_lists()


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

    parser_class = _Parser
    error_task_class = _Refusal
    per_client = 64
    in_all = 256

    def __init__(
        self,
        server: BaseWSGIServer,
        connection: socket.socket,
        _address: object,
        *others: Any,
        **named: Any,
    ) -> None:
        user, process = peer_of(connection)
        super().__init__(server, connection, (str(user), process), *others, **named)


def _of_lists() -> Adjustments:
    return Adjustments(
        max_request_header_size=_HEAD_BYTES, max_request_body_size=LIST_BYTES
    )


def serve(application: WSGIApplication, bound: socket.socket) -> BaseWSGIServer:
    """Make a server for a bound socket.

    Its `run` answers until `SystemExit` is raised in its thread.
    """
    made = create_server(
        application,
        sockets=[bound],
        threads=_THREADS,
        connection_limit=2 * CallerConnection.in_all,  # never reached
        channel_timeout=_IDLE_SECONDS,
        cleanup_interval=_CLEANUP_SECONDS,
        max_request_header_size=_HEAD_BYTES,
        max_request_body_size=BODY_BYTES,
        asyncore_use_poll=True,
        ident="",
    )
    server = cast("BaseWSGIServer", made)  # the type for one socket
    server.channel_class = CallerConnection
    return server
