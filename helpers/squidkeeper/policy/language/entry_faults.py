"""Faults of entries that their shape does not show: what stands twice, too often or in
a cycle.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.document import Document, all_entries, entries
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.parameters import plain_parameter


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find the faults of all files together."""
    checks = (
        _preset_faults,
        _login_faults,
        _credential_faults,
        _secret_faults,
    )
    return chain.from_iterable(check(documents) for check in checks)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find what clients and credentials of a policy cannot have together."""
    yield from _shared_tokens(policy)
    yield from _too_many_headers(policy)


# --- presets --------------------------------------------------------------------------


def named_presets(documents: Iterable[Document]) -> Iterator[tuple[str, Location]]:
    """Yield the names of presets that stand in files, unchecked, and where."""
    for document in documents:
        for _, entry, steps in all_entries(document, "presets"):
            name = entry.get("preset") if isinstance(entry, dict) else entry
            if isinstance(name, str):
                yield name, document.locate(steps)


def are_known(documents: Iterable[Document], there_are: frozenset[str]) -> bool:
    """Whether there are all presets that files name."""
    return all(name in there_are for name, _ in named_presets(documents))


def _preset_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    seen: dict[str, Location] = {}
    for name, location in named_presets(documents):
        first = seen.setdefault(name, location)
        if first is not location:
            message = f"preset {name!r} is named twice, first at {first}; expected it once, with all its clients"
            yield Fault(location, FaultCode.DUPLICATE_NAME, message)


# --- clients with tokens --------------------------------------------------------------

_LOGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_EXPECTED = "expected up to 64 letters, digits and . _ - (it is the user in HTTPS_PROXY=http://NAME:TOKEN@…)"


def is_login_name(name: str) -> bool:
    """Whether a client of this name can log in: every program writes the name in a
    proxy's URL as it is.
    """
    return _LOGIN_NAME.fullmatch(name) is not None


def _login_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find clients with tokens whose name no proxy URL can hold."""
    for document in documents:
        for _, entry, steps in entries(document, "clients"):
            if "token_sha256" not in entry:
                continue
            name = str(steps[1])
            if not is_login_name(name):
                message = f"no program can log in as {name!r}, {NAME_EXPECTED}"
                yield Fault(
                    document.locate(steps, key=True), FaultCode.INVALID_TOKEN, message
                )


def _shared_tokens(policy: Policy) -> Iterator[Fault]:
    """Find a token that stands twice: whoever holds it would be two clients."""
    seen: dict[str, str] = {}
    for client in policy.clients:
        for token in client.tokens or ():
            first = seen.setdefault(token.id, client.name)
            if first != client.name:
                message = f"client {client.name!r} has a token of client {first!r}, expected one of its own"
                yield Fault(client.location, FaultCode.INVALID_TOKEN, message)


# --- credentials ----------------------------------------------------------------------

# headers; each has up to 32 spellings, and so as many lines in Squid's configuration
RENDERED_AT_MOST = 32


def _credential_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find names and placeholders that stand twice."""
    placeholders: dict[str, Location] = {}
    for document in documents:
        for _, entry, steps in entries(document, "credentials"):
            for key in ("headers", "parameters"):
                if isinstance(values := entry.get(key), dict):
                    yield from _twice_faults(document, map(str, values), (*steps, key))
            if isinstance(placeholder := entry.get("placeholder"), str):
                place = document.locate((*steps, "placeholder"))
                first = placeholders.setdefault(placeholder.lower(), place)
                if first is not place:
                    message = f"the placeholder is also that of another credential, at {first}, expected one of its own"
                    yield Fault(place, FaultCode.DUPLICATE_NAME, message)


def _too_many_headers(policy: Policy) -> Iterator[Fault]:
    """Find the first credential with which too many headers have to be rendered."""
    rendered: set[str] = set()
    for credential in policy.credentials:
        rendered |= {name.lower() for name in credential.form.rendered}
        if len(rendered) > RENDERED_AT_MOST:
            message = f"with this one the credentials need {len(rendered)} headers beyond those of squid.conf"
            expected = f"expected {RENDERED_AT_MOST} at most"
            yield Fault(
                credential.location, FaultCode.INVALID_HEADER, f"{message}, {expected}"
            )
            return


def _twice_faults(
    document: Document, names: Iterable[str], steps: tuple[str | int, ...]
) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in names:
        if plain_parameter(name) in seen:
            message = "this name is also above in another spelling, expected it once"
            yield Fault(
                document.locate((*steps, name), key=True),
                FaultCode.DUPLICATE_NAME,
                message,
            )
        seen.add(plain_parameter(name))


# --- secrets that need others ---------------------------------------------------------

_NEEDING = (
    ("oauth2", "client_secret"),
    ("oauth2", "refresh_token"),
    ("github_app", "private_key"),
)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A secret that names another one, unchecked; `steps` lead to the name."""

    document: Document
    secret: str
    needed: str
    steps: tuple[str | int, ...]


def _secret_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find grants that lack what they need, secrets of a kind that cannot be used
    there, and cycles.
    """
    documents = tuple(documents)
    kinds = {
        str(steps[1]): entry
        for document in documents
        for _, entry, steps in entries(document, "secrets")
    }
    references = [*_references(documents)]
    for document in documents:
        yield from _grant_faults(document)
    for reference in references:
        yield from _kind_faults(reference, kinds.get(reference.needed, {}))
    needed: dict[str, list[str]] = {}
    for reference in references:
        needed.setdefault(reference.secret, []).append(reference.needed)
    for reference in references:
        if reference.secret in _reached(reference.needed, needed):
            message = "the secret needs itself, through this name, expected one with 'file' or 'command'"
            yield Fault(
                reference.document.locate(reference.steps),
                FaultCode.SECRET_CYCLE,
                message,
            )


def _references(documents: Iterable[Document]) -> Iterator[_Reference]:
    for document in documents:
        for _, entry, steps in entries(document, "secrets"):
            for kind, key in _NEEDING:
                source = entry.get(kind)
                if isinstance(source, dict) and isinstance(source.get(key), str):
                    yield _Reference(
                        document, str(steps[1]), source[key], (*steps, kind, key)
                    )


def _kind_faults(
    reference: _Reference, needed: Mapping[str, object]
) -> Iterator[Fault]:
    place = reference.document.locate(reference.steps)
    if "env" in needed:
        message = "the secret is a variable of Squid's environment, which 'squidkeeper secrets' does not know"
        yield Fault(
            place,
            FaultCode.INVALID_SOURCE,
            f"{message}, expected one with 'file' or 'command'",
        )
    elif needed and reference.steps[-1] == "private_key" and "file" not in needed:
        yield Fault(
            place,
            FaultCode.INVALID_SOURCE,
            "a private key is read from a file, expected a secret with 'file'",
        )


def _grant_faults(document: Document) -> Iterator[Fault]:
    for _, entry, steps in entries(document, "secrets"):
        source = entry.get("oauth2")
        if not isinstance(source, dict):
            continue
        lacking = _LACKING.get(str(source.get("grant")))
        if lacking and lacking not in source:
            message = f"key {lacking!r} is missing, which this grant needs"
            yield Fault(
                document.locate((*steps, "oauth2"), key=True),
                FaultCode.MISSING_KEY,
                message,
            )


def _reached(name: str, needed: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        other = left.pop()
        if other not in found:
            found.add(other)
            left += needed.get(other, ())
    return found


_LACKING = {"client_credentials": "client_secret", "refresh_token": "refresh_token"}
