"""What squidkeeper.conf repeats of the program: rendered, and the same in the committed file."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from squidkeeper.policy.headers import (
    HOST_HEADERS,
    INJECTABLE_HEADERS,
    METHOD_HEADERS,
    PATH_HEADERS,
    UNKNOWN_HEADERS,
    spellings,
)
from squidkeeper.policy.model import Strip
from squidkeeper.replies import header_annotation
from squidkeeper.setup.templates import SECTIONS, main, render
from squidkeeper.url import canonical_address, is_private

REPOSITORY = Path(__file__).parents[1]
FRAGMENT = REPOSITORY / "squid/squidkeeper.conf"
Address = IPv4Address | IPv6Address


def lines(directive: str) -> list[list[str]]:
    """The words of each line of a directive in the committed file, without the directive."""
    found = (line.split() for line in FRAGMENT.read_text().splitlines())
    return [words[1:] for words in found if words[:1] == [directive]]


def test_the_committed_sections_are_those_that_are_rendered() -> None:
    texts = [path.read_text() for path in sorted((REPOSITORY / "squid").glob("*.conf"))]
    found = [name for text in texts for name in re.findall("^# >>> rendered: (.*)$", text, re.MULTILINE)]
    assert sorted(found) == sorted(SECTIONS)
    for text in texts:
        assert render(text) == text, "run: python -m squidkeeper.setup.templates squid/*.conf"


def test_a_file_is_rendered_in_place_and_nothing_else_in_it_changes(tmp_path: Path) -> None:
    text = FRAGMENT.read_text()
    file = tmp_path / "squidkeeper.conf"
    file.write_text(text.replace("dst 0.0.0.0/8", "dst 8.8.8.8 0.0.0.0/8").replace("deny sk_injected", ""))
    main([str(file)])
    assert file.read_text() == text


# --- private addresses --------------------------------------------------------------------------------------------

WRITTEN = [text for words in lines("acl") if words[:2] == ["sk_private", "dst"] for text in words[2:]]
PRIVATE = [ip_network(text) for text in WRITTEN if not text.startswith('"')]  # the file of own addresses is no network
IPV4 = [network for network in PRIVATE if isinstance(network, IPv4Network)]


EMBEDDINGS: dict[str, Callable[[IPv4Address], Address]] = {
    "itself": lambda address: address,
    "mapped": lambda address: IPv6Address(f"::ffff:{address}"),
    "NAT64": lambda address: IPv6Address(f"64:ff9b::{address}"),
    "6to4": lambda address: IPv6Address(f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::1"),
}


def is_private_for_squid(address: Address) -> bool:
    return any(canonical_address(address) in network for network in PRIVATE)


def edges(network: IPv4Network | IPv6Network) -> list[int]:
    """The first and last address of a network, and those beside it."""
    first, last = int(network[0]), int(network[-1])
    return [number for number in (first - 1, first, last, last + 1) if 0 <= number < 1 << network.max_prefixlen]


@pytest.mark.parametrize("network", PRIVATE, ids=str)
def test_squid_and_the_program_agree_on_both_sides_of_every_boundary(network: IPv4Network | IPv6Network) -> None:
    assert is_private(network[0])
    assert is_private(network[-1])
    for address in (type(network[0])(number) for number in edges(network)):
        assert is_private(address) is is_private_for_squid(address), address


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("network", IPV4, ids=str)
def test_an_embedded_address_is_private_where_the_ipv4_address_is(network: IPv4Network, embedding: str) -> None:
    for plain in map(IPv4Address, edges(network)):
        address, expected = EMBEDDINGS[embedding](plain), any(plain in one for one in IPV4)
        assert (is_private(address), is_private_for_squid(address)) == (expected, expected), address


def test_the_networks_are_those_of_the_documentation() -> None:
    text = (REPOSITORY / "policy/README.md").read_text()
    documented = re.findall(r"^\| IPv[46] \| (.*) \|$", text, re.MULTILINE)
    named = {ip_network(word) for row in documented for word in row.split() if "/" in word}
    embedding = (ip_network("64:ff9b::/96"), ip_network("2002::/16"))
    assert named == {network for network in PRIVATE if not any(network[0] in one for one in embedding)}


# --- headers ------------------------------------------------------------------------------------------------------


def removed(*condition: str) -> set[str]:
    return {words[0] for words in lines("request_header_access") if words[1:] == ["deny", *condition]}


def every_spelling(*headers: str) -> set[str]:
    return {name for header in headers for name in spellings(header)}


def test_a_header_is_spelled_with_every_mixture_of_dash_and_underscore() -> None:
    assert list(spellings("Forwarded")) == ["Forwarded"]
    assert list(spellings("X-Api-Key")) == ["X-Api-Key", "X-Api_Key", "X_Api-Key", "X_Api_Key"]
    assert len(every_spelling("X-HTTP-Method-Override")) == 8


def test_each_injectable_header_is_removed_where_any_is_injected_and_added_from_its_annotation() -> None:
    assert removed("sk_takes_injectable") == every_spelling(*INJECTABLE_HEADERS)
    added = {words[0]: words[1] for words in lines("request_header_add")}
    assert added.pop("Connection") == "close"  # of a request with a body
    assert added == {name: f'"%\'{{{header_annotation(name)}}}note"' for name in INJECTABLE_HEADERS}


def test_the_group_of_unknown_headers_has_its_key() -> None:
    assert (
        f"acl sk_keeps_known note strip_header_ {Strip.of([UNKNOWN_HEADERS]).header_keys[0]}\n" in FRAGMENT.read_text()
    )


def test_override_headers_are_removed_and_documented() -> None:
    assert removed("!sk_may_override") == every_spelling(*METHOD_HEADERS, *PATH_HEADERS)
    assert removed("all") == {*every_spelling(*HOST_HEADERS), "Proxy_Authorization"}
    section = (REPOSITORY / "squid/README.md").read_text().split("### Override headers\n")[1].split("\n## ")[0]
    named = re.findall(r"`([A-Z][A-Za-z-]+)`", "".join(line for line in section.splitlines() if line.startswith("| `")))
    assert named == [*METHOD_HEADERS, *PATH_HEADERS, *HOST_HEADERS]
