"""`squidkeeper seal`."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from squidkeeper.base.errors import PatternError

_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = {  # of the fields of a token, for messages
    "hosts": "--host",
    "paths": "--path",
    "methods": "--method",
    "ports": "--port",
    "clients": "--client",
    "expires": "--expires",
    "header": "--header",
    "value": "--value",
    "username": "--basic",
    "secret": "the secret",
}


@click.command()
@click.option(
    "--new-key",
    metavar="FILE",
    type=_FILE,
    help="Make a private key in FILE, and print its public key.",
)
@click.option(
    "--public-key",
    metavar="FILE",
    type=_FILE,
    help="Print the public key of the private key in FILE.",
)
@click.option(
    "--to", metavar="KEY", help="Seal for the gateway with this public key (skp1.…)."
)
@click.option(
    "--secret-file",
    metavar="FILE",
    type=_FILE,
    help="A file with the secret. [default: standard input]",
)
@click.option(
    "--host",
    "hosts",
    metavar="PATTERN",
    multiple=True,
    help="A host of the requests. Required, repeatable.",
)
@click.option(
    "--path", "paths", metavar="PATTERN", multiple=True, help="A path of the requests."
)
@click.option(
    "--method",
    "methods",
    metavar="NAME",
    multiple=True,
    help="A method of the requests.",
)
@click.option(
    "--port",
    "ports",
    metavar="N",
    type=int,
    multiple=True,
    help="A port of the requests. [default: 443]",
)
@click.option(
    "--client",
    "clients",
    metavar="NAME",
    multiple=True,
    help="A client of the policy that may use it.",
)
@click.option(
    "--expires", metavar="TIME", help="When the token expires: a time with its zone."
)
@click.option(
    "--days",
    type=click.IntRange(1),
    metavar="N",
    help="The token expires after N days.",
)
@click.option(
    "--header", metavar="NAME", help="The header to inject. [default: Authorization]"
)
@click.option(
    "--value", metavar="TEXT", help="The header's value. [default: Bearer {secret}]"
)
@click.option(
    "--basic",
    "username",
    metavar="NAME",
    help="Inject a basic credential of NAME and the secret.",
)
def seal(
    new_key: Path | None,
    public_key: Path | None,
    to: str | None,
    secret_file: Path | None,
    days: int | None,
    **fields: str | tuple[str, ...] | None,
) -> None:
    """Seal a secret into a token that only the gateway can use.

    The token's holder cannot read the secret. The gateway injects it only into the
    requests that the token is for. A client sends the token in the header
    Authorization: as `Bearer sks1.…`, or as the password of a basic credential.

    \b
    Examples:
      squidkeeper seal --new-key sealing-key
      squidkeeper seal --to skp1.… --host api.github.com --days 30 < secret
    """
    chosen = [option for option in (new_key, public_key, to) if option is not None]
    if len(chosen) != 1:
        raise click.UsageError(
            "expected one of --new-key FILE, --public-key FILE and --to KEY"
        )
    if new_key is not None:
        click.echo(_make_key(new_key))
    elif public_key is not None:
        click.echo(_public_key(public_key))
    else:
        click.echo(_sealed(to or "", secret_file, days, fields))


def _make_key(file: Path) -> str:
    """Make a private key that Squid's account can read, and nobody else but root."""
    from squidkeeper.base.squid_account import squid_account
    from squidkeeper.serving.credentials.sealing import SealingPrivateKey

    key = SealingPrivateKey.new()
    # never over a key that is in use
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as opened:
        account = squid_account() if os.geteuid() == 0 else None
        if account is not None:
            os.fchown(descriptor, -1, account.group)
            os.fchmod(descriptor, 0o640)
        opened.write(key.reveal() + "\n")
    return str(key.public)


def _public_key(file: Path) -> str:
    from squidkeeper.serving.credentials.sealing import SealingPrivateKey

    try:
        return str(SealingPrivateKey.parse(file.read_text("utf-8", "replace")).public)
    except PatternError as error:
        raise PatternError(f"{file}: {error}") from None


def _sealed(
    to: str,
    file: Path | None,
    days: int | None,
    fields: dict[str, str | tuple[str, ...] | None],
) -> str:
    from squidkeeper.policy.language.sealed_tokens import format_content
    from squidkeeper.serving.credentials.sealing import SealingPublicKey, seal_bytes

    if not fields["hosts"]:
        raise click.UsageError(
            "--host is required: name the hosts that the token is for"
        )
    if days is not None and fields["expires"] is not None:
        raise click.UsageError("expected one of --expires and --days")
    if fields["username"] is not None and fields["value"] is not None:
        raise click.UsageError("expected one of --value and --basic")
    key = SealingPublicKey.parse(to)
    content: dict[str, object] = {**fields, "secret": _secret(file)}
    if days is not None:
        content["expires"] = (datetime.now(UTC) + timedelta(days=days)).isoformat(
            timespec="seconds"
        )
    if fields["username"] is not None:
        content["value"] = "{secret}"
    try:
        content_bytes = format_content(content)
    except PatternError as error:
        place, _, problem = str(error).partition(": ")
        option = _OPTIONS.get(place.partition(".")[0])
        raise PatternError(f"{option}: {problem}" if option else str(error)) from None
    return seal_bytes(content_bytes, key)


def _secret(file: Path | None) -> str:
    """Read the secret; one newline at its end is not part of it."""
    if file is not None:
        text = file.read_text("utf-8", "replace")
    elif sys.stdin.isatty():
        text = str(click.prompt("Secret", hide_input=True, err=True))
    else:
        text = sys.stdin.read()
    return text.removesuffix("\n").removesuffix("\r")
