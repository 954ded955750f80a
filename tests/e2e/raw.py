"""A client that keeps to no rule: any CONNECT, any SNI, then any bytes."""

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from .reply import NO_ANSWER, Reply, parse_head

TIMEOUT_SECONDS = 60  # a loaded machine needs it


class Proxy(Protocol):
    """What takes clients: a gateway, or HAProxy in front of some."""

    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def ca(self) -> Path: ...


class Raw:
    """One connection to the proxy port."""

    def __init__(self, gateway: Proxy, client: str = "127.0.0.1") -> None:
        self._ca = gateway.ca
        self._socket = socket.create_connection(
            gateway.address, TIMEOUT_SECONDS, source_address=(client, 0)
        )
        self._file = cast("BinaryIO", self._socket.makefile("rb"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes | str) -> Self:
        """Send these bytes; text is sent as Latin-1."""
        self._socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)
        return self

    def connect(self, authority: bytes | str) -> Reply:
        """Ask for a tunnel and return the answer."""
        authority = (
            authority.encode("latin-1") if isinstance(authority, str) else authority
        )
        return self.send(
            b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n"
        ).answer()

    def tls(
        self, sni: bytes | str | None, ca: Path | None = None, *protocols: str
    ) -> Self:
        """Start TLS with this SNI (bytes as they are; None for none); the certificate
        must be of this CA.

        Without one, of the gateway's. `protocols` are offered by ALPN.
        """
        context = ssl.create_default_context(cafile=str(ca or self._ca))
        context.check_hostname = False
        if ca:  # that of the origins has no KeyUsage
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if protocols:
            context.set_alpn_protocols(protocols)
        return self.start_tls(context, sni)

    def start_tls(self, context: ssl.SSLContext, sni: bytes | str | None) -> Self:
        """Start TLS with a context of the test's own."""
        self._file.close()
        self._socket = context.wrap_socket(
            self._socket, server_hostname=cast("str | None", sni)
        )
        self._file = cast("BinaryIO", self._socket.makefile("rb"))
        return self

    def names(self) -> list[str]:
        """The names in the certificate that was presented."""
        certificate = cast("ssl.SSLSocket", self._socket).getpeercert() or {}
        return [str(name[1]) for name in certificate.get("subjectAltName", ())]

    @property
    def leaf(self) -> bytes:
        """The certificate that was presented."""
        return cast("ssl.SSLSocket", self._socket).getpeercert(binary_form=True) or b""

    @property
    def port(self) -> int:
        """The port that it comes from."""
        return int(self._socket.getsockname()[1])

    @property
    def protocol(self) -> str | None:
        """The protocol that was chosen by ALPN."""
        return cast("ssl.SSLSocket", self._socket).selected_alpn_protocol()

    def get(
        self, target: str, host: str | None, *headers: str, method: str = "GET"
    ) -> Reply:
        """Send a request with this Host (None for none) and these header lines; return
        its answer.
        """
        lines = [
            f"{method} {target} HTTP/1.1",
            *([f"Host: {host}"] if host is not None else []),
            *headers,
        ]
        return self.send("\r\n".join(lines) + "\r\n\r\n").answer(method)

    def lines(self) -> Iterator[bytes]:
        """Read line after line, as they come, until the connection ends."""
        with suppress(ConnectionError):
            while line := self._file.readline():
                yield line.rstrip(b"\r\n")

    def finish(self) -> Self:
        """Tell the other side that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)
        return self

    def abandon(self) -> None:
        """Break the connection off, also for a thread that waits for an
        answer on it.
        """
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def is_answered(self) -> bool:
        """Whether something can be read, without waiting for it."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def receive(self) -> bytes:
        """Read some bytes; none where the connection has ended."""
        try:
            return self._socket.recv(1 << 16)
        except (ConnectionError, ssl.SSLError):
            return b""

    def is_ended(self) -> bool:
        """Read what has come; whether the connection has ended."""
        while self.is_answered():
            if not self.receive():
                return True
        return False

    def answer(self, method: str = "GET") -> Reply:
        """Read one response; NO_ANSWER where the connection ended instead."""
        try:
            head = self._head()
            if not head:
                return NO_ANSWER
            status, headers = parse_head(head)
            return Reply(status, headers, self._body(method, status, dict(headers)))
        except (ConnectionError, ssl.SSLError):
            return NO_ANSWER

    def _head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self._file.readline()
            if not line:
                return b""
            head += line
        return head

    def _body(self, method: str, status: int, headers: dict[str, str]) -> bytes:
        if (
            method == "HEAD"
            or status < 200
            or status in (204, 304)
            or (status == 200 and not headers)
        ):
            return b""  # the last is the answer to a CONNECT
        if "chunked" in headers.get("Transfer-Encoding", ""):
            return self._chunks()
        length = headers.get("Content-Length")
        body = self._file.read() if length is None else self._file.read(int(length))
        if length is not None and len(body) < int(length):
            raise ConnectionError(
                f"the answer ends after {len(body)} of {length} bytes"
            )
        return body

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return body


def tunnel(
    gateway: Proxy,
    authority: str,
    sni: bytes | str | None = "same",
    client: str = "127.0.0.1",
) -> Raw:
    """Open a tunnel and start TLS in it; the SNI is the authority's host
    unless given.
    """
    raw = Raw(gateway, client)
    try:
        answer = raw.connect(authority)
        if answer.status != 200:
            raise ConnectionError(f"CONNECT {authority}: {answer}")
        return raw.tls(authority.rpartition(":")[0] if sni == "same" else sni)
    except BaseException:
        raw.close()
        raise
