"""What the dearest URLs cost a helper, beside an ordinary one, where many rules of one
host ask for its URL.

    .venv/bin/python tests/bench/dearest.py [--rules 200] [--rounds 5] [--json FILE]

.venv is the environment that tests/run makes. Milliseconds of processor time for one
decision: the first, in which what the rules ask for is made, and the median of those
after it, each about another URL. All are of 8 KB, which is what Squid takes; their
paths can be read in as many ways as are judged at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

from command import options_of, save, scratch, table, written  # type: ignore[import-not-found] # beside this script

from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import request_to

ASKED = {
    "a prefix": "paths: [/private-{}/**]",
    "a glob": "paths: ['/**/private-{}-*']",
    "an expression": "paths: ['regex:/.*private-{}.*x']",
    "an expression with groups": "paths: ['regex:/(?P<a>.*)/(?P<b>[^/]*)-private-{}']",
    "a value of the query": "query: {{q: '*private-{}*'}}",
    "two parts of a value": "query: {{q: '*private*{}*'}}",
}
MANY_READINGS = "/v///%5C%2525z./"
URLS: dict[str, Callable[[int], str]] = {
    "ordinary": lambda number: f"/v1/items/{number}?page=2",
    "long path": lambda number: f"/{number}" + "/a" * 3900,
    "path of many readings": lambda number: f"{MANY_READINGS}{number}" + "/a" * 3800,
    "query of many values": lambda number: (
        f"{MANY_READINGS}?" + "".join(f"q={n:x}&" for n in range(number, 1250))
    ),
    "query of equal values": lambda number: f"{MANY_READINGS}?{number}&" + "q&" * 3800,
}


def main() -> None:
    chosen = options_of(__doc__, rules=200, rounds=5).parse_args()
    figures = {
        asked: measure(field, chosen.rules, chosen.rounds)
        for asked, field in ASKED.items()
    }
    print("\n".join(table(f"ms with {chosen.rules} rules that ask for", figures)))
    save(chosen.json, figures)


def measure(field: str, rules: int, rounds: int) -> dict[str, str]:
    """Return per kind of URL the milliseconds of the first decision and of those after
    it, each by a new policy.
    """
    found = {}
    for kind, url in URLS.items():
        compiled = compiled_of(field, rules)
        first, *others = [
            seconds(compiled, url(number)) * 1000 for number in range(rounds + 1)
        ]
        found[kind] = f"{written(first)} / {written(statistics.median(others))}"
    return found


def compiled_of(field: str, rules: int) -> CompiledPolicy:
    with scratch() as folder:
        denies = "".join(
            f"  - {{name: r{number}, action: deny, hosts: [api.example], {field.format(number)}}}\n"
            for number in range(rules)
        )
        rest = "  - {name: open, action: allow, hosts: [api.example]}\n"
        (folder / "policy.yaml").write_text(f"version: 1\nrules:\n{denies}{rest}")
        return load(folder, datetime.now(UTC)).compiled


def seconds(compiled: CompiledPolicy, path: str) -> float:
    request, at = request_to("GET", f"https://api.example{path}"), datetime.now(UTC)
    began = time.process_time()
    decision = decide(compiled, compiled.match(request), at)
    taken = time.process_time() - began
    assert decision.rule == "open", decision
    return taken


if __name__ == "__main__":
    main()
