"""From the access log to batches of messages, with a notice where something is missing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record.chain.head import Head
from squidkeeper.record.export.facts import ACTIONS
from squidkeeper.record.export.messages import Message, MessageKind, count_records
from squidkeeper.record.export.notices import ArchiveHead, Gap
from squidkeeper.record.export.store import UNREADABLE
from squidkeeper.record.export_status import ExportState
from squidkeeper.record.log.follower import Follower, Position, beginning
from squidkeeper.record.log.record import Record, parse_timed_record

BATCH_BYTES: Final = 256 * 1024  # of the log: a bound for the memory of an export, and for what a receiver gets at once
_DELETED: Final = "a part of the access log was deleted before it was sent"
_UNREADABLE: Final = (
    "the position on disk could not be read: what was not sent may be missing, other records come twice"
)
_DAMAGED: Final = "a part of the access log cannot be read: a file is damaged, or compressed by zstd"
_INVALID: Final = "lines of the access log are no records of this version"


class Encoder(Protocol):
    """A format of records and notices: one line or one message each, without its end."""

    def record(self, record: Record) -> bytes:
        """Encode a record."""

    def gap(self, gap: Gap) -> bytes:
        """Encode the notice about a gap."""

    def archive_head(self, head: ArchiveHead) -> bytes:
        """Encode the notice about the head of the archive."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that are sent together, and what is true once the receiver has them.

    `end` is the position after them, `until` the time of their newest record, `full` whether the log has more.
    """

    messages: tuple[Message, ...]
    end: Position
    until: str
    archive_head: int
    gaps: int = 0
    lost: int = 0
    full: bool = False

    @property
    def records(self) -> int:
        """How many of the messages are records."""
        return count_records(self.messages)


def first_position(log: Path) -> Position:
    """Tell where an export begins: at the start of the newest file that has a line; empty if there is none yet."""
    starts = map(beginning, [log, *reversed(rotated(log))])
    return next((start for start in starts if start.first_line_digest), Position())


class LogBatches:
    """Reads the access log from where an export stands."""

    def __init__(self, log: Path, state: ExportState, encoder: Encoder, head: Callable[[], Head | None]) -> None:
        self._encoder = encoder
        self._follower = Follower(log, state.position)
        self._deleted = _UNREADABLE if state.position == UNREADABLE else _DELETED
        self._deleted_seen = self._damaged_seen = 0
        self._until = state.until
        self._archive_head = state.archive_head
        self._head = head

    @property
    def backlog_bytes(self) -> int:
        """Bytes of the log that have not been read."""
        return self._follower.backlog_bytes

    @property
    def readable(self) -> bool:
        """Whether the log could be opened by the last `read`."""
        return self._follower.readable

    def read(self) -> Batch | None:
        """Return the next batch; None if there is nothing to send. OSError if the log cannot be read."""
        lines = self._follower.read(BATCH_BYTES)
        records = [*map(_parsed, lines)]
        valid = [record for record in records if record]
        gaps = [*self._gaps(valid, len(records) - len(valid))]
        messages = (*map(self.of_gap, gaps), *map(self._of_record, valid), *self._of_head())
        if not lines and not messages:
            return None
        self._until = valid[-1].time if valid else self._until
        return Batch(
            messages,
            self._follower.position,
            self._until,
            self._archive_head,
            len(gaps),
            sum(gap.records or 0 for gap in gaps),
            full=sum(map(len, lines)) >= BATCH_BYTES // 2,
        )

    def of_gap(self, gap: Gap) -> Message:
        """Make the message about a gap."""
        return Message(MessageKind.GAP, gap.end or gap.start, self._encoder.gap(gap))

    def close(self) -> None:
        """Close the log."""
        self._follower.close()

    def _gaps(self, valid: list[Record], invalid: int) -> Iterator[Gap]:
        for reason in self._reasons():
            yield Gap(self._until, valid[0].time if valid else "", None, reason)
        if invalid:
            yield Gap(self._until, valid[-1].time if valid else "", invalid, _INVALID)

    def _reasons(self) -> Iterator[str]:
        follower = self._follower
        if follower.deleted > self._deleted_seen:
            yield self._deleted
            self._deleted = _DELETED
        if follower.damaged > self._damaged_seen:
            yield _DAMAGED
        self._deleted_seen, self._damaged_seen = follower.deleted, follower.damaged

    def _of_record(self, record: Record) -> Message:
        kind = MessageKind(ACTIONS.get(record.verdict, MessageKind.UNDECIDED))
        return Message(kind, record.time, self._encoder.record(record))

    def _of_head(self) -> Iterator[Message]:
        """Tell about the head of the archive when it has changed: whoever puts back an old one is found by it."""
        head = self._head()
        if head and head.number != self._archive_head:
            self._archive_head = head.number
            notice = ArchiveHead(head.time, head.number, head.digest)
            yield Message(MessageKind.ARCHIVE_HEAD, head.time, self._encoder.archive_head(notice))


def _parsed(line: bytes) -> Record | None:
    try:
        return parse_timed_record(line)
    except InvalidRecord:
        return None
