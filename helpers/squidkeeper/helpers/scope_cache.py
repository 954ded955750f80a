"""What one policy says of a place, worked out once for all lines about it (floor 5)."""

from __future__ import annotations

from squidkeeper.bounded_cache import BoundedCache
from squidkeeper.engine import Decision, Judge
from squidkeeper.engine.judge import Scope
from squidkeeper.helpers.request import PLACE_TOKENS, query_from
from squidkeeper.protocol.lines import decode_tokens

_SCOPE_CACHE_BYTES = 8 * 1024 * 1024
_PLACE_BYTES = 1_500  # of Python objects, beside the tokens themselves and a reference to each entry


class ScopeCache:
    """One policy in force and what was already looked up in it; bounded in bytes, gone with the policy.

    A place is who asks for which host how: the tokens beside the URL, as they came. What is kept of it does not
    depend on the time: what expires is judged anew for each URL.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.revision = judge.policy.revision
        self._known: BoundedCache[tuple[bytes, ...], Scope | Decision] = BoundedCache(_SCOPE_CACHE_BYTES)

    def find(self, tokens: list[bytes]) -> Scope | Decision:
        """Find what is known without the URL; `tokens` are a line's, as they came, from the client on."""
        place = tuple(tokens[:PLACE_TOKENS])
        known = self._known.get(place)
        if known is None:
            known = self.judge.scope(query_from(decode_tokens(place)))
            self._known.keep(place, known, _place_bytes(place, known))
        return known


def _place_bytes(place: tuple[bytes, ...], scope: Scope | Decision) -> int:
    held = 0 if isinstance(scope, Decision) else scope.entries.held_bytes
    return _PLACE_BYTES + 3 * sum(map(len, place)) + held  # the tokens as they came, decoded and parsed
