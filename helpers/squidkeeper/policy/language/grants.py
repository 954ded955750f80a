"""Faults of grants: what a grant cannot say."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Policy, Rule
from squidkeeper.policy.url import is_private

FLEET_GRANTS: Final = (
    "fleet-grants.yaml"  # in a policy directory: what commands grant on all gateways
)
_CHOICES = (("clients", "any_client"), ("hosts", "urls"))
_PRIVATE = "is private, and no grant opens a private address, expected a rule with private: true"


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find grants for nobody or nothing."""
    for document in documents:
        for _, entry, steps in entries(document, "grants"):
            for message in _wrong_choices(entry) if entry else ():
                yield Fault(document.locate(steps), FaultCode.KEY_CHOICE, message)


def _wrong_choices(entry: Mapping[str, object]) -> Iterator[str]:
    for choice in _CHOICES:
        given = [key for key in choice if key in entry]
        expected = f"expected exactly one of {' and '.join(choice)}"
        if len(given) != 1:
            yield f"{' and '.join(map(repr, given)) or 'none of them'} given, {expected}"


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find grants of private addresses, and those whose URLs are of several origins."""
    for grant in policy.grants:
        for text in _private_hosts(grant):
            yield Fault(
                grant.location,
                FaultCode.INVALID_HOST,
                f"grant {grant.name!r}: {text} {_PRIVATE}",
            )
        if len({url.origin for url in grant.match.urls or ()}) > 1:
            message = (
                "has URLs of several hosts, schemes or ports, expected a grant for each"
            )
            yield Fault(
                grant.location, FaultCode.INVALID_URL, f"grant {grant.name!r} {message}"
            )


def named_clients(document: Document) -> frozenset[str]:
    """List the clients that the grants of a file name."""
    listed = (entry.get("clients") for _, entry, _ in entries(document, "grants"))
    names = (name for names in listed if isinstance(names, list) for name in names)
    return frozenset(name for name in names if isinstance(name, str))


def for_nobody(policy: Policy) -> Iterator[Fault]:
    """Find the grants that name clients which are gone from the policy."""
    known = frozenset(policy.client_names)
    for grant in policy.grants:
        for name in sorted((grant.match.clients or frozenset()) - known):
            message = f"grant {grant.name!r} is for the client {name!r}, which the policy does not have: remove it"
            yield Fault(
                grant.location,
                FaultCode.GRANT_FOR_NOBODY,
                f"{message} (squidkeeper grant --revoke)",
            )


def _private_hosts(grant: Rule) -> Iterator[str]:
    for pattern in grant.match.hosts or ():
        if pattern.network is not None and is_private(pattern.network.network_address):
            yield pattern.text
