"""The `to` of a rewrite and the `value` of a credential, taken apart."""

from __future__ import annotations

import pytest

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.forms import parse_template
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.targets import check_target, parse_target

TARGETS = {
    "https://registry.internal/python{path}{query}": (
        "https",
        "registry.internal",
        "/python{path}",
        "{query}",
    ),
    "https://{host}{path}{query}": ("https", "{host}", "{path}", "{query}"),
    "http://{host}:8080": ("http", "{host}:8080", "", ""),
    "https://a.{host}/x?u={path}": ("https", "a.{host}", "/x", "?u={path}"),
    "https://[2001:db8::1]:8443/{a}?b={b}": (
        "https",
        "[2001:db8::1]:8443",
        "/{a}",
        "?b={b}",
    ),
    "https://mirror.example?fixed=1": ("https", "mirror.example", "", "?fixed=1"),
    "https://mirror.example{query}": ("https", "mirror.example", "", "{query}"),
    "https://mirror.example/a?b=c{query}": (
        "https",
        "mirror.example",
        "/a",
        "?b=c{query}",
    ),
}


@pytest.mark.parametrize("text", TARGETS)
def test_a_target_is_taken_apart(text: str) -> None:
    target = parse_target(text)
    assert (target.scheme, target.authority, target.path, target.query) == TARGETS[text]
    assert target.text == text


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        ("https://m.example{query}{path}", "https://m.example{path}{query}"),
        ("https://m.example{path}?{query}", "https://m.example{path}{query}"),
        ("https://m.example{path}?x=y&{query}", "https://m.example{path}?x=y{query}"),
        ("https://m.example{path}{query}?x=y", "https://m.example{path}?x=y{query}"),
        ("https://m.example/a{query}&b=c", "https://m.example/a?b=c{query}"),
        ("https://m.example{query}{query}", "https://m.example{query}"),
    ],
)
def test_what_a_placeholder_brings_with_it_does_not_stand_there_already(
    text: str, corrected: str
) -> None:
    with pytest.raises(PatternError) as raised:
        parse_target(text)
    assert str(raised.value).endswith(f"expected {corrected!r}")
    parse_target(corrected)


def test_a_slash_ahead_of_the_path_is_the_paths_own() -> None:
    assert parse_target("https://m.example/python/{path}").path == "/python{path}"
    assert parse_target("https://m.example/{path}{query}").path == "{path}"


def test_every_path_of_a_rewrite_has_the_groups_of_its_target() -> None:
    target = parse_target("https://mirror.example/{a}?x={b}")
    both, one = (
        parse_path_pattern("regex:/(?P<a>.)(?P<b>.)"),
        parse_path_pattern("regex:/(?P<a>.)"),
    )
    check_target(target, None, [both, both])
    with pytest.raises(PatternError, match=r"\{b\} is not known"):
        check_target(target, None, [both, one])


@pytest.mark.parametrize(
    ("schemes", "opens"),
    [(None, True), (["https"], True), (["http", "https"], True), (["http"], False)],
)
def test_a_target_in_http_is_for_http_alone(
    schemes: list[str] | None, opens: bool
) -> None:
    target = parse_target("http://mirror.example{path}")
    check_target(parse_target("https://mirror.example{path}"), schemes, None)
    if opens:
        with pytest.raises(PatternError, match="could take an https request to http"):
            check_target(target, schemes, None)
    else:
        check_target(target, schemes, None)


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        *(
            ("{a}", ("a",)),
            ("Bearer {a}", ("a",)),
            ("{b}:{a}:{b}", ("b", "a")),
            ("{{{a}}}", ("a",)),
        ),
        *(("{{b}} {a}", ("a",)), ("plain", ()), ("{{a}}", ())),
    ],
)
def test_a_template_names_its_secrets(text: str, secrets: tuple[str, ...]) -> None:
    assert parse_template(text) == secrets


@pytest.mark.parametrize("text", ["{a", "a}", "{a}}", "{a}\n", "é{a}"])
def test_what_cannot_be_sent_is_no_template(text: str) -> None:
    with pytest.raises(PatternError, match=r"value"):
        parse_template(text)
