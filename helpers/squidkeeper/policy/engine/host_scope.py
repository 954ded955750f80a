"""The decision at host scope: as far as it goes for every URL of a host."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from squidkeeper.policy.engine.body_scope import decided_by_body
from squidkeeper.policy.engine.compiled_policy import (
    CompiledPolicy,
    HostMatch,
    RulesInForce,
    decision_of,
)
from squidkeeper.policy.engine.decision import Decision, Outlook, deny
from squidkeeper.policy.engine.observing import observe_host, observe_tunnel
from squidkeeper.policy.engine.precedence import (
    decides_without_body,
    first_of,
    rules_by_body,
)
from squidkeeper.policy.engine.quotas import counts_tunnel
from squidkeeper.policy.engine.tunnels import tunnel_use
from squidkeeper.policy.language.bodies import GitBody
from squidkeeper.policy.language.forms import QueryParameters
from squidkeeper.policy.language.model import Action, Rewrite, Rule
from squidkeeper.policy.url import Host

_NOT_PASSED_THROUGH = deny(
    "invalid-request",
    "A CONNECT inside a tunnel is not allowed. No rule passes this tunnel through.",
)


def decide_host(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Decision:
    """Decide for every URL of the host; for a CONNECT, whether the tunnel opens, and
    whether it is spliced.
    """
    now = policy.rules_in_force(match.candidates, at)
    if (
        match.facts.host.address is not None
    ):  # hosts with the same candidates can be private or not
        decision = _decide(policy, match, now, at)
    else:
        if now.at_host is None:
            now.at_host = _decide(policy, match, now, at)
        decision = now.at_host
    if match.spliced and decision.allowed and not decision.passthrough:
        return _NOT_PASSED_THROUGH
    return (
        _counted_before(decision)
        if match.spliced and decision.outlook.under_quota
        else decision
    )


def _counted_before(decision: Decision) -> Decision:
    """Return the second decision about a tunnel that is spliced: quotas have counted it
    when it was opened.
    """
    return replace(decision, outlook=replace(decision.outlook, under_quota=False))


def first_rule(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Rule | None:
    """Find the first rule for the host that decides, whatever the method and
    the URL.
    """
    any_method = match.facts._replace(method=None)
    positions = match.candidates.rule_positions
    rules = policy.rules_of_sessions.holding(positions, any_method)
    return next(
        (rule for rule in rules if not rule.observe and rule.in_force(at)), None
    )


def first_rewrite(policy: CompiledPolicy, match: HostMatch) -> Rewrite | None:
    """Find the first rewrite for the host, whatever the method and the URL."""
    rewrites, any_method = (
        policy.rewrites_of_sessions,
        match.facts._replace(method=None),
    )
    positions = rewrites.held(policy.rewrites.positions(any_method.host), any_method)
    return next(rewrites.holding(positions, any_method), None)


def deny_private(host: Host, opener: str) -> Decision:
    """Deny a private address, which the rule or rewrite that leads there does not
    allow.
    """
    return deny(
        "private-address",
        f"{host.text} is a private address, which {opener} does not open (private: true).",
    )


def checked_private(decision: Decision, host: Host) -> Decision:
    """Deny what a decision allows, or asks about, where the host is a private address
    and the rule is not for these.
    """
    if host.private and (decision.allowed or decision.asks) and not decision.private:
        return deny_private(host, f"the rule {decision.rule}")
    return decision


def _decide(
    policy: CompiledPolicy, match: HostMatch, now: RulesInForce, at: datetime
) -> Decision:
    if match.facts.method is None:
        return observe_tunnel(match, _decide_tunnel(policy, match, now, at), now)
    return observe_host(match, _decide_request(policy, match, now, at), now)


def _decide_request(
    policy: CompiledPolicy, match: HostMatch, now: RulesInForce, at: datetime
) -> Decision:
    decision = _decide_any_url(policy, match, now)
    if not decision.allowed:
        return decision
    candidates, unrestricted, use = (
        match.candidates,
        _is_unrestricted(policy, match, at),
        tunnel_use(policy, match, at),
    )
    outlook = replace(
        decision.outlook,
        may_rewrite=bool(candidates.rewrites),
        may_inject=bool(candidates.credentials),
        may_add_parameters=any(
            isinstance(credential.form, QueryParameters)
            for credential in candidates.credentials
        ),
        needs_headers=policy.needs_headers(candidates),
        unrestricted=unrestricted,
        credential_varies=unrestricted and _credential_varies(policy, match),
        under_quota=bool(candidates.quotas),
        mode=use.mode,
        mode_reason=use.reason,
    )
    return replace(decision, outlook=outlook, upstream=candidates.upstream)


def _decide_any_url(
    policy: CompiledPolicy, match: HostMatch, now: RulesInForce
) -> Decision:
    if by_body := _read_for_any_url(match, now):
        return _decide_by_body(policy, match, by_body)
    deciders = _deciders(match, now)
    first = deciders.rules[0] if deciders.rules else None
    if first is None or not first.needs_url:
        decision = checked_private(
            _by_default(match) if first is None else policy.decision_by(first),
            match.facts.host,
        )
        return _read(decision) if now.reading and decision.allowed else decision
    decision = Decision(
        Action.ALLOW,
        first.name,
        "The URL decides.",
        first.location,
        private=first.private,
        outlook=Outlook(needs_url=True, may_ask=deciders.may_ask),
        asks=deciders.all_ask,
    )
    return checked_private(decision, match.facts.host) if decision.asks else decision


def _decide_by_body(
    policy: CompiledPolicy, match: HostMatch, by_body: tuple[Rule, ...]
) -> Decision:
    first, candidates = first_of(by_body), match.candidates
    decision = checked_private(
        candidates.default if first is None else policy.decision_by(first),
        match.facts.host,
    )
    return (
        decided_by_body(policy, decision, by_body, candidates)
        if decision.allowed
        else decision
    )


def _read_for_any_url(match: HostMatch, now: RulesInForce) -> tuple[Rule, ...]:
    """List the rules that the body decides among, where each URL has the same; none
    where the URL may decide.
    """
    listed = []
    for rule in (
        (now.rules if now.observing is None else now.observing) if now.reading else ()
    ):
        if (
            not rule.match.any_url
            or isinstance(rule.body, GitBody)
            or rule.action is Action.ASK
            or rule.uses
        ):
            return ()
        listed.append(rule)
        if decides_without_body(rule):
            break
    by_default = not (listed and decides_without_body(listed[-1]))
    if by_default and (
        now.grants or match.candidates.default.asks or match.candidates.default_observes
    ):
        return ()
    return rules_by_body(listed, (), lambda _: True)


def _read(decision: Decision) -> Decision:
    """Have the URL asked about: rules that observe read the body of what is allowed."""
    return replace(decision, outlook=replace(decision.outlook, needs_url=True))


def _decide_tunnel(
    policy: CompiledPolicy, match: HostMatch, now: RulesInForce, at: datetime
) -> Decision:
    """Decide a tunnel: the first certain rule, unless an allow or ask that is not
    certain comes before it.
    """
    deciders = _deciders(match, now)
    decision = checked_private(_opened(match, deciders), match.facts.host)
    if not decision.allowed:
        return decision
    rewrites, credentials = (
        bool(match.candidates.rewrites),
        bool(match.candidates.credentials),
    )
    passthrough = not (rewrites or credentials) and _is_passed_through(now)
    use = tunnel_use(policy, match, at)
    return replace(
        decision,
        outlook=Outlook(
            may_rewrite=rewrites,
            may_inject=credentials,
            may_ask=deciders.may_ask,
            under_quota=any(
                counts_tunnel(quota, passthrough=passthrough)
                for quota in match.candidates.quotas
            ),
            mode=use.mode,
            mode_reason=use.reason,
        ),
        passthrough=passthrough,
        websocket=False,
        connections=None,
        strip=None,
        upstream=match.candidates.upstream,
        asks=deciders.all_ask,
        counted=None,
        meter=None,
    )


def _opened(match: HostMatch, deciders: _Deciders) -> Decision:
    # which a request inside could match
    openers = [rule for rule in deciders.rules if rule.action is not Action.DENY]
    if openers:
        decision = decision_of(
            openers[0], private=any(rule.private for rule in openers)
        )
        return replace(decision, action=Action.ALLOW)
    return (
        decision_of(deciders.rules[-1])
        if deciders.default is None
        else _by_default(match)
    )


class _Deciders(NamedTuple):
    """The rules and grants that can decide a request to a host, in the order in which
    they are asked.

    `default` is the default's decision, where it can decide too.
    """

    rules: list[Rule]
    default: Decision | None

    @property
    def may_ask(self) -> bool:
        """Whether a URL can be asked about."""
        by_default = self.default is not None and self.default.asks
        return by_default or any(rule.action is Action.ASK for rule in self.rules)

    @property
    def all_ask(self) -> bool:
        """Whether every URL is asked about."""
        return (self.default is None or self.default.asks) and all(
            rule.action is Action.ASK for rule in self.rules
        )


def _deciders(match: HostMatch, now: RulesInForce) -> _Deciders:
    """List them: as far as to the first rule that decides every request; grants where
    the default or an ask would.
    """
    is_tunnel = match.facts.method is None
    rules = []
    for rule in now.rules:
        rules.append(rule)
        if rule.certain if is_tunnel else rule.any_url:
            return _Deciders(
                [*rules, *(now.grants if rule.action is Action.ASK else ())], None
            )
    return _Deciders([*rules, *now.grants], match.candidates.default)


def _by_default(match: HostMatch) -> Decision:
    """Return the default's decision about a host: with the URL, it may ask."""
    default = match.candidates.default
    outlook = Outlook(needs_url=True, may_ask=True)
    return (
        replace(default, action=Action.ALLOW, outlook=outlook)
        if default.asks
        else default
    )


def _is_passed_through(now: RulesInForce) -> bool:
    """Whether the first rule for a tunnel passes it through: what stands above, even a
    path, has to be seen.
    """
    first = next(iter(now.rules), None)
    return first is not None and first.passthrough


def _is_unrestricted(policy: CompiledPolicy, match: HostMatch, at: datetime) -> bool:
    """Whether the first rule for the host allows every method and path, and no rewrite
    is for any of them.
    """
    if first_rewrite(policy, match) is not None:
        return False
    rule = first_rule(policy, match, at)
    if rule is None:
        return policy.source.default_action is Action.ALLOW
    return rule.certain and rule.action is Action.ALLOW


def _credential_varies(policy: CompiledPolicy, match: HostMatch) -> bool:
    """Whether another method, path or query of the host can get other credentials, as
    by a sealed token.
    """
    if policy.source.sealing_keys:
        return True
    credentials = policy.injectable(match.facts._replace(method=None))
    return not all(credential.match.any_request for credential in credentials)
