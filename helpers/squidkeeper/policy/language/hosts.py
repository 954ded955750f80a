"""Host patterns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.public_suffixes import is_top_level_domain
from squidkeeper.policy.url import Host, address_host, bracketed, parse_host

Network = IPv4Network | IPv6Network


class HostForm(StrEnum):
    """The forms of a host pattern; the value is what stands before the name."""

    EXACT = ""
    TREE = "."
    LABEL = "*."
    UNDER = "**."
    NETWORK = "/"
    ANY = "*"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """A host pattern: a form and a name, or a network; `name` is empty for a network
    and for any host.

    With `variable` it stands for those of its hosts alone that a session names.
    """

    text: str
    form: HostForm
    name: str = ""
    network: Network | None = None
    variable: str | None = None

    @property
    def key(self) -> str:
        """The one spelling of this pattern, as `host_keys` gives it for the hosts it
        matches (not for networks).
        """
        return f"{self.form}{self.name}"

    @property
    def covers_top_level(self) -> bool:
        """Whether this is a wildcard over a whole top-level domain, such as `*.com`; a
        zone such as `lan` is none.
        """
        return self.form in _WILDCARD_FORMS and is_top_level_domain(self.name)

    def matches(self, host: Host) -> bool:
        """Whether the pattern matches a host."""
        if self.network is not None:
            return host.address is not None and host.address in self.network
        return self.key in host_keys(host)


def parse_host_pattern(text: str) -> HostPattern:
    """Parse a host pattern; `PatternError` where it is none, or can never match."""
    if text == HostForm.ANY:
        return HostPattern(text, HostForm.ANY)
    if "/" in text and "://" not in text:
        if _bare_address(text.partition("/")[0]) is None:
            raise PatternError(f"{text!r} is not a host pattern, expected {_EXPECTED}")
        return HostPattern(text, HostForm.NETWORK, network=parse_network(text))
    form = next(form for form in _PREFIXED if text.startswith(form))
    host = _parse_name(text, text.removeprefix(form))
    if host.address is None:
        return HostPattern(text, form, host.text)
    if form is not HostForm.EXACT:
        raise PatternError(
            f"host pattern {text!r} can never match: an address has no hosts under it"
        )
    if (
        _bare_address(text) is None
    ):  # as clients and servers read it: 10.1 is 10.0.0.1, and 010.0.0.1 is 8.0.0.1
        raise PatternError(
            f"host pattern {text!r} is a way to write {host.address}, expected the address itself, or a network"
        )
    return HostPattern(text, HostForm.NETWORK, network=ip_network(host.address))


def parse_network(text: str) -> Network:
    """Parse `ADDRESS/BITS`, or an address as the network of itself alone; an
    IPv4-mapped network is the IPv4 one.
    """
    try:
        network = ip_network(text.replace("[", "").replace("]", ""), strict=False)
    except ValueError as error:
        raise PatternError(
            f"{text!r} is not an address or a network such as 203.0.113.0/24"
        ) from error
    if str(network.network_address) != str(
        ip_network(text.split("/")[0].strip("[]")).network_address
    ):
        raise PatternError(f"network {text!r} has host bits set, expected {network}")
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped and network.prefixlen >= _MAPPED_BITS:
        return ip_network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def host_keys(host: Host, *, wildcards: bool = True) -> list[str]:
    """List the keys of every pattern, networks aside, that matches a host: the most
    specific first, any host last.

    A name of n labels has about 3n of them, so that looking a host up costs the same
    for ten patterns or a million. Without `wildcards`, those of the forms `*.` and
    `**.` are left out, which are more than half.
    """
    if host.address is not None:
        return [HostForm.ANY]
    keys = [host.text, f".{host.text}"]
    above = host.text.partition(".")[2]
    if above and wildcards:
        keys.append(f"*.{above}")
    while above:
        keys.append(f".{above}")
        if wildcards:
            keys.append(f"**.{above}")
        above = above.partition(".")[2]
    keys.append(HostForm.ANY)
    return keys


def _parse_name(text: str, name: str) -> Host:
    if not name or (set(name) & set("*:/@?#[") and not name.startswith("[")):
        address = _bare_ipv6(name)
        if address is None:
            raise PatternError(f"{text!r} is not a host pattern, expected {_EXPECTED}")
        return address
    try:
        return parse_host(name)
    except InvalidUrl as error:
        raise PatternError(
            f"host pattern {text!r} can never match: {error}; expected {_EXPECTED}"
        ) from error


def sample_host(pattern: HostPattern) -> str | None:
    """Return a host that a pattern matches."""
    if pattern.network is not None:
        return bracketed(address_host(pattern.network[0]))
    if pattern.form is HostForm.ANY:
        return None
    return (
        pattern.name
        if pattern.form in (HostForm.EXACT, HostForm.TREE)
        else f"www.{pattern.name}"
    )


def _bare_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.strip("[]"))
    except ValueError:
        return None


def _bare_ipv6(name: str) -> Host | None:
    try:
        return parse_host(f"[{name}]")
    except InvalidUrl:
        return None


_WILDCARD_FORMS = (HostForm.TREE, HostForm.LABEL, HostForm.UNDER)
_PREFIXED = (HostForm.UNDER, HostForm.LABEL, HostForm.TREE, HostForm.EXACT)
_MAPPED_BITS = 96
_EXPECTED = (
    "example.com, .example.com, *.example.com, **.example.com, an address, a network or '*' "
    "(ports and paths have fields of their own)"
)
