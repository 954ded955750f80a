"""Batches over https: verified, no redirects, no proxy; an answer has a bound in bytes
and in time.
"""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Final

from squidkeeper.base.deadline import shut, whole_exchange
from squidkeeper.base.errors import DeliveryFailed, InvalidExport, MessagesRefused
from squidkeeper.base.verified_tls import verified_tls, why_unusable
from squidkeeper.policy.destination import Destination
from squidkeeper.record.export.messages import Message

_SECONDS: Final = 30.0  # to connect, and for a request with its whole answer
_ANSWER_BYTES: Final = 64 * 1024
_IDLE_SECONDS: Final = (
    2.0  # a connection that was unused for longer may have been closed by the receiver
)
# of what a message holds; other statuses are about the receiver or its set-up
_REFUSALS: Final = (
    400,
    413,
    422,
)


@dataclass(frozen=True, slots=True)
class Body:
    """How a format makes a body of many messages.

    `rejected` counts, in a good answer, the messages not taken.
    """

    content_type: str
    of: Callable[[Sequence[bytes]], bytes]
    rejected: Callable[[bytes], int]


class HttpsSender:
    """One receiver over https; `context` None: over http, to this machine.

    No text shows `headers`.
    """

    def __init__(
        self,
        destination: Destination,
        context: ssl.SSLContext | None,
        body: Body,
        headers: Mapping[str, str],
    ) -> None:
        self._destination = destination
        self._context = context
        self._body = body
        self._headers = {
            "User-Agent": "squidkeeper",
            "Content-Type": body.content_type,
            **headers,
        }
        self._connection: HTTPConnection | None = None
        self._used_at = 0.0

    def open(self) -> None:
        """Connect, unless it is connected."""
        if self._connection and time.monotonic() > self._used_at + _IDLE_SECONDS:
            self.close()
        if self._connection is None:
            self._connection = self._connected()
            self._used_at = time.monotonic()

    def send(self, messages: Sequence[Message]) -> int:
        """Post the messages in one request; the answer is the receiver's
        confirmation.
        """
        body = self._body.of([message.payload for message in messages])
        self.open()  # a receiver may end the connection after each answer
        status, retry_seconds, answer = self._exchanged(body)
        if 200 <= status < 300:
            return min(len(messages), self._body.rejected(answer))
        if status in _REFUSALS:
            raise MessagesRefused(f"{self._destination}: status {status}")
        advice = (
            ": redirects are not followed, name the URL itself"
            if 300 <= status < 400
            else ""
        )
        raise DeliveryFailed(
            f"{self._destination}: status {status}{advice}", retry_seconds=retry_seconds
        )

    def is_due(self, now: float) -> bool:  # noqa: ARG002 - as every sender has it
        """Tell that each batch is confirmed at once."""
        return True

    def confirm(self) -> None:
        """Do nothing: the answer was the confirmation."""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> HTTPConnection:
        host, port = self._destination.host, self._destination.port
        if self._context is None:
            connection = HTTPConnection(host, port, timeout=_SECONDS)
        else:
            connection = HTTPSConnection(
                host, port, timeout=_SECONDS, context=self._context
            )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise DeliveryFailed(
                f"{self._destination}: its certificate is not valid: {error.verify_message}"
            ) from None
        except OSError as error:
            raise DeliveryFailed(
                f"{self._destination}: no connection: {error.strerror or error}"
            ) from None
        return connection

    def _exchanged(self, body: bytes) -> tuple[int, float | None, bytes]:
        assert self._connection is not None  # noqa: S101 - `open` was called
        try:
            with whole_exchange(_SECONDS, partial(shut, self._connection.sock)):
                self._connection.request(
                    "POST", self._destination.target, body, self._headers
                )
                with self._connection.getresponse() as response:
                    answer = response.read(_ANSWER_BYTES)
                    if response.read(1) or response.will_close:
                        self.close()
                    self._used_at = time.monotonic()
                    return response.status, _retry_seconds(response), answer
        except (OSError, HTTPException) as error:
            self.close()
            what = getattr(error, "strerror", None) or type(error).__name__
            raise DeliveryFailed(
                f"{self._destination}: no answer: {what}", uncertain=True
            ) from None


def _retry_seconds(response: HTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) <= 9:
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Make a context that verifies the receiver's certificate and name; raise
    `InvalidExport` for a faulty file.
    """
    try:
        return verified_tls(ca)
    except OSError as error:
        raise InvalidExport(
            f"{ca}: cannot be used to verify the receiver ({why_unusable(error)}): name a PEM file"
        ) from error
