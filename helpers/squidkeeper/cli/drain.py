"""`squidkeeper drain`."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.failures import UnusableInput
from squidkeeper.cli.helper_options import shown_option
from squidkeeper.cli.options import Duration, root_option

if TYPE_CHECKING:
    from squidkeeper.base.layout import Layout


@click.command()
@shown_option(
    "--for",
    "patience",
    metavar="DURATION",
    type=Duration("30s", "10m", "2h"),
    default="10m",
    help="The longest wait until the gateway is idle.",
)
@click.option(
    "--stop", is_flag=True, help="Then stop Squid, even with open connections."
)
@click.option("--cancel", is_flag=True, help="Accept new clients again.")
@root_option
def drain(patience: timedelta, stop: bool, cancel: bool, root: Path | None) -> None:
    """Send new clients to other gateways, and wait until this one is idle.

    /healthz becomes unhealthy at once, so a load balancer sends no new clients. Open
    connections and tunnels continue. The gateway stays drained until --cancel or a
    boot, even if Squid restarts.

    \b
    Examples:
      sudo squidkeeper drain --for 30m --stop
      sudo squidkeeper drain --cancel

    \b
    Exit status:
      0  The gateway is idle, or Squid was stopped.
      1  Connections are still open at the end of --for.
      2  There is no gateway, or it cannot be drained.
    """
    from squidkeeper.base.layout import Layout

    if cancel and stop:
        raise click.UsageError("--cancel and --stop exclude each other")
    layout = Layout.of(root.resolve() if root else None)
    try:
        layout.check_installed()
        if cancel:
            _cancel(layout)
        else:
            raise SystemExit(_drain(layout, int(patience.total_seconds()), stop=stop))
    except OSError as error:
        remedy = (
            "run this as root"
            if isinstance(error, PermissionError)
            else "name the gateway by --root DIR"
        )
        raise UnusableInput(
            f"{error.filename or layout.run}: {error.strerror}: {remedy}"
        ) from error


def _cancel(layout: Layout) -> None:
    from squidkeeper.base.layout import uses_systemd
    from squidkeeper.operate.setup.processes import InstalledSquid
    from squidkeeper.serving.drained import undrain

    squid = InstalledSquid(layout, uses_systemd(layout.root))
    was_drained = undrain(layout.run)
    if squid.runs():
        click.echo(
            "clients can come again" if was_drained else "the gateway was not drained"
        )
    else:
        before = (
            "the gateway is no longer drained"
            if was_drained
            else "the gateway was not drained"
        )
        click.echo(
            f"{before}, but Squid is stopped and serves nobody: start it by `{squid.start_command}`"
        )


def _drain(layout: Layout, patience: int, *, stop: bool) -> int:
    from squidkeeper.base.formatting import duration, quantity
    from squidkeeper.base.layout import uses_systemd
    from squidkeeper.operate.setup.configuration import listen_of
    from squidkeeper.operate.setup.processes import InstalledSquid
    from squidkeeper.operate.setup.sockets import wait_until_idle
    from squidkeeper.serving.drained import drain, drained_since

    listen = listen_of(layout.conf.read_text())
    if not listen:
        raise UnusableInput(
            f"{layout.conf} has no http_port: name the gateway by --root DIR"
        )
    already = "" if drain(layout.run) else " already"
    click.echo(f"drained{already}: /healthz is unhealthy, and open connections go on")
    noticed = time.time() - (drained_since(layout.run) or time.time())

    def tell(open_now: int) -> None:
        click.echo(f"{quantity(open_now, 'connection')} open")

    left = wait_until_idle(listen, patience, tell, noticed_seconds=noticed)
    over = f"{duration(patience)} are over: {quantity(left, 'connection')} open"
    click.echo(over if left else "idle: no connection is open")
    if not stop:
        return 1 if left else 0
    InstalledSquid(layout, uses_systemd(layout.root)).stop(is_idle=not left)
    click.echo("Squid is stopped")
    return 0
