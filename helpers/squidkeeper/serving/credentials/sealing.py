"""Sealed tokens as text: the keys of a gateway, sealing, and opening.

A token is `sks1.KEY-ID.TEXT`: TEXT is a sealed box of libsodium (X25519,
XSalsa20-Poly1305) in base64url without `=`. Whoever has the public key can seal; only
the gateway's private key opens. PyNaCl, of the extra `sealed`, is imported where a key
is used.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from squidkeeper.base.errors import PatternError, SealedTokenRefused
from squidkeeper.policy.extras import require

# the digit is the version of the format
TOKEN_PREFIX, PUBLIC_PREFIX, PRIVATE_PREFIX = (
    "sks1.",
    "skp1.",
    "skk1.",
)
LONGEST_TOKEN = 6_000  # characters: a secret of 4 KB, and its guards
_KEY_BYTES = 32
_ID_LENGTH = 8  # hexadecimal digits
_TOKEN = re.compile(
    rf"sks1\.(?P<key>[0-9a-f]{{{_ID_LENGTH}}})\.(?P<box>[A-Za-z0-9_-]+)"
)


@dataclass(frozen=True, slots=True)
class SealingPublicKey:
    """The key that seals. It is no secret."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a public key; `PatternError` if it is none."""
        return cls(
            _parse_key(
                text,
                PUBLIC_PREFIX,
                "the public key of a gateway, as squidkeeper seal --public-key prints it",
            )
        )

    @property
    def id(self) -> str:
        """A short name for the key, which each token carries."""
        return sha256(self.raw).hexdigest()[:_ID_LENGTH]

    def __str__(self) -> str:
        return PUBLIC_PREFIX + _encode(self.raw)


@dataclass(frozen=True, slots=True)
class SealingPrivateKey:
    """The key that opens. It never prints itself."""

    raw: bytes = field(repr=False)
    public: SealingPublicKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a private key; `PatternError`, which shows nothing of it,
        if it is none.
        """
        return cls.of(
            _parse_key(
                text,
                PRIVATE_PREFIX,
                "the private key of a gateway, as squidkeeper seal --new-key makes it",
            )
        )

    @classmethod
    def new(cls) -> Self:
        """Make a key."""
        require("sealed")
        from nacl.utils import random

        return cls.of(random(_KEY_BYTES))

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """Make the key of its 32 bytes."""
        require("sealed")
        from nacl.public import PrivateKey

        return cls(raw, SealingPublicKey(bytes(PrivateKey(raw).public_key)))

    def reveal(self) -> str:
        """Return the text that its file holds."""
        return PRIVATE_PREFIX + _encode(self.raw)


def seal_bytes(content: bytes, key: SealingPublicKey) -> str:
    """Seal a content for the owner of a key; `PatternError` if the token would be too
    long.
    """
    require("sealed")
    from nacl.public import PublicKey, SealedBox

    box = SealedBox(PublicKey(key.raw)).encrypt(content)
    token = f"{TOKEN_PREFIX}{key.id}.{_encode(box)}"
    if len(token) > LONGEST_TOKEN:
        message = f"the token has {len(token):,} characters, expected {LONGEST_TOKEN:,} at most"
        raise PatternError(
            f"{message}: seal a shorter secret, or fewer hosts and paths"
        )
    return token


def open_bytes(token: str, keys: Iterable[SealingPrivateKey]) -> bytes:
    """Return the content of a token; `SealedTokenRefused` if none of the keys
    opens it.
    """
    if len(token) > LONGEST_TOKEN:
        raise SealedTokenRefused(f"it is longer than {LONGEST_TOKEN:,} characters")
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise SealedTokenRefused("it is incomplete, or has been altered")
    key = next((key for key in keys if key.public.id == match["key"]), None)
    if key is None:
        raise SealedTokenRefused(
            "it is sealed to a key that is not in force on this gateway"
        )
    require("sealed")
    from nacl.exceptions import CryptoError
    from nacl.public import PrivateKey, SealedBox

    try:
        opened: bytes = SealedBox(PrivateKey(key.raw)).decrypt(_decode(match["box"]))
    except (CryptoError, PatternError):
        raise SealedTokenRefused("it is incomplete, or has been altered") from None
    return opened


def _parse_key(text: str, prefix: str, expected: str) -> bytes:
    text = text.strip()
    try:
        raw = _decode(text.removeprefix(prefix)) if text.startswith(prefix) else b""
    except PatternError:
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise PatternError(
            f"this is not a key of sealed tokens, expected {prefix}… ({expected})"
        )
    return raw


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Decode base64url; `PatternError` for every other spelling of the same bytes."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raise PatternError("this is not base64url") from None
    if _encode(raw) != text:
        raise PatternError("this is not base64url")
    return raw
