#!/usr/bin/env python3
"""What one step of a quota costs Valkey: the processor time of the server, and of the
helper that asks.

    PYTHONPATH=. .venv/bin/python tests/bench/leases.py [--steps 20000] [--clients
    10000]

Each step takes units of one client's count, one step after the other, with TLS. The
server is started for this.
"""

from __future__ import annotations

import time

from command import options_of, scratch  # type: ignore[import-not-found] # beside this script

from squidkeeper.policy.language.quotas import QuotaUnit, Window
from squidkeeper.serving.quotas.counts import LEASE_AT_MOST, QuotaCount
from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts
from tests.valkey_server import ValkeyServer

LIMIT = 1_000_000


def main() -> None:
    """Measure, and print."""
    chosen = options_of(__doc__, steps=20_000, clients=10_000).parse_args()
    with scratch() as folder:
        server = ValkeyServer(folder).start()
        try:
            measure(server, chosen.steps, chosen.clients)
        finally:
            server.kill()


def measure(server: ValkeyServer, steps: int, clients: int) -> None:
    """Take units of each client's count in turn."""
    counts = ValkeyCounts(server.settings())
    holders = [
        QuotaCount("per-vm", QuotaUnit.REQUESTS, Window.DAY, f"10.0.{n >> 8}.{n & 255}")
        for n in range(clients)
    ]
    counts.take(holders[0], LIMIT, 1)
    before, asked = server_seconds(server), time.process_time()
    for number in range(steps):
        assert counts.take(holders[number % clients], LIMIT, LEASE_AT_MOST).given
    print(
        f"a step, of the server: {(server_seconds(server) - before) / steps * 1e6:.0f} us"
    )
    print(
        f"a step, of who asks:   {(time.process_time() - asked) / steps * 1e6:.0f} us"
    )
    counts.close()


def server_seconds(server: ValkeyServer) -> float:
    """Tell the processor time of the server, by its own account."""
    told = server.command("INFO", "cpu")
    found = dict(line.split(":") for line in told.splitlines() if ":" in line)
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


if __name__ == "__main__":
    main()
