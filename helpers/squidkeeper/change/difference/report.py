"""The difference between two policies as a whole: requests and settings, and what is
wider than a ceiling.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from squidkeeper.change.difference.comparison import CellDifference, compare
from squidkeeper.change.difference.consequences import (
    BodyRule,
    Change,
    Consequence,
    form_texts,
)
from squidkeeper.change.difference.groups import RequestDifference, groups
from squidkeeper.change.difference.roles import unproven_roles
from squidkeeper.change.difference.url_comparison import Doubt
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.body_texts import is_narrower
from squidkeeper.policy.language.model import Policy, Token
from squidkeeper.policy.language.prices import Prices
from squidkeeper.policy.language.quotas import Counted, QuotaUnit, shown_cost
from squidkeeper.policy.language.roles import Variable
from squidkeeper.policy.language.secret_sources import FetchedSource, NamedSecret

_UNCOUNTED = float("inf")
# what a person has yet to grant is not open
_OPEN_NOTHING = (
    Change.CLOSED,
    Change.ASKS,
    Change.OBSERVED,
)
LEFT_OUT = "none"
NO_END = "without an end"
_DEFINITION_LENGTH = (
    32  # hexadecimal digits: too many to find another definition that has the same
)


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
    PRICES = "prices"
    ROLE = "role"
    SESSION_NETWORKS = "networks of sessions"


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
    """List the settings that differ.

    Paths below the folder of a policy are compared as they are relative to it.
    """
    before, after = dict(_settings(old)), dict(_settings(new))
    settings = [*before, *(setting for setting in after if setting not in before)]
    values = (
        (setting, before.get(setting, LEFT_OUT), after.get(setting, LEFT_OUT))
        for setting in settings
    )
    found = [
        SettingDifference(one.kind, one.name, one.user, *pair)
        for one, *pair in values
        if pair[0] != pair[1]
    ]
    counts_logins = any(quota.per is Counted.CLIENT for quota in old.quotas)
    return [
        one
        for one in found
        if one.kind is not SettingKind.LOGIN or _is_a_difference(one, counts_logins)
    ]


def _is_a_difference(login: SettingDifference, counts_logins: bool) -> bool:
    """Whether a login is one: a user more has counts of its own, where a quota counts
    each client.
    """
    return login.after != LEFT_OUT and (counts_logins or login.before != LEFT_OUT)


def _settings(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    yield (
        _Setting(SettingKind.WATCHING, "watch_secrets"),
        "true" if policy.watch else "false",
    )
    yield from _logins(policy)
    for kind, named in (("secret", policy.secrets), ("canary", policy.canaries)):
        yield from (
            (_Setting(SettingKind.SECRET, f"{kind} {name}"), _source(secret))
            for name, secret in named.items()
        )
    for credential in policy.credentials:
        if credential.placeholder:
            setting = _Setting(
                SettingKind.PLACEHOLDER, f"placeholder {credential.placeholder}"
            )
            yield setting, ", ".join(form_texts(credential.form))
    gate = policy.reload_gate
    if gate:
        yield (
            _Setting(SettingKind.RELOAD_GATE, "reload_gate"),
            f"since {gate.since_seconds} s, denials {gate.denials}",
        )
    for key in policy.sealing_keys:
        yield _Setting(SettingKind.SEALING_KEY, f"key {key} of sealed tokens"), "used"
    yield from _quotas(policy)
    yield from _roles(policy)
    if policy.prices.entries:
        yield _Setting(SettingKind.PRICES, "prices"), _prices(policy.prices)


def _prices(prices: Prices) -> str:
    """Write the prices of a million tokens: of a prompt, an answer, and what a cache
    gives and takes.
    """
    kinds = ("tokens_in", "tokens_out", "cached_in", "cache_write")
    texts = (
        ", ".join(shown_cost(getattr(price, kind)) for kind in kinds)
        for price in prices.entries
    )
    return "; ".join(
        f"{price.model} {text}"
        for price, text in zip(prices.entries, texts, strict=True)
    )


def _roles(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    """List the roles with what a session can be, and the networks of sessions."""
    for role in policy.roles:
        variables = (f"{one.name} {_variable(one)}" for one in role.variables)
        text = ", ".join((f"ttl {role.ttl} s", *variables))
        yield _Setting(SettingKind.ROLE, f"role {role.name}"), text
    for network in policy.session_networks:
        setting = _Setting(SettingKind.SESSION_NETWORKS, f"session_networks {network}")
        yield setting, "named"


def _variable(variable: Variable) -> str:
    within = " ".join(pattern.text for pattern in variable.within)
    return f"{variable.type} {variable.pattern or within} ({variable.many})"


def _quotas(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    for quota in policy.quotas:
        per = f"{quota.per} {quota.label}" if quota.label else quota.per
        name = f"quota {quota.name}: {quota.unit} every {quota.window} per {per}"
        limit = (
            shown_cost(quota.limit)
            if quota.unit is QuotaUnit.COST
            else str(quota.limit)
        )
        yield _Setting(SettingKind.QUOTA, name), limit
        for what, names in (("rules", quota.rules), ("clients", quota.clients)):
            if names is not None:
                yield (
                    _Setting(
                        SettingKind.QUOTA_NAMES, f"{what} of the quota {quota.name}"
                    ),
                    ", ".join(sorted(names)),
                )


def _logins(policy: Policy) -> Iterator[tuple[_Setting, str]]:
    """List how users log in, which no comparison of requests tells, and each token
    whole: its ID can be forged.
    """
    for client in policy.clients:
        for token in sorted(
            client.tokens or (), key=_end
        ):  # of two entries for one the later counts
            yield (
                _Setting(
                    SettingKind.TOKEN,
                    f"token {token.sha256} of the client {client.name}",
                    client.name,
                ),
                _end(token),
            )
    with_tokens = {
        client.name for client in policy.clients if client.tokens is not None
    }
    for user in sorted(policy.users):
        yield (
            _Setting(SettingKind.LOGIN, f"login of the user {user}"),
            "by token" if user in with_tokens else "by name",
        )


def _end(token: Token) -> str:
    """Write when a token lapses.

    The texts sort as the times do, and one without an end is the last.
    """
    return (
        f"until {token.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        if token.expires
        else NO_END
    )


def _source(secret: NamedSecret) -> str:
    """Write where a secret is from: of one that is fetched, all that says where and
    how.
    """
    folder, source = f"{Path(secret.location.file).parent}/", secret.source
    text = str(source).replace(folder, "")
    if not isinstance(source, FetchedSource):
        return text
    definition = repr(source).replace(folder, "").encode("utf-8", "surrogateescape")
    return f"{text} (definition {sha256(definition).hexdigest()[:_DEFINITION_LENGTH]})"


@dataclass(frozen=True, slots=True)
class DifferenceReport:
    """What is different: of requests, and of settings.

    `limit` is what was not compared, because there is too much. `roles` are those of
    which it is unproven that their sessions do the same.

    With `is_ceiling` the old policy is a ceiling, and what is not wider than it is left
    out.
    """

    names: tuple[str, str]  # of the policies, for people
    revisions: tuple[str, str]
    at: datetime
    is_ceiling: bool
    differences: tuple[RequestDifference, ...]
    settings: tuple[SettingDifference, ...]
    limit: str | None
    compared: int
    roles: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs, or nothing is wider than the ceiling; and all of
        that is proven.
        """
        return not (self.differences or self.settings or self.limit or self.roles)


def report(
    policies: tuple[CompiledPolicy, CompiledPolicy],
    names: tuple[str, str],
    at: datetime,
    *,
    is_ceiling: bool = False,
) -> DifferenceReport:
    """Compare two policies; of a ceiling, what the new one opens beyond it."""
    old, new = policies
    comparison = compare(policies, at)
    settings = compare_settings(old.source, new.source)
    found = list(comparison.found)
    if is_ceiling:
        found, settings = wider(found), wider_settings(settings, old.source)
    else:  # what could be granted is decided as before
        found = [
            difference
            for difference in found
            if difference.change is not Change.GRANTABLE
        ]
    return DifferenceReport(
        names,
        (old.revision, new.revision),
        at,
        is_ceiling,
        tuple(
            groups(replace(comparison, found=tuple(found)))
        ),  # of one group some can be wider
        tuple(settings),
        comparison.limit,
        comparison.checked,
        unproven_roles(policies),
    )


# What a policy does that a ceiling does not do: of the differences from the ceiling,
# the wider ones.
#
# Every difference counts, but for those that only close. These are listed here, and in
# policy/CHANGING.md.


def _uses(consequence: Consequence) -> float:
    return _UNCOUNTED if consequence.uses is None else consequence.uses


def _is_counted(before: Consequence, after: Consequence) -> bool:
    """Whether all counts that a request is in under the ceiling have it, however many
    grants are spent.
    """
    if not (after.allowed or after.asks):
        return True
    under = frozenset[str]().union(*before.quotas)
    return all(under <= counts for counts in after.quotas)


def _takes_no_more(before: tuple[BodyRule, ...], after: tuple[BodyRule, ...]) -> bool:
    """Whether each body that is allowed is known to be allowed under the ceiling: as
    far as bodies compare.
    """
    return not before or (
        bool(after)
        and all(_is_within(place, after, before) for place in range(len(after)))
    )


def _is_within(
    place: int, rules: tuple[BodyRule, ...], ceiling: tuple[BodyRule, ...]
) -> bool:
    """Whether an allow of the ceiling takes all bodies of a rule, and what denies ahead
    of it is ahead of the rule.
    """
    if rules[place].observes or rules[place].verdict != "allow":
        return True
    denied = _deniers(rules[:place])
    return any(
        rule.verdict == "allow"
        and not rule.observes
        and is_narrower(rules[place].body, rule.body)
        and rule.meter in (None, rules[place].meter)
        for number, rule in enumerate(ceiling)
        if _deniers(ceiling[:number]) <= denied
    )


def _deniers(rules: Iterable[BodyRule]) -> set[BodyRule]:
    return {rule for rule in rules if not rule.observes and rule.verdict != "allow"}


_STRICTER = {"shared": 0, None: 1, "own": 1, "single": 2}  # of connections to origins
# Of the other changes, when one only closes. A redirect is a new request, which is
# judged like any other.
_CLOSES: dict[Change, Callable[[Consequence, Consequence], bool]] = {
    Change.PRIVATE: lambda _before, after: not after.private,
    Change.PASSTHROUGH: lambda _before, after: not after.passthrough,
    Change.WEBSOCKET: lambda _before, after: not after.websocket,
    Change.REWRITE: lambda _before, after: after.redirects and not after.otherwise,
    Change.CONNECTIONS: lambda before, after: (
        _STRICTER[after.connections] > _STRICTER[before.connections]
    ),
    Change.STRIP: lambda before, after: set(before.strip) <= set(after.strip),
    Change.BODIES: lambda before, after: _takes_no_more(before.bodies, after.bodies),
    Change.METER: lambda before, after: (
        before.meters == {None} or after.meters <= before.meters
    ),  # with BODIES
    Change.QUOTAS: _is_counted,
    Change.USES: lambda before, after: _uses(after) <= _uses(before),
}

# When a setting only closes.
_SETTING_CLOSES: dict[SettingKind, Callable[[SettingDifference, Policy], bool]] = {
    SettingKind.WATCHING: lambda setting, _: setting.after == "true",
    SettingKind.TOKEN: lambda setting, ceiling: (
        setting.user not in ceiling.users or _ends_sooner(setting)
    ),
    SettingKind.SECRET: lambda setting, ceiling: (
        setting.after == LEFT_OUT and ceiling.watch is None
    ),
    SettingKind.SEALING_KEY: lambda setting, _: setting.after == LEFT_OUT,
    SettingKind.PLACEHOLDER: lambda _one, _ceiling: True,  # it is no key
    SettingKind.RELOAD_GATE: lambda _one, _ceiling: True,
    SettingKind.QUOTA: lambda setting, _: _gives_no_more(setting),
    SettingKind.QUOTA_NAMES: lambda _one, _ceiling: True,  # the requests tell
    SettingKind.ROLE: lambda setting, _: setting.after == LEFT_OUT,
}


def wider(differences: Iterable[CellDifference]) -> list[CellDifference]:
    """Keep what does more, or may, than under the ceiling, which is the
    policy before.
    """
    return [difference for difference in differences if _is_wider(difference)]


def wider_settings(
    differences: Iterable[SettingDifference], ceiling: Policy
) -> list[SettingDifference]:
    """Keep the settings by which more passes, or is sent, than under the ceiling."""
    return [
        one
        for one in differences
        if one.kind not in _SETTING_CLOSES
        or not _SETTING_CLOSES[one.kind](one, ceiling)
    ]


def _is_wider(difference: CellDifference) -> bool:
    if difference.change in _OPEN_NOTHING:
        return difference.doubt in (Doubt.LIMIT, Doubt.READINGS)
    closes = _CLOSES.get(difference.change)
    return (
        difference.doubt is not None
        or closes is None
        or not closes(difference.before, difference.after)
    )


def _ends_sooner(difference: SettingDifference) -> bool:
    return difference.after == LEFT_OUT or (
        difference.before != LEFT_OUT and difference.after <= difference.before
    )


def _gives_no_more(one: SettingDifference) -> bool:
    """Whether a quota has no higher limit than under the ceiling; one that is not there
    has none.
    """
    return one.before == LEFT_OUT or (
        one.after != LEFT_OUT and int(one.after) <= int(one.before)
    )
