"""From lines to records (floor 5): what is no record is counted, and the first of them remembered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from squidkeeper.errors import InvalidRecord
from squidkeeper.record.events import LoggedRecord
from squidkeeper.record.record import parse_record


@dataclass(slots=True)
class RecordReader:
    """A reading of logs: how many records it had, and how many lines that are none."""

    records: int = 0
    invalid: int = 0
    first_invalid: str = ""  # where, and why

    def entries(self, lines: Iterable[bytes], name: str, number: int | None) -> Iterator[LoggedRecord]:
        """Parse lines of the log `name`, the first of which has this number where that is known."""
        for position, line in enumerate(lines):
            try:
                record = parse_record(line)
            except InvalidRecord as error:
                self._note(f"{name}: {error}" if number is None else f"{name}:{number + position}: {error}")
                continue
            self.records += 1
            yield LoggedRecord(line, record)

    def _note(self, what: str) -> None:
        self.invalid += 1
        self.first_invalid = self.first_invalid or what
