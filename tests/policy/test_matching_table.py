"""The table of matching fields says what the engine does: for random entries and
requests, an entry that covers another one holds wherever that one does, and entries
that do not overlap never both hold.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine.fields import UrlFacts, holds_for_host, holds_for_url
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.matching.covering_index import CoveringIndex
from squidkeeper.policy.language.matching.host_fields import HostNeighbours
from squidkeeper.policy.language.matching.table import FIELDS, covers, overlap
from squidkeeper.policy.language.model import Action, HostFacts, Match, Rule
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.url import Host, readings

from ..conftest import NOW

HOSTS = ("a.example", "b.example", "x.a.example")
PATHS = ("/", "/x", "/x/y", "/z")
METHODS = ("GET", "POST", "get")
QUERIES = (None, "q=1", "q=2", "q=1&q=2")
URLS = [f"https://a.example{path}" for path in PATHS[:2]]


def some(*values: Any) -> st.SearchStrategy[tuple[Any, ...] | None]:
    """One or two of these values, or a field that is left out."""
    chosen = st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)
    return st.none() | chosen.map(tuple)


def names(*values: str) -> st.SearchStrategy[frozenset[str] | None]:
    return some(*values).map(lambda found: None if found is None else frozenset(found))


PATTERNS = ("a.example", ".a.example", "*.a.example", "**.example", "*")
MATCHES = st.builds(
    Match,
    clients=names("one", "two"),
    hosts=some(*map(parse_host_pattern, PATTERNS)),
    schemes=names("http", "https"),
    ports=some(range(80, 81), range(81, 444), range(443, 444)),
    methods=names("GET", "POST"),
    paths=some(*map(parse_path_pattern, ("/", "/x", "/x/**", "/*", "/**"))),
    query=some(QueryPattern("q", "1"), QueryPattern("q", "*")),
    urls=st.none() | st.none() | some(*map(parse_exact_url, URLS)),
)
RULES = st.builds(
    Rule,
    name=st.just("rule"),
    location=st.just(Location("policy.yaml")),
    action=st.sampled_from([Action.ALLOW, Action.DENY]),
    match=MATCHES,
)
REQUESTS = st.tuples(
    st.builds(
        HostFacts,
        # clients with different names count as different
        clients=st.sampled_from([(), ("one",), ("two",)]),
        method=st.sampled_from(METHODS),
        scheme=st.sampled_from(["http", "https"]),
        host=st.sampled_from(HOSTS).map(Host),
        port=st.sampled_from([80, 81, 443, 8443]),
    ),
    st.sampled_from(PATHS),
    st.sampled_from(QUERIES),
)
NO_LISTS: dict[str, HostList] = {}


def holds(rule: Rule, request: tuple[HostFacts, str, str | None]) -> bool:
    """Ask the engine's fields, and the index of hosts."""
    facts, path, query = request
    url = UrlFacts(readings(path)[0], query, path)
    of_host = HostIndex([rule], NO_LISTS).positions(facts.host)
    return bool(of_host) and holds_for_host(rule, facts) and holds_for_url(rule, url)


@given(
    RULES,
    RULES,
    st.sets(st.sampled_from([*FIELDS])),
    st.lists(REQUESTS, min_size=20, max_size=20),
)
def test_two_rules_compare_as_they_hold_for_requests(
    one: Rule,
    other: Rule,
    different: set[str],
    requests: list[tuple[HostFacts, str, str | None]],
) -> None:
    changed = {name: getattr(other.match, name) for name in different}
    two = replace(other, match=replace(one.match, **changed))
    index, neighbours = CoveringIndex([one], NO_LISTS), HostNeighbours([two])
    if covers(one, two):
        event("covers")
        # of entries that only together cover a pattern, the index lists none
        assert index.covering(two.match) or len(two.match.hosts or ()) > 1
    for request in requests:
        held = holds(one, request), holds(two, request)
        if held[1] and covers(one, two):
            event("covered")
            assert held[0]
        if all(held):
            event("overlap")
            assert overlap(one, two, NO_LISTS)
            assert overlap(two, one, NO_LISTS)
            assert [*neighbours.of(one)] == [0]


@given(RULES)
def test_a_rule_covers_itself(rule: Rule) -> None:
    assert covers(rule, rule)


GET, LATER = frozenset({"GET"}), frozenset({"POST"})
ONE, ANY = QueryPattern("q", "1"), QueryPattern("q", "*")


def rule_of(action: Action, **fields: Any) -> Rule:
    """Make a rule for one port: left out, a deny would be for others too."""
    match = Match(ports=(range(443, 444),), **fields)
    return Rule("rule", Location("policy.yaml"), action, match)


def test_a_deny_is_for_its_methods_in_another_case_and_for_one_value_of_a_query() -> (
    None
):
    allow, deny = (
        rule_of(action, methods=GET, query=(ONE,))
        for action in (Action.ALLOW, Action.DENY)
    )
    assert covers(deny, allow)
    assert not covers(allow, deny)
    assert not covers(rule_of(Action.ALLOW, query=(ONE,)), deny)
    assert not covers(rule_of(Action.ALLOW, methods=GET), deny)
    assert overlap(deny, rule_of(Action.ALLOW, methods=LATER), NO_LISTS)
    assert not overlap(allow, rule_of(Action.ALLOW, methods=LATER), NO_LISTS)
    assert not covers(allow, rule_of(Action.ALLOW, methods=GET, query=(ANY,)))


def test_a_rule_covers_another_one_only_as_long_as_it_matches() -> None:
    always = rule_of(Action.ALLOW)
    soon, later = (
        replace(always, expires=NOW + timedelta(hours=hours)) for hours in (1, 2)
    )
    assert covers(always, soon)
    assert covers(later, soon)
    assert not covers(soon, later)
    assert not covers(soon, always)
