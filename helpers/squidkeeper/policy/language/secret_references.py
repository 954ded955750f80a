"""Faults of secrets that need other secrets: what `oauth2` and `github_app` name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries

_NEEDING = (("oauth2", "client_secret"), ("oauth2", "refresh_token"), ("github_app", "private_key"))


@dataclass(frozen=True, slots=True)
class _Reference:
    """A secret that names another one, unchecked; `steps` lead to the name."""

    document: Document
    secret: str
    needed: str
    steps: tuple[str | int, ...]


def faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find grants that lack what they need, secrets of a kind that cannot be used there, and cycles."""
    documents = tuple(documents)
    kinds = {str(steps[1]): entry for document in documents for _, entry, steps in entries(document, "secrets")}
    references = [*_references(documents)]
    for document in documents:
        yield from _grant_faults(document)
    for one in references:
        yield from _kind_faults(one, kinds.get(one.needed, {}))
    needed: dict[str, list[str]] = {}
    for one in references:
        needed.setdefault(one.secret, []).append(one.needed)
    for one in references:
        if one.secret in _reached(one.needed, needed):
            message = "the secret needs itself, through this name, expected one with 'file' or 'command'"
            yield Fault(one.document.locate(one.steps), FaultCode.SECRET_CYCLE, message)


def _references(documents: Iterable[Document]) -> Iterator[_Reference]:
    for document in documents:
        for _, entry, steps in entries(document, "secrets"):
            for kind, key in _NEEDING:
                source = entry.get(kind)
                if isinstance(source, dict) and isinstance(source.get(key), str):
                    yield _Reference(document, str(steps[1]), source[key], (*steps, kind, key))


def _kind_faults(one: _Reference, needed: Mapping[str, object]) -> Iterator[Fault]:
    place = one.document.locate(one.steps)
    if "env" in needed:
        message = "the secret is a variable of Squid's environment, which 'squidkeeper secrets' does not know"
        yield Fault(place, FaultCode.INVALID_SOURCE, f"{message}, expected one with 'file' or 'command'")
    elif needed and one.steps[-1] == "private_key" and "file" not in needed:
        yield Fault(place, FaultCode.INVALID_SOURCE, "a private key is read from a file, expected a secret with 'file'")


def _grant_faults(document: Document) -> Iterator[Fault]:
    for _, entry, steps in entries(document, "secrets"):
        source = entry.get("oauth2")
        if not isinstance(source, dict):
            continue
        lacking = _LACKING.get(str(source.get("grant")))
        if lacking and lacking not in source:
            message = f"key {lacking!r} is missing, which this grant needs"
            yield Fault(document.locate((*steps, "oauth2"), key=True), FaultCode.MISSING_KEY, message)


def _reached(name: str, needed: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += needed.get(one, ())
    return found


_LACKING = {"client_credentials": "client_secret", "refresh_token": "refresh_token"}
