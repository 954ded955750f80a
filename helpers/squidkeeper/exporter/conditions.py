"""Is anything wrong, and what to do? (floor 5): pure functions of what the status page shows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from squidkeeper.exporter.certificate import Certificate
from squidkeeper.exporter.disks import Disk
from squidkeeper.exporter.status import (
    LAST_MINUTES,
    AccessLogStatus,
    AnswerStatus,
    GatewayStatus,
    PolicyStatus,
    SecretStatus,
    SquidStatus,
)
from squidkeeper.formatting import ago, byte_size, duration, quantity, timestamp
from squidkeeper.maintenance_status import MaintenanceStatus
from squidkeeper.policy.faults import FaultCode

_CA_WARNING = timedelta(days=30)
_DRIFT_IS_NEWS = timedelta(days=1)
_WARNINGS_SHOWN = 5
_FEW_ANSWERS = 10
_BACKLOG_BYTES = 10_000_000
_RELOAD_TAKES = timedelta(seconds=5)  # helpers look several times a second, and answer kept verdicts for another second


class Urgency(StrEnum):
    """How soon something has to be done."""

    NOW = "now"  # requests fail, or pass that should not
    SOON = "soon"  # nothing fails yet, or only what is seen of it


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is wrong, and what to do about it; `section` is where the page says more."""

    urgency: Urgency
    what: str
    remedy: str
    section: str


def conditions(status: GatewayStatus) -> tuple[Condition, ...]:
    """List what is wrong, the most urgent first."""
    found = [
        *_squid_troubles(status.squid),
        *_policy_troubles(status.policy),
        *_unanswered_troubles(status),
        *_upstream_troubles(status.answers),
        *_drift_troubles(status),
        *_helper_troubles(status),
        *_secret_troubles(status.secrets),
        *_ca_troubles(status.ca, status.at),
        *_record_troubles(status.record),
        *_disk_troubles(status.disks),
        *_upkeep_troubles(status.upkeep),
        *_throttle_troubles(status),
    ]
    if not status.state_writable:
        found.append(_STATE_TROUBLE)
    return tuple(sorted(found, key=lambda trouble: trouble.urgency is not Urgency.NOW))


_STATE_TROUBLE = Condition(
    Urgency.SOON,
    "The exporter cannot keep its counts on disk.",
    "Make room, or the state folder writable for it. Requests are not affected; a restart goes on from older counts.",
    "record",
)
_CA_ENDS = (
    "Make a new one before it ends, have the clients trust it beside the old one, and run `./install.sh --ca-dir DIR`"
    " with it."
)
_CA_ENDED = "Make a new one now, have the clients trust it, and run `./install.sh --ca-dir DIR` with it."
_FULL = {
    "log": "Squid ends when it cannot write its log.",
    "state": "Without room no certificate for a new host is made, and nothing is counted over a restart.",
}
_MAINTENANCE_LOG = "See `journalctl -u squidkeeper-maintenance`, or maintenance.log beside access.log."
_NO_UPKEEP = Condition(
    Urgency.NOW,
    "The maintenance process gives no sign of life: names that Squid asks for may fail, Squid's logs are not"
    " bounded, and new addresses of the gateway stay open.",
    f"Start it: `systemctl restart squidkeeper-maintenance`, or run install.sh again. {_MAINTENANCE_LOG}",
    "maintenance",
)
_TASK_FAILS = {
    "resolver": (Urgency.NOW, "The gateway's resolver does not work: names that Squid asks for may fail."),
    "own-addresses": (Urgency.NOW, "New addresses of the gateway itself stay open to clients."),
    "rotation": (Urgency.SOON, "Squid's logs are not bounded."),
}
_READ_BY = (
    " Squid's account must be able to read the file: mode 0640, that account's group, and its folders open to it."
)


def _squid_troubles(squid: SquidStatus) -> Iterable[Condition]:
    if not squid.up:
        what = f"Squid does not answer on {squid.address}{_because(squid.problem)}."
        yield Condition(Urgency.NOW, what, "See `systemctl status squid` and the end of its cache.log.", "squid")
    elif squid.problem:
        what = f"Squid's own counters cannot be read{_because(squid.problem)}."
        remedy = (
            "Requests are not affected. The block on Squid's own counters in squid.conf as installed opens them to"
            " this machine."
        )
        yield Condition(Urgency.SOON, what, remedy, "squid")


def _policy_troubles(policy: PolicyStatus) -> Iterable[Condition]:
    check = f"`squidkeeper check --policy {shlex.quote(str(policy.directory))}`"
    remedy = f"Mend it, then run {check}."
    if any(fault.code is FaultCode.PERMISSION_DENIED for fault in policy.faults):
        remedy += " As root it finds nothing wrong: run it as the account that the fault names."
    if policy.revision is None:
        yield Condition(Urgency.NOW, "No policy has loaded: everything is denied.", remedy, "policy")
    elif policy.faults:
        faults = quantity(len(policy.faults), "fault")
        what = f"The policy on disk does not load ({faults}); revision {policy.revision} goes on."
        yield Condition(Urgency.NOW, what, remedy, "policy")
    for warning in policy.warnings[:_WARNINGS_SHOWN]:
        yield Condition(
            Urgency.SOON,
            f"A warning of the policy: {warning}.",
            f"Mend it, or leave it if it is meant: {check} shows all.",
            "policy",
        )


def _unanswered_troubles(status: GatewayStatus) -> Iterable[Condition]:
    times = [rule.last_matched for rule in status.rules if rule.built_in and rule.name == "policy-unavailable"]
    for at in times if status.policy.revision else ():
        if at and status.at - at < LAST_MINUTES:
            what = f"Requests are denied because no helper answers (policy-unavailable), last {ago(at, status.at)}."
            remedy = (
                "cache.log says why: is the program that squidkeeper.conf names there, and may Squid's account run it?"
                " After a single `squid -k reconfigure` or kill it ends by itself."
            )
            yield Condition(Urgency.NOW, what, remedy, "helpers")


def _upstream_troubles(answers: AnswerStatus) -> Iterable[Condition]:
    if answers.total >= _FEW_ANSWERS and 2 * answers.failed > answers.total:
        what = f"{answers.failed} of the last {answers.total} requests that were let through failed with a 5xx."
        remedy = (
            "`squidkeeper log --status 5xx --since 5m` shows each, cache.log says more: does the gateway's DNS answer"
            " (`getent hosts NAME`), and so a `cache_peer` of local.conf?"
        )
        yield Condition(Urgency.NOW, what, remedy, "squid")


def _drift_troubles(status: GatewayStatus) -> Iterable[Condition]:
    fresh = [finding for finding in status.drift.latest if status.at - finding.time < _DRIFT_IS_NEWS]
    if fresh:
        what = f"What was served is not what the policy says, last {ago(fresh[0].time, status.at)}."
        yield Condition(Urgency.NOW, what, "`squidkeeper log --drift` shows each: is squid.conf as installed?", "drift")


def _helper_troubles(status: GatewayStatus) -> Iterable[Condition]:
    stuck = [str(helper.pid) for helper in status.helpers if helper.stuck]
    if stuck:
        what = f"{quantity(len(stuck), 'helper')} without a sign of life: requests that wait for it hang."
        yield Condition(Urgency.NOW, what, f"Squid starts a new one after `kill -9 {' '.join(stuck)}`.", "helpers")
    outdated = [helper for helper in status.helpers if helper.outdated]
    loaded = status.policy.loaded_at
    if not outdated or (loaded is not None and status.at - loaded <= _RELOAD_TAKES):
        return
    remedy = "See cache.log for the cause; `squid -k reconfigure` starts new ones."
    if status.policy.faults:  # new ones would have no policy
        remedy = "Mend the policy on disk: helpers take it up by themselves."
    if without := [helper for helper in outdated if helper.revision is None]:
        what = f"{quantity(len(without), 'helper')} without a policy: all that it is asked is denied."
        yield Condition(Urgency.NOW, what, remedy, "helpers")
    if other := len(outdated) - len(without):
        what = f"{quantity(other, 'helper')} judging by another revision than the one on disk."
        yield Condition(Urgency.NOW, what, remedy, "helpers")


def _secret_troubles(secrets: Iterable[SecretStatus]) -> Iterable[Condition]:
    missing = [secret for secret in secrets if secret.problem]
    hint = _READ_BY if any(secret.code is FaultCode.SECRET_UNREADABLE for secret in missing) else ""
    if len(missing) > 1:
        what = f"{len(missing)} secrets are unavailable: requests that need them are denied."
        names = ", ".join(secret.name for secret in missing[:10])
        yield Condition(Urgency.NOW, what, f"See below: {names}.{hint}", "secrets")
    for secret in missing if len(missing) == 1 else ():
        why = (secret.problem or "").removeprefix(f"secret {secret.name}: ")
        what = f"The secret {secret.name} is unavailable: requests that need it are denied."
        yield Condition(Urgency.NOW, what, f"{why[:1].upper()}{why[1:]}.{hint}", "secrets")


def _ca_troubles(ca: Certificate, now: datetime) -> Iterable[Condition]:
    if ca.not_after is None:
        yield Condition(Urgency.SOON, f"The CA cannot be read{_because(ca.problem)}.", f"See {ca.file}.", "ca")
    elif ca.not_after <= now:
        yield Condition(
            Urgency.NOW, f"The CA has ended on {timestamp(ca.not_after)}: no https passes.", _CA_ENDED, "ca"
        )
    elif ca.not_after - now < _CA_WARNING:
        left = duration((ca.not_after - now).total_seconds())
        yield Condition(Urgency.SOON, f"The CA ends in {left}; no https passes after that.", _CA_ENDS, "ca")


def _record_troubles(record: AccessLogStatus) -> Iterable[Condition]:
    if not record.readable:
        what = "The access log is gone, or cannot be read: what is served is not counted."
        remedy = f"Let the exporter's account read {record.file}; if it was deleted or renamed: squid -k rotate."
        yield Condition(Urgency.NOW, what, remedy, "record")
    elif record.backlog_bytes > _BACKLOG_BYTES:
        what = f"{byte_size(record.backlog_bytes)} of the access log are not counted yet: the figures here are behind."
        yield Condition(Urgency.SOON, what, "Give the exporter time, or more of a processor.", "record")


def _disk_troubles(disks: Iterable[Disk]) -> Iterable[Condition]:
    for disk in disks:
        if disk.is_low:
            what = f"{byte_size(disk.available_bytes)} of {byte_size(disk.size_bytes)} left on the disk of {disk.path}."
            remedy = f"Make room: `du -xh {shlex.quote(str(disk.path))} | sort -h | tail`. {_FULL[disk.folder]}"
            yield Condition(Urgency.SOON, what, remedy, "record")


def _upkeep_troubles(upkeep: MaintenanceStatus) -> Iterable[Condition]:
    if not upkeep.runs:
        yield _NO_UPKEEP
        return
    for task, failure in upkeep.failures.items():
        if failure:
            urgency, what = _TASK_FAILS.get(task, (Urgency.SOON, f"The maintenance task {task} fails."))
            yield Condition(urgency, what, f"It reports: {failure}. {_MAINTENANCE_LOG}", "maintenance")


def _throttle_troubles(status: GatewayStatus) -> Iterable[Condition]:
    if status.throttle_missing_since:
        what = f"No throttle runs, although a denial asked for it {ago(status.throttle_missing_since, status.at)}."
        remedy = (
            "Denials stay denials, but nothing bounds how fast a client fills the log. cache.log says why Squid cannot"
            " start `squidkeeper throttle`; `squid -k reconfigure` tries again."
        )
        yield Condition(Urgency.SOON, what, remedy, "helpers")


def _because(problem: str | None) -> str:
    return f" ({problem})" if problem else ""
