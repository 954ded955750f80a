"""The login helper: whose token is this?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from squidkeeper.base.helper_metrics import LOGIN_RESULTS
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import Token
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.policy.protocol.request import NO_LOGIN, parse_request, request_to
from squidkeeper.record.log.drift import DriftChecker
from squidkeeper.record.log.record import NONE
from squidkeeper.serving.helpers.acl import HostScope
from squidkeeper.serving.helpers.login import Logins, answer

from .. import records
from ..conftest import NOW, compiled_of, decided

POLICY = f"""
clients:
  ci: {{token_sha256: [{Token.of("one").sha256}, {{sha256: {Token.of("past").sha256}, expires: 2020-01-01T00:00:00Z}}]}}
  both: {{networks: [192.0.2.0/24], token_sha256: {Token.of("both").sha256.upper()}}}
  user: {{users: [user]}}
rules:
  - {{name: of-ci, action: allow, clients: [ci], hosts: [a.example]}}
  - {{name: not-both, action: deny, clients: [both], hosts: [b.example]}}
  - {{name: open, action: allow, hosts: [b.example]}}
"""
LINES = {
    "ci one 203.0.113.9 -": "accepted",
    "ci one 203.0.113.9 - -": "accepted",
    "ci past 203.0.113.9 -": "expired",
    "ci two 203.0.113.9 -": "wrong_token",
    "ci - 203.0.113.9 -": "wrong_token",
    "ci both 203.0.113.9 -": "wrong_token",
    "nobody one 203.0.113.9 -": "unknown_client",
    "user one 203.0.113.9 -": "unknown_client",
    "- one 203.0.113.9 -": "unknown_client",
    "%FF %00 203.0.113.9 -": "unknown_client",
    "both both 192.0.2.9 -": "accepted",
    "both both 203.0.113.9 -": "other_network",
    "both both - -": "other_network",
}


@pytest.fixture
def policy(tmp_path: Path) -> CompiledPolicy:
    return compiled_of(tmp_path, POLICY)


@pytest.mark.parametrize(("line", "result"), LINES.items())
def test_a_login_is_accepted_or_refused_and_counted_by_the_reason(
    policy: CompiledPolicy, line: str, result: str
) -> None:
    reply = answer(Logins(policy), line.encode())
    assert reply.result is (Result.OK if result == "accepted" else Result.ERR)
    assert [key[-1] for key in reply.counts] == [result]
    token = Token.of(line.split(" ")[1])
    assert reply.annotations == (
        (("token_", token.id),) if result == "accepted" else ()
    )
    assert token.sha256 not in reply.head.decode()


def test_without_a_policy_nobody_logs_in() -> None:
    reply = answer(None, b"ci one 203.0.113.9 -")
    assert (reply.result, [key[-1] for key in reply.counts]) == (
        Result.ERR,
        ["no_policy"],
    )


def test_every_reason_has_a_reply() -> None:
    assert {*LINES.values(), "no_policy"} == set(LOGIN_RESULTS)


STATED = [  # user, ID of the token, address; who decides
    ("ci", Token.of("one").id, "203.0.113.9", "allow by of-ci"),
    ("ci", Token.of("past").id, "203.0.113.9", "deny by login-refused"),
    ("ci", Token.of("both").id, "203.0.113.9", "deny by login-refused"),
    (
        "ci",
        None,
        "203.0.113.9",
        "deny by login-refused",
    ),  # the operator's own program knows such a user
    ("gone", Token.of("one").id, "203.0.113.9", "deny by login-refused"),
    (None, Token.of("one").id, "203.0.113.9", "deny by login-refused"),
    ("user", None, "203.0.113.9", "deny by default"),
    (None, None, "203.0.113.9", "deny by default"),
    ("both", Token.of("both").id, "203.0.113.9", "deny by login-refused"),
]


@pytest.mark.parametrize(("user", "token", "client", "expected"), STATED)
def test_each_request_is_checked_by_the_token_of_its_login(
    policy: CompiledPolicy,
    user: str | None,
    token: str | None,
    client: str,
    expected: str,
) -> None:
    request = parse_request(
        [client, user, "GET", "http", "a.example", "80", None, None, token]
    )
    decision = decided(policy, request, NOW)
    assert f"{decision.action} by {decision.rule}" == expected


def test_a_deny_for_a_client_does_not_end_with_its_token(
    policy: CompiledPolicy,
) -> None:
    for token in ("both", "revoked"):
        tokens = [
            "192.0.2.9",
            "both",
            "GET",
            "http",
            "b.example",
            "80",
            None,
            None,
            Token.of(token).id,
        ]
        assert not decided(policy, parse_request(tokens), NOW).allowed


def test_what_people_state_of_a_client_counts_as_logged_in_while_one_of_its_tokens_holds(
    tmp_path: Path,
) -> None:
    lapsing = compiled_of(
        tmp_path,
        POLICY.replace(f"{Token.of('one').sha256}, ", "").replace("2020-01", "2027-01"),
    )
    asked = request_to("GET", "https://a.example/", "203.0.113.9", "ci")
    assert decided(lapsing, asked, NOW).rule == "of-ci"
    assert (
        decided(lapsing, asked, datetime(2027, 1, 1, tzinfo=UTC)).rule
        == "login-refused"
    )
    assert lapsing.timetable.changes(NOW, datetime(2028, 1, 1, tzinfo=UTC)) == [
        datetime(2027, 1, 1, tzinfo=UTC)
    ]


LAPSED = f"""  old: {{token_sha256: {{sha256: {Token.of("old").sha256}, expires: 2020-01-01T00:00:00Z}}}}
  none: {{token_sha256: []}}
rules:
"""
ASKING = (
    POLICY.replace("rules:\n", LAPSED)
    + """
  - {name: not-for-both, action: deny, clients: [both], hosts: [c.example]}
  - {name: for-ci, action: allow, clients: [ci], hosts: [c.example]}
  - {name: for-old, action: allow, clients: [old, none], hosts: [d.example]}
  - {name: for-user, action: allow, clients: [user], hosts: [e.example]}
"""
)


@pytest.mark.parametrize(
    ("host", "client", "asked"),
    [
        ("a.example", "192.0.2.9", True),
        ("b.example", "192.0.2.9", False),  # open
        ("c.example", "203.0.113.9", True),
        ("c.example", "192.0.2.9", True),  # from where both could log in
        ("d.example", "192.0.2.9", False),
        ("e.example", "192.0.2.9", False),
        ("f.example", "192.0.2.9", False),
    ],
)
def test_a_login_is_asked_for_where_one_client_that_can_log_in_now_would_be_allowed(
    tmp_path: Path, host: str, client: str, asked: bool
) -> None:
    scope = HostScope(compiled_of(tmp_path, ASKING))
    for method, scheme, port in (("GET", "http", 80), ("CONNECT", "https", 443)):
        reply = scope.answer(
            f"{client} - {method} {scheme} {host} {port} - - -".encode()
        )
        assert (("ask_login_", "yes") in reply.annotations) is asked


@pytest.mark.parametrize(
    "host",
    ["a.example", "b.example", "c.example", "d.example", "e.example", "f.example"],
)
def test_nobody_is_asked_for_a_login_on_a_port_without_logins(
    tmp_path: Path, host: str
) -> None:
    """A denied CONNECT passes there as elsewhere, so that the request in it gets its
    page.
    """
    scope = HostScope(compiled_of(tmp_path, ASKING))
    for client in ("10.0.0.9", "192.0.2.9"):
        [connect, get] = (
            dict(
                scope.answer(f"{client} - {words} - - {NO_LOGIN}".encode()).annotations
            )
            for words in (f"CONNECT - {host} 443", f"GET http {host} 80")
        )
        assert "ask_login_" not in {*connect, *get}
        assert connect["verdict_"] == "allow" or connect["bump_"] == "first"
        assert connect["rule_"] == get["rule_"] != "login-refused"


def test_a_record_of_a_login_belongs_to_its_client_for_metrics_and_drift(
    policy: CompiledPolicy,
) -> None:
    checker = DriftChecker(lambda _: policy, lambda: policy)
    served = records.record(
        url="http://a.example/",
        user="ci",
        client="203.0.113.9",
        revision=policy.revision,
        rule="of-ci",
    )
    assert checker.client_name(served) == "ci"
    assert checker.check(served) is None
    stranger = msgspec.structs.replace(served, user=NONE)
    assert checker.client_name(stranger) == "none"
    assert checker.check(stranger) is not None
