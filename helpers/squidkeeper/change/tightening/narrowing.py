"""The narrower form of a rule: pure, from what it allows and what of that was used.

Each field alone: what is used stays within it, and nothing that the field did not hold
comes into it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from squidkeeper.change.learning.path_shapes import (
    ANY,
    PATTERNS_LISTED,
    REST,
    Evidence,
    PathShapes,
    Shape,
    covers,
    host_patterns,
    pattern_of,
    without_covered,
)
from squidkeeper.change.tightening.usage import RuleUse
from squidkeeper.policy.language.hosts import HostForm, HostPattern, parse_host_pattern
from squidkeeper.policy.language.model import Match, Rule
from squidkeeper.policy.language.paths import PathPattern
from squidkeeper.policy.url import Host

_READ: Final = ("GET", "HEAD")
_LISTABLE: Final = frozenset({*_READ, "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_EVERYTHING: Final = HostPattern("*", HostForm.ANY)
_SCHEMES: Final = ("http", "https")


class Field(StrEnum):
    """The fields that are narrowed, in the order in which they are shown."""

    CLIENTS = "clients"
    HOSTS = "hosts"
    LISTS = "lists"
    SCHEMES = "schemes"
    METHODS = "methods"
    PATHS = "paths"


@dataclass(frozen=True, slots=True)
class Narrowing:
    """A field of a rule: what it holds, and the part of that which was used.

    None: it is left out, and holds all.
    """

    field: Field
    now: tuple[str, ...] | None
    narrower: tuple[str, ...] | None

    @property
    def closes(self) -> str:
        """Say what is no longer open."""
        gone = [value for value in self.now or () if value not in (self.narrower or ())]
        if self.field is Field.METHODS and self.now is None:
            return "every other method"
        if self.field is Field.SCHEMES and self.now is None:
            return "http"
        if self.field is Field.PATHS and self.now is None:
            return "every other path"
        if self.field is Field.HOSTS and self.now is None:
            return "every other host"
        kept_parts = [
            value for value in self.narrower or () if value not in (self.now or ())
        ]
        if not kept_parts:
            return ", ".join(gone)
        return f"the rest of {', '.join(gone)}"


def narrowings(rule: Rule, use: RuleUse, *, by_url: bool) -> tuple[Narrowing, ...]:
    """Return the fields of an allow that hold more than was used.

    `by_url`: also those that need the request itself.
    """
    match = rule.match
    found = [
        _clients(match, use.clients),
        *_hosts(match, use),
        _schemes(match, use.schemes),
    ]
    if by_url and not rule.passthrough:
        found += [_methods(match, use.methods), _paths(match, use)]
    return tuple(
        narrowing
        for narrowing in found
        if narrowing is not None and narrowing.now != narrowing.narrower
    )


def _clients(match: Match, used: Collection[str]) -> Narrowing | None:
    if match.clients is None:
        return None
    kept = tuple(sorted(match.clients & set(used)))
    return (
        Narrowing(Field.CLIENTS, tuple(sorted(match.clients)), kept) if kept else None
    )


def _schemes(match: Match, used: Collection[str]) -> Narrowing | None:
    """Leave http out where it was not used; https stays, so that a client can always
    change to it.
    """
    now = _SCHEMES if match.schemes is None else tuple(sorted(match.schemes))
    if "http" in used or "https" not in now or "http" not in now:
        return None
    return Narrowing(Field.SCHEMES, None if match.schemes is None else now, ("https",))


def _methods(match: Match, used: Collection[str]) -> Narrowing | None:
    if not used or (match.methods is None and not _LISTABLE.issuperset(used)):
        return None
    kept = set(used)
    if kept & set(_READ):
        kept |= set(_READ)  # HEAD gives less than GET does
    kept &= _LISTABLE if match.methods is None else match.methods
    now = None if match.methods is None else _methods_in_order(match.methods)
    return (
        Narrowing(Field.METHODS, now, _methods_in_order(kept))
        if set(used) <= kept
        else None
    )


def _methods_in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (name not in _READ, name)))


# --- hosts ----------------------------------------------------------------------------


def _hosts(match: Match, use: RuleUse) -> list[Narrowing]:
    patterns = (_EVERYTHING,) if match.any_host else match.hosts or ()
    if not use.hosts:
        return []
    left = dict(use.hosts)
    kept: dict[HostPattern, tuple[str, ...]] = {}
    for pattern in sorted(patterns, key=lambda other: other.form is not HostForm.EXACT):
        own = {host: left.pop(host) for host in list(left) if pattern.matches(host)}
        if own:
            kept[pattern] = _within(pattern, own)
    lists_needed = bool(left)
    texts = tuple(
        dict.fromkeys(text for pattern in patterns for text in kept.get(pattern, ()))
    )
    now = None if match.hosts is None else tuple(host.text for host in match.hosts)
    if not lists_needed and not texts:
        return []
    narrower = texts or None
    found = [] if narrower == ("*",) else [Narrowing(Field.HOSTS, now, narrower)]
    if match.lists and not lists_needed:
        found.append(Narrowing(Field.LISTS, match.lists, None))
    return found


def _within(pattern: HostPattern, hosts: Mapping[Host, Evidence]) -> tuple[str, ...]:
    names = {
        host.text: evidence for host, evidence in hosts.items() if host.address is None
    }
    addresses = [str(host.address) for host in hosts if host.address is not None]
    found = tuple(sorted({*host_patterns(names).values(), *addresses}))
    parsed = [parse_host_pattern(text) for text in found]
    is_narrower = all(_holds(pattern, one) for one in parsed) and not any(
        _as_wide(other, pattern) for other in parsed
    )
    return found if is_narrower and len(found) <= PATTERNS_LISTED else (pattern.text,)


def _holds(wide: HostPattern, narrow: HostPattern) -> bool:
    if wide.form is HostForm.ANY or wide.key == narrow.key != "/":
        return True
    if narrow.form in (HostForm.EXACT, HostForm.NETWORK):
        sample = narrow.network.network_address if narrow.network else None
        return wide.matches(Host(narrow.name or str(sample), sample))
    if wide.form not in (HostForm.TREE, HostForm.UNDER):
        return False
    return narrow.name == wide.name or narrow.name.endswith(f".{wide.name}")


def _as_wide(other: HostPattern, pattern: HostPattern) -> bool:
    return (
        other.form is HostForm.UNDER
        and pattern.form is HostForm.TREE
        and other.name == pattern.name
    )


# --- paths ----------------------------------------------------------------------------


def _paths(match: Match, use: RuleUse) -> Narrowing | None:
    if not use.paths:
        return None
    patterns: tuple[PathPattern | None, ...] = match.paths or (None,)
    texts: list[str] = []
    for pattern in patterns:
        if pattern in use.paths:
            kept = _shapes_within(pattern, use.paths[pattern])
            if kept is None and pattern is None:
                return None
            texts += kept or ([pattern.text] if pattern else [])
    now = None if match.paths is None else tuple(path.text for path in match.paths)
    return Narrowing(Field.PATHS, now, tuple(dict.fromkeys(texts)))


def _shapes_within(pattern: PathPattern | None, used: PathShapes) -> list[str] | None:
    shapes = [*without_covered(used.result())]
    wide = (REST,) if pattern is None or pattern.everything else _shape(pattern)
    if wide is None or not shapes or len(shapes) > PATTERNS_LISTED or wide in shapes:
        return None
    return (
        [pattern_of(shape) for shape in shapes]
        if all(covers(wide, shape) for shape in shapes)
        else None
    )


def _shape(pattern: PathPattern) -> Shape | None:
    if not pattern.is_glob or not pattern.text.startswith("/") or "%" in pattern.text:
        return None
    shape = tuple(pattern.text.split("/")[1:])
    inner = shape[:-1] if shape[-1] == REST else shape
    return (
        None
        if any(
            REST in segment or (segment != ANY and segment.count(ANY) > 1)
            for segment in inner
        )
        else shape
    )
