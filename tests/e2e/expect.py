"""What a test expects of one request: the client's answer, the record in the log and
what the origin saw, together.
"""

from pathlib import Path
from typing import Any

from .curl import curl
from .gateway import Gateway
from .origin import Origins, Seen
from .reply import Reply

Log = list[dict[str, Any]]


def allowed(
    gateway: Gateway,
    origins: Origins,
    url: str,
    rule: str,
    *options: str | Path,
    client: str = "127.0.0.1",
) -> Seen:
    """Expect 200 by this rule, logged; return the one request that reached an
    origin.
    """
    before, seen = len(gateway.log()), len(origins.seen)
    reply = curl(gateway, url, *options, client=client)
    told = (origins.broken, gateway.log()[before:], reply.text)
    assert reply.status == 200, (
        f"{url}: {reply.status}; the origin, the log and the page: {told}"
    )
    line = gateway.logged(url, before)
    assert (line["status"], line["verdict"], line["rule"]) == (200, "allow", rule), line
    assert len(origins.seen) == seen + 1, origins.urls()
    return origins.seen[-1]


def denied(
    gateway: Gateway,
    origins: Origins,
    url: str,
    rule: str,
    *options: str | Path,
    client: str = "127.0.0.1",
    reason: str | None = None,
) -> Reply:
    """Expect a 403 page that names this rule, the denial in the access log, and no
    connection to any origin.
    """
    before, connections = len(gateway.log()), len(origins.connections)
    reply = curl(gateway, url, *options, client=client)
    assert (reply.status, reply.rule) == (403, rule), (
        f"{url}: {reply.status}\n{reply.text}"
    )
    assert reason is None or reply.reason == reason, reply.text
    assert rule in ruled(gateway, url, before), gateway.log()[before:]
    assert origins.connections[connections:] == [], f"{url} reached {origins.urls()}"
    return reply


def ruled(gateway: Gateway, url: str, before: int) -> set[str]:
    """The rules that the log names for a denied URL: on its own line, or on its
    tunnel's CONNECT.
    """
    line = gateway.logged(url, before)
    assert line["status"] == 403, line
    place = line["connection"], line["worker"]
    tunnel = [
        other
        for other in gateway.log()[before:]
        if (other["connection"], other["worker"]) == place
    ]
    return {other["rule"] for other in tunnel if other["verdict"] == "deny"}
