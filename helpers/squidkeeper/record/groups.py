"""Records counted by host, rule, client, status or path (floor 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.record import Record, client_name, is_spliced
from squidkeeper.record.urls import host_of

GROUP_LIMIT: Final = 100_000
OTHERS: Final = "(others)"
_KEY_AT_MOST = 500  # characters; a client can invent any number of long paths


def _path(record: Record) -> str:
    return record.url.partition("?")[0]


KEYS: Final[dict[str, Callable[[Record], str]]] = {
    "host": lambda record: host_of(record.url).text,
    "rule": lambda record: record.rule,
    "client": client_name,
    "status": lambda record: str(record.status),
    "path": _path,
}


@dataclass(slots=True)
class Group:
    """The counts of one key. `last` is the end of the newest request.

    `tunnels` are allowed CONNECTs, which are no requests: their rule is the first that could allow a request. A tunnel
    that passed through counts as a request.
    """

    requests: int = 0
    denied: int = 0
    tunnels: int = 0
    bytes: int = 0
    last: str = ""


class Groups:
    """Counts records by one key; after `GROUP_LIMIT` keys, new ones count as `OTHERS`."""

    def __init__(self, by: str) -> None:
        self._key = KEYS[by]
        self._groups: dict[str, Group] = {}

    def add(self, record: Record) -> None:
        """Count a record."""
        key = self._key(record)
        group = self._groups.get(key) or self._new(key)
        is_tunnel = record.method == CONNECT and record.verdict == "allow" and not is_spliced(record)
        group.tunnels += is_tunnel
        group.requests += not is_tunnel
        group.denied += record.verdict == "deny"
        group.bytes += record.bytes
        group.last = max(group.last, record.time)

    def most_first(self) -> list[tuple[str, Group]]:
        """Return the groups, the one with the most requests first."""
        return sorted(self._groups.items(), key=lambda one: (-one[1].requests, -one[1].tunnels, one[0]))

    def _new(self, key: str) -> Group:
        key = key if len(key) <= _KEY_AT_MOST else f"{key[:_KEY_AT_MOST]}…"
        if key not in self._groups and len(self._groups) >= GROUP_LIMIT:
            key = OTHERS
        return self._groups.setdefault(key, Group())
