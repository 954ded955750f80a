"""`observe: true`: what a rule would have decided is recorded, and changes no
verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl, PolicyError
from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.engine import CompiledPolicy, Decision, HostMatch, Stage, decide
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import is_unusual, parse_url, readings
from squidkeeper.serving.helpers import host_matches
from squidkeeper.serving.helpers.acl import RequestScope, answer_host, answer_url

from ..conftest import NOW, Ask, compiled_of
from .test_engine_properties import (
    GRANT,
    NOTHING,
    PLACE,
    Asked,
    Drawn,
    Helpers,
    clients,
    default_port,
    defaults,
    methods,
    plainly_holds,
    policies,
    policy_of,
    rules,
    tokens_of,
    urls,
)

Make = Callable[[str], Ask]
OBSERVED = {"observed", "observes_url"}  # the fields of a decision that may differ
NO_PATH: Drawn = [(Action.DENY, {**NOTHING, "paths": ["/x/**"]}, False, None, False)]
ALL: Drawn = [(Action.ALLOW, NOTHING, False, None, False)]
ONE = [True, *[False] * 5]
observing = st.lists(st.booleans(), min_size=6, max_size=6)


def observing_policy(
    policy: Policy, observes: list[bool], observes_default: bool = False
) -> Policy:
    marked = zip(policy.rules, [*observes, *[False] * len(policy.rules)], strict=False)
    made = [
        replace(rule, observe=True, private=False, websocket=False) if one else rule
        for rule, one in marked
    ]
    place = PLACE if observes_default and policy.default is Action.DENY else None
    return replace(policy, rules=tuple(made), observe_default=place)


observing_policies = st.builds(observing_policy, policies, observing, st.booleans())


def without_observing(policy: Policy) -> Policy:
    return replace(
        policy, rules=tuple(rule for rule in policy.rules if not rule.observe)
    )


def decisions_of(
    policy: Policy, method: str, text: str, client: str | None
) -> list[list[object]]:
    """Decide at every stage and time, and for the tunnel; give all but what is
    observed.
    """
    compiled, url = CompiledPolicy(policy), parse_url(text)
    request = compiled.match(request_to(method, text, client))
    tunnel = compiled.match(
        request_to("CONNECT", f"{url.host.text}:{url.port}", client)
    )
    asked: list[tuple[HostMatch, Stage]] = [
        (request, stage) for stage in (Stage.HOST, Stage.URL, Stage.ALL)
    ]
    found = [
        decide(compiled, match, NOW + timedelta(hours=hours), stage)
        for match, stage in [*asked, (tunnel, Stage.HOST), (tunnel, Stage.ALL)]
        for hours in (-2, 0, 2)
    ]
    finals = (None, text, "https://mirror.test/other")
    found += [
        decide(compiled, request, NOW, Stage.FETCH, text, final) for final in finals
    ]
    return [
        [
            getattr(told, field.name)
            for field in fields(Decision)
            if field.name not in OBSERVED
        ]
        for told in found
    ]


@given(observing_policies, clients, methods, urls)
@example(
    observing_policy(policy_of(NO_PATH + ALL, Action.DENY), ONE),
    None,
    "GET",
    "https://a.example/x/s",
)
@example(
    observing_policy(policy_of(NO_PATH + ALL, Action.DENY), ONE),
    None,
    "GET",
    f"https://a.example/{'a%2f' * 30}",
)
def test_without_its_observing_rules_a_policy_decides_the_same(
    policy: Policy, client: str | None, method: str, text: str
) -> None:
    assert decisions_of(policy, method, text, client) == decisions_of(
        without_observing(policy), method, text, client
    )


class CountedUses(GrantUses):
    """The counts in memory."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    def take(self, grant: Rule) -> bool:
        has_left = self.taken[grant.name] < (grant.uses or 0)
        self.taken[grant.name] += has_left
        return has_left


def counted_of(
    policy: Policy, method: str, text: str, client: str | None
) -> tuple[list[bool], Counter[str]]:
    """Ask five times, as Squid does; give which requests passed, and the uses that were
    counted.
    """
    helpers = Helpers(policy)
    uses = CountedUses()
    helpers.request = RequestScope(helpers.host.policy, uses)
    tokens, passed = tokens_of(method, text, client), []
    with patch.object(host_matches, "datetime") as clock:
        clock.now.return_value = NOW
        for _ in range(5):
            reply = answer_host(helpers.host, f"{tokens} -".encode())
            said = dict(reply.annotations)
            unusual = reply.result is Result.OK and is_unusual(text)
            if said.get("tag", "").startswith("sk_url_decides") or unusual:
                reply = answer_url(
                    helpers.request, f"{tokens} {quote(text)} -".encode()
                )
            passed.append(reply.result is Result.OK)
    return passed, uses.taken


@given(rules, defaults, observing, clients, methods, urls)
@example(NO_PATH, Action.ASK, ONE, None, "GET", "https://a.example/")
def test_without_its_observing_rules_a_policy_counts_the_same_uses(
    drawn: Drawn,
    default: Action,
    observes: list[bool],
    client: str | None,
    method: str,
    text: str,
) -> None:
    # a grant with uses, below those that are drawn
    few = (
        GRANT,
        NOTHING,
        False,
        None,
        True,
    )
    policy = observing_policy(policy_of([*drawn, few], default), observes)
    plain = counted_of(without_observing(policy), method, text, client)
    assert counted_of(policy, method, text, client) == plain


# --- what is observed, beside a plain reading -----------------------------------------


def plainly_observed(policy: Policy, asked: Asked) -> str | None:
    """Observe as the language defines it: the first rule that holds, for
    every reading.
    """
    found = []
    for path in readings(asked.url.path):
        rule = next(
            (
                other
                for other in policy.rules
                if plainly_holds(other, asked, path.reading, path.path)
            ),
            None,
        )
        if rule is None or (rule.action is Action.ASK and not rule.observe):
            rule = next(
                (
                    one
                    for one in policy.grants
                    if plainly_holds(one, asked, path.reading, path.path)
                ),
                rule,
            )
        found.append(plainly_of_first(policy, asked, rule))
    denied = [observed for observed, allowed in found if observed and not allowed]
    if denied:
        return denied[0]
    if not all(allowed for _, allowed in found):
        return None
    return next((observed for observed, _ in found if observed), None)


def plainly_of_first(
    policy: Policy, asked: Asked, rule: Rule | None
) -> tuple[str | None, bool]:
    """Return what is observed where a rule is the first, and whether the request would
    be allowed.
    """
    if rule is None:
        if policy.observe_default and default_port(asked.url):
            return "deny:default", False
        return None, policy.default_action is Action.ALLOW and default_port(asked.url)
    opens = rule.action is Action.ALLOW and (rule.private or not asked.url.host.private)
    if not rule.observe:
        return None, opens
    if rule.action is not Action.ALLOW:
        return f"deny:{rule.name}", False
    return (f"allow:{rule.name}" if opens else None), opens


@given(observing_policies, clients, methods, urls)
def test_what_is_observed_line_after_line_is_what_a_plain_reading_says(
    policy: Policy, client: str | None, method: str, text: str
) -> None:
    try:
        expected = plainly_observed(policy, Asked(method, parse_url(text), client))
    except InvalidUrl:
        return
    helpers = Helpers(policy)
    for _ in "new", "kept":
        at_host, at_request, _, _ = helpers.ask(method, text, client, NOW)
        said, asked = dict(at_host.annotations), dict(at_request.annotations)
        asks = said.get("tag", "").startswith("sk_url_decides")
        recorded = asked.get("observed_") if asks else said.get("observed_")
        if asked["rule_"] not in ("invalid-request", "private-address"):
            assert recorded == expected
        if asks and at_host.result is Result.ERR:
            assert at_request.result is Result.ERR
            assert (said["rule_"], said["verdict_"]) == (
                asked["rule_"],
                asked["verdict_"],
            )
    decision = decide(
        helpers.host.policy,
        helpers.host.policy.match(request_to(method, text, client)),
        NOW,
    )
    if decision.rule not in ("invalid-request", "private-address"):
        assert decision.observed == expected


# --- rules ----------------------------------------------------------------------------

DRAFT = """
    rules:
      - {name: no-push, action: deny, observe: true, hosts: [git.example], paths: ["/**/git-receive-pack"]}
      - {name: closed, action: deny, observe: true, hosts: [old.example]}
      - {name: wider, action: allow, observe: true, hosts: [git.example], paths: [/other/**], methods: [POST]}
      - {name: git, action: allow, hosts: [git.example], methods: [GET, POST], paths: [/acme/**]}
      - {name: old, action: allow, hosts: [old.example]}
      - {name: late, action: deny, observe: true, hosts: [old.example]}
"""


@pytest.mark.parametrize(
    ("asked", "verdict", "rule", "observed"),
    [
        ("GET https://git.example/acme/app", Action.ALLOW, "git", None),
        (
            "POST https://git.example/acme/app/git-receive-pack",
            Action.ALLOW,
            "git",
            "deny:no-push",
        ),
        ("POST https://git.example/other/app", Action.DENY, "default", "allow:wider"),
        ("POST https://git.example/third/app", Action.DENY, "default", None),
        (
            "GET https://git.example/acme/x/..;/git-receive-pack",
            Action.ALLOW,
            "git",
            "deny:no-push",
        ),
        (
            "POST https://git.example/other/..%2facme/x",
            Action.DENY,
            "ambiguous-path",
            "allow:wider",
        ),
        (
            "POST https://git.example/other/..%2fthird",
            Action.DENY,
            "default",
            None,
        ),  # one reading would be allowed
        ("GET https://old.example/", Action.ALLOW, "old", "deny:closed"),
        ("CONNECT old.example:443", Action.ALLOW, "old", "deny:closed"),
        ("CONNECT git.example:443", Action.ALLOW, "git", "allow:wider"),
        ("GET https://other.example/", Action.DENY, "default", None),
    ],
)
def test_the_first_observing_rule_above_the_one_that_decides_is_observed(
    asker: Make, asked: str, verdict: Action, rule: str, observed: str | None
) -> None:
    decision = asker(DRAFT)(asked)
    assert (decision.action, decision.rule, decision.observed) == (
        verdict,
        rule,
        observed,
    )


@pytest.mark.parametrize(
    ("field", "observed"),
    [
        ("methods: [POST]", "allow:below"),
        ("methods: [GET, POST]", "allow:below"),
        ("ports: [443]", "deny:first"),
    ],
)
def test_a_deny_for_some_methods_is_not_what_is_observed_of_a_tunnel(
    asker: Make, field: str, observed: str
) -> None:
    """A request inside may have another method, so that the CONNECT itself is not what
    the deny is for.
    """
    ask = asker(
        f"rules: [{{name: first, action: deny, observe: true, hosts: [a.example], {field}}},"
        " {name: below, action: allow, observe: true, hosts: [a.example]}]"
    )
    assert ask("CONNECT a.example:443").observed == observed


def test_nothing_is_observed_of_a_private_address_that_the_default_would_deny_anyway(
    asker: Make,
) -> None:
    ask = asker(
        "defaults: {observe: true}\n"
        "rules: [{name: open, action: allow, hosts: [10.0.0.0/8], paths: [/x/**], private: true},"
        " {name: draft, action: allow, observe: true, hosts: [10.0.0.0/8], paths: [/y/**]}]"
    )
    assert [
        ask(f"GET https://10.0.0.1/{path}").observed for path in ("x/1", "y/1", "z")
    ] == [None, None, None]


def test_a_tunnel_that_is_denied_stays_closed_for_a_rule_that_observes(
    asker: Make,
) -> None:
    ask = asker(
        "rules: [{name: draft, action: allow, observe: true, hosts: [a.example], paths: [/x/**]}]"
    )
    decision = ask("CONNECT a.example:443")
    assert (decision.action, decision.rule, decision.observed) == (
        Action.DENY,
        "default",
        "allow:draft",
    )


# --- the default ----------------------------------------------------------------------

OBSERVING_DEFAULT = """
    defaults: {observe: true}
    secrets: {token: {env: TOKEN}}
    credentials: [{name: api, hosts: [api.example], bearer: token}]
    rewrites: [{name: mirror, hosts: [api.example], to: "https://mirror.example{path}"}]
    rules:
      - {name: closed, action: deny, hosts: [closed.example]}
      - {name: draft, action: allow, observe: true, hosts: [draft.example], paths: [/x/**]}
      - {name: api, action: allow, hosts: [api.example], methods: [GET]}
"""


@pytest.mark.parametrize(
    ("asked", "verdict", "rule", "observed"),
    [
        ("GET https://new.example/a", Action.ALLOW, "default", "deny:default"),
        ("GET http://new.example/a", Action.ALLOW, "default", "deny:default"),
        ("CONNECT new.example:443", Action.ALLOW, "default", "deny:default"),
        ("GET https://new.example:8443/", Action.DENY, "default", None),
        ("CONNECT new.example:22", Action.DENY, "default", None),
        ("GET https://10.0.0.1/", Action.DENY, "private-address", None),
        ("CONNECT 169.254.169.254:443", Action.DENY, "private-address", None),
        ("GET https://closed.example/", Action.DENY, "closed", None),
        ("GET https://draft.example/x/1", Action.ALLOW, "default", "allow:draft"),
        ("GET https://draft.example/y", Action.ALLOW, "default", "deny:default"),
        (
            "GET https://draft.example/x/..%2fy",
            Action.ALLOW,
            "default",
            "deny:default",
        ),  # denied in one reading
        ("POST https://api.example/", Action.ALLOW, "default", "deny:default"),
        ("GET https://api.example/", Action.ALLOW, "api", None),
    ],
)
def test_what_no_rule_decides_is_allowed_where_the_default_observes(
    asker: Make, asked: str, verdict: Action, rule: str, observed: str | None
) -> None:
    decision = asker(OBSERVING_DEFAULT)(asked)
    assert (decision.action, decision.rule, decision.observed) == (
        verdict,
        rule,
        observed,
    )


def test_a_default_that_observes_gives_no_credential_and_no_rewrite(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(tmp_path, OBSERVING_DEFAULT)
    url = "https://api.example/x"
    decided = {}
    for method in "GET", "POST":
        match = compiled.match(request_to(method, url))
        decided[method] = [
            decide(compiled, match, NOW, Stage.URL, url),
            decide(compiled, match, NOW, Stage.FETCH, url, "https://api.example/other"),
        ]
    assert decided["GET"][0].rewritten is not None
    for decision in decided["POST"]:
        assert (decision.action, decision.rule) == (Action.ALLOW, "default")
        assert (decision.rewritten, decision.credentials) == (None, ())


def test_a_host_is_not_unrestricted_because_the_default_observes(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(tmp_path, "defaults: {observe: true}")
    decision = decide(
        compiled,
        compiled.match(request_to("GET", "https://new.example/")),
        NOW,
        Stage.HOST,
    )
    assert (decision.action, decision.outlook.unrestricted, decision.passthrough) == (
        Action.ALLOW,
        False,
        False,
    )


# --- faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (
                f"rules: [{{name: r, action: allow, observe: true, hosts: [a.example], {field}}}]",
                f"'{field.partition(':')[0]}' beside observe: true: a rule that observes decides nothing",
            )
            for field in (
                "private: true",
                "strip: [Cookie]",
                "tls: passthrough",
                "websocket: true",
                "connections: single",
                "headers: known",
            )
        ),
        (
            "defaults: {action: allow, observe: true}",
            "observe: true beside action: allow",
        ),
    ],
)
def test_what_an_observing_rule_cannot_do_is_a_fault(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(PolicyError) as raised:
        compiled_of(tmp_path, text)
    (fault,) = [
        fault
        for fault in raised.value.faults
        if fault.code is FaultCode.OBSERVE_CONFLICT
    ]
    assert message in fault.message


def test_a_test_of_a_policy_can_expect_what_is_observed(tmp_path: Path) -> None:
    rules = "rules: [{name: r, action: deny, observe: true, hosts: [a.example]}]\n    defaults: {action: allow}"
    tests = '{request: "GET https://a.example/", expect: allow, observed: "deny:r"}'
    none = '{request: "GET https://b.example/", expect: allow, observed: []}'
    compiled_of(
        tmp_path / "good",
        f"{rules}\n    tests: [{tests}, {none}]".replace("\n    ", "\n"),
    )
    for wrong, message in (
        (
            tests.replace("a.example", "b.example"),
            "expected to observe deny:r, observed nothing",
        ),
        (
            tests.replace('"deny:r"', "[]"),
            "expected to observe nothing, observed deny:r",
        ),
    ):
        with pytest.raises(PolicyError, match=message):
            compiled_of(
                tmp_path / "bad",
                f"{rules}\n    tests: [{none}, {wrong}]".replace("\n    ", "\n"),
            )


@pytest.mark.parametrize("text", ["deny", "denied:r", '"deny:other"', "[deny]"])
def test_an_expectation_that_can_never_be_observed_is_a_fault(
    tmp_path: Path, text: str
) -> None:
    test = f'{{request: "GET https://a.example/", expect: deny, observed: {text}}}'
    with pytest.raises(PolicyError) as raised:
        compiled_of(
            tmp_path,
            f"rules: [{{name: r, action: deny, hosts: [a.example]}}]\ntests: [{test}]",
        )
    assert {fault.code for fault in raised.value.faults} <= {
        FaultCode.WRONG_TYPE,
        FaultCode.UNKNOWN_NAME,
    }
