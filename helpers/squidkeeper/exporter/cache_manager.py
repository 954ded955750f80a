"""Squid's own counters (floor 7), read from its cache manager on loopback.

The metrics have the names of the widely used squid-exporter, so that its dashboards work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from socket import SHUT_RDWR, socket
from threading import Timer
from time import monotonic
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PAGE: Final = "/squid-internal-mgr/counters"
TIMEOUT_SECONDS: Final = 1.0
_NUMBER = re.compile(r"[0-9]{1,300}(\.[0-9]+)?", re.ASCII)
_PAGE_BYTES = 64 * 1024  # twenty times what Squid writes

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


@dataclass(frozen=True, slots=True)
class SquidCounters:
    """Squid's counters by its own names. `problem`: why there are none. `answers`: whether Squid answered at all."""

    values: dict[str, float]
    problem: str | None = None
    answers: bool = False


def read_counters(host: str, port: int) -> SquidCounters:
    """Read the counters of the Squid at this address; never fails, and takes two seconds at most.

    The request comes from loopback, the only source that squid.conf allows, even if Squid listens on another address.
    """
    loopback = "::1" if ":" in host else "127.0.0.1"
    connection = HTTPConnection(host, port, TIMEOUT_SECONDS, source_address=(loopback, 0))
    try:
        connection.connect()
        with _ended_after(TIMEOUT_SECONDS, connection.sock):
            connection.request("GET", PAGE)
            response = connection.getresponse()
            page = response.read(_PAGE_BYTES)
    except (OSError, HTTPException) as error:
        return SquidCounters({}, str(error) or type(error).__name__)
    finally:
        connection.close()
    if response.status != 200:
        problem = f"{PAGE} is answered {response.status}: does squid.conf open it for this address?"
        return SquidCounters({}, problem, answers=True)
    values = parse_counters(page)
    return SquidCounters(values, None if values else f"{PAGE} holds no counters", answers=True)


@contextmanager
def _ended_after(seconds: float, connection: socket) -> Iterator[None]:
    """Bound a whole exchange, which single bytes extend otherwise; TimeoutError if it takes longer."""
    deadline = monotonic() + seconds
    end = Timer(seconds, _end, [connection])
    end.start()
    try:
        yield
    finally:
        end.cancel()
        if monotonic() >= deadline:  # what was read may be a part
            raise TimeoutError("timed out")


def _end(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)


def parse_counters(page: bytes) -> dict[str, float]:
    """Parse the page: lines of `name = number`; ignore others."""
    pairs = (line.partition(" = ") for line in page.decode("latin-1").splitlines())
    return {name.strip(): float(value) for name, _, value in pairs if _is_number(value)}


def families(counters: SquidCounters) -> Iterable[Metric]:
    """Make metrics of the counters; without counters, only `squid_up`."""
    up = GaugeMetricFamily("squid_up", "Whether Squid answers.", value=counters.answers)
    yield up
    for key, name, meaning in COUNTERS:
        if key in counters.values:
            yield CounterMetricFamily(name, meaning, value=counters.values[key])


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None
