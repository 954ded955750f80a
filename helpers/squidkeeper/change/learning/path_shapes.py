"""Evidence, path shapes and host shapes: from what was used to few patterns that match
it.

A segment that looks like an identifier becomes `*`. So do the values at one place of a
path where more than a few differ. Where too many patterns remain, those with the same
beginning become `/beginning/**`. The work is bounded, whatever paths a client makes up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import reduce
from typing import Final, TypeVar

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.public_suffixes import (
    is_public_suffix,
    registrable_domain,
)
from squidkeeper.policy.url import Host, ReadPath, readings

K = TypeVar("K")
# the segments of a pattern: text, `*`, text with one `*`; `**` only as the last
Shape = tuple[str, ...]

ANY: Final = "*"
REST: Final = "**"
VALUES_LISTED: Final = 5  # more values than these at one place are any value
PATTERNS_LISTED: Final = 12  # of a host and its methods
_LONGEST_SEGMENT: Final = 100
_LONGEST_PATH: Final = 500
_MASKS_AT_MOST: Final = 32
_NO_REST: Final = 1 << 16
# segments that are told apart; fewer where a client makes up many
_DEPTHS: Final = (
    12,
    4,
    2,
    1,
    0,
)
_SHAPES_AT_MOST: Final = 2000

_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T_][0-9:.Z+-]*)?"
_DOTS = re.compile(r"/\.{1,2}(?:/|\Z)")
_UUID = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_HASH = r"(?=[a-f]*[0-9])[0-9a-f]{7,}|(?=[A-F]*[0-9])[0-9A-F]{7,}|[a-z][a-z0-9]{1,9}:[0-9a-f]{32,}"
_RANDOM = r"(?=[0-9]*[A-Za-z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16,}"
_RANDOM_WITH_DASHES = (
    r"(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=[^0-9]*[0-9])[A-Za-z0-9_-]{24,}=*"
)
_IDENTIFIER = re.compile(
    rf"(?:[0-9]+|{_DATE}|{_UUID}|{_HASH}|{_RANDOM}|{_RANDOM_WITH_DASHES})"
)
_WITH_PREFIX = re.compile(
    rf"([A-Za-z]{{1,12}}[_-])(?:[0-9]{{4,}}|{_UUID}|{_HASH}|{_RANDOM}|{_RANDOM_WITH_DASHES})"
)
_WITH_ENDING = re.compile(r"(.+)(\.[a-z][a-z0-9]{1,4})")
_EMBEDDED_ADDRESS: Final = re.compile(
    r"(?:^|[^0-9])[0-9]{1,3}([.-])[0-9]{1,3}\1[0-9]{1,3}\1[0-9]{1,3}(?![0-9])"
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a rule.

    `machines` has the addresses that used it, `senders` the logins, or addresses
    without.
    """

    count: int
    first: datetime
    last: datetime
    days: frozenset[date]
    machines: frozenset[str]
    senders: frozenset[str]

    @property
    def clients(self) -> int:
        """How many clients it was at least: one machine may have several logins, and
        one login several machines.
        """
        return min(len(self.machines), len(self.senders))

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.count + other.count,
            min(self.first, other.first),
            max(self.last, other.last),
            self.days | other.days,
            self.machines | other.machines,
            self.senders | other.senders,
        )


Shapes = dict[Shape, Evidence]


def add_to(found: dict[K, Evidence], key: K, evidence: Evidence) -> None:
    """Add evidence to what is known under a key."""
    found[key] = found[key] + evidence if key in found else evidence


def total(evidence: Iterable[Evidence]) -> Evidence:
    """Add up; there has to be one."""
    return reduce(Evidence.__add__, evidence)


def without_loudest(evidence: Iterable[Evidence]) -> int:
    """Count what is left without what one machine alone speaks for, whichever has most
    of it.

    So no single machine makes a pattern wider for the others. What one machine alone
    has used is counted whole: it is wider for that machine only.
    """
    machines = [use.machines for use in evidence]
    if len(frozenset().union(*machines)) <= 1:
        return len(machines)
    alone: dict[frozenset[str], int] = {}
    for some in machines:
        if len(some) == 1:
            alone[some] = alone.get(some, 0) + 1
    return len(machines) - max(alone.values(), default=0)


def shape_of(path: str, *, keep_first: bool = False) -> Shape | None:
    """Return the shape of a path, as `Url.path` has it: identifiers are `*`.

    None where no pattern can have its shape.

    That is where servers find other segments in the path: with a dot segment, an
    escaped slash, a parameter (`;`).
    """
    first, *rest = path.split("/")[1:]
    shape = (first if keep_first else _generalised(first), *map(_generalised, rest))
    if keep_first and ANY in first:
        return None
    read = _read(path)
    same = len({reading.path.count("/") for reading in read}) == 1
    return shape if same and _is_matched(pattern_of(shape), read) else None


def literal_shape(path: str) -> Shape | None:
    """Return the segments of one path as a shape that matches it and no other; None
    where there is none.
    """
    is_odd = (
        "*" in path or "//" in path or _DOTS.search(path) or len(path) > _LONGEST_PATH
    )
    return (
        None
        if is_odd or not _is_matched(path, _read(path))
        else tuple(path.split("/")[1:])
    )


def is_regular(shape: Shape) -> bool:
    """Whether every server finds the same segments in the paths of a shape, so that it
    can be generalised.
    """
    return (
        len({reading.path.count("/") for reading in readings(pattern_of(shape))}) == 1
    )


def pattern_of(shape: Shape) -> str:
    """Write a shape as a pattern of the policy's language."""
    return "/" + "/".join(shape)


def covers(wide: Shape, narrow: Shape) -> bool:
    """Whether a shape matches every path that another one matches, however servers read
    them.
    """
    return wide == narrow or (_covers_segments(wide, narrow) and is_regular(narrow))


def _covers_segments(wide: Shape, narrow: Shape) -> bool:
    if wide[-1:] == (REST,):
        own = wide[:-1]
        return len(narrow) > len(own) and _covers_segments(own, narrow[: len(own)])
    if len(wide) != len(narrow) or REST in narrow:
        return False
    return all(map(_covers_segment, wide, narrow))


class PathShapes:
    """The shapes of many paths.

    With `keep_first` the first segment names an owner, and is never generalised.
    """

    def __init__(self, *, keep_first: bool = False) -> None:
        self._shapes: Shapes = {}
        self._depth = 0
        self._keep_first = keep_first

    def add(self, shape: Shape, evidence: Evidence) -> None:
        """Add a shape, however often it was added before."""
        add_to(self._shapes, _cut(shape, _DEPTHS[self._depth]), evidence)
        while len(self._shapes) > _SHAPES_AT_MOST and self._depth < len(_DEPTHS) - 1:
            self._depth += 1
            self._shapes = _merged(
                self._shapes, lambda shape: _cut(shape, _DEPTHS[self._depth])
            )

    def result(self) -> Shapes:
        """Return few shapes that match all that were added; none where even the first
        segments are too many to list.
        """
        if not self._keep_first:
            return _few(_without_covered(_generalise(self._shapes)))
        tenants: dict[str, Shapes] = {}
        for shape, evidence in self._shapes.items():
            add_to(tenants.setdefault(shape[0], {}), shape[1:], evidence)
        if (
            REST in tenants
            or without_loudest(total(tenant.values()) for tenant in tenants.values())
            > PATTERNS_LISTED
        ):
            return {}
        return {
            (tenant, *shape): evidence
            for tenant, shapes in sorted(tenants.items())
            for shape, evidence in _few(_without_covered(_generalise(shapes))).items()
        }


# --- one path -------------------------------------------------------------------------


def _generalised(segment: str) -> str:
    if (
        "*" in segment
        or len(segment) > _LONGEST_SEGMENT
        or _IDENTIFIER.fullmatch(segment)
    ):
        return ANY
    prefixed = _WITH_PREFIX.fullmatch(segment)
    if prefixed:
        return f"{prefixed[1]}{ANY}"
    named = _WITH_ENDING.fullmatch(segment)
    return f"{ANY}{named[2]}" if named and _IDENTIFIER.fullmatch(named[1]) else segment


def _read(path: str) -> tuple[ReadPath, ...]:
    try:
        return readings(path)
    except InvalidUrl:
        return ()


def _is_matched(pattern: str, read: tuple[ReadPath, ...]) -> bool:
    if len(read) <= 1:
        return bool(read)
    try:
        parsed = parse_path_pattern(pattern)
    except PatternError:
        return False
    return all(parsed.match(reading) is not None for reading in read)


def _cut(shape: Shape, depth: int) -> Shape:
    return shape if len(shape) <= depth else (*shape[:depth], REST)


def _covers_segment(wide: str, narrow: str) -> bool:
    if wide in (ANY, narrow):
        return True
    before, star, after = wide.partition(ANY)
    return (
        bool(star)
        and len(narrow) >= len(wide)
        and narrow.startswith(before)
        and narrow.endswith(after)
    )


# --- many paths -----------------------------------------------------------------------


def _merged(shapes: Mapping[Shape, Evidence], into: Callable[[Shape], Shape]) -> Shapes:
    merged: Shapes = {}
    for shape, evidence in shapes.items():
        add_to(merged, into(shape), evidence)
    return merged


def _generalise(shapes: Mapping[Shape, Evidence]) -> Shapes:
    """Write `*` for the values at a place where more differ than are listed, from the
    first segment to the last.
    """
    heads: dict[str, Shapes] = {}
    result: Shapes = {}
    for shape, evidence in shapes.items():
        if len(shape) > 0 and shape[0] != REST:
            add_to(heads.setdefault(shape[0], {}), shape[1:], evidence)
        else:
            result[shape] = evidence
    if (
        without_loudest(total(rest.values()) for head, rest in heads.items() if head)
        > VALUES_LISTED
    ):
        heads = _joined(heads)
    for head, rest in sorted(heads.items()):
        for shape, evidence in _generalise(rest).items():
            result[(head, *shape)] = evidence
    return result


def _joined(heads: Mapping[str, Shapes]) -> dict[str, Shapes]:
    joined: dict[str, Shapes] = {}
    for head, rest in heads.items():
        for shape, evidence in rest.items():
            # the end of a path stays what it is
            add_to(joined.setdefault(head and ANY, {}), shape, evidence)
    return joined


def _few(shapes: Shapes) -> Shapes:
    """Write `/beginning/**` for the patterns with one beginning, the longest beginnings
    first, until few remain.
    """
    for depth in range(max(map(len, shapes), default=0) - 1, -1, -1):
        if without_loudest(shapes.values()) <= PATTERNS_LISTED:
            return shapes
        shapes = _without_covered(_with_beginnings(shapes, depth))
    return shapes


def _with_beginnings(shapes: Shapes, depth: int) -> Shapes:
    under: dict[Shape, int] = {}
    for shape in shapes:
        under[shape[:depth]] = under.get(shape[:depth], 0) + (len(shape) > depth)
    return _merged(
        shapes, lambda shape: _cut(shape, depth) if under[shape[:depth]] > 1 else shape
    )


def _used_by_all(wide: Evidence, narrow: Evidence) -> bool:
    return wide.machines >= narrow.machines


def without_covered(shapes: Mapping[Shape, Evidence]) -> Shapes:
    """Leave out what another shape covers, whoever used it."""
    return _without_covered(shapes, lambda _wide, _narrow: True)


def _without_covered(
    shapes: Mapping[Shape, Evidence], may: _MayOwn = _used_by_all
) -> Shapes:
    """Leave out what another shape covers that was used by all who used it, and perhaps
    by others.

    So what one machine made wide takes in nothing of the others. Only shapes with `*`
    cover others, and few have it at the same places.
    """
    masks = sorted({_mask(shape) for shape in shapes if ANY in shape or REST in shape})[
        :_MASKS_AT_MOST
    ]
    owners: dict[Shape, Shape] = {}
    for shape, evidence in shapes.items():
        wide = (
            candidate
            for candidate in _candidates(shape, masks, shapes)
            if covers(candidate, shape)
        )
        owners[shape] = next(
            (candidate for candidate in wide if may(shapes[candidate], evidence)), shape
        )
    result: Shapes = {}
    for shape, evidence in shapes.items():
        add_to(result, _last_owner(shape, owners), evidence)
    return dict(sorted(result.items()))


_MayOwn = Callable[[Evidence, Evidence], bool]
_Mask = tuple[int, tuple[int, ...]]  # the length before `**`, and the places with `*`


def _mask(shape: Shape) -> _Mask:
    rest = len(shape) - 1 if shape[-1:] == (REST,) else _NO_REST
    return rest, tuple(place for place, segment in enumerate(shape) if segment == ANY)


def _candidates(
    shape: Shape, masks: Iterable[_Mask], shapes: Mapping[Shape, Evidence]
) -> Iterable[Shape]:
    for rest, stars in masks:
        cut = _cut(shape, rest)
        wide = tuple(
            ANY if place in stars else segment for place, segment in enumerate(cut)
        )
        if wide != shape and wide in shapes:
            yield wide


def _last_owner(shape: Shape, owners: Mapping[Shape, Shape]) -> Shape:
    while owners[shape] != shape:
        shape = owners[shape]
    return shape


# Host shapes: from the hosts that were read from to few host patterns, never wider than
# one owner's domain. The public suffix list names the owner, with its private part:
# `a.github.io` and `b.github.io` have two owners.


def is_address_like(host: Host) -> bool:
    """Whether a host is an address, or a name that holds one, as
    `203-0-113-7.example.com` does.
    """
    return host.address is not None or _EMBEDDED_ADDRESS.search(host.text) is not None


def is_shared(name: str) -> bool:
    """Whether many owners have paths of a host, as in a store whose paths begin with a
    bucket.
    """
    return name in _BUCKETS_IN_PATHS or ("." in name and is_public_suffix(name))


def host_patterns(hosts: Mapping[str, Evidence]) -> dict[str, str]:
    """Return the pattern for each host: itself, `*.parent`, or `**.domain` of the
    owner's registrable domain.
    """
    parents = {
        name: name.partition(".")[2] for name in hosts if _has_owned_parent(name)
    }
    one_label = {
        name: f"*.{parents[name]}" for name in _many(parents, hosts, VALUES_LISTED)
    }
    rest = {name: str(registrable_domain(name)) for name in parents}
    places = {name: one_label.get(name, name) for name in rest}
    deep = {
        name: f"**.{rest[name]}" for name in _many(rest, hosts, PATTERNS_LISTED, places)
    }
    return {name: deep.get(name, one_label.get(name, name)) for name in hosts}


def _has_owned_parent(name: str) -> bool:
    domain = registrable_domain(name)
    return domain is not None and name != domain


def _many(
    groups: Mapping[str, str],
    hosts: Mapping[str, Evidence],
    at_most: int,
    places: Mapping[str, str] | None = None,
) -> Iterable[str]:
    members: dict[str, dict[str, list[Evidence]]] = {}
    for name, group in groups.items():
        place = places[name] if places else name
        members.setdefault(group, {}).setdefault(place, []).append(hosts[name])
    for group, found in members.items():
        if without_loudest(total(evidence) for evidence in found.values()) > at_most:
            yield from (name for name, own in groups.items() if own == group)


# Stores with the bucket as the first segment of the path, which the public suffix list
# does not name.
_BUCKETS_IN_PATHS: Final = frozenset(
    {"storage.googleapis.com", "storage.cloud.google.com"}
)
