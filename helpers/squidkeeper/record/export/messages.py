"""What leaves the gateway: messages, each with the time and the kind that its transport needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class MessageKind(StrEnum):
    """What a message tells; the MSGID of syslog."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNDECIDED = "undecided"  # no rule decided it: a refused login, or no request came
    GAP = "gap"
    ARCHIVE_HEAD = "archive-head"


@dataclass(frozen=True, slots=True)
class Message:
    """One record or notice in the format of the receiver, without a line end. `time` is as in the access log."""

    kind: MessageKind
    time: str
    payload: bytes

    @property
    def is_record(self) -> bool:
        """Whether this is a record, and no notice."""
        return self.kind in (MessageKind.ALLOWED, MessageKind.DENIED, MessageKind.UNDECIDED)


def count_records(messages: Sequence[Message]) -> int:
    """Count the messages that are records."""
    return sum(message.is_record for message in messages)


class Sender(Protocol):
    """A transport to one receiver. Its methods raise `DeliveryFailed` where a later attempt may succeed."""

    def open(self) -> None:
        """Connect, unless it is connected. Nothing of a message leaves before this has returned."""

    def send(self, messages: Sequence[Message]) -> int:
        """Send messages; return how many of them the receiver has rejected for good.

        Raise `MessagesRefused` if it refuses them for what they hold: without one of them it may take the others.
        """

    def is_due(self, now: float) -> bool:
        """Tell whether it is time to `confirm` what was sent.

        `now` is in seconds by the monotonic clock.
        """

    def confirm(self) -> None:
        """Wait until the receiver has taken everything that was sent."""

    def close(self) -> None:
        """Disconnect without waiting."""
