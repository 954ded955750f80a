"""The table of promises has its tests for each row, and each test that breaks a gateway
belongs to one.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
TESTS = yaml.safe_load(Path(__file__).with_name("promises.yaml").read_text())
PROVEN: list[tuple[str, str, list[str]]] = [
    (section, row["fault"], row["tests"])
    for section, rows in TESTS.items()
    for row in rows
]


def rows_of_the_page() -> list[tuple[str, str]]:
    """The section and the first cell of each row."""
    page = (REPOSITORY / "squid/FAULTS.md").read_text()
    return [
        (section.partition("\n")[0], row)
        for section in page.split("\n## ")[1:]
        for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
        if row != "fault"
    ]


@cache
def functions_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_each_row_has_its_tests() -> None:
    assert rows_of_the_page() == [(section, fault) for section, fault, _ in PROVEN]


@pytest.mark.parametrize(
    ("fault", "tests"),
    [(fault, tests) for _, fault, tests in PROVEN],
    ids=[fault for _, fault, _ in PROVEN],
)
def test_the_tests_of_a_row_exist(fault: str, tests: list[str]) -> None:
    assert tests
    for file, name in (test.split("::") for test in tests):
        assert name in functions_of(REPOSITORY / file), f"{fault}: no {file}::{name}"


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
    named = {test.partition("::")[2] for _, _, names in PROVEN for test in names}
    assert tests - named == set()
