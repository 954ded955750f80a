"""What inspects bodies: whether it answers, and its start while Squid runs, where an edit needs it first."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import BODIES, Layout
from squidkeeper.base.squid_account import Account, call_as
from squidkeeper.operate.setup.entries import ROOT, owner_here
from squidkeeper.operate.setup.machine import uses_systemd
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledService, starts_services
from squidkeeper.operate.setup.sockets import listeners, wait_until

_START_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 5.0
_LONGEST_ANSWER: Final = 4096
# Without these words in its answer Squid 6 hangs, or ends, on a longer body.
_NEEDED: Final = ("preview: 65535", "transfer-preview: *")


def start_body_services(layout: Layout, account: Account) -> None:
    """Put the processes in place and start those that do not run; `SetupFailed` where one does not come up.

    An account that is not root starts nothing: in a container `gateway run` does.
    """
    if not layout.bodies_state.exists():
        call_as(account, lambda: make_shared(layout.bodies_state))
    owner, systemd = (layout.user_without_systemd(BODIES[0]), account.group), uses_systemd(layout.root)
    services = [InstalledService(name, layout, systemd, owner) for name in BODIES]
    for service in services:
        unit = service.paths.unit
        if not unit.exists():
            replace(unit, (layout.templates / unit.name).read_bytes(), 0o644, owner_here(ROOT))
        if starts_services() and not service.runs():
            service.start()
    if not wait_until(_START_SECONDS, lambda: listeners(layout.bodies) == len(services)):
        details = "".join(service.log_tail() for service in services)
        raise SetupFailed(f"nothing, or one process alone, listens on {layout.bodies}", details=details)
    if problem := options_problem(layout.bodies):
        raise SetupFailed(problem)


def options_problem(address: str) -> str:
    """Ask what listens there for its options, as Squid does; say what is wrong with the answer, empty: nothing."""
    host, port = address.rpartition(":")[0], port_of(address)
    answer = b""
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
            connection.sendall(f"OPTIONS icap://{address}/ ICAP/1.0\r\nHost: {address}\r\n\r\n".encode())
            while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
                if not (received := connection.recv(_LONGEST_ANSWER)):
                    break
                answer += received
    except OSError as error:
        return f"{address} does not answer ({error.strerror or 'for five seconds'})"
    status, *headers = answer.decode(errors="replace").lower().split("\r\n")
    if not status.startswith("icap/1.0 200 ") or not {*_NEEDED} <= {*headers}:
        return f"what listens on {address} does not answer as `squidkeeper bodies` does"
    return ""


def make_shared(folder: Path) -> None:
    """Make a folder, as Squid's account, that its group can write."""
    folder.mkdir(0o750)
    folder.chmod(0o770)  # whatever the umask is
    with suppress(PermissionError):
        folder.chmod(0o2770)  # systemd forbids squidkeeper-render this bit, which the files of bodies do without
