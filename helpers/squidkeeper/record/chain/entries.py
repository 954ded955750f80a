"""The entries of a chain: one JSON object a line, which ends in a signature where the
archive is sealed.

    {"number":2,"previous":"9f86d0…","kind":"parts","time":"…","source":{…},"parts":[{…}],"reason":"","signature":"…"}

`previous` is the SHA-256 of the line before, with its signature. The signature is over
the line without it.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec

from squidkeeper.base.errors import InvalidEntry
from squidkeeper.base.squid_counters import SquidSample
from squidkeeper.record.chain.keys import ArchiveKey, signed, split_signature

FIRST_PREVIOUS: Final = "0" * 64
_PATH = re.compile(
    r"day=(\d{4}-\d{2}-\d{2})/part-(\d{8,12})(?:[.-][A-Za-z0-9._-]{0,100})?\.parquet",
    re.ASCII,
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class EntryKind(StrEnum):
    """What an entry records."""

    PARTS = "parts"  # a rotated log, and the parts that hold its lines
    TOMBSTONE = "tombstone"  # parts that retention has removed
    CRASH = (
        "crash"  # requests without a line, as Squid crashed: the reason says how many
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSource:
    """A rotated log that is archived.

    It is known again by its first line; `bytes` of its content are archived.
    """

    name: str
    first_line_sha256: str
    bytes: _Count
    lines: _Count
    squid: tuple[SquidSample, ...] | None = (
        None  # Squid's own counter until its last line
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedPart:
    """A file of an archive.

    `path` is relative to the archive; `first` and `last` are times of its records.
    """

    path: str
    sha256: str
    bytes: _Count
    rows: _Count
    invalid: _Count = 0
    first: str = ""
    last: str = ""

    @property
    def day(self) -> str:
        """The UTC day of its records: 2026-11-25."""
        return self.path[4:14]

    def is_of(self, since: str, until: str) -> bool:
        """Whether it can have records of a period; empty text: no bound.

        One without times can.
        """
        return not (since and self.last and self.last < since) and not (
            until and self.first and self.first >= until
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEntry:
    """One entry. `append_entry` sets its number, what it follows, and its time."""

    number: _Count = 0
    previous: str = ""
    kind: EntryKind
    time: str = ""
    key: str = ""  # the short name of the key that signs it
    source: ArchivedSource | None = None
    parts: tuple[ArchivedPart, ...] = ()
    reason: str = ""  # of a tombstone or a crash


def number_of(path: str) -> int:
    """Return the number of the entry that a part was written for; 0 where the path is
    no part's.
    """
    found = _PATH.fullmatch(path)
    return int(found[2]) if found else 0


def parse_entry(line: bytes) -> ChainEntry:
    """Parse a line without its newline; `InvalidEntry` if it is no entry.

    Its signature is not checked.
    """
    text, _ = split_signature(line)
    try:
        entry = msgspec.json.decode(text, type=ChainEntry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEntry(f"this is no entry of a chain: {error}") from None
    wrong = [part.path for part in entry.parts if not _PATH.fullmatch(part.path)]
    if wrong:  # a path of an archive never leads out of it
        raise InvalidEntry(
            f"this is no part's path, expected day=YYYY-MM-DD/part-NNNNNNNN.parquet: {wrong[0]!r}"
        )
    if entry.number < 1 or not _DIGEST.fullmatch(entry.previous):
        raise InvalidEntry("its number or the SHA-256 of the line before is missing")
    return entry


def format_entry(entry: ChainEntry, key: ArchiveKey | None) -> bytes:
    """Format an entry as a line without its newline, signed if there is a key."""
    text = msgspec.json.encode(entry)
    return signed(text, key) if key else text


def digest(line: bytes) -> str:
    """Return the SHA-256 of a line, without its newline and with its signature."""
    return sha256(line).hexdigest()


def utc_now() -> str:
    """Return the time as an entry has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# The head of a chain: its last number and digest, signed. A head that is kept elsewhere
# dates an archive.
#
# The number rises with each entry. Whoever puts back an old archive, whole and well
# signed, puts back an old number.


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last entry's number, the SHA-256 of its line, and when and on which gateway
    that was signed.
    """

    kind: Literal["head"] = "head"  # so that no entry is taken for a head
    number: int
    digest: str
    time: str
    gateway: str = ""
    key: str = ""  # the short name of the key that signs it

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"  # as `archive verify --head` takes it


def format_head(head: Head, key: ArchiveKey) -> bytes:
    """Format a head, signed, as the content of its file."""
    return signed(msgspec.json.encode(head), key) + b"\n"


def parse_head(content: bytes) -> tuple[Head, bytes, bytes | None]:
    """Parse a head: itself, what is signed, and the signature, which is not checked.

    `InvalidEntry` if it is none.
    """
    text, signature = split_signature(content.strip())
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEntry(f"this is no head of a chain: {error}") from None
    return head, text, signature


def head_number(content: bytes) -> int:
    """Return the number of a head, whoever signed it; 0 where there is none."""
    try:
        return parse_head(content)[0].number
    except InvalidEntry:
        return 0
