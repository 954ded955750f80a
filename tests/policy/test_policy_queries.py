"""Query patterns, and the parameters that a credential adds to a query."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.policy.language import queries
from squidkeeper.policy.language.parameters import add_parameters
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
def test_names_and_values_are_form_decoded(
    query: str | None, values: dict[str, tuple[str, ...]]
) -> None:
    assert parse_query(query) == values


def test_an_allow_asks_for_all_values_and_a_deny_for_one() -> None:
    pattern = QueryPattern("page", "1*")
    for query, every, one in (
        ("page=1", True, True),
        ("page=2&page=10", False, True),
        ("x=1", False, False),
    ):
        assert pattern.matches_all(parse_query(query)) is every
        assert pattern.matches_one(parse_query(query)) is one


@given(st.text("ab*\n", max_size=6), st.text("ab\n", max_size=8))
@example("a*b*a", "abba")  # what is drawn hardly ever is this
@example("a*bb*a", "aba")
def test_a_star_is_any_text(pattern: str, value: str) -> None:
    expected = (
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), value, re.DOTALL)
        is not None
    )
    assert (
        QueryPattern("k", pattern).matches_one(QueryValues({"k": (value,)})) is expected
    )


def test_a_value_is_matched_once_for_all_readings_of_a_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


# --- parameters that a credential adds ------------------------------------------------

ODD = 'a b&c=d;e?f#g%41+"\\{}/'


@pytest.mark.parametrize(
    ("url", "added"),
    [
        ("https://a.example/x", "https://a.example/x?key=s"),
        ("https://a.example/x?", "https://a.example/x?key=s"),
        ("https://a.example/x?a=1&b=%2F;c", "https://a.example/x?key=s&a=1&b=%2F;c"),
        (
            "https://a.example/x?a=key=1&keys=2&_key=3",
            "https://a.example/x?key=s&a=key=1&keys=2&_key=3",
        ),
    ],
)
def test_a_parameter_is_added_ahead_and_the_rest_stays_as_it_is(
    url: str, added: str
) -> None:
    assert add_parameters(url, {"key": "s"}) == added


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a.key",
            "A_KEY",
            "a%5fkey",
            "%61-key",
            "%25%36%31_key",
            "a+key",
            "+a_key",
            "a_key[x]",
            "a_key%00x",
        ),
        *(
            "a_key%5B",
            "a[key",
            "a%5bkey",
            "a%u005fkey",
            "a%U005Fkey",
            "a%25u005fkey",
            "%25252525252561_key",
        ),
    ],
)
@pytest.mark.parametrize(
    "query", ["{}=m", "{}", "x=1&{}=m", "x=1;{}=m", "x?{}=m", "{}=m&x=1", "{}=m;x=1"]
)
def test_what_a_server_may_read_as_the_parameter_is_removed(
    name: str, query: str
) -> None:
    found = add_parameters(f"https://a.example/?{query.format(name)}", {"a_key": "s"})
    assert found in {f"https://a.example/?a_key=s{rest}" for rest in ("", "&x=1", "&x")}


def test_a_value_is_encoded_whole() -> None:
    url = add_parameters("https://a.example/?b=1", {"k": ODD, "l": "plain"})
    assert parse_qsl(url.partition("?")[2]) == [("k", ODD), ("l", "plain"), ("b", "1")]


@given(
    st.text(st.sampled_from("kK.e%56y_+&;?=[]1")),
    st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)
def test_there_is_one_parameter_of_the_name_for_those_who_decode_once_in_any_case(
    query: str, value: str
) -> None:
    url = add_parameters(f"https://a.example/?{query}", {"k": value})
    for separator in "&;":
        found = parse_qsl(
            url.partition("?")[2], keep_blank_values=True, separator=separator
        )
        [text] = [text for name, text in found if name.lower() == "k"]
        # which ends no pair for these
        assert text == value or (separator == ";" and text.startswith(f"{value}&"))
