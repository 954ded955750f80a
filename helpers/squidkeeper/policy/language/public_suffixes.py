"""The public suffix list, with its private part: under a suffix anyone can have a host
(`github.io`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList


def is_public_suffix(name: str) -> bool:
    """Whether anyone can have a host under a name; a top-level domain that is not in
    the list is one.
    """
    return _suffixes(accept_unknown=True).is_public(name)


def is_top_level_domain(name: str) -> bool:
    """Whether a name is a top-level domain of the list; a zone of one's own such as
    `lan` is none.
    """
    return "." not in name and _suffixes(accept_unknown=False).is_public(name)


def registrable_domain(name: str) -> str | None:
    """Return the domain that one owner has registered, `example.co.uk`; None for a
    suffix and a name without a dot.
    """
    return _suffixes(accept_unknown=True).privatesuffix(name)


@cache
def _suffixes(*, accept_unknown: bool) -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # late: few policies need it

    return PublicSuffixList(accept_unknown=accept_unknown)
