"""The process: it follows the policy in force, and has one task for each secret that is
fetched.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.policy.language.secret_sources import (
    NamedSecret,
    fetched_secrets,
    source_key,
)
from squidkeeper.policy.published.reader import PolicyReader
from squidkeeper.services.fetching.renewal import SUFFIX, FetchedSecret, Renewal
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetch_status import (
    FetchReport,
    fetch_status_file,
)
from squidkeeper.serving.credentials.fetched_values import (
    FOLDER,
    VALUE_SUFFIX,
    value_file,
)
from squidkeeper.serving.helpers.publisher_child import follow_policy

_CHECK_EVERY_SECONDS: Final = 0.2
_REPORT_EVERY_SECONDS: Final = 1.0
_REMOVE_AFTER_SECONDS: Final = (
    5.0  # by then every helper has loaded the policy that no longer needs a value
)
_THREADS: Final = (
    64  # for names that are resolved slowly: one source must not wait for another
)
_log = logging.getLogger(__name__)

Secrets = Mapping[str, NamedSecret]


@dataclass(frozen=True, slots=True)
class FetchingOptions:
    """The options of the command."""

    directory: Path
    state: Path
    run: Path
    commands: Path


def run_fetching(options: FetchingOptions) -> None:
    """Run until SIGTERM or SIGINT."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold secrets
    folder = options.run / FOLDER
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    watcher: PolicyReader[Secrets] = follow_policy(
        options.directory, options.state, lambda compiled: compiled.source.secrets
    )
    watcher.start()
    asyncio.run(_run(Fetching(folder, options.commands), watcher))


async def _run(fetching: Fetching, watcher: PolicyReader[Secrets]) -> None:
    """Follow the policy until a signal ends the process; programs that run are killed
    then.
    """
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    while not end.is_set():
        fetching.check(watcher.current)
        try:
            await asyncio.wait_for(end.wait(), _CHECK_EVERY_SECONDS)
        except TimeoutError:
            continue
    await fetching.stop()
    logging.shutdown()
    # at once: a thread may wait for a name or for a disk, and Python would wait for the
    # thread
    os._exit(0)


class Fetching:
    """The secrets that are fetched, each with its task; `check` is called a few times a
    second.
    """

    def __init__(self, folder: Path, commands: Path) -> None:
        self._folder = folder
        self._commands = commands
        self._report = fetch_status_file(folder)
        self._report_at = 0.0
        self._seen: Secrets | None = None
        self._names: dict[str, str] = {}  # of the policy in force: the key by the name
        self._renewals: dict[str, tuple[Renewal, asyncio.Task[None]]] = {}  # by key
        self._remove_at = 0.0
        self._problems: dict[
            Callable[[], None], str
        ] = {}  # of the folder, by the step that failed

    def check(self, secrets: Secrets | None) -> None:
        """Follow the policy, remove values that nothing needs any more, and report."""
        now = time.monotonic()
        if secrets is not None and secrets is not self._seen:
            self._seen = secrets
            self._follow(secrets)
            self._remove_at = now + _REMOVE_AFTER_SECONDS
        if secrets is not None and now >= self._remove_at:
            self._remove_at = now + _REMOVE_AFTER_SECONDS
            self._attempt(self._remove_unneeded)
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY_SECONDS
            self._run_again()
            self._attempt(self._write_report)

    async def stop(self) -> None:
        """Cancel every fetch, and wait until the programs that run have ended."""
        tasks = [task for _, task in self._renewals.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, secrets: Secrets) -> None:
        store = SecretStore(secrets, {}, self._folder)
        self._names = {
            name: source_key(name, secrets) for name, _ in fetched_secrets(secrets)
        }
        for key in self._renewals.keys() - self._names.values():
            self._renewals.pop(key)[1].cancel()
        for name, source in fetched_secrets(secrets):
            key = self._names[name]
            if key not in self._renewals:
                renewal = Renewal(
                    FetchedSecret(name, key, source, store),
                    self._folder,
                    self._commands,
                )
                self._renewals[key] = (renewal, asyncio.create_task(renewal.run()))

    def _run_again(self) -> None:
        for key, (renewal, task) in [*self._renewals.items()]:
            if task.done() and (error := task.exception()):
                again = renewal.run(renewal.broken(error))
                self._renewals[key] = (renewal, asyncio.create_task(again))

    def _remove_unneeded(self) -> None:
        needed = {f"{key}{SUFFIX}" for key in self._names.values()}
        needed |= {value_file(self._folder, key).name for key in self._names.values()}
        for (
            file
        ) in self._folder.iterdir():  # the report and the files of `supervise` stay
            name = file.name.removesuffix(".new")
            if name.endswith((SUFFIX, VALUE_SUFFIX)) and name not in needed:
                file.unlink(missing_ok=True)

    def _write_report(self) -> None:
        problem = "; ".join(dict.fromkeys(self._problems.values()))
        statuses = {
            name: self._renewals[key][0].status for name, key in self._names.items()
        }
        self._report.write(FetchReport(statuses, problem))

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
            self._problems.pop(step, None)
        except OSError as error:
            problem = f"{self._folder}: {error.strerror or type(error).__name__}"
            if problem not in self._problems.values():
                _log.error("%s", problem)
            self._problems[step] = problem
