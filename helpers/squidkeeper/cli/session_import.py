"""`squidkeeper session import`: the calls that make sessions of clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Final

import click

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.formatting import printable, quantity
from squidkeeper.cli.helper_options import policy_option

if TYPE_CHECKING:
    from squidkeeper.policy.language.hosts import Network
    from squidkeeper.policy.language.model import Client, Policy

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_PREFIX_OF_VM: Final = 64  # of IPv6
_SHORTEST: Final = timedelta(minutes=1)  # that a session lives


@click.command(name="import")
@click.option("--role", required=True, metavar="ROLE", help="A role of the policy.")
@click.option(
    "--client",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this client. Repeatable. [default: all]",
)
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value of a variable of the role, for each of them. Repeatable.",
)
@policy_option
def import_clients(
    role: str, names: tuple[str, ...], variables: tuple[str, ...], directory: Path
) -> None:
    """Print the commands that make sessions of the policy's clients.

    A session has the name, the address and the token of its client, so nothing changes
    in the VM. Nothing is made: read the commands, remove these clients from the policy,
    put the role where rules name them, and run the commands.

    A client that a session cannot stand for is told on stderr, with the reason.

    \b
    Example:
      squidkeeper session import --role agent > sessions.sh

    \b
    Exit status:
      1  A session cannot stand for a client.
    """
    from squidkeeper.cli.role_options import assumed_session
    from squidkeeper.policy.policy_store.loading import load

    now = datetime.now(UTC)
    try:
        policy = load(directory, now).compiled.source
    except PolicyError as error:
        raise click.ClickException(
            f"{error}\n{directory} does not load: fix it first"
        ) from error
    assumed_session(policy, role, variables)  # which checks both
    known = {client.name: client for client in policy.clients}
    if missing := [name for name in names if name not in known]:
        raise click.BadParameter(
            f"{missing[0]} is no client of the policy", param_hint="--client"
        )
    refused = 0
    for client in (known[name] for name in names or known):
        if why := next(_obstacles(client, policy, now), None):
            refused += 1
            click.echo(printable(f"{client.name}: {why}"), err=True)
        else:
            ends = _ttl_of(client, policy, role, now)
            click.echo(join((*_command(client, role, variables), *ends)))
    if refused:
        told = f"{quantity(refused, 'client')} of {len(names or known)} not printed"
        click.echo(f"{told}: leave them in the policy.", err=True)
        raise SystemExit(1)


def _command(client: Client, role: str, variables: tuple[str, ...]) -> Iterator[str]:
    yield from ("squidkeeper", "session", "create", client.name, "--role", role)
    for network in client.networks or ():
        shown = network if network.num_addresses > 1 else network.network_address
        yield from ("--address", str(shown))
    for token in client.tokens or ():
        yield from ("--token-hash", token.sha256)
    for text in variables:
        yield from ("--variable", text)


def _ttl_of(client: Client, policy: Policy, role: str, now: datetime) -> Iterator[str]:
    """End a session with the token of its client."""
    longest = next(one.ttl for one in policy.roles if one.name == role)
    for token in client.tokens or ():
        left = (token.expires - now).total_seconds() if token.expires else longest
        if left < longest:
            yield from ("--ttl", f"{int(left // 60)}m")


def _obstacles(client: Client, policy: Policy, now: datetime) -> Iterator[str]:
    """Say why no session can stand for a client."""
    if not _NAME.fullmatch(client.name):
        yield "a session cannot have this name"
    if client.users is not None:
        yield "it has `users`, and a session logs in by its own name"
    if client.connections is not None:
        yield "it has `connections`, which no role has"
    if client.tokens is not None and len(client.tokens) != 1:
        yield f"it has {quantity(len(client.tokens), 'token')}, and a session has one"
    soon = now + _SHORTEST
    if any(token.lapsed(soon) for token in client.tokens or ()):
        yield "its token has expired, or does in a minute"
    yield from _obstacles_of_networks(client.networks or (), policy)


def _obstacles_of_networks(
    networks: tuple[Network, ...], policy: Policy
) -> Iterator[str]:
    if len(networks) > 1 or not all(map(_is_of_one_machine, networks)):
        shown = ", ".join(map(str, networks))
        yield f"it has {shown}, and a session has one address, or an IPv6 /64"
    for network in networks:
        if not any(_holds(own, network) for own in policy.session_networks):
            yield f"{network} is not within session_networks: add it there first"


def _is_of_one_machine(network: Network) -> bool:
    is_subnet = network.version == 6 and network.prefixlen == _PREFIX_OF_VM
    return network.num_addresses == 1 or is_subnet


def _holds(own: Network, network: Network) -> bool:
    return own.version == network.version and (
        network.network_address in own and network.broadcast_address in own
    )
