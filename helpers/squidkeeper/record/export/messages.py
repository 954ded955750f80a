"""What leaves the gateway: messages and notices, the transport that sends them, and its
waits for a receiver.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import format_time
from squidkeeper.record.usage_ledger import UsageEntry

FIRST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 60.0
_ASKED_SECONDS: Final = (
    600.0  # a receiver that asks for more is tried again after this time
)


class MessageKind(StrEnum):
    """What a message tells; the MSGID of syslog."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNDECIDED = "undecided"  # no rule decided it: a refused login, or no request came
    GAP = "gap"
    ARCHIVE_HEAD = "archive-head"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Message:
    """One record or notice in the format of the receiver, without a line end.

    `time` is as in the access log.
    """

    kind: MessageKind
    time: str
    payload: bytes

    @property
    def is_record(self) -> bool:
        """Whether this is a record, and no notice."""
        return self.kind in (
            MessageKind.ALLOWED,
            MessageKind.DENIED,
            MessageKind.UNDECIDED,
        )


def count_records(messages: Sequence[Message]) -> int:
    """Count the messages that are records."""
    return sum(message.is_record for message in messages)


class Sender(Protocol):
    """A transport to one receiver.

    Its methods raise `DeliveryFailed` where a later attempt may succeed.
    """

    def open(self) -> None:
        """Connect, unless it is connected.

        Nothing of a message leaves before this has returned.
        """

    def send(self, messages: Sequence[Message]) -> int:
        """Send messages; return how many of them the receiver has rejected for good.

        Raise `MessagesRefused` if it refuses them for what they hold: without one of
        them it may take the others.
        """

    def is_due(self, now: float) -> bool:
        """Whether it is time to `confirm` what was sent.

        `now` is in seconds by the monotonic clock.
        """

    def confirm(self) -> None:
        """Wait until the receiver has taken everything that was sent."""

    def close(self) -> None:
        """Disconnect without waiting."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that the receiver does not get, and why.

    Times are as in the access log; empty: unknown.

    `start` is the time of the newest record before the gap, `end` that of the first one
    after it. `records` is how many there are; None: unknown.
    """

    start: str
    end: str
    records: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ArchiveHead:
    """The head of the archive's chain at a time: its number, and the digest of the
    chain's last line.
    """

    time: str
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice as every format writes it; `time` is as in the access log, and `details`
    have names of ours.
    """

    kind: MessageKind
    time: str
    message: str
    details: Mapping[str, str | int]

    @property
    def time_ms(self) -> int:
        """`time`, in milliseconds since 1970."""
        return round(datetime.fromisoformat(self.time).timestamp() * 1000)


def gap_notice(gap: Gap) -> Notice:
    """Write a gap for people, and in details without what is unknown."""
    number = "unknown" if gap.records is None else str(gap.records)
    message = f"records missing: {number}, from {gap.start or 'the beginning'} to {gap.end or 'now'}: {gap.reason}"
    known = {
        "from": gap.start,
        "to": gap.end,
        "records": gap.records,
        "reason": gap.reason,
    }
    details = {name: value for name, value in known.items() if value not in ("", None)}
    return Notice(
        MessageKind.GAP,
        gap.end or gap.start or format_time(datetime.now(UTC)),
        message,
        details,
    )


def archive_head_notice(head: ArchiveHead) -> Notice:
    """Write the head of the archive."""
    message = f"the archive's chain has {head.number} entries"
    return Notice(
        MessageKind.ARCHIVE_HEAD,
        head.time,
        message,
        {"number": head.number, "digest": head.digest},
    )


def usage_notice(entry: UsageEntry) -> Notice:
    """Write what a metered request used.

    Its texts are decoded; what is not printable in them is encoded again.
    """
    details = {name: getattr(entry, name) for name in _OF_USAGE}
    details = {
        name: shown_field(value) if isinstance(value, str) else value
        for name, value in details.items()
    }
    told = {name: value for name, value in details.items() if value not in (None, "")}
    message = (
        f"{entry.state}: {entry.tokens_in} tokens in and {entry.tokens_out} "
        f"out of {told.get('model', 'no model')}"
    )
    return Notice(MessageKind.USAGE, entry.time, message, told)


_OF_USAGE: Final = (
    *(
        "request_id",
        "client",
        "user",
        "host",
        "rule",
        "revision",
        "model",
        "state",
        "reason",
    ),
    *("tokens_in", "cached_in", "cache_write", "tokens_out", "cost"),
)


class Backoff:
    """The times between attempts: doubled from one second to a minute, and random in
    part.

    So many gateways do not try again at the same moment.
    """

    def __init__(self) -> None:
        self._next = FIRST_SECONDS

    def seconds(self, asked: float | None = None) -> float:
        """Return the seconds to wait now; `asked` is what the receiver asks for."""
        ours = self._next * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
        self._next = min(LAST_SECONDS, self._next * 2)
        return ours if asked is None else max(ours, min(_ASKED_SECONDS, asked))

    def reset(self) -> None:
        """Begin again: the receiver has taken something."""
        self._next = FIRST_SECONDS
