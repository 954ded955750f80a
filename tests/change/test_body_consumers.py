"""What bodies decide is told, compared and counted as such: no command takes such a
rule for one of URLs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from squidkeeper.change.approvals.new_grant import effect_of
from squidkeeper.change.difference.consequences import Change
from squidkeeper.change.difference.report import report
from squidkeeper.change.replay.judge import Difference, ReplayJudge
from squidkeeper.change.replay.result import FlipKind
from squidkeeper.change.tightening.edits import decided_by_bodies
from squidkeeper.change.tightening.proof import _loosening
from squidkeeper.change.tightening.text import opened_by
from squidkeeper.change.tightening.usage import AttributionJudge
from squidkeeper.cli.diff_output import as_text
from squidkeeper.operate.client_kit.brief import write_brief
from squidkeeper.operate.client_kit.client import KitClient, allowed_url
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.body_texts import body_text
from squidkeeper.record.log.drift import DriftChecker
from squidkeeper.record.log.host_judging import RecordedHosts, beginnings_of
from squidkeeper.record.log.record import Record
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS
from squidkeeper.record.why import details
from squidkeeper.record.why.cache_log import CacheLog
from squidkeeper.record.why.details import Surroundings
from squidkeeper.record.why.proposal import propose

from .. import records
from ..conftest import NOW, compiled_of

Make = Callable[..., CompiledPolicy]
CHAT = "{name: chat, action: allow, hosts: [api.example], methods: [POST], paths: [/chat]%s}"
ONE, TWO = ", body: {json: {/model: [a]}}", ", body: {json: {/model: [a, b]}}"
NO_TOOL = "{name: no-tool, action: deny, hosts: [api.example], body: {json: {/tools/*/type: [x]}}}"


@pytest.fixture
def made(tmp_path: Path) -> Make:
    numbers = iter(range(20))

    def make(*rules: str, more: str = "") -> CompiledPolicy:
        return compiled_of(
            tmp_path / str(next(numbers)), f"rules: [{', '.join(rules)}]\n{more}"
        )

    return make


# --- diff -----------------------------------------------------------------------------


def within(made: Make, ceiling: tuple[str, ...], new: tuple[str, ...]) -> list[Change]:
    policies = made(*ceiling), made(*new)
    found = report(policies, ("ceiling", "new"), NOW, is_ceiling=True)
    assert all(difference.doubt is None for difference in found.differences), as_text(
        found
    )
    return [difference.change for difference in found.differences]


def bodies(*texts: str) -> list[tuple[str, ...]]:
    return [(CHAT % f", body: {{{text}}}",) for text in texts]


NARROWER: list[
    list[tuple[str, ...]]
] = [  # each pair: the ceiling, and what is within it
    [(CHAT % "",), (CHAT % ONE,)],
    [(CHAT % TWO,), (CHAT % ONE,)],
    [(CHAT % ONE,), (NO_TOOL, CHAT % ONE)],
    [(NO_TOOL, CHAT % TWO), (NO_TOOL, CHAT % ONE)],
    bodies("json: {/n: {max: 5}}", "json: {/n: {min: 1, max: 4}}"),
    bodies("json: {/n: {max: 5, absent: true}}", "json: {/n: {max: 5}}"),
    bodies("json: {/n: 1}", "json: {/n: 1, /m: 1}"),
    bodies("json: {/n: 1}", "json: {/n: 1}, only: [/n]"),
    bodies("json: {/n: 1}, only: [/n, /m]", "json: {/n: 1}, only: [/n]"),
    bodies("json: {/n: 1}, max: 5MB", "json: {/n: 1}"),
    bodies("json: {/n: {absent: false}}", "json: {/n: [1, x]}"),
    bodies("mcp: {tools: [a, b]}", "mcp: {tools: [a]}"),
    bodies("mcp: {tools: [a]}", "mcp: {tools: [a], arguments: {a: {/x: 1}}}"),
    bodies("mcp: {tools: [a], methods: [m]}", "mcp: {tools: [a]}"),
]


@pytest.mark.parametrize("pair", NARROWER)
def test_a_narrower_body_is_within_a_ceiling_and_a_wider_one_is_not(
    made: Make, pair: list[tuple[str, ...]]
) -> None:
    wide, narrow = pair
    assert within(made, wide, narrow) == []
    assert within(made, narrow, wide) == [Change.BODIES]
    assert within(made, wide, wide) == within(made, narrow, narrow) == []


METERED = ", meter: tokens"


@pytest.mark.parametrize("body", ["", ONE])
def test_a_request_that_is_no_longer_counted_is_beyond_a_ceiling(
    made: Make, body: str
) -> None:
    metered, more, plain = (
        CHAT % f"{body}{text}" for text in (METERED, f"{METERED}, reserve: 9", "")
    )
    changed = [*([Change.BODIES] if body else []), Change.METER]
    assert (
        within(made, (plain,), (metered,)) == within(made, (metered,), (metered,)) == []
    )
    assert (
        within(made, (metered,), (plain,))
        == within(made, (metered,), (more,))
        == changed
    )
    assert within(made, (CHAT % METERED,), (metered,)) == [], (
        "a body, and counted alike"
    )
    text = as_text(report((made(metered), made(plain)), ("old", "new"), NOW))
    assert "meter: tokens, reserve 4,096" in text


def test_a_limit_of_cost_is_written_as_people_write_it(made: Make) -> None:
    more = "prices: [{model: a*, in: 1, out: 5}]\nquotas: [{name: q, per: all, every: day, cost: %s}]\n"
    policies = [made(CHAT % METERED, more=more % cost) for cost in (20, 25.000001)]
    [found] = report((policies[0], policies[1]), ("old", "new"), NOW).settings
    assert (found.name, found.before, found.after) == (
        "quota q: cost every day per all",
        "20.00",
        "25.000001",
    )


def test_other_prices_are_another_setting(made: Make) -> None:
    one, other = (
        made(CHAT % METERED, more=f"prices: [{{model: a*, in: {price}, out: 5}}]\n")
        for price in (1, 0.5)
    )
    for is_ceiling in (False, True):
        [found] = report(
            (one, other), ("old", "new"), NOW, is_ceiling=is_ceiling
        ).settings
        assert (found.name, found.before) == ("prices", "a* 1.00, 5.00, 1.00, 1.00")
        assert found.after == "a* 0.50, 5.00, 0.50, 0.50"


@pytest.mark.parametrize(
    "pair",
    [
        bodies("json: {/n: 1}", "mcp: {tools: [a]}"),
        bodies("json: {/n: 1}", "json: {/m: 1}"),
        bodies("json: {/n: 1}", "json: {/n: true}"),
        [
            (CHAT % ONE,),
            (
                CHAT.replace("chat", "other", 1).replace("allow", "deny") % TWO,
                CHAT % TWO,
            ),
        ],
    ],
)
def test_bodies_that_cannot_be_compared_are_reported(
    made: Make, pair: list[tuple[str, ...]]
) -> None:
    one, other = pair
    assert within(made, one, other) == within(made, other, one) == [Change.BODIES]


PUSH = "{name: push, action: allow, hosts: [git.example], paths: [/acme/**], body: {git: {push: [%s]}}}"


def test_a_difference_of_pushes_has_a_push_as_its_example(made: Make) -> None:
    one, two = PUSH % "refs/heads/a", PUSH % "refs/heads/a, refs/heads/b"
    assert within(made, (two,), (one,)) == []
    assert within(made, (one,), (two,)) == [Change.BODIES]
    opened = report(
        (made("{name: x, action: allow, hosts: [x.example]}"), made(one)),
        ("old", "new"),
        NOW,
    )
    changes = {
        (one.change, one.doubt, "git-receive-pack" in str(one.example))
        for one in opened.differences
    }
    assert (Change.OPENED, None, True) in changes
    assert all(doubt is None for _, doubt, _ in changes)


def test_a_difference_says_what_the_bodies_must_be(made: Make) -> None:
    text = as_text(report((made(CHAT % ONE), made(CHAT % TWO)), ("old", "new"), NOW))
    assert (
        "BODIES       any client: POST https, http on api.example, path /chat" in text
    )
    assert (
        "by the first that holds: allow where the body is json /model: a, b, then deny"
        in text
    )


# --- the record -----------------------------------------------------------------------


def recorded(policy: CompiledPolicy, **fields: Any) -> Record:
    tunnel = {"sni": "api.example", "tunnel": quote("api.example:443", safe="")}
    values = {
        "url": "https://api.example/chat",
        "method": "POST",
        "revision": policy.revision,
        "verdict": "allow",
    }
    return records.record(
        **{"time": "2026-11-25T11:00:00.000Z", **tunnel, **values, **fields}
    )


@pytest.mark.parametrize("rule", ["chat", "other"])
def test_what_a_rule_of_the_list_served_is_no_drift(made: Make, rule: str) -> None:
    policy = made(CHAT % ONE, CHAT.replace("chat", "other", 1) % TWO)
    drift = DriftChecker({policy.revision: policy}.get, lambda: policy)
    assert drift.check(recorded(policy, rule=rule)) is None
    assert drift.check(recorded(policy, rule="default", verdict="deny")) is not None


def test_urls_are_judged_one_by_one_where_a_rule_reads_bodies(made: Make) -> None:
    read, plain = (
        RecordedHosts().of(one, recorded(one))
        for one in (made(CHAT % ONE), made(CHAT % ""))
    )
    assert beginnings_of([read]) is None
    assert beginnings_of([plain]) is not None


def replayed(
    old: CompiledPolicy, new: CompiledPolicy, verdict: str
) -> Difference | None:
    one = recorded(old, verdict=verdict)
    return ReplayJudge(old, new).question(one).judge(one)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "found"),
    [
        (CHAT % ONE, CHAT % ONE, "allow", None),
        (CHAT % ONE, CHAT % ONE, "deny", None),
        (CHAT % ONE, CHAT % TWO, "deny", "unread"),
        (CHAT % "", CHAT % ONE, "allow", "unread"),
        (CHAT % ONE, CHAT % "", "allow", None),
        (CHAT % ONE, CHAT % "", "deny", FlipKind.OPENED),
        (
            CHAT % ONE,
            "{name: x, action: deny, hosts: [api.example]}",
            "allow",
            FlipKind.DENIED,
        ),
        (CHAT % ONE, "{name: x, action: deny, hosts: [api.example]}", "deny", None),
    ],
)
def test_a_replay_takes_what_a_body_decided_from_the_record_and_sets_apart_what_it_would(
    made: Make, old: str, new: str, verdict: str, found: str | None
) -> None:
    difference = replayed(made(old), made(new), verdict)
    if found == "unread":
        assert difference is not None
        assert (difference.unread, difference.flip) == (True, None)
    else:
        assert (difference and difference.flip and difference.flip.kind) == found
        assert difference is None or not difference.disagrees


def test_tighten_leaves_the_rules_between_which_bodies_decide(made: Make) -> None:
    rest = "{name: rest, action: allow, hosts: [.example], methods: [GET, POST]}"
    other = "{name: other, action: allow, hosts: [other.example]}"
    policy = made(
        "{name: above, action: allow, hosts: [api.example], methods: [PUT]}",
        CHAT % ONE,
        rest,
        other,
    )
    assert decided_by_bodies(policy.source) == {"chat", "rest"}
    one = recorded(policy)
    assert AttributionJudge(policy, NO_SESSIONS).question(one).judge(one) is None
    assert "where the body is json /model: a" in opened_by(policy.source.rules[1])


def test_tighten_and_the_brief_say_that_tokens_are_counted(made: Make) -> None:
    policy = made(CHAT % METERED).source
    assert "meter: tokens, reserve 4,096" in opened_by(policy.rules[0])
    brief = write_brief(policy, KitClient(), NOW)
    assert "the tokens that it uses are counted" in brief


def test_tighten_narrows_no_metered_rule_above_one_that_is_not(made: Make) -> None:
    rest = "{name: rest, action: allow, hosts: [.example], methods: [GET, POST]}"
    assert _loosening(made(CHAT % METERED, rest).source, NOW) == {"chat"}
    assert (
        _loosening(made(CHAT % METERED, rest.replace("}", f"{METERED}}}")).source, NOW)
        == set()
    )


def test_no_rule_is_proposed_that_would_open_every_body(made: Make) -> None:
    policy = made(CHAT % ONE)
    proposal = propose(recorded(policy, verdict="deny", rule="default"), policy)
    assert proposal is not None
    assert (proposal.line, "its body is judged by chat" in proposal.obstacle) == (
        None,
        True,
    )


def test_why_does_not_take_what_a_body_decides_for_allowed_since(made: Make) -> None:
    policy = made(CHAT % ONE)
    record = recorded(policy, verdict="deny", rule="default")
    known = Surroundings(
        lambda _: policy,
        lambda: policy,
        lambda _: (),
        lambda *_: None,
        lambda _: None,
        CacheLog(),
    )
    told = details._opening(record, policy, "add this rule", known)
    assert told.facts["opens"].startswith(
        "a new rule is not enough: its body is judged by chat"
    )


# --- people ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("json: {/a~1b/*: [x, 1, true], /n: {min: 1, max: 5, absent: true}, /s: {absent: true}}, only: [/a~1b, /n, /s]",
         "json /a~1b/*: x, 1, true; /n: 1 to 5 or absent; /s: absent; only /a~1b, /n, /s"),
        ("json: {/x: {absent: false}}, max: 2MB", "json /x: anything (up to 2.0 MB)"),
        ("git: {push: [refs/heads/*], delete: true, create: false, options: [x]}",
         "git push refs/heads/*; may delete; creates none; options x"),
        ("mcp: {tools: [a], arguments: {a: {/x: 1}}, methods: [m]}",
         "mcp tools a; arguments of a: /x: 1; methods m"),
    ],
)  # fmt: skip
def test_a_body_is_written_for_people(made: Make, body: str, text: str) -> None:
    rule = made(CHAT % f", body: {{{body}}}").source.rules[0]
    assert rule.body is not None
    assert body_text(rule.body) == text


def test_a_brief_says_what_a_body_must_be(made: Make) -> None:
    policy = made(CHAT % ONE, more="clients: {one: {networks: [192.0.2.0/24]}}").source
    assert "where the body is `json /model: a`" in write_brief(
        policy, KitClient(policy.clients[0]), NOW
    )


def test_a_client_is_not_tried_with_a_url_whose_body_decides(made: Make) -> None:
    policy = made(
        f"{{name: chat, action: allow, hosts: [api.example]{ONE}}}",
        more="clients: {one: {networks: [192.0.2.0/24]}}",
    )
    assert allowed_url(policy, KitClient(policy.source.clients[0]), NOW) is None


def test_a_grant_opens_what_other_rules_open_for_some_bodies(made: Make) -> None:
    fields = "any_client: true, hosts: [api.example], methods: [POST], paths: [/chat]"
    grant = (
        f"grants: [{{name: g, {fields}, expires: '2030-01-01T00:00:00Z', reason: x}}]"
    )
    policy = made(CHAT % ONE, more=grant)
    effect = effect_of(policy, policy.source.grants[0], NOW)
    assert (effect.opens, effect.openers, effect.deniers) == (True, (), ())
