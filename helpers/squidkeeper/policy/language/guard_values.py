"""Values that a policy and a sealed token have in common: ports, times, and the hosts
that a secret may be sent to.
"""

import re
from datetime import datetime
from typing import Final

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.hosts import HostForm, HostPattern

EXPECTED_PORT: Final = 'a number from 1 to 65535 (without quotes), or "from-to"'
EXPECTED_TIME: Final = "a time with its zone such as 2026-12-01T18:00:00Z"
NARROWER: Final = "expected a narrower one"
PORTS: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
TIME: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[Tt ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?P<zone>[Zz]| ?[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)
_PORT_AT_MOST = 65535


def parse_ports(value: object) -> range | None:
    """Read a number or `from-to`; None where it is neither, `PatternError` for what
    can never match.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _port_range(value, value, str(value))
    match = PORTS.fullmatch(value) if isinstance(value, str) else None
    return match and _port_range(int(match[1]), int(match[2]), match[0])


def _port_range(first: int, last: int, text: str) -> range:
    if not 1 <= first <= last <= _PORT_AT_MOST:
        raise PatternError(f"port {text} can never match, expected {EXPECTED_PORT}")
    return range(first, last + 1)


def parse_time(text: object) -> datetime | None:
    """Read a time with its zone; None where it is no time, `PatternError` for one that
    is not exact or does not exist.
    """
    match = TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    zone = match["zone"]
    if not zone:
        raise PatternError(f"time {text} has no time zone, expected {EXPECTED_TIME}")
    if zone.upper() != "Z" and zone[3:4] != ":":
        raise PatternError(
            f"time {text} has its zone in another form, expected it as +01:00 or Z"
        )
    try:
        return datetime.fromisoformat(match[0].upper())
    except ValueError as error:
        raise PatternError(
            f"time {text} does not exist ({error}), expected {EXPECTED_TIME}"
        ) from None


def check_narrow(pattern: HostPattern) -> HostPattern:
    """Refuse a pattern for hosts that nobody can mean to give a secret to."""
    if pattern.form is HostForm.ANY:
        raise PatternError(
            "host pattern '*' in a credential would give it to any host, expected the hosts that it is for"
        )
    if pattern.covers_top_level:
        raise PatternError(
            f"host pattern {pattern.text!r} in a credential covers a whole top-level domain, {NARROWER}"
        )
    return pattern
