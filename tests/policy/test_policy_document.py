"""YAML with positions: nothing that a file holds can be more than a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language import schema
from squidkeeper.policy.language.builder import build
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.language.file_contents import (
    FileProblem,
    PolicyContents,
    SecretFile,
)
from squidkeeper.policy.language.schema import PolicyFile
from squidkeeper.policy.language.unquoted import Unquoted

PATH = Path("policy.yaml")


def data_of(text: str) -> object:
    document = parse_document(PATH, text.encode())
    assert document.faults == ()
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("443", 443),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("'443'", "443"),
        ('"no"', "no"),
        ("text", "text"),
        ("y", "y"),
        ("8000-8100", "8000-8100"),
        ("::1", "::1"),
        ("192.168.1.1", "192.168.1.1"),
        ("=", "="),
        ("no", Unquoted("no", "true or false")),
        ("On", Unquoted("On", "true or false")),
        ("010", Unquoted("010", "a number")),
        ("0x10", Unquoted("0x10", "a number")),
        ("1_000", Unquoted("1_000", "a number")),
        ("22:22", Unquoted("22:22", "a number")),
        ("+1", Unquoted("+1", "a number")),
        ("1e3", "1e3"),
        ("1.5", Unquoted("1.5", "a number")),
        (".inf", Unquoted(".inf", "a number")),
        ("2026-12-01", Unquoted("2026-12-01", "a time")),
        ("9" * 5000, Unquoted("9" * 5000, "a number")),
    ],
)
def test_a_scalar_is_what_it_looks_like_or_unquoted(text: str, value: object) -> None:
    assert data_of(f"key: {text}\n") == {"key": value}


def test_places_are_of_values_and_keys_in_characters() -> None:
    document = parse_document(PATH, "\ufeffé: [a, {ü: b}]\nc:\n  - d\n".encode())
    assert document.locate(("é",), key=True) == Location("policy.yaml", 1, 1)
    assert document.locate(("é",)) == Location("policy.yaml", 1, 4)
    assert document.locate(("é", 1, "ü")) == Location("policy.yaml", 1, 12)
    assert document.locate(("c", 0)) == Location("policy.yaml", 3, 5)
    # as far as the steps lead
    assert document.locate(("c", 7, "x")) == Location("policy.yaml", 3, 3)
    assert document.locate(()) == Location("policy.yaml", 1, 1)


def test_an_alias_is_the_value_it_names_with_a_key_of_its_own() -> None:
    document = parse_document(PATH, b"a: &x [1]\nb: *x\n")
    assert document.data == {"a": [1], "b": [1]}
    assert document.locate(("b",), key=True) == Location("policy.yaml", 2, 1)
    assert (
        document.locate(("b",))
        == document.locate(("a",))
        == Location("policy.yaml", 1, 4)
    )


QUOTE = "the quote that opens here is not closed"
ESCAPE = "write a value with '\\' in it in single quotes"
BRACKETS = "is every bracket closed, and each value with any of [ ] { } , or ': ' in it quoted?"
COLON = "a value that starts with ':' has to be quoted"
WHOLE = "is the whole value in quotes, with none of the same kind inside, and each quote above closed?"


@pytest.mark.parametrize(
    ("text", "column", "hint"),
    [
        ('a: "b\nc: d\n', 4, QUOTE),
        ("a: [b, 'c]\nd: e\n", 8, QUOTE),
        ("a: 'b\n---\n", 4, QUOTE),
        ('a: ["regex:/v\\d+/.*"]\n', 14, ESCAPE),
        ('a: "\\xz"\n', 7, ESCAPE),
        ("a: [regex:/[a-z]+/x]\n", 12, BRACKETS),
        ("a: [/a{1,2}]\n", 7, BRACKETS),
        ("a: {b: {c} d}\n", 12, BRACKETS),
        ("a: [b: c: d]\n", 9, BRACKETS),
        ("a: [, b]\n", 5, BRACKETS),
        ("a: [b, ::1]\n", 8, COLON),
        ("a: [[::1]]\n", 6, COLON),
        ("a: {s} b\n", 8, WHOLE),
        ("a: 'it's b'\n", 8, WHOLE),
        ("a: [b]]\n", 7, WHOLE),
    ],
)
def test_what_is_no_yaml_has_its_place_and_how_to_mend_it(
    text: str, column: int, hint: str
) -> None:
    fault = parse_document(PATH, text.encode()).faults[-1]
    assert fault.location == Location("policy.yaml", 1, column)
    assert fault.message.endswith(f"; {hint}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("version:1\nrules: []\n", 1),
        ("# a\nversion:1 # b\n\n# c\nrules: []\n", 2),
        ("rules:\n  - name:b\n    action: deny\n", 2),
        ("rules:\n  - name: b\n    action:deny\n    owner: c\n", 3),
        ("rules:\n  - name: b\n    hosts:[a.example]\n", 3),
    ],
)
def test_a_key_with_no_space_after_it_is_found(text: str, line: int) -> None:
    (fault,) = parse_document(PATH, text.encode()).faults
    assert fault.message.endswith(f"; is a space missing after the ':' in line {line}?")


@pytest.mark.parametrize(
    "text", ["a: b: c\n", "a:\n  - localhost:80\n   - b: c\n", "a: https://b: c\n"]
)
def test_a_colon_in_text_is_not_taken_for_a_key(text: str) -> None:
    (fault,) = parse_document(PATH, text.encode()).faults
    assert "is this line, indented by" in fault.message


@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("ab:-[]{},&*!|>'\"%@`#?~<\n\t 0é\x85", max_size=60).map(str.encode),
    )
)
@settings(max_examples=500)
def test_any_bytes_are_a_mapping_or_a_fault(content: bytes) -> None:
    document = parse_document(PATH, content)
    assert document.root is not None or document.faults
    assert all(
        fault.location.line >= 1 and fault.location.column >= 1
        for fault in document.faults
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 70000),
    st.sampled_from(
        [
            "a",
            "",
            "*",
            ".com",
            "example.com",
            "10.0.0.0/8",
            "443-444",
            "{s}",
            "allow",
            "GET",
            "/**",
            "https",
        ]
    ),
    st.sampled_from(
        [
            "regex:/(?P<a>.*)",
            "https://{host}/{a}",
            "http://x{path}",
            "2026-01-01T00:00:00Z",
            "GET http://a/",
        ]
    ),
)
ENTRIES = (
    PolicyFile,
    schema.RuleEntry,
    schema.RewriteEntry,
    schema.CredentialEntry,
    schema.TestEntry,
)
KEYS = sorted({key for entry in ENTRIES for key in entry.model_fields})
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*KEYS, "a", "s", "file", "env"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)
FILES = st.fixed_dictionaries(
    {"version": st.just(1)},
    optional={key: VALUES for key in PolicyFile.model_fields if key != "version"},
)


@given(FILES)
@settings(max_examples=500)
def test_any_values_are_a_policy_or_faults_with_their_places(
    values: dict[str, object],
) -> None:
    faults = faults_of(json.dumps(values).encode())
    assert all(
        fault.location.line == 1 and fault.location.column >= 1 for fault in faults
    )
    assert all(
        "pydantic" not in fault.message and "Input should" not in fault.message
        for fault in faults
    )


def faults_of(content: bytes) -> tuple[Fault, ...]:
    unread = FileProblem(FaultCode.UNREADABLE, "it is not read here")
    contents = PolicyContents(
        "",
        (parse_document(PATH, content),),
        AnyFile(unread),
        AnyFile(SecretFile()),
        frozenset(),
    )
    try:
        build(contents)
    except PolicyError as error:
        return error.faults
    return ()


T = TypeVar("T")


class AnyFile(dict[Path, T]):
    """The same for every file."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __missing__(self, path: Path) -> T:
        return self.value
