"""The decision at request scope: one that every reading of the URL's path leads to."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from functools import partial

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine.body_scope import decided_by_body
from squidkeeper.policy.engine.compiled_policy import CompiledPolicy, HostMatch
from squidkeeper.policy.engine.decision import Decision, Rewritten, deny, unavailable
from squidkeeper.policy.engine.fields import UrlFacts, holds_for_url, url_test
from squidkeeper.policy.engine.host_scope import checked_private, deny_private
from squidkeeper.policy.engine.observing import observe_url
from squidkeeper.policy.engine.precedence import (
    Applied,
    applied_entries,
    applied_where_bodies_are_read,
    chosen_credentials,
    decision_key,
)
from squidkeeper.policy.engine.target import target_url
from squidkeeper.policy.language.model import HostFacts, Rewrite, Rule, Unavailable
from squidkeeper.policy.url import ReadPath, Url, format_authority, parse_url, readings

_SHOWN = 200  # characters of a path, on a page
_UNREWRITTEN = unavailable(
    Unavailable.POLICY_CHANGED, "The rewriter has to rewrite this request, and did not."
)


def decide_url(
    policy: CompiledPolicy,
    match: HostMatch,
    text: str,
    at: datetime,
    spent: Collection[str] = (),
) -> Decision:
    """Decide for one URL of the host; `spent` names grants without uses left."""
    try:
        url = parse_url(text)
        _check_origin(url, match.facts)
        decision = _decide_paths(policy, match, url, readings(url.path), at, spent)
        if match.candidates.observing is None:
            return decision
        return observe_url(policy, match, decision, _readings(url), at, spent)
    except InvalidUrl as error:
        return deny("invalid-request", f"Not a request that can be judged: {error}.")


def observe_request(
    policy: CompiledPolicy,
    match: HostMatch,
    decision: Decision,
    text: str,
    at: datetime,
) -> Decision:
    """Add what is observed about a URL to a decision that does not depend on it."""
    try:
        url = parse_url(text)
        _check_origin(url, match.facts)
        return observe_url(policy, match, decision, _readings(url), at)
    except InvalidUrl:
        return decision


def _readings(url: Url) -> list[UrlFacts]:
    return [UrlFacts(path, url.query, url.path) for path in readings(url.path)]


def decide_fetched(
    policy: CompiledPolicy,
    match: HostMatch,
    text: str,
    final_url: str | None,
    at: datetime,
) -> Decision:
    """Decide for one URL, once it is known which one is fetched: the credentials are
    those for that one.

    `final_url` is what a rewriter answered, perhaps by another revision of the policy;
    None where none was asked, none answered, or it denies the request.
    """
    decision = decide_url(policy, match, text, at)
    if not decision.allowed:
        return decision
    if final_url is None:
        return decision if decision.rewritten is None else _UNREWRITTEN
    if (
        final_url == text and decision.rewritten is None
    ):  # the usual case: the credentials are already those for it
        return decision
    if match.candidates.default_observes and decision.rule == "default":
        return decision
    try:
        return _add_credentials(policy, decision, match.facts, parse_url(final_url))
    except InvalidUrl as error:
        return deny("invalid-request", f"Not a URL that can be fetched: {error}.")


def decide_reading(
    policy: CompiledPolicy, match: HostMatch, url: UrlFacts, at: datetime
) -> Decision:
    """Decide for one reading of a path alone: what `explain` shows, never what is
    enforced.
    """
    return _decision_of(policy, match, _applied(policy, match, url, at))


def _check_origin(url: Url, facts: HostFacts) -> None:
    """Refuse a URL of another scheme, host or port than Squid states."""
    if (
        url.host.text != facts.host.text
        or url.port != facts.port
        or url.scheme != facts.scheme
    ):
        raise InvalidUrl(
            f"the URL is not of {facts.scheme}://{format_authority(facts.host, facts.port)}"
        )


def _decide_paths(
    policy: CompiledPolicy,
    match: HostMatch,
    url: Url,
    paths: tuple[ReadPath, ...],
    at: datetime,
    spent: Collection[str],
) -> Decision:
    applied = _applied(
        policy, match, UrlFacts(paths[0], url.query, url.path), at, spent
    )
    for path in paths[1:]:
        other = _applied(policy, match, UrlFacts(path, url.query, url.path), at, spent)
        if _key(policy, match, other) != _key(policy, match, applied):
            return _ambiguous(paths)
    decision = _decision_by(policy, match, applied.rule)
    if applied.by_body:
        decision = _decision_of(policy, match, applied)
    if not decision.allowed or not (applied.rewrite or applied.credentials):
        return decision
    if applied.rewrite is not None:
        return _rewrite(policy, decision, applied.rewrite, match.facts, url, paths[0])
    return policy.with_credentials(decision, applied.credentials, match.facts.session)


def _applied(
    policy: CompiledPolicy,
    match: HostMatch,
    url: UrlFacts,
    at: datetime,
    spent: Collection[str] = (),
) -> Applied:
    now = policy.rules_in_force(match.candidates, at)
    if not now.reading:
        return applied_entries(
            match.candidates,
            now.rules,
            now.unspent(spent),
            partial(holds_for_url, url=url),
        )
    every = now.rules if now.observing is None else now.observing
    holds = url_test(url, match.facts.method)
    return applied_where_bodies_are_read(
        match.candidates, every, now.unspent(spent), holds
    )


def _key(policy: CompiledPolicy, match: HostMatch, applied: Applied) -> object:
    return decision_key(_decision_of(policy, match, applied), applied)


def _decision_of(
    policy: CompiledPolicy, match: HostMatch, applied: Applied
) -> Decision:
    decision = _decision_by(policy, match, applied.rule)
    if not applied.by_body or not decision.allowed:
        return decision
    return decided_by_body(policy, decision, applied.by_body, match.candidates)


def _decision_by(
    policy: CompiledPolicy, match: HostMatch, rule: Rule | None
) -> Decision:
    decision = match.candidates.default if rule is None else policy.decision_by(rule)
    return (
        decision
        if match.facts.host.address is None
        else checked_private(decision, match.facts.host)
    )


def _rewrite(
    policy: CompiledPolicy,
    decision: Decision,
    rewrite: Rewrite,
    facts: HostFacts,
    url: Url,
    path: ReadPath,
) -> Decision:
    target = target_url(rewrite, facts.host, path, url.query)
    if target == url:  # a redirect would never end
        return _add_credentials(policy, decision, facts, url)
    if rewrite.redirect is not None:
        return replace(decision, rewritten=Rewritten(rewrite, target), meter=None)
    if target.host.private and not rewrite.private:
        return deny_private(target.host, f"the rewrite {rewrite.name}")
    return _add_credentials(policy, decision, facts, target, Rewritten(rewrite, target))


def _add_credentials(
    policy: CompiledPolicy,
    decision: Decision,
    facts: HostFacts,
    url: Url,
    rewritten: Rewritten | None = None,
) -> Decision:
    """Add the credentials for the URL that is fetched, and the rewrite; a path that
    servers read differently denies.
    """
    fetched = facts_of(facts, url)
    candidates = policy.injectable(fetched)
    chosen = [
        chosen_credentials(candidates, partial(holds_for_url, url=reading))
        for reading in _readings(url)
    ]
    if any(credentials != chosen[0] for credentials in chosen):
        return _ambiguous(readings(url.path))
    if rewritten is not None:
        private, upstream = rewritten.rewrite.private, policy.upstream(fetched)
        return replace(
            decision,
            rewritten=rewritten,
            private=private,
            credentials=chosen[0],
            upstream=upstream,
        )
    return policy.with_credentials(decision, chosen[0], facts.session)


def facts_of(facts: HostFacts, url: Url) -> HostFacts:
    """Return the facts of a request that is fetched from another URL."""
    return facts._replace(scheme=url.scheme, host=url.host, port=url.port)


def _ambiguous(paths: tuple[ReadPath, ...]) -> Decision:
    # the first has its unreserved escapes decoded, so it may not be what was sent
    first, *others = paths[:4]
    named = [
        f"normalized {first.path[:_SHOWN]}",
        *(f"{path.reading} {path.path[:_SHOWN]}" for path in others),
    ]
    shown = ", ".join(named)
    return deny(
        "ambiguous-path",
        f"Servers could read the path in ways that the policy tells apart: {shown}.",
    )
