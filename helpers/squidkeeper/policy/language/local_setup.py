"""Faults of a policy whose folder others write: what the local setup, `local.yaml`
beside the folder, keeps.

Where there is a local setup, it alone names what the gateway reads, runs, logs in with
or connects to for the policy itself. Whoever writes the folder decides about the
requests of clients, and names secrets; nothing in the folder gets a file, a program or
a secret of the gateway.
"""

from collections.abc import Iterable, Iterator

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document
from squidkeeper.policy.language.hosts import HostPattern
from squidkeeper.policy.language.matching.host_fields import pattern_covers
from squidkeeper.policy.language.model import Credential, Policy

# The sections and keys of which a local setup may consist, and that no file of the
# folder beside it may have.
LOCAL_SECTIONS = ("secrets", "canaries", "sealed_tokens", "upstreams")
LOCAL_DEFAULTS = ("reload_gate",)
_IN_EACH_FILE = ("version", "defaults", "end", "end: required")


def entry_faults(
    documents: Iterable[Document], local: Document | None
) -> Iterator[Fault]:
    """Find what stands in the folder and belongs into the local setup, and the other
    way round.
    """
    if local is None:
        return
    for document in documents:
        if document is local:
            yield from _strange_faults(document)
        else:
            yield from _kept_faults(document, local)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find credentials that would send a secret to hosts that are not among the hosts
    of the secret.
    """
    for credential in policy.credentials:
        for name in credential.form.secrets:
            hosts = policy.secrets[name].hosts
            if hosts is None:
                continue
            if beyond := _beyond(credential, hosts):
                allowed = (
                    ", ".join(host.text for host in hosts)
                    or "none: its 'hosts' are left out"
                )
                message = f"secret {name!r} may not be sent to {beyond}, expected hosts of the secret ({allowed})"
                yield Fault(credential.location, FaultCode.SECRET_HOST, message)


def _beyond(credential: Credential, hosts: tuple[HostPattern, ...]) -> str:
    if credential.match.lists:
        return f"list {credential.match.lists[0]!r}"
    patterns = credential.match.hosts or ()
    return next(
        (
            pattern.text
            for pattern in patterns
            if not any(pattern_covers(host, pattern) for host in hosts)
        ),
        "",
    )


def _strange_faults(local: Document) -> Iterator[Fault]:
    for key in local.data.keys() - {*LOCAL_SECTIONS, *_IN_EACH_FILE}:
        expected = ", ".join((*LOCAL_SECTIONS, "defaults"))
        message = (
            f"{key!r} is no section of the local setup, expected one of "
            f"{expected}, or this in the policy's folder"
        )
        yield Fault(local.locate((key,), key=True), FaultCode.UNKNOWN_KEY, message)
    for key in _keys_of_defaults(local) - {*LOCAL_DEFAULTS}:
        expected = ", ".join(LOCAL_DEFAULTS)
        message = f"{key!r} is none of the local defaults, expected {expected}, or this in the policy's folder"
        yield Fault(
            local.locate(("defaults", key), key=True), FaultCode.UNKNOWN_KEY, message
        )


def _kept_faults(document: Document, local: Document) -> Iterator[Fault]:
    found: list[tuple[str, ...]] = [
        (key,) for key in LOCAL_SECTIONS if key in document.data
    ]
    found += [
        ("defaults", key)
        for key in LOCAL_DEFAULTS
        if key in _keys_of_defaults(document)
    ]
    for steps in found:
        message = f"{steps[-1]!r} is for this gateway's operator alone, expected it in {local.path}"
        yield Fault(document.locate(steps, key=True), FaultCode.LOCAL_ONLY, message)


def _keys_of_defaults(document: Document) -> set[str]:
    defaults = document.data.get("defaults")
    return {*defaults} if isinstance(defaults, dict) else set()
