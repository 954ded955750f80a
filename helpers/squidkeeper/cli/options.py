"""The options and words that several commands share (floor 6)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_POLICY = Path("/etc/squidkeeper/policy")
DEFAULT_STATE = Path("/var/lib/squidkeeper")
DEFAULT_LOG = Path("/var/log/squid/access.log")
# readable=False: a folder that cannot be read is a denial or a metric, in words of ours, and never the program's end.


class Moment(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """A time of --since and --until."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse what was given."""
        from squidkeeper.record.filters import parse_moment

        try:
            return parse_moment(str(value), datetime.now(UTC))
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
    "--since", metavar="TIME", type=Moment(), help="15m, 2h or 3d ago, or an ISO time (UTC unless it says)."
)
until_option = click.option("--until", metavar="TIME", type=Moment(), help="Up to, and without, that time.")


def state_option(text: str, default: Path | None = DEFAULT_STATE) -> Callable[[F], F]:
    """Add the option of the state folder; the text says what of it a command needs."""
    kind = click.Path(path_type=Path, readable=False)
    return click.option("--state", metavar="DIR", type=kind, default=default, show_default=True, help=text)


def file_option(option: str, default: Path, text: str) -> Callable[[F], F]:
    """Add the option of one file, which need not be there yet."""
    kind = click.Path(path_type=Path, readable=False)  # what cannot be read is told by the metrics
    return click.option(option, metavar="FILE", type=kind, default=default, show_default=True, help=text)


def helper_options(concurrency: int) -> Callable[[F], F]:
    """Add the options of a helper that Squid starts; `concurrency` is what squid/squidkeeper.conf says."""

    def add(command: F) -> F:
        command = click.option(
            "--concurrency",
            metavar="N",
            type=click.IntRange(0, 300),
            default=concurrency,
            show_default=True,
            help="The same number as concurrency= in squid.conf; it bounds the replies. 0: lines have no channel-ID.",
        )(command)
        state = state_option("Where compiled host lists, counts and the revisions that were in force are kept.")
        return policy_option(state(command))

    return add
