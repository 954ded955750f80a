"""`json:`, the form of a JSON document: which places it has, and what may stand there.

Parsers differ in much that RFC 8259 leaves open. A document that two of them could read
in two ways is unreadable.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

import msgspec

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.reading import content_type, read_content
from squidkeeper.policy.bodies.sent_request import (
    HOLDS,
    NEEDS_MORE,
    BodyOutcome,
    Fit,
    SentRequest,
)
from squidkeeper.policy.language.bodies import EACH, Allowed, JsonBody, Member
from squidkeeper.policy.language.globs import ANYTHING, Matcher, glob_matcher

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 100_000  # of a document; each takes up to 300 bytes of memory
# RFC 7493, 2.2: parsers round what is beyond, let it wrap around, or fail
MAX_EXACT: Final = 2**53
_TOO_MANY: Final = f"the document has more than {MAX_VALUES:,} values"

Pointer = tuple[str, ...]


class ParsedJson(NamedTuple):
    """A parsed JSON document.

    `size`: the bytes of the body, or of its content where that is longer.
    """

    root: object
    size: int


def examine(body: JsonBody, request: SentRequest, *, deny: bool) -> BodyOutcome:
    """Return whether a `json:` holds.

    Every member has to hold: in an allow at each of its places, in a deny at one.
    """
    if not request.has_body:
        return BodyOutcome(Fit.FAILS, "the request has no body")
    try:
        document = read_document(request, body.max_bytes)
        if document is None:
            return NEEDS_MORE
        if deny:
            return (
                HOLDS
                if all_match(body.members, document.root)
                else BodyOutcome(Fit.FAILS)
            )
        refusal = first_refusal(body.members, document.root) or _refusal_of_others(
            body.only, document.root
        )
        return BodyOutcome(Fit.FAILS, refusal) if refusal else HOLDS
    except UnreadableBody as error:
        return BodyOutcome(Fit.UNREADABLE, str(error))


# --- a document -----------------------------------------------------------------------


def read_document(request: SentRequest, max_bytes: int) -> ParsedJson | None:
    """Return the document of a request; None where more of the body has to come.

    It is parsed once for all rules. `UnreadableBody` where it is no JSON, or two
    parsers could differ on it.
    """
    for kept in request.kept.values():
        if isinstance(kept, ParsedJson) and kept.size <= max_bytes:
            return kept
    if max_bytes not in request.kept:
        try:
            check_json_type(request)
            content = read_content(request, max_bytes)
            if content is None:
                return None
            request.kept[max_bytes] = ParsedJson(
                parse(content), max(len(request.body), len(content))
            )
        except UnreadableBody as error:
            request.kept[max_bytes] = str(error)
    kept = request.kept[max_bytes]
    if not isinstance(kept, ParsedJson):
        raise UnreadableBody(kept)
    return kept


_PARAMETER = r'[ \t]*;[ \t]*([a-z0-9_-]+)=("?)([a-z0-9._:/+-]*)\%d'
_PARAMETERS: Final = re.compile(_PARAMETER % 2)
_JSON_TYPE: Final = re.compile(
    rf"application/(?:json|x-amz-json-1\.[01]|[a-z0-9._-]+\+json)((?:{_PARAMETER % 3})*[ \t]*;?)"
)


# some servers search the type for these
_FORMS: Final = (
    "x-www-form",
    "form-data",
    "multipart",
)


def check_json_type(request: SentRequest) -> None:
    """Raise `UnreadableBody` where a server can take the body for another form, or its
    text for another charset.

    Without a type some servers expect a form (`application/x-www-form-urlencoded`),
    whose fields JSON can hold.
    """
    written = content_type(request)
    match = _JSON_TYPE.fullmatch(written)
    if match is None or any(form in written for form in _FORMS):
        raise UnreadableBody("the Content-Type is not application/json")
    charsets = [
        value for name, _, value in _PARAMETERS.findall(match[1]) if name == "charset"
    ]
    if charsets not in ([], ["utf-8"]):
        raise UnreadableBody("the Content-Type names another charset than UTF-8")


def parse(content: bytes) -> object:
    """Parse a JSON document as every parser does, or raise `UnreadableBody`."""
    if content.startswith(codecs.BOM_UTF8):
        raise UnreadableBody("the body begins with a byte order mark")
    _check_structure(content)
    try:
        document = _DECODER.decode(content.decode())
    except UnicodeDecodeError:
        reason = "the body is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"the body is not JSON, at character {error.pos}"
    else:
        _check_escapes(content)
        return document
    raise UnreadableBody(reason)  # out here, because those errors have the body


_PIECE: Final = 64 << 10  # bytes: no other thread runs while a piece is read
_LONGEST_ESCAPE: Final = len(r"\u0000")
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_OTHERS: Final = bytes(set(range(256)) - set(b',[]{}"'))


def _check_structure(content: bytes) -> None:
    """Bound how deep a document is, and how many values it has, before it is parsed."""
    marks, values = bytearray(), 0
    for piece in outside_texts(content):
        brackets = piece.replace(b",", b"")
        marks += brackets
        values += len(piece) - brackets.count(b"]")
        if values > MAX_VALUES or len(marks) > 2 * MAX_VALUES:
            raise UnreadableBody(_TOO_MANY)
    for _ in range(MAX_DEPTH):  # each round takes off what is innermost
        marks = marks.replace(b"[]", b"")
    if marks:
        raise UnreadableBody(f"the document is deeper than {MAX_DEPTH}")


def outside_texts(content: bytes) -> Iterator[bytes]:
    """Yield the commas and brackets that are in no text, all brackets as those of
    arrays.
    """
    in_text = False
    for piece in _pieces(content):
        marks = piece.replace(rb"\"", b"").translate(_BRACKETS, _OTHERS)
        parts = marks.split(b'"')
        yield b"".join(parts[in_text::2])
        in_text ^= len(parts) % 2 == 0


def _pieces(content: bytes) -> Iterator[bytes]:
    """Cut a document between escapes, without those of a backslash."""
    rest = b""
    for start in range(0, len(content), _PIECE):
        piece = (rest + content[start : start + _PIECE]).replace(rb"\\", b"//")
        escape = piece.rfind(b"\\", -_LONGEST_ESCAPE)
        end = len(piece) if escape < 0 else escape
        rest = piece[end:]
        yield piece[:end]
    yield rest


def _check_escapes(content: bytes) -> None:
    """Refuse what texts of some languages cannot hold."""
    has_halves = False
    for piece in _pieces(content):
        if rb"\u0000" in piece:
            raise UnreadableBody("a text has U+0000")
        has_halves = has_halves or rb"\ud" in piece or rb"\uD" in piece
    if has_halves and not _has_whole_characters(content):
        raise UnreadableBody("a text has half of a character (a lone surrogate)")


def _has_whole_characters(content: bytes) -> bool:
    """Return whether the surrogates of a JSON document are pairs.

    msgspec takes any document but one with a half, and keeps nothing of it here.
    """
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise UnreadableBody("an object has two members of one name")
    if "__proto__" in members:  # JavaScript can take it for members of the object
        raise UnreadableBody("an object has a member __proto__")
    return members


_NOT_ZERO: Final = re.compile("[-0.]*[1-9]")
_LONGEST_NUMBER: Final = 308  # characters; whole numbers of more are too large


def _whole(text: str) -> int:
    return int(_bounded(text))


def _fraction(text: str) -> float:
    value = float(_bounded(text))
    if math.isinf(value) or (value == 0 and _NOT_ZERO.match(text)):
        raise UnreadableBody("a number is too large or too small for a double")
    return value


def _bounded(number: str) -> str:
    if len(number) > _LONGEST_NUMBER:
        raise UnreadableBody(f"a number has more than {_LONGEST_NUMBER} characters")
    return number


def _constant(name: str) -> NoReturn:
    raise UnreadableBody(f"a number is {name}")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_whole,
    parse_float=_fraction,
    parse_constant=_constant,
)

# --- what stands at a pointer ---------------------------------------------------------


class _Nothing(NamedTuple):
    """Stands for what a pointer leads to where it leads nowhere."""

    absent: bool


_ABSENT: Final = _Nothing(absent=True)
_BELOW_A_SCALAR: Final = _Nothing(absent=False)  # a text or number has no members


def all_match(members: Iterable[Member], root: object) -> bool:
    """Return whether each member of a deny matches at one of its places."""
    return all(
        any(_matches(member, value) for value in _values(root, member.pointer))
        for member in members
    )


def first_refusal(members: Iterable[Member], root: object) -> str | None:
    """Return why a member does not hold at one of its places; None where all hold at
    each.
    """
    for member in members:
        for value in _values(root, member.pointer):
            if not _holds(member, value):
                state = (
                    "is missing" if value is _ABSENT else "is not what the rule lists"
                )
                return f"{format_pointer(member.pointer)} {state}"
    return None


def format_pointer(pointer: Pointer) -> str:
    """Write a JSON Pointer for people."""
    tokens = (token.replace("~", "~0").replace("/", "~1") for token in pointer)
    return "".join(f"/{token}" for token in tokens) or "the document"


def _values(root: object, pointer: Pointer) -> Sequence[object]:
    """Return what stands at a pointer: several values where it has `EACH`, and never
    none.
    """
    values: Sequence[object] = (root,)
    for depth, token in enumerate(pointer):
        try:
            is_last = depth == len(pointer) - 1
            values = [
                found for value in values for found in _step(value, token, is_last)
            ]
        except UnreadableBody as error:
            raise UnreadableBody(f"{format_pointer(pointer[:depth])} {error}") from None
    return values


def _step(value: object, token: str, is_last: bool) -> Sequence[object]:
    """Go from a value to what stands below it.

    Some servers take a value that should be an array for its one item.
    """
    if isinstance(value, dict):
        return (_member(value, token),)
    if isinstance(value, list):
        return _items(value, token)
    if value is None or isinstance(value, _Nothing):
        return (value or _ABSENT,)
    if token == EACH:
        return (value if is_last else _ABSENT,)
    return (_BELOW_A_SCALAR,)


def _member(members: dict[str, object], token: str) -> object:
    if token == EACH:
        raise UnreadableBody("is an object, expected an array")
    # no name has U+0000
    names, name, expected = (
        folded("\0".join(members)),
        folded(token),
        token in members,
    )
    if names.count(name) != expected and names.split("\0").count(name) != expected:
        raise UnreadableBody(
            "has a member that some parsers take for another: names differ in case, - or _ alone"
        )
    return members.get(token, _ABSENT)


def folded(name: str) -> str:
    """Return a name as lenient parsers compare it: in any case as Go and Java do,
    `maxTokens` for `max_tokens`.
    """
    return _in_pieces(_fold, name)


def _fold(name: str) -> str:
    # upper: dotless i is I. casefold: I with a dot is i with U+0307
    text = name.upper().casefold()
    return text.replace("_", "").replace("-", "").replace("\u0307", "")


def _in_pieces(change: Callable[[str], str], text: str) -> str:
    """Change a text by what changes each character alone."""
    if len(text) <= _PIECE:
        return change(text)
    pieces = range(0, len(text), _PIECE)
    return "".join(change(text[start : start + _PIECE]) for start in pieces)


_INDEX: Final = re.compile("0|[1-9][0-9]{0,9}")


def _items(items: list[object], token: str) -> Sequence[object]:
    if token == EACH:
        return items or (_ABSENT,)
    if _INDEX.fullmatch(token) is None:
        raise UnreadableBody("is an array, expected an object")
    return items[int(token) : int(token) + 1] or (_ABSENT,)


# --- what may stand there -------------------------------------------------------------


def _holds(member: Member, value: object) -> bool:
    allowed = member.allowed
    if isinstance(value, _Nothing):
        return value.absent and allowed.absent
    if isinstance(value, str):
        return any(
            isinstance(text, str) and text_matcher(text)(value)
            for text in allowed.values or ()
        )
    if value is None or isinstance(value, bool):
        return any(scalar is value for scalar in allowed.values or ())
    if isinstance(value, int | float):
        if abs(value) > MAX_EXACT:
            raise UnreadableBody(
                f"{format_pointer(member.pointer)} is beyond 2^53, where parsers differ"
            )
        return _number_holds(allowed, value)
    return False


def _matches(member: Member, value: object) -> bool:
    """Return whether a value is what a deny lists, or of a type that it does not list.

    Servers convert types: `"6"` and `[6]` can become 6. They also ignore case and
    spaces.
    """
    if value is None or isinstance(value, _Nothing):
        return _holds(member, value)
    allowed = member.allowed
    kinds = {
        _kind(scalar)
        for scalar in (*(allowed.values or ()), allowed.least, allowed.most)
        if scalar is not None
    }
    if _kind(value) not in kinds:
        return True
    if not isinstance(value, str):
        return _holds(member, value)
    listed = (
        scalar if isinstance(scalar, str) else json.dumps(scalar)
        for scalar in allowed.values or ()
    )
    plain = _plain(value)
    return any(text_matcher(_plain(text))(plain) for text in listed)


def _kind(value: object) -> type:
    return float if _is_number(value) else type(value)


def _plain(text: str) -> str:
    return _in_pieces(str.casefold, text.strip())


def _number_holds(allowed: Allowed, value: float) -> bool:
    """Return whether a number is allowed. 1 and 1.0 are one number, and
    `true` is none.
    """
    if any(scalar == value and _is_number(scalar) for scalar in allowed.values or ()):
        return True
    if allowed.least is None and allowed.most is None:
        return False
    return (allowed.least is None or value >= allowed.least) and (
        allowed.most is None or value <= allowed.most
    )


def _is_number(scalar: object) -> bool:
    return isinstance(scalar, int | float) and not isinstance(scalar, bool)


@lru_cache(maxsize=1024)  # 0.1 µs instead of 1.6 for each value of a rule
def text_matcher(text: str) -> Matcher:
    """Return what matches a text of a rule, in which `*` is any characters."""
    return glob_matcher(tuple(re.split(r"(\*)", text)), {"*": ANYTHING})


# --- no other members -----------------------------------------------------------------


def _refusal_of_others(only: tuple[Pointer, ...] | None, root: object) -> str | None:
    if only is None or _has_only(root, only):
        return None
    return "the document has a member that the rule does not list"


def _has_only(value: object, pointers: Sequence[Pointer]) -> bool:
    """Return whether all that is in a value stands at one of the pointers, or
    below it.
    """
    if () in pointers or value is None:
        return True
    if isinstance(value, dict):
        return all(_is_listed(item, {name}, pointers) for name, item in value.items())
    if isinstance(value, list):
        return all(
            _is_listed(item, {EACH, str(index)}, pointers)
            for index, item in enumerate(value)
        )
    return False


def _is_listed(value: object, tokens: set[str], pointers: Sequence[Pointer]) -> bool:
    below = [pointer[1:] for pointer in pointers if pointer[0] in tokens]
    return bool(below) and _has_only(value, below)
