"""A session decides as a client for which its values were written into the policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.change.difference.consequences import Change
from squidkeeper.change.difference.report import report
from squidkeeper.policy.bodies.written_request import push_body, written_request
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.engine.body_scope import (
    decide_sent,
    format_listed,
    listed_rules,
)
from squidkeeper.policy.language.bodies import GitBody, WrittenPush
from squidkeeper.policy.language.forms import Headers, values_of
from squidkeeper.policy.language.hosts import (
    HostPattern,
    parse_host_pattern,
    parse_network,
)
from squidkeeper.policy.language.matching.table import covers, overlap
from squidkeeper.policy.language.model import (
    Action,
    Client,
    Credential,
    Match,
    Policy,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.roles import Role, Session, Variable, VariableType
from squidkeeper.policy.language.targets import parse_target
from squidkeeper.policy.protocol.request import Malformed, request_to

from ..conftest import NOW, compiled_of

PLACE = Location("policy.yaml", 1, 1)
AGENT = Role(
    "agent",
    PLACE,
    (
        Variable("repo", VariableType.PATH, "(?s).*", many=3),
        Variable("team", VariableType.PATH, "(?s).*"),
        Variable(
            "docs",
            VariableType.HOSTS,
            within=(parse_host_pattern(".example"), parse_host_pattern("*.test")),
            many=3,
        ),
    ),
)
READER = Role("reader", PLACE, AGENT.variables[:1])
ROLES = {role.name: role for role in (AGENT, READER)}
ADDRESS = "192.0.2.1"
HOSTS = ["a.example", "b.example", "x.b.example", "git.test", "other.test", "c.invalid"]
PATHS = ["/**", "/x/**", "/{session.repo}", "/{session.repo}/**", "/{session.team}*"]
PATHS += [
    "/*/{session.repo}.git/**",
    "**/{session.repo}",
    "/{session.repo}{session.team}",
]
PATHS += [
    "/%2e{session.repo}",
    "/{session.team}/../{session.repo}",
    "/A/{session.repo}",
]
REFS = ["refs/heads/{session.repo}", "refs/heads/{session.team}/**", "refs/tags/*"]
SEGMENTS = [
    "x",
    "y",
    "acme",
    "app",
    "App",
    "x.git",
    ";p",
    "a;b",
    "$",
    "a+b",
    "[x]",
    "~",
]
SEGMENTS += [
    "'",
    "(.*)",
    "@{",
    "..",
    ".",
    "",
    "%2e",
    "*",
    "**",
    "{session.team}",
    "\\",
    "é",
]
SEGMENTS += ["a.", "...", ".x", "x:y", "a|b", "^", "x$", "\x00", "%2f", "?", "#"]


def _within(role: Role, name: str, drawn: list[str]) -> list[str]:
    """Keep what the role takes: all else is refused when a session is made."""
    variable = role.variable(name)
    assert variable
    kept: list[str] = []
    for value in drawn:
        with suppress(PatternError):
            kept += variable.check([value])
    return kept[: variable.many]


path_values = st.lists(
    st.one_of(
        st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3).map("/".join),
        st.text(max_size=6),
    ),
    max_size=6,
)
sessions = st.builds(
    lambda role, repo, team, docs: Session.assumed(
        role,
        ROLES[role].check(
            {
                name: found or [usual]
                for name, drawn, usual in (
                    ("repo", repo, "acme/app"),
                    ("team", team, "x"),
                    ("docs", docs, "a.example"),
                )
                if ROLES[role].variable(name)
                for found in [_within(ROLES[role], name, drawn)]
            }
        ),
    ),
    st.sampled_from([*ROLES]),
    path_values,
    path_values,
    st.lists(st.sampled_from([*HOSTS, "*.example", "A.Example", "*"]), max_size=4),
)
texts = st.fixed_dictionaries(
    {
        "clients": st.sampled_from([None, ["agent"], ["reader"], ["agent", "reader"]]),
        "hosts": st.lists(
            st.sampled_from(["{session.docs}"] * 3 + [".example", "git.test", "*"]),
            min_size=1,
            max_size=3,
        ),
        "paths": st.one_of(
            st.none(), st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)
        ),
        "push": st.one_of(
            st.none(), st.lists(st.sampled_from(REFS), min_size=1, max_size=2)
        ),
        "action": st.sampled_from(["allow", "allow", "allow", "deny", "ask"]),
    }
)
Texts = dict[str, Any]


def _names(fields: Texts) -> set[str]:
    every = [*fields["hosts"], *(fields["paths"] or ()), *(fields["push"] or ())]
    return {name for text in every for name in re.findall(r"{session\.(\w+)}", text)}


def _checked(fields: Texts) -> Texts:
    """Make the fields such that `check` takes them: the clients have the variables."""
    named = _names(fields)
    if not named:
        return fields
    roles = [
        name
        for name in fields["clients"] or ROLES
        if all(ROLES[name].variable(variable) for variable in named)
    ]
    return {**fields, "clients": roles or ["agent"]}


entries = texts.map(_checked)
drawn_policies = st.fixed_dictionaries(
    {
        "rules": st.lists(entries, max_size=5),
        "rewrites": st.lists(entries, max_size=1),
        "credentials": st.lists(entries, max_size=2),
        "default": st.sampled_from([Action.ALLOW, Action.DENY]),
    }
)


@dataclass(frozen=True)
class Writer:
    """Writes entries: with variables, or with the values of a session by hand."""

    session: Session | None

    def texts(self, texts: list[str]) -> Iterator[str]:
        for text in texts:
            named = dict.fromkeys(re.findall(r"{session\.(\w+)}", text))
            if self.session is None or not named:
                yield text
                continue
            for values in product(*(self.session.values[name] for name in named)):
                found = text
                for name, value in zip(named, values, strict=True):
                    found = found.replace(f"{{session.{name}}}", value)
                yield found

    def hosts(self, texts: list[str]) -> Iterator[HostPattern]:
        for text in self.texts(texts):
            if text != "{session.docs}":
                yield parse_host_pattern(text)
                continue
            for ceiling in AGENT.variables[2].within:
                yield replace(ceiling, variable="docs")

    def match(self, fields: Texts) -> Match:
        return Match(
            clients=fields["clients"] and frozenset(fields["clients"]),
            hosts=tuple(self.hosts(fields["hosts"])),
            paths=fields["paths"]
            and tuple(map(parse_path_pattern, self.texts(fields["paths"]))),
        )

    def rule(self, number: int, fields: Texts) -> Rule:
        reads = fields["push"] and fields["action"] != "ask"
        return Rule(
            f"r{number}",
            Location("policy.yaml", number + 1, 1),
            Action(fields["action"]),
            self.match(fields),
            body=GitBody(tuple(self.texts(fields["push"]))) if reads else None,
        )

    def rewrite(self, number: int, fields: Texts) -> Rewrite:
        target = parse_target("https://mirror.test{path}{query}")
        return Rewrite(f"w{number}", PLACE, self.match(fields), target)

    def credential(self, number: int, fields: Texts) -> Credential:
        form = Headers(values_of({"Authorization": "{secret}"}))
        return Credential(f"c{number}", PLACE, self.match(fields), form)

    def each(self, section: list[Texts]) -> Iterator[tuple[int, Texts]]:
        """List the entries that can be written by hand: other roles have other
        variables.
        """
        for number, fields in enumerate(section):
            role = self.session and self.session.role
            if role is None or not _names(fields) or role in (fields["clients"] or ()):
                yield number, fields


def _policy(drawn: dict[str, Any], session: Session | None) -> CompiledPolicy:
    """Make the policy with roles; or that in which the values of a session were written
    by hand, and its role is a client.
    """
    write = Writer(session)
    networks = (parse_network(ADDRESS),)
    policy = Policy(
        "0",
        default_action=drawn.get("default", Action.DENY),
        roles=() if session else tuple(ROLES.values()),
        clients=(Client(session.role, PLACE, networks),) if session else (),
        rules=tuple(write.rule(*each) for each in write.each(drawn["rules"])),
        rewrites=tuple(
            write.rewrite(*each) for each in write.each(drawn.get("rewrites", []))
        ),
        credentials=tuple(
            write.credential(*each) for each in write.each(drawn.get("credentials", []))
        ),
    )
    return CompiledPolicy(policy)


def _asked(target: str, session: Session | None, method: str = "GET") -> Any:
    request = request_to(method, target, ADDRESS)
    if isinstance(request, Malformed):
        return request
    return request._replace(session=session)


def _seen(decision: Decision) -> tuple[object, ...]:
    rewritten = decision.rewritten
    return (
        decision.action,
        decision.rule,
        decision.reason,
        decision.asks,
        decision.outlook,
        rewritten and rewritten.url,
        [one.name for one in decision.credentials],
        [(one.name, one.body) for one in decision.by_body],
    )


def _plain_path(value: str) -> str:
    return value.replace("\\", "%5C").replace(" ", "%20")


def targets(session: Session) -> list[str]:
    repo, *_ = repos = session.values["repo"]
    team = session.values.get("team", ("x",))[0]
    hosts = [session.values.get("docs", ("b.example",))[-1], "a.example", "git.test"]
    paths = ["x", *repos, f"{repos[-1]}/info/refs", f"{team}x", f"{repo}{team}"]
    paths += [f"acme/{repo}.git/git-receive-pack", f"{repo}/../x", f"%2e{repo}"]
    paths += [f"A/{repo.upper()}", "{session.repo}/x", "x/%2e%2e/acme/app/x"]
    return [f"https://{host}/{path}" for host, path in product(hosts, paths)]


@given(drawn_policies, st.lists(sessions, min_size=1, max_size=3))
def test_a_session_decides_as_the_policy_with_its_values(
    drawn: dict[str, Any], several: list[Session]
) -> None:
    one = _policy(drawn, None)
    by_hand = [_policy(drawn, session) for session in several]
    asked = list(dict.fromkeys(url for session in several for url in targets(session)))
    for url in asked:
        for session, plain in zip(several, by_hand, strict=True):
            for stage in (Stage.ALL, Stage.HOST):
                match = one.match(_asked(url, session))
                expected = decide(plain, plain.match(_asked(url, None)), NOW, stage)
                found = decide(one, match, NOW, stage)
                assert _seen(found) == _seen(expected), (url, session)
    for host in {url.split("/")[2] for url in asked}:
        for session, plain in zip(several, by_hand, strict=True):
            request = _asked(f"{host}:443", session, "CONNECT")
            alone = _asked(f"{host}:443", None, "CONNECT")
            assert _seen(decide(one, one.match(request), NOW)) == _seen(
                decide(plain, plain.match(alone), NOW)
            )


refs = st.lists(
    st.sampled_from(["acme/app", "x", "x/y", "a+b", "X", "{session.repo}", "tags"]),
    min_size=1,
    max_size=2,
)


@given(drawn_policies, sessions, sessions, refs)
def test_a_push_is_decided_by_the_refs_of_its_session(
    drawn: dict[str, Any], one: Session, other: Session, names: list[str]
) -> None:
    policy = _policy(drawn, None)
    for session in (one, other, one):
        plain = _policy(drawn, session)
        for url in targets(session):
            if not url.endswith("git-receive-pack"):
                continue
            every = [*names, *session.values["repo"]]
            pushed = [f"refs/heads/{name}" for name in every if "[" not in name]
            sent = written_request(
                "POST", url, push_body(WrittenPush(update=tuple(pushed)))
            )
            request = _asked(url, session, "POST")
            before = decide(policy, policy.match(request), NOW)
            alone = decide(plain, plain.match(_asked(url, None, "POST")), NOW)
            assert bool(before.by_body) == bool(alone.by_body)
            if not before.by_body:
                continue
            assert _seen(decide_sent(policy, before, sent)) == _seen(
                decide_sent(plain, alone, sent)
            )
            listed = format_listed(policy, before.by_body)
            assert listed_rules(policy, listed, session) == before.by_body


def test_a_list_of_a_session_is_read_for_its_session_alone() -> None:
    fields = {
        "clients": ["agent"],
        "hosts": ["git.test"],
        "paths": None,
        "push": ["refs/heads/{session.team}"],
        "action": "allow",
    }
    policy = _policy({"rules": [fields]}, None)
    reader = Session.assumed("reader", {"repo": ("x",)})
    for session in (None, reader):
        with pytest.raises(PatternError, match="is for sessions, and this is none"):
            listed_rules(policy, "r0,d", session)


# --- values ---------------------------------------------------------------------------


@given(st.text(max_size=12), st.sampled_from(PATHS))
def test_a_value_never_acts_as_a_pattern(value: str, pattern: str) -> None:
    """What a role takes is, in a glob, the text itself and nothing else."""
    variable = Variable("repo", VariableType.PATH, "(?s).*")
    try:
        [checked] = variable.check([value])
    except PatternError:
        return
    assert checked == value
    assert not set(value) & set('*%{}?#\\"<>|^` ')
    assert value.isascii()
    assert value.isprintable()
    [bound] = parse_path_pattern("/{session.repo}/**").with_values({"repo": (value,)})
    assert bound.text == f"/{value}/**"
    assert bound.variables == ()


HOSTILE = [
    "*",
    "**",
    "a*",
    "a/**",
    "../x",
    "a/..",
    "./a",
    "a/.",
    "a//b",
    "/a",
    "a/",
    "",
]
HOSTILE += ["%2e%2e", "%2f", "a%00", "{session.team}", "{host}", "a b", "a\tb", "a\nb"]
HOSTILE += [
    "a\x00",
    "é",
    "．．",
    "a?b",
    "a#b",
    "a\\b",
    "..;x",
    ".;",
    ";",
    "a/;x",
    "a" * 257,
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_path_is_refused(value: str) -> None:
    with pytest.raises(PatternError):
        Variable("repo", VariableType.PATH, "(?s).*").check([value])


HOSTILE_HOSTS = ["*", "*.example", ".example", "**.example", "10.0.0.1", "[::1]", ""]
HOSTILE_HOSTS += [
    "10.0.0.0/8",
    "a.invalid",
    "a.example:80",
    "https://a.example",
    "@a.example",
]
HOSTILE_HOSTS += ["a.example/", "a..example", "{session.docs}", "a example", "0x7f.1"]
HOSTILE_HOSTS += ["a.example\n", "a.example\x00", "a.example,b.example"]


@pytest.mark.parametrize("value", HOSTILE_HOSTS)
def test_a_hostile_host_is_refused(value: str) -> None:
    with pytest.raises(PatternError):
        AGENT.variables[2].check([value])


# --- how entries compare --------------------------------------------------------------


def _rule(name: str, fields: Texts) -> Rule:
    whole = {"push": None, "paths": None, "action": "allow", **fields}
    return replace(Writer(None).rule(0, whole), name=name)


def test_an_entry_with_variables_covers_nothing() -> None:
    of_hosts = _rule("h", {"clients": ["agent"], "hosts": ["{session.docs}"]})
    one_host = _rule("o", {"clients": ["agent"], "hosts": ["a.example"]})
    of_paths = replace(
        one_host,
        match=replace(one_host.match, paths=(parse_path_pattern("/{session.repo}"),)),
    )
    one_path = replace(
        one_host, match=replace(one_host.match, paths=(parse_path_pattern("/acme"),))
    )
    for wide, narrow in product((of_hosts, of_paths), (of_hosts, of_paths, one_path)):
        assert not covers(wide, narrow)
    assert not covers(of_hosts, one_host)
    assert covers(one_host, of_paths)
    for some, others in product((of_hosts, of_paths), (one_host, one_path)):
        assert overlap(some, others, {})
        assert overlap(others, some, {})


def _first_hold(fields: Texts, session: Session, urls: list[str]) -> list[bool]:
    """Tell for each URL whether an entry holds, with the values of a session."""
    plain = _policy({"rules": [{**fields, "action": "deny", "push": None}]}, session)
    return [
        decide(plain, plain.match(_asked(url, None)), NOW).rule == "r0" for url in urls
    ]


@given(entries, entries, sessions)
def test_what_is_said_of_two_entries_holds_for_each_session(
    wide: Texts, narrow: Texts, session: Session
) -> None:
    some, others = (
        replace(Writer(None).rule(0, fields), body=None) for fields in (wide, narrow)
    )
    urls = targets(session)
    held = zip(
        _first_hold(wide, session, urls),
        _first_hold(narrow, session, urls),
        strict=True,
    )
    pairs = set(held)
    if covers(some, others):
        assert (False, True) not in pairs
    if not overlap(some, others, {}):
        assert (True, True) not in pairs


# --- addresses that only sessions use -------------------------------------------------


def test_an_address_of_sessions_opens_nothing_without_one(tmp_path: Path) -> None:
    text = """
session_networks: [10.20.0.0/16]
roles: {agent: {ttl: 8h}}
rules: [{name: open, action: allow, hosts: [a.example]}]
tests:
  - {request: "GET https://a.example/", client: 10.20.0.7, expect: deny, rule: session-required}
  - {request: "GET https://a.example/", client: 10.20.0.7, session: {role: agent}, expect: allow}
  - {request: "GET https://a.example/", client: 10.21.0.7, expect: allow}
"""
    directories = tmp_path / "new", tmp_path / "old"
    for directory in directories:
        directory.mkdir()
    new = compiled_of(directories[0], text)
    old = compiled_of(
        directories[1], text.replace("10.20.0.0/16", "10.22.0.0/16").split("tests:")[0]
    )
    found = report((old, new), ("old", "new"), NOW)
    assert {
        (one.change, one.before.rule, one.after.rule) for one in found.differences
    } == {
        (Change.CLOSED, "open", "session-required"),
        (Change.OPENED, "session-required", "open"),
    }
