"""Is the gateway well? (floor 5): each check of /healthz, as a pure function of what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from squidkeeper.counters import CounterFile, HelperStatus
from squidkeeper.metrics import JUDGES
from squidkeeper.policy_store.policy_watcher import PolicyState

PATIENCE_SECONDS: Final = 10.0  # for a sign of life, an answer, and an edit to reach every helper


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One thing that was looked at: whether it is well, and what was seen."""

    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class HealthInput:
    """What the checks go by, at one moment: seconds since 1970; `live` is the policy as the exporter has it."""

    now: float
    live: PolicyState
    slots: tuple[CounterFile, ...]
    record_problem: str


def checks(seen: HealthInput) -> tuple[HealthCheck, ...]:
    """Check everything."""
    helpers = running(seen.slots)
    found = [_policy(seen), *(check for status in helpers for check in _helper(seen, status)), _record(seen)]
    if not helpers:
        found.append(HealthCheck("helpers", True, "none runs: Squid starts one when it asks"))
    return tuple(found)


def running(slots: Iterable[CounterFile]) -> list[HelperStatus]:
    """List the helpers that run, as they tell it themselves."""
    return [slot.status for slot in slots if slot.running and slot.status]


def is_outdated(status: HelperStatus, live: PolicyState) -> bool:
    """Tell whether a helper judges by another revision than the exporter, which reads the same directory."""
    return status.helper in JUDGES and status.revision != live.revision


def is_stuck(status: HelperStatus, now: float) -> bool:
    """Tell whether a helper gives no sign of life, or has been at the same lines for too long."""
    busy = status.busy_since
    return now - status.beat > PATIENCE_SECONDS or (busy is not None and now - busy > PATIENCE_SECONDS)


def _policy(seen: HealthInput) -> HealthCheck:
    live = seen.live
    if live.ok:
        return HealthCheck("policy", True, f"revision {live.revision} is on disk and in force")
    goes_on = "everything is denied" if live.revision is None else f"revision {live.revision} goes on"
    return HealthCheck("policy", False, f"the policy on disk does not load, {goes_on}: {live.problem}")


def _helper(seen: HealthInput, status: HelperStatus) -> Iterator[HealthCheck]:
    live, name = seen.live, f"helper {status.helper}, process {status.pid}"
    if is_stuck(status, seen.now):
        yield HealthCheck(name, False, _silence(status, seen.now))
    elif not status.reload_ok:
        yield HealthCheck(name, False, f"the policy on disk does not load there, {_judges_by(status)}")
    elif is_outdated(status, live) and seen.now - (live.loaded or seen.now) > PATIENCE_SECONDS:
        yield HealthCheck(name, False, f"{_judges_by(status)} there, and here {live.revision}")
    else:
        yield HealthCheck(name, True, f"answers, revision {status.revision}" if status.helper in JUDGES else "answers")


def _judges_by(status: HelperStatus) -> str:
    return "everything is denied" if status.revision is None else f"revision {status.revision} is in force"


def _silence(status: HelperStatus, now: float) -> str:
    if now - status.beat > PATIENCE_SECONDS:
        return f"no sign of life for {now - status.beat:.0f} s"
    return f"has not answered for {now - (status.busy_since or now):.0f} s"


def _record(seen: HealthInput) -> HealthCheck:
    return HealthCheck("record", not seen.record_problem, seen.record_problem or "is read")
