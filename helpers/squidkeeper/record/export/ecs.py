"""The format `ecs`: the Elastic Common Schema, version 8.

What it has no field for is below `squidkeeper`.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from squidkeeper.record.export.facts import (
    FAILURE,
    ExportOptions,
    Facts,
    facts_of,
    mapped,
    nested,
)
from squidkeeper.record.export.messages import MessageKind, Notice
from squidkeeper.record.log.record import Record

SCHEMA_VERSION: Final = "8.11.0"
ROWS: Final = {
    "@timestamp": "time",
    "message": "message",
    "event.start": "start",
    "event.end": "time",
    "event.duration": "duration_ns",
    "event.id": "request_id",
    "event.action": "action",
    "event.outcome": "outcome",
    "source.address": "client",
    "source.ip": "client",
    "source.port": "client_port",
    "source.bytes": "request_bytes",
    "destination.address": "url_host",
    "destination.domain": "url_host",
    "destination.ip": "upstream",
    "destination.port": "url_port",
    "destination.bytes": "bytes",
    "network.bytes": "total_bytes",
    "user.name": "user",
    "http.request.id": "request_id",
    "http.request.method": "method",
    "http.request.bytes": "request_bytes",
    "http.request.referrer": "referrer",
    "http.response.status_code": "status",
    "http.response.bytes": "bytes",
    "url.original": "url",
    "url.full": "url_full",
    "url.scheme": "url_scheme",
    "url.domain": "url_host",
    "url.port": "url_port",
    "url.path": "url_path",
    "url.query": "url_query",
    "user_agent.original": "user_agent",
    "tls.client.server_name": "sni",
    "rule.name": "rule",
    "rule.version": "revision",
    "error.code": "error",
    "observer.name": "gateway",
    "observer.version": "product_version",
    **{
        f"squidkeeper.{name}": name
        for name in (
            *(
                "verdict",
                "credential",
                "fetched",
                "tunnel",
                "upstream_ms",
                "squid",
                "connection",
                "tls_error",
                "cut",
            ),
            *(
                "hidden",
                "found",
                "observed",
                "worker",
                "page",
                "error_detail",
                "session",
            ),
            "content_type",  # ECS: http.response.mime_type is never from the header
        )
    },
}
RELATED: Final = {
    "related.ip": ("client", "upstream"),
    "related.hosts": ("url_host",),
    "related.user": ("user",),
}
_COMMON: Final = {
    "ecs.version": SCHEMA_VERSION,
    "event.module": "squidkeeper",
    "observer.vendor": "squidkeeper",
    "observer.product": "squidkeeper",
    "observer.type": "proxy",
}
_REQUEST: Final = {
    **_COMMON,
    "event.kind": "event",
    "event.category": ["network", "web"],
    "event.dataset": "squidkeeper.access",
    "network.direction": "outbound",
    "network.transport": "tcp",
}
_NOTICES: Final[Mapping[MessageKind, Mapping[str, Any]]] = {
    MessageKind.GAP: {"event.kind": "pipeline_error"},
    MessageKind.ARCHIVE_HEAD: {
        "event.kind": "event",
        "event.category": ["configuration"],
        "event.type": ["info"],
    },
    MessageKind.USAGE: {
        "event.kind": "event",
        "event.category": ["web"],
        "event.type": ["info"],
    },
}
_encoder = msgspec.json.Encoder()


def of_record(record: Record, options: ExportOptions) -> bytes:
    """Write a record."""
    facts = facts_of(record, options)
    values = {
        **_REQUEST,
        **mapped(ROWS, facts),
        "event.type": _types(facts),
        **_related(facts),
    }
    return _encoder.encode(nested(values))


def of_notice(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice, with its details below `squidkeeper`."""
    values: dict[str, Any] = {
        **_COMMON,
        "@timestamp": notice.time,
        "message": notice.message,
        **_NOTICES[notice.kind],
        "event.action": notice.kind,
        "event.dataset": "squidkeeper.export",
        "observer.name": options.gateway,
        "observer.version": options.version,
        **{f"squidkeeper.{name}": value for name, value in notice.details.items()},
    }
    return _encoder.encode(nested(values))


def _types(facts: Facts) -> list[str]:
    types = ["access", *([str(facts["action"])] if "action" in facts else [])]
    return (
        [*types, "error"] if facts["outcome"] == FAILURE and "error" in facts else types
    )


def _related(facts: Facts) -> dict[str, Any]:
    found = {
        name: sorted({str(facts[fact]) for fact in of if fact in facts})
        for name, of in RELATED.items()
    }
    return {name: values for name, values in found.items() if values}
