"""Texts of `body:`: JSON Pointers, names with `*`, refs of git, and numbers as YAML
writes them.
"""

from __future__ import annotations

import json
import re
from typing import Final

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import byte_size
from squidkeeper.policy.language.bodies import Scalar
from squidkeeper.policy.language.unquoted import Unquoted, describe
from squidkeeper.policy.language.variables import REFERENCE, named_variables

LARGEST_BODY: Final = 64_000_000  # bytes; a body that is read is in memory
CALLS_A_TOOL: Final = "tools/call"
_LONGEST_TEXT: Final = 1_000  # characters
_STRAY_TILDE = re.compile(r"~(?![01])")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
_IN_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?\[\\]|\.\.|@\{|//|\*\*\*")
_REF_EXPECTED = "expected a full name such as refs/heads/main or refs/heads/agent/**"


def parse_pointer(text: str) -> tuple[str, ...]:
    """Parse a JSON Pointer (RFC 6901) into its tokens; `PatternError` where
    it is none.
    """
    if not text.startswith("/"):
        raise PatternError(
            f"pointer {text!r} does not start with '/', expected one such as /model or /tools/*/type"
        )
    if _STRAY_TILDE.search(text):
        message = "has a '~' that is no escape, expected ~0 for '~' and ~1 for '/' in the name of a member"
        raise PatternError(f"pointer {text!r} {message}")
    if len(text) > _LONGEST_TEXT:
        raise PatternError(
            f"the pointer has {len(text):,} characters, expected {_LONGEST_TEXT:,} at most"
        )
    return tuple(
        token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/")
    )


def checked_pointer(text: str) -> str:
    """Check that a text is a JSON Pointer."""
    parse_pointer(text)
    return text


def parse_ref(text: str) -> str:
    """Parse a glob of refs; `PatternError` where no ref can match it."""
    if not text.startswith(("refs/", "**")):
        raise PatternError(f"ref {text!r} does not start with 'refs/', {_REF_EXPECTED}")
    plain = REFERENCE.sub("x", text) if named_variables(text) else text
    if (found := _IN_NO_REF.search(plain)) is not None:
        raise PatternError(
            f"ref {text!r} holds {found[0]!r}, which no ref has, {_REF_EXPECTED}"
        )
    return _short_enough(text)


def parse_pushed_ref(text: str) -> str:
    """Parse a ref of a push, which is no glob."""
    if "*" in text or named_variables(text):
        raise PatternError(f"ref {text!r} is a glob, expected the ref that is pushed")
    return parse_ref(text)


def parse_name(text: str) -> str:
    """Parse the name of a tool, or a glob of names."""
    if not text.isprintable():
        raise PatternError(f"name {text!r} holds a control character, expected none")
    return _short_enough(text)


def parse_rpc_method(text: str) -> str:
    """Parse a method of MCP, or a glob of methods; those that call tools are none of
    them.
    """
    if re.fullmatch(re.escape(text).replace(r"\*", ".*"), CALLS_A_TOOL, re.DOTALL):
        raise PatternError(
            f"method {text!r} calls any tool, expected the tools themselves, in 'tools'"
        )
    return parse_name(text)


def number_of(value: object) -> int | float | None:
    """Return a number as YAML writes it, also with a fraction or a minus; None for
    anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, Unquoted) or not _NUMBER.fullmatch(value.text):
        return None
    return float(value.text) if "." in value.text else int(value.text)


def scalar_of(value: object) -> Scalar:
    """Return what may stand in a document: a text, number, true, false or null;
    `PatternError` for anything else.
    """
    if isinstance(value, Unquoted) and value.null:
        return None
    if isinstance(value, str):
        return _short_enough(value)
    if isinstance(value, bool):
        return value
    if (number := number_of(value)) is not None:
        return number
    raise PatternError("expected a text, a number, true, false or null")


def written_document(value: object) -> bytes:
    """Write a document of a test as JSON; `PatternError` where it holds what
    is none.
    """
    return json.dumps(document_of(value), ensure_ascii=False).encode()


def document_of(value: object) -> object:
    """Return a JSON document as YAML writes it; `PatternError` where a value is none of
    JSON's.
    """
    if isinstance(value, dict):
        return {name: document_of(member) for name, member in value.items()}
    if isinstance(value, list):
        return [document_of(item) for item in value]
    try:
        return scalar_of(value)
    except PatternError:
        raise PatternError(
            f"the body holds {describe(value)}, which is no value of JSON; quote it"
        ) from None


def checked_size(size: int) -> int:
    """Check how long a body may be that is read."""
    if size > LARGEST_BODY:
        largest = byte_size(LARGEST_BODY)
        raise PatternError(
            f"{byte_size(size)} are too many for a body, which is in memory, expected {largest} at most"
        )
    return size


def _short_enough(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_TEXT:
        raise PatternError(
            f"a text has {len(text):,} characters, expected 1 to {_LONGEST_TEXT:,}"
        )
    return text
