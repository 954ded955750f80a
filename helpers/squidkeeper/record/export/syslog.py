"""Syslog over TCP and TLS: messages by RFC 5424, framed by the octet counting of RFC
6587.

Syslog has no acknowledgement, and a `write` that succeeds says only that the kernel has
the bytes. But TCP tells if a receiver has read everything: one that closes after it has
read the end of the stream sends FIN, one that ends with bytes unread sends RST. So a
connection is ended in order every ten seconds, or after 4 MB, and what it carried
counts as taken once the receiver has closed its side, with every byte acknowledged and
no error (`confirm`).
"""

import fcntl
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from squidkeeper.base.deadline import shut, whole_exchange
from squidkeeper.base.errors import DeliveryFailed
from squidkeeper.policy.destination import Destination
from squidkeeper.record.export.messages import Message, MessageKind

MESSAGE_BYTES: Final = (
    8000  # rsyslog cuts a message at 8,096 bytes, and takes the rest for new ones
)
# without the header: RFC 5424 limits the name of the host to 255 characters
PAYLOAD_BYTES: Final = MESSAGE_BYTES - 400
# to connect, and to send a batch; a receiver that is busy does not read for a while
_SECONDS: Final = 30.0
_CONFIRM_SECONDS: Final = 60.0
_HOLD_SECONDS: Final = 10.0
_HOLD_BYTES: Final = 4_000_000
_FACILITY: Final = 16  # local0
_SEVERITIES: Final = {  # RFC 5424, 6.2.1: 4 is warning, 5 is notice, 6 is informational
    MessageKind.ALLOWED: 6,
    MessageKind.DENIED: 5,
    MessageKind.UNDECIDED: 6,
    MessageKind.GAP: 4,
    MessageKind.ARCHIVE_HEAD: 6,
}
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_NOT_PRINTABLE: Final = re.compile(r"[^!-~]")


class SyslogSender:
    """One receiver of syslog; `context` None: over TCP alone.

    `host` is the gateway's name.
    """

    def __init__(
        self, destination: Destination, context: ssl.SSLContext | None, host: str
    ) -> None:
        self._destination = destination
        self._context = context
        self._host = _NOT_PRINTABLE.sub("-", host)[:255] or "-"
        self._connection: socket.socket | None = None
        self._since = 0.0  # by the monotonic clock: when the first byte left
        self._bytes = 0

    def open(self) -> None:
        """Connect, unless it is connected."""
        if self._connection is None:
            self._since, self._bytes = 0.0, 0
            self._connection = self._connected()

    def send(self, messages: Sequence[Message]) -> int:
        """Write the messages; no receiver of syslog rejects one."""
        content = b"".join(map(self._framed, messages))
        assert self._connection is not None  # noqa: S101 - `open` was called
        try:
            # its timeout is for all of it, by TLS too
            self._connection.sendall(content)
        except OSError as error:  # ssl.SSLError too
            raise DeliveryFailed(
                f"{self._destination}: the connection broke: {_reason(error)}",
                uncertain=True,
            ) from None
        self._since = self._since or time.monotonic()
        self._bytes += len(content)
        return 0

    def is_due(self, now: float) -> bool:
        """Whether the connection has carried enough, or has been open long enough."""
        return self._bytes >= _HOLD_BYTES or now >= self._since + _HOLD_SECONDS

    def confirm(self) -> None:
        """End the connection in order, and wait until the receiver has done
        the same.
        """
        connection = self._connection
        assert connection is not None  # noqa: S101 - something was sent
        try:
            connection.settimeout(_CONFIRM_SECONDS)
            with whole_exchange(_CONFIRM_SECONDS, partial(shut, connection)):
                _end(connection)
            unread = _unacknowledged(connection) or connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_ERROR
            )
        except OSError as error:
            raise DeliveryFailed(
                f"{self._destination}: {_not_taken(error)}", uncertain=True
            ) from None
        if unread:
            raise DeliveryFailed(
                f"{self._destination}: it ended before it had read everything",
                uncertain=True,
            )
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> socket.socket:
        destination = self._destination
        try:
            plain = socket.create_connection(
                (destination.host, destination.port), _SECONDS
            )
        except OSError as error:
            raise DeliveryFailed(
                f"{destination}: no connection: {_reason(error)}"
            ) from None
        if self._context is None:
            return plain
        try:
            return self._context.wrap_socket(
                plain, server_hostname=destination.host, suppress_ragged_eofs=False
            )
        except OSError as error:
            plain.close()
            raise DeliveryFailed(
                f"{destination}: TLS failed: {_reason(error)}"
            ) from None

    def _framed(self, message: Message) -> bytes:
        priority = 8 * _FACILITY + _SEVERITIES[message.kind]
        at = message.time if _TIME.fullmatch(message.time) else "-"
        head = f"<{priority}>1 {at} {self._host} squidkeeper - {message.kind} - "
        content = head.encode() + message.payload
        return b"%d %b" % (len(content), content)


def _end(connection: socket.socket) -> None:
    """Send the end of the stream, and read to the receiver's end.

    OSError if it is torn, TimeoutError if none comes.
    """
    if isinstance(connection, ssl.SSLSocket):
        try:
            connection.unwrap()
        except ssl.SSLEOFError:
            # the receiver closed without a close_notify of its own, as rsyslog does
            # with GnuTLS
            return
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        pass


def _unacknowledged(connection: socket.socket) -> int:
    """Count the bytes that the receiver's kernel has not acknowledged: SIOCOUTQ of
    tcp(7).
    """
    return int(
        struct.unpack(
            "i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        )[0]
    )


def _not_taken(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"it has not closed the connection {_CONFIRM_SECONDS:.0f} s after its end, so it may not have read all"
    return f"the connection broke before its end was confirmed: {_reason(error)}"


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:.0f} s"
    return error.strerror or str(error) or type(error).__name__
