"""The delivery of one export: from the access log and the ledger of usage to its
receiver, each line at least once.

The position on disk is moved on only after the receiver has taken the records. Before
records leave, the file says how many: whoever continues after a crash knows how many
may arrive twice. After a failure everything since the position is read from the log
again, so that no more than one batch is in memory, however long a receiver is away.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from msgspec.structs import replace

from squidkeeper.base.errors import (
    DeliveryFailed,
    InvalidEntry,
    InvalidRecord,
    MessagesRefused,
)
from squidkeeper.base.formatting import quantity
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record.chain.entries import Head
from squidkeeper.record.export.facts import ACTIONS
from squidkeeper.record.export.formats import MessageEncoder
from squidkeeper.record.export.messages import (
    ArchiveHead,
    Backoff,
    Gap,
    Message,
    MessageKind,
    Sender,
    count_records,
)
from squidkeeper.record.export_status import UNREADABLE, ExportState, ExportStore
from squidkeeper.record.log.follower import Follower, Position, beginning
from squidkeeper.record.log.record import Record, parse_timed_record
from squidkeeper.record.usage_ledger import UsageEntry, parse_entry

# of the log: a bound for the memory of an export, and for what a receiver gets at once
BATCH_BYTES: Final = 256 * 1024
_DELETED: Final = "a part of the access log was deleted before it was sent"
_UNREADABLE: Final = (
    "the position on disk could not be read: what was not sent may "
    "be missing, other records come twice"
)
_DAMAGED: Final = (
    "a part of the access log cannot be read: a file is damaged, or compressed by zstd"
)
_INVALID: Final = "lines of the access log are no records of this version"
_PAUSE_SECONDS: Final = 0.5  # what comes in that time leaves together
_UNREADABLE_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that are sent together, and what is true once the receiver has them.

    `end` and `usage_end` are the positions after them, in the log and in the ledger of
    usage. `until` is the time of their newest record. `full`: there is more.
    """

    messages: tuple[Message, ...]
    end: Position
    usage_end: Position
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
    """Tell where an export begins: at the start of the newest file that has a line;
    empty if there is none yet.
    """
    starts = map(beginning, [log, *reversed(rotated(log))])
    return next((start for start in starts if start.first_line_digest), Position())


class LogBatches:
    """Reads the access log, and the ledger of usage, from where an export stands."""

    def __init__(
        self,
        log: Path,
        ledger: Path,
        state: ExportState,
        encoder: MessageEncoder,
        head: Callable[[], Head | None],
    ) -> None:
        self._encoder = encoder
        self._follower = Follower(log, state.position)
        self._usage = Follower(ledger, state.usage)
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
        """Return the next batch; None if there is nothing to send.

        OSError if the log cannot be read.
        """
        lines = self._follower.read(BATCH_BYTES)
        records = [*map(_parsed, lines)]
        valid = [record for record in records if record]
        gaps = [*self._gaps(valid, len(records) - len(valid))]
        usage = self._usage.read(BATCH_BYTES)
        used = (
            entry for line in usage if (entry := _parsed_usage(line)) and entry.settled
        )
        notices = (*map(self._of_usage, used), *self._of_head())
        messages = (*map(self.of_gap, gaps), *map(self._of_record, valid), *notices)
        if not messages:
            return None
        self._until = valid[-1].time if valid else self._until
        return Batch(
            messages,
            self._follower.position,
            self._usage.position,
            self._until,
            self._archive_head,
            len(gaps),
            sum(gap.records or 0 for gap in gaps),
            full=max(sum(map(len, lines)), sum(map(len, usage))) >= BATCH_BYTES // 2,
        )

    def of_gap(self, gap: Gap) -> Message:
        """Make the message about a gap."""
        return Message(MessageKind.GAP, gap.end or gap.start, self._encoder.gap(gap))

    def close(self) -> None:
        """Close the log and the ledger."""
        self._follower.close()
        self._usage.close()

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

    def _of_usage(self, entry: UsageEntry) -> Message:
        return Message(MessageKind.USAGE, entry.time, self._encoder.usage(entry))

    def _of_head(self) -> Iterator[Message]:
        """Tell about the head of the archive when it has changed: whoever puts back an
        old one is found by it.
        """
        head = self._head()
        if head and head.number != self._archive_head:
            self._archive_head = head.number
            notice = ArchiveHead(head.time, head.number, head.digest)
            yield Message(
                MessageKind.ARCHIVE_HEAD, head.time, self._encoder.archive_head(notice)
            )


def _parsed(line: bytes) -> Record | None:
    try:
        return parse_timed_record(line)
    except InvalidRecord:
        return None


def _parsed_usage(line: bytes) -> UsageEntry | None:
    try:
        return parse_entry(line)
    except InvalidEntry:
        return None


@dataclass(slots=True)
class _Attempt:
    """What has been sent since the position on disk, and how much of the batch that is
    under way.
    """

    last: Batch | None = None
    messages: int = 0  # of whole batches
    records: int = 0  # among them, without those that were given up
    gaps: int = 0
    lost: int = 0
    under_way: int = (
        0  # messages of a batch, from its announcement until the receiver has it
    )
    taken: int = 0  # of them

    @property
    def left(self) -> int:
        """How many messages have left, or may have."""
        return self.messages + self.under_way


class Delivery:
    """Sends what the access log holds, and what is written to it, until `ending` is
    set.
    """

    def __init__(
        self,
        log: Path,
        store: ExportStore,
        encoder: MessageEncoder,
        sender: Sender,
        ending: Event,
        head: Callable[[], Head | None] = lambda: None,
        ledger: Path = Path(os.devnull),
    ) -> None:
        self._log_file = log
        self._ledger = ledger
        self._store = store
        self._encoder = encoder
        self._sender = sender
        self._ending = ending
        self._head = head
        self._backoff = Backoff()
        self._readable_at = time.monotonic()
        self._attempt = _Attempt()
        self._batches = self._from_position()

    def run(self) -> None:
        """Deliver until the end; what has left is confirmed by then, if the receiver
        answers.
        """
        before = self._store.state
        self._note(doubled=before.doubled + before.unconfirmed, unconfirmed=0)
        while not self._ending.is_set():
            self._try(self._advance)
        self._try(self._confirm)
        self._sender.close()
        self._batches.close()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except DeliveryFailed as error:
            self._fall_back(error)
        except OSError as error:  # of the log, or of the file of this export
            self._fall_back(
                DeliveryFailed(f"{error.filename}: {error.strerror or error}")
            )

    def _advance(self) -> None:
        if not self._store.state.position.first_line_digest:
            self._begin()
        batch = self._batches.read()
        if batch:
            self._deliver(batch)
        self._check_readable()
        if self._attempt.last and self._sender.is_due(time.monotonic()):
            self._confirm()
        if not batch or not batch.full:
            self._write(backlog_bytes=self._batches.backlog_bytes)
            self._ending.wait(_PAUSE_SECONDS)

    def _check_readable(self) -> None:
        """Fail if the log cannot be read for a while; between a rename and Squid's new
        file there is none.
        """
        now = time.monotonic()
        if self._batches.readable:
            self._readable_at = now
        elif now >= self._readable_at + _UNREADABLE_SECONDS:
            raise DeliveryFailed(f"{self._log_file}: cannot be read, or is not there")

    def _begin(self) -> None:
        """Write down where to begin, before anything is sent or fails: the log may be
        rotated until then.
        """
        self._write(position=first_position(self._log_file))
        self._batches.close()
        self._batches = self._from_position()

    def _deliver(self, batch: Batch) -> None:
        """Send a batch. That it may leave is on disk before it does."""
        self._sender.open()
        attempt = self._attempt
        attempt.under_way, attempt.taken = len(batch.messages), 0
        waiting = self._store.state.waiting_since or time.time()
        self._write(
            unconfirmed=attempt.left,
            waiting_since=waiting,
            backlog_bytes=self._batches.backlog_bytes,
        )
        self._hand_over(batch.messages)
        attempt.messages, attempt.under_way = attempt.left, 0
        attempt.records += batch.records
        attempt.gaps += batch.gaps
        attempt.lost += batch.lost
        attempt.last = batch

    def _hand_over(self, messages: Sequence[Message]) -> None:
        """Send messages.

        Where the receiver refuses some, find them, and send a notice instead of each.
        """
        if not messages:
            return
        try:
            rejected = self._sender.send(messages)
        except MessagesRefused as refusal:
            if len(messages) == 1:
                self._send_gap(messages, 1, str(refusal))
            else:
                middle = len(messages) // 2
                self._hand_over(messages[:middle])
                self._hand_over(messages[middle:])
            return
        if rejected:
            self._send_gap(
                messages,
                rejected,
                f"the receiver has rejected {rejected} of {len(messages)} messages",
            )
        self._attempt.taken += len(messages)

    def _send_gap(self, messages: Sequence[Message], number: int, reason: str) -> None:
        """Skip messages, but only if the receiver takes the notice.

        Otherwise it refuses everything, which may end.
        """
        records = min(number, count_records(messages))
        notice = self._batches.of_gap(
            Gap(messages[0].time, messages[-1].time, records, reason)
        )
        try:
            rejected = self._sender.send([notice])
        except MessagesRefused as refusal:
            raise DeliveryFailed(
                f"{refusal}; it takes not even a notice about that"
            ) from refusal
        if rejected:
            raise DeliveryFailed(
                f"{reason}; it takes not even a notice about that", uncertain=True
            )
        _log.warning(
            "%s: %s given up: %s", self._store.name, quantity(records, "record"), reason
        )
        self._attempt.records -= records
        self._attempt.gaps += 1
        self._attempt.lost += records

    def _confirm(self) -> None:
        attempt, batch, state = self._attempt, self._attempt.last, self._store.state
        if batch is None:
            return
        self._sender.confirm()
        self._backoff.reset()
        self._write(
            position=batch.end,
            usage=batch.usage_end,
            unconfirmed=0,
            sent=state.sent + attempt.records,
            gaps=state.gaps + attempt.gaps,
            lost=state.lost + attempt.lost,
            until=batch.until,
            archive_head=batch.archive_head,
            last_success=time.time(),
            waiting_since=None,
            failure="",
        )
        self._attempt = _Attempt()

    def _fall_back(self, error: DeliveryFailed) -> None:
        attempt, state = self._attempt, self._store.state
        self._sender.close()
        self._batches.close()
        again = attempt.left if error.uncertain else attempt.messages + attempt.taken
        self._attempt = _Attempt()
        self._batches = self._from_position()
        if str(error) != state.failure:
            _log.error("%s: %s: trying again", self._store.name, error)
        waiting = state.waiting_since or time.time()
        self._note(
            doubled=state.doubled + again,
            unconfirmed=0,
            waiting_since=waiting,
            failure=str(error),
        )
        end = time.monotonic() + self._backoff.seconds(error.retry_seconds)
        while time.monotonic() < end and not self._ending.wait(
            min(1.0, max(0.0, end - time.monotonic()))
        ):
            self._store.beat()

    def _from_position(self) -> LogBatches:
        return LogBatches(
            self._log_file, self._ledger, self._store.state, self._encoder, self._head
        )

    def _write(self, **changes: object) -> None:
        self._store.write(replace(self._store.state, **changes))

    def _note(self, **changes: object) -> None:
        """Write it down, if it can be written; else what is written next holds it:
        nothing leaves before that.
        """
        self._store.state = replace(self._store.state, **changes)
        with suppress(OSError):
            self._write()
