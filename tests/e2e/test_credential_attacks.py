"""Attacks on the form of a request that gets a credential: ours arrives once and whole,
or nothing arrives at all.
"""

import re
from contextlib import suppress

import pytest

from .curl import curl
from .gateway import Gateway
from .origin import Answer, Bytes, Gate, Origins, Seen
from .raw import tunnel

POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
rules:
  - {name: all, action: allow, hosts: [key.example, other.example]}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: key, clients: [one], hosts: [key.example], paths: [/v1/**], header: X-Api-Key, value: "{token}"}
"""
TOKEN = "e2e-token-under-attack+/=0001"
HOST = "Host: key.example\r\n"
REFUSED: list[tuple[str, list[str]]] = []

LOCAL_CONF = ("cache allow all",)
SECRETS = {"token": TOKEN}


def get(*headers: str, target: str = "/v1/x", version: str = "1.1") -> str:
    return (
        f"GET {target} HTTP/{version}\r\n{HOST}"
        + "".join(f"{header}\r\n" for header in headers)
        + "\r\n"
    )


def post(body: str, *headers: str) -> str:
    return (
        f"POST /v1/x HTTP/1.1\r\n{HOST}"
        + "".join(f"{header}\r\n" for header in headers)
        + f"\r\n{body}"
    )


ARRIVES = [("/v1/x", [TOKEN])]
CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = "GET /v1/smuggled HTTP/1.1\r\nHost: other.example\r\nX-Api-Key: mine\r\n\r\n"

# What is sent in a tunnel, and what arrives of it: targets, each with the values of the
# header.
ATTACKS = {
    "a header that is folded": (get("X-Api-Key: mine", " mine"), ARRIVES),
    "a header in the fold of another": (get("X-Other: a", " X-Api-Key: mine"), ARRIVES),
    "a header in the fold of the request line": (
        f"GET /v1/x HTTP/1.1\r\n X-Api-Key: mine\r\n{HOST}\r\n",
        ARRIVES,
    ),
    "a tab ahead of the colon": (get("X-Api-Key\t: mine"), REFUSED),
    "a header behind a line feed": (get("X-Other: a\nX-Api-Key: mine"), ARRIVES),
    "a header behind a carriage return": (get("X-Other: a\rX-Api-Key: mine"), ARRIVES),
    "a header behind a NUL": (get("X-Other: a\0\r\nX-Api-Key: mine"), REFUSED),
    "a name with a NUL": (get("X-Api-Key\0: mine"), REFUSED),
    "a name with a space": (get("X-Api -Key: mine", "X Api Key: mine"), REFUSED),
    "a name with a control character": (
        get("X-Api-Key\x0b: mine", "\x0bX-Api-Key: mine"),
        REFUSED,
    ),
    "a hop-by-hop header": (get("X-Api-Key: mine", "Connection: X-Api-Key"), ARRIVES),
    "a hop-by-hop header of ours": (get("Connection: close, x-api-key"), ARRIVES),
    "a hop-by-hop header in other words": (
        get("Proxy-Connection: x-api-key", "Keep-Alive: x-api-key"),
        ARRIVES,
    ),
    "a Host that is hop-by-hop": (get("Connection: host"), ARRIVES),
    "the same header three times": (
        get("X-Api-Key: mine", "x-api-key: mine", "X-API-KEY:mine"),
        ARRIVES,
    ),
    "a trailer": (
        post("1\r\nx\r\n0\r\nX-Api-Key: mine\r\n\r\n", CHUNKED, "Trailer: X-Api-Key"),
        ARRIVES,
    ),
    "the extension of a chunk": (
        post("1;X-Api-Key=mine\r\nx\r\n0\r\n\r\n", CHUNKED),
        ARRIVES,
    ),
    "HTTP/2 over cleartext": (
        get(
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        ARRIVES,
    ),
    "the preface of HTTP/2": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    "Expect": (
        post("x", "Content-Length: 1", "Expect: 100-continue", "X-Api-Key: mine"),
        ARRIVES,
    ),
    "two requests at once": (
        get("X-Api-Key: mine") + get("X-Api-Key: mine", target="/open"),
        [*ARRIVES, ("/open", ["mine"])],
    ),
    "two requests at once, the other way": (
        get("X-Api-Key: mine", target="/open") + get("X-Api-Key: mine"),
        [("/open", ["mine"]), *ARRIVES],
    ),
    "two lengths": (
        post(SMUGGLED, "Content-Length: 0", f"Content-Length: {len(SMUGGLED)}"),
        REFUSED,
    ),
    "a length and chunks": (
        post(f"0\r\n\r\n{SMUGGLED}", "Content-Length: 5", CHUNKED),
        ARRIVES,
    ),
    "chunks that are none": (
        post(f"0\r\n\r\n{SMUGGLED}", "Transfer-Encoding: xchunked"),
        REFUSED,
    ),
    "chunks by a list": (
        post(f"0\r\n\r\n{SMUGGLED}", "Transfer-Encoding: chunked, identity"),
        REFUSED,
    ),
    "a length with a sign": (post(SMUGGLED, "Content-Length: +0"), REFUSED),
    "a GET with a body": (get(f"Content-Length: {len(SMUGGLED)}") + SMUGGLED, ARRIVES),
    "the absolute form": (
        get("X-Api-Key: mine", target="https://key.example/v1/x"),
        ARRIVES,
    ),
    "the absolute form of another host": (
        get(target="https://other.example/v1/x"),
        REFUSED,
    ),
    "a second Host": (get("Host: other.example"), ARRIVES),
    "a second Host, ahead": (
        f"GET /v1/x HTTP/1.1\r\nHost: other.example\r\n{HOST}\r\n",
        REFUSED,
    ),
    "HTTP/1.0": (get("X-Api-Key: mine", version="1.0"), ARRIVES),
    "HTTP/0.9": ("GET /v1/x\r\n", REFUSED),
    "a range": (
        get("Range: bytes=0-0,0-0,0-0", "If-Range: x", "X-Api-Key: mine"),
        ARRIVES,
    ),
    "a path beside it": (get("X-Api-Key: mine", target="/v1/../open"), REFUSED),
    "a path beside it, encoded": (get(target="/v1/%2e%2e/open"), REFUSED),
    "a path beside it, with a semicolon": (get(target="/v1/..;/open"), REFUSED),
}


@pytest.mark.parametrize(("sent", "expected"), ATTACKS.values(), ids=ATTACKS)
def test_a_credential_arrives_once_and_nothing_beside_it(
    gateway: Gateway, origins: Origins, sent: str, expected: list[tuple[str, list[str]]]
) -> None:
    origins.fallback = Answer()
    told = []
    with tunnel(gateway, "key.example:443") as client, suppress(OSError):
        client.send(sent).send(get("Connection: close", target="/end"))
        while answer := client.answer():
            told.append(answer)
    arrived = [
        (seen.target, seen.values("X-Api-Key"))
        for seen in origins.seen
        if seen.target != "/end"
    ]
    assert arrived == expected, told
    assert [
        key
        for seen in origins.seen
        for key in keys_as_read(seen)
        if {"mine", TOKEN} <= set(key)
    ] == []
    assert TOKEN not in str(told)


def keys_as_read(seen: Seen) -> list[list[str]]:
    """The values of the header as a careless server reads them: it splits lines at any
    CR, LF, NUL or tab.
    """
    lines = [
        line.partition(":")
        for line in re.split(r"[\r\n\0\v\f]", seen.head.decode("latin-1"))
    ]
    return [
        [
            value.strip()
            for name, _, value in lines
            if re.sub(r"\W|_", "", name).lower() == "xapikey"
        ]
    ]


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FIRST = [
    b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nX-Api-Key: theirs\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 199 Odd\r\nContent-Length: 100\r\n\r\n",
]


@pytest.mark.parametrize("first", FIRST, ids=lambda data: data[9:12].decode())
def test_an_answer_ahead_of_the_answer_opens_nothing(
    gateway: Gateway, origins: Origins, first: bytes
) -> None:
    origins.fallback = Bytes(body=first + OK)
    with tunnel(gateway, "key.example:443") as client, suppress(OSError):
        for sent in (
            get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
            get(target="/open"),
            SMUGGLED,
        ):
            client.send(sent)
            while (reply := client.answer()) and reply.status < 200:
                pass
    own = [seen.values("X-Api-Key") for seen in origins.seen if seen.target == "/v1/x"]
    assert own == [[TOKEN]]
    # not what the third names another host for
    assert {seen.target for seen in origins.seen} <= {
        "/v1/x",
        "/open",
    }
    assert [
        seen
        for seen in origins.seen
        if seen.target == "/open" and seen.values("X-Api-Key")
    ] == []


FRESH = {
    "Cache-Control": "public, max-age=600",
    "ETag": '"1"',
    "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
}
TRICKS = {
    "plain": (),
    "a condition": ("-H", 'If-None-Match: "1"'),
    "any condition": ("-H", "If-None-Match: *"),
    "a date": ("-H", "If-Modified-Since: Mon, 01 Jan 2035 00:00:00 GMT"),
    "a range": ("-H", "Range: bytes=0-3"),
    "a range of what is known": ("-H", "Range: bytes=0-3", "-H", 'If-Range: "1"'),
    "only from the cache": ("-H", "Cache-Control: only-if-cached"),
    "stale": ("-H", "Cache-Control: max-stale=100000"),
    "the key itself": ("-H", "X-Api-Key: guessed"),
    "HEAD": ("--head",),
}
VARIES = ("X-Api-Key", "*", "Accept")


@pytest.mark.parametrize(
    ("number", "trick"), list(enumerate(TRICKS.values())), ids=TRICKS
)
def test_no_trick_gets_another_client_an_answer_of_the_cache(
    gateway: Gateway, origins: Origins, number: int, trick: tuple[str, ...]
) -> None:
    def answer(seen: Seen) -> Answer:
        mine = seen.values("X-Api-Key") == [TOKEN]
        return Answer(
            body=b"for the one" if mine else b"for all",
            headers={**FRESH, "Vary": VARIES[number % 3]},
        )

    origins.fallback = answer
    url = f"https://key.example/v1/{number}"
    assert curl(gateway, url).text == "for the one"
    reply = curl(gateway, url, *trick, client="127.0.0.2")
    assert reply.status == 504 or len(origins.seen) == 2, "the cache has answered"
    assert "for the one" not in reply.text
    assert [seen.values("X-Api-Key") == [TOKEN] for seen in origins.seen] == [
        True,
        False,
    ][: len(origins.seen)]


def test_a_client_without_the_credential_joins_no_pinned_connection(
    gateway: Gateway, origins: Origins
) -> None:
    origins.fallback = Answer()
    for client in ("127.0.0.1", "127.0.0.2"):
        curl(gateway, "https://key.example/v1/x", client=client)
    assert len(origins.connections) == 2


def test_an_answer_under_way_is_not_shared(gateway: Gateway, origins: Origins) -> None:
    gate: Gate = origins.gate()
    origins.answers["key.example/v1/gate"] = Answer(gate=gate)
    with (
        tunnel(gateway, "key.example:443") as one,
        tunnel(gateway, "key.example:443", client="127.0.0.2") as two,
    ):
        one.send(get(target="/v1/gate"))
        two.send(get(target="/v1/gate"))
        gate.open()
        assert one.answer()
        assert two.answer()
    assert sorted(len(seen.values("X-Api-Key")) for seen in origins.seen) == [0, 1]
