#!/usr/bin/env python3
"""What one tunnel, request and log line cost a gateway: the figures of squid/SIZING.md
and of simulation.py.

    sudo tests/bench/sizing.py [--workers N] [--gateways 1] [--rounds 3] [--seconds 3]
    [--json costs.json]

As bench.py, whose parts it uses: one gateway at host scope, over https. Only processor
time, memory and bytes are measured, which other work on the machine touches less than
it touches a rate:

  worker, helpers    of each request and of each new tunnel, from kept-alive tunnels and
                     from one tunnel a request
  a mix              of 3 and of 20 requests a tunnel: what those figures predict, and
                     what was measured
  gateways together  with --gateways N: the first mix on N of them at the same time,
                     predicted by the figures of one
  one at a time      the processor time of the worker for single requests and tunnels:
                     how much they differ
  open tunnels       memory of the workers and descriptors, for each tunnel that is open
                     and idle
  the record         bytes and lines of the access log; processor time of the exporter
                     and of the archive, for each line
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from access_logs import write_log  # type: ignore[import-not-found] # it lies beside this script
from bench import (  # type: ignore[import-not-found]
    Model,
    Running,
    Variant,
    clients,
    exporter,
    install,
    namespace,
    origin,
    processor_seconds,
    spent,
    squid,
    tunnels,
)
from command import options_of, require, save, scratch, show, written  # type: ignore[import-not-found]

PORT = 4200
MIXES = (3, 20)  # requests a tunnel
SINGLES = 300  # requests, and tunnels, one at a time
# open tunnels: few enough to be open within two minutes, when Squid ends the first idle
# one
HELD = 400
LINES = 100_000  # in the log that exporter and archive read


@dataclass(frozen=True)
class Costs:
    """What things cost. Times are in microseconds of processor time."""

    workers: int
    load_average: float  # of the machine while this was measured
    request: float  # of the worker, in a tunnel that is open
    tunnel: float  # of the worker, on top of its first request
    request_helpers: float
    tunnel_helpers: float
    mix_errors: dict[str, float]  # by requests a tunnel: measured / predicted
    together_errors: dict[str, float]  # the same, by how many gateways served together
    requests_one_at_a_time: list[float]
    tunnels_one_at_a_time: list[float]
    tunnel_bytes: float  # of memory
    tunnel_descriptors: float
    line_bytes: float  # of the access log
    exporter_line: float
    archive_line: float
    archive_line_bytes: float


def main() -> None:
    """Measure, and print the figures."""
    chosen = options_of(
        __doc__, workers=1, gateways=1, rounds=3, seconds=3
    ).parse_args()
    require(("squid", "nginx", "wrk", "openssl", "ip"))
    costs = measure(chosen.workers, chosen.gateways, chosen.rounds, chosen.seconds)
    print(text_of(costs))
    save(chosen.json, {"costs": asdict(costs)})


def measure(workers: int, gateways: int, rounds: int, seconds: int) -> Costs:
    """Measure one gateway, which is installed for this, and others like it."""
    with scratch() as folder, ExitStack() as stack:
        installed = install(folder, Model(options=("--workers", str(workers))))
        stack.enter_context(namespace())
        stack.enter_context(origin(folder))
        variant = Variant("sizing", ("kept-alive",))
        pids = stack.enter_context(squid(variant, folder, installed, PORT))
        gateway, root = (
            Running("sizing", "kept-alive", PORT, pids),
            folder / f"gateway-{PORT}",
        )
        # first: later, tunnels take what others have left of the worker's memory
        held = held_open(gateway, root)
        found = under_load(gateway, rounds, seconds, folder)
        singles = one_at_a_time(gateway, root)
        log = the_record(installed, root)
        all_of_them = [gateway]
        for port in range(PORT + 1, PORT + gateways):
            others = stack.enter_context(squid(variant, folder, installed, port))
            all_of_them.append(Running("sizing", "kept-alive", port, others))
        found |= together(
            all_of_them, seconds, folder, found["request"] + found["tunnel"] / MIXES[0]
        )
        return Costs(
            workers=workers,
            load_average=os.getloadavg()[1],
            **found,
            **singles,
            **held,
            **log,
        )


def together(
    gateways: list[Running], seconds: int, folder: Path, predicted: float
) -> dict[str, Any]:
    """Load several gateways at the same time; compare what a request costs all of them
    with what one predicts.
    """
    if len(gateways) == 1:
        return {"together_errors": {}}
    with ThreadPoolExecutor() as pool:
        under_way = [
            pool.submit(cost_of, gateway, str(MIXES[0]), seconds, folder)
            for gateway in gateways
        ]
        measured = statistics.mean(waiting.result()[0] for waiting in under_way)
    return {"together_errors": {str(len(gateways)): measured / predicted}}


def under_load(
    gateway: Running, rounds: int, seconds: int, folder: Path
) -> dict[str, Any]:
    """Measure what a request and a tunnel cost, and how well that predicts a mix of
    both; medians of the rounds.
    """
    each: dict[str, list[tuple[float, float]]] = {
        kind: [] for kind in ("kept-alive", "fresh", *map(str, MIXES))
    }
    for number in range(rounds + 1):  # the first warms up
        for kind, figures in each.items():
            figures += [cost_of(gateway, kind, seconds, folder)][: bool(number)]
            show(number, rounds, kind)
    show(rounds, rounds, "")
    worker, helpers = (
        {kind: statistics.median(f[n] for f in found) for kind, found in each.items()}
        for n in (0, 1)
    )
    tunnel = worker["fresh"] - worker["kept-alive"]
    predicted = {str(mix): worker["kept-alive"] + tunnel / mix for mix in MIXES}
    return {
        "request": worker["kept-alive"],
        "tunnel": tunnel,
        "request_helpers": helpers["kept-alive"],
        "tunnel_helpers": helpers["fresh"] - helpers["kept-alive"],
        "mix_errors": {mix: worker[mix] / figure for mix, figure in predicted.items()},
    }


def cost_of(
    gateway: Running, kind: str, seconds: int, folder: Path
) -> tuple[float, float]:
    """Load the gateway; gives the processor time of workers and helpers for each
    request.
    """
    with tunnels(
        Running(gateway.name, kind, gateway.port, gateway.processes), seconds, folder
    ) as answered:
        before = spent(gateway)
        requests = answered()
    worker, helpers = (
        (now - then) / requests * 1e6
        for now, then in zip(spent(gateway), before, strict=True)
    )
    return worker, helpers


@contextmanager
def client(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a client that does what it is told: a line for each."""
    command = clients("told", root, PORT)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def tell(process: subprocess.Popen[str], what: str) -> None:
    """Have the client open a tunnel or ask in the last one, and wait until it has."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    if process.stdout.readline() != "done\n":
        raise SystemExit(f"the client could not {what}")


def one_at_a_time(gateway: Running, root: Path) -> dict[str, Any]:
    """Measure single requests and tunnels: the time of all workers for each, of which
    one serves.
    """

    def times(*told: str) -> Iterator[float]:
        for _ in range(SINGLES):
            before = sum(map(processor_seconds, gateway.processes))
            for what in told:
                tell(process, what)
            yield (sum(map(processor_seconds, gateway.processes)) - before) * 1e6

    with client(root) as process:
        tell(process, "open")
        requests = sorted(times("ask"))
        return {
            "requests_one_at_a_time": requests,
            "tunnels_one_at_a_time": sorted(times("open", "ask")),
        }


def held_open(gateway: Running, root: Path) -> dict[str, Any]:
    """Measure what an open tunnel holds."""
    before = memory(gateway), descriptors(gateway)
    with client(root) as process:
        for _ in range(HELD):
            tell(process, "open")
            tell(process, "ask")
        held = memory(gateway) - before[0], descriptors(gateway) - before[1]
    return {"tunnel_bytes": held[0] / HELD, "tunnel_descriptors": held[1] / HELD}


def memory(gateway: Running) -> int:
    """Tell what the workers have of memory, in bytes: what is not shared with other
    processes.
    """
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in gateway.processes)
    return sum(
        int(size) << 10
        for text in texts
        for size in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)
    )


def descriptors(gateway: Running) -> int:
    """Tell how many descriptors the workers have."""
    return sum(
        len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in gateway.processes
    )


def the_record(installed: Path, root: Path) -> dict[str, Any]:
    """Measure what a line of the log costs: on disk, the exporter, and the archive.

    The lines are those of many VMs.
    """
    revision = json.loads((root / "log/access.log").read_text().partition("\n")[0])[
        "revision"
    ]
    log = root / "log/access.log.of-many"
    write_log(log, LINES, (revision,))
    lines = log.read_bytes().count(b"\n")
    seconds, size = archive_seconds(installed, root, log)
    return {
        "line_bytes": log.stat().st_size / lines,
        "exporter_line": exporter_seconds(installed, root, log) / lines * 1e6,
        "archive_line": seconds / lines * 1e6,
        "archive_line_bytes": size / lines,
    }


def exporter_seconds(installed: Path, root: Path, log: Path) -> float:
    """Have an exporter count the log; gives its processor time without that of its
    start.
    """
    return exporter_run(installed, root, log) - exporter_run(
        installed, root, Path(os.devnull)
    )


def exporter_run(installed: Path, root: Path, log: Path) -> float:
    """Run an exporter until it has counted a log; gives its processor time."""
    state = root / f"counted-{log.name}"
    shutil.copytree(root / "state", state, ignore=shutil.ignore_patterns("exporter"))
    with exporter(installed, root, log, state) as process:
        return float(processor_seconds(process))


def archive_seconds(installed: Path, root: Path, log: Path) -> tuple[float, int]:
    """Archive the log, rotated and compressed; gives the processor time and the bytes
    of the parts.
    """
    folder, archive = root / "rotated", root / "archived"
    folder.mkdir()
    archive.mkdir(0o750)
    (folder / "access.log").touch()
    (folder / "access.log.1.gz").write_bytes(gzip.compress(log.read_bytes(), 1))
    os.utime(folder / "access.log.1.gz", (time.time() - 3600,) * 2)
    command = [
        f"{installed}/bin/squidkeeper",
        "archive",
        "run",
        "--access-log",
        f"{folder}/access.log",
    ]
    command += [
        "--archive",
        str(archive),
        "--state",
        f"{root}/state",
        "--key",
        f"{installed}/etc/archive.key",
    ]
    before = sum(os.times()[2:4])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return sum(os.times()[2:4]) - before, sum(
        part.stat().st_size for part in archive.rglob("*.parquet")
    )


def text_of(costs: Costs) -> str:
    """Write the figures, one a line."""
    rows = {
        "a request in an open tunnel, worker / helpers, us": (
            costs.request,
            costs.request_helpers,
        ),
        "a new tunnel on top of its first request, us": (
            costs.tunnel,
            costs.tunnel_helpers,
        ),
        **{
            f"{mix} requests a tunnel: measured / predicted": (error,)
            for mix, error in costs.mix_errors.items()
        },
        **{
            f"{n} gateways together: measured / predicted": (e,)
            for n, e in costs.together_errors.items()
        },
        "single requests: median, 99 %, variation": spread(
            costs.requests_one_at_a_time
        ),
        "single tunnels: median, 99 %, variation": spread(costs.tunnels_one_at_a_time),
        "memory of an open tunnel, KB, and descriptors": (
            costs.tunnel_bytes / 1000,
            costs.tunnel_descriptors,
        ),
        "bytes of a line in the log": (costs.line_bytes,),
        "a line: exporter, archive, us; archive, bytes": (
            *(costs.exporter_line, costs.archive_line, costs.archive_line_bytes),
        ),
        "workers, load average of the machine": (costs.workers, costs.load_average),
    }
    return "\n".join(
        f"{name:<52}{'  '.join(map(written, figures))}"
        for name, figures in rows.items()
    )


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median, the 99th percentile, and the coefficient of variation."""
    return (
        *(statistics.median(values), sorted(values)[len(values) * 99 // 100]),
        statistics.stdev(values) / statistics.mean(values),
    )


if __name__ == "__main__":
    main()
