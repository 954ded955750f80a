"""What is legal in a policy but surely unmeant (floor 2): the warnings that need the whole of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from squidkeeper.policy.faults import Fault, Location
from squidkeeper.policy.hosts import HostForm, HostPattern, Network, host_keys
from squidkeeper.policy.lists import HostList
from squidkeeper.policy.model import Action, Credential, Match, Policy, Rewrite, Rule
from squidkeeper.url import DEFAULT_PORTS, Host


def lint(policy: Policy, now: datetime) -> tuple[Fault, ...]:
    """List the warnings about a policy as it stands at `now`, in the order of their places."""
    return tuple(
        sorted(
            {
                *_lapsed(policy, now),
                *_shadowed(policy, now),
                *_unused(policy),
                *_public_suffixes(policy),
                *_never(policy),
            }
        )
    )


def _lapsed(policy: Policy, now: datetime) -> Iterator[Fault]:
    for rule in policy.rules:
        if rule.expires is not None and rule.lapsed(now):
            yield Fault(rule.location, f"rule {rule.name!r} lapsed at {rule.expires.isoformat()} and no longer matches")


def _unused(policy: Policy) -> Iterator[Fault]:
    entries: tuple[Rule | Rewrite | Credential, ...] = (*policy.rules, *policy.rewrites, *policy.credentials)
    matches = [entry.match for entry in entries]
    sections: tuple[tuple[str, Mapping[str, Location], set[str]], ...] = (
        ("client", {client.name: client.location for client in policy.clients}, _all(m.clients for m in matches)),
        ("list", {name: hosts.location for name, hosts in policy.lists.items()}, _all(m.lists for m in matches)),
        ("secret", {s.name: s.location for s in policy.secrets.values()}, _all(c.secrets for c in policy.credentials)),
    )
    for kind, defined, used in sections:
        for name, location in defined.items():
            if name not in used:
                yield Fault(location, f"{kind} {name!r} is not used")


def _all(groups: Iterable[Iterable[str] | None]) -> set[str]:
    return {name for group in groups for name in group or ()}


def _never(policy: Policy) -> Iterator[Fault]:
    for credential in policy.credentials:
        if credential.match.schemes is not None and "https" not in credential.match.schemes:
            message = (
                f"credential {credential.name!r} is never sent: its schemes leave out https, without which none is"
            )
            yield Fault(credential.location, message)


def _public_suffixes(policy: Policy) -> Iterator[Fault]:
    rules = [(rule.location, f"rule {rule.name!r}", rule.match) for rule in policy.rules if rule.action is Action.ALLOW]
    rules += [(one.location, f"credential {one.name!r}", one.match) for one in policy.credentials]
    wild = [
        (location, what, pattern)
        for location, what, match in rules
        for pattern in match.hosts or ()
        if pattern.form in _WILDCARDS and "." in pattern.name
    ]
    if not wild:
        return
    from publicsuffixlist import PublicSuffixList  # late: only lint needs it

    suffixes = PublicSuffixList()
    for location, what, pattern in wild:
        if suffixes.is_public(pattern.name):
            yield Fault(
                location, f"{what}: {pattern.text!r} covers a public suffix, under which anyone can have a host"
            )


_WILDCARDS = (HostForm.TREE, HostForm.LABEL, HostForm.UNDER)

# --- shadowed rules -----------------------------------------------------------------------------------------------


def _shadowed(policy: Policy, now: datetime) -> Iterator[Fault]:
    """Find the rules that a certain rule for all clients, over the same or more, leaves nothing to decide."""
    deciders = _Deciders(policy.lists)
    for position, rule in enumerate(policy.rules):
        if rule.lapsed(now):
            continue
        first = next((one for one in deciders.over(rule.match) if _outlasts(one, rule) and _reaches(one, rule)), None)
        if first is not None:
            message = (
                f"rule {rule.name!r} can never decide: {first.name!r} ({first.location}) decides all it could match"
            )
            yield Fault(rule.location, message)
        if rule.certain and rule.match.clients is None:
            deciders.add(position, rule)


def _outlasts(decider: Rule, rule: Rule) -> bool:
    """Tell whether a rule goes on deciding for as long as another could match."""
    return decider.expires is None or (rule.expires is not None and rule.expires <= decider.expires)


def _reaches(decider: Rule, rule: Rule) -> bool:
    """Tell whether a rule has all schemes and ports of another."""
    return all(
        any(ports.start <= asked.start and asked.stop <= ports.stop for ports in _ports(decider, scheme))
        for scheme in DEFAULT_PORTS
        for asked in _ports(rule, scheme)
    )


def _ports(rule: Rule, scheme: str) -> list[range]:
    """List the ports that a rule covers for a scheme, neighbours joined."""
    if rule.match.schemes is not None and scheme not in rule.match.schemes:
        return []
    if rule.match.ports is None:
        default = DEFAULT_PORTS[scheme]
        return [range(1, 1 << 16) if rule.action is Action.DENY else range(default, default + 1)]
    joined: list[range] = []
    for ports in sorted(rule.match.ports, key=lambda one: one.start):
        if joined and ports.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, ports.stop))
        else:
            joined.append(ports)
    return joined


class _Deciders:
    """The certain rules met so far, by the host patterns that they match."""

    def __init__(self, lists: Mapping[str, HostList]) -> None:
        self._lists = lists
        self._rules: dict[int, Rule] = {}
        self._by_key: dict[str, set[int]] = {}
        self._by_list: dict[str, set[int]] = {}
        self._networks: list[tuple[Network, int]] = []

    def add(self, position: int, rule: Rule) -> None:
        self._rules[position] = rule
        match = rule.match
        if match.hosts is None and match.lists is None:
            self._by_key.setdefault(HostForm.ANY, set()).add(position)
        for pattern in match.hosts or ():
            if pattern.network is not None:
                self._networks.append((pattern.network, position))
            else:
                self._by_key.setdefault(pattern.key, set()).add(position)
        for name in match.lists or ():
            self._by_list.setdefault(name, set()).add(position)

    def over(self, match: Match) -> list[Rule]:
        """List the rules whose hosts hold wherever those of `match` do, the first ones first."""
        positions = set(self._rules)
        for pattern in _patterns(match):
            positions &= self._over_pattern(pattern)
            if not positions:
                return []
        for name in match.lists or ():
            positions &= self._by_list.get(name, set()) | self._by_key.get(HostForm.ANY, set())
        return [self._rules[position] for position in sorted(positions)]

    def _over_pattern(self, pattern: HostPattern) -> set[int]:
        keys = _wider_keys(pattern)
        found = {position for key in keys for position in self._by_key.get(key, ())}
        network = pattern.network
        if network is not None:
            found.update(position for wider, position in self._networks if _holds(wider, network))
        for name, positions in self._by_list.items():
            hosts = self._lists[name]
            if hosts.has_key(keys) or (network is not None and hosts.covers_network(network)):
                found |= positions
        return found


def _patterns(match: Match) -> tuple[HostPattern, ...]:
    if match.hosts is None and match.lists is None:
        return (HostPattern("*", HostForm.ANY),)
    return match.hosts or ()


def _wider_keys(pattern: HostPattern) -> Sequence[str]:
    """List the keys of the patterns that match every host which this one matches."""
    if pattern.network is not None or pattern.form is HostForm.ANY:
        return [HostForm.ANY]
    if pattern.form is HostForm.EXACT:
        return host_keys(Host(pattern.name))
    itself = {HostForm.TREE: (".",), HostForm.LABEL: ("*.", ".", "**."), HostForm.UNDER: (".", "**.")}[pattern.form]
    above = [key for key in host_keys(Host(pattern.name)) if key.startswith((".", "**.")) and key != f".{pattern.name}"]
    return [*(f"{form}{pattern.name}" for form in itself), *above, HostForm.ANY]


def _holds(wider: Network, network: Network) -> bool:
    return wider.version == network.version and wider.supernet_of(network)  # type: ignore[arg-type] # the same version
