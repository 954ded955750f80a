"""`squidkeeper meter`: is something left of the quotas on this request?

Squid asks it about each request that a quota may count, once the policy has allowed it.
An answer is not kept. A line counts once: what cannot be counted is denied with ERR,
because Squid asks again after BH.
"""

import logging
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final

from squidkeeper.base.helper_metrics import METER
from squidkeeper.policy.engine import CompiledPolicy, HostMatch, Stage, decide, deny
from squidkeeper.policy.engine.quotas import counting
from squidkeeper.policy.language.quotas import UNCOUNTED, Quota
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
from squidkeeper.serving.quotas.counts import holder
from squidkeeper.serving.quotas.meter import Announced, Meter, Refusal
from squidkeeper.serving.replies import (
    no_policy_reply,
    over_quota_reply,
    recorded_user,
    tunnel_reply,
    within_quota_reply,
)

# the rule, Content-Length, Transfer-Encoding, and the three parts of the request's ID
_MORE: Final = 6
# Squid's trailing `-`
_TOKENS: Final = (
    REQUEST_TOKENS + _MORE,
    REQUEST_TOKENS + _MORE + 1,
)
_WAIT_SECONDS: Final = 2.0
_NO_TOKEN: Final = b"-"
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
        quotas = self._quotas(self._matches.find(tokens), rule)
        user = None if request.user is None else recorded_user(request.user)
        address = request.client.text if request.client else ""
        counts = [(quota, holder(quota, address, user, rule)) for quota in quotas]
        refusal = self._meter.take(counts, _body(length, encoding, rest))
        until = _wait_from(rest[0]) if refusal and refusal.passes_soon else 0.0
        if until <= time.monotonic():
            self._report(refusal.unavailable if refusal else "")
        if refusal is None:
            return within_quota_reply(rule)
        refused = self._refuse(refusal, request)
        return replace(refused, hold_until=until) if until else refused

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
        return over_quota_reply(
            decision, self.policy, request, refusal.quota.name, found, (at, seconds)
        )

    def _report(self, problem: str) -> None:
        """Log a failure when it begins or changes, not for each request."""
        if problem and problem != self._problem:
            _log.error(
                "quotas cannot be counted, so requests under quota are denied: %s",
                problem,
            )
        self._problem = problem


def _body(length: bytes, encoding: bytes, rest: list[bytes]) -> Announced | None:
    """Read what a request is about to send; None where it has no body.

    Squid reads more lengths than plain digits.
    """
    is_plain = encoding == _NO_TOKEN and _LENGTH.fullmatch(length)
    size = int(length) if is_plain else None
    if size == 0 or length == encoding == _NO_TOKEN:
        return None
    # as at the end of REQUEST_ID in setup/error_pages.py
    request = b".".join(rest[:3]).decode("ascii", "replace")
    return Announced(request, size)


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
        return f"Of the quota {quota.name} ({quota.text}), uploads that have not ended hold what this request needs."
    if refusal.left:
        return f"The quota {quota.name} ({quota.text}) has less left than this request would send."
    return f"The quota {quota.name} ({quota.text}) is used up."


def answer(scope: QuotaScope | None, line: bytes) -> Reply:
    """Answer one line: the nine tokens, the rule that has allowed the request, what
    tells its size, and its ID.
    """
    if scope is None:
        return no_policy_reply(METER, parse_request(parse_tokens(line, _TOKENS)))
    return scope.answer(line)
