"""Watches Squid: notes its crashes, and samples its counter of requests for the
archive.

After a crash a process that serves has ended, and has not said in cache.log that it
exits.
"""

import logging
import re
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Final

from squidkeeper.base.formatting import printable
from squidkeeper.base.squid_counters import (
    COUNTER,
    SquidSample,
    read_counters,
    read_samples,
    with_sample,
    write_samples,
)
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.services.maintenance.squid_process import SquidProcess, SquidRun
from squidkeeper.serving.squid_crashes import note_crash

_LOOKS_BACK: Final = (
    10  # checks, each second: Squid says that it exits a while before it has ended
)
_LONGEST: Final = 1024 * 1024  # bytes of cache.log that are read
_STARTS: Final = b"| Starting Squid Cache version"
_EXITS: Final = b"Exiting normally"
_TOLD: Final = re.compile(
    rb"\| (?:FATAL: (?=assertion))?((?:assertion failed|FATAL): [^\n]{1,300})"
)
_log = logging.getLogger(__name__)


class SquidCrashes:
    """Follows the processes of one Squid; `port` is its proxy port."""

    name = "squid-crashes"

    def __init__(
        self, state: Path, cache_log: Path, squid: SquidProcess, port: int
    ) -> None:
        self._state = state
        self._cache_log = cache_log
        self._squid = squid
        self._port = port
        self._run: SquidRun | None = None
        self._end: tuple[float, int, int] | None = None
        self._connections = 0
        # of cache.log at the last checks
        self._sizes: deque[int] = deque(maxlen=_LOOKS_BACK)

    def check(self) -> None:
        """Look for an end; what is known about it is read a check later, when helpers
        and log have it.
        """
        if self._end:
            self._judge(*self._end)
        ended = self._run.ended() if self._run else 0
        self._end = (time.time(), ended, self._connections) if ended else None
        self._connections = _connections(self._port)
        self._sizes.append(_size(self._cache_log))
        run = self._squid.run()
        # a master that is killed ends before the processes that serve
        self._run = run if ended else run or self._run

    def _judge(self, at: float, pid: int, connections: int) -> None:
        said = _said_by(pid, *self._written())
        if _EXITS not in said:
            told = [match.decode(errors="replace") for match in _TOLD.findall(said)]
            what = printable(told[-1]) if told else "it was killed"
            crash = note_crash(self._state, at, what, connections)
            _log.error("%s; %s", crash.unrecorded, crash.served)

    def _written(self) -> tuple[bytes, int]:
        written = self._sizes[0] if self._sizes else 0
        try:
            with open_untrusted(self._cache_log) as file:
                end = file.seek(0, 2)
                begin = file.seek(max(0, end - _LONGEST))
                return file.read(_LONGEST), max(
                    0, written - begin
                ) if written <= end else 0
        except OSError:
            return b"", 0


def _said_by(pid: int, text: bytes, recent: int) -> bytes:
    """Return what one process wrote from `recent` on, and ahead of a start after it.

    Squid names its worker in each line, where there are several. Which one a process
    was stands beside its start.
    """
    own = [*re.finditer(rb"( kid\d+)?\| Process ID %d\n" % pid, text)]
    begin, kid = (
        (max(own[-1].end(), recent), own[-1][1] or b"") if own else (recent, b"")
    )
    end = text.find(kid + _STARTS, begin)
    lines = text[begin : None if end < 0 else end].splitlines(keepends=True)
    return b"".join(line for line in lines if kid + b"|" in line)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _connections(port: int) -> int:
    """Count the connections to a port of this machine, where a client can leave tens of
    thousands that have ended.
    """
    established = re.compile(rb":%04X [0-9A-F]+:[0-9A-F]{4} 01 " % port)
    return sum(
        len(established.findall(table.read_bytes()))
        for table in Path("/proc/net").glob("tcp*")
    )


_INTERVAL_SECONDS: Final = 10.0


class SquidSampler:
    """Samples the counter of one Squid, at the address and port of its proxy port."""

    name = "squid-counters"

    def __init__(
        self,
        state: Path,
        squid: SquidProcess,
        address: tuple[str, int],
        *,
        proxy_header: bool = False,
    ) -> None:
        self._state = state
        self._squid = squid
        self._address = address
        self._proxy_header = proxy_header
        self._due = 0.0
        self._run: SquidRun | None = None
        self._thread: Thread | None = None
        self._failure: OSError | None = None

    def check(self) -> None:
        """Take a sample when it is due, in a thread: a Squid that is stuck answers
        after seconds.
        """
        if self._thread and self._thread.is_alive():
            return
        failure, self._failure = self._failure, None
        if failure:
            raise failure
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _INTERVAL_SECONDS
            self._thread = Thread(
                target=self._sample, name="squid-counters", daemon=True
            )
            self._thread.start()

    def _sample(self) -> None:
        try:
            sample = self.sample()
            if sample:
                samples = with_sample(read_samples(self._state), sample)
                write_samples(self._state, samples)
        except OSError as error:
            self._failure = error

    def sample(self) -> SquidSample | None:
        """Take a sample; None where Squid does not answer, or was started again
        meanwhile.
        """
        run = self._squid.run()
        asked = time.time()
        requests = read_counters(
            *self._address, proxy_header=self._proxy_header
        ).values.get(COUNTER)
        answered = time.time()
        if run is None or requests is None or self._squid.run() != run:
            return None
        started = self._started(run)
        return SquidSample(
            run=run.id,
            started=started,
            asked=asked,
            answered=answered,
            requests=int(requests),
        )

    def _started(self, run: SquidRun) -> float:
        """Tell when a run began to count from zero; 0 if a worker of the run before is
        still in it.
        """
        before = self._run
        if before is None or before.id != run.id:
            self._run = (
                replace(run, started=0.0) if before and before.kids & run.kids else run
            )
        return self._run.started if self._run else 0.0
