"""The columns of `records` and `requests` (floor 6): made from the fields of `Record`, in their order.

A field that is added to `Record` is a column without a change here; its description is in `_MEANINGS`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from squidkeeper.record.record import Record


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its SQL type, what it holds. `optional` fields lack in lines of earlier releases."""

    name: str
    sql_type: str
    meaning: str
    optional: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the field is a number in a line."""
        return self.sql_type == _NUMBER


_NUMBER: Final = "BIGINT"
_TEXT: Final = "VARCHAR"
TIME: Final = "time"
HOST: Final = "host"
RAW: Final = "raw"
POSITION: Final = "position"
_MEANINGS: Final[Mapping[str, str]] = {
    "v": "version of the format",
    TIME: "end of the request, UTC, to the millisecond",
    "client": "the client's address",
    "user": "the proxy user",
    "method": "method; `CONNECT` opens a tunnel",
    "url": "the URL; `host:port` of a CONNECT",
    "status": "status of the answer to the client; 0: the client left before one",
    "bytes": "sent to the client",
    "duration_ms": "milliseconds",
    "verdict": "`allow` or `deny`",
    "rule": "the rule that decided",
    "revision": "revision of the policy that decided",
    "credential": "names of the injected credentials, joined by commas",
    "fetched": "the URL that was fetched, of a host with rewrites",
    "sni": "the TLS server name",
    "tunnel": "`host:port` of the CONNECT around the request, and how it was opened",
    "upstream": "address of the server",
    "upstream_ms": "milliseconds that the server took, as text: `upstream_ms::INTEGER`",
    "error": "Squid's error, or status and file of a denial's page",
    "user_agent": "the user agent",
    "squid": "Squid's result and hierarchy code",
    "connection": "number of the client's connection; counts from 1 in each worker and run of Squid",
    "tls_error": "the fault of the server's certificate",
    "cut": "length and hash of a URL that is cut off",
    "hidden": "what `url` does not show",
    "request_id": "the request ID, as pages show it",
    "found": "what the request must not hold, the quota that denied it, or why a sealed token was refused",
    "request_bytes": "received from the client",
    "client_port": "the client's port",
    "content_type": "media type of the answer",
    "referrer": "the referrer, with its query",
    "observed": "what the policy would have decided, where it observes",
    "gateway": "name of the gateway; in an [archive of many](../FLEET.md#one-archive), the one whose prefix it"
    " is below",
    "worker": "number of Squid's worker",
    "error_detail": "what Squid adds to its error, such as the fault of the server's certificate",
    "page": "the page of a denial, if the gateway sent one",
}
_FIELDS: Final = msgspec.structs.fields(Record)
FIELDS: Final = tuple(
    Column(
        field.name,
        "TIMESTAMP" if field.name == TIME else _NUMBER if field.type is int else _TEXT,
        _MEANINGS.get(field.name, ""),
        optional=not field.required,
    )
    for field in _FIELDS
)
_TIME_FIRST: Final = sorted(FIELDS, key=lambda column: column.name != TIME)
COLUMNS: Final = (
    *_TIME_FIRST,
    Column(HOST, _TEXT, "the host of `url` in its one spelling: lower case, without port"),
    Column(RAW, "BLOB", "the line as logged, where the columns cannot reproduce it; see below"),
)
NAMES: Final = tuple(column.name for column in COLUMNS)
KIND: Final = (TIME, "method", "status", "verdict", "error", "squid")  # what tells tunnels and requests apart
FOLDED: Final = (*KIND, "client", "url", "connection", "worker", "gateway")  # what folding needs
JUDGED: Final = (  # what the policy judges a record by, beside its time
    *("client", "user", "method", "url", "status", "duration_ms", "verdict", "rule", "revision", "credential"),
    *("fetched", "sni", "tunnel", "error", "squid", "hidden"),
)


def selected(names: Collection[str] | None) -> tuple[Column, ...]:
    """Return the columns with these names, in their order; all for None."""
    if names is None:
        return COLUMNS
    return tuple(column for column in COLUMNS if column.name in names)
