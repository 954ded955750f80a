"""sessions.yaml: which programs may make sessions, and which ones.

The file is read again when it has changed. A faulty edit keeps the last good one.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, parse_document
from squidkeeper.policy.language.hosts import Network, parse_network
from squidkeeper.policy.language.settings_values import (
    SettingsModel,
    Version,
    model_schema,
    number,
    parsed,
    read_model,
)
from squidkeeper.services.sessions.identities import (
    NAME,
    REQUIRED,
    Identity,
    IdentityEntry,
    identity_faults,
)

SETTINGS: Final = "sessions.yaml"  # beside the policy's folder
LOCAL: Final = "local"  # root's, where the file does not say who it is
_ROOT: Final = 0
_SESSIONS_AT_MOST: Final = 100_000
_SESSIONS: Final = 10_000
_UID_AT_MOST: Final = 2**32 - 2
_IDENTITIES: Final = ("user", "uid", "certificate")
_REQUIRED: Final = {
    "version": "'version: 1'",
    "orchestrators": "the programs that may make sessions, each by a name",
    "roles": "the roles that it may give, such as [coding-agent]",
    **REQUIRED,
}
_log = logging.getLogger(__name__)


def _named(what: str) -> Any:
    def parse(name: str) -> str:
        if len(name) > 100 or not name.isprintable():
            raise PatternError(f"{name[:100]!r} is no {what}")
        return name

    return parsed(parse, FaultCode.INVALID_NAME)


def _label(name: str) -> str:
    if not LABEL_NAME.fullmatch(name):
        raise PatternError(f"{name[:100]!r} is no name of a label, expected {_LABEL}")
    return name


_LABEL: Final = "up to 32 lower-case letters, digits and . _ -, such as task"
LABEL_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_Networks = tuple[
    Annotated[
        str,
        parsed(lambda text: str(parse_network(text)), FaultCode.INVALID_NETWORK),
    ],
    ...,
]


class OrchestratorEntry(SettingsModel):
    """One program that makes sessions."""

    user: Annotated[str, _named("user of this machine")] | None = Field(
        default=None, description="The user whose processes it is."
    )
    uid: Annotated[int, number(_UID_AT_MOST, least=0)] | None = Field(
        default=None, description="The same, by number."
    )
    certificate: Annotated[str, _named("subject of a certificate")] | None = Field(
        default=None, description="The subject of its client certificate."
    )
    roles: tuple[Annotated[str, _named("name of a role")], ...] = Field(
        default=(),
        description="The roles that it may give; without `identities` required.",
    )
    approves: tuple[Annotated[str, _named("name of a role")], ...] = Field(
        default=(),
        description="The roles of whose sessions it answers tickets.",
    )
    networks: _Networks | None = Field(
        default=None,
        description="Where its sessions may be; else in all session_networks of the policy.",
    )
    labels: tuple[Annotated[str, parsed(_label, FaultCode.INVALID_NAME)], ...] = Field(
        default=(), description="Labels that each of its sessions must have."
    )
    sessions: Annotated[int, number(_SESSIONS_AT_MOST)] = Field(
        default=_SESSIONS, description="How many sessions it has at most at a time."
    )
    identities: tuple[Annotated[str, _named("name of an identity")], ...] = Field(
        default=(), description="Whose signed tokens it may exchange for sessions."
    )


class SessionsFile(SettingsModel):
    """sessions.yaml."""

    version: Version = Field(description="The version of these settings: 1.")
    orchestrators: dict[str, OrchestratorEntry] = Field(
        description="The programs that may make sessions. `local` is root, unless it says otherwise."
    )
    identities: dict[str, IdentityEntry] = Field(
        default={}, description="Whose signed tokens become sessions."
    )


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """A program that may make sessions; `roles`, `networks` and `approves`: None are
    all of the policy.
    """

    name: str
    uid: int | None = _ROOT
    certificate: str | None = None
    roles: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None
    labels: tuple[str, ...] = ()
    sessions_at_most: int = _SESSIONS
    identities: Mapping[str, Identity] = field(default_factory=dict)
    approves: frozenset[str] | None = None

    def may_approve(self, role: str) -> bool:
        """Whether it answers tickets of sessions of a role."""
        return self.approves is None or role in self.approves

    def may_give(self, role: str) -> bool:
        """Whether its sessions may have a role."""
        return self.roles is None or role in self.roles

    def with_roles_of_tokens(self) -> Self:
        """Return it with the roles that its signed tokens give, too."""
        if self.roles is None:
            return self
        given = {role for one in self.identities.values() for role in one.roles}
        return replace(self, roles=self.roles | given)

    def may_use(self, network: IPv4Network | IPv6Network) -> bool:
        """Whether its sessions may have an address."""
        return self.networks is None or is_within(network, self.networks)


@dataclass(frozen=True, slots=True)
class Orchestrators:
    """All programs that may make sessions."""

    all: tuple[Orchestrator, ...] = (Orchestrator(LOCAL),)

    def of_user(self, uid: int) -> Orchestrator | None:
        """Find the one whose processes a user runs."""
        return next((found for found in self.all if found.uid == uid), None)

    def of_certificate(self, subject: str) -> Orchestrator | None:
        """Find the one with a client certificate."""
        found = (one for one in self.all if one.certificate == subject)
        return next(found, None)


def is_within(
    network: IPv4Network | IPv6Network, networks: tuple[Network, ...]
) -> bool:
    """Whether a network is a part of one of several."""
    return any(
        network.version == wider.version and network.subnet_of(wider)  # type: ignore[arg-type] # of one version
        for wider in networks
    )


def check_orchestrators(
    path: Path, content: bytes
) -> tuple[Orchestrators | None, tuple[Fault, ...]]:
    """Read sessions.yaml, or find all its faults."""
    document = parse_document(path, content)
    faults, read = [*document.faults], None
    if document.root is not None:
        read, found = read_model(SessionsFile, document, _REQUIRED)
        faults += found
        faults += _conflicts(document)
        faults += identity_faults(document)
    if read is None or faults:
        return None, tuple(sorted(faults))
    known = {name: Identity.of(name, one) for name, one in read.identities.items()}
    made = (
        _orchestrator(name, entry, known) for name, entry in read.orchestrators.items()
    )
    return Orchestrators(tuple(made)), ()


def unknown_roles(path: Path, content: bytes, roles: set[str]) -> Iterator[Fault]:
    """Find the roles of a file without faults that the policy does not have."""
    found, _ = check_orchestrators(path, content)
    document = parse_document(path, content)
    for one in found.all if found else ():
        for role in sorted((one.roles or frozenset()) - roles):
            place = document.locate(("orchestrators", one.name, "roles"))
            message = f"{one.name!r} may give the role {role!r}, which the policy does not have"
            yield Fault(place, FaultCode.SESSIONS_MISMATCH, message)


def orchestrators_schema() -> dict[str, Any]:
    """Make the JSON Schema of the file, for editors."""
    return model_schema(SessionsFile, "The orchestrators of a gateway of squidkeeper")


def _orchestrator(
    name: str, entry: OrchestratorEntry, known: Mapping[str, Identity]
) -> Orchestrator:
    uid = entry.uid
    if entry.user is not None:
        uid = pwd.getpwnam(entry.user).pw_uid
    elif uid is None and entry.certificate is None:
        uid = _ROOT
    networks = entry.networks
    return Orchestrator(
        name=name,
        uid=uid,
        certificate=entry.certificate,
        roles=frozenset(entry.roles),
        networks=None if networks is None else tuple(map(ip_network, networks)),
        labels=entry.labels,
        sessions_at_most=entry.sessions,
        identities={one: known[one] for one in entry.identities},
        approves=frozenset(entry.approves),
    )


def _conflicts(document: Document) -> Iterator[Fault]:
    """Find what is wrong between entries, by what is written."""
    entries = document.value_at(("orchestrators",))
    seen: dict[object, str] = {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        here = document.locate(("orchestrators", name), key=True)
        if not NAME.fullmatch(name):
            expected = "up to 32 lower-case letters, digits, _ and -, such as slicer"
            message = (
                f"{name[:100]!r} is no name of an orchestrator, expected {expected}"
            )
            yield Fault(here, FaultCode.INVALID_NAME, message)
        if not isinstance(entry, dict):
            continue
        if not {"roles", "identities"} & entry.keys():
            message = f"key 'roles' is missing, expected {_REQUIRED['roles']}"
            yield Fault(
                document.locate(("orchestrators", name)), FaultCode.MISSING_KEY, message
            )
        given = [key for key in _IDENTITIES if key in entry]
        if len(given) > 1 or (not given and name != LOCAL):
            message = f"{name!r}: expected exactly one of user, uid and certificate"
            yield Fault(here, FaultCode.KEY_CHOICE, message)
            continue
        identity, problem = _identity(entry)
        if problem:
            place = document.locate(("orchestrators", name, "user"))
            yield Fault(place, FaultCode.UNKNOWN_NAME, problem)
        elif identity in seen:
            message = (
                f"{name!r} and {seen[identity]!r} are the same caller, expected one"
            )
            yield Fault(here, FaultCode.DUPLICATE_NAME, message)
        else:
            seen[identity] = name


def _identity(entry: dict[str, object]) -> tuple[object, str]:
    """Return who an entry is, and what is wrong with that."""
    if "certificate" in entry:
        return ("certificate", entry["certificate"]), ""
    if "user" not in entry:
        return ("uid", entry.get("uid", _ROOT)), ""
    user = entry["user"]
    if not isinstance(user, str):
        return id(entry), ""  # another fault
    try:
        return ("uid", pwd.getpwnam(user).pw_uid), ""
    except (KeyError, ValueError):
        return None, f"this machine has no user {user!r}"


class OrchestratorsInForce:
    """The orchestrators as the file has them, read again when it has changed.

    Without a file, root may make sessions of all roles.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._current: Orchestrators | None = None
        self.problem = ""  # what is wrong with the file

    def current(self) -> Orchestrators | None:
        """Return those in force; None where the file was never without a fault."""
        state = self._state()
        if state != self._seen or (state is None and self._current is None):
            self._seen = state
            self._read()
        return self._current

    def may_connect(self, uid: int) -> bool:
        """Whether a user is one of them, or root, who is told what is wrong."""
        known = self.current()
        return uid == _ROOT or (known is not None and known.of_user(uid) is not None)

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            return None
        except OSError:
            return ()
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _read(self) -> None:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            self._current, self.problem = Orchestrators(), ""
            return
        except OSError as error:
            self._tell(f"{self._file}: {error.strerror}")
            return
        found, faults = check_orchestrators(self._file, content)
        if found is None:
            self._tell("\n".join(map(str, faults)))
            return
        if self.problem or self._current is not None:
            _log.info("%s: in force", self._file)
        self._current, self.problem = found, ""

    def _tell(self, problem: str) -> None:
        self.problem = problem
        goes_on = (
            "nobody can make sessions"
            if self._current is None
            else "the last good one goes on"
        )
        _log.error("%s is faulty, and %s:\n%s", self._file, goes_on, problem)
