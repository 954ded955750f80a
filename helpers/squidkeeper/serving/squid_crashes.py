"""Crashes of Squid: a small file in the state folder, which the maintenance process
writes.

What Squid served when it ended has no line in the access log. The helper that is asked
about each host knows what it was asked last. When Squid ends, its helpers end too, and
each appends that to a file.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.formatting import printable, quantity, utc_seconds
from squidkeeper.base.untrusted_file import read_untrusted
from squidkeeper.policy.protocol.lines import decode_token

FILE: Final = "squid-crashes.json"
_ASKED: Final = "last-asked.jsonl"
_ASKED_KEPT: Final = 64  # questions of each helper
_SERVED_SECONDS: Final = 60.0  # before a crash
NAMED: Final = 10  # origins, and clients
_KEPT: Final = 100  # crashes
_LONGEST: Final = 1024 * 1024  # bytes of a file
_CLIENT, _HOST, _PORT = 0, 4, 5  # tokens of a question about a host

T = TypeVar("T")
R = TypeVar("R")


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
    try:
        return msgspec.json.decode(
            read_untrusted(state / FILE, _LONGEST), type=tuple[SquidCrash, ...]
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ()


def note_crash(state: Path, at: float, told: str, in_flight: int) -> SquidCrash:
    """Note a crash, with what the helpers were asked last.

    OSError where it cannot be written.
    """
    asked = sorted(_read_asked(state, at - _SERVED_SECONDS), reverse=True)
    origins = tuple(dict.fromkeys(origin for _, _, origin in asked))[:NAMED]
    clients = tuple(dict.fromkeys(client for _, client, _ in asked))[:NAMED]
    crash = SquidCrash(
        at=at, told=told, in_flight=in_flight, origins=origins, clients=clients
    )
    replace(state / FILE, msgspec.json.encode((*read_crashes(state), crash)[-_KEPT:]))
    return crash


class LastAsked:
    """What a helper was asked last, for `note_crash`."""

    def __init__(self, state: Path) -> None:
        self._file = state / _ASKED
        self._asked: deque[tuple[float, bytes]] = deque(maxlen=_ASKED_KEPT)

    def noting(
        self, answer: Callable[[T | None, bytes], R]
    ) -> Callable[[T | None, bytes], R]:
        """Return a function that notes each line, and answers it."""

        def noted(scope: T | None, line: bytes) -> R:
            self._asked.append((time.time(), line))
            return answer(scope, line)

        return noted

    def write(self) -> None:
        """Append what was asked; a full file begins again. A failure loses it."""
        lines = b"".join(msgspec.json.encode(crash) + b"\n" for crash in self._named())
        with suppress(OSError):
            flags = (
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            with open(os.open(self._file, flags, 0o640), "ab") as file:
                if os.fstat(file.fileno()).st_size > _LONGEST // 2:
                    file.truncate(0)
                file.write(lines)

    def _named(self) -> Iterator[tuple[float, str, str]]:
        for at, line in self._asked:
            tokens = line.split(b" ")
            if len(tokens) > _PORT:
                client, host, port = (
                    printable(decode_token(tokens[part]))
                    for part in (_CLIENT, _HOST, _PORT)
                )
                yield at, client, f"{host}:{port}"


def _read_asked(state: Path, since: float) -> Iterable[tuple[float, str, str]]:
    try:
        lines = read_untrusted(state / _ASKED, _LONGEST).splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(msgspec.DecodeError):
            asked = msgspec.json.decode(line, type=tuple[float, str, str])
            if asked[0] >= since:
                yield asked
