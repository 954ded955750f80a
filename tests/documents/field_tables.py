"""The tables of fields of policy/REFERENCE.md, rendered from the JSON Schema of a
policy file.

A table has the fields of one model or of several: `<!-- rendered:
ClientEntry+TokenEntry -->`. A model after the first is a mapping inside of an entry,
and its fields are named as `basic.username`.

After a change of a field or of descriptions.yaml: `python -m
tests.documents.field_tables policy/REFERENCE.md`.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from squidkeeper.policy.editor.json_schema import json_schema
from squidkeeper.policy.language import schema

# the fields by which entries match stand in one table, as a rule has them
MATCHING: Final = "MatchFields"
_TABLE: Final = re.compile(
    r"(?<=<!-- rendered: )([A-Z][\w+]+) -->\n.*?(?=<!-- end -->)", re.DOTALL
)
_HEAD: Final = "| field | meaning |\n|---|---|\n"
_MATCHING_FIELDS: Final = (
    "clients",
    "hosts",
    *(name for name in schema.MatchFields.model_fields if name != "clients"),
)
_WORDS_AT_MOST: Final = 6
_PATTERNS: Final = (  # what a text is, by a part of its pattern
    (r"\d{4}-\d{2}-\d{2}", "time"),
    ("[0-9A-Fa-f]{64}", "SHA-256"),
    ("[KMGT]B", "size"),
)
_TYPES: Final = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "array": "list",
    "object": "mapping",
}


def render(text: str) -> str:
    """Render the tables of a document again, and leave all else as it is."""
    return _TABLE.sub(
        lambda found: f"{found[1]} -->\n{_HEAD}{''.join(_rows(found[1].split('+')))}",
        text,
    )


def tables_of(text: str) -> list[str]:
    """List the models whose fields the tables of a document have."""
    return [model for found in _TABLE.finditer(text) for model in found[1].split("+")]


def _rows(models: list[str]) -> Iterator[str]:
    whole = json_schema()
    for model in models:
        prefix = "" if model == models[0] else f"{_key_of(whole, model)}."
        entry = _entry(whole, model)
        for name in _names(model, entry):
            field = entry["properties"][name]
            yield f"| `{prefix}{name}`: {_type_and_default(entry, name, whole)} | {field['description']} |\n"


def _entry(whole: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    if model == schema.PolicyFile.__name__:
        return whole
    entry: Mapping[str, Any] = whole["$defs"][
        "RuleEntry" if model == MATCHING else model
    ]
    return entry


def _key_of(whole: Mapping[str, Any], model: str) -> str:
    """Find the key whose value is a mapping of this model."""
    properties: list[Mapping[str, object]] = [
        entry.get("properties", {}) for entry in whole["$defs"].values()
    ]
    return next(
        key
        for fields in properties
        for key, field in fields.items()
        if f"/{model}'" in str(field)
    )


def _names(model: str, entry: Mapping[str, Any]) -> list[str]:
    """List the fields of a table.

    Those by which entries match have a table of their own, unless they are required.
    """
    if model == MATCHING:
        return list(_MATCHING_FIELDS)
    if not issubclass(getattr(schema, model), schema.TunnelFields):
        return list(entry["properties"])
    return [
        name
        for name in entry["properties"]
        if name not in _MATCHING_FIELDS or name in entry["required"]
    ]


def _type_and_default(
    entry: Mapping[str, Any], name: str, whole: Mapping[str, Any]
) -> str:
    field = entry["properties"][name]
    kind = _type(field, whole["$defs"])
    if name in entry.get("required", ()):
        return f"{kind}, required"
    match field.get("default"):
        case None:
            return kind
        case bool() as default:
            return f"{kind}, `{str(default).lower()}`"
        case default:
            return f"{kind}, `{default}`"


def _type(field: Mapping[str, Any], defined: Mapping[str, Any]) -> str:
    """Say in words what a value is."""
    match field:
        case {"$ref": str() as name}:
            return _type(defined[name.rpartition("/")[2]], defined)
        case {"anyOf": choices}:
            return " or ".join(
                dict.fromkeys(_type(choice, defined) for choice in choices)
            )
        case {"enum": [*words]} if len(words) <= _WORDS_AT_MOST:
            return " or ".join(", ".join(f"`{word}`" for word in words).rsplit(", ", 1))
        case {"const": word}:
            return f"`{str(word).lower()}`"
        case {"pattern": str() as pattern}:
            return next((kind for part, kind in _PATTERNS if part in pattern), "text")
        case {"maxItems": 0}:
            return "`[]`"
        case {"type": [*kinds]}:
            return " or ".join(_TYPES[kind] for kind in kinds)
        case _:
            return _TYPES[field.get("type", "string")]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text()))
