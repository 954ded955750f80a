"""`meter`: which requests it is of, how it reaches `squidkeeper bodies`, and what
tokens cost.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Stage,
    decide,
    decide_body,
    listed_rules,
)
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.model import Action, Policy
from squidkeeper.policy.language.prices import Metering, Price, Prices, parse_amount
from squidkeeper.policy.language.quotas import QuotaUnit, Window, shown_amount
from squidkeeper.policy.language.unquoted import Unquoted
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import parse_url, readings
from squidkeeper.serving.parts import Part, keys_of, needed_keys
from squidkeeper.serving.replies import acl_reply

from ..conftest import NOW, compiled_of, decided
from .test_engine_properties import (
    Asked,
    clients,
    methods,
    plain_decision,
    plainly_holds,
    policies,
    urls,
)

POLICY = """\
clients: {vm: {networks: [192.0.2.0/24]}}
rules:
  - {name: files, action: allow, hosts: [llm.example], paths: [/v1/files/**]}
  - {name: chat, action: allow, hosts: [llm.example], paths: [/chat], body: {json: {/model: small}}, meter: tokens}
  - {name: llm, action: allow, hosts: [llm.example], meter: tokens, reserve: 100, ask_usage: true}
  - {name: whole, action: allow, hosts: [whole.example], meter: tokens}
  - {name: plain, action: allow, hosts: [plain.example]}
quotas:
  - {name: day, per: client, clients: [vm], tokens: 1000000, every: day}
  - {name: spend, per: rule, rules: [llm], cost: 12.5, every: month}
  - {name: requests, per: client, requests: 5, every: week}
prices:
  - {model: "gpt-5*", in: 1.25, out: 10, cached_in: 0.125}
  - {model: "*-large", in: 3, out: 5, cache_write: 4}
"""
LLM = Metering(100, ask_usage=True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CompiledPolicy:
    return compiled_of(tmp_path_factory.mktemp("policy"), POLICY)


@pytest.mark.parametrize(
    ("asked", "rule", "meter", "listed"),
    [
        ("POST https://llm.example/v1/messages", "llm", LLM, "r2"),
        ("GET https://llm.example/v1/models", "llm", LLM, "r2"),
        ("POST https://llm.example/v1/files/x", "files", None, ""),
        ("POST https://llm.example/chat", "chat", Metering(), "r1,r2"),
        (
            "POST https://llm.example/v1/x/..%2ffiles/x",
            "ambiguous-path",
            None,
            "",
        ),  # metered by one reading alone
        ("POST https://whole.example/x", "whole", Metering(), "r3"),
        ("CONNECT whole.example:443", "whole", None, ""),
        ("POST https://plain.example/", "plain", None, ""),
        ("POST https://other.example/", "default", None, ""),
    ],
)
def test_a_metered_request_goes_through_the_body_service(
    policy: CompiledPolicy, asked: str, rule: str, meter: Metering | None, listed: str
) -> None:
    decision = decided(policy, request_to(*asked.split(" ")), NOW)
    assert (decision.rule, decision.meter) == (rule, meter)
    assert (
        dict(acl_reply(decision, "request", policy).annotations).get("body_", "")
        == listed
    )
    assert (Part.BODIES in keys_of(decision)) is bool(listed)


def test_the_host_alone_decides_no_metered_request(policy: CompiledPolicy) -> None:
    host = decide(
        policy,
        policy.match(request_to("POST", "https://whole.example/x")),
        NOW,
        Stage.HOST,
    )
    assert (host.outlook.needs_url, host.final, host.meter) == (True, False, None)
    assert ("tag", "sk_url_decides") in acl_reply(host, "host", policy).annotations
    assert not host.outlook.unrestricted, (
        "else a WebSocket would pass, of which nothing is counted"
    )
    plain = decide(
        policy,
        policy.match(request_to("POST", "https://plain.example/x")),
        NOW,
        Stage.HOST,
    )
    assert (plain.outlook.needs_url, plain.outlook.unrestricted) == (False, True)


def test_the_rule_that_holds_once_the_body_was_read_tells_what_is_reserved(
    policy: CompiledPolicy,
) -> None:
    for model, rule, meter in (("small", "chat", Metering()), ("large", "llm", LLM)):
        body = f'{{"model": "{model}"}}'.encode()
        headers = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        )
        sent = SentRequest("POST", "/chat", headers, body, complete=True, has_body=True)
        after = decide_body(policy, listed_rules(policy, "r1,r2"), sent)
        assert after is not None
        assert (after.rule, after.meter) == (rule, meter)
        found = explain(
            policy,
            request_to("POST", "https://llm.example/chat", "192.0.2.1"),
            NOW,
            sent,
        )
        assert found.decision.meter == meter
        assert [quota.name for quota in found.quotas] == [
            "requests",
            "day",
            *(["spend"] if rule == "llm" else []),
        ]


@pytest.mark.parametrize(
    ("asked", "client", "counting"),
    [
        ("POST https://llm.example/x", "192.0.2.1", ["requests", "day", "spend"]),
        ("POST https://llm.example/x", "198.51.100.1", ["requests", "spend"]),
        ("POST https://llm.example/v1/files/x", "192.0.2.1", ["requests"]),
        ("CONNECT llm.example:443", "192.0.2.1", []),
    ],
)
def test_tokens_are_no_business_of_the_meter_of_requests(
    policy: CompiledPolicy, asked: str, client: str, counting: list[str]
) -> None:
    method, url = asked.split(" ")
    request = request_to(method, url, client)
    assert [quota.name for quota in policy.match(request).candidates.quotas] in (
        ["requests"],
        [],
    )
    assert [quota.name for quota in explain(policy, request, NOW).quotas] == counting


def test_a_policy_of_budgets_alone_needs_no_meter_of_requests(
    policy: CompiledPolicy,
) -> None:
    assert {Part.BODIES, Part.QUOTAS} <= needed_keys(policy.source)
    budgets = tuple(quota for quota in policy.source.quotas if quota.unit.is_tokens)
    assert Part.QUOTAS not in needed_keys(replace(policy.source, quotas=budgets))


# --- the plain reading ----------------------------------------------------------------


def metered(policy: Policy, meters: Sequence[int]) -> Policy:
    rules = (
        replace(
            rule,
            meter=Metering(number) if number and rule.action is Action.ALLOW else None,
            websocket=False,
        )
        for rule, number in zip(policy.rules, meters, strict=False)
    )
    return replace(policy, rules=tuple(rules))


metered_policies = st.builds(
    metered, policies, st.lists(st.sampled_from([0, 1, 2]), min_size=9, max_size=9)
)


def plain_meters(policy: Policy, asked: Asked) -> set[Metering | None]:
    found = set()
    for path in readings(asked.url.path):
        rules = (
            rule
            for rule in policy.rules
            if plainly_holds(rule, asked, path.reading, path.path)
        )
        rule = next(rules, None)
        found.add(rule.meter if rule else None)
    return found


@given(metered_policies, methods, urls, clients)
def test_a_request_is_metered_as_a_plain_reading_of_the_language_says(
    policy: Policy, method: str, text: str, client: str | None
) -> None:
    asked, request = (
        Asked(method, parse_url(text), client),
        request_to(method, text, client),
    )
    decision = decided(CompiledPolicy(policy), request, NOW)
    try:
        plain, meters = plain_decision(policy, asked), plain_meters(policy, asked)
    except InvalidUrl:
        assert not decision.allowed
        return
    assert decision.allowed is (plain.action is Action.ALLOW and len(meters) == 1)
    assert decision.meter == (
        meters.pop() if decision.allowed and not decision.redirects else None
    )


@given(metered_policies, methods, urls, clients)
def test_squid_asks_about_the_url_of_each_metered_request(
    policy: Policy, method: str, text: str, client: str | None
) -> None:
    compiled, request = CompiledPolicy(policy), request_to(method, text, client)
    if decided(compiled, request, NOW).meter is not None:
        host = decide(compiled, compiled.match(request), NOW, Stage.HOST)
        assert ("tag", "sk_url_decides") in acl_reply(
            host, "host", compiled
        ).annotations


# --- warnings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "code"),
    [
        ("tokens: 99", FaultCode.QUOTA_BELOW_RESERVE),
        ("tokens: 100", None),
        ("tokens_out: 99, rules: [llm]", FaultCode.QUOTA_BELOW_RESERVE),
        ("tokens_out: 99, rules: [plain]", FaultCode.QUOTA_NEVER),
        ("tokens_in: 5", None),
        (
            "cost: 0.000999",
            FaultCode.QUOTA_BELOW_RESERVE,
        ),  # 100 tokens of the dearest, at 10 for a million
        ("cost: 0.001", None),
        ("cost: 5, rules: [default]", FaultCode.QUOTA_NEVER),
    ],
)
def test_a_budget_that_counts_nothing_or_no_reserve_fits_in_is_warned_about(
    tmp_path: Path, quota: str, code: FaultCode | None
) -> None:
    head, _, rest = POLICY.replace(", meter: tokens}", "}").partition("quotas:\n")
    text = f"{head}quotas:\n  - {{name: q, per: client, every: month, {quota}}}\nprices:{rest.partition('prices:')[2]}"
    found = {
        fault.code for fault in lint(compiled_of(tmp_path / "policy", text).source, NOW)
    }
    assert found & {FaultCode.QUOTA_NEVER, FaultCode.QUOTA_BELOW_RESERVE} == (
        {code} if code else set()
    )


def test_a_budget_without_a_rule_that_meters_is_warned_about(tmp_path: Path) -> None:
    text = "quotas:\n  - {name: q, per: all, every: day, tokens: 5}\n"
    found = [
        fault.code for fault in lint(compiled_of(tmp_path / "policy", text).source, NOW)
    ]
    assert found == [FaultCode.QUOTA_NEVER]


COUNTED = "  - {name: chat, action: allow, hosts: [llm.example], methods: [POST], paths: [/chat], meter: tokens}\n"
BUDGET = """\
quotas: [{name: q, per: client, every: day, cost: 20}]
prices: [{model: "*", in: 1, out: 1}]
presets: [{preset: openai@1}]
"""


@pytest.mark.parametrize(
    ("rules", "warned"),
    [
        (["rest, action: allow, hosts: [.example]"], "rule 'rest'"),
        (["rest, action: allow, hosts: [llm.example], paths: [/embed]"], "rule 'rest'"),
        (["rest, action: allow, hosts: [llm.example], methods: [GET]"], None),
        (["rest, action: allow, hosts: [other.example]"], None),
        (
            [
                "closed, action: deny, hosts: [llm.example]",
                "rest, action: allow, hosts: ['*']",
            ],
            None,
        ),
        (
            [
                "closed, action: deny, hosts: [llm.example], paths: [/x]",
                "rest, action: allow, hosts: ['*']",
            ],
            "rule 'rest'",
        ),
        (
            [
                "all, action: allow, hosts: [llm.example], meter: tokens",
                "rest, action: allow, hosts: ['*']",
            ],
            None,
        ),
        (
            ["gpt, action: allow, hosts: [api.openai.com], paths: [/x], meter: tokens"],
            "preset 'openai@1'",
        ),
        (["gpt, action: allow, hosts: [api.openai.com], meter: tokens"], None),
    ],
)
def test_an_allow_that_passes_a_budget_by_is_warned_about(
    tmp_path: Path, rules: list[str], warned: str | None
) -> None:
    text = (
        f"rules:\n{COUNTED}"
        + "".join(f"  - {{name: {rule}}}\n" for rule in rules)
        + BUDGET
    )
    found = [
        fault
        for fault in lint(compiled_of(tmp_path / "policy", text).source, NOW)
        if fault.code == "uncounted"
    ]
    assert [fault.message.partition(" has ")[0] for fault in found] == (
        [warned] if warned else []
    )
    without = compiled_of(
        tmp_path / "without",
        text.replace("cost: 20", "requests: 20").partition("prices:")[0],
    )
    assert FaultCode.UNCOUNTED not in {
        fault.code for fault in lint(without.source, NOW)
    }


@pytest.mark.parametrize(
    ("above", "below", "warned"),
    [
        ("gpt-*", "gpt-5*", True),
        ("gpt-*", "gpt-5", True),
        ("*", "*-large", True),
        ("gpt-5*", "gpt-*", False),
        ("gpt-5", "gpt-5*", False),
        ("*-large", "gpt-*", False),
        ("gpt-*-x", "gpt-*", False),
    ],
)
def test_a_price_that_never_applies_is_warned_about(
    tmp_path: Path, above: str, below: str, warned: bool
) -> None:
    text = "prices:\n" + "".join(
        f"  - {{model: '{model}', in: 1, out: 1}}\n" for model in (above, below)
    )
    found = [
        fault
        for fault in lint(compiled_of(tmp_path / "policy", text).source, NOW)
        if fault.code == "price-never"
    ]
    assert [(fault.location.line, above in fault.message) for fault in found] == (
        [(4, True)] if warned else []
    )


# --- windows --------------------------------------------------------------------------

times = st.datetimes(
    datetime(1970, 1, 2), datetime(2199, 12, 31), timezones=st.just(UTC)
)


def plain_window(window: Window, at: datetime) -> tuple[datetime, datetime]:
    """Return the same by the calendar."""
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match window:
        case Window.MONTH:
            first = day.replace(day=1)
            return first, first + timedelta(
                days=calendar.monthrange(at.year, at.month)[1]
            )
        case Window.WEEK:
            return day - timedelta(days=at.weekday()), day + timedelta(
                days=7 - at.weekday()
            )
        case Window.DAY:
            return day, day + timedelta(days=1)
        case Window.HOUR:
            return day + timedelta(hours=at.hour), day + timedelta(hours=at.hour + 1)
    began = at.replace(second=0, microsecond=0)
    return began, began + timedelta(minutes=1)


@given(st.sampled_from(Window), times)
@example(Window.MONTH, datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC))
@example(Window.MONTH, datetime(2100, 2, 28, 23, 59, 59, tzinfo=UTC))
@example(Window.MONTH, datetime(2000, 3, 1, tzinfo=UTC))
@example(Window.WEEK, datetime(2026, 11, 30, tzinfo=UTC))
@example(Window.WEEK, datetime(2026, 11, 29, 23, 59, 59, tzinfo=UTC))
def test_a_window_begins_and_ends_by_the_calendar(window: Window, at: datetime) -> None:
    seconds = at.timestamp()
    began, ended = plain_window(window, at)
    assert (window.begin(seconds), window.end(seconds)) == (
        began.timestamp(),
        ended.timestamp(),
    )
    assert window.begin(window.end(seconds)) == window.end(seconds)


# --- prices ---------------------------------------------------------------------------


def test_the_first_price_whose_glob_matches_is_the_models(
    policy: CompiledPolicy,
) -> None:
    prices = policy.source.prices
    assert prices.find("gpt-5-large") == Price(
        "gpt-5*", 1_250_000, 10_000_000, 125_000, 1_250_000
    )
    assert prices.find("x-large") == Price(
        "*-large", 3_000_000, 5_000_000, 3_000_000, 4_000_000
    )
    assert [
        prices.find(model) for model in ("gpt-4", "GPT-5", "x-large ", "", "a" * 10**6)
    ] == [None] * 5
    assert prices.dearest == Price("*", 3_000_000, 10_000_000, 3_000_000, 4_000_000)
    assert Prices().dearest == Price("*", 0, 0, 0, 0)


@given(st.text("ab*"), st.text("ab"))
def test_a_glob_of_models_has_one_wildcard(glob: str, model: str) -> None:
    assert Price(glob, 0, 0, 0, 0).is_for(model) is fnmatchcase(model, glob)


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (25, 25_000_000),
        (0, 0),
        (Unquoted("0.075", "a number"), 75_000),
        (Unquoted("12.50", "a number"), 12_500_000),
        (Unquoted("999999999.999999", "a number"), 999_999_999_999_999),
        *((value, None) for value in ("25", True, None, -1, 10**9)),
        *(
            (Unquoted(text, "a number"), None)
            for text in ("1.", ".5", "1e3", "-1", "0.0000001", ".inf", "1_000", "٣")
        ),
    ],
)
def test_an_amount_is_read_exactly(value: object, amount: int | None) -> None:
    if amount is not None:
        assert parse_amount(value) == amount
        return
    with pytest.raises(PatternError):
        parse_amount(value)


@pytest.mark.parametrize(
    ("unit", "count", "shown"),
    [
        (QuotaUnit.COST, 12_500_000, "12.50 of cost"),
        (QuotaUnit.COST, 3, "0.000003 of cost"),
        (QuotaUnit.COST, 1_234_000_000, "1,234.00 of cost"),
        (QuotaUnit.TOKENS, 1_000, "1,000 tokens"),
        (QuotaUnit.TOKENS_IN, 1, "1 token in"),
        (QuotaUnit.TOKENS_OUT, 2, "2 tokens out"),
    ],
)
def test_an_amount_is_written_for_people(
    unit: QuotaUnit, count: int, shown: str
) -> None:
    assert shown_amount(unit, count) == shown
