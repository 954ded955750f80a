"""Clients that log in by token: who they are, on each request, inside open
tunnels too.
"""

import base64
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from squidkeeper.policy.language.model import Token
from squidkeeper.record.log.record import NONE
from tests.waiting import wait_for

from .curl import CurlFailed, curl
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply

CI, SPARE, BOTH = (
    "ci-token-of-this-test-0001",
    "ci-token-of-this-test-0002",
    "both-token-of-this-test-0003",
)
POLICY = f"""
version: 1
clients:
  ci: {{token_sha256: [{Token.of(CI).sha256}, {{sha256: {Token.of(SPARE).sha256}, expires: 2999-01-01T00:00:00Z}}]}}
  both: {{networks: [127.0.0.2/32], token_sha256: {Token.of(BOTH).sha256}}}
  net: {{networks: [127.0.0.3/32]}}
rules:
  - {{name: of-ci, action: allow, clients: [ci], hosts: [ci.example]}}
  - {{name: of-both, action: allow, clients: [both], hosts: [both.example]}}
  - {{name: of-net, action: allow, clients: [net], hosts: [net.example]}}
  - {{name: not-both, action: deny, clients: [both], hosts: [shared.example]}}
  - {{name: for-ci, action: allow, clients: [ci], hosts: [shared.example]}}
  - {{name: open, action: allow, hosts: [open.example]}}
  - {{name: pinned, action: allow, clients: [ci], hosts: [pinned.example], tls: passthrough}}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY)
    for token in (CI, SPARE, BOTH):
        gateway.remember(token)
    return gateway.start()


def login(name: str, token: str) -> tuple[str, str]:
    return "--proxy-user", f"{name}:{token}"


def header(name: str, token: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'{name}:{token}'.encode()).decode()}"


def status(gateway: Gateway, url: str, *options: str, client: str = "127.0.0.1") -> int:
    """The status that curl sees; of a tunnel that was refused, that of the CONNECT."""
    try:
        return curl(gateway, url, *options, client=client).status
    except CurlFailed as error:
        return int(str(error).rpartition("response ")[2])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_token_opens_what_the_policy_has_for_its_client(
    gateway: Gateway, origins: Origins, scheme: str
) -> None:
    url = f"{scheme}://ci.example/"
    for token in (CI, SPARE):
        seen = allowed(gateway, origins, url, "of-ci", *login("ci", token))
        assert seen.values("Proxy-Authorization") == []
    assert {line["user"] for line in gateway.log() if line["url"] == url} == {"ci"}
    denied(gateway, origins, f"{scheme}://both.example/", "default", *login("ci", CI))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("user", "token", "client"),
    [
        ("ci", "wrong", "127.0.0.1"),
        ("ci", BOTH, "127.0.0.1"),
        ("nobody", CI, "127.0.0.1"),
        ("CI", CI, "127.0.0.1"),
        ("net", CI, "127.0.0.3"),
        ("both", BOTH, "127.0.0.1"),
        ("ci", "", "127.0.0.1"),
    ],
)
def test_a_wrong_login_is_refused_also_where_none_is_needed_and_recorded_as_nobodys(
    gateway: Gateway, origins: Origins, scheme: str, user: str, token: str, client: str
) -> None:
    before = len(gateway.log())
    assert (
        status(gateway, f"{scheme}://open.example/", *login(user, token), client=client)
        == 407
    )
    [line] = wait_for(partial(refusals, gateway, before), "the line of the refusal")
    assert (line["user"], line["verdict"]) == (NONE, NONE)
    assert origins.seen == []


def refusals(gateway: Gateway, before: int) -> list[dict[str, Any]]:
    """The lines from `before` on that tell of a refused login; that of another request
    can be late.
    """
    return [line for line in gateway.log()[before:] if line["status"] == 407]


def test_a_login_that_is_too_long_to_be_one_is_an_invalid_request(
    gateway: Gateway, origins: Origins
) -> None:
    long = ("-H", f"Proxy-Authorization: Basic {'A' * 1100}")
    denied(gateway, origins, "http://open.example/", "invalid-request", *long)
    allowed(
        gateway, origins, "http://open.example/", "open", "-H", "Proxy-Authorization:"
    )


def test_networks_and_tokens_of_a_client_must_both_hold(
    gateway: Gateway, origins: Origins
) -> None:
    allowed(
        gateway,
        origins,
        "https://both.example/",
        "of-both",
        *login("both", BOTH),
        client="127.0.0.2",
    )
    assert status(gateway, "https://both.example/", client="127.0.0.2") == 407
    allowed(gateway, origins, "https://net.example/", "of-net", client="127.0.0.3")
    allowed(gateway, origins, "https://open.example/", "open")


def test_what_a_client_sends_inside_a_tunnel_is_no_login_and_reaches_no_origin(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "open.example:443") as client:
        reply = client.get("/", "open.example", header("ci", CI))
        assert reply.status == 200
    assert origins.seen[-1].values("Proxy-Authorization") == []
    assert gateway.logged("https://open.example/")["user"] == NONE


def opened(gateway: Gateway, authority: str, user: str, token: str) -> Raw:
    """Open a tunnel as a client with a token."""
    raw = Raw(gateway)
    reply = raw.send(
        f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{header(user, token)}\r\n\r\n"
    ).answer()
    assert reply.status == 200
    return raw.tls(authority.partition(":")[0])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_is_asked_for_a_login_only_where_one_could_open_what_is_denied(
    gateway: Gateway, origins: Origins, scheme: str
) -> None:
    for host, client, expected in [
        ("ci.example", "127.0.0.1", 407),
        ("both.example", "127.0.0.1", 403),  # a login from here cannot be that client
        ("both.example", "127.0.0.2", 407),
        (
            "shared.example",
            "127.0.0.2",
            407,
        ),  # one of the two clients that could log in from here is allowed
        ("net.example", "127.0.0.1", 403),
        ("closed.example", "127.0.0.1", 403),
    ]:
        assert status(gateway, f"{scheme}://{host}/", client=client) == expected, host
    assert origins.seen == []
    # waits to be asked, and goes on with the same connection
    anyauth = (
        "--proxy-anyauth",
        *login("ci", CI),
    )
    curl(gateway, f"{scheme}://ci.example/", *anyauth)
    assert origins.seen[-1].url == f"{scheme}://ci.example/"


def refused(asking: Callable[[], Reply]) -> int:
    """Ask again until the answer is another than 200; give its status."""
    return wait_for(
        lambda: [reply.status for reply in [asking()] if reply and reply.status != 200],
        "a refusal",
    )[0]


def test_a_lapsed_or_revoked_token_opens_nothing_in_open_tunnels_too(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY).start()
    with (
        opened(gateway, "ci.example:443", "ci", CI) as revoked,
        opened(gateway, "ci.example:443", "ci", SPARE) as lapsed,
    ):
        outside = Raw(gateway)
        asking = [
            partial(revoked.get, "/", "ci.example"),
            partial(lapsed.get, "/", "ci.example"),
            partial(
                outside.get, "http://ci.example/", "ci.example", header("ci", SPARE)
            ),
        ]
        with outside:
            assert [reply.status for reply in (ask() for ask in asking)] == [200] * 3
            at = datetime.now(UTC)
            lapse = at + timedelta(seconds=1)
            policy = POLICY.replace(f"{Token.of(CI).sha256}, ", "")
            gateway.write(
                "policy.yaml",
                policy.replace(
                    "2999-01-01T00:00:00Z", f"{lapse:%Y-%m-%dT%H:%M:%S.%fZ}"
                ),
            )
            # Squid keeps a login for 2 s
            assert [refused(ask) for ask in asking] in (
                [403, 403, 403],
                [403, 403, 407],
            )
            assert lapse < datetime.now(UTC)
    wait_for(
        lambda: (
            {line["rule"] for line in gateway.log() if line["status"] == 403}
            == {"login-refused"}
        ),
        "its lines",
    )


def test_what_passes_through_is_on_record_and_goes_on_after_a_revocation_until_it_is_ended(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY).start()
    with Raw(gateway, "127.0.0.5") as client:
        client.send(
            f"CONNECT pinned.example:443 HTTP/1.1\r\nHost: x\r\n{header('ci', CI)}\r\n\r\n"
        ).answer()
        client.tls("pinned.example", origins.authority.certificate)
        get = partial(client.get, "/", "pinned.example")
        assert get()
        gateway.write("policy.yaml", POLICY.replace(f"{Token.of(CI).sha256}, ", ""))
        wait_for(
            lambda: status(gateway, "https://ci.example/", *login("ci", CI)) == 407,
            "the revocation",
        )
        assert get()
        run("ss", "-K", "dst", "127.0.0.5", "sport", "=", f":{gateway.address[1]}")
        with suppress(
            ConnectionError, ssl.SSLError
        ):  # not TimeoutError, which is a connection that stalls
            assert not get()
    lines = wait_for(
        lambda: [line for line in gateway.log() if "pinned" in line["url"]][1:],
        "its last line",
    )
    assert {(line["user"], line["rule"]) for line in lines} == {("ci", "pinned")}


RACERS = 12
# of one name, from four addresses
TOKENS = [CI if number % 2 == 0 else "wrong" for number in range(RACERS)]
ASKED = "GET http://ci.example/ HTTP/1.1\r\nHost: ci.example\r\n{}\r\n\r\n"


@pytest.mark.parametrize("rounds", [60, pytest.param(600, marks=pytest.mark.long)])
def test_no_wrong_token_passes_while_the_right_one_of_its_name_is_in_use(
    gateway: Gateway, origins: Origins, rounds: int
) -> None:
    """Squid has one credential object for a name, unless it is told otherwise, and no
    password in its key.
    """
    statuses: list[list[int]] = [[] for _ in range(RACERS)]

    def ask(number: int) -> None:
        with Raw(gateway, f"127.0.1.{number % 4 + 1}") as client:
            for _ in range(rounds):
                reply = client.send(ASKED.format(header("ci", TOKENS[number]))).answer()
                statuses[number].append(reply.status)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[200 if token == CI else 407] * rounds for token in TOKENS]
