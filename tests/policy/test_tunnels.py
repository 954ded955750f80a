"""Which connection to the origin a tunnel takes: its mode, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.policy.engine import (
    CompiledPolicy,
    Stage,
    checked_tunnel,
    decide,
    mode_in_force,
)
from squidkeeper.policy.language.methods import BODILESS
from squidkeeper.policy.language.model import Action, Rule
from squidkeeper.policy.protocol.request import (
    Request,
    TunnelMode,
    TunnelTag,
    authority_of,
    parse_request,
    read_tag,
)

from ..conftest import NOW, compiled_of
from .test_engine_properties import (
    CLIENTS,
    GRANT,
    HOSTS,
    TIMES,
    Drawn,
    DrawnCredentials,
    DrawnRewrites,
    credentials,
    methods,
    policy_of,
    rewrites,
)

READ = (
    "{name: read, action: allow, hosts: [a.example], methods: [GET, HEAD],"
    " connections: shared}"
)
WORDLESS = READ.replace("connections: shared", "private: false")
POST = "{name: post, action: allow, hosts: [a.example], methods: [POST], paths: [/up]}"


def mode_of(
    policy: CompiledPolicy, host: str = "a.example", scheme: str = "https"
) -> tuple[str, str]:
    """Return the mode of the tunnel to a host, or of plain http, and why."""
    port = {"https": "443", "http": "80"}[scheme]
    method, stated = ("CONNECT", None) if scheme == "https" else ("GET", "http")
    request = parse_request(
        ["192.0.2.1", None, method, stated, host, port, None, None, None]
    )
    decision = decide(policy, policy.match(request), NOW, Stage.HOST)
    return decision.mode, decision.outlook.mode_reason


SHARED = "shared: each rule has connections: shared"
OWN = "own: the rule {} does not have connections: shared"
OTHER = "clients: {other: {networks: [198.51.100.0/24]}}\n"
TABLE = {
    f"rules: [{READ}]": SHARED,
    f"rules: [{WORDLESS}]": OWN.format("read"),
    f"rules: [{READ[:-1]}, paths: [/a/**]}}]": SHARED,
    f"rules: [{READ}, {POST}]": OWN.format("post"),
    f"rules: [{{name: none, action: deny, hosts: [a.example], methods: [POST]}}, {READ}, {POST}]": SHARED,
    f"rules: [{{name: none, action: deny, hosts: [a.example], methods: [POST], paths: [/x]}}, {READ}, {POST}]": (
        OWN.format("post")
    ),
    "rules: [{name: all, action: allow, hosts: [a.example]}]": OWN.format("all"),
    "rules: [{name: none, action: deny, hosts: [a.example], methods: [POST]},"
    " {name: all, action: allow, hosts: [a.example]}]": OWN.format("all"),
    f"rules: [{WORDLESS[:-1]}, paths: [/x]}}, {READ.replace('read', 'below')}]": (
        OWN.format("read")
    ),
    f"rules: [{READ}, {WORDLESS.replace('read', 'below')}]": SHARED,
    f"rules: [{READ[:-1]}, paths: [/x]}}, {WORDLESS.replace('read', 'below')}]": (
        OWN.format("below")
    ),
    f"rules: [{READ}, {{name: see, action: allow, observe: true, hosts: [a.example]}}]": (
        SHARED
    ),
    f"rules: [{READ}]\ndefaults: {{action: allow}}": "own: the default allows every method",
    f"rules: [{READ}, {{name: none, action: deny, hosts: [a.example]}}, {POST}]": SHARED,
    f"rules: [{READ}, {{name: none, action: deny, hosts: [a.example]}}, {POST[:-1]}, websocket: true}}]": SHARED,
    f"rules: [{READ}]\ndefaults: {{action: deny, ask: true}}": "first: the default may ask a person",
    f"rules: [{READ}, {{name: ask, action: ask, hosts: [a.example]}}]": "first: the rule ask may ask a person",
    f"{OTHER}rules: [{READ}, {{name: ask, action: ask, hosts: [a.example], clients: [other]}}]": (
        "own: the rule ask asks a person"
    ),
    f"{OTHER}rules: [{READ}, {{name: up, action: allow, hosts: [a.example], clients: [other]}}]": SHARED,
    f"rules: [{READ}]\nrewrites: [{{name: w, hosts: [a.example], paths: [/x], to: 'https://b.example/'}}]": (
        "first: the rewrite w may apply"
    ),
    f"rules: [{READ}]\nrewrites: [{{name: w, hosts: [c.example], to: 'https://a.example/x'}}]": (
        "own: a rewrite is for this host, or leads to it"
    ),
    f"rules: [{READ}]\nrewrites: [{{name: w, hosts: [c.example], to: 'https://b.example/x'}}]": SHARED,
    f"rules: [{READ.replace('shared', 'own')}]": OWN.format("read"),
    f"rules: [{READ.replace('shared', 'single')}]": OWN.format("read"),
    f"clients: {{vms: {{networks: [192.0.2.0/24], connections: own}}}}\nrules: [{READ}]": (
        "own: the client vms has connections: own"
    ),
    f"rules: [{READ}]\nupstreams: [{{name: up, url: 'http://p.example:3128'}}]": (
        "own: the upstream up may be a parent proxy"
    ),
    f"rules: [{READ}]\nupstreams: [{{name: up, hosts: [b.example], url: 'http://p.example:3128'}}]": (
        "own: the upstream default may be a parent proxy"
    ),
    f"rules: [{READ}]\nupstreams: [{{name: out, direct: true}}]": SHARED,
    "rules: [{name: p, action: allow, hosts: [a.example], tls: passthrough}]": OWN.format(
        "p"
    ),
    f"rules: [{READ}]\nsecrets: {{s: {{file: s}}}}\n"
    "credentials: [{name: c, hosts: [a.example], bearer: s}]": "own: the credential c may be injected",
    f"rules: [{READ}]\ngrants: [{{name: g, any_client: true, hosts: [a.example], methods: [PUT], reason: x,"
    " expires: 2027-01-01T00:00:00Z}]": OWN.format("g"),
    f"rules: [{READ[:-1]}, ports: [443]}}]": "own: the rule read allows plain http on this port",
    f"rules: [{READ[:-1]}, ports: [443], schemes: [https]}}]": SHARED,
    f"{OTHER}rules: [{READ}, {{name: odd, action: allow, hosts: [a.example], clients: [other], ports: [443]}}]": (
        "own: the rule odd allows plain http on this port"
    ),
    f"defaults: {{action: allow}}\n"
    f"rules: [{READ}, {{name: none, action: deny, hosts: [a.example], schemes: [https]}}]": (
        "own: the default allows plain http on this port"
    ),
    "rules: [{name: other, action: allow, hosts: [b.example]}]": "first: ",
}


@pytest.mark.parametrize(("text", "expected"), TABLE.items(), ids=range(len(TABLE)))
def test_a_tunnel_is_shared_only_where_each_rule_says_so(
    tmp_path: Path, text: str, expected: str
) -> None:
    mode, reason = mode_of(compiled_of(tmp_path, text))
    assert f"{mode}: {reason}" == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"rules: [{READ}]", "shared"),
        (f"rules: [{WORDLESS}]", "own"),
        (
            f"rules: [{READ}, {{name: tls, action: allow, hosts: [a.example], schemes: [https]}}]",
            "shared",
        ),
        (
            f"{OTHER}rules: [{READ}, {WORDLESS.replace('read', 'too')[:-1]}, clients: [other]}}]",
            "own",
        ),
        (
            f"{OTHER}rules: [{READ}, {{name: up, action: allow, hosts: [a.example], clients: [other]}}]",
            "own",
        ),
        (
            "clients: {here: {networks: [192.0.2.0/24]}}\ndefaults: {action: allow}\n"
            f"rules: [{READ}, {{name: none, action: deny, hosts: [a.example], clients: [here]}}]",
            "own",
        ),
    ],
    ids=[
        "read",
        "without the word",
        "bodies over https",
        "another client without the word",
        "bodies of another client",
        "bodies of another client by the default",
    ],
)
def test_plain_http_shares_connections_only_where_each_rule_of_each_client_says_so(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert mode_of(compiled_of(tmp_path, text), scheme="http")[0] == expected


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("preset", "host"),
    [
        ("pypi", "pypi.org"),
        ("pypi", "files.pythonhosted.org"),
        ("debian", "deb.debian.org"),
        ("debian", "security.debian.org"),
        ("crates", "index.crates.io"),
        ("crates", "static.crates.io"),
        ("go", "proxy.golang.org"),
        ("go", "sum.golang.org"),
        ("github-read", "raw.githubusercontent.com"),
    ],
)
def test_presets_of_packages_share_from_their_second_version_on(
    tmp_path: Path, preset: str, host: str, version: int
) -> None:
    policy = compiled_of(tmp_path, f"presets: [{preset}@{version}]")
    assert mode_of(policy, host)[0] == ("own", "shared")[version - 1]


def test_npm_is_shared_without_its_audit(tmp_path: Path) -> None:
    npm = "presets: [{preset: npm@2}]"
    assert mode_of(compiled_of(tmp_path, npm), "registry.npmjs.org") == (
        "own",
        "the rule npm@2/audit does not have connections: shared",
    )
    deny = "rules: [{name: no-audit, action: deny, hosts: [registry.npmjs.org], methods: [POST]}]"
    assert (
        mode_of(compiled_of(tmp_path, f"{npm}\n{deny}"), "registry.npmjs.org")[0]
        == "shared"
    )


@pytest.mark.parametrize("mode", TunnelMode)
@pytest.mark.parametrize("session", [None, 17])
def test_a_tag_names_authority_mode_and_session(
    mode: TunnelMode, session: int | None
) -> None:
    tag = str(TunnelTag("[2001:db8::1]:443", mode, session))
    assert read_tag(tag) == ("[2001:db8::1]:443", mode, session)
    assert authority_of(tag) == "[2001:db8::1]:443"


@pytest.mark.parametrize(
    "tag",
    [
        "a.example:443 denied",
        "a.example:443 own",
        "a.example:443 first x",
        "a.example:443 ",
        "a.example:443 s=",
        "a.example:443 s=-1",
        "a.example:443 s=1 s=2",
        "a.example:443 s=1 shared",
    ],
)
def test_what_is_no_tag_matches_no_request(tag: str) -> None:
    request = parse_request(
        [None, None, "GET", "https", "a.example", "443", None, tag, None]
    )
    assert getattr(request, "rule", None) == "authority-mismatch"


# The mode that a request needs, and in which tunnels it passes.
PASSES = {
    (f"rules: [{READ}]", True): {"own", "first", "shared"},
    (f"rules: [{READ}]", False): {"own"},
    (f"rules: [{READ}, {POST}]", True): {"own"},
    (f"rules: [{READ}]\ndefaults: {{action: deny, ask: true}}", True): {"first"},
}


@pytest.mark.parametrize(("edited", "shares"), PASSES)
@pytest.mark.parametrize("mode", TunnelMode)
def test_a_request_that_needs_another_tunnel_is_denied(
    tmp_path: Path, mode: TunnelMode, edited: str, shares: bool
) -> None:
    policy = compiled_of(tmp_path, edited)
    tag = str(TunnelTag("a.example:443", mode))
    request = parse_request(
        ["192.0.2.1", None, "GET", "https", "a.example", "443", None, tag, None]
    )
    decision = checked_tunnel(
        decide(policy, policy.match(request), NOW, Stage.HOST), request, shares=shares
    )
    expected = "read" if mode in PASSES[edited, shares] else "tunnel-outdated"
    assert (decision.rule, decision.allowed) == (expected, expected == "read")


def test_what_is_denied_is_denied_by_its_own_rule_in_any_tunnel(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path, f"rules: [{READ}]")
    request = parse_request(
        [
            "192.0.2.1",
            None,
            "POST",
            "https",
            "a.example",
            "443",
            None,
            "a.example:443",
            None,
        ]
    )
    assert (
        checked_tunnel(
            decide(policy, policy.match(request), NOW, Stage.HOST), request, shares=True
        ).rule
        == "default"
    )


METHODS = [None, ["GET"], ["GET", "HEAD"], ["POST"], ["GET", "PUT"]]
HELD = st.fixed_dictionaries(
    {
        **dict.fromkeys(("lists", "schemes", "ports", "query"), st.none()),
        "clients": st.sampled_from([None, None, ["near"], ["far"]]),
        "hosts": st.sampled_from([["a.example"], [".a.example"], ["*"]]),
        "methods": st.sampled_from(METHODS),
        "paths": st.sampled_from([None, None, ["/x/**"]]),
    }
)
ACTIONS = st.sampled_from([Action.ALLOW] * 4 + [Action.DENY] * 3 + [Action.ASK, GRANT])
RARELY = st.sampled_from([False] * 9 + [True])


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(ACTIONS, HELD, RARELY, st.sampled_from(TIMES), RARELY),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([*Action, *[Action.DENY] * 5]),
    st.one_of(st.just([]), rewrites),
    st.one_of(st.just([]), credentials),
    st.lists(
        st.tuples(methods, st.sampled_from(HOSTS[:3]), st.just("")),
        min_size=4,
        max_size=8,
    ),
    st.sets(st.sampled_from(range(4)), max_size=1),
)
def test_nothing_but_what_rules_share_is_allowed_where_connections_are_shared(
    drawn: Drawn,
    default: Action,
    rewritten: DrawnRewrites,
    injected: DrawnCredentials,
    asked: list[tuple[str, str, str]],
    wordless: set[int],
) -> None:
    without = policy_of(drawn, default, rewritten, injected)
    rules = tuple(
        replace(rule, connections="shared")
        if place not in wordless and _can_share(rule)
        else rule
        for place, rule in enumerate(without.rules)
    )
    policy = CompiledPolicy(replace(without, rules=rules))
    words = {rule.name: rule.connections for rule in policy.source.rules_and_grants}
    sources = [network.partition("/")[0][:-1] + "1" for network in CLIENTS.values()]
    for scheme, (method, host, port) in (
        (scheme, tunnel) for scheme in ("https", "http") for tunnel in asked
    ):
        number = port[1:] or {"https": "443", "http": "80"}[scheme]
        shared = [
            source
            for source in sources
            if _mode(policy, source, scheme, host, number) is TunnelMode.SHARED
        ]
        # over plain http, nothing else is allowed to any client
        everyone = sources if scheme == "http" and shared else shared
        for source in everyone:
            for path in ("/", "/x", "/x/s", "/s?q=1"):
                url = f"{scheme}://{host}{port}{path}"
                tag = f"{host}:{number}" if scheme == "https" else None
                request = parse_request(
                    [source, None, method, scheme, host, number, None, tag, None], url
                )
                decision = decide(policy, policy.match(request), NOW)
                assert method in BODILESS or not (decision.allowed or decision.asks)
                assert not decision.allowed or words[decision.rule] == "shared"
                if source in shared and decision.allowed:
                    assert (
                        decision.credentials,
                        decision.rewritten,
                        decision.private,
                    ) == ((), None, False)


def _can_share(rule: Rule) -> bool:
    """Whether `check` lets a rule say that it shares."""
    return (
        rule.action is Action.ALLOW
        and rule.match.hosts is not None
        and rule.match.methods is not None
        and rule.match.methods <= BODILESS
        and not (rule.private or rule.websocket or rule.passthrough)
    )


def _mode(
    policy: CompiledPolicy, source: str, scheme: str, host: str, port: str
) -> TunnelMode:
    method, stated = ("CONNECT", None) if scheme == "https" else ("GET", "http")
    request = parse_request(
        [source, None, method, stated, host, port, None, None, None]
    )
    assert isinstance(request, Request)
    return mode_in_force(
        decide(policy, policy.match(request), NOW, Stage.HOST), shares=True
    )
