"""`identities` of sessions.yaml: whose signed tokens become sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document
from squidkeeper.policy.language.globs import ANYTHING, Matcher, glob_matcher
from squidkeeper.policy.language.settings_values import (
    TEXT,
    SettingsModel,
    SettingValue,
    parsed,
    text,
    unexpected,
    word,
)

# What SPIFFE allows too: a public key alone checks them.
KEY_TYPES: Final = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
}
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
REQUIRED: Final = {
    "issuer": "the claim `iss` of its tokens",
    "audience": "the claim `aud` of its tokens, such as squidkeeper",
    "algorithms": "how its tokens are signed, such as [RS256]",
    "keys": "the file with the issuer's public keys (JWKS)",
    "claims": "what else has to hold, such as {sub: 'repo:acme/app:*'}",
}
_PART: Final = re.compile(r"\*\*|\*|[^*]+")
_WILDCARDS: Final = {"*": "[^/]*", "**": ANYTHING}


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise unexpected("text, or a list of texts")
    return tuple(values)


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise PatternError(f"{path[:100]!r} is no absolute path")
    return path


_Text = Annotated[str, SettingValue(text, TEXT)]
_Texts = Annotated[
    tuple[str, ...],
    SettingValue(_texts, {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}),
]


class IdentityEntry(SettingsModel):
    """Whose signed tokens become sessions."""

    issuer: _Text = Field(description="The claim `iss` of its tokens.")
    audience: _Text = Field(
        description="The claim `aud` of its tokens: for this gateway alone."
    )
    algorithms: tuple[Annotated[str, word((*KEY_TYPES,))], ...] = Field(
        description="How its tokens may be signed."
    )
    keys: Annotated[str, parsed(_absolute, FaultCode.INVALID_SOURCE)] = Field(
        description="The file with the issuer's public keys: a JSON Web Key Set. It is read at each call."
    )
    claims: dict[str, _Texts] = Field(
        description="Claims that must hold, each with the texts of which one matches. `*` is a part"
        " without '/', `**` any text. A claim is a name, or a JSON pointer: /kubernetes.io/namespace."
    )
    roles: tuple[_Text, ...] = Field(
        description="The role of its sessions; with `role_claim` several."
    )
    role_claim: _Text | None = Field(
        default=None, description="The claim that says which of `roles` a session has."
    )
    variables: dict[str, _Text] = Field(
        default={}, description="The claim that gives the value of each variable."
    )
    labels: dict[str, _Text] = Field(
        default={}, description="The claim that gives the value of each label."
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose signed tokens become sessions, and which ones."""

    name: str
    issuer: str
    audience: str
    algorithms: frozenset[str]
    keys: Path
    claims: Mapping[str, tuple[Matcher, ...]]
    roles: tuple[str, ...]
    role_claim: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, entry: IdentityEntry) -> Identity:
        """Make it of its entry."""
        return cls(
            name=name,
            issuer=entry.issuer,
            audience=entry.audience,
            algorithms=frozenset(entry.algorithms),
            keys=Path(entry.keys),
            claims={
                claim: tuple(map(_matcher, globs))
                for claim, globs in entry.claims.items()
            },
            roles=entry.roles,
            role_claim=entry.role_claim,
            variables=entry.variables,
            labels=entry.labels,
        )

    def claim_of(self, kind: str, name: str) -> str | None:
        """Name the claim that gives the role, a variable or a label."""
        if kind == "role":
            return self.role_claim
        given = {"variables": self.variables, "labels": self.labels}.get(kind, {})
        return given.get(name)


def _matcher(glob: str) -> Matcher:
    return glob_matcher(tuple(_PART.findall(glob)), _WILDCARDS)


def identity_faults(document: Document) -> Iterator[Fault]:
    """Find what is wrong within `identities`, and in what names them, by what is
    written.
    """
    identities = document.value_at(("identities",))
    known = identities if isinstance(identities, dict) else {}
    for name, entry in known.items():
        here = document.locate(("identities", name), key=True)
        if not NAME.fullmatch(name):
            message = f"{name[:100]!r} is no name of an identity, expected up to 32 of a-z, 0-9, _ and -"
            yield Fault(here, FaultCode.INVALID_NAME, message)
        if isinstance(entry, dict):
            yield from _choices(document, name, entry)
    callers = document.value_at(("orchestrators",))
    for caller, entry in callers.items() if isinstance(callers, dict) else ():
        named = entry.get("identities") if isinstance(entry, dict) else None
        for at, name in enumerate(named if isinstance(named, list) else ()):
            if isinstance(name, str) and name not in known:
                place = document.locate(("orchestrators", caller, "identities", at))
                message = f"there is no identity {name[:100]!r} under 'identities'"
                yield Fault(place, FaultCode.UNKNOWN_NAME, message)


def _choices(
    document: Document, name: str, entry: Mapping[str, object]
) -> Iterator[Fault]:
    roles = entry.get("roles")
    if isinstance(roles, list) and len(roles) > 1 and "role_claim" not in entry:
        place = document.locate(("identities", name, "roles"))
        message = f"{name!r}: expected one role, or 'role_claim', which chooses one"
        yield Fault(place, FaultCode.KEY_CHOICE, message)
