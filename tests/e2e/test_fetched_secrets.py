"""Secrets that are fetched, through a live Squid: from a token endpoint that expires,
fails, hangs and lies.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.token_server import Respond, TokenServer, response, token
from tests.waiting import wait_for

from .curl import curl
from .fetching import fetching
from .gateway import Gateway, NewGateway
from .load import load
from .origin import Answer, Origins, Seen

POLICY = """
version: 1
rules:
  - {{name: api, action: allow, hosts: [api.example, never.example]}}
secrets:
  client: {{file: secrets/client}}
  token: {{oauth2: {{{fields}, scope: token}}}}
  never: {{oauth2: {{{fields}, scope: never}}}}
credentials:
  - {{name: api, hosts: [api.example], bearer: token}}
  - {{name: never, hosts: [never.example], bearer: never}}
"""


class Endpoint:
    """A token endpoint whose tokens say when they expire.

    `answers` replaces them for a while.
    """

    def __init__(self, folder: Path) -> None:
        self.server = TokenServer(folder)
        self.server.respond = self._respond
        self.answers: Respond | None = None
        self.lifetime = 2
        self._numbers = count(1)

    def _respond(self, request: object) -> bytes:
        if self.server.requests[-1].form["scope"] == "never":
            return response(500, b"e2e-body-of-an-error")
        if self.answers:
            return self.answers(self.server.requests[-1])
        value = (
            f"e2e-token-{next(self._numbers)}-until-{time.time() + self.lifetime:.2f}"
        )
        return token(value, expires_in=self.lifetime)


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway("version: 1\n")


@pytest.fixture(scope="module")
def endpoint(
    gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    made = Endpoint(tmp_path_factory.mktemp("endpoint"))
    gateway.secret("client", "e2e-secret-of-the-client")
    gateway.remember("e2e-body-of-an-error")
    ours = "grant: client_credentials, client_id: me, client_secret: client"
    # where the process can read it
    ca = gateway.write("endpoint.crt", Path(made.server.ca).read_text())
    fields = f"token_url: '{made.server.url}', ca: '{ca}', {ours}"
    gateway.write("policy.yaml", POLICY.format(fields=fields))
    gateway.start()
    yield made
    made.server.stop()


def denied(gateway: Gateway, origins: Origins, host: str) -> None:
    reply = curl(gateway, f"https://{host}/denied")
    assert (reply.status, reply.rule) == (403, "credential-unavailable")
    assert not any(seen.target == "/denied" for seen in origins.seen)


def authorization(origins: Origins) -> str:
    [value] = origins.seen[-1].values("Authorization")
    return value


def test_a_request_waits_for_the_first_value_and_follows_every_change(
    gateway: Gateway, endpoint: Endpoint, origins: Origins
) -> None:
    with ThreadPoolExecutor() as pool:
        early = pool.submit(curl, gateway, "https://api.example/early")
        wait_for(lambda: gateway.helpers("credential"), "the credential helper")
        with fetching(gateway):
            assert early.result().status == 200
            first = authorization(origins)
            assert re.fullmatch(r"Bearer e2e-token-\d+-until-[\d.]+", first)
            wait_for(
                lambda: (
                    curl(gateway, "https://api.example/").status == 200
                    and authorization(origins) != first
                )
            )
    denied(gateway, origins, "api.example")


GARBAGE: dict[str, Callable[[TokenServer], Respond]] = {
    "500": lambda _: lambda _: response(500, b"e2e-body-of-an-error"),
    "hang": lambda server: server.hang_a_while,
    "redirect": lambda _: (
        lambda _: response(302, b"", "Location: https://127.0.0.1:1/")
    ),
    "no json": lambda _: lambda _: response(200, b"e2e-body-of-an-error"),
    "huge": lambda _: lambda _: response(200, b"x" * 3_000_000),
    "no token": lambda _: lambda _: response(200, b'{"access_token": 7}'),
    "split": lambda _: (
        lambda _: token("e2e-body-of-an-error\r\nX-Injected: x", expires_in=5)
    ),
    "nul": lambda _: lambda _: token("e2e-body-of-an-error\0", expires_in=5),
    "no http": lambda _: lambda _: b"e2e-body-of-an-error\r\n\r\n",
}


@pytest.mark.long
def test_under_load_no_request_is_forwarded_bare_or_with_an_expired_token_and_none_is_stuck(
    gateway: Gateway, endpoint: Endpoint, origins: Origins
) -> None:
    wrong: list[tuple[float, list[str]]] = []

    def check(seen: Seen) -> Answer:
        values = seen.values("Authorization")
        found = [
            re.fullmatch(r"Bearer e2e-token-\d+-until-([\d.]+)", value)
            for value in values
        ]
        if (
            len(found) != 1
            or found[0] is None
            or float(found[0][1]) < time.time() - 1
            or seen.values("X-Injected")
        ):
            wrong.append((time.time(), values))
        return Answer()

    origins.fallback, endpoint.lifetime = check, 5
    with fetching(gateway), load(gateway, *[("https", "api.example")] * 4) as running:
        denied(gateway, origins, "never.example")
        for name, make in GARBAGE.items():
            endpoint.answers = make(endpoint.server)
            wait_for(
                lambda: running.answers[-1].status == 403,
                f"a denial while the endpoint answers: {name}",
            )
            endpoint.answers = None
            wait_for(lambda: running.answers[-1].status == 200, f"the end of: {name}")
            running.at_least(100)
    assert wrong == []
    assert {answer.status for answer in running.answers} == {200, 403}
    assert {answer.rule for answer in running.answers if answer.status == 403} == {
        "credential-unavailable"
    }
    assert gateway.fatal() == []
    assert "e2e-body-of-an-error" not in gateway.cache_log()
