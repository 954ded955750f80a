"""From what was counted and seen to the status page's rows (floor 5)."""

from __future__ import annotations

import os
from collections import Counter as Multiset
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from squidkeeper.credentials import SecretStore
from squidkeeper.errors import SecretUnavailable
from squidkeeper.exporter.collector import Snapshot
from squidkeeper.exporter.counts import RequestCounts
from squidkeeper.exporter.health import is_outdated, is_stuck
from squidkeeper.exporter.status import (
    LAST_MINUTES,
    AccessLogStatus,
    AnswerStatus,
    DriftStatus,
    GatewayStatus,
    HelperProcessStatus,
    PolicyStatus,
    RuleStatus,
    SecretStatus,
    SquidStatus,
)
from squidkeeper.metrics import CONNECT_CLASS, DECISIONS, JUDGES, PROTOCOL_ERRORS, THROTTLE
from squidkeeper.policy.faults import SECRET_UNAVAILABLE, Fault, FaultCode, Location
from squidkeeper.policy.lint import lint
from squidkeeper.policy.model import VERDICT_NAMES, Action, Policy
from squidkeeper.record.record import format_time

_TUNNEL = "tunnel"
_START_SECONDS = 5.0  # within which Squid has started a helper that it needs
_DENIED_BY_SQUID = frozenset({"policy-unavailable", "authority-mismatch"})  # without the throttle
_ANSWERS = frozenset({DECISIONS.name, PROTOCOL_ERRORS.name})


def status_of(view: Snapshot, directory: Path, access_log: Path, squid: str) -> GatewayStatus:
    """Fill the page: the paths are as the exporter's options name them, `squid` is its ADDRESS:PORT."""
    return GatewayStatus(
        at=datetime.fromtimestamp(view.now, UTC),
        version=version("squidkeeper"),
        policy=_policy(view, directory),
        rules=tuple(_rules(view.policy, view.kept.counts)),
        denials=view.kept.denials,
        helpers=tuple(_helpers(view)),
        secrets=tuple(_secrets(view.policy)),
        ca=view.certificate,
        record=_record(view, access_log),
        drift=_drift(view),
        squid=SquidStatus(squid, up=view.squid.answers, problem=view.squid.problem),
        upkeep=view.upkeep,
        answers=_answers(view),
        state_writable=view.state_writable,
        disks=view.disks,
        throttle_missing_since=_throttle_missing_since(view),
    )


def _policy(view: Snapshot, directory: Path) -> PolicyStatus:
    live = view.live
    action = view.policy.default_action if view.policy else Action.DENY
    faults = (
        () if live.ok else live.faults or (Fault(Location(str(directory)), FaultCode.INTERNAL_ERROR, live.problem),)
    )
    return PolicyStatus(directory, live.revision, _moment(live.loaded), str(action), faults, tuple(_warnings(view)))


def _warnings(view: Snapshot) -> Iterator[Fault]:
    """List the warnings of `check`, without those of secrets (the variables are Squid's own) and of access (root's)."""
    yield from (warning for warning in view.live.warnings if warning.code not in SECRET_UNAVAILABLE)
    if view.policy:
        yield from lint(view.policy, datetime.fromtimestamp(view.now, UTC))


def _rules(policy: Policy | None, counts: RequestCounts) -> Iterator[RuleStatus]:
    """List the policy's rules, then the verdicts that are no rule's and were seen."""
    hits: Multiset[tuple[str, str]] = Multiset()
    for (_, name, verdict, method, _), number in counts.requests:
        hits[name, _TUNNEL if method == CONNECT_CLASS else verdict] += number
    for (_, name), number in counts.tunnels:
        hits[name, _TUNNEL] += number
    for rule in policy.rules if policy else ():
        yield _row(rule.name, rule.action, hits, counts, expires=rule.expires, owner=rule.owner)
    for name in sorted(VERDICT_NAMES & {name for name, _ in hits}):
        action = policy.default_action if policy and name == "default" else Action.DENY
        yield _row(name, action, hits, counts, built_in=True)


def _row(
    name: str,
    action: Action,
    hits: Mapping[tuple[str, str], int],
    counts: RequestCounts,
    *,
    expires: datetime | None = None,
    owner: str | None = None,
    built_in: bool = False,
) -> RuleStatus:
    return RuleStatus(
        name=name,
        action=str(action),
        allowed=hits.get((name, "allow"), 0),
        denied=hits.get((name, "deny"), 0),
        tunnels=hits.get((name, _TUNNEL), 0),
        last_matched=_logged(counts.last_matched.get(name, "")),
        expires=expires,
        owner=owner,
        built_in=built_in,
    )


def _helpers(view: Snapshot) -> Iterator[HelperProcessStatus]:
    for slot in view.slots:
        status = slot.status
        if slot.running and status:
            yield HelperProcessStatus(
                kind=status.helper,
                pid=status.pid,
                started=datetime.fromtimestamp(status.started, UTC),
                revision=status.revision,
                outdated=is_outdated(status, view.live),
                judges=status.helper in JUDGES,
                stuck=is_stuck(status, view.now),
                last_beat=datetime.fromtimestamp(status.beat, UTC),
                answered=round(sum(value for name, _, value in slot.samples if name in _ANSWERS)),
            )


def _secrets(policy: Policy | None) -> Iterator[SecretStatus]:
    """List the secrets. Of a variable nothing is said: it is Squid's environment that counts, not this process's."""
    if policy is None:
        return
    store = SecretStore(policy.secrets, os.environ)
    for name, source in policy.secrets.items():
        users = tuple(credential.name for credential in policy.credentials if name in credential.secrets)
        if source.file is None:
            yield SecretStatus(name, f"env {source.env}", None, users)
        else:
            code, problem = _unavailable(store, name)
            yield SecretStatus(name, f"file {source.file}", problem, users, code)


def _unavailable(store: SecretStore, name: str) -> tuple[FaultCode, str] | tuple[None, None]:
    try:
        store.get(name)
    except SecretUnavailable as error:
        return error.code, str(error)
    return None, None


def _record(view: Snapshot, access_log: Path) -> AccessLogStatus:
    counts = view.kept.counts
    return AccessLogStatus(
        file=access_log,
        readable=view.record_readable,
        backlog_bytes=view.backlog_bytes,
        last_line=_logged(counts.last_line),
        invalid_lines=counts.invalid_lines,
        lost=counts.lost,
        counted_since=_logged(view.kept.since),
    )


def _drift(view: Snapshot) -> DriftStatus:
    counts = view.kept.counts
    return DriftStatus(
        sum(number for _, number in counts.drift), counts.drift_unchecked, view.kept.drift, counts.drift_cut
    )


def _answers(view: Snapshot) -> AnswerStatus:
    since = format_time(datetime.fromtimestamp(view.now, UTC) - LAST_MINUTES)
    fresh = [answer.failed for answer in view.answers if answer.time >= since]
    return AnswerStatus(len(fresh), sum(fresh))


def _throttle_missing_since(view: Snapshot) -> datetime | None:
    """Tell when a denial last asked for a throttle although none runs; None where one runs, or none was asked for.

    Squid starts it at the first denial after a start or reconfigure, as it does the helpers that judge. So only denials
    count that one of these, which still runs, can have decided; policy-unavailable and a 503 can be Squid's own.
    """
    running = [slot.status for slot in view.slots if slot.running and slot.status]
    judging = [status.started for status in running if status.helper in JUDGES]
    if not judging or any(status.helper == THROTTLE for status in running):
        return None
    since = datetime.fromtimestamp(max(view.now - LAST_MINUTES.total_seconds(), min(judging) + _START_SECONDS), UTC)
    until = datetime.fromtimestamp(view.now - _START_SECONDS, UTC)
    times = (denial.time for denial in view.kept.denials if denial.rule not in _DENIED_BY_SQUID)
    return max((at for at in times if since < at < until), default=None)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _logged(time: str) -> datetime | None:
    return datetime.fromisoformat(time) if time else None
