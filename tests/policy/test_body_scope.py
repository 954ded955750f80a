"""The decision by the body: which rules it is made among, how Squid passes them on, and
the first that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.bodies import body_forms
from squidkeeper.policy.bodies.sent_request import BodyOutcome, Fit, SentRequest
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Stage,
    decide,
    decide_body,
    listed_rules,
)
from squidkeeper.policy.engine.body_scope import LISTED_AT_MOST, format_listed
from squidkeeper.policy.engine.tunnels import tunnel_use
from squidkeeper.policy.language import body_faults
from squidkeeper.policy.language.bodies import Body, JsonBody
from squidkeeper.policy.language.model import Action, Policy, Rewrite, Rule, Strip
from squidkeeper.policy.protocol.request import TunnelMode, request_to
from squidkeeper.policy.url import parse_url, readings
from squidkeeper.serving.replies import acl_reply

from ..conftest import NOW, compiled_of, decided
from .test_engine_properties import (
    ASKED,
    DENIED,
    Asked,
    Outcome,
    clients,
    default_port,
    methods,
    plain_outcome,
    plainly_holds,
    policy_of,
    rewrites,
    ruled,
    urls,
)

SENT = SentRequest("POST", "/x", [("Content-Type", "application/json")], b"{}")
CHAT = "body: {json: {/model: [small]}}"
POLICY = f"""
rules:
  - {{name: watched, action: deny, hosts: [api.example], observe: true, {CHAT}}}
  - {{name: no-tools, action: deny, hosts: [api.example], paths: [/chat], body: {{json: {{/tools/*/type: ['*']}}}}}}
  - {{name: chat, action: allow, hosts: [api.example], paths: [/chat], {CHAT}}}
  - {{name: closed, action: deny, hosts: [api.example], paths: [/chat/**]}}
  - {{name: rest, action: allow, hosts: [api.example], methods: [GET]}}
  - {{name: git, action: allow, hosts: [git.example], body: {{git: {{push: [refs/heads/agent/**]}}}}}}
  - {{name: read, action: allow, hosts: [git.example], methods: [GET]}}
  - {{name: asked, action: allow, hosts: [ask.example], {CHAT}}}
  - {{name: ask, action: ask, hosts: [ask.example]}}
  - {{name: only-deny, action: deny, hosts: [denied.example], {CHAT}}}
grants:
  - {{name: once, hosts: [ask.example], any_client: true, paths: [/once], uses: 2, expires: 2030-01-01T00:00:00Z,
     reason: try}}
"""


@pytest.fixture
def policy(tmp_path: Path) -> CompiledPolicy:
    return compiled_of(tmp_path / "policy", POLICY)


def judged(outcomes: dict[str, BodyOutcome]) -> Callable[..., BodyOutcome]:
    """Stand in for the forms: the outcome of each rule by its name, whose body must be
    its own.
    """
    return lambda body, request, *, deny: outcomes[body]


@pytest.mark.parametrize(
    ("asked", "said", "listed"),
    [
        ("POST https://api.example/chat", "allow by chat", "r0,r1,r2,d"),
        ("GET https://api.example/chat", "allow by chat", "r0,r1,r2,r4"),
        ("GET https://api.example/other", "allow by rest", "r0,r4"),
        ("POST https://api.example/other", "deny by default", ""),
        ("POST https://api.example/chat/x", "deny by closed", ""),
        ("POST https://git.example/a.git/git-receive-pack", "allow by git", "r5,d"),
        (
            "GET https://git.example/a.git/info/refs?service=git-receive-pack",
            "allow by git",
            "r5,r6",
        ),
        (
            "GET https://git.example/a.git/info/refs?service=git-upload-pack",
            "allow by read",
            "",
        ),
        ("POST https://git.example/a.git/git-upload-pack", "deny by default", ""),
        ("POST https://ask.example/x", "allow by asked", "r7,r8"),
        ("POST https://ask.example/once", "allow by asked", "r7,g0"),
        ("POST https://denied.example/x", "deny by default", ""),
        ("POST https://api.example/%2e/chat", "deny by ambiguous-path", ""),
        ("POST https://api.example/chat/../x", "deny by closed", ""),
        ("POST https://api.example/x/..%2fchat", "deny by ambiguous-path", ""),
    ],
)
def test_a_request_lists_the_rules_that_its_body_decides_among(
    policy: CompiledPolicy, asked: str, said: str, listed: str
) -> None:
    decision = decided(policy, request_to(*asked.split(" ")), NOW)
    assert f"{decision.action} by {decision.rule}" == said
    assert (
        format_listed(policy, decision.by_body) if decision.by_body else ""
    ) == listed
    reply = acl_reply(decision, "request", policy)
    assert dict(reply.annotations).get("body_", "") == listed


def test_a_list_reads_as_it_was_written(policy: CompiledPolicy) -> None:
    for text in ("r0,r1,r2,d", "r0,r4", "r7,g0", "r2,c"):
        assert format_listed(policy, listed_rules(policy, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d",
        "r0",
        "r4,d",
        "r4,r0,d",
        "r99,d",
        "g1",
        "r0,g0,d",
        "x",
        "r-1,d",
        "r00,d",
        "r0, d",
    ],
)
def test_what_is_no_list_of_a_policy_is_refused(
    policy: CompiledPolicy, text: str
) -> None:
    with pytest.raises(PatternError):
        listed_rules(policy, text)


def test_a_grant_in_a_list_counts_whatever_the_body(policy: CompiledPolicy) -> None:
    decision = decided(policy, request_to("POST", "https://ask.example/once"), NOW)
    assert decision.counted is not None
    assert decision.counted.name == "once"
    spent = decide(
        policy,
        policy.match(request_to("POST", "https://ask.example/once")),
        NOW,
        spent={"once"},
    )
    assert (spent.counted, format_listed(policy, spent.by_body)) == (None, "r7,r8")


MORE_RULES = f"""
rules:
  - {{name: no-tools, action: deny, hosts: [paths.example], paths: [/a/**], {CHAT}}}
  - {{name: chat, action: allow, hosts: [paths.example], {CHAT}}}
  - {{name: watched, action: deny, hosts: [watched.example], observe: true, {CHAT}}}
  - {{name: all, action: allow, hosts: [watched.example]}}
  - {{name: watched-reads, action: deny, hosts: [reads.example], observe: true, {CHAT}}}
  - {{name: reads, action: allow, hosts: [reads.example], methods: [GET]}}
  - {{name: stripped, action: allow, hosts: [grant.example], strip: [X-Debug], {CHAT}}}
  - {{name: plain, action: allow, hosts: [plain.example], {CHAT}}}
grants:
  - {{name: g, hosts: [grant.example, plain.example], any_client: true, expires: 2030-01-01T00:00:00Z, reason: try}}
"""


@pytest.fixture
def more(tmp_path: Path) -> CompiledPolicy:
    return compiled_of(tmp_path / "more", MORE_RULES)


def test_a_path_whose_readings_lead_to_different_lists_is_ambiguous(
    more: CompiledPolicy,
) -> None:
    decision = decided(more, request_to("POST", "https://paths.example/a/..%2fb"), NOW)
    assert decision.rule == "ambiguous-path"
    assert (
        decided(more, request_to("POST", "https://paths.example/c/..%2fb"), NOW).rule
        == "chat"
    )


def test_a_grant_that_differs_from_the_rules_of_a_list_is_passed_over(
    more: CompiledPolicy,
) -> None:
    listed = [
        format_listed(
            more,
            decided(more, request_to("POST", f"https://{name}.example/"), NOW).by_body,
        )
        for name in ("grant", "plain")
    ]
    assert listed == ["r6,d", "r7,g0"]


def test_a_rule_that_observes_bodies_has_them_read_on_a_host_that_is_open(
    more: CompiledPolicy,
) -> None:
    match = more.match(request_to("POST", "https://watched.example/x"))
    for decision in (
        decide(more, match, NOW, Stage.HOST),
        decide(more, match, NOW, Stage.URL),
    ):
        assert (decision.rule, format_listed(more, decision.by_body)) == (
            "all",
            "r2,r3",
        )


AT_HOST = {
    "[{allow}]": "r0,d",
    "[{allow_get}, {deny}, {all}]": "r1,r2",
    "[{deny}, {deny_all}]": "",  # denied without the body
    "[{deny}, {path}, {all}]": None,
    "[{allow}, {git}]": None,
    "[{allow}, {asks}]": None,
}


@pytest.mark.parametrize("rules", AT_HOST)
def test_the_url_is_asked_about_only_where_lists_of_rules_differ_by_it(
    tmp_path: Path, rules: str
) -> None:
    named = {
        "allow": f"{{name: allow, action: allow, hosts: [a.example], {CHAT}}}",
        "allow_get": f"{{name: allow-get, action: allow, hosts: [a.example], methods: [GET], {CHAT}}}",
        "deny": f"{{name: deny, action: deny, hosts: [a.example], {CHAT}}}",
        "all": "{name: all, action: allow, hosts: [a.example]}",
        "deny_all": "{name: deny-all, action: deny, hosts: [a.example]}",
        "path": f"{{name: path, action: allow, hosts: [a.example], paths: [/v1/**], {CHAT}}}",
        "git": "{name: git, action: allow, hosts: [a.example], body: {git: {push: [refs/heads/a]}}}",
        "asks": "{name: asks, action: ask, hosts: [a.example]}",
    }
    policy = compiled_of(tmp_path / "policy", f"rules: {rules.format_map(named)}")
    match = policy.match(request_to("POST", "https://a.example/x"))
    at_host = decide(policy, match, NOW, Stage.HOST)
    assert at_host.outlook.needs_url == (AT_HOST[rules] is None)
    if not at_host.outlook.needs_url:
        by_url = decide(policy, match, NOW, Stage.URL)
        assert (at_host.action, at_host.rule, at_host.by_body) == (
            by_url.action,
            by_url.rule,
            by_url.by_body,
        )
        assert (
            format_listed(policy, at_host.by_body) if at_host.by_body else ""
        ) == AT_HOST[rules]
        assert not at_host.final


def test_a_host_whose_bodies_are_observed_is_not_shared_either(
    more: CompiledPolicy,
) -> None:
    use = tunnel_use(
        more, more.match(request_to("GET", "https://reads.example/x")), NOW
    )
    assert (use.mode, use.reason) == (
        TunnelMode.OWN,
        "the rule watched-reads reads bodies",
    )


HOLDS, FAILS = BodyOutcome(Fit.HOLDS), BodyOutcome(Fit.FAILS, "a reason")
UNREADABLE, MORE = (
    BodyOutcome(Fit.UNREADABLE, "unreadable"),
    BodyOutcome(Fit.NEEDS_MORE),
)


@pytest.mark.parametrize(
    ("outcomes", "said", "observed"),
    [
        ((FAILS, FAILS, HOLDS), "allow by chat", None),
        ((HOLDS, FAILS, HOLDS), "allow by chat", "deny:watched"),
        ((FAILS, HOLDS, HOLDS), "deny by no-tools", None),
        ((FAILS, FAILS, FAILS), "deny by default", None),
        ((UNREADABLE, UNREADABLE, UNREADABLE), "deny by no-tools", "deny:watched"),
        ((FAILS, FAILS, UNREADABLE), "deny by default", None),
        ((MORE, HOLDS, HOLDS), None, None),
        ((FAILS, FAILS, MORE), None, None),
        ((FAILS, HOLDS, MORE), "deny by no-tools", None),
    ],
)
def test_the_first_rule_that_holds_decides(
    policy: CompiledPolicy,
    outcomes: Sequence[BodyOutcome],
    said: str | None,
    observed: str | None,
) -> None:
    listed = decided(policy, request_to("POST", "https://api.example/chat"), NOW)
    told = iter(outcomes)
    with patch.object(body_forms, "examine", lambda *_, **__: next(told)):
        decision = decide_body(policy, listed, SENT)
    assert (f"{decision.action} by {decision.rule}" if decision else None) == said
    assert decision is None or decision.observed == observed


def test_a_denial_says_why_and_keeps_it_for_the_record(policy: CompiledPolicy) -> None:
    listed = listed_rules(policy, "r1,r2,d")
    with patch.object(body_forms, "examine", lambda *_, **__: FAILS):
        decision = decide_body(policy, listed, SENT)
    assert decision is not None
    assert (
        decision.reason == "No rule of the policy allows this request. chat: a reason."
    )
    assert decision.found == "chat: a reason"


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (True, "no-tools: the rule denies this body"),
        (False, "default: no rule allows this body"),
    ],
)
def test_a_denial_by_the_body_is_told_apart_on_record_where_no_form_has_a_reason(
    policy: CompiledPolicy, holds: bool, said: str
) -> None:
    outcome = BodyOutcome(Fit.HOLDS if holds else Fit.FAILS)
    with patch.object(body_forms, "examine", lambda *_, **__: outcome):
        decision = decide_body(policy, listed_rules(policy, "r1,r2,d"), SENT)
    assert decision is not None
    assert f"{decision.rule}: {decision.found}" == said


def test_an_ask_at_the_end_of_a_list_denies_without_a_ticket(
    policy: CompiledPolicy,
) -> None:
    with patch.object(body_forms, "examine", lambda *_, **__: FAILS):
        decision = decide_body(policy, listed_rules(policy, "r7,r8"), SENT)
    assert decision is not None
    assert (decision.action, decision.rule, decision.asks) == (
        Action.DENY,
        "ask",
        False,
    )


def test_more_rules_than_a_reply_has_room_for_are_denied(tmp_path: Path) -> None:
    rules = "\n".join(
        f"  - {{name: r{n}, action: allow, hosts: [a.example], {CHAT}}}"
        for n in range(LISTED_AT_MOST + 1)
    )
    policy = compiled_of(tmp_path / "policy", f"rules:\n{rules}")
    decision = decided(policy, request_to("POST", "https://a.example/"), NOW)
    assert (decision.action, decision.rule) == (Action.DENY, "invalid-request")


def test_a_host_whose_bodies_are_read_is_never_shared(policy: CompiledPolicy) -> None:
    match = policy.match(request_to("GET", "https://git.example/x"))
    assert tunnel_use(policy, match, NOW).mode is TunnelMode.OWN
    assert tunnel_use(policy, match, NOW).reason == "the rule git reads bodies"
    assert decide(policy, match, NOW, Stage.HOST).outlook.needs_url


def test_a_host_below_a_rule_that_decides_everything_reads_no_body(
    tmp_path: Path,
) -> None:
    policy = compiled_of(
        tmp_path / "policy",
        f"rules:\n - {{name: all, action: allow, hosts: [a.example]}}\n"
        f" - {{name: late, action: allow, hosts: [a.example], {CHAT}}}",
    )
    decision = decide(
        policy, policy.match(request_to("POST", "https://a.example/x")), NOW, Stage.HOST
    )
    assert (
        decision.rule,
        decision.outlook.needs_url,
        decision.outlook.unrestricted,
    ) == ("all", False, True)


def test_a_default_that_allows_ends_a_list_by_its_port(tmp_path: Path) -> None:
    rule = f"{{name: a, action: allow, ports: [443, 8443], hosts: [a.example], {CHAT}}}"
    policy = compiled_of(
        tmp_path / "policy", f"defaults: {{action: allow}}\nrules: [{rule}]"
    )
    for url, listed, allowed in (
        ("https://a.example/", "r0,d", True),
        ("https://a.example:8443/", "r0,c", False),
    ):
        decision = decided(policy, request_to("POST", url), NOW)
        assert format_listed(policy, decision.by_body) == listed
        with patch.object(body_forms, "examine", lambda *_, **__: FAILS):
            later = decide_body(policy, listed_rules(policy, listed), SENT)
        assert later is not None
        assert (later.allowed, later.rule) == (allowed, "default")


# --- beside a plain reading of the language -------------------------------------------

FITS = [Fit.HOLDS, Fit.FAILS, Fit.UNREADABLE, Fit.NEEDS_MORE]


def with_bodies(policy: Policy, bodies: list[bool], observes: list[bool]) -> Policy:
    """Give some rules a body of their own, told by its size, and let some observe."""
    rules = []
    for number, rule in enumerate(policy.rules):
        body: Body | None = (
            JsonBody((), max_bytes=number)
            if bodies[number] and rule.action is not Action.ASK
            else None
        )
        observe = observes[number]
        private = rule.private and not observe
        websocket = rule.websocket and not observe
        rules.append(
            replace(
                rule, body=body, observe=observe, private=private, websocket=websocket
            )
        )
    return replace(policy, rules=tuple(rules))


more_rewrites = rewrites.map(lambda drawn: policy_of([], Action.DENY, drawn).rewrites)
flags = st.lists(st.booleans(), min_size=6, max_size=6)
fits = st.lists(st.sampled_from(FITS), min_size=6, max_size=6)
read_policies = st.builds(with_bodies, ruled, flags, flags)


def plain_list(policy: Policy, asked: Asked, path: tuple[object, str]) -> list[Rule]:
    found = []
    for rule in policy.rules:
        if plainly_holds(rule, asked, *path):  # type: ignore[arg-type]
            found.append(rule)
            if not (rule.observe or rule.body):
                break
    return found


def agreeing(rules: list[Rule]) -> bool:
    return len({(rule.private, rule.websocket) for rule in rules if allows(rule)}) <= 1


def allows(rule: Rule) -> bool:
    return rule.action is Action.ALLOW and not rule.observe


def before_body(
    policy: Policy, asked: Asked, path: tuple[object, str]
) -> Outcome | list[Rule]:
    """Decide for one reading before the body: the outcome, or the list.

    What is last in it may be a grant.
    """
    found = plain_list(policy, asked, path)
    if not any(rule.body for rule in found):
        deciding = tuple(rule for rule in policy.rules if not rule.observe)
        return plain_outcome(replace(policy, rules=deciding), asked, *path)  # type: ignore[arg-type]
    last = found.pop() if not (found[-1].observe or found[-1].body) else None
    if last is None or last.action is Action.ASK:
        grants = (
            grant
            for grant in policy.grants
            if plainly_holds(grant, asked, *path)  # type: ignore[arg-type]
        )
        last = next((grant for grant in grants if agreeing([*found, grant])), last)
    listed = [*found, *([last] if last else [])]
    first = next(filter(allows, listed), None)
    by_default = last is None and policy.default is Action.ALLOW
    if asked.url.host.private and not (first and first.private):
        return DENIED
    if first is None and not (by_default and default_port(asked.url)):
        asks = last.action is Action.ASK if last else policy.ask_default
        return ASKED if asks else DENIED
    reached = (
        by_default
        and default_port(asked.url)
        and first is not None
        and (first.private or first.websocket)
    )
    return listed if agreeing(listed) and not reached else DENIED


def by_body(
    policy: Policy, asked: Asked, listed: list[Rule], told: dict[int, Fit]
) -> tuple[str, str] | None:
    """Decide by the body: the verdict, and the rule."""
    for rule in listed:
        fit = Fit.HOLDS if rule.body is None else told[rule.body.max_bytes]
        if fit is Fit.NEEDS_MORE:
            return None
        holds = fit is Fit.HOLDS or (
            fit is Fit.UNREADABLE and rule.action is Action.DENY
        )
        if holds and not rule.observe:
            return str(rule.verdict), rule.name
    allowed = policy.default is Action.ALLOW and default_port(asked.url)
    return ("allow" if allowed else "deny"), "default"


def plainly(policy: Policy, asked: Asked, told: dict[int, Fit]) -> object:
    found = {}
    try:
        paths = readings(asked.url.path)
    except InvalidUrl:
        return "deny"
    for path in paths:
        before = before_body(policy, asked, (path.reading, path.path))
        found[
            tuple(rule.name for rule in before) if isinstance(before, list) else before
        ] = before
    if len(found) > 1:
        return "deny"
    [before] = found.values()
    return (
        by_body(policy, asked, before, told)
        if isinstance(before, list)
        else str(before.action.verdict)
    )


def engine_says(compiled: CompiledPolicy, asked: Asked, told: dict[int, Fit]) -> object:
    match = compiled.match(request_to(asked.method, str(asked.url), asked.client))
    decision = decide(compiled, match, NOW, Stage.URL)
    assert decide(compiled, match, NOW).by_body == decision.by_body
    if not decision.by_body:
        return str(decision.action)
    with patch.object(
        body_forms, "examine", lambda body, *_, **__: BodyOutcome(told[body.max_bytes])
    ):
        later = decide_body(
            compiled,
            listed_rules(compiled, format_listed(compiled, decision.by_body)),
            SENT,
        )
    return later and (str(later.action), later.rule)


@given(read_policies, methods, urls, clients, fits)
def test_it_decides_as_a_plain_reading_of_the_language(
    policy: Policy, method: str, text: str, client: str | None, fits: list[Fit]
) -> None:
    asked, told = Asked(method, parse_url(text), client), dict(enumerate(fits))
    assert engine_says(CompiledPolicy(policy), asked, told) == plainly(
        policy, asked, told
    )


@given(
    read_policies,
    methods,
    urls,
    clients,
    st.sets(st.integers(0, 5), max_size=2),
    more_rewrites,
)
def test_a_policy_without_faults_has_rules_that_agree_and_nothing_that_changes_a_request_that_is_read(
    policy: Policy,
    method: str,
    text: str,
    client: str | None,
    stripping: set[int],
    rewrites: tuple[Rewrite, ...],
) -> None:
    rules = [
        replace(rule, strip=Strip.of(["Cookie"]))
        if number in stripping and allows(rule)
        else rule
        for number, rule in enumerate(policy.rules)
    ]
    policy = replace(policy, rules=tuple(rules), rewrites=rewrites)
    if any(body_faults.conflicts(policy)):
        return
    decision = decided(CompiledPolicy(policy), request_to(method, text, client), NOW)
    assert "Rules that may decide" not in (decision.reason or "")
    assert not (decision.by_body and decision.rewritten)


@given(read_policies, methods, urls, clients)
def test_what_no_body_could_open_is_denied_before_it(
    policy: Policy, method: str, text: str, client: str | None
) -> None:
    decision = decided(CompiledPolicy(policy), request_to(method, text, client), NOW)
    if decision.by_body:
        assert decision.allowed
        assert any(map(allows, decision.by_body)) or (
            decision.rule == "default" and policy.default is Action.ALLOW
        )
