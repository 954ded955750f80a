"""Faults of credentials that their shape does not show: what stands beside each other, twice or too often."""

from collections.abc import Iterable, Iterator, Mapping

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.parameters import plain_parameter

RENDERED_AT_MOST = 32  # headers; each has up to 32 spellings, and so as many lines in Squid's configuration


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find a header beside what has headers of its own, and names and placeholders that stand twice."""
    placeholders: dict[str, Location] = {}
    for document in documents:
        for _, entry, steps in entries(document, "credentials"):
            yield from _beside_faults(document, entry, steps)
            for key in ("headers", "parameters"):
                if isinstance(values := entry.get(key), dict):
                    yield from _twice_faults(document, map(str, values), (*steps, key))
            if isinstance(placeholder := entry.get("placeholder"), str):
                place = document.locate((*steps, "placeholder"))
                first = placeholders.setdefault(placeholder.lower(), place)
                if first is not place:
                    message = f"the placeholder is also that of another credential, at {first}, expected one of its own"
                    yield Fault(place, FaultCode.DUPLICATE_NAME, message)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find the first credential with which too many headers have to be rendered."""
    rendered: set[str] = set()
    for credential in policy.credentials:
        rendered |= {name.lower() for name in credential.form.rendered}
        if len(rendered) > RENDERED_AT_MOST:
            message = f"with this one the credentials need {len(rendered)} headers beyond those of squid.conf"
            expected = f"expected {RENDERED_AT_MOST} at most"
            yield Fault(credential.location, FaultCode.INVALID_HEADER, f"{message}, {expected}")
            return


_LEFT_OUT = ", expected it left out, or every header in 'headers'"
_NO_HEADER_BESIDE = {"headers": _LEFT_OUT, "parameters": _LEFT_OUT, "aws_sigv4": ": a signature has its own headers"}


def _beside_faults(document: Document, entry: Mapping[str, object], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    for key, expected in _NO_HEADER_BESIDE.items() if "header" in entry else ():
        if key in entry:
            message = f"'header' is for bearer, basic and value{expected}"
            yield Fault(document.locate((*steps, "header"), key=True), FaultCode.KEY_CHOICE, message)


def _twice_faults(document: Document, names: Iterable[str], steps: tuple[str | int, ...]) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in names:
        if plain_parameter(name) in seen:
            message = "this name is also above in another spelling, expected it once"
            yield Fault(document.locate((*steps, name), key=True), FaultCode.DUPLICATE_NAME, message)
        seen.add(plain_parameter(name))
