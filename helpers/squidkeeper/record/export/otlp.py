"""The format `otlp`: log records of OpenTelemetry, in protobuf; for https alone.

Attributes have the names of OpenTelemetry's semantic conventions, those that it has
none for begin with `squidkeeper`. The protobufs are imported on the first use: no other
format needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from squidkeeper.record.export.facts import (
    DENIED,
    ExportOptions,
    Fact,
    Facts,
    facts_of,
    holds_what_it_must_not,
    mapped,
)
from squidkeeper.record.export.messages import MessageKind, Notice
from squidkeeper.record.log.record import Record

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

ROWS: Final = {
    "client.address": "client",
    "client.port": "client_port",
    "user.name": "user",
    "server.address": "url_host",
    "server.port": "url_port",
    "network.peer.address": "upstream",
    "url.full": "url_full",
    "url.scheme": "url_scheme",
    "url.path": "url_path",
    "url.query": "url_query",
    "http.request.method_original": "method",
    "http.request.size": "request_bytes",
    "http.request.header.referer": "referrer",
    "http.response.status_code": "status",
    "http.response.size": "bytes",
    "http.response.header.content-type": "content_type",
    "user_agent.original": "user_agent",
    "error.type": "error",
    **{
        f"squidkeeper.{name}": name
        for name in (
            *(
                "url",
                "verdict",
                "rule",
                "revision",
                "credential",
                "fetched",
                "sni",
                "tunnel",
                "duration_ms",
            ),
            *(
                "upstream_ms",
                "squid",
                "connection",
                "tls_error",
                "cut",
                "hidden",
                "request_id",
                "found",
                "observed",
            ),
            *("gateway", "worker", "page", "error_detail", "session"),
        )
    },
}
_OF_USAGE: Final = {
    "client": "client.address",
    "user": "user.name",
    "host": "server.address",
    "model": "gen_ai.response.model",  # of a reserve, the one of the request
    "tokens_in": "gen_ai.usage.input_tokens",
    "cached_in": "gen_ai.usage.cache_read.input_tokens",
    "cache_write": "gen_ai.usage.cache_creation.input_tokens",
    "tokens_out": "gen_ai.usage.output_tokens",
}
CONTENT_TYPE: Final = "application/x-protobuf"
_METHODS: Final = (
    "CONNECT",
    "DELETE",
    "GET",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "POST",
    "PUT",
    "TRACE",
    "QUERY",
)
# a header may stand twice
_LISTS: Final = (
    "http.request.header.referer",
    "http.response.header.content-type",
)
# numbers of severities, as the protocol has them
_INFO, _WARN, _ERROR = (
    (9, "INFO"),
    (13, "WARN"),
    (17, "ERROR"),
)
_NANOSECONDS: Final = 1_000_000  # of a millisecond


def of_record(record: Record, options: ExportOptions) -> bytes:
    """Write a record as one serialized LogRecord."""
    facts = facts_of(record, options)
    severity = (
        _ERROR
        if holds_what_it_must_not(facts)
        else _WARN
        if facts.get("action") == DENIED
        else _INFO
    )
    return _log_record(
        "request",
        int(str(facts["time_ms"])),
        severity,
        str(facts["message"]),
        _attributes(facts),
    )


def of_notice(notice: Notice, options: ExportOptions) -> bytes:
    """Write a notice as one serialized LogRecord."""
    severity = _ERROR if notice.kind is MessageKind.GAP else _INFO
    details = {"gateway": options.gateway, **notice.details}
    names = _OF_USAGE if notice.kind is MessageKind.USAGE else {}
    attributes: dict[str, Fact] = {
        names.get(name, f"squidkeeper.{name}"): value for name, value in details.items()
    }
    return _log_record(
        notice.kind, notice.time_ms, severity, notice.message, attributes
    )


def body(messages: Sequence[bytes], options: ExportOptions) -> bytes:
    """Write log records as the body of one request: an ExportLogsServiceRequest."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
        ExportLogsServiceRequest,
    )
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

    about: dict[str, Fact] = {
        "service.name": "squidkeeper",
        "service.version": options.version,
        "service.instance.id": options.gateway,
    }
    scope = ScopeLogs(
        scope=InstrumentationScope(name="squidkeeper", version=options.version),
        log_records=map(LogRecord.FromString, messages),
    )
    resource = ResourceLogs(
        resource=Resource(attributes=_key_values(about)), scope_logs=[scope]
    )
    request: bytes = ExportLogsServiceRequest(
        resource_logs=[resource]
    ).SerializeToString()
    return request


def rejected(answer: bytes) -> int:
    """Count the log records that a receiver has rejected for good: the partial success
    of a good answer.
    """
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
        ExportLogsServiceResponse,
    )

    try:
        number: int = ExportLogsServiceResponse.FromString(
            answer
        ).partial_success.rejected_log_records
    except DecodeError:
        return 0  # a good status is enough
    return max(0, number)


def _attributes(facts: Facts) -> dict[str, Fact]:
    attributes = mapped(ROWS, facts)
    if method := attributes.pop("http.request.method_original", None):
        is_known = method in _METHODS
        attributes |= {"http.request.method": method if is_known else "_OTHER"}
        attributes |= {} if is_known else {"http.request.method_original": method}
    return attributes | {
        name: [str(attributes[name])] for name in _LISTS if name in attributes
    }


def _log_record(
    event: str,
    at_milliseconds: int,
    severity: tuple[int, str],
    text: str,
    attributes: Mapping[str, Fact],
) -> bytes:
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber

    number, name = severity
    serialized: bytes = LogRecord(
        time_unix_nano=at_milliseconds * _NANOSECONDS,
        observed_time_unix_nano=at_milliseconds * _NANOSECONDS,
        severity_number=SeverityNumber.ValueType(number),
        severity_text=name,
        body=_any(text),
        attributes=_key_values(attributes),
        event_name=f"squidkeeper.{event}",
    ).SerializeToString()
    return serialized


def _key_values(values: Mapping[str, Fact]) -> Iterable[KeyValue]:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    return [KeyValue(key=name, value=_any(value)) for name, value in values.items()]


def _any(value: Fact) -> AnyValue:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(_any, value)))
    return (
        AnyValue(int_value=value)
        if isinstance(value, int)
        else AnyValue(string_value=value)
    )
