"""Requests with a body as tests and `explain` write them: with the headers that the clients of a form send."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.language.bodies import WrittenPush

_JSON: Final = "application/json"
_PUSH: Final = "application/x-git-receive-pack-request"
_PACKETS: Final = re.compile(rb"0000|[0-9a-f]{4}(?:[0-9a-f]{40} |shallow )")  # how a push begins
_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*([^#]*)")
_NO_OBJECT, _OLD, _NEW = "0" * 40, "1" * 40, "2" * 40
_FLUSH: Final = b"0000"


def push_body(push: WrittenPush) -> bytes:
    """Write a push as git sends it, without the objects of its pack."""
    commands = [f"{_OLD} {_NEW} {ref}" for ref in push.update]
    commands += [f"{_NO_OBJECT} {_NEW} {ref}" for ref in push.create]
    commands += [f"{_OLD} {_NO_OBJECT} {ref}" for ref in push.delete]
    capabilities = " report-status-v2" + (" push-options" if push.options else "")
    lines = [f"{commands[0]}\0{capabilities}", *commands[1:]]
    options = b"".join((*map(_packet, push.options), _FLUSH)) if push.options else b""
    pack = b"PACK" if push.update or push.create else b""
    return b"".join((*map(_packet, lines), _FLUSH, options, pack))


def written_request(
    method: str, url: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()
) -> SentRequest:
    """Make a request to an absolute URL. Without a Content-Type among `headers`, it gets the one of its form."""
    match = _TARGET.match(url)
    target = (match[1] if match else "") or "/"
    given = [*headers]
    if body is not None and "content-type" not in {name.lower() for name, _ in given}:
        given += _headers_of(body)
    return SentRequest(
        method, target if target.startswith("/") else f"/{target}", given, body or b"", True, body is not None
    )


def _headers_of(body: bytes) -> Sequence[tuple[str, str]]:
    """Return the type of a body by how it begins. Clients of MCP name both forms of an answer."""
    if _PACKETS.match(body):
        return [("Content-Type", _PUSH)]
    return [("Content-Type", _JSON), ("Accept", f"{_JSON}, text/event-stream")]


def _packet(line: str) -> bytes:
    data = line.encode()
    return b"%04x%b" % (len(data) + len(_FLUSH), data)
