"""`squidkeeper setup`: what install.sh ends in."""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from squidkeeper.base.errors import FleetFailed, InvalidUrl, PatternError, SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.options import (
    BUMPS,
    GENERATORS,
    MOST_WORKERS,
    NO_UPSTREAM,
    NOT_BEHIND,
    NOT_SHOWN,
    NOT_TRANSPARENT,
    SetupOptions,
)

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False, resolve_path=True)
_MOST_DAYS = 36_500
_COMMAND_LINE: Final = ParameterSource.COMMANDLINE
_OF_FLEET: Final = {"fleet", "haproxy_cfg", "haproxy_state", "haproxy_pid", "dry_run"}
_HEARTBEAT_SECONDS = (
    5.0  # within which a process that has just started gives one, or a task finds it
)


def _server_names(value: str) -> tuple[str, ...]:
    from squidkeeper.services.maintenance.tls import parse_server_names

    try:
        return parse_server_names(value) if value else ()
    except InvalidUrl as error:
        raise click.BadParameter(
            f"{error}: name hosts and addresses, such as gateway.example,192.168.137.1"
        ) from error


def _upstream(value: str) -> str:
    from squidkeeper.policy.language.upstreams import parse_upstream_url

    try:
        if value not in ("", NO_UPSTREAM):
            parse_upstream_url(value)
    except PatternError as error:
        raise click.BadParameter(f"{error} (or none: no parent)") from error
    return value


def _one_of(choices: Collection[str], value: str) -> str:
    if value not in ("", *choices):
        raise click.BadParameter(f"expected {' or '.join(choices)}")
    return value


def _gateway_name(value: str) -> str:
    from squidkeeper.operate.setup.configuration import is_gateway_name
    from squidkeeper.record.log.record import GATEWAY_LENGTH

    if value and not is_gateway_name(value):
        raise click.BadParameter(
            f"expected at most {GATEWAY_LENGTH} letters, digits and . _ -, a letter or digit at both ends,"
            " such as egress-1.example"
        )
    return value


def _balancers(value: str) -> tuple[str, ...]:
    try:
        return (
            NOT_BEHIND
            if value == "none"
            else tuple(str(ip_address(place)) for place in value.split(",") if value)
        )
    except ValueError as error:
        raise click.BadParameter(
            f"{error}: name addresses, such as 10.0.0.5,10.0.0.6, or none"
        ) from error


def _transparent(value: str) -> tuple[str, ...]:
    if value == "none":
        return NOT_TRANSPARENT
    try:
        addresses = [ip_address(place) for place in value.split(",") if value]
    except ValueError as error:
        raise click.BadParameter(
            f"{error}: name addresses, such as 192.168.137.1,fd00::1, or none"
        ) from error
    if len({address.version for address in addresses}) < len(addresses):
        raise click.BadParameter(
            "a name has one address of each kind: expected one of IPv4, one of IPv6, or both"
        )
    if any(address.is_unspecified or address.is_multicast for address in addresses):
        raise click.BadParameter(
            "expected an address of this machine, which clients can reach"
        )
    return tuple(map(str, addresses))


def _networks(value: str) -> tuple[str, ...]:
    from squidkeeper.policy.language.hosts import parse_network

    try:
        return (
            NOT_SHOWN
            if value == "none"
            else tuple(str(parse_network(place)) for place in value.split(",") if value)
        )
    except PatternError as error:
        raise click.BadParameter(
            f"{error}: name networks, such as 10.0.0.0/24,fd00::/64, or none"
        ) from error


def _workers(value: str) -> str:
    if value and not (
        value.isascii() and value.isdecimal() and 1 <= int(value) <= MOST_WORKERS
    ):
        raise click.BadParameter(
            f"expected a number from 1 to {MOST_WORKERS}; beyond it, add a gateway"
        )
    return str(int(value)) if value else ""


def _days(value: str) -> str:
    if value not in ("", "auto") and not (
        value.isascii() and value.isdecimal() and 1 <= int(value) <= _MOST_DAYS
    ):
        raise click.BadParameter(
            f"expected a number of days from 1 to {_MOST_DAYS}, or auto"
        )
    return value


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "archive_days": _days,
    "behind": _balancers,
    "certificates": partial(_one_of, GENERATORS),
    "status_from": _networks,
    "tls_name": _server_names,
    "transparent": _transparent,
    "upstream": _upstream,
    "bump": partial(_one_of, BUMPS),
    "gateway": _gateway_name,
    "workers": _workers,
}


def _prepared(
    _: click.Context, __: click.Parameter, value: Path | tuple[Path, ...] | None
) -> object:
    """Take absolute paths alone: they are removed at the end, and a relative one would
    be another folder by then.
    """
    for path in value if isinstance(value, tuple) else (value,):
        if path is not None and not path.is_absolute():
            raise click.BadParameter(
                f"{path} is no absolute path: install.sh names what it has made"
            )
    return value


def _hidden_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what install.sh passes on: the fields of `SetupOptions`."""
    for name in ("source", "venv", "root", "policy", "ca_dir"):
        command = click.option(_option(name), type=_FOLDER, hidden=True)(command)
    for name in ("open", "no_exporter", "tls", "no_tls", "no_start", "uninstall"):
        command = click.option(_option(name), is_flag=True, hidden=True)(command)
    sizes = ("log_bytes", "archive_bytes")
    for name in (
        *_PARSERS,
        *sizes,
        "listen",
        "exporter_listen",
        "health_listen",
        "ca",
        "intermediate_days",
    ):
        command = click.option(_option(name), default="", hidden=True)(command)
    return command


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@click.command()
@click.option(
    "--fleet",
    metavar="FILE",
    type=_FILE,
    help="Put HAProxy here in front of the gateways in FILE.",
)
@click.option(
    "--haproxy-cfg", type=_FILE, default="/etc/haproxy/haproxy.cfg", hidden=True
)
@click.option("--haproxy-state", type=_FOLDER, default="/var/lib/haproxy", hidden=True)
@click.option("--haproxy-pid", type=_FILE, default="/run/haproxy.pid", hidden=True)
@click.option("--work", type=_FOLDER, callback=_prepared, hidden=True)
@click.option("--made", type=_FOLDER, callback=_prepared, multiple=True, hidden=True)
@click.option("--dry-run", is_flag=True, help="Print the steps, and change nothing.")
@_hidden_options
def setup(
    fleet: Path | None,
    haproxy_cfg: Path,
    haproxy_state: Path,
    haproxy_pid: Path,
    **given: Any,
) -> None:
    """Install or remove a gateway; with --fleet, put HAProxy in front of several.

    install.sh starts this command. `install.sh --help` explains the options.
    squid/FLEET.md explains --fleet.
    """
    if fleet:
        _refuse_options_of_a_gateway(click.get_current_context())
        raise SystemExit(
            _set_up_fleet(
                fleet, haproxy_cfg, haproxy_state, haproxy_pid, dry_run=given["dry_run"]
            )
        )
    if not (given["source"] and given["venv"] and given["work"]):
        raise click.UsageError(
            "a gateway is installed by ./install.sh, which calls this command; --fleet FILE is for HAProxy"
        )
    _set_up_gateway(given)


def _refuse_options_of_a_gateway(context: click.Context) -> None:
    others = [
        parameter
        for parameter in context.command.params
        if parameter.name not in _OF_FLEET
    ]
    unused = [
        other.opts[0]
        for other in others
        if context.get_parameter_source(other.name or "") is _COMMAND_LINE
    ]
    if "--uninstall" in unused:
        raise click.UsageError(
            "--fleet does not remove HAProxy: put haproxy.cfg.before-squidkeeper back as /etc/haproxy/haproxy.cfg and"
            " run `systemctl reload haproxy`, or remove the package haproxy (squid/FLEET.md)"
        )
    if unused:
        raise click.UsageError(
            f"--fleet does not use {', '.join(unused)}: only --dry-run can stand beside it"
        )


def _set_up_fleet(
    file: Path, cfg: Path, state: Path, pid_file: Path, *, dry_run: bool
) -> int:
    from squidkeeper.operate.fleet.fleet_file import read_fleet
    from squidkeeper.operate.fleet.installation import BalancerPaths, set_up_fleet

    try:
        set_up_fleet(
            read_fleet(file), BalancerPaths(cfg, state, pid_file), dry_run=dry_run
        )
    except FleetFailed as error:
        click.echo(str(error), err=True)
    except SetupFailed as error:
        remedy = f"\n  to do: {error.advice}" if error.advice else ""
        click.echo(f"{error.details}squidkeeper setup: {error}{remedy}", err=True)
    except OSError as error:
        click.echo(
            f"squidkeeper setup: {error.filename}: {error.strerror}: run this as root",
            err=True,
        )
    else:
        return 0
    return 1


def _set_up_gateway(given: Mapping[str, Any]) -> NoReturn:
    from squidkeeper.operate.setup.run import remove_prepared, run_setup

    try:
        options = SetupOptions(
            **{**given, **_parsed(given), "shell_files": _shell_files(given)}
        )
    except click.UsageError as error:
        remove_prepared(given["work"], given["made"])
        click.echo(
            f"install.sh: {error.message}\n            ./install.sh --help explains the options.",
            err=True,
        )
        raise SystemExit(2) from error
    status = run_setup(options)
    if status == 0 and not options.dry_run and not options.uninstall:
        _examine(options)
    raise SystemExit(status)


def _shell_files(given: Mapping[str, Any]) -> dict[Path, str]:
    if given["uninstall"]:  # it does without the dependencies of other commands
        return {}
    from squidkeeper.cli.shell_files import shell_files

    return shell_files(Layout.of(given["root"]))


def _examine(options: SetupOptions) -> None:
    """Print what `doctor` finds. That fails no installation: the gateway in place is at
    least as good as before.
    """
    from squidkeeper.operate.doctor.examination import as_text, examine
    from squidkeeper.operate.doctor.inspection import inspect
    from squidkeeper.operate.setup.options import say, show
    from squidkeeper.operate.setup.sockets import wait_until
    from squidkeeper.services.maintenance.process import read_maintenance_status
    from squidkeeper.serving.credentials.fetch_status import read_fetch_status

    layout = Layout.of(options.root)
    if not options.no_start:
        wait_until(
            _HEARTBEAT_SECONDS,
            lambda: read_maintenance_status(layout.state, time.time()).works,
        )
    if not options.no_start and layout.service("secrets").unit.exists():
        wait_until(
            _HEARTBEAT_SECONDS,
            lambda: read_fetch_status(layout.secrets, time.time()).has_tried,
        )
    try:
        diagnosis = examine(
            inspect(layout),
            running=not options.no_start,
            deep=not options.no_start,
        )
    except Exception as error:  # noqa: BLE001 - the installation is good, whatever fails here
        say(
            "doctor",
            f"the gateway cannot be examined ({type(error).__name__}: {error})",
        )
        return
    text = as_text(diagnosis)
    if diagnosis.found:
        show(f"\nsquidkeeper doctor, which you can run at any time:\n{text}")
    else:
        say("doctor", text)


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    if given["dry_run"] and given["uninstall"]:
        raise click.UsageError("--dry-run is for an installation, not for --uninstall")
    if given["tls"] and given["no_tls"]:
        raise click.UsageError("--tls and --no-tls exclude each other")
    return {name: _parse(name, given[name]) for name in _PARSERS}


def _parse(name: str, value: str) -> Any:
    try:
        return _PARSERS[name](value)
    except click.BadParameter as error:
        raise click.UsageError(f"{_option(name)} {value}: {error.message}") from error
