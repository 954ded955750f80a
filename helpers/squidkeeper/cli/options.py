"""The options that several commands share (floor 6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_POLICY = Path("/etc/squidkeeper/policy")
DEFAULT_STATE = Path("/var/lib/squidkeeper")
# readable=False: a folder that cannot be read is a denial or a metric, in words of ours, and never the program's end.

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
        command = click.option(
            "--state",
            metavar="DIR",
            type=click.Path(path_type=Path, readable=False),
            default=DEFAULT_STATE,
            show_default=True,
            help="Where compiled host lists, counts and the revisions that were in force are kept.",
        )(command)
        return policy_option(command)

    return add
