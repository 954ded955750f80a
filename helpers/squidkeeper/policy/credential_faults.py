"""Faults of credentials that their shape does not show (floor 2): names beside each other, and too many of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from squidkeeper.policy.document import Document, entries
from squidkeeper.policy.faults import Fault, FaultCode
from squidkeeper.policy.forms import SHIPPED
from squidkeeper.policy.parameters import plain_parameter

RENDERED_AT_MOST = 32  # headers; each has up to 32 spellings, and so as many lines in Squid's configuration


def credential_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find a header beside `headers` or `parameters`, a name that stands there twice, and too many headers."""
    rendered: set[str] = set()
    for document in documents:
        for _, entry, steps in entries(document, "credentials"):
            headers = entry.get("headers")
            names = [str(name) for name in headers] if isinstance(headers, dict) else []
            yield from _beside_faults(document, entry, steps)
            yield from _twice_faults(document, names, (*steps, "headers"))
            if isinstance(parameters := entry.get("parameters"), dict):
                yield from _twice_faults(document, map(str, parameters), (*steps, "parameters"))
            before = len(rendered)
            rendered |= {name.lower() for name in (*names, str(entry.get("header", SHIPPED[0])))} - {*SHIPPED}
            if before <= RENDERED_AT_MOST < len(rendered):
                message = f"with this one the credentials name {len(rendered)} headers beyond those of squid.conf"
                expected = f"expected {RENDERED_AT_MOST} at most"
                yield Fault(document.locate(steps), FaultCode.INVALID_HEADER, f"{message}, {expected}")


def _beside_faults(document: Document, entry: Mapping[str, object], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    if "header" in entry and ("headers" in entry or "parameters" in entry):
        message = "'header' is for bearer, basic and value, expected it left out, or every header in 'headers'"
        yield Fault(document.locate((*steps, "header"), key=True), FaultCode.KEY_CHOICE, message)
    if "header" in entry and "aws_sigv4" in entry:
        message = "'header' is for bearer, basic and value: a signature has its own headers"
        yield Fault(document.locate((*steps, "header"), key=True), FaultCode.KEY_CHOICE, message)


def _twice_faults(document: Document, names: Iterable[str], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in names:
        if plain_parameter(name) in seen:
            message = "this name is also above in another spelling, expected it once"
            yield Fault(document.locate((*steps, name), key=True), FaultCode.DUPLICATE_NAME, message)
        seen.add(plain_parameter(name))
