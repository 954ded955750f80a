"""The process of the transparent ports.

It knows no policy, no secret and no key: Squid decides.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import ListenFailed
from squidkeeper.base.helper_metrics import (
    TRANSPARENT,
    TRANSPARENT_CONNECTIONS,
    TransparentResult,
)
from squidkeeper.base.places import TRANSPARENT_FOLDER
from squidkeeper.base.service_notify import ALIVE, READY, notify
from squidkeeper.services.transparent.connection import Port
from squidkeeper.services.transparent.relay import TransparentRelay
from squidkeeper.serving.counters.layout import FOLDER, HelperStatus, counter_key
from squidkeeper.serving.counters.writer import CounterWriter

_BACKLOG: Final = 1024
# ip(7)
_FREEBIND: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 15),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),
}
_OWN_DESCRIPTORS: Final = 64
_MOST_OF_ONE: Final = 2048  # connections, as in haproxy.cfg
_WRITE_EVERY_SECONDS: Final = 1.0
_LOG_EVERY_SECONDS: Final = 10.0
_LOGGED_AT_ONCE: Final = 10
_NAMED_CLIENTS: Final = 1000
_QUIET: Final = (
    TransparentResult.OPENED,
    TransparentResult.ENDED,
    TransparentResult.GONE,
)
_EXPLAINED: Final[Mapping[str, str]] = {
    TransparentResult.NO_SERVER_NAME: " (no host name as TLS server name)"
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransparentOptions:
    """The options of the command: where clients and Squid are, each an address and a
    port.
    """

    listen: tuple[tuple[Port, tuple[str, int]], ...]
    state: Path


def run_transparent(options: TransparentOptions) -> None:
    """Take clients until SIGTERM or SIGINT; `ListenFailed` where an address cannot be
    used.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(
        OSError
    ):  # as CPUSchedulingPolicy= of the unit, where that forbids it here
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    connections = (most - _OWN_DESCRIPTORS) // 2
    tally = Tally(options.state)
    relay = TransparentRelay(tally.count, connections, _MOST_OF_ONE)
    for port, address in options.listen:
        relay.listen(_listener(address), port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: tally.end())
    notify(READY)
    relay.run(tally.tick)
    tally.write()


def _listener(address: tuple[str, int]) -> socket.socket:
    """Listen; the address may appear later, as that of a VM's bridge does."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(*_FREEBIND[family], 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenFailed(
            f"{address[0]} port {address[1]}: {error.strerror or error}"
        ) from error
    return listener


class Tally:
    """Counts what became of connections, in a counter file, and logs refusals: some
    lines every ten seconds.
    """

    def __init__(self, state: Path) -> None:
        self._started = time.time()
        self._writer = CounterWriter(state / TRANSPARENT_FOLDER / FOLDER, {})
        self._counts: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._write_at = self._log_at = 0.0
        self._ended = False

    def count(self, result: TransparentResult, client: str) -> None:
        """Count what became of a client's connection."""
        self._counts[result] += 1
        if result not in _QUIET:
            known = (client, result) in self._refused or len(
                self._refused
            ) < _NAMED_CLIENTS
            self._refused[client if known else "other clients", result] += 1

    def end(self) -> None:
        """Have the next `tick` return False."""
        self._ended = True

    def tick(self) -> bool:
        """Write the counts, give a sign of life, and log, each from time to time."""
        now = time.monotonic()
        if now >= self._write_at:
            self._write_at = now + _WRITE_EVERY_SECONDS
            notify(ALIVE)
            self.write()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY_SECONDS
            self._log_refusals()
        return not self._ended

    def write(self) -> None:
        """Write the counts and a heartbeat."""
        self._writer.add(
            {
                counter_key(TRANSPARENT_CONNECTIONS, result): number
                for result, number in self._counts.items()
            }
        )
        self._counts.clear()
        self._writer.beat(
            HelperStatus(
                TRANSPARENT, os.getpid(), self._started, time.time(), reload_ok=True
            )
        )

    def _log_refusals(self) -> None:
        told = self._refused.most_common(_LOGGED_AT_ONCE)
        for (client, result), number in told:
            why = result.replace("_", "-") + _EXPLAINED.get(result, "")
            _log.warning("%s: connections refused: %d, %s", client, number, why)
        if more := self._refused.total() - sum(number for _, number in told):
            _log.warning("others: connections refused: %d", more)
        self._refused.clear()
