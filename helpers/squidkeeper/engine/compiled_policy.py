"""A policy with its entries by host (floor 3): which of them can apply to a request, whatever its URL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, TypeVar

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.engine.decision import Decision, deny
from squidkeeper.engine.fields import HostFacts, covers_default_port, holds_for_host
from squidkeeper.policy.faults import Location
from squidkeeper.policy.forms import signs
from squidkeeper.policy.host_index import HostIndex
from squidkeeper.policy.model import Action, Credential, Match, Policy, Rewrite, Route, Rule
from squidkeeper.protocol.request import ANY_LOGIN, CONNECT, Malformed, Request
from squidkeeper.url import Host

EntryT = TypeVar("EntryT", Rule, Rewrite, Credential, Route)
# In a policy with upstreams, where none of them holds: the parent of install.sh's --upstream, if there is one.
DEFAULT_UPSTREAM = Route("default", Location(""), Match(), "default")
_CACHE_BYTES, _OBJECT_BYTES, _SPAN_BYTES = 4 * 1024 * 1024, 1_000, 400
LOGIN_REFUSED = "login-refused"
_NO_CLIENT = "The policy has no client {} with tokens any longer."
_OTHER_NETWORK = "The networks of the client {} do not hold this address."
_REVOKED = "The policy does not hold the token of the client {} (any longer)."
TOKEN_LAPSED = deny(LOGIN_REFUSED, "The token has expired.")
_OTHER_METHOD = ""  # one that no entry names: clients make up methods, and each would have candidates of its own
_PREFLIGHT = "OPTIONS"  # the preflight of CORS carries no credential


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The entries whose fields hold without the URL, in the policy's order; many hosts share them.

    `rule_positions` are the positions of all rules for the host, whatever their other fields; `lapses` the times at
    which one of these rules expires. `default` decides where no rule holds. `at_host` has the decision at host scope
    for each span between two of the `lapses`.
    """

    rules: tuple[Rule, ...]
    rewrites: tuple[Rewrite, ...]
    credentials: tuple[Credential, ...]
    rule_positions: tuple[int, ...]
    lapses: tuple[datetime, ...]
    default: Decision
    upstream: Route | None = None
    at_host: dict[int, Decision] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """Estimate the bytes of the references and of `at_host`."""
        held = (self.rules, self.rewrites, self.credentials, self.rule_positions)
        return 8 * sum(map(len, held)) + _SPAN_BYTES * len(self.lapses)


class HostMatch(NamedTuple):
    """What a policy holds for a request, whatever its URL and the time; `denial` where the request is malformed.

    `url` is the request's, as it was stated; None stands for every URL of the host. `spliced` is the request's.
    `lapses` is when the token of the login expires.
    """

    facts: HostFacts
    candidates: Candidates
    url: str | None = None
    denial: Decision | None = None
    spliced: bool = False
    lapses: datetime | None = None

    @property
    def depends_on_time(self) -> bool:
        """Tell whether the decision is another one later: a rule for the host expires, or the token of the login."""
        return bool(self.candidates.lapses) or self.lapses is not None


class CompiledPolicy:
    """A policy that is ready to decide by. Its caches change no decision."""

    def __init__(self, policy: Policy) -> None:
        self.source = policy
        self._logins = {client.name: client for client in policy.clients if client.tokens is not None}
        tokens = (token for client in self._logins.values() for token in client.tokens or ())
        ends = (*(rule.expires for rule in policy.rules), *(token.expires for token in tokens))
        self.lapses = tuple(sorted(end for end in ends if end is not None))
        self.revision = policy.revision
        self.rules = HostIndex(policy.rules, policy.lists)
        self.rewrites = HostIndex(policy.rewrites, policy.lists)
        self.credentials = HostIndex(policy.credentials, policy.lists)
        self.upstreams = HostIndex(policy.upstreams, policy.lists)
        self._methods = frozenset(_named_methods(policy)) | {"GET", _PREFLIGHT}
        # Microseconds of a line with and without each: unknown host 6/30; with 22 clients 7/15; credential 11/31.
        self._candidates: BoundedCache[tuple[object, ...], Candidates] = BoundedCache(_CACHE_BYTES)
        self._clients: BoundedCache[tuple[str | None, ...], tuple[str, ...]] = BoundedCache(_CACHE_BYTES)
        self._decisions: BoundedCache[object, Decision] = BoundedCache(_CACHE_BYTES)

    def match(self, request: Request | Malformed) -> HostMatch:
        """Look up all that needs no URL and no clock."""
        if isinstance(request, Malformed):
            denial = deny(request.rule, request.reason)
            return HostMatch(_NO_FACTS, Candidates((), (), (), (), (), denial), request.url, denial)
        lapses = None
        if request.login is not None or request.user in self._logins:
            refused, lapses = self._check_login(request)
            if refused:
                return HostMatch(_NO_FACTS, Candidates((), (), (), (), (), refused), request.url, refused)
        clients = self.clients_of(request.client, request.user) if self.source.clients else ()
        method = request.method if request.method in self._methods else self._unnamed_method(request.method)
        facts = HostFacts(clients, method, request.scheme, request.host, request.port)
        return HostMatch(facts, self._candidates_for(facts), request.url, None, request.spliced, lapses)

    def _check_login(self, request: Request) -> tuple[Decision | None, datetime | None]:
        """Deny a login that the policy does not hold any longer; give also when it lapses, None for never.

        The client does not become an unknown one: a deny for it would end with its token.
        """
        client = self._logins.get(request.user or "")
        if client is None:
            known = request.login == ANY_LOGIN  # of a user that is no client with tokens
            return (None if known else deny(LOGIN_REFUSED, _NO_CLIENT.format(request.user))), None
        if not client.within_networks(request.client and request.client.address):
            return deny(LOGIN_REFUSED, _OTHER_NETWORK.format(client.name)), None
        tokens = [token for token in client.tokens or () if request.login in (token.id, ANY_LOGIN)]
        if not tokens:
            return deny(LOGIN_REFUSED, _REVOKED.format(client.name)), None
        ends = [token.expires for token in tokens if token.expires is not None]
        return None, max(ends) if len(ends) == len(tokens) else None

    def matches_of_logins(self, request: Request | Malformed) -> Iterator[HostMatch]:
        """Match a request without a login as each client that could log in for it, and that an allow is for.

        Squid can ask for a login at a CONNECT and outside of tunnels, not inside.
        """
        if not self._logins or isinstance(request, Malformed) or request.user is not None:
            return
        if request.scheme == "https" and request.method != CONNECT:
            return
        rules = (self.source.rules[position] for position in self.rules.positions(request.host))
        opened = {name for rule in rules if rule.action is Action.ALLOW for name in rule.match.clients or ()}
        for name in self._logins if opened else ():
            if not opened.isdisjoint(self.clients_of(request.client, name)):
                yield self.match(request._replace(user=name, login=ANY_LOGIN))

    def clients_of(self, client: Host | None, user: str | None) -> tuple[str, ...]:
        """Name the policy's clients that a request belongs to, in the policy's order."""
        key = (client and client.text, user)
        known = self._clients.get(key)
        if known is None:
            address = client and client.address
            known = tuple(one.name for one in self.source.clients if one.matches(address, user))
            self._clients.add(key, known, _object_bytes(user, *known))
        return known

    def injectable(self, facts: HostFacts, positions: tuple[int, ...] | None = None) -> tuple[Credential, ...]:
        """List the credentials whose fields hold without the URL; `positions` are those for the host."""
        if not injects(facts):
            return ()
        positions = self.credentials.positions(facts.host) if positions is None else positions
        return tuple(holding(self.source.credentials, positions, facts))

    def upstream(self, facts: HostFacts, positions: tuple[int, ...] | None = None) -> Route | None:
        """Give where a request to a host is forwarded; None in a policy without upstreams."""
        if not self.source.upstreams:
            return None
        positions = self.upstreams.positions(facts.host) if positions is None else positions
        return next(holding(self.source.upstreams, positions, facts), DEFAULT_UPSTREAM)

    def needs_headers(self, candidates: Candidates) -> bool:
        """Tell whether the credential helper has to see the headers of a request with these candidates."""
        if self.source.sealing_keys:  # any header could hold a sealed token
            return True
        # A rewrite can lead to a host with any credential.
        credentials = self.source.credentials if candidates.rewrites else candidates.credentials
        return any(signs(one.form) for one in credentials)

    def decision_by(self, rule: Rule) -> Decision:
        """Give the decision of a rule for one URL: the same object each time, so that its reply is written once."""
        known = self._decisions.get(rule.name)
        if known is None:
            known = decision_of(rule)
            self._decisions.add(rule.name, known, _OBJECT_BYTES)
        return known

    def with_credentials(self, decision: Decision, credentials: tuple[Credential, ...]) -> Decision:
        """Add the credentials that apply: the same object each time, unless the request is rewritten."""
        if credentials == decision.credentials:
            return decision
        if decision.rewritten is not None:
            return replace(decision, credentials=credentials)
        names = [credential.name for credential in credentials]
        key = (decision, *names)
        known = self._decisions.get(key)
        if known is None:
            known = replace(decision, credentials=credentials)
            self._decisions.add(key, known, _object_bytes(*names))
        return known

    def _unnamed_method(self, method: str) -> str | None:
        if method == CONNECT:
            return None
        return method.lower() if method.upper() in self._methods else _OTHER_METHOD

    def _candidates_for(self, facts: HostFacts) -> Candidates:
        """Find the candidates. They depend on the host by positions alone, so most hosts share theirs with others."""
        rules, rewrites = self.rules.positions(facts.host), self.rewrites.positions(facts.host)
        credentials, upstreams = self.credentials.positions(facts.host), self.upstreams.positions(facts.host)
        key = (facts.clients, facts.method, facts.scheme, facts.port, rules, rewrites, credentials, upstreams)
        known = self._candidates.get(key)
        if known is None:
            policy = self.source
            known = Candidates(
                tuple(holding(policy.rules, rules, facts)),
                tuple(holding(policy.rewrites, rewrites, facts)),
                self.injectable(facts, credentials),
                rules,
                tuple(sorted(filter(None, (policy.rules[position].expires for position in rules)))),
                self._default(facts),
                self.upstream(facts, upstreams),
            )
            self._candidates.add(key, known, _object_bytes(facts.method, *facts.clients) + known.held_bytes)
        return known

    def _default(self, facts: HostFacts) -> Decision:
        if self.source.default_action is Action.DENY:
            return deny("default", self.source.default_reason or "No rule of the policy allows this request.")
        if not covers_default_port(facts.scheme, facts.port):
            return deny("default", f"The default allows {facts.scheme} on its own port, and no rule port {facts.port}.")
        return Decision(Action.ALLOW, "default")


def decision_of(rule: Rule, *, private: bool = False) -> Decision:
    """Make the decision of a rule that decides; `private` where a rule that it stands for allows a private address."""
    reason = rule.reason or (None if rule.action is Action.ALLOW else f"The rule {rule.name} denies this.")
    private = private or rule.private
    return Decision(rule.action, rule.name, reason, rule.location, private, websocket=rule.websocket, strip=rule.strip)


def injects(facts: HostFacts) -> bool:
    """Tell whether a request can get any credential: over https alone, and never the preflight of CORS."""
    return facts.scheme == "https" and facts.method != _PREFLIGHT


def holding(entries: tuple[EntryT, ...], positions: tuple[int, ...], facts: HostFacts) -> Iterator[EntryT]:
    """Give the entries at these positions whose fields hold without the URL."""
    return (entries[position] for position in positions if holds_for_host(entries[position], facts))


def in_force(rules: Iterable[Rule], at: datetime) -> Iterator[Rule]:
    """Give the rules that have not expired."""
    return (rule for rule in rules if rule.expires is None or not rule.lapsed(at))


def _named_methods(policy: Policy) -> Iterator[str]:
    sections: tuple[tuple[Rule | Rewrite | Credential, ...], ...] = (policy.rules, policy.rewrites, policy.credentials)
    return (method for section in sections for entry in section for method in entry.match.methods or ())


def _object_bytes(*texts: str | None) -> int:
    """Estimate the bytes of an object that these texts name."""
    return _OBJECT_BYTES + 4 * sum(len(text or "") for text in texts)


_NO_FACTS = HostFacts((), _OTHER_METHOD, "http", Host(""), 0)
