"""A task of `squidkeeper maintain`: it tells people about questions, and about quotas
of tokens.

Nothing is approved over it.

webhook.yaml is a file of the gateway's own set-up: whoever may edit the policy cannot
choose where questions are sent. All that a client chose is percent-encoded, and Slack's
markup is escaped. The query of a URL stays on the gateway: it can hold what the client
should not have put there.

A message leaves at most once a minute, whatever clients ask, and names first one
question of each client. A receiver that does not take it is tried again after longer
and longer pauses. Sending can wait for the receiver, so a thread does it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import sha256
from hmac import digest
from operator import itemgetter
from pathlib import Path
from socket import gethostname
from ssl import SSLContext
from threading import Thread
from typing import Any, Final
from urllib.parse import quote

import msgspec

from squidkeeper.base.errors import (
    DeliveryFailed,
    InvalidExport,
    MessagesRefused,
    SquidkeeperError,
    WebhookFailed,
)
from squidkeeper.base.formatting import duration, utc_seconds
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.policy.destination import Destination, Transport, parse_destination
from squidkeeper.record.export.https import Body, HttpsSender, tls_context
from squidkeeper.record.export.messages import Backoff, Message, MessageKind
from squidkeeper.serving.quotas.token_uses import NearlyUsed, TokenUse
from squidkeeper.serving.tickets.judgement import sound_ticket
from squidkeeper.serving.tickets.store import Ticket, TicketStore

_OTHERS: Final = 0o007
_KEY_BYTES_AT_LEAST: Final = 16
_EXPECTED: Final = "expected url, and where needed format, key_file, ca_file"


class WebhookFormat(StrEnum):
    """What is sent."""

    JSON = "json"
    SLACK = "slack"


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """One receiver.

    `key` signs what is sent; Slack checks no signature, and needs none.
    """

    destination: Destination = field(repr=False)  # Slack's own URL is a secret
    format: WebhookFormat
    key: bytes = field(repr=False)
    ca_file: Path | None


def read_webhook_settings(file: Path) -> WebhookSettings | None:
    """Read the file; None where there is none.

    `WebhookFailed` says what is wrong, and shows neither URL nor key.
    """
    try:
        mode = file.stat().st_mode
        settings = msgspec.yaml.decode(file.read_bytes(), type=_WebhookFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WebhookFailed(
            f"{file}: {error.strerror}: Squid's account has to read it"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WebhookFailed(f"{file}: {error}: {_EXPECTED}") from None
    if mode & _OTHERS:
        raise WebhookFailed(
            f"{file}: everybody can read it, and its URL is a secret: chmod 0640"
        )
    return WebhookSettings(
        _destination(file, settings.url),
        settings.format,
        _key(file, settings),
        Path(settings.ca_file) if settings.ca_file else None,
    )


def _destination(file: Path, url: str) -> Destination:
    try:
        destination = parse_destination(url)
    except InvalidExport:
        destination = None
    if destination is None or destination.transport is not Transport.HTTPS:
        raise WebhookFailed(f"{file}: url is not one of https://HOST/PATH")
    return destination


def _key(file: Path, settings: _WebhookFile) -> bytes:
    if not settings.key_file:
        if settings.format is WebhookFormat.JSON:
            raise WebhookFailed(
                f"{file}: key_file is missing: it signs what is sent, and the receiver checks that"
            )
        return b""
    key_file = Path(settings.key_file)
    try:
        key = read_regular(key_file).strip()
        is_closed = not key_file.stat().st_mode & _OTHERS
    except OSError as error:
        raise WebhookFailed(
            f"{file}: key_file {key_file}: {error.strerror}: Squid's account has to read it"
        ) from None
    if len(key) < _KEY_BYTES_AT_LEAST or not is_closed:
        raise WebhookFailed(
            f"{file}: key_file {key_file}: expected {_KEY_BYTES_AT_LEAST} bytes at least that only its owner and group"
            f" can read: openssl rand -hex 32 >{key_file}; chmod 0640"
        )
    return key


class _WebhookFile(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    format: WebhookFormat = WebhookFormat.JSON
    key_file: str = ""
    ca_file: str = ""


SHOWN_AT_MOST: Final = 10
_LONGEST: Final = 200  # characters of a URL
_PLAIN: Final = (
    "/:?=.,-_~%[]"  # and letters and digits: neither markup of Slack's, nor of JSON's
)


def webhook_body(
    form: WebhookFormat, waiting: Sequence[Ticket], gateway: str, now: float
) -> bytes:
    """Write that questions wait."""
    write = {WebhookFormat.JSON: _json, WebhookFormat.SLACK: _slack}[form]
    return json.dumps(write(waiting, gateway, now)).encode()


def quota_body(
    form: WebhookFormat, uses: Sequence[TokenUse], gateway: str, now: float
) -> bytes:
    """Write that quotas of tokens are nearly used."""
    shown = uses[:SHOWN_AT_MOST]
    if form is WebhookFormat.SLACK:
        begins = f"Nearly used on the gateway {_slack_text(gateway)}. Who uses it: squidkeeper quota"
        lines = [
            begins,
            *(
                f"`{_slack_text(_encoded(use.holder))}` {_slack_text(_used(use))}"
                for use in shown
            ),
        ]
        return json.dumps(
            {"text": "\n".join(lines), "unfurl_links": False, "unfurl_media": False}
        ).encode()
    about = {
        "version": 1,
        "event": "quota-nearly-used",
        "gateway": gateway,
        "time": utc_seconds(now),
    }
    return json.dumps(
        {**about, "new": len(uses), "quotas": [_quota(use, now) for use in shown]}
    ).encode()


def _quota(use: TokenUse, now: float) -> dict[str, Any]:
    quota = use.quota
    about = {
        "quota": quota.name,
        "unit": str(quota.unit),
        "limit": quota.limit,
        "every": str(quota.window),
    }
    # rounded
    used = {
        "holder": _encoded(use.holder),
        "used": use.used,
        "resets": utc_seconds(now + use.ends_in + 0.5),
    }
    return about | used


def _used(use: TokenUse) -> str:
    return f"{use.ratio:.0%} of {use.quota.name} ({use.quota.text}), begins again in {duration(use.ends_in)}"


def signature_headers(key: bytes, body: bytes, now: float) -> dict[str, str]:
    """Sign a body together with the time, so that nobody can send it again later;
    without a key, give nothing.
    """
    if not key:
        return {}
    seconds = str(int(now))
    signed = digest(key, seconds.encode() + b"." + body, sha256).hex()
    return {
        "X-Squidkeeper-Timestamp": seconds,
        "X-Squidkeeper-Signature": f"v1={signed}",
    }


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
        **_call(ticket),
    }


def _call(ticket: Ticket) -> dict[str, Any]:
    """Name the call that answers the ticket of a session."""
    if not ticket.session:
        return {}
    call = {"method": "POST", "path": f"/v1/tickets/{ticket.number}"}
    return {"session": ticket.session, "call": call}


def _slack(waiting: Sequence[Ticket], gateway: str, _: float) -> dict[str, Any]:
    lines = [
        f"{len(waiting)} new questions wait on the gateway {_slack_text(gateway)}. Decide there: squidkeeper ask"
    ]
    lines += [
        f"`{ticket.number}` {_slack_text(_encoded(ticket.client))} {_slack_text(_encoded(ticket.user))}"
        f" `{_slack_text(_encoded(ticket.method))} {_slack_text(_shown_url(ticket.url))}`{_slack_call(ticket)}"
        for ticket in waiting[:SHOWN_AT_MOST]
    ]
    more = len(waiting) - SHOWN_AT_MOST
    lines += [f"and {more} more"] if more > 0 else []
    return {"text": "\n".join(lines), "unfurl_links": False, "unfurl_media": False}


def _slack_call(ticket: Ticket) -> str:
    if not ticket.session:
        return ""
    return f" (session {ticket.session}: `POST /v1/tickets/{ticket.number}`)"


def _shown_url(url: str) -> str:
    shown, _, query = url.partition("?")
    encoded = _encoded(shown)
    cut = f"{encoded[:_LONGEST]}…" if len(encoded) > _LONGEST else encoded
    return f"{cut}?…" if query else cut


def _encoded(text: str) -> str:
    return quote(text, safe=_PLAIN, errors="surrogateescape")


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_INTERVAL_SECONDS: Final = 60.0  # between two messages
_BODY: Final = Body("application/json", lambda payloads: payloads[0], lambda _: 0)


class Webhook:
    """The task.

    It works while there is a webhook.yaml, which it reads again each time.
    """

    name = "webhook"

    def __init__(self, file: Path, state: Path) -> None:
        self._file = file
        self._state = state
        self._nearly_used = NearlyUsed(state)
        self._settings: WebhookSettings | None = None
        self._backoff = Backoff()
        self._next = 0.0  # by the monotonic clock
        self._failure = ""
        self._thread: Thread | None = None

    def check(self) -> None:
        """Begin to send what is due; `WebhookFailed` while the file is faulty, or the
        last message was not taken.
        """
        is_at_work = self._thread is not None and self._thread.is_alive()
        settings = read_webhook_settings(self._file)
        if not is_at_work and settings != self._settings:
            self._take_up(settings)
        if not is_at_work and settings is not None and time.monotonic() >= self._next:
            self._thread = Thread(target=self._run, args=(settings,), daemon=True)
            self._thread.start()
        if self._failure:
            raise WebhookFailed(self._failure)

    def _take_up(self, settings: WebhookSettings | None) -> None:
        """Follow an edit of the file. What failed by the old one is tried at once."""
        if settings is not None:
            _context(settings)
        if self._failure:
            self._failure, self._next = "", 0.0
            self._backoff.reset()
        self._settings = settings

    def _run(self, settings: WebhookSettings) -> None:
        about = "questions wait"
        try:
            sent = self._send_new(settings)
            about = "a quota is nearly used"
            sent = self._send_nearly_used(settings) or sent
        except (SquidkeeperError, OSError) as error:
            self._failure = f"{about}, and nobody is told: {error}"
            asked = error.retry_seconds if isinstance(error, DeliveryFailed) else None
            self._next = time.monotonic() + self._backoff.seconds(asked)
            return
        self._failure = ""
        self._backoff.reset()
        self._next = time.monotonic() + (_INTERVAL_SECONDS if sent else 1.0)

    def _send_new(self, settings: WebhookSettings) -> bool:
        store, now = TicketStore(self._state), time.time()
        try:
            untold = [ticket for ticket in store.pending(now) if not ticket.told]
            key = store.key if untold else b""
            new = [
                ticket
                for waiting in untold
                if (ticket := sound_ticket(asdict(waiting), key))
            ]
            if not new:
                return False
            _post(
                settings,
                webhook_body(settings.format, _in_turn(new), gethostname(), now),
                now,
            )
            store.tell([ticket.number for ticket in new])
            return True
        finally:
            store.close()

    def _send_nearly_used(self, settings: WebhookSettings) -> bool:
        now = time.time()
        if new := self._nearly_used.new(now):
            _post(settings, quota_body(settings.format, new, gethostname(), now), now)
            self._nearly_used.tell(new, now)
        return bool(new)


def _in_turn(tickets: Sequence[Ticket]) -> list[Ticket]:
    """Put the oldest question of each client ahead of the second ones: a message names
    few, and no client fills it.
    """
    before: Counter[str] = Counter()
    places = []
    for ticket in tickets:
        places.append(before[ticket.client])
        before[ticket.client] += 1
    return [
        ticket
        for _, ticket in sorted(zip(places, tickets, strict=True), key=itemgetter(0))
    ]


def _post(settings: WebhookSettings, body: bytes, now: float) -> None:
    headers = signature_headers(settings.key, body, now)
    sender = HttpsSender(settings.destination, _context(settings), _BODY, headers)
    try:
        sender.send([Message(MessageKind.UNDECIDED, "", body)])
    except (DeliveryFailed, MessagesRefused) as error:
        # its path is a secret
        hidden = str(error).replace(
            str(settings.destination), settings.destination.authority
        )
        retry = error.retry_seconds if isinstance(error, DeliveryFailed) else None
        raise DeliveryFailed(hidden, retry_seconds=retry) from None
    finally:
        sender.close()


def _context(settings: WebhookSettings) -> SSLContext:
    try:
        return tls_context(settings.ca_file)
    except InvalidExport as error:
        raise WebhookFailed(f"ca_file {error}") from None
