"""`squidkeeper maintain` (floor 6)."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.options import state_option

if TYPE_CHECKING:
    from squidkeeper.maintenance.process import Task


def _loopback(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check that it is a loopback address: the resolver is for this machine alone."""
    try:
        good = value is None or (ip_address(value).is_loopback and ip_address(value).version == 4)
    except ValueError:
        good = False
    if not good:
        raise click.BadParameter(f"{value!r} is not an address in 127.0.0.0/8", ctx, param)
    return value


@click.command()
@click.option(
    "--resolver",
    metavar="ADDRESS",
    callback=_loopback,
    help="Run a resolver for Squid on port 53 of this loopback address; without it there is none.",
)
@click.option(
    "--resolv-conf",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/resolv.conf"),
    show_default=True,
    help="The name servers that the resolver forwards to; it follows changes.",
)
@state_option("Where the resolver's configuration is kept.")
def maintain(resolver: str | None, resolv_conf: Path, state: Path) -> None:
    """Keep the gateway's surroundings in order, until it is told to end (SIGTERM).

    Run it beside Squid, as Squid's account. The resolver needs the capability CAP_NET_BIND_SERVICE.
    A task that fails is logged and tried again each second.
    """
    import logging
    import sys
    from contextlib import ExitStack

    from squidkeeper.maintenance.process import run
    from squidkeeper.maintenance.resolver import Resolver

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s")
    tasks: list[Task] = []
    with ExitStack() as at_the_end:
        if resolver:
            own = Resolver(resolver, resolv_conf, state / "resolver")
            at_the_end.callback(own.stop)
            tasks.append(own)
        run(tasks)
