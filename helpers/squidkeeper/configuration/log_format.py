"""The formats of the access log: a record as Squid writes it."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from squidkeeper.configuration.error_pages import REQUEST_ID
from squidkeeper.policy.language.model import SHORTEST_WATCHED
from squidkeeper.record.log.record import LENGTHS, NONE, VERSION, Record

# How Squid names the fields of a record:
# http://www.squid-cache.org/Doc/config/logformat/. `#` is percent-encoding.
LOG_CODES = {
    "client": "%>a",
    "user": "%{user_}note",
    "method": "%#>rm",
    "url": "%>ru",
    "status": "%>Hs",
    "bytes": "%<st",
    "duration_ms": "%tr",
    "verdict": "%#{verdict_}note",
    "rule": "%#{rule_}note",
    "revision": "%#{revision_}note",
    "credential": "%#{credential_}note",
    "fetched": "%#{final_url_}note",
    "sni": "%#ssl::>sni",
    "tunnel": "%#{clt_conn_tag}note",
    "upstream": "%<a",
    "upstream_ms": "%<pt",
    "error": "%err_code",
    "user_agent": "%#{User-Agent}>h",
    "squid": "%Ss/%Sh",
    "connection": "%transport::>connection_id",
    "tls_error": "%#ssl::<cert_errors",
    "cut": "%#{cut_}note",
    "hidden": "%#{hidden_}note",
    "request_id": ".".join(REQUEST_ID),
    "found": "%#{found_}note",
    "request_bytes": "%>st",
    "client_port": "%>p",
    # of the renderer: what an origin chooses may hold a credential
    "content_type": "@CONTENT_TYPE@",
    "referrer": "%#{Referer}>h",
    "observed": "%#{observed_}note",
    "gateway": NONE,  # install.sh writes the name of the gateway
    "worker": "${process_number}",
    "page": "%#{page_}note",
    "error_detail": "%#err_detail",
    "session": "%#{session_}note",
}
# What a client or a server can put a value into: none of it is in the line of a request
# that is withheld. A method is, as far as it is too short for a value.
WITHHELD = (
    "url",
    "fetched",
    "sni",
    "tunnel",
    "tls_error",
    "cut",
    "user_agent",
    "content_type",
    "referrer",
)
_WITHHELD_LENGTHS = {**LENGTHS, "method": SHORTEST_WATCHED - 1}

_LOG_FORMAT_WIDTH: Final = 116


def log_formats() -> dict[str, str]:
    """Write what the placeholders of squid/squidkeeper-logformat.conf expand to: one
    JSON object for each request.

    A code cuts its text off at `.N` characters. The format of a withheld request is
    without what a client sent.
    """
    withheld = LOG_CODES | dict.fromkeys(WITHHELD, NONE)
    return {
        "LOG_FORMAT": "\n".join(_log_lines("squidkeeper", LOG_CODES, LENGTHS)),
        "WITHHELD_LOG_FORMAT": "\n".join(
            _log_lines("squidkeeper_withheld", withheld, _WITHHELD_LENGTHS)
        ),
    }


def _log_lines(
    name: str, codes: Mapping[str, str], lengths: Mapping[str, int]
) -> Iterator[str]:
    line = f'logformat {name} %{{{{"v":{VERSION},"time":"%Y-%m-%dT%H:%M:%S}}tg.%03tuZ"'
    for field in msgspec.structs.fields(Record)[2:]:
        length = f".{lengths[field.name]}" if field.name in lengths else ""
        code = re.sub("^(%#?)", rf"\g<1>{length}", codes[field.name])
        item = (
            f'"{field.name}":"{code}"'
            if field.type is str
            else f'"{field.name}":{code}'
        )
        if len(line) + len(item) > _LOG_FORMAT_WIDTH:
            yield f"{line},\\"
            line = item
        else:
            line += f",{item}"
    yield f"{line}}}"
