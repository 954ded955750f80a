"""`squidkeeper setup` (floor 9): what install.sh ends in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from squidkeeper.setup.options import SetupOptions

_FOLDER = click.Path(path_type=Path)
_HEARTBEAT_SECONDS = 5.0  # within which a process that has just started gives one


def _server_names(value: str) -> tuple[str, ...]:
    """Parse names and addresses, separated by commas."""
    from squidkeeper.errors import InvalidUrl
    from squidkeeper.maintenance.tls import parse_server_names

    try:
        return parse_server_names(value) if value else ()
    except InvalidUrl as error:
        raise click.BadParameter(f"{error}: name hosts and addresses, such as gateway.example,192.168.137.1") from error


def _upstream(value: str) -> str:
    """Check the URL of a parent proxy, or `none`."""
    from squidkeeper.errors import PatternError
    from squidkeeper.policy.upstreams import parse_upstream_url
    from squidkeeper.setup.options import NO_UPSTREAM

    try:
        if value not in ("", NO_UPSTREAM):
            parse_upstream_url(value)
    except PatternError as error:
        raise click.BadParameter(f"{error} (or none: no parent)") from error
    return value


def _generator(value: str) -> str:
    """Check whose program makes certificates."""
    from squidkeeper.setup.options import GENERATORS

    if value not in ("", *GENERATORS):
        raise click.BadParameter(f"expected {' or '.join(GENERATORS)}")
    return value


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "certificates": _generator,
    "tls_name": _server_names,
    "upstream": _upstream,
}


@click.command()
@click.option("--source", type=_FOLDER, required=True, hidden=True)
@click.option("--venv", type=_FOLDER, required=True, hidden=True)
@click.option("--work", type=_FOLDER, required=True, hidden=True)
@click.option("--made", type=_FOLDER, multiple=True, hidden=True)
@click.option("--root", type=_FOLDER, help="A whole gateway in this folder, beside others.")
@click.option("--listen", default="", help="Where Squid listens.")
@click.option("--open", is_flag=True, help="Let Squid listen where the internet reaches it.")
@click.option("--policy", type=_FOLDER, help="The policy to put in place.")
@click.option("--ca-dir", type=_FOLDER, help="The folder of the CA; an empty one gets a new CA.")
@click.option("--ca", default="", help="direct or intermediate: what signs the leaves.")
@click.option("--intermediate-days", default="", help="How long an intermediate is valid.")
@click.option("--certificates", default="", help="Whose program makes leaves.")
@click.option("--exporter-listen", default="", help="Where metrics and status page are served.")
@click.option("--no-exporter", is_flag=True, help="No exporter.")
@click.option("--log-bytes", default="", help="The limit of the access log with its rotations.")
@click.option("--tls", is_flag=True, help="HAProxy in front of Squid, for TLS to the proxy.")
@click.option("--no-tls", is_flag=True, help="No HAProxy.")
@click.option("--tls-name", default="", help="Names and addresses in its certificate.")
@click.option("--upstream", default="", help="The parent proxy where the policy names none.")
@click.option("--no-start", is_flag=True, help="Neither start nor restart anything.")
@click.option("--dry-run", is_flag=True, help="Print the steps, and change nothing.")
@click.option("--uninstall", is_flag=True, help="Remove the gateway.")
def setup(**given: Any) -> None:
    """Install a gateway, or remove one.

    This is the last part of install.sh, which explains the options and checks their values.
    """
    from squidkeeper.setup.options import SetupOptions
    from squidkeeper.setup.run import remove_prepared, run_setup

    try:
        options = SetupOptions(**given | _parsed(given))
    except click.UsageError as error:
        remove_prepared(given["work"], given["made"])
        click.echo(f"install.sh: {error.message}\n            ./install.sh --help explains the options.", err=True)
        raise SystemExit(2) from error
    status = run_setup(options)
    if status == 0 and not options.dry_run and not options.uninstall:
        _examine(options)
    raise SystemExit(status)


def _examine(options: SetupOptions) -> None:
    """Print what `doctor` finds. That fails no installation: the gateway in place is at least as good as before."""
    from squidkeeper.credentials.fetch_status import read_fetch_status
    from squidkeeper.doctor.examination import as_text, examine
    from squidkeeper.doctor.inspection import inspect
    from squidkeeper.maintenance_status import read_maintenance_status
    from squidkeeper.setup.console import say, show
    from squidkeeper.setup.layout import Layout
    from squidkeeper.setup.sockets import wait_until

    layout = Layout.of(options.root)
    if not options.no_start:
        wait_until(_HEARTBEAT_SECONDS, lambda: read_maintenance_status(layout.state, time.time()).runs)
    if not options.no_start and layout.service("secrets").unit.exists():
        wait_until(_HEARTBEAT_SECONDS, lambda: read_fetch_status(layout.secrets, time.time()).has_tried)
    try:
        diagnosis = examine(inspect(layout), running=not options.no_start, in_setup=True)
    except Exception as error:  # noqa: BLE001 - the installation is good, whatever fails here
        say("doctor", f"the gateway cannot be examined ({type(error).__name__}: {error})")
        return
    text = as_text(diagnosis)
    if diagnosis.found:
        show(f"\nsquidkeeper doctor, which you can run at any time:\n{text}")
    else:
        say("doctor", text)


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse what install.sh passes on unchecked; `click.UsageError` names the option."""
    if given["dry_run"] and given["uninstall"]:
        raise click.UsageError("--dry-run is for an installation, not for --uninstall")
    if given["tls"] and given["no_tls"]:
        raise click.UsageError("--tls and --no-tls exclude each other")
    return {name: _parse(name, given[name]) for name in _PARSERS}


def _parse(name: str, value: str) -> Any:
    try:
        return _PARSERS[name](value)
    except click.BadParameter as error:
        raise click.UsageError(f"--{name.replace('_', '-')} {value}: {error.message}") from error
