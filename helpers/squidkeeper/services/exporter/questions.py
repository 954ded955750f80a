"""The questions that wait for a person: counted, and settled where the policy decides them by now."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.serving.tickets.judgement import settle
from squidkeeper.serving.tickets.store import TicketStore

_AT_ONCE: Final = 1_000  # questions: some 50 ms
_PAUSE_SECONDS: Final = 600.0  # what depends on the time is judged again after this
_log = logging.getLogger(__name__)


class WaitingQuestions:
    """The questions of one gateway. Each count judges some of them, until all are judged by the policy in force."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._uses = GrantUses(state)
        self._begun = ("", 0.0)  # by which revision, and when
        self._after: str | None = None  # the last question that was judged; None: all are

    def count(self, policy: CompiledPolicy | None, now: float) -> int | None:
        """Count those that wait; None where no client has ever asked, or that cannot be read."""
        store = TicketStore(self._state)
        try:
            if not store.exists:
                return None
            if policy is not None:
                self._judge(store, policy, now)
            return store.count_pending(now)
        except OSError as error:
            _log.warning("the questions of clients cannot be read: %s", error)
            return None
        finally:
            store.close()

    def _judge(self, store: TicketStore, policy: CompiledPolicy, now: float) -> None:
        revision, since = self._begun
        if revision != policy.revision or now - since > _PAUSE_SECONDS:
            self._begun, self._after = (policy.revision, now), ""
        if self._after is None:
            return
        some = store.pending_after(self._after, _AT_ONCE)
        settle(store, policy, self._uses.is_spent, some, datetime.fromtimestamp(now, UTC))
        self._after = some[-1].number if len(some) == _AT_ONCE else None
