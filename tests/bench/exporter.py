#!/usr/bin/env python3
"""What the exporter costs: the gateway's requests per second with it and without it, in turn, in one run.

    sudo tests/bench/exporter.py [--rounds 7] [--seconds 5]

As bench.py, whose parts it uses; while the exporter runs it is scraped every second. A ratio is taken within a round.
Also told: the processor time that the exporter took, and the lines that it had left to count when the load ended.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import (  # type: ignore[import-not-found] # it lies beside this script
    HTTP,
    INSIDE,
    Running,
    Variant,
    install,
    load,
    namespace,
    origin,
    squid,
)
from command import at_least_one, require, show  # type: ignore[import-not-found]

PORT = 4200
PAGES = "127.0.0.1:4201"
LOADED = Running("host scope", HTTP, PORT, ())


@dataclass(frozen=True)
class Round:
    """One round: requests per second without the exporter and with it, its processor seconds and its backlog."""

    without: float
    with_it: float
    processor: float
    backlog_bytes: float


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=at_least_one, default=7)
    options.add_argument("--seconds", type=at_least_one, default=5, help="of load, with and without, in each round")
    chosen = options.parse_args()
    require(("squid", "nginx", "wrk", "openssl", "ip"))
    rounds = measure(chosen.rounds, chosen.seconds)
    without, with_it = ([one.without for one in rounds], [one.with_it for one in rounds])
    ratios = [one.with_it / one.without for one in rounds]
    print(f"without the exporter {statistics.median(without):8.0f}/s   (each: {_list(without)})")
    print(f"with the exporter    {statistics.median(with_it):8.0f}/s   (each: {_list(with_it)})")
    print(f"ratio, median        {statistics.median(ratios):8.3f}     ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"its processor time   {statistics.median(one.processor for one in rounds) / chosen.seconds:8.1%}")
    print(f"its backlog at the end {statistics.median(one.backlog_bytes for one in rounds) / 1000:6.0f} KB")


def measure(rounds: int, seconds: int) -> list[Round]:
    """Measure in turn, the first in every second round the other one; the first round warms up and does not count."""
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-bench-")))
        folder.chmod(0o755)
        installed = install(folder)
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        stack.enter_context(squid(Variant("host scope"), folder, installed, PORT))
        for number in range(rounds + 1):
            without = load(LOADED, seconds)[0] if number % 2 else 0.0
            with exporter(installed, folder / f"gateway-{PORT}"):
                before = value("process_cpu_seconds_total")
                with_it = load(LOADED, seconds)[0]
                backlog, after = value("squidkeeper_record_backlog_bytes"), value("process_cpu_seconds_total")
            found.append(Round(without or load(LOADED, seconds)[0], with_it, after - before, backlog))
            show(number, rounds, f"{with_it:8.0f}/s")
    show(rounds, rounds, "")
    return found[1:]


@contextmanager
def exporter(installed: Path, root: Path) -> Iterator[None]:
    """Run the exporter of a gateway, by Squid's account, and scrape it every second; what there is, is counted."""
    command = [*INSIDE, "setpriv", "--reuid", "proxy", "--regid", "proxy", "--clear-groups"]
    command += [f"{installed}/bin/squidkeeper", "exporter", "--listen", PAGES, "--policy", f"{root}/etc/policy"]
    command += ["--access-log", f"{root}/log/access.log", "--state", f"{root}/state"]
    command += ["--ca", f"{root}/etc/ca/signing.crt", "--squid", f"127.0.0.1:{PORT}"]
    with (root / "log/exporter.txt").open("ab") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not scrape():
                time.sleep(0.1)
            with subprocess.Popen(
                [*INSIDE, "sh", "-c", f"while sleep 1; do curl -so /dev/null {PAGES}/metrics; done"]
            ) as loop:
                yield
                loop.terminate()
        finally:
            process.terminate()


def scrape() -> str:
    """Scrape the exporter; empty while it does not answer."""
    return subprocess.run(
        [*INSIDE, "curl", "-s", f"{PAGES}/metrics"], capture_output=True, text=True, check=False
    ).stdout


def value(name: str) -> float:
    """Give the value of a metric that has no labels."""
    return next(float(line.split()[1]) for line in scrape().splitlines() if line.startswith(f"{name} "))


def _list(values: list[float]) -> str:
    return " ".join(f"{one:.0f}" for one in values)


if __name__ == "__main__":
    main()
