"""The status page: whether anything is wrong, and nothing from outside that could do harm."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from squidkeeper.observe.status import (
    Certificate,
    Drift,
    PolicyInForce,
    RecentDenials,
    RecordFollowed,
    Squid,
    Status,
    page,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_a_page_of_a_gateway_that_has_just_been_started() -> None:
    status = Status(
        at=NOW,
        version="0",
        policy=PolicyInForce(Path("/etc/squidkeeper/policy"), "r1", NOW, "deny"),
        rules=(),
        denials=RecentDenials().newest(),
        helpers=(),
        secrets=(),
        ca=Certificate(Path("/ca.crt"), "CN=ca", NOW.replace(year=2036)),
        record=RecordFollowed(Path("/var/log/squid/access.log"), readable=True),
        drift=Drift(),
        squid=Squid("127.0.0.1:3128", up=True),
    )
    assert "All is well" in page(status)
