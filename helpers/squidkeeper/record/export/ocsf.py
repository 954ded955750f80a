"""The format `ocsf`: OCSF 1.8, class HTTP Activity (4002), as a security control and a
proxy tell it.

A notice is a Base Event: it tells about the export, not about a request.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from squidkeeper.record.export.facts import (
    ALLOWED,
    DENIED,
    SUCCESS,
    ExportOptions,
    Facts,
    facts_of,
    holds_what_it_must_not,
    mapped,
    nested,
)
from squidkeeper.record.export.messages import MessageKind, Notice
from squidkeeper.record.log.record import Record

SCHEMA_VERSION: Final = "1.8.0"
# an actor is of the first
PROFILES: Final = (
    "host",
    "network_proxy",
    "security_control",
)
ROWS: Final = {
    "time": "time_ms",
    "start_time": "start_ms",
    "end_time": "time_ms",
    "duration": "duration_ms",
    "message": "message",
    "status_code": "status_text",
    "status_detail": "error",
    "metadata.original_time": "time",
    "metadata.original_event_uid": "request_id",
    "metadata.product.version": "product_version",
    "src_endpoint.ip": "client",
    "src_endpoint.port": "client_port",
    "actor.user.name": "user",
    "dst_endpoint.hostname": "url_host",
    "dst_endpoint.ip": "upstream",
    "dst_endpoint.port": "url_port",
    "proxy_endpoint.hostname": "gateway",
    "connection_info.uid": "connection",
    "http_request.uid": "request_id",
    "http_request.length": "request_bytes",
    "http_request.referrer": "referrer",
    "http_request.user_agent": "user_agent",
    "http_request.url.url_string": "url",
    "http_request.url.scheme": "url_scheme",
    "http_request.url.hostname": "url_host",
    "http_request.url.port": "url_port",
    "http_request.url.path": "url_path",
    "http_request.url.query_string": "url_query",
    "http_response.code": "status",
    "http_response.length": "bytes",
    "http_response.content_type": "content_type",
    "http_response.latency": "upstream_ms",
    "traffic.bytes_out": "request_bytes",
    "traffic.bytes_in": "bytes",
    "traffic.bytes": "total_bytes",
    "firewall_rule.name": "rule",
    "policy.uid": "revision",
    **{
        f"unmapped.{name}": name
        for name in (
            *(
                "method",
                "verdict",
                "credential",
                "fetched",
                "sni",
                "tunnel",
                "squid",
                "tls_error",
                "cut",
                "hidden",
            ),
            *("found", "observed", "worker", "page", "error_detail", "session"),
        )
    },
}
_METHODS: Final = {
    "CONNECT": 1,
    "DELETE": 2,
    "GET": 3,
    "HEAD": 4,
    "OPTIONS": 5,
    "POST": 6,
    "PUT": 7,
    "TRACE": 8,
    "PATCH": 9,
}
_CLASS: Final = 4002
_UNKNOWN, _OTHER, _OUTBOUND = 0, 99, 2
_PRODUCT: Final = {"name": "squidkeeper", "vendor_name": "squidkeeper"}
_INFORMATIONAL: Final = {"severity_id": 1, "severity": "Informational"}
_LOW: Final = {"severity_id": 2, "severity": "Low"}
_HIGH: Final = {"severity_id": 4, "severity": "High"}
_DISPOSITIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    ALLOWED: {
        "action_id": 1,
        "action": "Allowed",
        "disposition_id": 1,
        "disposition": "Allowed",
    },
    DENIED: {
        "action_id": 2,
        "action": "Denied",
        "disposition_id": 2,
        "disposition": "Blocked",
    },
}
_UNDECIDED: Final = {
    "action_id": 0,
    "action": "Unknown",
    "disposition_id": 0,
    "disposition": "Unknown",
}
_STATUSES: Final = {
    SUCCESS: {"status_id": 1, "status": "Success"},
    "unknown": {"status_id": 0, "status": "Unknown"},
}
_FAILED: Final = {"status_id": 2, "status": "Failure"}
_encoder = msgspec.json.Encoder()


def of_record(record: Record, options: ExportOptions) -> bytes:
    """Write a record as an HTTP Activity."""
    facts = facts_of(record, options)
    values = {**mapped(ROWS, facts), **_classification(facts), **_judgement(facts)}
    return _encoder.encode(_complete(nested(values), facts))


def of_notice(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice as a Base Event."""
    event = {
        "category_uid": 0,
        "class_uid": 0,
        "activity_id": _OTHER,
        "activity_name": notice.kind,
        "type_uid": _OTHER,
        **(_HIGH if notice.kind is MessageKind.GAP else _INFORMATIONAL),
        "time": notice.time_ms,
        "message": notice.message,
        "metadata": {
            "version": SCHEMA_VERSION,
            "product": {**_PRODUCT, "version": options.version},
        },
        "unmapped": {
            "notice": notice.kind,
            "gateway": options.gateway,
            **notice.details,
        },
    }
    return _encoder.encode(event)


def _classification(facts: Facts) -> dict[str, Any]:
    method = str(facts.get("method", ""))
    activity = _METHODS.get(method, _OTHER if method else _UNKNOWN)
    names = {"http_request.http_method": method} if method in _METHODS else {}
    return {
        "category_uid": 4,
        "category_name": "Network Activity",
        "class_uid": _CLASS,
        "class_name": "HTTP Activity",
        "activity_id": activity,
        "activity_name": method.capitalize()
        if method in _METHODS
        else method or "Unknown",
        "type_uid": _CLASS * 100 + activity,
        **names,
    }


def _judgement(facts: Facts) -> dict[str, Any]:
    action = str(facts.get("action", ""))
    severity = (
        _HIGH
        if holds_what_it_must_not(facts)
        else _LOW
        if action == DENIED
        else _INFORMATIONAL
    )
    return {
        **severity,
        **_DISPOSITIONS.get(action, _UNDECIDED),
        **_STATUSES.get(str(facts["outcome"]), _FAILED),
        "is_alert": holds_what_it_must_not(facts),
    }


def _complete(event: dict[str, Any], facts: Facts) -> dict[str, Any]:
    event["metadata"] |= {
        "version": SCHEMA_VERSION,
        "profiles": PROFILES,
        "log_name": "access.log",
    }
    event["metadata"]["product"] |= _PRODUCT
    event["connection_info"] = event.get("connection_info", {}) | {
        "direction_id": _OUTBOUND,
        "direction": "Outbound",
        "protocol_name": "tcp",
    }
    event.setdefault("http_request", {})
    if "policy" in event:
        event["policy"]["name"] = "squidkeeper"
    if "status" not in facts:
        event.pop("http_response", None)
    if "client" not in facts:
        event.pop("src_endpoint", None)
    return event
