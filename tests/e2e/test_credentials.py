"""Credentials on a live Squid: injected where the policy says, nowhere else, and never
seen by a client.
"""

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from squidkeeper.policy.language.headers import INJECTABLE_HEADERS, spellings
from tests.waiting import wait_for

from .curl import curl
from .expect import denied
from .gateway import Gateway, NewGateway
from .origin import Answer, Origins
from .raw import tunnel

POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
  two: {networks: [127.0.0.2/32]}
rules:
  - {name: no-admin, action: deny, hosts: [api.example], paths: [/admin/**]}
  - {name: api, action: allow, hosts: [api.example, git.example, key.example, both.example]}
  - {name: more, action: allow, hosts: [front.example, shared.example, missing.example, empty.example]}
  - {name: bad, action: allow, hosts: [several.example, split.example, binary.example, odd.example]}
  - {name: others, action: allow, hosts: [mover.example, thief.example, wrong.example, all.example, part.example]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://backend.example{path}"}
secrets:
  token: {file: secrets/token}
  second: {file: secrets/second}
  missing: {file: secrets/missing}
  empty: {file: secrets/empty}
  split: {file: secrets/split}
  binary: {file: secrets/binary}
  odd: {file: secrets/odd}
  env: {env: E2E_MODEL_KEY}
credentials:
  - {name: api-one, clients: [one], hosts: [api.example], paths: [/v1/**], bearer: token}
  - {name: api-two, clients: [two], hosts: [api.example], paths: [/v1/**], bearer: second}
  - {name: admin, hosts: [api.example], paths: [/admin/**], bearer: token}
  - {name: git, hosts: [git.example], basic: {username: x-access-token, password: token}}
  - {name: key, hosts: [key.example], header: X-Api-Key, value: "{token}"}
  - {name: both-authorization, hosts: [both.example], bearer: token}
  - {name: both-key, hosts: [both.example], header: x-api-key, value: "key {second}!"}
  - name: several
    hosts: [several.example]
    headers: {Authorization: "Bearer {token}", X-Api-Key: "{second}", Private-Token: "plain {{}} text"}
  - {name: several-later, hosts: [several.example], headers: {X-Auth-Token: "{token}", x-api-key: "{token}"}}
  - {name: several-last, hosts: [several.example], header: Api-Key, value: "{token}"}
  - {name: backend, hosts: [backend.example], bearer: token}
  - {name: shared, clients: [one], hosts: [shared.example], header: X-Api-Key, value: "{token}"}
  - {name: missing, hosts: [missing.example], bearer: missing}
  - {name: missing-later, hosts: [missing.example], bearer: token}
  - {name: empty, hosts: [empty.example], bearer: empty}
  - {name: split, hosts: [split.example], bearer: split}
  - {name: binary, hosts: [binary.example], bearer: binary}
  - {name: odd, hosts: [odd.example], header: X-Auth-Token, value: "{odd}"}
  - {name: mover, hosts: [mover.example, wrong.example], bearer: token}
  - {name: part, hosts: [part.example], paths: [/part/**], bearer: token}
  - {name: all-1, hosts: [all.example], header: Api-Key, value: "{token}"}
  - {name: all-2, hosts: [all.example], header: X-Goog-Api-Key, value: "{token}"}
  - {name: all-3, hosts: [all.example], header: Private-Token, value: "{token}"}
  - {name: all-4, hosts: [all.example], header: X-Auth-Token, value: "{env}"}
"""
TOKEN = "ghp_e2eTokenOfTheFirstClient+/=%41"
SECOND = "sk-e2e-second-token-0123456789"
ODD = r"""e2e "quoted" back\slash %41 'single' end"""
IN_ENVIRONMENT = "e2e-key-from-the-environment"


SECRETS = {
    "token": TOKEN + "\n",
    "second": SECOND,
    "empty": "\n",
    "split": "e2e-first-half\r\nX-Injected: e2e-second-half",
    "binary": b"e2e-binary-\xff\x00-secret",
    "odd": ODD,
}


def make(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY, secrets=SECRETS)
    gateway.remember(IN_ENVIRONMENT)
    gateway.remember(f"x-access-token:{TOKEN}")
    return gateway


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Iterator[Gateway]:
    os.environ["E2E_MODEL_KEY"] = IN_ENVIRONMENT
    yield make(new_gateway).start()
    del os.environ["E2E_MODEL_KEY"]


def bearer(value: str) -> list[str]:
    return [f"Bearer {value}"]


def test_a_bearer_token_arrives_and_the_client_is_told_nothing(
    gateway: Gateway, origins: Origins
) -> None:
    origins.answers["api.example/v1/x"] = Answer()
    reply = curl(gateway, "https://api.example/v1/x")
    assert reply.status == 200
    assert origins.seen[0].values("Authorization") == bearer(TOKEN)
    assert TOKEN not in str(reply.headers) + reply.text


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (f"text/{SECOND}", "-"),
        (SECOND, "-"),
        (f"application/json{SECOND}", "-"),
        (f"application/json; charset={SECOND}", "application/json"),
        ("text/event-stream", "text/event-stream"),
    ],
)
def test_an_origin_does_not_get_a_value_into_the_access_log(
    gateway: Gateway, origins: Origins, sent: str, logged: str
) -> None:
    origins.answers["both.example/type"] = Answer(headers={"Content-Type": sent})
    before = len(gateway.log())
    curl(gateway, "https://both.example/type")
    line = gateway.logged("https://both.example/type", before)
    assert (line["credential"], line["content_type"]) == (
        "both-authorization,both-key",
        logged,
    )
    assert SECOND.encode() not in (gateway.root / "log/access.log").read_bytes()


FORMS = {
    "git": {
        "Authorization": [
            f"Basic {base64.b64encode(f'x-access-token:{TOKEN}'.encode()).decode()}"
        ]
    },
    "key": {"X-Api-Key": [TOKEN], "Authorization": []},
    "both": {"Authorization": [f"Bearer {TOKEN}"], "X-Api-Key": [f"key {SECOND}!"]},
    "all": {name: [TOKEN] for name in ("Api-Key", "X-Goog-Api-Key", "Private-Token")}
    | {"X-Auth-Token": [IN_ENVIRONMENT]},
    "odd": {"X-Auth-Token": [ODD]},
}


@pytest.mark.parametrize("host", FORMS)
def test_each_form_arrives_as_it_is_written_in_place_of_the_clients(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    own = [
        option
        for name in ("Authorization", "Api-Key", "Private-Token")
        for option in ("-H", f"{name}: client's")
    ]
    curl(gateway, f"https://{host}.example/x", *own)
    assert {name: origins.seen[0].values(name) for name in FORMS[host]} == FORMS[host]


def test_a_credential_of_several_headers_arrives_as_a_whole_or_not_at_all(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://several.example/", "-H", "X-Auth-Token: of-the-client")
    seen = origins.seen[0]
    assert seen.values("Authorization") == bearer(TOKEN)
    assert seen.values("X-Api-Key") == [SECOND]
    assert seen.values("Private-Token") == ["plain {} text"]
    # several-later shares X-Api-Key with the one above it
    assert seen.values("X-Auth-Token") == []
    assert seen.values("Api-Key") == [TOKEN]
    assert (
        gateway.logged("https://several.example/")["credential"]
        == "several,several-last"
    )


KEYS = [spelling for header in INJECTABLE_HEADERS for spelling in spellings(header)]


@pytest.mark.parametrize(
    ("host", "injected"),
    [
        ("git.example", ["Authorization"]),
        ("key.example", ["X-Api-Key"]),
        ("odd.example", ["X-Auth-Token"]),
        ("both.example", ["Authorization", "X-Api-Key"]),
    ],
)
def test_a_credential_removes_every_header_that_could_be_injected_with_any_dash_as_an_underscore(
    gateway: Gateway, origins: Origins, host: str, injected: list[str]
) -> None:
    own = [*KEYS, "Cookie", "Proxy-Authorization"]
    curl(
        gateway,
        f"https://{host}/",
        *[option for header in own for option in ("-H", f"{header}: client's")],
    )
    seen = origins.seen[0]
    assert [header for header in own if "client's" in seen.values(header)] == ["Cookie"]
    assert [key for key in KEYS if seen.values(key)] == injected


def test_a_credential_for_a_part_of_a_host_removes_the_headers_that_override_the_path(
    gateway: Gateway, origins: Origins
) -> None:
    for path in ("/part/x", "/other"):
        curl(
            gateway,
            f"https://part.example{path}",
            "-H",
            "X-Original-URL: /admin",
            "-H",
            "X_HTTP-Method: PUT",
        )
    curl(gateway, "https://git.example/part/x", "-H", "X-Original-URL: /admin")
    assert [
        seen.values("X-Original-URL") + seen.values("X_HTTP-Method")
        for seen in origins.seen
    ] == [
        [],
        [],
        ["/admin"],
    ]
    assert [bool(seen.values("Authorization")) for seen in origins.seen] == [
        True,
        False,
        True,
    ]


OWN = [
    ("Authorization: Bearer mine",),
    ("authorization: Bearer mine", "AUTHORIZATION: Basic bWluZQ=="),
    ("Authorization:Bearer mine",),
    ("Authorization: ",),
    ("Authorization : Bearer mine",),
    (
        "Authorization: Bearer mine",
        "X-Api-Key: mine",
        "X_Auth-Token: mine",
        "Connection: Authorization",
    ),
    ("Authorization: Bearer mine", "Connection: close, Authorization"),
]


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_clients_own_header_is_replaced_however_it_is_written(
    gateway: Gateway, origins: Origins, headers: tuple[str, ...]
) -> None:
    with tunnel(gateway, "api.example:443") as client:
        client.get("/v1/own", "api.example", *headers)
    for seen in origins.seen:  # none where Squid refuses the header itself
        assert seen.values("Authorization") == bearer(TOKEN)
        assert b"mine" not in seen.head


def test_nothing_is_injected_elsewhere_on_the_host(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://api.example/v2/x")
    curl(gateway, "https://api.example/v1x")
    curl(gateway, "https://api.example/v1/x", "--request", "OPTIONS")
    assert [seen.values("Authorization") for seen in origins.seen] == [[], [], []]


def test_the_clients_own_header_passes_where_nothing_is_injected(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://api.example/v2/x", "-H", "Authorization: Bearer mine")
    assert origins.seen[0].values("Authorization") == bearer("mine")


def test_a_denied_path_gets_neither_an_answer_nor_a_credential(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(gateway, "https://api.example/admin/x")
    assert (reply.status, reply.rule) == (403, "no-admin")
    assert origins.seen == []


def test_two_clients_get_their_own_credentials(
    gateway: Gateway, origins: Origins
) -> None:
    for client in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        curl(gateway, "https://api.example/v1/who", client=client)
    assert [seen.values("Authorization") for seen in origins.seen] == [
        bearer(TOKEN),
        bearer(SECOND),
        [],
    ]


def test_a_credential_is_matched_against_the_rewritten_url(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://front.example/x")
    curl(gateway, "http://front.example/y")
    assert origins.urls() == ["https://backend.example/x", "https://backend.example/y"]
    assert [seen.values("Authorization") for seen in origins.seen] == [
        bearer(TOKEN)
    ] * 2


@pytest.mark.parametrize(
    "host", ["missing.example", "empty.example", "split.example", "binary.example"]
)
def test_a_value_that_is_unavailable_denies_the_request(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    reply = curl(gateway, f"https://{host}/x")
    assert (reply.status, reply.rule) == (403, "credential-unavailable"), reply.text
    assert origins.seen == []
    line = gateway.logged(f"https://{host}/x")
    assert (line["verdict"], line["rule"]) == ("deny", "credential-unavailable")


@pytest.mark.one_worker(
    "an edit is in force within three seconds, not in every worker in the same instant"
)
def test_a_secret_that_cannot_be_read_denies_and_one_that_comes_back_is_used(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = make(new_gateway)
    # root's own: Squid's account cannot read it
    (gateway.policy_folder / "secrets/token").chmod(0o600)
    os.chown(gateway.policy_folder / "secrets/token", 0, 0)
    gateway.start()
    assert curl(gateway, "https://api.example/v1/x").rule == "credential-unavailable"
    gateway.secret("token", "e2e-rotated-token-1")
    wait_for(
        lambda: curl(gateway, "https://api.example/v1/x").status == 200,
        "the secret to be read",
    )
    gateway.secret("token", "e2e-rotated-token-2")
    wait_for(
        lambda: (
            (
                curl(gateway, "https://api.example/v1/x"),
                origins.seen[-1].values("Authorization"),
            )[1]
            == bearer("e2e-rotated-token-2")
        ),
        "the rotated secret",
    )


def test_a_secret_leaves_only_inside_https_to_a_host_that_its_credential_names(
    gateway: Gateway, origins: Origins
) -> None:
    """Not over http, not with a redirect, not to who proves another name."""
    plain = ("http://api.example/v1/x", "http://git.example/x", "http://key.example/x")
    for url in plain:
        curl(gateway, url)
    away = Answer(302, headers={"Location": "https://thief.example/take"})
    origins.answers["mover.example/go"] = away
    curl(gateway, "https://mover.example/go", "--location", "--max-redirs", "3")
    origins.certificates["wrong.example"] = ("thief.example",)
    assert curl(gateway, "https://wrong.example/", "--insecure").status == 503
    origins.certificates["wrong.example"] = ("wrong.example",)
    origins.untrusted.add("wrong.example")
    assert curl(gateway, "https://wrong.example/", "--insecure").status == 503
    assert [
        (seen.url, seen.values("Authorization") + seen.values("X-Api-Key"))
        for seen in origins.seen
    ] == [
        *((url, []) for url in plain),
        ("https://mover.example/go", bearer(TOKEN)),
        ("https://thief.example/take", []),
    ]


def test_a_page_about_a_failed_origin_holds_no_credential(
    gateway: Gateway, origins: Origins
) -> None:
    origins.answers["api.example/v1/broken"] = lambda seen: Answer(
        headers={"Content-Length": "not a number"}
    )
    reply = curl(gateway, "https://api.example/v1/broken")
    assert origins.seen[0].values("Authorization") == bearer(TOKEN)
    assert TOKEN not in reply.text
    assert base64.b64encode(TOKEN.encode()).decode()[:-4] not in reply.text


LOAD = 200
LONG = 2048


def long_value(number: int) -> str:
    """A value of 2 KB that names its request."""
    return (f"e2e-{number:03}-" * (LONG // 8))[:LONG]


def long_policy() -> str:
    each = range(LOAD)
    rules = (
        "version: 1\nrules:\n  - {name: load, action: allow, hosts: [load.example]}\n"
    )
    secrets = "secrets:\n" + "".join(f"  s{n}: {{file: secrets/s{n}}}\n" for n in each)
    credentials = "credentials:\n" + "".join(
        f"  - {{name: c{n}, hosts: [load.example], paths: [/{n}], header: X-Api-Key, value: '{{s{n}}}'}}\n"
        for n in each
    )
    return rules + secrets + credentials


def test_under_200_lookups_in_flight_each_long_value_reaches_its_own_request(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(
        long_policy(),
        secrets={f"s{number}": long_value(number) for number in range(LOAD)},
    ).start()
    assert curl(gateway, "https://load.example/0").status == 200  # the helper is up
    with ExitStack() as stack, ThreadPoolExecutor(32) as pool:
        opened = pool.map(lambda _: tunnel(gateway, "load.example:443"), range(LOAD))
        clients = [stack.enter_context(one) for one in opened]
        for turn in range(3):
            origins.seen.clear()
            with gateway.stopped_helpers(
                "credential"
            ):  # all lookups are in flight before the first is answered
                for number, client in enumerate(clients):
                    client.send(f"GET /{number} HTTP/1.1\r\nHost: load.example\r\n\r\n")
                wait_for(lambda: gateway.unread() == 0, "Squid to read every request")
            answers = list(pool.map(lambda client: client.answer(), clients))
            assert [answer.status for answer in answers if answer] == [200] * LOAD, (
                f"turn {turn}"
            )
            assert {seen.target: seen.values("X-Api-Key") for seen in origins.seen} == {
                f"/{n}": [long_value(n)] for n in range(LOAD)
            }


def test_a_credential_for_a_closed_host_opens_nothing(
    gateway: Gateway, origins: Origins
) -> None:
    denied(gateway, origins, "https://backend.example/", "default")
