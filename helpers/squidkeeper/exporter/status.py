"""What the status page shows (floor 5), at one moment; `overview.py` fills it.

Nothing in it can hold a secret: there is no field for a value. Times are aware and in UTC; None is "not known", or
"never".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from squidkeeper.exporter.certificate import Certificate
from squidkeeper.exporter.disks import Disk
from squidkeeper.exporter.recent import Denial, DriftSeen
from squidkeeper.maintenance_status import MaintenanceStatus
from squidkeeper.policy.faults import Fault, FaultCode

LAST_MINUTES: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy that the exporter judges by, which reads the same directory as the helpers."""

    directory: Path
    """The directory as `--policy` names it; it stands in the ready commands."""
    revision: str | None
    """The revision in force; None where none has loaded yet, and everything is denied."""
    loaded_at: datetime | None
    """When this revision was loaded."""
    default_action: str
    """`allow` or `deny`: what happens where no rule matches."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with the policy on disk; empty where the one on disk is in force."""
    warnings: tuple[Fault, ...] = ()
    """What is surely unmeant in the policy in force; its secrets are looked at on their own."""


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """A rule of the policy, in its order, or a verdict that is no rule's and was seen, such as `default`."""

    name: str
    """The rule's name, as on record."""
    action: str
    """`allow` or `deny`; the default's for `default`, `deny` for the other verdicts."""
    allowed: int = 0
    """Requests on record with this rule and the verdict allow."""
    denied: int = 0
    """Requests on record with this rule and the verdict deny."""
    last_matched: datetime | None = None
    """When a request was last decided by it, or a tunnel refused."""
    expires: datetime | None = None
    """The rule's `expires`; at or before `Status.at` the rule has lapsed."""
    owner: str | None = None
    """The rule's `owner`."""
    built_in: bool = False
    """Whether it is no rule of the policy but one of the verdicts; these come after the rules."""
    tunnels: int = 0
    """CONNECTs on record with this rule, opened by an allow or refused by a deny; they are no requests."""

    @property
    def seen(self) -> bool:
        """Whether anything on record has this rule."""
        return bool(self.allowed or self.denied or self.tunnels)


@dataclass(frozen=True, slots=True)
class HelperProcessStatus:
    """A helper that runs, from its slot."""

    kind: str
    """As the metrics' label `helper` has it: `host`, `request`, `rewrite`, `credential` or `throttle`."""
    pid: int
    started: datetime
    revision: str | None
    """The revision that it judges by; None where it has none, and denies everything."""
    outdated: bool
    """Whether that is another than the exporter's."""
    stuck: bool
    """Whether it gives no sign of life, or has not answered a line for seconds."""
    last_beat: datetime
    """Its last sign of life."""
    answered: int
    """Lines that it, and those that had its slot before, have answered."""
    judges: bool = True
    """Whether it judges by a policy at all."""


@dataclass(frozen=True, slots=True)
class SecretStatus:
    """A secret that the policy names, and whether the exporter could have its value now; never the value."""

    name: str
    source: str
    """`file /etc/…` or `env NAME`."""
    problem: str | None = None
    """Why it is unavailable, as `SecretUnavailable` says it; None: it can, or it was not looked at."""
    used_by: tuple[str, ...] = ()
    """The credentials that need it."""
    code: FaultCode | None = None
    """The kind of the problem."""

    @property
    def seen(self) -> bool:
        """Whether it was looked at: a variable is the helpers' own, and cannot be from here."""
        return self.problem is not None or not self.source.startswith("env ")


@dataclass(frozen=True, slots=True)
class AccessLogStatus:
    """Squid's access log, as the exporter follows it."""

    file: Path
    readable: bool
    backlog_bytes: int = 0
    """Written and not yet counted."""
    last_line: datetime | None = None
    """The time of the newest request that was counted."""
    invalid_lines: int = 0
    """Lines that are no record, since the counting began."""
    lost: int = 0
    """Times that a stretch was gone before it was counted."""
    counted_since: datetime | None = None
    """When the counts that this page shows began: the oldest checkpoint's time."""


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """What was held against the policy."""

    total: int = 0
    """All findings since the counting began."""
    unchecked: int = 0
    """Served requests whose revision is no longer kept."""
    latest: tuple[DriftSeen, ...] = ()
    """The newest, at most 20, newest first."""
    cut: int = 0
    """Served requests whose URL decides and is cut off in the record."""


@dataclass(frozen=True, slots=True)
class SquidStatus:
    """Whether Squid answers."""

    address: str
    """Its proxy port as `--squid` names it: `127.0.0.1:3128`."""
    up: bool
    problem: str | None = None
    """Why it does not answer, or its cache manager does not."""


@dataclass(frozen=True, slots=True)
class AnswerStatus:
    """How those requests of `LAST_MINUTES` that were let through were answered; of many the newest."""

    total: int = 0
    failed: int = 0
    """Of these, by a 5xx."""


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """All that the page shows, at one moment."""

    at: datetime
    """Now."""
    version: str
    """The release of squidkeeper."""
    policy: PolicyStatus
    rules: tuple[RuleStatus, ...]
    """In the policy's order, the verdicts that were seen after them."""
    denials: tuple[Denial, ...]
    """What `RecentDenials.newest()` gives."""
    helpers: tuple[HelperProcessStatus, ...]
    """Those that run; none is idle, not ill: Squid starts one when it asks."""
    secrets: tuple[SecretStatus, ...]
    ca: Certificate
    record: AccessLogStatus
    drift: DriftStatus
    squid: SquidStatus
    upkeep: MaintenanceStatus
    """What the maintenance process reports."""
    answers: AnswerStatus = AnswerStatus()
    state_writable: bool = True
    """Whether the exporter could last keep its counts on disk."""
    disks: tuple[Disk, ...] = ()
    """Where the gateway writes."""
    throttle_missing_since: datetime | None = None
    """When a denial last asked for a throttle although none runs; None where nothing is wrong with it."""
