"""Whether clients without proxy settings get through: their resolver, the process
behind it, and the address of both.

Their own services run them, where install.sh was given --transparent. This task asks.
"""

import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import ResolverFailed, TransparentFailed
from squidkeeper.base.places import TRANSPARENT_FOLDER
from squidkeeper.services.maintenance.own_addresses import interface_addresses
from squidkeeper.services.maintenance.process import PATIENCE_SECONDS
from squidkeeper.services.maintenance.resolver import Probe
from squidkeeper.serving.counters.layout import FOLDER
from squidkeeper.serving.counters.reader import read_counter_files

_START_SECONDS: Final = 10.0  # this process starts ahead of the other
# RFC 1035: squidkeeper.example, type A or AAAA, class IN. Nobody has this name, so no
# other resolver gives an address.
_NAME: Final = b"\x0bsquidkeeper\x07example\0"
_QUESTIONS: Final = {
    version: bytes.fromhex("5354 0100 0001 0000 0000 0000")
    + _NAME
    + bytes((0, kind, 0, 1))
    for version, kind in ((4, 1), (6, 28))
}


class TransparentPorts:
    """Asks the resolver on each address, and looks for the heartbeat of `squidkeeper
    transparent`.
    """

    name = "transparent"

    def __init__(self, addresses: tuple[str, ...], state: Path) -> None:
        self._addresses = addresses
        self._counters = state / TRANSPARENT_FOLDER / FOLDER
        self._probes: dict[str, Probe] = {}
        self._started = time.monotonic()

    def check(self) -> None:
        """Send a question to each address; `TransparentFailed` says what does
        not work.
        """
        if problems := "; ".join(self._problems()):
            raise TransparentFailed(problems)

    def stop(self) -> None:
        """Ask no more."""
        for address in [*self._probes]:
            self._forget(address)

    def _problems(self) -> Iterator[str]:
        here = interface_addresses()
        for address in self._addresses:
            if ip_address(address) in here:
                yield from self._resolver_problem(address)
            else:
                self._forget(address)
                yield f"{address} is not on this machine"
        if not self._takes_connections():
            yield "squidkeeper transparent does not run, is stuck, or cannot write to the state folder"

    def _forget(self, address: str) -> None:
        if probe := self._probes.pop(address, None):
            probe.close()

    def _resolver_problem(self, address: str) -> Iterator[str]:
        if address not in self._probes:
            self._probes[address] = Probe(
                address, _QUESTIONS[ip_address(address).version]
            )
        try:
            self._probes[address].check()
        except ResolverFailed as error:
            yield str(error)

    def _takes_connections(self) -> bool:
        statuses = (
            file.status
            for file in read_counter_files(self._counters)
            if file.running and file.status
        )
        beats = any(
            abs(time.time() - status.beat) <= PATIENCE_SECONDS for status in statuses
        )
        return beats or time.monotonic() - self._started < _START_SECONDS
