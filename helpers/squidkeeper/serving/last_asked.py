"""What the helper that is asked about each host was asked last.

When Squid ends, its helpers end too, and each appends that to a file. It tells what
Squid served when it crashed: that has no line in the access log.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from squidkeeper.base.formatting import printable
from squidkeeper.base.untrusted_file import read_untrusted
from squidkeeper.policy.protocol.lines import decode_token

_ASKED: Final = "last-asked.jsonl"
_ASKED_KEPT: Final = 64  # questions of each helper
_LONGEST: Final = 1024 * 1024  # bytes of a file
_CLIENT, _HOST, _PORT = 0, 4, 5  # tokens of a question about a host

T = TypeVar("T")
R = TypeVar("R")


class LastAsked:
    """What a helper was asked last, for `read_asked`."""

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


def read_asked(state: Path, since: float) -> Iterable[tuple[float, str, str]]:
    """Yield what helpers were asked since a time: when, the client and the origin."""
    try:
        lines = read_untrusted(state / _ASKED, _LONGEST).splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(msgspec.DecodeError):
            asked = msgspec.json.decode(line, type=tuple[float, str, str])
            if asked[0] >= since:
                yield asked
