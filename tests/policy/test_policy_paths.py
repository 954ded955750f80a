"""Path patterns and the globs under them, against a matcher that takes the language at
its word.
"""

from __future__ import annotations

import pytest
import re2
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.url import Reading, ReadPath, readings, sent

PATHS = {
    "/acme/**": (["/acme/", "/acme/x", "/acme/x/y"], ["/acme", "/acmex/", "/x/acme/"]),
    "/**/x": (["/x", "/a/x", "/a/b/x"], ["/ax", "/x/", "/a/xb"]),
    "/a/**/b": (["/a/b", "/a/x/b", "/a/x/y/b"], ["/ab", "/a/xb"]),
    "/a*b": (["/ab", "/axb"], ["/a/b", "/axbx"]),
    "/*": (["/", "/a"], ["/a/", "/a/b"]),
    "/a**b": (["/ab", "/a/x/b"], ["/a"]),
    "/**": (["/", "/a", "/a/b/"], []),
    "**": (["/", "/a/b"], []),
    "**/x": (["/x", "/a/x"], ["/y"]),
    "/v1": (["/v1"], ["/v1/", "/v1x", "/V1"]),
    "/a.b": (["/a.b"], ["/axb"]),
    "/%2*": (["/%2F", "/%20x"], ["/x"]),
    "/%41%7e": (["/A~"], ["/%41"]),
    "regex:/(a|b)+": (["/a", "/ab"], ["/", "/ac", "x/a", "/a/"]),
    "regex:/.*": (["/", "/a/b"], ["a"]),
}


@pytest.mark.parametrize("pattern", PATHS)
def test_a_pattern_matches_its_paths_and_no_others(pattern: str) -> None:
    parsed = parse_path_pattern(pattern)
    matching, others = PATHS[pattern]
    assert [
        path for path in matching if parsed.match(ReadPath(Reading.SENT, path)) is None
    ] == []
    assert [
        path
        for path in others
        if parsed.match(ReadPath(Reading.SENT, path)) is not None
    ] == []


def matches(pattern: str, path: str, before: str = "") -> bool:
    """Match by the words of the language alone, trying everything."""
    if pattern.startswith("**/") and before == "/" and matches(pattern[3:], path, "/"):
        return True
    if pattern.startswith("**"):
        return any(
            matches(pattern[2:], path[taken:], "*") for taken in range(len(path) + 1)
        )
    if pattern.startswith("*"):
        segment = len(path.partition("/")[0])
        return any(
            matches(pattern[1:], path[taken:], "*") for taken in range(segment + 1)
        )
    if not pattern or not path:
        return not pattern and not path
    return pattern[0] == path[0] and matches(pattern[1:], path[1:], pattern[0])


@given(
    st.text("/ab*", max_size=8).map(lambda text: f"/{text}"),
    st.text("/ab", max_size=8).map(lambda text: f"/{text}"),
)
@example("/**/", "/")
@example("/a/**/**/b", "/a/b")
@example("/***", "/a/b")
@example("/**/*", "/")
def test_a_glob_matches_what_the_language_says(pattern: str, path: str) -> None:
    found = parse_path_pattern(pattern).match(ReadPath(Reading.SENT, path))
    assert (found is not None) is matches(pattern, path)


@pytest.mark.parametrize("reading", Reading)
def test_two_stars_at_the_start_are_the_same_with_and_without_a_slash(
    reading: Reading,
) -> None:
    for text in ("**", "**/x", "**x"):
        for path in ("/", "/x", "/a/x", "/ax", "/y"):
            found = [
                parse_path_pattern(pattern).match(ReadPath(reading, path))
                for pattern in (text, f"/{text}")
            ]
            assert found[0] == found[1]


@given(st.text("/ab.%2fF\\;*", max_size=10).map(lambda text: f"/{text}"))
def test_a_glob_that_is_taken_can_be_compared_with_every_reading(text: str) -> None:
    try:
        pattern = parse_path_pattern(text)
    except PatternError:
        return
    for path in readings(sent("/a/%2e%2e/b%252fc;d/e")):
        pattern.match(path)


def test_a_glob_is_read_the_way_the_path_beside_it_is_read() -> None:
    pattern = parse_path_pattern("/@scope%2fname")
    assert all(
        pattern.match(path) is not None for path in readings(sent("/@scope%2fname"))
    )
    assert not all(
        pattern.match(path) is not None
        for path in readings(sent("/@scope%2f..%2f@other%2fname"))
    )


def test_a_regex_gives_its_named_groups_and_is_compared_as_it_stands() -> None:
    pattern = parse_path_pattern("regex:/(?P<first>[^/]*)(?:/(?P<rest>.*))?")
    assert pattern.groups == ("first", "rest")
    assert pattern.match(ReadPath(Reading.SENT, "/a/b/c")) == {
        "first": "a",
        "rest": "b/c",
    }
    assert pattern.match(ReadPath(Reading.SENT, "/a")) == {"first": "a", "rest": ""}
    assert (
        parse_path_pattern("regex:/%7Ea").match(ReadPath(Reading.SENT, "/~a")) is None
    )


@pytest.mark.parametrize(
    "text",
    [
        "acme",
        "*",
        "*/x",
        "/a?b=c",
        "/a#b",
        "/%zz",
        "/a%2",
        "/%*%g*",
        "/a\n",
        "/\x7f",
        "regex:(",
        "regex:(?=a)",
        "regex:\\1",
        "regex:",
        "regex:admin.*",
        "regex:(?i)(?:ADMIN|root)",
        "regex:https://a.example/x",
    ],
)
def test_what_can_never_match_is_no_pattern(text: str) -> None:
    with pytest.raises(PatternError, match=r"can never match|is not an RE2 expression"):
        parse_path_pattern(text)


@pytest.mark.parametrize(
    "text",
    [".*x", "^/a", "(a|/b)", "(?P<o>/x)", "[^a]b", "\\x2fa", "(/a)*", "(?i)/A", "\\C*"],
)
def test_an_expression_that_can_begin_as_a_path_does_is_a_pattern(text: str) -> None:
    parse_path_pattern(f"regex:{text}")


@pytest.mark.parametrize(
    ("text", "everything"),
    [("/**", True), ("**", True), ("/*", False), ("/**/x", False)],
)
def test_what_matches_every_path_is_known(text: str, everything: bool) -> None:
    assert parse_path_pattern(text).everything is everything


def test_what_is_wrong_with_an_expression_is_one_line_whatever_it_holds() -> None:
    with pytest.raises(PatternError) as raised:
        parse_path_pattern("regex:/(?P<two\nlines\u2028")
    assert str(raised.value).isprintable()
    assert "invalid named capture group: (?P<two\\nlines\\u2028" in str(raised.value)


def test_the_readings_by_which_a_glob_reads_the_same_share_what_matches_them() -> None:
    for text, different in (("/**/p-*", 1), ("/a%2Fb/*", 2)):
        pattern = parse_path_pattern(text)
        for reading in Reading:
            pattern.match(ReadPath(reading, "/x"))
        assert len(set(map(id, pattern._matchers.values()))) == different


@pytest.mark.parametrize(
    ("expression", "is_asked_without"),
    [
        ("/(?P<a>.*)/(?P<b>[^/]*)-x", True),
        (r"/(?P<a>[^/]+)\.git/(?P<rest>.*)", True),
        (r"/(?<a>\d+)", True),
        ("/.*", False),
        (r"/\(?P<a>(?P<b>.*)", False),
        ("/[(?P<a>](?P<b>.*)", False),
        (r"/[(?P<a>]\\(?P<b>.*)", False),
    ],
)
def test_an_expression_without_its_groups_matches_the_same(
    expression: str, is_asked_without: bool
) -> None:
    pattern = parse_path_pattern(f"regex:{expression}")
    assert (pattern._ungrouped is not None) is is_asked_without
    for path in (
        "/a/b-x",
        "/a/b/-x",
        "/a/b.git/c",
        "/abgit/c",
        "/12",
        "/(P<a>x",
        "/P<a>x",
        "/?x",
        "/<\\x",
        "/",
    ):
        found = re2.fullmatch(expression, path)
        groups = (
            None
            if found is None
            else {name: found.group(name) or "" for name in pattern.groups}
        )
        assert pattern.match(ReadPath(Reading.SENT, path)) == groups
