"""Options that several commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from squidkeeper.base.layout import Layout

if TYPE_CHECKING:
    from squidkeeper.record.chain.store_settings import StoreSettings
    from squidkeeper.record.table.sources import LiveGateways, TableSources

F = TypeVar("F", bound=Callable[..., Any])


def own_root() -> Path | None:
    """Return the root of the gateway whose program this is; None for the system's, and
    for no gateway's.
    """
    for program in (
        Path(os.path.abspath(sys.argv[0])),
        Path(sys.prefix).parent / "bin/squidkeeper",
    ):
        if os.path.islink(program) and os.readlink(program).startswith(
            "../venv-"
        ):  # as install.sh links it
            root = program.parents[1]
            return None if root == Layout.of(None).prefix else root
    return None


# the root of the gateway that commands are about, as in a container
ROOT_VARIABLE = "SQUIDKEEPER_ROOT"
_root = os.environ.get(ROOT_VARIABLE)
DEFAULT_LAYOUT = Layout.of(Path(_root) if _root else own_root())
DEFAULT_POLICY = DEFAULT_LAYOUT.policy
DEFAULT_STATE = DEFAULT_LAYOUT.state
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


# its default stands in the help
shown_option = partial(click.option, show_default=True)
# readable=False: a folder that cannot be read becomes a denial or a metric, never the
# end of the program.
path_option = partial(
    shown_option, metavar="DIR", type=click.Path(path_type=Path, readable=False)
)
policy_option = path_option(
    "--policy", "directory", default=DEFAULT_POLICY, help="The policy's folder."
)
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


since_option = click.option(
    "--since",
    metavar="TIME",
    type=Moment(),
    callback=_check_period,
    help="The start: 15m, 2h or 3d ago, or an ISO time (UTC).",
)
until_option = click.option(
    "--until",
    metavar="TIME",
    type=Moment(),
    callback=_check_period,
    help="The end, exclusive.",
)


root_option = path_option(
    "--root",
    envvar=ROOT_VARIABLE,
    default=DEFAULT_LAYOUT.root,
    help="A gateway that `install.sh --root DIR` installed.",
)


def state_option(
    text: str = "The state folder.", default: Path | None = DEFAULT_STATE
) -> Callable[[F], F]:
    """Add the option of the state folder; `text` is its help."""
    return path_option("--state", default=default, help=text)


def _not_as_root(
    _context: click.Context, _option: click.Parameter, state: Path
) -> Path:
    if os.geteuid() == 0:
        # a helper starts faster without it
        from squidkeeper.base.squid_account import (
            refused_to_root,
        )

        if refused := refused_to_root(state):
            raise click.BadParameter(refused)
    return state


# Of a process that writes there: root is refused where the folder is another account's.
written_state_option = path_option(
    "--state", default=DEFAULT_STATE, help="The state folder.", callback=_not_as_root
)
run_option = path_option(
    "--run", default=DEFAULT_LAYOUT.run, help="The run folder, with fetched secrets."
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
        from squidkeeper.base.errors import FleetFailed, StoreFailed
        from squidkeeper.record.chain.store_settings import (
            is_store,
            read_store_settings,
        )

        try:
            if not isinstance(value, str) or not is_store(value):
                return value if not isinstance(value, str) else Path(value)
            return _fleet(Path(value)) or read_store_settings(value)
        except (StoreFailed, FleetFailed) as error:
            self.fail(str(error), param, ctx)


def _fleet(file: Path) -> LiveGateways | None:
    from squidkeeper.operate.fleet.fleet_file import read_fleet
    from squidkeeper.record.table.sources import LiveGateways

    if not file.is_file() or not re.search(
        "^gateways:", file.read_text(errors="replace"), re.MULTILINE
    ):
        return None
    return LiveGateways(
        {gateway.name: gateway.address for gateway in read_fleet(file).gateways}
    )


def archive_option(
    text: str, default: Path | None = DEFAULT_ARCHIVE, *, store: bool = False
) -> Callable[[F], F]:
    """Add the option of the archive's folder, with `store` also of a store or a fleet;
    `text` is its help.
    """
    kind = ArchiveType() if store else click.Path(path_type=Path, readable=False)
    metavar = "DIR|s3://…|FILE.yaml" if store else "DIR"
    names = ("--archive", "--fleet", "archive") if store else ("--archive",)
    return shown_option(*names, metavar=metavar, type=kind, default=default, help=text)


archive_read_option = archive_option(
    "An archive to read, or a fleet to ask over ssh.", store=True
)


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

    named = archive if archive != DEFAULT_ARCHIVE else None
    if isinstance(named, LiveGateways):
        if files:
            raise click.UsageError(
                "--fleet reads the logs of its gateways: it excludes FILEs"
            )
        return TableSources(archive=named, gateways=gateways)
    if isinstance(named, Path):
        check_archive(named)
    if files:
        return TableSources(files, archive=named, gateways=gateways)
    # an archive elsewhere
    log = None if named and is_missing(DEFAULT_LOG) else DEFAULT_LOG
    read = archive if with_rotated else None
    return TableSources(
        log=log, with_rotated=with_rotated, archive=read, gateways=gateways
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


def _keys(
    _: click.Context, __: click.Parameter, value: tuple[str, ...]
) -> frozenset[str]:
    from squidkeeper.serving.parts import parse_in_force

    return parse_in_force(value)


in_force_option = click.option(
    "--in-force",
    metavar="KEYS",
    multiple=True,
    callback=_keys,
    help="The parts of Squid's configuration, and lines in them.",
)


def helper_options(concurrency: int) -> Callable[[F], F]:
    """Add the options of a helper that Squid starts; `concurrency` is the value in
    squid/squidkeeper.conf.
    """

    def add(command: F) -> F:
        command = shown_option(
            "--concurrency",
            metavar="N",
            type=click.IntRange(0, 300),
            default=concurrency,
            help="concurrency= of squid.conf. 0: lines have no channel-ID.",
        )(command)
        return policy_option(written_state_option(command))

    return add


lane_option = shown_option(
    "--lane",
    type=click.Choice(["only", "first", "late"]),
    default="only",
    help="first: leave clients over their share to the late lane.",
)
