"""Faults of credentials that their shape does not show (floor 2): names beside each other, and too many of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from squidkeeper.policy.document import Document, entries
from squidkeeper.policy.faults import Fault, FaultCode
from squidkeeper.policy.forms import SHIPPED

RENDERED_AT_MOST = 32  # headers; each has up to 32 spellings, and so as many lines in Squid's configuration


def credential_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find a header beside `headers`, one that stands there twice, and more headers than install.sh renders."""
    rendered: set[str] = set()
    for document in documents:
        for _, entry, steps in entries(document, "credentials"):
            headers = entry.get("headers")
            names = [str(name) for name in headers] if isinstance(headers, dict) else []
            yield from _beside_faults(document, entry, steps)
            yield from _twice_faults(document, names, (*steps, "headers"))
            before = len(rendered)
            rendered |= {name.lower() for name in (*names, str(entry.get("header", SHIPPED[0])))} - {*SHIPPED}
            if before <= RENDERED_AT_MOST < len(rendered):
                message = f"with this one the credentials name {len(rendered)} headers beyond those of squid.conf"
                expected = f"expected {RENDERED_AT_MOST} at most"
                yield Fault(document.locate(steps), FaultCode.INVALID_HEADER, f"{message}, {expected}")


def _beside_faults(document: Document, entry: Mapping[str, object], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    if "header" in entry and "headers" in entry:
        message = "'header' is for bearer, basic and value, expected every header in 'headers'"
        yield Fault(document.locate((*steps, "header"), key=True), FaultCode.KEY_CHOICE, message)


def _twice_faults(document: Document, names: Iterable[str], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            message = "this header is also above in another case, expected it once"
            yield Fault(document.locate((*steps, name), key=True), FaultCode.DUPLICATE_NAME, message)
        seen.add(name.lower())
