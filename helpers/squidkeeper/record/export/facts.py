"""The facts of a record that leave the gateway, decoded and typed.

Every format maps these names to its own. A fact that the record does not have is
absent. Text is decoded from percent-encoding; what is not printable in it (a client may
send any bytes) is in percent-encoding again.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import quote, urlsplit

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.language.model import BY_BODY, SEALED, UNAVAILABLE
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import parse_authority
from squidkeeper.record.log.listing import printable_field, shown_field
from squidkeeper.record.log.record import (
    NONE,
    Record,
    authority_of,
    decode_field,
    format_time,
    host_of,
    parse_time,
)

Fact = str | int | list[str]
Facts = Mapping[str, Fact]

ALLOWED: Final = "allowed"  # values of `action`
DENIED: Final = "denied"
ACTIONS: Final = {"allow": ALLOWED, "deny": DENIED}  # by the verdict
SUCCESS: Final = "success"  # values of `outcome`
FAILURE: Final = "failure"

# the time of a record whose own time is none
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443, "ftp": 21}
_PRINTABLE: Final = "".join(chr(code) for code in range(0x21, 0x7F))
_LARGEST: Final = 2**61  # receivers keep sums of numbers in 64 bits with a sign
# of a duration, which is also told in nanoseconds: thirty years
_LONGEST_MS: Final = 10**12
# the name in a format, and the name of the fact that stands there
Rows = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How records leave.

    `gateway` names it in notices, and in records that do not name it themselves.
    """

    version: str  # of squidkeeper
    gateway: str
    full_urls: bool = False  # with query and fragment
    longest: int | None = None  # bytes of a message at most


def facts_of(record: Record, options: ExportOptions) -> Facts:
    """List the facts of a record that is `leaving`, by name."""
    facts: dict[str, Fact | None] = {
        **_times(record),
        **_numbers(record),
        **_address_facts(record),
    }
    facts |= {name: shown_field(getattr(record, name)) for name in _TEXTS}
    facts |= {name: _names(getattr(record, name)) for name in _LISTS}
    facts |= _url_facts(record)
    facts |= {
        "gateway": facts["gateway"] or options.gateway,
        "product_version": options.version,
    }
    facts |= {
        "action": ACTIONS.get(record.verdict),
        "outcome": _outcome(record),
        "message": _message(facts),
    }
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


def clean(text: str | None) -> str | None:
    """Write what is not printable in percent-encoding: line ends, other control
    characters, invisible ones.
    """
    return None if text is None else printable_field(text)


_TEXTS: Final = (
    *(
        "user",
        "method",
        "verdict",
        "rule",
        "revision",
        "sni",
        "tunnel",
        "error",
        "user_agent",
        "squid",
        "connection",
    ),
    *(
        "tls_error",
        "cut",
        "hidden",
        "request_id",
        "content_type",
        "observed",
        "gateway",
        "worker",
        "page",
        "error_detail",
        "session",
    ),
)
_LISTS: Final = ("credential", "found")


def holds_what_it_must_not(facts: Mapping[str, Fact | None]) -> bool:
    """Whether a request held a secret, a canary or a placeholder: `found` has denying
    quotas and bodies too.
    """
    found = facts.get("found")
    names = found if isinstance(found, list | tuple) else [found] if found else []
    # its text may have commas
    is_by_body = bool(names) and str(names[0]).startswith(BY_BODY)
    return not is_by_body and any(
        not str(name).startswith(("quota", UNAVAILABLE, SEALED)) for name in names
    )


def _times(record: Record) -> dict[str, Fact | None]:
    try:
        at = parse_time(record)
    except ValueError:
        at = _EPOCH
    at = max(at, _EPOCH)
    milliseconds = round((at - _EPOCH).total_seconds() * 1000)
    duration = min(_positive(record.duration_ms) or 0, _LONGEST_MS)
    return {
        "time": format_time(at),
        "time_ms": milliseconds,
        "start": format_time(at - timedelta(milliseconds=min(duration, milliseconds))),
        "start_ms": max(0, milliseconds - duration),
        "duration_ms": duration,
        "duration_ns": duration * 1_000_000,
    }


def _numbers(record: Record) -> dict[str, Fact | None]:
    """List the numbers; 0 is none, but for what was sent."""
    sent, received = _positive(record.bytes) or 0, _positive(record.request_bytes)
    status = record.status if 100 <= record.status <= 999 else None
    return {
        "status": status,
        "status_text": str(status) if status else None,
        "bytes": sent,
        "request_bytes": received,
        "total_bytes": sent + received if received else None,
        "upstream_ms": _number(record.upstream_ms),
        "client_port": _number(record.client_port),
    }


def _positive(value: int) -> int | None:
    return value if 0 < value <= _LARGEST else None


def _number(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if is_number else None


def _address_facts(record: Record) -> dict[str, Fact | None]:
    return {name: _address(getattr(record, name)) for name in ("client", "upstream")}


def _address(text: str) -> str | None:
    with suppress(ValueError):
        return str(ip_address(text.partition("%")[0]))
    return None


def _names(field: str) -> list[str]:
    return [
        clean(name) or "" for name in (decode_field(field) or "").split(",") if name
    ]


def _url_facts(record: Record) -> dict[str, Fact | None]:
    facts: dict[str, Fact | None] = {
        name: _ascii(decode_field(getattr(record, name)))
        for name in ("fetched", "referrer")
    }
    if record.url == NONE:
        return facts
    url, host = _ascii(record.url), host_of(record.url).text
    scheme, slashes, _ = url.partition("://")
    facts["url"] = url
    if host != NONE:
        facts |= {"url_host": clean(host), "url_port": _port(record.url, scheme)}
    if slashes and record.method != CONNECT:
        facts |= {"url_full": url, "url_scheme": scheme, **_path_facts(url)}
    return facts


def _path_facts(url: str) -> dict[str, Fact | None]:
    with suppress(ValueError):
        parts = urlsplit(url)
        return {"url_path": parts.path, "url_query": parts.query}
    return {}


def _port(url: str, scheme: str) -> int | None:
    with suppress(InvalidUrl):
        return parse_authority(authority_of(url).rpartition("@")[2])[1] or _PORTS.get(
            scheme
        )
    return None


def _ascii(url: str | None) -> str:
    """Write a URL in printable ASCII: no receiver takes a part of it for something
    else.
    """
    return quote(url or "", safe=_PRINTABLE, errors="replace")


def _outcome(record: Record) -> str:
    if record.verdict == "deny" or record.status >= 400:
        return FAILURE
    return SUCCESS if record.status >= 100 else "unknown"


def _message(facts: Mapping[str, Fact | None]) -> str:
    words = ("verdict", "method", "url", "status", "rule")
    return " ".join(str(facts[name]) for name in words if facts.get(name))


def mapped(rows: Rows, facts: Facts) -> dict[str, Fact]:
    """Name the facts of a record as a format does; a fact that the record lacks is left
    out.
    """
    return {name: facts[fact] for name, fact in rows.items() if fact in facts}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make an object of each part of a dotted name: `a.b` is `b` in `a`."""
    top: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        inner = top
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return top
