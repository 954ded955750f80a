"""Query patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.policy.language import queries
from squidkeeper.policy.language.queries import QueryPattern, QueryValues, parse_query


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (None, {}),
        ("", {}),
        ("&&", {}),
        ("a=1&b=2&a=3", {"a": ("1", "3"), "b": ("2",)}),
        ("a=1&a=2&a=1", {"a": ("1", "2")}),
        ("a", {"a": ("",)}),
        ("a=", {"a": ("",)}),
        ("=1", {"": ("1",)}),
        ("a=b=c", {"a": ("b=c",)}),
        ("a+b=c+d", {"a b": ("c d",)}),
        ("%61=%2B%26", {"a": ("+&",)}),
        ("a;b=1", {"a;b": ("1",), "a": ("",), "b": ("1",)}),
        ("a=%ff", {"a": ("\ufffd",)}),
    ],
)
def test_names_and_values_are_form_decoded(query: str | None, values: dict[str, tuple[str, ...]]) -> None:
    assert parse_query(query) == values


def test_an_allow_asks_for_all_values_and_a_deny_for_one() -> None:
    pattern = QueryPattern("page", "1*")
    for query, every, one in (("page=1", True, True), ("page=2&page=10", False, True), ("x=1", False, False)):
        assert pattern.matches_all(parse_query(query)) is every
        assert pattern.matches_one(parse_query(query)) is one


@given(st.text("ab*\n", max_size=6), st.text("ab\n", max_size=8))
def test_a_star_is_any_text(pattern: str, value: str) -> None:
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), value, re.DOTALL) is not None
    assert QueryPattern("k", pattern).matches_one(QueryValues({"k": (value,)})) is expected


def test_a_value_is_matched_once_for_all_readings_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def matches(value: str) -> bool:
        asked.append(value)
        return value == "2"

    monkeypatch.setattr(queries, "glob_matcher", lambda *_: matches)
    values, pattern = parse_query("k=1&k=2&k=1"), QueryPattern("k", "2")
    for _ in range(3):  # as the readings of one path ask
        assert pattern.matches_one(values)
        assert not pattern.matches_all(values)
    assert asked == ["1", "2", "1"]
