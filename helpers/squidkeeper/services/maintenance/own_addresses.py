"""Closing the gateway's own addresses to clients, like private ones.

A public address of the gateway reaches every service that listens on it.
squidkeeper.conf reads these addresses from a file, `acl sk_ask_private dst "FILE"`.
This task updates the file and lets Squid read it again.
"""

import logging
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Network,
    collapse_addresses,
    ip_address,
)
from itertools import chain
from pathlib import Path
from signal import SIGHUP
from socket import AF_INET, AF_INET6
from typing import Final

import psutil

from squidkeeper.base.atomic_write import replace
from squidkeeper.policy.url import Address, embeddings, is_private
from squidkeeper.services.maintenance.squid_process import RateLimit, SquidProcess

FILE: Final = "own-addresses"
_HEAD = """\
# The public addresses of this gateway. Squid closes them to clients (sk_ask_private).
# `squidkeeper maintain` writes this file when the machine gets a new address.
"""
# Two in a row: a network brings an IPv4 and an IPv6 address. The second bound is for a
# client that invents addresses, which it can if the gateway accepts IPv6 router
# advertisements.
_RECONFIGURE_AT_MOST = ((10.0, 2), (600.0, 10))
_WILDCARDS = {"": (4, 6), "::": (4, 6), "0.0.0.0": (4,)}  # noqa: S104 - what http_port means by it; nothing binds here
_log = logging.getLogger(__name__)


class OwnAddresses:
    """Updates the file of own addresses, and reconfigures Squid for each new one.

    A removed address stays closed until the next one is added. That opens nothing, and
    saves a reconfigure.
    """

    name = "own-addresses"

    def __init__(
        self, state: Path, squid: SquidProcess, pace: RateLimit | None = None
    ) -> None:
        self._file = state / FILE
        # the content when Squid was last signalled
        self._signalled = state / f"{FILE}.told"
        self._squid = squid
        self._pace = pace or RateLimit(*_RECONFIGURE_AT_MOST)
        self._known: frozenset[Address] | None = (
            None  # those that Squid has read; None: unknown
        )
        self._written = ""  # the last content of the file

    def check(self) -> None:
        """Close new addresses; OSError if the file cannot be written."""
        current = public_addresses()
        if self._known is None and _read(self._signalled) == _text(current):
            self._known, self._written = current, _text(current)
        if (
            self._known is not None
            and current <= self._known
            and _read(self._file) == self._written
        ):
            return
        self._written = _text(current)
        _write(self._file, current)
        if self._pace.allows() and self._squid.signal(SIGHUP):
            self._pace.count()
            _write(self._signalled, current)
            self._log_new(current)
            self._known = current

    def _log_new(self, current: frozenset[Address]) -> None:
        new = sorted(map(str, current - (self._known or frozenset())))
        if new:
            _log.info("closed addresses of this machine to clients: %s", ", ".join(new))


def public_addresses() -> frozenset[Address]:
    """List the addresses of this machine's interfaces that are not private, without
    zones.
    """
    return frozenset(
        address for address in interface_addresses() if not is_private(address)
    )


def interface_addresses() -> frozenset[Address]:
    """List the addresses of this machine's interfaces, without zones."""
    found = chain.from_iterable(psutil.net_if_addrs().values())
    texts = (
        address.address.partition("%")[0]
        for address in found
        if address.family in (AF_INET, AF_INET6)
    )
    return frozenset(map(ip_address, texts))


def reached_at(listen: str) -> list[Address]:
    """List the addresses at which the internet reaches a Squid that listens on PORT,
    ADDRESS:PORT or [ADDRESS]:PORT.
    """
    host = listen.rpartition(":")[0].strip("[]")
    versions = _WILDCARDS.get(host)
    found = (
        [ip_address(host)]
        if versions is None
        else [one for one in public_addresses() if one.version in versions]
    )
    return sorted((address for address in found if address.is_global), key=str)


def answers_at(listen: str) -> frozenset[Address]:
    """List the addresses of this machine at which it reaches what listens on PORT,
    ADDRESS:PORT or [ADDRESS]:PORT.
    """
    host = listen.rpartition(":")[0].strip("[]")
    versions = _WILDCARDS.get(host)
    return frozenset(
        {ip_address(host)}
        if versions is None
        else {one for one in interface_addresses() if one.version in versions}
    )


def own_addresses() -> str:
    """Return what the file should hold now."""
    return _text(public_addresses())


def prepare_own_addresses(state: Path) -> None:
    """Write the file before Squid starts; OSError if it cannot be written."""
    _write(state / FILE, public_addresses())


def _write(file: Path, addresses: Iterable[Address]) -> None:
    text = _text(addresses)
    if _read(file) != text:
        replace(file, text.encode(), 0o644)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _text(addresses: Iterable[Address]) -> str:
    """Format one network a line, sorted.

    Nested networks are merged, because Squid warns about them.
    """
    networks = [network for address in addresses for network in _networks(address)]
    fours = collapse_addresses(
        network for network in networks if isinstance(network, IPv4Network)
    )
    sixes = collapse_addresses(
        network for network in networks if isinstance(network, IPv6Network)
    )
    return _HEAD + "".join(f"{network}\n" for network in (*fours, *sixes))


def _networks(address: Address) -> tuple[IPv4Network | IPv6Network, ...]:
    """List the networks that reach an address: for IPv4 also the IPv6 networks that
    embed it.
    """
    if not isinstance(address, IPv4Address):
        return (IPv6Network(address),)
    return IPv4Network(address), *embeddings(IPv4Network(address))
