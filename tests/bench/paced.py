"""A load that does not wait for answers: new tunnels through the proxy, each with one request, at random times.

    paced.py ADDRESS PORT RATE SECONDS CA

waiting.py runs it. It says "open" when it begins, and at the end how long each tunnel and its answer took, in seconds
from the time at which it was due, as JSON.
"""

from __future__ import annotations

import json
import random
import ssl
import sys
import threading
import time
from queue import SimpleQueue

from tunnels import ask, open_tunnel  # type: ignore[import-not-found] # beside this script

CLIENTS = 48  # more than are ever under way, so that a tunnel is opened when it is due


def main(address: str, port: str, rate: str, seconds: str, ca: str) -> None:
    """Open tunnels at the times of a Poisson process."""
    context, took, due_times = ssl.create_default_context(cafile=ca), list[float](), SimpleQueue[float | None]()

    def client() -> None:
        while (due := due_times.get()) is not None:
            with open_tunnel((address, int(port)), context) as tunnel:
                assert ask(tunnel, f"/{due}")
                took.append(time.monotonic() - due)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    print("open", flush=True)
    due = time.monotonic()
    ends = due + float(seconds)
    while due < ends:
        time.sleep(max(0.0, due - time.monotonic()))
        due_times.put(due)
        due += random.expovariate(float(rate))
    for _ in threads:
        due_times.put(None)
    for thread in threads:
        thread.join()
    print(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
