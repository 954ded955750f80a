"""What a preset is for, as the comment at the top of its file says, and what its rules
open.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.presets import read_preset

_LEFT_OUT = " Not in it: "
_FIELDS = ("methods", "schemes", "hosts", "paths")
_DOCUMENT, _READ = "Document: ", "Read: "


@dataclass(frozen=True, slots=True)
class ShippedRule:
    """A rule of a preset, as it is written."""

    name: str
    methods: tuple[str, ...]
    schemes: tuple[str, ...]
    hosts: tuple[str, ...]
    paths: tuple[str, ...]
    query: Mapping[str, str]
    body: str  # what its body must be; empty where it reads none


@dataclass(frozen=True, slots=True)
class PresetSummary:
    """A preset: what it opens and leaves out, the documents of the provider, and the
    day on which they were read.
    """

    name: str
    opens: str
    leaves_out: str
    documents: tuple[str, ...]
    read: str
    rules: tuple[ShippedRule, ...]


def summarize(name: str) -> PresetSummary:
    """Read the file of a preset; OSError if it cannot be read."""
    document = read_preset(name)
    comment = list(_first_comment(document.content.decode()))
    prose = " ".join(
        line for line in comment if not line.startswith((_DOCUMENT, _READ))
    )
    opens, _, leaves_out = prose.partition(_LEFT_OUT)
    documents = tuple(
        line.removeprefix(_DOCUMENT) for line in comment if line.startswith(_DOCUMENT)
    )
    read = next(
        (line.removeprefix(_READ) for line in comment if line.startswith(_READ)), ""
    )
    return PresetSummary(
        name, opens, leaves_out, documents, read, tuple(_rules(document))
    )


def _first_comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("# "):
            return
        yield line.removeprefix("# ")


def _rules(document: Document) -> Iterator[ShippedRule]:
    for _, entry, _ in entries(document, "rules"):
        methods, schemes, hosts, paths = (
            tuple(entry.get(field, ())) for field in _FIELDS
        )
        body = json.dumps(entry["body"], ensure_ascii=False) if "body" in entry else ""
        yield ShippedRule(
            entry["name"], methods, schemes, hosts, paths, entry.get("query", {}), body
        )
