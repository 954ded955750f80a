"""A connection of a client that waitress serves, with bounds for clients that send
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, cast

from waitress.channel import HTTPChannel

from squidkeeper.base.client_network import client_network


class BoundedConnection(HTTPChannel):
    """A client's connection.

    Its timeout runs until a request is whole: single bytes do not extend it. A new
    connection takes the place of the one that has waited longest: of its own address
    where that has too many, else of all. So connections without a whole request keep
    nobody out, not even at the address of the scraper.
    """

    per_client = 16  # connections; of an IPv6 address, its /64 counts
    in_all = 100

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.network = client_network(self.addr[0])
        # the type in the stub is wrong
        channels = cast("dict[int, BoundedConnection]", self.server.active_channels)
        found = [*channels.values()]
        own = [channel for channel in found if channel.network == self.network]
        if len(own) > self.per_client:
            self._make_room(own)
        elif len(found) > self.in_all:
            self._make_room(found)

    def _make_room(self, among: Iterable[BoundedConnection]) -> None:
        """Close what waits longest; with a request on each, close this connection."""
        waiting = (other for other in among if other is not self and not other.requests)
        last = min(waiting, key=attrgetter("last_activity"), default=self)
        last.handle_close()

    def handle_read(self) -> None:
        """Read from the socket."""
        before = self.last_activity
        super().handle_read()
        if self.request is not None:
            self.last_activity = before
