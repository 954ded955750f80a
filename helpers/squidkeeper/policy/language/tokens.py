"""Faults of clients with `token_sha256`."""

import re
from collections.abc import Iterable, Iterator

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Policy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_EXPECTED = "expected up to 64 letters, digits and . _ - (it is the user in HTTPS_PROXY=http://NAME:TOKEN@…)"


def is_login_name(name: str) -> bool:
    """Tell whether a client of this name can log in: every program writes the name in a proxy's URL as it is."""
    return _NAME.fullmatch(name) is not None


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find clients with tokens whose name no proxy URL can hold, and those that have users besides."""
    for document in documents:
        for _, entry, steps in entries(document, "clients"):
            if "token_sha256" not in entry:
                continue
            name = str(steps[1])
            if not is_login_name(name):
                message = f"no program can log in as {name!r}, {NAME_EXPECTED}"
                yield Fault(document.locate(steps, key=True), FaultCode.INVALID_TOKEN, message)
            if "users" in entry:
                message = "'users' beside 'token_sha256', expected one of them: who logs in by token is the client"
                yield Fault(document.locate((*steps, "users"), key=True), FaultCode.INVALID_TOKEN, message)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find a token that stands twice: whoever holds it would be two clients."""
    seen: dict[str, str] = {}
    for client in policy.clients:
        for token in client.tokens or ():
            first = seen.setdefault(token.id, client.name)
            if first != client.name:
                message = f"client {client.name!r} has a token of client {first!r}, expected one of its own"
                yield Fault(client.location, FaultCode.INVALID_TOKEN, message)
