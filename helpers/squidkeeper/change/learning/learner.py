"""Learns a draft: for each client from its own uses alone, then what clients have in
common as one rule.

So nothing that one client does makes the rules of another one wider.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Final, Generic, TypeVar

from squidkeeper.change.learning.askers import Asker, Askers
from squidkeeper.change.learning.draft import (
    Draft,
    LearnedPreset,
    LearnedRule,
    Listed,
    Unproposed,
)
from squidkeeper.change.learning.host_uses import (
    LITERAL_PATHS_LISTED,
    HostUses,
    Opening,
    Openings,
    Place,
    Row,
    rows,
)
from squidkeeper.change.learning.path_shapes import (
    Evidence,
    PathShapes,
    Shape,
    add_to,
    covers,
    host_patterns,
    is_regular,
    is_shared,
    pattern_of,
    total,
    without_covered,
    without_loudest,
)
from squidkeeper.change.learning.uses import Use
from squidkeeper.policy.language.model import Client

T = TypeVar("T")
Presets = Callable[[Use], Iterable[str]]  # the presets that allow a use

_HOSTS_AT_MOST: Final = 300  # of one machine: those with the most requests
_LISTED_AT_MOST: Final = 200  # of one machine and reason
_OTHERS: Final = "other hosts"
_Apart = tuple[Unproposed, str, str, str, Evidence]  # why, host, detail, client


@dataclass(frozen=True, slots=True)
class Support:
    """What has to speak for what is proposed: on how many days it was used, and by how
    many machines.
    """

    days: int = 1
    clients: int = 1


def learn(
    uses: Iterable[Use], askers: Askers, presets: Presets, support: Support
) -> Draft:
    """Learn a draft from uses, which come in the order of client, user, session
    and host.
    """
    machines: dict[Asker, _Machine] = {}
    used: Evidence | None = None
    for (client, user, session, host), some in groupby(
        uses, key=attrgetter("client", "user", "session", "host")
    ):
        asker = askers.of(client, user, session)
        if asker is None:
            continue
        found = HostUses(asker, host)
        for use in some:
            found.add(use, presets(use))
        used = total((*([used] if used else []), *found.everything()))
        machines.setdefault(asker, _Machine(asker)).add(found)
    return _draft(tuple(machines.values()), askers, support, used)


# --- one machine, in bounded memory ---------------------------------------------------


@dataclass(slots=True)
class _Largest(Generic[T]):
    at_most: int
    entries: list[tuple[T, Evidence]] = field(default_factory=list)
    others: Evidence | None = None

    def add(self, entry: T, evidence: Evidence) -> None:
        self.entries.append((entry, evidence))
        if len(self.entries) > 2 * self.at_most:
            self.cut()

    def cut(self) -> None:
        """Keep as many as there may be, whatever the order in which they came."""
        self.entries.sort(key=lambda entry: (-entry[1].count, str(entry[0])))
        dropped = [evidence for _, evidence in self.entries[self.at_most :]]
        if dropped:
            self.others = total((*([self.others] if self.others else []), *dropped))
        del self.entries[self.at_most :]


@dataclass(slots=True)
class _Machine:
    asker: Asker
    hosts: _Largest[tuple[tuple[Opening, Evidence], ...]] = field(
        default_factory=lambda: _Largest(_HOSTS_AT_MOST)
    )
    presets: dict[str, Evidence] = field(default_factory=dict)
    listed: dict[Unproposed, _Largest[tuple[str, str]]] = field(default_factory=dict)

    def add(self, uses: HostUses) -> None:
        for name, evidence in uses.presets.items():
            add_to(self.presets, name, evidence)
        openings, apart = uses.finish()
        if openings:
            self.hosts.add(tuple(openings.items()), total(openings.values()))
        for (reason, detail), evidence in apart.items():
            self.listed.setdefault(reason, _Largest(_LISTED_AT_MOST)).add(
                (uses.host, detail), evidence
            )

    def openings(self) -> Iterator[tuple[Opening, Evidence]]:
        self.hosts.cut()
        for entry, _ in self.hosts.entries:
            yield from entry

    def all_listed(self) -> Iterator[_Apart]:
        """Return what is not proposed, once the openings are known."""
        for reason, largest in self.listed.items():
            largest.cut()
            yield from (
                (reason, *what, self.asker.name, evidence)
                for what, evidence in largest.entries
            )
            if largest.others:
                yield reason, "", _OTHERS, self.asker.name, largest.others
        if self.hosts.others:
            yield Unproposed.MANY_HOSTS, "", _OTHERS, self.asker.name, self.hosts.others


# --- all of them ----------------------------------------------------------------------


def _draft(
    machines: tuple[_Machine, ...],
    askers: Askers,
    support: Support,
    used: Evidence | None,
) -> Draft:
    by_name = {machine.asker.name: machine.asker for machine in machines}
    openings, many = _listable(
        {name: _generalised(some) for name, some in _openings(machines).items()}
    )
    proposed, few = _supported(openings, support)
    offered, few_presets = _supported_presets(_presets(machines), support)
    defined: dict[str, Asker | Client] = {}

    def named(clients: Iterable[str]) -> tuple[str, ...]:
        names, definitions = askers.names(by_name[client] for client in clients)
        defined.update(zip(names, definitions, strict=True))
        return names

    rules = _rules(
        {
            row._replace(clients=named(row.clients)): one
            for row, one in rows(proposed.items()).items()
        }
    )
    learned = tuple(
        LearnedPreset(name, named(some), total(some.values()))
        for name, some in sorted(offered.items())
    )
    apart = (
        *(unproposed for machine in machines for unproposed in machine.all_listed()),
        *many,
        *few,
        *few_presets,
    )
    placed = sum(rule.evidence.count for rule in rules) + sum(
        rule.evidence.count for rule in learned
    )
    listed = _listed(
        apart, lambda clients: askers.names(by_name[client] for client in clients)[0]
    )
    return Draft(dict(sorted(defined.items())), learned, rules, listed, placed, used)


def _openings(machines: Iterable[_Machine]) -> dict[str, dict[Opening, list[Evidence]]]:
    found: dict[str, dict[Opening, list[Evidence]]] = {}
    for machine in machines:
        for opening, evidence in machine.openings():
            found.setdefault(machine.asker.name, {}).setdefault(opening, []).append(
                evidence
            )
    return found


def _presets(machines: Iterable[_Machine]) -> dict[str, dict[str, Evidence]]:
    found: dict[str, dict[str, Evidence]] = {}
    for machine in machines:
        for preset, evidence in machine.presets.items():
            add_to(found.setdefault(preset, {}), machine.asker.name, evidence)
    return found


def _listed(
    apart: Iterable[_Apart], names: Callable[[Iterable[str]], tuple[str, ...]]
) -> tuple[Listed, ...]:
    found: dict[tuple[Unproposed, str, str], dict[str, Evidence]] = {}
    for reason, host, detail, client, evidence in apart:
        add_to(found.setdefault((reason, host, detail), {}), client, evidence)
    every = [
        Listed(*what, names(some), total(some.values())) for what, some in found.items()
    ]
    return tuple(
        sorted(
            every,
            key=lambda one: (one.reason, -one.evidence.count, one.host, one.detail),
        )
    )


def _generalised(found: Mapping[Opening, list[Evidence]]) -> Openings:
    by_place: dict[Place, dict[Shape, Evidence]] = {}
    for (place, shape), some in found.items():
        by_place.setdefault(place, {})[shape] = total(some)
    patterns = _host_patterns(
        {place: total(shapes.values()) for place, shapes in by_place.items()}
    )
    reads: dict[Place, PathShapes] = {}
    result: Openings = {}
    for place, shapes in by_place.items():
        wide = patterns.get(place, place)
        joined = reads.setdefault(wide, PathShapes(keep_first=is_shared(wide.host)))
        for shape, evidence in shapes.items():
            if place.reads and is_regular(shape):
                joined.add(shape, evidence)
            else:
                add_to(result, Opening(wide, shape), evidence)
    for place, joined in reads.items():
        result.update(
            {
                Opening(place, shape): evidence
                for shape, evidence in joined.result().items()
            }
        )
    return result


def _host_patterns(places: Mapping[Place, Evidence]) -> dict[Place, Place]:
    alike: dict[Place, dict[str, Evidence]] = {}
    for place, evidence in places.items():
        if place.reads:
            alike.setdefault(place._replace(host=""), {})[place.host] = evidence
    return {
        place._replace(host=host): place._replace(host=pattern)
        for place, hosts in alike.items()
        for host, pattern in host_patterns(hosts).items()
    }


def _listable(
    of_clients: Mapping[str, Openings],
) -> tuple[dict[str, Openings], list[_Apart]]:
    many: list[_Apart] = []
    kept: dict[str, Openings] = {}
    for name, openings in of_clients.items():
        writes: dict[Place, dict[Shape, Evidence]] = {}
        for (place, shape), evidence in openings.items():
            writes.setdefault(place, {}).update(
                {} if place.reads else {shape: evidence}
            )
        left_out = {
            place: shapes
            for place, shapes in writes.items()
            if without_loudest(shapes.values()) > LITERAL_PATHS_LISTED
        }
        kept[name] = {
            opening: evidence
            for opening, evidence in openings.items()
            if opening.place not in left_out
        }
        many += [
            (
                Unproposed.MANY_PATHS,
                place.host,
                " ".join(place.methods),
                name,
                total(shapes.values()),
            )
            for place, shapes in left_out.items()
        ]
    return kept, many


def _supported(
    of_clients: Mapping[str, Openings], support: Support
) -> tuple[dict[str, Openings], list[_Apart]]:
    every: dict[Place, dict[Shape, Evidence]] = {}
    for openings in of_clients.values():
        for (place, shape), evidence in openings.items():
            add_to(every.setdefault(place, {}), shape, evidence)
    proposed: dict[str, Openings] = {}
    few: list[_Apart] = []
    for name, openings in of_clients.items():
        for opening, evidence in openings.items():
            reason = _too_few(
                _support(opening, every) if support != Support() else evidence, support
            )
            if reason is None:
                proposed.setdefault(name, {})[opening] = evidence
            else:
                detail = (
                    f"{' '.join(opening.place.methods)} {pattern_of(opening.shape)}"
                )
                few.append((reason, opening.place.host, detail, name, evidence))
    return {name: _without_covered(some) for name, some in proposed.items()}, few


def _without_covered(openings: Openings) -> Openings:
    by_place: dict[Place, dict[Shape, Evidence]] = {}
    for (place, shape), evidence in openings.items():
        by_place.setdefault(place, {})[shape] = evidence
    return {
        Opening(place, shape): evidence
        for place, shapes in by_place.items()
        for shape, evidence in without_covered(shapes).items()
    }


def _support(
    opening: Opening, every: Mapping[Place, Mapping[Shape, Evidence]]
) -> Evidence:
    place, shape = opening
    hosts = [place.host]
    above = (
        place.host.lstrip("*.")
        if place.host.startswith("*")
        else place.host.partition(".")[2]
    )
    hosts += [] if place.host.startswith("*") else [f"*.{above}"]
    while above:
        hosts.append(f"**.{above}")
        above = above.partition(".")[2]
    wide = (every.get(place._replace(host=host), {}) for host in dict.fromkeys(hosts))
    return total(
        evidence
        for shapes in wide
        for other, evidence in shapes.items()
        if covers(other, shape)
    )


def _supported_presets(
    presets: Mapping[str, dict[str, Evidence]], support: Support
) -> tuple[dict[str, dict[str, Evidence]], list[_Apart]]:
    reasons = {
        name: _too_few(total(some.values()), support) for name, some in presets.items()
    }
    few = [
        (reason, "", f"preset {name}", client, evidence)
        for name, reason in reasons.items()
        if reason is not None
        for client, evidence in presets[name].items()
    ]
    return {name: some for name, some in presets.items() if reasons[name] is None}, few


def _too_few(evidence: Evidence, support: Support) -> Unproposed | None:
    if evidence.clients < support.clients:
        return Unproposed.FEW_CLIENTS
    return Unproposed.FEW_DAYS if len(evidence.days) < support.days else None


def _rules(found: Mapping[Row, Evidence]) -> tuple[LearnedRule, ...]:
    rules: list[LearnedRule] = []
    taken: dict[str, int] = {}
    for row, evidence in found.items():
        number = taken[row.name] = taken.get(row.name, 0) + 1
        name = row.name if number == 1 else f"{row.name}-{number}"
        rules.append(LearnedRule(name, *row, evidence))
    return tuple(rules)
