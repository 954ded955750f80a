"""The methods that a policy can name."""

import re

from squidkeeper.base.errors import PatternError

_NEVER = {
    "CONNECT": "CONNECT is transport, not a method to list: expected the methods of the requests inside the tunnel",
    "TRACE": "TRACE is always denied, expected another method",
    "TRACK": "TRACK is always denied, expected another method",
    **dict.fromkeys(("ALL", "ANY"), "for all methods, leave 'methods' out"),
}
BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})  # whose requests need no body
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def parse_method(text: str) -> str:
    """Read a method; `PatternError` where no entry of a policy can name it."""
    if text in _NEVER:
        raise PatternError(_NEVER[text])
    if not _METHOD.fullmatch(text):
        raise PatternError(
            f"method {text!r} can never match, expected an upper-case name such as GET (or no 'methods' for all)"
        )
    if text != text.upper():
        raise PatternError(
            f"method {text!r} is not upper-case, expected {text.upper()!r}"
        )
    return text
