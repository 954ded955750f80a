"""`squidkeeper exporter`."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import InvalidUrl, ListenFailed, PatternError, StateInUse
from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    run_option,
    shown_option,
    written_state_option,
)
from squidkeeper.cli.options import (
    DEFAULT_LAYOUT,
    archive_option,
    file_option,
    fragment_option,
    proxy_header_option,
)

if TYPE_CHECKING:
    from squidkeeper.policy.language.hosts import Network


class Address(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """ADDRESS:PORT, the address an IPv4 one or an IPv6 one in brackets."""

    name = "address:port"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Parse the value; fail with click's error."""
        from squidkeeper.policy.url import parse_authority

        if isinstance(value, tuple):
            return value
        try:
            host, port = parse_authority(value)
        except InvalidUrl as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if host.address is None or port is None:
            self.fail(
                f"{value!r} is not ADDRESS:PORT, such as 127.0.0.1:9129 or [::1]:9129",
                param,
                ctx,
            )
        return str(host.address), port


class NetworkType(click.ParamType):  # type: ignore[type-arg] # as above
    """An address, or a network such as 192.0.2.0/24."""

    name = "network"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Network:
        """Parse the value; fail with click's error."""
        from squidkeeper.policy.language.hosts import parse_network

        try:
            return parse_network(value)
        except PatternError as error:
            self.fail(str(error), param, ctx)


@click.command()
@shown_option(
    "--listen",
    metavar="ADDRESS:PORT",
    type=Address(),
    default="127.0.0.1:9129",
    help="Where to serve /metrics, /healthz and the status page. install.sh names another below a root.",
)
@policy_option
@file_option("--access-log", DEFAULT_LAYOUT.access_log, "Squid's access log.")
@written_state_option
@file_option(
    "--ca",
    DEFAULT_LAYOUT.signing_cert,
    "The certificate that Squid signs with, to report its expiry.",
)
@fragment_option
@path_option(
    "--tls-certificate",
    metavar="FILE",
    help="The TLS port's certificate, to report its expiry.",
)
@shown_option(
    "--squid",
    metavar="ADDRESS:PORT",
    type=Address(),
    default="127.0.0.1:3129",
    help="Squid's proxy port here, to read Squid's counters.",
)
@shown_option(
    "--workers",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="How many processes of Squid serve.",
)
@click.option(
    "--status-from",
    metavar="NETWORK",
    type=NetworkType(),
    multiple=True,
    default=["127.0.0.0/8", "::1/128"],
    help="Show the status page to this network. Repeatable. [default: this machine]",
)
@proxy_header_option
@click.option(
    "--health-listen",
    metavar="ADDRESS:PORT",
    type=Address(),
    help="Where to serve a second /healthz, for load balancers.",
)
@click.option(
    "--health-from",
    metavar="NETWORK",
    type=NetworkType(),
    multiple=True,
    help="Who may read the second /healthz. Repeatable.",
)
@run_option
@archive_option("The archive, to report what it lacks.", default=None)
@path_option("--pulled", help="The folder of `squidkeeper pull`, to report its state.")
def exporter(**given: Any) -> None:
    """Serve metrics, health and the status page, until SIGTERM.

    It also starts while the log, the policy, the CA or Squid are missing, and reports
    that.

    \b
    Exit status:
      1  It cannot listen, or another exporter uses the state folder.
    """
    from squidkeeper.services.exporter.process import ExporterOptions, run_exporter

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    try:
        run_exporter(ExporterOptions(**given))
    except (ListenFailed, StateInUse) as error:
        raise click.ClickException(f"{error}: stop it or choose another") from error
