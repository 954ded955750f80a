"""The JSON Schema of a policy file: complete, and never against what `check` takes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from squidkeeper.base.faults import FaultCode
from squidkeeper.cli import main
from squidkeeper.policy.editor.json_schema import descriptions, json_schema
from squidkeeper.policy.language import schema
from squidkeeper.policy.language.body_values import number_of
from squidkeeper.policy.language.document import Document, parse_document
from squidkeeper.policy.language.unquoted import Unquoted
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.presets import preset_names, read_preset
from tests.documents.field_tables import MATCHING, render, tables_of
from tests.test_documents import EXAMPLES

DATA = Path(__file__).parents[1] / "data"
SCHEMA = Draft202012Validator(json_schema())
MODELS = {
    name: model
    for name, model in vars(schema).items()
    if isinstance(model, type)
    and issubclass(model, BaseModel)
    and model is not BaseModel
    and name != "_Model"
}
GOOD = [
    parse_document(file, file.read_bytes())
    for file in sorted((DATA / "good").glob("*.yaml"))
]
WRITTEN = [
    parse_document(Path(f"{file.name}-{at}"), text.encode())
    for at, (file, text) in enumerate(EXAMPLES)
]
SHIPPED = [read_preset(name) for name in sorted(preset_names())]


def as_an_editor_reads(value: object) -> Any:
    """Read a document by YAML 1.2, for which `no` and `2026-12-01` are texts."""
    if isinstance(value, Unquoted):
        number = None if value.null else number_of(value)
        return None if value.null else value.text if number is None else number
    if isinstance(value, dict):
        return {str(key): as_an_editor_reads(item) for key, item in value.items()}
    return (
        [as_an_editor_reads(item) for item in value]
        if isinstance(value, list)
        else value
    )


def problems(document: Document) -> list[str]:
    return [
        f"{error.json_path}: {error.message}"
        for error in SCHEMA.iter_errors(as_an_editor_reads(document.data))
    ]


def test_the_command_prints_a_valid_schema() -> None:
    result = CliRunner().invoke(main, ["schema"])
    assert json.loads(result.output) == json_schema()
    Draft202012Validator.check_schema(json.loads(result.output))


def test_the_file_for_editors_is_the_schema() -> None:
    written = (Path(__file__).parents[2] / "policy/schema.json").read_text()
    assert written == CliRunner().invoke(main, ["schema"]).output, (
        "squidkeeper schema > policy/schema.json"
    )


def test_each_model_and_field_is_described_once() -> None:
    own = {
        f"{name}.{field}"
        for name, model in MODELS.items()
        for field in model.model_fields
        if not any(
            field in getattr(base, "model_fields", {}) for base in model.__mro__[1:]
        )
    }
    models = {name for name, model in MODELS.items() if model.__subclasses__() == []}
    assert own | models == descriptions().keys()
    assert all(text.strip() and text[-1] in ".-" for text in descriptions().values())


def test_the_tables_of_the_reference_have_the_fields_of_each_model() -> None:
    text = (Path(__file__).parents[2] / "policy/REFERENCE.md").read_text()
    assert render(text) == text, (
        "python -m tests.documents.field_tables policy/REFERENCE.md"
    )
    assert sorted(tables_of(text)) == sorted(
        {MATCHING}
        | {name for name, model in MODELS.items() if not model.__subclasses__()}
    )


def test_the_schema_has_the_default_of_a_field() -> None:
    defined = json_schema()["$defs"]
    assert defined["Defaults"]["properties"]["action"]["default"] == "deny"
    assert defined["CommandEntry"]["properties"]["timeout"]["default"] == "10s"
    assert "default" not in defined["RuleEntry"]["properties"]["reason"]


@pytest.mark.parametrize(
    "document", [*GOOD, *WRITTEN, *SHIPPED], ids=lambda written: written.path.name
)
def test_it_takes_what_check_takes(document: Document) -> None:
    assert problems(document) == []


ONLY_CHECK_FINDS = {
    "ask-above-passthrough",
    "ask-beside-allow",
    "ask-beside-observe",
    "bodies-together",
    "conflicts",
    "contact",
    "contact-too-long",
    "doubled-names",
    "end-not-last",
    "end-required",
    "end-required-and-dropped",
    "grants-together",
    "lists-and-secrets",
    "cost-without-prices",
    "many-headers",
    "many-values",
    "name-with-a-tab",
    "passthrough-conflicts",
    "reserved-and-strange-names",
    "sessions-without-roles",
    "shared-connections",
    "token-of-two-clients",
    "unknown-references",
    "unknown-references-to-nothing",
}


def test_of_the_bad_policies_it_finds_those_with_a_wrong_shape() -> None:
    documents = [
        parse_document(file, file.read_bytes())
        for file in sorted((DATA / "bad").glob("*.yaml"))
    ]
    readable = [
        document
        for document in documents
        if document.root is not None and not document.faults
    ]
    assert {
        written.path.stem for written in readable if not problems(written)
    } == ONLY_CHECK_FINDS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "rules: [{name: a, action: dent}]",
            "'dent' is not one of ['allow', 'deny', 'ask']",
        ),
        (
            "rules: [{name: a, action: deny, host: [a.example]}]",
            "'host' was unexpected",
        ),
        ("rules: [{action: deny}]", "'name' is a required property"),
        (
            "rules: [{name: a, action: deny, ports: ['443']}]",
            "is not valid under any of the given schemas",
        ),
        ("rules: [{name: a, action: deny, methods: [get]}]", "'get' does not match"),
        (
            "rules: [{name: a, action: deny, hosts: a.example}]",
            "is not of type 'array'",
        ),
        ("presets: [npm@99]", "is not valid under any of the given schemas"),
        ("defaults: {watch_secrets: maybe}", "is not of type 'boolean'"),
    ],
)
def test_it_finds(text: str, problem: str) -> None:
    found = problems(
        parse_document(Path("policy.yaml"), f"version: 1\n{text}\n".encode())
    )
    assert len(found) == 1
    assert problem in found[0]


# --- the policies of policy/examples --------------------------------------------------

EXAMPLE_POLICIES = Path(__file__).parents[2] / "policy/examples"
FOLDERS = sorted(folder for folder in EXAMPLE_POLICIES.iterdir() if folder.is_dir())
FILES = sorted(EXAMPLE_POLICIES.glob("*/*.yaml"))
NO_VALUE = FaultCode.SECRET_UNREADABLE  # the values are the operator's


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda written: written.name)
def test_an_example_loads_passes_its_tests_and_has_no_warning(folder: Path) -> None:
    loaded = load(folder, datetime.now(UTC))
    assert [
        str(warning) for warning in loaded.warnings if warning.code is not NO_VALUE
    ] == []
    expected = {str(test.expect) for test in loaded.compiled.source.tests}
    assert expected == {"allow", "deny"}


@pytest.mark.parametrize(
    "file", FILES, ids=lambda written: f"{written.parent.name}-{written.name}"
)
def test_an_editor_finds_the_schema_and_nothing_wrong(file: Path) -> None:
    text = file.read_text()
    [schema] = re.findall(r"\A# yaml-language-server: \$schema=(\S+)\n", text)
    assert (file.parent / schema).resolve() == EXAMPLE_POLICIES.parent / "schema.json"
    assert problems(parse_document(file, text.encode())) == []


def test_the_table_names_each_example() -> None:
    named = re.findall(
        r"^\| \[([\w-]+)\]", (EXAMPLE_POLICIES / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(named) == [folder.name for folder in FOLDERS]
