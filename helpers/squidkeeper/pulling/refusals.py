"""The version that was refused last (floor 7): it is not judged again while nothing that counts for it has changed.

What depends on the clock alone, such as a test without a time, is found at the latest after an hour. A signature is
verified each time: it costs little, and whose counts depends on the clock.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.errors import PullRefused
from squidkeeper.policy_store.sources import Fingerprint, fingerprint
from squidkeeper.pull_settings import PullSettings

_KEPT_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class WhatCounts:
    """What the verdict about a version depends on: the version before it, and files of the gateway."""

    tip: str
    before: str
    files: Fingerprint


def what_counts(tip: str, before: str, settings: PullSettings, settings_file: Path, policy: Path) -> WhatCounts:
    """Give what counts now: also local setup and grants, which are beside the policy, and all below the ceiling."""
    ceiling = [settings.ceiling, *sorted(settings.ceiling.rglob("*"))] if settings.ceiling else []
    return WhatCounts(tip, before, fingerprint(policy, (settings_file, settings.allowed_signers, *ceiling)))


class Refusals:
    """Remembers the last refusal, as long as this process lives."""

    def __init__(self) -> None:
        self._last: tuple[WhatCounts, str, float] | None = None

    def check(self, now: WhatCounts) -> None:
        """Refuse again what was refused, if nothing has changed since."""
        if self._last is None:
            return
        counted, reason, until = self._last
        if counted == now and time.monotonic() < until:
            raise PullRefused(reason)

    def keep(self, counted: WhatCounts, refusal: PullRefused) -> None:
        """Remember a refusal."""
        self._last = (counted, str(refusal), time.monotonic() + _KEPT_SECONDS)
