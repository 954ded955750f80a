#!/usr/bin/env python3
"""How long new tunnels wait for a worker: a real gateway beside the formula and the simulation of simulation.py.

    sudo PYTHONPATH=. .venv/bin/python tests/bench/waiting.py [--rates 100 200 300] [--seconds 10]

As bench.py, whose parts it uses: one gateway with one worker. Tunnels are opened at random times, at a pace that does
not depend on the answers. The formula gets the processor time of single tunnels, and how busy the worker was. What it
adds to the time of a tunnel in an idle gateway is compared with what was measured. Squid, its helpers, the origin and
the clients have real-time priority, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench import (  # type: ignore[import-not-found] # it lies beside this script
    HERE,
    INSIDE,
    LISTEN,
    Running,
    Variant,
    install,
    namespace,
    origin,
    processor_seconds,
    squid,
)
from command import at_least_one, require  # type: ignore[import-not-found]

from tests.bench.simulation import formula_of

PORT = 4200
IDLE = 20  # tunnels a second that hardly ever wait


@dataclass(frozen=True)
class Measured:
    """One pace: how busy the worker was, and how long tunnels took, in seconds."""

    rate: float
    utilization: float
    each: float  # processor time of the worker for a tunnel and its request
    took: list[float]


def main() -> None:
    """Measure each pace, and print what was measured beside the formula."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rates", type=at_least_one, nargs="+", default=[100, 200, 300])
    options.add_argument("--seconds", type=at_least_one, default=10, help="of each pace")
    chosen = options.parse_args()
    require(("squid", "nginx", "openssl", "ip"))
    idle, *found = measure([IDLE, *chosen.rates], chosen.seconds)
    alone = statistics.mean(idle.took)
    print(f"in an idle gateway: {alone * 1000:.2f} ms; load average {os.getloadavg()[0]:.0f}")
    print("tunnels/s   busy   took, ms: mean   99 %   waited, ms   by the formula   measured / predicted")
    for one in found:
        formula = formula_of([one.each], one.utilization)
        mean, most = statistics.mean(one.took), sorted(one.took)[len(one.took) * 99 // 100]
        waited = mean - alone
        print(
            f"{one.rate:9.0f}   {one.utilization:4.0%}   {mean * 1000:14.2f} {most * 1000:6.1f}"
            f"   {waited * 1000:10.2f}   {formula * 1000:14.2f}   {mean / (alone + formula):20.2f}"
        )


def measure(rates: list[int], seconds: int) -> list[Measured]:
    """Measure all paces at one gateway."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-bench-")))
        folder.chmod(0o755)
        installed = install(folder)
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        workers = stack.enter_context(squid(Variant("waiting", ("fresh",)), folder, installed, PORT))
        gateway = Running("waiting", "fresh", PORT, workers)
        for pid in processes_inside():
            subprocess.run(["chrt", "--all-tasks", "--rr", "--pid", "10", str(pid)], check=False)
        return [pace(gateway, rate, seconds, folder) for rate in rates]


def processes_inside() -> Iterator[int]:
    """List the processes in the namespace: Squid, its helpers, the origin."""
    found = subprocess.run(["ip", "netns", "pids", INSIDE[-1]], check=True, capture_output=True, text=True).stdout
    return map(int, found.split())


def pace(gateway: Running, rate: int, seconds: int, folder: Path) -> Measured:
    """Open tunnels at a pace."""
    command = [*INSIDE, "chrt", "--rr", "10", sys.executable, str(HERE / "paced.py"), LISTEN, str(PORT), str(rate)]
    command += [str(seconds), str(folder / f"gateway-{PORT}/etc/ca/ca.crt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        before = sum(map(processor_seconds, gateway.processes))
        took = json.loads(process.stdout.read())
    used = sum(map(processor_seconds, gateway.processes)) - before
    return Measured(rate, used / seconds, used / len(took), took)


if __name__ == "__main__":
    main()
