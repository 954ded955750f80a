"""Every metric is named by Prometheus's conventions, once, and classed as the table
says.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from squidkeeper.base.helper_metrics import OTHER, Metric, MetricKind
from squidkeeper.base.metrics import METRICS, method_class, status_class
from squidkeeper.services.exporter.collector import COUNTERS

LABELS = {
    *(
        "client",
        "rule",
        "verdict",
        "helper",
        "credential",
        "method_class",
        "status_class",
        "revision",
        "wait",
        "code",
    ),
    *(
        "version",
        "result",
        "folder",
        "export",
        "quota",
        "secret",
        "task",
        "severity",
        "sha256",
    ),
    *("model", "state", "direction", "role"),
}
# What the dashboards for Squid ask for.
OF_SQUID = """
squid_client_http_requests_total squid_client_http_hits_total squid_client_http_errors_total
squid_client_http_kbytes_in_kbytes_total squid_client_http_kbytes_out_kbytes_total
squid_client_http_hit_kbytes_out_bytes_total
squid_server_all_requests_total squid_server_all_errors_total
squid_server_all_kbytes_in_kbytes_total squid_server_all_kbytes_out_kbytes_total
squid_server_http_requests_total squid_server_http_errors_total
squid_server_http_kbytes_in_kbytes_total squid_server_http_kbytes_out_kbytes_total
squid_server_ftp_requests_total squid_server_ftp_errors_total
squid_server_ftp_kbytes_in_kbytes_total squid_server_ftp_kbytes_out_kbytes_total
squid_server_other_requests_total squid_server_other_errors_total
squid_server_other_kbytes_in_kbytes_total squid_server_other_kbytes_out_kbytes_total
squid_swap_ins_total squid_swap_outs_total squid_swap_files_cleaned_total
"""


def test_each_metric_has_one_entry() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_and_labelled_by_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"squidkeeper_[a-z_]+", metric.name)
    assert (
        bool(metric.buckets)
        is (metric.kind is MetricKind.HISTOGRAM)
        is metric.name.endswith("_duration_seconds")
    )
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert set(metric.labels) <= LABELS
    assert metric.help.endswith(".")


def test_squids_own_counters_have_the_names_that_dashboards_ask_for() -> None:
    assert sorted(name for _, name, _ in COUNTERS) == sorted(OF_SQUID.split())
    assert len({key for key, _, _ in COUNTERS}) == len(COUNTERS)


@pytest.mark.system
def test_promtool_finds_nothing_to_say_about_the_table() -> None:
    class Everything(Collector):
        def collect(self) -> list[Family]:
            return [
                Family(
                    metric.name.removesuffix("_total"), metric.help, str(metric.kind)
                )
                for metric in METRICS
            ]

    registry = CollectorRegistry()
    registry.register(Everything())
    lint = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("CONNECT", "connect"),
        ("GET", "read"),
        ("HEAD", "read"),
        ("OPTIONS", "read"),
        ("POST", "write"),
        ("PUT", "write"),
        ("PATCH", "write"),
        ("DELETE", "write"),
        ("get", OTHER),
        ("TRACE", OTHER),
        ("", OTHER),
        ("MADE-UP", OTHER),
    ],
)
def test_methods_are_of_four_classes(method: str, expected: str) -> None:
    assert method_class(method) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (100, "1xx"),
        (204, "2xx"),
        (304, "3xx"),
        (403, "4xx"),
        (599, "5xx"),
        (0, OTHER),
        (600, OTHER),
        (-1, OTHER),
    ],
)
def test_statuses_are_of_six_classes(status: int, expected: str) -> None:
    assert status_class(status) == expected
