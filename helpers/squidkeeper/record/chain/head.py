"""The head of a chain: its last number and digest, signed. A head that is kept elsewhere dates an archive.

The number rises with each entry. Whoever puts back an old archive, whole and well signed, puts back an old number.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from squidkeeper.base.errors import InvalidEntry
from squidkeeper.record.chain.keys import ArchiveKey, signed, split_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last entry's number, the SHA-256 of its line, and when and on which gateway that was signed."""

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
    """Parse a head: itself, what is signed, and the signature, which is not checked. `InvalidEntry` if it is none."""
    text, signature = split_signature(content.strip())
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEntry(f"this is no head of a chain: {error}") from None
    return head, text, signature


def head_number(content: bytes) -> int:
    """Give the number of a head, whoever signed it; 0 where there is none."""
    try:
        return parse_head(content)[0].number
    except InvalidEntry:
        return 0
