"""`squidkeeper archive`: rotated logs as Parquet, sealed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from squidkeeper.base.formatting import byte_size, printable, quantity
from squidkeeper.cli import helper_options, options
from squidkeeper.cli.archive_verify import failure, verify
from squidkeeper.cli.maintain import Size
from squidkeeper.cli.output import progress, show_json
from squidkeeper.record.archive import KEEP_DAYS

if TYPE_CHECKING:
    from squidkeeper.record.archive.archiver import RunReport
    from squidkeeper.record.chain.keys import ArchiveKey
    from squidkeeper.record.chain.stores import ObjectStore


@click.group()
def archive() -> None:
    """Archive rotated access logs as Parquet files, and verify an archive."""


@archive.command()
@options.file_option("--access-log", options.DEFAULT_LOG, "Squid's access log.")
@options.archive_option("The archive.")
@helper_options.path_option(
    "--key",
    metavar="FILE",
    help="The private key that seals the archive. [default: the gateway's, for its own archive]",
)
@helper_options.shown_option(
    "--keep-days",
    metavar="N",
    type=click.IntRange(1, 36_500),
    default=KEEP_DAYS,
    help="Remove older days.",
)
@click.option(
    "--keep-bytes",
    metavar="SIZE",
    type=Size(),
    help="Limit the archive, such as 100G. [default: a quarter of its file system]",
)
@helper_options.state_option()
@click.option(
    "--copy-to",
    metavar="s3://…|FILE.yaml",
    help="Copy new parts to this object store, if FILE.yaml exists.",
)
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(1),
    help="Repeat after SECONDS, until SIGTERM. [default: run once]",
)
def run(
    access_log: Path,
    archive: Path,
    key: Path | None,
    keep_days: int,
    keep_bytes: int | None,
    state: Path,
    copy_to: str | None,
    every: float | None,
) -> None:
    """Archive the rotated access logs, then remove days over the limits.

    Rotated logs may be compressed (.gz, .bz2, .xz, .zst). Every line is kept, invalid
    ones unchanged. The current log is archived after its rotation. A run can be stopped
    at any time.

    \b
    Exit status:
      1  A log could not be archived. The next run tries again.
    """
    if every is not None:
        _repeat(_without_every(sys.argv[sys.argv.index("run") + 1 :]), every)
    import duckdb  # noqa: F401 - while this process may still read where it is installed

    from squidkeeper.base.squid_account import become_owner
    from squidkeeper.record.archive.archiver import Archiver
    from squidkeeper.record.archive.retention import ArchiveBounds

    if not os.path.isdir(archive):  # Path.is_dir raises in a folder that cannot be read
        raise click.ClickException(
            f"{archive}: there is no such folder: make it, with mode 0750 and Squid's group"
        )
    if not os.path.isdir(access_log.parent):
        raise click.ClickException(
            f"{access_log.parent}: there is no such folder: name Squid's by --access-log"
        )
    try:
        bounds, store, signing = (
            ArchiveBounds(keep_days, keep_bytes),
            _store(copy_to),
            _key(key or _own_key(archive)),
        )
        if signing is None:
            _refuse_unsealed(archive)
        become_owner(archive)  # its next run could not replace what root has written
        with progress("archiving"):
            report = Archiver(
                access_log, archive, signing, bounds, state=state, store=store
            ).run()
    except OSError as error:
        raise click.ClickException(failure(archive, error)) from None
    _show(report)


def _without_every(arguments: list[str]) -> list[str]:
    at = next(
        number
        for number, argument in enumerate(arguments)
        if argument.partition("=")[0] == "--every"
    )
    return arguments[:at] + arguments[at + (1 if "=" in arguments[at] else 2) :]


def _own_key(archive: Path) -> Path | None:
    return (
        options.DEFAULT_ARCHIVE_KEY
        if archive == options.DEFAULT_ARCHIVE
        and os.path.exists(options.DEFAULT_ARCHIVE_KEY)
        else None
    )


def _key(file: Path | None) -> ArchiveKey | None:
    from squidkeeper.record.chain.keys import read_archive_key

    return read_archive_key(file) if file else None


def _refuse_unsealed(archive: Path) -> None:
    """Refuse to add an entry without a signature to an archive that is sealed: it would
    not verify any more.
    """
    from squidkeeper.record.chain.chain import HEAD, read_chain

    if os.path.lexists(archive / HEAD) or any(
        entry.key for entry in read_chain(archive).entries
    ):
        text = f"{archive} is sealed: add --key FILE, the private key of its service ({options.DEFAULT_ARCHIVE_KEY})"
        raise click.ClickException(text)


def _store(copy_to: str | None) -> ObjectStore | None:
    """Find the store; an operator who wants none has no file of its settings."""
    from squidkeeper.record.chain.store_settings import is_store, read_store_settings
    from squidkeeper.record.chain.stores import ObjectStore

    if copy_to is None or (
        not copy_to.startswith("s3://") and not Path(copy_to).exists()
    ):
        return None
    if not is_store(copy_to):
        raise click.BadParameter(
            f"{copy_to!r} is neither s3://BUCKET/PREFIX nor a .yaml file",
            param_hint="--copy-to",
        )
    return ObjectStore(read_store_settings(copy_to))


def _show(report: RunReport) -> None:
    for log in report.archived:
        invalid = f", {log.invalid:,} of them invalid" if log.invalid else ""
        click.echo(f"archived {log.name}: {quantity(log.lines, 'line')}{invalid}")
        if log.damage:
            click.echo(f"{log.name}: {log.damage}: the rest is archived", err=True)
    _show_left(report)
    for day in report.removed:
        click.echo(f"removed {day}")
    for text in report.failures:
        click.echo(f"not archived: {text}", err=True)
    _show_copy(report)
    if report.head:  # in the journal, which whoever changes the archive cannot change
        click.echo(f"archive head {report.head}")
    if report.problems:
        raise SystemExit(1)


def _show_left(report: RunReport) -> None:
    from squidkeeper.record.archive.archiver import MOST_NAMED

    for refused in report.refused[:MOST_NAMED]:
        click.echo(f"left as it is: {refused}", err=True)
    if more := len(report.refused[MOST_NAMED:]):
        click.echo(f"left as they are: {quantity(more, 'other file')}", err=True)
    for name in report.waiting:
        click.echo(f"not yet: {name} was written to within the last minute")


def _show_copy(report: RunReport) -> None:
    if report.copied and report.copied.entries:
        click.echo(f"copied {quantity(report.copied.parts, 'part')}")
    if report.copy_failure:
        click.echo(f"not copied: {report.copy_failure}", err=True)


@archive.command("list")
@options.archive_option("The archive.")
@options.json_option
def list_days(archive: Path, as_json: bool) -> None:
    """List the days of an archive."""
    from squidkeeper.record.archive.retention import days_of
    from squidkeeper.record.chain.chain import read_chain

    options.check_archive(archive)
    try:
        days = days_of(read_chain(archive))
    except OSError as error:
        raise click.ClickException(failure(archive, error)) from None
    if as_json:
        show_json([archived.figures for archived in days])
        return
    click.echo(f"{'DAY':10}  {'LINES':>12}  {'INVALID':>8}  {'SIZE':>9}  PARTS")
    for day in days:
        click.echo(
            f"{day.day}  {day.lines:>12,}  {day.invalid:>8,}  {byte_size(day.bytes):>9}  {len(day.parts)}"
        )


@archive.command()
@click.argument("store")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@options.since_option
def fetch(store: str, folder: Path, since: datetime | None) -> None:
    """Fetch archives from an object store into a folder.

    STORE is s3://BUCKET/PREFIX, or the YAML file of a store. An archive below
    gateway=NAME gets a folder of this name. Parts that FOLDER has are not fetched
    again. Each part is compared with the SHA-256 of its entry.

    \b
    Examples:
      squidkeeper archive fetch s3://logs/squid ./copy
      squidkeeper archive verify ./copy --key ./keys

    \b
    Exit status:
      1  Something could not be fetched.
    """
    from squidkeeper.record.chain.store_settings import read_store_settings
    from squidkeeper.record.chain.stores import ObjectStore, fetch_archives
    from squidkeeper.record.log.record import format_time

    failed = False
    for fetched in fetch_archives(
        ObjectStore(read_store_settings(store)),
        folder,
        format_time(since) if since else "",
    ):
        name = f"{fetched.gateway}: " if fetched.gateway else ""
        click.echo(
            f"{name}fetched {quantity(fetched.parts, 'part')}, {byte_size(fetched.bytes)}"
        )
        for path in fetched.missing:
            click.echo(
                f"{name}{path}: the store lacks it, or has other content than its entry says",
                err=True,
            )
        if fetched.failure:
            click.echo(printable(f"{name}not fetched: {fetched.failure}"), err=True)
        failed |= bool(fetched.missing or fetched.failure)
    raise SystemExit(1 if failed else 0)


archive.add_command(verify)


def _repeat(arguments: Sequence[str], seconds: float) -> NoReturn:
    """Run `squidkeeper archive run` with these arguments every so many seconds, until
    SIGTERM.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    while True:
        # Squid and its helpers go first
        program = (
            "nice",
            "-n",
            "19",
            sys.executable,
            "-I",
            "-m",
            "squidkeeper",
        )
        command = (*program, "archive", "run", *arguments)
        with subprocess.Popen(command) as child:  # noqa: S603 - our own arguments
            try:
                child.wait()
            finally:
                child.terminate()
        time.sleep(seconds)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
