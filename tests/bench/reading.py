"""What reading the access log costs, before and after, in one run: time on the clock, processor time and memory.

    .venv/bin/python tests/bench/reading.py --before DIR [--records 1000000 …] [--rounds 3] [--only report]

DIR is a worktree of the revision to compare with, whose .venv has that squidkeeper. Each command reads one log, the new
one also the archive of it. The commands of a round run one after the other, so other work on the machine affects
all of them. A ratio is taken within a round: what the old command took, divided by what the new one took; medians of
the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from access_logs import write_log  # type: ignore[import-not-found] # beside this script
from command import at_least_one, show, written  # type: ignore[import-not-found]

from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources

NEW = str(Path(sys.executable).with_name("squidkeeper"))
POLICIES = {  # a policy of which the host decides, and one of which the URL decides
    "host": "[{name: some, action: allow, hosts: [.example.com, .pypi.example, .github.example, .corp.example]}]",
    "URL": "[{name: some, action: allow, hosts: [.example.com, .pypi.example, .github.example, .corp.example],"
    " paths: ['/**']}]",
}


@dataclass(frozen=True)
class Case:
    """A command that is measured, with its arguments; `before` and `log` or `archive` are what it reads."""

    name: str
    arguments: tuple[str, ...]
    decided_by: str = "host"


@dataclass(frozen=True)
class Cost:
    """What one run cost."""

    seconds: float
    processor_seconds: float
    megabytes: float


CASES = (
    Case("report", ("report", "--json")),
    Case("log --by host", ("log", "--by", "host")),
    Case("log --drift, the host decides", ("log", "--drift")),
    Case("log --drift, the URL decides", ("log", "--drift"), "URL"),
)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--before", metavar="DIR", type=Path, required=True)
    options.add_argument("--records", metavar="N", type=at_least_one, nargs="+", default=[1_000_000])
    options.add_argument("--rounds", metavar="N", type=at_least_one, default=3)
    options.add_argument("--only", metavar="TEXT", default="", help="the cases with this in their name")
    chosen = options.parse_args()
    old = chosen.before.resolve() / ".venv/bin/squidkeeper"
    print("| records | command | before | after, lines | after, archive | ratio, lines | ratio, archive |")
    print("|---|---|---|---|---|---|---|")
    for number in chosen.records:
        for row in measure(number, chosen.rounds, old, [case for case in CASES if chosen.only in case.name]):
            print(row, flush=True)


def measure(number: int, rounds: int, old: Path, cases: Sequence[Case]) -> Iterator[str]:
    """Measure the cases with a log of this many records."""
    with tempfile.TemporaryDirectory(prefix="squidkeeper-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        for decided_by in dict.fromkeys(case.decided_by for case in cases):
            revision = store_policy(folder / f"policy-{decided_by}", decided_by)
            log = folder / f"log-{decided_by}/access.log.1"
            log.parent.mkdir()
            write_log(log, number, (revision,))
            archive(log, folder / f"archive-{decided_by}")
        for case in cases:
            yield row(number, case, [measure_round(case, folder, old, round_, rounds) for round_ in range(rounds)])


def store_policy(folder: Path, decided_by: str) -> str:
    """Write a policy and store its revision, as if it had been in force; return the revision."""
    policy = folder / "policy"
    policy.mkdir(parents=True)
    (policy / "policy.yaml").write_text(f"version: 1\nrules: {POLICIES[decided_by]}\n")
    sources = read_sources(policy)
    revision = load_sources(sources, datetime.now(UTC)).compiled.revision
    store_revision(sources, revision, folder / "revisions")
    return revision


def archive(log: Path, folder: Path) -> None:
    """Archive a rotated log."""
    log.with_suffix("").touch()
    os.utime(log, (0, 0))  # Squid may still write to a log that was rotated just now
    folder.mkdir(mode=0o750)
    command = [NEW, "archive", "run", "--access-log", str(log.with_suffix("")), "--archive", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure_round(case: Case, folder: Path, old: Path, number: int, rounds: int) -> tuple[Cost, Cost, Cost]:
    """Measure before, after by lines, and after by the archive, one after the other."""
    show(number + 1, rounds, case.name)
    state = folder / f"policy-{case.decided_by}"
    options = ("--policy", f"{state}/policy", *(("--state", str(state)) if "--drift" in case.arguments else ()))
    log, archived = folder / f"log-{case.decided_by}/access.log.1", folder / f"archive-{case.decided_by}"
    parts = sorted(map(str, archived.glob("day=*/*.parquet")))
    if not parts:
        sys.exit(f"{archived}: the log was not archived")
    return (
        cost([str(old), *case.arguments, str(log), *options]),
        cost([NEW, *case.arguments, str(log), *options]),
        cost([NEW, *case.arguments, *parts, *options]),
    )


def cost(command: Sequence[str]) -> Cost:
    """Run a command; its output is discarded. Exit status 1 means that drift was found."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > ("--drift" in command):
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def row(number: int, case: Case, rounds: Sequence[tuple[Cost, Cost, Cost]]) -> str:
    """Write a line of the table."""
    costs = [cell([one[place] for one in rounds]) for place in range(3)]
    ratios = [ratio([(one[0], one[place]) for one in rounds]) for place in (1, 2)]
    return f"| {' | '.join((f'{number:,}', case.name, *costs, *ratios))} |"


def cell(costs: Sequence[Cost]) -> str:
    """Write what a command cost: on the clock, of the processor, and its largest size."""
    seconds, processor, megabytes = (
        statistics.median(getattr(one, name) for one in costs) for name in ("seconds", "processor_seconds", "megabytes")
    )
    return f"{written(seconds)} s ({written(processor)} s), {megabytes:.0f} MB"


def ratio(pairs: Sequence[tuple[Cost, Cost]]) -> str:
    """Write how many times less the second cost than the first: on the clock, their spread, and of the processor."""
    clock = [before.seconds / after.seconds for before, after in pairs]
    processor = statistics.median(before.processor_seconds / after.processor_seconds for before, after in pairs)
    spread = f"{written(min(clock))} to {written(max(clock))}"
    return f"**{written(statistics.median(clock))}** ({spread}); processor {written(processor)}"


if __name__ == "__main__":
    main()
