"""Each promise of squid/SECURITY.md has an identifier, and one test that owns it."""

import ast
import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
OWNERS: dict[str, str | dict[str, str]] = yaml.safe_load(
    Path(__file__).with_name("promises.yaml").read_text()
)
TESTS = {name: owner for name, owner in OWNERS.items() if isinstance(owner, str)}


def promises() -> list[str]:
    """The identifiers in the table of promises, in its order."""
    page = (REPOSITORY / "squid/SECURITY.md").read_text()
    section = page.partition("\n## What the gateway promises\n")[2].partition("\n## ")[
        0
    ]
    rows = [row for row in section.splitlines() if row.startswith("| ")]
    assert rows[0] == "| id | promise | what enforces it |"
    found = [re.match(r"\| `([a-z-]+)` \| ", row) for row in rows[1:]]
    assert all(found), "a promise without an identifier"
    return [row[1] for row in found if row]


def test_each_promise_has_an_identifier_and_an_owner_of_its_own() -> None:
    """A list keeps doubles that the keys of a mapping would hide."""
    assert promises() == list(OWNERS)
    assert len({*TESTS.values()}) == len(TESTS)


@pytest.mark.parametrize("name", OWNERS)
def test_the_owner_of_a_promise_exists(name: str) -> None:
    owner = OWNERS[name]
    if isinstance(owner, dict):
        assert owner["missing"], "expected the reason"
        return
    file, _, test = owner.partition("::")
    tree = ast.parse((REPOSITORY / file).read_text())
    assert test in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef)
    }
