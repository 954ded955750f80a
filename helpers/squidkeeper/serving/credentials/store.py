"""Reading the values of secrets, which never print themselves, and making headers of
them.
"""

import os
import string
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG

from squidkeeper.base.errors import SecretUnavailable
from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.language import secret_sources
from squidkeeper.policy.language.forms import InjectedValue
from squidkeeper.serving.credentials.brought_values import brought_value
from squidkeeper.serving.credentials.fetched_values import (
    FetchedValue,
    parse_value,
    value_file,
)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret value.

    Only `reveal` gives it, and only the reply to Squid may call that.
    """

    name: str
    _value: str = field(repr=False)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value


def checked_secret(name: str, source: str, value: bytes) -> Secret:
    """Make a secret of bytes that were read; one trailing newline is not part of it.

    `SecretUnavailable` if it is empty or holds more than printable ASCII: a CR or LF
    would split the header.
    """
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SecretUnavailable(
            FaultCode.SECRET_EMPTY, f"secret {name}: {source} is empty"
        )
    if not all(0x20 <= byte <= 0x7E for byte in value):
        message = f"secret {name}: {source} holds characters other than printable ASCII"
        raise SecretUnavailable(FaultCode.SECRET_INVALID, message)
    return Secret(name, value.decode("ascii"))


_FILE_LIMIT = 64 * 1024  # bytes; anything longer is not a credential
_State = tuple[int, ...]


class SecretStore:
    """The secrets of one policy.

    A file is read again when it has changed, so a rotated secret is used at once.

    `fetched` is the folder of the values that `squidkeeper secrets` fetches, `brought`
    that of the values of sessions. Without it, those are unavailable. With
    `trust_seconds`, a file is taken for unchanged for that long: looking costs each
    injected request 2.5 us.
    """

    def __init__(
        self,
        secrets: Mapping[str, secret_sources.NamedSecret],
        environment: Mapping[str, str],
        fetched: Path | None = None,
        trust_seconds: float = 0.0,
        brought: Path | None = None,
    ) -> None:
        self._secrets = secrets
        self._environment = environment
        self._fetched = {
            name: value_file(fetched, secret_sources.source_key(name, secrets))
            for name, _ in secret_sources.fetched_secrets(secrets)
            if fetched
        }
        self._brought = brought
        self._of_sessions = secret_sources.session_secrets(secrets)
        self._private_keys = secret_sources.private_keys(secrets)
        self._readers = {
            name: self._reader(name, secret.source) for name, secret in secrets.items()
        }
        self._read: dict[str, tuple[_State, Secret]] = {}  # files
        self._trust_seconds = trust_seconds
        self._trusted_until: dict[str, float] = {}
        self._values: dict[
            str, tuple[_State, FetchedValue, Secret]
        ] = {}  # what was fetched
        self._made: dict[
            InjectedValue, tuple[list[Secret], str]
        ] = {}  # with the secrets that it was made of

    def get(self, name: str, session: int | None = None) -> Secret:
        """Get a secret by its name; `SecretUnavailable` if it has no usable value.

        `session` is the number of the session that asks.
        """
        if name in self._of_sessions:
            value = brought_value(self._brought, name, session)
            return checked_secret(name, "the value of a session", value.encode())
        return self._readers[name]()

    def _reader(
        self, name: str, source: secret_sources.SecretSource
    ) -> Callable[[], Secret]:
        """Choose what reads a secret, once: it is read for each request."""
        match source:
            case secret_sources.EnvironmentSource(variable):
                return partial(self._from_environment, name, variable)
            case secret_sources.FileSource(path):
                return partial(self._from_file, name, str(path))
            case secret_sources.SessionSource():
                return partial(self.get, name)
            case _:
                return partial(self._from_fetched, name, source)

    def private_key(self, name: str) -> bytes:
        """Read the file of a private key, which has several lines; `SecretUnavailable`
        if it cannot be read.
        """
        source = self._secrets[name].source
        if not isinstance(source, secret_sources.FileSource):  # the builder refuses it
            raise SecretUnavailable(
                FaultCode.SECRET_INVALID,
                f"secret {name}: a private key is read from a file",
            )
        return _read_file(name, source.path, f"the file {source.path}")[1]

    def watched_length(self, name: str) -> int:
        """Return the length of a value that can be read; that of a private key, which
        is never sent, has no bound.
        """
        return (
            sys.maxsize if name in self._private_keys else len(self.get(name).reveal())
        )

    def problem(self, name: str) -> SecretUnavailable | None:
        """Tell why a secret is unavailable, if it is; none that sessions bring is."""
        if name in self._of_sessions:
            return None
        try:
            if name in self._private_keys:
                self.private_key(name)
            else:
                self.get(name)
        except SecretUnavailable as error:
            return error
        return None

    def fill(self, value: InjectedValue, session: int | None = None) -> str:
        """Fill in the secrets of a value; `SecretUnavailable` if one of them is
        unavailable.
        """
        secrets = [self.get(name, session) for name in value.secrets]
        if not self._of_sessions.isdisjoint(value.secrets):
            return filled(value, secrets)
        known = self._made.get(value)
        if known is None or known[0] != secrets:
            self._made[value] = known = (secrets, filled(value, secrets))
        return known[1]

    def _from_environment(self, name: str, variable: str) -> Secret:
        value = self._environment.get(variable)
        if value is None:
            message = f"secret {name}: the environment variable {variable} is not set for Squid"
            raise SecretUnavailable(FaultCode.SECRET_UNSET, message)
        return checked_secret(
            name, f"the environment variable {variable}", os.fsencode(value)
        )

    def _from_file(self, name: str, path: str) -> Secret:
        known, now = self._read.get(name), time.monotonic()
        if known is not None and now < self._trusted_until.get(name, 0.0):
            return known[1]
        self._trusted_until.pop(name, None)  # an error is never trusted
        where = f"the file {path}"
        if known is None or known[0] != _state_of(name, path, where):
            state, content = _read_file(name, path, where)
            self._made.clear()  # nothing made of the old value may be sent
            self._read[name] = known = (state, checked_secret(name, where, content))
        self._trusted_until[name] = now + self._trust_seconds
        return known[1]

    def _from_fetched(self, name: str, source: secret_sources.FetchedSource) -> Secret:
        path = self._fetched.get(name)
        if path is None:
            message = f"secret {name}: {source} is fetched by 'squidkeeper secrets', whose values are not read here"
            raise SecretUnavailable(FaultCode.SECRET_UNREADABLE, message)
        known, where = self._values.get(name), "the value that was fetched"
        try:
            state = _state_of(name, path, where)
        except SecretUnavailable as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            message = f"secret {name}: no value has been fetched from {source}: see the status page for the reason"
            raise SecretUnavailable(
                error.code, message, pending=known is None
            ) from error
        if known is None or known[0] != state:
            state, content = _read_file(name, path, where)
            self._made.clear()
            self._values[name] = known = (state, *_parsed_value(name, where, content))
        if known[1].expired(time.time()):
            message = f"secret {name}: the value fetched from {source} has expired: see the status page for the reason"
            raise SecretUnavailable(FaultCode.SECRET_INVALID, message)
        return known[2]


def _parsed_value(name: str, where: str, content: bytes) -> tuple[FetchedValue, Secret]:
    try:
        value = parse_value(content)
    except ValueError:
        message = f"secret {name}: {where} is not what 'squidkeeper secrets' writes"
        raise SecretUnavailable(FaultCode.SECRET_INVALID, message) from None
    return value, checked_secret(name, where, value.value.encode())


def _state_of(name: str, path: str | Path, where: str) -> _State:
    try:
        return _state(os.stat(path))
    except OSError as error:
        raise _unreadable(name, where, error) from error


def _read_file(name: str, path: str | Path, where: str) -> tuple[_State, bytes]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            stat = os.fstat(file.fileno())
            if not S_ISREG(stat.st_mode) or stat.st_size > _FILE_LIMIT:
                message = f"secret {name}: {path} is not a file of at most {_FILE_LIMIT} bytes"
                raise SecretUnavailable(FaultCode.SECRET_INVALID, message)
            return _state(stat), file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise _unreadable(name, where, error) from error


def _unreadable(name: str, where: str, error: OSError) -> SecretUnavailable:
    message = f"secret {name}: {where} cannot be read: {error.strerror}"
    return SecretUnavailable(FaultCode.SECRET_UNREADABLE, message)


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a FIFO, or for the holder of
    a lease.
    """
    return os.open(path, flags | os.O_NONBLOCK)


def _state(stat: os.stat_result) -> _State:
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def filled(value: InjectedValue, secrets: list[Secret]) -> str:
    """Fill secrets into a value.

    Nothing is kept of it: whoever seals a token makes up its template.
    """
    values = {secret.name: secret.reveal() for secret in secrets}
    text = "".join(_fill(value.template, values))
    return (
        text
        if value.username is None
        else f"Basic {b64encode(f'{value.username}:{text}'.encode()).decode()}"
    )


def _fill(template: str, values: Mapping[str, str]) -> list[str]:
    return [
        text + (values[name] if name else "")
        for text, name, _, _ in string.Formatter().parse(template)
    ]
