"""The servers of the demonstration: an origin over TLS, and a relay from the host to
the status page.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer
from typing import Final

from squidkeeper.operate.demo.authority import Authority

ORIGIN_ADDRESS: Final = "203.0.113.10"  # RFC 5737: no host of the internet


class Origin(ThreadingHTTPServer):
    """An HTTPS server on every address; `received` holds the header lines of each
    request, by URL.
    """

    daemon_threads = True

    def __init__(self, authority: Authority, names: tuple[str, ...]) -> None:
        super().__init__(("0.0.0.0", 443), _OriginHandler)  # noqa: S104 - in a namespace of its own
        self.socket = authority.context(*names).wrap_socket(
            self.socket, server_side=True
        )
        self.received: dict[str, list[str]] = {}


class _OriginHandler(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        """Greet the client; the response repeats no header of the request."""
        host = self.headers["Host"]
        self.server.received[f"https://{host}{self.path}"] = [
            f"{name}: {value}" for name, value in self.headers.items()
        ]
        body = f"Hello from {host}, this is {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Relay(ThreadingTCPServer):
    """Passes connections on to a port of the namespace; the socket that it accepts them
    on is of the host's network.
    """

    daemon_threads = True

    def __init__(self, listening: socket.socket, target: tuple[str, int]) -> None:
        super().__init__(
            listening.getsockname(), _RelayHandler, bind_and_activate=False
        )
        self.socket.close()
        self.socket = listening
        self.target = target


class _RelayHandler(BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with (
            suppress(OSError),
            socket.create_connection(self.server.target) as upstream,
        ):
            back = threading.Thread(
                target=_copy, args=(upstream, self.request), daemon=True
            )
            back.start()
            _copy(self.request, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Run a server in a thread of its own, which has the network namespace of the
    caller.
    """
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
