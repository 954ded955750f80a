"""What differs between two policies beside what becomes of each request."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from squidkeeper.change.difference.consequences import form_texts
from squidkeeper.policy.language.model import Policy, Token
from squidkeeper.policy.language.quotas import Counted
from squidkeeper.policy.language.secret_sources import FetchedSource, NamedSecret

LEFT_OUT = "none"
NO_END = "without an end"
_DEFINITION_LENGTH = 32  # hexadecimal digits: too many to find another definition that has the same


class SettingKind(StrEnum):
    """What a setting is about."""

    WATCHING = "watching"
    RELOAD_GATE = "reload gate"
    LOGIN = "login"
    TOKEN = "token"  # noqa: S105 - the name of a kind
    SECRET = "secret"  # noqa: S105
    PLACEHOLDER = "placeholder"
    SEALING_KEY = "sealing key"
    QUOTA = "quota"
    QUOTA_NAMES = "names of a quota"


@dataclass(frozen=True, slots=True)
class _Setting:
    kind: SettingKind
    name: str
    user: str = ""  # who logs in with a token


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting whose value differs."""

    kind: SettingKind
    name: str
    user: str
    before: str
    after: str


def compare_settings(old: Policy, new: Policy) -> list[SettingDifference]:
    """List the settings that differ. Paths below the folder of a policy are compared as they are relative to it."""
    before, after = dict(_settings(old)), dict(_settings(new))
    settings = [*before, *(one for one in after if one not in before)]
    values = ((one, before.get(one, LEFT_OUT), after.get(one, LEFT_OUT)) for one in settings)
    found = [SettingDifference(one.kind, one.name, one.user, *pair) for one, *pair in values if pair[0] != pair[1]]
    counts_logins = any(quota.per is Counted.CLIENT for quota in old.quotas)
    return [one for one in found if one.kind is not SettingKind.LOGIN or _is_a_difference(one, counts_logins)]


def _is_a_difference(login: SettingDifference, counts_logins: bool) -> bool:
    """Tell whether a login is one: a user more has counts of its own, where a quota counts each client."""
    return login.after != LEFT_OUT and (counts_logins or login.before != LEFT_OUT)


def _settings(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    yield _Setting(SettingKind.WATCHING, "watch_secrets"), "true" if policy.watch else "false"
    yield from _logins(policy)
    for kind, named in (("secret", policy.secrets), ("canary", policy.canaries)):
        yield from ((_Setting(SettingKind.SECRET, f"{kind} {name}"), _source(one)) for name, one in named.items())
    for credential in policy.credentials:
        if credential.placeholder:
            setting = _Setting(SettingKind.PLACEHOLDER, f"placeholder {credential.placeholder}")
            yield setting, ", ".join(form_texts(credential.form))
    gate = policy.reload_gate
    if gate:
        yield _Setting(SettingKind.RELOAD_GATE, "reload_gate"), f"since {gate.since_seconds} s, denials {gate.denials}"
    for key in policy.sealing_keys:
        yield _Setting(SettingKind.SEALING_KEY, f"key {key} of sealed tokens"), "used"
    yield from _quotas(policy)


def _quotas(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    for quota in policy.quotas:
        name = f"quota {quota.name}: {quota.unit} every {quota.window} per {quota.per}"
        yield _Setting(SettingKind.QUOTA, name), str(quota.limit)
        for what, names in (("rules", quota.rules), ("clients", quota.clients)):
            if names is not None:
                yield _Setting(SettingKind.QUOTA_NAMES, f"{what} of the quota {quota.name}"), ", ".join(sorted(names))


def _logins(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    """List how users log in, which no comparison of requests tells, and each token whole: its ID can be forged."""
    for client in policy.clients:
        for token in sorted(client.tokens or (), key=_end):  # of two entries for one the later counts
            yield (
                _Setting(SettingKind.TOKEN, f"token {token.sha256} of the client {client.name}", client.name),
                _end(token),
            )
    with_tokens = {client.name for client in policy.clients if client.tokens is not None}
    for user in sorted(policy.users):
        yield _Setting(SettingKind.LOGIN, f"login of the user {user}"), "by token" if user in with_tokens else "by name"


def _end(token: Token) -> str:
    """Write when a token lapses. The texts sort as the times do, and one without an end is the last."""
    return f"until {token.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}" if token.expires else NO_END


def _source(secret: NamedSecret) -> str:
    """Write where a secret is from: of one that is fetched, all that says where and how."""
    folder, source = f"{Path(secret.location.file).parent}/", secret.source
    text = str(source).replace(folder, "")
    if not isinstance(source, FetchedSource):
        return text
    definition = repr(source).replace(folder, "").encode("utf-8", "surrogateescape")
    return f"{text} (definition {sha256(definition).hexdigest()[:_DEFINITION_LENGTH]})"
