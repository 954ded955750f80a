"""YAML with positions: from the bytes of one file to plain data, and the position of
each key and value.

Only what a policy needs of YAML is let through. What YAML 1.1 reads as something else
than it looks like (`no`, `22:22`, `010`) stays an `Unquoted`, which no field of the
policy takes; tags, merge keys and doubled keys are faults; aliases are bounded.
"""

# PyYAML's composer is not used: its depth and its aliases have no bound, and it ends at
# the first fault.

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.error import Mark
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.parser import ParserError
from yaml.reader import Reader
from yaml.scanner import ScannerError

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.unquoted import (
    NULL,
    Unquoted,
    describe,
    kind,
    quote_it,
    shortened,
)

# in C where PyYAML was built with libyaml
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH_AT_MOST = 16  # the language needs six
# with every alias written out: ten thousand rules have about two hundred thousand
_VALUES_AT_MOST = 1_000_000


# line and column in one number: a policy of ten thousand rules has some hundred
# thousand places
Place = int


@dataclass(slots=True)
class Node:
    """A value with its place, and the place of its key; `children` by key or by index,
    None for a scalar.

    What is no list stands for a list of itself alone.
    """

    place: Place
    data: object
    children: dict[str, Node] | list[Node] | None = None
    key_place: Place = 0
    size: int = 1

    def child(self, step: str | int) -> Node | None:
        """Find the value of a key or at an index, if there is one."""
        if isinstance(step, str):
            return self.children.get(step) if isinstance(self.children, dict) else None
        if isinstance(self.children, list):
            return self.children[step] if step < len(self.children) else None
        return self if step == 0 else None


@dataclass(frozen=True, slots=True)
class Document:
    """One policy file: its values, and what is wrong with it as YAML. `root` is None if
    it cannot be read.

    The key `end` may be given twice: `END_REQUIRED` is the one with the value
    `required`.
    """

    path: Path
    content: bytes
    root: Node | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()

    @property
    def data(self) -> dict[str, object]:
        """The mapping that the file holds; empty if it holds none."""
        return self.root.data if self.root and isinstance(self.root.data, dict) else {}

    @property
    def ends(self) -> bool:
        """Whether the file ends with `end: true`."""
        return self.data.get(END) is True

    def end(self) -> Location:
        """Find the last line of the file."""
        return Location(str(self.path), max(1, len(self.content.splitlines())), 1)

    def value_at(self, steps: Sequence[str | int]) -> object:
        """Return the value that `steps` lead to; None where there is none."""
        node = self.root
        for step in steps:
            node = node.child(step) if node else None
        return node and node.data

    def locate(self, steps: Sequence[str | int], *, key: bool = False) -> Location:
        """Find the position of the value, or of the key, that `steps` lead to, or of
        the last one that exists.
        """
        node = self.root
        for step in steps:
            child = node.child(step) if node else None
            if child is None:
                break
            node = child
        place = (key and node.key_place) or node.place if node else 0
        return _location(str(self.path), place)


def parse_document(path: Path, content: bytes) -> Document:
    """Parse one policy file; the document has its faults."""
    composer = _Composer(str(path))
    root = composer.compose(content)
    return Document(
        path, content, root, tuple(composer.faults), tuple(composer.warnings)
    )


def entries(
    document: Document, *sections: str
) -> Iterator[tuple[str, dict[str, Any], tuple[str, int | str]]]:
    """Yield the mappings in sections of a file, unchecked: section, entry, and the
    steps that lead there.
    """
    for section, entry, steps in all_entries(document, *sections):
        if isinstance(entry, dict):
            yield section, entry, steps


def all_entries(
    document: Document, *sections: str
) -> Iterator[tuple[str, object, tuple[str, int | str]]]:
    """Yield the values in sections of a file, whether they are mappings or not."""
    for section in sections:
        values = document.data.get(section)
        pairs: Iterable[tuple[int | str, object]] = ()
        if isinstance(values, dict):
            pairs = values.items()
        elif isinstance(values, list):
            pairs = enumerate(values)
        for step, entry in pairs:
            yield section, entry, (section, step)


def file_entries(
    documents: Iterable[Document], *sections: str
) -> Iterator[tuple[Document, str, Path]]:
    """Yield the files that sections name: the document, the name of the entry, and the
    path beside the document.
    """
    for document in documents:
        for _, entry, steps in entries(document, *sections):
            if _is_file_name(entry.get("file")):
                yield document, str(steps[1]), document.path.parent / entry["file"]


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_private(steps: Iterable[str | int]) -> bool:
    """Whether steps lead to where the value of a secret or token may be by mistake: no
    fault shows that.
    """
    keys = [step for step in steps if isinstance(step, str)]
    if keys[:1] == ["clients"]:
        return keys[2:3] in ([], ["token_sha256"]) and keys != ["clients"]
    if keys[:1] in (["secrets"], ["canaries"]) or keys == ["sealed_tokens"]:
        return True
    return keys[:1] in _NAME_SECRETS and keys[1:2] in _PRIVATE_FIELDS


def shown_key(key: str, above: Iterable[str | int]) -> str:
    """Show a key as a fault does: where a secret's value may be by mistake, only a key
    of the language.
    """
    return (
        repr(key)
        if key in _KEYS_OF_PRIVATE or not is_private(above)
        else "an entry here"
    )


class _UnreadableError(Exception):
    """The rest of the file cannot be read; carries the fault."""

    def __init__(self, place: Place, code: FaultCode, message: str) -> None:
        super().__init__(message)
        self.place, self.code, self.message = place, code, message


class _Composer:
    """Makes nodes of libyaml's events, and collects every fault."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []
        self._lines: list[str] = []
        self._steps: list[str] = []  # the keys that lead to where we are
        self._anchors: dict[str, Node | None] = {}  # None: the node is not finished yet
        self._events: Iterator[Event] = iter(())

    def compose(self, content: bytes) -> Node | None:
        try:
            text = _decode(content)
            self._lines = text.splitlines()
            self._events = _events(text)
            return self._document()
        except _UnreadableError as error:
            self._fault(error.place, error.code, error.message)
            return None

    def _document(self) -> Node | None:
        next(self._events)  # the start of the stream
        event = next(self._events)
        if isinstance(event, StreamEndEvent):
            message = (
                "the file is empty, expected 'version: 1' and the sections of a policy"
            )
            raise _UnreadableError(_at(1, 1), FaultCode.EMPTY_VALUE, message)
        root = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._fault_at(
                    event,
                    FaultCode.UNSUPPORTED_YAML,
                    "a second YAML document starts here, expected one a file",
                )
                break
        if not isinstance(root.data, dict):
            message = "the file holds no mapping, expected 'version: 1' and sections"
            raise _UnreadableError(root.place, FaultCode.WRONG_TYPE, message)
        return root

    def _node(self, event: Event, depth: int) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth > _DEPTH_AT_MOST:
            raise _unreadable(
                event,
                FaultCode.TOO_LARGE,
                f"values are nested more than {_DEPTH_AT_MOST} deep",
            )
        assert isinstance(event, NodeEvent)  # noqa: S101 - libyaml's grammar: nothing else is possible here
        self._check_tag(event)
        if event.anchor:
            self._anchors[event.anchor] = None
        node = self._filled(event, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        if node.size > _VALUES_AT_MOST:
            message = f"with its aliases written out this holds more than {_VALUES_AT_MOST:,} values"
            raise _unreadable(event, FaultCode.TOO_LARGE, message)
        return node

    def _filled(self, event: NodeEvent, depth: int) -> Node:
        place = _start_of(event)
        if isinstance(event, ScalarEvent):
            return Node(place, _scalar(event))
        if isinstance(event, SequenceStartEvent):
            return self._filled_sequence(Node(place, None), depth)
        return self._filled_mapping(Node(place, None), depth)

    def _filled_mapping(self, node: Node, depth: int) -> Node:
        children: dict[str, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth + 1)
            self._steps.append(key.data if isinstance(key.data, str) else "")
            event = next(self._events)
            value = self._node(event, depth + 1)
            self._steps.pop()
            if key.data in _PROSE and isinstance(event, ScalarEvent):
                self._check_comment(str(key.data), event)
            node.size += value.size
            if not isinstance(key.data, str):
                what = kind(key.data) if is_private(self._steps) else describe(key.data)
                self._fault(
                    key.place,
                    FaultCode.WRONG_TYPE,
                    f"a key is {what}, expected text{quote_it(key.data)}",
                )
            elif self._takes_key(
                children, name := self._key_name(key.data, value), key.place
            ):
                name = sys.intern(name)
                value.key_place = key.place
                children[name] = value
                keys = [*self._steps, name]
                if not (
                    _may_be_empty(keys, value)
                    or _may_be_null(keys, value, in_list=False)
                ):
                    self._check_value(shown_key(name, self._steps), value)
        node.children = children
        node.data = {name: child.data for name, child in children.items()}
        return node

    def _key_name(self, key: str, value: Node) -> str:
        return (
            END_REQUIRED
            if key == END and value.data == _REQUIRED and not self._steps
            else key
        )

    def _check_comment(self, key: str, event: ScalarEvent) -> None:
        """Warn about a text without quotes that ends at a word such as `#platform`,
        which YAML reads as a comment.
        """
        mark = event.end_mark
        if (
            event.style not in (None, "")
            or mark is None
            or mark.line >= len(self._lines)
        ):
            return
        comment = _WORD_AS_COMMENT.match(self._lines[mark.line], mark.column)
        if comment is not None:
            place = _at(mark.line + 1, comment.start(1) + 1)
            message = f"{key!r} ends before {shortened(comment[1])!r}, which YAML reads as a comment; {_QUOTE_THE_TEXT}"
            self.warnings.append(
                Fault(_location(self.file, place), FaultCode.TEXT_CUT, message)
            )

    def _takes_key(self, children: dict[str, Node], key: str, place: Place) -> bool:
        first = children.get(key)
        if first is not None:
            shown = shown_key(key, self._steps)
            what = f"key {shown}" if shown == repr(key) else "a key"
            message = f"{what} is given twice, first at {_location(self.file, first.key_place)}"
            self._fault(place, FaultCode.DUPLICATE_KEY, message)
        elif key == "<<":
            message = (
                "merge keys ('<<') are not understood, expected the keys themselves"
            )
            self._fault(place, FaultCode.UNSUPPORTED_YAML, message)
        return first is None and key != "<<"

    def _filled_sequence(self, node: Node, depth: int) -> Node:
        children: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            value = self._node(event, depth + 1)
            node.size += value.size
            if isinstance(event, AliasEvent) and isinstance(value.data, list):
                # wrong here, and right where it was written
                value.place = _start_of(event)
            children.append(value)
            if not (
                _may_be_empty(self._steps, value)
                or _may_be_null(self._steps, value, in_list=True)
            ):
                self._check_value("an entry of a list", value)
        node.children = children
        node.data = [child.data for child in children]
        return node

    def _check_value(self, what: str, value: Node) -> None:
        """Find a key without a value and an empty list: neither means that the key is
        left out.
        """
        if isinstance(value.data, Unquoted) and value.data.null:
            message = f"{what} has no value, expected one (or the key left out)"
            self._fault(value.key_place or value.place, FaultCode.EMPTY_VALUE, message)
        elif value.size == 1 and value.data in ([], {}):
            empty = "an empty list" if value.data == [] else "an empty mapping"
            message = f"{what} is {empty}, expected entries (or the key left out)"
            self._fault(value.place, FaultCode.EMPTY_VALUE, message)

    def _alias(self, event: AliasEvent) -> Node:
        name = event.anchor
        if is_private(self._steps) and self._anchors.get(name or "") is None:
            message = "a value that starts with '*' has to be quoted: without quotes it is a YAML alias"
            raise _unreadable(event, FaultCode.NOT_YAML, message)
        if name not in self._anchors:
            message = f"'*{name}' without quotes is a YAML alias, and there is no '&{name}': quote it"
            raise _unreadable(event, FaultCode.NOT_YAML, message)
        node = self._anchors[name]
        if node is None:
            raise _unreadable(
                event, FaultCode.NOT_YAML, f"'*{name}' is inside '&{name}' itself"
            )
        return replace(node)  # the value of another key, at another position

    def _check_tag(self, event: NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            such = "" if is_private(self._steps) else f" such as {tag!r}"
            message = f"YAML tags{such} are not understood, expected a plain value (text in quotes)"
            self._fault_at(event, FaultCode.UNSUPPORTED_YAML, message)

    def _fault_at(self, event: Event, code: FaultCode, message: str) -> None:
        self._fault(_start_of(event), code, message)

    def _fault(self, place: Place, code: FaultCode, message: str) -> None:
        self.faults.append(Fault(_location(self.file, place), code, message))


# --- text and syntax ------------------------------------------------------------------


def _decode(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(content[: error.start].decode("utf-8", "replace"))
        message = (
            f"byte 0x{content[error.start]:02x} is not UTF-8, expected text in UTF-8"
        )
        raise _UnreadableError(place, FaultCode.NOT_YAML, message) from error
    bad = Reader.NON_PRINTABLE.search(text)
    if bad:
        message = f"the character U+{ord(bad[0]):04X} is not allowed in YAML, expected text without it"
        raise _UnreadableError(_place(text[: bad.start()]), FaultCode.NOT_YAML, message)
    return text


def _place(before: str) -> Place:
    return _at(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _events(text: str) -> Iterator[Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(text, error) from error


def _syntax_error(text: str, error: yaml.MarkedYAMLError) -> _UnreadableError:
    mark = error.problem_mark or error.context_mark
    if _is_unclosed(text, error):  # its problem is at the end of the file
        mark = error.context_mark
    if mark is None:
        return _UnreadableError(
            _at(1, 1), FaultCode.NOT_YAML, f"not YAML: {error.problem}"
        )
    hint = _hint(text, error)
    context = f"{error.context}: " if error.context else ""
    message = f"not YAML: {context}{error.problem}{hint}"
    return _UnreadableError(
        _at(mark.line + 1, mark.column + 1), FaultCode.NOT_YAML, message
    )


def _hint(text: str, error: yaml.MarkedYAMLError) -> str:
    """Return how to fix the likely mistake, by where the parser stopped: text without
    quotes, a tab, a quote or the indentation.
    """
    if hint := _hint_of_value(text.splitlines(), error):
        return hint
    if _is_in_quotes(text, error):
        return _UNCLOSED if _is_unclosed(text, error) else _ESCAPE
    if _lacks_content(error) or _is_in_brackets(text, error):
        return _BRACKETS
    mark = error.problem_mark
    return "" if mark is None else _hint_of_lines(text.splitlines(), error, mark)


def _hint_of_value(lines: list[str], error: yaml.MarkedYAMLError) -> str:
    for mark in (error.context_mark, error.problem_mark):
        if mark is None or mark.line >= len(lines):
            continue
        at = lines[mark.line][mark.column : mark.column + 1]
        if at in _INDICATORS or (at == ":" and _lacks_content(error)):
            return f"; a value that starts with {at!r} has to be quoted"
        if "\t" in lines[mark.line][: mark.column + 1]:
            return "; a tab cannot indent YAML, use spaces"
    return ""


def _hint_of_lines(lines: list[str], error: yaml.MarkedYAMLError, mark: Mark) -> str:
    if number := _line_of_glued_key(lines[: mark.line + 1]):
        return f"; is a space missing after the ':' in line {number}?"
    line = lines[mark.line] if mark.line < len(lines) else ""
    is_misplaced = (
        error.context_mark is not None
        if isinstance(error, ParserError)
        else not error.context and line[mark.column : mark.column + 1] == ":"
    )
    return _hint_of_indentation(line, mark.column) if is_misplaced else ""


def _is_in_quotes(text: str, error: yaml.MarkedYAMLError) -> bool:
    """Whether the parser stopped between a quote and the one that closes it."""
    start, end = error.context_mark, error.problem_mark
    if not isinstance(error, ScannerError) or start is None or end is None:
        return False
    is_closed = _QUOTED.match(text, start.index, end.index) is not None
    return text[start.index : start.index + 1] in _QUOTES and not is_closed


def _is_unclosed(text: str, error: yaml.MarkedYAMLError) -> bool:
    """Whether a quote is not closed: what stopped the parser is no escape."""
    if not _is_in_quotes(text, error) or error.problem_mark is None:
        return False
    end = error.problem_mark.index
    rest = text[end:]
    return not rest or not (rest[0] == "\\" or text[:end].endswith(_WITH_DIGITS))


def _is_in_brackets(text: str, error: yaml.MarkedYAMLError) -> bool:
    """Whether the parser stopped in a list or mapping of one line."""
    start, end = error.context_mark, error.problem_mark
    if not isinstance(error, ParserError) or start is None or end is None:
        return False
    read = text[start.index : end.index]
    opened = sum(map(read.count, "[{")) - sum(map(read.count, "]}"))
    return read[:1] in _OPENING and opened > 0


def _lacks_content(error: yaml.MarkedYAMLError) -> bool:
    """Whether a value was to begin where the parser stopped."""
    start, end = error.context_mark, error.problem_mark
    if not isinstance(error, ParserError) or start is None or end is None:
        return False
    return start.index == end.index


def _line_of_glued_key(lines: list[str]) -> int | None:
    numbers = [
        number
        for number, line in enumerate(lines, 1)
        if line.lstrip(" ")[:1] not in ("", "#")
    ]
    return next(
        (number for number in numbers[-2:] if _GLUED_KEY.match(lines[number - 1])), None
    )


def _hint_of_indentation(line: str, column: int) -> str:
    if line[:column].rstrip().endswith(_CLOSING):
        return "; is the whole value in quotes, with none of the same kind inside, and each quote above closed?"
    spaces = len(line) - len(line.lstrip(" "))
    return f"; is this line, indented by {spaces}, indented as its neighbours, and text with ': ' in it quoted?"


def _unreadable(event: Event, code: FaultCode, message: str) -> _UnreadableError:
    return _UnreadableError(_start_of(event), code, message)


def _start_of(event: Event) -> Place:
    mark = event.start_mark
    return _at(mark.line + 1, mark.column + 1) if mark else _at(1, 1)


def _at(line: int, column: int) -> Place:
    return line << _COLUMN_BITS | min(column, _COLUMN_MASK)


def _location(file: str, place: Place) -> Location:
    return Location(file, place >> _COLUMN_BITS, place & _COLUMN_MASK)


# --- scalars --------------------------------------------------------------------------


def _scalar(event: ScalarEvent) -> object:
    text = event.value
    if not event.implicit[0] or event.style not in (None, ""):
        return text
    tag = _implicit_tag(text)
    if tag == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    if tag == "bool" and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    return Unquoted(text, _MEANINGS[tag]) if tag in _MEANINGS else text


def _implicit_tag(text: str) -> str | None:
    for tag, regexp in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if regexp.match(text):
            return str(tag).removeprefix("tag:yaml.org,2002:")
    return None


def _may_be_empty(keys: list[str], value: Node) -> bool:
    """Whether nothing is allowed: a test can expect none, or send it in a document; a
    client can have no token left.
    """
    if keys[:2] == _TESTED_BODY:
        return value.data in ([], {}) or (
            isinstance(value.data, Unquoted) and bool(value.data.text)
        )
    return value.data == [] and (
        keys in _EMPTY_IS_NONE
        or (keys[:1] == ["clients"] and keys[2:] == ["token_sha256"])
    )


def _may_be_null(keys: list[str], value: Node, *, in_list: bool) -> bool:
    """Whether a value is a `null` that may stand in a JSON document."""
    if not isinstance(value.data, Unquoted) or not value.data.text:
        return False
    for above, steps in _DOCUMENTS:
        if keys[: len(above)] == above and (
            keys[steps:] == keys[-1:] or (in_list and keys[steps + 1 :] == ["values"])
        ):
            return True
    return False


END = "end"
END_REQUIRED = "end: required"
_REQUIRED = "required"
_PROSE = ("reason", "owner", "contact")
_WORD_AS_COMMENT = re.compile(r"\s+(#[^\s#].*)")
_QUOTE_THE_TEXT = "quote the text, or put a space after the '#' of a comment"
_COLUMN_BITS = 20
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,8}")
_TRUTH = {"true": True, "false": False}
_TESTED_BODY = ["tests", "body"]
_EMPTY_IS_NONE = (
    ["tests", "rewrite"],
    ["tests", "credentials"],
    ["tests", "observed"],
    ["rules", "body", "git", "options"],
)
# The keys above what may stand in a JSON document, and at which step its pointer is.
_DOCUMENTS = (
    (["rules", "body", "json"], 3),
    (["rules", "body", "mcp", "arguments"], 5),
)
_NAME_SECRETS = (["credentials"], ["upstreams"], ["sealed_tokens"])
_PRIVATE_FIELDS = (
    ["bearer"],
    ["basic"],
    ["value"],
    ["headers"],
    ["parameters"],
    ["keys"],
    ["aws_sigv4"],
)
_KEYS_OF_PRIVATE = frozenset(
    """
    networks users token_sha256 sha256 expires
    keys access_key_id secret_access_key session_token region service
    file env username password command run timeout refresh
    oauth2 token_url grant client_id client_secret client_auth refresh_token scope audience ca
    session github_app app_id installation_id private_key repositories permissions api_url
    """.split()  # noqa: SIM905 - one a line is longer
)
_MEANINGS = {
    "null": NULL,
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "timestamp": "a time",
}
_INDICATORS = ("*", "&", "!", "%", "@", "`")
_GLUED_KEY = re.compile(r"[ -]*(?:version:\S|[a-z]+:[^\s/:0-9])")  # not localhost:80
_CLOSING = ("]", "}", "'", '"')
_OPENING = ("[", "{")
_QUOTES = ("'", '"')
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_WITH_DIGITS = ("\\x", "\\u", "\\U")  # escapes
_ESCAPE = "; write a value with '\\' in it in single quotes"
_BRACKETS = "; is every bracket closed, and each value with any of [ ] { } , or ': ' in it quoted?"
_UNCLOSED = "; the quote that opens here is not closed"
