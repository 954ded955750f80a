"""The paths of two entries."""

from collections.abc import Mapping
from itertools import product

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.model import AnyEntry
from squidkeeper.policy.language.paths import (
    FOLDERS,
    IN_SEGMENT,
    OVER_SEGMENTS,
    PathPattern,
)
from squidkeeper.policy.url import Reading

_WILDCARDS = (IN_SEGMENT, OVER_SEGMENTS, FOLDERS)


def share_a_path(one: AnyEntry, two: AnyEntry, _: Mapping[str, HostList]) -> bool:
    """Whether one path may match both, by what their patterns begin with."""
    if one.match.any_path or two.match.any_path:
        return True
    return any(
        _may_both_match(some, other)
        for some, other in product(one.match.paths or (), two.match.paths or ())
    )


def cover_paths(wide: AnyEntry, narrow: AnyEntry) -> bool:
    """Whether the wide entry has each pattern of the narrow one, without variables."""
    if wide.match.any_path:
        return True
    patterns = narrow.match.paths
    plain = {pattern for pattern in wide.match.paths or () if not pattern.variables}
    return patterns is not None and {*patterns} <= plain


def _may_both_match(one: PathPattern, two: PathPattern) -> bool:
    """Whether one path can match both, by what they begin with; an expression is not
    looked into.
    """
    if not (one.is_glob and two.is_glob):
        return True
    return any(
        _begin_alike(one.parts(reading), two.parts(reading)) for reading in Reading
    )


def _begin_alike(one: tuple[str, ...], two: tuple[str, ...]) -> bool:
    some, others = ("" if parts[0] in _WILDCARDS else parts[0] for parts in (one, two))
    if len(one) == len(two) == 1 and some and others:
        return some == others
    return some.startswith(others) or others.startswith(some)
