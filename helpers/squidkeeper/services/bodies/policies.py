"""The policies that requests are judged by: the revision in force, and those that other
requests still name.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import InvalidPublication
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.published.reader import load_published

# of large policies each takes tens of MB. After an edit, requests name the revision
# before it
_KEPT: Final = 4
_TRIES: Final = 15  # a helper stores a revision after it has begun to decide by it
_TRY_EVERY_SECONDS: Final = 0.2


class Policies:
    """Finds the policy of a revision.

    `in_force` returns the policy in force, None while none has loaded.
    """

    def __init__(
        self,
        in_force: Callable[[], CompiledPolicy | None],
        revisions: Path,
        directory: Path,
        pool: Executor,
    ) -> None:
        self._in_force = in_force
        self.revisions = revisions
        self._directory = directory
        self._pool = pool
        self._kept: OrderedDict[str, CompiledPolicy] = OrderedDict()
        self._loading: dict[str, asyncio.Task[CompiledPolicy | None]] = {}

    def at_hand(self, revision: str) -> CompiledPolicy | None:
        """Return the policy of a revision if it is in memory."""
        current = self._in_force()
        if current is not None and current.revision == revision:
            if revision not in self._kept:
                self._keep(current)
            return current
        return self._kept.get(revision)

    def is_in_force(self, revision: str) -> bool:
        """Return whether requests are still decided by a revision; True while no policy
        has loaded.
        """
        current = self._in_force()
        return current is None or current.revision == revision

    async def find(self, revision: str) -> CompiledPolicy | None:
        """Return the policy of a revision, if need be one that was published before;
        None if there is none for three seconds.
        """
        if found := self.at_hand(revision):
            return found
        task = self._loading.get(revision)
        if task is None:
            task = self._loading[revision] = asyncio.create_task(self._load(revision))
            task.add_done_callback(lambda _: self._loading.pop(revision, None))
        return await asyncio.shield(task)

    async def _load(self, revision: str) -> CompiledPolicy | None:
        loop = asyncio.get_running_loop()
        for _ in range(_TRIES):
            if found := self.at_hand(revision):
                return found
            try:
                loaded = await loop.run_in_executor(
                    self._pool,
                    load_published,
                    self.revisions,
                    revision,
                    self._directory,
                )
            except OSError:
                await asyncio.sleep(_TRY_EVERY_SECONDS)
                continue
            except InvalidPublication:
                return None
            self._keep(loaded)
            return loaded
        return None

    def _keep(self, policy: CompiledPolicy) -> None:
        self._kept[policy.revision] = policy
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
