"""Sealed tokens on a live Squid: injected where every guard holds, refused by name
elsewhere, never sent on.
"""

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from squidkeeper.policy.language.sealed_tokens import format_content
from squidkeeper.serving.credentials.sealing import SealingPrivateKey, seal_bytes
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import tunnel

POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
rules:
  - {name: no-admin, action: deny, hosts: [api.example], paths: [/admin/**]}
  - {name: apis, action: allow, hosts: [api.example, git.example, other.example, policy.example]}
  - {name: moved, action: allow, hosts: [front.example, old.example]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://api.example{path}"}
  - {name: moved, hosts: [old.example], to: "https://api.example{path}", redirect: 308}
secrets:
  token: {file: secrets/token}
  new-key: {file: secrets/new-key}
  old-key: {file: secrets/old-key}
credentials:
  - {name: of-the-policy, hosts: [policy.example], paths: [/held/**], bearer: token}
sealed_tokens: {keys: [new-key, old-key]}
"""
SECRET = "e2e-secret-inside-a-sealed-token"
NEW, OLD = SealingPrivateKey.new(), SealingPrivateKey.new()


def sealed(key: SealingPrivateKey = NEW, **fields: object) -> str:
    return seal_bytes(
        format_content({"hosts": ["api.example"], "secret": SECRET, **fields}),
        key.public,
    )


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    keys = {"new-key": NEW.reveal(), "old-key": OLD.reveal()}
    gateway = new_gateway(POLICY, secrets={"token": "e2e-token-of-the-policy", **keys})
    gateway.remember(SECRET)
    return gateway.start()


def bearer(token: str) -> tuple[str, str]:
    return "-H", f"Authorization: Bearer {token}"


@pytest.mark.parametrize("key", [NEW, OLD], ids=["new", "old"])
def test_the_secret_arrives_and_the_token_does_not(
    gateway: Gateway, origins: Origins, key: SealingPrivateKey
) -> None:
    token = sealed(
        key,
        paths=["/v1/**"],
        methods=["GET"],
        clients=["one"],
        expires="2090-01-01T00:00:00Z",
    )
    reply = curl(gateway, "https://api.example/v1/x", *bearer(token))
    assert reply.status == 200
    assert origins.seen[0].values("Authorization") == [f"Bearer {SECRET}"]
    assert b"sks1." not in origins.seen[0].head
    line = gateway.logged("https://api.example/v1/x")
    assert (line["verdict"], line["rule"]) == ("allow", "apis")


def test_a_basic_credential_of_git_holds_a_token_as_its_password(
    gateway: Gateway, origins: Origins
) -> None:
    token = sealed(hosts=["git.example"], value="{secret}", username="x-access-token")
    curl(gateway, "https://git.example/acme/app", "--user", f"any:{token}")
    coded = base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()
    assert origins.seen[0].values("Authorization") == [f"Basic {coded}"]


def test_the_header_of_the_token_decides_and_every_key_of_the_clients_is_removed(
    gateway: Gateway, origins: Origins
) -> None:
    token = sealed(header="X-Api-Key", value="key {secret}")
    curl(
        gateway,
        "https://api.example/",
        "-H",
        f"Private-Token: {token}",
        "-H",
        "Authorization: Bearer mine",
    )
    seen = origins.seen[0]
    assert seen.values("X-Api-Key") == [f"key {SECRET}"]
    assert seen.values("Authorization") + seen.values("Private-Token") == []


def unpadded(scheme: str) -> tuple[str, str]:
    """A basic credential without the `=` at its end."""
    text = next(
        one for user in ("a", "ab", "abc") if len(one := f"{user}:{sealed()}") % 3
    )
    return (
        "-H",
        f"Authorization: {scheme}{base64.b64encode(text.encode()).decode().rstrip('=')}",
    )


OF_ANOTHER_HEADER = sealed(
    hosts=["policy.example"], header="Private-Token", value="{secret}"
)
ALTERED = sealed()
ALTERED = ALTERED[:60] + ("A" if ALTERED[60] != "A" else "B") + ALTERED[61:]


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("https://other.example/", bearer(sealed()), "it is for another host"),
        ("https://api.example/", bearer(sealed(ports=[8443])), "another port"),
        ("https://api.example/v2", bearer(sealed(paths=["/v1/**"])), "another path"),
        (
            "https://api.example/v1/..%2fv2",
            bearer(sealed(paths=["/v1/**"])),
            "another path",
        ),
        (
            "https://api.example/x",
            ("-X", "POST", *bearer(sealed(methods=["GET"]))),
            "another method",
        ),
        (
            "https://api.example/x",
            ("-X", "OPTIONS", *bearer(sealed())),
            "not for OPTIONS",
        ),
        ("https://api.example/x", bearer(sealed(clients=["two"])), "another client"),
        (
            "https://api.example/x",
            bearer(sealed(expires="2020-01-01T00:00:00Z")),
            "it has expired",
        ),
        ("https://api.example/x", bearer(ALTERED), "has been altered"),
        (
            "https://api.example/x",
            bearer(sealed(SealingPrivateKey.new())),
            "not in force",
        ),
        ("https://api.example/x", bearer("sks1." + "A" * 12_000), "longer than"),
        ("http://api.example/x", bearer(sealed()), "https alone"),
        (
            "https://api.example/x",
            (*bearer(sealed()), "-H", f"X-Api-Key: {sealed()}"),
            "more than one header",
        ),
        (
            "https://api.example/x",
            ("-H", f"X-Api-Key: {sealed()}", "-H", "X-Api-Key: mine"),
            "more than the token",
        ),
        ("https://api.example/x", ("-H", f"Cookie: a={sealed()}"), "does not inject"),
        (f"https://api.example/x?key={sealed()}", (), "no place"),
        (
            "https://policy.example/held/x",
            bearer(sealed(hosts=["policy.example"])),
            "the policy has a credential",
        ),
        (
            "https://policy.example/held/x",
            bearer(OF_ANOTHER_HEADER),
            "the policy has a credential",
        ),
        ("https://api.example/x", bearer(sealed().upper()), "has been altered"),
        ("https://other.example/x", unpadded("Basic "), "it is for another host"),
        ("https://other.example/x", unpadded("Basic\t"), "it is for another host"),
        (
            "https://front.example/x",
            bearer(sealed(hosts=["front.example"])),
            "another host",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "://" not in value else "",
)
def test_a_token_is_refused_where_a_guard_fails(
    gateway: Gateway, origins: Origins, url: str, options: tuple[str, ...], reason: str
) -> None:
    reply = curl(gateway, url, *options)
    assert (reply.status, reply.rule) == (403, "sealed-token-refused"), reply.text
    assert reason in reply.text
    assert origins.seen == []
    assert SECRET not in reply.text + str(reply.headers) + gateway.cache_log()
    assert "sks1." not in ((reply.reason or "") + gateway.cache_log()).lower()


def test_of_two_authorizations_neither_is_sent_on(
    gateway: Gateway, origins: Origins
) -> None:
    # Squid shows the helper the first
    curl(gateway, "https://api.example/x", *bearer(sealed()), *bearer("mine"))
    assert [seen.values("Authorization") for seen in origins.seen] == [
        [f"Bearer {SECRET}"]
    ]


def test_a_token_in_the_second_copy_is_not_sent_on(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://other.example/x", *bearer("mine"), *bearer(sealed()))
    assert [seen.values("Authorization") for seen in origins.seen] == [["Bearer mine"]]
    assert b"sks1." not in origins.seen[0].head


def test_another_client_may_not_use_it(gateway: Gateway, origins: Origins) -> None:
    token = sealed(clients=["one"])
    replies = [
        curl(gateway, "https://api.example/x", *bearer(token), client=f"127.0.0.{n}")
        for n in (1, 2)
    ]
    assert [reply.status for reply in replies] == [200, 403]
    assert "another client" in replies[1].text
    assert len(origins.seen) == 1


def test_a_token_opens_nothing_that_the_policy_denies(
    gateway: Gateway, origins: Origins
) -> None:
    assert (
        curl(gateway, "https://api.example/admin/x", *bearer(sealed())).rule
        == "no-admin"
    )
    assert (
        curl(
            gateway,
            "https://nowhere.example/x",
            *bearer(sealed(hosts=["nowhere.example"])),
        ).rule
        == "default"
    )
    assert origins.seen == []


def test_the_guards_are_those_of_the_url_that_is_fetched(
    gateway: Gateway, origins: Origins
) -> None:
    for url in ("https://front.example/x", "http://front.example/x"):
        assert curl(gateway, url, *bearer(sealed())).status == 200
    assert [seen.values("Authorization") for seen in origins.seen] == [
        [f"Bearer {SECRET}"]
    ] * 2
    reply = curl(gateway, "https://old.example/x", *bearer(sealed()))
    assert (reply.status, reply.header("Location")) == (308, "https://api.example/x")


def test_headers_that_could_name_another_path_are_removed(
    gateway: Gateway, origins: Origins
) -> None:
    curl(
        gateway,
        "https://api.example/v1/x",
        *bearer(sealed(paths=["/v1/**"])),
        "-H",
        "X-Original-URL: /admin",
    )
    assert origins.seen[0].values("X-Original-URL") == []


def test_requests_without_a_token_pass_with_their_own_headers(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://api.example/x", *bearer("of-the-client"))
    curl(gateway, "https://policy.example/held/x")
    assert [seen.values("Authorization") for seen in origins.seen] == [
        ["Bearer of-the-client"],
        ["Bearer e2e-token-of-the-policy"],
    ]


def test_a_kept_alive_tunnel_is_asked_about_each_request(
    gateway: Gateway, origins: Origins
) -> None:
    headers = (
        f"Authorization: Bearer {sealed(paths=['/v1/**'])}",
        "Connection: keep-alive, authorization",
    )
    with tunnel(
        gateway, "api.example:443"
    ) as client:  # the denial, which ends the tunnel, comes last
        replies = [
            client.get(path, "api.example", *headers)
            for path in ("/v1/a", "/v1/b", "/v2/a")
        ]
    assert [reply.status for reply in replies] == [200, 200, 403]
    assert [seen.values("Authorization") for seen in origins.seen] == [
        [f"Bearer {SECRET}"]
    ] * 2


@pytest.mark.long
def test_bad_tokens_of_one_client_do_not_keep_another_waiting(
    gateway: Gateway, origins: Origins
) -> None:
    def send(number: int) -> set[int | None]:
        bad = [
            sealed(value=f"{number} {index} {{secret}}", hosts=["other.example"])
            for index in range(25)
        ]
        return {status_of(gateway, token) for token in bad}

    good = sealed()
    with ThreadPoolExecutor(4) as pool:
        flood = [pool.submit(send, number) for number in range(4)]
        served = [status_of(gateway, good)]
        while not all(future.done() for future in flood):
            served.append(status_of(gateway, good))
    assert set(served) == {200}
    assert set.union(*(future.result() for future in flood)) == {403}
    assert gateway.fatal() == []


def status_of(gateway: Gateway, token: str) -> int | None:
    with tunnel(gateway, "api.example:443") as client:
        reply = client.get("/x", "api.example", f"Authorization: Bearer {token}")
        return None if not reply else reply.status


def test_a_key_that_is_removed_opens_nothing_more_and_the_log_says_why(
    gateway: Gateway, origins: Origins
) -> None:
    token = sealed(OLD)
    assert curl(gateway, "https://api.example/x", *bearer(token)).status == 200
    (gateway.policy_folder / "secrets/old-key").unlink()
    try:
        wait_for(
            lambda: (
                curl(gateway, "https://api.example/x", *bearer(token)).rule
                == "sealed-token-refused"
            ),
            "the removed key to be forgotten",
        )
        assert curl(gateway, "https://api.example/x", *bearer(sealed())).status == 200
        wait_for(
            lambda: "sealed tokens: secret old-key:" in gateway.cache_log(),
            "the fault in cache.log",
        )
    finally:
        gateway.secret("old-key", OLD.reveal())


def test_the_installed_command_seals_for_the_gateway(
    gateway: Gateway, origins: Origins
) -> None:
    token = gateway.command(
        "seal", "--to", str(NEW.public), "--host", "api.example", answer=SECRET
    ).stdout.strip()
    assert SECRET not in token
    assert curl(gateway, "https://api.example/x", *bearer(token)).status == 200
    assert origins.seen[0].values("Authorization") == [f"Bearer {SECRET}"]
