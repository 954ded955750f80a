"""What metered requests have used, as the ledger of usage grows: plain numbers, which a
checkpoint saves.

The number of series has a bound, whatever models clients and APIs name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import InvalidEntry, InvalidUrl
from squidkeeper.base.helper_metrics import NONE, OTHER
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.url import address_host, parse_address
from squidkeeper.record.log.follower import Follower, Position
from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.requests import token
from squidkeeper.record.usage_ledger import UsageEntry, UsageState, parse_entry

MODELS_LIMIT: Final = 64  # that are counted by name; more are `other`
CELLS_LIMIT: Final = 1000  # of client, rule, model and state: four thousand series
_Labels = tuple[str, str, str, str]  # client, rule, model, state
_Amounts = tuple[int, int, int, int]  # requests, tokens in, tokens out, cost


class UsageCounts(msgspec.Struct, frozen=True):
    """What was counted in the ledger up to a position.

    `models` has the time at which each model answered last.
    """

    position: Position = Position()
    used: list[tuple[_Labels, _Amounts]] = []
    models: dict[str, str] = {}


class UsageCounter:
    """Counts the requests of a ledger whose answers have ended, starting at `counts`.

    Not thread-safe.
    """

    def __init__(
        self,
        ledger: Path,
        counts: UsageCounts,
        current: Callable[[], CompiledPolicy | None],
    ) -> None:
        self._follower = Follower(ledger, counts.position)
        self._current = current
        self._used = dict(counts.used)
        self._models = dict(counts.models)

    def count_batch(self) -> bool:
        """Count the next lines; False where there are none.

        OSError where the ledger cannot be read.
        """
        lines = self._follower.read()
        for line in lines:
            try:
                entry = parse_entry(line)
            except InvalidEntry:
                continue
            if entry.settled:
                self._count(entry)
        return bool(lines)

    def counts(self) -> UsageCounts:
        """Return the numbers as they are now."""
        return UsageCounts(
            self._follower.position, list(self._used.items()), dict(self._models)
        )

    def close(self) -> None:
        """Close the ledger."""
        self._follower.close()

    def _count(self, entry: UsageEntry) -> None:
        labels = (
            self._client(entry),
            shown_field(entry.rule) or NONE,
            self._model(entry),
            str(entry.state),
        )
        if labels not in self._used and len(self._used) >= CELLS_LIMIT:
            labels = (OTHER, OTHER, OTHER, str(entry.state))
        requests, tokens_in, tokens_out, cost = self._used.get(labels, (0, 0, 0, 0))
        more = (
            tokens_in + entry.tokens_in,
            tokens_out + entry.tokens_out,
            cost + entry.cost,
        )
        self._used[labels] = (requests + 1, *more)

    def _client(self, entry: UsageEntry) -> str:
        policy = self._current()
        try:
            address = address_host(parse_address(entry.client))
        except InvalidUrl:
            address = None
        return (
            next(iter(policy.clients_of(address, token(entry.user))), NONE)
            if policy
            else NONE
        )

    def _model(self, entry: UsageEntry) -> str:
        """Name a model that has answered.

        A client alone chooses the model of a request, so that one is not named.
        """
        model = shown_field(entry.model)
        if entry.state is not UsageState.METERED or model is None:
            return NONE
        if model not in self._models and len(self._models) >= MODELS_LIMIT:
            return OTHER
        self._models[model] = max(entry.time, self._models.get(model, ""))
        return model
