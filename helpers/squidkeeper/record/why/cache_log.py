"""What cache.log adds to the access log: causes that leave no record, and proof of
likely ones.

Clients choose parts of some lines, so a line counts only if it begins as Squid or a
helper of ours writes it.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.log.log_files import files_since, read_log_lines
from squidkeeper.record.log.record import NONE, Record, parse_time

KEPT: Final = 1000  # lines for each cause, the newest
# between a record and its line; numbers of connections begin again at 1
_SAME_MOMENT: Final = timedelta(seconds=60)
_STAMP = re.compile(
    rb"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)(?: kid\d+)?\| (.{1,2000})", re.DOTALL
)
_TIME: Final = "%Y/%m/%d %H:%M:%S"  # as debug.cc of Squid writes it, in local time

# The cause that a line belongs to, and how the line reads.
_PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    (
        "no-descriptors",
        re.compile(
            r"WARNING[:!] Your cache is running out of filedescriptors|.*\(24\) Too many open files$"
        ),
    ),
    ("squid-ended", re.compile(r"FATAL: (?P<reason>.*)")),
    (
        "ca-not-trusted",
        re.compile(
            r"ERROR: failure while accepting a TLS connection on conn(?P<connection>\d+) local=\S+ "
            r"remote=\[?(?P<client>[0-9a-f.:]+?)\]?:(?P<port>\d+) .*TLS_LIB_ERR=A000(?P<alert>41[2-68])\b"
        ),
    ),
    (
        "no-helper",
        re.compile(r"WARNING: external_acl_type #Hlpr\d+ exited|ipcCreate: .*"),
    ),
    ("credential-unavailable", re.compile(r"squidkeeper: credential (?P<told>.*)")),
    ("no-policy", re.compile(r"squidkeeper: .* does not load, everything is denied.*")),
    (
        "parent-failed",
        re.compile(r"(TCP connection to \S+ failed|Detected DEAD Parent: .*)"),
    ),
)
# The alert with which a client ends TLS (RFC 8446, B.2), by the reason in OpenSSL's
# error code.
ALERTS: Final[Mapping[str, str]] = {
    "412": "bad certificate",
    "413": "unsupported certificate",
    "414": "certificate revoked",
    "415": "certificate expired",
    "416": "certificate unknown",
    "418": "unknown CA",
}


@dataclass(frozen=True, slots=True)
class CacheLine:
    """A line of cache.log that belongs to a cause: its time, its text, and the parts of
    it that are used.
    """

    cause: str
    at: datetime
    text: str
    parts: Mapping[str, str]


@dataclass(slots=True)
class CacheLog:
    """The lines that belong to a cause, the newest of each, in their order.

    `problem`: why cache.log cannot be read.
    """

    problem: str = ""
    lines: dict[str, deque[CacheLine]] = field(default_factory=dict)

    def add(self, line: CacheLine) -> None:
        """Add a line."""
        self.lines.setdefault(line.cause, deque(maxlen=KEPT)).append(line)

    def of(self, cause: str, since: datetime | None = None) -> list[CacheLine]:
        """List the lines of a cause, the newest first."""
        return [
            line
            for line in reversed(self.lines.get(cause, ()))
            if since is None or line.at >= since
        ]

    def near(self, cause: str, record: Record) -> CacheLine | None:
        """Return the newest line of a cause that was written when a request ended, or
        shortly before or after.
        """
        at = parse_time(record)
        return next(
            (line for line in self.of(cause) if abs(line.at - at) < _SAME_MOMENT), None
        )

    def alert(self, record: Record) -> str | None:
        """Name the alert with which the client of a connection refused the gateway's
        certificate.
        """
        at = parse_time(record)
        for line in self.of("ca-not-trusted"):
            parts = line.parts
            is_same = (parts["connection"], parts["client"]) == (
                record.connection,
                record.client,
            )
            # workers number their connections alike
            is_same &= record.client_port in (
                NONE,
                parts["port"],
            )
            if is_same and abs(line.at - at) < _SAME_MOMENT:
                return ALERTS[parts["alert"]]
        return None


def read_cache_log(path: Path, since: datetime | None) -> CacheLog:
    """Read cache.log, and its rotated files as far as they were written since
    a time.
    """
    log = CacheLog()
    try:
        for line in parse_lines(read_log_lines(files_since(path, since))):
            log.add(line)
    except UnreadableLog as error:
        log.problem = str(error)
    return log


def parse_lines(lines: Iterable[bytes]) -> Iterator[CacheLine]:
    """Yield the lines that belong to a cause."""
    for line in _with_faults(lines):
        stamped = _STAMP.match(line)
        if stamped is None:
            continue
        text = stamped[2].decode("utf-8", "replace")
        for cause, pattern in _PATTERNS:
            match = pattern.match(text)
            if match:
                at = _time(stamped[1].decode())
                if at:
                    yield CacheLine(cause, at, text, match.groupdict())
                break


def _with_faults(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines.

    One that ends at a colon gets the line below, if that has no time of its own.
    """
    for line, below in pairwise(chain(lines, [b""])):
        yield (
            line + b" " + below
            if line.endswith(b":") and not _STAMP.match(below)
            else line
        )


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, _TIME).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
