"""A task of `squidkeeper maintain`: it tells people that questions wait. Nothing is approved over it.

A message leaves at most once a minute, whatever clients ask, and names first one question of each client. A receiver
that does not take it is tried again after longer and longer pauses. Sending can wait for the receiver, so a thread does
it.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from socket import gethostname
from ssl import SSLContext
from threading import Thread
from typing import Final

from squidkeeper.base.errors import DeliveryFailed, InvalidExport, MessagesRefused, SquidkeeperError, WebhookFailed
from squidkeeper.record.export.https import Body, HttpsSender, tls_context
from squidkeeper.record.export.messages import Backoff, Message, MessageKind
from squidkeeper.services.notifying.messages import signature_headers, webhook_body
from squidkeeper.services.webhook_settings import WebhookSettings, read_webhook_settings
from squidkeeper.serving.tickets.judgement import sound_ticket
from squidkeeper.serving.tickets.store import Ticket, TicketStore

_INTERVAL_SECONDS: Final = 60.0  # between two messages
_BODY: Final = Body("application/json", lambda payloads: payloads[0], lambda _: 0)


class Webhook:
    """The task. It works while there is a webhook.yaml, which it reads again each time."""

    name = "webhook"

    def __init__(self, file: Path, state: Path) -> None:
        self._file = file
        self._state = state
        self._settings: WebhookSettings | None = None
        self._backoff = Backoff()
        self._next = 0.0  # by the monotonic clock
        self._failure = ""
        self._thread: Thread | None = None

    def check(self) -> None:
        """Begin to send what is due; `WebhookFailed` while the file is faulty, or the last message was not taken."""
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
        try:
            sent = self._send_new(settings)
        except (SquidkeeperError, OSError) as error:
            self._failure = f"questions wait, and nobody is told: {error}"
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
            new = [ticket for one in untold if (ticket := sound_ticket(asdict(one), key))]
            if not new:
                return False
            _post(settings, webhook_body(settings.format, _in_turn(new), gethostname(), now), now)
            store.tell([ticket.number for ticket in new])
            return True
        finally:
            store.close()


def _in_turn(tickets: Sequence[Ticket]) -> list[Ticket]:
    """Put the oldest question of each client ahead of the second ones: a message names few, and no client fills it."""
    before: Counter[str] = Counter()
    places = []
    for ticket in tickets:
        places.append(before[ticket.client])
        before[ticket.client] += 1
    return [ticket for _, ticket in sorted(zip(places, tickets, strict=True), key=itemgetter(0))]


def _post(settings: WebhookSettings, body: bytes, now: float) -> None:
    headers = signature_headers(settings.key, body, now)
    sender = HttpsSender(settings.destination, _context(settings), _BODY, headers)
    try:
        sender.send([Message(MessageKind.UNDECIDED, "", body)])
    except (DeliveryFailed, MessagesRefused) as error:
        hidden = str(error).replace(str(settings.destination), settings.destination.authority)  # its path is a secret
        retry = error.retry_seconds if isinstance(error, DeliveryFailed) else None
        raise DeliveryFailed(hidden, retry_seconds=retry) from None
    finally:
        sender.close()


def _context(settings: WebhookSettings) -> SSLContext:
    try:
        return tls_context(settings.ca_file)
    except InvalidExport as error:
        raise WebhookFailed(f"ca_file {error}") from None
