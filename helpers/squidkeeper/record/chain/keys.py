"""The keys that an archive is sealed with: Ed25519, in PEM form, as OpenSSL reads them.

A signed object is a JSON object whose last member is the signature, in base64, of the
object without it.
"""

import os
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from squidkeeper.base.errors import InvalidArchiveKey

_SIGNATURE: Final = b',"signature":"'
_END: Final = b'"}'
_CONTEXT: Final = (
    b"squidkeeper archive 1\n"  # so that a signature is valid for nothing else
)
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_LONGEST: Final = 64 * 1024  # bytes of a file with keys


@dataclass(frozen=True, slots=True)
class ArchivePublicKey:
    """The key that verifies. It is no secret."""

    raw: bytes

    @property
    def id(self) -> str:
        """A short name for the key."""
        return sha256(self.raw).hexdigest()[:16]

    @property
    def pem(self) -> bytes:
        """The key in PEM form."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(
            serialization.Encoding.PEM, form
        )

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Whether a signature is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(
                signature, _CONTEXT + content
            )
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class ArchiveKey:
    """The key that signs. It never prints itself."""

    public: ArchivePublicKey
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def new(cls) -> Self:
        """Make a key."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Parse a private key in PEM form; `InvalidArchiveKey`, which shows nothing of
        it, if it is none.
        """
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidArchiveKey(
                "this is not an Ed25519 private key in PEM form without a passphrase"
            )
        return cls._of(key)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Self:
        raw = key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return cls(ArchivePublicKey(raw), key)

    @property
    def pem(self) -> bytes:
        """The key in PEM form: for the file that keeps it, and for nothing else."""
        form, encryption = (
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self._key.private_bytes(serialization.Encoding.PEM, form, encryption)

    def sign(self, content: bytes) -> bytes:
        """Sign."""
        return self._key.sign(_CONTEXT + content)


def read_archive_key(file: Path) -> ArchiveKey:
    """Read the key that signs; `InvalidArchiveKey` or OSError if there is none."""
    try:
        return ArchiveKey.parse(_read(file))
    except InvalidArchiveKey as error:
        raise InvalidArchiveKey(f"{file}: {error}") from None


def read_public_keys(file: Path) -> tuple[ArchivePublicKey, ...]:
    """Read the public keys of a file in PEM form, more than one after a key was
    replaced; `InvalidArchiveKey`.
    """
    found = tuple(_parse_public(pem, file) for pem in _PEM.findall(_read(file)))
    if not found:
        raise InvalidArchiveKey(
            f"{file}: no public key in PEM form is in it, expected the file that install.sh names (archive.pub)"
        )
    return found


def signed(text: bytes, key: ArchiveKey) -> bytes:
    """Sign a JSON object; the signature becomes its last member."""
    return text[:-1] + _SIGNATURE + b64encode(key.sign(text)) + _END


def split_signature(line: bytes) -> tuple[bytes, bytes | None]:
    """Split a signed object into what is signed and its signature; None: it
    has none.
    """
    text, separator, rest = line.rpartition(_SIGNATURE)
    if not separator or not rest.endswith(_END):
        return line, None
    try:
        return text + b"}", b64decode(rest.removesuffix(_END), validate=True)
    except (Base64Error, ValueError):
        return line, None


def _parse_public(pem: bytes, file: Path) -> ArchivePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidArchiveKey(
            f"{file}: a key in it is not an Ed25519 public key in PEM form"
        )
    return ArchivePublicKey(
        key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )


def _read(file: Path) -> bytes:
    with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC), "rb") as opened:
        return opened.read(_LONGEST)
