"""A token endpoint on loopback, over TLS, that answers as a test says: with tokens,
errors, nothing, or garbage.
"""

import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from squidkeeper.operate.demo.authority import Authority

# in the first line of each answer: nothing of an answer may be shown
CANARY = "canary-of-the-source"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request as it reached the server."""

    line: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float

    @property
    def form(self) -> dict[str, str]:
        return {
            name: values[0] for name, values in parse_qs(self.body.decode()).items()
        }


Respond = Callable[[TokenRequest], bytes]


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = (
        f"HTTP/1.1 {status} {CANARY}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
        "",
        "",
    )
    return "\r\n".join(lines).encode() + body


def token(value: object, **fields: object) -> bytes:
    return response(
        200,
        json.dumps({"access_token": value, "token_type": "bearer"} | fields).encode(),
    )


class TokenServer:
    """The server.

    `respond` makes the bytes of an answer; `hang` answers nothing until `stop`.
    """

    def __init__(
        self, folder: Path, address: tuple[str, int] = ("127.0.0.1", 0), *names: str
    ) -> None:
        authority = Authority(folder)
        self.ca = authority.certificate
        self.requests: list[TokenRequest] = []
        self.respond: Respond = lambda _: token("a-token", expires_in=3600)
        self._stopped = threading.Event()
        self._server = socketserver.ThreadingTCPServer(
            address, self._handler(), bind_and_activate=False
        )
        self._server.allow_reuse_address = self._server.daemon_threads = True
        self._server.server_bind()
        self._server.server_activate()
        self._context = authority.context("127.0.0.1", *names)
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        ).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}/token"

    def hang(self, _: TokenRequest) -> bytes:
        self._stopped.wait(60)
        return b""

    def hang_a_while(self, _: TokenRequest) -> bytes:
        self._stopped.wait(8)
        return b""

    def drip(self, _: TokenRequest) -> bytes:
        raise _Drip

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    suppress(OSError, ssl.SSLError),
                    server._context.wrap_socket(self.request, server_side=True) as tls,
                ):
                    server._serve(tls)

        return Handler

    def _serve(self, tls: ssl.SSLSocket) -> None:
        file = tls.makefile("rb")
        line = file.readline().decode("latin-1").rstrip()
        headers: dict[str, str] = {}
        while header := file.readline().decode("latin-1").rstrip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        request = TokenRequest(
            line,
            headers,
            file.read(int(headers.get("content-length", "0"))),
            time.time(),
        )
        self.requests.append(request)
        try:
            tls.sendall(self.respond(request))
        except _Drip:
            while not self._stopped.wait(0.2):
                tls.sendall(b"H")


class _Drip(Exception):
    """Send a byte now and then."""
