"""How much of a helper's time one client may take."""

import time
from typing import Final

from squidkeeper.base.client_network import client_network
from squidkeeper.policy.protocol.lines import decode_token

SHARE: Final = 0.25
BURST_SECONDS: Final = 0.1
# a line that takes less of the processor is free: Squid itself takes as long
LOOK_UP_SECONDS: Final = 0.00025
_AT_MOST: Final = 50_000
_LONGEST_ADDRESS: Final = 200  # bytes, escaped: Squid writes no longer one


class ClientShares:
    """The time that each client has used, by the generic cell rate algorithm (ITU-T
    I.371); bounded in their number.

    A client is known by the token of its address, as it came.
    """

    def __init__(self) -> None:
        self._client_of: dict[bytes, str] = {}
        self._unused_at: dict[
            str, float
        ] = {}  # when the client has its whole burst again

    def is_used_up(self, token: bytes) -> bool:
        """Whether a client has used up its share."""
        if not self._unused_at:
            return False
        return (
            self._unused_at.get(self._client(token), 0.0) - time.monotonic()
            > BURST_SECONDS / SHARE
        )

    def charge(self, token: bytes, seconds: float) -> None:
        """Charge a client for a line that costs more than a look-up."""
        if len(self._unused_at) >= _AT_MOST:
            self._unused_at.clear()
        client, now = self._client(token), time.monotonic()
        self._unused_at[client] = (
            max(now, self._unused_at.get(client, now)) + seconds / SHARE
        )

    def _client(self, token: bytes) -> str:
        client = self._client_of.get(token)
        if client is None:
            if len(self._client_of) >= _AT_MOST:
                self._client_of.clear()
            client = self._client_of[token] = client_network(
                decode_token(token[:_LONGEST_ADDRESS])
            )
        return client
