"""The value of a credential as text with {secret} in it."""

import re

from squidkeeper.base.errors import PatternError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


def parse_template(text: str) -> tuple[str, ...]:
    """List the secrets that a template names, in order; `PatternError` where it is none.

    Literal braces are doubled. The rest is sent in a header unchanged, so it must be printable ASCII.
    """
    for match in _PART.finditer(text):
        if match[0] in ("{", "}"):
            raise PatternError(f"the value has a {match[0]!r} alone, expected {{secret}}, or braces doubled")
    if not _PRINTABLE.fullmatch(_PART.sub("", text)):
        raise PatternError("the value holds something else than printable ASCII, which no header can carry")
    return tuple(dict.fromkeys(fields_of(text)))


def fields_of(text: str) -> tuple[str, ...]:
    """List the names in braces, each as often as it stands there."""
    return tuple(match[1] for match in _PART.finditer(text) if match[1] is not None)
