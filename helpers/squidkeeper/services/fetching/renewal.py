"""One secret: fetched, written, renewed before it expires.

There is one fetch of it at a time.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from squidkeeper.base import atomic_write
from squidkeeper.base.errors import (
    ExtraMissing,
    SecretUnavailable,
    SourceFailed,
    describe,
)
from squidkeeper.policy.language.secret_sources import (
    CommandSource,
    FetchedSource,
    GitHubAppSource,
    OAuth2Source,
)
from squidkeeper.services.fetching.command import run_command
from squidkeeper.services.fetching.endpoints import (
    SECONDS,
    fetch_installation_token,
    fetch_token,
    tls_context,
)
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetch_status import SecretStatus
from squidkeeper.serving.credentials.fetched_values import (
    FetchedValue,
    format_value,
    parse_value,
    value_file,
)
from squidkeeper.serving.credentials.store import checked_secret

SUFFIX: Final = ".refresh"


@dataclass(frozen=True, slots=True)
class _Rotated:
    """The newest refresh token, and the hash of the policy's own one, which it
    replaced.
    """

    of: str
    token: str = field(repr=False)


class RefreshTokens:
    """The newest refresh token of one source, in memory too: its server takes none of
    the former ones any more.

    `problem` says why it is not in its file; an empty text: it is.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._file = folder / f"{key}{SUFFIX}"
        self._newest: _Rotated | None = None
        self._stored = True
        self.problem = ""

    def current(self, initial: str) -> str:
        """Return the newest refresh token; once the policy's own one has changed, that
        is it.
        """
        newest = self._newest or self._read()
        return newest.token if newest and newest.of == _hash(initial) else initial

    def keep(self, initial: str, token: str) -> None:
        """Keep the refresh token that replaces the one that was used; `store` writes
        it.
        """
        self._newest, self._stored = _Rotated(_hash(initial), token), False

    def store(self) -> None:
        """Write what is not in the file yet."""
        if self._newest is None or self._stored:
            return
        try:
            atomic_write.replace(
                self._file, msgspec.json.encode(self._newest), mode=0o600
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self.problem = f"the new refresh token cannot be stored, and is lost when this process ends: {reason}"
        else:
            self._stored, self.problem = True, ""

    def _read(self) -> _Rotated | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Rotated)
        except (OSError, ValueError):
            return None


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


T = TypeVar("T")
R = TypeVar("R")
_DEFAULT_REFRESH_SECONDS = 300
_LONGEST_SLEEP_SECONDS = 0.5
_VALUE_BYTES = 16 * 1024  # what a reply to Squid can hold is about half of it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchedSecret:
    """What is fetched: a secret's name, its source and key, and the secrets of its
    policy.
    """

    name: str
    key: str
    source: FetchedSource
    store: SecretStore


class Renewal:
    """Fetches one secret again and again. `status` is replaced whole."""

    def __init__(self, secret: FetchedSecret, folder: Path, commands: Path) -> None:
        self._secret = secret
        self._folder = folder
        self._commands = commands
        self._thread = ThreadPoolExecutor(1)
        self._refresh_tokens = RefreshTokens(folder, secret.key)
        self.status = _status_before(secret, folder)

    async def run(self, seconds: float = 0.0) -> None:
        """Wait, fetch and write, until it is cancelled."""
        while True:
            next_fetch = time.time() + seconds
            self.status = replace(self.status, next_fetch=next_fetch)
            await _sleep_until(next_fetch, seconds)
            seconds = await self._renew()

    def broken(self, error: BaseException) -> float:
        """Report an error of ours, and tell in how many seconds to run again."""
        return self._failed(f"squidkeeper itself failed on it: {describe(error)}")

    async def _renew(self) -> float:
        now = time.time()
        try:
            value = await self._fetch(now)
            self._check(value)
            atomic_write.replace(
                value_file(self._folder, self._secret.key),
                format_value(value),
                mode=0o640,
            )
        except (SourceFailed, SecretUnavailable, ExtraMissing, OSError) as error:
            return self._failed(_text(error))
        return self._succeeded(value, now)

    def _check(self, value: FetchedValue) -> None:
        """Require a value that a header can hold, as helpers do when they read it."""
        content = value.value.encode("utf-8", "surrogatepass")
        if len(content) > _VALUE_BYTES:
            raise SourceFailed(f"the value is longer than {_VALUE_BYTES >> 10} KB")
        checked_secret(
            self._secret.name, f"the value from {self._secret.source}", content
        )

    async def _fetch(self, now: float) -> FetchedValue:
        secret = self._secret
        match secret.source:
            case CommandSource():
                return await run_command(secret.source, self._commands, now)
            case OAuth2Source():
                return await self._fetch_token(secret.source, now)
            case GitHubAppSource():
                key = await self._read(
                    secret.store.private_key, secret.source.private_key
                )
                tls = await self._read(tls_context, secret.source.ca)
                return await fetch_installation_token(secret.source, tls, key, now)

    async def _fetch_token(self, source: OAuth2Source, now: float) -> FetchedValue:
        client_secret, initial = await self._read(self._needed, source)
        tls = await self._read(tls_context, source.ca)
        refresh_token = initial and self._refresh_tokens.current(initial)
        token = await fetch_token(source, tls, client_secret, refresh_token, now)
        if initial and token.refresh_token and token.refresh_token != refresh_token:
            self._refresh_tokens.keep(initial, token.refresh_token)
        self._refresh_tokens.store()
        return token.access

    async def _read(self, read: Callable[[T], R], what: T) -> R:
        """Read files in the one thread of this secret.

        A disk that does not answer holds that thread, and no other.
        """
        try:
            async with asyncio.timeout(SECONDS):
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, read, what
                )
        except TimeoutError:
            raise SourceFailed(
                f"a file that it needs was not read within {SECONDS} s"
            ) from None

    def _needed(self, source: OAuth2Source) -> tuple[str | None, str | None]:
        names = (source.client_secret, source.refresh_token)
        secret, token = (
            self._secret.store.get(name).reveal() if name else None for name in names
        )
        return secret, token

    def _succeeded(self, value: FetchedValue, now: float) -> float:
        not_stored = self._refresh_tokens.problem
        self._log(not_stored)
        self.status = replace(
            self.status,
            last_success=time.time(),
            expires_at=value.expires_at,
            fetches=self.status.fetches + 1,
            failure=not_stored,
            failures=self.status.failures + 1 if not_stored else 0,
        )
        lifetime = None if value.expires_at is None else value.expires_at - now
        refresh = getattr(
            self._secret.source, "refresh_seconds", _DEFAULT_REFRESH_SECONDS
        )
        return renewal_seconds(lifetime, refresh, random.random())  # noqa: S311 - no secret

    def _failed(self, failure: str) -> float:
        self._log(failure)
        failures = self.status.failures + 1
        self.status = replace(
            self.status,
            failure=failure,
            failures=failures,
            failed=self.status.failed + 1,
        )
        return retry_seconds(failures, random.random())  # noqa: S311 - no secret

    def _log(self, failure: str) -> None:
        """Log what has changed: a failure once, not with each try, and its end."""
        if failure == self.status.failure:
            return
        if failure:
            _log.error(
                "secret %s: %s: %s", self._secret.name, self._secret.source, failure
            )
        else:
            _log.info(
                "secret %s: %s works again", self._secret.name, self._secret.source
            )


async def _sleep_until(when: float, seconds: float) -> None:
    """Sleep until a time by the clock, which may be set, and goes on in a suspended
    machine; `seconds` at most.
    """
    latest = time.monotonic() + seconds
    while (left := min(when - time.time(), latest - time.monotonic())) > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))


def _text(error: Exception) -> str:
    """Say what failed; the text of an OSError is the system's own."""
    if isinstance(error, OSError):
        return f"the value cannot be stored: {error.strerror or type(error).__name__}"
    return str(error)


def _status_before(secret: FetchedSecret, folder: Path) -> SecretStatus:
    file = value_file(folder, secret.key)
    try:
        fetched, value = file.stat().st_mtime, parse_value(file.read_bytes())
    except (OSError, ValueError):
        return SecretStatus(str(secret.source))
    return SecretStatus(str(secret.source), fetched, expires_at=value.expires_at)


_EARLIEST, _LATEST = 0.6, 0.8  # of the lifetime of a value
_SHORTEST_SECONDS: Final = 1.0
_LONGEST_RETRY_SECONDS: Final = 60.0
_DOUBLINGS_AT_MOST: Final = 10


def renewal_seconds(lifetime: float | None, refresh: float, chance: float) -> float:
    """Tell in how many seconds to renew a value that was just fetched.

    `lifetime` is what its source says; without one, the source is asked again after
    `refresh`.
    """
    share = _EARLIEST + (_LATEST - _EARLIEST) * chance
    return max(
        _SHORTEST_SECONDS,
        refresh * (0.9 + 0.1 * chance) if lifetime is None else lifetime * share,
    )


def retry_seconds(failures: int, chance: float) -> float:
    """Tell in how many seconds to try again after so many failures in a row: 1, 2, 4 …
    60, or down to half of that.
    """
    doubled = 2.0 ** min(failures - 1, _DOUBLINGS_AT_MOST)
    return min(_LONGEST_RETRY_SECONDS, doubled) * (0.5 + 0.5 * chance)
