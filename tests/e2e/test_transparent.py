"""Clients without proxy settings: policy by the ports 443 and 80, as curl in a VM sees it."""

import pytest

from .origin import Origins
from .transparent import Transparent

POLICY = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Wikipedia is closed to sandboxes.}
  - {name: agents, action: allow, clients: [agents], hosts: [example.com]}
"""
BOTH = pytest.mark.parametrize("scheme", ["https", "http"])
CURL = ("curl", "-sS", "--max-time", "20")


@BOTH
def test_the_walkthroughs_two_requests(transparent: Transparent, origins: Origins, scheme: str) -> None:
    url = f"{scheme}://example.com/{scheme}"
    status = transparent.inside(*CURL, "-o", "/dev/null", "-w", "%{http_code}\n", url)
    assert status.text == "200\n"
    assert origins.urls() == [url]
    page = transparent.inside(*CURL, f"{scheme}://en.wikipedia.org/wiki/Squid")
    assert (page.rule, page.reason) == ("no-wikipedia", "Wikipedia is closed to sandboxes.")
    assert transparent.gateway.logged(url)["client"] == transparent.vm.address
