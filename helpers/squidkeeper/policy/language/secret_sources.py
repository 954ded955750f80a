"""Where the values of secrets come from: one dataclass a kind, never a value."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.hosts import HostPattern


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that Squid's account can read."""

    path: Path

    def __str__(self) -> str:
        return f"file {self.path}"


@dataclass(frozen=True, slots=True)
class EnvironmentSource:
    """A variable of Squid's environment."""

    variable: str

    def __str__(self) -> str:
        return f"env {self.variable}"


@dataclass(frozen=True, slots=True)
class CommandSource:
    """A program in the folder of commands, with its arguments.

    Its standard output is the value.
    """

    run: tuple[str, ...]
    timeout_seconds: int
    refresh_seconds: int

    def __str__(self) -> str:
        return f"command {self.run[0]}"


@dataclass(frozen=True, slots=True)
class SessionSource:
    """Each session brings a value of its own."""

    def __str__(self) -> str:
        return "session"


class Grant(StrEnum):
    """How an OAuth2 token is asked for (RFC 6749)."""

    CLIENT_CREDENTIALS = "client_credentials"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - the name of a grant


class ClientAuth(StrEnum):
    """How a client sends its secret to the token endpoint: in the header Authorization,
    or in the form.
    """

    BASIC = "basic"
    FORM = "form"


@dataclass(frozen=True, slots=True)
class OAuth2Source:
    """A token endpoint. `client_secret` and `refresh_token` are names of secrets."""

    token_url: str
    grant: Grant
    client_id: str
    client_secret: str | None
    client_auth: ClientAuth
    refresh_token: str | None
    scope: str | None
    audience: str | None
    ca: Path | None
    refresh_seconds: int  # where the token endpoint does not say when the token expires

    def __str__(self) -> str:
        return f"oauth2 {self.token_url}"


@dataclass(frozen=True, slots=True)
class GitHubAppSource:
    """An installation of a GitHub App.

    `private_key` is the name of a secret; permissions are pairs, sorted.
    """

    app_id: str
    installation_id: int
    private_key: str
    repositories: tuple[str, ...]
    permissions: tuple[tuple[str, str], ...]
    api_url: str
    ca: Path | None

    def __str__(self) -> str:
        return f"github_app {self.app_id}"


# fetched by `squidkeeper secrets`
FetchedSource = CommandSource | OAuth2Source | GitHubAppSource
SecretSource = FileSource | EnvironmentSource | SessionSource | FetchedSource


@dataclass(frozen=True, slots=True)
class NamedSecret:
    """A secret of the policy: its name, where its value comes from, and to which hosts
    credentials may send it.

    `hosts` is None where that is any host.
    """

    name: str
    location: Location
    source: SecretSource
    hosts: tuple[HostPattern, ...] | None = None


def needed_secrets(source: SecretSource) -> tuple[str, ...]:
    """List the secrets whose values fetching this one needs."""
    match source:
        case OAuth2Source(client_secret=secret, refresh_token=token):
            return tuple(name for name in (secret, token) if name)
        case GitHubAppSource(private_key=key):
            return (key,)
        case _:
            return ()


def private_keys(secrets: Mapping[str, NamedSecret]) -> frozenset[str]:
    """List the secrets that are private keys: these have several lines, and cannot
    stand in a header.
    """
    sources = (secret.source for secret in secrets.values())
    return frozenset(
        source.private_key for source in sources if isinstance(source, GitHubAppSource)
    )


def session_secrets(secrets: Mapping[str, NamedSecret]) -> frozenset[str]:
    """List the secrets that sessions bring."""
    return frozenset(
        name
        for name, secret in secrets.items()
        if isinstance(secret.source, SessionSource)
    )


def fetched_secrets(
    secrets: Mapping[str, NamedSecret],
) -> Iterator[tuple[str, FetchedSource]]:
    """List the secrets that `squidkeeper secrets` fetches, by name."""
    for name, secret in secrets.items():
        if isinstance(secret.source, FetchedSource):
            yield name, secret.source


def source_key(name: str, secrets: Mapping[str, NamedSecret]) -> str:
    """Name a source by its whole definition, those of the secrets that it needs
    included.

    A source that was edited has another key, so its former value is never used.
    """
    definitions = "\n".join(_definitions(name, secrets))
    return sha256(definitions.encode("utf-8", "surrogateescape")).hexdigest()[
        :_KEY_LENGTH
    ]


def _definitions(name: str, secrets: Mapping[str, NamedSecret]) -> Iterator[str]:
    source = secrets[name].source
    yield repr((name, source))
    for needed in needed_secrets(source):  # the builder refuses cycles
        yield from _definitions(needed, secrets)


# --- what the fields may hold; no message shows a text, which may be a value by mistake


def parse_period(text: str, shortest: int, longest: int) -> int:
    """Parse a period such as 30s, 5m or 1h into seconds; `PatternError` with the
    bounds.
    """
    match = _PERIOD.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not shortest <= seconds <= longest:
        raise PatternError(
            f"this is not a time from {shortest}s to {longest}s, expected one such as 30s, 5m or 1h"
        )
    return seconds


def parse_endpoint(text: str) -> str:
    """Parse the URL of a source: https, a host, no user and no fragment."""
    try:
        parts = urlsplit(text)
        good = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.fragment or not _URL.fullmatch(text):
        raise PatternError(
            "this is not the URL of a source, expected https://HOST/… without a user and without '#'"
        )
    return text


def parse_argument(text: str) -> str:
    """Parse an argument of a command."""
    if "\0" in text:
        raise PatternError("the argument holds a NUL, expected none")
    return text


def parse_form_text(text: str) -> str:
    """Parse what is sent to a token endpoint as it is."""
    if not text.isascii() or not text.isprintable():
        raise PatternError(
            "the text holds something other than printable ASCII, expected it as the source knows it"
        )
    return text


def parse_repository(text: str) -> str:
    """Parse the name of a repository of an installation, without its owner."""
    if not _REPOSITORY.fullmatch(text):
        raise PatternError(
            "this is not the name of a repository, expected it without its owner, such as website"
        )
    return text


_KEY_LENGTH = 32  # hexadecimal digits
_UNITS = {"s": 1, "m": 60, "h": 3600}
_PERIOD = re.compile(r"([0-9]{1,6})([smh])")
_URL = re.compile(r"[!-~]{1,2000}")
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}")
