"""Lines of the access log to records (floor 5); counts the lines that are invalid."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from squidkeeper.errors import InvalidRecord
from squidkeeper.record.record import Record, parse_timed_record


class LoggedRecord(NamedTuple):
    """A record and its line."""

    line: bytes
    record: Record


@dataclass(slots=True)
class RecordReader:
    """Parses lines, and counts those that are invalid."""

    invalid: int = 0
    first_invalid: str = ""  # why it is

    def parse(self, lines: Iterable[bytes]) -> Iterator[LoggedRecord]:
        """Yield the records among lines."""
        for line in lines:
            try:
                yield LoggedRecord(line, parse_timed_record(line))
            except InvalidRecord as error:
                self.invalid += 1
                self.first_invalid = self.first_invalid or str(error)
