"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from squidkeeper.base.layout import Layout
from squidkeeper.base.places import ROOT_VARIABLE, default_root
from squidkeeper.cli.helper_options import path_option, shown_option

if TYPE_CHECKING:
    from squidkeeper.record.chain.store_settings import StoreSettings
    from squidkeeper.record.table.sources import LiveGateways, TableSources

F = TypeVar("F", bound=Callable[..., Any])


DEFAULT_LAYOUT = Layout.of(default_root())
DEFAULT_LOG = DEFAULT_LAYOUT.access_log
DEFAULT_ARCHIVE_KEY = DEFAULT_LAYOUT.archive_key
DEFAULT_ARCHIVE = DEFAULT_LAYOUT.archive
ABSOLUTE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # how it begins
_LONGEST = timedelta(days=366)
_DURATION = re.compile(r"([1-9]\d{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
HOST_AND_PORT = re.compile(r"[^/]+:[0-9]+")


class Moment(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """A time of --since and --until."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse the value."""
        from squidkeeper.record.log.filters import parse_time_option

        try:
            return parse_time_option(str(value), datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg] # as above
    """How long something holds, in the units of three examples."""

    name = "duration"

    def __init__(self, *examples: str) -> None:
        self._examples = examples or ("30m", "2h", "7d")

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Parse the value."""
        found = _DURATION.fullmatch(str(value))
        if found is None or found[2] not in {one[-1] for one in self._examples}:
            *first, last = self._examples
            self.fail(
                f"{value!r} is not a duration, expected one such as {', '.join(first)} or {last}",
                param,
                ctx,
            )
        valid = timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
        if valid > _LONGEST:
            self.fail(
                f"{value!r} is too long, expected at most {_LONGEST.days}d", param, ctx
            )
        return valid


def packed(
    name: str, kind: type[object]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pass the options that are named as the fields of a dataclass as one argument."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type] # it is a dataclass

    def pack(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*given: Any, **options: Any) -> Any:
            return command(
                *given,
                **{name: kind(**{other: options.pop(other) for other in names})},
                **options,
            )

        return run

    return pack


def combined(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combine options to one decorator, in the order of the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)


def _check_period(
    ctx: click.Context, param: click.Parameter, value: datetime | None
) -> datetime | None:
    """Refuse a period that ends before it begins; the option that comes last knows
    both.
    """
    period = {**ctx.params, str(param.name): value}
    since, until = period.get("since"), period.get("until")
    if since and until and since >= until:
        raise click.UsageError(
            "the period ends before it begins: expected a time of --until after that of --since"
        )
    return value


def _period_option(option: str, text: str) -> Callable[[F], F]:
    return click.option(
        option, metavar="TIME", type=Moment(), callback=_check_period, help=text
    )


since_option = _period_option(
    "--since", "The start: 15m, 2h or 3d ago, or an ISO time (UTC)."
)
until_option = _period_option("--until", "The end, exclusive.")


root_option = path_option(
    "--root",
    envvar=ROOT_VARIABLE,
    default=DEFAULT_LAYOUT.root,
    help="A gateway that `install.sh --root DIR` installed.",
)


proxy_header_option = click.option(
    "--proxy-header",
    is_flag=True,
    help="Send the PROXY header that Squid's port requires.",
)


def file_option(option: str, default: Path, text: str) -> Callable[[F], F]:
    """Add the option of one file, which may not exist yet."""
    return path_option(option, metavar="FILE", default=default, help=text)


class ArchiveType(click.ParamType):  # type: ignore[type-arg] # as above
    """The folder of an archive, or an object store with a copy: its URL, or the YAML
    file of its settings.
    """

    name = "archive"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Parse the value."""
        from squidkeeper.base.errors import StoreFailed
        from squidkeeper.record.chain.store_settings import (
            is_store,
            read_store_settings,
        )

        if not isinstance(value, str):
            return value
        try:
            return read_store_settings(value) if is_store(value) else Path(value)
        except StoreFailed as error:
            self.fail(str(error), param, ctx)


class FleetType(click.ParamType):  # type: ignore[type-arg] # as above
    """The gateways of a fleet.yaml, to be asked."""

    name = "fleet"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Parse the value."""
        from squidkeeper.base.errors import FleetFailed
        from squidkeeper.operate.fleet.fleet_file import read_fleet
        from squidkeeper.record.table.sources import LiveGateways

        try:
            fleet = read_fleet(Path(value))
        except FleetFailed as error:
            self.fail(str(error), param, ctx)
        return LiveGateways(
            {gateway.name: gateway.address for gateway in fleet.gateways}
        )


def archive_option(
    text: str, default: Path | None = DEFAULT_ARCHIVE
) -> Callable[[F], F]:
    """Add the option of the archive's folder; `text` is its help."""
    kind = click.Path(path_type=Path, readable=False)
    return shown_option(
        "--archive", metavar="DIR", type=kind, default=default, help=text
    )


_archive = shown_option(
    "--archive",
    metavar="DIR|s3://…|FILE.yaml",
    type=ArchiveType(),
    default=DEFAULT_ARCHIVE,
    help="An archive to read, or the object store with its copy.",
)
_fleet = click.option(
    "--fleet",
    metavar="FILE.yaml",
    type=FleetType(),
    help="Ask the gateways of this fleet over ssh instead.",
)


def archive_read_option(command: F) -> F:
    """Add the options of what a command reads, which gets it as `archive`: an archive,
    a store, or a fleet.
    """

    @wraps(command)
    def run(*given: Any, fleet: LiveGateways | None, archive: Any, **more: Any) -> Any:
        if fleet is not None and archive != DEFAULT_ARCHIVE:
            raise click.UsageError(
                "--fleet reads the logs of its gateways: it excludes --archive"
            )
        return command(*given, archive=fleet or archive, **more)

    return _archive(_fleet(run))  # type: ignore[return-value] # the same command


gateway_option = click.option(
    "--gateway",
    metavar="NAME",
    multiple=True,
    help="Only requests of this gateway. Repeatable.",
)


threads_option = click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, 256),
    help="Cores to use. [default: all but one]",
)


def table_sources(
    files: tuple[Path, ...],
    archive: Path | StoreSettings | LiveGateways,
    *,
    with_rotated: bool = True,
    gateways: tuple[str, ...] = (),
) -> TableSources:
    """Return what a command reads: FILEs and an archive that is named, or else the log,
    its rotated files and archive.

    Of these, what the `gateways` served; without one, all.
    `click.BadParameter` where no archive is in the folder that is named.
    """
    from squidkeeper.record.table.sources import LiveGateways, TableSources

    if isinstance(archive, LiveGateways):
        if files:
            raise click.UsageError(
                "--fleet reads the logs of its gateways: it excludes FILEs"
            )
        return TableSources(archive=archive, gateways=gateways)
    named = None if archive == DEFAULT_ARCHIVE else archive
    if isinstance(named, Path):
        check_archive(named)
    if files:
        return TableSources(files, archive=named, gateways=gateways)
    is_elsewhere = named is not None and is_missing(DEFAULT_LOG)
    return TableSources(
        log=None if is_elsewhere else DEFAULT_LOG,
        with_rotated=with_rotated,
        archive=archive if with_rotated else None,
        gateways=gateways,
    )


def check_archive(folder: Path) -> None:
    """Refuse a folder that is no archive; what keeps this account out shows where it is
    read.
    """
    from squidkeeper.record.chain.chain import is_archive

    try:
        found = is_archive(folder)
    except PermissionError:
        return
    except OSError:
        found = False
    if not found:
        raise click.BadParameter(
            f"{folder}: there is no archive here", param_hint="--archive"
        )


def is_missing(file: Path) -> bool:
    """Whether there is no such file; one that is unreadable is there."""
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


fragment_option = file_option(
    "--fragment",
    DEFAULT_LAYOUT.fragment,
    "The installed squidkeeper.conf, which names the parts in force.",
)
