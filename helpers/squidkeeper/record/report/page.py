"""The report as one HTML page."""

from math import log10

from squidkeeper.record.pages.page import render
from squidkeeper.record.report import charts
from squidkeeper.record.report.figures import Report

_SHORT_URL = 240  # characters of a URL that a row shows
_HEAT_CLASSES = 4


def page(report: Report) -> str:
    """Write the report as one HTML page without external resources."""
    most = max((visits.allowed for host in report.traffic.hosts for visits in host.by_client), default=0)
    return render(
        "report.html",
        {
            "report": report,
            "heat": lambda count: _heat(count, most),
            "over_time": charts.over_time,
            "discovery": charts.discovery,
            "spark": charts.spark,
            "decades": charts.Decades.of(report.upstreams.slowest),
            "shortest": _SHORT_URL,
        },
    )


def _heat(count: int, most: int) -> str:
    """Choose a shade by the order of magnitude relative to the largest; hosts differ by factors."""
    if not count:
        return ""
    return f"heat{max(1, _HEAT_CLASSES - int(log10(most / count) * 1.5))}"
