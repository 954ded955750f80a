"""The tests that a policy carries: what each of their fields compares the decision
with, in the words of a fault.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from squidkeeper.base.errors import PolicyError

from ..conftest import compiled_of

POLICY = """
rules: [{name: open, action: allow, hosts: [.a.example]}]
rewrites: [{name: mirror, hosts: [.a.example], paths: [/old/**], to: "https://c.example{path}"}]
secrets: {token: {env: TOKEN}}
credentials: [{name: api, hosts: [.a.example], paths: [/api/**], bearer: token}]
tests: [{request: "GET https://b.a.example%s", expect: allow, %s}]
"""


def failure(tmp_path: Path, path: str, field: str) -> str | None:
    """Load a policy with one test; gives what its fault says behind the request, None
    where it holds.
    """
    try:
        compiled_of(tmp_path, POLICY % (path, field))
    except PolicyError as error:
        [fault] = error.faults
        return fault.message.partition(f"{path}: ")[2]
    return None


@pytest.mark.parametrize(
    ("path", "field", "expected"),
    [
        ("/api/x", "credentials: [api]", None),
        ("/", "credentials: []", None),
        ("/api/x", "credentials: []", "expected credentials none, got api"),
        ("/", "credentials: [api]", "expected credentials api, got none"),
    ],
)
def test_a_test_says_which_credentials_are_injected_and_that_none_is(
    tmp_path: Path, path: str, field: str, expected: str | None
) -> None:
    assert failure(tmp_path, path, field) == expected


@pytest.mark.parametrize(
    ("path", "field", "expected"),
    [
        ("/old/x", "rewrite: mirror", None),
        ("/", "rewrite: []", None),
        ("/old/x", "rewrite: []", "expected rewrite none, got mirror"),
        ("/", "rewrite: mirror", "expected rewrite mirror, got none"),
        (
            "/old/x",
            "rewrite: [], credentials: [api]",
            "expected rewrite none, got mirror; expected credentials api, got none",
        ),
    ],
)
def test_a_test_says_which_rewrite_applies_and_that_none_does(
    tmp_path: Path, path: str, field: str, expected: str | None
) -> None:
    assert failure(tmp_path, path, field) == expected
