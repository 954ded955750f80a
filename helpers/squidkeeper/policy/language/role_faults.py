"""Faults of roles and their variables: what a definition lacks, and where a variable
cannot stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.roles import VALUES_AT_MOST, VariableType
from squidkeeper.policy.language.schema import suggestion
from squidkeeper.policy.language.secret_sources import SessionSource, needed_secrets
from squidkeeper.policy.language.variables import BEGINNING, REFERENCE

Steps = tuple[str | int, ...]
_NAMING: Final = ("rules", "rewrites", "credentials")
_PROSE: Final = ("name", "reason", "owner", "contact", "by")
_NEEDS: Final = {
    VariableType.PATH: ("pattern", "an expression that matches each whole value"),
    VariableType.HOSTS: ("within", "patterns of which one matches each host"),
}
_PLACES: Final = "'hosts', 'paths' or 'git: push' of a rule, rewrite or credential"


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find the faults of all files together."""
    documents = tuple(documents)
    roles = _Roles.of(documents)
    for document in documents:
        yield from _definition_faults(document)
        yield from _place_faults(document)
        yield from _reference_faults(document, roles)
        yield from _quota_faults(document, roles)
        yield from _secret_faults(document)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find values of tests that their role does not take, and secrets of sessions where
    there is no session.
    """
    yield from _test_faults(policy)
    yield from _misused_secrets(policy)


@dataclass(frozen=True, slots=True)
class _Roles:
    """The variables of each role as files have them, unchecked; and the names of
    clients.
    """

    variables: Mapping[str, Mapping[str, object]]
    clients: frozenset[str]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> _Roles:
        found: dict[str, Mapping[str, object]] = {}
        clients: set[str] = set()
        for document in documents:
            for _, entry, steps in entries(document, "roles"):
                variables = entry.get("variables")
                found[str(steps[1])] = variables if isinstance(variables, dict) else {}
            clients.update(
                str(steps[1]) for _, _, steps in entries(document, "clients")
            )
        return cls(found, frozenset(clients))

    def many(self, role: str, variable: str) -> int:
        """Return how many values a variable may have."""
        many = _mapping(self.variables.get(role, {}).get(variable)).get("many", 1)
        return many if isinstance(many, int) else 1


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _type(said: Mapping[str, Any]) -> str | None:
    """Return the type that a variable has; None where it has none of the language."""
    kind = said.get("type")
    return kind if isinstance(kind, str) and kind in _NEEDS else None


# --- definitions ----------------------------------------------------------------------


def _definition_faults(document: Document) -> Iterator[Fault]:
    for _, entry, steps in entries(document, "roles"):
        for name, variable in _mapping(entry.get("variables")).items():
            said = _mapping(variable)
            if (kind := _type(said)) is None:
                continue
            place = (*steps, "variables", name)
            for other, (key, meaning) in _NEEDS.items():
                if other == kind and key not in said:
                    yield Fault(
                        document.locate(place, key=True),
                        FaultCode.MISSING_KEY,
                        f"key {key!r} is missing, expected {meaning}",
                    )
                elif other != kind and key in said:
                    yield Fault(
                        document.locate((*place, key), key=True),
                        FaultCode.KEY_CHOICE,
                        f"{key!r} is for type: {other}, expected it left out",
                    )


def _quota_faults(document: Document, roles: _Roles) -> Iterator[Fault]:
    for _, entry, steps in entries(document, "quotas"):
        per = entry.get("per")
        if per != "session" and not str(per).startswith("label:"):
            continue
        if not roles.variables:
            message = f"per: {per} counts sessions, and the policy has no roles"
            place = document.locate((*steps, "per"))
            yield Fault(place, FaultCode.INVALID_VARIABLE, f"{message}, expected some")
        for position, name in _clients(entry, roles):
            message = f"per: {per} counts sessions, and {name!r} is a client, expected roles alone"
            place = document.locate((*steps, "clients", position))
            yield Fault(place, FaultCode.INVALID_VARIABLE, message)


def _secret_faults(document: Document) -> Iterator[Fault]:
    for _, entry, steps in entries(document, "secrets"):
        if "session" in entry and "hosts" not in entry:
            message = "key 'hosts' is missing, expected the hosts to which the value of a session may be sent"
            place = document.locate((*steps, "session"), key=True)
            yield Fault(place, FaultCode.MISSING_KEY, message)


# --- where variables stand ------------------------------------------------------------


def _place_faults(document: Document) -> Iterator[Fault]:
    """Find references where nothing reads them."""
    for section, value in document.data.items():
        if section == "tests":
            continue
        for text, steps in _texts(value, (section,)):
            if (
                BEGINNING in text
                and not _is_place(steps)
                and _ends(steps) not in _PROSE
            ):
                message = f"a variable of sessions cannot stand here, expected it in {_PLACES}"
                place = document.locate(steps)
                yield Fault(place, FaultCode.INVALID_VARIABLE, message)


def _texts(value: object, steps: Steps) -> Iterator[tuple[str, Steps]]:
    """Yield the texts of a value, keys included, with the steps that lead there."""
    if isinstance(value, str):
        yield value, steps
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _texts(item, (*steps, position))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key), (*steps, key)
            yield from _texts(item, (*steps, key))


def _is_place(steps: Steps) -> bool:
    if steps[0] not in _NAMING:
        return False
    named = [step for step in steps[2:] if isinstance(step, str)]
    return named in (["hosts"], ["paths"]) or (
        steps[0] == "rules" and named == ["body", "git", "push"]
    )


def _ends(steps: Steps) -> str:
    return next((step for step in reversed(steps) if isinstance(step, str)), "")


@dataclass(frozen=True, slots=True)
class _NamingText:
    """A text of an entry that names variables; `steps` lead from the entry to it."""

    text: str
    steps: Steps
    type: VariableType

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(REFERENCE.findall(self.text)))


def _reference_faults(document: Document, roles: _Roles) -> Iterator[Fault]:
    """Find entries whose clients have not all the variables that they name."""
    for section, entry, steps in entries(document, *_NAMING):
        found = [*_references(section, entry)]
        if not found:
            continue
        yield from _client_faults(document, entry, steps, found[0], roles)
        if "lists" in entry and any(one.type is VariableType.HOSTS for one in found):
            message = "'lists' beside a variable in 'hosts', expected an entry of their own for them"
            place = document.locate((*steps, "lists"), key=True)
            yield Fault(place, FaultCode.INVALID_VARIABLE, message)
        named = [name for name in _listed(entry) if name in roles.variables]
        for reference in found:
            place = document.locate((*steps, *reference.steps))
            for message in {
                message
                for role in named
                for message in _wrong_with(reference, role, roles)
            }:
                yield Fault(place, FaultCode.INVALID_VARIABLE, message)


def _references(section: str, entry: Mapping[str, Any]) -> Iterator[_NamingText]:
    push = _mapping(_mapping(entry.get("body")).get("git")).get("push")
    places: tuple[tuple[object, Steps, VariableType], ...] = (
        (entry.get("hosts"), ("hosts",), VariableType.HOSTS),
        (entry.get("paths"), ("paths",), VariableType.PATH),
        (
            push if section == "rules" else None,
            ("body", "git", "push"),
            VariableType.PATH,
        ),
    )
    for value, steps, kind in places:
        for position, text in enumerate(value if isinstance(value, list) else ()):
            if isinstance(text, str) and REFERENCE.search(text):
                yield _NamingText(text, (*steps, position), kind)


def _client_faults(
    document: Document,
    entry: Mapping[str, Any],
    steps: Steps,
    first: _NamingText,
    roles: _Roles,
) -> Iterator[Fault]:
    shown = f"{{session.{first.names[0]}}}"
    if not _listed(entry):
        message = (
            f"{shown} without 'clients', expected roles with this variable in 'clients'"
        )
        place = document.locate((*steps, *first.steps))
        yield Fault(place, FaultCode.INVALID_VARIABLE, message)
    for position, name in _clients(entry, roles):
        message = f"{name!r} is a client, expected roles alone: the entry names {shown}"
        place = document.locate((*steps, "clients", position))
        yield Fault(place, FaultCode.INVALID_VARIABLE, message)


def _wrong_with(reference: _NamingText, role: str, roles: _Roles) -> Iterator[str]:
    """Say what a role lacks for a reference."""
    known = roles.variables[role]
    for name in reference.names:
        if name not in known:
            near = suggestion(name, known)
            expected = near or f", expected {_one_of(known)}"
            yield f"role {role!r} has no variable {name!r}{expected}"
            continue
        kind = _type(_mapping(known[name]))
        if kind is not None and kind != reference.type:
            yield f"variable {name!r} of role {role!r} is of type {kind}, expected one of type {reference.type}"
    count = prod(roles.many(role, name) for name in reference.names)
    if len(reference.names) > 1 and count > VALUES_AT_MOST:
        message = f"the variables of role {role!r} give {count:,} patterns here"
        yield f"{message}, expected {VALUES_AT_MOST} at most (less 'many')"


def _one_of(known: Mapping[str, object]) -> str:
    return f"one of {', '.join(sorted(known))}" if known else "a role with variables"


def _listed(entry: Mapping[str, Any]) -> list[str]:
    clients = entry.get("clients")
    if not isinstance(clients, list):
        return []
    return [name for name in clients if isinstance(name, str)]


def _clients(entry: Mapping[str, Any], roles: _Roles) -> Iterator[tuple[int, str]]:
    """Yield the names in `clients` that are those of clients, with their positions."""
    for position, name in enumerate(_listed(entry)):
        if name in roles.clients and name not in roles.variables:
            yield position, name


# --- the policy as a whole ------------------------------------------------------------


def _test_faults(policy: Policy) -> Iterator[Fault]:
    roles = {role.name: role for role in policy.roles}
    for test in policy.tests:
        if test.session is None:
            continue
        try:
            roles[test.session.role].check(test.session.values)
        except PatternError as error:
            message = f"the session of the test cannot be: {error}"
            yield Fault(test.location, FaultCode.INVALID_VARIABLE, message)


def _misused_secrets(policy: Policy) -> Iterator[Fault]:
    brought = {
        name
        for name, secret in policy.secrets.items()
        if isinstance(secret.source, SessionSource)
    }
    if not brought:
        return
    roles = {role.name for role in policy.roles}
    for credential in policy.credentials:
        names = brought.intersection(credential.form.secrets)
        if names and not (credential.match.clients or {""}) <= roles:
            message = f"credential {credential.name!r} sends the secret {min(names)!r}, which sessions bring"
            expected = "expected 'clients' that are roles alone"
            place = credential.location
            yield Fault(place, FaultCode.INVALID_SOURCE, f"{message}, {expected}")
    for name, location in _needed_without_session(policy):
        if name in brought:
            message = f"secret {name!r} is brought by sessions, and there is none here"
            expected = "expected a secret of the gateway's"
            yield Fault(location, FaultCode.INVALID_SOURCE, f"{message}, {expected}")


def _needed_without_session(policy: Policy) -> Iterator[tuple[str, Any]]:
    for upstream in policy.upstreams:
        if upstream.parent and upstream.parent.password:
            yield upstream.parent.password, upstream.location
    for key in policy.sealing_keys:
        yield key, policy.secrets[key].location
    for secret in policy.secrets.values():
        for name in needed_secrets(secret.source):
            yield name, secret.location
