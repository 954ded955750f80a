"""How long an edit takes to be in force, and lookups while it is loaded: a million
hosts, 10,000 rules, many edits.

    .venv/bin/python tests/bench/reload.py [--hosts 1000000] [--rules 10000] [--edits
    15] [--json FILE]

.venv is the environment that tests/run makes. A helper is asked line after line, a
millisecond apart, and one rule of its policy edited every few seconds. A lookup counts
as one "during a reload" from the edit until it is in force and half a second longer;
the others show what the machine itself does to a lookup at that time.
"""

from __future__ import annotations

import statistics
import sys
import time
from threading import Event

from command import options_of, save, scratch  # type: ignore[import-not-found] # beside this script
from lines import (  # type: ignore[import-not-found]
    Contender,
    Helper,
    acl,
    hosts_like_published_ones,
    policy,
)

APART_SECONDS = 0.001
QUIET_SECONDS = 2.0
AFTER_SECONDS = 0.5
PATIENCE_SECONDS = 60.0


def main() -> None:
    chosen = options_of(__doc__, hosts=1_000_000, rules=10_000, edits=15).parse_args()
    with scratch() as folder:
        (folder / "list.txt").write_text(
            "".join(f".{host}\n" for host in hosts_like_published_ones(chosen.hosts))
        )
        figures = measure(
            acl(
                "host", "reload", policy(folder, "reload", chosen.rules, with_list=True)
            ),
            chosen.edits,
        )
    print("\n".join(f"{what:<44}{figure:10.2f}" for what, figure in figures.items()))
    save(
        chosen.json,
        {
            "hosts": chosen.hosts,
            "rules": chosen.rules,
            "edits": chosen.edits,
            **figures,
        },
    )


def measure(contender: Contender, edits: int) -> dict[str, float]:
    """Edit again and again; gives seconds until an edit is in force, and milliseconds
    of the lookups.
    """
    in_force: list[float] = []
    quiet: list[float] = []
    during: list[float] = []
    with Helper(contender) as helper:
        helper.ask(helper.lines([("a.example", "/")]))
        # what a start leaves to do is done meanwhile
        watch(helper, quiet, QUIET_SECONDS, None)
        quiet.clear()
        for number in range(edits):
            watch(helper, quiet, QUIET_SECONDS, None)
            edit(contender, number)
            in_force.append(
                watch(helper, during, PATIENCE_SECONDS, f"edited{number}.example")
            )
            watch(helper, during, AFTER_SECONDS, None)
            print(f"\redit {number + 1}/{edits}", end="", file=sys.stderr)
    print(file=sys.stderr)
    figures = {
        "seconds until in force, median": statistics.median(in_force),
        "the same, worst": max(in_force),
    }
    for when, taken in (("during a reload", during), ("otherwise", quiet)):
        figures[f"lookup {when}, ms, median"] = statistics.median(taken)
        figures[f"lookup {when}, ms, 99 %"] = sorted(taken)[len(taken) * 99 // 100]
        figures[f"lookup {when}, ms, worst"] = max(taken)
    return figures


def edit(contender: Contender, number: int) -> None:
    """Close another host by the first rule, in whole, as an editor does."""
    assert contender.folder is not None
    file = contender.folder / "policy.yaml"
    head, _, tail = file.read_text().partition("rules:\n")
    _, _, rest = tail.partition("\n")
    rule = f"  - {{name: r0, action: deny, hosts: [edited{number}.example]}}"
    new = contender.folder / ".policy.yaml.new"
    new.write_text(f"{head}rules:\n{rule}\n{rest}")
    new.rename(file)


def watch(
    helper: Helper, milliseconds: list[float], seconds: float, closed: str | None
) -> float:
    """Ask line after line for some seconds, or until a host is closed; gives how long
    that took.
    """
    began, asked, apart = time.perf_counter(), 0, Event()
    while (now := time.perf_counter()) - began < seconds:
        asked += 1
        host = closed if closed and asked % 20 == 0 else f"a{asked % 5000}.example"
        answer = helper.ask(helper.lines([(host, "/")]))
        milliseconds.append((time.perf_counter() - now) * 1000)
        if b" ERR " in answer:
            return time.perf_counter() - began
        apart.wait(APART_SECONDS)
    assert closed is None, f"the edit was not in force after {seconds} seconds"
    return seconds


if __name__ == "__main__":
    main()
