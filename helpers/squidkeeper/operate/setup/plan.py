"""The plan of an installation, pure: from what is and what should be to the steps
between them.

Nothing to do makes no step. A step says what it does, for `--dry-run`, and the stage
that it fails in.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final

from squidkeeper.base.layout import BODIES, Layout
from squidkeeper.operate.setup.configuration import is_ours, listen_of
from squidkeeper.operate.setup.entries import Entry, File, Folder, Link
from squidkeeper.operate.setup.generations import CONF, contents_in_force, public_links
from squidkeeper.operate.setup.options import NO_EXPORTER


class StepKind(StrEnum):
    """What a step does, as a phrase that the path completes.

    Squid's account acts in the folders that it owns.
    """

    MAKE = "make"
    PUT = "write"
    REMOVE = "remove"
    OPEN_APPARMOR = "load the AppArmor profile with"
    MAKE_ACCOUNTS = "make the accounts of"
    MAKE_AS_SQUID = "make, as Squid's account,"
    GIVE_TO_ROOT = "give to root, as the way to secrets that are fetched,"
    GIVE_TO_SQUID = "give to Squid's account"
    GIVE_BACK = "give to the account that works there"
    PUT_STORE = "make the certificate store"
    WRITE_OWN_ADDRESSES = "write the gateway's own addresses below"
    LABEL = "label for SELinux, with what it reads,"
    STOP_SERVICE = "stop the service of"
    START_PUBLISHER = "start the process that publishes the policy, and note it in"
    START_MAINTENANCE = "start the maintenance process, and note it in"
    START_SECRETS = "start the process that fetches secrets, and note it in"
    START_SESSIONS = "start the process that makes sessions, and note it in"
    START_BODIES_1 = "start the first process that inspects bodies, and note it in"
    START_BODIES_2 = "start the second process that inspects bodies, and note it in"
    START_SQUID = "start Squid, and note it in"
    RESTART_SQUID = "restart Squid, and note it in"
    RECONFIGURE_SQUID = "reconfigure Squid, and note it in"
    MAKE_SERVER_CERTIFICATE = "make the certificate of the TLS port in"
    START_TLS = "start HAProxy, and note it in"
    START_TRANSPARENT = (
        "start the ports for clients without proxy settings, and note them in"
    )
    START_DNS = "start the resolver for clients without proxy settings, and note it in"
    START_EXPORTER = "start the exporter, and note it in"
    START_ARCHIVE = "start the runs of the archive, and note them in"
    MAKE_SHARED = "make, as Squid's account and for its group,"
    START_EXPORT = "start the process that sends records to SIEMs, and note it in"
    START_PULL = "start the process that pulls the policy, and note it in"
    START_RENDER = (
        "start what renders Squid's configuration after an edit, and note it in"
    )


STARTS: Final = {  # the services
    StepKind.START_PUBLISHER: "publisher",
    StepKind.START_MAINTENANCE: "maintenance",
    StepKind.START_SECRETS: "secrets",
    StepKind.START_SESSIONS: "sessions",
    StepKind.START_BODIES_1: "bodies-1",
    StepKind.START_BODIES_2: "bodies-2",
    StepKind.START_TLS: "tls",
    StepKind.START_TRANSPARENT: "transparent",
    StepKind.START_DNS: "dns",
    StepKind.START_EXPORTER: "exporter",
    StepKind.START_ARCHIVE: "archive",
    StepKind.START_EXPORT: "export",
    StepKind.START_PULL: "pull",
    StepKind.START_RENDER: "render",
}
_START_OF: Final = {name: kind for kind, name in STARTS.items()}
_STAGES: Final = {
    **STARTS,
    StepKind.START_BODIES_1: "bodies",
    StepKind.START_BODIES_2: "bodies",
    StepKind.OPEN_APPARMOR: "AppArmor",
    StepKind.START_SQUID: "start",
    StepKind.RESTART_SQUID: "start",
    StepKind.RECONFIGURE_SQUID: "start",
    StepKind.MAKE_SERVER_CERTIFICATE: "TLS",
    StepKind.START_TLS: "TLS",
    StepKind.START_DNS: "transparent",
}


@dataclass(frozen=True, slots=True)
class SetupStep:
    """One change: to what is at a path, or to a process, of which the path holds a note
    about what it has read.
    """

    action: StepKind
    path: Path
    entry: Entry | None = None

    @property
    def stage(self) -> str:
        """The stage that it fails in."""
        return _STAGES.get(self.action, "put in place")

    def __str__(self) -> str:
        return f"{self.action} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What should be."""

    files: Mapping[Path, Entry]
    gone: tuple[Path, ...] = ()  # what must not be there
    # made where they are missing
    folders: Mapping[Path, Folder] = field(default_factory=dict)
    run: Folder | None = (
        # how the run folder is where it is there: nobody replaces the folder of secrets
        # in it
        None
    )
    listen: str
    exporter: str
    workers: int = 1
    own_addresses: bytes = b""
    fetches: bool = False  # the policy has secrets that are fetched
    bodies: bool = False  # the policy has rules with `body`
    exports: bytes = b""  # the files of the exports; empty: there is none
    pulls: bool = False  # the policy is pulled
    sessions: bool = False  # programs may make sessions
    tls: bool = False  # HAProxy takes the clients
    transparent: bool = False  # there are ports for clients without proxy settings
    certificate: bool = False  # the one of the TLS port is due
    store: bool = False  # the certificate store in place is another CA's
    drop_store: bool = False
    start_squid: bool = True
    start_services: bool = True
    selinux: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What is."""

    files: Mapping[Path, Entry] = field(default_factory=dict)  # without what is missing
    yours: bool = False  # squid.conf is the operator's, and includes the fragment
    squid_runs: bool = False
    squid_told: str = ""
    changed_since_told: bool = False  # a file that Squid reads
    services_work: frozenset[str] = frozenset()
    service_told: Mapping[str, str] = field(default_factory=dict)
    lacks_accounts: bool = False  # one of the accounts in sysusers.d is missing
    closed: tuple[
        Path, ...
    ] = ()  # folders of the state that Squid's account cannot write
    was_metered: bool = (
        False  # there is a ledger of usage, which stays, with the counts of its quotas
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order, and notes about what stays as it is, each with
    its label.
    """

    steps: tuple[SetupStep, ...]
    notes: tuple[tuple[str, str], ...]


def plan(layout: Layout, wanted: Wanted, present: Present) -> Plan:
    """Plan what leads from what is present to what is wanted."""
    return _Planner(layout, wanted, present).plan()


class _Planner:
    def __init__(self, layout: Layout, wanted: Wanted, present: Present) -> None:
        self._layout = layout
        self._wanted = wanted
        self._present = present
        self._here = present.files
        kept = {
            path: entry
            for path, entry in present.files.items()
            if path not in wanted.gone
        }
        self._after = {**kept, **wanted.files}
        self._read_before = contents_in_force(layout, self._here)
        self._read_after = contents_in_force(layout, self._after)
        self._notes: list[tuple[str, str]] = []

    def plan(self) -> Plan:
        steps = [*self._folders(), *self._former(), *self._files(), *self._state()]
        if steps and self._wanted.selinux:
            steps.append(SetupStep(StepKind.LABEL, self._layout.state))
        steps += self._processes()
        return Plan(tuple(steps), tuple(self._notes))

    def _processes(self) -> Iterator[SetupStep]:
        """Plan the processes in the order of their start: the others need the policy,
        and Squid the resolver, the secrets and what reads bodies.

        Maintenance and exporter ask Squid for its counters, behind a load balancer with
        a PROXY header. A Squid that takes none records it as a client's request, so
        none is sent before Squid takes it, nor after.
        """
        ahead, after = ["maintenance"], ["exporter"]
        before, then = self._sends_header(self._here), self._sends_header(self._after)
        if self._present.squid_runs and before != then:
            ahead, after = ([], [*ahead, *after]) if then else ([*ahead, *after], [])
        others = {
            "squid": self._squid,
            "store": self._store,
            "exporter": self._exporter,
        }
        needed_by_squid, last = (
            ("secrets", *BODIES),
            ("archive", "export", "pull", "sessions", "render"),
        )
        for name in (
            "publisher",
            *ahead,
            *needed_by_squid,
            "squid",
            "store",
            "tls",
            "transparent",
            "dns",
            *after,
            *last,
        ):
            yield from others[name]() if name in others else self._service(name)

    def _sends_header(self, files: Mapping[Path, Entry]) -> bool:
        unit = files.get(self._layout.service("maintenance").unit)
        return b" --proxy-header" in _content(unit)

    def _folders(self) -> Iterator[SetupStep]:
        folders = self._wanted.folders.items()
        yield from (
            SetupStep(StepKind.MAKE, path, folder)
            for path, folder in folders
            if path not in self._here
        )
        for path in (
            self._layout.archive,
            self._layout.pulled,
            self._layout.published,
        ):  # root's are of no use, such as after a restore
            folder, here = self._wanted.folders.get(path), self._here.get(path)
            if (
                folder
                and isinstance(here, Folder)
                and here.owner[0] == 0 != folder.owner[0]
            ):
                self._notes.append(
                    ("state", f"given to user {folder.owner[0]}: {path}")
                )
                yield SetupStep(StepKind.GIVE_BACK, path, folder)
        if (
            self._wanted.run
            and self._here.get(self._layout.run, self._wanted.run) != self._wanted.run
        ):
            yield SetupStep(StepKind.GIVE_TO_ROOT, self._layout.run, self._wanted.run)

    def _former(self) -> Iterator[SetupStep]:
        conf, former = self._layout.conf, self._layout.former_conf
        if self._present.yours:
            self._notes.append(
                (
                    "squid.conf",
                    f"yours, which includes {self._layout.fragment}, stays in force",
                )
            )
        elif self._is_foreign:
            replaced = _content(self._here[conf])
            if former in self._here and _content(self._here[former]) != replaced:
                yield from self._keep(former)
            yield from self._put({former: self._here[conf]})
            self._notes.append(
                ("squid.conf", f"the one that was there is kept as {former}")
            )
        elif self._here.get(conf) != self._wanted.files.get(conf):
            yield from self._keep(conf)

    @property
    def _is_foreign(self) -> bool:
        """Whether squid.conf is neither ours nor a link to a generation."""
        entry = self._here.get(self._layout.conf)
        ours = public_links(self._layout)[self._layout.conf]
        return entry not in (None, ours) and not is_ours(_text(entry))

    def _keep(self, path: Path) -> Iterator[SetupStep]:
        return self._put(
            {path.with_name(f"{path.name}.previous"): self._here[path]}
            if path in self._here
            else {}
        )

    def _put(self, entries: Mapping[Path, Entry]) -> Iterator[SetupStep]:
        return (
            SetupStep(StepKind.PUT, path, entry)
            for path, entry in entries.items()
            if self._here.get(path) != entry
        )

    def _files(self) -> Iterator[SetupStep]:
        yield from self._put(self._wanted.files)
        yield from (
            SetupStep(StepKind.REMOVE, path)
            for path in self._wanted.gone
            if path in self._here
        )
        if self._wanted.store:
            yield SetupStep(StepKind.PUT_STORE, self._layout.ssl_db)
        for service, (is_needed, left) in self._optional.items():
            if not is_needed:
                yield from self._without(service, *left)

    @property
    def _optional(self) -> dict[str, tuple[bool, tuple[Path, ...]]]:
        """Map the services that a gateway can do without: whether this one needs it,
        and what goes with it.
        """
        wanted, layout = self._wanted, self._layout
        first, second = BODIES
        counts = () if self._present.was_metered else (layout.bodies_state,)
        return {
            "exporter": (wanted.exporter != NO_EXPORTER, (layout.observe,)),
            "secrets": (wanted.fetches, (layout.secrets,)),
            first: (wanted.bodies, ()),
            second: (wanted.bodies, counts),
            "export": (bool(wanted.exports), (layout.export_state,)),
            "pull": (wanted.pulls, ()),
            "sessions": (wanted.sessions, ()),
            "tls": (wanted.tls, (layout.haproxy, layout.tls)),
            "dns": (wanted.transparent, (layout.dns,)),
            "transparent": (wanted.transparent, (layout.transparent_state,)),
        }

    def _without(self, service: str, *others: Path) -> Iterator[SetupStep]:
        unit, applied = (
            self._layout.service(service).unit,
            self._layout.service(service).applied,
        )
        # its note says that there is none
        noted = () if service == "exporter" else (applied,)
        if unit in self._here:
            yield SetupStep(StepKind.STOP_SERVICE, unit)
        yield from (
            SetupStep(StepKind.REMOVE, path)
            for path in (unit, *noted, *others)
            if path in self._here
        )

    def _state(self) -> Iterator[SetupStep]:
        # All of them: what renders an edit starts services, and can make no account.
        if self._present.lacks_accounts:
            yield SetupStep(StepKind.MAKE_ACCOUNTS, self._layout.account)
        yield from (
            SetupStep(StepKind.GIVE_TO_SQUID, path) for path in self._present.closed
        )
        if (
            self._wanted.exporter != NO_EXPORTER
            and self._layout.counts not in self._here
        ):
            yield SetupStep(StepKind.MAKE_AS_SQUID, self._layout.counts)
        if self._wanted.exports and self._layout.export_state not in self._here:
            yield SetupStep(StepKind.MAKE_SHARED, self._layout.export_state)
        if self._wanted.bodies and self._layout.bodies_state not in self._here:
            yield SetupStep(StepKind.MAKE_SHARED, self._layout.bodies_state)
        if (
            self._wanted.transparent
            and self._layout.transparent_state not in self._here
        ):
            yield SetupStep(StepKind.MAKE_SHARED, self._layout.transparent_state)
        if (
            _content(self._here.get(self._layout.own_addresses))
            != self._wanted.own_addresses
        ):
            yield SetupStep(StepKind.WRITE_OWN_ADDRESSES, self._layout.state)
        if self._wanted.certificate:
            yield SetupStep(StepKind.MAKE_SERVER_CERTIFICATE, self._layout.tls)

    def _service(self, name: str) -> Iterator[SetupStep]:
        paths, reads = self._layout.service(name), self._service_reads(name)
        always = name == "maintenance" or paths.unit in self._wanted.files
        is_needed, _ = self._optional.get(name, (always, ()))
        if is_needed and self._goes_on(name, reads):
            yield _noting(_START_OF[name], paths.applied, reads)

    def _exporter(self) -> Iterator[SetupStep]:
        """Start the exporter.

        The note about it begins with where it listens, which a later run uses again.
        """
        note, listen = self._layout.service("exporter").applied, self._wanted.exporter
        told, reads = (
            self._present.service_told.get("exporter", ""),
            f"{listen} {self._service_reads('exporter')}",
        )
        if listen == NO_EXPORTER:
            self._notes.append(("exporter", "none (--no-exporter)"))
            reads = NO_EXPORTER
        elif self._goes_on("exporter", reads):
            yield _noting(StepKind.START_EXPORTER, note, reads)
            return
        elif not self._wanted.start_services:
            reads = listen
        if told.split(" ")[0] != listen:
            yield _noting(StepKind.PUT, note, reads)

    def _goes_on(self, service: str, reads: str) -> bool:
        if not self._wanted.start_services:
            self._notes.append((service, "not started (--no-start)"))
        elif (
            service in self._present.services_work
            and self._present.service_told.get(service) == reads
        ):
            self._notes.append((service, "runs, unchanged"))
        else:
            return True
        return False

    def _service_reads(self, name: str) -> str:
        layout, unit = self._layout, self._layout.service(name).unit
        match name:
            case "tls":
                return self._hash((unit, layout.supervise, layout.haproxy))
            case "dns":
                return self._hash((unit, layout.supervise, layout.dns))
            case "archive":
                return self._hash(
                    (
                        unit,
                        layout.archive_timer,
                        layout.supervise,
                        layout.program,
                        layout.archive_pub,
                    )
                )
            case "render":
                return self._hash(
                    (unit, layout.render_path, layout.supervise, layout.program)
                )
        return self._hash(
            (unit, layout.supervise, layout.program),
            self._wanted.exports if name == "export" else b"",
        )

    def _squid(self) -> Iterator[SetupStep]:
        told, reads, note = self._told(), self._squid_reads(), self._layout.applied
        if self._present.yours:
            how = "squid -k parse && squid -k reconfigure (or start it)"
            self._notes.append(
                ("squid", f"not told yet, as its squid.conf is yours: {how}")
            )
        elif not self._wanted.start_squid:
            self._notes.append(("squid", "not started (--no-start)"))
            if (
                told.split(" ")[0] != self._wanted.listen
                or told != self._present.squid_told
            ):
                # for a later run to use
                yield _noting(StepKind.PUT, note, self._wanted.listen)
        elif not self._present.squid_runs:
            yield _noting(StepKind.START_SQUID, note, reads)
        elif told.rpartition(" ")[0] != reads.rpartition(" ")[0]:
            yield _noting(StepKind.RESTART_SQUID, note, reads)
        elif (
            told != reads
            or self._present.changed_since_told
            or self._changes_what_squid_reads()
        ):
            yield _noting(StepKind.RECONFIGURE_SQUID, note, reads)
        else:
            self._notes.append(("squid", "runs, unchanged"))

    def _store(self) -> Iterator[SetupStep]:
        if self._wanted.drop_store and self._layout.ssl_db in self._here:
            yield SetupStep(StepKind.REMOVE, self._layout.ssl_db)

    def _changes_what_squid_reads(self) -> bool:
        names = (
            self._layout.signing_cert,
            self._layout.signing_key,
            self._layout.program,
        )
        return self._read_after != self._read_before or any(
            self._after.get(path) != self._here.get(path) for path in names
        )

    def _told(self) -> str:
        """Return what Squid was told.

        Where an operator's squid.conf is replaced, only the port is known.
        """
        told = self._present.squid_told
        return told.split(" ")[0] if self._is_foreign else told

    def _squid_reads(self) -> str:
        """Return where Squid listens, and two hashes: of what else only a restart
        changes, and of all it reads.
        """
        layout, found = self._layout, self._read_after
        listen = listen_of(found.get(CONF, b"").decode(errors="replace"))
        workers = self._wanted.workers
        number = b"" if workers == 1 else b"%d" % workers
        others = filter(None, [layout.squid_dropin, layout.program])
        rest = self._hash(others, b"".join(found[name] for name in sorted(found)))
        return f"{listen} {self._hash((layout.signing_cert,), number)} {rest}"

    def _content_at(self, path: Path) -> bytes:
        return _content(self._after.get(path))

    def _hash(self, paths: Iterable[Path], more: bytes = b"") -> str:
        return sha256(b"".join(map(self._content_at, paths)) + more).hexdigest()[:16]


def _noting(action: StepKind, note: Path, reads: str) -> SetupStep:
    return SetupStep(action, note, File(f"{reads}\n".encode()))


def _content(entry: Entry | None) -> bytes:
    if isinstance(entry, Link):
        return f"{entry.target}\n".encode()
    return entry.content if isinstance(entry, File) else b""


def _text(entry: Entry | None) -> str:
    return _content(entry).decode(errors="replace")
