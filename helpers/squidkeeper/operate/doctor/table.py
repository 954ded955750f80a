"""Every check of `squidkeeper doctor`, in one table: those of this package, and the exporter's conditions.

A check of what the exporter reports has no row of its own: doctor runs the finder of the condition.
"""

from collections.abc import Iterator
from typing import Final

from squidkeeper.operate.doctor import configuration, machine  # noqa: F401 - their checks are in CHECKS by then
from squidkeeper.operate.doctor.check import CHECKS, Check, FindFaults, Found, warning
from squidkeeper.operate.doctor.inspection import Inspection
from squidkeeper.services.exporter.conditions import CONDITIONS, Condition, Severity

# What only the exporter can tell, over time, or what a check of this package tells better.
_EXPORTERS_ALONE: Final = frozenset({"access-log-behind", "requests-failing", "state-not-writable"})
_OF_A_RUNNING_GATEWAY: Final = frozenset(
    {
        *("squid-down", "squid-counters-unreadable", "access-log-unreadable"),
        *("maintenance-not-running", "secrets-not-fetched", "export-behind"),
    }
)
_PAST: Final = frozenset({"squid-crashed"})  # told for a day, which must not keep a gateway drained that serves again


# What the exporter's finder would tell twice, or only where a process runs.
_FINDERS: Final[dict[str, FindFaults]] = {
    "secret-unavailable": machine.unavailable_secrets,
    "webhook-failing": machine.webhook_failing,
    "quota-store-unavailable": machine.quota_store_unavailable,
}


def _condition(one: Condition) -> Check:
    def find(inspection: Inspection) -> Iterator[Found]:
        yield from map(Found, one.find(inspection.view) if one.find else ())

    running = one.code in _OF_A_RUNNING_GATEWAY
    severity = Severity.WARNING if one.code in _PAST else one.severity
    return Check(
        one.code, severity, one.summary, one.remedy, _FINDERS.get(one.code, find), as_root=True, running=running
    )


@warning(
    "accepted-unusable",
    "The file of accepted findings cannot be used",
    "Write one line for each finding that you accept: `CODE: REASON`. See squid/DOCTOR.md.",
)
def _acceptance_unusable(one: Inspection) -> Iterator[Found]:
    return machine.acceptance_unusable(one, {check.code for check in ALL_CHECKS})


_CONDITIONS: Final = tuple(_condition(one) for one in CONDITIONS if one.find and one.code not in _EXPORTERS_ALONE)
ALL_CHECKS: Final = (_CONDITIONS[0], *CHECKS, *_CONDITIONS[1:])  # most others follow from a full disk
