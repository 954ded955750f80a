"""The ports of an entry, for each scheme; `schemes` and `ports` are one field here."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Final

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.model import AnyEntry, Credential, covers_every_port
from squidkeeper.policy.url import DEFAULT_PORTS

EVERY_PORT: Final = range(1, 1 << 16)


def ports_of(entry: AnyEntry, scheme: str) -> list[range]:
    """List the ports that an entry is for, joined, in their order."""
    match = entry.match
    if match.schemes is not None and scheme not in match.schemes:
        return []
    if isinstance(entry, Credential) and scheme != "https":
        return []
    if match.ports is not None:
        return joined(match.ports)
    default = DEFAULT_PORTS[scheme]
    return [EVERY_PORT if covers_every_port(entry) else range(default, default + 1)]


def joined(some: Iterable[range]) -> list[range]:
    """Join the ranges that touch."""
    found: list[range] = []
    for ports in sorted(some, key=lambda span: span.start):
        if found and ports.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, ports.stop))
        else:
            found.append(ports)
    return found


def common(some: Iterable[range], others: Iterable[range]) -> Iterator[range]:
    """List the ports that are in both."""
    for one, two in product(some, others):
        both = range(max(one.start, two.start), min(one.stop, two.stop))
        if both:
            yield both


def contain(ports: Iterable[range], asked: range) -> bool:
    """Whether joined ranges hold all of another one."""
    return any(held.start <= asked.start and asked.stop <= held.stop for held in ports)


def share_a_port(one: AnyEntry, two: AnyEntry, _: Mapping[str, HostList]) -> bool:
    """Whether some port of a scheme is one of both."""
    return any(
        any(common(ports_of(one, scheme), ports_of(two, scheme)))
        for scheme in DEFAULT_PORTS
    )


def cover_ports(wide: AnyEntry, narrow: AnyEntry) -> bool:
    """Whether each port of the narrow entry is one of the wide one."""
    return all(
        contain(ports_of(wide, scheme), asked)
        for scheme in DEFAULT_PORTS
        for asked in ports_of(narrow, scheme)
    )
