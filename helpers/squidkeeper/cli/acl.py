"""`squidkeeper acl`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.helper_options import helper_options, in_force_option, lane_option

if TYPE_CHECKING:
    from squidkeeper.serving.helpers.asking import Asking


@click.command()
@click.option(
    "--scope",
    type=click.Choice(["host", "request"]),
    required=True,
    help="What to decide: a host with all its URLs, or one URL.",
)
@lane_option
@in_force_option
@helper_options(concurrency=16)
def acl(
    scope: str,
    lane: str,
    in_force: frozenset[str],
    directory: Path,
    state: Path,
    concurrency: int,
) -> None:
    """Decide whether requests may pass.

    Squid starts this helper (external_acl_type). It answers each line with OK or ERR,
    the rule and the reason. By hand, use `squidkeeper explain`.
    """
    from functools import partial

    from squidkeeper.base.helper_metrics import HOST
    from squidkeeper.policy.grant_uses import GrantUses
    from squidkeeper.serving.helpers.acl import (
        HostScope,
        RequestScope,
        answer_host,
        answer_url,
    )
    from squidkeeper.serving.helpers.policy_helper import Lane, run
    from squidkeeper.serving.last_asked import LastAsked
    from squidkeeper.serving.parts import Part

    if scope == HOST:
        last = LastAsked(state)
        prepare = partial(HostScope, in_force=in_force, shares=Part.SHARED in in_force)
        run(
            scope,
            prepare,
            last.noting(answer_host),
            directory,
            state,
            concurrency,
            Lane(lane),
        )
        last.write()
    else:
        decider = partial(
            RequestScope,
            uses=GrantUses(state),
            open_asking=partial(_open_asking, directory, state),
            in_force=in_force,
        )
        run(scope, decider, answer_url, directory, state, concurrency, Lane(lane))


@cache
def _open_asking(directory: Path, state: Path) -> Asking:
    """Open the tickets of this process: a policy without questions needs none."""
    from squidkeeper.serving.helpers.asking import Asking
    from squidkeeper.serving.quotas.opening import open_meter

    return Asking(state, open_meter(directory, state))
