"""What a load balancer asks: /healthz on a port of its own, which answers the
balancers' addresses alone.

It says less than the exporter's /healthz: whether to send clients here. A policy on
disk that does not load, for example, is no reason to send them elsewhere, as every
gateway has the same.
"""

import json
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import Final

from squidkeeper.policy.language.hosts import Network
from squidkeeper.services.exporter.server import is_among
from squidkeeper.serving.drained import drained_since

_CONNECTIONS: Final = 16  # at a time
_TIMEOUT_SECONDS: Final = 5.0
_SQUID_AT_MOST_EVERY_SECONDS: Final = 1.0


class Health:
    """Whether clients should come here.

    Squid is asked at most once a second, however many balancers ask.
    """

    def __init__(
        self,
        squid_answers: Callable[[], bool],
        has_policy: Callable[[], bool],
        run: Path,
    ) -> None:
        self._ask_squid = squid_answers
        self._has_policy = has_policy
        self._run = run
        self._lock = Lock()
        self._asked = float("-inf")
        self._squid_answers = False

    def problems(self) -> tuple[str, ...]:
        """List the codes of the conditions that send clients elsewhere."""
        found = {
            "drained": drained_since(self._run) is not None,
            "no-policy": not self._has_policy(),
            "squid-down": not self._answers(),
        }
        return tuple(code for code, holds in found.items() if holds)

    def _answers(self) -> bool:
        with self._lock:
            if time.monotonic() - self._asked >= _SQUID_AT_MOST_EVERY_SECONDS:
                self._squid_answers = self._ask_squid()
                self._asked = time.monotonic()
            return self._squid_answers


class HealthServer(ThreadingHTTPServer):
    """Serves /healthz on a bound socket.

    A connection from another address is closed before anything of it is read.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that are closed at once stand in it too

    def __init__(
        self, bound: socket.socket, balancers: tuple[Network, ...], health: Health
    ) -> None:
        super().__init__(bound.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.health = health
        self._balancers = balancers
        self._free = BoundedSemaphore(_CONNECTIONS)
        # Connections that have just ended keep the port from the next exporter, unless
        # they were taken with this.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server_activate()

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002 - socketserver's
        """Whether to answer: a balancer, and not too many of its connections."""
        host = client_address[0] if isinstance(client_address, tuple) else ""
        return is_among(str(host), self._balancers) and self._free.acquire(
            blocking=False
        )

    def process_request_thread(
        self,
        request: socket.socket,  # type: ignore[override] # its stub is wider
        client_address: object,
    ) -> None:
        """Answer, and make room for another connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave a connection that has failed: the balancer asks again."""

    def start(self) -> None:
        """Serve in the background until the process ends."""
        Thread(target=self.serve_forever, name="health", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_SECONDS
    server_version = "squidkeeper"
    sys_version = ""
    server: HealthServer

    def do_GET(self) -> None:
        if self.path != "/healthz":
            self._answer(404, b"The page is /healthz.\n")
            return
        problems = self.server.health.problems()
        body = (
            json.dumps({"healthy": not problems, "conditions": problems}).encode()
            + b"\n"
        )
        self._answer(503 if problems else 200, body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header(
            "Content-Type",
            "application/json" if status != 404 else "text/plain; charset=utf-8",
        )
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log nothing: balancers ask every second."""
