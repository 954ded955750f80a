"""A new connection of Squid's: its first line names the service, which answers on it
from then on.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from squidkeeper.services.bodies.connection import IcapConnection
from squidkeeper.services.bodies.judge import BodyJudge

_USAGE: Final = b"/usage ICAP/1.0\r\n"  # in meter.conf
_LONGEST_LINE: Final = 1024


class NewConnection(asyncio.Protocol):
    """A connection whose first line has not come.

    Squid keeps connections for each service.
    """

    def __init__(self, judge: BodyJudge) -> None:
        self._judge = judge
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand the connection on once its first line is there."""
        self._data += data
        if self._transport is None or not (
            b"\n" in self._data or len(self._data) > _LONGEST_LINE
        ):
            return
        protocol = self._answering()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)

    def _answering(self) -> asyncio.Protocol:
        if not self._data.partition(b"\n")[0].endswith(_USAGE[:-1]):
            return IcapConnection(self._judge)
        # late: only metered requests need it
        from squidkeeper.services.bodies.answers import (
            AnswerConnection,
        )

        return AnswerConnection(self._judge)
