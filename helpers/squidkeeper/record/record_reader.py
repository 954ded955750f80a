"""Lines of the access log to records (floor 5); counts the lines that are invalid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from squidkeeper.errors import InvalidRecord
from squidkeeper.record.events import LoggedRecord
from squidkeeper.record.record import parse_record


@dataclass(slots=True)
class RecordReader:
    """Parses lines, and counts records and invalid lines."""

    records: int = 0
    invalid: int = 0
    first_invalid: str = ""  # file, line number and reason

    def parse(self, lines: Iterable[bytes], name: str, number: int | None) -> Iterator[LoggedRecord]:
        """Yield the records among lines of the file `name`; `number` is the line number of the first, if known."""
        for position, line in enumerate(lines):
            try:
                record = parse_record(line)
            except InvalidRecord as error:
                self._add_invalid(f"{name}: {error}" if number is None else f"{name}:{number + position}: {error}")
                continue
            self.records += 1
            yield LoggedRecord(line, record)

    def _add_invalid(self, message: str) -> None:
        self.invalid += 1
        self.first_invalid = self.first_invalid or message
