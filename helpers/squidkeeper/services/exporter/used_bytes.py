"""The bytes of quotas: counted at the end of a request, as the access log tells them.

What the meter has held for the request is released then, also where a client left so
early that the meter was asked about the request, or answered again, after its line. A
request without a line, after a crash of Squid, stays held.

They are added before the exporter saves its position in the log, so an exporter that is
killed counts the last seconds twice, and none never. Where gateways share their counts,
what the store has not got yet is kept in memory.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.quotas import Quota, QuotaUnit
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.host_judging import clients_of
from squidkeeper.record.log.record import NONE, Record, is_spliced
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.serving.quotas.counts import QuotaCount, holder
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.notices import LogHeartbeat
from squidkeeper.serving.quotas.opening import GatewayCounts

_WAITING_AT_MOST = 50_000  # counts
_ENDED_AT_MOST = 50_000  # requests
_ENDED_SECONDS = (
    300.0  # the meter answers later than the request's line is read by less
)
_log = logging.getLogger(__name__)


class UsedBytes:
    """Adds what requests have used to the counts of the quotas in force.

    `sessions` finds those of records, also where they have ended.
    """

    def __init__(
        self,
        state: Path,
        current: Callable[[], CompiledPolicy | None],
        shared: GatewayCounts,
        sessions: RecordedSessions = NO_SESSIONS,
    ) -> None:
        self._counts = LocalCounts(state)
        self._shared = shared
        self._heartbeat = LogHeartbeat(state)
        self._current = current
        self._sessions = sessions
        self._waiting: dict[QuotaCount, int] = {}
        self._unsent: dict[QuotaCount, int] = {}  # to the store of all gateways
        self._ended: set[str] = set()  # requests that the meter may have held bytes for
        self._ended_before: set[str] = set()
        self._ended_since = time.monotonic()
        self._problem = ""

    def count(self, record: Record) -> None:
        """Count the bytes of one request that the policy allowed.

        Of tunnels, those that passed through have some.
        """
        policy = self._current()
        if policy is None or not _counts_bytes(policy):
            return
        self._note_end(record.request_id)
        if record.verdict != "allow":
            return
        if record.method == CONNECT and not is_spliced(record):
            return
        rule = unquote(record.rule)
        session = self._sessions.known(record)
        clients = clients_of(policy, record, session)
        for quota in policy.source.quotas:
            if quota.unit.is_size and quota.holds_for(clients) and quota.counts(rule):
                self._add(quota, record, rule, session)

    def flush(self) -> None:
        """Add what was counted, and tell the helpers that bytes are counted."""
        policy = self._current()
        if policy is None or not (self._waiting or _counts_bytes(policy)):
            return
        try:
            if self._waiting:
                self._counts.add_all(self._waiting)
                self._keep_unsent()
                self._waiting.clear()
            self._heartbeat.beat()
            self._send()
            self._release()  # once the bytes are counted: in between they count twice
        except (CountsUnavailable, OSError) as error:
            self._report(str(error))
        else:
            self._report("")

    def _note_end(self, request: str) -> None:
        if (
            len(self._ended) >= _ENDED_AT_MOST
            or time.monotonic() - self._ended_since >= _ENDED_SECONDS
        ):
            self._ended_before, self._ended, self._ended_since = (
                self._ended,
                set(),
                time.monotonic(),
            )
        # without the gateway's name
        self._ended.add(".".join(request.rsplit(".", 4)[-4:]))

    def _release(self) -> None:
        if held := self._counts.holding():
            self._counts.release(held & self._ended | held & self._ended_before)

    def _keep_unsent(self) -> None:
        """Keep for the store of all gateways what is counted here.

        While that is away, this gateway goes by its own.
        """
        if self._shared.are_local:
            return
        for count, amount in self._waiting.items():
            if count in self._unsent or len(self._unsent) < _WAITING_AT_MOST:
                self._unsent[count] = self._unsent.get(count, 0) + amount

    def _send(self) -> None:
        for count in [*self._unsent]:
            self._shared.add(count, self._unsent[count])
            del self._unsent[count]

    def _add(
        self, quota: Quota, record: Record, rule: str, session: Session | None
    ) -> None:
        amount = (
            record.request_bytes if quota.unit is QuotaUnit.BYTES_OUT else record.bytes
        )
        user = None if record.user == NONE else record.user
        named = holder(quota, record.client, user, rule, session)
        if named is None:
            return
        count = QuotaCount.of(quota, named)
        if amount > 0 and (
            count in self._waiting or len(self._waiting) < _WAITING_AT_MOST
        ):
            self._waiting[count] = self._waiting.get(count, 0) + amount

    def _report(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error(
                "the bytes of quotas cannot be counted, trying again: %s", problem
            )
        self._problem = problem


def _counts_bytes(policy: CompiledPolicy) -> bool:
    return any(quota.unit.is_size for quota in policy.source.quotas)
