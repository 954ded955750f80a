"""The number of a ticket: an HMAC of the question, so that every helper gives a question the same one.

Nobody can compute the number of another client's question without the key, which lies in the state folder.
"""

import os
import re
from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256
from hmac import digest
from pathlib import Path
from typing import Final

from squidkeeper.base.untrusted_file import read_untrusted

NUMBER: Final = re.compile(r"[a-z2-7]{12}")
_NUMBER_LENGTH: Final = 12  # characters of 5 bits: short enough to type, and one in 10^18 to guess
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class AskedRequest:
    """What is asked about: one client, method and whole URL, as Squid states them. `user` is empty without a login."""

    client: str
    user: str
    method: str
    url: str


def ticket_number(key: bytes, asked: AskedRequest) -> str:
    """Give the number of the ticket for a request."""
    parts = (asked.client, asked.user, asked.method, asked.url)
    encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
    text = b"".join(b"%d:%b" % (len(part), part) for part in encoded)
    return b32encode(digest(key, text, sha256))[:_NUMBER_LENGTH].decode().lower()


def ticket_key(file: Path) -> bytes:
    """Read the key of the gateway, or make it: the first process to do so decides. OSError if that fails."""
    try:
        return _read(file)
    except FileNotFoundError:
        _make(file)
        return _read(file)


def _read(file: Path) -> bytes:
    key = read_untrusted(file, _KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise OSError(f"{file} holds no key of {_KEY_BYTES} bytes: remove it")
    return key


def _make(file: Path) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as opened:
        opened.write(os.urandom(_KEY_BYTES))
    try:
        os.link(new, file)  # never replaces the key of another process
    except FileExistsError:
        pass
    finally:
        new.unlink()
