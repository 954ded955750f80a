"""The origins: one server on every address, TLS and plain, that records each request
byte for byte, with any answer.
"""

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from squidkeeper.operate.demo.authority import Authority
from tests.waiting import pause_between

T = TypeVar("T")
TLS_PORTS = (443, 444, 8443)
PLAIN_PORTS = (22, 80, 81, 8080)
ADDRESSES = (
    "203.0.113.10",
    "203.0.113.20",
    "2001:db8::10",
    "127.0.0.1",
    "10.0.0.5",
    "169.254.169.254",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it reached an origin."""

    address: str  # which of the origin's addresses it came to
    port: int
    sni: str | None
    head: bytes  # the request line and the header lines, as sent
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        return self.head.split(b"\r\n", 1)[0].split(b" ")[1].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names and values as sent: case, order and doubles kept."""
        lines = self.head.decode("latin-1").rstrip("\r\n").split("\r\n")[1:]
        return [
            (name, value.strip())
            for name, _, value in (line.partition(":") for line in lines)
        ]

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def url(self) -> str:
        scheme = "https" if self.port in TLS_PORTS else "http"
        return f"{scheme}://{''.join(self.values('Host'))}{self.target}"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    body: bytes = b"hello"
    headers: dict[str, str] = field(default_factory=dict)
    gate: "Gate | None" = None

    def encode(self) -> bytes:
        fixed = {"Date": formatdate(usegmt=True), "Content-Length": str(len(self.body))}
        lines = {**fixed, **self.headers}
        head = f"HTTP/1.1 {self.status} Answer\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        return head.encode("latin-1") + b"\r\n" + self.body

    async def send(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self.encode())
        await writer.drain()


@dataclass(frozen=True, slots=True)
class Stream(Answer):
    """A body that comes event by event, in chunks.

    Without `ends` the connection ends in the middle of it.
    """

    events: tuple[bytes, ...] = ()
    pause: float = 0.0
    ends: bool = True

    async def send(self, writer: asyncio.StreamWriter) -> None:
        fixed = {
            "Content-Type": "text/event-stream",
            "Transfer-Encoding": "chunked",
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        writer.write(f"HTTP/1.1 {self.status} Answer\r\n{lines}\r\n".encode("latin-1"))
        for event in self.events:
            event = event.replace(b"{time}", f"{time.time():.6f}".encode())
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await pause_between(self.pause)
        if not self.ends:
            raise ConnectionAbortedError("as the test wants it")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


class Bytes(Answer):
    """An answer whose body is all that is written."""

    def encode(self) -> bytes:
        return self.body


class BrokenOff(Answer):
    """An answer that does not come: the connection ends instead."""

    def encode(self) -> bytes:
        raise ConnectionAbortedError("as the test wants it")


@contextmanager
def silent_port(address: tuple[str, int]) -> Iterator[None]:
    """A port that answers no connection: its queue is full."""
    with socket.create_server(address, backlog=0), ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield


def echo(seen: Seen) -> Answer:
    """The request, told back in JSON."""
    told = {
        "method": seen.method,
        "url": seen.url,
        "headers": seen.headers,
        "sni": seen.sni,
        "address": seen.address,
    }
    return Answer(
        body=json.dumps(told).encode(), headers={"Content-Type": "application/json"}
    )


class Gate:
    """Holds answers back until it is opened; `waiting` counts the requests that stand
    before it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def passed(self) -> None:
        self.waiting += 1
        await self._event.wait()


class Origins:
    """Every origin there is.

    A name's certificate is for that name, unless `certificates` lists other names for
    it.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self._stranger = Authority(folder / "stranger")
        self.seen: list[Seen] = []
        self.connections: list[
            tuple[str, int]
        ] = []  # address and port of each, TLS handshake done or not
        self.peers: list[str] = []  # where each connection came from
        self.broken: list[Exception] = []  # why connections ended in the middle
        self.answers: dict[
            str, Answer | Callable[[Seen], Answer]
        ] = {}  # by host and path: "a.example/x"
        self.certificates: dict[str, tuple[str, ...]] = {}
        self.untrusted: set[str] = set()  # names whose certificates nobody vouches for
        self.contexts: dict[
            str, ssl.SSLContext
        ] = {}  # by name: other certificates than these
        self.fallback: Answer | Callable[[Seen], Answer] = echo
        self._default = self.authority.context(*ADDRESSES)
        self._names: WeakKeyDictionary[ssl.SSLObject, str] = WeakKeyDictionary()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="origins")
        self._thread.start()
        self._servers = self._do(self._listen())

    def gate(self) -> Gate:
        async def make() -> Gate:
            return Gate(self._loop)

        return self._do(make())

    def forget(self) -> None:
        """Drop records and answers: each test starts with none."""
        self.seen.clear()
        self.connections.clear()
        self.peers.clear()
        self.broken.clear()
        self.answers.clear()
        self.fallback = echo
        self.certificates.clear()
        self.untrusted.clear()
        self.contexts.clear()

    def urls(self) -> list[str]:
        return [seen.url for seen in self.seen]

    def stop(self) -> None:
        async def close() -> None:
            for server in self._servers:
                server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> list[asyncio.Server]:
        self._default.sni_callback = self._choose_certificate
        return [
            await asyncio.start_server(self._serve, port=port, backlog=512)
            for port in TLS_PORTS + PLAIN_PORTS
        ]

    def _choose_certificate(
        self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> None:
        if name is None:
            return
        self._names[connection] = name
        authority = self._stranger if name in self.untrusted else self.authority
        context = self.contexts.get(name) or self._context(
            authority, self.certificates.get(name, (name,))
        )
        connection.context = context

    @cache  # noqa: B019 - one instance, as long as the run
    def _context(self, authority: Authority, names: tuple[str, ...]) -> ssl.SSLContext:
        return authority.context(*names)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        address, port = writer.get_extra_info("sockname")[:2]
        self.connections.append((address, port))
        self.peers.append(writer.get_extra_info("peername")[0])
        try:
            if port in TLS_PORTS:
                await writer.start_tls(self._default)
            while await self._answer(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            self.broken.append(error)
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Read one request and answer it; False where the connection is to end."""
        head = await reader.readuntil(b"\r\n\r\n")
        address, port = writer.get_extra_info("sockname")[:2]
        connection = writer.get_extra_info("ssl_object")
        sni = self._names.get(connection) if connection else None
        body = await _body(reader, head)
        seen = Seen(address, port, sni, head, body)
        self.seen.append(seen)
        plan = self.answers.get(
            "".join(seen.values("Host")) + seen.target.split("?")[0], self.fallback
        )
        answer = plan if isinstance(plan, Answer) else plan(seen)
        if answer.gate:
            await answer.gate.passed()
        await answer.send(writer)
        return "close" not in "".join(seen.values("Connection")).lower()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    fields = {
        name.lower(): value
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if b"chunked" not in fields.get(b"transfer-encoding", b""):
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    body = bytearray()  # a push of git has thousands of chunks
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return bytes(body)
