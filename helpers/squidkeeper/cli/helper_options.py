"""Options of the helpers that Squid starts: a few modules, so that a helper starts
fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from squidkeeper.base.places import POLICY, RUN, STATE, default_root, placed

F = TypeVar("F", bound=Callable[..., Any])

_root = default_root()
DEFAULT_POLICY = placed(POLICY, _root)
DEFAULT_STATE = placed(STATE, _root)
DEFAULT_RUN = placed(RUN, _root)
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
    "--run", default=DEFAULT_RUN, help="The run folder, with fetched secrets."
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
