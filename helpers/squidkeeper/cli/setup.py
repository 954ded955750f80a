"""`squidkeeper setup`: what install.sh ends in."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from squidkeeper.base.errors import FleetFailed, SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.options import SetupOptions

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False, resolve_path=True)
# the options that change gateway.yaml
_SETTINGS: Final = (
    *("gateway", "listen", "workers", "tls_name", "behind", "health_listen"),
    *("transparent", "upstream", "bump", "certificates", "ca", "intermediate_days"),
    *("exporter_listen", "status_from", "log_bytes", "archive_days", "archive_bytes"),
)
_SWITCHES: Final = ("no_exporter", "tls", "no_tls")
_CHANGES: Final = {*_SETTINGS, *_SWITCHES}
_COMMAND_LINE: Final = ParameterSource.COMMANDLINE
_OF_FLEET: Final = {"fleet", "haproxy_cfg", "haproxy_state", "haproxy_pid", "dry_run"}
_HEARTBEAT_SECONDS = (
    5.0  # within which a process that has just started gives one, or a task finds it
)


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
    for name in ("open", *_SWITCHES, "no_start", "uninstall"):
        command = click.option(_option(name), is_flag=True, hidden=True)(command)
    for name in _SETTINGS:
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
            **{name: value for name, value in given.items() if name not in _CHANGES},
            settings=_changes(given),
            shell_files=_shell_files(given),
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


def _changes(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that change gateway.yaml, each checked; `UsageError` names the
    first that is wrong.
    """
    if given["dry_run"] and given["uninstall"]:
        raise click.UsageError("--dry-run is for an installation, not for --uninstall")
    if given["tls"] and given["no_tls"]:
        raise click.UsageError("--tls and --no-tls exclude each other")
    changes = {name: given[name] for name in _SETTINGS if given[name]}
    for name, value in changes.items():
        from squidkeeper.operate.setup.settings_file import option_fault

        if fault := option_fault(name, value):
            raise click.UsageError(f"{_option(name)} {value}: {fault}")
    return {name: "" for name in _SWITCHES if given[name]} | changes
