"""Why a decision came out as it did."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.faults import Location
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine.body_scope import Judged, decide_sent, judge
from squidkeeper.policy.engine.compiled_policy import CompiledPolicy, HostMatch, injects
from squidkeeper.policy.engine.decide import Stage, decide
from squidkeeper.policy.engine.decision import Decision, TunnelUse
from squidkeeper.policy.engine.fields import (
    UrlFacts,
    body_may_hold,
    failing_fields,
)
from squidkeeper.policy.engine.host_scope import first_rewrite, first_rule
from squidkeeper.policy.engine.quotas import counting, ticket_quotas, token_quotas
from squidkeeper.policy.engine.request_scope import decide_reading, facts_of
from squidkeeper.policy.engine.session_values import Section
from squidkeeper.policy.engine.tunnels import tunnel_use
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.matching.host_fields import is_for_every_host
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    Entry,
    HostFacts,
    Rewrite,
    Route,
    Rule,
    is_deny,
)
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.language.secret_sources import NamedSecret
from squidkeeper.policy.protocol.request import CONNECT, Malformed, Request
from squidkeeper.policy.url import ReadPath, Url, parse_url, readings


@dataclass(frozen=True, slots=True)
class PassedOver:
    """An entry for the same host that did not apply, and the fields of it that did not
    hold.
    """

    entry: Entry
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JudgedRule:
    """A rule that the body decides among, and what its `body` came to; None where it
    was not judged.
    """

    rule: Rule
    judged: Judged | None


@dataclass(frozen=True, slots=True)
class WebSocket:
    """Whether Squid passes a WebSocket; if not, the entry that prevents it, and the
    fields of a rule that do.
    """

    passes: bool
    entry: Rule | Rewrite | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name that Squid resolves after the decision; `private: true` on `opener` would
    allow a private address.
    """

    host: str
    opener: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What is recorded as observed, and the place of the rule that observes, or of the
    default.
    """

    verdict: str
    rule: str
    location: Location


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and what led to it.

    `by_body` are the rules that the body decides among, as far as they were judged.
    `undecided` where no body was given to decide by: `decision` is then what was
    decided before the body.
    """

    decision: Decision
    by_body: list[JudgedRule]
    undecided: bool
    passed_over: list[PassedOver]
    not_reached: list[Rule]
    not_applied: list[PassedOver]
    by_reading: list[tuple[ReadPath, Decision]]
    websocket: WebSocket | None
    resolved: Resolved | None
    # of an allowed tunnel, or of a request in it; None: there is no tunnel
    passthrough: bool | None
    # of an allowed request: which connection to the origin it takes
    tunnel: TunnelUse | None
    upstream: Route | None
    secrets: tuple[NamedSecret, ...]  # of the credentials
    grant: Rule | None  # that allows
    observed: Observed | None
    # of a request that is allowed because the default observes
    default_observes: Location | None
    quotas: tuple[Quota, ...]  # that count it


def explain(
    policy: CompiledPolicy,
    request: Request | Malformed,
    at: datetime,
    sent: SentRequest | None = None,
) -> Explanation:
    """Decide a request, and explain the decision.

    `sent` has its body; None where that is not known.
    """
    before = decide(policy, policy.match(request), at)
    decision = decide_sent(policy, before, sent) if before.by_body and sent else before
    passed = passed_over(policy, request, at)
    return Explanation(
        decision,
        by_body(before, sent),
        bool(before.by_body) and sent is None,
        _above(policy, decision, passed) if before.by_body and sent else passed,
        not_reached(policy, request, decision, at),
        not_applied(policy, request, decision),
        by_reading(policy, request, at),
        websocket(policy, request, decision, at),
        resolved(policy, request, decision),
        passes_through(policy, request, decision, at),
        tunnel(policy, request, decision, at),
        upstream(policy, request, decision),
        secrets(policy, decision),
        grant(policy, decision),
        observed(policy, decision),
        policy.source.observe_default
        if decision.allowed and decision.rule == "default"
        else None,
        quotas_in(policy, policy.match(request), before, decision),
    )


def by_body(before: Decision, sent: SentRequest | None) -> list[JudgedRule]:
    """List the rules that the body decides among, and what each `body` comes to, down
    to the one that decides.
    """
    judged = (
        {one.rule.name: one for one in judge(before.by_body, sent)}
        if before.by_body and sent
        else {}
    )
    return [JudgedRule(rule, judged.get(rule.name)) for rule in before.by_body]


def grant(policy: CompiledPolicy, decision: Decision) -> Rule | None:
    """Find the grant that allows; None where none does."""
    return next(
        (
            grant
            for grant in policy.source.grants
            if grant.location == decision.location
        ),
        None,
    )


def observed(policy: CompiledPolicy, decision: Decision) -> Observed | None:
    """Name the rule that observes, or the default."""
    if decision.observed is None:
        return None
    verdict, _, name = decision.observed.partition(":")
    places = (
        rule.location
        for rule in policy.source.rules
        if rule.observe and rule.name == name
    )
    return Observed(
        verdict, name, next(places, policy.source.observe_default or Location(""))
    )


def secrets(policy: CompiledPolicy, decision: Decision) -> tuple[NamedSecret, ...]:
    """List the secrets of the credentials: where their values come from.

    None is read or fetched.
    """
    names = dict.fromkeys(
        name for credential in decision.credentials for name in credential.form.secrets
    )
    return tuple(policy.source.secrets[name] for name in names)


def passed_over(
    policy: CompiledPolicy, request: Request | Malformed, at: datetime
) -> list[PassedOver]:
    """List the rules and grants for the host ahead of the one that matches, with the
    fields that did not hold.

    The one that matches need not decide: a private address may deny what it allows.
    """
    match, url = policy.match(request), next(iter(_readings(request)), None)
    if match.denial or (url is None and request.url is not None):  # no rule was matched
        return []
    found, last = _failing_rules(_rules(policy, match.facts), match.facts, url, at)
    if last is None or last.action is Action.ASK:
        found += _failing_rules(_grants(policy, match.facts), match.facts, url, at)[0]
    return found


def _above(
    policy: CompiledPolicy, decision: Decision, passed: list[PassedOver]
) -> list[PassedOver]:
    """Leave out what stands below the rule that has decided by the body."""
    places = {
        rule.location: place
        for place, rule in enumerate(policy.source.rules_and_grants)
    }
    decider = (
        places.get(decision.location, len(places)) if decision.location else len(places)
    )
    return [one for one in passed if places[one.entry.location] < decider]


def _failing_rules(
    rules: Iterable[Rule], facts: HostFacts, url: UrlFacts | None, at: datetime
) -> tuple[list[PassedOver], Rule | None]:
    """List the rules that did not hold, as far as to the first that ends the search;
    give that one too.
    """
    found = []
    for rule in rules:
        fields = _failing_rule_fields(rule, facts, url, at)
        if fields:
            found.append(PassedOver(rule, fields))
        elif not rule.observe and rule.body is None and _ends_search(rule, url):
            return found, rule
    return found, None


def not_reached(
    policy: CompiledPolicy,
    request: Request | Malformed,
    decision: Decision,
    at: datetime,
) -> list[Rule]:
    """List the denies below the rule that allows whose fields hold too: each would
    deny, if it stood first.

    Denies for every host are left out: the last rule is often one.
    """
    match = policy.match(request)
    if match.denial or not decision.allowed:
        return []
    decider = decision.by_body[-1].location if decision.by_body else decision.location
    below = dropwhile(
        lambda rule: rule.location != decider, _rules(policy, match.facts)
    )
    denies = (
        rule
        for rule in below
        if rule.location != decider
        and is_deny(rule)
        and not rule.observe
        and rule.body is None
        and not is_for_every_host(rule.match)
    )
    return [
        rule
        for rule in denies
        if _holds_for_any(rule, match.facts, _readings(request), at)
    ]


def _holds_for_any(
    rule: Rule, facts: HostFacts, urls: Sequence[UrlFacts], at: datetime
) -> bool:
    """Whether a rule holds for one of the readings; without a URL, whether it holds for
    all URLs.
    """
    return any(
        not _failing_rule_fields(rule, facts, url, at) and _ends_search(rule, url)
        for url in urls or (None,)
    )


def _rules(policy: CompiledPolicy, facts: HostFacts) -> Iterator[Rule]:
    return policy.rules_of_sessions.each(policy.rules.positions(facts.host), facts)


def _grants(policy: CompiledPolicy, facts: HostFacts) -> Iterator[Rule]:
    return (
        policy.source.grants[position]
        for position in policy.grants.positions(facts.host)
    )


def _failing_rule_fields(
    rule: Rule, facts: HostFacts, url: UrlFacts | None, at: datetime
) -> tuple[str, ...]:
    timed = {
        "expires": not rule.lapsed(at),
        "when": rule.when is None or rule.when.holds(at),
    }
    ruled_out = (
        ("body",)
        if url and facts.method and not body_may_hold(rule, url, facts.method)
        else ()
    )
    return (
        *failing_fields(rule, facts, url),
        *(name for name, holds in timed.items() if not holds),
        *ruled_out,
    )


def _ends_search(rule: Rule, url: UrlFacts | None) -> bool:
    """Whether a rule whose fields hold ends the search: for a tunnel, a deny that is
    not certain does not.
    """
    return url is not None or not is_deny(rule) or rule.certain


def not_applied(
    policy: CompiledPolicy, request: Request | Malformed, decision: Decision
) -> list[PassedOver]:
    """List the rewrites and credentials for the host that do not apply, with the fields
    that did not hold.

    Credentials are those for the host that is fetched, after a rewrite. None for a
    denied request, or without a URL.
    """
    match, url = policy.match(request), next(iter(_readings(request)), None)
    if match.denial or url is None or not decision.allowed:
        return []
    rewritten, facts = decision.rewritten, match.facts
    found = (
        []
        if rewritten
        else list(_failing(policy.rewrites_of_sessions, policy.rewrites, facts, url))
    )
    if decision.redirects:
        return found
    if rewritten:
        facts, url = _fetched(facts, rewritten.url)
    return [*found, *_not_injected(policy, facts, url)]


def _fetched(facts: HostFacts, url: Url) -> tuple[HostFacts, UrlFacts]:
    return facts_of(facts, url), UrlFacts(readings(url.path)[0], url.query, url.path)


def _not_injected(
    policy: CompiledPolicy, facts: HostFacts, url: UrlFacts
) -> Iterator[PassedOver]:
    if injects(facts):
        section = policy.credentials_of_sessions
        yield from _failing(section, policy.credentials, facts, url)
        return
    # no credential is for these, whatever its fields
    field = "methods" if facts.scheme == "https" else "schemes"
    for position in policy.credentials.positions(facts.host):
        yield PassedOver(policy.source.credentials[position], (field,))


def _failing(
    section: Section[Rewrite] | Section[Credential],
    index: HostIndex,
    facts: HostFacts,
    url: UrlFacts,
) -> Iterator[PassedOver]:
    entry: Rewrite | Credential
    for entry in section.each(index.positions(facts.host), facts):
        fields = tuple(failing_fields(entry, facts, url))
        if fields:
            yield PassedOver(entry, fields)


def websocket(
    policy: CompiledPolicy,
    request: Request | Malformed,
    decision: Decision,
    at: datetime,
) -> WebSocket | None:
    """Whether an allowed GET may become a WebSocket; None for other requests.

    It needs `websocket: true` on the rule that allows it, or an unrestricted host.
    """
    match = policy.match(request)
    if match.denial or not decision.allowed or request.method != "GET":
        return None
    if decision.websocket or decide(policy, match, at, Stage.HOST).outlook.unrestricted:
        return WebSocket(passes=True)
    rewrite = first_rewrite(policy, match)
    if rewrite is not None:
        return WebSocket(False, rewrite)
    rule = first_rule(policy, match, at)
    return WebSocket(False, rule, _restricting_fields(rule) if rule else ())


def _restricting_fields(rule: Rule) -> tuple[str, ...]:
    """Name the fields for which a rule is not certain."""
    match = rule.match
    restricts = {
        "methods": match.methods is not None,
        "paths": not match.any_path,
        "query": match.query is not None,
        "body": rule.body is not None,
        "meter": rule.meter is not None,
    }
    return tuple(name for name, holds in restricts.items() if holds)


def resolved(
    policy: CompiledPolicy, request: Request | Malformed, decision: Decision
) -> Resolved | None:
    """Name the host that Squid resolves once the request is allowed, where a private
    address then denies it.

    None for an address, where private addresses are allowed, and for a tunnel that may
    be rewritten: Squid resolves the hosts of the requests inside.
    """
    match, rewritten = policy.match(request), decision.rewritten
    if match.denial or not decision.allowed or decision.private:
        return None
    if request.url is None and decision.outlook.may_rewrite:
        return None
    fetched = None if decision.redirects else rewritten
    host = fetched.url.host if fetched else match.facts.host
    if host.address is not None:
        return None
    if fetched:
        return Resolved(host.text, f"the rewrite {fetched.rewrite.name}")
    by_rule = decision.location is not None and grant(policy, decision) is None
    return Resolved(
        host.text, rule_to_change(decision) if by_rule else "a rule that allows it"
    )


def rule_to_change(decision: Decision) -> str:
    """Name the rule that decides as one that the operator can change: a rule of a
    preset is not theirs.
    """
    preset = decision.rule.partition("/")[0]
    if (
        decision.location and decision.location.file == f"preset {preset}"
    ):  # as a preset's place is named
        return f"an allow of your own above the rule {decision.rule}"
    return f"the rule {decision.rule}"


def passes_through(
    policy: CompiledPolicy,
    request: Request | Malformed,
    decision: Decision,
    at: datetime,
) -> bool | None:
    """Whether the tunnel of an allowed request passes through; None where the request
    has no tunnel.
    """
    if (
        isinstance(request, Malformed)
        or request.scheme != "https"
        or not decision.allowed
    ):
        return None
    tunnel = request._replace(method=CONNECT, url=None, spliced=False)
    return decide(policy, policy.match(tunnel), at, Stage.HOST).passthrough


def tunnel(
    policy: CompiledPolicy,
    request: Request | Malformed,
    decision: Decision,
    at: datetime,
) -> TunnelUse | None:
    """Tell which connection to the origin an allowed request takes; None for other
    requests.
    """
    match = policy.match(request)
    return (
        None if match.denial or not decision.allowed else tunnel_use(policy, match, at)
    )


def upstream(
    policy: CompiledPolicy, request: Request | Malformed, decision: Decision
) -> Route | None:
    """Return where an allowed request is forwarded; None for a redirect, and in a
    policy without upstreams.
    """
    match, rewritten = policy.match(request), decision.rewritten
    if match.denial or not decision.allowed or decision.redirects:
        return None
    return policy.upstream(
        facts_of(match.facts, rewritten.url) if rewritten else match.facts
    )


def quotas_in(
    policy: CompiledPolicy,
    match: HostMatch,
    decision: Decision,
    by_body: Decision | None = None,
) -> tuple[Quota, ...]:
    """List the quotas that count an allowed request, or the ticket of one that is asked
    about.

    Tokens are counted for the rule that holds once the body was read: of `by_body`,
    where that decides.
    """
    if match.denial or not (decision.allowed or decision.asks):
        return ()
    if not decision.allowed:
        return ticket_quotas(policy.source, match.facts.clients, decision.rule)
    is_tunnel = match.facts.method is None
    quotas = match.candidates.quotas
    counted = counting(
        quotas, decision.rule, is_tunnel=is_tunnel, passthrough=decision.passthrough
    )
    last = by_body or decision
    tokens = last.allowed and last.meter is not None
    return (
        (*counted, *token_quotas(policy.source, match.facts.clients, last.rule))
        if tokens
        else counted
    )


def by_reading(
    policy: CompiledPolicy, request: Request | Malformed, at: datetime
) -> list[tuple[ReadPath, Decision]]:
    """Return the decision that each reading of the path would lead to alone."""
    match = policy.match(request)
    return (
        []
        if match.denial
        else [
            (url.path, decide_reading(policy, match, url, at))
            for url in _readings(request)
        ]
    )


def _readings(request: Request | Malformed) -> list[UrlFacts]:
    try:
        url = parse_url(request.url or "")
        return [UrlFacts(path, url.query, url.path) for path in readings(url.path)]
    except InvalidUrl:
        return []
