#!/usr/bin/env python3
"""A gateway for an hour under an even load, while its policy, logs and helpers change:
does anything grow or go wrong?

    sudo .venv/bin/python tests/faults/soak.py [--minutes 60] [--requests 1000000]
    [--without kill ...] [--json FILE]

Every answer is compared with the expected one: one that is wrongly allowed ends the
run, and what was lost or denied without a cause in the schedule fails it. Each minute
is a sample; what is kept within bounds fills up in the first quarter, so at the end the
second quarter of the samples is compared with the last. Helpers end at each kill and
rotation: `--without kill rotate reconfigure` lets them grow old.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.e2e.dns import Names
from tests.e2e.gateway import NAMESERVER, Gateway, Site, install_prototype
from tests.e2e.network import internet
from tests.e2e.observer import Exporter, fetch
from tests.e2e.origin import Origins
from tests.faults.even_load import (
    ALSO_MAY_ARRIVE,
    CLIENTS,
    IN_FORCE_SECONDS,
    Account,
    Client,
)
from tests.faults.expect import (
    HELPERS,
    POLICY,
    SQUIDS_ASSERTION,
    TOKEN,
    only_what_may_arrive,
    recorded,
)
from tests.waiting import wait_for

Sample = dict[str, float]

SPOILT_SECONDS = 5
EVERY_SECONDS = {
    "edit": 10,
    "spoil": 70,
    "scrape": 15,
    "kill": 31,
    "rotate": 127,
    "reconfigure": 600,
    "sample": 60,
}
# For how long each may cost clients what squid/FAULTS.md says; the others may cost
# nothing.
COSTS_SECONDS = {
    "spoil": 2 * IN_FORCE_SECONDS + SPOILT_SECONDS,
    "kill": 5,
    "rotate": 5,
    "reconfigure": 10,
}
EDITED = """
version: 1
rules:
  - {{name: many, action: allow, hosts: [.many.example]}}
  - {{name: toggled, action: {action}, hosts: [toggled.example], reason: "Edit {number}."}}
"""
# What a figure may have grown by from the second quarter to the last, in parts of it
# and at least; None: only told.
TOLERANCE: dict[str, tuple[float, float] | None] = {
    "worker MB": (0.1, 8),
    **{f"{kind} MB": (0.1, 4) for kind in HELPERS},
    "exporter MB": (0.1, 4),
    "worker descriptors": (0.1, 64),
    "exporter descriptors": (0, 4),
    "state KB": (0.1, 256),
    "state files": (0.1, 16),
    "certificates KB": None,  # Squid fills its store to 4 MB
    "p50 ms": (0.5, 1),
    "p99 ms": (0.5, 20),
    "max ms": None,
    "clients' cpu %": None,
}


class Schedule:
    """What is done to the gateway, each thing at its time, and what is seen of it."""

    def __init__(
        self,
        gateway: Gateway,
        exporter: Exporter,
        origins: Origins,
        names: Names,
        account: Account,
    ) -> None:
        self.gateway, self.exporter, self.origins, self.names, self.account = (
            gateway,
            exporter,
            origins,
            names,
            account,
        )
        self.done: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._log = gateway.root / "log/access.log"
        self._lines_deleted = 0
        self._began = self._sampled = time.monotonic()
        self._cpu = time.process_time()

    def run(self, seconds: float, without: list[str]) -> None:
        due = {
            name: self._began + every
            for name, every in EVERY_SECONDS.items()
            if name not in without
        }
        while due[name := min(due, key=due.__getitem__)] <= self._began + seconds:
            if self.account.over.wait(max(0.0, due[name] - time.monotonic())):
                break
            due[name] += EVERY_SECONDS[name]
            self.done[name] += 1
            if name in COSTS_SECONDS:
                now = time.monotonic()
                self.account.spells.append((now, now + COSTS_SECONDS[name], name))
            getattr(self, name)()

    def edit(self) -> None:
        number = self.done["edit"]
        action, becomes = ("allow", "200") if number % 2 else ("deny", "403 toggled")
        self.account.edits.append((time.monotonic(), becomes))
        self.gateway.write("toggled.yaml", EDITED.format(action=action, number=number))

    def spoil(self) -> None:
        """Add a file that does not load, when the last edit is in force, and take it
        away.
        """
        self.account.over.wait(IN_FORCE_SECONDS)
        bad = self.gateway.write("spoilt.yaml", "version: 1\nrules: nonsense\n")
        self.account.over.wait(SPOILT_SECONDS)
        bad.unlink()

    def scrape(self) -> None:
        fetch(self.exporter.port, "/metrics")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(
                random.choice(wait_for(lambda: self.gateway.helpers(""), "a helper")),
                signal.SIGKILL,
            )

    def rotate(self) -> None:
        """As logrotate does, which keeps one here."""
        older = self._log.with_name("access.log.1")
        if older.exists():
            self._lines_deleted += lines(older)
            older.unlink()
        self._log.rename(older)
        self.gateway.rotate()
        wait_for(self._log.exists, "the new log")

    def reconfigure(self) -> None:
        self.gateway.reconfigure()

    def recorded(self) -> int:
        return self._lines_deleted + sum(
            lines(file) for file in self._log.parent.glob("access.log*")
        )

    def sample(self) -> None:
        self.check_origins()
        now, cpu, account = time.monotonic(), time.process_time(), self.account
        with account.lock:
            took, account.milliseconds = sorted(account.milliseconds), []
        sample = {
            "minute": (now - self._began) / 60,
            **wait_for(self._processes, "every process"),
            **self._state(),
        }
        sample |= {
            "p50 ms": took[len(took) // 2],
            "p99 ms": took[len(took) * 99 // 100],
            "max ms": took[-1],
        }
        sample["clients' cpu %"] = (cpu - self._cpu) / (now - self._sampled) * 100
        sample |= {
            "right": account.right.total(),
            "costs": account.costs.total(),
            "lost": account.lost(),
        }
        self.samples.append(sample)
        self._sampled, self._cpu = now, cpu
        print(
            ", ".join(
                f"{name} {round(value, 1):.10g}" for name, value in sample.items()
            ),
            flush=True,
        )

    def _processes(self) -> Sample | None:
        """None where one has just ended."""
        try:
            worker, exporter = self.gateway.pid, self.exporter.pid
            sample = {
                "worker": worker,
                "worker MB": megabytes(worker),
                "worker descriptors": descriptors(worker),
            }
            sample |= {
                "exporter MB": megabytes(exporter),
                "exporter descriptors": descriptors(exporter),
            }
            return sample | {
                f"{kind} MB": max(map(megabytes, self.gateway.helpers(kind)))
                for kind in HELPERS
            }
        except (OSError, IndexError, ValueError):
            return None

    def _state(self) -> Sample:
        """What lies in the state folder, Squid's own certificates apart."""
        folder = self.gateway.root / "state"
        sizes = {
            file: file.stat().st_size for file in folder.rglob("*") if file.is_file()
        }
        own = [size for file, size in sizes.items() if "ssl_db" not in file.parts]
        certificates = sum(sizes.values()) - sum(own)
        return {
            "state KB": sum(own) / 1000,
            "state files": len(own),
            "certificates KB": certificates / 1000,
        }

    def check_origins(self) -> None:
        """Compare what arrived with what may arrive, and forget it."""
        seen = len(self.origins.seen)
        only_what_may_arrive(self.origins, ALSO_MAY_ARRIVE)
        closed = [
            request.url
            for request in self.origins.seen[:seen]
            if "closed" in request.url
        ]
        assert closed == [], f"arrived: {closed}"
        del self.origins.seen[:seen], self.origins.connections[:], self.names.queries[:]


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def megabytes(pid: int) -> float:
    """The resident memory of a process."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        * resource.getpagesize()
        / 1e6
    )


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def prepared(account: Account) -> Iterator[Schedule]:
    """Start a gateway as the tests do, with origins, a DNS server and an exporter, in a
    network of its own.
    """
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="squidkeeper-soak-"))
        )
        folder.chmod(0o755)
        install_prototype(folder / "prototype")
        stack.enter_context(internet())
        origins, names = Origins(folder / "origins"), Names(NAMESERVER)
        stack.callback(origins.stop)
        stack.callback(names.stop)
        # Squid itself sees nothing wrong
        origins.certificates["open.example"] = (
            "open.example",
            "closed.example",
        )
        site = Site(folder, folder / "prototype", origins.authority.certificate, {})
        gateway = Gateway(site, "gateway", ("127.0.0.1", 3130))
        stack.callback(gateway.stop)
        # full within a minute, not within half an hour
        gateway.local_conf("cache allow all", "cache_mem 16 MB")
        gateway.secret("token", TOKEN)
        gateway.write("policy.yaml", POLICY)
        exporter = Exporter(gateway, 9129)
        stack.callback(exporter.stop)
        schedule = Schedule(gateway, exporter, origins, names, account)
        schedule.edit()
        gateway.start()
        exporter.start()
        yield schedule


def soak(schedule: Schedule, minutes: float, requests: int, without: list[str]) -> None:
    """Let the clients and the schedule run; what fails on the way is told with the
    rest.
    """
    account, began = schedule.account, time.monotonic()
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        running = []
        for first, cases in enumerate(CLIENTS):
            client = Client(schedule.gateway, account, f"127.0.0.{2 + first}")
            numbers = range(first, requests, len(CLIENTS))
            running.append(
                pool.submit(client.run, cases, numbers, began, requests / minutes / 60)
            )
        try:
            schedule.run(minutes * 60, without)
            wait(running)
            schedule.check_origins()
        except AssertionError as error:
            account.wrong.append(str(error))
        finally:
            account.over.set()
    for thread in running:
        thread.result()


@dataclass(frozen=True, slots=True)
class Report:
    totals: Mapping[str, float]
    right: Mapping[str, float]
    costs: Mapping[str, float]
    closed: Mapping[str, float]
    done: Mapping[str, float]
    growth: dict[str, dict[str, object]]
    wrong: list[str]
    samples: list[Sample]


def report(schedule: Schedule) -> Report:
    """Count the lines of the access log, and compare the end with the beginning."""
    account, exporter = schedule.account, schedule.exporter
    with suppress(AssertionError):
        wait_for(
            lambda: recorded(exporter) == schedule.recorded(),
            "every record to be counted once",
        )
    counted, written, answered = (
        recorded(exporter),
        schedule.recorded(),
        account.answered(),
    )
    wrong = list(account.wrong)
    if counted != written:
        wrong.append(
            f"the exporter counted {counted:.0f} requests, {written} are logged"
        )
    assertions = schedule.gateway.cache_log().count(SQUIDS_ASSERTION)
    # a request is logged behind its last byte, and Squid can end in between
    unlogged = assertions * len(CLIENTS)
    # of a tunnel, the CONNECT too
    perhaps = 2 * account.lost() + account.closed.total()
    if not answered - unlogged <= written <= answered + perhaps:
        wrong.append(
            f"{answered} requests and tunnels were answered, {account.lost()} lost, {written} are logged"
        )
    growth = (
        {name: grown(schedule.samples, name) for name in TOLERANCE}
        if len(schedule.samples) >= 8
        else {}
    )
    wrong += [
        f"{name} has grown"
        for name, figures in growth.items()
        if figures["verdict"] == "GROWN"
    ]
    totals: Sample = {
        "answered": answered,
        "of these, tunnels": account.tunnels,
        "lost": account.lost(),
    }
    totals |= {
        "logged": written,
        "counted by the exporter": counted,
        "Squid's assertions": assertions,
    }
    right, costs, closed, done = map(
        dict, (account.right, account.costs, account.closed, schedule.done)
    )
    return Report(totals, right, costs, closed, done, growth, wrong, schedule.samples)


def grown(samples: list[Sample], name: str) -> dict[str, object]:
    """Hold the median of a figure's last quarter against that of its second."""
    values, quarter, tolerance = (
        [sample[name] for sample in samples],
        len(samples) // 4,
        TOLERANCE[name],
    )
    second, last = (
        statistics.median(values[quarter : 2 * quarter]),
        statistics.median(values[-quarter:]),
    )
    slope = statistics.linear_regression(
        [sample["minute"] / 60 for sample in samples], values
    ).slope
    verdict = "told"
    if tolerance:
        verdict = (
            "GROWN"
            if last - second > max(tolerance[0] * second, tolerance[1])
            else "flat"
        )
    return {
        "second": second,
        "last": last,
        "slope an hour": slope,
        "tolerance": tolerance,
        "verdict": verdict,
    }


def show(told: Report) -> None:
    for name in ("totals", "right", "costs", "closed", "done"):
        figures = getattr(told, name)
        print(
            f"\n{name}",
            *(f"  {what:<44}{number:12.0f}" for what, number in figures.items()),
            sep="\n",
        )
    print(f"\n{'growth':<26}{'quarter 2':>10}{'last':>10}{'an hour':>10}  tolerance")
    for name, row in told.growth.items():
        print(
            f"  {name:<24}{row['second']:10.1f}{row['last']:10.1f}{row['slope an hour']:10.1f}",
            end="  ",
        )
        print(row["tolerance"], row["verdict"])
    print(
        "\nwrong", *(told.wrong[:20] or ["nothing"]), f"({len(told.wrong)})", sep="\n  "
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=EVERY_SECONDS,
        help="what is not done",
    )
    parser.add_argument("--json", type=Path, help="write everything here too")
    chosen = parser.parse_args()
    with prepared(Account()) as schedule:
        soak(schedule, chosen.minutes, chosen.requests, chosen.without)
        told = report(schedule)
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(told), indent=1) + "\n")
    show(told)
    return 1 if told.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
