"""The load "far" of bench.py: an origin that is far away, and a client that is a new
process for each request.

    far.py ADDRESS ORIGIN    serves the origin's ports 80 and 443 at another address,
                             whose answers come 30 ms later

The relay delays each direction by half of that, and the first bytes of a connection by
the time of its handshake.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

ROUND_TRIP = 0.03  # seconds
PORTS = (80, 443)


async def _relay(
    origin: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    from_origin, to_origin = await asyncio.open_connection(origin, port)
    shaken = asyncio.Event()
    asyncio.get_running_loop().call_later(ROUND_TRIP, shaken.set)
    await shaken.wait()
    await asyncio.gather(_one_way(reader, to_origin), _one_way(from_origin, writer))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, each piece after half of a round trip: pieces follow each
    other without waiting.
    """
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(65536):
            loop.call_later(ROUND_TRIP / 2, writer.write, data)
    except ConnectionError:
        pass
    loop.call_later(ROUND_TRIP / 2, writer.close)


async def _serve(address: str, origin: str) -> None:
    for port in PORTS:
        await asyncio.start_server(partial(_relay, origin, port), address, port)
    await asyncio.Event().wait()


def load(curl: Sequence[str], seconds: int) -> tuple[float, int]:
    """Run a command again and again for so long; gives how often in a second, and how
    often at all.

    A command that prints anything but lines of 200 ends the benchmark.
    """
    began, times = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        answer = subprocess.run(
            [*curl], capture_output=True, text=True, check=False
        ).stdout
        if set(answer.split()) != {"200"}:
            sys.exit(f"{' '.join(curl)} answers {answer!r}")
        times += 1
    return times / (time.monotonic() - began), times


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
