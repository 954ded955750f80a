"""A signed token of a platform becomes a session: `POST /v1/sessions/exchange`.

A token makes one session. The session's name is made of the token's `jti`, or of all
that is signed. So the same token finds its session again, and none after that has
ended. A token lives a day at most, and sessions that have ended are known for longer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from squidkeeper.policy.extras import extra_problem
from squidkeeper.services.sessions.identities import KEY_TYPES, Identity
from squidkeeper.services.sessions.keeper import Kept, SessionKeeper
from squidkeeper.services.sessions.models import (
    ExchangeAsked,
    ExchangedSession,
    Judging,
    PolicyTerms,
    judged,
    judged_or_faults,
    parse_object,
)
from squidkeeper.services.sessions.orchestrators import Orchestrator
from squidkeeper.services.sessions.problems import (
    CallRefused,
    FieldProblem,
    ProblemCode,
    pointer,
)

if TYPE_CHECKING:
    from joserfc.jwk import Key

_EXTRA: Final = "oauth2"  # joserfc
_TOKEN_AT_MOST: Final = 8192
_KEYS_AT_MOST: Final = 256 * 1024
_RSA_BITS: Final = 2048
_SKEW_SECONDS: Final = 60  # between the clocks of the issuer and of this machine
_DAY_SECONDS: Final = 86_400
_SUBJECT_SHOWN: Final = 200
_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_TYPES: Final = ("JWT", "JOSE")
_PLACE: Final = pointer("token")
_NONE: Final = object()


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The session of a token; `facts` are for the audit log."""

    kept: Kept
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What a token says whose signature holds; `name` is that of its session."""

    name: str
    claims: Mapping[str, Any]

    @property
    def ends(self) -> float:
        """When it ends, in seconds since 1970."""
        return float(self.claims["exp"])


class TokenExchange:
    """Makes sessions of signed tokens."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper

    def take(self, caller: Orchestrator, data: Mapping[str, Any]) -> Exchanged:
        """Make the session of a token, or find that it is there."""
        if problem := extra_problem(_EXTRA):
            raise CallRefused(ProblemCode.NOT_IMPLEMENTED, problem)
        terms = self._keeper.terms()
        asked = judged(ExchangeAsked, data, Judging(terms, caller))
        identity = caller.identities[asked.identity]
        facts: dict[str, object] = {"identity": identity.name}
        try:
            token = verified(identity, asked.token.get_secret_value(), time.time())
            facts["issuer"] = identity.issuer
            facts["subject"] = token.claims["sub"][:_SUBJECT_SHOWN]
            session = _session(identity, token, data, terms, caller)
            kept = self._keeper.put_exchanged(caller, token.name, session)
        except CallRefused as error:
            error.facts = {**facts, **error.facts}
            raise
        return Exchanged(kept, facts)


def verified(identity: Identity, token: str, now: float) -> VerifiedToken:
    """Check a token at a time; `CallRefused` where something does not hold."""
    if len(token) > _TOKEN_AT_MOST:
        _refuse(f"expected at most {_TOKEN_AT_MOST:,} characters")
    if not _COMPACT.fullmatch(token):
        _refuse("expected a signed JWT in compact form: three parts of base64url")
    head, body, _ = token.split(".")
    header = _object(head, "header")
    algorithm = _checked_algorithm(identity, header)
    _check_signature(token, algorithm, _key(identity, header["kid"], algorithm))
    claims = _object(body, "payload")
    _check_standard_claims(identity, claims, now)
    for claim, globs in identity.claims.items():
        value = _claim(claims, claim)
        if not isinstance(value, str) or not any(glob(value) for glob in globs):
            _refuse(f"claim {claim}: its value is not one of sessions.yaml")
    which = claims.get("jti") or f"{head}.{body}"
    digest = sha256(f"{identity.issuer}\0{which}".encode()).hexdigest()
    return VerifiedToken(f"token-{digest[:32]}", claims)


def _refuse(detail: str) -> NoReturn:
    fields = [FieldProblem(_PLACE, detail)]
    raise CallRefused(ProblemCode.TOKEN_REFUSED, f"{_PLACE}: {detail}", fields)


def _object(part: str, what: str) -> dict[str, Any]:
    from joserfc.util import urlsafe_b64decode

    try:
        found = parse_object(urlsafe_b64decode(part.encode()))
        json.dumps(found, ensure_ascii=False).encode()  # no half of a character
    except (CallRefused, ValueError):
        _refuse(f"its {what} is not one JSON object of UTF-8 with each key once")
    return found


def _checked_algorithm(identity: Identity, header: Mapping[str, Any]) -> str:
    """Return `alg`. What else a header may name, such as keys, is not read."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in identity.algorithms:
        expected = ", ".join(sorted(identity.algorithms))
        _refuse(f"header alg: expected one of {expected}")
    for name in ("crit", "b64"):
        if name in header:
            _refuse(f"header {name}: expected none")
    kind = header.get("typ", _TYPES[0])
    if not isinstance(kind, str) or kind.upper() not in _TYPES:
        _refuse("header typ: expected JWT")
    if not isinstance(header.get("kid"), str):
        _refuse("header kid: expected the name of a key")
    return algorithm


def _key(identity: Identity, name: str, algorithm: str) -> Key:
    """Read the one key of a name out of the issuer's."""
    from joserfc.errors import JoseError
    from joserfc.jwk import JWKRegistry

    found = [key for key in _keys(identity.keys) if key.get("kid") == name]
    if len(found) != 1:
        _refuse(f"header kid: {len(found)} keys of {identity.name} have it, expected 1")
    [key] = found
    if key.get("kty") != KEY_TYPES[algorithm]:
        _refuse(f"header alg: the key is none for {algorithm}")
    if "d" in key:
        raise _no_keys(identity.keys, "it has a private key, expected public ones")
    try:
        made = JWKRegistry.import_key(key)
        bits = made.raw_value.key_size  # type: ignore[union-attr] # of RSA and EC
    except (JoseError, ValueError, TypeError, AttributeError) as error:
        raise _no_keys(identity.keys, f"the key {name!r} is not read") from error
    if key["kty"] == "RSA" and bits < _RSA_BITS:
        raise _no_keys(identity.keys, f"the key {name!r} has {bits} bits")
    return made


def _keys(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open("rb") as opened:
            content = opened.read(_KEYS_AT_MOST + 1)
        keys = parse_object(content).get("keys")
    except OSError as error:
        raise _no_keys(file, error.strerror or str(error)) from error
    except CallRefused as error:
        raise _no_keys(file, str(error)) from error
    if len(content) > _KEYS_AT_MOST or not isinstance(keys, list):
        raise _no_keys(file, "expected a JSON Web Key Set of 256 KB at most")
    return [key for key in keys if isinstance(key, dict)]


def _no_keys(file: Path, why: str) -> CallRefused:
    return CallRefused(ProblemCode.KEYS_UNAVAILABLE, f"{file}: {why}")


def _check_signature(token: str, algorithm: str, key: Key) -> None:
    from joserfc import jws
    from joserfc.errors import JoseError

    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = _TOKEN_AT_MOST
    try:
        jws.deserialize_compact(token, key, registry=registry)
    except (JoseError, ValueError, TypeError):
        _refuse("its signature, or its header, does not hold")


def _check_standard_claims(
    identity: Identity, claims: Mapping[str, Any], now: float
) -> None:
    from joserfc.errors import ClaimError
    from joserfc.jwt import JWTClaimsRegistry

    registry = JWTClaimsRegistry(
        now=int(now),
        leeway=_SKEW_SECONDS,
        iss={"essential": True, "value": identity.issuer},
        aud={"essential": True, "value": identity.audience},
        sub={"essential": True},
        exp={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except ClaimError as error:
        _refuse(f"claim {error.claim}: {_WRONG.get(error.claim, 'does not hold')}")
    if claims["aud"] not in (identity.audience, [identity.audience]):
        _refuse("claim aud: the token is for others too, expected this gateway alone")
    if not isinstance(claims["sub"], str):
        _refuse("claim sub: expected text")
    # A session ends with its token, by the clock of this machine.
    if not now + 1 <= claims["exp"] <= now + _DAY_SECONDS:
        _refuse("claim exp: expected a time from now on, within a day")


_WRONG: Final = {
    "iss": "expected the issuer of sessions.yaml",
    "aud": "expected the audience of sessions.yaml",
    "exp": "expected a time that is not over",
    "nbf": "expected a time that has come",
    "iat": "expected a time that has come",
}


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """Find a claim by its name or JSON pointer; `CallRefused` without one."""
    steps = [name]
    if name.startswith("/"):
        parts = name[1:].split("/")
        steps = [part.replace("~1", "/").replace("~0", "~") for part in parts]
    found: object = claims
    for step in steps:
        found = found.get(step, _NONE) if isinstance(found, dict) else _NONE
    if found is _NONE:
        _refuse(f"claim {name}: the token has none, expected one")
    return found


def _session(
    identity: Identity,
    token: VerifiedToken,
    data: Mapping[str, Any],
    terms: PolicyTerms,
    caller: Orchestrator,
) -> ExchangedSession:
    """Judge the session that a token asks for: by the roles of its identity, and by all
    other rights of the caller.
    """
    rights = replace(caller, roles=frozenset(identity.roles))
    role: object = identity.roles[0]
    if identity.role_claim is not None:
        role = _claim(token.claims, identity.role_claim)
    given = {key: data[key] for key in data.keys() - {"identity", "token"}}
    asked = {
        **given,
        "role": role,
        "variables": _claims(token, identity.variables),
        "labels": _claims(token, identity.labels),
        "until": token.ends,
    }
    made, faults = judged_or_faults(ExchangedSession, asked, Judging(terms, rights))
    if made is None:
        told = [_by_claim(identity, fault) for fault in faults]
        detail = f"{told[0].pointer}: {told[0].detail}"
        raise CallRefused(ProblemCode.INVALID_SESSION, detail, told)
    return made


def _claims(token: VerifiedToken, named: Mapping[str, str]) -> dict[str, object]:
    return {name: _claim(token.claims, claim) for name, claim in named.items()}


def _by_claim(identity: Identity, fault: FieldProblem) -> FieldProblem:
    """Name the claim that has given what is wrong."""
    kind, _, name = fault.pointer[1:].partition("/")
    claim = identity.claim_of(kind, name.partition("/")[0])
    if claim is None:
        return fault
    return FieldProblem(_PLACE, f"claim {claim}, for {fault.pointer}: {fault.detail}")
