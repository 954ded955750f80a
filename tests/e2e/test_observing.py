"""Rules that observe, and rules with a schedule, on a live Squid: recorded, of no
effect; judged at their own time.
"""

from datetime import UTC, datetime, timedelta

import pytest

from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import tunnel

POLICY = """
version: 1
rules:
  - {{name: no-push, action: deny, observe: true, hosts: [git.example], paths: ["/**/git-receive-pack"]}}
  - {{name: closing, action: deny, observe: true, hosts: [old.example]}}
  - {{name: wider, action: allow, observe: true, hosts: [git.example, new.example], paths: ["/other/**"]}}
  - {{name: git, action: allow, hosts: [git.example], paths: ["/acme/**"]}}
  - {{name: old, action: allow, hosts: [old.example]}}
  - {{name: late, action: deny, observe: true, hosts: [old.example]}}
  - name: day
    action: allow
    hosts: [day.example]
    when: {{hours: ["{now:%H:%M}-{end:%H:%M}"], timezone: UTC}}
  - name: rest
    action: allow
    hosts: [rest.example]
    when: {{hours: ["{end:%H:%M}-{now:%H:%M}"], timezone: UTC}}
"""
DEFAULT = """
version: 1
defaults: {observe: true, reason: Ask.}
clients: {agents: {networks: [127.0.0.1]}}
secrets: {token: {file: secrets/token}}
credentials: [{name: api, hosts: [api.example], bearer: token}]
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: api, action: allow, hosts: [api.example], methods: [GET]}
  - {name: draft, action: allow, observe: true, hosts: [draft.example], paths: ["/x/**"]}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    now = datetime.now(UTC) - timedelta(minutes=5)
    return new_gateway(POLICY.format(now=now, end=now + timedelta(hours=1))).start()


@pytest.fixture(scope="module")
def open_gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(DEFAULT, secrets={"token": "t0ken-of-the-api"}).start()


@pytest.mark.parametrize(
    ("url", "rule", "observed"),
    [
        ("https://git.example/acme/app", "git", "-"),
        ("https://git.example/acme/app/git-receive-pack", "git", "deny:no-push"),
        ("http://git.example/acme/app/git-receive-pack", "git", "deny:no-push"),
        ("https://old.example/x", "old", "deny:closing"),
        ("http://old.example/x", "old", "deny:closing"),
        ("https://day.example/", "day", "-"),
    ],
)
def test_what_a_rule_observes_is_recorded_and_passes(
    gateway: Gateway, origins: Origins, url: str, rule: str, observed: str
) -> None:
    before = len(gateway.log())
    allowed(gateway, origins, url, rule)
    assert gateway.logged(url, before)["observed"] == observed


@pytest.mark.parametrize(
    ("url", "observed"),
    [
        ("https://git.example/other/app", "allow:wider"),
        ("https://git.example/third/app", "-"),
        (
            "http://new.example/other/app",
            "allow:wider",
        ),  # the host alone denies it; the URL is asked for the record
        ("http://new.example/third", "-"),
        ("https://rest.example/", "-"),  # whose hours are over
    ],
)
def test_what_a_rule_observes_is_recorded_and_stays_denied(
    gateway: Gateway, origins: Origins, url: str, observed: str
) -> None:
    before = len(gateway.log())
    reply = curl(gateway, url)
    assert (reply.status, reply.rule, origins.urls()) == (403, "default", [])
    assert gateway.logged(url, before)["observed"] == observed


def test_a_denied_tunnel_and_the_request_in_it_have_what_was_observed(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    denied(gateway, origins, "https://new.example/other/x", "default")
    inside = gateway.logged("https://new.example/other/x", before)
    connect = gateway.logged("new.example:443", before)
    assert [line["observed"] for line in (connect, inside)] == [
        "allow:wider",
        "allow:wider",
    ]
    assert curl(gateway, "http://git.example/third").status == 403
    assert gateway.logged("http://git.example/third", before)["observed"] == "-"


def test_what_no_rule_decides_passes_where_the_default_observes(
    open_gateway: Gateway, origins: Origins
) -> None:
    before = len(open_gateway.log())
    allowed(open_gateway, origins, "https://any.example/a", "default")
    allowed(open_gateway, origins, "http://any.example/a", "default")
    allowed(open_gateway, origins, "https://draft.example/x/1", "default")
    denied(open_gateway, origins, "https://closed.example/", "closed")
    denied(open_gateway, origins, "https://any.example:8443/", "default")
    denied(open_gateway, origins, "http://10.0.0.5/", "private-address")
    observed = {line["url"]: line["observed"] for line in open_gateway.log()[before:]}
    assert (
        observed["https://any.example/a"]
        == observed["http://any.example/a"]
        == "deny:default"
    )
    assert observed["any.example:443"] == "deny:default"
    assert observed["https://draft.example/x/1"] == "allow:draft"
    assert (
        observed["https://closed.example/"]
        == observed["https://any.example:8443/"]
        == "-"
    )


def test_what_the_default_lets_through_has_no_credential_and_no_override(
    open_gateway: Gateway, origins: Origins
) -> None:
    seen = allowed(open_gateway, origins, "https://api.example/", "api")
    assert seen.values("Authorization") == ["Bearer t0ken-of-the-api"]
    options = (
        "-X",
        "POST",
        "-H",
        "X-HTTP-Method-Override: DELETE",
        "-H",
        "Authorization: Bearer own",
    )
    seen = allowed(open_gateway, origins, "https://api.example/", "default", *options)
    assert "t0ken" not in str(seen.headers)
    assert seen.values("X-HTTP-Method-Override") == []


def test_a_name_with_a_private_address_stays_closed_where_the_default_observes(
    open_gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("observed-private.example", ["10.0.0.5"])
    denied(open_gateway, origins, "http://observed-private.example/", "private-address")


@pytest.mark.long
def test_each_request_of_an_open_tunnel_is_judged_at_its_own_time(
    new_gateway: NewGateway, origins: Origins
) -> None:
    now = datetime.now(UTC)
    end = (now + timedelta(seconds=70)).replace(second=0, microsecond=0)
    gateway = new_gateway(
        POLICY.format(now=now - timedelta(minutes=5), end=end)
    ).start()
    with tunnel(gateway, "day.example:443") as client:
        while datetime.now(UTC) < end - timedelta(seconds=1):
            reply = client.get("/x", "day.example")
            assert reply.status == 200
        wait_for(lambda: datetime.now(UTC) > end + timedelta(seconds=2), "the end", 5)
        reply = client.get("/x", "day.example")
        assert (reply.status, reply.rule) == (403, "default")
    allowed(gateway, origins, "https://rest.example/", "rest")
