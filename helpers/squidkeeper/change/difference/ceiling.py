"""What a policy does that a ceiling does not do: of the differences from the ceiling, the wider ones.

Every difference counts, but for those that only close. These are listed here, and in policy/CHANGING.md.
"""

from collections.abc import Callable, Iterable

from squidkeeper.change.difference.comparison import CellDifference
from squidkeeper.change.difference.consequences import Change, Consequence
from squidkeeper.change.difference.settings import LEFT_OUT, SettingDifference, SettingKind
from squidkeeper.change.difference.url_comparison import Doubt
from squidkeeper.policy.language.model import Policy

_UNCOUNTED = float("inf")
_OPEN_NOTHING = (Change.CLOSED, Change.ASKS, Change.OBSERVED)  # what a person has yet to grant is not open


def _uses(consequence: Consequence) -> float:
    return _UNCOUNTED if consequence.uses is None else consequence.uses


def _is_counted(before: Consequence, after: Consequence) -> bool:
    """Tell whether all counts that a request is in under the ceiling have it, however many grants are spent."""
    if not (after.allowed or after.asks):
        return True
    under = frozenset[str]().union(*before.quotas)
    return all(under <= counts for counts in after.quotas)


_STRICTER = {None: 0, "shared": 0, "own": 1, "single": 2}  # of connections to origins
# Of the other changes, when one only closes. A redirect is a new request, which is judged like any other.
_CLOSES: dict[Change, Callable[[Consequence, Consequence], bool]] = {
    Change.PRIVATE: lambda _before, after: not after.private,
    Change.PASSTHROUGH: lambda _before, after: not after.passthrough,
    Change.WEBSOCKET: lambda _before, after: not after.websocket,
    Change.REWRITE: lambda _before, after: after.redirects and not after.otherwise,
    Change.CONNECTIONS: lambda before, after: _STRICTER[after.connections] > _STRICTER[before.connections],
    Change.STRIP: lambda before, after: set(before.strip) <= set(after.strip),
    Change.QUOTAS: _is_counted,
    Change.USES: lambda before, after: _uses(after) <= _uses(before),
}

# When a setting only closes.
_SETTING_CLOSES: dict[SettingKind, Callable[[SettingDifference, Policy], bool]] = {
    SettingKind.WATCHING: lambda one, _: one.after == "true",
    SettingKind.TOKEN: lambda one, ceiling: one.user not in ceiling.users or _ends_sooner(one),
    SettingKind.SECRET: lambda one, ceiling: one.after == LEFT_OUT and ceiling.watch is None,
    SettingKind.SEALING_KEY: lambda one, _: one.after == LEFT_OUT,
    SettingKind.PLACEHOLDER: lambda _one, _ceiling: True,  # it is no key
    SettingKind.RELOAD_GATE: lambda _one, _ceiling: True,
    SettingKind.QUOTA: lambda one, _: _gives_no_more(one),
    SettingKind.QUOTA_NAMES: lambda _one, _ceiling: True,  # the requests tell
}


def wider(differences: Iterable[CellDifference]) -> list[CellDifference]:
    """Keep what does more, or may, than under the ceiling, which is the policy before."""
    return [one for one in differences if _is_wider(one)]


def wider_settings(differences: Iterable[SettingDifference], ceiling: Policy) -> list[SettingDifference]:
    """Keep the settings by which more passes, or is sent, than under the ceiling."""
    return [
        one for one in differences if one.kind not in _SETTING_CLOSES or not _SETTING_CLOSES[one.kind](one, ceiling)
    ]


def _is_wider(one: CellDifference) -> bool:
    if one.change in _OPEN_NOTHING:
        return one.doubt in (Doubt.LIMIT, Doubt.READINGS)
    closes = _CLOSES.get(one.change)
    return one.doubt is not None or closes is None or not closes(one.before, one.after)


def _ends_sooner(one: SettingDifference) -> bool:
    return one.after == LEFT_OUT or (one.before != LEFT_OUT and one.after <= one.before)


def _gives_no_more(one: SettingDifference) -> bool:
    """Tell whether a quota has no higher limit than under the ceiling; one that is not there has none."""
    return one.before == LEFT_OUT or (one.after != LEFT_OUT and int(one.after) <= int(one.before))
