"""`squidkeeper transparent`."""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from squidkeeper.base.errors import ListenFailed
from squidkeeper.cli.exporter import Address
from squidkeeper.cli.helper_options import shown_option, written_state_option
from squidkeeper.cli.options import DEFAULT_LAYOUT


class BareAddress(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click alone
    """An IPv4 or IPv6 address."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Parse the value; fail with click's error."""
        from squidkeeper.base.errors import InvalidUrl
        from squidkeeper.policy.url import parse_address

        try:
            return str(parse_address(value))
        except InvalidUrl as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option(
    "--listen",
    metavar="ADDRESS",
    type=BareAddress(),
    multiple=True,
    required=True,
    help="The gateway's address for clients without proxy settings. Repeatable.",
)
@shown_option(
    "--tls-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    default=443,
    help="The port of https.",
)
@shown_option(
    "--http-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    default=80,
    help="The port of http.",
)
@shown_option(
    "--tls-to",
    metavar="ADDRESS:PORT",
    type=Address(),
    default=f"{DEFAULT_LAYOUT.resolver}:13443",
    help="Squid's port for CONNECT.",
)
@shown_option(
    "--http-to",
    metavar="ADDRESS:PORT",
    type=Address(),
    default=f"{DEFAULT_LAYOUT.resolver}:13080",
    help="Squid's port for http.",
)
@written_state_option
def transparent(
    listen: tuple[str, ...],
    tls_port: int,
    http_port: int,
    tls_to: tuple[str, int],
    http_to: tuple[str, int],
    state: Path,
) -> None:
    """Take clients without proxy settings, and pass them on to Squid, until SIGTERM.

    The resolver of such a client answers every name with this gateway's address. A TLS
    client is passed on by the name that it asks for. Squid decides, as for every other
    client.

    \b
    Exit status:
      1  It cannot listen.
    """
    from squidkeeper.services.transparent.connection import Port
    from squidkeeper.services.transparent.process import (
        TransparentOptions,
        run_transparent,
    )

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    ports = ((Port("https", tls_to), tls_port), (Port("http", http_to), http_port))
    places = tuple(
        (port, (address, number)) for address in listen for port, number in ports
    )
    try:
        run_transparent(TransparentOptions(places, state))
    except ListenFailed as error:
        raise click.ClickException(
            f"{error}: stop what listens there or choose another"
        ) from error
