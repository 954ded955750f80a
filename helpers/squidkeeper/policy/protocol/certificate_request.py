"""Squid's requests for leaves, and the replies: the protocol of `sslcrtd_program`.

A request is `new_certificate LENGTH BODY` and a newline, as Squid composes it
(src/ssl/crtd_message.cc). BODY has lines `key=value` and then certificates and a key in
PEM form. A reply is `OK` or `ERR`, LENGTH and a text, ended by a byte 1. A channel-ID
comes before both where `sslcrtd_children` has `concurrency=`. The host can be the
server name that a client gave, which Squid passes on as it came.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from squidkeeper.base.errors import InvalidLine
from squidkeeper.policy.protocol.lines import LONGEST_CHANNEL, Result

# bytes of a body: OpenSSL takes 100 KB of certificates from a server
REQUEST_LIMIT: Final = 256 * 1024
_HEADER: Final = re.compile(rb"(?:([0-9]{1,19}) )?new_certificate ([0-9]{1,9}) ")
_LONGEST_HEADER: Final = len(LONGEST_CHANNEL + b" new_certificate 999999999 ")
_PEM: Final = rb"-----BEGIN %b-----\n[A-Za-z0-9+/=\n]+-----END %b-----\n"
_CERTIFICATE: Final = _PEM % ((b"CERTIFICATE",) * 2)
_KEY: Final = _PEM % ((b"(?:[A-Z]+ )?PRIVATE KEY",) * 2)
# By its end: only its beginning, the host, is not Squid's own.
_END: Final = re.compile(
    rb"\nSign=(\w+)\nSignHash=([\w-]+)\n(%b)(%b)(?: (%b))?\n?\Z"
    % (_CERTIFICATE, _KEY, _CERTIFICATE)
)
_BEGINNING: Final = re.compile(
    rb"host=(.*?)(\nsetCommonName=\1)?(\nsetValidAfter=on)?(\nsetValidBefore=on)?",
    re.DOTALL,
)


class Signing(StrEnum):
    """How Squid wants a leaf to be signed (`sslproxy_cert_sign`), so that a bad origin
    looks bad to the client.
    """

    TRUSTED = "signTrusted"
    UNTRUSTED = "signUntrusted"  # by a CA that Squid has made up
    SELF = "signSelf"


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """One request.

    `origin` is the certificate to mimic, if any; certificates and the key are in PEM
    form.
    """

    host: str
    signing: Signing
    hash_name: str
    ca: bytes
    key: bytes = field(repr=False)
    origin: bytes | None = None
    replaces_names: bool = False  # setCommonName
    ignores_start: bool = False  # setValidBefore
    ignores_end: bool = False  # setValidAfter


@dataclass(frozen=True, slots=True)
class LeafReply:
    """A reply: a certificate and its key in PEM form, or why there is none, and the
    counters that it adds to.
    """

    result: Result
    text: bytes = field(repr=False)
    counts: tuple[tuple[str, ...], ...] = field(default=(), compare=False)


class LeafRequestBuffer:
    """Cuts a stream into requests, by their stated length, and never holds more than
    one of them.

    What is no request is cut at its newline. Of that, and of a request over the limit,
    the beginning is kept: it fails `parse_leaf_request`.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._skipped = 0  # bytes that are left of a request over the limit
        self._in_garbage = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read, and give the requests that are complete now."""
        requests: list[bytes] = []
        self._held += data
        while self._held and (request := self._next()) is not None:
            if request:
                requests.append(request)
        return requests

    def _next(self) -> bytes | None:
        """Cut off what comes first: a request, or empty for what is dropped; None where
        more has to be read.
        """
        if self._skipped:
            return self._drop(min(self._skipped, len(self._held)))
        if self._in_garbage:
            return self._drop_line()
        if self._held[0] in b"\r\n":
            return self._cut(1).strip()
        header = _HEADER.match(self._held)
        if header is None:
            return self._cut_garbage()
        length = int(header[2])
        if length > REQUEST_LIMIT:
            self._skipped = length
            return self._cut(header.end())
        end = header.end() + length
        return self._cut(end) if len(self._held) >= end else None

    def _cut_garbage(self) -> bytes | None:
        at = self._held.find(b"\n")
        if at < 0 and len(self._held) < _LONGEST_HEADER:
            return None  # it may become a request
        self._in_garbage = at < 0
        return self._cut(at if at >= 0 else len(self._held))

    def _drop(self, length: int) -> bytes:
        self._skipped -= length
        del self._held[:length]
        return b""

    def _drop_line(self) -> bytes:
        at = self._held.find(b"\n")
        self._in_garbage = at < 0
        del self._held[: at + 1 if at >= 0 else len(self._held)]
        return b""

    def _cut(self, length: int) -> bytes:
        cut = bytes(self._held[:length])
        del self._held[:length]
        return cut


def parse_leaf_request(request: bytes) -> LeafRequest:
    """Parse one request; `InvalidLine` says what it lacks."""
    header = _HEADER.match(request)
    if header is None:
        raise InvalidLine(
            "not a request for a certificate: expected new_certificate LENGTH BODY"
        )
    body = request[header.end() :]
    if len(body) != int(header[2]):
        raise InvalidLine(
            f"a request for a certificate is longer than {REQUEST_LIMIT} bytes"
        )
    end = _END.search(body)
    if end is None:
        raise InvalidLine(
            "a request for a certificate does not end with Sign, SignHash, a certificate and its key"
        )
    beginning = _BEGINNING.fullmatch(body, 0, end.start())
    if beginning is None:
        raise InvalidLine("a request for a certificate does not begin with a host")
    host, *adaptations = beginning.groups()
    signing, hash_name, ca, key, origin = end.groups()
    if signing not in _SIGNINGS:
        raise InvalidLine(f"Sign is none of {', '.join(Signing)}")
    replaces_names, ignores_end, ignores_start = (
        adaptation is not None for adaptation in adaptations
    )
    return LeafRequest(
        host.decode("utf-8", "replace"),
        Signing(signing.decode()),
        hash_name.decode(),
        ca,
        key,
        origin,
        replaces_names=replaces_names,
        ignores_start=ignores_start,
        ignores_end=ignores_end,
    )


def leaf_channel(request: bytes) -> bytes:
    """Return the channel-ID of a request; empty where it has none."""
    header = _HEADER.match(request)
    return (header and header[1]) or b""


def format_leaf_reply(reply: LeafReply, channel: bytes = b"") -> bytes:
    """Write a reply. Squid asks again after BH, and not after ERR."""
    written = b"%b %d %b\x01" % (reply.result.encode(), len(reply.text), reply.text)
    return b"%b %b" % (channel, written) if channel else written


_SIGNINGS: Final = frozenset(signing.encode() for signing in Signing)
