"""`strip`: headers of the client's that a rule removes, in every spelling."""

import pytest

from squidkeeper.policy.language.headers import spellings
from tests.waiting import wait_for

from .curl import answer, curl
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Origins

POLICY = """
version: 1
rules:
  - {name: part, action: allow, hosts: [part.example], paths: [/strip/**], strip: [X-Debug-Key]}
  - {name: rest, action: allow, hosts: [part.example]}
  - {name: whole, action: allow, hosts: [whole.example, key.example], strip: [X-Debug-Key, Cookie, Authorization]}
  - {name: known, action: allow, hosts: [known.example], paths: [/x], headers: known}
  - {name: open, action: allow, hosts: [open.example], headers: known}
  - {name: other, action: allow, hosts: [other.example]}
  - {name: front, action: allow, hosts: [front.example], strip: [Cookie]}
rewrites:
  - {name: front, hosts: [front.example], paths: [/r/**], to: "https://back.example{path}"}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: key, hosts: [key.example], bearer: token}
"""
TOKEN = "e2e-strip-token-0123456789"
SENT = [*spellings("X-Debug-Key"), "Cookie", "Authorization", "X-Kept"]

SECRETS = {"token": TOKEN}


def left(gateway: Gateway, origins: Origins, url: str, rule: str) -> set[str]:
    """Send every header, and tell which of the client's values have arrived."""
    options = [option for name in SENT for option in ("-H", f"{name}: client's")]
    seen = allowed(gateway, origins, url, rule, *options)
    return {name for name in SENT if "client's" in seen.values(name)}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_named_headers_are_removed_in_every_spelling_and_no_others(
    gateway: Gateway, origins: Origins, scheme: str
) -> None:
    assert left(gateway, origins, f"{scheme}://whole.example/x", "whole") == {"X-Kept"}
    assert left(gateway, origins, f"{scheme}://other.example/x", "other") == set(SENT)


@pytest.mark.parametrize("host", ["known", "open"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_only_headers_that_helpers_know_pass_where_a_rule_says_so(
    gateway: Gateway, origins: Origins, scheme: str, host: str
) -> None:
    known = [
        "Authorization",
        "X-Api-Key",
        "Accept",
        "Anthropic-Version",
        "Traceparent",
        "Cookie",
    ]
    unknown = [
        "X-Unheard-Of",
        "X_Api_Key",
        "X-HTTP-Method-Override",
        "X-Original-URL",
        "X-Forward-Host",
        "Warning",
    ]
    options = [
        option for name in (*known, *unknown) for option in ("-H", f"{name}: client's")
    ]
    seen = allowed(
        gateway,
        origins,
        f"{scheme}://{host}.example/x",
        host,
        *options,
        "--data",
        "body",
    )
    assert {name for name in (*known, *unknown) if seen.values(name)} == {*known}
    assert (seen.values("Host"), seen.body) == ([f"{host}.example"], b"body")


def test_a_rule_for_a_path_removes_them_on_that_path_alone(
    gateway: Gateway, origins: Origins
) -> None:
    assert left(gateway, origins, "https://part.example/strip/x", "part") == {
        "Cookie",
        "Authorization",
        "X-Kept",
    }
    assert left(gateway, origins, "https://part.example/x", "rest") == set(SENT)


def test_the_injected_header_stays_where_the_clients_own_is_removed(
    gateway: Gateway, origins: Origins
) -> None:
    assert left(gateway, origins, "https://key.example/x", "whole") == {"X-Kept"}
    assert origins.seen[-1].values("Authorization") == [f"Bearer {TOKEN}"]


def test_a_rewritten_request_loses_them_too(gateway: Gateway, origins: Origins) -> None:
    for path in ("/r/x", "/x"):
        assert "Cookie" not in left(
            gateway, origins, f"https://front.example{path}", "front"
        )
    assert origins.urls() == ["https://back.example/r/x", "https://front.example/x"]


def test_a_header_that_is_not_rendered_yet_denies_until_it_is(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY, secrets=SECRETS).start()
    gateway.renders = False
    gateway.write(
        "policy.yaml",
        POLICY.replace("[Cookie]", "[Cookie, X-New]").replace("Key]", "Key, X-Other]"),
    )
    wait_for(
        lambda: curl(gateway, "http://front.example/x").status == 403,
        "the edit to be in force",
    )
    for url in (
        "https://front.example/x",
        "https://front.example/r/x",
        "http://part.example/strip/x",
    ):
        denied(gateway, origins, url, "not-rendered")
    allowed(gateway, origins, "https://part.example/x", "rest")
    allowed(gateway, origins, "https://whole.example/x", "whole")
    gateway.render()
    gateway.reconfigure()
    wait_for(
        lambda: answer(gateway, "http://front.example/x").status == 200,
        "Squid to know the header",
    )
