"""`squidkeeper render`."""

import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.formatting import printable
from squidkeeper.base.layout import Layout
from squidkeeper.cli.helper_options import path_option
from squidkeeper.cli.options import root_option

if TYPE_CHECKING:
    from squidkeeper.base.squid_account import Account

_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 10.0  # after a failure that left its request in place


@click.command()
@root_option
@click.option(
    "--follow", is_flag=True, help="Stay, and repeat when the maintenance process asks."
)
@click.option(
    "--ladder",
    is_flag=True,
    help="Change nothing: print the lists that Squid decides by, each line with its number, reason and place.",
)
@click.option(
    "--diff",
    is_flag=True,
    help="Change nothing: print what the policy would change in what Squid reads.",
)
@path_option("--policy", help="The policy of --diff, such as a draft.")
def render(
    root: Path | None,
    policy: Path | None,
    *,
    follow: bool,
    ladder: bool,
    diff: bool,
) -> None:
    """Add the parts of Squid's configuration that the policy needs.

    systemd starts this as root after an edit (squidkeeper-render.path). Squid's account
    reads the policy; the command checks the values, and the configuration with `squid
    -k parse`. For new parts, it reconfigures Squid, at most once in 10 seconds. Only
    ./install.sh removes parts.

    \b
    Exit status:
      1  The configuration could not be changed.
    """
    layout = Layout.of(root)
    if follow + ladder + diff > 1:
        raise click.UsageError("give one of --follow, --ladder and --diff")
    if policy and not diff:
        raise click.UsageError("--policy is for --diff")
    if ladder:
        _print_ladders(layout)
    elif diff:
        _print_difference(layout, policy or layout.policy)
    elif follow:
        _follow(layout)
    else:
        raise SystemExit(_add(layout))


def _print_ladders(layout: Layout) -> None:
    from squidkeeper.operate.setup.preview import ladders

    _print(ladders(layout))


def _print_difference(layout: Layout, policy: Path) -> None:
    from squidkeeper.operate.setup.preview import difference

    try:
        lines = [*difference(layout, account_of_squid(), policy)]
    except (SetupFailed, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    _print(lines or ["Squid's configuration has what the policy needs."])


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(line))


def _follow(layout: Layout) -> NoReturn:
    """Run the command for each request, in a process of its own: this one stays small.

    It runs at the start too, and again where it was killed: that may have taken a
    request.
    """
    import subprocess

    where = ["--root", str(layout.root)] if layout.root else []
    wanted = True
    while True:
        request = _request(layout)
        status = 0
        if wanted or request:
            status = subprocess.call(  # noqa: S603
                [sys.executable, "-m", "squidkeeper", "render", *where]
            )
        wanted = status < 0
        time.sleep(
            _PAUSE_SECONDS
            if status and request and _request(layout) == request
            else _POLL_SECONDS
        )


def _request(layout: Layout) -> int:
    """Return the time of the request in nanoseconds; 0: there is none."""
    try:
        return layout.render_request.lstat().st_mtime_ns
    except OSError:
        return 0


def account_of_squid() -> "Account":
    """Return Squid's account; `SetupFailed` where it is unknown."""
    from squidkeeper.base.squid_account import squid_account

    account = squid_account()
    if account is None:
        raise SetupFailed(
            "Squid's account is unknown", "install the distribution's own Squid"
        )
    return account


def _add(layout: Layout) -> int:
    import fcntl

    from squidkeeper.operate.setup.part_additions import add_parts

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    try:
        account = account_of_squid()
        # which install.sh holds while it runs
        fcntl.flock(os.open(layout.prefix, os.O_RDONLY), fcntl.LOCK_EX)
        add_parts(layout, account)
    except (SetupFailed, OSError, ValueError) as error:
        details = (
            f"\n{error.details}"
            if isinstance(error, SetupFailed) and error.details
            else ""
        )
        logging.getLogger(__name__).error(
            "Squid's configuration stays as it was: %s%s", error, details
        )
        return 1
    return 0
