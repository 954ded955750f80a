"""What is to change in a policy: rules that go, fields of rules that become narrower,
and the edits in its files.
"""

import difflib
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from squidkeeper.base.errors import EditRefused, PolicyError
from squidkeeper.change.tightening.narrowing import Field, Narrowing, narrowings
from squidkeeper.change.tightening.usage import PolicyUse
from squidkeeper.policy.language.document import Document, parse_document
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.matching.table import overlap
from squidkeeper.policy.language.model import Action, Entry, Match, Policy, Rule
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.policy_edit import round_trip_yaml
from squidkeeper.policy.policy_store.loading import build_sources
from squidkeeper.policy.policy_store.sources import Sources
from squidkeeper.record.table.questions import SESSION_UNKNOWN

Edits = Mapping[str, tuple[Narrowing, ...] | None]  # by rules; None: the rule goes
_PARSERS: Final[Mapping[Field, Callable[[Iterable[str]], object]]] = {
    Field.CLIENTS: frozenset,
    Field.HOSTS: lambda texts: tuple(map(parse_host_pattern, texts)),
    Field.LISTS: tuple,
    Field.SCHEMES: frozenset,
    Field.METHODS: frozenset,
    Field.PATHS: lambda texts: tuple(map(parse_path_pattern, texts)),
}
_RULES: Final = "rules"
_BARE: Final = re.compile(r"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|https?)")
_INNER_LIST: Final = re.compile(
    r"^( *)(?:- )?[a-z_]+:[ ]*(?:#.*)?\n( *)- ", re.MULTILINE
)
# characters; a longer list stands on lines of its own, unless the rule is on one line
_LONGEST_FLOW: Final = 100


def proposed_edits(policy: Policy, use: PolicyUse, now: datetime) -> Edits:
    """Propose what nobody would miss: allows that were never used go, the others hold
    what was used.

    Rules of presets, and what denies, asks or observes, stay as they are. So does an
    unused rule that a quota names: without it the policy would not load.
    """
    if policy.default_action is Action.ALLOW:
        return {}
    counted = {name for quota in policy.quotas for name in quota.rules or ()}
    by_bodies = decided_by_bodies(policy)
    found: dict[str, tuple[Narrowing, ...] | None] = {}
    for position, rule in enumerate(policy.rules):
        if not is_edited(rule) or rule.name in by_bodies:
            continue
        if is_kept_for_sessions(rule, policy, use):
            continue
        used = use.of(rule)
        if not used.requests:
            if (
                not used.tunnels
                and not _is_to_come(rule, now)
                and rule.name not in counted
            ):
                found[rule.name] = None
            continue
        by_url = not any(other.passthrough for other in policy.rules[position + 1 :])
        narrower = narrowings(rule, used, by_url=by_url)
        if narrower:
            found[rule.name] = narrower
    return found


def is_edited(rule: Rule) -> bool:
    """Whether a rule is one that is made narrower: an allow of the operator's that
    decides.
    """
    return rule.action is Action.ALLOW and rule.preset is None and not rule.observe


def is_kept_for_sessions(entry: Entry, policy: Policy, use: PolicyUse) -> bool:
    """Whether the use of an entry proves nothing.

    What one session used tells nothing about the values of the next; and a session that
    is not known any more may have used whatever sessions may.
    """
    if entry.variables:
        return True
    if not policy.roles or not use.set_apart.get(SESSION_UNKNOWN):
        return False
    roles = {role.name for role in policy.roles}
    return entry.match.clients is None or not roles.isdisjoint(entry.match.clients)


def decided_by_bodies(policy: Policy) -> frozenset[str]:
    """Name the rules between which a body may decide.

    No body is logged, so nothing tells which were used.
    """
    found = set()
    for place, rule in enumerate(policy.rules):
        if rule.body is not None:
            found |= {
                other.name
                for other in policy.rules[place:]
                if overlap(rule, other, policy.lists)
            }
    return frozenset(found)


def with_edits(policy: Policy, edits: Edits) -> Policy:
    """Return the policy with its edits, under a revision of its own."""
    return replace(
        policy,
        rules=tuple(_edited(policy.rules, edits)),
        revision=f"{policy.revision} narrowed",
    )


def _edited(rules: Iterable[Rule], edits: Edits) -> Iterator[Rule]:
    for rule in rules:
        changes = edits.get(rule.name, ())
        if changes is not None:
            yield (
                replace(rule, match=_narrowed(rule.match, changes)) if changes else rule
            )


def _narrowed(match: Match, changes: Iterable[Narrowing]) -> Match:
    values = {
        str(one.field): None
        if one.narrower is None
        else _PARSERS[one.field](one.narrower)
        for one in changes
    }
    return replace(match, **values)  # type: ignore[arg-type] # each parser gives what its field holds


def _is_to_come(rule: Rule, now: datetime) -> bool:
    """Whether a rule may have had no time to be used: it has a schedule."""
    return rule.when is not None and not rule.lapsed(now)


# The edits in the files of a policy: only the lines of the rules change that are
# edited.
#
# ruamel.yaml writes each such rule again, so comments, order and quotes stay. New text
# is in double quotes. The policy is loaded with the edits, and what it then holds is
# compared with what was proven.


def edited_documents(
    sources: Sources, policy: Policy, edits: Edits, lists: Path | None
) -> tuple[Document, ...]:
    """Return the files of a policy with the edits; `EditRefused` where a file has a
    form that cannot be edited.
    """
    documents = tuple(
        _edited_document(document, edits) for document in sources.documents
    )
    try:
        built = build_sources(
            replace(sources, documents=documents), lists, writes=False
        ).policy
    except PolicyError as error:
        raise EditRefused(
            f"{error}\nthe policy does not load with these edits: edit it by hand"
        ) from error
    if _meaning(built) != _meaning(with_edits(policy, edits)):
        raise EditRefused(
            "a file of the policy has a form that this command cannot edit: edit it by hand"
        )
    return documents


def _meaning(policy: Policy) -> object:
    rules = [
        (rule.name, [getattr(rule.match, field.name) for field in fields(rule.match)])
        for rule in policy.rules
    ]
    return [
        (name, [frozenset(one) if isinstance(one, tuple) else one for one in values])
        for name, values in rules
    ]


def unified_diff(
    before: Iterable[Document], after: Iterable[Document]
) -> Iterator[str]:
    """Write what changes as a unified diff, as `patch` reads it."""
    for one, other in zip(before, after, strict=True):
        old, new = (
            document.content.decode().splitlines(keepends=True)
            for document in (one, other)
        )
        for line in difflib.unified_diff(old, new, str(one.path), str(other.path)):
            yield (
                line
                if line.endswith("\n")
                else f"{line}\n\\ No newline at end of file\n"
            )


def _edited_document(document: Document, edits: Edits) -> Document:
    rules = document.data.get(_RULES)
    entries = rules if isinstance(rules, list) else []
    names = [
        str(entry.get("name")) if isinstance(entry, dict) else "" for entry in entries
    ]
    if not any(name in edits for name in names):
        return document
    lines = document.content.decode().splitlines(keepends=True)
    spans = list(_spans(document, lines, len(entries)))
    for name, (start, end) in reversed(list(zip(names, spans, strict=True))):
        if name in edits:
            lines[start:end] = _entry(document, lines[start:end], edits[name])
    if all(edits.get(name, ()) is None for name in names):
        # an empty list is a fault
        del lines[document.locate((_RULES,), key=True).line - 1]
    return parse_document(document.path, "".join(lines).encode())


def _spans(
    document: Document, lines: list[str], count: int
) -> Iterator[tuple[int, int]]:
    starts = [document.locate((_RULES, number)).line - 1 for number in range(count)]
    keys = [document.locate((key,), key=True).line - 1 for key in document.data]
    last = min((key for key in keys if key > starts[0]), default=len(lines))
    for start, after in zip(starts, (*starts[1:], last), strict=True):
        end = after
        while end > start + 1 and lines[end - 1].strip()[:1] in ("", "#"):
            end -= 1
        if start == after or not lines[start].lstrip().startswith("- "):
            raise EditRefused(
                f"{document.path}:{start + 1}: a rule here does not begin a line: edit it by hand"
            )
        yield start, end


def _entry(
    document: Document, lines: list[str], changes: tuple[Narrowing, ...] | None
) -> list[str]:
    from ruamel.yaml.error import YAMLError

    if changes is None:
        return []
    text = "".join(lines)
    indent = text[: len(text) - len(text.lstrip(" "))]
    found = _INNER_LIST.search(textwrap.dedent(text))
    offset = (
        len(found[2]) - len(found[1]) - (2 if found[0].startswith("- ") else 0)
        if found
        else 2
    )
    yaml = round_trip_yaml()
    yaml.indent(mapping=2, sequence=2 + offset, offset=offset)
    try:
        root = yaml.load(text)
        _change(root[0], changes)
    except (YAMLError, LookupError, TypeError, AttributeError) as error:
        raise EditRefused(
            f"{document.path} has a form that this command cannot edit: edit it by hand"
        ) from error
    written = io.StringIO()
    yaml.dump(root, written)
    dedented = textwrap.dedent(written.getvalue())
    return [
        f"{indent}{line}" if line.strip() else line
        for line in dedented.splitlines(keepends=True)
    ]


def _change(entry: Any, changes: Iterable[Narrowing]) -> None:
    place = list(entry).index("hosts") + 1 if "hosts" in entry else len(entry)
    for change in changes:
        if change.narrower is None:
            del entry[change.field]
        elif isinstance(entry.get(change.field), list):
            _keep(entry[change.field], change.narrower)
        else:
            entry.pop(change.field, None)
            entry.insert(
                place,
                str(change.field),
                _values(change.narrower, in_flow=entry.fa.flow_style()),
            )
            place += 1


def _keep(values: Any, texts: tuple[str, ...]) -> None:
    for number in reversed(range(len(values))):
        if str(values[number]) not in texts:
            del values[number]
    there = set(map(str, values))
    values.extend(_written(text) for text in texts if text not in there)


def _values(texts: tuple[str, ...], *, in_flow: bool | None) -> object:
    from ruamel.yaml.comments import CommentedSeq

    values = CommentedSeq(map(_written, texts))
    if in_flow or sum(map(len, texts)) <= _LONGEST_FLOW:
        values.fa.set_flow_style()
    return values


def _written(text: str) -> object:
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    return text if _BARE.fullmatch(text) else DoubleQuotedScalarString(text)
