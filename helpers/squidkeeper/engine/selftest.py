"""The tests that a policy carries (floor 3): it does not load while one of them fails."""

from __future__ import annotations

from datetime import UTC, datetime

from squidkeeper.engine.compiled_policy import CompiledPolicy
from squidkeeper.engine.decide import decide
from squidkeeper.engine.decision import Decision
from squidkeeper.policy.faults import Fault, FaultCode
from squidkeeper.policy.model import NO_REWRITE, PolicyTest
from squidkeeper.protocol.request import request_to

_NONE = "none"
_BEFORE_ANY_EXPIRY = datetime.min.replace(tzinfo=UTC)


def run_tests(policy: CompiledPolicy, now: datetime) -> tuple[list[Fault], list[Fault]]:
    """Run a policy's tests: give the faults, and as warnings the tests that fail only because a rule has lapsed."""
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for test in policy.source.tests:
        wrong = _differences(test, _decide(policy, test, test.at or now))
        if not wrong:
            continue
        lapsed = test.at is None and not _differences(test, _decide(policy, test, _BEFORE_ANY_EXPIRY))
        because = " (only because a rule has lapsed)" if lapsed else ""
        url = test.url if test.url.isprintable() else repr(test.url)  # a fault is one line
        code = FaultCode.TEST_LAPSED if lapsed else FaultCode.TEST_FAILED
        fault = Fault(test.location, code, f"test {test.method} {url}: {'; '.join(wrong)}{because}")
        (warnings if lapsed else faults).append(fault)
    return faults, warnings


def _decide(policy: CompiledPolicy, test: PolicyTest, at: datetime) -> Decision:
    client = None if test.client is None else str(test.client)
    request = request_to(test.method, test.url, client, test.user)
    return decide(policy, policy.match(request), at)


def _differences(test: PolicyTest, decision: Decision) -> list[str]:
    because = f" ({decision.reason})" if decision.reason else ""
    wrong = []
    if decision.action is not test.expect:
        wrong.append(f"expected {test.expect}, got {decision.action} by {decision.rule}{because}")
    elif test.rule not in (None, decision.rule):
        wrong.append(f"expected {test.expect} by {test.rule}, got {decision.action} by {decision.rule}{because}")
    rewrite = decision.rewritten.rewrite.name if decision.rewritten else NO_REWRITE
    if test.rewrite not in (None, rewrite):
        wrong.append(f"expected rewrite {test.rewrite or _NONE}, got {rewrite or _NONE}")
    credentials = tuple(credential.name for credential in decision.credentials)
    if test.credentials is not None and set(test.credentials) != set(credentials):
        wrong.append(f"expected credentials {_names(test.credentials)}, got {_names(credentials)}")
    return wrong


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or _NONE
