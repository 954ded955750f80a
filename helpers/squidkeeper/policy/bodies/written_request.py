"""Requests with a body as tests and `explain` write them: with the headers that the
clients of a form send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.language.bodies import WrittenPush

_JSON: Final = "application/json"
_PUSH: Final = "application/x-git-receive-pack-request"
# how a push begins
_PACKETS: Final = re.compile(rb"0000|[0-9a-f]{4}(?:[0-9a-f]{40} |shallow )")
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
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> SentRequest:
    """Make a request to an absolute URL, with the headers that clients of its form
    send.

    `headers` replace these.
    """
    match = _TARGET.match(url)
    target = (match[1] if match else "") or "/"
    target = target if target.startswith("/") else f"/{target}"
    given = [*headers]
    names = {name.lower() for name, _ in given}
    sent = [
        *given,
        *(
            (name, value)
            for name, value in _usual_headers(method, body)
            if name.lower() not in names
        ),
    ]
    return SentRequest(
        method, target, sent, body or b"", complete=True, has_body=body is not None
    )


def _usual_headers(method: str, body: bytes | None) -> Iterator[tuple[str, str]]:
    """Yield the type of a body, by how it begins, and what every client of
    MCP sends.
    """
    if body is not None and _PACKETS.match(body):
        yield "Content-Type", _PUSH
        return
    if body is not None:
        yield "Content-Type", _JSON
    yield "Accept", f"{_JSON}, text/event-stream"
    if method == "DELETE":
        yield "Mcp-Session-Id", "1"


def _packet(line: str) -> bytes:
    data = line.encode()
    return b"%04x%b" % (len(data) + len(_FLUSH), data)
