"""Host shapes: from the hosts that were read from to few host patterns, never wider than one owner's domain.

Whose a domain is, the public suffix list says, with its private part: `a.github.io` and `b.github.io` have two owners.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from squidkeeper.change.learning.evidence import Evidence, total, without_loudest
from squidkeeper.change.learning.path_shapes import PATTERNS_LISTED, VALUES_LISTED
from squidkeeper.policy.language.public_suffixes import is_public_suffix, registrable_domain
from squidkeeper.policy.url import Host

_EMBEDDED_ADDRESS: Final = re.compile(r"(?:^|[^0-9])[0-9]{1,3}([.-])[0-9]{1,3}\1[0-9]{1,3}\1[0-9]{1,3}(?![0-9])")


def is_address_like(host: Host) -> bool:
    """Tell whether a host is an address, or a name that holds one, as `203-0-113-7.example.com` does."""
    return host.address is not None or _EMBEDDED_ADDRESS.search(host.text) is not None


def is_shared(name: str) -> bool:
    """Tell whether many owners have paths of a host, as in a store whose paths begin with a bucket."""
    return name in _BUCKETS_IN_PATHS or ("." in name and is_public_suffix(name))


def host_patterns(hosts: Mapping[str, Evidence]) -> dict[str, str]:
    """Give the pattern for each host: itself, `*.parent`, or `**.domain` of the owner's registrable domain."""
    parents = {name: name.partition(".")[2] for name in hosts if _has_owned_parent(name)}
    one_label = {name: f"*.{parents[name]}" for name in _many(parents, hosts, VALUES_LISTED)}
    rest = {name: str(registrable_domain(name)) for name in parents}
    places = {name: one_label.get(name, name) for name in rest}
    deep = {name: f"**.{rest[name]}" for name in _many(rest, hosts, PATTERNS_LISTED, places)}
    return {name: deep.get(name, one_label.get(name, name)) for name in hosts}


def _has_owned_parent(name: str) -> bool:
    domain = registrable_domain(name)
    return domain is not None and name != domain


def _many(
    groups: Mapping[str, str], hosts: Mapping[str, Evidence], at_most: int, places: Mapping[str, str] | None = None
) -> Iterable[str]:
    members: dict[str, dict[str, list[Evidence]]] = {}
    for name, group in groups.items():
        place = places[name] if places else name
        members.setdefault(group, {}).setdefault(place, []).append(hosts[name])
    for group, found in members.items():
        if without_loudest(total(one) for one in found.values()) > at_most:
            yield from (name for name, own in groups.items() if own == group)


# Stores with the bucket as the first segment of the path, which the public suffix list does not name.
_BUCKETS_IN_PATHS: Final = frozenset({"storage.googleapis.com", "storage.cloud.google.com"})
