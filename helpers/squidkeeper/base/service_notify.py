"""What a process tells the service manager that started it, as sd_notify(3); without
one it tells nothing.
"""

import os
import socket
from contextlib import suppress
from typing import Final

READY: Final = "READY=1"  # what waits for this unit starts now
ALIVE: Final = "WATCHDOG=1"  # WatchdogSec= of the unit begins again


def notify(state: str) -> None:
    """Tell a state. A manager that does not listen any more is no fault."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        ):
            channel.sendto(
                state.encode(),
                f"\0{address[1:]}" if address.startswith("@") else address,
            )
