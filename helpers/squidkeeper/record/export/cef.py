r"""The format `cef`: ArcSight's Common Event Format, with the keys of its dictionary
alone.

A message is a head, whose parts end in `|`, and `key=value` pairs. In the head `|` and
`\` are escaped by a backslash, in a value `=` and `\`. Line ends are in
percent-encoding already.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from squidkeeper.record.export.facts import (
    ALLOWED,
    DENIED,
    ExportOptions,
    Fact,
    Facts,
    clean,
    facts_of,
    holds_what_it_must_not,
    mapped,
)
from squidkeeper.record.export.messages import MessageKind, Notice
from squidkeeper.record.log.record import Record

ROWS: Final = {
    "rt": "time_ms",
    "start": "start_ms",
    "end": "time_ms",
    "act": "action",
    "outcome": "outcome",
    "reason": "error",
    "externalId": "request_id",
    "dvchost": "gateway",
    "suser": "user",
    "spt": "client_port",
    "dhost": "url_host",
    "dpt": "url_port",
    "app": "url_scheme",
    "requestMethod": "method",
    "request": "url",
    "requestClientApplication": "user_agent",
    "requestContext": "referrer",
    "in": "request_bytes",
    "out": "bytes",
    "msg": "message",
}
ADDRESSES: Final = {  # by the kind of address: IPv4, then IPv6 with its label
    "client": ("src", "c6a2", "Source IPv6 Address"),
    "upstream": ("dst", "c6a3", "Destination IPv6 Address"),
}
LABELLED: Final = {  # keys whose meaning stands beside them, in KEYLabel
    "cs1": ("rule", "rule"),
    "cs2": ("revision", "revision"),
    "cs3": ("credential", "credential"),
    "cs4": ("sni", "sni"),
    "cs5": ("tunnel", "tunnel"),
    "cs6": ("other", ""),
    "cn1": ("status", "status"),
    "cn2": ("durationMilliseconds", "duration_ms"),
    "cn3": ("upstreamMilliseconds", "upstream_ms"),
    "flexString1": ("fetched", "fetched"),
    "flexString2": ("found", "found"),
}
OTHER: Final = (
    "content_type",
    "squid",
    "connection",
    "tls_error",
    "cut",
    "hidden",
    "observed",
    "worker",
    "page",
    "error_detail",
    "session",
)
_OUTBOUND: Final = 1
_KINDS: Final[
    Mapping[str, tuple[MessageKind | str, str, int]]
] = {  # signature, name, severity from 0 to 10
    ALLOWED: (MessageKind.ALLOWED, "Request allowed", 1),
    DENIED: (MessageKind.DENIED, "Request denied", 5),
}
_UNDECIDED: Final = (MessageKind.UNDECIDED, "Request that no rule decided", 3)
_FOUND: Final = ("found", "Request that holds a secret, a canary or a placeholder", 9)
_NOTICES: Final = {
    MessageKind.GAP: ("Records are missing", 8),
    MessageKind.ARCHIVE_HEAD: ("Head of the archive", 1),
    MessageKind.USAGE: ("Tokens that a request used", 1),
}


def of_record(record: Record, options: ExportOptions) -> bytes:
    """Write a record."""
    facts = facts_of(record, options)
    signature, name, severity = (
        _FOUND
        if holds_what_it_must_not(facts)
        else _KINDS.get(str(facts.get("action")), _UNDECIDED)
    )
    pairs = [
        *mapped(ROWS, facts).items(),
        *_addresses(facts),
        *_labelled(facts),
        ("deviceDirection", _OUTBOUND),
    ]
    return _message(options, signature, name, severity, dict(pairs))


def of_notice(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice, with its details in `cs6`."""
    name, severity = _NOTICES[notice.kind]
    pairs: dict[str, Fact] = {
        "rt": notice.time_ms,
        "dvchost": options.gateway,
        "msg": notice.message,
        "cs6": _together(notice.details),
        "cs6Label": "other",
    }
    return _message(options, notice.kind, name, severity, pairs)


def _addresses(facts: Facts) -> Iterator[tuple[str, Fact]]:
    for fact, (key, key6, label) in ADDRESSES.items():
        if fact not in facts:
            continue
        if ":" in str(facts[fact]):
            yield from ((key6, facts[fact]), (f"{key6}Label", label))
        else:
            yield key, facts[fact]


def _labelled(facts: Facts) -> Iterator[tuple[str, Fact]]:
    other = _together({name: facts[name] for name in OTHER if name in facts})
    for key, (label, fact) in LABELLED.items():
        value = facts.get(fact) if fact else other
        if value:
            yield from ((key, value), (f"{key}Label", label))


def _together(values: Mapping[str, Fact]) -> str:
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _message(
    options: ExportOptions,
    signature: str,
    name: str,
    severity: int,
    pairs: Mapping[str, Fact],
) -> bytes:
    head = (
        "CEF:0",
        "squidkeeper",
        "squidkeeper",
        options.version,
        signature,
        name,
        str(severity),
    )
    escaped = "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in head)
    extension = " ".join(
        f"{key}={_escaped(_text(value))}" for key, value in pairs.items()
    )
    return f"{escaped}|{extension}".encode()


def _escaped(text: str) -> str:
    return (clean(text) or "").replace("\\", "\\\\").replace("=", "\\=")


def _text(value: Fact) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
