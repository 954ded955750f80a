"""What reading the access log costs, by its length: time on the clock, processor time
and memory.

    .venv/bin/python tests/bench/reading.py [--records 10000 1000000 …] [--rounds 3]
    [--only replay] [--archive]
                                            [--before DIR]

Each case is a command and a log. In the log of a replay, three of ten requests are
different questions, or all are; its edit closes a domain, a beginning of paths, or a
form of paths that only the whole URL tells. --archive reads the archive of the log, not
its lines. `log --by host` of lines is set beside DuckDB's own group-by of the same
columns. --before is a worktree of the revision to compare with, whose .venv has that
squidkeeper: it reads the lines. The commands of a round run one after the other, and a
ratio is taken within a round; medians of the rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from access_logs import write_log  # type: ignore[import-not-found] # beside this script
from command import (  # type: ignore[import-not-found]
    at_least_one,
    options_of,
    save,
    scratch,
    show,
    spread,
    table,
    written,
)

from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.record.table.database import spare_threads

NEW = str(Path(sys.executable).with_name("squidkeeper"))
HOSTS = "hosts: [.example.com, .pypi.example, .github.example, .corp.example]"
BY_HOST = f"{{name: some, action: allow, {HOSTS}}}"
BY_URL = f"{{name: some, action: allow, {HOSTS}, paths: ['/**']}}"
OLD = f"{{name: some, action: allow, {HOSTS}, paths: [/simple/**, /api/**, /repos/**]}}"
EDITS = {  # what decides about a request → the rule above, which is new
    "the host": "{name: new, action: deny, hosts: [.corp.example]}",
    "the beginning of the path": f"{{name: new, action: deny, {HOSTS}, paths: [/repos/**]}}",
    "the whole URL": f"{{name: new, action: deny, {HOSTS}, paths: ['/**/*f']}}",
}
BY_HOST_CASE = "log --by host"
SHARES = {"3 of 10": 0.3, "all": None}
# what `log --by host` counts, of the same log, without a check of any line
OWN = """
import sys

import duckdb

COLUMNS = {
    **dict.fromkeys(("time", "method", "url", "verdict", "squid"), "VARCHAR"),
    "bytes": "BIGINT",
}
duckdb.connect(config={"threads": max(1, int(sys.argv[2]))}).sql(
    "SELECT regexp_extract(url, '^(?:[a-z]+://)?([^/:]+)', 1) AS host, count(*) AS n,"
    " count(*) FILTER (verdict = 'deny'), sum(bytes), max(time), count(*) FILTER"
    " (method = 'CONNECT' AND verdict = 'allow' AND NOT starts_with(squid, 'TCP_T'))"
    f" FROM read_json($file, format = 'newline_delimited', columns = {COLUMNS})"
    " GROUP BY host ORDER BY n DESC",
    params={"file": sys.argv[1]},
).fetchall()
"""
QUESTIONS_IN_LINES = 0.7  # the others are CONNECTs of opened tunnels


@dataclass(frozen=True)
class Case:
    """A command with its arguments, the policy that has decided, how many requests
    differ, and the rules of an edit.
    """

    name: str
    arguments: tuple[str, ...]
    rules: str = BY_HOST
    different: str = "all"
    edit: str = ""


@dataclass(frozen=True)
class Cost:
    """What one run cost."""

    seconds: float
    processor_seconds: float
    megabytes: float


CASES = (
    Case("report", ("report", "--json")),
    Case(BY_HOST_CASE, ("log", "--by", "host")),
    Case("log --drift, the host decides", ("log", "--drift")),
    Case("log --drift, the URL decides", ("log", "--drift"), BY_URL),
    *(
        Case(
            f"replay, {decides}, {different} different",
            ("replay",),
            OLD,
            different,
            f"{edit}, {OLD}",
        )
        for different in SHARES
        for decides, edit in EDITS.items()
    ),
)


def main() -> None:
    """Run the benchmark."""
    options = options_of(__doc__, rounds=3)
    options.add_argument(
        "--records",
        metavar="N",
        type=at_least_one,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
    )
    options.add_argument(
        "--only", metavar="TEXT", default="", help="the cases with this in their name"
    )
    options.add_argument(
        "--archive",
        action="store_true",
        help="read the archive of the log, not its lines",
    )
    options.add_argument(
        "--before", metavar="DIR", type=Path, help="a worktree to compare with"
    )
    chosen = options.parse_args()
    cases = [case for case in CASES if chosen.only in case.name]
    rows = {}
    for number in chosen.records:
        for case, row in measure(
            number, chosen.rounds, cases, chosen.before, archived=chosen.archive
        ):
            rows[f"{number:,}, {case.name}"] = row
    print("\n".join(table("records, command", rows)))
    save(chosen.json, rows)


def measure(
    number: int,
    rounds: int,
    cases: Sequence[Case],
    before: Path | None,
    *,
    archived: bool,
) -> Iterator[tuple[Case, dict[str, str]]]:
    """Measure the cases with logs of this many records."""
    with scratch() as folder:
        for case in cases:
            place = folder / str(abs(hash((case.rules, case.different))))
            if not place.exists():
                write_case(place, case, number, archived=archived)
            files = sorted(map(str, place.glob("archive/day=*/*.parquet"))) or [
                str(place / "access.log.1")
            ]
            command = [*case.arguments, *files, "--policy", f"{place}/policy"]
            if "--drift" in case.arguments:
                command += ["--state", str(place)]
            if case.edit:
                edited = write_policy(
                    folder / f"edit-{len(list(folder.iterdir()))}", case.edit
                )
                command = [
                    *case.arguments,
                    *files,
                    "--policy",
                    str(edited),
                    "--against",
                    f"{place}/policy",
                ]
                command += ["--state", str(place), "--allow-denials", str(10**12)]
            programs = [
                NEW,
                *([str(before.resolve() / ".venv/bin/squidkeeper")] if before else []),
            ]
            own = [sys.executable, "-c", OWN, files[0], str(spare_threads())]
            has_own = case.name == BY_HOST_CASE and not archived
            costs, own_costs = [], []
            for round_ in range(rounds):
                show(round_ + 1, rounds, case.name)
                costs.append([cost([program, *command]) for program in programs])
                own_costs += [cost(own)] if has_own else []
            yield case, row_of(costs) | beside_own(costs, own_costs)


def write_case(place: Path, case: Case, number: int, *, archived: bool) -> None:
    """Write the policy of a case, its revision as if it had been in force,
    and its log.
    """
    sources = read_sources(write_policy(place / "policy", case.rules))
    revision = load_sources(sources, datetime.now(UTC)).compiled.revision
    store_revision(sources, revision, place / "revisions")
    share = SHARES[case.different]
    write_log(
        place / "access.log.1",
        number,
        (revision,),
        share and int(share * QUESTIONS_IN_LINES * number),
    )
    if archived:
        (place / "access.log").touch()
        # Squid may still write to a log that was rotated just now
        os.utime(place / "access.log.1", (0, 0))
        (place / "archive").mkdir(mode=0o750)
        command = [
            NEW,
            "archive",
            "run",
            "--access-log",
            f"{place}/access.log",
            "--archive",
            f"{place}/archive",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_policy(folder: Path, rules: str) -> Path:
    """Write a policy."""
    folder.mkdir(parents=True)
    (folder / "policy.yaml").write_text(f"version: 1\nrules: [{rules}]\n")
    return folder


def cost(command: Sequence[str]) -> Cost:
    """Run a command; its output is discarded.

    Exit status 1 means that drift was found.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > ("--drift" in command):
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return Cost(
        time.perf_counter() - start,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
    )


def row_of(rounds: Sequence[Sequence[Cost]]) -> dict[str, str]:
    """Write what a command cost, and how many times less than before: on the clock, and
    of the processor.
    """
    names = ("now", "before")[: len(rounds[0])]
    row = {
        name: cell([costs[place] for costs in rounds])
        for place, name in enumerate(names)
    }
    if len(names) > 1:
        clock = [before.seconds / now.seconds for now, before in rounds]
        processor = statistics.median(
            before.processor_seconds / now.processor_seconds for now, before in rounds
        )
        row["ratio"] = f"{spread(clock)}; processor {written(processor)}"
    return row


def beside_own(rounds: Sequence[Sequence[Cost]], own: Sequence[Cost]) -> dict[str, str]:
    """Write what DuckDB's own group-by cost, and how many times its processor time the
    command took.
    """
    times = [
        costs[0].processor_seconds / beside.processor_seconds
        for costs, beside in zip(rounds, own, strict=bool(own))
    ]
    return {
        "DuckDB's own": cell(own) if own else "–",
        "times its processor": spread(times) if own else "–",
    }


def cell(costs: Sequence[Cost]) -> str:
    """Write what a command cost: on the clock, of the processor, and its
    largest size.
    """
    names = ("seconds", "processor_seconds", "megabytes")
    seconds, processor, megabytes = (
        statistics.median(getattr(cost, name) for cost in costs) for name in names
    )
    return f"{written(seconds)} s ({written(processor)} s), {megabytes:.0f} MB"


if __name__ == "__main__":
    main()
