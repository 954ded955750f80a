"""`squidkeeper meter`: is something left of the quotas on this request?

Squid asks it about each request that a quota may count, once the policy has allowed it.
An answer is not kept. A line counts once: what cannot be counted is denied with ERR,
because Squid asks again after BH.
"""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final

from squidkeeper.base.helper_metrics import METER
from squidkeeper.policy.engine import CompiledPolicy, HostMatch, Stage, decide, deny
from squidkeeper.policy.engine.quotas import counting
from squidkeeper.policy.language.quotas import (
    SMALL_ANSWER,
    UNCOUNTED,
    Quota,
    QuotaUnit,
)
from squidkeeper.policy.protocol.lines import (
    Reply,
    decode_token,
    parse_tokens,
    split_tokens,
)
from squidkeeper.policy.protocol.request import (
    CONNECT,
    REQUEST_TOKENS,
    Malformed,
    Request,
    parse_request,
)
from squidkeeper.serving.helpers.host_matches import HostMatches, decision_time
from squidkeeper.serving.quotas.counts import (
    LARGEST,
    at_most,
    exactly,
    held_counts,
    share_of_answer,
)
from squidkeeper.serving.quotas.meter import Announced, Meter, Refusal
from squidkeeper.serving.replies import (
    answer_fits_reply,
    no_policy_reply,
    over_quota_reply,
    recorded_user,
    tunnel_reply,
    within_quota_reply,
)

# the rule, Content-Length, Transfer-Encoding, the three parts of the request's ID, and
# the length of its answer
_MORE: Final = 7
# Squid's trailing `-`, or what its ACL says
_TOKENS: Final = (
    REQUEST_TOKENS + _MORE,
    REQUEST_TOKENS + _MORE + 1,
)
_WAIT_SECONDS: Final = 2.0
_NO_TOKEN: Final = b"-"
_ABOUT_ANSWER: Final = b"answer"
_CONNECT: Final = CONNECT.encode()
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_log = logging.getLogger(__name__)


class QuotaScope:
    """One policy, with the units that this process has taken, which outlive
    the policy.
    """

    def __init__(self, policy: CompiledPolicy, meter: Meter) -> None:
        self.policy = policy
        self._meter = meter
        self._matches = HostMatches(policy)
        self._problem = ""

    def answer(self, line: bytes) -> Reply:
        """Answer a line."""
        stated, rule_token, length, encoding, *rest = split_tokens(
            line, REQUEST_TOKENS, _TOKENS
        )
        tokens, rule = _before_its_tunnel(stated), decode_token(rule_token)
        request = parse_request(parse_tokens(tokens, (REQUEST_TOKENS,)))
        if isinstance(request, Malformed):  # which the policy has denied
            return _uncounted(request, self.policy)
        match = self._matches.find(tokens)
        user = None if request.user is None else recorded_user(request.user)
        address = request.client.text if request.client else ""
        quotas = self._quotas(match, rule)
        counts = held_counts(quotas, address, user, rule, match.facts.session)
        if rest[-1] == _ABOUT_ANSWER:
            found = self._of_answer(counts, rest)
        else:
            announced = [*_announced(request, length, encoding, rest)]
            found = self._of_request(counts, rule, announced)
        if isinstance(found, Reply):
            self._report("")
            return found
        until = _wait_from(rest[0]) if found.passes_soon else 0.0
        if until <= time.monotonic():
            self._report(found.unavailable)
        refused = self._refuse(found, request)
        return replace(refused, hold_until=until) if until else refused

    def _of_request(
        self, counts: list[tuple[Quota, str]], rule: str, announced: list[Announced]
    ) -> Reply | Refusal:
        refusal = self._meter.take(counts, *announced)
        counts_answer = any(quota.unit is QuotaUnit.BYTES_IN for quota, _ in counts)
        return refusal or within_quota_reply(rule, counts_answer=counts_answer)

    def _of_answer(
        self, counts: list[tuple[Quota, str]], rest: list[bytes]
    ) -> Reply | Refusal:
        size = int(rest[3]) if _LENGTH.fullmatch(rest[3]) else None
        choose = share_of_answer if size is None else exactly(size)
        answer = Announced(_request_id(rest), QuotaUnit.BYTES_IN, choose, size or 1)
        held = self._meter.hold(
            [count for count in counts if count[0].unit is QuotaUnit.BYTES_IN], answer
        )
        if isinstance(held, Refusal):
            return held
        return answer_fits_reply(None if size is not None else held)

    def _quotas(self, match: HostMatch, rule: str) -> tuple[Quota, ...]:
        is_tunnel = match.facts.method is None
        passthrough = (
            is_tunnel
            and decide(
                self.policy, match, decision_time(self.policy), Stage.HOST
            ).passthrough
        )
        return counting(
            match.candidates.quotas, rule, is_tunnel=is_tunnel, passthrough=passthrough
        )

    def _refuse(self, refusal: Refusal, request: Request) -> Reply:
        seconds = ceil(refusal.ends_in)
        # rounded, as it is cut to the second
        resets = datetime.now(UTC) + timedelta(seconds=refusal.ends_in + 0.5)
        decision = deny("quota", refusal_reason(refusal))
        found = f"{UNCOUNTED if refusal.unavailable else 'quota'}:{refusal.quota.name}"
        at = f"{resets:%Y-%m-%dT%H:%M:%SZ}"
        reply = over_quota_reply(
            decision, self.policy, request, refusal.quota.name, found, (at, seconds)
        )
        # it is for the answer only: a request that is refused has none
        refused = (*reply.annotations, ("answer_", "refused"))
        return replace(reply, annotations=refused)

    def _report(self, problem: str) -> None:
        """Log a failure when it begins or changes, not for each request."""
        if problem and problem != self._problem:
            _log.error(
                "quotas cannot be counted, so requests under quota are denied: %s",
                problem,
            )
        self._problem = problem


def _announced(
    request: Request, length: bytes, encoding: bytes, rest: list[bytes]
) -> Iterator[Announced]:
    """Yield what a request is about to send, and to get: a small answer.

    Squid reads more lengths than plain digits. A body of unknown length holds all that
    is left. Nothing bounds what comes through a tunnel.
    """
    name = _request_id(rest)
    if request.method != CONNECT:
        yield Announced(name, QuotaUnit.BYTES_IN, at_most(SMALL_ANSWER))
    is_plain = encoding == _NO_TOKEN and _LENGTH.fullmatch(length)
    if length == encoding == _NO_TOKEN or (is_plain and int(length) == 0):
        return
    size = int(length) if is_plain else None
    choose = at_most(LARGEST) if size is None else exactly(size)
    yield Announced(name, QuotaUnit.BYTES_OUT, choose, size or 1)


def _request_id(rest: list[bytes]) -> str:
    # as at the end of REQUEST_ID in setup/error_pages.py
    return b".".join(rest[:3]).decode("ascii", "replace")


def _wait_from(began: bytes) -> float:
    """Return how long a request waits for what passes soon: the end of an upload, which
    the exporter counts within a moment, or of other processes' writing.
    """
    since = abs(time.time() - float(began))  # a clock that is set back ends the wait
    return time.monotonic() + _WAIT_SECONDS - since


def _before_its_tunnel(tokens: bytes) -> bytes:
    """State a CONNECT as it was before the answer about its host, which has named the
    tunnel.
    """
    client, user, method, *rest, sni, tunnel, token = tokens.split(b" ")
    if method == _CONNECT:
        sni = tunnel = b"-"
    return b" ".join((client, user, method, *rest, sni, tunnel, token))


def _uncounted(request: Malformed, policy: CompiledPolicy) -> Reply:
    return tunnel_reply(deny(request.rule, request.reason), METER, policy, request)


def refusal_reason(refusal: Refusal) -> str:
    """Say why a quota refuses a request, for its client."""
    quota = refusal.quota
    if refusal.unavailable:
        return f"The quota {quota.name} ({quota.text}) cannot be counted at the moment."
    if refusal.held:
        return f"Of the quota {quota.name} ({quota.text}), requests that have not ended hold what this request needs."
    if refusal.left:
        does = "would send" if quota.unit is QuotaUnit.BYTES_OUT else "would get"
        return f"The quota {quota.name} ({quota.text}) has less left than this request {does}."
    return f"The quota {quota.name} ({quota.text}) is used up."


def answer(scope: QuotaScope | None, line: bytes) -> Reply:
    """Answer one line: the nine tokens, the rule that has allowed the request, what
    tells its size, its ID, and what is known of its answer.
    """
    if scope is None:
        return no_policy_reply(METER, parse_request(parse_tokens(line, _TOKENS)))
    return scope.answer(line)
