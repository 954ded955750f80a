"""The gateway's own addresses, closed to clients as private ones are (floor 5).

A public address of the gateway's own leads to every service that listens on it. squidkeeper.conf reads those addresses
from a file, `acl sk_private dst "FILE"`; this keeps the file up to date and has Squid read it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_address
from itertools import chain
from pathlib import Path
from signal import SIGHUP
from socket import AF_INET, AF_INET6
from typing import Final

import psutil

from squidkeeper.maintenance.atomic_write import replace
from squidkeeper.maintenance.rate_limit import RateLimit
from squidkeeper.maintenance.squid_process import SquidProcess
from squidkeeper.url import Address, embeddings, is_private

FILE: Final = "own-addresses"
_HEAD = """\
# This gateway's own addresses, as far as they are not private ones anyway. Squid closes them to clients (sk_private).
# `squidkeeper maintain` writes this file when an address is added to the machine.
"""
# Two in a row, as for the IPv4 and the IPv6 address of one network. The second bound is for a client that makes
# addresses up: it can where the gateway accepts IPv6 router advertisements.
_RECONFIGURE_AT_MOST = ((10.0, 2), (600.0, 10))
_WILDCARDS = {"": (4, 6), "::": (4, 6), "0.0.0.0": (4,)}  # noqa: S104 - what http_port means by it; nothing binds here
_log = logging.getLogger(__name__)


class OwnAddresses:
    """Keeps the file of own addresses, and tells Squid about each that is new.

    An address that was removed from the machine stays closed until the next one is added: that opens nothing, and
    spares Squid a reconfigure.
    """

    name = "own-addresses"

    def __init__(self, state: Path, squid: SquidProcess, pace: RateLimit | None = None) -> None:
        self._file = state / FILE
        self._told = state / f"{FILE}.told"  # what the file held when Squid was last told
        self._squid = squid
        self._pace = pace or RateLimit(*_RECONFIGURE_AT_MOST)
        self._known: frozenset[Address] | None = None  # those that Squid has read; None: not known yet
        self._written = ""  # what the file holds, unless something else has changed it since

    def check(self) -> None:
        """Close the addresses that are new; an OSError where the file cannot be written."""
        current = public_addresses()
        if self._known is None and _text_of(self._told) == _text(current):
            self._known, self._written = current, _text(current)
        if self._known is not None and current <= self._known and _text_of(self._file) == self._written:
            return
        self._written = _text(current)
        _write(self._file, current)
        if self._pace.allows() and self._squid.tell(SIGHUP):
            self._pace.count()
            _write(self._told, current)
            self._say(current)
            self._known = current

    def _say(self, current: frozenset[Address]) -> None:
        new = sorted(map(str, current - (self._known or frozenset())))
        if new:
            _log.info("addresses of this machine are closed to clients: %s", ", ".join(new))


def public_addresses() -> frozenset[Address]:
    """List the addresses of this machine's interfaces that are not private already, without their zones."""
    found = chain.from_iterable(psutil.net_if_addrs().values())
    texts = (one.address.partition("%")[0] for one in found if one.family in (AF_INET, AF_INET6))
    return frozenset(address for address in map(ip_address, texts) if not is_private(address))


def reached_at(listen: str) -> list[Address]:
    """List the addresses at which the internet reaches a Squid that listens on PORT, ADDRESS:PORT or [ADDRESS]:PORT."""
    host = listen.rpartition(":")[0].strip("[]")
    versions = _WILDCARDS.get(host)
    found = [ip_address(host)] if versions is None else [one for one in public_addresses() if one.version in versions]
    return sorted((address for address in found if address.is_global), key=str)


def prepare_own_addresses(state: Path) -> None:
    """Write the file for a Squid that is about to start; an OSError where it cannot be written."""
    _write(state / FILE, public_addresses())


def _write(file: Path, addresses: Iterable[Address]) -> None:
    """Replace the file atomically, unless it has this content already."""
    text = _text(addresses)
    if _text_of(file) == text:
        return
    replace(file, text, 0o644)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _text(addresses: Iterable[Address]) -> str:
    """Write one network a line, sorted, none within another: Squid warns about those."""
    networks = [network for address in addresses for network in _spellings(address)]
    fours = collapse_addresses(one for one in networks if isinstance(one, IPv4Network))
    sixes = collapse_addresses(one for one in networks if isinstance(one, IPv6Network))
    return _HEAD + "".join(f"{network}\n" for network in (*fours, *sixes))


def _spellings(address: Address) -> tuple[IPv4Network | IPv6Network, ...]:
    """List what leads to an address: for IPv4 also what embeds it, as for private networks."""
    if not isinstance(address, IPv4Address):
        return (IPv6Network(address),)
    return IPv4Network(address), *embeddings(IPv4Network(address))
