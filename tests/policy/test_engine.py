"""The decision: what each field, section and built-in rule of the policy language does
to a request.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.policy.engine import Decision, Stage, decide
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.protocol.request import parse_request, request_to
from squidkeeper.policy.url import Host

from ..conftest import NOW, Ask, compiled_of, decided

AskerFactory = Callable[[str], Ask]


def said(decision: Decision) -> str:
    return f"{decision.action} by {decision.rule}"


POLICY = """
clients:
  agents: {networks: [192.168.137.0/24, "fd00:137::/64"]}
  bot: {users: [ci-bot]}
  both: {networks: [192.0.2.0/24], users: [dev]}
rules:
  - {name: no-tree, action: deny, hosts: [.wikipedia.org]}
  - {name: label, action: allow, hosts: ["*.label.example"]}
  - {name: under, action: allow, hosts: ["**.under.example"]}
  - {name: exact, action: allow, hosts: [exact.example, bücher.example]}
  - {name: network, action: allow, hosts: [203.0.113.0/24, "2001:db8::/64"]}
  - {name: no-admin, action: deny, hosts: [api.example], paths: [/admin/**, /**/secret]}
  - {name: no-debug, action: deny, hosts: [api.example], query: {debug: "1*"}}
  - {name: read, action: allow, hosts: [api.example], methods: [GET, HEAD], paths: [/v1/*, "/v2/**", /one]}
  - {name: search, action: allow, hosts: [api.example], paths: [/search], query: {q: "a*", lang: en}}
  - {name: regex, action: allow, hosts: [api.example], paths: ['regex:/r/[0-9]+']}
  - {name: odd-port, action: allow, hosts: [ports.example], ports: [8443, "9000-9001"]}
  - {name: no-ports, action: deny, hosts: [closed.example]}
  - {name: only-http, action: allow, hosts: [plain.example], schemes: [http]}
  - {name: of-agents, action: allow, hosts: [clients.example], clients: [agents]}
  - {name: of-bot, action: allow, hosts: [clients.example], clients: [bot, both]}
  - {name: window, action: allow, hosts: [window.example], expires: 2026-12-01T18:00:00Z}
  - {name: inside, action: allow, hosts: [registry.internal, 10.0.0.0/8], ports: [443, 8443], private: true}
  - {name: scoped, action: allow, hosts: [npm.example], paths: ["/@acme%2f*", /plain]}
"""

TABLE = {
    # hosts
    "GET https://en.wikipedia.org/": "deny by no-tree",
    "GET https://wikipedia.org/": "deny by no-tree",
    "GET https://notwikipedia.org/": "deny by default",
    "GET https://a.label.example/": "allow by label",
    "GET https://label.example/": "deny by default",
    "GET https://a.b.label.example/": "deny by default",
    "GET https://a.under.example/": "allow by under",
    "GET https://a.b.under.example/": "allow by under",
    "GET https://under.example/": "deny by default",
    "GET https://EXACT.example./": "allow by exact",
    "GET https://a.exact.example/": "deny by default",
    "GET https://BÜCHER.example/": "allow by exact",
    "GET https://xn--bcher-kva.example/": "allow by exact",
    "GET https://b%C3%BCcher.example/x": "allow by exact",  # as Squid logs it
    "GET http://203.0.113.9/": "allow by network",
    "GET http://3405803777/": "allow by network",
    "GET https://[2001:db8::5]/": "allow by network",
    "GET https://203.0.114.9/": "deny by default",
    # paths
    "GET https://api.example/v1/x": "allow by read",
    "GET https://api.example/v1/x/y": "deny by default",
    "GET https://api.example/v1/": "allow by read",
    "GET https://api.example/v1": "deny by default",
    "GET https://api.example/v1x": "deny by default",
    "GET https://api.example/v2/": "allow by read",
    "GET https://api.example/v2/a/b": "allow by read",
    "GET https://api.example/V2/a": "deny by default",
    "GET https://api.example/%76%32/a": "allow by read",
    "GET https://api.example/one": "allow by read",
    "GET https://api.example/one/": "deny by default",
    "GET https://api.example/one?x=1": "allow by read",
    "GET https://api.example/r/12": "allow by regex",
    "GET https://api.example/r/12/x": "deny by default",
    "GET https://api.example/secret": "deny by no-admin",
    "GET https://api.example/v2/a/secret": "deny by no-admin",
    "GET https://api.example/admin": "deny by default",
    "GET https://api.example/admin/": "deny by no-admin",
    # readings
    "GET https://api.example/v2/../admin/x": "deny by ambiguous-path",
    "GET https://api.example/v2/%2e%2e/admin/x": "deny by ambiguous-path",
    "GET https://api.example/v2/..%2fadmin/x": "deny by ambiguous-path",
    "GET https://api.example/v2/..%5cadmin/x": "deny by ambiguous-path",
    "GET https://api.example/v2/..;/admin/x": "deny by ambiguous-path",
    "GET https://api.example/v2//../admin/x": "deny by ambiguous-path",
    "GET https://api.example/v2/%252e%252e/admin/x": "deny by ambiguous-path",
    "GET https://api.example/v2//secret": "deny by no-admin",
    "GET https://api.example/v2/a/../b": "allow by read",
    "GET https://api.example/v2/a%2fb": "allow by read",
    "GET https://api.example/v2;x/secret": "deny by no-admin",
    "GET https://api.example//v2/a": "deny by ambiguous-path",
    "GET https://npm.example/@acme%2fname": "allow by scoped",
    "GET https://npm.example/@acme%2Fname": "allow by scoped",
    "GET https://npm.example/@acme/name": "deny by default",
    "GET https://npm.example/@acme%2f..%2f@other%2fname": "deny by ambiguous-path",
    "GET https://exact.example/a/../../b//c%2f..": "allow by exact",
    # methods
    "HEAD https://api.example/one": "allow by read",
    "POST https://api.example/one": "deny by default",
    "get https://api.example/one": "deny by default",
    "TRACE https://exact.example/": "deny by invalid-request",
    "TRACK https://exact.example/": "deny by invalid-request",
    "track https://exact.example/": "deny by invalid-request",
    "BREW https://exact.example/": "allow by exact",
    # query
    "GET https://api.example/search?q=abc&lang=en": "allow by search",
    "GET https://api.example/search?lang=en&q=a%62c": "allow by search",
    "GET https://api.example/search?q=abc": "deny by default",
    "GET https://api.example/search?q=abc&q=b&lang=en": "deny by default",
    "GET https://api.example/search?q=abc&lang=en&debug=10": "deny by no-debug",
    "GET https://api.example/search?q=abc&lang=en&debug=0&debug=1": "deny by no-debug",
    "GET https://api.example/search?q=abc&lang=en&de%62ug=1": "deny by no-debug",
    # ports and schemes
    "GET https://exact.example:443/": "allow by exact",
    "GET http://exact.example/": "allow by exact",
    "GET http://exact.example:443/": "deny by default",
    "GET https://exact.example:80/": "deny by default",
    "GET https://ports.example:8443/": "allow by odd-port",
    "GET http://ports.example:9001/": "allow by odd-port",
    "GET https://ports.example/": "deny by default",
    "GET https://ports.example:9002/": "deny by default",
    "GET https://closed.example:1234/": "deny by no-ports",
    "GET http://plain.example/": "allow by only-http",
    "GET https://plain.example/": "deny by default",
    "GET ftp://exact.example/": "deny by invalid-request",
    # private addresses
    "GET https://registry.internal:8443/": "allow by inside",
    "GET https://10.1.2.3/": "allow by inside",
    "GET https://0xa.1.2.3/": "allow by inside",
    "GET http://10.1.2.3/": "deny by default",
    # not requests
    "GET https://user@exact.example/": "deny by invalid-request",
    "GET https://exact.example/#x": "deny by invalid-request",
    "GET https://exact.example/%00": "deny by invalid-request",
    "GET https://exact.example/%ff": "deny by invalid-request",
    "GET https://exact.example:0/": "deny by invalid-request",
    "GET https://exact..example/": "deny by invalid-request",
    "GET /path": "deny by invalid-request",
    # tunnels
    "CONNECT exact.example:443": "allow by exact",
    "CONNECT exact.example:22": "deny by default",
    "CONNECT exact.example:80": "deny by default",
    "CONNECT en.wikipedia.org:443": "deny by no-tree",
    "CONNECT en.wikipedia.org:22": "deny by no-tree",
    "CONNECT api.example:443": "allow by read",
    "CONNECT plain.example:443": "deny by default",
    "CONNECT ports.example:9000": "allow by odd-port",
    "CONNECT 10.0.0.1:443": "allow by inside",
    "CONNECT 192.168.0.1:443": "deny by default",
    "CONNECT exact.example": "deny by invalid-request",
}


@pytest.fixture
def ask(asker: AskerFactory) -> Ask:
    return asker(POLICY)


def test_every_request_of_the_table_is_decided_as_the_language_says(ask: Ask) -> None:
    assert {asked: said(ask(asked)) for asked in TABLE} == TABLE


@pytest.mark.parametrize(
    ("client", "user", "expected"),
    [
        ("192.168.137.10", None, "allow by of-agents"),
        ("::ffff:192.168.137.10", None, "allow by of-agents"),
        ("fd00:137::1", None, "allow by of-agents"),
        ("192.168.138.10", None, "deny by default"),
        (None, None, "deny by default"),
        ("192.168.138.10", "ci-bot", "allow by of-bot"),
        ("192.168.138.10", "dev", "deny by default"),
        ("192.0.2.1", None, "deny by default"),
        ("192.0.2.1", "dev", "allow by of-bot"),
        ("192.0.2.1", "DEV", "deny by default"),
    ],
)
def test_a_client_is_its_networks_and_its_users(
    ask: Ask, client: str, user: str, expected: str
) -> None:
    assert said(ask("GET https://clients.example/", client, user)) == expected


def test_an_expired_rule_no_longer_matches(ask: Ask) -> None:
    ends = datetime(2026, 12, 1, 18, tzinfo=UTC)
    assert (
        said(ask("GET https://window.example/", at=ends - timedelta(seconds=1)))
        == "allow by window"
    )
    assert said(ask("GET https://window.example/", at=ends)) == "deny by default"


def test_a_denial_gives_the_rules_reason_or_the_defaults(asker: AskerFactory) -> None:
    ask = asker("""
    defaults: {reason: Ask the platform team.}
    rules:
      - {name: closed, action: deny, hosts: [a.example], reason: Closed on purpose.}
      - {name: silent, action: deny, hosts: [b.example]}
    """)
    assert ask("GET https://a.example/").reason == "Closed on purpose."
    assert ask("GET https://b.example/").reason == "The rule silent denies this."
    assert ask("GET https://c.example/").reason == "Ask the platform team."


def test_a_default_that_allows_opens_standard_ports_and_public_addresses_only(
    asker: AskerFactory,
) -> None:
    ask = asker("defaults: {action: allow}")
    assert said(ask("GET https://a.example/")) == "allow by default"
    assert said(ask("GET http://a.example:8080/")) == "deny by default"
    assert said(ask("CONNECT a.example:22")) == "deny by default"
    assert said(ask("CONNECT 127.0.0.1:443")) == "deny by private-address"
    for host in (
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        "[fe80::1]",
    ):
        assert said(ask(f"GET http://{host}/")) == "deny by private-address"
    assert not ask("GET https://a.example/").private


def test_hosts_that_the_same_entries_hold_for_are_each_asked_whether_they_are_private(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(
        tmp_path,
        "defaults: {action: allow}\nrules: [{name: r, action: allow, hosts: [c.example]}]",
    )
    for _ in range(2):  # the second time by what is kept from the first
        for asked in ("GET http://{}/", "CONNECT {}:443"):
            for host, verdict in (
                ("10.0.0.1", "deny by private-address"),
                ("a.example", "allow by default"),
            ):
                decision = decided(
                    compiled, request_to(*asked.format(host).split(" ")), NOW
                )
                assert (said(decision), host in (decision.reason or "")) == (
                    verdict,
                    host == "10.0.0.1",
                )


@pytest.mark.parametrize(
    "pattern", [".a.example", "*.a.example", "**.a.example", "b.a.example", "*"]
)
def test_a_list_of_one_form_holds_as_a_rule_of_that_form_does(
    tmp_path: Path, pattern: str
) -> None:
    (tmp_path / "list.txt").write_text(f"{pattern}\nother.test\n")
    compiled = compiled_of(
        tmp_path,
        "lists: {l: {file: list.txt}}\nrules: [{name: r, action: deny, lists: [l]}]",
    )
    for host in ("a.example", "b.a.example", "c.b.a.example", "example", "other.test"):
        expected = host == "other.test" or parse_host_pattern(pattern).matches(
            Host(host)
        )
        assert (
            decided(compiled, request_to("GET", f"https://{host}/"), NOW).rule == "r"
        ) is expected


def test_what_a_policy_caches_is_bounded(tmp_path: Path) -> None:
    kept: BoundedCache[str, int] = BoundedCache(1000)
    for number in range(100):
        kept.add(str(number), number, 90)
        assert kept.get(str(number)) == number
        assert len(kept) <= 11
    kept.add("too large", 0, 1001)
    assert kept.get("too large") is None
    compiled = compiled_of(
        tmp_path, "rules: [{name: r, action: allow, hosts: [a.example]}]"
    )
    for number in range(10_000):
        decided(
            compiled,
            request_to(f"M{number}", "http://a.example/", user=f"user{number}"),
            NOW,
        )
    assert max(len(compiled._candidates), len(compiled._decisions)) < 5_000


def test_methods_that_a_client_makes_up_have_what_is_kept_in_common(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(
        tmp_path,
        """
        rules: [{name: read, action: allow, hosts: [a.example], methods: [PROPFIND]}, {name: r, action: allow}]
        secrets: {token: {env: TOKEN}}
        credentials: [{name: c, hosts: [a.example], bearer: token}]
        """,
    )
    kept = {}
    for method in (
        "M1",
        "M2",
        "POST",
        "propfind",
        "Propfind",
        "PROPFIND",
        "GET",
        "OPTIONS",
        "CONNECT",
    ):
        request = request_to(
            method, "a.example:443" if method == "CONNECT" else "https://a.example/"
        )
        kept[method] = id(compiled.match(request).candidates)
    assert len({kept.pop("M1"), kept.pop("M2"), kept.pop("POST")}) == 1
    assert kept.pop("propfind") == kept.pop("Propfind")
    assert len(set(kept.values())) == len(kept)


@pytest.mark.parametrize("method", ["PATCH", "patch", "Patch", "PATCh"])
def test_a_deny_holds_for_a_method_in_any_case_and_an_allow_as_it_is_written(
    asker: Callable[[str], Ask], method: str
) -> None:
    rules = """
        rules:
          - {{name: closed, action: deny, hosts: [a.example], methods: [PATCH]}}
          - {{name: open, action: allow, hosts: [{}]}}
          - {{name: patch, action: allow, hosts: [b.example], methods: [PATCH]}}
    """
    assert (
        asker(rules.format("a.example"))(f"{method} https://a.example/").rule
        == "closed"
    )
    assert asker(rules.format("c.example"))(f"{method} https://b.example/").allowed is (
        method == "PATCH"
    )


# --- one authority --------------------------------------------------------------------

STATED = ("client", "user", "method", "scheme", "host", "port", "sni", "tunnel")
SAME = dict(
    zip(
        STATED,
        (None, None, "GET", "https", "a.example", "443", None, "a.example:443"),
        strict=True,
    )
)
AUTHORITIES: dict[str, list[dict[str, str | None]]] = {
    "allow by a": [
        {},
        {"sni": "a.example"},
        {"sni": "A.EXAMPLE."},
        {"tunnel": "A.example:443", "host": "A.EXAMPLE."},
        {"scheme": "http", "port": "80", "tunnel": None, "url": "http://a.example/"},
    ],
    "deny by authority-mismatch": [
        {"sni": "b.example"},
        {"sni": "a.example\nb.example"},
        {"sni": "a.example\x00"},
        {"tunnel": "b.example:443"},
        {"tunnel": "a.example:8443"},
        {"tunnel": "a.example"},
        {"tunnel": "a.example:443 denied"},
        {"port": "8443", "url": "https://a.example:8443/"},
        {"scheme": "http", "port": "80", "url": "http://a.example/"},
        {"method": "CONNECT", "scheme": None, "url": None},
        {"method": "CONNECT", "scheme": None, "url": None, "sni": "b.example"},
    ],
    "deny by invalid-request": [
        {"tunnel": None},
        {"scheme": "http", "url": "http://a.example:443/"},
        {"method": "CONNECT", "scheme": None, "url": None, "sni": "a.example"},
        {
            "method": "CONNECT",
            "scheme": None,
            "url": None,
            "sni": "a.example",
            "tunnel": None,
        },
        {
            "method": "CONNECT",
            "scheme": None,
            "url": None,
            "sni": "a.example",
            "tunnel": "b.example:443",
        },
        {"host": "a.example\x00"},
        {"host": "a.example\r\n"},
        {"host": ""},
        {"port": ""},
        {"scheme": None},
        {"client": "nobody"},
        {"url": "https://b.example/"},
        {"url": "https://a.example:8443/"},
        {"url": "http://a.example/"},
    ],
}


@pytest.mark.parametrize(
    ("expected", "changes"),
    [(expected, changes) for expected, rows in AUTHORITIES.items() for changes in rows],
)
def test_connect_sni_and_request_have_to_name_one_host(
    tmp_path: Path, expected: str, changes: dict[str, str | None]
) -> None:
    compiled = compiled_of(
        tmp_path,
        "rules: [{name: a, action: allow, hosts: [a.example], ports: [80, 443, 8443]}]",
    )
    url = changes.get("url", "https://a.example/")
    request = parse_request(
        [changes.get(name, SAME[name]) for name in STATED] + [None], url
    )
    assert said(decided(compiled, request, NOW)) == expected


# --- passthrough ----------------------------------------------------------------------

PASSTHROUGH = """
clients:
  all: {networks: [192.0.2.0/24]}
  seen: {networks: [192.0.2.1/32]}
  injected: {networks: [192.0.2.2/32]}
  rewritten: {networks: [192.0.2.3/32]}
rules:
  - {name: no-x, action: deny, clients: [seen], hosts: [a.example], paths: [/x]}
  - {name: pinned, action: allow, clients: [all], hosts: [a.example, 203.0.113.7], tls: passthrough, private: true}
  - {name: below, action: allow, hosts: [a.example], ports: [443, 8443]}
rewrites:
  - {name: away, clients: [rewritten], hosts: [a.example], paths: [/old], to: "https://b.example{path}"}
secrets: {s: {env: S}}
credentials:
  - {name: token, clients: [injected], hosts: [a.example], paths: [/new], bearer: s}
"""


@pytest.mark.parametrize(
    ("client", "authority", "passes"),
    [
        ("192.0.2.9", "a.example:443", True),
        ("192.0.2.9", "A.Example.:443", True),
        ("192.0.2.9", "203.0.113.7:443", True),
        ("192.0.2.9", "a.example:8443", False),
        (
            "192.0.2.1",
            "a.example:443",
            False,
        ),  # these belong to two clients, and something has to see their requests
        ("192.0.2.2", "a.example:443", False),
        ("192.0.2.3", "a.example:443", False),
        ("198.51.100.1", "a.example:443", False),
    ],
)
def test_a_tunnel_passes_through_only_where_nothing_has_to_see_its_requests(
    tmp_path: Path, client: str, authority: str, passes: bool
) -> None:
    compiled = compiled_of(tmp_path, PASSTHROUGH)
    decision = decided(compiled, request_to("CONNECT", authority, client), NOW)
    assert (decision.allowed, decision.passthrough) == (True, passes)


@pytest.mark.parametrize(
    ("sni", "tunnel", "expected"),
    [
        ("a.example", "a.example:443", "allow by pinned"),
        ("A.example.", "A.EXAMPLE.:443", "allow by pinned"),
        ("b.example", "a.example:443", "deny by authority-mismatch"),
        ("a.example\x00", "a.example:443", "deny by authority-mismatch"),
        ("203.0.113.7", "a.example:443", "deny by authority-mismatch"),
        (None, "a.example:443", "deny by authority-mismatch"),
        ("a.example", "b.example:443", "deny by invalid-request"),
        ("a.example", "a.example:8443", "deny by invalid-request"),
        ("a.example", "a.example:443 denied", "deny by invalid-request"),
        ("a.example", None, "deny by invalid-request"),
    ],
)
def test_the_second_question_about_a_connect_is_about_the_same_host(
    tmp_path: Path, sni: str | None, tunnel: str | None, expected: str
) -> None:
    compiled = compiled_of(tmp_path, PASSTHROUGH)
    asked = parse_request(
        ["192.0.2.9", None, "CONNECT", None, "a.example", "443", sni, tunnel, None]
    )
    assert said(decided(compiled, asked, NOW)) == expected


def test_plain_http_does_not_pass_through(tmp_path: Path) -> None:
    compiled = compiled_of(tmp_path, PASSTHROUGH)
    assert (
        said(
            decided(compiled, request_to("GET", "http://a.example/", "192.0.2.9"), NOW)
        )
        == "deny by default"
    )
    assert (
        said(
            decided(compiled, request_to("GET", "https://a.example/", "192.0.2.9"), NOW)
        )
        == "allow by pinned"
    )


# --- WebSockets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected", "upgrades"),
    [
        ("/live/x", "allow by live", True),
        ("/rest/x", "allow by rest", False),
        ("/live/..%2frest/x", "deny by ambiguous-path", False),
        ("/rest/..%2flive/x", "deny by ambiguous-path", False),
    ],
)
def test_a_websocket_passes_where_every_reading_of_the_path_allows_it(
    tmp_path: Path, path: str, expected: str, upgrades: bool
) -> None:
    compiled = compiled_of(
        tmp_path,
        """
        rules:
          - {name: live, action: allow, hosts: [a.example], paths: [/live/**], websocket: true}
          - {name: rest, action: allow, hosts: [a.example]}
        """,
    )
    decision = decided(compiled, request_to("GET", f"https://a.example{path}"), NOW)
    assert (said(decision), decision.websocket) == (expected, upgrades)


# --- what is known without the URL ----------------------------------------------------


def at_host(
    ask_text: str, tmp_path: Path, asked: str = "GET https://a.example/"
) -> Decision:
    compiled = compiled_of(tmp_path, ask_text)
    method, _, url = asked.partition(" ")
    return decide(compiled, compiled.match(request_to(method, url)), NOW, Stage.HOST)


@pytest.mark.parametrize(
    ("rules", "expected", "needs_url"),
    [
        ("[{name: r, action: allow, hosts: [a.example]}]", "allow by r", False),
        (
            "[{name: r, action: allow, hosts: [a.example], methods: [GET]}]",
            "allow by r",
            False,
        ),
        (
            "[{name: r, action: allow, hosts: [a.example], methods: [POST]}]",
            "deny by default",
            False,
        ),
        (
            "[{name: r, action: allow, hosts: [a.example], paths: [/x, /**]}]",
            "allow by r",
            False,
        ),
        (
            "[{name: r, action: allow, hosts: [a.example], paths: [/x]}]",
            "allow by r",
            True,
        ),
        (
            "[{name: r, action: deny, hosts: [a.example], query: {a: b}}]",
            "allow by r",
            True,
        ),
        (
            "[{name: d, action: deny, hosts: [a.example]}, {name: r, action: allow, hosts: [a.example], paths: [/x]}]",
            "deny by d",
            False,
        ),
        (
            "[{name: r, action: allow, hosts: [b.example], paths: [/x]}]",
            "deny by default",
            False,
        ),
    ],
)
def test_the_url_is_asked_for_only_where_it_decides(
    tmp_path: Path, rules: str, expected: str, needs_url: bool
) -> None:
    decision = at_host(f"rules: {rules}", tmp_path)
    assert (said(decision), decision.outlook.needs_url) == (expected, needs_url)


@pytest.mark.parametrize(
    ("rules", "unrestricted"),
    [
        (["action: allow"], True),
        (["action: allow, paths: [/**]"], True),
        (["action: allow, paths: [/x]", "action: allow"], False),
        (["action: allow, methods: [GET]"], False),
        (["action: deny, methods: [POST]", "action: allow"], False),
        (["action: deny, ports: [8443]", "action: allow"], True),
    ],
)
def test_a_host_is_unrestricted_where_every_url_and_method_is_allowed(
    tmp_path: Path, rules: list[str], unrestricted: bool
) -> None:
    entries = [
        f"{{name: r{number}, hosts: [a.example], {fields}}}"
        for number, fields in enumerate(rules)
    ]
    for method in ("GET", "POST", "PUT", "MADE-UP"):
        asked = f"{method} https://a.example/"
        assert (
            at_host(
                f"rules: [{', '.join(entries)}]", tmp_path / method, asked
            ).outlook.unrestricted
            is unrestricted
        ), method


@pytest.mark.parametrize(
    ("entries", "varies"),
    [
        ("", False),
        ("credentials: [{name: c, hosts: [a.example], bearer: t}]", False),
        (
            "credentials: [{name: c, hosts: [a.example], paths: [/**], bearer: t}]",
            False,
        ),
        (
            "credentials: [{name: c, hosts: [a.example], paths: [/x/**], bearer: t}]",
            True,
        ),
        (
            "credentials: [{name: c, hosts: [a.example], methods: [GET], bearer: t}]",
            True,
        ),
        (
            "credentials: [{name: c, hosts: [a.example], query: {q: x}, bearer: t}]",
            True,
        ),
        (
            "credentials: [{name: c, hosts: [b.example], paths: [/x/**], bearer: t}]",
            False,
        ),
    ],
)
def test_the_credential_of_an_unrestricted_host_varies_where_it_is_for_a_part_of_it(
    tmp_path: Path, entries: str, varies: bool
) -> None:
    policy = f"rules: [{{name: r, action: allow, hosts: [a.example]}}]\nsecrets: {{t: {{env: T}}}}\n{entries}"
    for method in ("GET", "POST"):
        decision = at_host(policy, tmp_path / method, f"{method} https://a.example/")
        assert (decision.outlook.unrestricted, decision.outlook.credential_varies) == (
            True,
            varies,
        ), method


@pytest.mark.parametrize("part", ["", "methods: [DELETE], ", "paths: [/x/**], "])
def test_a_host_with_a_rewrite_is_not_unrestricted(tmp_path: Path, part: str) -> None:
    rewrite = f"{{name: w, hosts: [a.example], {part}to: 'https://b.example{{path}}'}}"
    policy = f"rules: [{{name: r, action: allow, hosts: [a.example]}}]\nrewrites: [{rewrite}]"
    for method in ("GET", "DELETE"):
        decision = at_host(policy, tmp_path / method, f"{method} https://a.example/")
        assert (decision.outlook.unrestricted, decision.outlook.credential_varies) == (
            False,
            False,
        ), method


CONNECTS = [
    (["action: deny, paths: [/x]", "action: allow"], "allow by r1"),
    (["action: deny", "action: allow"], "deny by r0"),
    (["action: deny, methods: [POST]", "action: allow"], "allow by r1"),
    (["action: allow, paths: [/x]", "action: deny"], "allow by r0"),
    (["action: allow, schemes: [http]"], "deny by default"),
    (["action: allow, methods: [POST], query: {a: b}"], "allow by r0"),
    (
        ["action: deny, query: {a: b}", "action: deny, paths: [/**]", "action: allow"],
        "deny by r1",
    ),
]


@pytest.mark.parametrize(("rules", "expected"), CONNECTS)
def test_a_tunnel_opens_where_a_request_in_it_could_pass(
    tmp_path: Path, rules: list[str], expected: str
) -> None:
    entries = (
        f"{{name: r{number}, hosts: [a.example], {fields}}}"
        for number, fields in enumerate(rules)
    )
    compiled = compiled_of(tmp_path, f"rules: [{', '.join(entries)}]")
    assert (
        said(decided(compiled, request_to("CONNECT", "a.example:443"), NOW)) == expected
    )


def test_a_tunnel_to_a_private_address_opens_where_one_of_the_allows_is_for_private_addresses(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(
        tmp_path,
        """
        rules:
          - {name: public, action: allow, hosts: [10.0.0.1], paths: [/x]}
          - {name: inside, action: allow, hosts: [10.0.0.1], paths: [/y], private: true}
        """,
    )
    decision = decided(compiled, request_to("CONNECT", "10.0.0.1:443"), NOW)
    assert (said(decision), decision.private) == ("allow by public", True)
    assert (
        said(decided(compiled, request_to("GET", "https://10.0.0.1/x"), NOW))
        == "deny by private-address"
    )
    assert (
        said(decided(compiled, request_to("GET", "https://10.0.0.1/y"), NOW))
        == "allow by inside"
    )


# --- rewrites and credentials ---------------------------------------------------------

REWRITES = """
rules:
  - {name: all, action: allow, hosts: ["**.by.example", h.example, t.example, packages.example]}
  - {name: others, action: allow, hosts: [beside.example, public.example]}
  - {name: more, action: allow, hosts: [p.example, api.github.com, github.com]}
rewrites:
  - {name: mirror, hosts: [packages.example], paths: [/simple/**], to: "https://registry.internal/python{path}{query}"}
  - {name: grouped, hosts: [p.example], paths: ['regex:/(?P<a>[^/]+)/(?P<b>.*)'], to: "https://m.example/x/{b}?a={a}{query}"}
  - {name: https-only, schemes: [http], hosts: [h.example], to: "https://{host}{path}{query}", redirect: 308}
  - {name: own, hosts: [own.by.example], to: "https://{host}{path}{query}", redirect: 307}
  - {name: by-host, hosts: ["*.by.example"], to: "https://{host}.mirror.example:8443/m{path}", private: true}
  - {name: to-private, hosts: [t.example], to: "https://10.0.0.1{path}"}
  - {name: beside, hosts: [beside.example], to: "https://registry.example/python{path}"}
  - name: public
    hosts: [public.example]
    paths: ['regex:/r/(?P<owner>[^/]+)/(?P<rest>.*)']
    to: "https://git.example/{owner}/public/{rest}"
secrets: {token: {env: TOKEN}, key: {env: KEY}}
credentials:
  - {name: api, hosts: [api.github.com], paths: [/repos/acme/**], bearer: token}
  - {name: api-rest, hosts: [api.github.com], bearer: key}
  - {name: api-key, hosts: [api.github.com], header: X-Api-Key, value: "{key}"}
  - {name: mirror-key, hosts: [registry.internal], paths: [/python/**], bearer: token}
"""


@pytest.mark.parametrize(
    ("asked", "rewrite", "url"),
    [
        (
            "https://packages.example/simple/x/?y=1",
            "mirror",
            "https://registry.internal/python/simple/x/?y=1",
        ),
        (
            "https://packages.example/simple/@a%2fb",
            "mirror",
            "https://registry.internal/python/simple/@a%2Fb",
        ),
        ("https://packages.example/other", None, None),
        (
            "https://p.example/a%26b/c/d?e=f",
            "grouped",
            "https://m.example/x/c/d?a=a%26b&e=f",
        ),
        ("https://p.example/a+b/c", "grouped", "https://m.example/x/c?a=a%2Bb"),
        ("http://h.example/x?y", "https-only", "https://h.example/x?y"),
        ("https://h.example/x?y", None, None),
        ("https://own.by.example/x?y", None, None),
        ("http://own.by.example/x?y", "own", "https://own.by.example/x?y"),
        (
            "https://a.by.example/x?y",
            "by-host",
            "https://a.by.example.mirror.example:8443/m/x",
        ),
        ("https://beside.example/x/y", "beside", "https://registry.example/python/x/y"),
        ("https://public.example/r/me/x", "public", "https://git.example/me/public/x"),
    ],
)
def test_the_first_rewrite_that_matches_says_where_a_request_is_fetched(
    asker: AskerFactory, asked: str, rewrite: str | None, url: str | None
) -> None:
    decision = asker(REWRITES)(f"GET {asked}")
    rewritten = decision.rewritten
    assert decision.allowed
    assert (rewritten and rewritten.rewrite.name, rewritten and str(rewritten.url)) == (
        rewrite,
        url,
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("https://packages.example/simple/../x", "deny by ambiguous-path"),
        ("https://packages.example/simple/%2e%2e%2f..%2fx", "deny by ambiguous-path"),
        ("https://p.example/a/..%2f..%2fy", "deny by ambiguous-path"),
        ("https://p.example/a/../../y", "deny by ambiguous-path"),
        ("https://a.by.example/..%2fy", "deny by invalid-request"),
        ("https://t.example/", "deny by private-address"),
        # nor beside it, nor out of what stands ahead of a group
        *(
            (f"https://beside.example/{path}", "deny by invalid-request")
            for path in (
                "../python-private/x",
                "..%2fpython-private/x",
                "%2e%2e/pythonic",
            )
        ),
        *(
            (f"https://public.example/r/me/{path}", "deny by invalid-request")
            for path in (
                "../secret/x",
                "%2e%2e/secret/x",
                "..%2fsecret/x",
                "..;/secret/x",
            )
        ),
    ],
)
def test_no_path_leads_a_rewrite_out_of_where_it_points(
    asker: AskerFactory, asked: str, expected: str
) -> None:
    assert said(asker(REWRITES)(f"GET {asked}")) == expected


@pytest.mark.parametrize("tail", ["a" * 8100, "?" + "\u00e9" * 3000])
def test_a_rewrite_makes_no_url_that_squid_cannot_parse(
    asker: AskerFactory, tail: str
) -> None:
    ask = asker("""
        defaults: {action: allow}
        rewrites: [{name: away, hosts: [a.example], to: "https://registry.example/python{path}{query}"}]
    """)
    assert ask("GET https://a.example/" + tail[:1300]).rewritten
    assert said(ask("GET https://a.example/" + tail)) == "deny by invalid-request"


def test_a_reason_holds_only_so_much_of_what_a_client_sent(asker: AskerFactory) -> None:
    reason = asker("defaults: {action: allow}")(f"GET https://{'x' * 30_000}/").reason
    assert reason
    assert len(reason) == 1_000


def test_what_a_rewrite_may_reach_is_its_own_privilege(asker: AskerFactory) -> None:
    ask = asker(REWRITES)
    assert ask("GET https://a.by.example/x").private
    assert not ask("GET https://packages.example/simple/x").private


GRANTED = [
    ("GET https://api.github.com/repos/acme/app", ["api", "api-key"]),
    ("GET https://api.github.com/repos/other/app", ["api-rest", "api-key"]),
    ("POST https://api.github.com/repos/acme/app", ["api", "api-key"]),
    ("OPTIONS https://api.github.com/repos/acme/app", []),
    ("GET http://api.github.com/repos/acme/app", []),
    ("GET https://github.com/acme/app", []),
    ("GET https://packages.example/simple/x/", ["mirror-key"]),
    ("GET https://packages.example/x/", []),
    ("GET http://h.example/x", []),
]


def test_for_each_header_the_first_credential_that_matches_what_is_fetched_is_granted(
    asker: AskerFactory,
) -> None:
    ask = asker(REWRITES)
    for asked, credentials in [*GRANTED, *GRANTED]:  # once more, as it was kept
        decision = ask(asked)
        assert decision.allowed
        assert (asked, [credential.name for credential in decision.credentials]) == (
            asked,
            credentials,
        )


def test_a_path_that_only_some_servers_read_as_the_credentials_is_denied(
    asker: AskerFactory,
) -> None:
    decision = asker(REWRITES)("GET https://api.github.com/repos/acme/..%2fother")
    assert said(decision) == "deny by ambiguous-path"
    assert "plain /repos/other" in (decision.reason or "")


def test_the_reason_of_an_ambiguous_path_does_not_claim_that_decoded_escapes_were_sent(
    ask: Ask,
) -> None:
    reason = ask("GET https://api.example/v2/%2e%2e/admin/x").reason or ""
    assert reason.endswith(": normalized /v2/../admin/x, resolved /admin/x.")


@pytest.mark.parametrize(
    ("asked", "may_rewrite", "may_inject"),
    [
        ("GET https://packages.example/", True, False),
        ("GET http://h.example/", True, False),
        ("GET https://h.example/", False, False),
        ("GET https://api.github.com/", False, True),
        ("GET http://api.github.com/", False, False),
        ("OPTIONS https://api.github.com/", False, False),
    ],
)
def test_squid_asks_for_rewrites_and_credentials_only_where_there_can_be_some(
    tmp_path: Path, asked: str, may_rewrite: bool, may_inject: bool
) -> None:
    decision = at_host(REWRITES, tmp_path, asked)
    assert (decision.outlook.may_rewrite, decision.outlook.may_inject) == (
        may_rewrite,
        may_inject,
    )


@pytest.mark.parametrize(
    ("host", "needed"),
    [("bucket.example", True), ("old.example", True), ("api.example", False)],
)
def test_the_clients_headers_are_needed_where_a_request_may_be_signed(
    tmp_path: Path, host: str, needed: bool
) -> None:
    text = """
    rules: [{name: open, action: allow, hosts: [bucket.example, old.example, api.example]}]
    rewrites: [{name: moved, hosts: [old.example], to: "https://bucket.example{path}"}]
    secrets: {id: {file: id}}
    credentials:
      - {name: api, hosts: [api.example], bearer: id}
      - {name: s3, hosts: [bucket.example], aws_sigv4: {access_key_id: id, secret_access_key: id, region: r}}
    """
    assert (
        at_host(
            textwrap.dedent(text), tmp_path, f"GET https://{host}/"
        ).outlook.needs_headers
        is needed
    )


def test_the_tunnel_of_a_host_with_rewrites_says_so(tmp_path: Path) -> None:
    compiled = compiled_of(tmp_path, REWRITES)
    assert decided(
        compiled, request_to("CONNECT", "packages.example:443"), NOW
    ).outlook.may_rewrite
    assert not decided(
        compiled, request_to("CONNECT", "api.github.com:443"), NOW
    ).outlook.may_rewrite


@pytest.mark.parametrize(
    "ahead", ["", "{name: seen, action: deny, observe: true, hosts: [a.example]}, "]
)
def test_a_rules_verdict_is_made_once_whoever_asks(tmp_path: Path, ahead: str) -> None:
    """A client that makes up methods must not have one made, and kept, for each of
    them.
    """
    compiled = compiled_of(
        tmp_path,
        f"rules: [{ahead}{{name: closed, action: deny, hosts: [a.example], paths: [/x]}}]",
    )
    requests = [request_to(f"M{number}", "http://a.example/x") for number in range(2)]
    first, second = (
        decide(compiled, compiled.match(request), NOW, Stage.URL)
        for request in requests
    )
    assert first is second
