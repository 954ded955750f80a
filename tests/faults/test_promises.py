"""The table of promises names a test for each row, and each test that breaks a gateway
is in it.
"""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROMISES = REPOSITORY / "squid/FAULTS.md"
ROWS = [
    line
    for line in PROMISES.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]
_NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_\w+)`")


def functions_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_each_row_has_its_tests(row: str) -> None:
    cells = row.strip("|").split("|")
    assert len(cells) == 5
    named = _NAMED.findall(cells[4])
    assert named
    assert cells[4].count("`") == 2 * len(named)
    for file, name in named:
        assert name in functions_of(REPOSITORY / file), f"{file} has no {name}"


def test_each_fault_is_in_the_table() -> None:
    files = set(Path(__file__).parent.glob("test_*.py")) - {
        Path(__file__),
        Path(__file__).with_name("test_watchdogs.py"),
    }
    tests = {
        name
        for file in files
        for name in functions_of(file)
        if name.startswith("test_")
    }
    assert tests - {name for _, name in _NAMED.findall(PROMISES.read_text())} == set()
