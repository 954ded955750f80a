"""What the acl helper's reply tells Squid at each scope."""

from pathlib import Path

import pytest

from squidkeeper.policy.engine import Stage, decide
from squidkeeper.policy.protocol.request import CONNECT, request_to
from squidkeeper.serving.replies import acl_reply

from ..conftest import NOW, compiled_of

POLICY = """
secrets: {key: {env: KEY}}
credentials: [{name: key, hosts: [api.example], bearer: key}]
rewrites: [{name: mirror, hosts: [old.example], to: "https://new.example{path}"}]
quotas: [{name: few, requests: 9, every: day, per: all}]
rules:
  - {name: inside, action: allow, hosts: [inside.example], private: true, paths: [/x]}
  - {name: bare, action: allow, hosts: [bare.example], strip: [Cookie], websocket: true, connections: single}
  - {name: rest, action: allow, hosts: [api.example, old.example, open.example]}
"""
CASES = [
    ("host", CONNECT, "open.example", "clt_conn_tag tag private_=no"),
    ("host", "GET", "open.example", "tag override_ websocket_ quota_"),
    ("host", "GET", "api.example", "tag inject_ override_ websocket_ quota_"),
    ("host", "GET", "old.example", "tag rewrite_ quota_"),
    (
        "host",
        "GET",
        "bare.example",
        "tag override_ websocket_ quota_ connections_ strip_header_",
    ),
    ("host", "GET", "inside.example", "tag private_=yes quota_"),
    ("host", CONNECT, "none.example", "clt_conn_tag bump_"),
    ("host", "GET", "none.example", "contact_"),
    ("request", "GET", "open.example", "private_=no"),
    ("request", "GET", "inside.example", "private_=yes"),
    (
        "request",
        "GET",
        "bare.example",
        "private_=no websocket_ connections_ strip_header_",
    ),
    ("request", "GET", "none.example", "contact_"),
]


@pytest.mark.parametrize(("scope", "method", "host", "expected"), CASES)
def test_a_reply_tells_what_is_of_its_scope(
    tmp_path: Path, scope: str, method: str, host: str, expected: str
) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY)
    target = f"{host}:443" if method == CONNECT else f"https://{host}/x"
    request = request_to(method, target)
    stage = Stage.HOST if scope == "host" else Stage.URL
    decision = decide(policy, policy.match(request), NOW, stage)
    tunnel = target if method == CONNECT else None
    reply = acl_reply(decision, scope, policy, tunnel=tunnel)
    always = ("rule_", "verdict_", "revision_")
    told = [
        f"{name}={value}" if name == "private_" else name
        for name, value in reply.annotations
        if name not in always
    ]
    assert {*told} == {*expected.split()}
