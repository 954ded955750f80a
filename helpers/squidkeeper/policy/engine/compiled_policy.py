"""A policy with its entries by host: which of them can apply to a request, whatever its
URL.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine.decision import Decision, TunnelUse, deny
from squidkeeper.policy.engine.fields import (
    covers_default_port,
    holds_for_host,
    names_host,
)
from squidkeeper.policy.engine.own_host import decide_own_host
from squidkeeper.policy.engine.quotas import quotas_for
from squidkeeper.policy.engine.rule_index import RuleIndex, rule_key
from squidkeeper.policy.engine.session_values import Section
from squidkeeper.policy.engine.timetable import Timed, Timetable
from squidkeeper.policy.language.forms import signs
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.machines import Machines
from squidkeeper.policy.language.methods import BODILESS
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    HostFacts,
    Match,
    Policy,
    Rewrite,
    Route,
    Rule,
)
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.request import (
    ANY_LOGIN,
    CONNECT,
    NO_LOGIN,
    Malformed,
    Request,
)
from squidkeeper.policy.url import Host, parse_authority

if TYPE_CHECKING:
    from squidkeeper.policy.engine.sessions import PolicySessions, Sessions

EntryT = TypeVar("EntryT", Rule, Route)
# In a policy with upstreams, where none of them holds: the parent of install.sh's
# --upstream, if there is one.
DEFAULT_UPSTREAM = Route("default", Location(""), Match(), "default")
_CACHE_BYTES, _OBJECT_BYTES, _MOMENT_BYTES = 4 * 1024 * 1024, 1_000, 500
_MOMENTS_AT_MOST = 64  # of the same candidates
LOGIN_REFUSED = "login-refused"
_NO_CLIENT = "The policy has no client {} with tokens any longer."
_OTHER_NETWORK = "The networks of the client {} do not hold this address."
_REVOKED = "The policy does not hold the token of the client {} (any longer)."
TOKEN_LAPSED = deny(LOGIN_REFUSED, "The token has expired.")
# one that no entry names: clients make up methods, and each would have candidates of
# its own
_OTHER_METHOD = ""
OBSERVED_DEFAULT = (
    "deny:default"  # as what no rule decides is recorded, where the default observes
)
PLACEHOLDER = "{host}"  # in the authority of a rewrite's target
_PREFLIGHT = "OPTIONS"  # the preflight of CORS carries no credential


@dataclass(slots=True, eq=False)
class RulesInForce:
    """The rules and grants of some candidates that are in force at a time, as
    `Candidates` has them.

    `reading` are the rules with `body` that may decide or observe, by some URL.
    `at_host` is the decision at host scope, once it was made for a host that is no
    address. `tunnel` is the mode of an open tunnel, once asked for.
    """

    rules: tuple[Rule, ...]
    grants: tuple[Rule, ...]
    observing: tuple[Rule, ...] | None
    reading: tuple[Rule, ...] = ()
    at_host: Decision | None = None
    tunnel: TunnelUse | None = None

    def unspent(self, spent: Collection[str]) -> tuple[Rule, ...]:
        """Return the grants that have uses left; `spent` names those that have none."""
        return (
            tuple(grant for grant in self.grants if grant.name not in spent)
            if spent
            else self.grants
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The entries whose fields hold without the URL, in the policy's order; many hosts
    share them.

    `rule_positions` are the positions of all rules for the host, whatever their other
    fields; `timed` has the bits in the policy's timetable of the rules and grants that
    hold at some times alone. `default` decides where no rule and no grant holds.
    `observing` are the `rules` with those that observe among them; None where nothing
    observes. `quotas` are those that may count a request, by whichever rule allows it.
    `stamp` is that of the session whose values are in the entries, or 0. `moments` has
    what is in force, by the timed rules and grants that hold.
    """

    rules: tuple[Rule, ...]
    rewrites: tuple[Rewrite, ...]
    credentials: tuple[Credential, ...]
    rule_positions: tuple[int, ...]
    default: Decision
    timed: int = 0
    upstream: Route | None = None
    observing: tuple[Rule, ...] | None = None
    grants: tuple[Rule, ...] = ()
    quotas: tuple[Quota, ...] = ()
    stamp: int = 0
    moments: dict[int, RulesInForce] = field(default_factory=dict)

    @property
    def default_observes(self) -> bool:
        """Whether the default allows what it would deny: such a request gets no rewrite
        and no credential.
        """
        return self.default.observed is not None

    @property
    def held_bytes(self) -> int:
        """Estimate the bytes of the references and of `moments`."""
        entries = (
            self.rules,
            self.grants,
            self.rewrites,
            self.credentials,
            self.rule_positions,
            self.observing or (),
        )
        kept = 1 + min(2 * self.timed.bit_count(), _MOMENTS_AT_MOST)
        return 8 * sum(map(len, entries)) + kept * (
            _MOMENT_BYTES + 8 * (len(self.rules) + len(self.grants))
        )


class HostMatch(NamedTuple):
    """What a policy holds for a request, whatever its URL and the time.

    `denial` decides where no rule does: the request is malformed, its login refused, or
    it is for the gateway itself.

    `url` is the request's, as it was stated; None stands for every URL of the host.
    `spliced` is the request's. `lapses` is when the token of the login expires.
    """

    facts: HostFacts
    candidates: Candidates
    url: str | None = None
    denial: Decision | None = None
    spliced: bool = False
    lapses: datetime | None = None

    @property
    def depends_on_time(self) -> bool:
        """Whether the decision is another one at another time: by a rule for the host,
        or the login's token.
        """
        return bool(self.candidates.timed) or self.lapses is not None


class CompiledPolicy:
    """A policy that is ready to decide by. Its caches change no decision."""

    def __init__(self, policy: Policy, index: RuleIndex | None = None) -> None:
        self.source = policy
        self.index = index = index or RuleIndex.of(policy)
        self._logins = {
            client.name: client
            for client in policy.clients
            if client.tokens is not None
        }
        self._bits = {key: 1 << number for number, key in enumerate(index.timed)}
        tokens = (
            token for client in self._logins.values() for token in client.tokens or ()
        )
        ends = (Timed(token.expires) for token in tokens if token.expires is not None)
        self.timetable = Timetable((*index.timed.values(), *ends))
        self.depends_on_time = self.timetable.depends_on_time
        self.revision = policy.revision
        self.rules = index.hosts
        self.grants = HostIndex(policy.grants, policy.lists)
        self.rewrites = HostIndex(policy.rewrites, policy.lists)
        self.credentials = HostIndex(policy.credentials, policy.lists)
        self.upstreams = HostIndex(policy.upstreams, policy.lists)
        self.rules_of_sessions = Section(policy.rules, index.of_variables)
        self.rewrites_of_sessions = Section(policy.rewrites)
        self.credentials_of_sessions = Section(policy.credentials)
        self._methods = index.methods | {"GET", _PREFLIGHT}
        if index.reads_bodies:  # whether a body is of git or MCP depends on the method
            self._methods |= {"POST", "DELETE"}
        self.sessions: PolicySessions | None = None
        if policy.session_networks:
            self.follow()
        self.every_method = (*sorted(self._methods | BODILESS), _OTHER_METHOD)
        self.own_clients = frozenset(
            client.name for client in policy.clients if client.connections is not None
        )
        self._targets = frozenset(
            one.target.authority.lower()
            for one in policy.rewrites
            if one.redirect is None
        )
        # Microseconds of a line with and without each: unknown host 6/30; with 22
        # clients 7/15; credential 11/31.
        self._candidates: BoundedCache[tuple[object, ...], Candidates] = BoundedCache(
            _CACHE_BYTES
        )
        self._clients: BoundedCache[tuple[str | None, ...], tuple[str, ...]] = (
            BoundedCache(_CACHE_BYTES)
        )
        self._decisions: BoundedCache[object, Decision] = BoundedCache(_CACHE_BYTES)

    @cached_property
    def machines(self) -> Machines:
        """Tells which requests come from one machine."""
        return Machines(self.source.clients)

    @cached_property
    def position_names(self) -> dict[str, str]:
        """The positions of rules and grants by their names, as a list of rules has
        them: `r7`, `g0`.
        """
        grants = [grant.name for grant in self.source.grants]
        return {
            name: f"{kind}{position}"
            for kind, names in (("r", self.index.names), ("g", grants))
            for position, name in enumerate(names)
        }

    def match(self, request: Request | Malformed) -> HostMatch:
        """Look up all that needs no URL and no clock."""
        if isinstance(request, Malformed):
            return _denied(request, deny(request.rule, request.reason))
        own, refused = decide_own_host(request), None
        if self.sessions is not None or request.session is not None:
            request, refused = self._of_session(request)
        if (denial := own or refused) is not None:
            return _denied(request, denial)
        refused, lapses = self._check_login(request)
        if refused is not None:
            return _denied(request, refused)
        session, user = request.session, request.user
        if session is not None and self._logged_in_as(request, session):
            user = None  # a name of a session is no proxy user of the policy
        clients = self.clients_of(request.client, user) if self.source.clients else ()
        if session is not None:
            clients = (*clients, session.role)
        return self._match(request, clients, lapses)

    def _of_session(self, request: Request) -> tuple[Request, Decision | None]:
        """Return a request with its session; that of a record, or one that is assumed,
        it has already.
        """
        if request.session is None:
            return self.sessions.of(request) if self.sessions else (request, None)
        from squidkeeper.policy.engine.sessions import refused_record

        return request, refused_record(self.source, request.session)

    def _logged_in_as(self, request: Request, session: Session) -> bool:
        return (
            request.user == session.name
            and request.user not in self._logins
            and request.login not in (None, NO_LOGIN)
        )

    def _match(
        self, request: Request, clients: tuple[str, ...], lapses: datetime | None
    ) -> HostMatch:
        method = (
            request.method
            if request.method in self._methods
            else self._unnamed_method(request.method)
        )
        facts = HostFacts(
            clients,
            method,
            request.scheme,
            request.host,
            request.port,
            request.session,
        )
        return HostMatch(
            facts,
            self.candidates_for(facts),
            request.url,
            None,
            request.spliced,
            lapses,
        )

    def follow(self, sessions: Sessions | None = None) -> None:
        """Have a request belong to the session that is active for it.

        Without sessions none is active, as for `check`, `explain` and `diff`.
        """
        from squidkeeper.policy.engine.sessions import (  # late: few need them
            NO_SESSIONS,
            PolicySessions,
        )

        active = NO_SESSIONS if sessions is None else sessions
        self.sessions = PolicySessions(self.source, active, self._logins)

    def _check_login(self, request: Request) -> tuple[Decision | None, datetime | None]:
        """Deny a login that the policy does not hold any longer; give also when it
        lapses, None for never.

        The client does not become an unknown one: a deny for it would end with its
        token.
        """
        client = self._logins.get(request.user or "")
        if client is None and (
            request.login in (None, NO_LOGIN) or request.is_of_its_session
        ):
            return None, None
        if client is None:
            # of a user that is no client with tokens
            known = request.login == ANY_LOGIN
            return (
                None if known else deny(LOGIN_REFUSED, _NO_CLIENT.format(request.user))
            ), None
        if not client.within_networks(request.client and request.client.address):
            return deny(LOGIN_REFUSED, _OTHER_NETWORK.format(client.name)), None
        tokens = [
            token
            for token in client.tokens or ()
            if request.login in (token.id, ANY_LOGIN)
        ]
        if not tokens:
            return deny(LOGIN_REFUSED, _REVOKED.format(client.name)), None
        ends = [token.expires for token in tokens if token.expires is not None]
        return None, max(ends) if len(ends) == len(tokens) else None

    def matches_of_logins(self, request: Request | Malformed) -> Iterator[HostMatch]:
        """Match a request without a login as each client that could log in for it, and
        that an allow is for.

        Squid can ask for a login at a CONNECT and outside of tunnels, not inside.
        """
        if (
            not (self._logins or self.sessions)
            or isinstance(request, Malformed)
            or request.user is not None
            or request.login == NO_LOGIN
        ):
            return
        if request.scheme == "https" and request.method != CONNECT:
            return
        rules = [
            self.source.rules[position]
            for position in self.rules.positions(request.host)
        ]
        rules += (
            self.source.grants[position]
            for position in self.grants.positions(request.host)
        )
        openers = (
            rule
            for rule in rules
            if rule.action is not Action.DENY and not rule.observe
        )
        opened = {name for rule in openers for name in rule.match.clients or ()}
        for name in self._logins if opened else ():
            if not opened.isdisjoint(self.clients_of(request.client, name)):
                yield self.match(request._replace(user=name, login=ANY_LOGIN))
        if opened and self.sessions and self.sessions.may_log_in(request):
            for role in self.source.roles:
                if role.name in opened:  # whatever its sessions may be
                    yield self._match(request, (role.name,), None)

    def names_login(self, user: str | None) -> bool:
        """Whether a proxy user is the name of a client with tokens, whose login decides
        beside its clients.
        """
        return user in self._logins

    def clients_of(self, client: Host | None, user: str | None) -> tuple[str, ...]:
        """Name the policy's clients that a request belongs to, in the
        policy's order.
        """
        key = (client and client.text, user)
        known = self._clients.get(key)
        if known is None:
            address = client and client.address
            known = tuple(
                client.name
                for client in self.source.clients
                if client.matches(address, user)
            )
            self._clients.add(key, known, _object_bytes(user, *known))
        return known

    def may_be_fetched_for(self, host: Host) -> bool:
        """Whether a request may be rewritten that is for a host, or that then leads to
        it.
        """
        if self.rewrites.positions(host):
            return True
        return any(
            PLACEHOLDER in authority or parse_authority(authority)[0] == host
            for authority in self._targets
        )

    def rules_in_force(self, candidates: Candidates, at: datetime) -> RulesInForce:
        """Return which rules of some candidates are in force at a time: the same object
        for the same rules.
        """
        holding = (
            self.timetable.holding(at) & candidates.timed if candidates.timed else 0
        )
        known = candidates.moments.get(holding)
        if known is None:
            if len(candidates.moments) >= _MOMENTS_AT_MOST:
                candidates.moments.clear()
            known = candidates.moments[holding] = self._moment(candidates, holding)
        return known

    def _moment(self, candidates: Candidates, holding: int) -> RulesInForce:
        rules, observing = (
            self._in_force(candidates.rules, holding),
            candidates.observing,
        )
        if observing is not None:
            observing = self._in_force(observing, holding)
        reading = (
            reading_rules(rules if observing is None else observing)
            if self.index.reads_bodies
            else ()
        )
        return RulesInForce(
            rules, self._in_force(candidates.grants, holding), observing, tuple(reading)
        )

    def _in_force(self, rules: tuple[Rule, ...], holding: int) -> tuple[Rule, ...]:
        bits = self._bits
        if not bits:
            return rules
        return tuple(
            rule
            for rule in rules
            if rule_key(rule) not in bits or bits[rule_key(rule)] & holding
        )

    def injectable(
        self, facts: HostFacts, positions: tuple[int, ...] | None = None
    ) -> tuple[Credential, ...]:
        """List the credentials whose fields hold without the URL; `positions` are those
        for the host.
        """
        if not injects(facts):
            return ()
        if positions is None:
            found = self.credentials.positions(facts.host)
            positions = self.credentials_of_sessions.held(found, facts)
        return tuple(self.credentials_of_sessions.holding(positions, facts))

    def upstream(
        self, facts: HostFacts, positions: tuple[int, ...] | None = None
    ) -> Route | None:
        """Return where a request to a host is forwarded; None in a policy without
        upstreams.
        """
        if not self.source.upstreams:
            return None
        positions = (
            self.upstreams.positions(facts.host) if positions is None else positions
        )
        return next(holding(self.source.upstreams, positions, facts), DEFAULT_UPSTREAM)

    def needs_headers(self, candidates: Candidates) -> bool:
        """Whether the credential helper has to see the headers of a request with these
        candidates.
        """
        if self.source.sealing_keys:  # any header could hold a sealed token
            return True
        # A rewrite can lead to a host with any credential.
        credentials = (
            self.source.credentials if candidates.rewrites else candidates.credentials
        )
        return any(signs(credential.form) for credential in credentials)

    def decision_by(self, rule: Rule) -> Decision:
        """Return the decision of a rule for one URL: the same object each time, so that
        its reply is written once.
        """
        known = self._decisions.get(rule.name)
        if known is None:
            known = decision_of(rule)
            self._decisions.add(rule.name, known, _OBJECT_BYTES)
        return known

    def with_credentials(
        self,
        decision: Decision,
        credentials: tuple[Credential, ...],
        session: Session | None = None,
    ) -> Decision:
        """Add the credentials that apply: the same object each time, unless the request
        is rewritten.
        """
        if credentials == decision.credentials:
            return decision
        if decision.rewritten is not None:
            return replace(decision, credentials=credentials)
        names = [credential.name for credential in credentials]
        key: tuple[object, ...] = (decision, *names)
        if session is not None:
            key = (*key, session.stamp)
        known = self._decisions.get(key)
        if known is None:
            known = replace(decision, credentials=credentials)
            self._decisions.add(key, known, _object_bytes(*names))
        return known

    def with_body(
        self,
        decision: Decision,
        rules: tuple[Rule, ...],
        counted: Rule | None,
        stamp: int,
    ) -> Decision:
        """Add the rules that the body decides among: the same object each time, as of a
        decision without them.

        `stamp` is that of the session whose values are in the rules.
        """
        key = (decision, "body", stamp, *(rule.name for rule in rules))
        known = self._decisions.get(key)
        if known is None:
            known = replace(decision, by_body=rules, counted=counted)
            self._decisions.add(
                key, known, _object_bytes(*(rule.name for rule in rules))
            )
        return known

    def with_observed(self, decision: Decision, observed: str | None) -> Decision:
        """Add what is observed about a URL: the same object each time, unless the
        decision is for one request alone.
        """
        if observed == decision.observed and not decision.observes_url:
            return decision
        if decision.rewritten is not None or (
            decision.location is None and decision.rule != "default"
        ):
            return replace(decision, observed=observed, observes_url=False)
        key = (decision, "observed", observed)
        known = self._decisions.get(key)
        if known is None:
            known = replace(decision, observed=observed, observes_url=False)
            self._decisions.add(key, known, _object_bytes(observed))
        return known

    def _unnamed_method(self, method: str) -> str | None:
        if method == CONNECT:
            return None
        return method.lower() if method.upper() in self._methods else _OTHER_METHOD

    def candidates_for(self, facts: HostFacts) -> Candidates:
        """Find the candidates.

        They depend on the host by positions alone, so most hosts share theirs with
        others.
        """
        rules, rewrites = (
            self.rules.positions(facts.host),
            self.rewrites.positions(facts.host),
        )
        credentials, upstreams = (
            self.credentials.positions(facts.host),
            self.upstreams.positions(facts.host),
        )
        grants = self.grants.positions(facts.host)
        stamp, approved = 0, _approved(facts)
        if facts.session is not None:
            rules = self.rules_of_sessions.held(rules, facts)
            rewrites = self.rewrites_of_sessions.held(rewrites, facts)
            credentials = self.credentials_of_sessions.held(credentials, facts)
            if (
                self.rules_of_sessions.are_bound(rules)
                or self.rewrites_of_sessions.are_bound(rewrites)
                or self.credentials_of_sessions.are_bound(credentials)
                or approved
            ):
                stamp = facts.session.stamp
        found = (rules, grants, rewrites, credentials, upstreams)
        fetched_for = self.may_be_fetched_for(facts.host)
        key: tuple[object, ...] = (
            facts.clients,
            facts.method,
            facts.scheme,
            facts.port,
            *found,
            fetched_for,
        )
        if stamp:
            key = (*key, stamp)
        known = self._candidates.get(key)
        if known is None:
            policy = self.source
            matching = tuple(self.rules_of_sessions.holding(rules, facts))
            deciding = tuple(rule for rule in matching if not rule.observe)
            observes = policy.observe_default is not None or len(deciding) < len(
                matching
            )
            timed = (
                *(policy.rules[position] for position in rules),
                *(policy.grants[position] for position in grants),
            )
            known = Candidates(
                deciding,
                tuple(self.rewrites_of_sessions.holding(rewrites, facts)),
                self.injectable(facts, credentials),
                rules,
                self._default(facts),
                reduce(or_, (self._bits.get(rule_key(rule), 0) for rule in timed), 0)
                if self._bits
                else 0,
                self.upstream(facts, upstreams),
                matching if observes else None,
                (*holding(policy.grants, grants, facts), *approved),
                quotas_for(policy, facts, deciding),
                stamp,
            )
            self._candidates.add(
                key,
                known,
                _object_bytes(facts.method, *facts.clients) + known.held_bytes,
            )
        return known

    def _default(self, facts: HostFacts) -> Decision:
        if self.source.default is Action.ALLOW and not covers_default_port(
            facts.scheme, facts.port
        ):
            return deny(
                "default",
                f"The default allows {facts.scheme} on its own port, and no rule port {facts.port}.",
            )
        return self.default_decision

    @cached_property
    def default_decision(self) -> Decision:
        """What the default decides, on a port that it is for."""
        if self.source.default is not Action.ALLOW:
            denial = deny(
                "default",
                self.source.default_reason
                or "No rule of the policy allows this request.",
            )
            return replace(denial, asks=True) if self.source.ask_default else denial
        observes = self.source.observe_default is not None
        return Decision(
            Action.ALLOW, "default", observed=OBSERVED_DEFAULT if observes else None
        )


def decision_of(rule: Rule, *, private: bool = False) -> Decision:
    """Make the decision of a rule that decides; `private` where a rule that it stands
    for allows a private address.
    """
    asks = rule.action is Action.ASK
    reason = rule.reason or _UNSAID[rule.action].format(rule.name) or None
    private, counted = private or rule.private, rule if rule.uses is not None else None
    return Decision(
        rule.verdict,
        rule.name,
        reason,
        rule.location,
        private,
        websocket=rule.websocket,
        connections=rule.connections,
        strip=rule.strip,
        asks=asks,
        counted=counted,
        meter=rule.meter,
    )


def reading_rules(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Return the rules with `body`, down to the first rule that decides whatever URL
    and body.
    """
    for rule in rules:
        if rule.body is not None:
            yield rule
        elif rule.any_url and not rule.observe:
            return


_UNSAID = {
    Action.ALLOW: "",
    Action.DENY: "The rule {} denies this.",
    Action.ASK: "The rule {} denies this until a person allows it.",
}


def _approved(facts: HostFacts) -> tuple[Rule, ...]:
    """List what was approved for the session that asks, and is for the host."""
    if facts.session is None:
        return ()
    return tuple(
        grant
        for grant in facts.session.grants
        if isinstance(grant, Rule)
        and names_host(grant.match, facts)
        and holds_for_host(grant, facts)
    )


def injects(facts: HostFacts) -> bool:
    """Whether a request can get any credential: over https alone, and never the
    preflight of CORS.
    """
    return facts.scheme == "https" and facts.method != _PREFLIGHT


def holding(
    entries: Sequence[EntryT], positions: tuple[int, ...], facts: HostFacts
) -> Iterator[EntryT]:
    """Return the entries at these positions whose fields hold without the URL."""
    return (
        entries[position]
        for position in positions
        if holds_for_host(entries[position], facts)
    )


def _object_bytes(*texts: str | None) -> int:
    """Estimate the bytes of an object that these texts name."""
    return _OBJECT_BYTES + 4 * sum(len(text or "") for text in texts)


def _denied(request: Request | Malformed, denial: Decision) -> HostMatch:
    """Match a request that is denied whatever the rules are."""
    session = None if isinstance(request, Malformed) else request.session
    candidates = Candidates((), (), (), (), denial)
    return HostMatch(
        _NO_FACTS._replace(session=session), candidates, request.url, denial
    )


_NO_FACTS = HostFacts((), _OTHER_METHOD, "http", Host(""), 0)
