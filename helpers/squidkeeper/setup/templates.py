"""The sections of squid/*.conf that repeat what the program knows, and the pages in squid/errors/ (floor 7).

The sections stand in the committed files between marker comments, so that these can be read as they are. After a change
of what they are made from, a maintainer renders all again:
`python -m squidkeeper.setup.templates squid/*.conf squid/errors`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from textwrap import wrap

import msgspec

from squidkeeper.formatting import substitute
from squidkeeper.policy.headers import HOST_HEADERS, INJECTABLE_HEADERS, METHOD_HEADERS, PATH_HEADERS, spellings
from squidkeeper.policy.model import SHORTEST_WATCHED
from squidkeeper.protocol.request_headers import READ_HEADERS
from squidkeeper.record.record import LENGTHS, NONE, VERSION, Record
from squidkeeper.replies import header_annotation
from squidkeeper.setup import error_pages
from squidkeeper.setup.configuration import without_gateway
from squidkeeper.url import LONG_URL, PRIVATE_NETWORKS, UNUSUAL_CHARACTER

# How Squid names the fields of a record: http://www.squid-cache.org/Doc/config/logformat/. `#` is percent-encoding.
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
    "error": "%{error_}note",  # %err_code, as squidkeeper.conf notes it
    "user_agent": "%#{User-Agent}>h",
    "squid": "%Ss/%Sh",
    "connection": "%transport::>connection_id",
    "tls_error": "%#ssl::<cert_errors",
    "cut": "%#{cut_}note",
    "hidden": "%#{hidden_}note",
    "request_id": ".".join(error_pages.REQUEST_ID),
    "found": "%#{found_}note",
    "request_bytes": "%>st",
    "client_port": "%>p",
    "content_type": "%{type_}note",  # %#mt, where squidkeeper.conf lets it be told
    "referrer": "%#{Referer}>h",
    "observed": "%#{observed_}note",
    "gateway": NONE,  # install.sh writes the name of the gateway
    "worker": "${process_number}",
    "page": "%#{sent_page_}note",
}
# What a client or a server can put a value into: none of it is in the line of a request that is withheld. A method is,
# as far as it is too short for a value.
WITHHELD = ("url", "fetched", "sni", "tunnel", "tls_error", "cut", "user_agent", "content_type", "referrer")
_WITHHELD_LENGTHS = {**LENGTHS, "method": SHORTEST_WATCHED - 1}

_REQUEST_TOKENS = "%#>a %#un %#>rm %#>rs %#>rd %#>rP %#ssl::>sni %#note{clt_conn_tag} %#note{token_}"
_SECTION = re.compile(r"(?<=^# >>> rendered: )([a-z ]+)\n.*?(?=^# <<<)", re.DOTALL | re.MULTILINE)
_LOG_FORMAT_WIDTH = 116
_NETWORKS_WIDTH = 118 - len("acl sk_private dst ")


def render(text: str) -> str:
    """Render every section of a configuration again, and leave all else as it is."""
    return _SECTION.sub(lambda match: f"{match[1]}\n" + "".join(f"{line}\n" for line in SECTIONS[match[1]]()), text)


def outdated_sections(text: str, replacements: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """List the sections of an installed file that would be rendered otherwise, each with the number of its line.

    `replacements` maps the documented paths to those of the gateway.
    """
    for match in _SECTION.finditer(without_gateway(text)):
        lines = SECTIONS[match[1]]() if match[1] in SECTIONS else ()
        if match[0] != f"{match[1]}\n" + substitute("".join(f"{line}\n" for line in lines), replacements):
            yield text.count("\n", 0, match.start()) + 1, match[1]


def missing_sections(texts: Iterable[str]) -> list[str]:
    """List the sections that none of the installed files has: files of an older version lack new ones."""
    found = {match[1] for text in texts for match in _SECTION.finditer(text)}
    return [name for name in SECTIONS if name not in found]


def _private_networks() -> Iterator[str]:
    ipv4 = sorted(network for network in PRIVATE_NETWORKS if isinstance(network, IPv4Network))
    ipv6 = sorted(network for network in PRIVATE_NETWORKS if isinstance(network, IPv6Network))
    for networks in (ipv4, ipv6):
        text = " ".join(map(str, networks))
        yield from (f"acl sk_private dst {line}" for line in wrap(text, _NETWORKS_WIDTH))


def _override_headers() -> Iterator[str]:
    yield from _removed((*METHOD_HEADERS, *PATH_HEADERS), "!sk_may_override")
    yield from _removed(HOST_HEADERS, "all")


def _injectable_headers() -> Iterator[str]:
    yield from _removed(INJECTABLE_HEADERS, "sk_takes_injectable")
    for header in INJECTABLE_HEADERS:
        annotation = header_annotation(header)
        acl = f"sk_{annotation.removesuffix('_')}"
        yield f"acl {acl} note {annotation}"
        yield f"""request_header_add {header} "%'{{{annotation}}}note" sk_https !sk_final {acl}"""


def _log_format() -> Iterator[str]:
    """Write one JSON object for each request; a code cuts its text off at `.N` characters."""
    yield from _log_lines("squidkeeper", LOG_CODES, LENGTHS)


def _withheld_log_format() -> Iterator[str]:
    """Write the same without what a client sent."""
    codes = LOG_CODES | dict.fromkeys(WITHHELD, NONE)
    yield from _log_lines("squidkeeper_withheld", codes, _WITHHELD_LENGTHS)


def _log_lines(name: str, codes: Mapping[str, str], lengths: Mapping[str, int]) -> Iterator[str]:
    line = f'logformat {name} %{{{{"v":{VERSION},"time":"%Y-%m-%dT%H:%M:%S}}tg.%03tuZ"'
    for field in msgspec.structs.fields(Record)[2:]:
        length = f".{lengths[field.name]}" if field.name in lengths else ""
        code = re.sub("^(%#?)", rf"\g<1>{length}", codes[field.name])
        item = f'"{field.name}":"{code}"' if field.type is str else f'"{field.name}":{code}'
        if len(line) + len(item) > _LOG_FORMAT_WIDTH:
            yield f"{line},\\"
            line = item
        else:
            line += f",{item}"
    yield f"{line}}}"


def _credential_by_headers() -> Iterator[str]:
    """Write the lookup of `credential --headers`: as sk_credential, and the headers that helpers read."""
    tokens = "%#URI %#note{final_url_} %#note{parameters_}"
    yield from _lookup_by_headers("sk_credential_by_headers", "credential --headers", tokens, concurrency=4)


def _watch() -> Iterator[str]:
    tokens = "%#URI %#note{kept_rule_}"
    yield from _lookup_by_headers("sk_watch", "watch --lane first", tokens, concurrency=32)
    yield from _lookup_by_headers("sk_watch_late", "watch --lane late", tokens, concurrency=32, children=1)


def _lookup_by_headers(name: str, command: str, tokens: str, concurrency: int, children: int = 2) -> Iterator[str]:
    """Write a lookup of a helper that is told the request, these tokens, and the headers that helpers read."""
    headers = " ".join(f"%#{{{header}}}>h" for header in READ_HEADERS)
    yield f"external_acl_type {name} ipv4 ttl=0 negative_ttl=0 grace=0 cache=0 \\"
    processes = f"children-max={children} children-startup=0 children-idle=1"
    yield f"    {processes} concurrency={concurrency} queue-size=65536 \\"
    yield f"    {_REQUEST_TOKENS} {tokens} \\"
    yield from (f"    {line} \\" for line in wrap(headers, _LOG_FORMAT_WIDTH - 6, break_on_hyphens=False))
    yield f"    /opt/squidkeeper/bin/squidkeeper {command} --concurrency {concurrency} \\"
    yield "    --policy /etc/squidkeeper/policy --state /var/lib/squidkeeper --run /run/squidkeeper"


def _long_urls() -> Iterator[str]:
    yield f"acl sk_long_url url_regex ^.{{{LONG_URL}}}"


def _unusual_urls() -> Iterator[str]:
    yield f"acl sk_unusual_url url_regex ^(.*{UNUSUAL_CHARACTER.pattern}|.{{{LONG_URL}}})"


def _removed(headers: Iterable[str], acl: str) -> Iterator[str]:
    return (f"request_header_access {name} deny {acl}" for header in headers for name in spellings(header))


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "private addresses": _private_networks,
    "override headers": _override_headers,
    "injectable headers": _injectable_headers,
    "log format": _log_format,
    "withheld log format": _withheld_log_format,
    "credential by headers": _credential_by_headers,
    "watch": _watch,
    "long urls": _long_urls,
    "unusual urls": _unusual_urls,
    "denials": error_pages.denial_lines,
    "failures": error_pages.failure_lines,
}


def main(paths: list[str]) -> None:
    """Rewrite configurations in place, and the pages of a folder."""
    for path in map(Path, paths):
        if path.is_dir():
            for name, text in error_pages.files():
                (path / name).write_text(text)
        else:
            path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
