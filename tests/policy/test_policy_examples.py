"""The policies of policy/examples: they load, pass their tests, and are found to be right by an editor."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.policy_store.loading import load
from tests.policy.test_json_schema import problems

FOLDER = Path(__file__).parents[2] / "policy/examples"
EXAMPLES = sorted(folder for folder in FOLDER.iterdir() if folder.is_dir())
FILES = sorted(FOLDER.glob("*/*.yaml"))
NO_VALUE = FaultCode.SECRET_UNREADABLE  # the values are the operator's


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda one: one.name)
def test_an_example_loads_passes_its_tests_and_has_no_warning(folder: Path) -> None:
    loaded = load(folder, datetime.now(UTC))
    assert [str(warning) for warning in loaded.warnings if warning.code is not NO_VALUE] == []
    expected = {str(test.expect) for test in loaded.compiled.source.tests}
    assert expected == {"allow", "deny"}


@pytest.mark.parametrize("file", FILES, ids=lambda one: f"{one.parent.name}-{one.name}")
def test_an_editor_finds_the_schema_and_nothing_wrong(file: Path) -> None:
    text = file.read_text()
    [schema] = re.findall(r"\A# yaml-language-server: \$schema=(\S+)\n", text)
    assert (file.parent / schema).resolve() == FOLDER.parent / "schema.json"
    assert problems(parse_document(file, text.encode())) == []


def test_the_table_names_each_example() -> None:
    named = re.findall(r"^\| \[([\w-]+)\]", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == [folder.name for folder in EXAMPLES]
