"""The difference of two policies: single edits, what is reported of each, and
`squidkeeper diff`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.change.difference import comparison as comparison_module
from squidkeeper.change.difference import languages
from squidkeeper.change.difference.consequences import Change
from squidkeeper.change.difference.descriptions import named
from squidkeeper.change.difference.groups import RequestDifference, Scope
from squidkeeper.change.difference.report import DifferenceReport, report
from squidkeeper.change.difference.url_comparison import Doubt
from squidkeeper.cli import main
from squidkeeper.cli.diff_output import as_text, scope_text
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import grants_file, read_sources
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.published.places import mark_in_force

from ..conftest import NOW, compiled_of
from ..markup import keys_in, keys_told

Compare = Callable[..., DifferenceReport]

BEFORE = """
clients:
  agents: {networks: [192.0.2.0/24]}
  ci: {users: [bot]}
rules:
  - {name: api, action: allow, hosts: [api.example], paths: [/v1/**]}
  - {name: any, action: allow, clients: [agents], hosts: [.example], methods: [GET]}
"""


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    """Make a function that compares two policies, given as text."""

    def make(old: str, new: str, *, is_ceiling: bool = False) -> DifferenceReport:
        folders = tmp_path / "old", tmp_path / "new"
        policies = compiled_of(folders[0], old), compiled_of(folders[1], new)
        return report(policies, ("old", "new"), NOW, is_ceiling=is_ceiling)

    return make


def told(found: DifferenceReport) -> list[tuple[str, str]]:
    return [
        (one.change if one.doubt is None else f"unproven {one.change}", scopes(one))
        for one in found.differences
    ]


def scopes(difference: RequestDifference) -> str:
    return " | ".join(map(scope_text, difference.scopes))


# --- edits that change nothing --------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (BEFORE, BEFORE),
        (
            "rules: [{name: a, action: allow, hosts: [x.example, y.example]}]",
            "rules: [{name: b, action: allow, hosts: [y.example]}, {name: c, action: allow, hosts: [x.example]}]",
        ),
        (
            "rules: [{name: a, action: allow, hosts: [.x.example]}]",
            'rules: [{name: a, action: allow, hosts: [x.example, "**.x.example", "*.x.example"]}]',
        ),
        (
            "rules: [{name: a, action: allow, hosts: [x.example], paths: [/a/**, /a/b]}]",
            'rules: [{name: a, action: allow, hosts: [x.example], paths: [/a/**, "/a/*/**", "/a/*"]}]',
        ),
        (
            "rules: [{name: a, action: allow, hosts: [x.example], ports: [80, 443, 444]}]",
            'rules: [{name: a, action: allow, hosts: [x.example], ports: [80, "443-444"]}]',
        ),
        (
            "rules: [{name: a, action: allow, hosts: [203.0.113.0/24]}]",
            "rules: [{name: a, action: allow, hosts: [203.0.113.0/25, 203.0.113.128/25]}]",
        ),
        (
            "rules: [{name: a, action: deny, hosts: [x.example]}]",
            "defaults: {action: deny, reason: Another text.}",
        ),
        (
            "rules: [{name: a, action: allow, hosts: [x.example], expires: 2026-01-01T00:00:00Z}]",
            "defaults: {action: deny}",
        ),
    ],
    ids=[
        "same",
        "order",
        "hosts",
        "paths",
        "ports",
        "networks",
        "deny-of-the-default",
        "lapsed",
    ],
)
def test_policies_that_mean_the_same_are_the_same(
    compared: Compare, old: str, new: str
) -> None:
    found = compared(old, new)
    assert (told(found), found.same) == ([], True)


# --- edits that change something ------------------------------------------------------

ALLOW = "rules: [{name: a, action: allow, hosts: [x.example]}]"
QUOTA = "\nquotas: [{name: q, every: day, per: %s}]"

RENAMED = ALLOW.replace("name: a", "name: b").replace(
    "}]", "}, {name: a, action: deny, hosts: [y.example]}]"
)
OF_A = QUOTA % "client, requests: 5, rules: [a]"
OF_RULE = QUOTA % "rule, requests: 5"
OF_TICKETS = QUOTA % "client, tickets: 5, rules: [a]"
OF_TUNNELS = QUOTA % "client, tunnels: 5, rules: [a]"
AGENTS = ALLOW + "\nclients: {agents: {networks: [192.0.2.0%s]}}"
OF_AGENTS = QUOTA % "client, requests: 5, clients: [agents]"
GRANTED = (
    """
rules: [{name: %s, action: allow, hosts: [x.example]}, {name: %s, action: deny, hosts: [y.example]}]
grants: [{name: g, any_client: true, hosts: [x.example], uses: 5, reason: R, expires: 2099-01-01T00:00:00Z}]
"""
    + OF_A
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            BEFORE,
            BEFORE.replace("/v1/**", '/v1/**, "/v2/*"'),
            [
                (
                    "opened",
                    "any client except agents: every method https, http on api.example, path /v2/*"
                    " | agents: every method except GET https, http on api.example, path /v2/*",
                )
            ],
            id="a path, which agents had for GET",
        ),
        pytest.param(
            ALLOW,
            ALLOW.replace("hosts", "clients: [agents], hosts")
            + "\nclients: {agents: {networks: [192.0.2.0/24]}}",
            [
                (
                    "closed",
                    "any client except agents (after): every method https, http on x.example",
                )
            ],
            id="clients",
        ),
        pytest.param(
            ALLOW.replace("x.example", "'*.x.example'"),
            ALLOW.replace("x.example", "'**.x.example'"),
            [
                (
                    "opened",
                    "any client: every method https, http on two labels or more under x.example",
                )
            ],
            id="hosts further below",
        ),
        pytest.param(
            ALLOW,
            "rules: [{name: closed, action: deny, hosts: [x.example], query: {q: '1*'}}, "
            "{name: a, action: allow, hosts: [x.example]}]",
            [
                (
                    "closed",
                    "any client: every method https, http on x.example, query ?q=1*",
                ),
                (
                    "websocket",
                    "any client: GET https, http on x.example, query every one except ?q=1*",
                ),
            ],
            id="query",
        ),
        pytest.param(
            ALLOW,
            ALLOW
            + "\nrewrites: [{name: w, hosts: [x.example], paths: [/a/**], to: 'https://y.example{path}'}]",
            [
                ("websocket", "any client: GET https, http on x.example"),
                (
                    "rewrite",
                    "any client: every method https, http on x.example, path /a/**",
                ),
            ],
            id="rewrite",
        ),
        pytest.param(
            "defaults: {action: deny}",
            "defaults: {ask: true}",
            [
                (
                    "asks",
                    "any client: every method on every port on every host except private addresses",
                )
            ],
            id="ask by default",
        ),
        pytest.param(
            "defaults: {action: deny}",
            ALLOW.replace("hosts", "observe: true, hosts"),
            [("observed", "any client: every method https, http on x.example")],
            id="an observing rule",
        ),
    ],
)
def test_an_edit_is_reported_by_what_it_changes(
    compared: Compare, old: str, new: str, expected: list[tuple[str, str]]
) -> None:
    assert told(compared(old, new)) == expected


THERE = "any client: every method https, http on x.example"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (
            "methods: [GET]",
            [
                ("closed", THERE.replace("every method", "every method except GET")),
                ("websocket", THERE.replace("every method", "GET")),
            ],
        ),
        (
            "ports: [443, 8443]",
            [
                (
                    "opened",
                    "any client: every method https:8443, http:443, http:8443 on x.example",
                ),
                ("closed", "any client: every method http on x.example"),
            ],
        ),
        ("private: true", [("private", THERE)]),
        (
            "tls: passthrough",
            [
                ("closed", "any client: every method http on x.example"),
                ("passthrough", "any client: CONNECT https on x.example"),
            ],
        ),
        ("strip: [Cookie]", [("strip", THERE)]),
        ("connections: single", [("connections", THERE)]),
        ("observe: true", [("closed", THERE)]),
        (
            "expires: 2026-12-01T00:00:00Z",
            [("closed", f"{THERE}, from 2026-12-01T00:00:00Z on")],
        ),
        (
            "when: {hours: '08:00-18:00', timezone: UTC}",
            [("closed", f"{THERE}, while none of a (after) holds")],
        ),
    ],
)
def test_a_field_of_a_rule_is_reported_by_what_it_changes(
    compared: Compare, field: str, expected: list[tuple[str, str]]
) -> None:
    assert told(compared(ALLOW, ALLOW.replace("hosts", f"{field}, hosts"))) == expected


def test_what_stands_beside_a_rule_is_reported_by_what_it_changes(
    compared: Compare,
) -> None:
    upstream = "\nupstreams: [{name: up, url: 'http://proxy.example:3128'}]"
    assert told(compared(ALLOW, ALLOW + upstream)) == [("upstream", THERE)]
    assert told(compared(ALLOW, ALLOW.replace("allow", "ask"))) == [("closed", THERE)]
    below = ALLOW.replace("x.example", "x.example, '*.x.example'")
    assert told(compared(ALLOW, below)) == [
        ("opened", THERE.replace("x.example", "*.x.example"))
    ]


CREDENTIAL = """
secrets: {key: {env: KEY}, other: {env: OTHER}}
credentials:
  - {name: c, hosts: [x.example], paths: [/v1/**], bearer: key}
"""


def test_credentials_are_compared_by_what_they_inject(compared: Compare) -> None:
    gained = compared(ALLOW, ALLOW + CREDENTIAL)
    assert told(gained)[-1] == (
        "credentials",
        "any client: every method except OPTIONS https on x.example, path /v1/**",
    )
    assert gained.differences[-1].after.credentials == ("Authorization: Bearer {key}",)
    renamed = compared(
        ALLOW + CREDENTIAL, ALLOW + CREDENTIAL.replace("name: c", "name: d")
    )
    assert renamed.same
    other = compared(
        ALLOW + CREDENTIAL, ALLOW + CREDENTIAL.replace("bearer: key", "bearer: other")
    )
    assert [difference.change for difference in other.differences] == [
        Change.CREDENTIALS
    ]


def test_of_two_credentials_for_a_header_the_first_counts(compared: Compare) -> None:
    first = "{name: c, hosts: [x.example], bearer: key}"
    second = "{name: d, hosts: [x.example], bearer: other}"
    text = (
        ALLOW
        + "\nsecrets: {key: {env: KEY}, other: {env: OTHER}}\ncredentials: [%s, %s]"
    )
    found = compared(text % (first, second), text % (second, first))
    assert [difference.change for difference in found.differences] == [
        Change.CREDENTIALS
    ]
    values = [
        (difference.before.credentials, difference.after.credentials)
        for difference in found.differences
    ]
    assert values == [
        (("Authorization: Bearer {key}",), ("Authorization: Bearer {other}",))
    ]


def test_a_grant_opens_what_a_rule_asks_about_and_not_what_one_denies(
    compared: Compare,
) -> None:
    clients = "clients: {agents: {networks: [192.0.2.0/24]}}\n"
    grant = "\ngrants: [{name: g, clients: [agents], hosts: [x.example], expires: 2026-12-01T00:00:00Z, reason: R}]"
    asks, denies = (
        clients + ALLOW.replace("allow", "ask"),
        clients + ALLOW.replace("allow", "deny"),
    )
    where = "agents: every method https, http on x.example, until 2026-12-01T00:00:00Z"
    assert told(compared(asks, asks + grant)) == [("opened", where)]
    assert compared(denies, denies + grant).same


def test_a_secret_from_elsewhere_and_a_setting_are_differences(
    compared: Compare,
) -> None:
    new = (
        ALLOW
        + CREDENTIAL.replace("env: KEY", "env: ELSEWHERE")
        + "\ndefaults: {watch_secrets: true}"
    )
    found = compared(ALLOW + CREDENTIAL, new)
    assert [setting.name for setting in found.settings] == [
        "watch_secrets",
        "secret key",
    ]
    assert not found.same


def test_a_file_beside_each_policy_is_the_same_source(
    compared: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ALLOW + CREDENTIAL.replace("env: KEY", "file: key")
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text("secret-of-nobody")
        (tmp_path / name / "key").chmod(0o600)
    assert compared(text, text).same
    monkeypatch.chdir(tmp_path)
    assert run("old", "new").exit_code == 0


def test_a_grant_for_one_url_is_compared_alone(compared: Compare) -> None:
    grant = (
        "clients: {agents: {networks: [192.0.2.0/24]}}\ngrants: [{name: g, clients: [agents], methods: [GET],"
        " urls: ['https://x.example/a?b=1'], expires: 2026-12-01T00:00:00Z, reason: R}]"
    )
    found = compared("clients: {agents: {networks: [192.0.2.0/24]}}", grant)
    (opened,) = [
        one for one in found.differences if one.change is Change.OPENED and one.example
    ]
    assert scopes(opened) == (
        "agents: GET https on x.example, path https://x.example/a?b=1, until 2026-12-01T00:00:00Z"
    )


TOKENS_THAT_END = """
clients:
  a: {token_sha256: [{sha256: a26ca1ae4723d2db1fa9d689c4944162ad6d78dc015430f9e202c19e8025d422, expires: 2027-01-01T00:00:00Z}]}
  b: {token_sha256: [{sha256: 7b5162cfdd16b2ce93dea87e5ae5e5f3f117d3ff3ad1d639583e13de52b4905c}]}
"""  # noqa: E501


def test_a_client_whose_token_ends_hides_no_difference_of_another_client(
    compared: Compare,
) -> None:
    rule = "rules: [{{name: r, action: allow, clients: [a, b], hosts: [x.example]{}}}]"
    found = compared(
        TOKENS_THAT_END + rule.format(", expires: 2027-02-01T00:00:00Z"),
        TOKENS_THAT_END + rule.format(""),
    )
    where = "every method https, http on x.example, from 2027-02-01T00:00:00Z on"
    assert told(found) == [("opened", f"b: {where}")]


def test_a_login_that_one_policy_refuses_is_compared(compared: Compare) -> None:
    client = "\nclients: {agent: {networks: [192.0.2.0/24], token_sha256: [%s]}}" % (
        "a" * 64
    )
    assert told(compared(ALLOW, ALLOW + client)) == [
        ("closed", "user agent (after): every method https, http on x.example")
    ]


def test_what_becomes_of_a_grant_that_is_spent_is_compared_where_its_uses_are_the_same(
    compared: Compare,
) -> None:
    grant = (
        "\ngrants: [{name: g, any_client: true, methods: [GET], hosts: [x.example], uses: 2, reason: R,"
        " made: 2026-01-01T00:00:00Z, expires: 2026-12-01T00:00:00Z}]"
    )
    (uses,) = told(
        compared("defaults: {action: deny}" + grant, "defaults: {ask: true}" + grant)
    )[1:]
    assert uses[0] == "uses"


def test_a_rewrite_of_a_private_address_to_itself_is_compared(
    compared: Compare,
) -> None:
    """Without `private: true` it is denied, but for a request that is for the target
    already.
    """
    rule = "rules: [{name: a, action: allow, hosts: [10.0.0.1], private: true}]\n"
    rewrite = (
        rule
        + "rewrites: [{name: w, hosts: [10.0.0.1], paths: [/a/**], to: 'https://%s/a/b'%s}]\n"
    )
    credential = "secrets: {key: {env: KEY}}\ncredentials: [{name: c, hosts: [10.0.0.1], bearer: key}]\n"
    for host in ("10.0.0.1", "{host}"):
        opens, closes = rewrite % (host, ", private: true"), rewrite % (host, "")
        assert {change for change, _ in told(compared(opens, closes))} == {"closed"}
        assert {change for change, _ in told(compared(closes, opens))} == {"opened"}
        gained = compared(opens, closes + credential, is_ceiling=True)
        assert "unproven rewrite" in {change for change, _ in told(gained)}, (
            "the target itself gets a credential"
        )


def test_an_observing_rule_is_compared_where_it_holds_alone(compared: Compare) -> None:
    draft = "{name: draft, action: deny, observe: true, hosts: [x.example], paths: [/x/**]}, "
    assert {
        (change, where.rpartition(", ")[2])
        for change, where in told(
            compared(ALLOW, ALLOW.replace("[{", f"[{draft}{{", 1))
        )
    } == {("observed", "path /x/**")}


def test_what_ends_with_a_token_alone_is_compared(compared: Compare) -> None:
    rule = "rules: [{name: r, action: allow, clients: [a], hosts: [x.example]}]"
    found = compared(
        TOKENS_THAT_END + rule,
        TOKENS_THAT_END.replace(", expires: 2027-01-01T00:00:00Z", "") + rule,
    )
    where = "every method https, http on x.example, from 2027-01-01T00:00:00Z on"
    assert ("opened", f"a: {where}") in told(found)


def test_a_method_stands_for_all_others_however_many_are_named(
    compared: Compare,
) -> None:
    rule = "rules: [{{name: r, action: allow, hosts: [x.example], methods: [POST, PUT, PATCH, REPORT, LINK{}]}}]"
    found = compared(rule.format(""), rule.format(", OTHER, OTHER-1"))
    assert told(found) == [
        ("opened", "any client: OTHER, OTHER-1 https, http on x.example")
    ]


def grant_text(name: str, more: str = "", hosts: str = "x.example") -> str:
    end = "expires: 2026-12-01T00:00:00Z, any_client: true, reason: R"
    return f"{{name: {name}, hosts: [{hosts}], {end}{more}}}"


def test_what_decides_once_a_grant_is_spent_is_compared(compared: Compare) -> None:
    once = grant_text("g1", ", uses: 1")
    old = f"grants: [{once}]"
    (difference,) = compared(old, f"grants: [{once}, {grant_text('g2')}]").differences
    assert (difference.change, difference.before.uses, difference.after.uses) == (
        Change.USES,
        1,
        None,
    )
    assert "g2" in difference.after.rules
    (difference,) = compared(
        old, f"grants: [{once}, {grant_text('g2', ', uses: 2')}]"
    ).differences
    assert (difference.change, difference.before.uses, difference.after.uses) == (
        Change.USES,
        1,
        3,
    )
    (difference,) = compared(old, f"{old}\ndefaults: {{ask: true}}").differences[-1:]
    assert (difference.change, scopes(difference).count("x.example")) == (
        Change.USES,
        1,
    )
    exact = grant_text("g2", ", methods: [GET]").replace(
        "hosts: [x.example]", "urls: ['https://x.example/a?b=1']"
    )
    (difference,) = compared(old, f"grants: [{once}, {exact}]").differences
    assert (
        difference.change,
        scopes(difference).count("path https://x.example/a?b=1"),
    ) == (Change.USES, 1)


def test_what_differs_before_a_grant_is_spent_is_no_difference_of_its_uses(
    compared: Compare,
) -> None:
    old = f"grants: [{grant_text('g1', ', uses: 1')}]"
    new = f"{old}\nrules: [{{name: seen, action: deny, observe: true, hosts: [x.example]}}]"
    assert [one.change for one in compared(old, new).differences] == [
        Change.OBSERVED
    ] * 2  # allowed, and denied


@pytest.mark.parametrize("edit", ["name: g2", "name: g1, made: 2026-11-01T00:00:00Z"])
def test_a_grant_that_starts_a_fresh_count_is_a_difference(
    compared: Compare, edit: str
) -> None:
    old = f"grants: [{grant_text('g1', ', uses: 1')}]"
    assert [
        one.change for one in compared(old, old.replace("name: g1", edit)).differences
    ] == [Change.USES]
    unlimited = f"grants: [{grant_text('g1')}]"
    assert compared(unlimited, unlimited.replace("name: g1", edit)).same


# --- what is not proven ---------------------------------------------------------------


def test_two_expressions_are_unproven_and_never_the_same(compared: Compare) -> None:
    rule = "rules: [{name: a, action: allow, hosts: [x.example], paths: ['regex:%s']}]"
    found = compared(rule % r"/v[0-9]+/.*", rule % r"/v\d+/.*")
    assert {difference.doubt for difference in found.differences} == {Doubt.EXPRESSION}
    assert not found.same
    assert compared(rule % r"/v[0-9]+/.*", rule % r"/v[0-9]+/.*").same


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("/v[0-9]+/.*", "/v0/"),
        (r"/.*\.tar\.gz", "/x.tar.gz"),
        ("/[^/]+/(?P<name>a|b)", "/x/a"),
        ("(?i)/acme/.*", "/ACME/"),
    ],
)
def test_an_expression_that_opens_has_an_example(
    compared: Compare, expression: str, path: str
) -> None:
    new = f"rules: [{{name: a, action: allow, hosts: [x.example], paths: ['regex:{expression}']}}]"
    found = compared("defaults: {action: deny}", new)
    assert told(found) == [
        (
            "opened",
            f"any client: every method https, http on x.example, path regex:{expression}",
        )
    ]
    assert found.differences[0].example
    assert found.differences[0].example.target == f"https://x.example{path}"


def test_the_paths_of_tests_are_tried_for_expressions_and_need_not_be_valid(
    compared: Compare,
) -> None:
    rule = "rules: [{name: a, action: allow, hosts: [x.example], paths: ['regex:%s']}]"
    tests = (
        "\ntests: [{request: 'GET https://x.example/%zz', expect: deny, rule: invalid-request},"
        " {request: 'GET https://x.example/b42/c', expect: allow}]"
    )
    found = compared(rule % "/a[0-9]+/c", rule % "/[ab][0-9]+/[c]" + tests)
    opened = next(
        difference
        for difference in found.differences
        if difference.change is Change.OPENED
    )
    assert opened.example
    assert opened.example.target == "https://x.example/b42/c"


def test_a_credential_in_two_halves_is_unproven_for_paths_of_both(
    compared: Compare,
) -> None:
    whole = "credentials: [{name: c, hosts: [x.example], paths: [/a/**, /b/**], bearer: key}]"
    halves = "credentials: [{name: c, hosts: [x.example], paths: [/a/**], bearer: key},"
    halves += " {name: d, hosts: [x.example], paths: [/b/**], bearer: key}]"
    secrets = "\nsecrets: {key: {env: KEY}}\n"
    for old, new in ((whole, halves), (halves, whole)):
        found = compared(ALLOW + secrets + old, ALLOW + secrets + new)
        assert {difference.doubt for difference in found.differences} == {
            Doubt.READINGS
        }
        beyond = compared(ALLOW + secrets + old, ALLOW + secrets + new, is_ceiling=True)
        assert {one.doubt for one in beyond.differences} == {Doubt.READINGS}, (
            "it may be open beyond the ceiling"
        )


def test_too_many_combinations_are_unproven(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "_STATES_AT_MOST", 300)  # 20,000 take long to reach
    paths = [f"/**/{letter}/**" for letter in "abcdefghi"]
    rule = "rules: [{name: a, action: allow, hosts: [x.example], paths: [%s]}]"
    found = compared(rule % ", ".join(paths), rule % ", ".join(paths[1:]))
    assert {difference.doubt for difference in found.differences} == {Doubt.LIMIT}


def test_what_is_left_out_for_its_size_is_no_proof(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_module, "_CELLS_AT_MOST", 1)
    found = compared(ALLOW, ALLOW)
    assert found.limit is not None
    assert not found.same
    assert "NOT COMPARED" in as_text(found)


# --- lists ----------------------------------------------------------------------------


def test_lists_are_compared_as_sets(compared: Compare, tmp_path: Path) -> None:
    text = (
        "lists: {bad: {file: bad.txt}}\ndefaults: {action: allow}\nrules: "
        "[{name: closed, action: deny, lists: [bad]}]"
    )
    for name, lines in (
        ("old", ["a.example", ".b.example", "c.example"]),
        ("new", ["c.example", ".b.example", "x.b.example"]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bad.txt").write_text(
            "\n".join([*lines, *(f"h{n}.test" for n in range(2000))])
        )
    found = compared(text, text)
    (opened,) = found.differences
    assert opened.change is Change.OPENED
    assert (
        scopes(opened)
        == "any client: every method https, http on 1 host of the list bad, such as a.example"
    )


def test_a_wildcard_of_a_list_is_compared_for_every_depth(
    compared: Compare, tmp_path: Path
) -> None:
    text = "lists: {good: {file: good.txt}}\nrules: [{name: open, action: allow, lists: [good]}]"
    for name, line in (("old", "*.b.example"), ("new", "**.b.example")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.txt").write_text(line)
    ((change, where),) = told(compared(text, text))
    assert (change, where.rpartition(", ")[2]) == ("opened", "such as x.x.b.example")


@pytest.mark.parametrize(
    ("old", "new", "example"),
    [
        ("a.example", ".a.example", "x.a.example"),
        (".a.example", "a.example", "x.a.example"),
        ("*.a.example", "a.example", "x.a.example"),
        ("**.a.example", "*.a.example", "x.x.a.example"),
        ("||a.example^", "a.example", "x.a.example"),
    ],
)
def test_a_line_of_a_list_is_compared_with_what_is_below_it(
    compared: Compare, tmp_path: Path, old: str, new: str, example: str
) -> None:
    text = "lists: {some: {file: some.txt}}\nrules: [{name: open, action: allow, lists: [some]}]"
    for name, line in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some.txt").write_text(line)
    found = told(compared(text, text))
    assert example in [where.rpartition(", such as ")[2] for _, where in found]


def test_private_addresses_in_a_wider_network_are_compared(compared: Compare) -> None:
    rule = "rules: [{{name: r, action: allow, hosts: [8.0.0.0/5]{}}}]"
    (opened,) = told(compared(rule.format(""), rule.format(", private: true")))
    assert opened == ("opened", "any client: every method https, http on 10.0.0.0/8")


def test_nothing_is_observed_of_a_private_address_that_no_rule_opens(
    compared: Compare,
) -> None:
    closed, draft = (
        "defaults: {action: deny}",
        "{name: draft, action: allow, observe: true, hosts: [10.0.0.0/8]}",
    )
    assert {
        difference.doubt
        for difference in compared(closed, "defaults: {observe: true}").differences
    } == {None}
    assert compared(closed, f"rules: [{draft}]").same


# --- a ceiling ------------------------------------------------------------------------


REWRITE = (
    "\nrewrites: [{name: w, hosts: [x.example], to: 'https://%s.example{path}'%s}]"
)
POST = ALLOW.replace("hosts", "methods: [POST], hosts")  # no WebSocket
MIRRORED, REDIRECTED = (
    POST + REWRITE % ("y", ""),
    POST + REWRITE % ("y", ", redirect: 302"),
)
PARENT = (
    ALLOW + "\nupstreams: [{name: up, hosts: ['*'], url: 'http://proxy.example:3128'}]"
)
TOKENS = """
clients: {agent: {token_sha256: [%s]}%s}
rules: [{name: a, action: allow, hosts: [x.example], clients: [agent]}, {name: b, action: allow, hosts: [y.example]}]
"""
ONE, OTHER = "a" * 64, "a" * 12 + "b" * 52  # with the same ID
THIRD = "c" * 64
ENDING = "{sha256: %s, expires: 2027-01-0%dT00:00:00Z}"
GRANTS = "grants: [%s]"
ONE_TOKEN = TOKENS % (ONE, "")
PRIVATE = "rules: [{name: a, action: deny, hosts: [10.0.0.0/8]}]"
FETCHED = """
secrets:
  key: {file: key}
  token: {oauth2: {token_url: "https://login.example/token", grant: client_credentials, client_id: x, %s}}
"""
BY_USER = BEFORE.replace("clients: [agents]", "clients: [agents, ci]")
KEY, OAUTH = ALLOW + CREDENTIAL, ALLOW + FETCHED % "client_secret: key"
DENY = ALLOW.replace("allow", "deny")
WATCHING = "\ndefaults: {watch_secrets: true}"


def test_a_redirect_is_all_that_is_compared_of_what_it_answers(
    compared: Compare,
) -> None:
    """Nothing is fetched, so that neither headers nor a private address count."""
    assert compared(
        REDIRECTED,
        REDIRECTED.replace(
            "methods: [POST],", "methods: [POST], strip: [Cookie], connections: single,"
        ),
    ).same
    to_private = REDIRECTED.replace("y.example", "10.0.0.9")
    assert {change for change, _ in told(compared(POST, to_private))} == {"rewrite"}


def test_an_upstream_of_a_scheme_that_is_not_fetched_makes_no_difference(
    compared: Compare,
) -> None:
    rewrite = "\nrewrites: [{name: w, hosts: [x.example], schemes: [http], to: 'https://x.example{path}'}]"
    parent = "\nupstreams: [{name: up, schemes: [http], hosts: [x.example], url: 'http://proxy.example:3128'}]"
    rule = POST.replace("hosts", "schemes: [http], hosts")
    assert compared(rule + rewrite, rule + rewrite + parent).same


def test_private_makes_no_difference_where_a_public_address_is_fetched(
    compared: Compare,
) -> None:
    mirrored = (
        POST
        + "\nrewrites: [{name: w, hosts: [x.example], to: 'https://203.0.113.9{path}'%s}]"
    )
    assert compared(mirrored % "", mirrored % ", private: true").same


@pytest.mark.parametrize(
    ("ceiling", "new"),
    [
        pytest.param(ALLOW, "defaults: {action: deny}", id="closed"),
        pytest.param(ALLOW, ALLOW.replace("allow", "ask"), id="asks"),
        pytest.param("defaults: {action: deny}", DENY, id="denied by a rule"),
        pytest.param(
            "defaults: {action: deny}",
            DENY.replace("hosts: [x", "hosts: [.x"),
            id="denied for more",
        ),
        pytest.param(
            DENY, DENY.replace("name: a", "name: b"), id="denied by another rule"
        ),
        pytest.param(
            "defaults: {action: deny}",
            DENY.replace("hosts", "paths: ['regex:/a+'], hosts"),
            id="regex",
        ),
        pytest.param(
            PRIVATE,
            "defaults: {action: deny}",
            id="a private address, which no grant opens",
        ),
        pytest.param(ALLOW, ALLOW + "\ndefaults: {ask: true}", id="asks by default"),
        pytest.param(
            ALLOW,
            ALLOW.replace("[{", "[{name: o, action: deny, observe: true}, {"),
            id="observes",
        ),
        pytest.param(POST, REDIRECTED, id="redirect"),
        pytest.param(
            GRANTS % grant_text("g", ", uses: 2"),
            GRANTS % grant_text("g", ", uses: 1"),
            id="fewer uses",
        ),
        pytest.param(MIRRORED, REDIRECTED, id="redirect to the mirror"),
        pytest.param(
            MIRRORED.replace("{path}", "/a{path}"),
            REDIRECTED.replace("{path}", "/a{path}"),
            id="redirect into a folder",
        ),
        pytest.param(
            ALLOW, ALLOW.replace("hosts", "strip: [Cookie], hosts"), id="strip"
        ),
        pytest.param(
            ALLOW,
            ALLOW.replace("hosts", "connections: single, hosts"),
            id="connections",
        ),
        pytest.param(
            ALLOW.replace("hosts", "private: true, hosts"), ALLOW, id="no private"
        ),
        pytest.param(TOKENS % (f"{ONE}, {OTHER}", ""), ONE_TOKEN, id="token"),
        pytest.param(
            ONE_TOKEN, TOKENS % (ENDING % (ONE, 1), ""), id="a token that ends"
        ),
        pytest.param(
            ONE_TOKEN,
            TOKENS % (ONE, f", new: {{token_sha256: {THIRD}}}"),
            id="a client for no more",
        ),
        pytest.param(
            ALLOW + "\ndefaults: {reload_gate: {since: 1d, denials: 5}}",
            ALLOW,
            id="reload gate",
        ),
        pytest.param(ALLOW, ALLOW + QUOTA % "client, requests: 5", id="a quota"),
        pytest.param(
            ALLOW + QUOTA % "client, requests: 5",
            ALLOW + QUOTA % "client, requests: 4",
            id="a lower limit",
        ),
        pytest.param(
            ALLOW + OF_A,
            RENAMED + OF_A.replace("[a]", "[a, b]"),
            id="a quota for its own rule too",
        ),
        pytest.param(
            ALLOW + OF_A,
            RENAMED + QUOTA % "client, requests: 5",
            id="a quota for all rules",
        ),
        pytest.param(
            ALLOW + OF_A,
            RENAMED.replace("allow", "deny") + OF_A,
            id="denied by a rule that no quota counts",
        ),
    ],
)
def test_within_a_ceiling_less_may_be_open(
    compared: Compare, ceiling: str, new: str
) -> None:
    found = compared(ceiling, new, is_ceiling=True)
    assert (told(found), found.settings) == ([], ())


@pytest.mark.parametrize(
    ("ceiling", "new"),
    [
        pytest.param(ALLOW, ALLOW.replace("x.example", ".x.example"), id="host"),
        pytest.param(
            ALLOW, ALLOW.replace("hosts", "private: true, hosts"), id="private"
        ),
        pytest.param(
            ALLOW, ALLOW.replace("hosts", "tls: passthrough, hosts"), id="passthrough"
        ),
        pytest.param(
            ALLOW.replace("hosts", "strip: [Cookie], hosts"), ALLOW, id="strip"
        ),
        pytest.param(
            ALLOW.replace("hosts", "connections: single, hosts"),
            ALLOW,
            id="connections",
        ),
        pytest.param(
            ALLOW.replace("hosts", "methods: [GET], hosts"),
            ALLOW.replace("hosts", "methods: [GET], connections: shared, hosts"),
            id="shared connections",
        ),
        pytest.param(
            DENY, DENY.replace("deny", "ask"), id="what a rule denies is asked about"
        ),
        pytest.param(POST, MIRRORED, id="rewrite"),
        pytest.param(
            GRANTS % grant_text("g", ", uses: 1"),
            GRANTS % grant_text("g", ", uses: 2"),
            id="more uses",
        ),
        pytest.param(
            MIRRORED, MIRRORED.replace("y.example", "z.example"), id="another mirror"
        ),
        pytest.param(MIRRORED, POST, id="past the mirror"),
        pytest.param(REDIRECTED, POST, id="not redirected"),
        pytest.param(ALLOW, PARENT, id="parent"),
        pytest.param(PARENT, ALLOW, id="past the parent"),
        pytest.param(
            PARENT, PARENT.replace("3128'", "3128', resolve: upstream"), id="resolve"
        ),
        pytest.param(
            ALLOW,
            "rules: [{name: a, action: allow, paths: ['regex:/v[0-9]+[a-z].*.gz'], hosts: [y.example]}]",
            id="unproven",
        ),
        pytest.param(ALLOW + QUOTA % "client, requests: 5", ALLOW, id="no quota"),
        pytest.param(
            ALLOW + QUOTA % "client, requests: 5",
            ALLOW + QUOTA % "client, requests: 10",
            id="a higher limit",
        ),
        pytest.param(
            ALLOW + QUOTA % "all, requests: 5",
            ALLOW + QUOTA % "client, requests: 5",
            id="a quota for each",
        ),
        pytest.param(ALLOW + OF_A, RENAMED + OF_A, id="a rule that no quota counts"),
        pytest.param(
            ALLOW + OF_RULE, RENAMED + OF_RULE, id="a rule with a count of its own"
        ),
        pytest.param(
            ALLOW.replace("allow", "ask") + OF_TICKETS,
            RENAMED.replace("allow", "ask") + OF_TICKETS,
            id="ask",
        ),
        pytest.param(
            ALLOW + OF_TUNNELS,
            RENAMED + OF_TUNNELS,
            id="tunnels of a rule that no quota counts",
        ),
        pytest.param(
            ALLOW + OF_TUNNELS,
            RENAMED
            + OF_TUNNELS[:-1]
            + ", {name: r, every: day, per: client, requests: 5}]",
            id="of requests alone",
        ),
        pytest.param(
            AGENTS % "/24" + OF_AGENTS,
            AGENTS % "/25" + OF_AGENTS,
            id="a client that no quota counts",
        ),
        pytest.param(
            GRANTED % ("a", "b"),
            GRANTED % ("b", "a"),
            id="a rule that no quota counts once a grant is spent",
        ),
        pytest.param(
            ALLOW + "\nclients: {c: {users: [bot]}}" + QUOTA % "client, requests: 5",
            ALLOW
            + "\nclients: {c: {users: [bot]}, d: {users: [eve]}}"
            + QUOTA % "client, requests: 5",
            id="a login with a count of its own",
        ),
        pytest.param(ALLOW, KEY, id="credential"),
        pytest.param(KEY, ALLOW, id="the client's own key"),
        pytest.param(
            KEY,
            KEY.replace("hosts: [x.example], paths: [/v1/**]", "hosts: [x.example]"),
            id="more of it",
        ),
        pytest.param(
            KEY,
            KEY.replace("name: c, hosts: [x.example]", "name: c, hosts: [z.example]"),
            id="the same for another host",
        ),
        pytest.param(
            KEY,
            KEY.replace("env: KEY", "file: /etc/ssl/private/ca.key"),
            id="another value",
        ),
        pytest.param(ALLOW + FETCHED.partition("  token")[0], OAUTH, id="oauth2"),
        pytest.param(
            OAUTH,
            OAUTH.replace("client_id: x", "client_id: y"),
            id="another client of oauth2",
        ),
        pytest.param(
            OAUTH,
            OAUTH.replace("login.example", "elsewhere.example"),
            id="another token endpoint",
        ),
        pytest.param(ONE_TOKEN, TOKENS % (f"{ONE}, {OTHER}", ""), id="token"),
        pytest.param(ONE_TOKEN, TOKENS % (OTHER, ""), id="a token with the same ID"),
        pytest.param(TOKENS % ("", ""), ONE_TOKEN, id="the first token"),
        pytest.param(
            TOKENS % (ENDING % (ONE, 1), ""),
            TOKENS % (ENDING % (ONE, 2), ""),
            id="a token for longer",
        ),
        pytest.param(
            TOKENS % (ENDING % (ONE, 1), ""), ONE_TOKEN, id="a token for ever"
        ),
        pytest.param(
            TOKENS % (f"{ENDING % (ONE, 1)}, {THIRD}", ""),
            TOKENS % (f"{ENDING % (ONE, 2)}, {THIRD}", ""),
            id="one of two tokens for longer",
        ),
        pytest.param(
            TOKENS % (f"{ENDING % (ONE, 1)}, {THIRD}", ""),
            TOKENS % (f"{ENDING % (ONE, 2)}, {ENDING % (ONE, 1)}, {THIRD}", ""),
            id="a token with two ends",
        ),
        pytest.param(
            ONE_TOKEN,
            TOKENS.replace("token_sha256: [%s]", "users: [agent]") % "",
            id="by name",
        ),
        pytest.param(
            TOKENS.replace("token_sha256: [%s]", "users: [agent]") % "",
            ONE_TOKEN,
            id="by token",
        ),
        pytest.param(BY_USER, BY_USER.replace("[bot]", "[bot, eve]"), id="user"),
        pytest.param(
            BEFORE, BEFORE.replace("192.0.2.0/24", "192.0.2.0/23"), id="network"
        ),
        pytest.param(ALLOW + WATCHING, ALLOW, id="watch_secrets"),
        pytest.param(KEY + WATCHING, ALLOW + WATCHING, id="a secret that is watched"),
    ],
)
def test_what_a_ceiling_does_not_do_is_reported(
    compared: Compare, ceiling: str, new: str
) -> None:
    found = compared(ceiling, new, is_ceiling=True)
    assert not found.same
    assert not compared(ceiling, new).same, "what is wider is different"
    assert compared(new, new, is_ceiling=True).same


def test_what_a_ceiling_denies_by_a_rule_may_not_be_left_to_grants(
    compared: Compare,
) -> None:
    """A grant is asked where the default or an ask decides, and not where a rule
    denies.
    """
    for new in ("defaults: {action: deny}", "defaults: {ask: true}"):
        assert told(compared(DENY, new, is_ceiling=True)) == [
            ("grantable", "any client: every method on every port on x.example")
        ]
        assert "meaning    grants and approvals could open it\n" in as_text(
            compared(DENY, new, is_ceiling=True)
        )
    narrower = DENY.replace("hosts", "paths: [/a/**], hosts")
    ((change, requests),) = told(compared(DENY, narrower, is_ceiling=True))
    assert (change, requests.partition(", path ")[2]) == (
        "grantable",
        "every one except /a/**",
    )


def test_what_is_wider_shows_beside_what_only_closes(compared: Compare) -> None:
    redirects = (
        "\nrewrites: [{name: r, hosts: [x.example], paths: [/a/**], to: "
        "'https://y.example{path}', redirect: 302}%s]"
    )
    fetches = ", {name: f, hosts: [x.example], methods: [POST], to: 'https://z.example{path}'}"
    assert compared(ALLOW, ALLOW + redirects % "", is_ceiling=True).same
    (wider,) = compared(ALLOW, ALLOW + redirects % fetches, is_ceiling=True).differences
    assert wider.after.rewrite.startswith("fetched from https://z.example/")


def test_a_path_that_is_ambiguous_under_the_ceiling_alone_is_open_below_it(
    compared: Compare,
) -> None:
    """`/a/..%2fb` is denied by the ceiling: one server removes the header from it,
    another does not.
    """
    rules = "rules:\n  - {name: a, action: allow, hosts: [x.example], paths: ['/a/**'], strip: [Cookie]}\n"
    rest = "  - {name: rest, action: allow, hosts: [x.example]%s}\n"
    found = compared(
        rules + rest % "", rules + rest % ", strip: [Cookie]", is_ceiling=True
    )
    assert [(one.change, one.doubt) for one in found.differences] == [
        (Change.CLOSED, Doubt.READINGS)
    ]
    assert compared(
        rules + rest % "", rules + rest % ", paths: ['/b/**']", is_ceiling=True
    ).same


def test_a_path_that_is_ambiguous_under_the_ceiling_alone_is_redirected_below_it(
    compared: Compare,
) -> None:
    """The ceiling denies `/v1/..%2fb`: only one reading gets the credential.

    A redirect treats both readings alike.
    """
    redirect = "\nrewrites: [{name: r, hosts: [x.example], to: 'https://y.example{path}', redirect: 302%s}]"
    (difference,) = compared(KEY, KEY + redirect % "", is_ceiling=True).differences
    assert (difference.change, difference.doubt) == (Change.CLOSED, Doubt.READINGS)
    assert compared(KEY, KEY + redirect % ", paths: ['/v1/**']", is_ceiling=True).same


KEY_OF_TARGET = CREDENTIAL.replace("[x.example]", "[y.example]")


@pytest.mark.parametrize(
    ("ceiling", "rule"),
    [
        pytest.param(
            MIRRORED.replace("{path}", "/a{path}"),
            "invalid-request",
            id="out of the folder of a rewrite",
        ),
        pytest.param(
            REDIRECTED.replace("{path}", "/a{path}"),
            "invalid-request",
            id="out of that of a redirect",
        ),
        pytest.param(
            MIRRORED.replace("{path}", "{path}{path}"),
            "invalid-request",
            id="out of the path before",
        ),
        pytest.param(
            MIRRORED + KEY_OF_TARGET,
            "ambiguous-path",
            id="other credentials at the target",
        ),
    ],
)
def test_a_path_that_a_rewrite_of_the_ceiling_denies_may_not_be_redirected(
    compared: Compare, tmp_path: Path, ceiling: str, rule: str
) -> None:
    new = REDIRECTED.replace("y.example", "z.example") + (
        KEY_OF_TARGET if "secrets" in ceiling else ""
    )
    (difference,) = compared(ceiling, new, is_ceiling=True).differences
    assert (difference.change, difference.doubt) == (Change.CLOSED, Doubt.READINGS)
    request = request_to("POST", "https://x.example/v1/..%2f..%2fb", None, None)
    decisions = [
        explain(compiled_of(tmp_path / name, text), request, NOW).decision
        for name, text in (("ceiling", ceiling), ("new", new))
    ]
    assert [decision.rule for decision in decisions] == [rule, "a"]


def test_what_is_open_in_a_later_year_alone_is_not_within_a_ceiling(
    compared: Compare,
) -> None:
    """In October 2036 Ramadan sets the clocks of Morocco back while those of Berlin are
    ahead.
    """
    rabat = "{name: a, action: allow, hosts: [x.example], when: {hours: '11:00-12:00', timezone: Africa/Casablanca}}"
    berlin = "{name: b, action: allow, hosts: [x.example], when: {hours: '14:00-13:00', timezone: Europe/Berlin}}"
    [opened] = compared(
        f"rules: [{berlin}]", f"rules: [{rabat}, {berlin}]", is_ceiling=True
    ).differences
    assert opened.change is Change.OPENED
    assert opened.example
    assert opened.example.at.year == 2036


def test_a_redirect_hides_no_credential_for_its_target(compared: Compare) -> None:
    redirect = "\nrewrites: [{name: r, hosts: [x.example], to: 'https://x.example/v1/y', redirect: 302}]"
    assert not compared(
        ALLOW, ALLOW + CREDENTIAL + redirect + "\n", is_ceiling=True
    ).same
    found = compared(KEY, KEY + redirect, is_ceiling=True).differences
    proven = [difference.change for difference in found if difference.doubt is None]
    assert proven == [Change.REWRITE], "it is for the target already"


# --- the command ----------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner(catch_exceptions=False).invoke(
        main, ["diff", *map(str, arguments)], prog_name="squidkeeper"
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    compiled_of(tmp_path / "old", BEFORE)
    compiled_of(
        tmp_path / "new",
        BEFORE.replace("methods: [GET]", "methods: [GET, HEAD]").replace(
            "/v1/**", "/v1/*"
        ),
    )
    return tmp_path / "old", tmp_path / "new"


def test_the_exit_status_is_for_review(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = folders
    assert run(old, old).exit_code == 0
    assert run(old, new).exit_code == 1
    assert run("--within", old, new).exit_code == 1
    assert run("--within", old, old).exit_code == 0
    (tmp_path / "broken").mkdir()
    assert run(old, tmp_path / "broken").exit_code == 2
    assert run(old, "--state", tmp_path).exit_code == 2  # no policy is in force here
    sources = read_sources(old)
    store_revision(sources, sources.revision, tmp_path / "revisions")
    mark_in_force(tmp_path / "revisions", sources.revision)
    assert [run(folder, "--state", tmp_path).exit_code for folder in folders] == [0, 1]
    assert run("--within", old, old, new).exit_code == 2


GRANT = """\
version: 1
grants: [{name: g, any_client: true, hosts: [x.test], expires: 2036-01-01T00:00:00Z, reason: x}]
"""


def test_a_draft_has_the_grants_of_the_old_policy_and_says_so(tmp_path: Path) -> None:
    old, new = tmp_path / "in-force/policy", tmp_path / "drafts/new"
    revisions = {folder: compiled_of(folder, BEFORE).revision for folder in (old, new)}
    grants_file(old).write_text(GRANT)
    done = run(old, new)
    assert done.output.endswith(
        f"{new} (revision {read_sources(old).revision}, with the grants of OLD) mean the same\n"
    )
    assert done.exit_code == 0
    assert (
        f"{new} (revision {revisions[new]}) is within"
        in run("--within", old, new).output
    ), "a ceiling lends none"
    assert run(new, old).output.startswith("OPENED"), "only a draft is lent any"


def test_explain_confirms_every_example(folders: tuple[Path, Path]) -> None:
    rows = json.loads(run(*folders, "--json").stdout)["differences"]
    assert len(rows) >= 2
    for row in rows:
        for folder, side in zip(folders, ("before", "after"), strict=True):
            assert explained(folder, row["example"]) == (
                row[side]["verdict"],
                row[side]["rule"],
            )


def test_the_guide_has_every_key_of_the_json(folders: tuple[Path, Path]) -> None:
    guide = (Path(__file__).parents[2] / "policy/CHANGING.md").read_text()
    section = guide.partition("\n## Difference\n")[2].partition("\n## In CI\n")[0]
    # a title in small letters is a value of `change`
    told = keys_told(section) | keys_told(section.lower())
    old, new = folders
    (new / "policy.yaml").write_text(
        (new / "policy.yaml").read_text() + "defaults: {watch_secrets: true}\n"
    )
    found = json.loads(run(old, new, "--json").stdout)
    assert found["settings"]
    assert told >= keys_in(found) | {str(kind) for kind in (*Change, *Doubt)}


def explained(folder: Path, example: dict[str, Any]) -> tuple[str, str]:
    client = ["--client", example["client"]] if example["client"] else []
    arguments = [
        "explain",
        "--policy",
        folder,
        *client,
        "--json",
        example["method"],
        example["url"],
    ]
    found = json.loads(CliRunner().invoke(main, [*map(str, arguments)]).stdout)
    return found["verdict"], found["rule"]


def test_the_text_names_the_rules_of_both_sides_with_their_places(
    folders: tuple[Path, Path],
) -> None:
    text = run(*folders).stdout
    assert re.search(
        r"^CLOSED +any client except agents: every method https, http on api\.example, path /v1/\*\* except",
        text,
        re.M,
    )
    assert f"before     allow by api ({folders[0]}/policy.yaml:7)" in text
    assert "after      deny by default" in text
    assert re.search(
        r"example    HEAD https://\S*example/ --client 192\.0\.2\.\d+", text
    )


def test_markdown_keeps_what_a_policy_says_from_being_markup(tmp_path: Path) -> None:
    compiled_of(tmp_path / "old", "defaults: {action: deny}")
    rule = "rules: [{name: '<b>|`x`[y](z)', action: allow, hosts: [x.example], paths: ['/a|b`<script>']}]"
    compiled_of(tmp_path / "new", rule)
    rows = [
        line
        for line in run(
            tmp_path / "old", tmp_path / "new", "--markdown"
        ).stdout.splitlines()
        if "opened" in line
    ]
    assert len(rows) == 1
    cells = re.split(r"(?<!\\)\|", rows[0])[1:-1]
    assert len(cells) == 5
    assert all(cell.count("`") == 2 for cell in cells[1:])


# --- descriptions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["", "a", "b", "ab"], ()),
        (["a", "ab"], ("a",)),
        (["a"], ("a except b",)),
        ([""], ("none of a, b",)),
        (["", "a"], ("every one except b",)),
        (["a", "b", "ab"], ("a", "b")),
        (["a", "b"], ("a, not b", "b, not a")),
    ],
)
def test_a_set_is_named_by_what_only_it_has(
    chosen: list[str], expected: tuple[str, ...]
) -> None:
    every = ["", "a", "b", "ab"]
    assert (
        named(map(frozenset, chosen), map(frozenset, every), "every one", "none of {}")
        == expected
    )


def test_alternatives_with_commas_of_their_own_are_kept_apart() -> None:
    scope = Scope((), (), (), (), ("/a and /b, not /c, /d", "/e"), ("?q=1", "?r=2"), ())
    assert scope_text(scope).endswith(
        ", path /a and /b, not /c, /d; or /e, query ?q=1, ?r=2"
    )


def test_patterns_with_exceptions_are_named_together() -> None:
    every = ["", "a", "b", "c", "ac", "bc"]
    assert named(map(frozenset, ["a", "b"]), map(frozenset, every), "", "") == (
        "a (except c)",
        "b (except c)",
    )
