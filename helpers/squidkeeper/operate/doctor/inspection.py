"""An installed gateway as it is found: configuration, policy, processes, machine; and
what checks of it are.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.layout import Layout, uses_systemd
from squidkeeper.base.rotated_logs import oldest_write, rotated
from squidkeeper.base.squid_account import Account, squid_account
from squidkeeper.base.squid_counters import SquidCounters, read_counters
from squidkeeper.base.squid_version import squid_version
from squidkeeper.operate.setup.configuration import listen_of_haproxy, transparent_of
from squidkeeper.operate.setup.entries import text_at
from squidkeeper.operate.setup.options import port_of, reachable
from squidkeeper.operate.setup.processes import InstalledSquid
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.reload_gate import gate_faults, refusal
from squidkeeper.policy.policy_store.revisions import revision_in_force
from squidkeeper.policy.policy_store.sources import Sources, read_sources
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.record.archive_status import read_archive_status, read_deleted_logs
from squidkeeper.record.export_status import read_exports
from squidkeeper.services.exporter.certificate import (
    Certificate,
    StoreCertificate,
    read_certificate,
)
from squidkeeper.services.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.services.exporter.conditions import Severity
from squidkeeper.services.exporter.snapshot import Snapshot, read_disks
from squidkeeper.services.exporter.stopped_watchdog import uncounted_helpers
from squidkeeper.services.maintenance.process import read_maintenance_status
from squidkeeper.services.maintenance.tls import CERTIFICATE
from squidkeeper.services.pulling.settings import read_pull_status
from squidkeeper.serving.counters.reader import CounterFile, read_all_counter_files
from squidkeeper.serving.credentials.fetch_status import read_fetch_status
from squidkeeper.serving.drained import drained_since
from squidkeeper.serving.parts import Part, named_parts, read_in_force
from squidkeeper.serving.squid_conf import Directive, Macros, SquidConf, read_squid_conf
from squidkeeper.serving.squid_crashes import read_crashes

_PORT: Final = re.compile(r"(?:\S+:)?[0-9]+")
_LOGROTATE: Final = Path("/etc/logrotate.d")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the checks read.

    `conf` is the configuration in Squid's order; `view` is the gateway as the exporter
    has it.

    `listens`: where clients reach it, as http_port or HAProxy takes it. `account`:
    Squid's, where it is known.
    """

    layout: Layout
    conf: SquidConf
    view: Snapshot
    sources: Sources
    account: Account | None
    squid: InstalledSquid
    listens: tuple[str, ...]
    logrotate: Path = _LOGROTATE

    @property
    def policy(self) -> Policy | None:
        """The policy on disk, where it loads."""
        return self.view.policy

    def named(self, *names: str) -> Iterator[Directive]:
        """Yield the directives of these names, in their order."""
        return (
            directive for directive in self.conf.directives if directive.name in names
        )

    def last(self, name: str) -> Directive | None:
        """Return the last directive of a name: of most that take one value,
        it counts.
        """
        return next(
            (
                directive
                for directive in reversed(self.conf.directives)
                if directive.name == name
            ),
            None,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in force, as Squid's configuration states them."""
        return named_parts(read_in_force(self.view.fragment))

    @property
    def ahead(self) -> tuple[Directive, ...]:
        """The directives ahead of the include of the policy: all of them, where it is
        not included.
        """
        files = [directive.file for directive in self.conf.directives]
        end = (
            files.index(self.layout.fragment)
            if self.layout.fragment in files
            else len(files)
        )
        return self.conf.directives[:end]

    @property
    def injected(self) -> frozenset[str]:
        """The headers that can be injected: those of squid.conf, and those of the
        policy's credentials.
        """
        credentials = self.policy.credentials if self.policy else ()
        return frozenset(
            {
                *INJECTABLE_HEADERS,
                *(place for held in credentials for place in held.form.places),
            }
        )

    @property
    def transparent(self) -> tuple[str, ...]:
        """The hosts where clients without proxy settings come."""
        addresses = transparent_of(text_at(self.layout.dns))
        return tuple(
            f"[{address}]" if ":" in address else address for address in addresses
        )

    @property
    def is_root(self) -> bool:
        """Whether this process can take the rights of another account."""
        return os.geteuid() == 0

    def can_make(self, check: "Check") -> bool:
        """Whether this process has the rights that a check needs: Squid's account can
        start what Squid starts.
        """
        as_squid = self.account is not None and self.account.user == os.geteuid()
        return not check.as_root or self.reads_everything or (check.deep and as_squid)

    @property
    def reads_everything(self) -> bool:
        """Whether this process can read everything: it is root, or the account that
        everything here belongs to.
        """
        return _reads_everything(self.layout)


def inspect(layout: Layout) -> Inspection:
    """Read a gateway.

    OSError where its squid.conf cannot be read, `NotInstalled` where there is no
    gateway of ours.
    """
    layout.check_installed()
    conf = read_squid_conf(layout.conf, Macros(layout.squid_service))
    # which squidkeeper transparent alone uses
    own = (
        layout.transparent_tls,
        layout.transparent_http,
    )
    lines = [
        line
        for line in conf.directives
        if line.name == "http_port" and line.first not in own
    ]
    ports = tuple(line.first for line in lines if _PORT.fullmatch(line.first))
    listens = (*filter(None, [listen_of_haproxy(text_at(layout.haproxy))]),) or ports
    behind = not text_at(layout.haproxy) and any(
        "require-proxy-header" in line.words for line in lines
    )
    sources = read_sources(layout.policy)
    squid, account = (
        reachable(listens[0]) if listens else "127.0.0.1:3129",
        squid_account(),
    )
    return Inspection(
        layout=layout,
        conf=conf,
        view=_view(layout, squid, sources, account, behind=behind),
        sources=sources,
        account=account,
        squid=InstalledSquid(layout, uses_systemd(layout.root)),
        listens=listens,
    )


def _view(
    layout: Layout,
    squid: str,
    sources: Sources,
    account: Account | None,
    *,
    behind: bool,
) -> Snapshot:
    """Make what the exporter would show now, from its last counts and from the files
    that it reads.
    """
    at = datetime.now(UTC)
    policy, state = _policy(layout, sources, at)
    counter_files = _counter_files(layout.state)
    user = account.user if account else os.geteuid()
    archive = read_archive_status(layout.archive)
    return Snapshot(
        now=at.timestamp(),
        directory=layout.policy,
        access_log=layout.access_log,
        state=layout.state,
        squid_address=squid,
        checkpoint=_checkpoint(layout),
        log_readable=os.access(layout.access_log, os.R_OK),
        backlog_bytes=0,
        state_writable=True,
        policy=policy,
        policy_state=state,
        counter_files=counter_files,
        uncounted_helpers=uncounted_helpers(
            layout.state, user, counter_files, at.timestamp()
        ),
        totals={},
        certificate=read_certificate(layout.signing_cert),
        squid=_squid_counters(squid, behind=behind),
        disks=tuple(
            read_disks(
                {
                    "log": layout.access_log.parent,
                    "state": layout.state,
                    "archive": layout.archive,
                }
            )
        ),
        maintenance=read_maintenance_status(layout.state, at.timestamp()),
        tls_certificate=_tls_certificate(layout.tls / CERTIFICATE),
        squid_version=squid_version(),
        fragment=text_at(layout.fragment),
        fragment_file=layout.fragment,
        exports=read_exports(layout.state, at.timestamp()),
        fetched=layout.secrets,
        fetching=read_fetch_status(layout.secrets, at.timestamp()),
        archive=archive,
        unarchived_since=oldest_write(archive.unarchived(rotated(layout.access_log)))
        if archive
        else None,
        deleted_logs=read_deleted_logs(layout.state),
        pull=read_pull_status(layout.pulled),
        drained_since=drained_since(layout.run),
        quota_store_not_after=_store_certificate(layout.policy),
        crashes=read_crashes(layout.state),
    )


def _policy(
    layout: Layout, sources: Sources, at: datetime
) -> tuple[Policy | None, PolicyState]:
    """Load the policy on disk.

    The list cache in the state folder stays as it is: root may not own files there.
    """
    before = revision_in_force(layout.state / "revisions")
    ended = (
        before.ended
        if before and before.directory == layout.policy.absolute()
        else frozenset()
    )
    try:
        loaded = load_sources(sources, at, ended=ended)
    except PolicyError as error:
        return None, PolicyState(
            before.revision if before else None,
            None,
            False,
            error.faults,
            error.warnings,
        )
    policy = loaded.compiled.source
    if before and (
        refused := refusal(layout.state / "revisions", layout.policy, before, sources)
    ):
        return policy, PolicyState(
            before.revision, None, False, gate_faults(layout.policy, refused)
        )
    return policy, PolicyState(
        policy.revision, _edited(layout.policy), True, (), loaded.warnings
    )


def _edited(folder: Path) -> float:
    """Return the time of the last edit: helpers need a moment to follow it."""
    return max(
        (
            path.stat().st_mtime
            for path in (folder, *folder.rglob("*"))
            if path.exists()
        ),
        default=0.0,
    )


def _reads_everything(layout: Layout) -> bool:
    return os.geteuid() in (
        0,
        *(file.stat().st_uid for file in (layout.fragment,) if file.exists()),
    )


def _checkpoint(layout: Layout) -> Checkpoint:
    none = Checkpoint(since="")
    return (
        CheckpointStore(layout.counts).read() or none
        if _reads_everything(layout)
        else none
    )


def _counter_files(state: Path) -> tuple[CounterFile, ...]:
    try:
        return tuple(read_all_counter_files(state))
    except OSError:
        return ()


def _squid_counters(address: str, *, behind: bool) -> SquidCounters:
    return read_counters(
        address.rpartition(":")[0].strip("[]"), port_of(address), proxy_header=behind
    )


def _store_certificate(directory: Path) -> datetime | None:
    store = StoreCertificate(directory)
    store.ask()
    return store.not_after


def _tls_certificate(file: Path) -> Certificate | None:
    return read_certificate(file) if file.exists() else None


def annotations_in(text: str) -> list[str]:
    """List the annotations that a format prints: `{key}note` and `note{key}`; `*`
    stands for all of them.
    """
    keyed = re.findall(
        r"\{([^}:]+)(?::[^}]*)?\}note\b|%[#\"'/\[]*\bnote\{([^}:]+)", text
    )
    every = re.findall(r"%[#\"'/\[]*[-0-9.]*note\b(?!\{)", text)
    return [one or other for one, other in keyed] + ["*"] * len(every)


@dataclass(frozen=True, slots=True)
class Found:
    """One case of what a check is for.

    `place`: FILE:LINE, or a file; empty where it is nowhere.
    """

    detail: str
    place: str = ""


FindFaults = Callable[[Inspection], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table. `summary` says what is wrong, `remedy` what to do.

    `as_root`: only root can tell. `running`: only where the gateway is meant to run.
    `deep`: it starts helpers and waits for them, so only where somebody asks for it.
    """

    code: str
    severity: Severity
    summary: str
    remedy: str
    find: FindFaults
    as_root: bool = False
    running: bool = False
    deep: bool = False


CHECKS: Final[list[Check]] = []  # in the order of their finders


def _check(
    severity: Severity, code: str, summary: str, remedy: str, **when: bool
) -> Callable[[FindFaults], FindFaults]:
    def add(find: FindFaults) -> FindFaults:
        CHECKS.append(Check(code, severity, summary, remedy, find, **when))
        return find

    return add


# Each adds the finder below it to the table.
critical, warning, info = (partial(_check, severity) for severity in Severity)


FINDERS: Final[dict[str, FindFaults]] = {}  # by the code of a condition


def finds(code: str) -> Callable[[FindFaults], FindFaults]:
    """Have the finder below replace a condition's, which would tell twice, or only
    where a process runs.
    """

    def add(find: FindFaults) -> FindFaults:
        FINDERS[code] = find
        return find

    return add
