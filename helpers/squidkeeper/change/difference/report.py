"""The difference between two policies as a whole."""

from dataclasses import dataclass, replace
from datetime import datetime

from squidkeeper.change.difference.ceiling import wider, wider_settings
from squidkeeper.change.difference.comparison import compare
from squidkeeper.change.difference.consequences import Change
from squidkeeper.change.difference.groups import RequestDifference, groups
from squidkeeper.change.difference.settings import SettingDifference, compare_settings
from squidkeeper.policy.engine import CompiledPolicy


@dataclass(frozen=True, slots=True)
class DifferenceReport:
    """What is different: of requests, and of settings. `limit` is what was not compared, because there is too much.

    With `is_ceiling` the old policy is a ceiling, and what is not wider than it is left out.
    """

    names: tuple[str, str]  # of the policies, for people
    revisions: tuple[str, str]
    at: datetime
    is_ceiling: bool
    differences: tuple[RequestDifference, ...]
    settings: tuple[SettingDifference, ...]
    limit: str | None
    compared: int

    @property
    def same(self) -> bool:
        """Whether nothing differs, or nothing is wider than the ceiling; and all of that is proven."""
        return not (self.differences or self.settings or self.limit)


def report(
    policies: tuple[CompiledPolicy, CompiledPolicy], names: tuple[str, str], at: datetime, *, is_ceiling: bool = False
) -> DifferenceReport:
    """Compare two policies; of a ceiling, what the new one opens beyond it."""
    old, new = policies
    comparison = compare(policies, at)
    settings = compare_settings(old.source, new.source)
    found = list(comparison.found)
    if is_ceiling:
        found, settings = wider(found), wider_settings(settings, old.source)
    else:  # what could be granted is decided as before
        found = [one for one in found if one.change is not Change.GRANTABLE]
    return DifferenceReport(
        names,
        (old.revision, new.revision),
        at,
        is_ceiling,
        tuple(groups(replace(comparison, found=tuple(found)))),  # of one group some can be wider
        tuple(settings),
        comparison.limit,
        comparison.checked,
    )
