"""A parent proxy of the tests: it records each request, knows any name, and can ask for
a password, or be slow.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")
# where its connections come from, so that an origin can tell them from Squid's
SOURCE = "127.0.0.77"
ORIGIN = "203.0.113.10"


class Parent:
    """CONNECT and absolute-form requests, each to the origins on its port, whatever its
    name.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.port = port
        self.heads: list[str] = []  # each request with its header lines, as it was sent
        self.password: str | None = None  # the Proxy-Authorization that it asks for
        self.slow = asyncio.Event()  # while it is not set, answers wait
        self._address = address
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="parent")
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._loop.call_soon_threadsafe(self.slow.set)
        self.up()

    def up(self) -> None:
        async def listen() -> None:
            self._server = await asyncio.start_server(
                self._serve, self._address, self.port
            )

        self._do(listen())

    def down(self) -> None:
        """Close the port, and every connection."""

        async def close() -> None:
            if self._server:
                self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._do(close())

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._loop.call_soon_threadsafe(self.slow.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self.slow.set)

    def forget(self) -> None:
        self.heads.clear()
        self.password = None

    def lines(self) -> list[str]:
        """The request lines."""
        return [head.split("\r\n", 1)[0] for head in self.heads]

    def stop(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        await self.slow.wait()
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        if self.password and f"Proxy-Authorization: {self.password}\r\n" not in head:
            writer.write(
                b"HTTP/1.1 407 Password\r\nProxy-Authenticate: Basic realm=p\r\nContent-Length: 0\r\n\r\n"
            )
            await writer.drain()
            return
        authority = target if method == "CONNECT" else target.split("/")[2]
        port = int(authority.rpartition(":")[2]) if ":" in authority else 80
        out_reader, out = await asyncio.open_connection(
            ORIGIN, port, local_addr=(SOURCE, 0)
        )
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Yes\r\n\r\n")
        else:
            path = "/" + target.split("/", 3)[3]
            kept = [
                line
                for line in head.split("\r\n")[1:]
                if not line.lower().startswith(("proxy-", "connection:"))
            ]
            out.write(
                "\r\n".join(
                    [f"{method} {path} HTTP/1.1", "Connection: close", *kept]
                ).encode("latin-1")
            )
        await asyncio.gather(_copy(reader, out), _copy(out_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
