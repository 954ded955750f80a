"""Host patterns, against a matcher that takes the language at its word."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.hosts import (
    HostForm,
    host_keys,
    parse_host_pattern,
    parse_network,
)
from squidkeeper.policy.language.matching.host_fields import patterns_overlap
from squidkeeper.policy.url import Host, parse_host

HOSTS = {
    "example.com": (
        ["example.com", "EXAMPLE.COM."],
        ["www.example.com", "example.org", "xexample.com"],
    ),
    ".example.com": (
        ["example.com", "www.example.com", "a.b.example.com"],
        ["xexample.com", "com"],
    ),
    "*.example.com": (["www.example.com"], ["example.com", "a.b.example.com"]),
    "**.example.com": (
        ["www.example.com", "a.b.example.com"],
        ["example.com", "xexample.com"],
    ),
    "*": (["example.com", "com", "192.0.2.1", "[::1]"], []),
    "203.0.113.0/24": (
        ["203.0.113.9", "3405803785", "0xcb.0x00.0x71.9"],
        ["203.0.114.9", "example.com", "[::1]"],
    ),
    "192.0.2.7": (["192.0.2.7", "[::ffff:192.0.2.7]"], ["192.0.2.8"]),
    "2001:db8::/32": (["[2001:db8::1]"], ["[2001:db9::1]", "192.0.2.1"]),
    "[2001:db8::1]": (["[2001:DB8:0::1]"], ["[2001:db8::2]"]),
    "BÜCHER.example": (
        ["xn--bcher-kva.example", "bücher.example."],
        ["bucher.example"],
    ),
    "*.Bücher.Example.": (["a.xn--bcher-kva.example"], ["xn--bcher-kva.example"]),
}


@pytest.mark.parametrize("pattern", HOSTS)
def test_a_pattern_matches_its_hosts_and_no_others(pattern: str) -> None:
    parsed = parse_host_pattern(pattern)
    matching, others = HOSTS[pattern]
    assert [host for host in matching if not parsed.matches(parse_host(host))] == []
    assert [host for host in others if parsed.matches(parse_host(host))] == []


OVERLAPS = [
    ("example.com", ".example.com", True),
    ("example.com", "*.example.com", False),
    ("a.example.com", "*.example.com", True),
    ("*.example.com", "**.example.com", True),
    ("*.example.com", ".a.example.com", True),
    ("*.example.com", "**.a.example.com", False),
    ("**.example.com", "*.a.example.com", True),
    (".example.com", ".example.org", False),
    ("xexample.com", ".example.com", False),
    ("*", "example.com", True),
    ("*", "203.0.113.0/24", True),
    ("203.0.113.0/24", "203.0.113.7", True),
    ("203.0.113.0/24", "203.0.114.0/24", False),
    ("203.0.113.0/24", "2001:db8::/32", False),
    ("203.0.113.0/24", "example.com", False),
]


@pytest.mark.parametrize(("one", "two", "expected"), OVERLAPS)
def test_patterns_overlap_where_one_host_matches_both(
    one: str, two: str, expected: bool
) -> None:
    first, second = parse_host_pattern(one), parse_host_pattern(two)
    assert (patterns_overlap(first, second), patterns_overlap(second, first)) == (
        expected,
        expected,
    )
    assert patterns_overlap(first, first)


LABELS = st.sampled_from(["a", "b", "com"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
FORMS = st.sampled_from([HostForm.EXACT, HostForm.TREE, HostForm.LABEL, HostForm.UNDER])


def matches(form: HostForm, name: str, host: str) -> bool:
    """Match by the words of the language alone."""
    if form is HostForm.EXACT:
        return host == name
    if form is HostForm.TREE and host == name:
        return True
    if not host.endswith(f".{name}"):
        return False
    return form is not HostForm.LABEL or "." not in host.removesuffix(f".{name}")


@given(FORMS, NAMES, NAMES)
@example(HostForm.LABEL, "com", "a.com")
@example(HostForm.UNDER, "com", "com")
def test_keys_find_exactly_the_patterns_that_match(
    form: HostForm, name: str, host: str
) -> None:
    pattern = parse_host_pattern(f"{form}{name}")
    expected = matches(form, name, host)
    assert (pattern.key in host_keys(Host(host))) is expected
    assert pattern.matches(Host(host)) is expected


SHORT_NAMES = st.lists(LABELS, min_size=1, max_size=2).map(".".join)
SHORT_HOSTS = [
    ".".join(labels)
    for length in (1, 2, 3, 4)
    for labels in product(("a", "b", "com"), repeat=length)
]


@given(FORMS, SHORT_NAMES, FORMS, SHORT_NAMES)
def test_patterns_overlap_exactly_where_a_host_matches_both(
    form: HostForm, name: str, other_form: HostForm, other: str
) -> None:
    expected = any(
        matches(form, name, host) and matches(other_form, other, host)
        for host in SHORT_HOSTS
    )
    assert (
        patterns_overlap(
            parse_host_pattern(f"{form}{name}"),
            parse_host_pattern(f"{other_form}{other}"),
        )
        is expected
    )


@pytest.mark.parametrize("form", [HostForm.TREE, HostForm.LABEL, HostForm.UNDER])
def test_a_whole_top_level_domain_is_known_from_a_zone_of_ones_own(
    form: HostForm,
) -> None:
    covering = ("com", "COM.", "рф", "xn--p1ai")
    assert [
        name
        for name in covering
        if not parse_host_pattern(f"{form}{name}").covers_top_level
    ] == []
    others = ("internal", "lan", "consul", "example.com", "co.uk")
    assert [
        name for name in others if parse_host_pattern(f"{form}{name}").covers_top_level
    ] == []
    assert not parse_host_pattern("com").covers_top_level


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("192.168.1", "192.168.0.1"),
        ("010.0.0.1", "8.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("3232235777", "192.168.1.1"),
        ("192.0.2.7.", "192.0.2.7"),
    ],
)
def test_an_address_that_is_read_as_another_one_than_it_seems_is_no_pattern(
    text: str, read_as: str
) -> None:
    with pytest.raises(
        PatternError,
        match=f"'{text}' is a way to write {read_as}, expected the address itself",
    ):
        parse_host_pattern(text)


@given(NAMES)
def test_keys_of_a_host_are_distinct_and_end_with_any(host: str) -> None:
    keys = host_keys(Host(host))
    assert len(keys) == len(set(keys))
    assert keys[0] == host
    assert keys[-1] == "*"
    assert host_keys(Host(host), wildcards=False) == [
        key for key in keys if not key.startswith(("*.", "**."))
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "*.",
        "a..b",
        "*.*.com",
        "a*.com",
        "a.*.com",
        "a b",
        "a/b",
        "a:1",
        "a@b",
        "http://a/",
        "1.2.3.4.5",
        "0xg.0x",
    ],
)
def test_what_can_never_match_is_no_pattern(text: str) -> None:
    with pytest.raises(PatternError, match=r"expected|such as"):
        parse_host_pattern(text)


def test_a_network_may_not_have_host_bits_and_a_mapped_one_is_of_ipv4() -> None:
    assert parse_network("::ffff:10.0.0.0/104") == ip_network("10.0.0.0/8")
    assert parse_network("10.0.0.7") == ip_network("10.0.0.7/32")
    with pytest.raises(PatternError, match=r"host bits set, expected 10\.0\.0\.0/8"):
        parse_network("10.1.0.0/8")
    for text in ("10.0.0.0/33", "10.0.0/8", "ten", "", "10.0.0.0/255.0.255.0"):
        with pytest.raises(PatternError):
            parse_network(text)
