"""Crashes of Squid: a small file in the state folder, which the maintenance process
writes.

What Squid served when it ended has no line in the access log. `last_asked.py` tells it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import quantity, utc_seconds
from squidkeeper.base.status_file import StatusFile
from squidkeeper.serving.last_asked import read_asked

FILE: Final = "squid-crashes.json"
_SERVED_SECONDS: Final = 60.0  # before a crash
NAMED: Final = 10  # origins, and clients
_KEPT: Final = 100  # crashes


@dataclass(frozen=True, slots=True, kw_only=True)
class SquidCrash:
    """One crash: when it was seen, what Squid said, and whom it served.

    The newest origins and clients come first.

    `in_flight`: how many connections of clients there were at most a second before.
    """

    at: float
    told: str
    in_flight: int
    origins: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()

    @property
    def served(self) -> str:
        """Name the newest origins and clients."""
        origins, clients = (
            ", ".join(names) or "unknown" for names in (self.origins, self.clients)
        )
        return f"newest origins: {origins}; clients: {clients}"

    @property
    def unrecorded(self) -> str:
        """Say what has no line in the access log."""
        requests = quantity(self.in_flight, "request")
        return f"Squid crashed at {utc_seconds(self.at)} ({self.told}): up to {requests} in flight have no line"


def read_crashes(state: Path) -> tuple[SquidCrash, ...]:
    """Read the crashes, the oldest first; none where there is no file, or one that is
    none of ours.
    """
    return _status_file(state).read() or ()


def note_crash(state: Path, at: float, told: str, in_flight: int) -> SquidCrash:
    """Note a crash, with what the helpers were asked last.

    OSError where it cannot be written.
    """
    asked = sorted(read_asked(state, at - _SERVED_SECONDS), reverse=True)
    origins = tuple(dict.fromkeys(origin for _, _, origin in asked))[:NAMED]
    clients = tuple(dict.fromkeys(client for _, client, _ in asked))[:NAMED]
    crash = SquidCrash(
        at=at, told=told, in_flight=in_flight, origins=origins, clients=clients
    )
    _status_file(state).write((*read_crashes(state), crash)[-_KEPT:])
    return crash


def _status_file(state: Path) -> StatusFile[tuple[SquidCrash, ...]]:
    return StatusFile(state / FILE, tuple[SquidCrash, ...])
