"""The one decision (floor 3)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, TypeVar

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.engine.decision import Decision, Rewritten, deny
from squidkeeper.engine.fields import Asked, Facts, covers_default_port, holds_for_host, holds_for_url
from squidkeeper.engine.index import HostIndex
from squidkeeper.engine.query import CONNECT, REFUSED_METHODS, Query
from squidkeeper.engine.target import target_url
from squidkeeper.errors import InvalidUrl
from squidkeeper.policy.model import Action, Credential, Policy, Rewrite, Rule
from squidkeeper.url import (
    OWN_PAGES,
    Host,
    ReadPath,
    Url,
    bracketed,
    check_scheme,
    format_authority,
    is_own_page,
    is_unusual,
    origin_of,
    parse_address,
    parse_authority,
    parse_host,
    parse_port,
    parse_url,
    readings,
)

Paths = tuple[ReadPath, ...]
EntryT = TypeVar("EntryT", Rule, Rewrite, Credential)
_KEPT_BYTES_AT_MOST, _KEPT_BYTES, _LAPSE_BYTES = 4 * 1024 * 1024, 1_000, 400
_SHOWN = 200  # characters of a path, on a page
_UNREWRITTEN = deny("policy-unavailable", "The rewriter has to rewrite this request, and did not.")
_OTHER_METHOD = ""  # any that nothing asks for: of those that a client makes up, each would have entries of its own
_PREFLIGHT = "OPTIONS"  # the preflight of CORS carries no credential


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The entries that hold as far as can be known without the URL, in order: the same for many hosts.

    `rule_positions` are those of all rules for the host, whatever else they ask for, and `lapses` the times at which
    one of those lapses. `default` is the verdict where no rule holds, and `at_host` keeps what is said at host scope
    from one of these times to the next.
    """

    rules: tuple[Rule, ...]
    rewrites: tuple[Rewrite, ...]
    credentials: tuple[Credential, ...]
    rule_positions: tuple[int, ...]
    lapses: tuple[datetime, ...]
    default: Decision
    at_host: dict[int, Decision] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """Estimate the bytes of the references held, and of what is kept from one time to the next."""
        held = (self.rules, self.rewrites, self.credentials, self.rule_positions)
        return 8 * sum(map(len, held)) + _LAPSE_BYTES * len(self.lapses)


class Asker(NamedTuple):
    """The facts that do not depend on the host: most lines have them in common with others."""

    clients: frozenset[str]
    method: str | None
    scheme: str
    port: int


class Scope(NamedTuple):
    """All that can be known without the URL."""

    facts: Facts
    entries: Entries


class Outcome(NamedTuple):
    """What one reading of a path leads to; `rule` is None for the default."""

    rule: Rule | None
    rewrite: Rewrite | None
    credentials: tuple[Credential, ...]


class Judge:
    """Decides by one policy. The same query at the same time has the same answer: what is kept only saves work."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules = HostIndex(policy.rules, policy.lists)
        self.rewrites = HostIndex(policy.rewrites, policy.lists)
        self.credentials = HostIndex(policy.credentials, policy.lists)
        self._methods = frozenset(_named_methods(policy)) | {"GET", _PREFLIGHT}
        self._askers: BoundedCache[tuple[str | None, ...], Asker] = BoundedCache(_KEPT_BYTES_AT_MOST)
        self._entries: BoundedCache[tuple[object, ...], Entries] = BoundedCache(_KEPT_BYTES_AT_MOST)
        self._injecting: BoundedCache[tuple[object, ...], Decision] = BoundedCache(_KEPT_BYTES_AT_MOST)
        self._verdicts: dict[str, Decision] = {}  # one for each rule at most, whoever asks

    def decide(self, query: Query, at: datetime) -> Decision:
        """Decide a query as squid.conf has it decided: for its host, and where that does not settle it, for its URL."""
        if query.url is not None and is_own_page(query.url):
            return deny("invalid-request", f"{OWN_PAGES}… are pages of Squid itself, which are not for clients.")
        scope = self.scope(query)
        if isinstance(scope, Decision):
            return scope
        decision = self.decide_host(scope, at)
        if query.url is None:
            return decision
        is_asked = asks_url(decision, scope, query.url) or not _is_at(query.url, scope.facts)
        return self.decide_url(scope, query.url, at) if is_asked else decision

    def scope(self, query: Query) -> Scope | Decision:
        """Work out all that needs no URL and no clock; a `Decision` where that is already enough to deny."""
        try:
            facts = self._facts(query)
        except InvalidUrl as error:
            return _unreadable(query, error)
        return check_tunnel(query, facts) or self._scope(facts)

    def decide_host(self, scope: Scope, at: datetime) -> Decision:
        """Decide as far as it goes for every URL of the scope's host."""
        if scope.facts.host.address is not None:  # it can be private
            return self._decide_host(scope, at)
        known, span = scope.entries.at_host, bisect_right(scope.entries.lapses, at)
        if span not in known:
            known[span] = self._decide_host(scope, at)
        return known[span]

    def decide_url(self, scope: Scope, text: str, at: datetime) -> Decision:
        """Decide for one URL: the outcome that every reading of its path leads to."""
        try:
            url = parse_url(text)
            check_same_place(url, scope.facts)
            paths = readings(url.path)
            return self._decide_paths(scope, url, paths, at)
        except InvalidUrl as error:
            return deny("invalid-request", f"Not a request that can be judged: {error}.")

    def decide_reading(self, scope: Scope, asked: Asked, at: datetime) -> Decision:
        """Decide for one reading of a path alone: for explaining, never for enforcing."""
        return self._verdict(scope, self._outcome(scope, asked, at).rule)

    def decide_fetched(self, scope: Scope, text: str, final_url: str | None, at: datetime) -> Decision:
        """Decide again, once it is known which URL is fetched: the credentials are those for that one.

        `final_url` is what a rewriter answered, which may have gone by another revision of the policy; None where
        none was asked, none answered, or it denies the request.
        """
        decision = self.decide_url(scope, text, at)
        if not decision.allowed:
            return decision
        if final_url is None:
            return decision if decision.rewritten is None else _UNREWRITTEN
        try:
            url = parse_url(final_url)
            facts = scope.facts._replace(scheme=url.scheme, host=url.host, port=url.port)
            return self._granted(decision, facts, url)
        except InvalidUrl as error:
            return deny("invalid-request", f"Not a URL that can be fetched: {error}.")

    def _facts(self, query: Query) -> Facts:
        key = (query.client, query.user, query.method, query.scheme, query.port)
        known = self._askers.get(key)
        if known is None:
            known = self._asker(query)
            self._askers.keep(key, known, _kept_bytes(query.method, query.user, *known.clients))
        return Facts(known.clients, known.method, known.scheme, parse_host(query.host), known.port)

    def _asker(self, query: Query) -> Asker:
        refused = REFUSED_METHODS.get(query.method.upper())
        if refused:
            raise InvalidUrl(f"the method {query.method} {refused}")
        address = parse_address(query.client) if query.client else None
        is_connect = query.method == CONNECT
        return Asker(
            frozenset(client.name for client in self.policy.clients if client.matches(address, query.user)),
            None if is_connect else self._method(query.method),
            "https" if is_connect else check_scheme((query.scheme or "").lower()),
            parse_port(query.port),
        )

    def _method(self, method: str) -> str:
        if method in self._methods:
            return method
        return method.lower() if method.upper() in self._methods else _OTHER_METHOD

    def _scope(self, facts: Facts) -> Scope:
        """Find the entries; they depend on the host only by their positions, so most hosts have some that are known."""
        rules, rewrites = self.rules.positions(facts.host), self.rewrites.positions(facts.host)
        credentials = self.credentials.positions(facts.host)
        key = (facts.clients, facts.method, facts.scheme, facts.port, rules, rewrites, credentials)
        known = self._entries.get(key)
        if known is None:
            policy = self.policy
            known = Entries(
                tuple(_holding(policy.rules, rules, facts)),
                tuple(_holding(policy.rewrites, rewrites, facts)),
                self._injectable(facts, credentials),
                rules,
                tuple(sorted(filter(None, (policy.rules[position].expires for position in rules)))),
                self._default(facts),
            )
            self._entries.keep(key, known, _kept_bytes(facts.method) + known.held_bytes)
        return Scope(facts, known)

    def _injectable(self, facts: Facts, positions: tuple[int, ...]) -> tuple[Credential, ...]:
        return tuple(_holding(self.policy.credentials, positions, facts)) if injects(facts) else ()

    def _decide_host(self, scope: Scope, at: datetime) -> Decision:
        decision = self._connect(scope, at) if scope.facts.method is None else self._any_url(scope, at)
        if not decision.allowed:
            return decision
        is_whole = scope.facts.method is not None and self._is_whole(scope, at)
        return replace(
            decision,
            may_rewrite=bool(scope.entries.rewrites),
            may_inject=bool(scope.entries.credentials),
            whole=is_whole,
            narrowed=is_whole and self._is_narrowed(scope.facts),
        )

    def _any_url(self, scope: Scope, at: datetime) -> Decision:
        rule = next(_in_force(scope.entries.rules, at), None)
        if rule is None or rule.match.any_url:
            return self._verdict(scope, rule)
        return Decision(
            Action.ALLOW, rule.name, "The URL decides.", rule.location, private=rule.private, needs_url=True
        )

    def _connect(self, scope: Scope, at: datetime) -> Decision:
        """Decide a tunnel: the first certain rule, unless an allow that is not certain comes before it."""
        able: list[Rule] = []  # the allows that an inner request could meet
        last: Rule | None = None
        for last in _in_force(scope.entries.rules, at):
            if last.action is Action.ALLOW:
                able.append(last)
            if last.certain:
                break
        else:
            last = None
        rule = able[0] if able else last
        decision = _by_rule(rule, private=any(one.private for one in able)) if rule else scope.entries.default
        return _checked_private(decision, scope.facts.host)

    def first_rule(self, scope: Scope, at: datetime) -> Rule | None:
        """Find the first rule for the scope's host, whatever the method and the URL."""
        any_method = scope.facts._replace(method=None)
        return next(_in_force(_holding(self.policy.rules, scope.entries.rule_positions, any_method), at), None)

    def first_rewrite(self, scope: Scope) -> Rewrite | None:
        """Find the first rewrite for the scope's host, whatever the method and the URL."""
        positions, any_method = self.rewrites.positions(scope.facts.host), scope.facts._replace(method=None)
        return next(_holding(self.policy.rewrites, positions, any_method), None)

    def _is_whole(self, scope: Scope, at: datetime) -> bool:
        """Tell whether the first rule for the host allows all of it, and no rewrite is for any of it."""
        if self.first_rewrite(scope) is not None:
            return False
        rule = self.first_rule(scope, at)
        if rule is None:
            return self.policy.default_action is Action.ALLOW
        return rule.certain and rule.action is Action.ALLOW

    def _is_narrowed(self, facts: Facts) -> bool:
        """Tell whether another method or path of the host could meet other credentials."""
        any_method = facts._replace(method=None)
        credentials = self._injectable(any_method, self.credentials.positions(facts.host))
        return not all(credential.match.any_request for credential in credentials)

    def _decide_paths(self, scope: Scope, url: Url, paths: Paths, at: datetime) -> Decision:
        outcome = self._outcome(scope, Asked(paths[0], url.query), at)
        for path in paths[1:]:
            other = self._outcome(scope, Asked(path, url.query), at)
            if self._consequences(scope, other) != self._consequences(scope, outcome):
                return _ambiguous(paths)
        decision = self._verdict(scope, outcome.rule)
        if not decision.allowed or not (outcome.rewrite or outcome.credentials):
            return decision
        if outcome.rewrite is None:
            return self._with_credentials(decision, outcome.credentials)
        return self._rewritten(decision, outcome.rewrite, scope.facts, url, paths[0])

    def _outcome(self, scope: Scope, asked: Asked, at: datetime) -> Outcome:
        rules, rewrites, credentials = scope.entries.rules, scope.entries.rewrites, scope.entries.credentials
        rule = _first(_in_force(rules, at), asked)
        rewrite = _first(rewrites, asked) if rewrites else None
        return Outcome(rule, rewrite, _chosen(credentials, asked) if credentials and not rewrite else ())

    def _consequences(self, scope: Scope, outcome: Outcome) -> object:
        """Reduce an outcome to what must be the same for every reading; that the same rule decided is not needed."""
        decision = self._verdict(scope, outcome.rule)
        if not decision.allowed:
            return (decision.action,)
        rewrite = outcome.rewrite and outcome.rewrite.name
        return (decision.action, decision.private, rewrite, tuple(one.name for one in outcome.credentials))

    def _rewritten(self, decision: Decision, rewrite: Rewrite, facts: Facts, url: Url, path: ReadPath) -> Decision:
        target = target_url(rewrite, facts.host, path, url.query)
        if target == url:  # it leads nowhere else: a redirect would never end
            return self._granted(decision, facts, url)
        if rewrite.redirect is not None:
            return replace(decision, rewritten=Rewritten(rewrite, target))
        if target.host.private and not rewrite.private:
            return _private(target.host, f"the rewrite {rewrite.name}")
        there = facts._replace(scheme=target.scheme, host=target.host, port=target.port)
        return self._granted(decision, there, target, Rewritten(rewrite, target))

    def _granted(self, decision: Decision, facts: Facts, url: Url, rewritten: Rewritten | None = None) -> Decision:
        """Add the credentials for the URL that is fetched, and the rewrite; an ambiguous path denies."""
        paths = readings(url.path)
        candidates = self._injectable(facts, self.credentials.positions(facts.host))
        granted = [_chosen(candidates, Asked(path, url.query)) for path in paths]
        if any(one != granted[0] for one in granted):
            return _ambiguous(paths)
        if rewritten is not None:
            return replace(decision, credentials=granted[0], rewritten=rewritten, private=rewritten.rewrite.private)
        return self._with_credentials(decision, granted[0])

    def _with_credentials(self, decision: Decision, credentials: tuple[Credential, ...]) -> Decision:
        """Add credentials; what many requests have in common is made once, and stays in common."""
        if decision.rewritten is not None:
            return replace(decision, credentials=credentials)
        names = [credential.name for credential in credentials]
        key = (decision, *names)
        known = self._injecting.get(key)
        if known is None:
            known = replace(decision, credentials=credentials)
            self._injecting.keep(key, known, _kept_bytes(*names))
        return known

    def _verdict(self, scope: Scope, rule: Rule | None) -> Decision:
        if rule is None:
            return _checked_private(scope.entries.default, scope.facts.host)
        known = self._verdicts.get(rule.name)
        if known is None:
            known = self._verdicts[rule.name] = _by_rule(rule, private=False)
        return _checked_private(known, scope.facts.host)

    def _default(self, facts: Facts) -> Decision:
        if self.policy.default_action is Action.DENY:
            return deny("default", self.policy.default_reason or "No rule of the policy allows this request.")
        if not covers_default_port(facts.scheme, facts.port):
            return deny("default", f"The default allows {facts.scheme} on its own port, and no rule port {facts.port}.")
        return Decision(Action.ALLOW, "default")


def _by_rule(rule: Rule, *, private: bool) -> Decision:
    reason = rule.reason or (None if rule.action is Action.ALLOW else f"The rule {rule.name} denies this.")
    return Decision(rule.action, rule.name, reason, rule.location, private or rule.private)


def _kept_bytes(*texts: str | None) -> int:
    """Estimate what is kept of something that these texts name."""
    return _KEPT_BYTES + 4 * sum(len(text or "") for text in texts)


def _named_methods(policy: Policy) -> Iterator[str]:
    sections: tuple[tuple[Rule | Rewrite | Credential, ...], ...] = (policy.rules, policy.rewrites, policy.credentials)
    return (method for section in sections for entry in section for method in entry.match.methods or ())


def injects(facts: Facts) -> bool:
    """Tell whether any credential can be given: over https alone, and never to the preflight of CORS."""
    return facts.scheme == "https" and facts.method != _PREFLIGHT


def asks_url(decision: Decision, scope: Scope, url: str) -> bool:
    """Tell whether squid.conf asks a helper about a URL after this decision about its host."""
    if not decision.allowed or scope.facts.method is None:
        return False
    may_inject = decision.may_inject and scope.facts.scheme == "https"
    return decision.needs_url or decision.may_rewrite or may_inject or is_unusual(url)


def check_tunnel(query: Query, facts: Facts) -> Decision | None:
    """Deny what claims to be one host at one layer and another at the next; None where all agree."""
    if query.method == CONNECT:
        return _check_connect(query)
    if query.tunnel is None:
        return deny("invalid-request", "An https URL needs a CONNECT first.") if facts.scheme == "https" else None
    asked = format_authority(facts.host, facts.port)
    if query.tunnel != asked and _authority(query.tunnel) != (facts.host, facts.port):
        return deny("authority-mismatch", f"The tunnel was opened to {query.tunnel}, the request in it is for {asked}.")
    if query.sni is not None and query.sni != bracketed(facts.host) and _host(query.sni) != facts.host:
        return deny("authority-mismatch", f"The TLS server name is {query.sni!r}, the request in it is for {asked}.")
    if facts.scheme != "https":
        return deny("invalid-request", "A request inside a tunnel has to be https.")
    return None


def _unreadable(query: Query, error: InvalidUrl) -> Decision:
    """Deny a query that cannot be parsed. Where its URL is at fault, the reason says what is wrong with the URL."""
    if query.url is not None and query.method == CONNECT:
        return _no_authority(query.url)
    if query.url is not None:
        try:
            parse_url(query.url)
        except InvalidUrl as fault:
            error = fault
    return deny("invalid-request", f"Not a request that can be judged: {error}.")


def _check_connect(query: Query) -> Decision | None:
    if query.tunnel is not None:
        return deny("invalid-request", "A CONNECT inside a tunnel is not allowed.")
    return None if query.url is None else _no_authority(query.url)  # Squid sends none


def _no_authority(target: str) -> Decision:
    return deny("invalid-request", f"CONNECT takes HOST:PORT, such as github.com:443, not {target!r}.")


def _is_at(url: str, facts: Facts) -> bool:
    """Tell whether a URL is of the host Squid said it is of."""
    try:
        scheme, host, port = origin_of(url)
    except InvalidUrl:
        return False
    return (scheme, host.text, port) == (facts.scheme, facts.host.text, facts.port)


def check_same_place(url: Url, facts: Facts) -> None:
    """Refuse a URL that is not of the host Squid said it is of."""
    if url.host.text != facts.host.text or url.port != facts.port or url.scheme != facts.scheme:
        raise InvalidUrl(f"the URL is not of {facts.scheme}://{format_authority(facts.host, facts.port)}")


def _holding(entries: tuple[EntryT, ...], positions: tuple[int, ...], facts: Facts) -> Iterator[EntryT]:
    return (entries[position] for position in positions if holds_for_host(entries[position], facts))


def _in_force(rules: Iterable[Rule], at: datetime) -> Iterator[Rule]:
    return (rule for rule in rules if rule.expires is None or not rule.lapsed(at))


def _first(entries: Iterable[EntryT], asked: Asked) -> EntryT | None:
    return next((entry for entry in entries if holds_for_url(entry, asked)), None)


def _chosen(credentials: Iterable[Credential], asked: Asked) -> tuple[Credential, ...]:
    """Choose the first credential that matches, for each header."""
    chosen: dict[str, Credential] = {}
    for credential in credentials:
        if holds_for_url(credential, asked):
            chosen.setdefault(credential.header.lower(), credential)
    return tuple(chosen.values())


def _checked_private(decision: Decision, host: Host) -> Decision:
    if host.private and decision.allowed and not decision.private:
        return _private(host, f"the rule {decision.rule}")
    return decision


def _private(host: Host, opener: str) -> Decision:
    return deny("private-address", f"{host.text} is a private address, which {opener} does not open (private: true).")


def _ambiguous(paths: Paths) -> Decision:
    said = ", ".join(f"{path.reading} {path.path[:_SHOWN]}" for path in paths[:4])
    return deny("ambiguous-path", f"Servers could read the path in ways that the policy tells apart: {said}.")


def _authority(text: str) -> tuple[Host, int | None] | None:
    try:
        return parse_authority(text)
    except InvalidUrl:
        return None


def _host(text: str) -> Host | None:
    try:
        return parse_host(text)
    except InvalidUrl:
        return None
