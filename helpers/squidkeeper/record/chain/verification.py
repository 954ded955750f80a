"""Verifying an archive: each part, line of the chain, number and head that is not as it
was signed.

Nothing of the archive is trusted, only the public key that the caller brings and the
heads that he kept elsewhere.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from squidkeeper.base.errors import InvalidEntry, ObjectTooLarge
from squidkeeper.base.formatting import printable
from squidkeeper.record.chain.chain import CHAIN, HEAD, Chain
from squidkeeper.record.chain.entries import (
    FIRST_PREVIOUS,
    ArchivedPart,
    ChainEntry,
    EntryKind,
    Head,
    digest,
    parse_entry,
    parse_head,
)
from squidkeeper.record.chain.keys import ArchivePublicKey, split_signature
from squidkeeper.record.chain.places import ArchivePlace, digest_of


class ArchiveFaultCode(StrEnum):
    """The kinds of faults of an archive. They are stable."""

    LINE_DAMAGED = "line-damaged"
    LINE_UNSIGNED = "line-unsigned"
    LINE_CHANGED = "line-changed"
    OTHER_KEY = "other-key"
    LINE_OUT_OF_PLACE = "line-out-of-place"
    NUMBERS_MISSING = "numbers-missing"
    HEAD_MISSING = "head-missing"
    HEAD_UNSIGNED = "head-unsigned"
    HEAD_MISMATCH = "head-mismatch"
    OLD_HEAD = "old-head"
    PART_MISSING = "part-missing"
    PART_CHANGED = "part-changed"
    PART_CUT = "part-cut"
    PART_SWAPPED = "part-swapped"
    PART_UNKNOWN = "part-unknown"
    LINES_MISSING = "lines-missing"  # against Squid's own counter
    LINES_SURPLUS = "lines-surplus"
    ARCHIVE_MISSING = "archive-missing"  # of a gateway whose key the caller has


@dataclass(frozen=True, slots=True)
class ArchiveFault:
    """One thing that is not as it was signed: its kind, where, and what is wrong."""

    code: ArchiveFaultCode
    place: str
    text: str

    def __str__(self) -> str:
        # whoever changed the archive chose the names in it
        return printable(f"{self.place}: {self.text}")


@dataclass(frozen=True, slots=True)
class KeptHead:
    """A head that was kept outside of the archive. `digest` may be unknown."""

    number: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified, and every fault.

    `notes`: what explains itself, such as a part of a run under way.
    """

    entries: tuple[ChainEntry, ...]
    parts: int
    bytes: int
    head: Head | None
    faults: tuple[ArchiveFault, ...]
    notes: tuple[str, ...]


def verify(
    place: ArchivePlace,
    keys: Iterable[ArchivePublicKey],
    kept: Iterable[KeptHead] = (),
    since: str = "",
) -> Verification:
    """Verify a whole archive, or its chain and its parts from a time on; OSError if its
    chain cannot be read.
    """
    return _Verifier(place, keys, since).verify(tuple(kept))


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the chain: where it is, its bytes, and its entry if it is one."""

    place: str
    content: bytes
    # None: it is no entry, or none that a key of the caller's has signed
    entry: ChainEntry | None


class _Verifier:
    def __init__(
        self, place: ArchivePlace, keys: Iterable[ArchivePublicKey], since: str
    ) -> None:
        self._place = place
        self._keys = {key.id: key for key in keys}
        self._faults: list[ArchiveFault] = []
        self._notes: list[str] = []
        self._since = since

    def verify(self, kept: tuple[KeptHead, ...]) -> Verification:
        # A run may add parts meanwhile. It first notes their names, and removes the
        # note when the chain has them.
        paths = self._paths()
        placed = self._being_placed()
        # ahead of the chain, which only grows
        head_content = self._read(HEAD, ArchiveFaultCode.HEAD_MISSING)
        lines = tuple(self._lines(self._read(CHAIN, ArchiveFaultCode.LINE_DAMAGED)))
        self._verify_order(lines)
        head = self._verify_head(head_content, lines)
        for archived in kept:
            self._verify_kept(archived, lines)
        entries = tuple(line.entry for line in lines if line.entry)
        self._notes += [
            entry.reason for entry in entries if entry.kind is EntryKind.CRASH
        ]
        chain = Chain(entries)
        parts = self._verify_parts(chain)
        self._verify_others(paths - chain.parts.keys(), placed, chain)
        size = sum(part.bytes for part in parts.values())
        return Verification(
            entries, len(parts), size, head, tuple(self._faults), tuple(self._notes)
        )

    def _paths(self) -> set[str]:
        try:
            return set(self._place.part_paths())
        except ObjectTooLarge as error:
            self._fault(ArchiveFaultCode.PART_UNKNOWN, str(self._place), str(error))
            return set()

    def _being_placed(self) -> tuple[str, ...]:
        try:
            return self._place.parts_being_placed()
        except PermissionError:
            raise
        except (OSError, ObjectTooLarge):  # no note of a run
            return ()

    def _read(self, name: str, code: ArchiveFaultCode) -> bytes:
        """Read a file; one that is none, such as a folder, is a fault, and hides no
        other.
        """
        try:
            return self._place.read(name)
        except PermissionError:
            raise  # the caller's, not the archive's
        except (OSError, ObjectTooLarge) as error:
            self._fault(code, name, f"it cannot be read: {_reason(error)}")
            return b""

    def _fault(self, code: ArchiveFaultCode, place: str, text: str) -> None:
        self._faults.append(ArchiveFault(code, place, text))

    # The chain

    def _lines(self, content: bytes) -> Iterator[_Line]:
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            place = f"{CHAIN}:{number}"
            yield _Line(place, line, self._verified_entry(place, line))
        if torn:
            self._notes.append(
                f"{CHAIN}: {len(torn):,} bytes of an entry are at its end: a run was interrupted"
            )

    def _verified_entry(self, place: str, line: bytes) -> ChainEntry | None:
        try:
            entry = parse_entry(line)
        except InvalidEntry as error:
            self._fault(ArchiveFaultCode.LINE_DAMAGED, place, str(error))
            return None
        text, signature = split_signature(line)
        if signature is None:
            self._fault(
                ArchiveFaultCode.LINE_UNSIGNED,
                place,
                "this line of the chain is not signed",
            )
            return None
        return entry if self._is_signed(place, entry.key, text, signature) else None

    def _is_signed(self, place: str, name: str, text: bytes, signature: bytes) -> bool:
        key = self._keys.get(name)
        if key is None:
            which = f"it is signed by another key ({name or '-'}), expected {' or '.join(self._keys)}"
            self._fault(ArchiveFaultCode.OTHER_KEY, place, which)
        elif not key.verifies(signature, text):
            self._fault(
                ArchiveFaultCode.LINE_CHANGED,
                place,
                "it was changed after it was signed, or is forged",
            )
        else:
            return True
        return False

    def _verify_order(self, lines: tuple[_Line, ...]) -> None:
        before, last = FIRST_PREVIOUS, 0
        for line in lines:
            if line.entry:
                if line.entry.previous != before or line.entry.number <= last:
                    text = "it does not follow the line before, which was changed, removed or moved"
                    self._fault(ArchiveFaultCode.LINE_OUT_OF_PLACE, line.place, text)
                last = line.entry.number
            before = digest(line.content)
        numbers = [0, *sorted({line.entry.number for line in lines if line.entry})]
        for one, other in pairwise(numbers):
            if other > one + 1:
                which = (
                    f"entry {one + 1} is"
                    if other == one + 2
                    else f"entries {one + 1} to {other - 1} are"
                )
                self._fault(ArchiveFaultCode.NUMBERS_MISSING, CHAIN, f"{which} missing")

    # Heads

    def _verify_head(self, content: bytes, lines: tuple[_Line, ...]) -> Head | None:
        try:
            head, text, signature = parse_head(content)
        except InvalidEntry as error:
            what = str(error) if content else "it is missing, and each run writes it"
            self._fault(ArchiveFaultCode.HEAD_MISSING, HEAD, what)
            return None
        if signature is None:
            self._fault(ArchiveFaultCode.HEAD_UNSIGNED, HEAD, "it is not signed")
        elif self._is_signed(HEAD, head.key, text, signature):
            self._compare_head(head, lines)
        return head

    def _compare_head(self, head: Head, lines: tuple[_Line, ...]) -> None:
        line, last = _line_of(head.number, lines), _last_number(lines)
        if head.number > last:
            text = f"its number is {head.number}, and the chain ends at {last}: the end of the chain was removed"
            self._fault(ArchiveFaultCode.HEAD_MISMATCH, HEAD, text)
        elif line is not None and digest(line.content) != head.digest:
            text = f"entry {head.number} of the chain is another than the one that was signed"
            self._fault(ArchiveFaultCode.HEAD_MISMATCH, HEAD, text)
        elif head.number < last:
            text = f"its number is {head.number}, and the chain ends at {last}: a run is under way, or was interrupted"
            self._notes.append(f"{HEAD}: {text}")

    def _verify_kept(self, kept: KeptHead, lines: tuple[_Line, ...]) -> None:
        line, last = _line_of(kept.number, lines), _last_number(lines)
        if kept.number > last:
            text = f"it ends at entry {last}, and a head of number {kept.number} was kept: an old archive was put back"
            self._fault(ArchiveFaultCode.OLD_HEAD, CHAIN, text)
        elif (
            line is not None
            and kept.digest is not None
            and digest(line.content) != kept.digest
        ):
            text = f"entry {kept.number} is another than the one of the head that was kept: the archive was replaced"
            self._fault(ArchiveFaultCode.OLD_HEAD, CHAIN, text)
        elif kept.digest is None:
            text = f"the head {kept.number} was named without its SHA-256: an archive that was replaced and went on"
            self._notes.append(f"{text} is not found")

    # Parts

    def _verify_parts(self, chain: Chain) -> dict[str, ArchivedPart]:
        parts, owners = (
            chain.parts,
            {part.sha256: part.path for part in chain.named.values()},
        )
        wanted = {
            path: part for path, part in parts.items() if part.is_of(self._since, "")
        }
        if left := len(parts) - len(wanted):
            self._notes.append(
                f"{CHAIN}: {left:,} of its parts are of before --since, and were not verified"
            )
        for part in wanted.values():
            self._verify_part(part, owners)
        return wanted

    def _verify_others(
        self, paths: Collection[str], placed: Collection[str], chain: Chain
    ) -> None:
        removed = chain.removed
        for path in sorted(paths):
            if path in removed:
                self._notes.append(
                    f"{path}: a tombstone names it, and it is still there"
                )
            elif path in placed:
                self._notes.append(
                    f"{path}: of a run that is under way, or was interrupted"
                )
            else:
                self._fault(
                    ArchiveFaultCode.PART_UNKNOWN, path, "it is not in the chain"
                )

    def _verify_part(self, part: ArchivedPart, owners: dict[str, str]) -> None:
        try:
            with self._place.open(part) as file:
                found, size = digest_of(file), file.tell()
        except FileNotFoundError:
            self._fault(
                ArchiveFaultCode.PART_MISSING,
                part.path,
                f"it is missing, with {part.rows:,} lines",
            )
            return
        except (OSError, ObjectTooLarge) as error:
            text = f"it cannot be read ({_reason(error)}), with {part.rows:,} lines"
            self._fault(ArchiveFaultCode.PART_MISSING, part.path, text)
            return
        if (found, size) != (part.sha256, part.bytes):
            self._fault(*_what_changed(part, found, size, owners))


def _what_changed(
    part: ArchivedPart, found: str, size: int, owners: dict[str, str]
) -> tuple[ArchiveFaultCode, str, str]:
    if (owner := owners.get(found, part.path)) != part.path:
        return (
            ArchiveFaultCode.PART_SWAPPED,
            part.path,
            f"it holds the content of {owner}",
        )
    if size < part.bytes:
        return (
            ArchiveFaultCode.PART_CUT,
            part.path,
            f"it has {size:,} bytes, expected {part.bytes:,}",
        )
    if size > part.bytes:  # an object of a store was not read to its end
        return (
            ArchiveFaultCode.PART_CHANGED,
            part.path,
            f"it was changed: more than its {part.bytes:,} bytes",
        )
    text = f"it was changed: SHA-256 {found[:16]}…, expected {part.sha256[:16]}…, with {part.rows:,} lines"
    return ArchiveFaultCode.PART_CHANGED, part.path, text


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _line_of(number: int, lines: tuple[_Line, ...]) -> _Line | None:
    return next(
        (line for line in lines if line.entry and line.entry.number == number), None
    )


def _last_number(lines: tuple[_Line, ...]) -> int:
    return max((line.entry.number for line in lines if line.entry), default=0)
