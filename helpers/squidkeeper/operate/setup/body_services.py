"""What inspects bodies: whether it answers, and its start while Squid runs, where an
edit needs it first.
"""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import CountsUnavailable, SetupFailed
from squidkeeper.base.layout import ACCOUNTS, BODIES, Layout, uses_systemd
from squidkeeper.base.squid_account import Account, account_of, call_as
from squidkeeper.configuration.rendering import Values
from squidkeeper.operate.setup.entries import ROOT, owner_here
from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledService, starts_services
from squidkeeper.operate.setup.sockets import listeners, wait_until
from squidkeeper.serving.parts import TOKENS_COUNTED
from squidkeeper.serving.quotas.store_settings import quota_store_file, read_quota_store

_START_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 5.0
_LONGEST_ANSWER: Final = 4096
# Without these words in its answer Squid 6 hangs, or ends, on a longer body.
_NEEDED: Final = ("preview: 65535", "transfer-preview: *")


def start_body_services(layout: Layout, account: Account, values: Values) -> None:
    """Put the processes in place and start those that do not run as they have to.

    `SetupFailed` where one does not come up.

    An account that is not root starts nothing: in a container `gateway run` does.
    """
    if not layout.bodies_state.exists():
        call_as(account, lambda: make_shared(layout.bodies_state))
    owner, systemd = (
        (layout.user_without_systemd(BODIES[0]), account.group),
        uses_systemd(layout.root),
    )
    if systemd and account_of(ACCOUNTS[BODIES[0]]) is None:
        raise SetupFailed(
            f"there is no account {ACCOUNTS[BODIES[0]]}",
            f"run {layout.install_command}, which makes it",
        )
    services = [InstalledService(name, layout, systemd, owner) for name in BODIES]
    for service in services:
        unit = service.paths.unit
        text = with_quota_store(
            (layout.templates / unit.name).read_text(), layout, values
        )
        is_other = not unit.exists() or (
            TOKENS_COUNTED in values.keys and unit.read_text() != text
        )
        if is_other:
            replace(unit, text.encode(), 0o644, owner_here(ROOT))
        if starts_services() and (is_other or not service.runs()):
            service.start()
    if not wait_until(
        _START_SECONDS, lambda: listeners(layout.bodies) == len(services)
    ):
        details = "".join(service.log_tail() for service in services)
        raise SetupFailed(
            f"nothing, or one process alone, listens on {layout.bodies}",
            details=details,
        )
    if problem := options_problem(layout.bodies):
        raise SetupFailed(problem)


def with_quota_store(unit: str, layout: Layout, values: Values) -> str:
    """Let the process of a unit reach a store of all gateways on another host, where
    quotas of tokens count there.
    """
    if TOKENS_COUNTED not in values.keys:
        return unit
    try:
        settings = read_quota_store(quota_store_file(layout.policy))
    except CountsUnavailable:
        return unit
    if settings is None or settings.address.is_loopback:
        return unit
    opened = unit.replace(
        "IPAddressAllow=localhost\n", f"IPAddressAllow=localhost {settings.address}\n"
    )
    return (
        opened.replace("=AF_INET AF_UNIX", "=AF_INET AF_INET6 AF_UNIX")
        if settings.address.version == 6
        else opened
    )


def is_quota_store_known(layout: Layout) -> bool:
    """Return whether quota-store.yaml can be used, or is not there.

    Processes that run keep the last good version.
    """
    with suppress(CountsUnavailable):
        read_quota_store(quota_store_file(layout.policy))
        return True
    return False


def options_problem(address: str) -> str:
    """Ask what listens there for its options, as Squid does; say what is wrong with the
    answer, empty: nothing.
    """
    host, port = address.rpartition(":")[0], port_of(address)
    answer = b""
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
            connection.sendall(
                f"OPTIONS icap://{address}/ ICAP/1.0\r\nHost: {address}\r\n\r\n".encode()
            )
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
        # systemd forbids squidkeeper-render this bit, which the files of bodies do
        # without
        folder.chmod(0o2770)
