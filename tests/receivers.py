"""Receivers of an export: syslog over TCP as a test steers it, Debian's rsyslog, and an
https server.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from squidkeeper.operate.demo.authority import Authority
from tests.waiting import pause, wait_for

RSYSLOGD = Path("/usr/sbin/rsyslogd")


@dataclass
class Received:
    """A request that an https receiver was sent."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


Answer = Callable[[Received], "tuple[int, dict[str, str], bytes]"]


def take(_: Received) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, b""


@dataclass
class HttpsReceiver:
    """Takes posts over TLS; `answer` says with what, and `taken` holds those that it
    answered with 2xx.
    """

    port: int
    ca: Path
    answer: Answer = take
    asked: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/in"

    @property
    def lines(self) -> list[Any]:
        return [line for request in self.taken for line in request.lines]


@contextmanager
def https_receiver(folder: Path) -> Iterator[HttpsReceiver]:
    authority = Authority(folder)
    made: list[HttpsReceiver] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # its sender was killed
                self.close_connection = True
                return
            received = Received(self.path, dict(self.headers.items()), body)
            made[0].asked.append(received)
            status, headers, content = made[0].answer(received)
            if 200 <= status < 300:
                made[0].taken.append(received)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that trusts another CA

    with Server(("127.0.0.1", 0), Handler) as server:
        context = authority.context("127.0.0.1")
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        made.append(HttpsReceiver(server.server_address[1], authority.certificate))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made[0]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def dripping_receiver(
    folder: Path, beginning: bytes, drop: bytes
) -> Iterator[HttpsReceiver]:
    """A receiver over TLS that begins its answer, and goes on with it a drop at a time
    until the sender ends.
    """
    authority = Authority(folder)
    context = authority.context("127.0.0.1")

    def begin(connection: socket.socket) -> socket.socket:
        opened = context.wrap_socket(connection, server_side=True)
        opened.sendall(beginning)
        return opened

    with dripping_server(begin, drop) as port:
        yield HttpsReceiver(port, authority.certificate)


@contextmanager
def dripping_server(
    handle: Callable[[socket.socket], socket.socket | None], drop: bytes = b"."
) -> Iterator[int]:
    """A server that does `handle` with each connection, and then sends a drop at a time
    until its client ends.

    It sends on what `handle` returns, if anything.
    """

    def drip() -> None:
        with suppress(OSError):  # the test is over
            while True:
                connection, _ = server.accept()
                with (
                    suppress(OSError),
                    connection,
                    handle(connection) or connection as opened,
                ):
                    while True:
                        opened.sendall(drop)
                        pause(0.02, "a receiver that drips")

    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=drip, daemon=True).start()
        yield int(server.getsockname()[1])
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def split_frames(stream: bytes) -> list[bytes]:
    """Cut a stream by octet counting, RFC 6587; a message that is not whole is left
    out.
    """
    messages = []
    while stream:
        length, space, rest = stream.partition(b" ")
        if not space or len(rest) < int(length):
            break
        messages.append(rest[: int(length)])
        stream = rest[int(length) :]
    return messages


class TcpReceiver:
    """Reads syslog over TCP. It counts as received what it has read, in whole messages.

    `die_after` connections in turn: so many bytes are read, then it ends without a
    word, as one that was killed.
    """

    def __init__(self, *die_after: int, context: ssl.SSLContext | None = None) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._streams: list[bytearray] = []
        self._die_after = [*die_after]
        self._context = context
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        return len(self._streams)

    @property
    def messages(self) -> list[bytes]:
        return [
            message
            for stream in self._streams
            for message in split_frames(bytes(stream))
        ]

    @property
    def lines(self) -> list[Any]:
        return [json.loads(message.split(b" ", 7)[7]) for message in self.messages]

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._streams.append(bytearray())
                limit = self._die_after.pop(0) if self._die_after else None
                with suppress(OSError):
                    self._read(connection, limit)

    def _read(self, connection: socket.socket, limit: int | None) -> None:
        if self._context:
            connection = self._context.wrap_socket(connection, server_side=True)
        stream = self._streams[-1]
        with connection:
            while (limit is None or len(stream) < limit) and (
                data := connection.recv(4096)
            ):
                stream += data
            if limit is not None:  # what it has not read is lost: the kernel sends RST
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )


@contextmanager
def rsyslog(
    folder: Path, port: int, driver: str = "", leaf: bytes = b"", ca: Path | None = None
) -> Iterator[Path]:
    """Run Debian's rsyslog; give the file that it writes each message into, as it came.

    `driver`: of TLS.
    """
    folder.mkdir(exist_ok=True)
    received = folder / "received"
    tls = ""
    if driver:
        (folder / "leaf.pem").write_bytes(leaf)
        tls = (
            f'global(DefaultNetstreamDriver="{driver}" DefaultNetstreamDriverCAFile="{ca}"'
            f' DefaultNetstreamDriverCertFile="{folder}/leaf.pem" DefaultNetstreamDriverKeyFile="{folder}/leaf.pem")\n'
        )
    mode = (
        f'StreamDriver.Name="{driver}" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"'
        if driver
        else ""
    )
    configuration = folder / "rsyslog.conf"
    configuration.write_text(
        f'global(workDirectory="{folder}" maxMessageSize="8k")\n{tls}module(load="imtcp" {mode})\n'
        f'input(type="imtcp" port="{port}" address="127.0.0.1")\n'
        'template(name="raw" type="string" string="%rawmsg%\\n")\n'
        f'*.* action(type="omfile" file="{received}" template="raw")\n'
    )
    received.touch()
    command = (RSYSLOGD, "-n", "-f", configuration, "-i", folder / "pid")
    with (
        (folder / "said").open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said) as process,
    ):
        try:
            wait_for(
                lambda: _listens(port) or process.poll(),
                f"rsyslog: {(folder / 'said').read_text()}",
            )
            yield received
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
