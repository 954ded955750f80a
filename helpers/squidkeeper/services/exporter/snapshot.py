"""The gateway at one moment, for metrics, conditions and the status page."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

from squidkeeper.base.helper_metrics import HOST, LOADS_POLICY
from squidkeeper.base.squid_counters import SquidCounters
from squidkeeper.base.squid_version import SquidVersion
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.secret_sources import fetched_secrets
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.record.archive_status import ArchiveStatus, DeletedLogs
from squidkeeper.record.export_status import ExportStatus
from squidkeeper.services.exporter.certificate import Certificate
from squidkeeper.services.exporter.checkpoint import Checkpoint
from squidkeeper.services.exporter.recent import RecentAnswer
from squidkeeper.services.maintenance.process import NOT_RUNNING, MaintenanceStatus
from squidkeeper.services.pulling.settings import PullStatus
from squidkeeper.serving.counters.layout import HelperStatus, Key
from squidkeeper.serving.counters.reader import CounterFile
from squidkeeper.serving.credentials.fetch_status import FetchStatus, SecretStatus
from squidkeeper.serving.quotas.token_uses import TokenUse
from squidkeeper.serving.squid_crashes import SquidCrash

_LOW_RATIO: Final = 0.1
_FULL_BYTES: Final = 1e6
_LOW_BYTES: Final = 10e9  # a tenth of a large disk is plenty


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a folder.

    `folder` is `log`, `state` or `archive`; `available_bytes`: for Squid's account.
    """

    folder: str
    path: Path
    available_bytes: int
    size_bytes: int

    @property
    def is_low(self) -> bool:
        """Whether the free space is low.

        The alert SquidkeeperDiskSpaceLow has the same bounds.
        """
        return self.available_bytes < min(_LOW_RATIO * self.size_bytes, _LOW_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether Squid cannot write to it any more, although it has to.

        The archive can wait.
        """
        return self.folder != "archive" and self.available_bytes < _FULL_BYTES


def read_disks(folders: Mapping[str, Path]) -> Iterator[Disk]:
    """Read the free space of each folder; leave out a folder that does not exist."""
    for name, path in folders.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        yield Disk(name, path, usage.free, usage.total)


NOTHING_FETCHED: Final = FetchStatus(runs=False)
NOTHING_DELETED: Final = DeletedLogs()
HELPER_PATIENCE_SECONDS: Final = (
    10.0  # for a heartbeat, for a reply, and for an edit to reach every helper
)
LAST_MINUTES: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class GatewayPlace:
    """Where the gateway is: the paths and the address are the exporter's options."""

    directory: Path
    access_log: Path
    state: Path
    squid_address: str
    workers: int = 1  # processes of Squid that serve
    fetched: Path | None = None  # the folder of the secrets that are fetched
    fragment_file: Path | None = None  # squidkeeper.conf


@dataclass(frozen=True, slots=True)
class LogView:
    """What was counted in the access log, and whether it is read."""

    checkpoint: Checkpoint
    log_readable: bool
    backlog_bytes: int = 0
    state_writable: bool = True
    answers: tuple[RecentAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyView:
    """The policy of the exporter, which reads the same directory as the helpers."""

    policy: Policy | None
    policy_state: PolicyState
    publisher_silent_seconds: float = 0.0  # since it has written its state
    # None: no client has ever asked, or that cannot be read
    questions_waiting: int | None = None
    token_uses: tuple[TokenUse, ...] = ()


@dataclass(frozen=True, slots=True)
class HelperView:
    """The processes of the helpers, and what they have counted together."""

    counter_files: tuple[CounterFile, ...] = ()
    totals: Mapping[Key, float] = MappingProxyType({})
    uncounted_helpers: tuple[int, ...] = ()  # processes that write no counter file


@dataclass(frozen=True, slots=True)
class SquidView:
    """Squid: what it counts, its release and its configuration."""

    squid: SquidCounters
    squid_version: SquidVersion | None = None
    fragment: str = ""  # squidkeeper.conf, which names the parts in force
    drained_since: float | None = None  # None: clients may come
    crashes: tuple[SquidCrash, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificateView:
    """The certificates: of the CA, of the TLS port, of the store of quotas."""

    certificate: Certificate
    tls_certificate: Certificate | None = None  # None: there is no TLS port
    # when it expires; None: unknown, or there is none
    quota_store_not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecordView:
    """The record: archive, exports, and the room for them."""

    archive: ArchiveStatus | None = None  # None: there is no archive
    # when the oldest rotated log that is not archived was last written to
    unarchived_since: float | None = None
    deleted_logs: DeletedLogs = NOTHING_DELETED
    exports: Mapping[str, ExportStatus] = MappingProxyType({})  # by name
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionsView:
    """The sessions of the gateway, and the service that makes them."""

    active: Mapping[str, int] | None = None  # by role; None: they cannot be read
    is_wanted: bool = False  # sessions.yaml is there
    answers: bool = False


NO_SESSIONS: Final = SessionsView()


@dataclass(frozen=True, slots=True)
class ServiceView:
    """What the other services report."""

    maintenance: MaintenanceStatus = NOT_RUNNING
    fetching: FetchStatus = NOTHING_FETCHED
    # None: the policy is not pulled, or has not been yet
    pull: PullStatus | None = None
    # None: no store is shared with other gateways
    quota_store_problem: str | None = None
    sessions: SessionsView = NO_SESSIONS


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The gateway at one moment; `now` is in seconds since 1970."""

    now: float
    place: GatewayPlace
    log: LogView
    policies: PolicyView
    processes: HelperView
    proxy: SquidView
    certificates: CertificateView
    records: RecordView
    services: ServiceView

    @property
    def at(self) -> datetime:
        """The moment, in UTC."""
        return datetime.fromtimestamp(self.now, UTC)

    @property
    def helpers(self) -> tuple[HelperStatus, ...]:
        """The status of each helper process that runs."""
        return tuple(
            file.status
            for file in self.processes.counter_files
            if file.running and file.status
        )

    @property
    def fetched_secrets(self) -> Mapping[str, SecretStatus | None]:
        """The secrets of the policy that are fetched, with what the process that
        fetches them reports.
        """
        secrets = self.policies.policy.secrets if self.policies.policy else {}
        return {
            name: self.services.fetching.secrets.get(name)
            for name, _ in fetched_secrets(secrets)
        }

    @property
    def decides(self) -> bool:
        """Whether a helper that runs has a policy, and decides about hosts."""
        return any(
            helper.helper == HOST and helper.revision is not None
            for helper in self.helpers
        )

    def is_outdated(self, helper: HelperStatus) -> bool:
        """Whether a helper decides by another revision than the exporter has."""
        return (
            helper.helper in LOADS_POLICY
            and helper.revision != self.policies.policy_state.revision
        )

    def is_stuck(self, helper: HelperStatus) -> bool:
        """Whether a helper gives no heartbeat, or has not answered the same lines for
        too long.
        """
        since = (
            helper.beat
            if helper.busy_since is None
            else min(helper.beat, helper.busy_since)
        )
        return self.now - since > HELPER_PATIENCE_SECONDS
