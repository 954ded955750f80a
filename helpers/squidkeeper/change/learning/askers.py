"""Who asked: the clients for which rules are proposed, and the machines that are
counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_network

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.language.machines import Machines
from squidkeeper.policy.language.model import Client
from squidkeeper.policy.language.roles import Role
from squidkeeper.policy.url import Host, address_host, parse_address
from squidkeeper.record.log.record import NONE, decode_field
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)

_LONGEST_NAME = 100  # of a client in a policy
_CACHED = 65_536
_DIGITS = 12
_NOT_UTF8 = "\ufffd"
_UNNAMED = Machines(())


@dataclass(frozen=True, slots=True)
class Asker:
    """One client of a draft.

    `machine` is where it asks from, `known` the client of the policy that it is. Of a
    session it is the `role`.
    """

    name: str
    machine: str
    login: str | None = None
    known: Client | None = None
    network: Network | None = None
    session: str | None = None
    role: Role | None = None

    @property
    def counted(self) -> tuple[frozenset[str], frozenset[str]]:
        """What it counts as in `Evidence`: a machine, and a sender."""
        sender = self.machine if self.login is None else f"user {self.login}"
        sender = sender if self.session is None else f"session {self.session}"
        return frozenset({self.machine}), frozenset({sender})

    @property
    def definable(self) -> bool:
        """Whether a policy can name it: no user of spaces, with control characters or
        bytes that are not UTF-8.
        """
        if self.known is not None or self.login is None:
            return True
        return (
            bool(self.login.strip())
            and self.login.isprintable()
            and _NOT_UTF8 not in self.login
        )


@dataclass(slots=True)
class Askers:
    """Tells whose a use is.

    Each machine learns for itself; all machines of `only`, a client of the policy, for
    it.
    """

    policy: CompiledPolicy | None = None
    only: str | None = None
    sessions: RecordedSessions = NO_SESSIONS
    # of sessions, which the policy does not have
    unknown_roles: set[str] = field(default_factory=set)
    # machines by name, of a client of the policy
    _members: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, client: str, user: str, session: str) -> Asker | None:
        """Tell who sent what has these fields in the access log; None where that is not
        `only`, or a role that the policy does not have.
        """
        login = decode_field(user)
        try:
            address = address_host(parse_address(client))
        except InvalidUrl:
            return None
        if session != NONE:
            return self._of_session(address, session)
        clients = self._clients(address, login)
        if self.only is not None and self.only not in [one.name for one in clients]:
            return None
        asker = _asker(
            address, login, tuple(clients), self._names(), self._machine(address)
        )
        for one in clients:
            self._members.setdefault(one.name, {})[asker.name] = asker.machine
        if self.only is None:
            return asker
        known = next(client for client in clients if client.name == self.only)
        return Asker(self.only, asker.machine, login, known)

    def _of_session(self, address: Host, number: str) -> Asker | None:
        session = self.sessions.numbered(number)
        if session is None or session is Unknown.SESSION:
            return None
        roles = self.policy.source.roles if self.policy else ()
        role = next((role for role in roles if role.name == session.role), None)
        if role is None:
            self.unknown_roles.add(session.role)
        if role is None or self.only not in (None, role.name):
            return None
        machine = self._machine(address)
        return Asker(role.name, machine, session=number, role=role)

    def names(
        self, askers: Iterable[Asker]
    ) -> tuple[tuple[str, ...], tuple[Asker | Client, ...]]:
        """Name askers as a rule does, and give what a draft has to define for that.

        A client of the policy stands for its machines if it has at least two of them,
        and all that asked for anything.
        """
        left = {asker.name: asker for asker in askers}
        groups = []
        for client in (
            self.policy.source.clients if self.policy and self.only is None else ()
        ):
            members = self._members.get(client.name, {})
            if len(set(members.values())) > 1 and members.keys() <= left.keys():
                groups.append(client)
                left = {
                    name: asker for name, asker in left.items() if name not in members
                }
        alone = [left[name] for name in sorted(left, key=_by_address)]
        defined: tuple[Asker | Client, ...] = (
            *groups,
            *(asker.known or asker for asker in alone),
        )
        return tuple(asker.name for asker in defined), defined

    def divided(self, named: Iterable[str]) -> dict[str, int]:
        """Return the clients of the policy of which some machines are named one by one,
        and how many of them.
        """
        counts = {
            name: len(members.keys() & set(named))
            for name, members in self._members.items()
        }
        return {
            name: count
            for name, count in counts.items()
            if count > 1 and self.only is None
        }

    def _clients(self, address: Host, login: str | None) -> list[Client]:
        if self.policy is None:
            return []
        names = self.policy.clients_of(address, login)
        return [client for client in self.policy.source.clients if client.name in names]

    def _machine(self, address: Host) -> str:
        if address.address is None:
            return address.text
        return (self.policy.machines if self.policy else _UNNAMED).of(address.address)

    def _names(self) -> frozenset[str]:
        return (
            frozenset(client.name for client in self.policy.source.clients)
            if self.policy
            else frozenset()
        )


@lru_cache(_CACHED)
def _asker(
    address: Host,
    login: str | None,
    clients: tuple[Client, ...],
    names: frozenset[str],
    machine: str,
) -> Asker:
    known = next((client for client in clients if _is_one_machine(client)), None)
    if known:
        return Asker(known.name, machine, login, known)
    name = address.text if login is None else f"{login}@{address.text}"
    if login is not None and not (name.isprintable() and len(name) <= _LONGEST_NAME):
        name = f"user-{sha256(login.encode()).hexdigest()[:_DIGITS]}@{address.text}"
    while name in names:
        name = f"_{name}"
    return Asker(name, machine, login, network=ip_network(address.text))


def _is_one_machine(client: Client) -> bool:
    is_login = client.tokens is not None or (
        client.users is not None and len(client.users) == 1
    )
    return is_login or bool(client.single_addresses)


def _by_address(name: str) -> tuple[int, str]:
    try:
        return int(parse_address(name.rpartition("@")[2])), name
    except InvalidUrl:
        return 0, name
