"""Sealed tokens of a request: where a client presents one, and what it holds."""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping
from hashlib import sha256
from urllib.parse import unquote

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.errors import (
    ExtraMissing,
    PatternError,
    SealedTokenRefused,
    SecretUnavailable,
    SquidkeeperError,
)
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS
from squidkeeper.policy.language.model import OPENS_NONE
from squidkeeper.policy.language.sealed_tokens import SealedContent, parse_content
from squidkeeper.serving.credentials.sealing import (
    TOKEN_PREFIX,
    SealingPrivateKey,
    open_bytes,
)
from squidkeeper.serving.credentials.store import Secret, SecretStore

_CACHE_BYTES, _OBJECT_BYTES = 1024 * 1024, 8_000  # of Python objects, beside the text
_PLAIN = re.compile(r"(?:(?:bearer|token)\s+)?(\S+)", re.IGNORECASE)
_BASIC = re.compile(r"basic\s+(.*)", re.IGNORECASE | re.DOTALL)
_CARRIERS = frozenset(header.lower() for header in INJECTABLE_HEADERS)


class SealedTokens:
    """The keys in force, and what was opened with them: a token takes 7 us instead of
    240.
    """

    def __init__(self, secrets: SecretStore, names: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._names = names
        self._read: dict[
            str, tuple[Secret, SealingPrivateKey]
        ] = {}  # of the secrets that hold a key
        self._opened: BoundedCache[bytes, SealedContent] = BoundedCache(_CACHE_BYTES)
        self.problems: dict[
            str, SquidkeeperError
        ] = {}  # of keys, by the name of the secret, for the operators
        self._keys()  # so that a wrong key is reported before a token needs it

    def open(self, token: str) -> SealedContent:
        """Open a token; `SealedTokenRefused` if it cannot be opened or used.

        Its guards are not checked.
        """
        keys = self._keys()
        missing = [
            problem
            for problem in self.problems.values()
            if isinstance(problem, ExtraMissing)
        ]
        if missing and not keys:
            raise SealedTokenRefused(f"{OPENS_NONE}, as {missing[0]}")
        digest = sha256(token.encode()).digest()
        known = self._opened.get(digest)
        if known is None:
            try:
                known = parse_content(open_bytes(token, keys))
            except PatternError:
                raise SealedTokenRefused(
                    "its content is not one that this gateway understands"
                ) from None
            self._opened.add(digest, known, _OBJECT_BYTES + 4 * len(token))
        return known

    def _keys(self) -> list[SealingPrivateKey]:
        """Return the keys that can be read; a key that has changed opens nothing that
        was opened by the old one.
        """
        for name in self._names:
            try:
                secret = self._secrets.get(name)
                known = self._read.get(name)
                if known is None or known[0] != secret:
                    self._forget(name)
                    self._read[name] = (secret, _parse_key(name, secret))
            except (SecretUnavailable, PatternError, ExtraMissing) as error:
                self._forget(name)
                self.problems[name] = error
            else:
                self.problems.pop(name, None)
        return [self._read[name][1] for name in self._names if name in self._read]

    def _forget(self, name: str) -> None:
        if self._read.pop(name, None) is not None:
            self._opened.clear()


def _parse_key(name: str, secret: Secret) -> SealingPrivateKey:
    try:
        return SealingPrivateKey.parse(secret.reveal())
    except PatternError as error:
        raise PatternError(f"secret {name}: {error}") from None


def presented_token(headers: Mapping[str, str], url: str) -> str | None:
    """Return the sealed token of a request, None if it has none; `headers` are by their
    names in lower case.

    `SealedTokenRefused` where it is presented anywhere but in one header that the
    gateway injects.
    """
    holding = [(name, text) for name, text in _texts(headers) if _holds_token(text)]
    if _holds_token(url) or ("%" in url and _holds_token(unquote(url))):
        raise SealedTokenRefused(
            "a URL is no place for it, expected the header Authorization"
        )
    if not holding:
        return None
    if len(holding) > 1:
        raise SealedTokenRefused("it is in more than one header, or there are several")
    name, text = holding[0]
    if name not in _CARRIERS:
        raise SealedTokenRefused(
            "it is in a header that the gateway does not inject, expected Authorization"
        )
    match = _PLAIN.fullmatch(text)
    if match is None:
        raise SealedTokenRefused("the header holds more than the token")
    return match[1]


def _holds_token(text: str) -> bool:
    # in another case it opens nothing, and is refused all the same
    return TOKEN_PREFIX in text.lower()


def _texts(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        yield name, value
        basic = _BASIC.fullmatch(value)
        if basic is not None:
            username, _, password = _decoded(basic[1]).partition(":")
            yield name, username
            yield name, password


def _decoded(text: str) -> str:
    try:
        # one without its padding is read too
        return b64decode(text.rstrip("= \t") + "===").decode("latin-1")
    except (Base64Error, ValueError):
        return ""
