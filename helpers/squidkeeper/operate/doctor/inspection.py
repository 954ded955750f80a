"""An installed gateway as it is found: configuration, policy, processes, machine; and
what checks of it are.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import InvalidPublication, PolicyError
from squidkeeper.base.layout import Layout, uses_systemd
from squidkeeper.base.places import revisions_folder
from squidkeeper.base.squid_account import Account, squid_account
from squidkeeper.configuration.squid_conf import (
    Directive,
    Macros,
    SquidConf,
    read_squid_conf,
)
from squidkeeper.operate.setup.generations import shown_path
from squidkeeper.operate.setup.options import port_of, reachable
from squidkeeper.operate.setup.processes import InstalledSquid
from squidkeeper.operate.setup.settings_file import settings_in_force
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.secret_sources import FileSource
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.reload_gate import gate_faults, refusal
from squidkeeper.policy.policy_store.revisions import (
    InForce,
    lists_if_on_disk,
    revision_in_force,
)
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.published.reader import load_published
from squidkeeper.policy.published.state_file import read_state, silent_seconds
from squidkeeper.services.exporter.certificate import (
    StoreCertificate,
)
from squidkeeper.services.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.services.exporter.conditions import Severity
from squidkeeper.services.exporter.recent import last_answers
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
from squidkeeper.services.maintenance.tls import CERTIFICATE
from squidkeeper.serving.parts import Part, named_parts, read_in_force

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
    secret_files: tuple[Path, ...]
    list_files: tuple[Path, ...]
    account: Account | None
    squid: InstalledSquid
    listens: tuple[str, ...]
    logrotate: Path = _LOGROTATE

    @property
    def policy(self) -> Policy | None:
        """The policy on disk, where it loads."""
        return self.view.policies.policy

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
        return named_parts(read_in_force(self.view.proxy.fragment))

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
        addresses = settings_in_force(self.layout).transparent
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


@dataclass(frozen=True, slots=True)
class _ReadPolicy:
    """The policy on disk, where it loads; how its files are, and those that it
    names.
    """

    policy: Policy | None
    state: PolicyState
    secret_files: tuple[Path, ...]
    list_files: tuple[Path, ...]


def inspect(layout: Layout) -> Inspection:
    """Read a gateway.

    OSError where its squid.conf cannot be read, `NotInstalled` where there is no
    gateway of ours.
    """
    layout.check_installed()
    macros = Macros(layout.squid_service)
    conf = read_squid_conf(layout.conf, macros, shown_path(layout))
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
    settings = settings_in_force(layout)
    listens = (settings.listen,) if settings.tls else ports
    behind = not settings.tls and any(
        "require-proxy-header" in line.words for line in lines
    )
    read = _read_policy(layout, datetime.now(UTC))
    squid, account = (
        reachable(listens[0]) if listens else "127.0.0.1:3129",
        squid_account(),
    )
    return Inspection(
        layout=layout,
        conf=conf,
        view=_view(layout, squid, read, account, behind=behind),
        secret_files=read.secret_files,
        list_files=read.list_files,
        account=account,
        squid=InstalledSquid(layout, uses_systemd(layout.root)),
        listens=listens,
    )


def _view(
    layout: Layout,
    squid: str,
    read: _ReadPolicy,
    account: Account | None,
    *,
    behind: bool,
) -> Snapshot:
    """Make what the exporter would show now, from its last counts and from the files
    that it reads.
    """
    now = time.time()
    user = account.user if account else os.geteuid()
    tls = layout.tls / CERTIFICATE
    store = StoreCertificate(layout.policy)
    store.ask()
    address = squid.rpartition(":")[0].strip("[]"), port_of(squid)
    return Snapshot(
        now=now,
        place=GatewayPlace(
            directory=layout.policy,
            access_log=layout.access_log,
            state=layout.state,
            squid_address=squid,
            fetched=layout.secrets,
            fragment_file=layout.fragment,
        ),
        log=LogView(
            _checkpoint(layout),
            os.access(layout.access_log, os.R_OK),
            answers=last_answers(layout.access_log),
        ),
        policies=PolicyView(
            read.policy,
            read.state,
            publisher_silent_seconds=_publisher_silence(layout, now),
        ),
        processes=HelperSource(layout.state, user, lambda _: {}).read(now),
        proxy=SquidSource(
            address, behind, layout.fragment, layout.run, layout.state
        ).read(now),
        certificates=CertificateSource(
            layout.signing_cert,
            tls if tls.exists() else None,
            lambda: store.not_after,
        ).read(now),
        records=RecordSource(layout.access_log, layout.state, layout.archive).read(now),
        services=ServiceSource(
            layout.policy,
            layout.state,
            layout.secrets,
            layout.pulled,
            asks_sessions=False,  # by a check of its own
        ).read(now),
    )


def _read_policy(layout: Layout, at: datetime) -> _ReadPolicy:
    """Read the policy on disk: as it was published, where its files are still the same.

    To load 20,000 rules takes seconds.
    """
    before = revision_in_force(revisions_folder(layout.state))
    if before and before.directory == layout.policy.absolute():
        published = _published(layout, before.revision)
        return published or _loaded(layout, at, before)
    return _loaded(layout, at, None)


def _published(layout: Layout, revision: str) -> _ReadPolicy | None:
    folder = revisions_folder(layout.state)
    told, lists = read_state(folder), lists_if_on_disk(folder, revision)
    if lists is None or told is None or not told.ok or told.revision != revision:
        return None
    try:
        policy = load_published(folder, revision, layout.policy).source
    except (OSError, InvalidPublication):
        return None
    sources = (
        named.source for named in (*policy.secrets.values(), *policy.canaries.values())
    )
    return _ReadPolicy(
        replace(policy, rules=tuple(policy.rules)),  # checks go over all of them
        replace(told, loaded=_edited(layout.policy)),
        tuple(source.path for source in sources if isinstance(source, FileSource)),
        lists,
    )


def _loaded(layout: Layout, at: datetime, before: InForce | None) -> _ReadPolicy:
    """Load the policy on disk.

    The list cache in the state folder stays as it is: root may not own files there.
    """
    sources, revision = read_sources(layout.policy), before.revision if before else None
    policy = None
    try:
        loaded = load_sources(
            sources, at, ended=before.ended if before else frozenset()
        )
        policy = loaded.compiled.source
        state = PolicyState(
            policy.revision, _edited(layout.policy), True, (), loaded.warnings
        )
        folder = revisions_folder(layout.state)
        refused = before and refusal(folder, layout.policy, before, sources)
        if refused:
            state = PolicyState(
                revision, None, False, gate_faults(layout.policy, refused)
            )
    except PolicyError as error:
        state = PolicyState(revision, None, False, error.faults, error.warnings)
    return _ReadPolicy(policy, state, tuple(sources.secrets), tuple(sources.lists))


def _publisher_silence(layout: Layout, now: float) -> float:
    """Return for how long the service of the publisher has written nothing.

    Without one, a helper starts a publisher once Squid asks it.
    """
    folder = revisions_folder(layout.state)
    return silent_seconds(folder, now) if folder == layout.published else 0


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
