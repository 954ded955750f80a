"""A push of git, read from the body of `POST …/git-receive-pack`: its commands and push
options.

gitprotocol-pack, "Pushing Data To a Server": packets, each with its length ahead. First
come the commands and a flush. Push options follow with a flush of their own, where the
capabilities say so. The pack comes last, and is never read. Servers of git differ in
what they read besides. So whatever has not the documented form is unreadable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.reading import check_headers, content_type, read_content
from squidkeeper.policy.bodies.sent_request import (
    HOLDS,
    NEEDS_MORE,
    BodyOutcome,
    Fit,
    SentRequest,
)

_CONTENT_TYPE: Final = "application/x-git-receive-pack-request"
# as git-http-backend(1) compares them; it reads any other as none
_ENCODINGS: Final = (
    ["gzip"],
    ["x-gzip"],
)


class Command(NamedTuple):
    """What a push asks for a ref.

    It can create and delete at once: then it names no object.
    """

    ref: str
    creates: bool
    deletes: bool


@dataclass(slots=True)
class Push:
    """What was read of a push.

    `outcome` is HOLDS where that is all of its commands and options.
    """

    outcome: BodyOutcome = HOLDS
    capabilities: frozenset[str] = frozenset()
    commands: list[Command] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def read_push(request: SentRequest, limit: int) -> Push:
    """Read a push.

    Commands and options may have `limit` bytes together; where it is compressed, with
    the pack.
    """
    push = Push()
    try:
        _read(
            _Packets(_content(request, limit), limit, complete=request.complete), push
        )
    except UnreadableBody as error:
        push.outcome = BodyOutcome(Fit.UNREADABLE, str(error))
    except _UnfinishedError:
        push.outcome = NEEDS_MORE
    return push


class _UnfinishedError(Exception):
    """The bytes that are to be read have not come yet. `read_push` catches it."""


def _content(request: SentRequest, limit: int) -> bytes:
    """Return the body as it has come, or inflated once all of it has. git itself
    compresses no push.
    """
    check_headers(request)
    if content_type(request) != _CONTENT_TYPE:
        raise UnreadableBody(f"the Content-Type is not {_CONTENT_TYPE}")
    encodings = request.values("content-encoding")
    if not encodings:
        return request.body
    if encodings not in _ENCODINGS:
        raise UnreadableBody("the Content-Encoding is not gzip")
    content = read_content(request, limit)
    if content is None:
        raise _UnfinishedError
    return content


def _read(packets: _Packets, push: Push) -> None:
    _read_commands(packets, push)
    if "push-options" in push.capabilities:
        _read_options(packets, push)
    packets.check_rest(_PACK if push.commands else b"")


# --- packets --------------------------------------------------------------------------

_LENGTH: Final = re.compile(rb"[0-9A-Fa-f]{4}")
_LENGTH_SIZE: Final = 4
_MAX_PACKET: Final = 65_520  # with its length (gitprotocol-common)
_FLUSH: Final = 0
_PACK: Final = b"PACK"


class _Packets:
    """The packets at the beginning of a body, which may not have come whole."""

    def __init__(self, body: bytes, limit: int, *, complete: bool) -> None:
        self._body, self._limit, self._complete = body, limit, complete
        self._at = 0

    def next(self) -> bytes | None:
        """Return the next packet without its line feed; None for a flush."""
        digits = self._take(_LENGTH_SIZE)
        if not _LENGTH.fullmatch(digits):
            raise UnreadableBody(
                "the length of a packet is not four hexadecimal digits"
            )
        length = int(digits, 16)
        if length == _FLUSH:
            return None
        if (
            not _LENGTH_SIZE < length <= _MAX_PACKET
        ):  # 0001 to 0003 mean other things; to some, 0004 is a flush
            raise UnreadableBody("a packet has a length that a push does not use")
        return self._take(length - _LENGTH_SIZE).removesuffix(b"\n")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > self._limit:
            raise UnreadableBody(f"the commands are longer than {self._limit} bytes")
        self._wait_for(end)
        taken = self._body[self._at : end]
        self._at = end
        return taken

    def _wait_for(self, end: int) -> None:
        if len(self._body) < end:
            raise (
                UnreadableBody("the body ends within the commands")
                if self._complete
                else _UnfinishedError
            )

    def check_rest(self, allowed: bytes) -> None:
        """Check that what follows is nothing, or begins with `allowed`.

        Some server could read other commands there.
        """
        rest = self._body[self._at : self._at + len(_PACK)]
        if not allowed.startswith(rest):
            raise UnreadableBody("what follows the commands is not a pack")
        if rest or not self._complete:
            self._wait_for(self._at + len(_PACK))


# --- lines ----------------------------------------------------------------------------

_ID: Final = rb"[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64}"  # SHA-1, SHA-256
_SHALLOW: Final = re.compile(rb"shallow (?:%b)" % _ID)
_COMMAND: Final = re.compile(rb"(%b) (%b) (refs/[^\0]{1,4091})" % (_ID, _ID))
_ID_OF_NONE: Final = re.compile(rb"0+")
_CAPABILITIES: Final = re.compile(rb"[ -~]*")
_CERTIFICATE: Final = b"push-cert"
# git-check-ref-format(1). The second line: components that are empty, or begin or end
# as none may.
_NOT_IN_REF: Final = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{"
    r"|//|/\.|\.lock(?:/|\Z)|[/.]\Z"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def _read_commands(packets: _Packets, push: Push) -> None:
    """Read the lines of a shallow clone, and the commands.

    A probe (`0000`) has neither.
    """
    line = packets.next()
    while line is not None and _SHALLOW.fullmatch(line):
        line = packets.next()
    if line is not None:
        line, _, capabilities = line.partition(b"\0")
        push.capabilities = _capabilities(capabilities)
    while line is not None:
        push.commands.append(_command(line))
        line = packets.next()


def _capabilities(text: bytes) -> frozenset[str]:
    if not _CAPABILITIES.fullmatch(text):
        raise UnreadableBody(
            "the capabilities have a byte that is none of printable ASCII"
        )
    capabilities = frozenset(text.decode("ascii").split())
    if any(capability.startswith("push-options=") for capability in capabilities):
        raise UnreadableBody("the capability push-options has a value")
    return capabilities


def _command(line: bytes) -> Command:
    if line == _CERTIFICATE:
        raise UnreadableBody("the push is signed: its commands are in a certificate")
    match = _COMMAND.fullmatch(line)
    if not match or len(match[1]) != len(match[2]):
        raise UnreadableBody("a command is not two object IDs and a ref")
    creates, deletes = (
        _ID_OF_NONE.fullmatch(match[number]) is not None for number in (1, 2)
    )
    ref = _text(match[3])
    if _NOT_IN_REF.search(ref):
        raise UnreadableBody("a ref has not the format of git")
    return Command(ref, creates, deletes)


def _read_options(packets: _Packets, push: Push) -> None:
    while (line := packets.next()) is not None:
        option = _text(line)
        if _CONTROL.search(option):
            raise UnreadableBody("a push option has a control character")
        push.options.append(option)


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableBody("a ref or push option is not UTF-8") from None
