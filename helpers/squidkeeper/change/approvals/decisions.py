"""What people have decided about tickets: a file outside of the state folder, which only grows.

Each line is a JSON object: who decided what about which question, when and why.
"""

import fcntl
import json
import os
import pwd
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import EditRefused

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
FILE: Final = "decisions.jsonl"  # beside the folder of the policy, where root alone can write


@dataclass(frozen=True, slots=True)
class TicketDecision:
    """One decision. `grant` and `until` are those of an approval."""

    time: str
    who: str
    decision: str
    reason: str
    ticket: str
    client: str
    user: str
    method: str
    url: str
    scope: str = ""
    clients: tuple[str, ...] = ()
    grant: str = ""
    until: str = ""
    uses: int | None = None


class DecisionLog:
    """The file, open for one decision: what cannot be kept is not decided."""

    def __init__(self, policy: Path) -> None:
        self.path = policy.absolute().parent / FILE
        try:
            self._file = os.open(self.path, _APPEND, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)  # of two decisions at once, the later one sees the other's result
        except OSError as error:
            raise EditRefused(f"{self.path} cannot be written: {error.strerror}; nothing was decided") from error

    def keep(self, decision: TicketDecision) -> None:
        """Append a decision, on disk when this returns."""
        os.write(self._file, json.dumps(asdict(decision)).encode() + b"\n")
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def who_decides() -> str:
    """Name the person at the terminal: who called sudo, or the account."""
    caller = os.environ.get("SUDO_USER")
    if caller:
        return caller
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
