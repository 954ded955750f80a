"""The report as one HTML page, with its charts as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from math import log10

from markupsafe import Markup

from squidkeeper.base.formatting import milliseconds
from squidkeeper.policy.language.quotas import shown_cost
from squidkeeper.record.pages.page import label, line, picture, rect, render, share
from squidkeeper.record.report.figures import (
    Report,
    TimelineFigures,
    TimelineStep,
    Upstream,
)
from squidkeeper.record.report.traffic import STEPS_SECONDS

_SHORT_URL = 240  # characters of a URL that a row shows
_HEAT_CLASSES = 4
_SPARK_WIDTH, _SPARK_HEIGHT = 144, 18
_WIDEST_SPARK = 6.0
_RANGE_WIDTH, _RANGE_HEIGHT = 300, 14
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 28, 24  # room for the labels of a panel
_WIDEST_STEP = 28.0  # so that a few seconds do not fill the page
_DAY = 86400
_TICK_PIXELS = 88  # for one label of the time axis


# --- In a row of a table --------------------------------------------------------------


def page(report: Report) -> str:
    """Write the report as one HTML page without external resources."""
    most = max(
        (visits.allowed for host in report.traffic.hosts for visits in host.by_client),
        default=0,
    )
    return render(
        "report.html",
        {
            "report": report,
            "heat": lambda count: _heat(count, most),
            "over_time": over_time,
            "discovery": discovery,
            "tokens": tokens,
            "shown_cost": shown_cost,
            "spark": spark,
            "decades": Decades.of(report.upstreams.slowest),
            "shortest": _SHORT_URL,
        },
    )


def _heat(count: int, most: int) -> str:
    """Choose a shade by the order of magnitude relative to the largest; hosts differ by
    factors.
    """
    if not count:
        return ""
    return f"heat{max(1, _HEAT_CLASSES - int(log10(most / count) * 1.5))}"


# Charts as inline SVG; the style of the pages colours them, for light and dark.
#
# One unit is one CSS pixel, so that text keeps its size: each width has its own chart.
# Each chart has a description for screen readers, and bars and marks show their figures
# when the pointer rests on them.


def spark(values: Sequence[int], steps: Sequence[TimelineStep]) -> Markup:
    """Draw a row's denials over time, on its own scale; all rows have the
    same width.
    """
    most = max(values, default=0)
    if not most:
        return Markup("")
    width = min(_WIDEST_SPARK, _SPARK_WIDTH / len(values))
    peak = steps[values.index(most)].start
    bars = [
        rect(
            "deny",
            place * width,
            _SPARK_HEIGHT - height,
            max(1.0, width - 0.25),
            height,
        )
        for place, value in enumerate(values)
        if (height := share(value, most, _SPARK_HEIGHT - 1))
    ]
    base = line("rule", 0, _SPARK_HEIGHT - 0.5, _SPARK_WIDTH, _SPARK_HEIGHT - 0.5)
    return picture(
        _SPARK_WIDTH,
        _SPARK_HEIGHT,
        f"at most {most:,} in one step, at {peak:%Y-%m-%d %H:%M}",
        [base, *bars],
    )


@dataclass(frozen=True, slots=True)
class Decades:
    """A logarithmic scale of milliseconds over whole powers of ten, the same for all
    rows of a table.
    """

    lowest: int
    highest: int

    @classmethod
    def of(cls, rows: Iterable[Upstream]) -> Decades:
        """Choose the scale that fits all rows."""
        values = [
            max(1, value)
            for row in rows
            for value in (row.median_ms, row.p95_ms)
            if value is not None
        ]
        lowest = int(log10(min(values, default=1)))
        highest = int(log10(max(values, default=10)) - 1e-9) + 1
        return cls(lowest, max(highest, lowest + 1))

    def axis(self) -> Markup:
        """Draw the scale, for the head of the column."""
        marks = [
            label(
                self._x(10**power), _RANGE_HEIGHT - 3, milliseconds(10**power), anchor
            )
            for power, anchor in self._ends()
        ]
        return picture(
            _RANGE_WIDTH, _RANGE_HEIGHT, "a logarithmic scale of time", marks
        )

    def mark(self, row: Upstream) -> Markup:
        """Draw one row: a dot at the median, a line to the p95."""
        if row.median_ms is None or row.p95_ms is None:
            return Markup("")
        middle = _RANGE_HEIGHT / 2
        grid = [
            line("rule", self._x(10**power), 0, self._x(10**power), _RANGE_HEIGHT)
            for power in range(self.lowest, self.highest + 1)
        ]
        start, end = self._x(row.median_ms), self._x(row.p95_ms)
        reach = line("reach", start, middle, end, middle)
        dot = Markup('<circle class="allow" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(
            start, middle
        )
        stop = line("reach", end, middle - 4, end, middle + 4)
        words = f"half within {milliseconds(row.median_ms)}, 95 % within {milliseconds(row.p95_ms)}"
        return picture(_RANGE_WIDTH, _RANGE_HEIGHT, words, [*grid, reach, stop, dot])

    def _ends(self) -> Iterator[tuple[int, str]]:
        for power in range(self.lowest, self.highest + 1):
            yield (
                power,
                {self.lowest: "start", self.highest: "end"}.get(power, "middle"),
            )

    def _x(self, duration_ms: float) -> float:
        share = (log10(max(1, duration_ms)) - self.lowest) / (
            self.highest - self.lowest
        )
        return 5 + min(1.0, max(0.0, share)) * (_RANGE_WIDTH - 10)


# --- Over time ------------------------------------------------------------------------


def over_time(timeline: TimelineFigures, width: int) -> Markup:
    """Draw allowed and denied requests over time: two panels with one time axis, each
    on its own scale.

    On one scale, the denials would hardly be visible.
    """
    steps, each = timeline.steps, _step_name(timeline.step_seconds)
    upper = _Panel(_TOP, 120, width, max((step.allowed for step in steps), default=0))
    lower = _Panel(
        upper.bottom + 46, 80, width, max((step.denied for step in steps), default=0)
    )
    drawn = [
        *upper.frame(f"Allowed requests, each {each}"),
        *lower.frame(f"Denied requests, each {each}"),
        *_time_axis(timeline, width, lower.bottom),
        *upper.bars("allow", [step.allowed for step in steps]),
        *lower.bars("deny", [step.denied for step in steps]),
        *_hover(timeline, width, lower.bottom),
    ]
    allowed, denied = (
        sum(step.allowed for step in steps),
        sum(step.denied for step in steps),
    )
    words = (
        f"{allowed:,} allowed requests, at most {upper.most:,} each {each}; "
        f"{denied:,} denied, at most {lower.most:,} each {each}"
    )
    return picture(
        width, lower.bottom + _BOTTOM, words, drawn, title="Requests over time"
    )


def discovery(timeline: TimelineFigures, width: int) -> Markup:
    """Draw the number of different hosts requested so far: steep where a client
    explores.
    """
    sums = list(accumulate(step.new_hosts for step in timeline.steps))
    panel = _Panel(_TOP, 90, width, sums[-1] if sums else 0)
    path = _stairs(panel, sums)
    drawn = [
        *panel.frame("New hosts, cumulative"),
        *_time_axis(timeline, width, panel.bottom),
        path,
    ]
    words = f"{panel.most:,} hosts were requested for the first time"
    return picture(
        width, panel.bottom + _BOTTOM, words, drawn, title="New hosts over time"
    )


def tokens(timeline: TimelineFigures, over_time: Sequence[int], width: int) -> Markup:
    """Draw the tokens of metered requests over time."""
    panel = _Panel(_TOP, 90, width, max(over_time, default=0))
    each = _step_name(timeline.step_seconds)
    drawn = [
        *panel.frame(f"Tokens in and out, each {each}"),
        *_time_axis(timeline, width, panel.bottom),
        *panel.bars("allow", over_time),
    ]
    words = f"{sum(over_time):,} tokens, at most {panel.most:,} each {each}"
    return picture(
        width, panel.bottom + _BOTTOM, words, drawn, title="Tokens over time"
    )


@dataclass(frozen=True, slots=True)
class _Panel:
    top: float
    height: float
    width: int
    most: int

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def y(self, value: float) -> float:
        return self.bottom - self.height * value / (self.most or 1)

    def frame(self, name: str) -> Iterator[Markup]:
        yield Markup('<text class="name" x="0" y="{:.1f}">{}</text>').format(
            self.top - 14, name
        )
        for value in _ticks(self.most):
            yield line(
                "axis" if value == 0 else "rule",
                _LEFT,
                self.y(value),
                self.width - _RIGHT,
                self.y(value),
            )
            yield label(_LEFT - 7, self.y(value) + 4, f"{value:,}", "end")

    def bars(self, kind: str, values: Sequence[int]) -> Iterator[Markup]:
        each = _step_width(self.width, len(values))
        for place, value in enumerate(values):
            if value:
                height = max(1.0, self.bottom - self.y(value))
                yield rect(
                    kind,
                    _LEFT + place * each,
                    self.bottom - height,
                    max(1.0, each - _gap(each)),
                    height,
                )


def _stairs(panel: _Panel, values: Sequence[int]) -> Markup:
    each = _step_width(panel.width, len(values))
    moves = "".join(
        f"V{panel.y(value):.1f}H{_LEFT + (place + 1) * each:.1f}"
        for place, value in enumerate(values)
    )
    return Markup('<path class="stairs" d="M{} {:.1f}{}"/>').format(
        _LEFT, panel.bottom, moves
    )


def _hover(timeline: TimelineFigures, width: int, bottom: float) -> Iterator[Markup]:
    each = _step_width(width, len(timeline.steps))
    for place, step in enumerate(timeline.steps):
        words = f"{step.start:%Y-%m-%d %H:%M}: {step.allowed:,} allowed, {step.denied:,} denied"
        yield rect("hover", _LEFT + place * each, _TOP, each, bottom - _TOP, words)


def _time_axis(timeline: TimelineFigures, width: int, y: float) -> Iterator[Markup]:
    steps = timeline.steps
    if not steps:
        return
    start = steps[0].start.timestamp()
    seconds = len(steps) * timeline.step_seconds
    length = len(steps) * _step_width(width, len(steps))
    between = _between(
        seconds, max(2, int(length / _TICK_PIXELS)), timeline.step_seconds
    )
    for at in range(
        int(-(-start // between) * between), int(start + seconds) + 1, between
    ):
        x = _LEFT + (at - start) / seconds * length
        yield line("axis", x, y, x, y + 4)
        if x < width - _RIGHT - 12:
            yield label(x, y + 17, _time_name(at, between), "middle")


def _between(seconds: int, most: int, least: int) -> int:
    return next(
        (step for step in STEPS_SECONDS if step >= least and seconds / step <= most),
        STEPS_SECONDS[-1],
    )


def _time_name(at: int, between: int) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    if between >= STEPS_SECONDS[-1]:
        return f"{moment:%Y}"
    if between >= _DAY or not at % _DAY:
        return f"{moment.day} {moment:%b}"
    return f"{moment:%H:%M:%S}" if between < 60 else f"{moment:%H:%M}"


def _step_name(seconds: int) -> str:
    units = ((_DAY, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    unit, name = next(unit for unit in units if seconds % unit[0] == 0)
    return name if seconds == unit else f"{seconds // unit} {name}s"


def _ticks(most: int) -> list[int]:
    if not most:
        return [0]
    rough = most / 3
    power = 10 ** max(0, int(log10(rough)) if rough >= 1 else 0)
    step = next(
        (power * factor for factor in (1, 2, 5, 10) if power * factor >= rough),
        power * 10,
    )
    return list(range(0, most + 1, step))


def _step_width(width: int, number: int) -> float:
    return min(_WIDEST_STEP, (width - _LEFT - _RIGHT) / (number or 1))


def _gap(each: float) -> float:
    return 1.0 if each > 4 else 0.0
