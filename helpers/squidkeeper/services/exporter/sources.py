"""What the exporter and the doctor read of a gateway: each source gives its part of a
snapshot, as of now.
"""

import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.places import BODIES_FOLDER, sessions_folder
from squidkeeper.base.rotated_logs import oldest_write, rotated
from squidkeeper.base.squid_counters import read_counters
from squidkeeper.base.squid_version import squid_version
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.record.archive_status import read_archive_status, read_deleted_logs
from squidkeeper.record.export_status import read_exports
from squidkeeper.services.exporter.certificate import read_certificate
from squidkeeper.services.exporter.snapshot import (
    NO_SESSIONS,
    CertificateView,
    HelperView,
    RecordView,
    ServiceView,
    SessionsView,
    SquidView,
    read_disks,
)
from squidkeeper.services.exporter.stopped_watchdog import uncounted_helpers
from squidkeeper.services.maintenance.process import read_maintenance_status
from squidkeeper.services.pulling.settings import read_pull_status
from squidkeeper.serving.counters.layout import Key
from squidkeeper.serving.counters.reader import CounterFile, read_all_counter_files
from squidkeeper.serving.credentials.brought_values import brought_values_folder
from squidkeeper.serving.credentials.fetch_status import read_fetch_status
from squidkeeper.serving.drained import drained_since
from squidkeeper.serving.quotas.notices import read_store_problem
from squidkeeper.serving.quotas.store_settings import quota_store_file
from squidkeeper.serving.sessions.counts import count_by_role
from squidkeeper.serving.squid_crashes import read_crashes

_SESSIONS_SETTINGS: Final = "sessions.yaml"
_SESSIONS_SOCKET: Final = "api.sock"
_SOCKET_SECONDS: Final = 2.0
_FRAGMENT_BYTES: Final = 1024 * 1024
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HelperSource:
    """The processes of the helpers; `user` is Squid's, `add_up` counts with those that
    have ended.
    """

    state: Path
    user: int
    add_up: Callable[[Iterable[CounterFile]], Mapping[Key, float]]

    def read(self, now: float) -> HelperView:
        """Read the counter files."""
        files = read_counter_files(self.state)
        return HelperView(
            counter_files=files,
            totals=self.add_up(files),
            uncounted_helpers=uncounted_helpers(self.state, self.user, files, now),
        )


@dataclass(frozen=True, slots=True)
class SquidSource:
    """Squid, at its address; with `proxy_header` its port requires a PROXY header."""

    address: tuple[str, int]
    proxy_header: bool
    fragment: Path
    run: Path
    state: Path

    def read(self, _now: float) -> SquidView:
        """Ask Squid for its counters, and read what is known of it."""
        return SquidView(
            squid=read_counters(*self.address, proxy_header=self.proxy_header),
            squid_version=squid_version(),
            fragment=_text_of(self.fragment),
            drained_since=drained_since(self.run),
            crashes=read_crashes(self.state),
        )


@dataclass(frozen=True, slots=True)
class CertificateSource:
    """The certificates; `store_not_after` tells when that of the store expires."""

    ca: Path
    tls: Path | None
    store_not_after: Callable[[], datetime | None]

    def read(self, _now: float) -> CertificateView:
        """Read the certificates."""
        return CertificateView(
            certificate=read_certificate(self.ca),
            tls_certificate=read_certificate(self.tls) if self.tls else None,
            quota_store_not_after=self.store_not_after(),
        )


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Log, archive and exports; without `archive` the gateway has none."""

    access_log: Path
    state: Path
    archive: Path | None

    def read(self, now: float) -> RecordView:
        """Read the status of archive and exports, and the free space."""
        archive = read_archive_status(self.archive) if self.archive else None
        waiting = archive.unarchived(rotated(self.access_log)) if archive else ()
        return RecordView(
            archive=archive,
            unarchived_since=oldest_write(waiting),
            deleted_logs=read_deleted_logs(self.state),
            exports=read_exports(self.state, now),
            disks=tuple(read_disks(self._folders())),
        )

    def _folders(self) -> dict[str, Path]:
        folders = {"log": self.access_log.parent, "state": self.state}
        return folders | ({"archive": self.archive} if self.archive else {})


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """The status files of the other services."""

    directory: Path
    state: Path
    fetched: Path
    pulled: Path | None
    asks_sessions: bool = True

    def read(self, now: float) -> ServiceView:
        """Read each status file."""
        return ServiceView(
            maintenance=read_maintenance_status(self.state, now),
            fetching=read_fetch_status(self.fetched, now),
            pull=read_pull_status(self.pulled) if self.pulled else None,
            quota_store_problem=self._quota_store_problem(now),
            sessions=self._sessions() if self.asks_sessions else NO_SESSIONS,
        )

    def _sessions(self) -> SessionsView:
        run = brought_values_folder(self.fetched.parent).parent
        return SessionsView(
            active=count_by_role(sessions_folder(self.state)),
            is_wanted=(self.directory.parent / _SESSIONS_SETTINGS).exists(),
            answers=is_answered(run / _SESSIONS_SOCKET),
        )

    def _quota_store_problem(self, now: float) -> str | None:
        if not quota_store_file(self.directory).exists():
            return None
        return read_store_problem(self.state, now) or read_store_problem(
            self.state / BODIES_FOLDER, now
        )


def is_answered(path: Path) -> bool:
    """Whether a service answers HTTP on a Unix socket, or closes it: this account may
    not call.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_SOCKET_SECONDS)
            asking.connect(str(path))
            try:
                asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
                asking.recv(1)
            except ConnectionError:
                return True
            except OSError:  # it is stuck
                return False
            return True
    except OSError:
        return False


def read_counter_files(state: Path) -> tuple[CounterFile, ...]:
    """Read the counter files of the helpers; none where they cannot be read."""
    try:
        return tuple(read_all_counter_files(state))
    except OSError as error:
        _log.warning("the counter files of the helpers cannot be read: %s", error)
        return ()


def _text_of(file: Path) -> str:
    try:
        return read_regular(file, _FRAGMENT_BYTES).decode(errors="replace")
    except OSError:
        return ""
