"""What a list of a million hosts costs, in each format: to compile it once, to load it afterwards, and in a helper.

    .venv/bin/python tests/bench/lists.py [--hosts 1000000] [--rounds 5] [--json FILE]

.venv is the environment that tests/run makes. Medians of the rounds; "cpu" is user and system time of the process and
its children, which other work on the machine touches less than the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from command import at_least_one, written  # type: ignore[import-not-found] # beside this script

from squidkeeper.policy.policy_store.list_compiler import list_digest, load_list
from squidkeeper.policy.url import Host

FORMATS: dict[str, tuple[str, str]] = {
    "host patterns": ("# a list\n", ".{}\n"),
    "hosts(5)": ("127.0.0.1 localhost\n", "0.0.0.0 {}\n"),
    "Adblock": ("[Adblock Plus]\n! Title: a list\n", "||{}^\n"),
    "dnsmasq": ("# a list\n", "address=/{}/\n"),
    "RPZ": ("$TTL 300\n@ IN SOA localhost. root.localhost. 1 2 3 4 5\n", "{0} CNAME .\n*.{0} CNAME .\n"),
}
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]
WORDS = (
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
    "go",
)
SUFFIXES = (*("com",) * 24, *("net",) * 5, *("org",) * 3, "ru", "de", "co.uk", "info", "xyz", "top", "online", "com.br")


def hosts_like_published_ones(number: int) -> list[str]:
    """Make that many hosts: domains of their own, and names below the same few, as lists of trackers hold them."""
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


def measure(name: str, hosts: list[str], rounds: int) -> dict[str, float]:
    head, line = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy" / "list.txt"
        path.parent.mkdir()
        path.write_text(head + "".join(line.format(host) for host in hosts))
        digest = list_digest(path)
        caches = [Path(folder) / f"cache{number}" for number in range(rounds)]
        compiled = [timed(partial(load_list, path, digest, cache)) for cache in caches]
        loaded = [timed(partial(load_list, path, digest, caches[0])) for _ in range(5 * rounds)]
        found = load_list(path, digest, caches[0])
        assert (found.summary.patterns, found.summary.strange) == (len(hosts), 0)
        asked = [Host(f"{prefix}{host}") for host in hosts[:20_000] for prefix in ("", "x")]
        looked_up = [timed(lambda: [host in found for host in asked]) for _ in range(rounds)]
        return {
            "compile_seconds": statistics.median(seconds for seconds, _ in compiled),
            "compile_cpu_seconds": statistics.median(cpu for _, cpu in compiled),
            "load_milliseconds": statistics.median(seconds for seconds, _ in loaded) * 1000,
            "lookup_microseconds": statistics.median(cpu for _, cpu in looked_up) / len(asked) * 1e6,
            "cache_megabytes": next(caches[0].glob("*.hosts")).stat().st_size / 1e6,
            **helper_memory(path.parent, Path(folder) / "state", hosts[0]),
        }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Give the seconds on the clock, and those of the processors."""
    started, before = time.perf_counter(), cpu_seconds()
    call()
    return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def helper_memory(policy: Path, state: Path, host: str) -> dict[str, float]:
    """Start two helpers that share the list; give what the second holds, and what of that is its own alone."""
    (policy / "policy.yaml").write_text(
        "version: 1\nlists: {l: {file: list.txt}}\nrules: [{name: listed, action: deny, lists: [l]}]\n"
    )
    command = [sys.executable, "-m", "squidkeeper", "acl", "--scope", "host", "--concurrency", "16"]
    command += ["--policy", str(policy), "--state", str(state)]
    helpers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        for helper in helpers:
            assert b"rule_=listed" in ask(helper, f"1 192.0.2.1 - GET http {host} 80 - - -\n")
        held = memory_kilobytes(helpers[1].pid)
    finally:
        for helper in helpers:
            helper.communicate()
    return {
        "helper_rss_megabytes": held["Rss"] / 1024,
        "helper_pss_megabytes": held["Pss"] / 1024,
        "helper_private_megabytes": (held["Private_Clean"] + held["Private_Dirty"]) / 1024,
    }


def ask(helper: subprocess.Popen[bytes], line: str) -> bytes:
    assert helper.stdin is not None
    assert helper.stdout is not None
    helper.stdin.write(line.encode())
    helper.stdin.flush()
    return helper.stdout.readline()


def memory_kilobytes(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}


def table(hosts: int, results: dict[str, dict[str, float]]) -> Iterator[str]:
    columns = list(next(iter(results.values())))
    yield f"| {hosts:,} hosts | " + " | ".join(column.replace("_", " ") for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, figures in results.items():
        yield f"| {name} | " + " | ".join(written(figures[column]) for column in columns) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=at_least_one, default=1_000_000)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hosts = hosts_like_published_ones(options.hosts)
    results = {name: measure(name, hosts, options.rounds) for name in FORMATS}
    print("\n".join(table(options.hosts, results)))
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": sys.version.split()[0], "hosts": options.hosts}
        options.json.write_text(json.dumps({**machine, "formats": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
