"""Parameters that a credential puts into a query: their names, and which of a client's
are taken for them.
"""

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote_plus

from squidkeeper.base.errors import PatternError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SEPARATED = re.compile(r"([&;?])")
_DECODINGS = 5
_UNICODE = re.compile(r"%u([0-9a-f]{4})", re.IGNORECASE)  # ASP.NET decodes it
_AS_UNDERSCORE = str.maketrans(" .-", "___")  # PHP reads the first two so


def parse_parameter(text: str) -> str:
    """Read the name of a parameter to add; `PatternError` where it is none."""
    if not _NAME.fullmatch(text):
        raise PatternError(
            "this is no name of a parameter, expected up to 64 letters, digits, '_', '.' and '-'"
        )
    return text


def add_parameters(url: str, values: Mapping[str, str]) -> str:
    """Put parameters ahead of the query of a URL, and remove each of the client's that
    a server may take for one.

    Pairs end at `&`, `;` or `?`. A name counts in any case, with `[` after it, and with
    each of ` `, `.`, `-`, `_` and `[` as the same. One that is encoded more than five
    times is removed, whatever it is.
    """
    before, _, query = url.partition("?")
    names = {plain_parameter(name) for name in values}
    pieces = ["", *_SEPARATED.split(query)]
    kept = "".join(
        separator + pair
        for separator, pair in zip(pieces[::2], pieces[1::2], strict=True)
        if not _may_be_one(pair.partition("=")[0], names)
    ).lstrip("&;?")
    added = "&".join(
        f"{name}={quote(value, safe='')}" for name, value in values.items()
    )
    return f"{before}?{added}&{kept}" if kept else f"{before}?{added}"


def plain_parameter(name: str) -> str:
    """Reduce the name of a parameter to what every spelling of it has in common."""
    return _plain(_decoded(name).partition("[")[0])


def _may_be_one(name: str, names: set[str]) -> bool:
    decoded = _decoded(name)
    if _decoded_once(decoded) != decoded:
        return True
    # PHP reads a[b as a_b, and a[b] as a
    return (
        plain_parameter(decoded) in names or _plain(decoded.replace("[", "_")) in names
    )


def _decoded(name: str) -> str:
    for _ in range(_DECODINGS):
        name = _decoded_once(name)
    return name


def _decoded_once(name: str) -> str:
    if "%" not in name and "+" not in name:
        return name
    return unquote_plus(
        _UNICODE.sub(lambda match: chr(int(match[1], 16)), name), errors="replace"
    )


def _plain(name: str) -> str:
    return name.partition("\0")[0].strip().casefold().translate(_AS_UNDERSCORE)
