"""The helpers alone, through real pipes, beside squidGuard on the same list and the
same requests.

    .venv/bin/python tests/bench/lines.py [--awake] [--hosts 1000000] [--rules 10000]
    [--rounds 7] [--lines 20000]
                                          [--json FILE]

.venv is the environment that tests/run makes. Sixteen lines are in flight, as with
Squid. All take turns, round after round; a ratio is taken within each round, and its
median and spread count. "cpu" is the processor time of the helper for each line, with
all of its threads, which other work on the machine touches less than the lines per
second. "fresh": no host was asked before, half of them are below a listed one. "zipf":
the hosts of a busy network, the n-th of 20,000 asked 1/n as often as the first. Without
squidGuard that part is left out.

A processor that has nothing to do goes to sleep, and in a virtual machine takes some 50
us to come back: each of the sixteen lines pays for that, whoever answers. With
`--awake` it is given work of the lowest priority instead, as it has in a gateway that
is busy.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path

from command import options_of, save, scratch, show, spread, table  # type: ignore[import-not-found] # beside this script

IN_FLIGHT = 16
ZIPF_HOSTS = 20_000
STARTS = 7
# clock_getcpuclockid(3): in Linux the clock of a process is ~PID << 3 | CPUCLOCK_SCHED
_PROCESS_CLOCK = 2
FEW_RULES = 10
SYLLABLES = [
    consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"
]
WORDS = [
    "ads",
    "track",
    "cdn",
    "img",
    "static",
    "pixel",
    "metrics",
    "stats",
    "click",
    "banner",
    "shop",
    "www",
    "m",
]
SUFFIXES = (
    *("com",) * 24,
    *("net",) * 5,
    *("org",) * 3,
    "ru",
    "de",
    "co.uk",
    "info",
    "xyz",
    "top",
    "online",
    "com.br",
)
Figures = dict[str, list[dict[str, float]]]  # of each helper, those of each round


@dataclass(frozen=True)
class Contender:
    """A helper to measure: how it is started, and how a host and a path become a line
    for it.
    """

    name: str
    command: list[str]
    line: Callable[[str, str], str]
    folder: Path | None = None  # the policy that it loads, where it is ours


def main() -> None:
    parser = options_of(__doc__, hosts=1_000_000, rules=10_000, rounds=7, lines=20_000)
    parser.add_argument(
        "--awake", action="store_true", help="let no processor go to sleep"
    )
    chosen = parser.parse_args()
    listed = hosts_like_published_ones(chosen.hosts)
    with scratch() as folder, awake(chosen.awake):
        contenders = [*ours(folder, listed, chosen.rules), *squidguard(folder, listed)]
        alone = {
            contender.name: start_and_memory(contender, listed[0])
            for contender in contenders
        }
        figures = measure(contenders, listed, chosen.rounds, chosen.lines)
    print("\n".join(tables(alone, figures)))
    save(
        chosen.json,
        {
            "hosts": chosen.hosts,
            "rules": chosen.rules,
            "alone": alone,
            "rounds": figures,
        },
    )


def hosts_like_published_ones(number: int) -> list[str]:
    """Make that many hosts: domains of their own, and names below the same few, as
    lists of trackers hold them.
    """
    chance = random.Random(4)  # the same hosts in each run
    domains: list[str] = []
    hosts: dict[str, None] = {}
    while len(hosts) < number:
        label = "".join(chance.choices(SYLLABLES, k=chance.randint(2, 5)))
        if chance.random() < 0.3:
            label = f"{label}-{chance.choice(WORDS)}{chance.randint(0, 99)}"
        if chance.random() < 0.55 or not domains:
            domains.append(f"{label}.{chance.choice(SUFFIXES)}")
            hosts[domains[-1]] = None
        else:
            above = domains[int(len(domains) * chance.random() ** 2)]
            hosts[f"{chance.choice((label, label, *WORDS))}.{above}"] = None
    shuffled = list(hosts)
    chance.shuffle(shuffled)
    return shuffled


def ours(folder: Path, listed: list[str], rules: int) -> Iterator[Contender]:
    """Yield our helper at host scope with few and many rules, without and with the
    list, and at request scope.
    """
    (folder / "list.txt").write_text("".join(f".{host}\n" for host in listed))
    for number in (FEW_RULES, rules):
        for with_list in (False, True):
            name = f"host, {number} rules, {'list' if with_list else 'no list'}"
            yield acl("host", name, policy(folder, name, number, with_list))
    yield acl(
        "request",
        f"request, {FEW_RULES} rules, list",
        policy(folder, "request", FEW_RULES, with_list=True),
    )


def policy(folder: Path, name: str, rules: int, with_list: bool) -> Path:
    """Write a policy in which hosts are open one by one, and the listed ones closed."""
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir()
    text = "version: 1\ndefaults: {action: allow}\n"
    if with_list:
        os.link(folder / "list.txt", place / "list.txt")
        text += "lists: {listed: {file: list.txt}}\n"
    text += "rules:\n" + "".join(
        f"  - {{name: r{number}, action: allow, hosts: [h{number}.rules.example], paths: [/a/**]}}\n"
        for number in range(rules - with_list)
    )
    if with_list:
        text += "  - {name: listed, action: deny, lists: [listed]}\n"
    (place / "policy.yaml").write_text(text)
    return place


def acl(scope: str, name: str, place: Path) -> Contender:
    """Return our helper at a scope."""
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "acl",
        "--scope",
        scope,
        "--concurrency",
        str(IN_FLIGHT),
    ]
    command += [
        "--policy",
        str(place),
        "--state",
        str(place.with_name(f"{place.name}-state")),
    ]
    channel = count(1)

    def line(host: str, path: str) -> str:
        url = (
            f" http%3A%2F%2F{host}{path.replace('/', '%2F')}"
            if scope == "request"
            else ""
        )
        return f"{next(channel)} 192.0.2.1 - GET http {host} 80 - - -{url} -\n"

    return Contender(name, command, line, place)


def squidguard(folder: Path, listed: list[str]) -> Iterator[Contender]:
    """Yield squidGuard with the same list in its database, where it is installed."""
    if shutil.which("squidGuard") is None:
        print("squidGuard is not installed, so it is left out", file=sys.stderr)
        return
    place = folder / "squidguard"
    (place / "listed").mkdir(parents=True)
    (place / "listed/domains").write_text("".join(f"{host}\n" for host in listed))
    config = place / "squidGuard.conf"
    config.write_text(
        f"dbhome {place}\nlogdir {place}\ndest listed {{\n domainlist listed/domains\n}}\n"
        "acl {\n default {\n  pass !listed all\n  redirect http://blocked.example/\n }\n}\n"
    )
    subprocess.run(
        ["squidGuard", "-c", config, "-C", "all"], check=True, capture_output=True
    )
    yield Contender("squidGuard", ["squidGuard", "-c", str(config)], _squidguard_line)


def _squidguard_line(host: str, path: str) -> str:
    return f"http://{host}{path} 192.0.2.1/- - GET\n"


@contextmanager
def awake(wanted: bool) -> Iterator[None]:
    """Keep each processor busy with work that anything else takes it from, where that
    is wanted.
    """
    spin = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinning = [
        subprocess.Popen([sys.executable, "-c", spin])
        for _ in range((os.cpu_count() or 1) if wanted else 0)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


class Helper:
    """A helper that runs, asked through its pipes."""

    def __init__(self, contender: Contender) -> None:
        self._process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = (
            self._process.stdin.fileno(),
            self._process.stdout.fileno(),
        )
        self._line = contender.line

    def lines(self, asked: list[tuple[str, str]]) -> list[bytes]:
        """Write lines of Squid's about hosts and paths."""
        return [self._line(host, path).encode() for host, path in asked]

    def ask(self, lines: list[bytes]) -> bytes:
        """Ask lines at once, and wait for an answer to each."""
        os.write(self._to, b"".join(lines))
        answers = b""
        while answers.count(b"\n") < len(lines):
            got = os.read(self._from, 1 << 16)
            assert got, "the helper has ended"
            answers += got
        return answers

    def cpu_seconds(self) -> float:
        """Tell the processor time of all its threads, those that have ended too."""
        return time.clock_gettime(~self._process.pid << 3 | _PROCESS_CLOCK)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def start_and_memory(contender: Contender, host: str) -> dict[str, float]:
    """Start it several times; tell the time to the first answer, and its memory."""
    clock = []
    for number in range(STARTS + 1):  # the first compiles the list, and does not count
        began = time.perf_counter()
        with Helper(contender) as helper:
            answer = helper.ask(helper.lines([(f"x.{host}", "/")]))
            if number:
                clock.append(time.perf_counter() - began)
            held = memory_kilobytes(helper.pid)
            assert b"BH" not in answer, answer
    return {
        "start_milliseconds": statistics.median(clock) * 1000,
        "rss_megabytes": held["Rss"] / 1024,
    }


def memory_kilobytes(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {
        name: int(size.split()[0])
        for name, _, size in (line.partition(":") for line in lines)
    }


def measure(
    contenders: list[Contender], listed: list[str], rounds: int, lines: int
) -> Figures:
    """Measure all in turn; gives for each the figures of each round."""
    figures: Figures = {contender.name: [] for contender in contenders}
    chance = random.Random(5)  # the same requests in each run
    busy = zipf(chance, listed)
    with ExitStack() as stack:
        helpers = {
            contender.name: stack.enter_context(Helper(contender))
            for contender in contenders
        }
        for number in range(rounds + 1):  # the first warms up and does not count
            kinds = {"fresh": fresh(chance, listed, lines, number), "zipf": busy(lines)}
            for name, helper in helpers.items():
                found = {}
                for kind, asked in kinds.items():
                    found.update(
                        {
                            f"{kind}_{what}": figure
                            for what, figure in timed(helper, asked).items()
                        }
                    )
                if number:
                    figures[name].append(found)
                show(number, rounds, name)
    show(rounds, rounds, "")
    return figures


def fresh(
    chance: random.Random, listed: list[str], lines: int, number: int
) -> list[tuple[str, str]]:
    """Make requests to hosts that were never asked; half are below listed ones."""
    return [
        (
            f"f{number}x{line}.{chance.choice(listed) if line % 2 else 'open.example'}",
            f"/a/{line}",
        )
        for line in range(lines)
    ]


def zipf(
    chance: random.Random, listed: list[str]
) -> Callable[[int], list[tuple[str, str]]]:
    """Make what makes requests as a busy network's."""
    half = chance.sample(listed, min(len(listed), ZIPF_HOSTS // 2))
    hosts = [*half, *(f"h{number}.open.example" for number in range(ZIPF_HOSTS // 2))]
    chance.shuffle(hosts)
    weights = list(accumulate(1 / rank for rank in range(1, len(hosts) + 1)))

    def requests(lines: int) -> list[tuple[str, str]]:
        chosen = chance.choices(hosts, cum_weights=weights, k=lines)
        return [(host, f"/a/{chance.randrange(100_000)}") for host in chosen]

    return requests


def timed(helper: Helper, asked: list[tuple[str, str]]) -> dict[str, float]:
    """Ask, sixteen at a time; then a few hundred one by one, for the time that a single
    one takes.
    """
    lines = helper.lines(asked)
    single, many = lines[: len(lines) // 20], lines[len(lines) // 20 :]
    began, before = time.perf_counter(), helper.cpu_seconds()
    for start in range(0, len(many), IN_FLIGHT):
        helper.ask(many[start : start + IN_FLIGHT])
    seconds, cpu = time.perf_counter() - began, helper.cpu_seconds() - before
    taken = sorted(_seconds(helper, line) for line in single)
    return {
        "lines_per_second": len(many) / seconds,
        "cpu_microseconds": cpu / len(many) * 1e6,
        "one_microseconds": statistics.median(taken) * 1e6,
        "one_p99_microseconds": taken[len(taken) * 99 // 100] * 1e6,
    }


def _seconds(helper: Helper, line: bytes) -> float:
    began = time.perf_counter()
    helper.ask([line])
    return time.perf_counter() - began


def tables(alone: dict[str, dict[str, float]], figures: Figures) -> Iterator[str]:
    """Write the figures, then the ratios."""
    yield from table("start and memory", alone)
    medians = {
        name: {
            what: statistics.median(measured[what] for measured in rounds)
            for what in rounds[0]
        }
        for name, rounds in figures.items()
    }
    yield from table("medians", medians)
    whats = [
        f"{kind}_{what}"
        for kind in ("fresh", "zipf")
        for what in ("lines_per_second", "cpu_microseconds")
    ]
    found = {
        f"{one} / {other}": {
            what: ratio(figures[one], figures[other], what) for what in whats
        }
        for one, other in ratios(list(figures))
    }
    yield from table(
        "ratio: median of the rounds, and spread; above 1 is in favour of the first",
        found,
    )


def ratios(names: list[str]) -> Iterator[tuple[str, str]]:
    """Name what is compared with what: each of ours with the smallest, and those with a
    list against squidGuard.
    """
    smallest = names[0]
    yield from ((name, smallest) for name in names[1:] if name.startswith("host"))
    if "squidGuard" in names:
        yield from ((name, "squidGuard") for name in names if name.endswith(", list"))


def ratio(one: list[dict[str, float]], other: list[dict[str, float]], what: str) -> str:
    """Write how many times as fast one is, as the median of the rounds and their
    spread.
    """
    values = [a[what] / b[what] for a, b in zip(one, other, strict=True)]
    values = (
        [1 / value for value in values] if what.endswith("cpu_microseconds") else values
    )
    return str(spread(values))


if __name__ == "__main__":
    main()
