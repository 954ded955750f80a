"""What is legal in a policy but surely unmeant."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squidkeeper.policy.language.lint import lint, open_to_any_client
from squidkeeper.policy.policy_store.loading import build_sources
from squidkeeper.policy.policy_store.sources import read_sources

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "list.txt").write_text(".listed.example\n203.0.113.0/24\n")
    (tmp_path / "secret").touch(0o600)
    return tmp_path


def warnings(directory: Path, text: str, now: datetime = NOW) -> list[str]:
    (directory / "policy.yaml").write_text("version: 1\n" + textwrap.dedent(text))
    policy = build_sources(read_sources(directory, {"S": "s"})).policy
    return [str(warning).replace(f"{directory}/", "") for warning in lint(policy, now)]


def test_a_policy_in_use_throughout_has_no_warning(directory: Path) -> None:
    text = """\
    clients: {a: {users: [u]}, b: {users: [v]}, c: {users: [w]}}
    lists: {l: {file: list.txt}}
    secrets: {s: {env: S}, t: {env: S}}
    rules:
      - {name: r, action: allow, clients: [a], hosts: [.example.co.uk], lists: [l]}
    rewrites:
      - {name: r, clients: [b], to: "https://mirror.example{path}"}
    credentials:
      - {name: c, clients: [c], hosts: ["*.example.com"], value: "{s}{t}"}
    """
    assert warnings(directory, text) == []


def test_what_is_not_used_is_shown_where_it_is_defined(directory: Path) -> None:
    text = "clients: {a: {users: [u]}}\nlists: {l: {file: list.txt}}\nsecrets: {s: {env: S}}\n"
    assert warnings(directory, text) == [
        "policy.yaml:2:11: client 'a' is not used [unused]",
        "policy.yaml:3:9: list 'l' is not used [unused]",
        "policy.yaml:4:11: secret 's' is not used [unused]",
    ]


def test_a_secret_that_requests_are_searched_for_is_used(directory: Path) -> None:
    assert warnings(directory, "defaults: {watch_secrets: true}\nsecrets: {s: {env: S}}\n") == []


def test_a_passthrough_of_every_host_is_shown(directory: Path) -> None:
    text = "rules: [{name: r, action: allow, hosts: ['*'], tls: passthrough}]\n"
    expected = "policy.yaml:2:9: rule 'r' passes the tunnels to every host through, unseen: "
    assert warnings(directory, text) == [f"{expected}expected the hosts that need it [every-host]"]
    assert warnings(directory, text.replace("*", "a.example")) == []


def test_a_websocket_that_cannot_begin_is_shown(directory: Path) -> None:
    text = "rules: [{name: r, action: allow, hosts: [a.example], methods: [POST], websocket: true}]\n"
    expected = "policy.yaml:2:9: rule 'r' never passes a WebSocket, which begins with a GET: its methods leave out GET"
    assert warnings(directory, text) == [f"{expected} [websocket-never]"]
    assert warnings(directory, text.replace("POST", "POST, GET")) == []


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/*", "/a.B/**"])
def test_the_path_of_a_grpc_service_is_shown(directory: Path, path: str) -> None:
    text = f"rules: [{{name: r, action: allow, hosts: [a.example], paths: ['{path}']}}]\n"
    expected = f"policy.yaml:2:9: rule 'r': '{path}' names a gRPC service. gRPC needs HTTP/2, which passes only with "
    remedy = "tls: passthrough and without paths (gRPC-Web and Connect pass over HTTP/1.1) [grpc-path]"
    assert warnings(directory, text) == [expected + remedy]
    assert warnings(directory, text.replace("allow", "deny")) == []


@pytest.mark.parametrize("path", ["/v1/Check", "/files/a.B/Check", "/index.html/x", "/a.B/Check/more", "/A.B/c"])
def test_another_path_is_no_grpc_service(directory: Path, path: str) -> None:
    assert warnings(directory, f"rules: [{{name: r, action: allow, hosts: [a.example], paths: ['{path}']}}]\n") == []


PUSH = "  - {name: push, action: deny, hosts: [git.example], paths: ['/**/git-receive-pack']}\n"
REFUSED_FIRST = {
    "by its query": "query: {service: git-receive-pack}, hosts: [git.example]",
    "by a wider query": "query: {service: 'git-*'}, hosts: [.example]",
    "by the host": "hosts: ['*']",
}
NOT_REFUSED_FIRST = {
    "another service": "query: {service: git-upload-pack}, hosts: [git.example]",
    "another host": "query: {service: git-receive-pack}, hosts: [other.example]",
    "another method": "query: {service: git-receive-pack}, hosts: [git.example], methods: [POST]",
    "fewer clients": "query: {service: git-receive-pack}, hosts: [git.example], clients: [c]",
    "more conditions": "query: {service: git-receive-pack, a: b}, hosts: [git.example]",
    "a part": "query: {service: git-receive-pack}, hosts: [git.example], paths: [/acme/**]",
}
GIT_PATH = (
    "rule 'push': git shows no page for a denied git-receive-pack, only for the request before it: expected a deny with"
    " query: {service: git-receive-pack} for the same hosts, too [git-path]"
)


def with_rule(fields: str, rule: str = PUSH) -> str:
    clients = "clients: {c: {users: [c]}, used: {users: [d]}}\n"
    using = "  - {name: use, action: deny, clients: [c, used], hosts: [unrelated.invalid]}\n"
    return f"{clients}rules:\n{rule}{using}  - {{name: first, action: deny, {fields}}}\n"


@pytest.mark.parametrize("fields", NOT_REFUSED_FIRST.values(), ids=NOT_REFUSED_FIRST)
def test_a_denied_path_of_git_is_shown_unless_the_request_before_it_is_denied(directory: Path, fields: str) -> None:
    [warning] = warnings(directory, with_rule(fields))
    assert warning == f"policy.yaml:4:5: {GIT_PATH}"


@pytest.mark.parametrize("fields", REFUSED_FIRST.values(), ids=REFUSED_FIRST)
def test_a_denied_path_of_git_is_not_shown_where_git_shows_the_page_of_another_rule(
    directory: Path, fields: str
) -> None:
    assert warnings(directory, with_rule(fields)) == []


@pytest.mark.parametrize(
    "rule",
    [
        PUSH.replace("deny", "allow"),
        PUSH.replace("'/**/git-receive-pack'", "'/**/git-receive-pack', '/**/info/refs'"),
        PUSH.replace("git-receive-pack", "git-receive-packs"),
    ],
)
def test_another_rule_about_paths_of_git_is_not_shown(directory: Path, rule: str) -> None:
    assert warnings(directory, with_rule("hosts: [unrelated.example]", rule)) == []


def test_a_lapsed_rule_is_shown(directory: Path) -> None:
    text = "rules: [{name: r, action: allow, expires: 2026-11-24T12:00:00Z}]\n"
    expected = "policy.yaml:2:9: rule 'r' lapsed at 2026-11-24T12:00:00+00:00 and no longer matches [rule-lapsed]"
    assert warnings(directory, text) == [expected]
    assert warnings(directory, text, datetime(2026, 11, 24, 11, 59, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("pattern", "public"),
    [
        ("*.co.uk", True),
        (".co.uk", True),
        ("**.github.io", True),
        ("co.uk", False),
        (".example.co.uk", False),
        (".corp.internal", False),
        ("*.example.com", False),
    ],
)
def test_a_wildcard_over_a_longer_public_suffix_is_shown(directory: Path, pattern: str, public: bool) -> None:
    text = f"""\
    secrets: {{s: {{env: S}}}}
    rules:
      - {{name: deny, action: deny, clients: [c], hosts: ["{pattern}"]}}
      - {{name: allow, action: allow, hosts: ["{pattern}"]}}
    credentials:
      - {{name: c, hosts: ["{pattern}"], bearer: s}}
    clients: {{c: {{users: [u]}}}}
    """
    covers = f"{pattern!r} covers a public suffix, under which anyone can have a host [public-suffix]"
    expected = [f"policy.yaml:5:5: rule 'allow': {covers}", f"policy.yaml:7:5: credential 'c': {covers}"]
    assert warnings(directory, text) == (expected if public else [])


def test_a_credential_for_http_alone_is_never_sent(directory: Path) -> None:
    text = "secrets: {s: {env: S}}\ncredentials: [{name: c, hosts: [a.example], schemes: [http], bearer: s}]\n"
    (warning,) = warnings(directory, text)
    assert warning == ("policy.yaml:3:15: credential 'c' is never sent: its schemes leave out https [never-sent]")


# --- shadowed rules -----------------------------------------------------------------------------------------------

SHADOWED = [
    ("hosts: [a.example]", "hosts: [a.example]"),
    (
        "hosts: [.example.com]",
        "hosts: [example.com, a.example.com, '*.b.example.com', '**.c.example.com', .example.com]",
    ),
    ("hosts: ['**.example.com']", "hosts: [a.example.com, '*.example.com', .a.example.com]"),
    ("hosts: ['*.example.com']", "hosts: ['*.example.com', a.example.com]"),
    ("hosts: ['*']", "hosts: [a.example, 192.0.2.0/24]"),
    ("hosts: ['*']", "clients: [c]"),
    ("reason: all", "hosts: ['*']"),
    ("reason: all", "lists: [l], hosts: [a.example]"),
    ("lists: [l]", "lists: [l]"),
    ("lists: [l]", "hosts: [a.listed.example, 203.0.113.9, 203.0.113.128/25, .b.listed.example]"),
    ("lists: [l], hosts: [a.example]", "lists: [l], hosts: [a.example]"),
    ("hosts: [203.0.112.0/23]", "hosts: [203.0.113.9]"),
    ("hosts: [a.example]", "hosts: [a.example], paths: [/x/**], methods: [GET], query: {a: b}, clients: [c]"),
    ("hosts: [a.example], paths: [/x, /**]", "hosts: [a.example]"),
    ("hosts: [a.example], clients: [c]", "hosts: [a.example], clients: [c]"),
    ("hosts: [a.example], paths: [/x/**, /y]", "hosts: [a.example], paths: [/y, /x/**], methods: [GET]"),
    ("hosts: [a.example], methods: [GET, POST]", "hosts: [a.example], methods: [GET]"),
    ("hosts: [a.example], query: {a: b}", "hosts: [a.example], query: {a: b}"),
    ("hosts: [a.example]", "hosts: [a.example], ports: [1-65535]"),
    ("hosts: [a.example], ports: [443-500, 501-600, 80]", "hosts: [a.example], ports: [450-550]"),
    ("hosts: [a.example], schemes: [https]", "hosts: [a.example], schemes: [https]"),
    ("hosts: [a.example], expires: 2027-01-01T00:00:00Z", "hosts: [a.example], expires: 2027-01-01T00:00:00Z"),
]
NOT_SHADOWED = [
    ("hosts: [a.example]", "hosts: [b.example]"),
    ("hosts: [a.example]", "hosts: [a.example, b.example]"),
    ("hosts: [a.example]", "reason: all"),
    ("hosts: ['*.example.com']", "hosts: [.example.com]"),
    ("hosts: ['*.example.com']", "hosts: [a.b.example.com]"),
    ("hosts: ['**.example.com']", "hosts: [example.com]"),
    ("lists: [l]", "hosts: [203.0.112.0/23]"),
    ("hosts: [.listed.example, 203.0.113.0/24]", "lists: [l]"),
    ("lists: [l]", "lists: [l], hosts: [a.example]"),
    ("hosts: [203.0.113.0/24]", "hosts: ['2001:db8::/32']"),
    ("hosts: [a.example], clients: [c]", "hosts: [a.example]"),
    ("hosts: [a.example], paths: [/x/**]", "hosts: [a.example]"),
    ("hosts: [a.example], paths: [/x/**]", "hosts: [a.example], paths: [/x/**, /y]"),
    ("hosts: [a.example], methods: [GET]", "hosts: [a.example], methods: [GET, POST]"),
    ("hosts: [a.example], query: {a: b}", "hosts: [a.example], query: {a: c}"),
    ("hosts: [a.example], ports: [443]", "hosts: [a.example]"),
    ("hosts: [a.example], ports: [443, 445]", "hosts: [a.example], ports: [443-445]"),
    ("hosts: [a.example], schemes: [https]", "hosts: [a.example]"),
    ("hosts: [a.example], expires: 2027-01-01T00:00:00Z", "hosts: [a.example]"),
    ("hosts: [a.example], expires: 2027-01-01T00:00:00Z", "hosts: [a.example], expires: 2027-01-02T00:00:00Z"),
    ("hosts: [a.example], expires: 2026-01-01T00:00:00Z", "hosts: [a.example], expires: 2027-01-01T00:00:00Z"),
]


def pair(first: str, second: str, action: str = "deny") -> str:
    return f"""\
    clients: {{c: {{users: [u]}}}}
    lists: {{l: {{file: list.txt}}}}
    rules:
      - {{name: first, action: {action}, {first}}}
      - {{name: second, action: {action}, {second}}}
    """


def shadow_warnings(directory: Path, text: str) -> list[str]:
    return [warning for warning in warnings(directory, text) if "can never decide" in warning]


@pytest.mark.parametrize(("first", "second"), SHADOWED)
def test_a_rule_that_an_earlier_one_leaves_nothing_is_shown(directory: Path, first: str, second: str) -> None:
    assert shadow_warnings(directory, pair(first, second)) == [
        "policy.yaml:6:5: rule 'second' can never decide: "
        "'first' (policy.yaml:5:5) decides all it could match [rule-unreachable]"
    ]


@pytest.mark.parametrize(("first", "second"), NOT_SHADOWED)
def test_a_rule_that_still_has_something_to_decide_is_not_shown(directory: Path, first: str, second: str) -> None:
    assert shadow_warnings(directory, pair(first, second)) == []


def with_a_late_deny(allowed: str, denied: str) -> str:
    return pair(allowed, denied, "allow").replace("second, action: allow", "second, action: deny")


@pytest.mark.parametrize(
    ("allowed", "denied"),
    [
        ("hosts: [.corp.example]", "hosts: [payroll.corp.example]"),
        ("hosts: ['*']", "hosts: [pastebin.example]"),
        ("hosts: [.corp.example]", "hosts: [payroll.corp.example], ports: [80, 443]"),
        ("hosts: [a.example], paths: [/x/**], clients: [c]", "hosts: [a.example], paths: [/x/**], clients: [c]"),
    ],
)
def test_a_deny_that_comes_too_late_is_shown(directory: Path, allowed: str, denied: str) -> None:
    text = with_a_late_deny(allowed, denied)
    opens = "'first' (policy.yaml:5:5), above it, opens all it could close [deny-too-late]"
    assert [one for one in warnings(directory, text) if "second" in one] == [
        f"policy.yaml:6:5: rule 'second' closes nothing: {opens}"
    ]


def test_a_deny_that_closes_what_is_open_on_another_port_is_not_shown(directory: Path) -> None:
    text = with_a_late_deny("hosts: [a.example]", "hosts: [a.example]")
    elsewhere = "  - {name: third, action: allow, hosts: ['*'], ports: [8443]}\n"
    for open_elsewhere in (text + elsewhere, f"defaults: {{action: allow}}\n{textwrap.dedent(text)}"):
        assert "second" not in str(warnings(directory, textwrap.dedent(open_elsewhere)))


def test_a_deny_of_a_port_that_nothing_opens_is_not_said_to_come_too_late(directory: Path) -> None:
    text = with_a_late_deny("hosts: [a.example]", "hosts: [a.example], ports: [8443]")
    assert "second" not in str(warnings(directory, text))


def test_a_deny_of_a_method_holds_for_more_spellings_than_an_allow(directory: Path) -> None:
    rule = "hosts: [a.example], methods: [PATCH]"
    assert "second" not in str(warnings(directory, with_a_late_deny(rule, rule)))


@pytest.mark.parametrize("entry", ["rules: [{action: allow, name: r", "rewrites: [{to: 'https://m.example', name: r"])
def test_a_path_that_is_open_on_every_host_is_shown(directory: Path, entry: str) -> None:
    holds = "holds for every host, as it names none: if that is meant, write hosts: ['*'] [every-host]"
    for field in ("paths: [/v2/**]", "query: {q: x}"):
        (warning,) = warnings(directory, f"{entry}, {field}}}]\n")
        assert warning.endswith(f"'r' {holds}")
        assert warnings(directory, f"{entry}, {field}, hosts: ['*']}}]\n") == []
    assert warnings(directory, f"{entry}, methods: [GET]}}]\n") == []


def test_an_allow_of_private_addresses_that_stay_closed_is_shown(directory: Path) -> None:
    text = "rules: [{{name: r, action: {}, hosts: ['10.0.0.0/8', 203.0.113.7]{}}}]\n"
    (warning,) = warnings(directory, text.format("allow", ""))
    assert (
        warning
        == "policy.yaml:2:9: rule 'r': 10.0.0.0/8 is private and stays closed, expected private: true [private-closed]"
    )
    assert warnings(directory, text.format("allow", ", private: true")) == []
    assert warnings(directory, text.format("deny", "")) == []


def test_a_method_that_http_does_not_have_is_shown(directory: Path) -> None:
    text = "rules: [{name: r, action: deny, hosts: [a.example], methods: [DELTE, XYZ, PROPFIND, GET]}]\n"
    assert warnings(directory, text) == [
        "policy.yaml:2:9: 'r': there is no method DELTE in HTTP, did you mean DELETE [unknown-method]",
        "policy.yaml:2:9: 'r': there is no method XYZ in HTTP [unknown-method]",
    ]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("/a%2fb", "holds %2f, and the escapes of a path are upper-case, expected %2F [unmatchable-regex]"),
        ("/[%a-f]%2Fb", None),
        ("(?i)/a%2fb", None),
        (r"/q\?x=.*", "asks for a '?', which no path holds (use query: for a query) [unmatchable-regex]"),
    ],
)
def test_an_expression_for_what_no_path_holds_as_sent_is_shown(
    directory: Path, expression: str, message: str | None
) -> None:
    text = f"rules: [{{name: r, action: deny, hosts: [a.example], paths: ['regex:{expression}']}}]\n"
    expected = [] if message is None else [f"policy.yaml:2:9: 'r': {f'regex:{expression}'!r} {message}"]
    assert warnings(directory, text) == expected


def test_an_allow_covers_its_default_ports_alone(directory: Path) -> None:
    assert shadow_warnings(directory, pair("hosts: [a.example]", "hosts: [a.example], ports: [8443]", "allow")) == []
    assert shadow_warnings(directory, pair("hosts: [a.example]", "hosts: [a.example]", "allow")) != []
    mixed = pair("hosts: [a.example]", "hosts: [a.example]", "allow").replace(
        "second, action: allow", "second, action: deny"
    )
    assert shadow_warnings(directory, mixed) == []


# --- asks and grants ----------------------------------------------------------------------------------------------

ASKING = """\
rules:
  - {name: asks, action: ask, hosts: [.a.example]}
  - {name: later, action: %s, hosts: [b.a.example]}
"""


def test_a_rule_below_an_ask_that_decides_all_of_it_is_shown(directory: Path) -> None:
    unreachable = "policy.yaml:4:5: rule 'later' can never decide: 'asks' (policy.yaml:3:5) decides all it could match"
    assert warnings(directory, ASKING % "allow") == [f"{unreachable} [rule-unreachable]"]
    [late] = warnings(directory, ASKING % "deny")
    nothing = "policy.yaml:4:5: rule 'later' closes nothing: 'asks' (policy.yaml:3:5), above it, asks about all"
    assert late == f"{nothing} it could close [deny-too-late]"
    above = (
        "rules:\n  - {name: a, action: deny, hosts: [b.a.example]}\n  - {name: b, action: ask, hosts: [.a.example]}\n"
    )
    assert warnings(directory, above) == []


def test_a_grant_that_has_lapsed_and_one_that_is_wide_are_shown(directory: Path) -> None:
    text = """\
    clients: {a: {networks: [192.0.2.1]}}
    grants:
      - {name: past, clients: [a], hosts: [a.example], expires: 2026-11-24T12:00:00Z, reason: x}
      - {name: wide, clients: [a], hosts: ["*.co.uk"], methods: [FETCH], expires: 2026-11-24T13:00:00Z, reason: x}
    """
    found = [warning.rpartition(" ")[2] for warning in warnings(directory, text)]
    assert found == ["[rule-lapsed]", "[public-suffix]", "[unknown-method]"]


def test_a_grant_for_any_client_is_shown_where_clients_are_required(directory: Path) -> None:
    grant = "{name: g, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}"
    (directory / "policy.yaml").write_text(f"version: 1\ngrants: [{grant}]")
    policy = build_sources(read_sources(directory, {})).policy
    [found] = open_to_any_client(policy, str(directory), NOW)
    assert (found.code, found.location.line) == ("any-client", 2)
