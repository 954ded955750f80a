"""The tables of documents that the program has: findings of `doctor`, causes,
conditions, metrics, and codes of faults and warnings.

After a change of one: `python -m tests.documents.code_tables squid/DOCTOR.md
squid/TROUBLESHOOTING.md squid/observe/README.md policy/REFERENCE.md`.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from squidkeeper.base.metrics import METRICS
from squidkeeper.cli.manual_tables import cause_rows
from squidkeeper.operate.doctor.examination import ALL_CHECKS
from squidkeeper.policy.editor.fault_codes import fault_codes
from squidkeeper.services.exporter.conditions import CONDITIONS

TASKS: Final = (  # of the maintenance process
    "resolver",
    "own-addresses",
    "rotation",
    "tls",
    "transparent",
    "webhook",
)
_ALERTS: Final = Path(__file__).parents[2] / "squid/observe/alerts.yaml"
_TABLE: Final = re.compile(
    r"(?<=<!-- rendered: )([a-z]+) -->\n.*?(?=<!-- end -->)", re.DOTALL
)
_NONE: Final = "–"


def render(text: str) -> str:
    """Render the tables of a document again, and leave all else as it is."""
    return _TABLE.sub(lambda found: f"{found[1]} -->\n{_table(found[1])}", text)


def alerts() -> dict[str, str]:
    """Return the name of the alert of each condition that has one."""
    groups = yaml.safe_load(_ALERTS.read_text())["groups"]
    return {
        code: rule["alert"]
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
        for code in condition_codes(rule)
    }


def condition_codes(rule: Mapping[str, Any]) -> Iterator[str]:
    """Yield the conditions of an alert: one for each task where it has that label."""
    code: str = rule["labels"]["condition"]
    for task in TASKS if "$labels.task" in code else ("",):
        yield code.replace("{{ $labels.task }}", task)


def _table(name: str) -> str:
    rows = [*_TABLES[name]()]
    rows.insert(1, ["---"] * len(rows[0]))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines).replace("| --- |", "|---|").replace(" --- |", "---|") + "\n"


def _findings() -> Iterator[list[str]]:
    yield ["code", "severity", "what is wrong"]
    conditions = {condition.code for condition in CONDITIONS}  # another page's
    for check in sorted(ALL_CHECKS, key=lambda check: check.code):
        if check.code not in conditions:
            yield [f"`{check.code}`", check.severity, check.summary]


def _causes() -> Iterator[list[str]]:
    yield ["cause", "recognised by", "sentence"]
    for code, how, sentence, _ in cause_rows():
        name, _, likely = code.partition(" ")
        yield [f"`{name}` {likely}".strip(), how, sentence]


def _conditions() -> Iterator[list[str]]:
    yield ["condition", "severity", "alert", "means"]
    names = alerts()
    for one in CONDITIONS:
        alert = f"`{names[one.code]}`" if one.code in names else _NONE
        severity = f"{one.severity}, 503" if one.unhealthy else one.severity
        yield [f"`{one.code}`", severity, alert, one.summary]


def _metrics() -> Iterator[list[str]]:
    yield ["metric", "labels"]
    for metric in METRICS:
        labels = " ".join(f"`{label}`" for label in metric.labels) or _NONE
        yield [f"`{metric.name}`", labels]


def _codes(table: str, heading: str) -> Iterator[list[str]]:
    yield ["code", heading]
    for codes, meaning in fault_codes()[table].items():
        yield [re.sub(r"[\w-]*[a-z]", r"`\g<0>`", codes), meaning]


_TABLES: Final[Mapping[str, Callable[[], Iterator[list[str]]]]] = {
    "findings": _findings,
    "causes": _causes,
    "conditions": _conditions,
    "metrics": _metrics,
    "faults": partial(_codes, "faults", "what is wrong"),
    "warnings": partial(_codes, "warnings", "what is reported"),
}

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text()))
