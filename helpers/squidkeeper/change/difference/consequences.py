"""What becomes of a request, in a form that compares between two policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Decision,
    HostMatch,
    Stage,
    decide,
    decide_until_spent,
)
from squidkeeper.policy.engine.decision import Rewritten
from squidkeeper.policy.engine.explain import quotas_in, upstream
from squidkeeper.policy.engine.precedence import decides_without_body
from squidkeeper.policy.language.bodies import Body
from squidkeeper.policy.language.body_texts import body_text
from squidkeeper.policy.language.forms import (
    AwsSigV4,
    Form,
    Headers,
    InjectedValue,
    QueryParameters,
)
from squidkeeper.policy.language.model import Credential, Rewrite, Route, Rule
from squidkeeper.policy.language.prices import Metering
from squidkeeper.policy.language.quotas import Counted, Quota
from squidkeeper.policy.protocol.request import Malformed, Request, request_to
from squidkeeper.policy.url import Host, format_authority

_FETCHED = "fetched from"


class Change(StrEnum):
    """What is different for a request; of several, each is reported.

    The order is that of reports.
    """

    OPENED = "opened"
    CLOSED = "closed"
    ASKS = "asks"
    GRANTABLE = "grantable"
    PRIVATE = "private"
    PASSTHROUGH = "passthrough"
    WEBSOCKET = "websocket"
    REWRITE = "rewrite"
    CREDENTIALS = "credentials"
    STRIP = "strip"
    CONNECTIONS = "connections"
    UPSTREAM = "upstream"
    BODIES = "bodies"
    METER = "meter"
    QUOTAS = "quotas"
    USES = "uses"
    OBSERVED = "observed"


class GrantCount(NamedTuple):
    """A grant with a number of uses: one of another name, or made at another time, has
    a count of its own.
    """

    grant: str
    made: datetime | None
    uses: int


class BodyRule(NamedTuple):
    """A rule that the body decides among: what it does where its body holds.

    Without a body it holds always.
    """

    verdict: str
    observes: bool = False
    body: Body | None = None
    meter: Metering | None = None

    def __str__(self) -> str:
        """Write it for people."""
        where = f" where the body is {body_text(self.body)}" if self.body else ""
        metered = f" (meter: {self.meter})" if self.meter else ""
        return f"{'observed ' if self.observes else ''}{self.verdict}{where}{metered}"


@dataclass(frozen=True, slots=True)
class Consequence:
    """What a policy does with a request.

    Names of entries are no part of what compares: a rule may be renamed.

    `counts` are the grants that allow one after the other, each once the one before is
    spent; their names do count. `spent` is what becomes of the request once all of them
    are. `quotas` are the counts that the request is in, by the names of quotas, which
    do count too: under each of these grants and once they are spent, one set where all
    are the same. What a quota gives is a setting. Of a denied request only three are
    compared: `asks`, which a person may grant, `observed`, the verdict that is
    recorded, and whether it is `closed` or `grantable`: a grant would open it, whether
    a person was asked or not. `rewrite` is the target, as it stands in the policy or
    filled in. `bodies` are the rules that the body decides among. `otherwise` is what
    becomes of a request that the rewrite leaves alone, because it is for the target
    already: such a request may be allowed where the others are denied. `denies` is set
    where the rewrite denies some paths with several readings. It holds the target,
    because another target denies other paths.
    """

    allowed: bool
    rule: str
    location: Location | None = None
    private: bool = False
    passthrough: bool = False
    websocket: bool = False
    rewrite: str = ""
    credentials: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    connections: str | None = None
    upstream: str = ""
    otherwise: str = ""
    denies: str = ""
    observed: str = ""
    asks: bool = False
    grantable: bool = False
    counts: tuple[GrantCount, ...] = ()
    spent: Consequence | None = None
    quotas: tuple[frozenset[str], ...] = (frozenset(),)
    bodies: tuple[BodyRule, ...] = ()
    meter: Metering | None = None  # where no body decides

    @property
    def uses(self) -> int | None:
        """How many requests are allowed; None without a limit."""
        return (
            sum(count.uses for count in self.counts)
            if self.spent and not self.spent.allowed
            else None
        )

    @property
    def closed(self) -> bool:
        """Whether a rule of the policy denies, so that no grant opens it."""
        return not (self.allowed or self.asks) and self.location is not None

    @property
    def meters(self) -> frozenset[Metering | None]:
        """How a request may be metered, by one body or another."""
        allows = [
            rule
            for rule in self.bodies
            if rule.verdict == "allow" and not rule.observes
        ]
        return (
            frozenset(rule.meter for rule in allows)
            if self.bodies
            else frozenset([self.meter])
        )

    @property
    def rules(self) -> frozenset[str]:
        """All that decide, one after the other."""
        return frozenset(
            [
                self.rule,
                *(one.grant for one in self.counts),
                *([self.spent.rule] if self.spent else []),
            ]
        )

    @property
    def redirects(self) -> bool:
        """Whether the client is sent elsewhere, and nothing is fetched."""
        return self.rewrite != "" and not self.rewrite.startswith(_FETCHED)


# What each change compares of two requests that are both allowed, or both denied.
_COMPARED: dict[Change, Callable[[Consequence], object]] = {
    Change.ASKS: lambda consequence: consequence.asks,
    Change.PRIVATE: lambda consequence: consequence.private,
    Change.PASSTHROUGH: lambda consequence: consequence.passthrough,
    Change.WEBSOCKET: lambda consequence: consequence.websocket,
    Change.REWRITE: lambda consequence: (consequence.rewrite, consequence.otherwise),
    Change.CREDENTIALS: lambda consequence: consequence.credentials,
    Change.STRIP: lambda consequence: consequence.strip,
    Change.CONNECTIONS: lambda consequence: consequence.connections,
    Change.UPSTREAM: lambda consequence: consequence.upstream,
    Change.BODIES: lambda consequence: consequence.bodies,
    Change.METER: lambda consequence: consequence.meters,
    Change.QUOTAS: lambda consequence: (
        consequence.quotas,
        len(consequence.quotas) > 1 and consequence.counts,
    ),
    Change.USES: lambda consequence: consequence.counts,
    Change.OBSERVED: lambda consequence: consequence.observed,
}


def body_rules(listed: Sequence[Rule], default: Decision) -> tuple[BodyRule, ...]:
    """Write the rules that the body decides among; `default` decides where the last has
    a body.
    """
    rules = [
        BodyRule(rule.verdict, rule.observe, rule.body, rule.meter) for rule in listed
    ]
    if listed and not decides_without_body(listed[-1]):
        rules.append(BodyRule("allow" if default.allowed else "deny"))
    return tuple(rules)


def quota_counts(quotas: Iterable[Quota], rule: str) -> tuple[frozenset[str]]:
    """Name the counts that a request is in, which a rule allows or asks about."""
    return (
        frozenset(
            quota.name if quota.per is not Counted.RULE else f"{quota.name} of {rule}"
            for quota in quotas
        ),
    )


def counted(stages: Sequence[Consequence], grants: Iterable[Rule]) -> Consequence:
    """Join what becomes of a request by one grant that is counted after the other, and
    once they are spent.
    """
    first, spent = stages[0], stages[-1]
    passing = [stage for stage in stages if stage.allowed or stage.asks] or [first]
    quotas = tuple(quota for stage in passing for quota in stage.quotas)
    first = replace(first, quotas=quotas if len(set(quotas)) > 1 else quotas[:1])
    counts = tuple(
        GrantCount(grant.name, grant.made, grant.uses or 0) for grant in grants
    )
    return replace(first, counts=counts, spent=spent) if counts else first


# What of a request goes with the place that it is fetched from: another place says it
# all.
_OF_A_TARGET = (Change.PRIVATE, Change.CREDENTIALS, Change.UPSTREAM)


def changes(before: Consequence, after: Consequence) -> tuple[Change, ...]:
    """List what is different between two consequences."""
    if before.allowed != after.allowed:
        opens = Change.OPENED if after.allowed else Change.CLOSED
        is_all_denied = not (before if after.allowed else after).otherwise
        return (
            (opens,)
            if is_all_denied or before.otherwise == after.otherwise
            else (opens, Change.REWRITE)
        )
    found = tuple(
        change
        for change, compared in _COMPARED.items()
        if compared(before) != compared(after)
    )
    if before.closed and after.grantable:
        found = (*found, Change.GRANTABLE)
    if Change.USES not in found and before.spent and after.spent:
        once_spent = changes(before.spent, after.spent)
        found = (*found, *([Change.USES] if set(once_spent) - set(found) else []))
    if Change.REWRITE in found and after.rewrite:
        return tuple(change for change in found if change not in _OF_A_TARGET)
    return found


def denied(rule: str, observed: str = "") -> Consequence:
    """Make the consequence of a denial by a built-in rule that no grant opens."""
    return Consequence(False, rule, observed=observed)


def denied_by(decision: Decision, host: Host) -> Consequence:
    """Make the consequence of a denial.

    A grant opens what the default or an ask denies, but no private address.
    """
    grantable = (decision.asks or decision.rule == "default") and not host.private
    observed = observed_verdict(decision.observed)
    return Consequence(
        False,
        decision.rule,
        decision.location,
        observed=observed,
        asks=decision.asks,
        grantable=grantable,
    )


def consequence_of(
    decision: Decision,
    host: Host,
    *,
    websocket: bool,
    upstream: Route | None,
    bodies: tuple[BodyRule, ...] = (),
) -> Consequence:
    """Make the consequence of a decision; `websocket` says that the host lets
    WebSockets pass whatever the rule.
    """
    if (
        not decision.allowed or decision.asks
    ):  # a tunnel in which every request is asked about is open for that alone
        return denied_by(decision, host)
    fetched = decision.rewritten.url.host if decision.rewritten else host
    consequence = Consequence(
        True,
        decision.rule,
        decision.location,
        decision.private and fetched.address is None,
        decision.passthrough,
        websocket,
        rewrite_text(decision.rewritten) if decision.rewritten else "",
        credential_texts(decision.credentials),
        decision.strip.headers if decision.strip else (),
        decision.connections,
        route_text(upstream),
        observed=observed_verdict(decision.observed),
        bodies=bodies,
        meter=decision.meter,
    )
    if not decision.redirects:
        return consequence
    return not_fetched(consequence)


def not_fetched(consequence: Consequence) -> Consequence:
    """Leave out of a redirect what concerns only a request that is fetched."""
    kept = replace(
        consequence,
        private=False,
        websocket=False,
        strip=(),
        connections=None,
        credentials=(),
        upstream="",
    )
    return replace(kept, meter=None)


def observed_verdict(observed: str | None) -> str:
    """Return the verdict of what is observed, without the name of the rule."""
    return (observed or "").partition(":")[0]


def rewrite_text(rewritten: Rewritten) -> str:
    """Write where a request is fetched from, or sent."""
    return f"{_how(rewritten.rewrite)} {rewritten.url}"


def rewrite_key(rewrite: Rewrite | None) -> str:
    """Write what a rewrite does, for requests that are not known one by one."""
    if rewrite is None:
        return ""
    patterns = rewrite.match.paths or ()
    groups = " ".join(pattern.text for pattern in patterns if pattern.groups)
    return f"{_how(rewrite)} {rewrite.target.text} {groups}"


def _how(rewrite: Rewrite) -> str:
    return _FETCHED if rewrite.redirect is None else f"{rewrite.redirect} to"


def credential_texts(credentials: Iterable[Credential]) -> tuple[str, ...]:
    """Write what credentials put into a request, and where; without their names, and
    without any value.
    """
    return tuple(
        sorted(
            text for credential in credentials for text in form_texts(credential.form)
        )
    )


def form_texts(form: Form) -> list[str]:
    """Write what a credential puts into a request, with the names of its secrets."""
    match form:
        case Headers(values):
            return [f"{value.name}: {_value_text(value)}" for value in values]
        case QueryParameters(values):
            return [f"?{value.name}={_value_text(value)}" for value in values]
        case AwsSigV4():
            return [f"aws_sigv4 {form.region} {form.service} {' '.join(form.secrets)}"]
        case _:
            return list(form.places)


def _value_text(value: InjectedValue) -> str:
    return (
        value.template
        if value.username is None
        else f"basic {value.username}:{value.template}"
    )


def route_text(route: Route | None) -> str:
    """Write where a request is forwarded; empty where the policy does not say."""
    if route is None or not route.location.file:
        return ""
    if route.parent is None:
        return "direct"
    parent = route.parent
    login = f" as {parent.username} with {parent.password}" if parent.username else ""
    resolve = ", resolve: upstream" if route.resolve else ""
    return f"http://{format_authority(parent.host, parent.port)}{login}{resolve}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as `squidkeeper explain` takes it."""

    method: str
    target: str
    client: str | None
    user: str | None
    at: datetime


def judge(policy: CompiledPolicy, asked: Asked) -> Consequence:
    """Return what becomes of a request: now, and once the grants that allow it are
    spent.
    """
    request = request_to(asked.method, asked.target, asked.client, asked.user)
    match = policy.match(request)
    decisions = list(decide_until_spent(policy, match, asked.at))
    stages = [
        _consequence(policy, match, request, asked.at, decision)
        for decision in decisions
    ]
    return counted(
        stages,
        [decision.counted for decision in decisions if decision.counted is not None],
    )


def _consequence(
    policy: CompiledPolicy,
    match: HostMatch,
    request: Request | Malformed,
    at: datetime,
    decision: Decision,
) -> Consequence:
    consequence = _uncounted(policy, match, request, at, decision)
    return replace(
        consequence,
        quotas=quota_counts(quotas_in(policy, match, decision), decision.rule),
    )


def _uncounted(
    policy: CompiledPolicy,
    match: HostMatch,
    request: Request | Malformed,
    at: datetime,
    decision: Decision,
) -> Consequence:
    if isinstance(request, Malformed):
        return consequence_of(
            decision, match.facts.host, websocket=False, upstream=None
        )
    websocket = request.method == "GET" and (
        decision.websocket or decide(policy, match, at, Stage.HOST).outlook.unrestricted
    )
    bodies, forwarded = (
        body_rules(decision.by_body, match.candidates.default),
        upstream(policy, request, decision),
    )
    return consequence_of(
        decision, request.host, websocket=websocket, upstream=forwarded, bodies=bodies
    )
