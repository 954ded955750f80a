"""Reading the values of secrets, and making headers of them (floor 3)."""

from __future__ import annotations

import os
import string
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from squidkeeper.credentials.secret import Secret, checked_secret
from squidkeeper.errors import SecretUnavailable
from squidkeeper.policy.faults import FaultCode
from squidkeeper.policy.model import Credential, SecretSource

_FILE_LIMIT = 64 * 1024  # bytes; anything longer is not a credential


class SecretStore:
    """The secrets of one policy. A file is read again when it has changed, so a rotated secret is used at once."""

    def __init__(self, sources: Mapping[str, SecretSource], environment: Mapping[str, str]) -> None:
        self._sources = sources
        self._environment = environment
        self._read: dict[str, tuple[object, Secret]] = {}
        self._made: dict[str, tuple[list[Secret], Secret]] = {}  # a header's value by its credential, and of what

    def get(self, name: str) -> Secret:
        """Get a secret by its name; `SecretUnavailable` if it has no usable value."""
        source = self._sources[name]
        return self._from_environment(name, source.env) if source.file is None else self._from_file(name, source.file)

    def header_value(self, credential: Credential) -> Secret:
        """Make the value of a credential's header; `SecretUnavailable` if one of its secrets is unavailable."""
        secrets = [self.get(name) for name in credential.secrets]
        known = self._made.get(credential.name)
        if known is None or known[0] != secrets:
            self._made[credential.name] = known = (secrets, _header_value(credential, secrets))
        return known[1]

    def _from_environment(self, name: str, variable: str | None) -> Secret:
        value = self._environment.get(variable or "")
        if value is None:
            message = f"secret {name}: the environment variable {variable} is not set for Squid"
            raise SecretUnavailable(FaultCode.SECRET_UNSET, message)
        return checked_secret(name, f"the environment variable {variable}", os.fsencode(value))

    def _from_file(self, name: str, path: Path) -> Secret:
        try:
            state = _state(os.stat(path))
            known = self._read.get(name)
            if known is None or known[0] != state:
                with open(path, "rb", opener=_open_at_once) as file:
                    stat = os.fstat(file.fileno())
                    if not S_ISREG(stat.st_mode) or stat.st_size > _FILE_LIMIT:
                        message = f"secret {name}: {path} is not a file of at most {_FILE_LIMIT} bytes"
                        raise SecretUnavailable(FaultCode.SECRET_INVALID, message)
                    content = file.read(_FILE_LIMIT + 1)
                self._made.clear()  # nothing made of the old value may be sent
                self._read[name] = known = (_state(stat), checked_secret(name, f"the file {path}", content))
        except OSError as error:
            message = f"secret {name}: the file {path} cannot be read: {error.strerror}"
            raise SecretUnavailable(FaultCode.SECRET_UNREADABLE, message) from error
        return known[1]


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a FIFO, or for the holder of a lease."""
    return os.open(path, flags | os.O_NONBLOCK)


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _header_value(credential: Credential, secrets: list[Secret]) -> Secret:
    values = {secret.name: secret.reveal() for secret in secrets}
    text = "".join(_fill(credential.template, values))
    if credential.username is not None:
        text = f"Basic {b64encode(f'{credential.username}:{text}'.encode()).decode()}"
    return Secret(credential.name, text)


def _fill(template: str, values: Mapping[str, str]) -> list[str]:
    """Fill in a template whose fields are plain names, as the policy's loader has checked."""
    return [text + (values[name] if name else "") for text, name in _pieces(template)]


@lru_cache(maxsize=1024)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((text, name) for text, name, _, _ in string.Formatter().parse(template))
