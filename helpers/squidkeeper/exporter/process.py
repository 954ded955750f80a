"""The exporter (floor 5): its parts, put together; one process beside Squid that counts, and answers who asks."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NoReturn

from prometheus_client import CollectorRegistry, ProcessCollector

from squidkeeper.counters import FOLDER, CounterFile, read_counter_files
from squidkeeper.engine import Judge
from squidkeeper.errors import ListenFailed
from squidkeeper.exporter.cache_manager import read_counters
from squidkeeper.exporter.certificate import read_certificate
from squidkeeper.exporter.checkpoint import CheckpointStore
from squidkeeper.exporter.collector import GatewayCollector, Snapshot
from squidkeeper.exporter.disks import read_disks
from squidkeeper.exporter.health import HealthCheck, HealthInput, checks
from squidkeeper.exporter.log_counter import LogCounter
from squidkeeper.exporter.server import Application, serve
from squidkeeper.exporter.status_builder import status_of
from squidkeeper.exporter.status_page import page
from squidkeeper.exporter.stopped_watchdog import StoppedWatchdog
from squidkeeper.maintenance_status import read_maintenance_status
from squidkeeper.policy.hosts import Network
from squidkeeper.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.record.drift import DriftChecker
from squidkeeper.record.past_policies import PastPolicies

CATCH_UP_SECONDS: Final = 60.0
_NICENESS = 10  # Squid and its helpers go first
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """Where everything is. `squid` is its proxy port, whose cache manager is asked."""

    listen: tuple[str, int]
    directory: Path
    access_log: Path
    state: Path
    ca: Path
    squid: tuple[str, int]
    status_from: tuple[Network, ...]


def run(options: Options) -> None:
    """Run until SIGTERM; `StateInUse` or `ListenFailed` where it cannot start."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the status page looks whether secrets can be had
    with suppress(OSError):
        os.nice(_NICENESS)
    Exporter(options).run()


class Exporter:
    """One exporter of one gateway."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._helpers = options.state / FOLDER
        self._store = CheckpointStore(options.state / "exporter")
        self._live: PolicyWatcher[Judge] = PolicyWatcher(
            options.directory, options.state / "lists", lambda judge: judge, options.state / "revisions"
        )

    def run(self) -> None:
        """Count what there is, then answer until the end."""
        with _bound(self._options.listen) as listener:
            self._store.open()
            StoppedWatchdog(self._helpers).start()
            self._live.start()
            judges = PastPolicies(self._options.state / "revisions", self._current)
            drift = DriftChecker(judges, self._current, judges.replacing)
            self._tally = LogCounter(self._options.access_log, self._store, drift)
            try:
                self._tally.start(CATCH_UP_SECONDS)
                server = serve(self._application(), listener)
                _log.info("metrics, health and status page are on %s:%d", *listener.getsockname()[:2])
                server.run()
            finally:
                self._tally.stop()
                self._store.close()

    def _application(self) -> Application:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(GatewayCollector(self.view))
        on_loopback = ip_address(self._options.listen[0]).is_loopback
        return Application(registry, self.health, self.page, self._options.status_from, on_loopback)

    def view(self) -> Snapshot:
        """Look at everything that is served as a metric."""
        slots = self._slots()
        totals = self._tally.add_up(slots)
        judge = self._live.current
        now = time.time()
        return Snapshot(
            now=now,
            kept=self._tally.keep(),
            record_readable=self._tally.readable,
            backlog_bytes=self._tally.backlog_bytes,
            state_writable=self._store.writable,
            policy=judge.policy if judge else None,
            live=self._live.state,
            slots=slots,
            totals=totals,
            certificate=read_certificate(self._options.ca),
            squid=read_counters(*self._options.squid),
            answers=self._tally.answers,
            disks=tuple(read_disks({"log": self._options.access_log.parent, "state": self._options.state})),
            upkeep=read_maintenance_status(self._options.state, now),
        )

    def health(self) -> tuple[HealthCheck, ...]:
        """Check what /healthz tells."""
        readable = self._tally.readable
        return checks(
            HealthInput(
                now=time.time(),
                live=self._live.state,
                slots=self._slots(),
                record_problem="" if readable else f"{self._options.access_log} cannot be read, or is not there",
            )
        )

    def page(self) -> str:
        """Make the status page."""
        options = self._options
        host, port = options.squid
        status = status_of(self.view(), options.directory, options.access_log, f"{host}:{port}")
        return page(status, program_called(sys.argv[0], shutil.which("squidkeeper")))

    def _current(self) -> Judge | None:
        return self._live.current

    def _slots(self) -> tuple[CounterFile, ...]:
        try:
            return tuple(read_counter_files(self._helpers))
        except OSError as error:
            _log.warning("the helpers' counts cannot be read: %s", error)
            return ()


def program_called(started: str, on_path: str | None) -> str:
    """Tell how an operator calls this program: by its name where that is the one on the path, else by its place."""
    place = Path(started)
    if place.name != "squidkeeper" or (on_path and place.exists() and place.samefile(on_path)):
        return "squidkeeper"
    return started


def _bound(listen: tuple[str, int]) -> socket.socket:
    """Bind the port now, so that a mistake shows at once; it is opened when everything has been counted."""
    host, port = listen
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Set, it would let anybody else open the port until it is opened here, which sets it again.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        bound.close()
        raise ListenFailed(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return bound


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
