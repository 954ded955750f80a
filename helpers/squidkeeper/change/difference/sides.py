"""What one policy does with the requests of a cell: of one kind of client, scheme,
port, method and host.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from squidkeeper.base.faults import Location
from squidkeeper.change.difference import consequences
from squidkeeper.change.difference.languages import (
    Held,
    Matched,
    path_holds,
    query_holds,
)
from squidkeeper.policy.engine import CompiledPolicy, HostMatch, Stage, decide
from squidkeeper.policy.engine.body_scope import decided_by_body
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.engine.explain import quotas_in
from squidkeeper.policy.engine.precedence import (
    Applied,
    Holds,
    applied_entries,
    applied_where_bodies_are_read,
    decision_key,
    first_rule,
    names_of,
)
from squidkeeper.policy.language.bodies import GitBody
from squidkeeper.policy.language.matching.table import written
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    Entry,
    HostFacts,
    Match,
    Policy,
    Rewrite,
    Rule,
    is_deny,
)
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.protocol.request import Request
from squidkeeper.policy.url import DEFAULT_PORTS, Host, parse_authority

_HOST = "{host}"


class SideKey(NamedTuple):
    """What the consequences of a side depend on: entries by their names.

    A rewrite may use each fact about a request.
    """

    denial: consequences.Consequence | None
    rules: tuple[str, ...]
    grants: tuple[str, ...]
    observing: tuple[str, ...]
    reading: tuple[str, ...]
    rewrites: tuple[str, ...]
    credentials: tuple[str, ...]
    upstream: str | None
    quotas: tuple[str, ...]
    default: tuple[bool, bool, str | None]
    is_private: bool
    is_address: bool
    unrestricted: bool
    facts: HostFacts | bool


@dataclass(frozen=True, slots=True)
class Side:
    """One policy and a cell of requests at one time: the entries that can hold,
    whatever the URL.

    `denial` where all of them are denied before a rule is asked. `unrestricted` lets
    WebSockets pass. `reading` are the rules with those that observe, where some of them
    read bodies.
    """

    policy: CompiledPolicy
    match: HostMatch
    rules: tuple[Rule, ...]
    grants: tuple[Rule, ...]
    observing: tuple[Rule, ...]
    denial: consequences.Consequence | None
    unrestricted: bool
    reading: tuple[Rule, ...] = ()

    @property
    def key(self) -> SideKey:
        """What the consequences for all URLs depend on, of one policy."""
        candidates, facts = self.match.candidates, self.match.facts
        default, upstream = candidates.default, candidates.upstream
        return SideKey(
            denial=self.denial,
            rules=names_of(self.rules),
            grants=names_of(self.grants),
            observing=names_of(self.observing),
            reading=names_of(self.reading),
            rewrites=names_of(candidates.rewrites),
            credentials=names_of(candidates.credentials),
            upstream=upstream.name if upstream else None,
            quotas=self._quotas,
            default=(default.allowed, default.asks, default.observed),
            is_private=facts.host.private,
            is_address=facts.host.address is not None,
            unrestricted=self.unrestricted,
            facts=facts if candidates.rewrites else facts.method == "GET",
        )

    @property
    def _quotas(self) -> tuple[str, ...]:
        clients = self.match.facts.clients
        return tuple(
            quota.name
            for quota in self.policy.source.quotas
            if quota.holds_for(clients)
        )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that can tell URLs apart."""
        candidates = self.match.candidates
        rules = (*self.rules, *self.grants, *self.observing)
        pushes = (
            (PUSH, REFS)
            if any(isinstance(rule.body, GitBody) for rule in self.reading)
            else ()
        )
        return (*rules, *pushes, *candidates.rewrites, *candidates.credentials)


def side_of(policy: CompiledPolicy, request: Request, at: datetime) -> Side:
    """Look up what a policy holds for the requests of a cell."""
    match = policy.match(request)
    if match.denial is not None:
        return Side(
            policy,
            match,
            (),
            (),
            (),
            consequences.denied(match.denial.rule),
            unrestricted=False,
        )
    if match.lapses is not None and at >= match.lapses:
        return Side(
            policy,
            match,
            (),
            (),
            (),
            consequences.denied("login-refused"),
            unrestricted=False,
        )
    unrestricted = (
        decide(policy, match, at, Stage.HOST).outlook.unrestricted
        if request.method == "GET"
        else False
    )
    now = policy.rules_in_force(match.candidates, at)
    every = now.rules if now.observing is None else now.observing
    reading = every if now.reading else ()
    return Side(
        policy,
        match,
        now.rules,
        now.grants,
        now.observing or (),
        None,
        unrestricted,
        reading,
    )


def consequence_in(
    side: Side, matched: Matched, held: Held
) -> tuple[consequences.Consequence, tuple[Hashable, ...]]:
    """Return what becomes of the requests of a cell of URLs, and keys: of two keys, a
    path is ambiguous.

    The first key is that of now, each other one of the time when one more grant is
    spent. That of a denial is a bool.
    """
    first, key, grant = _consequence_now(side, matched, held)
    stages, grants, keys = [first], list[Rule](), [key]
    while grant is not None:
        grants.append(grant)
        side = replace(
            side,
            grants=tuple(grant for grant in side.grants if grant is not grants[-1]),
        )
        stage, key, grant = _consequence_now(side, matched, held)
        stages.append(stage)
        keys.append(key)
    return consequences.counted(stages, grants), tuple(keys)


def _consequence_now(
    side: Side, matched: Matched, held: Held
) -> tuple[consequences.Consequence, Hashable, Rule | None]:
    """Return the same while all grants of a side have uses left, and the grant whose
    uses it takes.
    """
    if side.denial is not None:
        return side.denial, False, None
    holds = partial(
        _holds, matched=matched, held=held, method=side.match.facts.method or ""
    )
    find, rules = (
        (applied_where_bodies_are_read, side.reading)
        if side.reading
        else (applied_entries, side.rules)
    )
    applied = find(side.match.candidates, rules, side.grants, holds)
    decision, host = _decision(side, applied), side.match.facts.host
    observed = _observed(side, holds)
    if host.private and not decision.private and (decision.allowed or decision.asks):
        return consequences.denied("private-address", observed=observed), False, None
    if not decision.allowed:
        refused = replace(
            consequences.denied_by(decision, host),
            observed=observed,
            quotas=_quotas(side, decision),
        )
        return refused, decision.asks, None
    consequence = _allowed(side, decision, applied, observed)
    grant = decision.counted if consequence.allowed else None
    return consequence, decision_key(decision, applied), grant


def _allowed(
    side: Side, decision: Decision, applied: Applied, observed: str
) -> consequences.Consequence:
    consequence = consequences.Consequence(
        True,
        decision.rule,
        decision.location,
        decision.private and side.match.facts.host.address is None,
        websocket=side.match.facts.method == "GET"
        and (decision.websocket or side.unrestricted),
        credentials=consequences.credential_texts(applied.credentials),
        strip=decision.strip.headers if decision.strip else (),
        connections=decision.connections,
        upstream=consequences.route_text(side.match.candidates.upstream),
        observed=observed,
        quotas=_quotas(side, decision),
        bodies=consequences.body_rules(decision.by_body, side.match.candidates.default),
        meter=decision.meter,
    )
    if applied.rewrite is None:
        return consequence
    return _rewritten(side, consequence, applied.rewrite, decision.counted)


def _quotas(side: Side, decision: Decision) -> tuple[frozenset[str]]:
    return consequences.quota_counts(
        quotas_in(side.policy, side.match, decision), decision.rule
    )


def _observed(side: Side, holds: Holds) -> str:
    default = side.match.candidates.default
    if side.match.candidates.observing is None:
        return ""
    rule = first_rule(side.observing, side.grants, holds)
    if rule is None:
        return (
            ""
            if side.match.facts.host.private
            else consequences.observed_verdict(default.observed)
        )
    if (
        not rule.observe
        or rule.body is not None
        or (
            rule.action is Action.ALLOW
            and side.match.facts.host.private
            and not rule.private
        )
    ):
        return ""
    return rule.verdict


def _decision(side: Side, applied: Applied) -> Decision:
    candidates = side.match.candidates
    decision = (
        candidates.default
        if applied.rule is None
        else side.policy.decision_by(applied.rule)
    )
    if not applied.by_body or not decision.allowed:
        return decision
    return decided_by_body(side.policy, decision, applied.by_body, candidates)


def _holds(entry: Entry, matched: Matched, held: Held, method: str) -> bool:
    """Whether an entry holds in a cell.

    A grant for exact URLs never does: these are compared one by one.
    """
    if entry.match.urls is not None:
        return False
    if (
        isinstance(entry, Rule)
        and isinstance(entry.body, GitBody)
        and not _may_push(matched, held, method)
    ):
        return False
    return path_holds(entry.match, matched) and query_holds(
        entry.match, held, one=is_deny(entry)
    )


def _may_push(matched: Matched, held: Held, method: str) -> bool:
    """Whether `git:` may hold in a cell, as `may_hold` says about each of its
    requests.
    """
    if path_holds(PUSH.match, matched):
        return True
    return (
        method == "GET"
        and path_holds(REFS.match, matched)
        and query_holds(REFS.match, held, one=False)
    )


# The URLs of a push, and of the request ahead of it: what `git:` tells apart.
PUSH, REFS = (
    Rule(
        "",
        Location(""),
        Action.ALLOW,
        Match(paths=(parse_path_pattern(path),), query=query),
    )
    for path, query in (
        ("/**/git-receive-pack", None),
        ("/**/info/refs", (QueryPattern("service", "git-receive-pack"),)),
    )
)


# --- what is fetched after a rewrite --------------------------------------------------


def _rewritten(
    side: Side,
    consequence: consequences.Consequence,
    rewrite: Rewrite,
    grant: Rule | None,
) -> consequences.Consequence:
    """Add a rewrite.

    The credentials are those for the target: their text says all that could choose
    among them.

    A request that is for the target already is not rewritten; what becomes of it is
    compared too.
    """
    target = _target_host(side, rewrite)
    itself = (
        target == side.match.facts.host
        and rewrite.target.scheme == side.match.facts.scheme
    )
    otherwise = _otherwise(side, consequence, grant) if itself else ""
    if (
        target is not None
        and target.private
        and not (rewrite.private or rewrite.redirect)
    ):
        return replace(
            consequences.denied("private-address", observed=consequence.observed),
            otherwise=otherwise,
        )
    credentials, upstream = _fetched(side, rewrite)
    rewritten = replace(
        consequence,
        private=rewrite.private and (target is None or target.address is None),
        rewrite=consequences.rewrite_key(rewrite),
        credentials=(credentials,),
        upstream=upstream,
        otherwise=otherwise,
        denies=_denies(side, rewrite),
    )
    if rewrite.redirect is None:
        return rewritten
    return consequences.not_fetched(rewritten)


def _target_host(side: Side, rewrite: Rewrite) -> Host | None:
    authority = rewrite.target.authority
    if _HOST in authority:
        return side.match.facts.host if authority == _HOST else None
    return parse_authority(authority)[0]


def _otherwise(
    side: Side, consequence: consequences.Consequence, grant: Rule | None
) -> str:
    credentials = " ".join(map(_credential_key, side.match.candidates.credentials))
    forwarded = (
        consequence.websocket,
        consequence.connections,
        consequence.strip,
        consequence.meter,
    )
    kept = (consequence.private, forwarded, consequence.upstream)
    return f"{kept} {credentials} {grant and (grant.name, grant.made, grant.uses)}"


def _denies(side: Side, rewrite: Rewrite) -> str:
    """Return the target of a rewrite that denies some paths by their readings; empty
    for one that denies none.

    The rewrite denies a path that may lead out of the text ahead of a placeholder
    (`target_url`). It also denies a path whose readings get different credentials at
    the target.
    """
    target = consequences.rewrite_key(replace(rewrite, redirect=None))
    if rewrite.redirect is None and any(
        credential.match.paths for credential in _injectable(side, rewrite)
    ):
        return f"{target} with credentials"
    ahead, _, rest = rewrite.target.path.partition("{")
    return target if rest and (ahead.strip("/") or "{" in rest) else ""


def _fetched(side: Side, rewrite: Rewrite) -> tuple[str, str]:
    facts, source = _fetched_facts(side, rewrite), side.policy.source
    credentials = _injectable(side, rewrite)
    if facts is None:
        return (
            " ".join(
                f"{_match_key(held.match, source)} {_credential_key(held)}"
                for held in credentials
            ),
            " ".join(
                f"{_match_key(one.match, source)} {consequences.route_text(one)}"
                for one in source.upstreams
            ),
        )
    return " ".join(map(_credential_key, credentials)), consequences.route_text(
        side.policy.upstream(facts)
    )


def _injectable(side: Side, rewrite: Rewrite) -> tuple[Credential, ...]:
    """Return the credentials that a target can get."""
    facts = _fetched_facts(side, rewrite)
    return (
        side.policy.source.credentials
        if facts is None
        else tuple(side.policy.injectable(facts))
    )


def _fetched_facts(side: Side, rewrite: Rewrite) -> HostFacts | None:
    """Return the facts of a request for a target; None if the host of the target
    depends on the request.
    """
    facts, target = side.match.facts, rewrite.target
    if target.authority != _HOST and _HOST in target.authority:
        return None
    host, port = (
        (facts.host, None)
        if target.authority == _HOST
        else parse_authority(target.authority)
    )
    return facts._replace(
        scheme=target.scheme, host=host, port=port or DEFAULT_PORTS[target.scheme]
    )


def _credential_key(credential: Credential) -> str:
    match = credential.match
    patterns = sorted(pattern.text for pattern in match.paths or ())
    query = sorted((pattern.key, pattern.pattern) for pattern in match.query or ())
    return f"[{consequences.form_texts(credential.form)} {patterns} {query}]"


def _match_key(match: Match, policy: Policy) -> str:
    lists = {
        name: sha256(policy.lists[name].trie.tobytes()).hexdigest()
        for name in match.lists or ()
    }
    clients = [
        client for client in policy.clients if client.name in (match.clients or ())
    ]
    members = [
        (client.networks, sorted(client.users or ()), client.tokens)
        for client in clients
    ]
    fields = written(replace(match, paths=None, query=None))
    return f"{fields} {lists} {members if match.clients else None}"
