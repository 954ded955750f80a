"""What one client of a draft used of one host: gathered use by use, in bounded memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.change.learning import path_shapes
from squidkeeper.change.learning.askers import Asker
from squidkeeper.change.learning.draft import Unproposed
from squidkeeper.change.learning.evidence import Evidence, add_to
from squidkeeper.change.learning.host_shapes import is_address_like, is_shared
from squidkeeper.change.learning.uses import Use
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import Host, Url, parse_url, unrecorded_url

READ: Final = ("GET", "HEAD")
LITERAL_PATHS_LISTED: Final = path_shapes.PATTERNS_LISTED
_WIDE_PATHS_SHOWN: Final = 3
_PLACES_AT_MOST: Final = 100  # of one host: a client can make up methods
_UPLOADED_BYTES: Final = 1_000_000  # and this many times what came back
_UPLOADED_TIMES: Final = 10
_METHOD = re.compile(r"[A-Z][A-Z-]{0,30}")
_NEVER_LISTED: Final = frozenset({CONNECT, "TRACE", "TRACK"})


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
    _literals: dict[Place, dict[path_shapes.Shape, Evidence]] = field(default_factory=dict)
    _evidence: dict[tuple[Place, bool], Evidence] = field(default_factory=dict)  # True: of `_shapes`
    _apart: dict[tuple[Unproposed, str], Evidence] = field(default_factory=dict)
    _whole: set[Unproposed] = field(default_factory=set)
    _uploaded: int = 0
    _downloaded: int = 0
    _is_shared: bool = field(init=False)

    def __post_init__(self) -> None:
        self._is_shared = is_shared(self.host)

    def add(self, use: Use, presets: Iterable[str]) -> None:
        """Add a use, and the presets that allow it."""
        evidence = Evidence(use.count, use.first, use.last, use.days, *self.asker.counted)
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
        if url is None or _METHOD.fullmatch(use.method) is None or use.method in _NEVER_LISTED:
            add_to(self._apart, (Unproposed.UNUSUAL, ""), evidence)
            return
        self._uploaded += use.uploaded
        self._downloaded += use.downloaded
        self._whole |= _reasons(url.host, use)
        methods = READ if use.method in READ else (use.method,)  # HEAD gives less than GET does
        place = Place(url.host.text, url.scheme, url.port, methods, use.websocket)
        has_room = len(self._evidence) < _PLACES_AT_MOST or (place, place.reads) in self._evidence
        is_shape = self._add_path(place, url.path, evidence) if has_room else None
        if is_shape is None:
            add_to(self._apart, (Unproposed.UNUSUAL, ""), evidence)
        else:
            add_to(self._evidence, (place, is_shape), evidence)

    def _add_path(self, place: Place, path: str, evidence: Evidence) -> bool | None:
        """Add a path, and tell whether its shape or the path itself is proposed; None where no pattern matches it.

        A write is proposed with the paths that were used. Another path is another effect, and a way out for data.
        """
        shape = path_shapes.shape_of(path, keep_first=self._is_shared)
        if shape is not None:
            self._shapes.setdefault(place, path_shapes.PathShapes(keep_first=self._is_shared)).add(shape, evidence)
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
        """Give what is proposed of the host, as far as this host alone decides; and what is not, by why and what."""
        whole, openings, apart = self._unproposed(), Openings(), dict(self._apart)
        for (place, is_shape), evidence in self._evidence.items():
            paths = {} if whole else self._paths(place, is_shape=is_shape)
            openings.update({Opening(place, shape): one for shape, one in paths.items()})
            if whole:
                add_to(apart, (whole, ""), evidence)
            elif not paths:
                add_to(apart, (Unproposed.MANY_PATHS, " ".join((*place.methods, *self._wide_paths(place)))), evidence)
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
        """Give the evidence of all uses."""
        yield from (*self.presets.values(), *self._evidence.values(), *self._apart.values())

    def _unproposed(self) -> Unproposed | None:
        heavy = self._uploaded > max(_UPLOADED_BYTES, _UPLOADED_TIMES * self._downloaded)
        return min(self._whole | ({Unproposed.UPLOADS} if heavy else set()), default=None)


def _reasons(host: Host, use: Use) -> set[Unproposed]:
    found = {Unproposed.ADDRESS: is_address_like(host), Unproposed.PRIVATE: use.private, Unproposed.NEW: use.new}
    return {reason for reason, holds in found.items() if holds}


def _parsed(url: str) -> Url | None:
    try:
        return parse_url(unrecorded_url(url))
    except InvalidUrl:
        return None
