"""What a webhook sends. All that a client chose is percent-encoded, and Slack's markup is escaped.

The query of a URL stays on the gateway: it can hold what the client should not have put there.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from hmac import digest
from typing import Any, Final
from urllib.parse import quote

from squidkeeper.base.formatting import utc_seconds
from squidkeeper.services.webhook_settings import WebhookFormat
from squidkeeper.serving.tickets.store import Ticket

SHOWN_AT_MOST: Final = 10
_LONGEST: Final = 200  # characters of a URL
_PLAIN: Final = "/:?=.,-_~%[]"  # and letters and digits: neither markup of Slack's, nor of JSON's


def webhook_body(form: WebhookFormat, waiting: Sequence[Ticket], gateway: str, now: float) -> bytes:
    """Write that questions wait."""
    write = {WebhookFormat.JSON: _json, WebhookFormat.SLACK: _slack}[form]
    return json.dumps(write(waiting, gateway, now)).encode()


def signature_headers(key: bytes, body: bytes, now: float) -> dict[str, str]:
    """Sign a body together with the time, so that nobody can send it again later; without a key, give nothing."""
    if not key:
        return {}
    seconds = str(int(now))
    signed = digest(key, seconds.encode() + b"." + body, sha256).hex()
    return {"X-Squidkeeper-Timestamp": seconds, "X-Squidkeeper-Signature": f"v1={signed}"}


def _json(waiting: Sequence[Ticket], gateway: str, now: float) -> dict[str, Any]:
    shown = waiting[:SHOWN_AT_MOST]
    return {
        "version": 1,
        "event": "questions-waiting",
        "gateway": gateway,
        "time": utc_seconds(now),
        "new": len(waiting),
        "questions": [_question(ticket) for ticket in shown],
    }


def _question(ticket: Ticket) -> dict[str, Any]:
    return {
        "ticket": ticket.number,
        "client": _encoded(ticket.client),
        "user": _encoded(ticket.user) or None,
        "method": _encoded(ticket.method),
        "url": _shown_url(ticket.url),
        "rule": ticket.rule,
        "times": ticket.times,
        "first": utc_seconds(ticket.first),
    }


def _slack(waiting: Sequence[Ticket], gateway: str, _: float) -> dict[str, Any]:
    lines = [f"{len(waiting)} new questions wait on the gateway {_slack_text(gateway)}. Decide there: squidkeeper ask"]
    lines += [
        f"`{ticket.number}` {_slack_text(_encoded(ticket.client))} {_slack_text(_encoded(ticket.user))}"
        f" `{_slack_text(_encoded(ticket.method))} {_slack_text(_shown_url(ticket.url))}`"
        for ticket in waiting[:SHOWN_AT_MOST]
    ]
    more = len(waiting) - SHOWN_AT_MOST
    lines += [f"and {more} more"] if more > 0 else []
    return {"text": "\n".join(lines), "unfurl_links": False, "unfurl_media": False}


def _shown_url(url: str) -> str:
    shown, _, query = url.partition("?")
    encoded = _encoded(shown)
    cut = f"{encoded[:_LONGEST]}…" if len(encoded) > _LONGEST else encoded
    return f"{cut}?…" if query else cut


def _encoded(text: str) -> str:
    return quote(text, safe=_PLAIN, errors="surrogateescape")


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
