"""The ledger of usage: JSON lines, two for each metered request, in `bodies/usage/` of
the state folder.

The first line is written when the reserve is taken, the second when the answer has
ended. The second states the whole of what the request counts for, and what it had
reserved. So these three are equal:

- the sum over all lines of what is used, less what had been reserved,
- the sum over requests of what the last line of each states (`settled`), in any order
  of the lines,
- what the quotas have counted.

A request whose second line is missing counts for its reserve. Text is percent-encoded
as in the access log, `-` means none. Times are in UTC.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import msgspec

from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import InvalidEntry
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.base.rotated_logs import next_name, rotated, written_until
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.record.log.log_files import LogFile, line_blocks
from squidkeeper.record.log.record import NONE, format_time

VERSION: Final = 1
MODEL_LENGTH: Final = 100  # characters, ahead of their encoding
LARGEST: Final = 2**53 - 1  # a number that every reader of JSON has exactly
FILE_BYTES: Final = 64 << 20  # of one file; it is also rotated at midnight
LEDGER_BYTES: Final = 1 << 30  # of the rotated files together
# a client with more than a quarter of all loses lines first
_SHARE: Final = 4
_SAMPLE_BYTES: Final = 1 << 20  # of each file
_CLIENT: Final = re.compile(rb'"client":"([^"]*)"')
_THINNED: Final = "thinned"  # no name of a rotated file
_KEEP_SECONDS: Final = 90 * 86400  # as long as the archive keeps the access log
_SLACK_SECONDS: Final = 60
_UNESCAPED: Final = "".join(
    chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%<>\\'
)
_encoder = msgspec.json.Encoder()

Amount = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


class UsageState(StrEnum):
    """What a request counts for."""

    METERED = "metered"  # what the API reported
    # its reserve, or what was seen beyond: the answer is under way, or did not come
    # whole
    RESERVED = "reserved"
    # the same: the answer came whole, and nothing could be read from it
    UNMETERED = "unmetered"


class UsageEntry(msgspec.Struct, frozen=True, gc=False):
    """A line of the ledger. `cost` is in millionths of the currency.

    `tokens_in` holds the cached and the written tokens of the prompt. `model` is the
    one of the answer; the one of the request where no answer names one. `reserved_*` is
    0 in the first line.
    """

    v: int
    time: str
    request_id: str
    client: str
    user: str
    rule: str
    revision: str
    host: str
    model: str
    state: UsageState
    settled: bool
    reason: str = NONE
    tokens_in: Amount = 0
    cached_in: Amount = 0
    cache_write: Amount = 0
    tokens_out: Amount = 0
    cost: Amount = 0
    reserved_in: Amount = 0
    reserved_out: Amount = 0
    reserved_cost: Amount = 0


@dataclass(frozen=True, slots=True)
class MeteredRequest:
    """What both lines of a request share, as the access log has it: encoded, `-` for
    none.

    `worker` is Squid's. Two workers can give the same request ID at the same moment.
    `session` is the number of the one that asked.
    """

    request_id: str
    client: str
    user: str
    rule: str
    revision: str
    host: str
    worker: str = NONE
    session: str = NONE

    @property
    def held_as(self) -> str:
        """Name the request for its reserve: no other request has this name."""
        return f"{self.request_id}.{self.worker}"


@dataclass(frozen=True, slots=True)
class Amounts:
    """Tokens, and their cost in millionths of the currency."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0
    cached_in: int = 0
    cache_write: int = 0


def usage_entry(
    request: MeteredRequest,
    at: datetime,
    model: str | None,
    used: Amounts,
    reserve: Amounts | None = None,
    state: UsageState = UsageState.RESERVED,
    reason: str = "",
) -> UsageEntry:
    """Make the first line of a request, with what was reserved as `used`, or the
    second, with its `reserve` again.

    In a second line that is not metered, `used` is the reserve, or more where more was
    seen.
    """
    told = (
        request.request_id,
        request.client,
        request.user,
        request.rule,
        request.revision,
    )
    settled, reserve = reserve is not None, reserve or Amounts()
    amounts = (
        used.tokens_in,
        used.cached_in,
        used.cache_write,
        used.tokens_out,
        used.cost,
    )
    return UsageEntry(
        *(
            VERSION,
            format_time(at),
            *told,
            request.host,
            recorded_text(model),
            state,
            settled,
            recorded_text(reason),
        ),
        *map(_bounded, (*amounts, reserve.tokens_in, reserve.tokens_out, reserve.cost)),
    )


def recorded_text(text: str | None) -> str:
    """Write a text that others choose, such as the name of a model: cut, and encoded as
    the access log does it.
    """
    cut = (text or "")[:MODEL_LENGTH]
    return (
        "%2D"
        if cut == NONE
        else quote(cut, safe=_UNESCAPED, errors="surrogatepass") or NONE
    )


def _bounded(amount: int) -> int:
    return min(max(amount, 0), LARGEST)


# --- writing --------------------------------------------------------------------------


def ledger_file(state: Path) -> Path:
    """Name the file that is written now; rotated ones are beside it, named as those of
    the access log.
    """
    return state / BODIES_FOLDER / "usage" / "usage.jsonl"


def append_entry(file: Path, entry: UsageEntry) -> None:
    """Append a line; OSError where it is not written whole.

    Processes wait for each other, for a write at a time.

    A killed process leaves a whole line or none. A full disk can leave a part of one;
    the next line begins after it. A crash of the machine can lose the newest lines.
    """
    file.parent.mkdir(mode=0o750, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _rotate(file, entry)
        _append(file, _encoder.encode(entry) + b"\n")
    finally:
        os.close(folder)  # which unlocks it


def _append(file: Path, line: bytes) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = os.open(file, flags, 0o640)
    try:
        size = os.fstat(opened).st_size
        if size and os.pread(opened, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(opened, line) != len(line):
            raise OSError(f"{file}: a line was cut, as the disk is full")
    finally:
        os.close(opened)


def _rotate(file: Path, entry: UsageEntry) -> None:
    """Rename the file when its day is over or it is full; then remove the rotated files
    over the bounds.
    """
    try:
        state = file.stat()
    except FileNotFoundError:
        return
    last_day = time.strftime("%Y-%m-%d", time.gmtime(state.st_mtime))
    if state.st_size < FILE_BYTES and entry.time[:10] <= last_day:
        return
    file.rename(next_name(file, datetime.fromisoformat(entry.time)))
    _remove_over_bounds(rotated(file))


def _remove_over_bounds(files: list[Path]) -> None:
    oldest = time.time() - _KEEP_SECONDS
    for file in [file for file in files if written_until(file) < oldest]:
        file.unlink()
        files.remove(file)
    over = sum(file.stat().st_size for file in files) - LEDGER_BYTES
    while over > 0:
        busiest = _busiest(files)
        freed = (_remove_lines(file, busiest) for file in files if busiest)
        removed = next((size for size in freed if size), 0)
        if not removed:
            removed = files[0].stat().st_size
            files.pop(0).unlink()
        over -= removed


def _busiest(files: Iterable[Path]) -> str:
    """Return the client with more than its share of the lines, by a sample of each
    file; an empty text where none has.
    """
    sizes: Counter[str] = Counter()
    for file in files:
        with file.open("rb") as opened:
            opened.seek(max(file.stat().st_size - _SAMPLE_BYTES, 0) // 2)
            lines = opened.read(_SAMPLE_BYTES).splitlines()[1:]
        for line in lines:
            sizes[_client_of(line)] += len(line)
    [(client, most)] = sizes.most_common(1) or [("", 0)]
    return client if most > sizes.total() // _SHARE else ""


def _remove_lines(file: Path, client: str) -> int:
    """Remove the lines of a client from a file; returns how many bytes that frees."""
    state, new = file.stat(), file.with_name(_THINNED)
    with file.open("rb") as lines, new.open("wb") as kept:
        kept.writelines(line for line in lines if _client_of(line) != client)
    shutil.copystat(file, new)
    new.replace(file)
    return state.st_size - file.stat().st_size


def _client_of(line: bytes) -> str:
    found = _CLIENT.search(line)
    return client_network(found[1].decode("latin-1")) if found else ""


# --- reading --------------------------------------------------------------------------


def parse_entry(line: bytes) -> UsageEntry:
    """Parse a line without its newline; `InvalidEntry` where it is none of this
    version.
    """
    try:
        entry = _decoder.decode(line)
        datetime.fromisoformat(entry.time)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
    ) as error:
        raise InvalidEntry(f"not a line of the ledger of usage: {error}") from error
    if entry.v != VERSION:
        raise InvalidEntry(
            f"version {entry.v} of the ledger of usage, expected {VERSION}: another release wrote it"
        )
    return entry


_decoder = msgspec.json.Decoder(UsageEntry)


def ledger_files(state: Path, since: datetime | None = None) -> list[Path]:
    """List, oldest first, the files with what the access log has since a time: a
    request can end here a bit earlier.
    """
    file = ledger_file(state)
    begin = since.timestamp() - _SLACK_SECONDS if since else 0
    return [*(path for path in rotated(file) if written_until(path) >= begin), file]


def read_entries(files: Iterable[Path]) -> Iterator[UsageEntry]:
    """Read files of the ledger.

    Lines that are no entries are left out, and files that are gone; OSError for others.
    """
    for path in files:
        try:
            log = LogFile(path, open_untrusted(path))
        except FileNotFoundError:
            continue
        with log:
            yield from _entries(log)


def _entries(log: LogFile) -> Iterator[UsageEntry]:
    for lines, _ in line_blocks(log):
        for line in lines:
            try:
                yield parse_entry(line)
            except InvalidEntry:
                continue


def latest(entries: Iterable[UsageEntry]) -> dict[str, UsageEntry]:
    """Return the line that counts of each request, by its ID, in whichever order the
    lines come.
    """
    found: dict[str, UsageEntry] = {}
    for entry in entries:
        known = found.get(entry.request_id)
        if known is None or (entry.settled, entry.time) >= (known.settled, known.time):
            found[entry.request_id] = entry
    return found


def usage_of(
    state: Path, ids: Collection[str], since: datetime | None
) -> list[UsageEntry]:
    """Return the lines that count of some requests.

    Of a ledger that this account cannot read: none.
    """
    if not ids:
        return []
    try:
        return [
            *latest(
                entry
                for entry in read_entries(ledger_files(state, since))
                if entry.request_id in ids
            ).values()
        ]
    except OSError:
        return []
