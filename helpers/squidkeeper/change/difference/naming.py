"""Some of many things, named by their traits: `agents`, `/v1/** except /v1/admin`, `every one except ci`.

Clients, paths, queries and times have traits: the names they belong to, the patterns that match, the rules that hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Texts = tuple[str, ...]
Traits = frozenset[str]
_Region = frozenset[Traits]  # all that have a trait


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is to be named, of all there is. `every` is what all are called, `rest` what has none of some traits."""

    some: _Region
    known: _Region
    regions: Mapping[str, _Region]
    every: str
    rest: str


def named(chosen: Iterable[Traits], known: Iterable[Traits], every: str, rest: str) -> Texts:
    """Name some of all sets of traits, in the first way that says neither too much nor too little.

    `every` and `rest` are what all of them, and one without any trait, are called. All of them are no text.
    """
    some, universe = frozenset(chosen), frozenset(known)
    if some >= universe:
        return ()
    regions = {trait: frozenset(one for one in universe if trait in one) for one in universe for trait in one}
    choice = _Choice(some, universe, regions, every, rest)
    ways = (_by_own_traits, _by_one_with_exceptions, _by_several_with_exceptions, _one_by_one)
    return next(filter(None, (way(choice) for way in ways)), ())


def _by_own_traits(choice: _Choice) -> Texts:
    """Name traits that only the chosen have: `a`, `b`."""
    own = _widest({trait: region for trait, region in choice.regions.items() if region <= choice.some})
    return tuple(sorted(own)) if _union(own) == choice.some else ()


def _by_one_with_exceptions(choice: _Choice) -> Texts:
    """Name one trait that all of the chosen have, or every one, with exceptions: `a except b`."""
    some = choice.some
    holding = [(trait, region) for trait, region in choice.regions.items() if region >= some]
    base, region = min(holding, key=_narrowest_first, default=("", choice.known))
    foreign = _widest(_within(region, {trait: one for trait, one in choice.regions.items() if not one & some}))
    if _union(foreign) != region - some:
        return ()
    exceptions = ", ".join(sorted(foreign))
    if some == {frozenset()} and not base:
        return (choice.rest.format(exceptions),)
    return (f"{base or choice.every} except {exceptions}",)


def _by_several_with_exceptions(choice: _Choice) -> Texts:
    """Name several traits, each with exceptions: `a (except c)`, `b (except c)`."""
    some, left = choice.some, choice.some
    foreign = {trait: region for trait, region in choice.regions.items() if not region & some}
    texts = []
    for trait, region in sorted(choice.regions.items(), key=lambda item: (-len(item[1] & some), item[0])):
        excepted = _widest(_within(region, foreign))
        if region & left and region - some <= _union(excepted):
            texts.append(f"{trait} (except {', '.join(sorted(excepted))})" if excepted else trait)
            left -= region
    return () if left else tuple(texts)


def _one_by_one(choice: _Choice) -> Texts:
    """Name each by what it has, and what those that have that may have too: `a, not b`."""
    return tuple(_written(one, choice) for one in sorted(choice.some, key=sorted))


def _written(one: Traits, choice: _Choice) -> str:
    near = sorted({trait for other in choice.known if other > one for trait in other - one})
    if not one:
        return choice.rest.format(", ".join(near))
    return " and ".join(sorted(one)) + (f", not {', '.join(near)}" if near else "")


def _narrowest_first(item: tuple[str, _Region]) -> tuple[int, int, str]:
    trait, region = item
    return len(region), len(trait), trait


def _widest(regions: Mapping[str, _Region]) -> dict[str, _Region]:
    kept: dict[str, _Region] = {}
    for trait, region in sorted(regions.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0])):
        if not any(region <= other for other in kept.values()):
            kept[trait] = region
    return kept


def _within(region: _Region, regions: Mapping[str, _Region]) -> dict[str, _Region]:
    return {trait: one & region for trait, one in regions.items() if one & region}


def _union(regions: Mapping[str, _Region]) -> _Region:
    return frozenset().union(*regions.values())
