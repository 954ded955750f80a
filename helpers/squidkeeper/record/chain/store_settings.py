"""Which object store an archive is copied to, or read from, and the keys to it.

`s3://BUCKET/PREFIX` is enough where the usual settings of AWS's tools are in place
(AWS_… variables, ~/.aws, the role of a machine). Else a YAML file holds them: keys
never stand in a command line.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import PolicyError, SecretUnavailable, StoreFailed

_URL = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9!_.*'()/=-]+?))?/*"
)
_SUFFIXES: Final = (".yaml", ".yml")
_OTHERS: Final = 0o007


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKeys:
    """The keys to a store: themselves, or with `policy` the names of `secrets:` in that
    policy.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    policy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """An object store, as its file describes it.

    Without keys, those of AWS's tools are used.
    """

    url: str
    endpoint: str = ""
    region: str = ""
    ca_file: str = ""
    keys: StoreKeys | None = None

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self._match["bucket"]

    @property
    def root(self) -> str:
        """The bucket and the prefix of every object."""
        return (
            f"{self.bucket}/{self._match['prefix']}"
            if self._match["prefix"]
            else self.bucket
        )

    @property
    def _match(self) -> re.Match[str]:
        found = _URL.fullmatch(self.url)
        if found is None or ".." in self.url:
            raise StoreFailed(
                f"{self.url!r} is not the URL of a store, expected s3://BUCKET/PREFIX"
            )
        return found


def is_store(text: str) -> bool:
    """Whether a text names an object store: its URL, or the file of its settings."""
    return text.startswith("s3://") or text.endswith(_SUFFIXES)


def read_store_settings(text: str) -> StoreSettings:
    """Read the settings of a store, by its URL or the file of its settings;
    `StoreFailed` if they are wrong.
    """
    settings = (
        StoreSettings(url=text) if text.startswith("s3://") else _read(Path(text))
    )
    if settings.endpoint and not settings.endpoint.startswith("https://"):
        raise StoreFailed(
            f"{text}: endpoint {settings.endpoint!r} is not https://…: records would leave in clear text"
        )
    _ = settings.root  # or it is none
    return settings


def _read(file: Path) -> StoreSettings:
    try:
        mode = file.stat().st_mode
        settings = msgspec.yaml.decode(file.read_bytes(), type=_SettingsFile)
    except OSError as error:
        raise StoreFailed(f"{file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreFailed(
            f"{file}: {error}: expected url, and where needed endpoint, region, ca_file, keys"
        ) from None
    keys = settings.keys
    if keys and not keys.policy and mode & _OTHERS:
        raise StoreFailed(f"{file} holds keys, and everybody can read it: chmod 0640")
    made = StoreKeys(**msgspec.structs.asdict(keys)) if keys else None
    return StoreSettings(**(msgspec.structs.asdict(settings) | {"keys": made}))


def revealed(keys: StoreKeys) -> StoreKeys:
    """Replace the names of secrets by their values; `StoreFailed` if one is
    unavailable.
    """
    if not keys.policy:
        return keys
    from squidkeeper.policy.policy_store.loading import load
    from squidkeeper.serving.credentials import SecretStore

    try:
        policy = load(Path(keys.policy), datetime.now(UTC)).compiled.source
        store = SecretStore(policy.secrets, {})
        names = (
            keys.access_key_id,
            keys.secret_access_key,
            *([keys.session_token] if keys.session_token else []),
        )
        unknown = [name for name in names if name not in policy.secrets]
        if unknown:
            raise StoreFailed(f"secrets: of {keys.policy} has no {unknown[0]!r}")
        values = [store.get(name).reveal() for name in names]
    except (PolicyError, SecretUnavailable, OSError) as error:
        raise StoreFailed(f"keys to the store: {error}") from None
    return StoreKeys(
        **dict(
            zip(
                ("access_key_id", "secret_access_key", "session_token"),
                values,
                strict=False,
            )
        )
    )


class _KeysInFile(msgspec.Struct, forbid_unknown_fields=True):
    access_key_id: str
    secret_access_key: str
    session_token: str = ""
    policy: str = ""


class _SettingsFile(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    endpoint: str = ""
    region: str = ""
    ca_file: str = ""
    keys: _KeysInFile | None = None
