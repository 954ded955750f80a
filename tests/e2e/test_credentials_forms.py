"""Forms of credentials on a live Squid: headers of any name, and parameters of the
query.
"""

import pytest

from squidkeeper.policy.language.headers import spellings
from tests.waiting import wait_for

from .curl import answer, curl
from .gateway import Gateway
from .origin import Answer, Origins
from .raw import tunnel

POLICY = """
version: 1
rules:
  - {name: all, action: allow, hosts: [acme.example, pair.example, front.example, back.example]}
  - {name: queries, action: allow, hosts: [query.example, ahead.example, behind.example, away.example]}
  - {name: failing, action: allow, hosts: [missing.example, refused.example]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://back.example/moved{path}{query}"}
  - {name: ahead, hosts: [ahead.example], to: "https://behind.example/moved{path}{query}"}
  - {name: away, hosts: [away.example], paths: [/old/**], to: "https://away.example/new{path}{query}", redirect: 308}
secrets:
  key: {file: secrets/key}
  odd: {file: secrets/odd}
  missing: {file: secrets/missing}
credentials:
  - {name: acme, hosts: [acme.example], paths: [/v1/**], header: X-Acme-Key, value: "{key}"}
  - {name: odd, hosts: [acme.example], paths: [/odd], header: X-Acme-Key, value: "a {{{odd}}}"}
  - name: pair
    hosts: [pair.example]
    headers: {Verdict: "allow {{}}", X-Acme-Key: "{key}", Authorization: "Bearer {odd}"}
  - {name: query, hosts: [query.example], paths: [/v1/**], parameters: {api_key: "{key}"}}
  - {name: beside, hosts: [query.example], paths: [/v1/both], bearer: odd}
  - {name: behind, hosts: [behind.example, away.example], parameters: {key: "{key}"}}
  - {name: missing, hosts: [missing.example], parameters: {key: "{missing}"}}
  - {name: refused, hosts: [refused.example], parameters: {key: "{key}"}}
  - {name: back, hosts: [back.example], header: x-acme-key, value: "{key}"}
"""
KEY = "e2e-forms-key-0123456789"
ODD = r"""e2e forms "quoted" back\slash %41 {braces} 'single' &;=+#?"""

SECRETS = {"key": KEY + "\n", "odd": ODD}


# --- headers of any name --------------------------------------------------------------

ARRIVES = [[KEY]]  # one request, with our value alone
REFUSED: list[list[str]] = []  # Squid refuses the header itself
HOSTILE = {
    ("Connection: x-acme-key",): ARRIVES,
    ("Connection: close, X-Acme-Key, authorization", "X-Acme-Key: mine"): ARRIVES,
    ("Proxy-Connection: x-acme-key", "Keep-Alive: x-acme-key"): ARRIVES,
    ("X-Acme-Key: mine", "x-acme-key: mine", "X-ACME-KEY:mine"): ARRIVES,
    tuple(f"{name}: mine" for name in spellings("X-Acme-Key")): ARRIVES,
    ("X-Acme-Key : mine",): REFUSED,
    ("X-Other: 1\r\n X-Acme-Key: mine",): ARRIVES,  # obs-fold
    ("X-Acme-Key: \r\n mine",): ARRIVES,
    ("X-Acme-Key;: mine", "X-Acme-Key\t: mine"): REFUSED,
}


@pytest.mark.parametrize(
    ("headers", "expected"), HOSTILE.items(), ids=map(str, HOSTILE)
)
def test_a_header_of_any_name_arrives_once_whatever_the_client_sends(
    gateway: Gateway,
    origins: Origins,
    headers: tuple[str, ...],
    expected: list[list[str]],
) -> None:
    with tunnel(gateway, "acme.example:443") as client:
        client.get("/v1/x", "acme.example", *headers)
    names = set(spellings("x-acme-key"))
    arrived = [
        [value for name, value in seen.headers if name.lower() in names]
        for seen in origins.seen
    ]
    assert arrived == expected


def test_a_trailer_cannot_replace_what_is_injected(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "acme.example:443") as client:
        head = "POST /v1/x HTTP/1.1\r\nHost: acme.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Acme-Key\r\n\r\n"
        client.send(head + "1\r\na\r\n0\r\nX-Acme-Key: mine\r\n\r\n").answer()
    [seen] = origins.seen
    assert seen.values("X-Acme-Key") == [KEY]
    assert b"mine" not in seen.head + seen.body


def test_a_kept_alive_tunnel_gets_it_only_where_it_belongs(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "acme.example:443") as client:
        for target in ("/v1/a", "/other", "/odd", "/v1/b"):
            client.get(
                target,
                "acme.example",
                *(() if target == "/odd" else ("X-Acme-Key: mine",)),
            )
    assert [seen.values("X-Acme-Key") for seen in origins.seen] == [
        [KEY],
        ["mine"],
        [f"a {{{ODD}}}"],
        [KEY],
    ]


def test_several_headers_of_any_name_arrive_together(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://pair.example/", "-H", "Verdict: deny", "--range", "0-1")
    seen = origins.seen[0]
    assert seen.values("Verdict") == ["allow {}"]
    assert seen.values("X-Acme-Key") == [KEY]
    assert seen.values("Authorization") == [f"Bearer {ODD}"]
    line = gateway.logged("https://pair.example/")
    assert (line["verdict"], line["rule"], line["credential"]) == (
        "allow",
        "all",
        "pair",
    )


def test_it_follows_a_rewrite_and_never_goes_over_http_nor_along_a_redirect(
    gateway: Gateway, origins: Origins
) -> None:
    origins.answers["back.example/moved/x"] = Answer(
        302, headers={"Location": "https://acme.example/other"}
    )
    curl(gateway, "http://front.example/x", "--location")
    curl(gateway, "http://acme.example/v1/x")
    assert origins.urls() == [
        "https://back.example/moved/x",
        "https://acme.example/other",
        "http://acme.example/v1/x",
    ]
    assert [seen.values("X-Acme-Key") for seen in origins.seen] == [[KEY], [], []]


# --- parameters of the query ----------------------------------------------------------

ADDED = f"api_key={KEY}"


def test_a_parameter_is_added_ahead_of_the_query_in_a_tunnel_that_keeps_its_server(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "query.example:443") as client:
        assert "query.example" in client.names()
        for target in ("/v1/a", "/v1/a?b=1&c=%2F", "/other?b=1", "/v1/a?"):
            client.get(target, "query.example")
    assert [seen.target for seen in origins.seen] == [
        f"/v1/a?{ADDED}",
        f"/v1/a?{ADDED}&b=1&c=%2F",
        "/other?b=1",
        f"/v1/a?{ADDED}",
    ]
    assert len(origins.connections) == 1


def test_a_parameter_of_the_clients_is_replaced_however_it_is_written(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "query.example:443") as client:
        for own in (
            "api_key=m",
            "API_KEY=m",
            "%61pi_key=m",
            "%2561pi_key=m",
            "api.key[]=m",
            "a=1;+api_key=m",
            "&api_key",
            "api[key=m",
            "api%5bkey=m",
            "api%u005fkey=m",
            "%25252525252561pi_key=m",
        ):
            client.get(f"/v1/x?{own}&rest", "query.example")
    kept = ["rest"] * 5 + ["a=1&rest"] + ["rest"] * 5
    assert [seen.target for seen in origins.seen] == [
        f"/v1/x?{ADDED}&{rest}" for rest in kept
    ]


def test_a_parameter_is_added_to_the_url_that_is_fetched_beside_a_header_and_never_over_http(
    gateway: Gateway, origins: Origins
) -> None:
    for url in (
        "https://ahead.example/x?y",
        "http://ahead.example/x",
        "http://query.example/v1/x",
    ):
        curl(gateway, url)
    curl(gateway, "https://query.example/v1/both", "--range", "0-1")
    assert origins.urls() == [
        f"https://behind.example/moved/x?key={KEY}&y",
        f"https://behind.example/moved/x?key={KEY}",
        "http://query.example/v1/x",
        f"https://query.example/v1/both?{ADDED}",
    ]
    assert [seen.values("Authorization") for seen in origins.seen] == [
        [],
        [],
        [],
        [f"Bearer {ODD}"],
    ]


def test_the_record_and_explain_show_no_parameter(
    gateway: Gateway, origins: Origins
) -> None:
    url = "https://query.example/v1/record?a=1"
    curl(gateway, url)
    line = gateway.logged(url)
    assert (line["fetched"], line["credential"], line["rule"]) == (
        url,
        "query",
        "queries",
    )
    explained = gateway.command(
        "explain", "--policy", gateway.policy_folder, "GET", url
    ).stdout
    assert "query: ?api_key=" in explained
    assert KEY not in explained


def test_a_redirect_of_the_policy_shows_no_parameter(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(gateway, "https://away.example/old/x?a=1")
    assert (reply.status, reply.header("Location")) == (
        308,
        "https://away.example/new/old/x?a=1",
    )
    assert origins.seen == []
    curl(gateway, "https://away.example/new/x")
    assert origins.urls() == [f"https://away.example/new/x?key={KEY}"]


def test_a_parameter_that_is_unavailable_or_too_long_denies(
    gateway: Gateway, origins: Origins
) -> None:
    for url in ("https://missing.example/x", f"https://query.example/v1/{'x' * 7_990}"):
        reply = curl(gateway, url)
        assert (reply.status, reply.rule) == (403, "credential-unavailable")
    assert origins.seen == []


def test_no_page_about_a_failed_origin_shows_a_parameter(
    gateway: Gateway, origins: Origins
) -> None:
    origins.answers["query.example/v1/broken"] = lambda _: Answer(
        headers={"Content-Length": "not a number"}
    )
    reply = curl(gateway, "https://query.example/v1/broken?a=1")
    assert f"{ADDED}&a=1" in origins.seen[0].target
    assert reply.status == 502
    for accept in ("text/html", "application/json", "text/plain"):
        for url in (
            "https://query.example/v1/broken",
            "https://query.example:444/v1/x",
            "https://refused.example/",
        ):
            origins.untrusted.add("refused.example")
            shown = curl(gateway, url, "-H", f"Accept: {accept}", "--insecure")
            assert shown.status >= 400
            assert KEY not in f"{shown.headers}{shown.text}"


def rules_on(gateway: Gateway, url: str) -> set[str]:
    return {line["rule"] for line in gateway.log() if line["url"] == url}


def test_a_header_that_is_not_rendered_denies_until_it_is(
    gateway: Gateway, origins: Origins
) -> None:
    text = POLICY.replace(
        "rules:\n", "rules:\n  - {name: new, action: allow, hosts: [new.example]}\n", 1
    )
    added = "  - {name: new, hosts: [new.example], headers: {X-New-Key: '{key}', Authorization: a}}\n"
    gateway.renders = False
    gateway.write("policy.yaml", text + added)
    wait_for(
        lambda: curl(gateway, "https://new.example/").rule == "not-rendered",
        "the new policy",
    )
    assert curl(gateway, "https://acme.example/v1/x").status == 200
    assert "new.example" not in "".join(origins.urls())
    wait_for(
        lambda: "not-rendered" in rules_on(gateway, "https://new.example/"),
        "the line of the denial",
    )
    gateway.render()
    gateway.reconfigure()
    wait_for(
        lambda: answer(gateway, "https://new.example/").status == 200,
        "the lines to be read",
    )
    assert origins.seen[-1].values("X-New-Key") == [KEY]
