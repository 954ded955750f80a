"""The tables of the program that stand in manual pages: codes of faults, findings,
causes, conditions and metrics.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from squidkeeper.base.metrics import METRICS
from squidkeeper.operate.doctor.examination import ALL_CHECKS
from squidkeeper.policy.editor.fault_codes import manual_rows
from squidkeeper.record.why import CAUSES
from squidkeeper.services.exporter.conditions import CONDITIONS

Rows = Callable[[], Iterator[tuple[str, str]]]

# What a sentence of a cause says in a table, where there is no record.
PLACES: Final[Mapping[str, str]] = {
    **{
        name: name.upper()
        for name in (
            "authority",
            "clients",
            "error",
            "fault",
            "found",
            "host",
            "origins",
            "rule",
            "sni",
            "status",
            "told",
            "tunnel",
            "user",
        )
    },
    "address": " (ADDRESS)",
    "at": " (FILE:LINE)",
    "reason": ": REASON",
}
_OF_ENDED: Final = {**PLACES, "reason": "REASON"}


def cause_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield code, how it is recognised, sentence and remedy of each cause."""
    for cause in CAUSES:
        facts = _OF_ENDED if cause.code == "squid-ended" else PLACES
        code = f"{cause.code} (likely)" if cause.likely else cause.code
        yield code, cause.how, cause.say(facts), cause.advise(facts)


def _causes() -> Iterator[tuple[str, str]]:
    for code, how, sentence, remedy in cause_rows():
        yield code, f"{_sentence(how)} {sentence} {remedy}"


def _findings() -> Iterator[tuple[str, str]]:
    for check in sorted(ALL_CHECKS, key=lambda check: check.code):
        yield (
            f"{check.code} ({check.severity})",
            f"{_sentence(check.summary)} {check.remedy}",
        )


def _conditions() -> Iterator[tuple[str, str]]:
    for condition in CONDITIONS:
        unhealthy = " /healthz answers 503." if condition.unhealthy else ""
        yield (
            f"{condition.code} ({condition.severity})",
            f"{_sentence(condition.summary)}{unhealthy}",
        )


def _metrics() -> Iterator[tuple[str, str]]:
    for metric in METRICS:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        yield f"{metric.name}{labels}", metric.help


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."


TABLES: Final[Mapping[str, Mapping[str, Rows]]] = {  # by command and title
    "check": {
        "FAULTS": partial(manual_rows, "faults"),
        "WARNINGS": partial(manual_rows, "warnings"),
    },
    "doctor": {"FINDINGS": _findings},
    "exporter": {"CONDITIONS": _conditions, "METRICS": _metrics},
    "why": {"CAUSES": _causes},
}
