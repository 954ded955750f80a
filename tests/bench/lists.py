"""What a list of a million hosts costs, in each format: to compile it once, to load it
afterwards, and in a helper.

    .venv/bin/python tests/bench/lists.py [--hosts 1000000] [--rounds 5] [--json FILE]

.venv is the environment that tests/run makes. Medians of the rounds; "cpu" is user and
system time of the process and its children, which other work on the machine touches
less than the time on the clock.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from command import options_of, save, scratch, table  # type: ignore[import-not-found] # beside this script
from lines import Helper, acl, hosts_like_published_ones, memory_kilobytes  # type: ignore[import-not-found]

from squidkeeper.policy.policy_store.list_compiler import list_digest, load_list
from squidkeeper.policy.url import Host

FORMATS: dict[str, tuple[str, str]] = {
    "host patterns": ("# a list\n", ".{}\n"),
    "hosts(5)": ("127.0.0.1 localhost\n", "0.0.0.0 {}\n"),
    "Adblock": ("[Adblock Plus]\n! Title: a list\n", "||{}^\n"),
    "dnsmasq": ("# a list\n", "address=/{}/\n"),
    "RPZ": (
        "$TTL 300\n@ IN SOA localhost. root.localhost. 1 2 3 4 5\n",
        "{0} CNAME .\n*.{0} CNAME .\n",
    ),
}


def measure(name: str, hosts: list[str], rounds: int) -> dict[str, float]:
    head, line = FORMATS[name]
    with scratch() as folder:
        path = folder / "policy" / "list.txt"
        path.parent.mkdir()
        path.write_text(head + "".join(line.format(host) for host in hosts))
        digest = list_digest(path)
        caches = [folder / f"cache{number}" for number in range(rounds)]
        compiled = [timed(partial(load_list, path, digest, cache)) for cache in caches]
        loaded = [
            timed(partial(load_list, path, digest, caches[0]))
            for _ in range(5 * rounds)
        ]
        found = load_list(path, digest, caches[0])
        assert (found.summary.patterns, found.summary.strange) == (len(hosts), 0)
        asked = [
            Host(f"{prefix}{host}") for host in hosts[:20_000] for prefix in ("", "x")
        ]
        looked_up = [
            timed(lambda: [host in found for host in asked]) for _ in range(rounds)
        ]
        return {
            "compile_cpu_seconds": statistics.median(cpu for _, cpu in compiled),
            "load_milliseconds": statistics.median(seconds for seconds, _ in loaded)
            * 1000,
            "lookup_microseconds": statistics.median(cpu for _, cpu in looked_up)
            / len(asked)
            * 1e6,
            "cache_megabytes": next(caches[0].glob("*.hosts")).stat().st_size / 1e6,
            **helper_memory(path.parent, hosts[0]),
        }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds on the clock, and those of the processors."""
    started, before = time.perf_counter(), time.process_time() + sum(os.times()[2:4])
    call()
    return time.perf_counter() - started, time.process_time() + sum(
        os.times()[2:4]
    ) - before


def helper_memory(folder: Path, host: str) -> dict[str, float]:
    """Start two helpers that share the list; give what the second holds, and what of
    that is its own alone.
    """
    (folder / "policy.yaml").write_text(
        "version: 1\nlists: {l: {file: list.txt}}\nrules: [{name: listed, action: deny, lists: [l]}]\n"
    )
    contender = acl("host", "list", folder)
    with Helper(contender) as first, Helper(contender) as second:
        for helper in (first, second):
            assert b"rule_=listed" in helper.ask(helper.lines([(host, "/")]))
        held = memory_kilobytes(second.pid)
    return {
        "helper_rss_megabytes": held["Rss"] / 1024,
        "helper_private_megabytes": (held["Private_Clean"] + held["Private_Dirty"])
        / 1024,
    }


def main() -> None:
    options = options_of(__doc__, hosts=1_000_000, rounds=5).parse_args()
    hosts = hosts_like_published_ones(options.hosts)
    results = {name: measure(name, hosts, options.rounds) for name in FORMATS}
    print("\n".join(table(f"{options.hosts:,} hosts", results)))
    save(options.json, {"hosts": options.hosts, "formats": results})


if __name__ == "__main__":
    main()
