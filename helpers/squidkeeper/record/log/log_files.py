"""The files of the access log: which there are, their order, and their lines."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from squidkeeper.base.errors import DamagedLog, InvalidRecord, UnreadableLog
from squidkeeper.base.rotated_logs import rotated, written_until
from squidkeeper.policy.protocol.lines import LineBuffer
from squidkeeper.record.log.log_file import BLOCK_BYTES, LINE_LIMIT, STDIN, LogFile, first_line_of, open_log
from squidkeeper.record.log.record import parse_record


def read_log_lines(paths: Iterable[Path]) -> Iterator[bytes]:
    """Read files one after the other, `-` for standard input; raise `UnreadableLog`."""
    for path in paths:
        try:
            with open_log(path) as log:
                for lines, _ in line_blocks(log):
                    yield from lines
        except DamagedLog as error:
            raise UnreadableLog(f"{path}: damaged or truncated: {error}") from error
        except OSError as error:
            raise UnreadableLog(f"{path}: {read_failure(error)}") from error


def line_blocks(log: LogFile) -> Iterator[tuple[list[bytes], bool]]:
    """Yield lines that were read together, without their newlines; False with a last line that has not ended."""
    buffer = LineBuffer(LINE_LIMIT)
    ended = True
    while data := log.read(BLOCK_BYTES):
        yield buffer.feed(data), True
        ended = data.endswith(b"\n")
    if not ended:
        yield buffer.feed(b"\n"), False


def read_failure(error: OSError) -> str:
    """Tell why a file cannot be read."""
    if isinstance(error, PermissionError):
        return "permission denied: only root and Squid's account can read the access log"
    return (error.strerror or str(error)).lower()


def files_since(path: Path, since: datetime | None) -> list[Path]:
    """List, in order, the files with records since a time: those rotated later, and the log itself."""
    if since is None:
        return [path]
    return [*(one for one in rotated(path) if written_until(one) >= since.timestamp()), path]


def sorted_by_time(paths: Iterable[Path]) -> list[Path]:
    """Sort files by the time of their first record, or else of their last change."""
    return sorted(dict.fromkeys(paths), key=_begins)


def _begins(path: Path) -> str:
    if path == STDIN:
        return ""
    try:
        return parse_record(first_line_of(path)).time
    except (InvalidRecord, UnreadableLog):
        return datetime.fromtimestamp(written_until(path), UTC).isoformat()
