"""Squid's own counters as metrics.

They have the names of the widely used squid-exporter, so that its dashboards work.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from squidkeeper.base.squid_counters import SquidCounters

_TRAFFIC = (
    ("requests", "requests_total", "requests"),
    ("errors", "errors_total", "errors"),
    ("kbytes_in", "kbytes_in_kbytes_total", "kilobytes received"),
    ("kbytes_out", "kbytes_out_kbytes_total", "kilobytes sent"),
)
_SERVERS = (("all", "all protocols"), ("http", "HTTP"), ("ftp", "FTP"), ("other", "other protocols"))
# Squid's own name of a counter, its metric, its meaning.
COUNTERS: Final = (
    *((f"client_http.{key}", f"squid_client_http_{name}", f"Clients: {what}.") for key, name, what in _TRAFFIC),
    ("client_http.hits", "squid_client_http_hits_total", "Clients: requests answered from the cache."),
    (
        "client_http.hit_kbytes_out",
        "squid_client_http_hit_kbytes_out_bytes_total",
        "Clients: kilobytes sent from the cache. Dashboards know it by this name.",
    ),
    *(
        (f"server.{server}.{key}", f"squid_server_{server}_{name}", f"Origins, {protocol}: {what}.")
        for server, protocol in _SERVERS
        for key, name, what in _TRAFFIC
    ),
    ("swap.ins", "squid_swap_ins_total", "Objects read from the cache on disk."),
    ("swap.outs", "squid_swap_outs_total", "Objects written to the cache on disk."),
    ("swap.files_cleaned", "squid_swap_files_cleaned_total", "Files of the cache on disk that were cleaned up."),
)


def families(counters: SquidCounters) -> Iterable[Metric]:
    """Make metrics of the counters; without counters, only `squid_up`."""
    up = GaugeMetricFamily("squid_up", "Whether Squid answers.", value=counters.answers)
    yield up
    for key, name, meaning in COUNTERS:
        if key in counters.values:
            yield CounterMetricFamily(name, meaning, value=counters.values[key])
