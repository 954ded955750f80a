"""What Prometheus and Grafana are given in squid/observe/: by their own tools and
schemas, and by the metrics here.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from pydantic import ConfigDict, TypeAdapter, ValidationError

from squidkeeper.base.helper_metrics import MetricKind
from squidkeeper.base.metrics import METRICS
from squidkeeper.cli import main
from squidkeeper.services.exporter.collector import COUNTERS
from squidkeeper.services.exporter.conditions import CONDITIONS
from tests.documents.code_tables import TASKS, alerts, render

OBSERVE = Path(__file__).parents[2] / "squid/observe"
RULES = [
    rule
    for file in ("alerts.yaml", "recording.yaml")
    for group in yaml.safe_load((OBSERVE / file).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((OBSERVE / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments],
        cwd=OBSERVE,
        capture_output=True,
        text=True,
        check=False,
    )


# ── The alerts ────────────────────────────────────────────────────────────────────────


@pytest.mark.system
def test_promtool_accepts_rules_and_configuration() -> None:
    for arguments in (
        (
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            "alerts.yaml",
            "recording.yaml",
        ),
        ("check", "config", "prometheus.yaml"),
    ):
        done = promtool(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.system
@pytest.mark.parametrize("cases", ["alerts_test.yaml", "recording_test.yaml"])
def test_the_cases_of_the_rules_hold(cases: str) -> None:
    done = promtool("test", "rules", cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = [
        (name, bool(case["exp_samples"]))
        for test in yaml.safe_load((OBSERVE / "alerts_test.yaml").read_text())["tests"]
        for case in test["promql_expr_test"]
        for name in re.findall(
            r'ALERTS\{alertname="(\w+)", alertstate="firing"', case["expr"]
        )
    ]
    assert set(cases) == {(name, fires) for name in ALERTS for fires in (True, False)}


def test_each_recording_rule_has_a_case() -> None:
    cases = yaml.safe_load((OBSERVE / "recording_test.yaml").read_text())["tests"]
    asked = {
        case["expr"].partition("{")[0]
        for test in cases
        for case in test["promql_expr_test"]
    }
    assert {
        rule["record"]
        for rule in RULES
        if rule.get("record", "").startswith(("gateway:", "job:"))
    } <= asked


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_of_which_gateway_how_bad_it_is_what_it_means_and_what_to_do(
    name: str,
) -> None:
    """It names the gateway by its label; by its address where the scrape configuration
    gives it none.
    """
    rule = ALERTS[name]
    assert name.startswith("Squidkeeper")
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    said = [
        line.partition(":")[0] for line in rule["annotations"]["runbook"].splitlines()
    ]
    assert said == ["Means", "Look first", "Fix"]
    assert "`" in rule["annotations"]["runbook"], "a command to begin with"
    if name != "SquidkeeperCasDiffer":  # which is about all
        assert (
            "{{ or $labels.gateway $labels.instance" in rule["annotations"]["summary"]
        )
        assert "by (job, instance" not in rule["expr"], "the label is lost"


TABLE = {
    condition.code: (condition.severity, condition.after, condition.summary)
    for condition in CONDITIONS
    if condition.after is not None
}


def conditions_of(
    rule: dict[str, typing.Any],
) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """The conditions that an alert is about, as the alert has them; one for each task
    where it has that label.
    """
    labels = rule["labels"]
    for task in TASKS if "$labels.task" in labels["condition"] else ("",):
        code, summary = (
            text.replace("{{ $labels.task }}", task)
            for text in (labels["condition"], rule["annotations"]["summary"])
        )
        yield (
            code,
            (
                labels["severity"],
                rule.get("for", "0m"),
                re.split(r" on \{\{[^}]*gateway", summary)[0],
            ),
        )


def test_the_alerts_are_as_the_table_of_conditions_has_them() -> None:
    told = [condition for rule in ALERTS.values() for condition in conditions_of(rule)]
    assert dict(told) == TABLE
    assert len(told) == len(TABLE)


def commands() -> Iterator[list[str]]:
    """The squidkeeper commands that runbooks and README name, as they are typed."""
    texts = [rule["annotations"]["runbook"] for rule in ALERTS.values()] + [
        (OBSERVE / "README.md").read_text()
    ]
    for text in texts:
        for command in re.findall(r"`(?:[^`]*\s)?(squidkeeper [a-z][^`|]*)`", text):
            yield shlex.split(re.sub(r"\{\{.*?\}\}", "X", command).partition(">")[0])[
                1:
            ]


def test_every_command_that_a_runbook_names_has_these_options() -> None:
    found = list(commands())
    assert len(found) > 10
    for words in found:
        context = click.Context(main, info_name="squidkeeper")
        command = main.get_command(context, words[0])
        assert command is not None, words
        # raises NoSuchOption
        command.make_parser(click.Context(command)).parse_args(words[1:])


# ── Names and labels ──────────────────────────────────────────────────────────────────

TARGET_LABELS = {"job", "gateway", "instance"}
LABELS = {name: set(metric.labels) for metric in METRICS for name in [metric.name]}
LABELS |= {
    metric.name + "_bucket": {*metric.labels, "le"}
    for metric in METRICS
    if metric.kind == MetricKind.HISTOGRAM
}
LABELS |= {name: set() for _, name, _ in COUNTERS} | {"squid_up": set(), "up": set()}
LABELS |= {
    name: set(re.findall(r"\w+", "".join(re.findall(r"^\w+ by \(([^)]*)\)", expr))))
    for name, expr in RECORDED.items()
}


def walk(expression: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    """The expression and everything in it."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expression, found.append)
    yield from found


def check_names(expression: str) -> None:
    """Each metric exists, and has each label that is selected, grouped by or matched
    on.
    """
    whole = promql_parser.parse(re.sub(r"\$__\w+", "5m", expression))
    there = set(TARGET_LABELS)
    for part in walk(whole):
        if isinstance(part, promql_parser.VectorSelector):
            selected = {matcher.name for matcher in part.matchers.matchers}
            assert part.name in LABELS, f"{part.name} is no metric"
            assert selected <= LABELS[part.name] | TARGET_LABELS, (part.name, selected)
            there |= LABELS[part.name]
    grouped = set(
        re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)))
    )
    assert grouped <= there, f"{grouped - there} is no label here"


@pytest.mark.parametrize(
    "query", [*(rule["expr"] for rule in RULES), *(query for _, query in QUERIES)]
)
def test_a_rule_and_a_panel_ask_for_metrics_and_labels_that_there_are(
    query: str,
) -> None:
    check_names(query)


def test_every_metric_is_in_an_alert_or_on_the_dashboard() -> None:
    """A metric that nobody reads need not exist."""
    asked = " ".join(
        [*(rule["expr"] for rule in RULES), *(query for _, query in QUERIES)]
    )
    assert [metric.name for metric in METRICS if metric.name not in asked] == []


# ── The dashboard ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def dashboard() -> Dashboard:
    """The dashboard as Grafana's own library reads it."""
    plugins.register_default_plugins()
    return Dashboard.from_json(DASHBOARD)


def test_grafanas_schema_knows_every_field_of_the_dashboard_with_its_type(
    dashboard: Dashboard,
) -> None:
    """What the schema does not know is lost on the way."""
    assert (
        list(lost(DASHBOARD, json.loads(JSONEncoder().encode(dashboard)), "dashboard"))
        == []
    )
    assert list(wrong_types(dashboard, "dashboard")) == []


def lost(before: object, after: object, place: str) -> Iterator[str]:
    """What is in one and not in the other; values that the schema adds by itself are
    left out.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{place}.{key}")
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
    ):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{place}[{number}]")
    elif before != after:
        yield f"{place}: {before!r} became {after!r}"


def wrong_types(value: object, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from wrong_types(item, f"{place}[{number}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models"):
        for name, hint in typing.get_type_hints(type(value)).items():
            field = getattr(value, name, None)
            if not is_a(field, hint):
                yield f"{place}.{name}: {field!r} is no {hint}"
            yield from wrong_types(field, f"{place}.{name}")


def is_a(value: object, hint: typing.Any) -> bool:
    """Of the type, or a text or number that a choice of the schema has as its value."""
    try:
        return bool(adapter(hint).validate_python(value) == value)
    except ValidationError:
        return False


@cache
def adapter(hint: typing.Any) -> TypeAdapter[object]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", "41"),
        ("panels.1.gridPos.w", "wide"),
        ("panels.1.options.graphMode", "pie"),
        ("panels.1.fieldConfig.defaults.thresholds.mode", 1),
    ],
)
def test_the_schema_tells_what_is_wrong(path: str, value: object) -> None:
    """So that the test above can fail."""
    *way, last = path.split(".")
    broken = json.loads(json.dumps(DASHBOARD))
    place = broken
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    plugins.register_default_plugins()
    assert len(list(wrong_types(Dashboard.from_json(broken), "dashboard"))) == 1


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(
    panel: dict[str, typing.Any],
) -> None:
    assert panel["description"].endswith((".", "`"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    for source in (panel, *panel["targets"]):
        assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        for part in walk(promql_parser.parse(re.sub(r"\$__\w+", "5m", target["expr"]))):
            if isinstance(part, promql_parser.VectorSelector):
                matchers = {
                    (matcher.name, matcher.value) for matcher in part.matchers.matchers
                }
                assert {("job", "$job"), ("gateway", "$gateway")} <= matchers, target[
                    "expr"
                ]


def test_panels_have_numbers_and_places_of_their_own() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own


# ── What is told about them ───────────────────────────────────────────────────────────


def test_readme_has_every_condition_and_metric_as_it_is() -> None:
    page = (OBSERVE / "README.md").read_text()
    assert page.count("<!-- rendered: ") == 2
    assert page == render(page), (
        "python -m tests.documents.code_tables squid/observe/README.md"
    )


def test_the_names_of_metrics_tell_their_types_as_readme_says() -> None:
    section = (
        (OBSERVE / "README.md")
        .read_text()
        .split("## Metrics\n", 1)[1]
        .partition("\n| ")[0]
    )
    for metric in METRICS:
        is_histogram = f"`{metric.name}`" in section
        is_counter = metric.name.endswith("_total")
        kind = (
            MetricKind.HISTOGRAM
            if is_histogram
            else MetricKind.COUNTER
            if is_counter
            else MetricKind.GAUGE
        )
        assert metric.kind is kind, metric.name


def test_every_alert_has_a_condition() -> None:
    assert {*alerts().values()} == {*ALERTS}
