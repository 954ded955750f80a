"""A grant that a command is to make: from what a person writes to an entry of `grants`,
and what it opens.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count, product
from typing import Any

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import utc_time
from squidkeeper.policy.engine import CompiledPolicy, Decision, decide
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.hosts import (
    HostPattern,
    parse_host_pattern,
    sample_host,
)
from squidkeeper.policy.language.matching.table import share_a_client
from squidkeeper.policy.language.model import Action, Client, Policy, Rule
from squidkeeper.policy.language.paths import sample_path
from squidkeeper.policy.language.roles import Role, Session
from squidkeeper.policy.protocol.request import Malformed, Request, request_to
from squidkeeper.policy.url import DEFAULT_PORTS, parse_host

_WITH_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*):(?P<port>[0-9]{1,5})")
_STEM_LENGTH = 60
_METHODS = ("GET", "POST")
_PATHS = ("/", "/any")
_SAMPLE_VALUE = "any"


@dataclass(frozen=True, slots=True)
class NewGrant:
    """What is granted: hosts, schemes, ports, paths, or exact URLs.

    Without `clients`, to any; `by` is who grants.
    """

    expires: datetime
    reason: str
    by: str
    clients: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    uses: int | None = None

    def named(self, taken: Collection[str]) -> str:
        """Make up a name after the host that no rule and no grant has; metrics have a
        series for each name.
        """
        host = (
            self.hosts
            or tuple(url.partition("://")[2].partition("/")[0] for url in self.urls)
            or ("",)
        )[0]
        stem = f"grant-{re.sub(r'[^a-z0-9]+', '-', host.lower()).strip('-')}"[
            :_STEM_LENGTH
        ]
        numbered = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        return next(name for name in numbered if name not in taken)

    def entry(self, name: str, made: datetime) -> Iterator[tuple[str, object]]:
        """Return the fields of the entry, in their order."""
        yield "name", name
        yield from (
            [("clients", [*self.clients])] if self.clients else [("any_client", True)]
        )
        for key in ("hosts", "schemes", "ports", "paths", "urls", "methods"):
            if values := getattr(self, key):
                yield key, [*values]
        yield "expires", utc_time(self.expires)
        if self.uses is not None:
            yield "uses", self.uses
        yield from (("reason", self.reason), ("by", self.by), ("made", utc_time(made)))


def parse_target(text: str) -> dict[str, Any]:
    """Read HOST[:PORT][/PATH], patterns as in a policy, or a whole URL, which is meant
    exactly; `PatternError`.

    The host is written as it is compared: in punycode.
    """
    if "://" in text:
        return {"urls": (parse_exact_url(text).text,)}
    authority, slash, rest = text.partition("/")
    if not authority:
        raise PatternError(
            f"{text!r} has no host, expected HOST[:PORT][/PATH] or a whole URL"
        )
    if "?" in rest:
        raise PatternError(
            f"{text!r} has a query, expected the whole URL (https://…), which is then meant exactly"
        )
    host, port = _split(authority)
    fields: dict[str, Any] = {"hosts": (spelled(parse_host_pattern(host)),)}
    if port:
        fields["ports"] = (int(port),)
    if slash:
        fields["paths"] = (f"/{rest}",)
    return fields


def _split(authority: str) -> tuple[str, str]:
    """Cut the port off; an IPv6 address without brackets has none."""
    found = _WITH_PORT.fullmatch(authority)
    return (
        (found["host"].strip("[]"), found["port"])
        if found
        else (authority.strip("[]"), "")
    )


def spelled(pattern: HostPattern) -> str:
    """Write a host pattern as it is compared."""
    return pattern.text if pattern.network is not None else pattern.key


@dataclass(frozen=True, slots=True)
class Effect:
    """What was found by requests that a grant is for: whether it opens one, and what
    decides the others.

    Of a grant that no request can be made up for, as of an expression, it is taken to
    open some.
    """

    opens: bool
    deniers: tuple[Decision, ...]
    openers: tuple[Decision, ...]  # that open it without the grant
    credentials: tuple[str, ...]  # of the policy, that requests it opens get
    # denies for the same host and clients, of which each may close a part
    closing: tuple[Rule, ...]


def effect_of(policy: CompiledPolicy, grant: Rule, at: datetime) -> Effect:
    """Try a grant of a policy."""
    decisions = [
        decide(policy, policy.match(request), at)
        for request in _requests(policy.source, grant)
    ]
    opened = [decision for decision in decisions if _is_opened_by(grant, decision)]
    others = {
        decision.rule: decision
        for decision in decisions
        if not _is_opened_by(grant, decision)
    }.values()
    return Effect(
        opens=bool(opened) or not decisions,
        deniers=tuple(other for other in others if not other.allowed),
        openers=tuple(other for other in others if other.allowed),
        credentials=tuple(
            dict.fromkeys(
                credential.name
                for opening in opened
                for credential in opening.credentials
            )
        ),
        closing=() if grant.match.urls else tuple(_closing(policy, grant, at)),
    )


def _is_opened_by(grant: Rule, decision: Decision) -> bool:
    """Whether a grant opens a request, also one that other rules open for
    some bodies.
    """
    named = (decision.location, *(rule.location for rule in decision.by_body))
    return decision.allowed and grant.location in named


def _requests(policy: Policy, grant: Rule) -> Iterator[Request | Malformed]:
    named = grant.match.clients or ()
    sessions = [_session(role) for role in policy.roles if role.name in named]
    clients = [_asker(one) for one in policy.clients if one.name in named]
    if not (clients or sessions):
        clients = [(None, None)]
    methods = sorted(grant.match.methods or _METHODS)
    for method, url in product(methods, _urls(grant)):
        yield from (request_to(method, url, *asker) for asker in clients)
        request = request_to(method, url)
        if isinstance(request, Request):
            yield from (request._replace(session=session) for session in sessions)


def _session(role: Role) -> Session:
    """Make a session of a role: no grant depends on its values."""
    values = {
        variable.name: (
            next(filter(None, map(sample_host, variable.within)), _SAMPLE_VALUE),
        )
        for variable in role.variables
    }
    return Session.assumed(role.name, values)


def _asker(client: Client) -> tuple[str | None, str | None]:
    networks, users = client.networks or (), sorted(client.users or ())
    address = (
        str(networks[0][min(1, networks[0].num_addresses - 1)]) if networks else None
    )
    return address, client.name if client.tokens is not None else next(
        iter(users), None
    )


def _urls(grant: Rule) -> Iterator[str]:
    match = grant.match
    if match.urls:
        yield from (exact.text for exact in match.urls)
        return
    paths = [sample_path(pattern.text) for pattern in match.paths or ()] or _PATHS
    for scheme, pattern, path in product(
        sorted(match.schemes or DEFAULT_PORTS), match.hosts or (), paths
    ):
        ports = (
            [DEFAULT_PORTS[scheme]]
            if match.ports is None
            else [ports[0] for ports in match.ports]
        )
        host = sample_host(pattern)
        if host and path:
            yield from (f"{scheme}://{host}:{port}{path}" for port in ports)


def _closing(policy: CompiledPolicy, grant: Rule, at: datetime) -> Iterator[Rule]:
    hosts = [
        parse_host(host)
        for pattern in grant.match.hosts or ()
        if (host := sample_host(pattern))
    ]
    positions = {
        position for host in hosts for position in policy.rules.positions(host)
    }
    for rule in (policy.source.rules[position] for position in sorted(positions)):
        if (
            rule.action is Action.DENY
            and not rule.observe
            and not rule.lapsed(at)
            and share_a_client(rule, grant)
        ):
            yield rule
