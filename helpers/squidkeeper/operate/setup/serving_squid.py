"""Having the Squid that serves read another generation."""

import os
import signal
import time
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout, uses_systemd
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import Values
from squidkeeper.operate.setup.body_services import start_body_services
from squidkeeper.operate.setup.configuration import listen_of
from squidkeeper.operate.setup.entries import remove, text_at
from squidkeeper.operate.setup.generations import number_in_force, put_in_force
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledSquid
from squidkeeper.operate.setup.rendering import read_values
from squidkeeper.operate.setup.sockets import is_open, wait_until

_LISTEN_SECONDS: Final = 20.0


def put_before_squid(
    layout: Layout, number: int, values: Values, account: Account
) -> None:
    """Put a generation in force, and have Squid read it; where that fails, the one
    before stays.
    """
    before = number_in_force(layout)
    if values.inspects_bodies:
        # Ahead of Squid, which does without it for a while where it is not there.
        start_body_services(layout, account, values)
    replace(layout.generation_telling, f"{number}\n".encode(), 0o644)
    try:
        put_in_force(layout, number)
        _reconfigure(layout)
    except BaseException:
        if before is not None:
            put_in_force(layout, before)
            _signal(layout)
        remove(layout.generation_telling)
        raise
    replace(layout.generation_told, f"{number}\n".encode(), 0o644)
    remove(layout.generation_telling)


def tell_again(layout: Layout, account: Account) -> None:
    """Tell Squid what a run that was killed has put in force, and has not told."""
    number = number_in_force(layout)
    if number is not None and text_at(layout.generation_telling) == str(number):
        put_before_squid(layout, number, read_values(layout), account)


def _reconfigure(layout: Layout) -> None:
    """Have Squid read the files, and wait until it listens again.

    One that does not run reads them when it starts.
    """
    listen = listen_of(text_at(layout.conf.resolve()))
    if _signal(layout) and listen:
        time.sleep(1)  # it closes its port before it opens it again
        if not wait_until(_LISTEN_SECONDS, lambda: is_open(port_of(listen))):
            raise SetupFailed(
                f"Squid does not listen on {listen} any more",
                f"read {layout.cache_log}",
            )


def _signal(layout: Layout) -> bool:
    pid = InstalledSquid(layout, uses_systemd(layout.root)).pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    return True
