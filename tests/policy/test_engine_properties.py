"""The engine, and the helpers' way to it, beside a plain reading of the language:
random policies, hostile URLs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import marisa_trie
from hypothesis import example, given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.forms import Headers, values_of
from squidkeeper.policy.language.host_lists import HostList, stored_key
from squidkeeper.policy.language.hosts import parse_host_pattern
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
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.schedules import Hours, Schedule
from squidkeeper.policy.language.secret_sources import EnvironmentSource, NamedSecret
from squidkeeper.policy.language.targets import parse_target
from squidkeeper.policy.protocol.lines import Reply, Result
from squidkeeper.policy.protocol.request import parse_request, request_to, stated_tokens
from squidkeeper.policy.url import (
    Reading,
    Url,
    normalize_escapes,
    parse_url,
    read,
    readings,
)
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.helpers import credential, host_matches, rewrite
from squidkeeper.serving.helpers.acl import (
    HostScope,
    RequestScope,
    answer_host,
    answer_url,
)
from squidkeeper.serving.helpers.credential import Injector
from squidkeeper.serving.helpers.rewrite import Rewriter
from squidkeeper.serving.replies import header_annotation

from ..conftest import NOW, decided

HOSTS = [
    "a.example",
    "b.a.example",
    "c.b.a.example",
    "other.test",
    "203.0.113.7",
    "203.0.113.7",
    "10.0.0.9",
]
HOST_PATTERNS = [
    "a.example",
    ".a.example",
    "*.a.example",
    "**.a.example",
    "203.0.113.0/24",
    "203.0.113.0/24",
    "*",
]
LIST = ["b.a.example", "**.b.a.example", "other.test"]
CLIENTS = {"near": "192.0.2.0/24", "far": "198.51.100.0/24"}
# full-width
PATHS = [
    "/**",
    "/x",
    "/x/**",
    "/**/s",
    "/x/*",
    "/*",
    "/x%2fs",
    "/x*/s",
    "/x.",
    "/ｘ/**",
]
SEGMENTS = [
    "x",
    "s",
    "x",
    "s",
    "",
    ".",
    "..",
    "%2e%2e",
    "x%2fs",
    "%2f",
    ";p",
    "..;",
    "%5c",
    "%252f",
    "\\",
    "~",
    "%78",
]
SEGMENTS += ["x.", "s%20", "x::$DATA", "ｘ", "s\u200b", "．．"]
FIELDS = st.fixed_dictionaries(
    {
        "clients": st.lists(st.sampled_from([*CLIENTS]), min_size=1, max_size=2),
        "hosts": st.lists(st.sampled_from(HOST_PATTERNS), min_size=1, max_size=2),
        "lists": st.just(["list"]),
        "schemes": st.sampled_from([["http"], ["https"]]),
        "ports": st.just([range(8443, 8444)]),
        "methods": st.sampled_from([["GET"], ["POST"]]),
        "paths": st.lists(st.sampled_from(PATHS), min_size=1, max_size=2),
        "query": st.just({"q": "1*"}),
    }
)
# When a rule holds: always, until so many hours from NOW, or at some hours of each day.
TIMES: list[int | Hours | None] = [
    None,
    None,
    -1,
    1,
    Hours(11 * 60, 13 * 60),
    Hours(13 * 60, 11 * 60),
]
NAMES = [
    "clients",
    "hosts",
    "lists",
    "schemes",
    "ports",
    "methods",
    "paths",
    "query",
]
NOTHING = dict.fromkeys(NAMES)
GRANT = "grant"  # the action of what is drawn as a grant

matches = st.tuples(
    FIELDS, st.sets(st.sampled_from([*NAMES, *["hosts", "paths"] * 3]), max_size=2)
).map(
    lambda drawn: {
        name: field if name in drawn[1] else None for name, field in drawn[0].items()
    }
)
rules = st.builds(
    list.__add__,
    st.lists(
        st.tuples(
            st.sampled_from([*Action, GRANT]),
            matches,
            st.booleans(),
            st.sampled_from(TIMES),
            st.booleans(),
        ),
        max_size=5,
    ),
    st.sampled_from(
        [[], [(Action.ALLOW, NOTHING, True, None, False)]]
    ),  # an allow of all, so that not most of it is denied
)
urls = st.builds(
    "{}://{}{}/{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["", ":8443"]),
    st.lists(st.sampled_from(SEGMENTS), max_size=4).map("/".join),
    st.sampled_from(["", "?q=1", "?q=2", "?q=1&q=2", "?q=12&r"]),
)
methods = st.sampled_from(
    ["GET", "POST", "PUT", "OPTIONS", "MADE-UP", "post", "Post", "get"]
)
TARGETS = [
    "https://mirror.test/m{path}{query}",
    "https://{host}/x{path}",
    "https://{host}{path}{query}",
    "https://10.0.0.1{path}{query}",
]
rewrites = st.lists(
    st.tuples(
        matches,
        st.sampled_from(TARGETS),
        st.booleans(),
        st.sampled_from([None, None, 308]),
    ),
    max_size=2,
)
headers = st.lists(
    st.sampled_from(["Authorization", "X-Api-Key", "Api-Key"]),
    min_size=1,
    max_size=2,
    unique=True,
)
credentials = st.lists(st.tuples(matches, headers), max_size=4)


def test_the_properties_know_every_matching_field() -> None:
    # Grants alone have URLs: tests/policy/test_grants.py.
    assert {field.name for field in fields(Match)} == {*NAMES, "urls"}


Drawn = list[tuple[str, dict[str, Any], bool, int | Hours | None, bool]]
DrawnRewrites = list[tuple[dict[str, Any], str, bool, int | None]]
DrawnCredentials = list[tuple[dict[str, Any], list[str]]]


def policy_of(
    drawn: Drawn,
    default: Action,
    rewritten: Sequence[tuple[dict[str, Any], str, bool, int | None]] = (),
    injected: Sequence[tuple[dict[str, Any], list[str]]] = (),
) -> Policy:
    return Policy(
        "0",
        default_action=Action.ALLOW if default is Action.ALLOW else Action.DENY,
        ask_default=default is Action.ASK,
        clients=tuple(
            Client(name, PLACE, (ip_network(network),))
            for name, network in CLIENTS.items()
        ),
        lists={
            "list": HostList(
                PLACE,
                trie=marisa_trie.Trie(
                    [stored_key(parse_host_pattern(text).key) for text in LIST]
                ),
            )
        },
        rules=tuple(
            Rule(
                f"r{number}",
                Location("policy.yaml", number + 1, 1),
                Action(action),
                match_of(fields),
                private=private and action != Action.ASK,
                expires=NOW + timedelta(hours=expires)
                if isinstance(expires, int)
                else None,
                when=Schedule(UTC, hours=(expires,))
                if isinstance(expires, Hours)
                else None,
                websocket=websocket and action == Action.ALLOW,
            )
            for number, (action, fields, private, expires, websocket) in enumerate(
                drawn
            )
            if action != GRANT
        ),
        grants=tuple(
            Rule(
                f"g{number}",
                Location("policy.yaml", number + 1_000, 1),
                Action.ALLOW,
                match_of(fields),
                expires=NOW
                + timedelta(hours=expires if isinstance(expires, int) else 1),
                uses=3 if counted else None,
            )
            for number, (action, fields, _, expires, counted) in enumerate(drawn)
            if action == GRANT
        ),
        rewrites=tuple(
            Rewrite(
                f"w{number}",
                PLACE,
                match_of(fields),
                parse_target(target),
                redirect,
                private,
            )
            for number, (fields, target, private, redirect) in enumerate(rewritten)
        ),
        credentials=tuple(
            Credential(
                f"c{number}",
                PLACE,
                match_of(fields),
                Headers(values_of(dict.fromkeys(names, "{secret}"))),
            )
            for number, (fields, names) in enumerate(injected)
        ),
    )


defaults = st.sampled_from(list(Action))
policies = st.builds(policy_of, rules, defaults, rewrites, credentials)
ruled = st.builds(policy_of, rules, defaults)


PLACE = Location("policy.yaml", 1, 1)


def match_of(fields: dict[str, Any]) -> Match:
    return Match(
        clients=fields["clients"] and frozenset(fields["clients"]),
        hosts=fields["hosts"] and tuple(map(parse_host_pattern, fields["hosts"])),
        lists=fields["lists"] and tuple(fields["lists"]),
        schemes=fields["schemes"] and frozenset(fields["schemes"]),
        ports=fields["ports"] and tuple(fields["ports"]),
        methods=fields["methods"] and frozenset(fields["methods"]),
        paths=fields["paths"] and tuple(map(parse_path_pattern, fields["paths"])),
        query=fields["query"]
        and tuple(QueryPattern(*pair) for pair in fields["query"].items()),
    )


# --- the plain reading ----------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request with all that a policy can ask about it."""

    method: str
    url: Url
    client: str | None = None
    at: datetime = NOW


@dataclass(frozen=True)
class Outcome:
    """What is decided; of a denial nothing more is said."""

    action: Action
    private: bool = False
    rewrite: str | None = None
    url: Url | None = None
    credentials: tuple[str, ...] = ()
    websocket: bool = False
    counted: str | None = None  # the grant with a number of uses


DENIED = Outcome(Action.DENY)
ASKED = Outcome(Action.ASK)


def plain_decision(policy: Policy, asked: Asked) -> Outcome:
    """Decide as the language defines it: every reading, every entry, from top to
    bottom.
    """
    outcomes = {
        plain_outcome(policy, asked, path.reading, path.path)
        for path in readings(asked.url.path)
    }
    outcome = outcomes.pop()
    if outcomes or outcome.rewrite is None:
        return DENIED if outcomes else outcome
    rewrite = next(
        rewrite for rewrite in policy.rewrites if rewrite.name == outcome.rewrite
    )
    target = plain_target(rewrite, asked.url)
    if target == asked.url:
        return plain_fetched(policy, asked, replace(outcome, rewrite=None), target)
    if rewrite.redirect is not None:
        return replace(outcome, url=target)
    if target.host.text.startswith("10.") and not rewrite.private:
        return DENIED
    return plain_fetched(
        policy, asked, replace(outcome, private=rewrite.private, url=target), target
    )


def plain_outcome(policy: Policy, asked: Asked, reading: Reading, path: str) -> Outcome:
    """Decide for one reading, as far as to the name of the rewrite."""
    rule = next(
        (other for other in policy.rules if plainly_holds(other, asked, reading, path)),
        None,
    )
    if rule is None or rule.action is Action.ASK:
        rule = next(
            (
                grant
                for grant in policy.grants
                if plainly_holds(grant, asked, reading, path)
            ),
            rule,
        )
    allows = (
        rule.action is Action.ALLOW
        if rule
        else policy.default_action is Action.ALLOW and default_port(asked.url)
    )
    private, websocket = (
        rule is not None and rule.private,
        rule is not None and rule.websocket,
    )
    if asked.url.host.private and not private:
        return DENIED
    if not allows:
        return (
            ASKED
            if (rule.action is Action.ASK if rule else policy.ask_default)
            else DENIED
        )
    counted = rule.name if rule and rule.uses else None
    rewrite = next(
        (
            rewrite
            for rewrite in policy.rewrites
            if plainly_holds(rewrite, asked, reading, path)
        ),
        None,
    )
    if rewrite is not None:
        return Outcome(
            Action.ALLOW, private, rewrite.name, websocket=websocket, counted=counted
        )
    names = plain_credentials(policy, asked, reading, path)
    return Outcome(
        Action.ALLOW, private, credentials=names, websocket=websocket, counted=counted
    )


def plain_target(rewrite: Rewrite, url: Url) -> Url:
    """Fill in one of TARGETS; what it says ahead of the path stays ahead of it."""
    ahead, _, query = rewrite.target.text.replace("{host}", url.host.text).partition(
        "{path}"
    )
    path = re.sub("https://[^/]*", "", ahead)
    target = parse_url(
        ahead + url.path + (f"?{url.query}" if query and url.query else "")
    )
    if not all(
        f"{reading.path}/".startswith(f"{path}/") for reading in readings(target.path)
    ):
        raise InvalidUrl("it leads out of the target")
    return target


def plain_fetched(policy: Policy, asked: Asked, outcome: Outcome, url: Url) -> Outcome:
    """Add the credentials for the URL that is fetched."""
    fetched = Asked(asked.method, url, asked.client, asked.at)
    found = {
        plain_credentials(policy, fetched, path.reading, path.path)
        for path in readings(url.path)
    }
    names = found.pop()
    return DENIED if found else replace(outcome, credentials=names)


def plain_credentials(
    policy: Policy, asked: Asked, reading: Reading, path: str
) -> tuple[str, ...]:
    if asked.url.scheme != "https" or asked.method == "OPTIONS":
        return ()
    holding = [
        credential
        for credential in policy.credentials
        if plainly_holds(credential, asked, reading, path)
    ]
    chosen: list[Credential] = []
    for injected in holding:
        if not any(
            place in two.form.places for two in chosen for place in injected.form.places
        ):
            chosen.append(injected)
    return tuple(credential.name for credential in chosen)


def default_port(url: Url) -> bool:
    return url.port == {"http": 80, "https": 443}[url.scheme]


def plainly_holds(
    entry: Rule | Rewrite | Credential, asked: Asked, reading: Reading, path: str
) -> bool:
    match, url = entry.match, asked.url
    denies = isinstance(entry, Rule) and entry.action is Action.DENY
    values = [pair.partition("=") for pair in (url.query or "").split("&") if pair]
    found = [value for name, _, value in values if name == "q"]
    return all(
        (
            not isinstance(entry, Rule)
            or entry.expires is None
            or entry.expires > asked.at,
            not isinstance(entry, Rule)
            or entry.when is None
            or plain_hours(entry.when.hours[0], asked.at.hour),
            match.clients is None
            or any(plain_client(name, asked.client) for name in match.clients),
            plain_hosts(match, url.host.text),
            match.schemes is None or url.scheme in match.schemes,
            url.port == 8443 if match.ports else (denies or default_port(url)),
            match.methods is None
            or (asked.method.upper() if denies else asked.method) in match.methods,
            match.paths is None
            or any(plain_path(pattern.text, reading, path) for pattern in match.paths),
            match.query is None
            or (
                bool(found)
                and (any if denies else all)(value.startswith("1") for value in found)
            ),
        )
    )


def plain_hours(part: Hours, hour: int) -> bool:
    """Whether a part of the day holds at a full hour."""
    hours = (
        {*range(part.start // 60, 24), *range(part.end // 60)}
        if part.start > part.end
        else range(11, 13)
    )
    return hour in hours


def plain_client(name: str, client: str | None) -> bool:
    return client is not None and ip_address(client) in ip_network(CLIENTS[name])


def plain_hosts(match: Match, host: str) -> bool:
    if match.hosts is None and match.lists is None:
        return True
    patterns = [pattern.text for pattern in match.hosts or ()] + (
        LIST if match.lists else []
    )
    return any(plain_host(pattern, host) for pattern in patterns)


def plain_host(pattern: str, host: str) -> bool:
    labels = host.split(".")
    above = [".".join(labels[number:]) for number in range(1, len(labels))]
    if pattern == "*":
        return True
    if pattern.startswith("**."):
        return pattern[3:] in above
    if pattern.startswith("*."):
        return above[:1] == [pattern[2:]]
    if pattern.startswith("."):
        return host == pattern[1:] or pattern[1:] in above
    return host == pattern or (
        pattern == "203.0.113.0/24" and host.startswith("203.0.113.")
    )


def plain_path(pattern: str, reading: Reading, path: str) -> bool:
    glob = read(
        reading, normalize_escapes(pattern.replace("**", "\x02").replace("*", "\x01"))
    )
    expression = (
        re.escape(glob)
        .replace("/\x02/", "/(.*/)?")
        .replace("\x02", ".*")
        .replace("\x01", "[^/]*")
    )
    return re.fullmatch(expression, path, re.DOTALL) is not None


# --- the properties -------------------------------------------------------------------

thoroughly = settings(max_examples=200, deadline=None)
NO_X: Drawn = [(Action.DENY, {**NOTHING, "paths": ["/x/**"]}, False, None, False)]
clients = st.sampled_from([None, "192.0.2.1", "198.51.100.1", "203.0.113.1"])


def expected_of(
    policy: Policy,
    method: str,
    text: str,
    client: str | None = None,
    at: datetime = NOW,
) -> Outcome:
    try:
        return plain_decision(policy, Asked(method, parse_url(text), client, at))
    except InvalidUrl:
        return DENIED


@thoroughly
@given(policies, clients, methods, urls)
@example(
    policy_of(NO_X, Action.ALLOW), None, "GET", "https://a.example/s/../x/s"
)  # what is drawn hardly ever is this
@example(
    policy_of(NO_X, Action.ALLOW),
    None,
    "GET",
    "https://a.example/s%2f..%2fx/s%5c..%5c..%5cs",
)
@example(policy_of(NO_X, Action.ALLOW), None, "GET", "https://a.example/x./s")
def test_the_engine_decides_as_a_plain_reading_of_the_policy_does(
    policy: Policy, client: str | None, method: str, text: str
) -> None:
    decision = decided(CompiledPolicy(policy), request_to(method, text, client), NOW)
    assert outcome_of(decision) == expected_of(policy, method, text, client)


def outcome_of(decision: Decision) -> Outcome:
    if not decision.allowed:
        return ASKED if decision.asks else DENIED
    names = tuple(credential.name for credential in decision.credentials)
    where, counted = (
        decision.rewritten,
        decision.counted.name if decision.counted else None,
    )
    to = (
        None if where is None else where.rewrite.name,
        None if where is None else where.url,
    )
    return Outcome(
        Action.ALLOW, decision.private, *to, names, decision.websocket, counted
    )


@thoroughly
@given(policies, methods, urls, st.one_of(st.none(), urls, st.just("//no-url")))
def test_credentials_are_those_of_the_url_that_is_fetched_whatever_the_rewriter_answered(
    policy: Policy, method: str, text: str, final_url: str | None
) -> None:
    expected = expected_of(policy, method, text)
    if final_url is None:
        expected = expected if expected.rewrite is None else DENIED
    elif expected.action is Action.ALLOW:
        try:
            expected = plain_fetched(
                policy, Asked(method, parse_url(text)), expected, parse_url(final_url)
            )
        except InvalidUrl:
            expected = DENIED
    compiled = CompiledPolicy(policy)
    match = compiled.match(request_to(method, text))
    for _ in "new", "kept":
        decision = decide(compiled, match, NOW, Stage.FETCH, text, final_url)
        assert outcome_of(decision) == expected


# --- the helpers' way: lines, caches, two scopes --------------------------------------

UNUSUAL = re.compile(
    re.search(
        r"^acl sk_is_unusual_url url_regex (\S+)$",
        (Path(__file__).parents[2] / "squid/squidkeeper.conf").read_text(),
        re.MULTILINE,
    )[1]  # type: ignore[index] # it is there, or all below fails
)
asked_of_one = st.builds(
    lambda url, path, *how: (
        [(method, url) for method in how]
        + [(how[0], "/".join([*url.split("/")[:3], path]))]
    ),
    urls,
    st.sampled_from(["", "x", "x/s", "?q=1"]),
    methods,
    methods,
)
asked_for = st.builds(lambda one, other: [*one, *other], asked_of_one, asked_of_one)
requests = st.lists(
    st.tuples(st.integers(0, 5), clients, st.sampled_from([-2, 0, 2])),
    min_size=2,
    max_size=6,
)


def tokens_of(method: str, text: str, client: str | None) -> str:
    """Write the tokens that every line of Squid's has."""
    tokens, _ = stated_tokens(method, text, client)
    return " ".join("-" if token is None else quote(token, safe="") for token in tokens)


class EndlessUses(GrantUses):
    """Counts nothing: which requests a grant is for is the question here."""

    def take(self, grant: Rule) -> bool:
        return grant.uses is not None


class Helpers:
    """All four, with one policy and at one time, each with what it keeps."""

    def __init__(self, policy: Policy) -> None:
        compiled = CompiledPolicy(policy)
        self.host, self.rewriter = HostScope(compiled), Rewriter(compiled)
        self.request = RequestScope(compiled, uses=EndlessUses(Path()))
        self.injector = Injector(compiled)
        self.injector.secrets = SecretStore(
            {"secret": NamedSecret("secret", PLACE, EnvironmentSource("IT"))},
            {"IT": "s3cret"},
        )

    def ask(
        self, method: str, text: str, client: str | None, at: datetime
    ) -> tuple[Reply, Reply, Reply, Reply]:
        """Ask at host scope, at request scope, the rewriter, and then for credentials,
        as Squid would.
        """
        url = quote(text)
        with patch.object(host_matches, "datetime") as clock:
            clock.now.return_value = at
            tokens = self.in_a_tunnel(tokens_of(method, text, client))
            rewritten = rewrite.answer(self.rewriter, f"{text} {tokens}".encode())
            target = quote(dict(rewritten.annotations).get("rewrite-url") or "-")
            return (
                answer_host(self.host, f"{tokens} -".encode()),
                answer_url(self.request, f"{tokens} {url} -".encode()),
                rewritten,
                credential.answer(
                    self.injector, f"{tokens} {url} {target} -".encode(), 4
                ),
            )

    def in_a_tunnel(self, tokens: str) -> str:
        """Put the tag of the tunnel that its CONNECT opens into the tokens of a
        request.
        """
        client, user, method, scheme, host, port, sni, _, token = tokens.split()
        if scheme != "https":
            return tokens
        connect = answer_host(
            self.host, f"{client} {user} CONNECT - {host} {port} - - {token} -".encode()
        )
        tag = quote(dict(connect.annotations)["clt_conn_tag"], safe="")
        return " ".join((client, user, method, scheme, host, port, sni, tag, token))


@thoroughly
@given(policies, asked_for, requests)
def test_what_squid_is_answered_line_after_line_is_what_a_plain_reading_says(
    policy: Policy,
    where: list[tuple[str, str]],
    asked: list[tuple[int, str | None, int]],
) -> None:
    helpers = Helpers(policy)
    for (
        number,
        client,
        hours,
    ) in asked:  # again and again of the same place: from the cache, at any time
        method, text = where[number]
        at = NOW + timedelta(hours=hours)
        at_host, at_request, rewritten_to, granted = helpers.ask(
            method, text, client, at
        )
        expected = expected_of(policy, method, text, client, at)
        said = dict(at_request.annotations)
        assert (at_request.result is Result.OK) == (expected.action is Action.ALLOW)
        if expected.action is Action.ALLOW and expected.rewrite is None:
            assert said["private_"] == ("yes" if expected.private else "no")
            assert (said.get("websocket_") == "yes") == expected.websocket
        said = dict(rewritten_to.annotations)
        leads_to = said.get("rewrite-url") or said.get("url")
        if expected.action is Action.ALLOW:
            assert leads_to == (None if expected.rewrite is None else str(expected.url))
        if "url" not in said:  # a redirect
            assert (granted.result is Result.OK) == (expected.action is Action.ALLOW)
            assert names_of(policy, granted) == ",".join(expected.credentials)
        check_host_scope(at_host, text, expected)


def names_of(policy: Policy, granted: Reply) -> str:
    """Tell which credentials a reply has, and check that every header of them is there,
    once, and no other.
    """
    said = dict(granted.annotations)
    names = said.get("credential_", "")
    places = [
        place
        for held in policy.credentials
        if held.name in names.split(",")
        for place in held.form.places
    ]
    injected = [name for name, value in granted.annotations if value == "s3cret"]
    assert sorted(injected) == sorted(map(header_annotation, places))
    return names


def is_read_in_too_many_ways(text: str) -> bool:
    try:
        readings(parse_url(text).path)
    except InvalidUrl:
        return True
    return False


def check_host_scope(reply: Reply, text: str, expected: Outcome) -> None:
    """Squid asks again where the answer says so or the URL is unusual; what it does not
    ask about has to hold as it is.

    The one thing that only request scope denies is a usual URL with more readings than
    are decided.
    """
    if is_read_in_too_many_ways(text):
        return
    said = dict(reply.annotations)
    if reply.result is not Result.OK:
        assert expected.action is Action.DENY
        return
    if expected.action is Action.ASK:
        assert said["tag"].startswith("sk_url_decides")
    by_url = said["tag"].startswith("sk_url_decides")
    asks = by_url or UNUSUAL.search(text)
    rewrites, injects = said.get("rewrite_") == "yes", said.get("inject_") == "yes"
    # readings can differ in credentials alone
    assert asks or rewrites or injects or expected.action is Action.ALLOW
    if expected.action is Action.ALLOW:
        assert rewrites or expected.rewrite is None
        assert rewrites or injects or not expected.credentials
        assert (
            asks
            or expected.rewrite
            or said.get("private_", "no") == ("yes" if expected.private else "no")
        )
    if said.get("websocket_") == "yes" and expected.action is Action.ALLOW:
        # as far as the answer shows
        is_unrestricted = said.get("override_") == "yes" or injects
        assert expected.websocket or is_unrestricted or not by_url
    if said["tag"].startswith("sk_final"):
        assert not {"rewrite_", "inject_"} & set(said)


@given(ruled, methods, urls)
def test_host_scope_never_decides_otherwise_than_request_scope(
    policy: Policy, method: str, text: str
) -> None:
    compiled = CompiledPolicy(policy)
    match = compiled.match(request_to(method, text))
    at_host = decide(compiled, match, NOW, Stage.HOST)
    decision = decide(compiled, match, NOW)
    if not at_host.outlook.needs_url and decision.rule not in (
        "invalid-request",
        "ambiguous-path",
    ):
        assert (at_host.action, at_host.rule, at_host.private) == (
            decision.action,
            decision.rule,
            decision.private,
        )
    if decision.rule == "ambiguous-path":
        assert at_host.outlook.needs_url


@given(ruled, methods, urls)
def test_what_may_pass_inside_a_tunnel_finds_the_tunnel_open(
    policy: Policy, method: str, text: str
) -> None:
    compiled = CompiledPolicy(policy)
    url = parse_url(text.replace("http:", "https:"))
    if decided(compiled, request_to(method, str(url)), NOW).allowed:
        assert decided(
            compiled, request_to("CONNECT", f"{url.host.text}:{url.port}"), NOW
        ).allowed


def with_passthrough(policy: Policy) -> Policy:
    """Let every rule of a policy that could be one pass tunnels through, whatever else
    the policy holds.
    """
    https = frozenset({"https"})
    return replace(
        policy,
        rules=tuple(
            replace(
                rule,
                passthrough=True,
                websocket=False,
                match=replace(rule.match, schemes=https),
            )
            if rule.action is Action.ALLOW
            and rule.certain
            and rule.match.hosts
            and rule.match.paths is None
            else rule
            for rule in policy.rules
        ),
    )


@given(policies, clients, methods, urls)
def test_every_request_of_a_tunnel_that_passes_through_would_be_allowed_as_it_is(
    policy: Policy, client: str | None, method: str, text: str
) -> None:
    policy = with_passthrough(policy)
    compiled, url = CompiledPolicy(policy), parse_url(text.replace("http:", "https:"))
    tunnel = decided(
        compiled, request_to("CONNECT", f"{url.host.text}:{url.port}", client), NOW
    )
    decision = decided(compiled, request_to(method, str(url), client), NOW)
    if tunnel.passthrough and decision.rule != "invalid-request":
        assert (decision.action, decision.rule, decision.private) == (
            Action.ALLOW,
            tunnel.rule,
            tunnel.private,
        )
        assert outcome_of(decision) == Outcome(Action.ALLOW, tunnel.private)
        assert next(
            rule for rule in policy.rules if rule.name == tunnel.rule
        ).passthrough


@given(policies, st.sampled_from([*HOSTS, None, "a.example.", "A.EXAMPLE"]), urls)
def test_a_tunnel_is_spliced_only_where_it_passes_through_and_tls_names_its_host(
    policy: Policy, sni: str | None, text: str
) -> None:
    compiled = CompiledPolicy(with_passthrough(policy))
    url = parse_url(text)
    host, authority = url.host, f"{url.host.text}:{url.port}"
    stated, _ = stated_tokens("CONNECT", authority)
    opened = decided(compiled, request_to("CONNECT", authority), NOW)
    spliced = decided(compiled, parse_request([*stated[:6], sni, authority, None]), NOW)
    agrees = (
        host.address is not None
        if sni is None
        else sni.lower().rstrip(".") == host.text
    )
    assert spliced.allowed == (opened.passthrough and agrees)
    if not agrees:
        assert spliced.rule == "authority-mismatch"
