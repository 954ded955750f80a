"""The request headers that helpers read: the list, and the tokens that Squid makes of
it.
"""

from pathlib import Path

import pytest

from squidkeeper.configuration.rendering.lines import expand, part_file
from squidkeeper.configuration.rendering.values import Values
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.protocol.request_headers import (
    HEADER_GROUPS,
    READ_HEADERS,
    parse_headers,
)
from squidkeeper.serving.parts import Part

SQUID = Path(__file__).parents[2] / "squid"
NONE = [b"-"] * len(READ_HEADERS)


def test_each_header_stands_once_in_the_list_and_in_the_lookup() -> None:
    assert len({name.lower() for name in READ_HEADERS}) == len(READ_HEADERS)
    parts = (Part.CREDENTIALS_BY_HEADERS, Part.WATCH)
    templates = {
        part_file(part): (SQUID / "parts" / f"{part}.conf").read_text()
        for part in parts
    }
    for name, text in expand(templates, Values(keys=frozenset(parts))).items():
        lookup = text[text.index("external_acl_type ") : text.index("/opt/squidkeeper")]
        words = [word for word in lookup.split() if word.endswith("}>h")]
        assert words == [f"%#{{{header}}}>h" for header in READ_HEADERS], name


def test_headers_that_can_be_injected_are_read_and_the_one_for_the_proxy_is_not() -> (
    None
):
    assert set(INJECTABLE_HEADERS) < set(HEADER_GROUPS["credentials"])
    assert "Proxy-Authorization" not in READ_HEADERS


def test_tokens_are_decoded_and_absent_headers_left_out() -> None:
    tokens = [*NONE, b"-"]  # Squid ends a line by `-`
    tokens[READ_HEADERS.index("Authorization")] = b"Bearer%20abc"
    tokens[READ_HEADERS.index("Range")] = b"bytes%3D0-1,%20%FF"
    assert dict(parse_headers(tokens)) == {
        "authorization": "Bearer abc",
        "range": "bytes=0-1, \udcff",
    }
    assert parse_headers(NONE) == {}


def test_the_result_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        parse_headers(NONE)["authorization"] = "x"  # type: ignore[index] # which is what is tested


def test_the_documentation_lists_them() -> None:
    text = (SQUID / "README.md").read_text()
    section = text.split("### Headers that helpers read\n")[1].split("\n### ")[0]
    rows = [
        line.strip("| ").split(" | ")
        for line in section.splitlines()
        if line.startswith("| ")
    ][1:]
    documented = {
        purpose: tuple(name.strip("`") for name in names.split(", "))
        for purpose, names in rows
    }
    assert documented == dict(HEADER_GROUPS)
