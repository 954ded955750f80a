"""The tests that a policy carries: it does not load while one of them fails."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine.body_scope import decide_sent
from squidkeeper.policy.engine.compiled_policy import CompiledPolicy
from squidkeeper.policy.engine.decide import decide
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.language.bodies import WrittenPush
from squidkeeper.policy.language.model import (
    NO_REWRITE,
    NOT_OBSERVED,
    Action,
    PolicyTest,
)
from squidkeeper.policy.protocol.request import Malformed, Request, request_to

_WHY_NOT_NOW = "a rule has lapsed, or its 'when' does not hold now"
_NONE = "none"
_NOTHING = "nothing"
_LONGEST_CYCLE = timedelta(days=8)  # of a schedule
_EARLIEST = datetime.min.replace(tzinfo=UTC) + _LONGEST_CYCLE


def run_tests(policy: CompiledPolicy, now: datetime) -> tuple[list[Fault], list[Fault]]:
    """Run a policy's tests: give the faults, and as warnings the tests that fail only
    because of the time.
    """
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for test in policy.source.tests:
        wrong = _differences(test, _decide(policy, test, test.at or now))
        if not wrong:
            continue
        lapsed = test.at is None and _holds_at_another_time(policy, test, now)
        because = f" (only because of the time: {_WHY_NOT_NOW})" if lapsed else ""
        # a fault is one line
        url = test.url if test.url.isprintable() else repr(test.url)
        code = FaultCode.TEST_LAPSED if lapsed else FaultCode.TEST_FAILED
        fault = Fault(
            test.location,
            code,
            f"test {test.method} {url}: {'; '.join(wrong)}{because}",
        )
        (warnings if lapsed else faults).append(fault)
    return faults, warnings


def rules_of_failing_tests(
    policy: CompiledPolicy, before: CompiledPolicy, now: datetime
) -> frozenset[str]:
    """Name the rules that decided, by the policy before an edit, the tests that fail by
    the one after it.
    """
    failing = (
        test
        for test in policy.source.tests
        if _differences(test, _decide(policy, test, test.at or now))
    )
    return frozenset(_decide(before, test, test.at or now).rule for test in failing)


def _holds_at_another_time(
    policy: CompiledPolicy, test: PolicyTest, now: datetime
) -> bool:
    """Whether a test holds in some week: this one, or the one before anything
    expires.
    """
    if not policy.match(_request(test)).depends_on_time:
        return False
    first = min(
        (rule.expires for rule in policy.source.rules if rule.expires is not None),
        default=now,
    )
    before = max(min(first, now), _EARLIEST) - _LONGEST_CYCLE
    times = [at for start in (now, before) for at in _times(policy, start)]
    return any(not _differences(test, _decide(policy, test, at)) for at in times)


def _times(policy: CompiledPolicy, since: datetime) -> Iterator[datetime]:
    yield since
    yield from policy.timetable.changes(since, since + _LONGEST_CYCLE)


def _request(test: PolicyTest) -> Request | Malformed:
    client = None if test.client is None else str(test.client)
    request = request_to(test.method, test.url, client, test.user)
    if test.session is None or isinstance(request, Malformed):
        return request
    return request._replace(session=test.session)


def _decide(policy: CompiledPolicy, test: PolicyTest, at: datetime) -> Decision:
    decision = decide(policy, policy.match(_request(test)), at)
    return decide_sent(policy, decision, _sent(test)) if decision.by_body else decision


def _sent(test: PolicyTest) -> SentRequest:
    # late: few policies need it
    from squidkeeper.policy.bodies.written_request import (
        push_body,
        written_request,
    )

    body = push_body(test.body) if isinstance(test.body, WrittenPush) else test.body
    return written_request(test.method, test.url, body)


def _differences(test: PolicyTest, decision: Decision) -> list[str]:
    because = f" ({decision.reason})" if decision.reason else ""
    wrong = []
    got = Action.ASK if decision.asks and not decision.allowed else decision.action
    if test.expect is not (decision.action if test.expect is Action.DENY else got):
        wrong.append(f"expected {test.expect}, got {got} by {decision.rule}{because}")
    elif test.rule not in (None, decision.rule):
        wrong.append(
            f"expected {test.expect} by {test.rule}, got {got} by {decision.rule}{because}"
        )
    rewrite = decision.rewritten.rewrite.name if decision.rewritten else NO_REWRITE
    if test.rewrite not in (None, rewrite):
        wrong.append(
            f"expected rewrite {test.rewrite or _NONE}, got {rewrite or _NONE}"
        )
    credentials = tuple(credential.name for credential in decision.credentials)
    if test.credentials is not None and set(test.credentials) != set(credentials):
        wrong.append(
            f"expected credentials {_names(test.credentials)}, got {_names(credentials)}"
        )
    observed = decision.observed or NOT_OBSERVED
    if test.observed not in (None, observed):
        wrong.append(
            f"expected to observe {test.observed or _NOTHING}, observed {observed or _NOTHING}"
        )
    return wrong


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or _NONE
