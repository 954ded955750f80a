"""Samples Squid's own counter of requests every ten seconds, for the archive: `squid_runs.py`."""

import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Final

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.squid_counters import (
    COUNTER,
    FILE,
    SquidSample,
    format_samples,
    read_counters,
    read_samples,
    with_sample,
)
from squidkeeper.services.maintenance.squid_process import SquidProcess, SquidRun

_INTERVAL_SECONDS: Final = 10.0


class SquidSampler:
    """Samples the counter of one Squid, at the address and port of its proxy port."""

    name = "squid-counters"

    def __init__(
        self, state: Path, squid: SquidProcess, address: tuple[str, int], *, proxy_header: bool = False
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
        """Take a sample when it is due, in a thread: a Squid that is stuck answers after seconds."""
        if self._thread and self._thread.is_alive():
            return
        failure, self._failure = self._failure, None
        if failure:
            raise failure
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _INTERVAL_SECONDS
            self._thread = Thread(target=self._sample, name="squid-counters", daemon=True)
            self._thread.start()

    def _sample(self) -> None:
        try:
            sample = self.sample()
            if sample:
                samples = with_sample(read_samples(self._state), sample)
                replace_file(self._state / FILE, format_samples(samples))
        except OSError as error:
            self._failure = error

    def sample(self) -> SquidSample | None:
        """Take a sample; None where Squid does not answer, or was started again meanwhile."""
        run = self._squid.run()
        asked = time.time()
        requests = read_counters(*self._address, proxy_header=self._proxy_header).values.get(COUNTER)
        answered = time.time()
        if run is None or requests is None or self._squid.run() != run:
            return None
        started = self._started(run)
        return SquidSample(run=run.id, started=started, asked=asked, answered=answered, requests=int(requests))

    def _started(self, run: SquidRun) -> float:
        """Tell when a run began to count from zero; 0 if a worker of the run before is still in it."""
        before = self._run
        if before is None or before.id != run.id:
            self._run = replace(run, started=0.0) if before and before.kids & run.kids else run
        return self._run.started if self._run else 0.0
