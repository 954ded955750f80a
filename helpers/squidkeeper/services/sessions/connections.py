"""What clients have open on this gateway, and its end.

`ss` of iproute2 speaks to the kernel (sock_diag(7)): its filter holds for an IPv4
client of a listener of IPv6 too, and it reports each socket that it has ended. It
needs CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY. Where one of them is
missing `ss --kill` ends with status 0, so what is left is counted afterwards.

HAProxy and the relay of the transparent ports on this machine hold the client's own
connection. When that is ended they end theirs to Squid.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Self

ClientNetwork = IPv4Network | IPv6Network
_COMMAND: Final = ("ss", "--no-header", "--numeric", "--tcp", "--oneline")
# A connection in TIME-WAIT carries nothing any more.
_STATES: Final = ("state", "connected", "exclude", "time-wait")
_CLIENTS_AT_ONCE: Final = 200  # the kernel takes filters of 64 KB
_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients connect to: an address of this machine, or each, and a port."""

    host: str
    port: int

    @property
    def filter(self) -> str:
        """The filter of `ss` for its connections."""
        port = f"sport = :{self.port}"
        if not self.host or ip_address(self.host).is_unspecified:
            return port
        return f"( src {_written(self.host)} and {port} )"


@dataclass(frozen=True, slots=True)
class Cut:
    """How many connections were ended, and how many are left.

    `problem`: why nothing is known of them.
    """

    ended: int = 0
    left: int = 0
    problem: str = ""

    def __add__(self, other: Self) -> Self:
        """Take two together."""
        return type(self)(
            self.ended + other.ended,
            self.left + other.left,
            self.problem or other.problem,
        )


def cut(clients: Sequence[ClientNetwork], listeners: Sequence[Listener]) -> Cut:
    """End what clients have open on the listeners of this gateway; never fails.

    What a client opens meanwhile is not left: it is a connection of its own.
    """
    whole = Cut()
    for at in range(0, len(clients), _CLIENTS_AT_ONCE):
        whole += _cut(clients[at : at + _CLIENTS_AT_ONCE], listeners)
    return whole


def _cut(clients: Iterable[ClientNetwork], listeners: Iterable[Listener]) -> Cut:
    theirs = " or ".join(f"dst {_written(client)}" for client in clients)
    ours = " or ".join(listener.filter for listener in listeners)
    chosen = (*_STATES, f"( {theirs} ) and ( {ours} )")
    try:
        open_ones = _sockets(*chosen)
        if not open_ones:
            return Cut()
        ended = _sockets("--kill", *chosen)
        left = open_ones - ended
        if left:  # some have ended by themselves
            left &= _sockets(*chosen)
    except OSError as error:
        return Cut(problem=f"ss cannot be started: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Cut(problem=f"ss has not ended within {_TIMEOUT_SECONDS:.0f} s")
    except subprocess.CalledProcessError as error:
        return Cut(problem=f"ss has failed: {error.stderr.decode(errors='replace')}")
    return Cut(len(ended), len(left))


def _sockets(*arguments: str) -> set[tuple[bytes, ...]]:
    """Return what `ss` lists, each by its two ends."""
    done = subprocess.run(  # noqa: S603 - addresses and numbers alone
        [*_COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=_TIMEOUT_SECONDS,
    )
    return {tuple(line.split()[3:5]) for line in done.stdout.splitlines()}


def _written(address: object) -> str:
    """Write an address or a network as `ss` reads it."""
    return f"[{address}]" if ":" in str(address) else str(address)
