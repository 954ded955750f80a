"""Squid and the services beside it: whether each runs, and how it is started and
stopped.

With systemd they are services; without, `supervise` keeps each of them running.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwuid
from subprocess import DEVNULL
from typing import Final

import psutil

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout, ServicePaths
from squidkeeper.base.own_processes import is_own
from squidkeeper.operate.setup.entries import LOG_END, ROOT, Owner, text_at
from squidkeeper.operate.setup.machine import last_lines, quietly, run
from squidkeeper.operate.setup.sockets import has_ended, process_listens, wait_until
from squidkeeper.policy.published.places import marked_in_force
from squidkeeper.services.maintenance.squid_process import coordinator_alone

_END_SECONDS: Final = 30
_TRIGGERS: Final = {"archive": ".timer", "render": ".path"}
_CAPABILITIES = re.compile(r"^AmbientCapabilities=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class InstalledSquid:
    """The Squid of one gateway."""

    layout: Layout
    systemd: bool

    def pid(self) -> int | None:
        """Find the process of Squid's master.

        Its file can name another gateway's: a number is given out again, and under a
        root Squid's account could write it.
        """
        try:
            process = psutil.Process(int(text_at(self.layout.pid_file)))
            is_ours = process.name() == "squid" and is_own(
                process.pid, self.layout.conf, if_hidden=True
            )
            if self.layout.root and is_ours:
                is_ours = self._is_started_with_conf(process)
        except (ValueError, OverflowError, psutil.Error):
            return None
        return process.pid if is_ours else None

    def _is_started_with_conf(self, process: psutil.Process) -> bool:
        return any(
            os.path.realpath(argument) == os.path.realpath(self.layout.conf)
            for argument in process.cmdline()
        )

    def runs(self) -> bool:
        """Whether it runs.

        Where all workers have given up, the master stays with their coordinator alone.
        """
        pid = self.pid()
        return pid is not None and coordinator_alone(pid) is None

    def supervisor(self) -> int | None:
        """Find the process that starts it again when it ends, without systemd."""
        return _supervisor(self.layout, self.layout.squid_supervisor, self.layout.conf)

    def is_supervised(self) -> bool:
        """Whether it is started again when it ends."""
        return self.systemd or self.supervisor() is not None

    @property
    def start_command(self) -> str:
        """The command that starts it by hand."""
        return "systemctl start squid" if self.systemd else self.layout.install_command

    def start(self) -> None:
        """Start it; without systemd it has written its pid file when this returns."""
        self.stop()  # what is left of one that serves nobody any more
        if self.systemd:
            quietly("systemctl", "daemon-reload")
            quietly("systemctl", "enable", "--quiet", "squid")
            quietly("systemctl", "restart", "squid")
            return
        squid = (
            "squid",
            "--foreground",
            "-n",
            self.layout.squid_service,
            "-f",
            self.layout.conf,
        )
        _supervise(
            self.layout, "squid", self.layout.squid_supervisor, Path(os.devnull), *squid
        )
        wait_until(10, self.runs)

    def stop(self, *, is_idle: bool = False) -> None:
        """Stop it.

        Unless it is idle, it waits for its clients for shutdown_lifetime; a second
        signal ends that.

        Without a process it is stopped too: systemd, or what supervises it, may be
        about to start it.
        """
        pid, supervisor = self.pid(), self.supervisor()
        if self.systemd:
            quietly("systemctl", "stop", "squid")
        elif told := supervisor or pid:
            os.kill(told, signal.SIGTERM)
        if pid is not None and not wait_until(
            0 if is_idle else 10, lambda: has_ended(pid)
        ):
            os.kill(pid, signal.SIGINT)
        for process in filter(None, (pid, supervisor)):
            _wait_for_end("Squid", process)

    def reconfigure(self) -> None:
        """Have it read its configuration again, and systemd its unit: how it is
        confined counts from its next start.
        """
        if self.systemd:
            quietly("systemctl", "daemon-reload")
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
            time.sleep(1)  # it closes its port before it opens it again

    def comes_up(self, port: int) -> bool:
        """Wait until it listens on the port, or has ended; tell whether it listens."""
        wait_until(20, lambda: process_listens(self.pid(), port) or self.pid() is None)
        return process_listens(self.pid(), port)


@dataclass(frozen=True, slots=True)
class InstalledService:
    """A service beside Squid.

    It works when it listens on its port or, without one, when it runs.
    """

    name: str
    layout: Layout
    systemd: bool
    owner: Owner = ROOT  # the user and group that it runs as without systemd
    port: int | None = None

    @property
    def paths(self) -> ServicePaths:
        """Its files."""
        return self.layout.service(self.name)

    def pid(self) -> int | None:
        """Find the process that systemd started, or the one that supervises: a process
        id alone could be another's.
        """
        if self.systemd:
            return int(self._property("MainPID") or 0) or None
        return _supervisor(self.layout, self.paths.pid_file, self.paths.unit)

    @property
    def is_timed(self) -> bool:
        """Whether systemd starts it from time to time: by a timer, or when a file is
        there.
        """
        return self.systemd and self.name in _TRIGGERS

    def runs(self) -> bool:
        """Whether it runs, or is started from time to time."""
        return (
            self._property("ActiveState") == "active"
            if self.is_timed
            else self.pid() is not None
        )

    def works(self) -> bool:
        """Whether it does what it is for.

        A process that is stopped (SIGSTOP) still listens.
        """
        return (
            (process_listens(self.pid(), self.port) if self.port else self.runs())
            and not self._is_stopped()
            and (self.name != "publisher" or self._has_published())
        )

    def _has_published(self) -> bool:
        return marked_in_force(self.layout.published) is not None

    def _is_stopped(self) -> bool:
        """Tell whether it, or a process of its own, is stopped.

        Without a service, a publisher is the child of any process that found its lock
        free.
        """
        try:
            first = psutil.Process(self.pid() or 0)
            return any(
                child.status() == psutil.STATUS_STOPPED
                for child in (first, *first.children(recursive=True))
                if self.name == "publisher" or "publish" not in child.cmdline()
            )
        except psutil.Error:
            return False

    def comes_up(self) -> bool:
        """Wait until it works, or has ended; tell whether it works.

        An exporter may have a long log to read, and a publisher long lists.
        """
        wait_until(
            90 if self.name in ("exporter", "publisher") else 20,
            lambda: self.works() or self._has_died(),
        )
        return self.works()

    def start(self) -> None:
        """Start it."""
        if self.systemd:
            quietly("systemctl", "daemon-reload")
            quietly("systemctl", "enable", "--quiet", self._unit)
            quietly("systemctl", "restart", self._unit)
        else:
            self._start_supervisor()
            # one that ends at once is never seen to run; the caller explains that
            wait_until(10, self.runs)

    def _start_supervisor(self) -> None:
        """Start it as its account, with the capabilities that its unit gives, and with
        signals as usual.
        """
        given = _CAPABILITIES.search(text_at(self.paths.unit))
        names = given[1].split() if given else []
        capabilities = ",".join(
            ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)]
        )
        sets = (
            f"--{kind}={capabilities}"
            for kind in ("bounding-set", "inh-caps", "ambient-caps")
        )
        rights = (
            f"--reuid={self.owner[0]}",
            f"--regid={self.owner[1]}",
            _groups(self.owner[0]),
        )
        _supervise(
            self.layout,
            self.paths.unit,
            self.paths.pid_file,
            self.paths.log,
            by=("setpriv", *rights, *sets),
        )

    def stop(self) -> None:
        """Stop it, whether it runs or not: systemd may be about to start it again."""
        pid = self.pid()
        if self.systemd:
            quietly("systemctl", "disable", "--now", self._unit)
            # one that was stopped while it started would count as failed
            run("systemctl", "reset-failed", self._unit)
        elif pid is not None:
            os.kill(pid, signal.SIGTERM)
        if pid is not None:
            _wait_for_end(f"the {self.name}", pid)

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        if self.systemd:
            return run(
                "journalctl",
                "--unit",
                f"squidkeeper-{self.name}",
                "--lines",
                "15",
                "--no-pager",
            ).stdout
        return last_lines(text_at(self.paths.log, end=LOG_END))

    def _has_died(self) -> bool:
        return (
            self._property("NRestarts") != "0"
            if self.systemd and not self.is_timed
            else not self.runs()
        )

    @property
    def _unit(self) -> str:
        return f"squidkeeper-{self.name}{_TRIGGERS[self.name] if self.is_timed else ''}"

    def _property(self, name: str) -> str:
        return run(
            "systemctl", "show", "--property", name, "--value", self._unit
        ).stdout.strip()


def starts_services() -> bool:
    """Whether this process can start a service.

    In a container, which has no root, `gateway run` starts it instead.
    """
    return os.geteuid() == 0


def _supervise(
    layout: Layout,
    service: str | Path,
    pid_file: Path,
    log: Path,
    *command: str | Path,
    by: Sequence[str] = (),
) -> None:
    words = (layout.supervise, service, pid_file, log, *command)
    run("setsid", "--fork", "env", "--default-signal", *by, *words, stdout=DEVNULL)


def _supervisor(layout: Layout, pid_file: Path, what: Path) -> int | None:
    """Find the process that supervises what a path names: a process ID alone could be
    another's by now.
    """
    try:
        pid = int(text_at(pid_file))
        command = psutil.Process(pid).cmdline()
    except (ValueError, OverflowError, psutil.Error):
        return None
    is_named = {str(layout.supervise), str(what)} <= {*command}
    return pid if is_named and is_own(pid, pid_file, if_hidden=True) else None


def _groups(user: int) -> str:
    """Return setpriv's option for the other groups of a user; one without an account
    has none.
    """
    try:
        getpwuid(user)
    except KeyError:
        return "--clear-groups"
    return "--init-groups"


def _wait_for_end(name: str, pid: int) -> None:
    if not wait_until(_END_SECONDS, lambda: has_ended(pid)):
        raise SetupFailed(f"{name} (process {pid}) does not end")
