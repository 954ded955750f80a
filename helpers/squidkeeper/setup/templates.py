"""The sections of squidkeeper.conf that repeat what the program knows (floor 6).

They stand in the committed file between marker comments, so that it can be read as it is. After a change of what they
are made from, a maintainer renders them again: `python -m squidkeeper.setup.templates squid/squidkeeper.conf`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from itertools import product
from pathlib import Path
from textwrap import wrap

from squidkeeper.policy.model import INJECTABLE_HEADERS
from squidkeeper.replies import header_annotation
from squidkeeper.url import PRIVATE_NETWORKS

# A header that makes servers answer for another method, path or host than the request names. Each is read by some
# framework, front end or server; squid/README.md says which.
METHOD_HEADERS = (
    *("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-Method", "X-Forwarded-Method"),
)
PATH_HEADERS = (
    *("X-Original-URL", "X-Rewrite-URL", "X-Override-URL", "X-Forwarded-URL"),
    *("X-Original-URI", "X-Rewrite-URI", "X-Forwarded-URI", "X-Request-URI"),
    *("X-Original-Path", "X-Forwarded-Path", "X-Envoy-Original-Path"),
    *("X-Forwarded-Prefix", "X-Script-Name"),
    "Destination",
)
HOST_HEADERS = (
    *("X-Forwarded-Host", "X-Original-Host", "X-HTTP-Host-Override", "X-Forwarded-Server", "X-Host", "X-Real-Host"),
    "Forwarded",
)

_SECTION = re.compile(r"(?<=^# >>> rendered: )([a-z ]+)\n.*?(?=^# <<<)", re.DOTALL | re.MULTILINE)
_NETWORKS_WIDTH = 118 - len("acl sk_private dst ")


def render(text: str) -> str:
    """Render every section of a configuration anew, and leave all else as it is."""
    return _SECTION.sub(lambda match: f"{match[1]}\n" + "".join(f"{line}\n" for line in SECTIONS[match[1]]()), text)


def spellings(header: str) -> Iterator[str]:
    """Give a header with every mixture of `-` and `_`: CGI, WSGI, Rack and PHP read them as the same."""
    first, *rest = header.split("-")
    for dashes in product("-_", repeat=len(rest)):
        yield first + "".join(dash + part for dash, part in zip(dashes, rest, strict=True))


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
    yield from _removed(INJECTABLE_HEADERS, "sk_injected")
    for header in INJECTABLE_HEADERS:
        annotation = header_annotation(header)
        acl = f"sk_{annotation.removesuffix('_')}"
        yield f"acl {acl} note {annotation}"
        yield f"""request_header_add {header} "%'{{{annotation}}}note" sk_https !sk_final {acl}"""


def _removed(headers: Iterable[str], acl: str) -> Iterator[str]:
    return (f"request_header_access {name} deny {acl}" for header in headers for name in spellings(header))


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "private addresses": _private_networks,
    "override headers": _override_headers,
    "injectable headers": _injectable_headers,
}


def main(paths: list[str]) -> None:
    """Rewrite configurations in place."""
    for path in map(Path, paths):
        path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
