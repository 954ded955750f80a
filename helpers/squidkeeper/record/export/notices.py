"""Notices: what an export tells beside the records of the access log."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from squidkeeper.record.export.messages import MessageKind
from squidkeeper.record.log.record import format_time


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that the receiver does not get, and why. Times are as in the access log; empty: unknown.

    `start` is the time of the newest record before the gap, `end` that of the first one after it. `records` is how
    many there are; None: unknown.
    """

    start: str
    end: str
    records: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ArchiveHead:
    """The head of the archive's chain at a time: its number, and the digest of the chain's last line."""

    time: str
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice as every format writes it; `time` is as in the access log, and `details` have names of ours."""

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
    known = {"from": gap.start, "to": gap.end, "records": gap.records, "reason": gap.reason}
    details = {name: value for name, value in known.items() if value not in ("", None)}
    return Notice(MessageKind.GAP, gap.end or gap.start or format_time(datetime.now(UTC)), message, details)


def archive_head_notice(head: ArchiveHead) -> Notice:
    """Write the head of the archive."""
    message = f"the archive's chain has {head.number} entries"
    return Notice(MessageKind.ARCHIVE_HEAD, head.time, message, {"number": head.number, "digest": head.digest})
