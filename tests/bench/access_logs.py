"""An access log as Squid would write it for many clients, of any length: the same lines
in each run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

START = datetime(2026, 11, 20, tzinfo=UTC)
CLIENTS = [f"192.168.{number // 250}.{number % 250 + 2}" for number in range(200)]
DOMAINS = ("example.com", "pypi.example", "github.example", "corp.example")
HOSTS = [f"h{number}.{DOMAINS[number % len(DOMAINS)]}" for number in range(3000)]
# a few hosts have most requests
WEIGHTS = list(accumulate(1 / (number + 1) for number in range(len(HOSTS))))
AGENTS = (
    "python-requests%2F2.32",
    "curl%2F8.14.1",
    "pip%2F25.0%20%7B%22ci%22%3Anull%7D",
    "git%2F2.47.3",
    "node",
)
PATHS = ("simple", "api/v1", "repos")
REQUESTS_IN_TUNNEL = (1, 1, 2, 3, 6)
STATUSES, STATUS_WEIGHTS = (200, 304, 404, 500, 503), (90, 4, 4, 1, 1)
DENIED_SHARE = 0.12
SECONDS_BETWEEN = 0.06
QUESTIONS_IN_TUNNEL = (1 - DENIED_SHARE) * sum(REQUESTS_IN_TUNNEL) / len(
    REQUESTS_IN_TUNNEL
) + DENIED_SHARE
LINE = (
    '{{"v":1,"time":"{time}","client":"{client}","user":"-","method":"{method}","url":"{url}","status":{status},'
    '"bytes":{bytes},"duration_ms":{duration},"verdict":"{verdict}","rule":"{rule}","revision":"{revision}",'
    '"credential":"-","fetched":"-","sni":"{sni}","tunnel":"{tunnel}","upstream":"{upstream}",'
    '"upstream_ms":"{upstream_ms}","error":"{error}","user_agent":"{agent}","squid":"{squid}",'
    '"connection":"{connection}","tls_error":"-","cut":"-","hidden":"-","request_id":"{request_id}","found":"-",'
    '"request_bytes":{sent},"client_port":"{port}","content_type":"{type}","referrer":"-","observed":"-",'
    '"gateway":"gateway-1","worker":"1","page":"-","error_detail":"-"}}\n'
)
TYPES = ("application%2Fjson", "text%2Fhtml", "application%2Foctet-stream")
NOTHING = {
    **dict.fromkeys(("sni", "upstream", "upstream_ms", "error", "type"), "-"),
    "bytes": 0,
    "duration": 1,
    "sent": 0,
    "squid": "NONE_NONE/HIER_NONE",
}


def write_log(
    path: Path, number: int, revisions: tuple[str, ...], questions: int | None = None
) -> None:
    """Write a log of this many lines, or some more; the records name these revisions of
    the policy in turn.

    With `questions`, no more than about so many different ones are asked; without, each
    URL is another one.
    """
    with path.open("w", encoding="ascii") as file:
        written = 0
        for lines in tunnels(
            revisions,
            None if questions is None else int(questions / QUESTIONS_IN_TUNNEL),
        ):
            file.writelines(lines)
            written += len(lines)
            if written >= number:
                return


def tunnels(
    revisions: tuple[str, ...], kinds: int | None = None
) -> Iterator[list[str]]:
    """Make the lines of one tunnel after the other: its CONNECT, then the requests
    inside.

    With `kinds`, two tunnels of a kind have the same client and the same requests.
    """
    chances, at, connection = random.Random(7), START, 0
    while True:
        at += timedelta(seconds=chances.expovariate(1 / SECONDS_BETWEEN))
        connection += 1
        chance = chances if kinds is None else random.Random(chances.randrange(kinds))
        host = chance.choices(HOSTS, cum_weights=WEIGHTS)[0]
        common = NOTHING | {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "client": chance.choice(CLIENTS),
            "connection": connection,
            "agent": chance.choice(AGENTS),
            "revision": chance.choice(revisions),
            "port": (port := chance.randrange(30_000, 60_000)),
            "request_id": f"{at.timestamp():.0f}.{at.microsecond // 1000}.{connection}.{port}",
        }
        yield (
            denied(chance, common, host)
            if chance.random() < DENIED_SHARE
            else allowed(chance, common, host)
        )


def denied(chance: random.Random, common: dict[str, object], host: str) -> list[str]:
    """Make a denied CONNECT, and the request inside that got the page."""
    common |= {"verdict": "deny", "rule": "default", "tunnel": f"{host}%3A443%20first"}
    url = f"https://{host}/{chance.getrandbits(40):x}/{chance.choice(PATHS)}?q={chance.getrandbits(64):x}"
    answer = {
        "squid": "TCP_DENIED_REPLY/HIER_NONE",
        "error": "ERR_ACCESS_DENIED",
        "sni": host,
    }
    connect = {
        "method": "CONNECT",
        "url": f"{host}:443",
        "status": 200,
        "squid": "TCP_DENIED/HIER_NONE",
    }
    asked = {"method": "GET", "url": url, "status": 403, "bytes": 3819, "sent": 420}
    return [LINE.format_map(common | connect), LINE.format_map(common | answer | asked)]


def allowed(chance: random.Random, common: dict[str, object], host: str) -> list[str]:
    """Make the CONNECT of an opened tunnel, and the requests inside."""
    common |= {
        "verdict": "allow",
        "rule": f"rule-{len(host) % 40}",
        "tunnel": f"{host}%3A443",
    }
    connect = common | {"method": "CONNECT", "url": f"{host}:443", "status": 200}
    requests = (
        common | inside(chance, host) for _ in range(chance.choice(REQUESTS_IN_TUNNEL))
    )
    return [LINE.format_map(connect), *map(LINE.format_map, requests)]


def inside(chance: random.Random, host: str) -> dict[str, object]:
    """Make a request inside a tunnel."""
    path = f"{chance.choice(PATHS)}/{chance.getrandbits(32):x}/{chance.getrandbits(24):x}?t={chance.getrandbits(64):x}"
    return {
        "method": chance.choice(("GET", "GET", "GET", "POST")),
        "url": f"https://{host}/{path}",
        "status": chance.choices(STATUSES, STATUS_WEIGHTS)[0],
        "bytes": int(chance.lognormvariate(8, 2)),
        "duration": int(chance.lognormvariate(4, 1)),
        "sni": host,
        "sent": chance.randrange(200, 2000),
        "type": chance.choice(TYPES),
        "upstream": f"10.0.0.{chance.randrange(250)}",
        "upstream_ms": int(chance.lognormvariate(4, 1)),
        "squid": "TCP_MISS/HIER_DIRECT",
    }
