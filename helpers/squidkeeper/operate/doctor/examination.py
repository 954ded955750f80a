"""Every check of `squidkeeper doctor`, those of this package and the exporter's
conditions, as text and as JSON.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import psutil

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import ago, printable, quantity
from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.base.layout import Layout
from squidkeeper.base.release import release
from squidkeeper.operate.doctor import (  # noqa: F401 - their checks are in CHECKS by then
    bodies,
    configuration,
    generations,
    machine,
    rendering,
    transparent,
)
from squidkeeper.operate.doctor.deep_result import (
    DeepFinding,
    DeepResult,
    keep_deep_result,
    read_deep_result,
)
from squidkeeper.operate.doctor.inspection import (
    CHECKS,
    FINDERS,
    Check,
    Found,
    Inspection,
    warning,
)
from squidkeeper.operate.setup.generations import number_in_force, numbers
from squidkeeper.services.exporter.conditions import CONDITIONS, Condition, Severity


def _of_condition(condition: Condition) -> Check:
    """Make a check of what the exporter reports: doctor runs the finder of the
    condition, or its own in place of it.
    """

    def find(inspection: Inspection) -> Iterator[Found]:
        yield from map(Found, condition.find(inspection.view) if condition.find else ())

    finder = FINDERS.get(condition.code, find)
    return Check(
        condition.code,
        condition.severity,
        condition.summary,
        condition.remedy,
        finder,
        as_root=True,
        running=condition.running,
    )


@warning(
    "accepted-unusable",
    "The file of accepted findings cannot be used",
    "Write one line for each finding that you accept: `CODE: REASON`. See squid/DOCTOR.md.",
)
def _acceptance_unusable(seen: Inspection) -> Iterator[Found]:
    file, codes = seen.layout.accepted, {check.code for check in ALL_CHECKS}
    try:
        unknown = [code for code in _accepted_findings(file) if code not in codes]
    except PatternError as error:
        yield Found(str(error), str(file))
        return
    yield from (Found(f"{code} is no code of a finding", str(file)) for code in unknown)


def _accepted_findings(file: Path) -> dict[str, str]:
    """Read which findings the operator accepts: each code, with the reason.

    `PatternError` says what is wrong.
    """
    try:
        text = file.read_bytes() if file.exists() else b"{}"
        accepted = msgspec.yaml.decode(text, type=dict[str, str] | None) or {}
    except OSError as error:
        raise PatternError(f"{error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PatternError(f"{error}: expected lines of CODE: REASON") from None
    if unexplained := [code for code, reason in accepted.items() if not reason.strip()]:
        raise PatternError(f"{unexplained[0]} has no reason: write why it is accepted")
    return accepted


_CONDITIONS: Final = tuple(
    _of_condition(condition)
    for condition in CONDITIONS
    if condition.find and not condition.only_exporter
)
# most others follow from a full disk
ALL_CHECKS: Final = (
    _CONDITIONS[0],
    *CHECKS,
    *_CONDITIONS[1:],
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found: the worst first, what is accepted last.

    `directives`: how many there are in squidkeeper.conf, and in squid.conf with its
    other files. `accepted`: codes that the operator accepts, each
    with the reason. `not_checked`: codes of checks that only root can make. `not_read`:
    files of Squid's configuration that this process may not read. `asks_helpers`:
    whether helpers are tried here, now or by the last deep examination.
    """

    layout: Layout
    made: int
    directives: Mapping[str, int]
    found: tuple[tuple[Check, tuple[Found, ...]], ...]
    accepted: Mapping[str, str] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    not_read: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()  # of squidkeeper.conf, in force
    asks_helpers: bool = True
    last_deep: DeepResult | None = None  # None: there was none, or this is one

    def failed(self, *, strict: bool = False) -> bool:
        """Whether anything critical was found that is not accepted; `strict`: a warning
        counts too.
        """
        counted = (
            (Severity.CRITICAL, Severity.WARNING) if strict else (Severity.CRITICAL,)
        )
        return any(
            check.severity in counted and check.code not in self.accepted
            for check, _ in self.found
        )


def examine(seen: Inspection, *, running: bool = True, deep: bool = False) -> Diagnosis:
    """Make each check; without `running` none that concerns processes.

    `deep`: also those that start helpers, and keep what they find. Else the result of
    the last such examination counts.
    """
    wanted = [
        check
        for check in ALL_CHECKS
        if (running or not check.running) and (deep or not check.deep)
    ]
    made = [check for check in wanted if seen.can_make(check)]
    found = [(check, found) for check in made if (found := _made(check, seen))]
    last = read_deep_result(seen.layout) if running and not deep else None
    if last:
        found += _found_before(last, seen.view.at)
    if deep and any(check.deep for check in made):
        _keep(seen, found)
    accepted = _accepted(seen)
    severities = [*Severity]
    return Diagnosis(
        seen.layout,
        len(made),
        _directives(seen),
        tuple(
            sorted(
                found,
                key=lambda pair: (
                    pair[0].code in accepted,
                    severities.index(pair[0].severity),
                ),
            )
        ),
        accepted,
        tuple(check.code for check in wanted if check not in made),
        tuple(
            f"{problem.place} {problem.text}"
            for problem in seen.conf.problems
            if problem.denied
        ),
        seen.parts,
        asks_helpers=running and not deep,
        last_deep=last,
    )


def _keep(seen: Inspection, found: list[tuple[Check, tuple[Found, ...]]]) -> None:
    findings = tuple(
        DeepFinding(check.code, one.detail, one.place)
        for check, cases in found
        if check.deep
        for one in cases
    )
    with suppress(OSError):  # `disk-full` and others tell why
        keep_deep_result(seen.layout, DeepResult(time.time(), findings))


def _found_before(
    last: DeepResult, now: datetime
) -> Iterator[tuple[Check, tuple[Found, ...]]]:
    at = ago(datetime.fromtimestamp(last.at, UTC), now)
    for check in ALL_CHECKS:
        found = tuple(
            Found(f"{printable(one.detail)} (tried {at})", printable(one.place))
            for one in last.findings
            if check.deep and one.code == check.code
        )
        if found:
            yield check, found


def _directives(seen: Inspection) -> dict[str, int]:
    counts = {"squidkeeper.conf": 0, "squid.conf": 0}
    for directive in seen.conf.directives:
        is_ours = directive.file == seen.layout.fragment
        counts["squidkeeper.conf" if is_ours else "squid.conf"] += 1
    return counts


def _accepted(seen: Inspection) -> dict[str, str]:
    try:
        return _accepted_findings(seen.layout.accepted)
    except PatternError:
        return {}


def _made(check: Check, seen: Inspection) -> tuple[Found, ...]:
    """Make a check. One that fails is a finding: what it is for may be there."""
    try:
        return tuple(check.find(seen))
    except (OSError, psutil.Error) as error:
        return (Found(f"this cannot be checked: {error}"),)
    except Exception as error:  # noqa: BLE001 - what is not foreseen may show a value, and must end no installation
        return (
            Found(
                f"this cannot be checked: {type(error).__name__}, a fault of squidkeeper's"
            ),
        )


def as_text(diagnosis: Diagnosis) -> str:
    """Write what was found: by severity, each check with its cases, and what to do."""
    lines: list[str] = []
    for check, found in diagnosis.found:
        lines.append(f"{check.severity}: {check.summary} ({check.code})")
        lines += [
            with_commands(_case(one), diagnosis.layout)
            for one in found
            if one.place or one.detail
        ]
        reason = diagnosis.accepted.get(check.code)
        lines += [
            f"    accepted: {reason}"
            if reason
            else f"    fix: {with_commands(check.remedy, diagnosis.layout)}",
            "",
        ]
    lines += [
        _summary(diagnosis),
        _generation(diagnosis.layout),
        f"Parts in force: {', '.join(diagnosis.parts) or 'none'}.",
    ]
    if diagnosis.asks_helpers:
        lines.append(with_commands(_last_deep(diagnosis.last_deep), diagnosis.layout))
    lines += [f"Not read: {text}." for text in diagnosis.not_read]
    if diagnosis.not_checked:
        lines.append(
            f"Not checked, as only root can: {', '.join(diagnosis.not_checked)}."
        )
    return "\n".join(lines)


def _generation(layout: Layout) -> str:
    kept = ", ".join(map(str, numbers(layout)))
    return f"Generation in force: {number_in_force(layout)}. Kept: {kept or 'none'}."


def _last_deep(last: DeepResult | None) -> str:
    if last is None:
        return (
            "Helpers were not tried: `squidkeeper doctor --deep` takes some 20 seconds."
        )
    at = datetime.fromtimestamp(last.at, UTC)
    return f"Helpers were tried {ago(at, datetime.now(UTC))}, by `squidkeeper doctor --deep`."


def as_json(diagnosis: Diagnosis) -> str:
    """Write the same as one object."""
    findings = [
        {
            "code": check.code,
            "severity": check.severity,
            "summary": check.summary,
            "place": finding.place,
            "detail": finding.detail,
            "remedy": with_commands(check.remedy, diagnosis.layout),
            "accepted": diagnosis.accepted.get(check.code),
        }
        for check, found in diagnosis.found
        for finding in found
    ]
    not_made = {"not_checked": diagnosis.not_checked, "not_read": diagnosis.not_read}
    return json.dumps(
        {
            "version": release(),
            "checks": diagnosis.made,
            "directives": diagnosis.directives,
            "parts": diagnosis.parts,
            "deep_at": diagnosis.last_deep.at if diagnosis.last_deep else None,
            "findings": findings,
            **not_made,
        }
    )


def _case(found: Found) -> str:
    return (
        f"    {found.place}: {found.detail}" if found.place else f"    {found.detail}"
    )


def _summary(diagnosis: Diagnosis) -> str:
    directives = quantity(sum(diagnosis.directives.values()), "directive")
    by_file = ", ".join(
        f"{number} in {where}" for where, number in diagnosis.directives.items()
    )
    checked = f"{quantity(diagnosis.made, 'check')} of {diagnosis.layout.conf} ({directives}: {by_file})"
    found = ", ".join(_counts(diagnosis)) or "No findings"
    return f"{found}: {checked}, its policy, processes and machine. squidkeeper {release()}."


def _counts(diagnosis: Diagnosis) -> Iterator[str]:
    numbers = Counter(
        "accepted" if check.code in diagnosis.accepted else check.severity
        for check, _ in diagnosis.found
    )
    yield from (
        f"{numbers[kind]} {kind}" for kind in (*Severity, "accepted") if numbers[kind]
    )
