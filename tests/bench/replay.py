"""What `squidkeeper replay` costs: time on the clock, processor time and memory, by the length of the log.

    .venv/bin/python tests/bench/replay.py [--records 10000 100000 1000000] [--rounds 3] [--only TEXT] [--archive]

Each case is a log and an edit. In the log of a case, three of ten requests are different questions, or all are. The
edit closes a domain, a beginning of paths, or a form of paths that only the whole URL tells.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from access_logs import write_log  # type: ignore[import-not-found] # beside this script
from command import at_least_one, show  # type: ignore[import-not-found]
from reading import Cost, archive, cell, cost  # type: ignore[import-not-found]

SQUIDKEEPER = str(Path(sys.executable).with_name("squidkeeper"))
HOSTS = "hosts: [.example.com, .pypi.example, .github.example, .corp.example]"
OLD = f"{{name: some, action: allow, {HOSTS}, paths: [/simple/**, /api/**, /repos/**]}}"
EDITS = {  # what decides about a request → the rule above, which is new
    "the host": "{name: new, action: deny, hosts: [.corp.example]}",
    "the beginning of the path": f"{{name: new, action: deny, {HOSTS}, paths: [/repos/**]}}",
    "the whole URL": f"{{name: new, action: deny, {HOSTS}, paths: ['/**/*f']}}",
}
SHARES = {"3 of 10": 0.3, "all": None}
QUESTIONS_IN_LINES = 0.7  # the others are CONNECTs of opened tunnels


@dataclass(frozen=True)
class Case:
    """An edit and a log."""

    decides: str
    different: str

    @property
    def name(self) -> str:
        """Name it as in the table."""
        return f"{self.decides}, {self.different} different"


CASES = [Case(decides, different) for different in SHARES for decides in EDITS]


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", metavar="N", type=at_least_one, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--rounds", metavar="N", type=at_least_one, default=3)
    options.add_argument("--only", metavar="TEXT", default="", help="the cases with this in their name")
    options.add_argument("--archive", action="store_true", help="read the archive of the log, not its lines")
    chosen = options.parse_args()
    cases = [case for case in CASES if chosen.only in case.name]
    print("| records | decides | different | cost |\n|---|---|---|---|")
    for number in chosen.records:
        for line in measure(number, chosen.rounds, cases, archived=chosen.archive):
            print(line, flush=True)


def measure(number: int, rounds: int, cases: Sequence[Case], *, archived: bool) -> Iterator[str]:
    """Measure the cases with logs of this many records."""
    with tempfile.TemporaryDirectory(prefix="squidkeeper-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        old = write_policy(folder / "old", OLD)
        for different in dict.fromkeys(case.different for case in cases):
            files = write_files(folder / different.replace(" ", "-"), number, SHARES[different], archived=archived)
            for case in (case for case in cases if case.different == different):
                new = write_policy(folder / case.name.replace(" ", "-"), f"{EDITS[case.decides]}, {OLD}")
                command = [SQUIDKEEPER, "replay", "--policy", new, "--against", old, "--state", name, *files]
                costs = [measure_round(command, case, round_, rounds) for round_ in range(rounds)]
                yield f"| {number:,} | {case.decides} | {case.different} | {cell(costs)} |"


def measure_round(command: list[str], case: Case, number: int, rounds: int) -> Cost:
    """Measure one run: exit status 1 tells that requests would be denied."""
    show(number + 1, rounds, case.name)
    return cost([*command, "--allow-denials", str(10**12)])


def write_policy(folder: Path, rules: str) -> str:
    """Write a policy."""
    folder.mkdir()
    (folder / "policy.yaml").write_text(f"version: 1\nrules: [{rules}]\n")
    return str(folder)


def write_files(folder: Path, number: int, share: float | None, *, archived: bool) -> list[str]:
    """Write a log, and archive it; return the files to read."""
    folder.mkdir()
    log = folder / "access.log.1"
    write_log(log, number, ("0123456789ab",), share and int(share * QUESTIONS_IN_LINES * number))
    if not archived:
        return [str(log)]
    archive(log, folder / "archive")
    return sorted(map(str, (folder / "archive").glob("day=*/*.parquet")))


if __name__ == "__main__":
    main()
