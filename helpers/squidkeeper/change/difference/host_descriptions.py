"""Hosts in words: as patterns of the policies would name them; other hosts, lists and addresses in words."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from squidkeeper.base.formatting import quantity
from squidkeeper.change.difference.hosts import HostClass, HostPart
from squidkeeper.change.difference.naming import Texts

_NETWORKS_AT_MOST: Final = 4
_WHOLE: Final = frozenset({0, 1, 2})  # a name, and all below it
_BELOW: Final = frozenset({1, 2})
_FORMS: Final[Mapping[frozenset[int], tuple[str, ...]]] = {  # by how many labels are in front of a name
    frozenset({0}): ("{}",),
    frozenset({1}): ("*.{}",),
    frozenset({2}): ("two labels or more under {}",),
    frozenset({0, 1}): ("{}", "*.{}"),
    frozenset({0, 2}): ("{}", "two labels or more under {}"),
    _BELOW: ("**.{}",),
    _WHOLE: (".{}",),
}


def host_texts(hosts: frozenset[Hashable], known: Sequence[HostClass]) -> Texts:
    """Write hosts; all of them are no text."""
    chosen = [part for one in known if one in hosts for part in one.parts]
    others = [part for one in known if one not in hosts for part in one.parts]
    if not others:
        return ()
    if any(_is_any_other(part) for part in chosen):
        return (f"every host except {', '.join(_texts_of(others))}",)
    return tuple(_texts_of(chosen, others))


def _is_any_other(part: HostPart) -> bool:
    return not part.ending and not part.lists and part.example.address is None


def _texts_of(chosen: Sequence[HostPart], others: Sequence[HostPart] = ()) -> list[str]:
    return [*_name_texts(chosen, others), *_list_texts(chosen), *_address_texts(chosen)]


def _name_texts(chosen: Iterable[HostPart], others: Sequence[HostPart]) -> Iterator[str]:
    depths: dict[str, set[int]] = {}
    for part in chosen:
        if part.ending and not part.lists:
            depths.setdefault(part.ending, set()).add(part.depth)
    wide = {ending for ending, found in depths.items() if found >= _BELOW}
    for ending, found in depths.items():
        if found == _WHOLE and _is_under(ending, wide):  # the wider name says it
            continue
        missing = sorted({part.ending for part in others if ending in wide and _is_under(part.ending, {ending})})
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
    more = [f"{len(networks) - len(shown)} more networks"] if len(networks) > len(shown) else []
    unnamed = {part.example.private for part in addresses if not part.networks}
    kinds = [text for private, text in ((False, "other addresses"), (True, "private addresses")) if private in unnamed]
    return [*shown, *more, *kinds]
