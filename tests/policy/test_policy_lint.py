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


PUSH = "  - {name: push, action: deny, hosts: [git.example], paths: ['/**/git-receive-pack']}\n"
GIT_PATH = (
    "rule 'push': git shows no page for a denied git-receive-pack, only for the request before it: expected a deny with"
    " query: {service: git-receive-pack} for the same hosts, too [git-path]"
)


def with_rule(fields: str, rule: str = PUSH) -> str:
    clients = "clients: {c: {users: [c]}, used: {users: [d]}}\n"
    using = "  - {name: use, action: deny, clients: [c, used], hosts: [unrelated.invalid]}\n"
    return (
        f"{clients}rules:\n{rule}{using}  - {{name: first, action: deny, {fields}}}\n"
    )


SERVICE = "query: {service: git-receive-pack}"


@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [
        (f"{SERVICE}, hosts: [git.example]", False),
        ("query: {service: 'git-*'}, hosts: [.example]", False),
        ("hosts: ['*']", False),
        ("query: {service: git-upload-pack}, hosts: [git.example]", True),
        (f"{SERVICE}, hosts: [other.example]", True),
        (f"{SERVICE}, hosts: [git.example], methods: [POST]", True),
        (f"{SERVICE}, hosts: [git.example], clients: [c]", True),
        ("query: {service: git-receive-pack, a: b}, hosts: [git.example]", True),
        (f"{SERVICE}, hosts: [git.example], paths: [/acme/**]", True),
        ("hosts: [git.example], body: {git: {push: [refs/heads/main]}}", True),
    ],
)
def test_a_denied_path_of_git_is_shown_unless_the_request_before_it_is_denied(
    directory: Path, fields: str, is_shown: bool
) -> None:
    assert (
        warnings(directory, with_rule(fields))
        == [f"policy.yaml:4:5: {GIT_PATH}"] * is_shown
    )


@pytest.mark.parametrize(
    "rule",
    [
        PUSH.replace("deny", "allow"),
        PUSH.replace(
            "'/**/git-receive-pack'", "'/**/git-receive-pack', '/**/info/refs'"
        ),
        PUSH.replace("git-receive-pack", "git-receive-packs"),
        PUSH.replace("}", ", body: {git: {push: [refs/heads/main]}}}"),
    ],
)
def test_another_rule_about_paths_of_git_is_not_shown(
    directory: Path, rule: str
) -> None:
    assert warnings(directory, with_rule("hosts: [unrelated.example]", rule)) == []


GRPC = (
    "names a gRPC service. gRPC needs HTTP/2, which passes only with tls: passthrough and without paths (gRPC-Web and"
    " Connect pass over HTTP/1.1) [grpc-path]"
)
# A rule of a.example, and what is shown.
OF_A_RULE: dict[str, str | None] = {
    "action: allow, hosts: ['*'], tls: passthrough": "rule 'r' passes the tunnels to every host through, unseen:"
    " expected the hosts that need it [every-host]",
    "action: allow, tls: passthrough": None,
    "action: allow, methods: [POST], websocket: true": "rule 'r' never passes a WebSocket, which begins with a GET: its"
    " methods leave out GET [websocket-never]",
    "action: allow, methods: [POST, GET], websocket: true": None,
    **{
        f"action: allow, paths: ['{path}']": f"rule 'r': '{path}' {GRPC}"
        for path in (
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/*",
            "/a.B/**",
        )
    },
    "action: deny, paths: [/a.B/**]": None,
    **{
        f"action: allow, paths: ['{path}']": None
        for path in (
            "/v1/Check",
            "/files/a.B/Check",
            "/index.html/x",
            "/a.B/Check/more",
            "/A.B/c",
        )
    },
    "action: allow, hosts: [10.0.0.0/8, 203.0.113.7]": "rule 'r': 10.0.0.0/8 is private and stays closed, expected"
    " private: true [private-closed]",
    "action: allow, hosts: [10.0.0.0/8, 203.0.113.7], private: true": None,
    "action: deny, hosts: [10.0.0.0/8, 203.0.113.7]": None,
    "action: deny, methods: [DELTE, PROPFIND, GET]": "'r': there is no method DELTE in HTTP, did you mean DELETE"
    " [unknown-method]",
    "action: deny, methods: [XYZ]": "'r': there is no method XYZ in HTTP [unknown-method]",
    "action: deny, paths: ['regex:/a%2fb']": "'r': 'regex:/a%2fb' holds %2f, and the escapes of a path are upper-case,"
    " expected %2F [unmatchable-regex]",
    "action: deny, paths: ['regex:/[%a-f]%2Fb']": None,
    "action: deny, paths: ['regex:(?i)/a%2fb']": None,
    r"action: deny, paths: ['regex:/q\?x=.*']": r"'r': 'regex:/q\\?x=.*' asks for a '?', which no path holds (use"
    " query: for a query) [unmatchable-regex]",
}


@pytest.mark.parametrize("fields", OF_A_RULE)
def test_what_is_legal_in_a_rule_and_surely_unmeant_is_shown(
    directory: Path, fields: str
) -> None:
    hosts, expected = (
        "" if "hosts" in fields else "hosts: [a.example], ",
        OF_A_RULE[fields],
    )
    shown = warnings(directory, f"rules: [{{name: r, {hosts}{fields}}}]\n")
    assert shown == ([] if expected is None else [f"policy.yaml:2:9: {expected}"])


LOGIN = "clients: {a: {users: [u]}}\n"  # a count of its own where clients have one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clients: {a: {users: [u]}}", ["2:11: client 'a' is not used [unused]"]),
        (f"{LOGIN}quotas: [{{name: q, per: client, requests: 5, every: day}}]", []),
        (
            f"{LOGIN}quotas: [{{name: q, per: all, requests: 5, every: day}}]",
            ["2:11: client 'a' is not used [unused]"],
        ),
        (
            "clients: {a: {networks: [192.0.2.7]}}\nquotas: [{name: q, per: client, requests: 5, every: day}]",
            ["2:11: client 'a' is not used [unused]"],
        ),
        ("lists: {l: {file: list.txt}}", ["2:9: list 'l' is not used [unused]"]),
        ("secrets: {s: {env: S}}", ["2:11: secret 's' is not used [unused]"]),
        ("defaults: {watch_secrets: true}\nsecrets: {s: {env: S}}", []),
        (
            "secrets: {s: {env: S}}\ncredentials: [{name: c, hosts: [a.example], schemes: [http], bearer: s}]",
            [
                "3:15: credential 'c' is never sent: its schemes leave out https [never-sent]"
            ],
        ),
    ],
)
def test_what_has_no_effect_is_shown_where_it_is_defined(
    directory: Path, text: str, expected: list[str]
) -> None:
    assert warnings(directory, text) == [f"policy.yaml:{one}" for one in expected]


ROLE = "roles: {agent: {variables: {repo: {type: path, pattern: '[a-z]+'}}}}"
OF_ROLE = "{name: r, action: allow, clients: [agent], hosts: [a.example]"
CLIENT = "clients: {dev: {networks: [10.20.1.0/24]}}"
OF_CLIENT = "rules: [{name: r, action: allow, clients: [dev], hosts: [a.example]}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ROLE}\nrules: [{OF_ROLE}, paths: ['/{{session.repo}}']}}]", []),
        (
            f"{ROLE}\nrules: [{OF_ROLE}}}]",
            ["2:9: variable 'repo' of role 'agent' is not used [unused]"],
        ),
        (
            "roles: {agent: {ttl: 8h}}",
            ["2:9: role 'agent' is not used [unused]"],
        ),
        (
            f"{CLIENT}\nsession_networks: [10.20.0.0/16]\n{OF_CLIENT}",
            [
                "2:11: client 'dev' has addresses of session_networks (10.20.1.0/24), where nothing is open without a"
                " session [client-hidden]"
            ],
        ),
        (f"{CLIENT}\nsession_networks: [10.21.0.0/16]\n{OF_CLIENT}", []),
        (
            f"{CLIENT}\nsession_networks: ['2001:db8::/32', 10.20.1.7]\n{OF_CLIENT}".replace(
                "{networks", "{users: [u], networks"
            ),
            [],
        ),
    ],
)
def test_what_no_session_uses_is_shown(
    directory: Path, text: str, expected: list[str]
) -> None:
    assert warnings(directory, text) == [f"policy.yaml:{one}" for one in expected]


SHARES = "{name: read, action: allow, hosts: [.a.example], methods: [GET], connections: shared}"
TWO_CLIENTS = "clients: {vm: {networks: [192.0.2.1]}, other: {networks: [192.0.2.2]}}\n"
BESIDE_IT = {
    f"rules: [{SHARES}]": "",
    f"rules: [{SHARES}]\ndefaults: {{action: allow}}": "the default allows or asks",
    f"rules: [{SHARES}, {{name: up, action: allow, hosts: [up.a.example]}}]": "the rule 'up' (2:96)",
    f"rules: [{SHARES}, {{name: up, action: allow, hosts: [a.example], methods: [GET]}}]": "",
    f"rules: [{{name: up, action: allow, hosts: [a.example], methods: [GET]}}, {SHARES}]": "the rule 'up' (2:9)",
    f"rules: [{SHARES}, {{name: up, action: allow, hosts: [b.example]}}]": "",
    f"{TWO_CLIENTS}rules: [{SHARES}, {{name: up, action: allow, hosts: [a.example], clients: [vm]}}]": "",
    f"{TWO_CLIENTS}rules: [{SHARES}, {{name: up, action: ask, hosts: [a.example], clients: [vm]}}]": (
        "the ask 'up' (3:96)"
    ),
    f"rules: [{SHARES}]\nrewrites: [{{name: w, hosts: [b.example], to: 'https://x.a.example/'}}]": (
        "the rewrite 'w' (3:12)"
    ),
    f"rules: [{SHARES}]\nsecrets: {{s: {{env: S}}}}\n"
    "credentials: [{name: c, hosts: [a.example], bearer: s}]": "the credential 'c' (4:15)",
    f"rules: [{SHARES}]\nupstreams: [{{name: up, url: 'http://p.example:3128'}}]": "the upstream 'up' (3:13)",
    "presets: [pypi@2]\ndefaults: {action: allow}": "",  # which others have written
}


@pytest.mark.parametrize("text", BESIDE_IT)
def test_what_keeps_clients_from_sharing_is_shown_at_the_rule_that_says_shared(
    directory: Path, text: str
) -> None:
    found = [one for one in warnings(directory, text) if "[not-shared]" in one]
    expected = BESIDE_IT[text].replace("(", "(policy.yaml:")
    assert [
        one.partition("share none: ")[2]
        .removesuffix(" [not-shared]")
        .removesuffix(" is for some of its hosts")
        for one in found
    ] == ([expected] if expected else [])


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
def test_a_wildcard_over_a_longer_public_suffix_is_shown(
    directory: Path, pattern: str, public: bool
) -> None:
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
    expected = [
        f"policy.yaml:5:5: rule 'allow': {covers}",
        f"policy.yaml:7:5: credential 'c': {covers}",
    ]
    assert warnings(directory, text) == (expected if public else [])


# --- shadowed rules -------------------------------------------------------------------

SHADOWED = [
    ("hosts: [a.example]", "hosts: [a.example]"),
    (
        "hosts: [.example.com]",
        "hosts: [example.com, a.example.com, '*.b.example.com', '**.c.example.com', .example.com]",
    ),
    (
        "hosts: ['**.example.com']",
        "hosts: [a.example.com, '*.example.com', .a.example.com]",
    ),
    ("hosts: ['*.example.com']", "hosts: ['*.example.com', a.example.com]"),
    ("hosts: ['*']", "hosts: [a.example, 192.0.2.0/24]"),
    ("hosts: ['*']", "clients: [c]"),
    ("reason: all", "hosts: ['*']"),
    ("reason: all", "lists: [l], hosts: [a.example]"),
    ("lists: [l]", "lists: [l]"),
    (
        "lists: [l]",
        "hosts: [a.listed.example, 203.0.113.9, 203.0.113.128/25, .b.listed.example]",
    ),
    ("lists: [l], hosts: [a.example]", "lists: [l], hosts: [a.example]"),
    ("hosts: [203.0.112.0/23]", "hosts: [203.0.113.9]"),
    (
        "hosts: [a.example]",
        "hosts: [a.example], paths: [/x/**], methods: [GET], query: {a: b}, clients: [c]",
    ),
    ("hosts: [a.example], paths: [/x, /**]", "hosts: [a.example]"),
    ("hosts: [a.example], clients: [c]", "hosts: [a.example], clients: [c]"),
    (
        "hosts: [a.example], paths: [/x/**, /y]",
        "hosts: [a.example], paths: [/y, /x/**], methods: [GET]",
    ),
    ("hosts: [a.example], methods: [GET, POST]", "hosts: [a.example], methods: [GET]"),
    ("hosts: [a.example], query: {a: b}", "hosts: [a.example], query: {a: b}"),
    ("hosts: [a.example]", "hosts: [a.example], ports: [1-65535]"),
    (
        "hosts: [a.example], ports: [443-500, 501-600, 80]",
        "hosts: [a.example], ports: [450-550]",
    ),
    ("hosts: [a.example], schemes: [https]", "hosts: [a.example], schemes: [https]"),
    (
        "hosts: [a.example], expires: 2027-01-01T00:00:00Z",
        "hosts: [a.example], expires: 2027-01-01T00:00:00Z",
    ),
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
    (
        "hosts: [a.example], expires: 2027-01-01T00:00:00Z",
        "hosts: [a.example], expires: 2027-01-02T00:00:00Z",
    ),
    (
        "hosts: [a.example], expires: 2026-01-01T00:00:00Z",
        "hosts: [a.example], expires: 2027-01-01T00:00:00Z",
    ),
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
    return [
        warning
        for warning in warnings(directory, text)
        if "can never decide" in warning
    ]


@pytest.mark.parametrize(("first", "second"), SHADOWED)
def test_a_rule_that_an_earlier_one_leaves_nothing_is_shown(
    directory: Path, first: str, second: str
) -> None:
    assert shadow_warnings(directory, pair(first, second)) == [
        "policy.yaml:6:5: rule 'second' can never decide: "
        "'first' (policy.yaml:5:5) decides all it could match [rule-unreachable]"
    ]


@pytest.mark.parametrize(("first", "second"), NOT_SHADOWED)
def test_a_rule_that_still_has_something_to_decide_is_not_shown(
    directory: Path, first: str, second: str
) -> None:
    assert shadow_warnings(directory, pair(first, second)) == []


def with_a_late_deny(allowed: str, denied: str) -> str:
    return pair(allowed, denied, "allow").replace(
        "second, action: allow", "second, action: deny"
    )


@pytest.mark.parametrize(
    ("allowed", "denied", "late"),
    [
        ("hosts: [.corp.example]", "hosts: [payroll.corp.example]", True),
        ("hosts: ['*']", "hosts: [pastebin.example]", True),
        (
            "hosts: [.corp.example]",
            "hosts: [payroll.corp.example], ports: [80, 443]",
            True,
        ),
        (
            "hosts: [a.example], paths: [/x/**], clients: [c]",
            "hosts: [a.example], paths: [/x/**], clients: [c]",
            True,
        ),
        (
            "hosts: [a.example]",
            "hosts: [a.example], ports: [8443]",
            False,
        ),  # which nothing opens
        (
            "hosts: [a.example], methods: [PATCH]",
            "hosts: [a.example], methods: [PATCH]",
            False,
        ),  # and patch
    ],
)
def test_a_deny_that_comes_too_late_is_shown(
    directory: Path, allowed: str, denied: str, late: bool
) -> None:
    opens = (
        "'first' (policy.yaml:5:5), above it, opens all it could close [deny-too-late]"
    )
    assert [
        warning
        for warning in warnings(directory, with_a_late_deny(allowed, denied))
        if "second" in warning
    ] == [f"policy.yaml:6:5: rule 'second' closes nothing: {opens}"] * late


def test_a_deny_that_closes_what_is_open_on_another_port_is_not_shown(
    directory: Path,
) -> None:
    text = with_a_late_deny("hosts: [a.example]", "hosts: [a.example]")
    elsewhere = "  - {name: third, action: allow, hosts: ['*'], ports: [8443]}\n"
    for open_elsewhere in (
        text + elsewhere,
        f"defaults: {{action: allow}}\n{textwrap.dedent(text)}",
    ):
        assert "second" not in str(warnings(directory, textwrap.dedent(open_elsewhere)))


@pytest.mark.parametrize(
    "entry",
    ["rules: [{action: allow, name: r", "rewrites: [{to: 'https://m.example', name: r"],
)
def test_a_path_that_is_open_on_every_host_is_shown(
    directory: Path, entry: str
) -> None:
    holds = "holds for every host, as it names none: if that is meant, write hosts: ['*'] [every-host]"
    for field in ("paths: [/v2/**]", "query: {q: x}"):
        (warning,) = warnings(directory, f"{entry}, {field}}}]\n")
        assert warning.endswith(f"'r' {holds}")
        assert warnings(directory, f"{entry}, {field}, hosts: ['*']}}]\n") == []
    assert warnings(directory, f"{entry}, methods: [GET]}}]\n") == []


def test_an_allow_covers_its_default_ports_alone(directory: Path) -> None:
    assert (
        shadow_warnings(
            directory,
            pair("hosts: [a.example]", "hosts: [a.example], ports: [8443]", "allow"),
        )
        == []
    )
    assert (
        shadow_warnings(
            directory, pair("hosts: [a.example]", "hosts: [a.example]", "allow")
        )
        != []
    )
    mixed = pair("hosts: [a.example]", "hosts: [a.example]", "allow").replace(
        "second, action: allow", "second, action: deny"
    )
    assert shadow_warnings(directory, mixed) == []


# --- asks and grants ------------------------------------------------------------------

ASKING = """\
rules:
  - {name: asks, action: ask, hosts: [.a.example]}
  - {name: later, action: %s, hosts: [b.a.example]}
"""


def test_a_rule_below_an_ask_that_decides_all_of_it_is_shown(directory: Path) -> None:
    unreachable = "policy.yaml:4:5: rule 'later' can never decide: 'asks' (policy.yaml:3:5) decides all it could match"
    assert warnings(directory, ASKING % "allow") == [
        f"{unreachable} [rule-unreachable]"
    ]
    [late] = warnings(directory, ASKING % "deny")
    nothing = "policy.yaml:4:5: rule 'later' closes nothing: 'asks' (policy.yaml:3:5), above it, asks about all"
    assert late == f"{nothing} it could close [deny-too-late]"
    above = (
        "rules:\n  - {name: a, action: deny, hosts: [b.a.example]}\n  - {name: "
        "b, action: ask, hosts: [.a.example]}\n"
    )
    assert warnings(directory, above) == []


def test_a_grant_that_has_lapsed_and_one_that_is_wide_are_shown(
    directory: Path,
) -> None:
    text = """\
    clients: {a: {networks: [192.0.2.1]}}
    grants:
      - {name: past, clients: [a], hosts: [a.example], expires: 2026-11-24T12:00:00Z, reason: x}
      - {name: wide, clients: [a], hosts: ["*.co.uk"], methods: [FETCH], expires: 2026-11-24T13:00:00Z, reason: x}
    """
    found = [warning.rpartition(" ")[2] for warning in warnings(directory, text)]
    assert found == ["[rule-lapsed]", "[public-suffix]", "[unknown-method]"]


def test_a_grant_for_any_client_is_shown_where_clients_are_required(
    directory: Path,
) -> None:
    grant = "{name: g, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}"
    (directory / "policy.yaml").write_text(f"version: 1\ngrants: [{grant}]")
    policy = build_sources(read_sources(directory, {})).policy
    [found] = open_to_any_client(policy, str(directory), NOW)
    assert (found.code, found.location.line) == ("any-client", 2)
