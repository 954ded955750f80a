"""Records as Squid writes them: an allowed GET, with other fields where a test gives
them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from squidkeeper.record.log.record import NONE, VERSION, Record, format_time

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
USUAL: dict[str, Any] = {
    **dict.fromkeys(Record.__struct_fields__, NONE),
    "v": VERSION,
    "time": "2026-11-25T12:00:00.000Z",
    "client": "192.168.137.2",
    "method": "GET",
    "url": "https://open.example/x",
    "status": 200,
    "bytes": 500,
    "duration_ms": 3,
    "verdict": "allow",
    "rule": "open",
    "revision": "0123456789ab",
    "squid": "TCP_MISS/HIER_DIRECT",
    "connection": "1",
    "request_bytes": 120,
}


def record(**fields: Any) -> Record:
    """Make a record with these fields."""
    return Record(**{**USUAL, **fields})


def record_line(**fields: Any) -> bytes:
    """Make a line of the access log with these fields, without its newline."""
    return json.dumps({**USUAL, **fields}, separators=(",", ":")).encode()


def after_noon(seconds: float) -> str:
    """Write the time that is so many seconds after NOON as a record has it."""
    return format_time(NOON + timedelta(seconds=seconds))
