"""What one client of a draft used of one host, in bounded memory, and the fewest rules
that open just that.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.learning import path_shapes
from squidkeeper.change.learning.askers import Asker
from squidkeeper.change.learning.draft import Unproposed
from squidkeeper.change.learning.path_shapes import (
    Evidence,
    add_to,
    is_address_like,
    is_shared,
    pattern_of,
)
from squidkeeper.change.learning.uses import Use
from squidkeeper.policy.language.public_suffixes import registrable_domain
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import DEFAULT_PORTS, Host, Url, parse_url, unrecorded_url

READ: Final = ("GET", "HEAD")
LITERAL_PATHS_LISTED: Final = path_shapes.PATTERNS_LISTED
_WIDE_PATHS_SHOWN: Final = 3
_PLACES_AT_MOST: Final = 100  # of one host: a client can make up methods
_UPLOADED_BYTES: Final = 1_000_000  # and this many times what came back
_UPLOADED_TIMES: Final = 10
_METHOD = re.compile(r"[A-Z][A-Z-]{0,30}")
_NEVER_LISTED: Final = frozenset({CONNECT, "TRACE", "TRACK"})
_NAME_LENGTH: Final = 80


class Place(NamedTuple):
    """Where a rule opens something: a host pattern, and how it is spoken to."""

    host: str
    scheme: str
    port: int
    methods: tuple[str, ...]
    websocket: bool = False

    @property
    def reads(self) -> bool:
        """Whether its methods read only: paths and hosts may be generalised."""
        return self.methods == READ


class Opening(NamedTuple):
    """What a rule opens, with one path."""

    place: Place
    shape: path_shapes.Shape


Openings = dict[Opening, Evidence]


@dataclass(slots=True)
class HostUses:
    """The uses of one host by one asker."""

    asker: Asker
    host: str
    presets: dict[str, Evidence] = field(default_factory=dict)
    _shapes: dict[Place, path_shapes.PathShapes] = field(default_factory=dict)
    _literals: dict[Place, dict[path_shapes.Shape, Evidence]] = field(
        default_factory=dict
    )
    # True: of `_shapes`
    _evidence: dict[tuple[Place, bool], Evidence] = field(default_factory=dict)
    _apart: dict[tuple[Unproposed, str], Evidence] = field(default_factory=dict)
    _whole: set[Unproposed] = field(default_factory=set)
    _uploaded: int = 0
    _downloaded: int = 0
    _is_shared: bool = field(init=False)

    def __post_init__(self) -> None:
        self._is_shared = is_shared(self.host)

    def add(self, use: Use, presets: Iterable[str]) -> None:
        """Add a use, and the presets that allow it."""
        evidence = Evidence(
            use.count, use.first, use.last, use.days, *self.asker.counted
        )
        chosen = next(iter(sorted(presets)), None)
        if not self.asker.definable:
            add_to(self._apart, (Unproposed.UNUSUAL, "the user"), evidence)
        elif use.denied_by:
            add_to(self._apart, (Unproposed.DENIED, use.denied_by), evidence)
        elif chosen is not None:
            add_to(self.presets, chosen, evidence)
        elif use.method == CONNECT:
            add_to(self._apart, (Unproposed.TUNNEL, ""), evidence)
        else:
            self._add_request(use, evidence)

    def _add_request(self, use: Use, evidence: Evidence) -> None:
        url = _parsed(use.url)
        if (
            url is None
            or _METHOD.fullmatch(use.method) is None
            or use.method in _NEVER_LISTED
        ):
            add_to(self._apart, (Unproposed.UNUSUAL, ""), evidence)
            return
        self._uploaded += use.uploaded
        self._downloaded += use.downloaded
        self._whole |= _reasons(url.host, use)
        # HEAD gives less than GET does
        methods = READ if use.method in READ else (use.method,)
        place = Place(url.host.text, url.scheme, url.port, methods, use.websocket)
        has_room = (
            len(self._evidence) < _PLACES_AT_MOST
            or (place, place.reads) in self._evidence
        )
        is_shape = self._add_path(place, url.path, evidence) if has_room else None
        if is_shape is None:
            add_to(self._apart, (Unproposed.UNUSUAL, ""), evidence)
        else:
            add_to(self._evidence, (place, is_shape), evidence)

    def _add_path(self, place: Place, path: str, evidence: Evidence) -> bool | None:
        """Add a path, and tell whether its shape or the path itself is proposed; None
        where no pattern matches it.

        A write is proposed with the paths that were used. Another path is another
        effect, and a way out for data.
        """
        shape = path_shapes.shape_of(path, keep_first=self._is_shared)
        if shape is not None:
            self._shapes.setdefault(
                place, path_shapes.PathShapes(keep_first=self._is_shared)
            ).add(shape, evidence)
            if place.reads:
                return True
        literal = path_shapes.literal_shape(path)
        if literal is None:
            return None
        literals = self._literals.setdefault(place, {})
        if literal in literals or len(literals) <= LITERAL_PATHS_LISTED:
            add_to(literals, literal, evidence)
        return False

    def finish(self) -> tuple[Openings, dict[tuple[Unproposed, str], Evidence]]:
        """Return what is proposed of the host, as far as this host alone decides; and
        what is not, by why and what.
        """
        whole, openings, apart = self._unproposed(), Openings(), dict(self._apart)
        for (place, is_shape), evidence in self._evidence.items():
            paths = {} if whole else self._paths(place, is_shape=is_shape)
            openings.update(
                {Opening(place, shape): path for shape, path in paths.items()}
            )
            if whole:
                add_to(apart, (whole, ""), evidence)
            elif not paths:
                add_to(
                    apart,
                    (
                        Unproposed.MANY_PATHS,
                        " ".join((*place.methods, *self._wide_paths(place))),
                    ),
                    evidence,
                )
        return openings, apart

    def _paths(self, place: Place, *, is_shape: bool) -> path_shapes.Shapes:
        if is_shape:
            return self._shapes[place].result()
        literals = self._literals[place]
        return literals if len(literals) <= LITERAL_PATHS_LISTED else {}

    def _wide_paths(self, place: Place) -> list[str]:
        shapes = self._shapes[place].result() if place in self._shapes else {}
        return [path_shapes.pattern_of(shape) for shape in shapes][:_WIDE_PATHS_SHOWN]

    def everything(self) -> Iterator[Evidence]:
        """Return the evidence of all uses."""
        yield from (
            *self.presets.values(),
            *self._evidence.values(),
            *self._apart.values(),
        )

    def _unproposed(self) -> Unproposed | None:
        heavy = self._uploaded > max(
            _UPLOADED_BYTES, _UPLOADED_TIMES * self._downloaded
        )
        return min(
            self._whole | ({Unproposed.UPLOADS} if heavy else set()), default=None
        )


def _reasons(host: Host, use: Use) -> set[Unproposed]:
    found = {
        Unproposed.ADDRESS: is_address_like(host),
        Unproposed.PRIVATE: use.private,
        Unproposed.NEW: use.new,
    }
    return {reason for reason, holds in found.items() if holds}


def _parsed(url: str) -> Url | None:
    try:
        return parse_url(unrecorded_url(url))
    except InvalidUrl:
        return None


class Row(NamedTuple):
    """A rule to be: it opens each combination of what its fields list.

    `port` is None for the schemes' own.
    """

    clients: tuple[str, ...]
    hosts: tuple[str, ...]
    schemes: tuple[str, ...]
    port: int | None
    methods: tuple[str, ...]
    websocket: bool
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """A name that tells people what it opens, whichever host is first; other rows
        may have the same.
        """
        methods = [method.lower() for method in self.methods if method not in READ]
        return "-".join(
            [
                self._sites[:_NAME_LENGTH],
                *(["read"] if set(READ) & set(self.methods) else []),
                *methods[:3],
            ]
        )

    @property
    def _sites(self) -> str:
        """The host, else the domain of the one owner; where hosts have several owners,
        the client that uses them.
        """
        hosts = [re.sub(r"^\*+\.", "", host) for host in self.hosts]
        owners = {registrable_domain(host) or host for host in hosts}
        if len(hosts) == 1:
            return hosts[0]
        if len(owners) == 1:
            return owners.pop()
        return f"{self.clients[0]}-sites" if len(self.clients) == 1 else "sites"


Rows = dict[Row, Evidence]


def rows(of_clients: Iterable[tuple[str, Openings]]) -> Rows:
    """Return the fewest rows that open to each client what it is given, and nothing
    else; the widely used first.
    """
    of_hosts: dict[str, Rows] = {}
    for client, openings in of_clients:
        for (place, shape), evidence in openings.items():
            port = None if place.port == DEFAULT_PORTS[place.scheme] else place.port
            paths = (pattern_of(shape),)
            row = Row(
                (client,),
                (place.host,),
                (place.scheme,),
                port,
                place.methods,
                place.websocket,
                paths,
            )
            of_hosts.setdefault(place.host, {})[row] = evidence
    merged: Rows = {}
    for of_host in of_hosts.values():
        orders = (("paths", "clients"), ("clients", "paths"))
        first, second = (
            _merged_in_turn(of_host, (*order, "methods", "schemes")) for order in orders
        )
        merged.update(first if len(first) <= len(second) else second)
    result = _merged(merged, "hosts")
    clients: dict[str, int] = {}
    for row, evidence in result.items():
        clients[row.hosts[0]] = max(evidence.clients, clients.get(row.hosts[0], 0))
    return dict(
        sorted(
            result.items(),
            key=lambda item: (-clients[item[0].hosts[0]], *_place(item[0])),
        )
    )


def _merged_in_turn(some: Rows, fields: Iterable[str]) -> Rows:
    for name in fields:
        some = _merged(some, name)
    return some


def _merged(some: Rows, field: str) -> Rows:
    values: dict[Row, set[str]] = {}
    evidence: Rows = {}
    for row, use in some.items():
        key = Row(**{**row._asdict(), field: ()})
        values.setdefault(key, set()).update(getattr(row, field))
        evidence[key] = evidence[key] + use if key in evidence else use
    sort = _SORTED.get(field, sorted)
    return {
        Row(**{**key._asdict(), field: tuple(sort(values[key]))}): used
        for key, used in evidence.items()
    }


def _methods(some: Iterable[str]) -> list[str]:
    return sorted(some, key=lambda method: (method not in READ, method))


_SORTED: Final[dict[str, Callable[[Iterable[str]], list[str]]]] = {"methods": _methods}


def _place(row: Row) -> tuple[object, ...]:
    port = row.port or 0
    return (
        row.hosts[0].lstrip("*."),
        row.hosts,
        row.methods,
        row.schemes,
        port,
        row.websocket,
        row.clients,
        row.paths,
    )
