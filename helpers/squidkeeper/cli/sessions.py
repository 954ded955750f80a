"""`squidkeeper sessions`."""

from __future__ import annotations

import logging
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.base.errors import ListenFailed
from squidkeeper.cli.exporter import Address
from squidkeeper.cli.helper_options import (
    path_option,
    policy_option,
    shown_option,
    state_option,
)
from squidkeeper.cli.options import DEFAULT_LAYOUT, file_option
from squidkeeper.record.archive import KEEP_DAYS

if TYPE_CHECKING:
    from squidkeeper.operate.client_kit.environment import Proxy
    from squidkeeper.services.sessions.keeper import ClientSide

_PORT: Final = 3129


@click.command()
@policy_option
@state_option()
@path_option(
    "--sessions",
    "folder",
    default=DEFAULT_LAYOUT.sessions,
    help="The folder of the sessions.",
)
@path_option(
    "--run",
    default=DEFAULT_LAYOUT.sessions_run,
    help="The folder of the socket, and of secrets: in memory.",
)
@file_option(
    "--config", DEFAULT_LAYOUT.sessions_settings, "Who may make which sessions."
)
@file_option("--audit-log", DEFAULT_LAYOUT.sessions_audit, "Who has changed what.")
@file_option("--access-log", DEFAULT_LAYOUT.access_log, "Squid's access log.")
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    type=Address(),
    multiple=True,
    help="Where clients connect to, to cut what a session has open. Repeatable.",
)
@click.option(
    "--proxy",
    metavar="URL",
    help="The proxy's URL for clients. [default: this machine's address on their side]",
)
@shown_option(
    "--keep-days",
    metavar="N",
    type=click.IntRange(1, 36_500),
    default=KEEP_DAYS,
    help="Forget sessions that ended earlier, as the archive forgets their requests.",
)
def sessions(
    directory: Path,
    state: Path,
    folder: Path,
    run: Path,
    config: Path,
    audit_log: Path,
    access_log: Path,
    listen: tuple[tuple[str, int], ...],
    proxy: str | None,
    keep_days: int,
) -> None:
    """Serve the calls that make sessions, on a Unix socket, until SIGTERM.

    sessions.yaml says which programs may make which sessions. squid/SESSIONS.md has the
    calls.

    \b
    Exit status:
      1  It cannot listen, or the store cannot be used.
    """
    from squidkeeper.operate.client_kit.environment import parse_proxy
    from squidkeeper.services.sessions.connections import Listener
    from squidkeeper.services.sessions.process import SessionsOptions, run_sessions

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="squidkeeper: %(message)s"
    )
    given = parse_proxy(proxy) if proxy else None
    port = listen[0][1] if listen else _PORT
    options = SessionsOptions(
        directory=directory,
        state=state,
        folder=folder,
        run=run,
        settings=config,
        audit_log=audit_log,
        access_log=access_log,
        listeners=tuple(Listener(*place) for place in listen),
        keep_days=keep_days,
    )
    try:
        run_sessions(options, partial(_client_side, given, port))
    except ListenFailed as error:
        raise click.ClickException(f"{error}: stop what listens there") from error


def _client_side(
    given: Proxy | None,
    port: int,
    address: str | None,
    user: str | None,
    token: str | None,
) -> ClientSide:
    from squidkeeper.operate.client_kit.environment import (
        ClientSettings,
        parse_proxy,
        variables,
    )
    from squidkeeper.services.sessions.keeper import ClientSide

    own = None if given else _own_address(address)
    if own is not None:
        host = f"[{own}]" if ":" in own else own
        given = parse_proxy(f"http://{host}:{port}")
    if given is None:
        return ClientSide()
    settings = ClientSettings(proxy=given, user=user, token=token)
    return ClientSide(given.url(), variables(settings))


def _own_address(network: str | None) -> str | None:
    """Return the address of this machine from which it reaches a session.

    Without a network of the session, the machine's only address; None where it has
    several, or does not reach the session.
    """
    from squidkeeper.services.maintenance.own_addresses import interface_addresses

    if network is None:
        own = [
            str(address)
            for address in interface_addresses()
            if not address.is_loopback and not address.is_link_local
        ]
        return own[0] if len(own) == 1 else None
    address = network.partition("/")[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((address, 9))  # no packet is sent
        except OSError:
            return None
        return str(asking.getsockname()[0])
