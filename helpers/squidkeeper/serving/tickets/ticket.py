"""A question: its number, and who asks it.

The number is an HMAC of the question, so that every helper gives a question the same
one. Nobody can compute the number of another client's question without the key, which
lies in the state folder.

Machines have tickets, and share places with their network. A network has at most as
many places as are free. So one takes half of all, the next one half of the rest:
however many addresses an attacker has in one network, clients of others get tickets.
Clients that the policy names are one network each, and what they have is apart from
what all others have. Each session has a place of its own, whatever others have.
"""

import os
import re
from base64 import b32encode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from hmac import digest
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Final, Self

from squidkeeper.base.untrusted_file import read_untrusted
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.url import Address, address_host, parse_address

PLACES: Final = 512  # of clients that the policy names, and as many of all others
SESSION_PLACES: Final = 5_000
_NAMED: Final = "client "
_SESSION: Final = "session "  # no network, and no name of a client, begins so
_END: Final = "\n"  # no name of a client has it
_BITS_OF_IPV4, _BITS_OF_IPV6 = 24, 48
NUMBER: Final = re.compile(r"[a-z2-7]{12}")
_SESSION_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
_NUMBER_LENGTH: Final = (
    12  # characters of 5 bits: short enough to type, and one in 10^18 to guess
)
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class AskedRequest:
    """What is asked about: one client, method and whole URL, as Squid states them.

    `user` is empty without a login. `session` is the number of the session that asks,
    or 0.
    """

    client: str
    user: str
    method: str
    url: str
    session: int = 0


def ticket_number(key: bytes, asked: AskedRequest) -> str:
    """Return the number of the ticket for a request."""
    parts = (asked.client, asked.user, asked.method, asked.url)
    of_session = (str(asked.session),) if asked.session else ()
    encoded = [
        part.encode("utf-8", "surrogateescape") for part in (*parts, *of_session)
    ]
    text = b"".join(b"%d:%b" % (len(part), part) for part in encoded)
    return b32encode(digest(key, text, sha256))[:_NUMBER_LENGTH].decode().lower()


def ticket_key(file: Path) -> bytes:
    """Read the key of the gateway, or make it: the first process to do so decides.

    OSError if that fails.
    """
    try:
        return _read(file)
    except FileNotFoundError:
        _make(file)
        return _read(file)


def _read(file: Path) -> bytes:
    key = read_untrusted(file, _KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise OSError(f"{file} holds no key of {_KEY_BYTES} bytes: remove it")
    return key


def _make(file: Path) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with open(
        os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb"
    ) as opened:
        opened.write(os.urandom(_KEY_BYTES))
    try:
        os.link(new, file)  # never replaces the key of another process
    except FileExistsError:
        pass
    finally:
        new.unlink()


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine, and its network: a client of the policy, or a network of addresses."""

    network: str
    machine: str

    @classmethod
    def of_session(cls, number: int) -> Self:
        """Make that of a session."""
        return cls(f"{_SESSION}{number}", f"{_SESSION}{number}")

    @property
    def session(self) -> int:
        """The number of the session that it is, or 0."""
        return session_of_machine(self.machine)

    @property
    def place(self) -> str:
        """Its place, as text."""
        return f"{self.network}{_END}{self.machine}"

    def has_room(self, taken: Iterable[str]) -> bool:
        """Whether it has a place among those that are taken, or may take one."""
        alike = [place for place in taken if _kind(place) == _kind(self.place)]
        if self.session:
            return self.place in alike or len(alike) < SESSION_PLACES
        own = sum(place.startswith(self.network + _END) for place in alike)
        return self.place in alike or own < PLACES - len(alike)


def _kind(place: str) -> str:
    return next((kind for kind in (_NAMED, _SESSION) if place.startswith(kind)), "")


def session_of_machine(machine: str) -> int:
    """Return the number of the session whose tickets a machine's are; 0 for none."""
    number = machine.removeprefix(_SESSION)
    is_number = machine != number and _SESSION_NUMBER.fullmatch(number)
    return int(number) if is_number else 0


def session_of_place(place: str) -> int:
    """Return the number of the session whose place it is; 0 for none."""
    return session_of_machine(place.partition(_END)[0])


def holder_of(policy: CompiledPolicy, asked: AskedRequest) -> Holder:
    """Tell who asks: a session, or a machine.

    Where several clients of the policy match, it is the one with the fewest addresses.
    """
    if asked.session:
        return Holder.of_session(asked.session)
    address = parse_address(asked.client)
    clients = clients_by_size(policy, address, asked.user)
    return Holder(
        f"{_NAMED}{clients[0]}" if clients else _network(address),
        policy.machines.of(address),
    )


def clients_by_size(
    policy: CompiledPolicy, address: Address, user: str
) -> tuple[str, ...]:
    """Name the clients of the policy that a request belongs to, the one with the fewest
    addresses first.
    """
    names = policy.clients_of(address_host(address), user or None)
    sizes = (
        {client.name: client.size for client in policy.source.clients} if names else {}
    )
    return tuple(sorted(names, key=lambda name: (sizes[name], name)))


def _network(address: Address) -> str:
    bits = _BITS_OF_IPV6 if isinstance(address, IPv6Address) else _BITS_OF_IPV4
    return str(ip_network((address, bits), strict=False))
