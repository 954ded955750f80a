"""Options that several commands share (floor 9)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_POLICY = Path("/etc/squidkeeper/policy")
DEFAULT_STATE = Path("/var/lib/squidkeeper")
DEFAULT_POLICY_LINES = Path("/etc/squid/squidkeeper-policy.conf")
DEFAULT_RUN = Path("/run/squidkeeper")
DEFAULT_LOG = Path("/var/log/squid/access.log")
# readable=False: a folder that cannot be read becomes a denial or a metric, never the end of the program.


class Moment(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """A time of --since and --until."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse the value."""
        from squidkeeper.record.filters import parse_time_option

        try:
            return parse_time_option(str(value), datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


policy_option = click.option(
    "--policy",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    default=DEFAULT_POLICY,
    show_default=True,
    help="The policy: every *.yaml and *.yml in DIR.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
since_option = click.option(
    "--since", metavar="TIME", type=Moment(), help="15m, 2h or 3d ago, or an ISO time (UTC by default)."
)
until_option = click.option("--until", metavar="TIME", type=Moment(), help="The end of the period, exclusive.")


def state_option(text: str, default: Path | None = DEFAULT_STATE) -> Callable[[F], F]:
    """Add the option of the state folder; `text` describes what the command needs of it."""
    kind = click.Path(path_type=Path, readable=False)
    return click.option("--state", metavar="DIR", type=kind, default=default, show_default=True, help=text)


run_option = click.option(
    "--run",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    default=DEFAULT_RUN,
    show_default=True,
    help="The run folder, on a tmpfs: values that were fetched are in its folder 'secrets'.",
)


def file_option(option: str, default: Path, text: str) -> Callable[[F], F]:
    """Add the option of one file, which may not exist yet."""
    kind = click.Path(path_type=Path, readable=False)  # the metrics report an unreadable file
    return click.option(option, metavar="FILE", type=kind, default=default, show_default=True, help=text)


policy_lines_option = click.option(
    "--policy-lines",
    "rendered",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    default=DEFAULT_POLICY_LINES,
    show_default=True,
    help="The lines of Squid's configuration that install.sh has rendered from the policy.",
)


def helper_options(concurrency: int) -> Callable[[F], F]:
    """Add the options of a helper that Squid starts; `concurrency` is the value in squid/squidkeeper.conf."""

    def add(command: F) -> F:
        command = click.option(
            "--concurrency",
            metavar="N",
            type=click.IntRange(0, 300),
            default=concurrency,
            show_default=True,
            help="The same number as concurrency= in squid.conf; it bounds the replies. 0: lines have no channel-ID.",
        )(command)
        state = state_option("The state folder: compiled host lists, counters, and the revisions that were in force.")
        return policy_option(state(command))

    return add
