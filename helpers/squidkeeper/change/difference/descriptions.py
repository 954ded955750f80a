"""Hosts, clients, ports, methods, paths, queries and times in words.

An empty tuple stands for all.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from squidkeeper.base.formatting import quantity
from squidkeeper.change.difference.dimensions import ClientKind, Ports
from squidkeeper.change.difference.hosts import HostClass, HostPart
from squidkeeper.change.difference.languages import QueryAtom
from squidkeeper.policy.language.exact_urls import ExactUrl
from squidkeeper.policy.url import DEFAULT_PORTS

Texts = tuple[str, ...]
Traits = frozenset[str]
_Region = frozenset[Traits]  # all that have a trait
_NETWORKS_AT_MOST: Final = 4
_WHOLE: Final = frozenset({0, 1, 2})  # a name, and all below it
_BELOW: Final = frozenset({1, 2})
_FORMS: Final[
    Mapping[frozenset[int], tuple[str, ...]]
] = {  # by how many labels are in front of a name
    frozenset({0}): ("{}",),
    frozenset({1}): ("*.{}",),
    frozenset({2}): ("two labels or more under {}",),
    frozenset({0, 1}): ("{}", "*.{}"),
    frozenset({0, 2}): ("{}", "two labels or more under {}"),
    _BELOW: ("**.{}",),
    _WHOLE: (".{}",),
}


# Some of many things, named by their traits: `agents`, `/v1/** except /v1/admin`,
# `every one except ci`.
#
# Clients, paths, queries and times have traits: the names they belong to, the patterns
# that match, the rules that hold.


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is to be named, of all there is.

    `every` is what all are called, `rest` what has none of some traits.
    """

    some: _Region
    known: _Region
    regions: Mapping[str, _Region]
    every: str
    rest: str


def named(
    chosen: Iterable[Traits], known: Iterable[Traits], every: str, rest: str
) -> Texts:
    """Name some of all sets of traits, in the first way that says neither too much nor
    too little.

    `every` and `rest` are what all of them, and one without any trait, are called. All
    of them are no text.
    """
    some, universe = frozenset(chosen), frozenset(known)
    if some >= universe:
        return ()
    regions = {
        trait: frozenset(one for one in universe if trait in one)
        for traits in universe
        for trait in traits
    }
    choice = _Choice(some, universe, regions, every, rest)
    ways = (
        _by_own_traits,
        _by_one_with_exceptions,
        _by_several_with_exceptions,
        _one_by_one,
    )
    return next(filter(None, (way(choice) for way in ways)), ())


def _by_own_traits(choice: _Choice) -> Texts:
    own = _widest(
        {
            trait: region
            for trait, region in choice.regions.items()
            if region <= choice.some
        }
    )
    return tuple(sorted(own)) if _union(own) == choice.some else ()


def _by_one_with_exceptions(choice: _Choice) -> Texts:
    some = choice.some
    holding = [
        (trait, region) for trait, region in choice.regions.items() if region >= some
    ]
    base, region = min(holding, key=_narrowest_first, default=("", choice.known))
    foreign = _widest(
        _within(
            region,
            {trait: one for trait, one in choice.regions.items() if not one & some},
        )
    )
    if _union(foreign) != region - some:
        return ()
    exceptions = ", ".join(sorted(foreign))
    if some == {frozenset()} and not base:
        return (choice.rest.format(exceptions),)
    return (f"{base or choice.every} except {exceptions}",)


def _by_several_with_exceptions(choice: _Choice) -> Texts:
    some, left = choice.some, choice.some
    foreign = {
        trait: region for trait, region in choice.regions.items() if not region & some
    }
    texts = []
    for trait, region in sorted(
        choice.regions.items(), key=lambda item: (-len(item[1] & some), item[0])
    ):
        excepted = _widest(_within(region, foreign))
        if region & left and region - some <= _union(excepted):
            texts.append(
                f"{trait} (except {', '.join(sorted(excepted))})" if excepted else trait
            )
            left -= region
    return () if left else tuple(texts)


def _one_by_one(choice: _Choice) -> Texts:
    return tuple(_written(member, choice) for member in sorted(choice.some, key=sorted))


def _written(traits: Traits, choice: _Choice) -> str:
    near = sorted(
        {trait for other in choice.known if other > traits for trait in other - traits}
    )
    if not traits:
        return choice.rest.format(", ".join(near))
    return " and ".join(sorted(traits)) + (f", not {', '.join(near)}" if near else "")


def _narrowest_first(item: tuple[str, _Region]) -> tuple[int, int, str]:
    trait, region = item
    return len(region), len(trait), trait


def _widest(regions: Mapping[str, _Region]) -> dict[str, _Region]:
    kept: dict[str, _Region] = {}
    for trait, region in sorted(
        regions.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0])
    ):
        if not any(region <= other for other in kept.values()):
            kept[trait] = region
    return kept


def _within(region: _Region, regions: Mapping[str, _Region]) -> dict[str, _Region]:
    return {
        trait: members & region
        for trait, members in regions.items()
        if members & region
    }


def _union(regions: Mapping[str, _Region]) -> _Region:
    return frozenset().union(*regions.values())


def path_texts(paths: frozenset[Hashable], known: frozenset[Hashable]) -> Texts:
    """Write paths: by patterns of the policies, or exact ones."""
    exact = [path.text for path in paths if isinstance(path, ExactUrl)]
    if exact:
        return tuple(sorted(exact))
    return named(
        _traits(paths, str), _traits(known, str), "every one", "every one except {}"
    )


def query_texts(queries: frozenset[Hashable], known: frozenset[Hashable]) -> Texts:
    """Write queries, by patterns of the policies."""
    return named(
        _traits(queries, _query),
        _traits(known, _query),
        "every one",
        "every one except {}",
    )


def _traits(sets: Iterable[Hashable], write: Callable[[object], str]) -> list[Traits]:
    return [
        frozenset(map(write, names)) for names in sets if isinstance(names, frozenset)
    ]


def _query(atom: object) -> str:
    if not isinstance(atom, QueryAtom):
        return str(atom)
    return (
        f"?{atom.key}={atom.pattern}"
        if atom.one
        else f"?{atom.key}={atom.pattern} (every value)"
    )


def client_texts(clients: frozenset[Hashable], known: Sequence[ClientKind]) -> Texts:
    """Write clients, by their names in the policies."""
    chosen = [_client(value) for value in known if value in clients]
    return named(chosen, map(_client, known), "any client", "any client except {}")


def _client(kind: ClientKind) -> Traits:
    before, after = (set(names) for names in kind.names)
    sides = zip(("before", "after"), kind.names, kind.refused, strict=True)
    return frozenset(
        [
            *(before & after),
            *(f"{name} (before)" for name in before - after),
            *(f"{name} (after)" for name in after - before),
            *(
                f"user {kind.user} ({side})"
                for side, names, refused in sides
                if refused and not names
            ),
        ]
    )


def method_texts(methods: frozenset[Hashable], known: Sequence[str]) -> Texts:
    """Write methods; those in another case than upper only where that makes a
    difference.
    """
    if methods >= set(known):
        return ()
    upper = [value for value in known if value.isupper()]
    # it stands for those that no entry names
    others = next(iter(known[len(upper) - 1 : len(upper)]), "")
    chosen = [
        str(method)
        for method in sorted(map(str, methods))
        if method.isupper() or method.upper() not in methods
    ]
    if others not in methods:
        return tuple(chosen)
    missing = [
        value
        for value in known
        if value not in methods and (value.isupper() or value.upper() in methods)
    ]
    return (f"every method except {', '.join(missing)}",)


def port_texts(ports: frozenset[Hashable], known: Sequence[Ports]) -> Texts:
    """Write schemes and ports."""
    if ports >= set(known):
        return ()
    found: list[str] = []
    for scheme in ("https", "http"):
        of_scheme = [value for value in known if value.scheme == scheme]
        chosen = [other for other in of_scheme if other in ports]
        if chosen == of_scheme:
            found.append(f"{scheme} on every port")
        else:
            found += _spans(scheme, chosen)
    return tuple(found)


def _spans(scheme: str, chosen: Sequence[Ports]) -> list[str]:
    joined: list[tuple[int, int]] = []
    for ports in chosen:
        if (
            joined
            and joined[-1][1] + 1 == ports.first
            and DEFAULT_PORTS[scheme] not in (ports.first, joined[-1][1])
        ):
            joined[-1] = (joined[-1][0], ports.last)
        else:
            joined.append((ports.first, ports.last))
    return [_span(scheme, *span) for span in joined]


def _span(scheme: str, first: int, last: int) -> str:
    if first == last == DEFAULT_PORTS[scheme]:
        return scheme
    return f"{scheme}:{first}" if first == last else f"{scheme}:{first}-{last}"


def time_texts(
    moments: frozenset[Hashable], known: Sequence[datetime], holding: Sequence[Traits]
) -> Texts:
    """Write times: by the moments at which something ends, or with schedules by the
    rules that hold.
    """
    if len(moments) == len(known):
        return ()
    if holding:
        chosen = [rule for number, rule in enumerate(holding) if number in moments]
        texts = named(chosen, holding, "any rule with a time holds,", "none of {}")
        return tuple(
            f"while {text} {'hold' if ' and ' in text else 'holds'}" for text in texts
        )
    found, number = [], 0
    while number < len(known):
        last = number
        if number in moments:
            while last + 1 in moments:
                last += 1
            found.append(_period(number, last, known))
        number = last + 1
    return tuple(found)


def _period(first: int, last: int, known: Sequence[datetime]) -> str:
    start = "" if first == 0 else f"from {_time(known[first])} on"
    end = "" if last + 1 == len(known) else f"until {_time(known[last + 1])}"
    return " ".join(filter(None, (start.removesuffix(" on") if end else start, end)))


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def host_texts(hosts: frozenset[Hashable], known: Sequence[HostClass]) -> Texts:
    """Write hosts; all of them are no text."""
    chosen = [part for value in known if value in hosts for part in value.parts]
    others = [part for value in known if value not in hosts for part in value.parts]
    if not others:
        return ()
    if any(_is_any_other(part) for part in chosen):
        return (f"every host except {', '.join(_texts_of(others))}",)
    return tuple(_texts_of(chosen, others))


def _is_any_other(part: HostPart) -> bool:
    return not part.ending and not part.lists and part.example.address is None


def _texts_of(chosen: Sequence[HostPart], others: Sequence[HostPart] = ()) -> list[str]:
    return [*_name_texts(chosen, others), *_list_texts(chosen), *_address_texts(chosen)]


def _name_texts(
    chosen: Iterable[HostPart], others: Sequence[HostPart]
) -> Iterator[str]:
    depths: dict[str, set[int]] = {}
    for part in chosen:
        if part.ending and not part.lists:
            depths.setdefault(part.ending, set()).add(part.depth)
    wide = {ending for ending, found in depths.items() if found >= _BELOW}
    for ending, found in depths.items():
        if found == _WHOLE and _is_under(ending, wide):  # the wider name says it
            continue
        missing = sorted(
            {
                part.ending
                for part in others
                if ending in wide and _is_under(part.ending, {ending})
            }
        )
        excepted = f" (except {', '.join(missing)})" if missing else ""
        yield from (form.format(ending) + excepted for form in _FORMS[frozenset(found)])


def _is_under(name: str, endings: Iterable[str]) -> bool:
    return any(name.endswith(f".{ending}") for ending in endings)


def _list_texts(chosen: Iterable[HostPart]) -> list[str]:
    listed: dict[Texts, list[HostPart]] = {}
    for part in chosen:
        if part.lists:
            listed.setdefault(part.lists, []).append(part)
    return [
        f"{quantity(sum(part.count for part in parts), 'host')} of the list {', '.join(names)},"
        f" such as {parts[0].example.text}"
        for names, parts in listed.items()
    ]


def _address_texts(chosen: Iterable[HostPart]) -> list[str]:
    addresses = [part for part in chosen if part.example.address is not None]
    networks = [network for part in addresses for network in part.networks]
    shown = networks[:_NETWORKS_AT_MOST]
    more = (
        [f"{len(networks) - len(shown)} more networks"]
        if len(networks) > len(shown)
        else []
    )
    unnamed = {part.example.private for part in addresses if not part.networks}
    kinds = [
        text
        for private, text in ((False, "other addresses"), (True, "private addresses"))
        if private in unnamed
    ]
    return [*shown, *more, *kinds]
