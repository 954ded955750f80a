"""`squidkeeper session`: the calls of `squidkeeper sessions`, over its socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import click

from squidkeeper.base.formatting import printable
from squidkeeper.base.gateway_commands import command
from squidkeeper.base.layout import Layout
from squidkeeper.cli.failures import Failed, UnusableInput
from squidkeeper.cli.helper_options import path_option
from squidkeeper.cli.options import combined, json_option, root_option
from squidkeeper.cli.output import show_json
from squidkeeper.cli.session_import import import_clients

_SESSIONS: Final = "/v1/sessions"
_SECONDS: Final = 60.0
_STDIN: Final = "-"


class _SocketConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class _Service:
    """The service that a command calls."""

    path: Path

    def call(
        self, method: str, where: str, body: object = None, **headers: str
    ) -> tuple[Any, str]:
        """Make a call; return the answer, and its ETag. `Failed` where it is refused,
        `UnusableInput` where nothing answers.
        """
        connection = _SocketConnection(self.path)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, where, data, sent)
            answer = connection.getresponse()
            read = answer.read()
        except (http.client.RemoteDisconnected, ConnectionError) as error:
            if isinstance(error, ConnectionRefusedError):
                raise self._is_away(error) from error
            raise UnusableInput(
                f"{self.path}: squidkeeper sessions has closed the connection:"
                f" it was restarted, or sessions.yaml does not name the user {os.geteuid()}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._is_away(error) from error
        finally:
            connection.close()
        made = json.loads(read) if read else None
        if answer.status >= 400:
            raise Failed(_refusal(made))
        return made, answer.headers.get("ETag", "")

    def _is_away(self, error: Exception) -> UnusableInput:
        return UnusableInput(
            f"{self.path}: squidkeeper sessions does not answer ({error}): start it"
        )


def _refusal(problem: Any) -> str:
    errors = problem.get("errors") or ()
    lines = [f"{error['pointer']}: {error['detail']}" for error in errors]
    told = lines or [problem["detail"]]
    return "\n".join([f"{problem['title']} [{problem['code']}]:", *told])


def _socket_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return combined(
        root_option,
        path_option(
            "--socket",
            metavar="FILE",
            help="The socket of another service. [default: that of this gateway]",
        ),
    )(command)


def _service(root: Path | None, path: Path | None) -> _Service:
    return _Service(path or Layout.of(root).sessions_socket)


def _of_session(name: str, after: str = "") -> str:
    return f"{_SESSIONS}/{quote(name, safe='')}{after}"


def _pairs(kind: str, given: Iterable[str]) -> list[tuple[str, str]]:
    """Split NAME=VALUE; `click.UsageError` where it is not that."""
    pairs = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--{kind}: expected NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _secret_values(given: Iterable[str]) -> dict[str, str]:
    """Read the values of secrets from files; never from the command line."""
    values = {}
    for name, file in _pairs("secret", given):
        try:
            text = sys.stdin.read() if file == _STDIN else Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(
                f"--secret {name}: {file} cannot be read ({type(error).__name__})"
            ) from error
        values[name] = text.removesuffix("\n").removesuffix("\r")
    return values


def _hash_of(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        text = sys.stdin.read() if str(file) == _STDIN else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInput(
            f"--token-file {file} cannot be read ({type(error).__name__})"
        ) from error
    return hashlib.sha256(text.strip().encode()).hexdigest()


@click.group()
def session() -> None:
    """Make, show and end sessions: clients that a program makes for a time.

    `squidkeeper sessions` serves these calls on a Unix socket. squid/SESSIONS.md has
    them.
    """


session.add_command(import_clients)


@session.command()
@click.argument("name")
@click.option("--role", required=True, metavar="ROLE", help="A role of the policy.")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Where it comes from: an address, or an IPv6 /64.",
)
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value of a variable of the role. Repeatable.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="What it is for. Repeatable.",
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=FILE",
    help="A file with the value of a secret; - for standard input. Repeatable.",
)
@click.option("--ttl", metavar="TIME", help="How long it lives: 30m or 8h.")
@path_option(
    "--token-file",
    metavar="FILE",
    help="A file with the token that it logs in with; - for standard input.",
)
@click.option(
    "--token-hash",
    "hashed",
    metavar="HASH",
    help="The SHA-256 of that token, in place of the token.",
)
@_socket_options
@json_option
def create(
    name: str,
    role: str,
    address: str | None,
    variables: tuple[str, ...],
    labels: tuple[str, ...],
    secrets: tuple[str, ...],
    ttl: str | None,
    token_file: Path | None,
    hashed: str | None,
    root: Path | None,
    socket: Path | None,
    as_json: bool,
) -> None:
    """Make a session. Without an address and a token, a token is made and printed.

    The session is in force when the command ends.

    \b
    Example:
      squidkeeper session create vm-7 --role agent --address 10.20.0.7
      squidkeeper session create ci-1 --role ci --variable repo=acme/app
    """
    if hashed and token_file:
        raise click.UsageError("give one of --token-file and --token-hash")
    values: dict[str, list[str]] = {}
    for variable, value in _pairs("variable", variables):
        values.setdefault(variable, []).append(value)
    asked = {
        "role": role,
        "address": address,
        "variables": values,
        "labels": dict(_pairs("label", labels)),
        "secrets": _secret_values(secrets),
        "ttl": ttl,
        "token_sha256": hashed or _hash_of(token_file),
    }
    given = {field: value for field, value in asked.items() if value is not None}
    made, _ = _service(root, socket).call("PUT", _of_session(name), given)
    if as_json:
        show_json(made)
        return
    click.echo(f"{_line(made)} It is in force.", err=True)
    env = f"{command('env', Layout.of(root))} --session {name}"
    where = "" if made.get("proxy") else " --proxy http://ADDRESS:PORT"
    login = " --token-file FILE" if made.get("has_token") else ""
    click.echo(f"Its variables: {env}{where}{login}", err=True)
    if "token" in made:
        click.echo("Its token is shown this once:", err=True)
        click.echo(made["token"])


@session.command(name="list")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only sessions with this label. Repeatable.",
)
@_socket_options
@json_option
def list_sessions(
    labels: tuple[str, ...], root: Path | None, socket: Path | None, as_json: bool
) -> None:
    """List the active sessions that the caller has made."""
    service, found = _service(root, socket), []
    query = [("label", label) for label in labels] + [("limit", "1000")]
    after: str | None = "0"
    while after is not None:
        asked = urlencode([*query, ("after", after)])
        page, _ = service.call("GET", f"{_SESSIONS}?{asked}")
        found += page["sessions"]
        after = page.get("next")
    if as_json:
        show_json({"sessions": found})
        return
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("No session is active.", err=True)


@session.command()
@click.argument("name")
@_socket_options
def show(name: str, root: Path | None, socket: Path | None) -> None:
    """Show a session as JSON, also one that has ended."""
    found, _ = _service(root, socket).call("GET", _of_session(name))
    show_json(found)


@session.command()
@click.argument("name")
@_socket_options
def effective(name: str, root: Path | None, socket: Path | None) -> None:
    """Show as JSON what a session may reach."""
    found, _ = _service(root, socket).call("GET", _of_session(name, "/effective"))
    show_json(found)


@session.command()
@click.argument("name")
@click.option(
    "--for", "ttl", required=True, metavar="TIME", help="How long from now: 30m or 8h."
)
@_socket_options
@json_option
def extend(
    name: str, ttl: str, root: Path | None, socket: Path | None, as_json: bool
) -> None:
    """Move the end of a session. Its role bounds its whole life."""
    service = _service(root, socket)
    _, seen = service.call("GET", _of_session(name))
    changed, _ = service.call("PATCH", _of_session(name), {"ttl": ttl}, If_Match=seen)
    if as_json:
        show_json(changed)
        return
    click.echo(_line(changed))


@session.command()
@click.argument("name", required=False)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="End all sessions with this label. Repeatable.",
)
@_socket_options
def end(
    name: str | None, labels: tuple[str, ...], root: Path | None, socket: Path | None
) -> None:
    """End a session, or all with a label, and cut what they have open.

    \b
    Exit status:
      1  Connections could not be cut. Requests in them are denied.
    """
    if bool(name) == bool(labels):
        raise click.UsageError("expected either NAME or --label")
    query = urlencode([("label", label) for label in labels])
    where = _of_session(name) if name else f"{_SESSIONS}?{query}"
    ended, _ = _service(root, socket).call("DELETE", where)
    if ended and "note" in ended:
        click.echo(f"ended; {ended['note']}")
    if ended and (ended.get("problem") or ended["left"]):
        why = ended.get("problem") or f"{ended['left']} connections could not be cut"
        raise Failed(f"ended, and requests are denied; {why}")


def _line(made: dict[str, Any]) -> str:
    where = f" at {made['address']}" if "address" in made else ""
    why = f" ({made['reason']})" if "reason" in made else ""
    return printable(
        f"{made['name']}: session {made['number']}, role {made['role']}{where},"
        f" {made['state']}{why}, until {made['expires']}."
    )
