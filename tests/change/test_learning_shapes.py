"""Path and host shapes: how far `squidkeeper learn` generalises, and no further."""

from __future__ import annotations

import string
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.learning.path_shapes import (
    PATTERNS_LISTED,
    VALUES_LISTED,
    Evidence,
    PathShapes,
    covers,
    host_patterns,
    is_address_like,
    is_shared,
    literal_shape,
    pattern_of,
    shape_of,
)
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.public_suffixes import registrable_domain
from squidkeeper.policy.url import Host, parse_host, parse_url, readings
from tests.conftest import few_and_many, hold_for

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def evidence(machine: str = "192.168.137.2") -> Evidence:
    return Evidence(1, AT, AT, frozenset({AT.date()}), *[frozenset({machine})] * 2)


def patterns(paths: Iterable[str], *, keep_first: bool = False) -> list[str]:
    shapes = PathShapes(keep_first=keep_first)
    for path in paths:
        shape = shape_of(path, keep_first=keep_first)
        assert shape is not None, path
        shapes.add(shape, evidence())
    return [pattern_of(shape) for shape in shapes.result()]


def of_machines(*paths_of_each: Iterable[str]) -> list[str]:
    shapes = PathShapes()
    for number, paths in enumerate(paths_of_each):
        for path in paths:
            shapes.add(shape_of(path) or (), evidence(f"192.168.137.{number}"))
    return [pattern_of(shape) for shape in shapes.result()]


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "/"),
        ("/items/17", "/items/*"),
        ("/v1/models", "/v1/models"),
        ("/o/550e8400-e29b-41d4-a716-446655440000", "/o/*"),
        ("/o/550E8400-E29B-41D4-A716-446655440000.json", "/o/*.json"),
        ("/commit/deadbeef1", "/commit/*"),
        (
            "/decade/facade",
            "/decade/facade",
        ),  # letters of hexadecimal digits, and no digit
        ("/logs/2026-11-25/", "/logs/*/"),
        ("/logs/2026-11-25T10:00:00Z", "/logs/*"),
        (f"/v2/lib/blobs/sha256:{'ab1' * 20}", "/v2/lib/blobs/*"),
        ("/threads/thread_abc123def456ghi7/messages", "/threads/thread_*/messages"),
        ("/internationalization", "/internationalization"),
        (
            "/releases/python-package-release-2024",
            "/releases/python-package-release-2024",
        ),
        ("/six-1.17.0-py2.py3-none-any.whl", "/six-1.17.0-py2.py3-none-any.whl"),
        ("/x/eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "/x/*"),
        (f"/{'long' * 30}", "/*"),
        ("/a*b/c", "/*/c"),
        ("/a%20b/c", "/a%20b/c"),
    ],
)
def test_a_segment_that_looks_like_an_identifier_is_any_text(
    path: str, pattern: str
) -> None:
    assert patterns([path]) == [pattern]


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b",
        "/a/./b",
        "/a//b",
        "/x%2fy",
        "/..%2f",
        "/a%5c..%5cb",
        "/%ef%bc%8f",
        "/;%2525",
        "/%ef%ac%80%20",
    ],
)
def test_a_path_that_servers_read_as_no_pattern_says_is_not_generalised(
    path: str,
) -> None:
    assert shape_of(parse_url(f"https://a.example{path}").path) is None


def test_such_a_path_is_proposed_as_it_is_unless_its_segments_lead_elsewhere() -> None:
    assert literal_shape("/@types%2Fnode") == ("@types%2Fnode",)
    assert [
        literal_shape(path) for path in ("/a/../b", "/a//b", "/a/.", "/a*", "/;%2525")
    ] == [None] * 5


def test_values_at_one_place_are_listed_until_they_are_too_many() -> None:
    names = list(string.ascii_lowercase)
    few, many = (
        [f"/simple/{name}/" for name in names[:count]]
        for count in (VALUES_LISTED, VALUES_LISTED + 1)
    )
    assert patterns(few) == few
    assert patterns(many) == ["/simple/*/"]


def test_what_any_value_covers_is_left_out() -> None:
    assert patterns(["/users/1", "/users/me", "/users/me/keys"]) == [
        "/users/*",
        "/users/me/keys",
    ]


def test_too_many_patterns_become_one_with_their_common_beginning() -> None:
    paths = [
        f"/docs/{a}/{b}{'/x' * depth}"
        for a in "abc"
        for b in "def"
        for depth in range(3)
    ]
    assert patterns([*paths, "/v1/status"]) == [
        "/docs/a/**",
        "/docs/b/**",
        "/docs/c/**",
        "/v1/status",
    ]


def test_the_bucket_of_a_shared_store_is_never_generalised() -> None:
    mine = [f"/bucket/{number}" for number in range(50)]
    assert patterns(mine, keep_first=True) == ["/bucket/*"]
    assert patterns(
        [f"/bucket-{number}/x" for number in range(9)], keep_first=True
    ) == [f"/bucket-{number}/x" for number in range(9)]
    assert (
        patterns([f"/bucket-{number}/x" for number in range(50)], keep_first=True) == []
    )
    assert (
        patterns([f"/bucket-{number}/x" for number in range(5000)], keep_first=True)
        == []
    )
    assert shape_of("/b*/x", keep_first=True) is None


def test_one_machine_makes_no_pattern_wider_for_the_others() -> None:
    others = ["/a/x", "/b/x"]
    alone = of_machines(others, others)
    assert alone == others
    flood = [f"/v{number}w/x" for number in range(1000)]
    with_flood = of_machines(others, others, flood)
    assert "/*/x" not in with_flood or set(others) <= set(with_flood)


segments = st.one_of(
    st.sampled_from(
        [
            "a",
            "b",
            "v1",
            "items",
            "1",
            "2",
            "deadbeef01",
            "x.json",
            "7.json",
            "%20",
            "a%20b",
            "~",
            "é",
        ]
    ),
    st.text(
        alphabet=string.printable[:94].replace("#", "").replace("?", "") + "é／",
        min_size=0,
        max_size=6,
    ),
)
paths = st.lists(segments, min_size=1, max_size=5).map(
    lambda some: "/" + "/".join(some)
)


def read(path: str) -> str | None:
    try:
        return parse_url(f"https://a.example{path}").path
    except InvalidUrl:
        return None


def check_that_all_match(some: list[str], keep_first: bool) -> None:
    shapes = PathShapes(keep_first=keep_first)
    added = []
    for path in filter(None, map(read, some)):
        shape = shape_of(path, keep_first=keep_first)
        if shape is not None:
            shapes.add(shape, evidence())
            added.append(path)
    result = shapes.result()
    parsed = [parse_path_pattern(pattern_of(shape)) for shape in result]
    tenants = {path.split("/")[1] for path in added}
    if keep_first and len(tenants) > PATTERNS_LISTED:
        assert result == {}
        return
    for path in added:
        for reading in readings(path):
            assert any(pattern.match(reading) is not None for pattern in parsed), (
                path,
                reading,
                parsed,
            )
    assert sum(evidence.count for evidence in result.values()) == len(added)
    assert keep_first or len(result) <= PATTERNS_LISTED
    assert not keep_first or {shape[0] for shape in result} == tenants


@few_and_many(50, 2000)
def test_each_path_is_matched_by_what_is_made_of_all(examples: int) -> None:
    hold_for(
        check_that_all_match,
        st.lists(paths, max_size=40),
        st.booleans(),
        examples=examples,
    )


@settings(max_examples=50)
@given(st.permutations([f"/{a}/{b}" for a in "abcdefg" for b in "xy1"]))
def test_the_order_of_paths_makes_no_difference(some: list[str]) -> None:
    assert patterns(some) == patterns(sorted(some))


shapes = st.lists(
    st.sampled_from(["a", "b", "*", "a*", "*.json", "x.json", ""]),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50)
@given(shapes, st.booleans(), paths)
def test_a_shape_matches_all_that_it_covers(
    wide: list[str], rest: bool, path: str
) -> None:
    shape, text = (*wide, *(["**"] if rest else [])), read(path)
    narrow = shape_of(text) if text else None
    if narrow is not None and covers(shape, narrow):
        pattern = parse_path_pattern(pattern_of(shape))
        assert all(
            pattern.match(reading) is not None for reading in readings(text or "")
        )


def test_the_work_is_bounded_whatever_a_client_makes_up() -> None:
    shapes = PathShapes()
    for number in range(20_000):
        digits = f"{number:015b}".translate({48: "a", 49: "b"})
        shapes.add(tuple(digits), evidence())
    assert len(shapes._shapes) <= 2000
    assert len(shapes.result()) <= PATTERNS_LISTED


# --- hosts ----------------------------------------------------------------------------


def hosts(names: Iterable[str]) -> dict[str, str]:
    return host_patterns(dict.fromkeys(names, evidence()))


def test_hosts_under_one_name_are_listed_until_they_are_too_many() -> None:
    few, many = (
        [f"cdn{n}.static.example.co.uk" for n in range(count)]
        for count in (VALUES_LISTED, VALUES_LISTED + 1)
    )
    assert hosts(few) == {name: name for name in few}
    assert set(hosts(many).values()) == {"*.static.example.co.uk"}


def test_hosts_at_many_depths_are_those_under_the_domain_of_one_owner() -> None:
    names = [f"a.b{number}.example.com" for number in range(20)]
    assert set(hosts([*names, "example.com"]).items()) == {
        *((name, "**.example.com") for name in names),
        ("example.com", "example.com"),
    }


@pytest.mark.parametrize(
    "suffix",
    ["github.io", "co.uk", "s3.amazonaws.com", "blob.core.windows.net", "example"],
)
def test_hosts_under_a_public_suffix_have_different_owners(suffix: str) -> None:
    names = [f"bucket{number}.{suffix}" for number in range(50)]
    assert hosts(names) == {name: name for name in names}


@settings(max_examples=50)
@given(
    st.lists(
        st.from_regex(
            r"([a-c]{1,2}\.){0,3}[ab]\.(com|github\.io|co\.uk|lan)", fullmatch=True
        ),
        max_size=60,
    )
)
def test_a_host_pattern_matches_its_hosts_and_is_within_their_domain(
    names: list[str],
) -> None:
    for name, pattern in hosts(names).items():
        parsed = parse_host_pattern(pattern)
        assert parsed.matches(Host(name))
        assert registrable_domain(parsed.name) == registrable_domain(name)


@pytest.mark.parametrize(
    "name",
    [
        "203.0.113.7",
        "[2001:db8::1]",
        "203.0.113.7.nip.io",
        "ec2-203-0-113-7.example.com",
    ],
)
def test_a_host_that_holds_an_address_is_address_like(name: str) -> None:
    assert is_address_like(parse_host(name))


@pytest.mark.parametrize(
    "name", ["example.com", "v1-2-3.example.com", "1.2.example.com", "a1.example.com"]
)
def test_a_host_with_numbers_is_not(name: str) -> None:
    assert not is_address_like(parse_host(name))


def test_a_store_whose_paths_begin_with_a_bucket_is_shared() -> None:
    assert [
        is_shared(name)
        for name in ("s3.amazonaws.com", "storage.googleapis.com", "example.com", "lan")
    ] == [*(True, True, False, False)]
