"""`squidkeeper client`: the tokens with which clients log in."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.formatting import ago
from squidkeeper.base.gateway_commands import command
from squidkeeper.base.layout import Layout
from squidkeeper.cli.helper_options import policy_option
from squidkeeper.cli.options import Duration, json_option
from squidkeeper.cli.output import show_json

if TYPE_CHECKING:
    from squidkeeper.policy.language.model import Client, Token

_TOKEN_BYTES = 32  # twice the 128 random bits for which a plain SHA-256 is enough
_PREFIX = "sqk_"  # so that scanners for secrets can tell what it is


@click.group()
def client() -> None:
    """Make, list and revoke the tokens that clients log in with."""


@client.command()
@click.argument("name")
@click.option(
    "--for",
    "valid",
    metavar="TIME",
    type=Duration(),
    help="How long the token is valid: 30m, 2h or 7d.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="A network that a new client must also come from.",
)
@policy_option
def add(
    name: str, valid: timedelta | None, networks: tuple[str, ...], directory: Path
) -> None:
    """Make a token for a client, and print it once.

    A client that is not in the policy is added. The policy stores only the token's
    hash.

    \b
    Example:
      sudo squidkeeper client add agents --for 30d
    """
    from squidkeeper.policy.language.model import Token
    from squidkeeper.policy.policy_edit import add_token

    now = datetime.now(UTC).replace(microsecond=0)
    text = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    token = Token.of(text, None if valid is None else now + valid)
    file = add_token(directory, name, token, networks, now)
    click.echo(
        f"Client {name}: token {token.id}{_until(token, now)}, in {file}. It is shown this once:",
        err=True,
    )
    click.echo(text)
    made = _client(directory, name, now)
    if made.networks and not networks and made.tokens == (token,):
        warning = f"From now on, {name} must log in too: its networks alone open nothing. To undo it, remove"
        click.echo(f"{warning} `token_sha256` of {name} in {file}.", err=True)
    folder = directory.absolute()
    env = command("env", Layout.around(folder, folder.parent.parent / "state"))
    click.echo(f"Its variables: {env} --client {name} --token-file FILE", err=True)


@client.command("list")
@policy_option
@json_option
def show(directory: Path, as_json: bool) -> None:
    """List the clients with tokens, and when the tokens expire."""
    from squidkeeper.policy.policy_store.loading import load

    now = datetime.now(UTC)
    try:
        clients = [
            client
            for client in load(directory, now).compiled.source.clients
            if client.tokens is not None
        ]
    except PolicyError as error:
        raise click.ClickException(
            f"{error}\n{directory} does not load: fix it first"
        ) from error
    if as_json:
        show_json({"clients": [_described(client, now) for client in clients]})
        return
    for known in clients:
        networks = ", ".join(map(str, known.networks or ())) or "any network"
        click.echo(
            f"{known.name} ({networks})"
            + ("" if known.tokens else ": no token, so nobody can log in")
        )
        for token in known.tokens or ():
            click.echo(f"  {token.id}{_until(token, now)}")


@client.command()
@click.argument("name")
@click.option(
    "--token", "token_id", metavar="ID", help="Revoke only the token with this ID."
)
@policy_option
def remove(name: str, token_id: str | None, directory: Path) -> None:
    """Revoke the tokens of a client.

    They are refused within 3 seconds, in open tunnels too. The client stays in the
    policy, because rules can name it.
    """
    from squidkeeper.policy.policy_edit import remove_tokens

    now = datetime.now(UTC)
    removed = remove_tokens(directory, name, token_id, now)
    click.echo(f"Client {name}: revoked {', '.join(removed)}")
    if not _client(directory, name, now).tokens:
        back = f"Make one, or remove `token_sha256` of {name} from the policy: then its networks alone open what it may"
        click.echo(f"Without a token, nobody can log in as {name}. {back}.", err=True)


def _client(directory: Path, name: str, now: datetime) -> Client:
    from squidkeeper.policy.policy_store.loading import load

    return next(
        client
        for client in load(directory, now).compiled.source.clients
        if client.name == name
    )


def _until(token: Token, now: datetime) -> str:
    if token.expires is None:
        return ""
    return (
        f", {'expired' if token.lapsed(now) else 'expires'} {ago(token.expires, now)}"
    )


def _described(client: Client, now: datetime) -> dict[str, Any]:
    tokens = [
        {
            "id": token.id,
            "expires": token.expires.isoformat() if token.expires else None,
            "expired": token.lapsed(now),
        }
        for token in client.tokens or ()
    ]
    return {
        "name": client.name,
        "networks": [str(network) for network in client.networks or ()],
        "tokens": tokens,
    }
