"""The exporter process: it counts the access log, and serves metrics, /healthz and the
status page.
"""

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
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

from squidkeeper.base.errors import ListenFailed
from squidkeeper.base.squid_counters import read_counters
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.published.reader import PolicyReader
from squidkeeper.policy.published.state_file import silent_seconds
from squidkeeper.record.log.drift import DriftChecker, PastPolicies
from squidkeeper.record.log.recorded_sessions import RecordedSessions
from squidkeeper.record.usage_ledger import ledger_file
from squidkeeper.services.exporter.certificate import StoreCertificate
from squidkeeper.services.exporter.checkpoint import CheckpointStore
from squidkeeper.services.exporter.collector import GatewayCollector
from squidkeeper.services.exporter.conditions import ActiveCondition, active_conditions
from squidkeeper.services.exporter.log_counter import LogCounter
from squidkeeper.services.exporter.server import Application, serve
from squidkeeper.services.exporter.snapshot import (
    GatewayPlace,
    LogView,
    PolicyView,
    Snapshot,
)
from squidkeeper.services.exporter.sources import (
    CertificateSource,
    HelperSource,
    RecordSource,
    ServiceSource,
    SquidSource,
)
from squidkeeper.services.exporter.status_page import page
from squidkeeper.services.exporter.stopped_watchdog import (
    StoppedWatchdog,
)
from squidkeeper.services.exporter.usage_counts import UsageCounter
from squidkeeper.services.exporter.used_bytes import UsedBytes
from squidkeeper.serving.credentials.fetched_values import FOLDER as FETCHED
from squidkeeper.serving.helpers.publisher_child import follow_policy
from squidkeeper.serving.quotas.opening import GatewayCounts
from squidkeeper.serving.quotas.token_uses import token_uses
from squidkeeper.serving.sessions.following import Following
from squidkeeper.serving.tickets.judgement import settle
from squidkeeper.serving.tickets.store import TicketStore

_AT_ONCE: Final = 1_000  # questions: some 50 ms
_PAUSE_SECONDS: Final = 600.0  # what depends on the time is judged again after this


class WaitingQuestions:
    """The questions of one gateway.

    Each count judges some of them, until all are judged by the policy in force.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._uses = GrantUses(state)
        self._sessions = Following(state)
        self._begun = ("", 0.0)  # by which revision, and when
        self._after: str | None = (
            None  # the last question that was judged; None: all are
        )

    def count(self, policy: CompiledPolicy | None, now: float) -> int | None:
        """Count those that wait; None where no client has ever asked, or that cannot be
        read.
        """
        store = TicketStore(self._state)
        try:
            if not store.exists:
                return None
            if policy is not None:
                self._judge(store, policy, now)
            return store.count_pending(now)
        except OSError as error:
            _log.warning("the questions of clients cannot be read: %s", error)
            return None
        finally:
            store.close()

    def _judge(self, store: TicketStore, policy: CompiledPolicy, now: float) -> None:
        revision, since = self._begun
        if revision != policy.revision or now - since > _PAUSE_SECONDS:
            self._begun, self._after = (policy.revision, now), ""
        if self._after is None:
            return
        some = store.pending_after(self._after, _AT_ONCE)
        at = datetime.fromtimestamp(now, UTC)
        find = self._sessions.numbered
        settle(store, policy, self._uses.is_spent, some, at, find)
        self._after = some[-1].number if len(some) == _AT_ONCE else None


CATCH_UP_SECONDS: Final = 60.0
_LOOPBACK: Final = "127.0.0.1"
_NICENESS = 10  # Squid and its helpers go first
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExporterOptions:
    """The options of the command.

    `squid` is the address and port of Squid's proxy port.
    """

    listen: tuple[str, int]
    directory: Path
    access_log: Path
    state: Path
    ca: Path
    fragment: Path
    squid: tuple[str, int]
    status_from: tuple[Network, ...]
    tls_certificate: Path | None
    run: Path
    archive: Path | None = None
    pulled: Path | None = None
    proxy_header: bool = False  # Squid's port requires a PROXY header
    health_listen: tuple[str, int] | None = None
    health_from: tuple[Network, ...] = ()
    workers: int = 1


def run_exporter(options: ExporterOptions) -> None:
    """Run until SIGTERM; `StateInUse` or `ListenFailed` if it cannot start."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    # it reads secrets, to tell whether they are available
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        os.nice(_NICENESS)
    Exporter(options).run()


class Exporter:
    """The exporter of one gateway."""

    def __init__(self, options: ExporterOptions) -> None:
        self._options = options
        self._questions = WaitingQuestions(options.state)
        self._place = GatewayPlace(
            directory=options.directory,
            access_log=options.access_log,
            state=options.state,
            squid_address=f"{options.squid[0]}:{options.squid[1]}",
            workers=options.workers,
            fetched=options.run / FETCHED,
            fragment_file=options.fragment,
        )
        self._store = CheckpointStore(options.state / "exporter")
        self._store_certificate = StoreCertificate(options.directory)
        self._counts = GatewayCounts(options.directory, options.state)
        self._watcher: PolicyReader[CompiledPolicy] = follow_policy(
            options.directory, options.state, lambda compiled: compiled
        )
        self._helpers = HelperSource(
            options.state,
            os.geteuid(),
            lambda files: self._log_counter.add_up(files),
        )
        self._squid = SquidSource(
            options.squid,
            options.proxy_header,
            options.fragment,
            options.run,
            options.state,
        )
        self._certificates = CertificateSource(
            options.ca,
            options.tls_certificate,
            lambda: self._store_certificate.not_after,
        )
        self._records = RecordSource(options.access_log, options.state, options.archive)
        self._services = ServiceSource(
            options.directory, options.state, options.run / FETCHED, options.pulled
        )

    def run(self) -> None:
        """Count what the log holds, then serve until the end."""
        with _bound(self._options.listen) as listener:
            self._store.open()
            StoppedWatchdog(self._options.state).start()
            self._watcher.start()
            self._store_certificate.start()
            self._start_health()
            past = PastPolicies(self._watcher.folder, self._current)
            options = self._options
            sessions = RecordedSessions.of_gateway(options.state)
            drift = DriftChecker(past, self._current, past.replacing, sessions)
            used_bytes = UsedBytes(
                options.state,
                self._current,
                GatewayCounts(options.directory, options.state),
                sessions,
            )
            usage = partial(
                UsageCounter, ledger_file(options.state), current=self._current
            )
            self._log_counter = LogCounter(
                options.access_log, self._store, drift, used_bytes, usage
            )
            try:
                self._log_counter.start(CATCH_UP_SECONDS)
                server = serve(self._application(self._options.listen[0]), listener)
                self._start_on_loopback()
                _log.info(
                    "metrics, health and status page are on %s:%d",
                    *listener.getsockname()[:2],
                )
                server.run()
            finally:
                self._log_counter.stop()
                self._store.close()

    def _start_health(self) -> None:
        """Answer load balancers, where there are any, ahead of the count of the log,
        which can take a minute.
        """
        options = self._options
        if options.health_listen is None:
            return
        # other gateways do without it
        from squidkeeper.services.exporter.health import (
            Health,
            HealthServer,
        )

        health = Health(
            lambda: (
                read_counters(*options.squid, proxy_header=options.proxy_header).answers
            ),
            self._has_policy,
            options.run,
        )
        HealthServer(_bound(options.health_listen), options.health_from, health).start()
        _log.info("load balancers ask for /healthz on %s:%d", *options.health_listen)

    def _start_on_loopback(self) -> None:
        """Answer this machine too, where the exporter listens on another address,
        unless something has the port.
        """
        host, port = ip_address(self._options.listen[0]), self._options.listen[1]
        if host.is_loopback or host.is_unspecified:
            return
        try:
            listener = _bound((_LOOPBACK, port))
        except ListenFailed as error:
            _log.warning("%s", error)
            return
        Thread(
            target=serve(self._application(_LOOPBACK), listener).run, daemon=True
        ).start()

    def _has_policy(self) -> bool:
        return self._watcher.current is not None

    def _application(self, host: str) -> Application:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(GatewayCollector(self.collect))
        return Application(
            registry,
            self.health,
            self.page,
            self._options.status_from,
            on_loopback=ip_address(host).is_loopback,
        )

    def collect(self, *, save: bool = True) -> Snapshot:
        """Collect everything that is served.

        A count is saved before it is served, or a restart could lower it.
        """
        now = time.time()
        # first: what a helper counts later is counted next time
        helpers = self._helpers.read(now)
        return Snapshot(
            now=now,
            place=self._place,
            log=self._read_log(save=save),
            policies=self._read_policies(now),
            processes=helpers,
            proxy=self._squid.read(now),
            certificates=self._certificates.read(now),
            records=self._records.read(now),
            services=self._services.read(now),
        )

    def _read_log(self, *, save: bool) -> LogView:
        log = self._log_counter
        return LogView(
            checkpoint=log.save() if save else log.checkpoint(),
            log_readable=log.readable,
            backlog_bytes=log.backlog_bytes,
            state_writable=self._store.writable,
            answers=log.answers,
        )

    def _read_policies(self, now: float) -> PolicyView:
        compiled, state = self._watcher.current, self._watcher.state
        uses = (
            token_uses(compiled.source.quotas, self._options.state, self._counts)
            if compiled
            else ()
        )
        return PolicyView(
            policy=compiled.source if compiled else None,
            policy_state=state,
            publisher_silent_seconds=silent_seconds(self._watcher.folder, now),
            questions_waiting=self._questions.count(compiled, now),
            token_uses=tuple(uses),
        )

    def health(self) -> tuple[ActiveCondition, ...]:
        """List the conditions that make the gateway unhealthy."""
        return active_conditions(self.collect(save=False), unhealthy_only=True)

    def page(self) -> str:
        """Make the status page."""
        return page(
            self.collect(), program_called(sys.argv[0], shutil.which("squidkeeper"))
        )

    def _current(self) -> CompiledPolicy | None:
        return self._watcher.current


def program_called(started: str, on_path: str | None) -> str:
    """Tell how an operator calls this program: by its name if PATH finds it, else by
    its path.
    """
    path = Path(started)
    if path.name != "squidkeeper" or (
        on_path and path.exists() and path.samefile(on_path)
    ):
        return "squidkeeper"
    return started


def _bound(listen: tuple[str, int]) -> socket.socket:
    """Bind the port now, so that a mistake shows at once.

    The server listens after the log is counted.
    """
    host, port = listen
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # While it is set, anybody can take the port until the server listens, which
        # sets it again.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        bound.close()
        raise ListenFailed(
            f"cannot listen on {host} port {port}: {error.strerror or error}"
        ) from error
    return bound
