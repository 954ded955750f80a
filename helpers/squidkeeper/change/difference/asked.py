"""One request, decided as `squidkeeper explain` decides it: what proves a difference."""

from dataclasses import dataclass, replace
from datetime import datetime

from squidkeeper.change.difference.consequences import Consequence, consequence_of, counted, quota_counts
from squidkeeper.policy.engine import CompiledPolicy, Decision, HostMatch, Stage, decide, decide_until_spent
from squidkeeper.policy.engine.explain import quotas_in, upstream
from squidkeeper.policy.protocol.request import Malformed, Request, request_to


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as `squidkeeper explain` takes it."""

    method: str
    target: str
    client: str | None
    user: str | None
    at: datetime


def judge(policy: CompiledPolicy, asked: Asked) -> Consequence:
    """Give what becomes of a request: now, and once the grants that allow it are spent."""
    request = request_to(asked.method, asked.target, asked.client, asked.user)
    match = policy.match(request)
    decisions = list(decide_until_spent(policy, match, asked.at))
    stages = [_consequence(policy, match, request, asked.at, decision) for decision in decisions]
    return counted(stages, [decision.counted for decision in decisions if decision.counted is not None])


def _consequence(
    policy: CompiledPolicy, match: HostMatch, request: Request | Malformed, at: datetime, decision: Decision
) -> Consequence:
    consequence = _uncounted(policy, match, request, at, decision)
    return replace(consequence, quotas=quota_counts(quotas_in(policy, match, decision), decision.rule))


def _uncounted(
    policy: CompiledPolicy, match: HostMatch, request: Request | Malformed, at: datetime, decision: Decision
) -> Consequence:
    if isinstance(request, Malformed):
        return consequence_of(decision, match.facts.host, websocket=False, upstream=None)
    websocket = request.method == "GET" and (
        decision.websocket or decide(policy, match, at, Stage.HOST).outlook.unrestricted
    )
    return consequence_of(decision, request.host, websocket=websocket, upstream=upstream(policy, request, decision))
