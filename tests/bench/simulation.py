#!/usr/bin/env python3
"""What many VMs ask of gateways: how much of each thing there is, what runs out first,
and how long requests wait.

    PYTHONPATH=. python3 tests/bench/simulation.py --costs costs.json [--vms 100000]
    [--gateways 12]
                                                  [--workers 4] [--sessions 2] [--open
                                                  60] [--seconds 60]

It needs Python 3.11 alone. costs.json is written by sizing.py, which measures. A
session of a VM is one tunnel and the requests in it; `SESSIONS` has how many there are,
and to which hosts. Three parts, each with the simplest model that answers it:

  demand    rates times costs, against what one gateway has. Nothing random: what runs
            out first is a matter of sums.
  waiting   a queue for each worker, because a connection stays with its worker. Each
            request waits for those before it
            (Lindley's recursion, exact for one server), with the measured times. Beside
            it the closed form for arrivals that are independent (Pollaczek and
            Khinchine): where both agree, the simulation is not needed.
  storms    all VMs of a gateway that has died, or all VMs at once, open their tunnels
            again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

DESCRIPTORS: Final = 16_384  # of a worker: max_filedescriptors
HAPROXY_CONNECTIONS: Final = 16_000  # for each worker of a gateway: fleet.yaml
# seconds of its processor for a new tunnel, and for a request: bench.py --only HAProxy
HAPROXY_TUNNEL: Final = 268e-6
HAPROXY_REQUEST: Final = 24e-6
VALKEY_STEP: Final = 29e-6  # seconds of its processor, with 14 gateways: leases.py
# net.ipv4.ip_local_port_range: connections to one address and port, from one address
LOCAL_PORTS: Final = 28_232
BUSY: Final = 0.7  # of a core, above which waiting grows quickly
LOG_BYTES: Final = 8 << 30  # --log-bytes
EXPORTER_CORE: Final = 0.7  # one process reads the log of all workers
THINK_SECONDS: Final = 0.5  # between two requests of a session
WAVE: Final = 200  # VMs that start together, as the jobs of one pipeline do
WAVE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0  # within which clients of a dead gateway come back
WINDOW_SECONDS: Final = 60  # of a quota
SAMPLE: Final = 20_000  # sessions, for the mean of what is in one
# of an agent: out of a hundred, to which host, and how many requests
SESSIONS: Final = (
    (14, "pypi.org", (2,)),
    (10, "files.pythonhosted.org", (1, 2, 3)),
    (10, "registry.npmjs.org", (2, 3, 4, 5)),
    (22, "api.github.com", (1, 2, 3, 4, 5, 6, 7)),
    (12, "github.com", (2,)),
    (20, "api.anthropic.com", range(2, 10)),
    (5, "api.vendor.example", (2,)),
    (7, "closed.example", (1,)),
)


@dataclass(frozen=True, slots=True)
class Costs:
    """What things cost, as sizing.py has measured.

    Times are in seconds of processor time.
    """

    request: float
    tunnel: float  # on top of its first request
    request_helpers: float
    tunnel_helpers: float
    requests: tuple[float, ...]  # single ones, scaled to the mean under load
    tunnels: tuple[float, ...]  # with the first request
    tunnel_bytes: float
    tunnel_descriptors: float
    line_bytes: float
    archive_line_bytes: float
    exporter_line: float
    archive_line: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who asks, and who serves. `open_seconds`: how long a tunnel stays open."""

    vms: int
    gateways: int
    workers: int
    sessions_per_minute: float
    open_seconds: float


@dataclass(frozen=True, slots=True)
class Need:
    """What one gateway needs of something, and what it has."""

    name: str
    needs: float
    has: float
    unit: str

    @property
    def share(self) -> float:
        """The part that is used."""
        return self.needs / self.has


def read_costs(path: Path) -> Costs:
    """Read what sizing.py has written."""
    found: dict[str, Any] = json.loads(path.read_text())["costs"]
    times = (
        "request",
        "tunnel",
        "request_helpers",
        "tunnel_helpers",
        "exporter_line",
        "archive_line",
    )
    seconds = {name: found[name] / 1e6 for name in times}
    sizes = ("tunnel_bytes", "tunnel_descriptors", "line_bytes", "archive_line_bytes")
    return Costs(
        **seconds,
        requests=_scaled(found["requests_one_at_a_time"], seconds["request"]),
        tunnels=_scaled(
            found["tunnels_one_at_a_time"], seconds["request"] + seconds["tunnel"]
        ),
        **{name: found[name] for name in sizes},
    )


def _scaled(values: Sequence[float], mean: float) -> tuple[float, ...]:
    """Keep the form of a distribution, and give it the mean that was measured under
    load.
    """
    factor = mean / statistics.mean(values)
    return tuple(value * factor for value in values)


# --- What is in a session -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sessions:
    """The sessions of agents: how many requests each has, and the part that goes to the
    most used host.
    """

    requests: tuple[int, ...]
    most_used: float

    @property
    def mean(self) -> float:
        """Requests a session."""
        return statistics.mean(self.requests)


def sessions(number: int = SAMPLE) -> Sessions:
    """Draw sessions."""
    chosen = random.Random(15)
    kinds = chosen.choices(SESSIONS, [weight for weight, _, _ in SESSIONS], k=number)
    hosts = Counter(host for _, host, _ in kinds)
    return Sessions(
        tuple(chosen.choice(counts) for _, _, counts in kinds),
        max(hosts.values()) / number,
    )


# --- Demand ---------------------------------------------------------------------------


def tunnels_per_second(fleet: Fleet) -> float:
    """Tell how many tunnels all VMs open."""
    return fleet.vms * fleet.sessions_per_minute / 60


def needs(fleet: Fleet, costs: Costs, drawn: Sessions) -> list[Need]:
    """List what one of the gateways needs; what is used most first."""
    tunnels = tunnels_per_second(fleet) / fleet.gateways
    requests, held = tunnels * drawn.mean, tunnels * fleet.open_seconds
    lines = requests + tunnels  # a CONNECT has a line of its own
    workers = tunnels * costs.tunnel + requests * costs.request
    helpers = tunnels * costs.tunnel_helpers + requests * costs.request_helpers
    beside = helpers + lines * (costs.exporter_line + costs.archive_line)
    found = [
        Need("worker cores", workers, fleet.workers * BUSY, "cores"),
        Need("cores beside: helpers, exporter, archive", beside, BUSY, "cores"),
        Need(
            "descriptors of the workers",
            held * costs.tunnel_descriptors,
            fleet.workers * DESCRIPTORS,
            "",
        ),
        Need(
            "ports to the most used host",
            held * drawn.most_used,
            LOCAL_PORTS,
            "connections",
        ),
        Need("ports of HAProxy to it", held, LOCAL_PORTS, "connections"),
        Need(
            "HAProxy's connections to it",
            held,
            fleet.workers * HAPROXY_CONNECTIONS,
            "connections",
        ),
        Need(
            "exporter, which is one process",
            lines * costs.exporter_line,
            EXPORTER_CORE,
            "cores",
        ),
    ]
    return sorted(found, key=lambda need: need.share, reverse=True)


def volumes(fleet: Fleet, costs: Costs, drawn: Sessions) -> dict[str, str]:
    """Tell how much there is of what has no fixed bound, over all gateways."""
    tunnels = tunnels_per_second(fleet)
    requests = tunnels * drawn.mean
    lines, held = requests + tunnels, tunnels * fleet.open_seconds
    log, steps = lines * costs.line_bytes, lease_steps(fleet, drawn)
    return {
        "new tunnels a second": f"{tunnels:,.0f}",
        "requests a second": f"{requests:,.0f}",
        "open tunnels": f"{held:,.0f}",
        "memory of the workers for open tunnels": f"{held * costs.tunnel_bytes / 1e9:,.1f} GB",
        "HAProxy": f"{tunnels * HAPROXY_TUNNEL + requests * HAPROXY_REQUEST:,.1f} cores",
        "Valkey, with a quota of requests a minute for each VM": (
            f"{steps:,.0f} steps a second, {steps * VALKEY_STEP:.0%} of a core"
        ),
        "access log": f"{log / 1e6:,.1f} MB/s, {log * 86_400 / 1e9:,.0f} GB a day at this rate",
        "time until --log-bytes (8 GiB) is full, each gateway": f"{LOG_BYTES * fleet.gateways / log / 60:,.0f} min",
        "archive": f"{lines * costs.archive_line_bytes * 86_400 / 1e9:,.0f} GB a day at this rate",
    }


def lease_steps(fleet: Fleet, drawn: Sessions) -> float:
    """Tell how often a second helpers ask Valkey.

    In a window a helper gets 1 unit of a count, then 2, 4 and so on.
    """
    chosen, asked = random.Random(17), Counter[tuple[int, int]]()
    for vm, _ in starts(fleet, WINDOW_SECONDS, chosen, waves=False):
        asked[vm, chosen.randrange(fleet.workers)] += chosen.choice(drawn.requests)
    return sum(requests.bit_length() for requests in asked.values()) / WINDOW_SECONDS


# --- Waiting --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waits:
    """How long requests wait for their worker, in seconds, over all workers; `busiest`:
    that worker's utilization.
    """

    mean: float
    most_of_99_percent: float
    utilization: float
    busiest: float
    formula: float


Job = tuple[float, float]  # when it comes, and how long the worker needs for it


def arrivals(
    fleet: Fleet, costs: Costs, drawn: Sessions, seconds: float, *, waves: bool
) -> list[list[Job]]:
    """Draw the work of each worker.

    In waves, many VMs begin a session within a second.
    """
    chosen = random.Random(16)
    queues: list[list[Job]] = [[] for _ in range(fleet.gateways * fleet.workers)]
    for vm, begins in starts(fleet, seconds, chosen, waves=waves):
        gateway = crc32(b"%d" % vm) % fleet.gateways  # as `balance source` does
        # the kernel, by the port of the connection
        worker = chosen.randrange(fleet.workers)
        queue, at = queues[gateway * fleet.workers + worker], begins
        queue.append((at, chosen.choice(costs.tunnels)))
        for _ in range(chosen.choice(drawn.requests) - 1):
            at += chosen.expovariate(1 / THINK_SECONDS)
            queue.append((at, chosen.choice(costs.requests)))
    return [sorted(queue) for queue in queues]


def starts(
    fleet: Fleet, seconds: float, chosen: random.Random, *, waves: bool
) -> Iterator[tuple[int, float]]:
    """Yield which VM begins a session, and when."""
    number = round(tunnels_per_second(fleet) * seconds)
    for _ in range(number // WAVE if waves else number):
        at = chosen.uniform(0, seconds)
        for _ in range(WAVE if waves else 1):
            yield (
                chosen.randrange(fleet.vms),
                at + (chosen.uniform(0, WAVE_SECONDS) if waves else 0),
            )


def waits_of(queue: Sequence[Job]) -> Iterator[float]:
    """Yield how long each job waits: Lindley's recursion for one server, first come,
    first served.
    """
    free_at = 0.0
    for at, takes in queue:
        yield max(0.0, free_at - at)
        free_at = max(at, free_at) + takes


def waiting(queues: Sequence[Sequence[Job]], seconds: float) -> Waits:
    """Let all workers do their work."""
    waits = sorted(wait for queue in queues for wait in waits_of(queue))
    used = [sum(takes for _, takes in queue) / seconds for queue in queues]
    return Waits(
        mean=statistics.mean(waits),
        most_of_99_percent=waits[len(waits) * 99 // 100],
        utilization=statistics.mean(used),
        busiest=max(used),
        formula=formula_of(
            [takes for queue in queues for _, takes in queue], statistics.mean(used)
        ),
    )


def formula_of(times: Sequence[float], utilization: float) -> float:
    """Return the mean wait for independent arrivals: Pollaczek and Khinchine."""
    mean = statistics.mean(times)
    spread = statistics.pvariance(times, mean) / mean**2
    return (
        utilization / (1 - utilization) * mean * (1 + spread) / 2
        if utilization < 1
        else float("inf")
    )


# --- Storms ---------------------------------------------------------------------------


def storm_seconds(
    tunnels: float, workers: int, utilization: float, costs: Costs
) -> float:
    """Tell how long workers need for tunnels that are opened at once, beside their
    usual work.
    """
    return tunnels * (costs.tunnel + costs.request) / (workers * (1 - utilization))


def storms(fleet: Fleet, costs: Costs, drawn: Sessions) -> dict[str, str]:
    """Tell how long it takes until everybody is served again."""
    cores = next(
        need.needs for need in needs(fleet, costs, drawn) if need.name == "worker cores"
    )
    used = cores / fleet.workers
    held = tunnels_per_second(fleet) * fleet.open_seconds
    left = fleet.gateways - 1
    with_one_less = min(0.99, used * fleet.gateways / left) if left else 0.99
    died = (
        storm_seconds(held / fleet.gateways, left * fleet.workers, with_one_less, costs)
        if left
        else float("inf")
    )
    started = storm_seconds(fleet.vms, fleet.gateways * fleet.workers, 0, costs)
    return {
        "a gateway dies: its tunnels are open elsewhere after": f"{max(died, RETRY_SECONDS):,.0f} s",
        "all VMs start at once, a tunnel each: open after": f"{started:,.0f} s",
    }


# --- The command ----------------------------------------------------------------------


def main() -> None:
    """Run the simulation."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--costs", type=Path, required=True)
    options.add_argument("--vms", type=int, default=100_000)
    options.add_argument("--gateways", type=int, default=12)
    options.add_argument("--workers", type=int, default=4, help="of each gateway")
    options.add_argument(
        "--sessions",
        type=float,
        default=2,
        help="of a VM, a minute, in the busiest hour",
    )
    options.add_argument(
        "--open", type=float, default=60, help="seconds that a tunnel stays open"
    )
    options.add_argument(
        "--seconds", type=int, default=60, help="of waiting that are simulated"
    )
    given = options.parse_args()
    fleet = Fleet(given.vms, given.gateways, given.workers, given.sessions, given.open)
    costs, drawn = read_costs(given.costs), sessions()
    print("\n".join(report(fleet, costs, drawn, given.seconds)))


def report(fleet: Fleet, costs: Costs, drawn: Sessions, seconds: int) -> Iterator[str]:
    """Write what was found, one a line."""
    yield f"{fleet.vms:,} VMs, {fleet.gateways} gateways of {fleet.workers} workers; {drawn.mean:.2f} requests a tunnel"
    yield "\nall gateways"
    yield from (
        f"  {name:<56}{value}" for name, value in volumes(fleet, costs, drawn).items()
    )
    yield "\none gateway; above 100 % it does not have enough, and the first line runs out first"
    for need in needs(fleet, costs, drawn):
        yield f"  {need.name:<44}{need.share:8.0%}   {need.needs:,.2f} of {need.has:,.2f} {need.unit}".rstrip()
    yield "\nwaiting for a worker, ms                    mean    99 %   formula   a worker is busy, the busiest"
    for name, waves in (("independent", False), (f"in waves of {WAVE}", True)):
        found = waiting(arrivals(fleet, costs, drawn, seconds, waves=waves), seconds)
        times = (found.mean, found.most_of_99_percent, found.formula)
        yield (
            f"  {name:<36}"
            + "".join(f"{time * 1000:9.2f}" for time in times)
            + (f"   {found.utilization:.0%}, {found.busiest:.0%}")
        )
    yield "\nstorms"
    yield from (
        f"  {name:<56}{value}" for name, value in storms(fleet, costs, drawn).items()
    )


if __name__ == "__main__":
    main()
