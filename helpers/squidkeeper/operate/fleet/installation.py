"""Puts HAProxy's configuration for a fleet in place, in the distribution's own HAProxy,
and reloads it.

The configuration is setup/haproxy.cfg with the sections of fleet.cfg. The machine needs
no Squid. HAProxy itself checks the configuration first. Where HAProxy does not serve by
it after the reload, the former one comes back: whether an address can be listened on
shows only then.
"""

import os
import re
import shlex
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.formatting import timestamp
from squidkeeper.base.layout import uses_systemd
from squidkeeper.base.own_processes import is_own
from squidkeeper.operate.fleet.fleet_file import Fleet
from squidkeeper.operate.setup import configuration
from squidkeeper.operate.setup.configuration import BINDS, binds, substitute_once
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.machine import HAPROXY, check, quietly, run
from squidkeeper.operate.setup.options import say, show
from squidkeeper.operate.setup.sockets import wait_until
from squidkeeper.services.exporter.certificate import read_certificate

MARK: Final = (
    "# HAProxy in front of several gateways of squidkeeper:"  # how the file begins
)
STATE: Final = Path("/var/lib/haproxy")
_ONE: Final = Path(configuration.__file__).with_name("haproxy.cfg")
_SEVERAL: Final = Path(__file__).with_name("fleet.cfg")
_SECTION: Final = re.compile(
    r"^ *# >>> (\w+)\n(.*?)^ *# <<<\n", re.MULTILINE | re.DOTALL
)
_SERVER: Final = "    server NAME ADDRESS id ID port HEALTH\n"
_CONNECTIONS: Final = 16_000  # for each worker of a gateway
_DESCRIPTORS: Final = 66_000  # for as many
_MOST_DESCRIPTORS: Final = (
    1_000_000  # the kernel's own limit of a process is a little more (fs.nr_open)
)


def render(fleet: Fleet, state: Path = STATE) -> str:
    """Render the configuration; `state` is the folder of HAProxy's sockets."""
    sections: dict[str, str] = dict(_SECTION.findall(_SEVERAL.read_text()))
    if not fleet.certificate:
        sections["tls"] = ""
    text = _SECTION.sub(
        lambda found: str(sections.get(found[1], found[2])), _ONE.read_text()
    )
    return substitute_once(re.sub("\n{3,}", "\n\n", text), _replacements(fleet, state))


def _replacements(fleet: Fleet, state: Path) -> dict[str, str]:
    workers = _workers(fleet)
    servers = (
        f"    server {gateway.name} {gateway.authority} id {gateway.id} port {gateway.health_port}\n"
        for gateway in fleet.gateways
    )
    return {
        BINDS: "".join(f"    bind {address}\n" for address in binds(fleet.listen)),
        _SERVER: "".join(servers),
        "fd-hard-limit 66000": f"fd-hard-limit {min(_DESCRIPTORS * workers, _MOST_DESCRIPTORS)}",
        f"maxconn {_CONNECTIONS}\n    # One client": f"maxconn {_CONNECTIONS * workers}\n    # One client",
        "size 16k": "size 1m",  # clients at a time
        "gt 2048": f"gt {fleet.connections_per_client}",
        f"socat - {STATE}/": f"socat - {state}/",
        f"stats socket {STATE}/": f"stats socket {state}/",
    } | (_of_tls(fleet, state) if fleet.certificate else {})


def _workers(fleet: Fleet) -> int:
    return sum(gateway.workers for gateway in fleet.gateways)


def _of_tls(fleet: Fleet, state: Path) -> dict[str, str]:
    folder, socket = "/var/lib/squidkeeper/tls", f"unix@{state}/squidkeeper-tls.sock"
    end, most = "alpn http/1.1\n    maxconn", _CONNECTIONS * _workers(fleet)
    return {
        f"server tls unix@{folder}/tls.sock": f"server tls {socket}",
        f"bind unix@{folder}/tls.sock mode 600": f"bind {socket} mode 600 user haproxy",
        f"{folder}/server.pem {end} {_CONNECTIONS}\n": f"{fleet.certificate} {end} {most}\n",
    }


_USUAL_HEALTH: Final = 9130
_SOCKET: Final = "squidkeeper.sock"  # as fleet.cfg names it
_RENEWED_BEFORE: Final = timedelta(days=30)
_RELOAD_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 1.0
_PID: Final = re.compile(r"^Pid: ([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BalancerPaths:
    """The files of HAProxy, as the distributions have them."""

    cfg: Path = Path("/etc/haproxy/haproxy.cfg")
    state: Path = STATE
    pid_file: Path = Path("/run/haproxy.pid")

    @property
    def is_of_the_service(self) -> bool:
        """Whether the distribution's own service reads this configuration."""
        return self.cfg == BalancerPaths().cfg

    @property
    def former_cfg(self) -> Path:
        """The operator's own configuration that ours replaced."""
        return self.cfg.with_name(f"{self.cfg.name}.before-squidkeeper")


def set_up_fleet(fleet: Fleet, paths: BalancerPaths, *, dry_run: bool) -> None:
    """Put the configuration in place and reload HAProxy; `SetupFailed`, or an OSError,
    where that fails.
    """
    text = render(fleet, paths.state)
    if dry_run:
        show(text.rstrip("\n"))
    _check_certificate(fleet.certificate)
    _check(text)
    if dry_run:
        return
    before = text_at(paths.cfg)
    if f"{before}\n" != text:
        _replace(paths, before, text)
        _tell(paths, before)
    elif _runs(paths):
        say("haproxy", f"unchanged, and HAProxy runs with it: {paths.cfg}")
    else:
        say("haproxy", f"unchanged: {paths.cfg}")
        _tell(paths, before)
    _show_gateways(fleet)


def _check_certificate(path: str) -> None:
    if path and not Path(path).is_file():
        advice = "put certificate, chain and key there (squid/FLEET.md), or leave `certificate` out"
        raise SetupFailed(f"haproxy.certificate: {path}: there is no such file", advice)
    end = read_certificate(Path(path)).not_after if path else None
    if end and end - datetime.now(UTC) < _RENEWED_BEFORE:
        say(
            "WARNING",
            f"{path} expires at {timestamp(end)}: put another one there, and run `systemctl reload haproxy`",
        )


def _check(text: str) -> None:
    if not HAPROXY.exists():
        raise SetupFailed(
            f"HAProxy is not installed: there is no {HAPROXY}",
            "apt-get install haproxy, or dnf",
        )
    with TemporaryDirectory() as folder:
        cfg = Path(folder, "haproxy.cfg")
        cfg.write_text(text)
        check(run(HAPROXY, "-c", "-f", cfg))


def _replace(paths: BalancerPaths, before: str, text: str) -> None:
    if before and not before.startswith(MARK):
        replace(paths.former_cfg, f"{before}\n".encode(), 0o644)
        say(
            "haproxy", f"the configuration that was there is kept as {paths.former_cfg}"
        )
    replace(paths.cfg, text.encode(), 0o644)
    say("haproxy", f"written: {paths.cfg}")


def _runs(paths: BalancerPaths) -> bool:
    if _has_service(paths):
        return run("systemctl", "is-active", "--quiet", "haproxy").returncode == 0
    return _master(paths.pid_file) is not None


def _has_service(paths: BalancerPaths) -> bool:
    return paths.is_of_the_service and uses_systemd(None)


def _tell(paths: BalancerPaths, before: str) -> None:
    if not _has_service(paths) and _master(paths.pid_file) is None:
        command = f"haproxy -W -D -p {shlex.quote(str(paths.pid_file))} -f {shlex.quote(str(paths.cfg))}"
        say("haproxy", f"not started, as no service has {paths.cfg}: {command}")
        return
    former = _worker(paths)
    try:
        if _has_service(paths):
            quietly("systemctl", "enable", "--quiet", "haproxy")
        _reload(paths)
        _check_reloaded(paths, former)
    except SetupFailed:
        if before:
            replace(paths.cfg, f"{before}\n".encode(), 0o644)
            say("haproxy", f"the former configuration is back: {paths.cfg}")
            with suppress(SetupFailed):
                _reload(paths)
                # a signal meanwhile, of the next run, would be lost
                _check_reloaded(paths, former)
        raise
    shown = (
        "systemctl status haproxy"
        if _has_service(paths)
        else f"process {_master(paths.pid_file)}"
    )
    say("haproxy", f"reloaded: {shown}")


def _reload(paths: BalancerPaths) -> None:
    """Tell HAProxy to read its configuration again.

    It does so later: this tells nothing about the outcome.
    """
    if _has_service(paths):
        quietly("systemctl", "reload-or-restart", "haproxy")
    elif pid := _master(paths.pid_file):
        os.kill(pid, signal.SIGUSR2)


def _check_reloaded(paths: BalancerPaths, former: str) -> None:
    """Wait for a new worker: a master that cannot take its configuration goes on with
    the worker that it has.
    """
    if _master(paths.pid_file) is None:
        return  # another place of the PID file: only the service's own word is known
    if not wait_until(_RELOAD_SECONDS, lambda: _worker(paths) not in ("", former)):
        advice = (
            "does this machine have the address of haproxy.listen, and is its port free? HAProxy's log tells:"
            " journalctl -u haproxy"
        )
        raise SetupFailed(
            "HAProxy was reloaded, and does not serve by the new configuration", advice
        )


def _worker(paths: BalancerPaths) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as api:
            api.settimeout(_ANSWER_SECONDS)
            api.connect(str(paths.state / _SOCKET))
            api.sendall(b"show info\n")
            answer = b"".join(iter(lambda: api.recv(4096), b"")).decode(
                errors="replace"
            )
    except OSError:
        return ""
    found = _PID.search(answer)
    return found[1] if found else ""


def _master(pid_file: Path) -> int | None:
    with suppress(ValueError, OverflowError, psutil.Error):
        process = psutil.Process(int(text_at(pid_file)))
        if process.name() == "haproxy" and is_own(process.pid, pid_file):
            return process.pid
    return None


def _show_gateways(fleet: Fleet) -> None:
    show("\nOn each gateway, with the same CA (squid/FLEET.md):")
    for gateway in fleet.gateways:
        host = gateway.authority.rpartition(":")[0]
        options = [
            f"--behind {','.join(fleet.addresses)}",
            f"--gateway {gateway.name}",
            f"--listen {gateway.authority}",
        ]
        if gateway.health_port != _USUAL_HEALTH:
            options.append(f"--health-listen {host}:{gateway.health_port}")
        if gateway.workers > 1:
            options.append(f"--workers {gateway.workers}")
        show(f"  sudo ./install.sh {' '.join(options)} --ca-dir DIR")
