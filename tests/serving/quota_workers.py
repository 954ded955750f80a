"""Processes that take units of one quota until it is used up, and a clock for what is
in one process.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from squidkeeper.serving.quotas.counts import LEASE_AT_MOST

LIMIT = 2000
WORKER = f"""
import sys
from pathlib import Path
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.quotas.opening import GatewayCounts
quota = Quota("q", Location("p"), QuotaUnit.REQUESTS, {LIMIT}, Window.DAY, Counted.ALL)
folder = Path(sys.argv[1])
meter = Meter(GatewayCounts(folder / "policy", folder))
sys.stdin.readline()
while True:
    refused = meter.take([(quota, "all")])
    print("-" if refused and not refused.unavailable else refused.unavailable if refused else "+", flush=True)
    if refused:
        break
"""


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def start_worker(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def check_that_no_limit_is_passed(folders: Sequence[Path]) -> None:
    """Run a worker for each gateway's folder, and kill one at random."""
    workers = [start_worker(folder) for folder in folders]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    killed = random.Random().choice(workers)
    assert killed.stdout
    first = [killed.stdout.readline() for _ in range(50)]
    killed.send_signal(signal.SIGKILL)
    taken = "".join(
        [
            *first,
            killed.stdout.read(),
            *(one.communicate()[0] for one in workers if one is not killed),
        ]
    )
    killed.communicate()
    assert set(taken) <= set("+-\n")
    assert LIMIT - LEASE_AT_MOST * len(workers) <= taken.count("+") <= LIMIT
