"""`squidkeeper maintain`."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.layout import Layout
from squidkeeper.cli.exporter import Address
from squidkeeper.cli.helper_options import path_option, written_state_option
from squidkeeper.cli.options import (
    DEFAULT_LAYOUT,
    archive_option,
    file_option,
    proxy_header_option,
)

if TYPE_CHECKING:
    from squidkeeper.services.maintenance.process import Task

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Size(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """A number of bytes, such as 512M or 8G."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse the value; fail with click's error."""
        if isinstance(value, int):
            return value
        digits, unit = (
            (value[:-1], _UNITS[value[-1]]) if value[-1:] in _UNITS else (value, 1)
        )
        if not (digits.isascii() and digits.isdigit() and int(digits)):
            self.fail(
                f"{value!r} is not a number of bytes, such as 512M or 8G", param, ctx
            )
        return int(digits) * unit


def _loopback(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> str | None:
    try:
        good = value is None or (
            ip_address(value).is_loopback and ip_address(value).version == 4
        )
    except ValueError:
        good = False
    if not good:
        raise click.BadParameter(
            f"{value!r} is not an address in 127.0.0.0/8", ctx, param
        )
    return value


def _server_names(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...]:
    from squidkeeper.services.maintenance.tls import parse_server_names

    try:
        return parse_server_names(value) if value else ()
    except InvalidUrl as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command()
@click.option(
    "--resolver",
    metavar="ADDRESS",
    callback=_loopback,
    help="Run the resolver on port 53 of this loopback address.",
)
@file_option(
    "--resolv-conf", Path("/etc/resolv.conf"), "The name servers to forward to."
)
@written_state_option
@file_option("--access-log", DEFAULT_LAYOUT.access_log, "Squid's access log.")
@file_option("--cache-log", DEFAULT_LAYOUT.cache_log, "Squid's cache.log.")
@file_option(
    "--squid-pid", DEFAULT_LAYOUT.pid_file, "The process ID of Squid's master."
)
@click.option(
    "--squid",
    "squid_address",
    metavar="ADDRESS:PORT",
    type=Address(),
    help="Squid's proxy port here, to note its counter for the archive.",
)
@proxy_header_option
@click.option(
    "--log-bytes",
    metavar="SIZE",
    type=Size(),
    help="Limit the access log, such as 20G. [default: 8G, at most half the file system]",
)
@archive_option("Keep rotated logs until this archive has them.", default=None)
@path_option("--policy", "directory", help="Have the edits of this policy rendered.")
@click.option(
    "--tls",
    metavar="[ADDRESS:]PORT",
    help="Keep the certificate of the HAProxy on this port.",
)
@click.option(
    "--tls-name",
    "tls_names",
    metavar="NAME[,NAME...]",
    callback=_server_names,
    help="The names in that certificate. [default: the machine's addresses and host name]",
)
@file_option(
    "--ca", DEFAULT_LAYOUT.signing_cert, "The CA that issues that certificate."
)
@file_option("--ca-key", DEFAULT_LAYOUT.signing_key, "The CA's key.")
@click.option(
    "--transparent",
    metavar="ADDRESS",
    multiple=True,
    help="Ask what serves clients without proxy settings on this address. Can be repeated.",
)
@file_option(
    "--webhook", DEFAULT_LAYOUT.webhook, "Where to tell people about questions."
)
def maintain(
    resolver: str | None,
    resolv_conf: Path,
    state: Path,
    access_log: Path,
    cache_log: Path,
    squid_pid: Path,
    squid_address: tuple[str, int] | None,
    proxy_header: bool,
    log_bytes: int | None,
    archive: Path | None,
    directory: Path | None,
    tls: str | None,
    tls_names: tuple[str, ...],
    ca: Path,
    ca_key: Path,
    transparent: tuple[str, ...],
    webhook: Path,
) -> None:
    """Run the tasks of maintenance, until SIGTERM.

    \b
    Tasks:
      run Squid's resolver (needs CAP_NET_BIND_SERVICE)
      follow the machine's own addresses
      limit the logs
      have edits of the policy rendered
      try the helpers, once a day (`squidkeeper doctor --deep`)
      renew HAProxy's certificate
      ask what serves clients without proxy settings
      tell people about waiting questions (webhook.yaml)

    Run it beside Squid, as Squid's account. A failed task is logged and tried again
    every second. The exporter reports failed tasks, and whether this process runs.
    """
    from squidkeeper.services.maintenance.edits import RenderRequest
    from squidkeeper.services.maintenance.examination import DailyExamination
    from squidkeeper.services.maintenance.own_addresses import OwnAddresses
    from squidkeeper.services.maintenance.process import run
    from squidkeeper.services.maintenance.resolver import Resolver
    from squidkeeper.services.maintenance.rotation import Rotation
    from squidkeeper.services.maintenance.squid_process import (
        GivenUpWorkers,
        SquidProcess,
    )
    from squidkeeper.services.maintenance.squid_watch import SquidCrashes, SquidSampler
    from squidkeeper.services.maintenance.tls import (
        CERTIFICATE,
        ServerCertificate,
        TlsPort,
        server_names,
    )
    from squidkeeper.services.webhook import Webhook

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    squid = SquidProcess(squid_pid)
    rotation = Rotation(
        access_log, cache_log, squid, log_bytes, archive=archive, state=state
    )
    tasks: list[Task] = [
        OwnAddresses(state, squid),
        GivenUpWorkers(squid),
        rotation,
        Webhook(webhook, state),
    ]
    if squid_address:
        tasks.append(
            SquidSampler(state, squid, squid_address, proxy_header=proxy_header)
        )
        tasks.append(SquidCrashes(state, cache_log, squid, squid_address[1]))
    if tls:
        names = (
            partial(tuple[str, ...], tls_names)
            if tls_names
            else partial(server_names, tls)
        )
        tasks.append(
            TlsPort(ServerCertificate(state / "tls" / CERTIFICATE, ca, ca_key, names))
        )
    with ExitStack() as at_the_end:
        if directory:
            layout = Layout.around(directory, state)
            tasks.append(
                RenderRequest(directory, layout.render_request, layout.rendered)
            )
            if layout == Layout.of(layout.root):  # `doctor` knows these paths
                daily = DailyExamination(examining(layout), layout.deep_result)
                at_the_end.callback(daily.stop)
                tasks.append(daily)
        if transparent:
            # others do without it
            from squidkeeper.services.maintenance.transparent import (
                TransparentPorts,
            )

            ports = TransparentPorts(transparent, state)
            at_the_end.callback(ports.stop)
            tasks.append(ports)
        if resolver:
            own = Resolver(resolver, resolv_conf, state / "resolver")
            at_the_end.callback(own.stop)
            tasks.append(own)
        run(tasks, state)


def examining(layout: Layout) -> list[str]:
    """Return the command that tries the helpers of a gateway."""
    root = ("--root", str(layout.root)) if layout.root else ()
    return [sys.executable, "-m", "squidkeeper", "doctor", "--deep", *root]
