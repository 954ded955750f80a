"""A grant that a command is to make: from what a person writes to an entry of `grants`."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import utc_time
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.hosts import HostPattern, parse_host_pattern

_WITH_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*):(?P<port>[0-9]{1,5})")
_STEM_LENGTH = 60


@dataclass(frozen=True, slots=True)
class NewGrant:
    """What is granted: hosts, schemes, ports, paths, or exact URLs. Without `clients`, to any; `by` is who grants."""

    expires: datetime
    reason: str
    by: str
    clients: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    uses: int | None = None

    def named(self, taken: Collection[str]) -> str:
        """Make up a name after the host that no rule and no grant has; metrics have a series for each name."""
        host = (self.hosts or tuple(url.partition("://")[2].partition("/")[0] for url in self.urls) or ("",))[0]
        stem = f"grant-{re.sub(r'[^a-z0-9]+', '-', host.lower()).strip('-')}"[:_STEM_LENGTH]
        numbered = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        return next(name for name in numbered if name not in taken)

    def entry(self, name: str, made: datetime) -> Iterator[tuple[str, object]]:
        """Give the fields of the entry, in their order."""
        yield "name", name
        yield from [("clients", [*self.clients])] if self.clients else [("any_client", True)]
        for key in ("hosts", "schemes", "ports", "paths", "urls", "methods"):
            if values := getattr(self, key):
                yield key, [*values]
        yield "expires", utc_time(self.expires)
        if self.uses is not None:
            yield "uses", self.uses
        yield from (("reason", self.reason), ("by", self.by), ("made", utc_time(made)))


def parse_target(text: str) -> dict[str, Any]:
    """Read HOST[:PORT][/PATH], patterns as in a policy, or a whole URL, which is meant exactly; `PatternError`.

    The host is written as it is compared: in punycode.
    """
    if "://" in text:
        return {"urls": (parse_exact_url(text).text,)}
    authority, slash, rest = text.partition("/")
    if not authority:
        raise PatternError(f"{text!r} has no host, expected HOST[:PORT][/PATH] or a whole URL")
    if "?" in rest:
        raise PatternError(f"{text!r} has a query, expected the whole URL (https://…), which is then meant exactly")
    host, port = _split(authority)
    fields: dict[str, Any] = {"hosts": (spelled(parse_host_pattern(host)),)}
    if port:
        fields["ports"] = (int(port),)
    if slash:
        fields["paths"] = (f"/{rest}",)
    return fields


def _split(authority: str) -> tuple[str, str]:
    """Cut the port off; an IPv6 address without brackets has none."""
    found = _WITH_PORT.fullmatch(authority)
    return (found["host"].strip("[]"), found["port"]) if found else (authority.strip("[]"), "")


def spelled(pattern: HostPattern) -> str:
    """Write a host pattern as it is compared."""
    return pattern.text if pattern.network is not None else pattern.key
