"""The process: it answers Squid until SIGTERM, by the policy in force.

It logs nothing of a request.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.base.errors import ListenFailed
from squidkeeper.base.helper_metrics import BODIES
from squidkeeper.base.layout import Layout
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.base.service_notify import ALIVE, READY, notify
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.published.reader import PolicyReader
from squidkeeper.services.bodies.denials import DenialTurns, Pages
from squidkeeper.services.bodies.judge import BodyJudge
from squidkeeper.services.bodies.new_connection import NewConnection
from squidkeeper.services.bodies.policies import Policies
from squidkeeper.serving.counters.layout import Key
from squidkeeper.serving.helpers.helper_counters import HelperCounters
from squidkeeper.serving.helpers.policy_helper import answer_while_loading
from squidkeeper.serving.helpers.publisher_child import follow_policy
from squidkeeper.serving.helpers.throttle import Limits
from squidkeeper.serving.sessions.following import Following

if TYPE_CHECKING:
    from squidkeeper.services.bodies.settlement import Settler

_LONGEST_SECONDS: Final = 5.0  # of a wait for a client's own turn
_THREADS: Final = 2
_BACKLOG: Final = 1024
_CHECK_EVERY_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 20.0
_M_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_LARGE_BLOCK: Final = 256 << 10  # bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BodiesOptions:
    """The options of the command.

    `layout` is that of the gateway whose commands a page names.

    `rate` and `burst` bound the denials of one client. Two processes share the port,
    and each counts for itself: their defaults are half of the numbers of
    squidkeeper.conf.
    """

    listen: tuple[str, int]
    directory: Path
    state: Path
    layout: Layout
    rate: float
    burst: int


def run_bodies(options: BodiesOptions) -> None:
    """Answer Squid until SIGTERM or SIGINT; `ListenFailed` where the address cannot be
    used.
    """
    # it would hold bodies, and headers of clients
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    answer_while_loading()
    give_large_blocks_back()
    watcher: PolicyReader[CompiledPolicy] = follow_policy(
        options.directory, options.state, lambda compiled: compiled
    )
    counting = HelperCounters(
        BODIES, options.state / BODIES_FOLDER, lambda: watcher.state
    )
    counting.start()
    watcher.start()
    counting.ready()
    asyncio.run(_run(options, watcher, counting))


def give_large_blocks_back() -> None:
    """Have the memory of a long body go when it is freed.

    By default glibc keeps freed blocks of up to 32 MB.
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


async def _run(
    options: BodiesOptions,
    watcher: PolicyReader[CompiledPolicy],
    counting: HelperCounters,
) -> None:
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(_report)
    judge = new_judge(loop, options, watcher, counting)
    if watcher.current is not None and watcher.current.index.meters:
        # it writes what a killed process has counted and not written
        judge.settler.tick()
    host, port = options.listen
    try:
        server = await loop.create_server(
            lambda: NewConnection(judge), host, port, reuse_port=True, backlog=_BACKLOG
        )
    except OSError as error:
        raise ListenFailed(f"{host}:{port}: {error.strerror or error}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    notify(READY)
    while not end.is_set():
        notify(ALIVE)
        _check(judge)
        with suppress(TimeoutError):
            await asyncio.wait_for(end.wait(), _CHECK_EVERY_SECONDS)
    await _drain(server, judge)
    if judge.counting is not None:
        await judge.counting.finish()
    logging.shutdown()
    # at once: a thread may wait for a disk, and Python would wait for the thread
    os._exit(0)


def new_judge(
    loop: asyncio.AbstractEventLoop,
    options: BodiesOptions,
    watcher: PolicyReader[CompiledPolicy],
    counting: HelperCounters,
) -> BodyJudge:
    """Make what judges, by the revisions that `watcher` follows."""
    policies = Policies(
        lambda: watcher.current,
        watcher.folder,
        options.directory,
        ThreadPoolExecutor(1, "policies"),
    )
    limits = Limits(options.rate, options.burst, _LONGEST_SECONDS)
    turns = DenialTurns(
        limits, lambda due, then: loop.call_later(due - time.monotonic(), then)
    )
    sessions = Following(options.state)
    pages, pool = Pages(options.layout), ThreadPoolExecutor(_THREADS, "judge")

    def new_settler() -> Settler:
        # late: only metered requests need it
        from squidkeeper.services.bodies.settlement import Settler
        from squidkeeper.services.bodies.unsent_requests import listen_for_unsent

        settler = Settler(
            options.directory,
            options.state,
            policies,
            pages,
            lambda keys: counting.add(0, 0.0, keys),
            sessions.recorded,
        )
        listen_for_unsent(loop, options.listen, settler)
        return settler

    def count(key: Key, seconds: float) -> None:
        counting.add(1, seconds, [key])

    return BodyJudge(
        policies, pages, turns, pool, count, new_settler, sessions.numbered
    )


async def _drain(server: asyncio.Server, judge: BodyJudge) -> None:
    """Take no connection any more, and answer what is under way; another process takes
    the next requests.
    """
    server.close()
    judge.drains = True
    until = time.monotonic() + _DRAIN_SECONDS
    while judge.connections and time.monotonic() < until:
        _check(judge)
        for connection in [*judge.connections]:
            connection.drain()
        await asyncio.sleep(0.05)


def _check(judge: BodyJudge) -> None:
    now = time.monotonic()
    for connection in [*judge.connections]:
        connection.check(now)
    if judge.counting is not None:
        judge.counting.tick()


def _report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error without its text, which may hold what a body says; asyncio then
    closes the connection.
    """
    # late: there is hardly ever one
    from squidkeeper.services.bodies.judge import (
        describe_place,
    )

    error = context.get("exception")
    if not isinstance(error, (ConnectionError, TimeoutError)):
        _log.error(
            "%s", describe_place(error) if error else context.get("message", "an error")
        )
