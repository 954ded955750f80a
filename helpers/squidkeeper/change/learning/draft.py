"""A draft: what is proposed, and what is only listed; as a policy file, and as JSON."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from squidkeeper.base.formatting import quantity, thousands, utc_time
from squidkeeper.change.learning.askers import Asker
from squidkeeper.change.learning.path_shapes import Evidence
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.language.model import Client
from squidkeeper.record.log.record import format_time

_WIDTH: Final = 116
_CLIENTS_SHOWN: Final = 3
_LINES_LISTED: Final = 20  # of one reason; JSON has more


class Unproposed(StrEnum):
    """Why something is listed and not proposed."""

    NEW = "new"
    ADDRESS = "address"
    PRIVATE = "private"
    UPLOADS = "uploads"
    DENIED = "observed-deny"
    TUNNEL = "tunnel"
    UNUSUAL = "unusual"
    MANY_PATHS = "many-paths"
    MANY_HOSTS = "many-hosts"
    FEW_CLIENTS = "few-clients"
    FEW_DAYS = "few-days"


_EXPLAINED: Final[Mapping[Unproposed, str]] = {
    Unproposed.NEW: "first used within the last day",
    Unproposed.ADDRESS: "the host is an address, or its name holds one",
    Unproposed.PRIVATE: "the server had a private address: a rule needs `private: true`",
    Unproposed.UPLOADS: "much more was sent than came back",
    Unproposed.DENIED: "a rule that observes would deny it",
    Unproposed.TUNNEL: "tunnels that were not decrypted: a rule needs `tls: passthrough`",
    Unproposed.UNUSUAL: "no pattern matches the path, or the method cannot be listed",
    Unproposed.MANY_PATHS: "too many different paths to list them",
    Unproposed.MANY_HOSTS: "one client used too many hosts; these had the fewest requests",
    Unproposed.FEW_CLIENTS: "too few clients asked for it (--min-clients)",
    Unproposed.FEW_DAYS: "it was asked for on too few days (--min-days)",
}


@dataclass(frozen=True, slots=True)
class LearnedRule:
    """A rule of a draft, with what speaks for it.

    `port` is None where the schemes' own were used.
    """

    name: str
    clients: tuple[str, ...]
    hosts: tuple[str, ...]
    schemes: tuple[str, ...]
    port: int | None
    methods: tuple[str, ...]
    websocket: bool
    paths: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class LearnedPreset:
    """A preset that allows what these clients used."""

    name: str
    clients: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Listed:
    """What is not proposed: a host, or something of it, and why."""

    reason: Unproposed
    host: str
    detail: str
    clients: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft.

    `placed` counts the requests that it allows of `used`: those used, or asked for
    while observing.

    `defined` has the clients that its rules name.
    """

    defined: Mapping[str, Asker | Client]
    presets: tuple[LearnedPreset, ...]
    rules: tuple[LearnedRule, ...]
    listed: tuple[Listed, ...]
    placed: int
    used: Evidence | None


# A draft as a policy file, and as JSON.
#
# Clients chose the hosts, paths and user names. In YAML each text stands in double
# quotes, in ASCII; a comment holds nothing that ends its line.


def yaml_of(draft: Draft, notes: Iterable[str] = ()) -> str:
    """Write a draft as a file of a policy, with what is only listed as comments at its
    end.
    """
    sections = (
        _head(draft, notes),
        _clients(draft),
        _roles(draft),
        _presets(draft),
        _rules(draft),
        _listed(draft),
    )
    return "\n".join(
        "".join(f"{line}\n" for line in section)
        for section in map(tuple, sections)
        if section
    )


def json_of(draft: Draft, notes: Iterable[str] = ()) -> str:
    """Write a draft as one JSON object."""
    return json.dumps(
        {
            "used": _evidence(draft.used) if draft.used else None,
            "placed": draft.placed,
            "notes": list(notes),
            "presets": [
                {"preset": one.name, "clients": one.clients, **_evidence(one.evidence)}
                for one in draft.presets
            ],
            "rules": [
                {**dict(_fields(rule)), **_evidence(rule.evidence)}
                for rule in draft.rules
            ],
            "listed": [
                {
                    "reason": unproposed.reason,
                    "host": unproposed.host,
                    "detail": unproposed.detail,
                    "clients": unproposed.clients,
                    **_evidence(unproposed.evidence),
                }
                for unproposed in draft.listed
            ],
        },
        indent=2,
    )


def _evidence(evidence: Evidence) -> dict[str, object]:
    return {
        "requests": evidence.count,
        "first": format_time(evidence.first),
        "last": format_time(evidence.last),
        "days": len(evidence.days),
        "clients": evidence.clients,
    }


# --- the file -------------------------------------------------------------------------


def _head(draft: Draft, notes: Iterable[str]) -> Iterator[str]:
    yield from _comment(
        "A draft of `squidkeeper learn`: what was used, or asked for while the policy observed."
    )
    yield from _comment("Used: allowed, and answered with a status of 1xx to 3xx.")
    if draft.used:
        left = thousands(draft.used.count - draft.placed)
        yield from _comment(
            f"{_told(draft.used)}: {thousands(draft.placed)} are allowed here, {left} listed below."
        )
    yield from _comment(
        "Read it, and replay it before it is in force: squidkeeper replay --policy DIR"
    )
    for note in notes:
        yield from _comment(note)
    yield "version: 1"


def _clients(draft: Draft) -> Iterator[str]:
    clients = {
        name: asker
        for name, asker in draft.defined.items()
        if isinstance(asker, Client) or asker.role is None
    }
    if clients:
        yield "clients: # leave out those that another file of the policy has"
    for name, asker in clients.items():
        yield f"  {_text(name)}:"
        yield from _client(asker) if isinstance(asker, Client) else _asker(asker)


def _roles(draft: Draft) -> Iterator[str]:
    roles = [
        asker.role
        for asker in draft.defined.values()
        if isinstance(asker, Asker) and asker.role
    ]
    if roles:
        yield "roles: # leave out those that another file of the policy has"
    for role in roles:
        yield f"  {_text(role.name)}:"
        yield f"    ttl: {role.ttl // 60}m"
        if role.variables:
            yield "    variables:"
        for one in role.variables:
            within = ", ".join(_text(pattern.text) for pattern in one.within)
            holds = f"pattern: {_text(one.pattern)}" if one.pattern else ""
            holds = holds or f"within: [{within}]"
            yield f"      {one.name}: {{type: {one.type}, {holds}, many: {one.many}}}"


def _client(client: Client) -> Iterator[str]:
    if client.networks is not None:
        yield from _list("    networks", map(_network, client.networks))
    if client.users is not None:
        yield from _list("    users", sorted(client.users))
    if client.tokens is not None:
        tokens = (
            f"{{sha256: {_text(token.sha256)}{_until(token.expires)}}}"
            for token in client.tokens
        )
        yield f"    token_sha256: [{', '.join(tokens)}]"


def _network(network: Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


def _until(expires: datetime | None) -> str:
    return "" if expires is None else f", expires: {utc_time(expires)}"


def _asker(asker: Asker) -> Iterator[str]:
    if asker.network is not None:
        yield from _list("    networks", [_network(asker.network)])
    if asker.login is not None:
        yield from _list("    users", [asker.login])


def _presets(draft: Draft) -> Iterator[str]:
    if not draft.presets:
        return
    yield "presets:"
    for preset in draft.presets:
        yield f"  # {_told(preset.evidence)}"
        yield f"  - preset: {_text(preset.name)}"
        yield from _list("    clients", preset.clients)


def _rules(draft: Draft) -> Iterator[str]:
    if not draft.rules:
        return
    yield "rules:"
    for number, rule in enumerate(draft.rules):
        yield from ([""] if number else [])
        yield f"  # {_told(rule.evidence)}"
        (_, name), *fields = _fields(rule)
        yield f"  - name: {_text(str(name))}"
        for field, value in fields:
            if isinstance(value, tuple):
                yield from _list(f"    {field}", value, quoted=field in _QUOTED)
            else:
                yield f"    {field}: {str(value).lower()}"


_QUOTED: Final = frozenset({"clients", "hosts", "paths"})


def _fields(rule: LearnedRule) -> Iterator[tuple[str, object]]:
    yield "name", rule.name
    yield "action", "allow"
    yield "clients", rule.clients
    yield "hosts", rule.hosts
    yield "schemes", rule.schemes
    if rule.port is not None:
        yield "ports", (rule.port,)
    yield "methods", rule.methods
    yield "paths", rule.paths
    if rule.websocket:
        yield "websocket", True


def _listed(draft: Draft) -> Iterator[str]:
    if not draft.listed:
        return
    yield from _comment("Listed, not proposed:")
    reasons: dict[Unproposed, list[Listed]] = {}
    for unproposed in draft.listed:
        reasons.setdefault(unproposed.reason, []).append(unproposed)
    for reason, some in reasons.items():
        yield "#"
        yield from _comment(f"{reason}: {_EXPLAINED[reason]}")
        for unproposed in some[:_LINES_LISTED]:
            what = " ".join(filter(None, (unproposed.host, unproposed.detail)))
            yield f"#   {_shown(what)}: {_told(unproposed.evidence)}, by {_shown(_some(unproposed.clients))}"
        left = some[_LINES_LISTED:]
        if left:
            requests = sum(apart.evidence.count for apart in left)
            yield f"#   and {thousands(len(left))} more, with {quantity(requests, 'request')}"


# --- texts ----------------------------------------------------------------------------


def _told(evidence: Evidence) -> str:
    first, last = (f"{at:%Y-%m-%d %H:%M}" for at in (evidence.first, evidence.last))
    period = (
        first
        if first == last
        else f"{first} to {last[11:] if first[:10] == last[:10] else last}"
    )
    return f"{quantity(evidence.count, 'request')}, {quantity(evidence.clients, 'client')}, {period}"


def _some(clients: tuple[str, ...]) -> str:
    more = len(clients) - _CLIENTS_SHOWN
    return ", ".join(
        (*clients[:_CLIENTS_SHOWN], *([f"and {more} more"] if more > 0 else []))
    )


def _text(text: str) -> str:
    """Write a text in double quotes, in ASCII. JSON's pairs of escapes for one
    character are not YAML's.
    """
    return "".join(
        one if " " <= one <= "~" else _escape(one)
        for one in json.dumps(text, ensure_ascii=False)
    )


def _escape(character: str) -> str:
    return (
        f"\\u{ord(character):04x}"
        if character <= "\uffff"
        else f"\\U{ord(character):08x}"
    )


def _shown(text: str) -> str:
    """Write a text for a comment: ASCII, without a character that ends a line."""
    return _text(text)[1:-1]


def _comment(text: str) -> Iterator[str]:
    yield from (f"# {line}" for line in textwrap.wrap(_shown(text), _WIDTH))


def _list(key: str, values: Iterable[str], *, quoted: bool = True) -> Iterator[str]:
    *written, last = [_text(value) if quoted else str(value) for value in values]
    line = f"{key}: ["
    indent = " " * (len(key) - len(key.lstrip()) + 4)
    for word in (*(f"{value}," for value in written), f"{last}]"):
        space = "" if line.endswith(("[", " ")) else " "
        if len(line) + len(space) + len(word) > _WIDTH and line.strip():
            yield line
            line, space = indent, ""
        line += f"{space}{word}"
    yield line
