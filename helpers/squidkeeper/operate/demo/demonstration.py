"""The demonstration as a whole: creates networks and servers, runs the tour, and
removes everything.
"""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import DemoFailed
from squidkeeper.operate.demo.authority import Authority
from squidkeeper.operate.demo.gateway import installed
from squidkeeper.operate.demo.network import VirtualMachine, internet
from squidkeeper.operate.demo.servers import Origin, Relay, serving
from squidkeeper.operate.demo.tour import NAMES, Tour, write_policy

_COMMANDS: Final = ("curl", "ip", "nft", "nsenter", "setpriv", "squid", "unshare")
_PROXY_PORT: Final = 3129
_EXPORTER: Final = ("127.0.0.1", 9129)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demonstrate(
    source: Path, port: int, say: Callable[[str], None], wait: Callable[[], None] | None
) -> None:
    """Run the demonstration; `port` is that of the status page on the host, 0 for a
    free one.

    With `wait`, everything stays until it returns. `KeyboardInterrupt`, also by SIGTERM
    and SIGHUP, ends it early.
    """
    _check(source)
    with _interruptible(), _folder() as folder, ExitStack() as at_the_end:
        at_the_end.callback(
            say,
            "\nThe demo is over: it removes the namespaces, the processes and its folder.",
        )
        listening = at_the_end.enter_context(socket.create_server(("127.0.0.1", port)))
        say(
            "Creates a network without internet: an origin, the gateway, and a VM that reaches only the gateway."
        )
        at_the_end.enter_context(internet())
        vm = VirtualMachine(folder)
        at_the_end.callback(vm.stop)
        authority = Authority(folder / "ca")
        origin = Origin(authority, NAMES)
        at_the_end.enter_context(serving(origin))
        root = folder / "gateway"
        address = f"{vm.gateway}:{_PROXY_PORT}"
        say(
            f"Installs the gateway: {source}/install.sh --root {root} --listen {address}"
        )
        token = write_policy(folder / "policy")
        installation = installed(
            source, root, address, folder / "policy", NAMES, authority.certificate
        )
        gateway = at_the_end.enter_context(installation)
        vm.trust(gateway.ca)
        at_the_end.enter_context(serving(Relay(listening, _EXPORTER)))
        Tour(vm, gateway, origin, token, say).run()
        say(
            f"\nThe status page of the gateway: http://127.0.0.1:{listening.getsockname()[1]}/"
        )
        if wait:
            enter = f"nsenter --target {vm.holder.pid} --net --mount env https_proxy=http://{gateway.address} bash"
            say(f"A shell in the VM: {enter}")
            wait()


def _check(source: Path) -> None:
    if os.geteuid() != 0:
        raise DemoFailed("network namespaces need root: run it with sudo")
    if not (source / "squid/squid.conf").exists():
        raise DemoFailed(
            f"{source} has no squid/squid.conf: name the folder of the sources with --source"
        )
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        raise DemoFailed(
            f"{', '.join(missing)} not found: install.sh --demo installs what is missing"
        )


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="squidkeeper-demo-"))
    path.chmod(0o755)  # Squid's account enters it
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first signal into `KeyboardInterrupt`, and ignore later ones, so that
    the cleanup is complete.
    """

    def interrupt(*_: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
