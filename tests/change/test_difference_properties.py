"""The difference of two policies beside brute force: small random policies, and
requests judged one by one.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_network
from itertools import product
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.difference.comparison import CellDifference, Comparison, compare
from squidkeeper.change.difference.consequences import BodyRule, Change
from squidkeeper.change.difference.report import report, wider
from squidkeeper.change.difference.url_comparison import Doubt
from squidkeeper.cli.diff import confirm
from squidkeeper.cli.diff_output import as_json, as_markdown, as_text
from squidkeeper.policy.bodies.written_request import written_request
from squidkeeper.policy.engine import CompiledPolicy, Decision, decide
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.language.bodies import Allowed, JsonBody, Member
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.forms import Headers, values_of
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.model import (
    Action,
    Client,
    Credential,
    Match,
    Parent,
    Policy,
    Route,
    Rule,
    Strip,
    Token,
)
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.prices import Metering
from squidkeeper.policy.language.queries import parse_query
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.language.schedules import Hours, Schedule
from squidkeeper.policy.language.secret_sources import EnvironmentSource, NamedSecret
from squidkeeper.policy.protocol.request import CONNECT, Malformed, Request, request_to
from squidkeeper.policy.url import Host, ReadPath, Url, parse_url, readings
from squidkeeper.serving.quotas.counts import holder

from ..conftest import NOW
from ..policy.test_engine_properties import (
    HOSTS,
    PLACE,
    SEGMENTS,
    Drawn,
    DrawnCredentials,
    DrawnRewrites,
    credentials,
    defaults,
    policy_of,
    rewrites,
    rules,
    with_passthrough,
)


def json_of(text: str) -> str:
    """Write a document with the names and texts of `text` in quotes."""
    return re.sub("([a-z]+)", r'"\1"', text)


MORE_HOSTS = [
    *HOSTS,
    "d.c.b.a.example",
    "d.a.example",
    "x.other.test",
    "elsewhere.invalid",
    "198.51.100.3",
    "127.0.0.1",
]
METHODS = ["GET", "POST", "PUT", "OPTIONS", "MADE-UP", "post", "Post", "get"]
ORIGINS = [
    ("http", 80),
    ("https", 443),
    ("http", 8443),
    ("https", 8443),
    ("https", 80),
    ("https", 9),
]
PATHS = [
    "",
    *SEGMENTS,
    *map("/".join, product(SEGMENTS, ["x", "s", "", "..", "x%2fs"])),
]
PATHS += ["x/../s", "x/s/x/s", "s/x%2f..%2fs", "x//s", "x/%2e%2e/x/s"]
QUERIES = ["", "?q=1", "?q=2", "?q=1&q=2", "?q=12&r", "?q=1;q=3", "?r=1"]
# of a client with users, of clients with tokens
USERS = [
    None,
    None,
    "clerk",
    "one",
    "two",
]
CLIENTS = [None, "192.0.2.1", "198.51.100.1", "203.0.113.1"]
HOURS = [-2, 0, 2]
GRANTED = ["", "/x/**", "/x", "?q=1", "?q=2"]
AT_NOON = Schedule(UTC, hours=(Hours(12 * 60, 13 * 60),))
ROUTES = [
    Route.of(
        name,
        PLACE,
        Match(hosts=(parse_host_pattern(hosts),) if hosts else None, ports=ports),
        parent,
        resolve=False,
    )
    for name, hosts, ports, parent in (
        ("inner", ".a.example", None, None),
        ("outer", "*", None, Parent(Host("proxy.test"), 3128)),
        ("odd", None, (range(8443, 8444),), Parent(Host("proxy.test"), 3129)),
    )
]


METERS = [Metering(), Metering(5)]
BODIES = [
    JsonBody((Member(("m",), Allowed(("a",))),)),
    JsonBody((Member(("m",), Allowed(("a", "b"))),)),
    JsonBody((Member(("m",), Allowed(("a", "b"), absent=True)),), (("m",),)),
    JsonBody((Member(("n",), Allowed(None, 1, 5)),)),
    JsonBody((Member(("n",), Allowed(None, 2)),), max_bytes=9),
]
DOCUMENTS = [
    None,
    b"x",
    *(
        json_of(text).encode()
        for text in ("{}", "{m:a}", "{m:b}", "{m:c}", "{m:a,x:1}", "{n:1}", "{n:3}")
    ),
]
# it takes minutes; what fails is small as it is
NO_SHRINKING = (
    Phase.explicit,
    Phase.reuse,
    Phase.generate,
)
Policies = tuple[CompiledPolicy, CompiledPolicy]


@dataclass(frozen=True)
class Question:
    method: str
    target: str
    client: str | None
    user: str | None
    at: datetime


def every_question() -> Iterator[Question]:
    for method, (scheme, port), host, path, query, client, user, hours in product(
        METHODS, ORIGINS, MORE_HOSTS, PATHS, QUERIES, CLIENTS, USERS, HOURS
    ):
        yield Question(
            method,
            f"{scheme}://{host}:{port}/{path}{query}",
            client,
            user,
            NOW + timedelta(hours=hours),
        )


def some_questions(draw: random.Random, number: int) -> Iterator[Question]:
    for _ in range(number):
        scheme, port = draw.choice(ORIGINS)
        host, client, at = (
            draw.choice(MORE_HOSTS),
            draw.choice(CLIENTS),
            NOW + timedelta(hours=draw.choice([0, 2])),
        )
        user = draw.choice(USERS)
        if draw.random() < 0.1:
            yield Question(CONNECT, f"{host}:{port}", client, user, at)
        else:
            url = f"{scheme}://{host}:{port}/{draw.choice(PATHS)}{draw.choice(QUERIES)}"
            yield Question(draw.choice(METHODS), url, client, user, at)


# --- what really differs, by `explain` ------------------------------------------------


def seen(policy: CompiledPolicy, asked: Question) -> dict[str, Any]:
    """What people see of a decision: the facts that a difference is about."""
    request = request_to(asked.method, asked.target, asked.client, asked.user)
    found = explain(policy, request, asked.at)
    decision, upstream = found.decision, found.upstream
    observed = (decision.observed or "").partition(":")[0]
    if not decision.allowed or decision.asks:
        rules = {rule.name for rule in policy.source.rules}
        return {
            "allowed": False,
            "observed": observed,
            "asks": decision.asks,
            "closed": decision.rule in rules and not decision.asks,
            "grantable": (decision.asks or decision.rule == "default")
            and not request.host.private,  # type: ignore[union-attr]
        }
    listed = [one.rule for one in found.by_body]
    bodies = [
        BodyRule(str(rule.verdict), rule.observe, rule.body, rule.meter)
        for rule in listed
    ]
    if bodies and (bodies[-1].body or bodies[-1].observes):
        bodies.append(
            BodyRule("allow" if policy.source.default is Action.ALLOW else "deny")
        )
    uses, spent = uses_of(policy, request, asked.at)
    rewrite = decision.rewritten and (
        decision.rewritten.rewrite.redirect,
        decision.rewritten.url,
    )
    if decision.redirects:
        return {
            "allowed": True,
            "asks": False,
            "uses": uses,
            "spent": spent,
            "rewrite": rewrite,
            "observed": observed,
        }
    fetched = decision.rewritten.url.host if decision.rewritten else request.host  # type: ignore[union-attr]
    return {
        "allowed": True,
        "asks": False,
        "uses": uses,
        "spent": spent,
        "observed": observed,
        "bodies": bodies,
        "meter": {one.meter for one in bodies if one[:2] == ("allow", False)}
        if bodies
        else {decision.meter},
        "private": decision.private and fetched.address is None,
        "passthrough": decision.passthrough,
        "websocket": found.websocket is not None and found.websocket.passes,
        "rewrite": rewrite,
        "credentials": sorted(
            text for credential in decision.credentials for text in injected(credential)
        ),
        "strip": decision.strip and decision.strip.headers,
        "connections": decision.connections,
        "upstream": upstream.name
        if upstream and upstream.location.file
        else None,  # else the same parent, or none
    }


def injected(credential: Credential) -> list[str]:
    assert isinstance(credential.form, Headers)
    return [f"{value.name}: {value.template}" for value in credential.form.values]


def exceeds(policies: Policies, asked: Question) -> bool:
    """Whether the second policy does with a request what the first does not, and does
    not only close.
    """
    old, new = (seen(policy, asked) for policy in policies)
    if not (old["allowed"] and new["allowed"]):
        return bool(
            new["allowed"] or (old.get("closed") and new["asks"])
        ) or is_opened_by_a_grant(policies, asked)
    if more_uses(old, new):
        return True
    if new["rewrite"] and new["rewrite"][0] is not None:
        return False
    if any(takes_more(policies, asked, sent) for sent in DOCUMENTS):
        return True
    return (
        any(
            old.get(name) != new[name]
            for name in ("rewrite", "credentials", "upstream")
        )
        or any(
            new[name] and not old.get(name)
            for name in ("private", "passthrough", "websocket")
        )
        or any(old.get(name) and not new[name] for name in ("strip", "connections"))
    )


def takes_more(policies: Policies, asked: Question, body: bytes | None) -> bool:
    """Whether the second policy alone allows a request with a body, or meters it in
    another way than the first.
    """
    request = request_to(asked.method, asked.target, asked.client, asked.user)
    sent = written_request(asked.method, asked.target, body)
    old, new = (
        explain(policy, request, asked.at, sent).decision for policy in policies
    )
    return new.allowed and (
        not old.allowed or (old.meter is not None and old.meter != new.meter)
    )


def is_opened_by_a_grant(policies: Policies, asked: Question) -> bool:
    """Whether a grant for everything opens below the ceiling what it does not open
    under it, as a rule denies that.
    """
    old, new = (seen(granting(policy), asked) for policy in policies)
    return bool(new["allowed"]) and bool(old.get("closed"))


@lru_cache(maxsize=4)
def granting(policy: CompiledPolicy) -> CompiledPolicy:
    grant = Rule("everything", PLACE, Action.ALLOW, Match())
    return CompiledPolicy(replace(policy.source, grants=(*policy.source.grants, grant)))


def more_uses(old: dict[str, Any], new: dict[str, Any]) -> bool:
    before, after = (
        inf if side["spent"]["allowed"] else sum(side["uses"].values())
        for side in (old, new)
    )
    return after > before


def uses_of(
    policy: CompiledPolicy, request: Request | Malformed, at: datetime
) -> tuple[object, dict[str, object]]:
    """List the grants that are counted for a request, one after the other, and what is
    seen once they are spent.
    """
    spent: dict[str, int | None] = {}
    decision = decide(policy, policy.match(request), at)
    while decision.counted is not None:
        spent[decision.counted.name] = decision.counted.uses
        decision = decide(policy, policy.match(request), at, spent=spent)
    allowed = decision.allowed and not decision.asks
    observed = (decision.observed or "").partition(":")[0]
    return spent, {
        "allowed": allowed,
        "asks": not allowed and decision.asks,
        "observed": observed,
    }


def differs(policies: Policies, asked: Question) -> set[Change]:
    old, new = (seen(policy, asked) for policy in policies)
    if old["allowed"] != new["allowed"]:
        return {Change.OPENED if new["allowed"] else Change.CLOSED}
    compared = (old.keys() | new.keys()) - {"spent", "closed", "grantable"}
    found = {Change(name) for name in compared if old.get(name) != new.get(name)}
    if old.get("closed") and new.get("grantable"):
        found.add(Change.GRANTABLE)
    if old.get("uses") and new.get("uses"):
        before, after = (
            without(policy, frozenset(side["uses"]))
            for policy, side in zip(policies, (old, new), strict=True)
        )
        if differs((before, after), asked) - found:
            found.add(Change.USES)
    return found


@lru_cache(maxsize=64)
def without(policy: CompiledPolicy, spent: frozenset[str]) -> CompiledPolicy:
    return CompiledPolicy(
        replace(
            policy.source,
            grants=tuple(
                grant for grant in policy.source.grants if grant.name not in spent
            ),
        )
    )


# --- whether a request lies in a difference -------------------------------------------


def lies_in(
    policies: Policies, comparison: Comparison, asked: Question
) -> list[CellDifference]:
    request = request_to(asked.method, asked.target, asked.client, asked.user)
    assert isinstance(request, Request)
    moment = [holding(policies, at) for at in comparison.parts.moments].index(
        holding(policies, asked.at)
    )
    names = tuple(
        policy.clients_of(request.client, request.user) for policy in policies
    )
    refused = tuple(policy.match(request).denial is not None for policy in policies)
    method, host = (
        method_of(comparison, asked.method),
        entries_for(policies, request.host),
    )
    return [
        difference
        for difference in comparison.found
        if moment in difference.cell.moments
        and (method is None or method in difference.cell.methods)
        and any(
            span.holds(request.scheme, request.port) for span in difference.cell.ports
        )
        and any(
            (client.names, client.refused) == (names, refused)
            for client in difference.cell.clients
        )
        and entries_for(policies, difference.cell.hosts.example) == host
        and (
            method is None or is_in_urls(policies, difference, parse_url(asked.target))
        )
    ]


def holding(policies: Policies, at: datetime) -> list[int]:
    return [policy.timetable.holding(at) for policy in policies]


def method_of(comparison: Comparison, method: str) -> str | None:
    """The method that stands for another one; None for a CONNECT, which can be told
    with any request inside.
    """
    if method == CONNECT:
        return None
    known, lower = comparison.parts.methods, method.lower()
    return (
        method
        if method in known
        else lower
        if lower in known
        else known[len(known) // 2]
    )


@lru_cache(maxsize=100)
def entries_for(policies: Policies, host: Host) -> object:
    """What a policy knows a host by: the entries for it, and whether it is private or
    an address.
    """
    indexes = (
        index
        for policy in policies
        for index in (
            policy.rules,
            policy.grants,
            policy.rewrites,
            policy.credentials,
            policy.upstreams,
        )
    )
    return (
        [index.positions(host) for index in indexes],
        host.private,
        host.address is None,
    )


def is_in_urls(policies: Policies, difference: CellDifference, url: Url) -> bool:
    if difference.cell.exact is not None:
        return difference.cell.exact.url == url
    if difference.cells is None or (
        difference.doubt is Doubt.READINGS and len(readings(url.path)) > 1
    ):
        return True
    values = parse_query(url.query)
    entries = [entry for policy in policies for entry in policy.source.entries]
    patterns = {pattern for entry in entries for pattern in entry.match.query or ()}
    held = {
        atom
        for atom in {atom for held in difference.cells.queries for atom in held}
        for pattern in patterns
        if (pattern.key, pattern.pattern) == (atom.key, atom.pattern)
        and (pattern.matches_one(values) if atom.one else pattern.matches_all(values))
    }
    return held == difference.cell.held and any(
        reads_as(policies, difference, path) for path in readings(url.path)
    )


def reads_as(policies: Policies, difference: CellDifference, path: ReadPath) -> bool:
    assert difference.cells is not None
    known = {text for cell in difference.cells.paths for text in cell}
    matched = {
        pattern.text
        for policy in policies
        for entry in policy.source.entries
        for pattern in entry.match.paths or ()
        if pattern.text in known and pattern.match(path) is not None
    }
    return matched == difference.cell.matched


def compared(
    policies: Policies,
) -> Comparison:
    comparison = compare(policies, NOW)
    assert comparison.limit is None
    return comparison


def check(
    policies: Policies, questions: Iterator[Question], examples_at_most: int
) -> None:
    comparison = compared(policies)
    for one in comparison.found[:: len(comparison.found) // examples_at_most + 1]:
        if one.example is not None:
            example = Question(
                one.example.method,
                one.example.target,
                one.example.client,
                one.example.user,
                one.example.at,
            )
            assert one.change in differs(policies, example)
    for asked in questions:
        changed = {
            change
            for change in differs(policies, asked)
            if is_of_policy(policies, asked)
        }
        if not changed:
            continue
        assert not comparison.same
        lying = lies_in(policies, comparison, asked)
        told = {differing.change for differing in lying if differing.doubt is None}
        unproven = any(differing.doubt is not None for differing in lying)
        # it can be denied where none of its readings is
        ambiguous = bool(lying) and has_several_readings(asked)
        assert unproven or ambiguous or Change.REWRITE in told or changed <= told, (
            asked,
            changed,
            lying,
        )
        if exceeds(policies, asked):
            assert wider(lying), (asked, changed, lying)


def has_several_readings(asked: Question) -> bool:
    return asked.method != CONNECT and len(readings(parse_url(asked.target).path)) > 1


def is_of_policy(policies: Policies, asked: Question) -> bool:
    """Whether the policies judge a request; what is no valid request is denied by both,
    or not asked about.
    """
    if asked.method == CONNECT:
        return True
    try:
        readings(parse_url(asked.target).path)
    except InvalidUrl:
        return False
    return True


drawn_policies = st.tuples(
    rules,
    defaults,
    rewrites,
    credentials,
)
extras = st.fixed_dictionaries(
    {
        "observing": st.sets(st.integers(0, 5), max_size=2),
        "observes_default": st.sampled_from([False, False, True]),
        "stripping": st.sets(st.integers(0, 5), max_size=1),
        "single": st.sets(st.integers(0, 5), max_size=1),
        "passthrough": st.sampled_from([False, False, True]),
        "scheduled": st.sets(st.integers(0, 5), max_size=1),
        "asks_default": st.booleans(),
        "bodies": st.dictionaries(
            st.integers(0, 5), st.sampled_from(BODIES), max_size=3
        ),
        "metered": st.dictionaries(
            st.integers(0, 5), st.sampled_from(METERS), max_size=2
        ),
        "with_users": st.dictionaries(
            st.integers(0, 5),
            st.sets(st.sampled_from(USERS[2:]), min_size=1),
            max_size=3,
        ),
        "ending": st.sets(st.sampled_from(["one", "two"])),
        "grants": st.lists(
            st.tuples(
                st.sampled_from(HOSTS),
                st.sampled_from(GRANTED),
                st.sampled_from([None, 1, 3]),
            ),
            max_size=3,
        ),
        "others": st.sets(st.integers(0, 3), max_size=2),
        "upstreams": st.lists(
            st.sampled_from(ROUTES), max_size=2, unique_by=lambda route: route.name
        ),
    }
)


def grant_of(number: int, host: str, granted: str, uses: int | None) -> Rule:
    match = Match(hosts=(parse_host_pattern(host),))
    if granted.startswith("?"):
        exact = parse_exact_url(f"https://{host}/x{granted}")
        match = replace(
            match,
            urls=(exact,),
            methods=frozenset({"GET"}),
            schemes=frozenset({"https"}),
        )
    elif granted:
        match = replace(match, paths=(parse_path_pattern(granted),))
    return Rule(
        f"g{number}",
        PLACE,
        Action.ALLOW,
        match,
        expires=NOW + timedelta(hours=1),
        uses=uses,
    )


def user_clients(ending: set[str]) -> list[Client]:
    """Make the clients of users; the tokens of some end in an hour."""
    ends = {
        name: NOW + timedelta(hours=1) if name in ending else None
        for name in ("one", "two")
    }
    tokens = [
        Client(name, PLACE, tokens=(Token.of(name, end),)) for name, end in ends.items()
    ]
    return [Client("clerk", PLACE, users=frozenset({"clerk"})), *tokens]


def with_body(rule: Rule, body: JsonBody | None) -> Rule:
    """Give a rule a body, and nothing on which rules with bodies have to agree."""
    if body is None or rule.passthrough or rule.action is Action.ASK:
        return rule
    return replace(
        rule, body=body, private=False, websocket=False, strip=None, connections=None
    )


def with_meter(rule: Rule, meter: Metering | None) -> Rule:
    takes = rule.action is Action.ALLOW and not rule.passthrough
    return replace(rule, meter=meter, websocket=False) if meter and takes else rule


def with_clients(rule: Rule, names: set[str] | None) -> Rule:
    return (
        replace(rule, match=replace(rule.match, clients=frozenset(names)))
        if names
        else rule
    )


def observing(rule: Rule) -> Rule:
    """Let a rule observe.

    It opens nothing then, so it has nothing of what only a rule that opens may have.
    """
    without = replace(
        rule,
        private=False,
        websocket=False,
        passthrough=False,
        strip=None,
        connections=None,
        meter=None,
    )
    return replace(without, observe=True)


def with_extras(policy: Policy, drawn: dict[str, Any]) -> Policy:
    """Let some rules of a policy observe, strip and pass through, forward some hosts,
    and inject other secrets.
    """
    policy = with_passthrough(policy) if drawn["passthrough"] else policy
    stripped = [
        replace(
            rule,
            strip=Strip.of(["Cookie"])
            if number in drawn["stripping"] and not rule.passthrough
            else None,
        )
        for number, rule in enumerate(policy.rules)
    ]
    single = drawn["single"]
    stripped = [
        replace(
            rule,
            connections="single" if number in single and not rule.passthrough else None,
        )
        for number, rule in enumerate(stripped)
    ]
    bodies = {} if policy.rewrites else drawn["bodies"]
    stripped = [
        with_body(rule, bodies.get(number)) for number, rule in enumerate(stripped)
    ]
    stripped = [
        with_meter(rule, drawn["metered"].get(number))
        for number, rule in enumerate(stripped)
    ]
    stripped = [
        with_clients(rule, drawn["with_users"].get(number))
        for number, rule in enumerate(stripped)
    ]
    return replace(
        policy,
        clients=(*policy.clients, *user_clients(drawn["ending"])),
        rules=tuple(
            replace(
                observing(rule) if number in drawn["observing"] else rule,
                when=AT_NOON if number in drawn["scheduled"] else None,
            )
            for number, rule in enumerate(stripped)
        ),
        grants=tuple(
            grant_of(number, *grant) for number, grant in enumerate(drawn["grants"])
        ),
        ask_default=drawn["asks_default"],
        observe_default=PLACE if drawn["observes_default"] else None,
        upstreams=tuple(drawn["upstreams"]),
        credentials=tuple(
            replace(
                credential,
                form=Headers(
                    values_of(dict.fromkeys(credential.form.places, "{other}"))
                ),
            )
            if number in drawn["others"]
            else credential
            for number, credential in enumerate(policy.credentials)
        ),
        secrets={
            name: NamedSecret(name, PLACE, EnvironmentSource(name))
            for name in ("secret", "other")
        },
    )


def _few(
    drawn: Drawn, default: Action, rewritten: DrawnRewrites, injected: DrawnCredentials
) -> tuple[Drawn, Action, DrawnRewrites, DrawnCredentials]:
    return drawn[-3:], default, rewritten[:1], injected[:2]


@st.composite
def pairs(draw: st.DrawFn, *, small: bool = True) -> tuple[Policy, Policy]:
    """Two policies: the second is another one, or the first with a part of it changed.

    Small ones cost half.
    """
    first, second = (
        _few(*drawn) if small else drawn
        for drawn in (draw(drawn_policies), draw(drawn_policies))
    )
    kept = draw(st.sets(st.integers(0, 3)))
    mixed = [first[number] if number in kept else second[number] for number in range(4)]
    if 0 in kept and first[0] and draw(st.booleans()):
        at = draw(st.integers(0, len(first[0]) - 1))
        mixed[0] = [*first[0][:at], *first[0][at + 1 :]]
    more = draw(extras)
    others = more if draw(st.booleans()) else draw(extras)
    return with_extras(policy_of(*first), more), with_extras(policy_of(*mixed), others)  # type: ignore[arg-type]


@settings(max_examples=12, phases=NO_SHRINKING)
@given(pairs(), st.randoms(use_true_random=False))
def test_each_request_that_differs_lies_in_a_difference_and_each_example_differs(
    pair: tuple[Policy, Policy], draw: random.Random
) -> None:
    check(
        (CompiledPolicy(pair[0]), CompiledPolicy(pair[1])), some_questions(draw, 40), 20
    )


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(
    max_examples=2000, phases=NO_SHRINKING, suppress_health_check=list(HealthCheck)
)
@given(pairs(small=False), st.randoms(use_true_random=False))
def test_each_request_of_many_policies_that_differs_lies_in_a_difference(
    pair: tuple[Policy, Policy], draw: random.Random
) -> None:
    check(
        (CompiledPolicy(pair[0]), CompiledPolicy(pair[1])),
        some_questions(draw, 300),
        10**6,
    )


@settings(max_examples=4, phases=NO_SHRINKING)
@given(pairs())
def test_every_difference_is_written_for_people_and_explain_confirms_its_example(
    pair: tuple[Policy, Policy],
) -> None:
    policies = CompiledPolicy(pair[0]), CompiledPolicy(pair[1])
    found = report(policies, ("old", "new"), NOW)
    confirm(policies, found.differences)
    for write in (as_text, as_json, as_markdown):
        assert all(
            difference.change in write(found).lower()
            for difference in found.differences
        )
    text = as_text(found)
    assert ("mean the same" in text) == found.same
    assert text.count("\n\n") == len(found.differences) + bool(found.settings)


@settings(max_examples=8, phases=NO_SHRINKING)
@given(drawn_policies)
def test_a_policy_is_the_same_as_itself_with_other_names(
    drawn: tuple[Drawn, Action, DrawnRewrites, DrawnCredentials],
) -> None:
    assert compared(
        (CompiledPolicy(policy_of(*drawn)), CompiledPolicy(policy_of(*drawn)))
    ).same


# --- readings and late schedules, below a ceiling -------------------------------------

RABAT, BERLIN = ZoneInfo("Africa/Casablanca"), ZoneInfo("Europe/Berlin")
LATE = [
    Schedule(RABAT, hours=(Hours(660, 720),)),
    Schedule(BERLIN, hours=(Hours(840, 780),)),
]
# the first alone holds then, as in no year before
MOMENTS = [
    NOW,
    datetime(2036, 10, 20, 11, 30, tzinfo=UTC),
]
READ = ["x/y", "s/y", "z", "x/..%2fs/y", "s/..%2fx/y", "x%2f..%2f..%2fz"]
read_rule = st.tuples(
    st.sampled_from(["allow", "allow", "allow", "deny"]),
    st.sampled_from(["/x/**", "/s/**", None]),
    st.sampled_from([None, "Cookie"]),
    st.sampled_from([None, *LATE]),
)
read_rules = st.lists(read_rule, min_size=1, max_size=3)
ReadRule = tuple[str, str | None, str | None, Schedule | None]


def read_policy(drawn: list[ReadRule]) -> CompiledPolicy:
    """A policy whose rules do different things with paths, some at some times."""
    rules = (
        Rule(
            f"r{number}",
            PLACE,
            Action(action),
            Match(paths=(parse_path_pattern(path),) if path else None),
            strip=Strip.of([header]) if header and action == "allow" else None,
            when=when,
        )
        for number, (action, path, header, when) in enumerate(drawn)
    )
    return CompiledPolicy(Policy("0", rules=tuple(rules)))


@settings(max_examples=30, phases=NO_SHRINKING, deadline=None)
@given(read_rules, read_rule, st.sets(st.integers(1, 3)), st.booleans())
@example([("allow", None, None, LATE[1])], ("allow", None, None, LATE[0]), set(), True)
def test_nothing_is_open_below_a_ceiling_by_how_a_path_is_read_or_in_a_later_year(
    above: list[ReadRule], other: ReadRule, changed: set[int], is_added: bool
) -> None:
    """The second policy has the rules of the first with some fields changed alike, or
    with one rule more.
    """
    alike = [
        tuple(other[at] if at in changed else value for at, value in enumerate(rule))
        for rule in above
    ]
    below: list[Any] = [other, *above] if is_added else alike
    policies = read_policy(above), read_policy(below)
    asked = (
        Question("GET", f"https://a.example/{path}", None, None, at)
        for path, at in product(READ, MOMENTS)
    )
    found = [question for question in asked if exceeds(policies, question)]
    assert not (
        found and report(policies, ("ceiling", "new"), NOW, is_ceiling=True).same
    ), found


# --- logins, below a ceiling ----------------------------------------------------------

TOKENS = ["one", "two", "three"]
ends = st.sampled_from([None, 1, 3])
NETWORK = ip_network("192.0.2.0/24")
by_token = st.fixed_dictionaries(
    {"tokens": st.dictionaries(st.sampled_from(TOKENS), ends)}
)
by_name = st.fixed_dictionaries(
    {"users": st.sets(st.sampled_from(["a", "b"]), min_size=1).map(frozenset)}
)
logins: st.SearchStrategy[dict[str, Any]] = st.one_of(
    by_token, by_token, by_name, st.just({})
)
logged_in = st.fixed_dictionaries(
    {name: st.tuples(logins, st.booleans()) for name in ("a", "b", "c")}
)
ruled = st.lists(
    st.tuples(st.booleans(), st.sampled_from([None, "a", "b", "c"])), max_size=3
)


def with_logins(
    drawn: dict[str, tuple[dict[str, Any], bool]],
    allowed: list[tuple[bool, str | None]],
) -> Policy:
    """Make a policy of clients who log in by name, by token or not at all, and of rules
    for them and any host.
    """
    clients = [
        Client(
            name,
            PLACE,
            (NETWORK,) if networks or not login else None,
            login.get("users"),
            tuple(token_of(*token) for token in login["tokens"].items())
            if "tokens" in login
            else None,
        )
        for name, (login, networks) in drawn.items()
    ]
    rules = [
        Rule(
            f"r{number}",
            PLACE,
            Action.ALLOW if allows else Action.DENY,
            Match(clients=frozenset({name}) if name else None),
        )
        for number, (allows, name) in enumerate(allowed)
    ]
    return Policy("0", clients=tuple(clients), rules=tuple(rules))


def token_of(text: str, hours: int | None) -> Token:
    return Token.of(text, None if hours is None else NOW + timedelta(hours=hours))


@dataclass(frozen=True)
class Login:
    """Who asks: without a login, with the token of a user, or as a user whose password
    another program checks.
    """

    user: str | None
    token: str | None
    client: str
    at: datetime


def opens(policy: CompiledPolicy, login: Login, *, known: bool) -> bool:
    """Whether the request of a login is allowed.

    Of a user whom it does not know it is like one without, or refused.
    """
    by_token = policy.names_login(login.user)
    if login.user in policy.source.users and by_token != (login.token is not None):
        return False
    if login.user not in (None, *policy.source.users) and known:
        return False
    shown = Token.of(login.token).id if by_token and login.token else None
    request = Request(
        "GET",
        Host(login.client),
        login.user,
        "https",
        443,
        Host("x.example"),
        login=shown,
    )
    return decide(
        policy, policy.match(request._replace(url="https://x.example/")), login.at
    ).allowed


@settings(max_examples=25, phases=NO_SHRINKING)
@given(logged_in, ruled, st.data())
def test_nobody_logs_in_below_a_ceiling_who_may_not_above(
    clients: dict[str, Any], rules: list[Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["a", "b", "c"]))
    login, networks = clients[name]
    if "tokens" in login and data.draw(st.booleans()):
        edited = {
            "tokens": {
                **login["tokens"],
                data.draw(st.sampled_from(TOKENS)): data.draw(ends),
            }
        }
    else:
        edited = data.draw(logins)
    allows = [(True, name)]  # so that not most of it is denied
    below = with_logins(
        {**clients, name: (edited, networks)},
        data.draw(st.sampled_from([rules, []])) + allows,
    )
    policies = ceiling, new = (
        CompiledPolicy(with_logins(clients, rules + allows)),
        CompiledPolicy(below),
    )
    users = [(None, None), *product(["a", "b", "c"], [None, *TOKENS])]
    every_login = (
        Login(*user, client, NOW + timedelta(hours=hours))
        for user, client, hours in product(
            users, ["192.0.2.1", "203.0.113.1"], [0, 2, 4]
        )
    )
    if any(
        opens(new, login, known=True) and not opens(ceiling, login, known=False)
        for login in every_login
    ):
        assert not report(policies, ("ceiling", "new"), NOW, is_ceiling=True).same


# --- quotas, below a ceiling ----------------------------------------------------------

NAMES = ["a", "b", "c"]
quota_names = st.one_of(
    st.none(), st.sets(st.sampled_from([*NAMES, "default"]), min_size=1).map(frozenset)
)
quotas = st.builds(
    Quota,
    name=st.just(""),
    location=st.just(PLACE),
    unit=st.sampled_from(QuotaUnit),
    limit=st.sampled_from([1, 5]),
    window=st.sampled_from([Window.DAY, Window.DAY, Window.HOUR]),
    per=st.sampled_from(Counted),
    rules=quota_names,
    clients=st.one_of(
        st.none(), st.sets(st.sampled_from(["near", "bot"]), min_size=1).map(frozenset)
    ),
)
by_rules = st.lists(
    st.tuples(
        st.sampled_from(["allow", "metered", "ask", "deny", "passthrough"]),
        st.sampled_from([None, "near", "bot"]),
        st.sampled_from([None, "/x/**"]),
    ),
    max_size=3,
)
by_grants = st.lists(
    st.tuples(st.sampled_from(["g", "h"]), st.integers(1, 2)),
    max_size=2,
    unique_by=lambda g: g[0],
)


@st.composite
def quota_policies(draw: st.DrawFn) -> Policy:
    """A policy of three rules at most with quotas, for one host; grants go ahead of the
    rules.
    """
    network = ip_network(draw(st.sampled_from(["192.0.2.0/24", "192.0.2.0/25"])))
    ruled = zip(draw(st.permutations(NAMES)), draw(by_rules), strict=False)
    return Policy(
        "0",
        clients=(
            Client("near", PLACE, (network,)),
            Client("bot", PLACE, users=frozenset({"bot"})),
        ),
        rules=tuple(quota_rule(name, *fields) for name, fields in ruled),
        grants=tuple(
            Rule(
                name,
                PLACE,
                Action.ALLOW,
                Match(),
                expires=NOW + timedelta(hours=1),
                uses=uses,
            )
            for name, uses in draw(by_grants)
        ),
        quotas=tuple(
            replace(one, name=f"q{number}")
            for number, one in enumerate(draw(st.lists(quotas, max_size=2)))
        ),
    )


def quota_rule(name: str, does: str, client: str | None, path: str | None) -> Rule:
    match = Match(clients=frozenset({client}) if client else None)
    if does == "passthrough":
        return Rule(name, PLACE, Action.ALLOW, match, passthrough=True)
    match = replace(match, paths=(parse_path_pattern(path),)) if path else match
    if does == "metered":
        return Rule(name, PLACE, Action.ALLOW, match, meter=METERS[0])
    return Rule(name, PLACE, Action(does), match)


def counts_of(
    policy: CompiledPolicy, request: Request
) -> Iterator[tuple[str, set[tuple[str, QuotaUnit, Window, str]]]]:
    """What becomes of each of six such requests, one after the other, and the counts
    that it is in.
    """
    match, used = policy.match(request), Counter[str]()
    for _ in range(6):
        spent = {
            grant.name: grant
            for grant in policy.source.grants
            if used[grant.name] >= (grant.uses or 0)
        }
        decision = decide(policy, match, NOW, spent=spent)
        if decision.counted is not None:
            used[decision.counted.name] += 1
        yield (
            "ask" if decision.asks else "allow" if decision.allowed else "deny",
            {
                (
                    quota.name,
                    quota.unit,
                    quota.window,
                    holder(quota, str(request.client), request.user, decision.rule)
                    or "",
                )
                for quota in policy.source.quotas
                if (decision.allowed or decision.asks)
                and is_under(quota, decision, match.facts.clients, request)
            },
        )


def is_under(
    quota: Quota, decision: Decision, clients: tuple[str, ...], request: Request
) -> bool:
    if quota.clients is not None and not quota.clients & set(clients):
        return False
    if quota.rules is not None and decision.rule not in quota.rules:
        return False
    if (quota.unit is QuotaUnit.TICKETS) != (not decision.allowed):
        return False
    if quota.unit.is_tokens:
        return request.method != CONNECT and decision.meter is not None
    if request.method != CONNECT:
        return quota.unit is not QuotaUnit.TUNNELS
    return (
        quota.unit is QuotaUnit.TUNNELS
        or quota.unit is QuotaUnit.TICKETS
        or passes_size(quota, decision)
    )


def passes_size(quota: Quota, decision: Decision) -> bool:
    return decision.passthrough and quota.unit in (
        QuotaUnit.BYTES_IN,
        QuotaUnit.BYTES_OUT,
    )


def escapes(policies: Policies, request: Request) -> bool:
    """Whether one of such requests is counted by the ceiling, and the second lets it
    pass with a looser count.
    """
    limits, given = (
        {quota.name: quota.limit for quota in policy.source.quotas}
        for policy in policies
    )
    return any(
        counted not in after or given[counted[0]] > limits[counted[0]]
        for (was, before), (does, after) in zip(
            *(counts_of(policy, request) for policy in policies), strict=True
        )
        if was == does != "deny"
        for counted in before
    )


@settings(max_examples=25, phases=NO_SHRINKING)
@given(
    quota_policies(),
    quota_policies(),
    st.sets(st.sampled_from(["rules", "quotas", "grants", "clients"])),
)
def test_what_a_ceiling_counts_is_counted_below_it(
    ceiling: Policy, other: Policy, kept: set[str]
) -> None:
    new = replace(other, **{name: getattr(ceiling, name) for name in kept})
    policies = CompiledPolicy(ceiling), CompiledPolicy(new)
    hosts = product(["192.0.2.1", "192.0.2.200", "203.0.113.1"], [None, "bot"])
    targets = [
        ("GET", "https://x.example/"),
        ("GET", "https://x.example/x/s"),
        (CONNECT, "x.example:443"),
    ]
    for (method, target), (client, user) in product(targets, hosts):
        request = request_to(method, target, client, user)
        assert isinstance(request, Request)
        if escapes(policies, request):
            assert not report(
                policies, ("ceiling", "new"), NOW, is_ceiling=True
            ).same, request
            return
