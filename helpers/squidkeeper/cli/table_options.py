"""What a command reads as a table: its options, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.cli.options import (
    archive_read_option,
    gateway_option,
    since_option,
    table_sources,
    threads_option,
    until_option,
)

if TYPE_CHECKING:
    from squidkeeper.record.table.sources import TableSources
    from squidkeeper.record.table.table import Table


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What to read, of which period, and on how many cores; `files` are those that were named."""

    files: tuple[Path, ...]
    sources: TableSources
    since: datetime | None
    until: datetime | None
    threads: int | None

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """The period, from its start to its end."""
        return self.since, self.until

    @contextmanager
    def open(self, columns: Collection[str], *, with_earlier: bool = False) -> Iterator[Table]:
        """Read it after what Squid needs, and report what was skipped; `UnreadableLog` if it cannot be read.

        `with_earlier` reads records of all times, which tell what is new in the period.
        """
        from squidkeeper.cli.output import report_skipped
        from squidkeeper.record.table.database import yield_to_squid
        from squidkeeper.record.table.table import open_table

        yield_to_squid()
        period = (None, None) if with_earlier else self.period
        with open_table(self.sources, *period, self.threads, columns) as table:
            report_skipped(table.skipped)
            yield table


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add FILEs, --archive, --gateway, a period and --threads to a command, which gets them as `read`."""

    @wraps(command)
    def with_table(
        files: tuple[Path, ...],
        archive: Path,
        since: datetime | None,
        until: datetime | None,
        threads: int | None,
        gateway: tuple[str, ...],
        **options: Any,
    ) -> Any:
        sources = table_sources(files, archive, gateways=gateway)
        return command(read=TableOptions(files, sources, since, until, threads), **options)

    kind = click.Path(path_type=Path, readable=False)
    with_files = click.argument("files", metavar="[FILE]...", nargs=-1, type=kind)(with_table)
    return threads_option(since_option(until_option(archive_read_option(gateway_option(with_files)))))
