"""Squid's cache, turned on in local.conf: it never holds, nor answers for, what a
credential opened.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.waiting import pause, wait_for

from .curl import curl
from .expect import allowed, denied
from .gateway import Gateway
from .origin import Answer, Gate, Origins, Seen

POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
  builders: {networks: [127.0.0.2/32]}
rules:
  - {name: builders-only, action: allow, clients: [builders], hosts: [build.example]}
  - {name: shared, action: allow, hosts: [shared.example, open.example]}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: shared, clients: [one], hosts: [shared.example], header: X-Api-Key, value: "{token}"}
"""
TOKEN = "e2e-token-of-the-first-client"
FRESH = {"Cache-Control": "public, max-age=3600", "ETag": '"1"'}
STALE_SOON = {"Cache-Control": "public, max-age=1", "ETag": '"1"'}
# the client whose requests get the credential, and one without
ONE, OTHER = (
    "127.0.0.1",
    "127.0.0.3",
)

LOCAL_CONF = (
    "cache allow all",
    "collapsed_forwarding on",
)
SECRETS = {"token": TOKEN}


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the origin's: whoever has the key gets an answer that nobody else may
    see.
    """

    gateway: Gateway
    origins: Origins
    name: str  # of this test alone: Squid still holds the pages of the others

    def is_served(self, headers: dict[str, str], gate: Gate | None = None) -> None:
        def answer(seen: Seen) -> Answer:
            mine = seen.values("X-Api-Key") == [TOKEN]
            return Answer(
                body=b"for the one" if mine else b"for all", headers=headers, gate=gate
            )

        self.origins.answers[f"shared.example/{self.name}"] = answer

    def get(self, client: str) -> str:
        return curl(
            self.gateway, f"https://shared.example/{self.name}", client=client
        ).text


@pytest.fixture
def page(gateway: Gateway, origins: Origins, request: pytest.FixtureRequest) -> Page:
    return Page(gateway, origins, request.node.name)


def test_one_line_in_local_conf_turns_caching_on(
    gateway: Gateway, origins: Origins
) -> None:
    origins.answers["open.example/kept"] = Answer(headers=FRESH)
    for client in (ONE, OTHER):
        assert curl(gateway, "https://open.example/kept", client=client).text == "hello"
    assert len(origins.seen) == 1


def test_an_answer_to_an_injected_request_is_not_stored(page: Page) -> None:
    page.is_served(FRESH)
    assert [page.get(ONE), page.get(OTHER)] == ["for the one", "for all"]


def test_an_injected_request_is_not_answered_from_the_cache(page: Page) -> None:
    page.is_served(FRESH)
    assert [page.get(OTHER), page.get(OTHER), page.get(ONE), page.get(OTHER)] == [
        *["for all"] * 2,
        "for the one",
        "for all",
    ]
    assert [seen.values("X-Api-Key") for seen in page.origins.seen].count([TOKEN]) == 1


def test_an_injected_request_does_not_refresh_what_is_stored(page: Page) -> None:
    page.is_served(STALE_SOON)
    assert page.get(OTHER) == "for all"
    pause(2.1, "Squid counts the age of an answer in whole seconds")
    assert [page.get(ONE), page.get(OTHER)] == ["for the one", "for all"]


def test_no_request_joins_an_injected_one_under_way(page: Page) -> None:
    gate = page.origins.gate()
    page.is_served(FRESH, gate)
    with ThreadPoolExecutor(2) as pool:
        injected = pool.submit(page.get, ONE)
        wait_for(lambda: gate.waiting == 1, "the injected request to reach the origin")
        other = pool.submit(page.get, OTHER)
        pause(0.3, "the other one reaches Squid, and joins where it may")
        gate.open()
        assert (injected.result(60), other.result(20)) == ("for the one", "for all")


def test_a_cached_answer_is_not_served_to_a_client_that_may_not_ask(
    gateway: Gateway, origins: Origins
) -> None:
    for scheme in ("http", "https"):
        origins.answers["build.example/cached"] = Answer(headers=FRESH)
        allowed(
            gateway,
            origins,
            f"{scheme}://build.example/cached",
            "builders-only",
            client="127.0.0.2",
        )
        denied(
            gateway,
            origins,
            f"{scheme}://build.example/cached",
            "default",
            client="127.0.0.1",
        )
