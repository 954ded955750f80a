"""What code in a VM would try, case by case: every one must end in a logged denial, or
be harmless.

Each case names what becomes of it: the rule that denies it; REFUSED where Squid itself
does not understand it; or the URL that arrives, where the request is no other than an
honest one.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from squidkeeper.policy.language.headers import (
    HOST_HEADERS,
    METHOD_HEADERS,
    PATH_HEADERS,
    spellings,
)
from tests.conftest import DOCUMENTED
from tests.waiting import wait_for

from .curl import curl
from .dns import PUBLIC, SHORT_MEMORY, Names
from .gateway import Gateway, NewGateway
from .origin import Answer, Origins
from .raw import Raw, tunnel
from .reply import NO_ANSWER, Reply

REFUSED = "refused"

POLICY = """
version: 1
clients:
  nobody: {networks: [192.0.2.1/32]}
rules:
  - {name: closed, action: deny, hosts: [.closed.example, bücher.example]}
  - {name: admin, action: deny, hosts: [paths.example], paths: [/private/**]}
  - {name: commands, action: deny, hosts: [paths.example], query: {cmd: "rm*"}}
  - {name: paths, action: allow, hosts: [paths.example]}
  - {name: good, action: allow, hosts: [good.example, user.example]}
  - {name: other, action: allow, hosts: [other.example], paths: [/open/**]}
  - {name: reads, action: allow, hosts: [reads.example], methods: [GET, HEAD], connections: shared}
  - {name: api, action: allow, hosts: [api.example], paths: [/v1/**], methods: [GET, POST, OPTIONS]}
  - {name: secure, action: allow, hosts: [secure.example], schemes: [https]}
  - {name: for-others, action: allow, clients: [nobody], hosts: [nobody.example]}
  - {name: rebinding, action: allow, hosts: [.rebind.example]}
  - {name: inside, action: allow, hosts: [.mixed.example], paths: [/inside/**], private: true}
  - {name: mixed, action: allow, hosts: [.mixed.example]}
  - {name: odd, action: allow, hosts: [ports.example], ports: [443, 8443]}
  - {name: shares, action: allow, hosts: [shares.example], methods: [GET], connections: shared}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: api, hosts: [api.example], paths: [/v1/**], bearer: token}
"""
TOKEN = "e2e-token-under-attack"

OPEN_POLICY = """
version: 1
defaults: {action: allow}
rules:
  - {name: closed, action: deny, hosts: [.closed.example, bücher.example, 203.0.113.66, "2001:db8::66"]}
"""

OWN_LINES = [
    "request_header_access X-Forwarded-Host allow all",
    "acl sk_ask_private dst 2001:db8:64::a00:0/104",
]


@pytest.fixture(
    scope="module",
    params=["shared", pytest.param("documented", marks=pytest.mark.long)],
)
def gateway(new_gateway: NewGateway, request: pytest.FixtureRequest) -> Gateway:
    """Allow-list only; with requests that share connections to origins, and as `--bump
    documented` bumps.
    """
    gateway = new_gateway(POLICY, SHORT_MEMORY)
    gateway.secret("token", TOKEN)
    documented = request.param == "documented" or DOCUMENTED in os.environ
    gateway.render(documented=documented)
    gateway.start()
    assert ("sk_is_sharing" in gateway.layout.fragment.read_text()) is not documented
    return gateway


@pytest.fixture(scope="module")
def open_gateway(new_gateway: NewGateway) -> Gateway:
    """All allowed that is not denied: here a denied host must be known however it is
    spelled; and own lines.
    """
    return new_gateway(OPEN_POLICY, *OWN_LINES).start()


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes for the proxy port, or for the tunnel where `connect` names one; `sni` ""
    is that of the tunnel's host.

    `closed_by` is the rule that denies the tunnel itself: it leads nowhere, whatever is
    asked in it.
    """

    name: str
    send: str | bytes
    becomes: str
    connect: str | None = None
    sni: str | bytes | None = ""
    closed_by: str | None = None

    def run(self, gateway: Gateway) -> Reply:
        if self.connect is None:
            with Raw(gateway) as client:
                return client.send(self.send).answer()
        with tunnel(
            gateway, self.connect, "same" if self.sni == "" else self.sni
        ) as client:
            return client.send(self.send).answer()


def request(
    target: str, host: str | None = None, method: str = "GET", *headers: str
) -> str:
    lines = [
        f"{method} {target} HTTP/1.1",
        *([f"Host: {host}"] if host is not None else []),
        *headers,
    ]
    return "\r\n".join(lines) + "\r\n\r\n"


def try_out(
    attack: Attack,
    gateway: Gateway,
    origins: Origins,
    run: Callable[[Attack, Gateway], Reply] = Attack.run,
) -> None:
    """Run an attack and compare its outcome with the expected one."""
    before = len(gateway.log())
    reply = run(attack, gateway)
    if attack.becomes.startswith("http"):
        assert (reply.status, origins.urls()) == (200, [attack.becomes]), reply
        return
    assert origins.urls() == []
    if attack.becomes == REFUSED:
        assert not reply or reply.status >= 400, reply
        return
    assert (reply.status, reply.rule) == (403, attack.becomes), reply

    def is_logged() -> (
        bool
    ):  # the lines of the attack before, and of the CONNECT alone, can be ahead
        return any(
            (line["status"], line["rule"]) == (403, attack.becomes)
            for line in gateway.log()[before:]
        )

    wait_for(is_logged, "the logged denial")
    assert {
        line["verdict"] for line in gateway.log()[before:] if line["status"] == 403
    } == {"deny"}
    if attack.closed_by:
        assert origins.connections == []
        closed = ("deny", attack.closed_by)
        wait_for(
            lambda: closed in verdicts(gateway, str(attack.connect), before),
            "the denied CONNECT in the log",
        )


def verdicts(gateway: Gateway, url: str, before: int) -> list[tuple[str, str]]:
    """The verdict and rule of each line about a URL, or about the CONNECT to an
    authority.
    """
    return [
        (line["verdict"], line["rule"])
        for line in gateway.log()[before:]
        if line["url"] == url
    ]


def ids(attacks: list[Attack]) -> list[str]:
    return [attack.name for attack in attacks]


# ── Authority ─────────────────────────────────────────────────────────────────────────

GOOD, READS, CLOSED = "good.example:443", "reads.example:443", "closed.example:443"
MISMATCH, INVALID = "authority-mismatch", "invalid-request"
GOOD_X, CLOSED_X = request("/x", "good.example"), request("/x", "closed.example")
OTHER_X, READS_X = request("/open/x", "other.example"), request("/x", "reads.example")
AUTHORITY = [
    Attack("all the same", GOOD_X, "https://good.example/x", GOOD),
    Attack("no SNI", GOOD_X, "https://good.example/x", GOOD, None),
    Attack(
        "the port said",
        request("/x", "good.example:443"),
        "https://good.example/x",
        GOOD,
    ),
    Attack(
        "upper case",
        request("/x", "GOOD.Example"),
        "https://good.example/x",
        "GooD.eXample:443",
        "gOOd.example",
    ),
    Attack("a denied Host", CLOSED_X, MISMATCH, GOOD),
    Attack("another allowed Host", OTHER_X, MISMATCH, GOOD),
    Attack("another Host and no SNI", CLOSED_X, MISMATCH, GOOD, None),
    Attack("another SNI", GOOD_X, MISMATCH, GOOD, "other.example"),
    Attack("another SNI and Host", OTHER_X, MISMATCH, GOOD, "other.example"),
    Attack("a denied SNI and Host", CLOSED_X, MISMATCH, GOOD, "closed.example"),
    Attack("three different", CLOSED_X, MISMATCH, GOOD, "other.example"),
    Attack(
        "another port",
        request("/x", "ports.example:8443"),
        MISMATCH,
        "ports.example:443",
    ),
    Attack(
        "another port the other way",
        request("/x", "ports.example"),
        MISMATCH,
        "ports.example:8443",
    ),
    Attack("a port that is none", request("/x", "good.example:44x"), REFUSED, GOOD),
    Attack("a subdomain", request("/x", "a.good.example"), MISMATCH, GOOD),
    Attack("an address as Host", request("/x", "203.0.113.10"), REFUSED, GOOD),
    Attack(
        "a tunnel to the address",
        GOOD_X,
        MISMATCH,
        f"{PUBLIC}:443",
        "good.example",
        "default",
    ),
    Attack("a denied tunnel", CLOSED_X, "closed", CLOSED, "", "closed"),
    Attack("a denied tunnel, then a good Host", GOOD_X, MISMATCH, CLOSED, "", "closed"),
    Attack(
        "a denied tunnel, all good inside",
        GOOD_X,
        MISMATCH,
        CLOSED,
        "good.example",
        "closed",
    ),
    Attack(
        "a denied tunnel, absolute, good",
        request("https://good.example/x", "good.example"),
        MISMATCH,
        CLOSED,
        "good.example",
        "closed",
    ),
    Attack("reading alone", READS_X, "https://reads.example/x", READS),
    Attack(
        "reading alone, POST",
        request("/x", "reads.example", "POST", "Content-Length: 0"),
        "default",
        READS,
    ),
    Attack("reading alone, another Host", GOOD_X, MISMATCH, READS),
    Attack("reading alone, a denied Host", CLOSED_X, MISMATCH, READS),
    Attack("reading alone, another SNI", READS_X, MISMATCH, READS, "good.example"),
    Attack(
        "reading alone, absolute",
        request("https://good.example/x", "reads.example"),
        MISMATCH,
        READS,
    ),
    Attack(
        "reading alone, absolute, http",
        request("http://reads.example/x"),
        MISMATCH,
        READS,
    ),
    Attack("reading alone, CONNECT", request(READS, None, "CONNECT"), INVALID, READS),
    Attack("reads from another tunnel", READS_X, MISMATCH, GOOD),
    Attack(
        "userinfo in the Host",
        request("/x", "u:p@good.example"),
        "https://good.example/x",
        GOOD,
    ),
    Attack(
        "absolute, the same",
        request("https://good.example/x", "good.example"),
        "https://good.example/x",
        GOOD,
    ),
    Attack(
        "absolute, denied",
        request("https://closed.example/x", "good.example"),
        MISMATCH,
        GOOD,
    ),
    Attack(
        "absolute, another",
        request("https://other.example/open/x", "good.example"),
        MISMATCH,
        GOOD,
    ),
    Attack(
        "absolute, http",
        request("http://good.example/x", "good.example"),
        MISMATCH,
        GOOD,
    ),
    Attack(
        "absolute, http, denied",
        request("http://closed.example/x", "good.example"),
        MISMATCH,
        GOOD,
    ),
    Attack(
        "absolute, another port",
        request("https://good.example:8443/x", "good.example"),
        MISMATCH,
        GOOD,
    ),
    Attack(
        "absolute with userinfo",
        request("https://u:p@good.example/x", "good.example"),
        INVALID,
        GOOD,
    ),
    Attack(
        "CONNECT inside, the same",
        request("good.example:443", "good.example", "CONNECT"),
        INVALID,
        GOOD,
    ),
    Attack(
        "CONNECT inside, another port",
        request("good.example:22", "good.example", "CONNECT"),
        INVALID,
        GOOD,
    ),
    Attack(
        "CONNECT inside, another host",
        request("other.example:443", None, "CONNECT"),
        INVALID,
        GOOD,
    ),
    Attack(
        "https outside of a tunnel",
        request("https://good.example/x", "good.example"),
        INVALID,
    ),
    Attack(
        "https outside, denied",
        request("https://closed.example/x", "good.example"),
        INVALID,
    ),
    Attack("userinfo", request("http://u:p@user.example/x", "user.example"), INVALID),
    Attack(
        "userinfo of a denied host",
        request("http://good.example@closed.example/x"),
        INVALID,
    ),
    Attack(
        "userinfo, empty",
        request("http://@good.example/x", "good.example"),
        "http://good.example/x",
    ),
    Attack(
        "Host against URL",
        request("http://good.example/x", "closed.example"),
        "http://good.example/x",
    ),
    Attack(
        "an allowed Host, a denied URL",
        request("http://closed.example/x", "good.example"),
        "closed",
    ),
    Attack("a fragment", request("http://good.example/x#y", "good.example"), INVALID),
    Attack("a fragment in a tunnel", request("/x#y", "good.example"), INVALID, GOOD),
    Attack(
        "a fragment that hides a path",
        request("/open/#/../private", "other.example"),
        INVALID,
        "other.example:443",
    ),
]


@pytest.mark.parametrize("attack", AUTHORITY, ids=ids(AUTHORITY))
def test_one_authority(gateway: Gateway, origins: Origins, attack: Attack) -> None:
    everyone = (
        *(
            f"{name}.example"
            for name in ("good", "reads", "other", "closed", "ports", "a.good")
        ),
        PUBLIC,
    )
    for name in everyone:
        origins.certificates[name] = (
            everyone  # one certificate covers all: Squid sees nothing wrong
        )
    try_out(attack, gateway, origins)


@pytest.mark.parametrize("host", ["closed.example", "other.example"])
def test_a_host_that_the_certificate_of_the_tunnel_does_not_cover_is_a_mismatch_on_record(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    """Squid answers by itself: the page names no rule."""
    before = len(gateway.log())
    with tunnel(gateway, GOOD) as client:
        reply = client.get("/uncovered", host)
    assert (reply.status, origins.urls()) == (503, [])
    line = gateway.logged(f"https://{host}/uncovered", before)
    assert (line["verdict"], line["rule"], line["revision"]) == (
        "deny",
        "authority-mismatch",
        "-",
    )


def test_a_server_whose_own_certificate_is_wrong_is_no_mismatch_of_the_client(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    origins.certificates["good.example"] = ("other.example",)
    reply = curl(gateway, "https://good.example/wrong")
    assert (reply.status, origins.urls()) == (503, [])
    gateway.logged("https://good.example/wrong", before)
    lines = gateway.log()[before:]
    assert [(line["method"], line["verdict"]) for line in lines] == [
        ("CONNECT", "allow"),
        ("GET", "-"),
    ], lines


@pytest.mark.parametrize(
    "hosts", [("good.example", "closed.example"), ("closed.example", "good.example")]
)
@pytest.mark.parametrize("connect", [GOOD, None])
def test_two_host_headers_never_arrive_as_another(
    gateway: Gateway, origins: Origins, hosts: tuple[str, str], connect: str | None
) -> None:
    target = "/x" if connect else "http://good.example/x"
    Attack(
        "two Hosts", request(target, hosts[0], "GET", f"Host: {hosts[1]}"), "", connect
    ).run(gateway)
    assert [seen.values("Host") for seen in origins.seen] in ([], [["good.example"]])


def test_without_a_host_header_the_tunnel_names_the_host(
    gateway: Gateway, origins: Origins
) -> None:
    Attack("no Host", "GET /x HTTP/1.0\r\n\r\n", "", GOOD).run(gateway)
    Attack("empty Host", request("/x", ""), "", GOOD).run(gateway)
    assert {(*seen.values("Host"), seen.address) for seen in origins.seen} <= {
        ("good.example", PUBLIC)
    }


@pytest.mark.parametrize(
    "host", ["closed.example", "other.example", "good.example:8443"]
)
def test_a_kept_alive_tunnel_stays_with_its_host(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    origins.certificates["good.example"] = (
        "good.example",
        "closed.example",
        "other.example",
    )
    with tunnel(gateway, GOOD) as client:
        first, second, third = (
            client.get("/1", "good.example"),
            client.get("/open/2", host),
            client.get("/3", host),
        )
    assert (first.status, second.status, second.rule) == (
        200,
        403,
        "authority-mismatch",
    )
    assert not third or third.status == 403
    assert origins.urls() == ["https://good.example/1"]


def test_a_denied_tunnel_stays_denied(gateway: Gateway, origins: Origins) -> None:
    with tunnel(gateway, "closed.example:443") as client:
        for host in ("closed.example", "good.example", "closed.example"):
            reply = client.get("/x", host)
            if not reply:
                break
            assert reply.status == 403
    assert origins.connections == []


def test_a_kept_alive_plain_connection_is_judged_request_by_request(
    gateway: Gateway, origins: Origins
) -> None:
    urls = [
        "http://good.example/1",
        "http://closed.example/2",
        "http://other.example/3",
        "http://good.example/4",
    ]
    with Raw(gateway) as client:
        answers = [client.get(url, "good.example") for url in urls]
    assert [(a.status, a.rule) for a in answers if a] == [
        (200, None),
        (403, "closed"),
        (403, "default"),
        (200, None),
    ]
    assert origins.urls() == [urls[0], urls[3]]


def test_pipelined_requests_are_judged_one_by_one(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "other.example:443") as client:
        client.send(
            "".join(
                request(path, "other.example") for path in ("/open/1", "/2", "/open/3")
            )
        )
        answers = [client.answer() for _ in range(3)]
    assert [a.status for a in answers if a][:2] == [200, 403]
    assert {seen.target for seen in origins.seen} <= {"/open/1", "/open/3"}


def test_a_denial_does_not_stick_to_a_kept_alive_connection(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("sticks.rebind.example", ["10.0.0.5"])
    asked = [
        ("TRACE", "http://good.example/sticks/1", (403, "invalid-request")),
        ("GET", "http://good.example/sticks/2", (200, "good")),
        ("GET", "http://sticks.rebind.example/sticks/3", (403, "private-address")),
        ("GET", "http://good.example/sticks/4", (200, "good")),
        ("GET", "http://closed.example/sticks/5", (403, "closed")),
        ("GET", "http://good.example/sticks/6", (200, "good")),
    ]
    with Raw(gateway) as client:
        for method, url, (status, _) in asked:
            reply = client.get(url, "good.example", method=method)
            assert reply.status == status, url
    for _, url, expected in asked:
        line = gateway.logged(url)
        assert (line["status"], line["rule"]) == expected


def test_an_upgrade_passes_only_where_the_whole_host_is_open(
    gateway: Gateway, origins: Origins
) -> None:
    for host in ("good", "other", "reads", "paths"):
        with tunnel(gateway, f"{host}.example:443") as client:
            client.get(
                "/open/ws",
                f"{host}.example",
                "Connection: Upgrade",
                "Upgrade: websocket",
            )
    with tunnel(gateway, "good.example:443") as client:
        client.get(
            "/ws",
            "good.example",
            "Connection: Upgrade",
            "Upgrade: websocket",
            method="DELETE",
        )
    assert [seen.values("Upgrade") for seen in origins.seen] == [
        ["websocket"],
        [],
        [],
        [],
        [],
    ]


# Spellings of a host that is denied where all else is allowed; as Latin-1 bytes.
SPELLED = {
    "closed": (
        *(
            "CLOSED.EXAMPLE",
            "closed.example.",
            "a.closed.example",
            "xn--bcher-kva.example",
            "XN--BCHER-KVA.example",
        ),
        *(
            "bücher.example".encode().decode("latin-1"),
            "ｃｌｏｓｅｄ.example".encode().decode("latin-1"),
        ),
        *(
            "closed。example".encode().decode("latin-1"),
            "clo\u00adsed.example".encode().decode("latin-1"),
        ),
        *(
            "203.0.113.66",
            "3405803842",
            "0xcb007142",
            "0313.0.0161.0102",
            "203.0.28994",
            "[::ffff:203.0.113.66]",
        ),
        *("[2001:db8::66]", "[2001:0DB8:0:0::0066]"),
    ),
    REFUSED: (
        *(
            "closed.example..",
            ".closed.example",
            "a..closed.example",
            "[closed.example]",
            "closed.example\0",
        ),
        *(
            "closed.example\0.good.example",
            "closed.example\\.good.example",
            "closed.example\\@good.example",
        ),
        *(("a" * 63 + ".") * 5 + "example",),
    ),
    "invalid-request": (
        *(
            "clo%73ed.example",
            "closed%2eexample",
            "closed.example%00",
            "closed.example%00.good.example",
        ),
        *(
            "good.example%0d%0a.closed.example",
            "closed.example%2f.good.example",
            "a" * 64 + ".example",
        ),
    ),
    None: ("closed.ex\tample", "closed_.example", "xn--a.example"),
}
SPELLINGS = [
    (request, becomes) for becomes, group in SPELLED.items() for request in group
]


@pytest.mark.parametrize("form", ["http", "CONNECT"])
@pytest.mark.parametrize(
    ("host", "becomes"), SPELLINGS, ids=[repr(host)[:40] for host, _ in SPELLINGS]
)
def test_a_denied_host_is_denied_however_it_is_spelled(
    open_gateway: Gateway, origins: Origins, host: str, becomes: str | None, form: str
) -> None:
    with Raw(open_gateway) as client:
        if form == "http":
            reply = client.get(f"http://{host}/x", "good.example")
        else:
            reply = client.connect(f"{host}:443")
            if reply.status == 200:
                reply = client.tls(None).get("/x", host.strip("[]"))
    if becomes is None:
        return
    assert origins.seen == []
    assert not reply or reply.status >= 400, reply
    if becomes != REFUSED and reply.status == 403:
        assert reply.rule in {becomes, "invalid-request"}, reply


BAD_SNI = [
    b"good.example\n1 x",
    b"good.example\r\nHost: x",
    b"other .example",
    b"a" * 255,
    b"*.example",
    b"good.example/x",
    b"%67ood.example",
    b"good.example\\",
    b'"',
    b"-",
]


@pytest.mark.parametrize("sni", BAD_SNI, ids=str)
def test_an_sni_that_is_no_name_opens_nothing(
    gateway: Gateway, origins: Origins, sni: bytes
) -> None:
    origins.certificates[sni.decode("latin-1")] = ("good.example",)
    reply = Attack("", request("/x", "good.example"), "", GOOD, sni).run(gateway)
    assert origins.seen == []
    assert not reply or reply.status >= 400
    assert curl(gateway, "https://good.example/after").status == 200


# ── Addresses ─────────────────────────────────────────────────────────────────────────

PRIVATE = [
    "127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1",
    "0", "0.0.0.0", "0x0", "127.0.0.1.", "10.0.0.5", "10.5", "167772165", "192.168.1.1", "192.168.257", "172.16.0.1",
    "169.254.169.254", "0xA9FEA9FE", "2852039166", "0251.0376.0251.0376", "100.64.0.1", "198.18.0.1", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::FFFF:10.0.0.5]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]", "[2001:0:cb00:710a:0:0:80ff:fffe]", "[fc00::1]", "[fd00::1]", "[fe80::1]", "[fec0::1]",
    "[ff02::1]",
]  # fmt: skip


@pytest.mark.parametrize("form", ["http", "CONNECT"])
@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_denied_in_every_notation(
    open_gateway: Gateway, origins: Origins, host: str, form: str
) -> None:
    with Raw(open_gateway) as client:
        if form == "http":
            reply = client.get(f"http://{host}/x", host)
        else:
            reply = client.connect(f"{host}:443")
            if reply.status == 200:
                reply = client.tls(None).get("/x", host)
    assert origins.connections == []
    if reply.status == 403:
        assert reply.rule == "private-address", reply
    else:
        assert not reply or reply.status >= 400, reply


@pytest.mark.parametrize(
    "host", ["[fe80::1%25lo]", "[::1%lo]", "[::1%25lo]", "[::ffff:127.0.0.1%25lo]"]
)
def test_a_zone_hides_no_private_address(
    open_gateway: Gateway, origins: Origins, host: str
) -> None:
    with Raw(open_gateway) as client:
        reply = client.get(f"http://{host}/x", "good.example")
    assert origins.connections == []
    assert not reply or reply.status >= 400


def test_a_name_that_becomes_private_is_denied_from_then_on(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("turns.rebind.example", [PUBLIC])
    assert curl(gateway, "http://turns.rebind.example/1").status == 200
    names.set("turns.rebind.example", ["127.0.0.1"])
    wait_for(
        lambda: (
            curl(gateway, "http://turns.rebind.example/2").rule == "private-address"
        ),
        "the name's new address",
    )
    assert {address for address, _ in origins.connections} == {PUBLIC}


def test_a_name_that_answers_differently_at_every_look_up_never_leads_to_a_private_address(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    for turn in range(8):
        host = f"alternates-{turn}.rebind.example"
        names.set(host, *[[PUBLIC], ["127.0.0.1"]][:: 1 if turn % 2 else -1] * 8)
        for scheme in ("http", "https"):
            curl(gateway, f"{scheme}://{host}/")
    assert {address for address, _ in origins.connections} <= {PUBLIC}


def test_a_tunnel_opened_before_its_name_became_private_leads_nowhere(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    """CONNECT while the name is public; TLS when it has become private; the request
    when it is public again.
    """
    host = "waits.rebind.example"
    origins.certificates["127.0.0.1"] = (host,)
    names.set(host, [PUBLIC])
    with Raw(gateway) as client:
        answer = client.connect(f"{host}:443")
        assert answer.status == 200
        names.set(host, ["127.0.0.1"])
        wait_for(
            lambda: curl(gateway, f"http://{host}/").rule == "private-address",
            "Squid to look the name up again",
        )
        try:
            client.tls(host)
            names.set(host, [PUBLIC])
            wait_for(
                lambda: curl(gateway, f"http://{host}/").status == 200,
                "Squid to look the name up again",
            )
            client.get("/x", host)
        except OSError:
            pass  # refused in the handshake
    assert {address for address, _ in origins.connections} <= {PUBLIC}


@pytest.mark.one_worker(
    "each worker remembers names for itself: what one looks up again, another does not"
)
@pytest.mark.parametrize("becomes", ["ahead of the CONNECT", "after the CONNECT"])
def test_a_tunnel_to_a_private_address_stays_one_when_its_name_becomes_public(
    gateway: Gateway, origins: Origins, names: Names, becomes: str
) -> None:
    """The tunnel keeps its server: a rule without `private: true` must not reach it
    there.
    """
    host = f"{becomes.split()[0]}.mixed.example"
    names.set(host, ["10.0.0.5" if becomes == "ahead of the CONNECT" else PUBLIC])
    with Raw(gateway) as client:
        answer = client.connect(f"{host}:443")
        assert answer.status == 200
        names.set(host, ["10.0.0.5"])
        wait_for(
            lambda: curl(gateway, f"http://{host}/").rule == "private-address",
            "Squid to look the name up again",
        )
        client.tls(host)
        assert_status(client.get("/inside/x", host), 200, None)
        names.set(host, [PUBLIC])
        wait_for(
            lambda: curl(gateway, f"http://{host}/").status == 200,
            "Squid to look the name up again",
        )
        assert_status(client.get("/inside/y", host), 200, None)
        assert_status(client.get("/x", host), 403, "private-address")
    assert [
        request.target for request in origins.seen if request.address == "10.0.0.5"
    ] == ["/inside/x", "/inside/y"]


def assert_status(reply: Reply, status: int, rule: str | None) -> None:
    assert (reply.status, reply.rule) == (status, rule), reply


def test_a_network_of_the_operators_own_is_private_too(
    open_gateway: Gateway, origins: Origins, names: Names
) -> None:
    addresses = ["2001:db8:64::a00:5", "2001:db8:64::b00:5", "10.0.0.5"]
    answers = statuses(open_gateway, names, addresses)
    assert [answers[address][1] for address in addresses] == [
        "private-address",
        None,
        "private-address",
    ]
    assert len(origins.connections) == 1


# The networks are repeated here, so that Squid is compared with them and not with what
# was rendered.
IPV4_NETWORKS = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.168.0.0/16 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4
"""
IPV6_NETWORKS = "::/96 ::ffff:0:0:0/96 fc00::/7 fe80::/10 fec0::/10 ff00::/8 64:ff9b:1::/48 2001::/32"
FORMS = {
    "itself": "{0}",
    "mapped": "::ffff:{0}",
    "NAT64": "64:ff9b::{0}",
    "6to4": "2002:{1:04x}:{2:04x}::1",
}


def embedded(form: str, address: IPv4Address) -> str:
    return FORMS[form].format(address, int(address) >> 16, int(address) & 0xFFFF)


def statuses(
    gateway: Gateway, names: Names, addresses: list[str]
) -> dict[str, tuple[int, str | None]]:
    """The answers for names that lead to these addresses, asked on one connection."""
    answers = {}
    with Raw(gateway) as client:
        for address in addresses:
            host = f"at{re.sub('[.:]', '-', address)}.rebind.example"
            names.set(host, [address])
            reply = client.get(f"http://{host}/", host)
            answers[address] = (reply.status, reply.rule)
    return answers


@pytest.mark.parametrize("form", FORMS)
def test_a_name_leads_to_no_private_address_embedded_or_not_and_to_those_beside_it(
    gateway: Gateway, origins: Origins, names: Names, form: str
) -> None:
    networks = map(IPv4Network, IPV4_NETWORKS.split())
    inside = [
        embedded(form, address)
        for network in networks
        for address in (network[0], network[-1])
    ]
    beside = [
        "9.255.255.255",
        "11.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "172.32.0.1",
        "192.0.1.0",
    ]
    public = [embedded(form, IPv4Address(address)) for address in beside]
    answers = statuses(gateway, names, [*dict.fromkeys(inside), *public])
    assert answers == {
        **dict.fromkeys(inside, (403, "private-address")),
        **dict.fromkeys(public, (200, None)),
    }
    assert len(origins.connections) == len(public)


def test_a_name_leads_to_no_private_ipv6_address_and_to_those_beside_it(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    networks = map(IPv6Network, IPV6_NETWORKS.split())
    inside = [
        str(address) for network in networks for address in (network[0], network[-1])
    ]
    public = [
        "0:0:0:0:0:1::",
        "64:ff9b:2::",
        "2001:1::",
        "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe00::",
    ]
    answers = statuses(gateway, names, [*inside, *public])
    assert answers == {
        **dict.fromkeys(inside, (403, "private-address")),
        **dict.fromkeys(public, (200, None)),
    }
    assert len(origins.connections) == len(public)


def test_a_private_name_learns_nothing_of_its_port(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("scan.rebind.example", ["10.0.0.5"])
    for scheme in ("http", "https"):
        curl(gateway, f"{scheme}://scan.rebind.example/")
    assert origins.connections == []


# ── Paths ─────────────────────────────────────────────────────────────────────────────

# /private/** is denied on this host, all else is open.
WRITTEN = {
    None: (
        *(
            "/public/x",
            "/PRIVATE/x",
            "/privatex",
            "/private",
            "/public./x",
            "/public%20/x",
            "/x:get",
            "/Inc.",
        ),
        *("/%EF%BD%81", "/\xc3\xbc", "/x?cmd=ls"),
    ),
    "admin": (
        "/private/",
        "/private/x",
        "/private/x?y=z",
        "/%70rivate/x",
        "/%70%72%69%76%61%74%65/x",
    ),
    "ambiguous-path": (
        *(
            "/./private/x",
            "/%2e/private/x",
            "/a/../private/x",
            "/a/%2e%2e/private/x",
            "/a/.%2E/private/x",
        ),
        *(
            "/a/%2e%2e%2fprivate/x",
            "/a/..%2fprivate/x",
            "/../private/x",
            "//private/x",
            "/%2fprivate/x",
        ),
        *(
            "/private%2fx",
            "/private%5cx",
            "/private\\x",
            "/\\private/x",
            "/a/..%5cprivate/x",
            "/a/..\\private/x",
        ),
        *(
            "/private;v=1/x",
            "/;a/private/x",
            "/a/..;/private/x",
            "/a/..;a=b/private/x",
            "/%252e%252e/private/x",
        ),
        *(
            "/a/%252e%252e/private/x",
            "/%2570rivate/x",
            "/private%252fx",
            "/a/..%255cprivate/x",
            "/%252570rivate/x",
        ),
        *(
            "/%25252570rivate/x",
            "/" * 3000 + "private/x",
            "/" + "a/../" * 1000 + "private/x",
            "/private./x",
        ),
        *(
            "/private%20/x",
            "/private%20.%20/x",
            "/private::$INDEX_ALLOCATION/x",
            "/private:$I30:$INDEX_ALLOCATION/x",
        ),
        *(
            "/a/..%20/private/x",
            "/%EF%BD%90rivate/x",
            "/private%EF%BC%8Fx",
            "/a/%EF%BC%8E%EF%BC%8E/private/x",
        ),
        *(
            "/\xef\xbd\x90rivate/x",
            "/%EF%BC%8570rivate/x",
            "/pri%E2%80%8Bvate/x",
            "/pri%C2%ADvate/x",
        ),
        *("/p%25EF%25BD%2592ivate./x",),
    ),
    "invalid-request": (
        *(
            "/%2525252570rivate/x",
            "/%ff",
            "/%c0%aeprivate/x",
            "/%00",
            "/public%00/../private/x",
            "/a%0d%0ab",
            "/a%0ab",
        ),
        *("/a%7fb", "/a%2500b", "/\xff"),
    ),
    "commands": (
        "/x?cmd=rm",
        "/x?cmd=ls&cmd=rm+-rf",
        "/x?c%6dd=%72m",
        "/x?a=b&cmd=rm%20x",
    ),
}
PATHS = [(request, becomes) for becomes, group in WRITTEN.items() for request in group]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("path", "becomes"), PATHS, ids=[repr(path)[:40] for path, _ in PATHS]
)
def test_a_denied_path_is_denied_however_it_is_written(
    gateway: Gateway, origins: Origins, path: str, becomes: str | None, scheme: str
) -> None:
    if scheme == "http":
        attack = Attack(
            "", request(f"http://paths.example{path}", "paths.example"), becomes or ""
        )
    else:
        attack = Attack(
            "", request(path, "paths.example"), becomes or "", "paths.example:443"
        )
    if becomes:
        try_out(attack, gateway, origins)
    else:
        reply = attack.run(gateway)
        assert (reply.status, len(origins.seen)) == (200, 1), reply


# /v1/** alone is open on this host.
BESIDE = [
    "/v1",
    "/v1x",
    "/v1x/y",
    "/V1/x",
    "/v2/x",
    "/",
    "/v1/../v2",
    "/v1/..%2fv2",
    "/v1%2f..%2fv2",
    "/v1/%2e%2e/v2",
]
BESIDE += [
    "/v1/..;/v2",
    "/v1/..%5cv2",
    "/v1/%252e%252e/v2",
    "/v1/x/../../v2",
    "/v1\\..\\v2",
    "//v1/../v2",
    "/%76%31",
]
BESIDE += [
    "/v1/..%20/v2",
    "/v1/%EF%BC%8E%EF%BC%8E/v2",
    "/v1/.%E2%80%8B./v2",
    "/v1/x/../..::$DATA/v2",
    "/v1.",
]


def in_tunnel(gateway: Gateway, host: str, path: str) -> Reply:
    with tunnel(gateway, f"{host}:443") as client:
        return client.get(path, host)


def whole(ask: Callable[[], Reply]) -> Reply:
    """Ask until no server has gone: Squid then answers the first request in its tunnel
    without asking any helper.
    """
    replies = (ask() for _ in range(3))
    return next(
        (reply for reply in replies if reply and "ERR_READ_ERROR" not in reply.text),
        NO_ANSWER,
    )


@pytest.mark.parametrize("path", BESIDE)
def test_an_allowed_path_does_not_open_what_lies_beside_it(
    gateway: Gateway, origins: Origins, path: str
) -> None:
    reply = whole(partial(in_tunnel, gateway, "api.example", path))
    assert reply.status == 403, reply
    assert reply.rule in {"default", "ambiguous-path"}
    assert origins.seen == []


@pytest.mark.parametrize(
    ("length", "statuses"),
    [(8000, {403}), (8191, {403}), (8192, {400, 414}), (60_000, {400, 414})],
)
def test_the_longest_url_is_judged_and_a_longer_one_is_refused(
    gateway: Gateway, origins: Origins, length: int, statuses: set[int]
) -> None:
    url = "http://other.example/" + "a" * (length - len("http://other.example/"))
    with Raw(gateway) as client:
        reply = client.get(url, "other.example")
    assert reply.status in statuses
    assert reply.rule == ("default" if reply.status == 403 else None)
    assert origins.connections == []


@pytest.mark.parametrize(
    ("unit", "times"),
    [("%2f", 2600), ("%25", 2600), ("\xff", 7900), (";", 7900), ("%", 7900)],
)
def test_a_long_path_of_escapes_is_judged(
    gateway: Gateway, origins: Origins, unit: str, times: int
) -> None:
    path = "/" + unit * times + ("41" if unit == "%25" else "")
    reply = Attack("", request(f"http://other.example{path}", "other.example"), "").run(
        gateway
    )
    assert not reply or reply.status >= 400
    assert origins.connections == []


# ── Headers that name another method, path or host ────────────────────────────────────


def sent(names_: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}: /private/x" for name in names_)


def passed(origins: Origins, names: Iterable[str]) -> set[str]:
    """Which of these headers arrived with the last request, by their names as sent."""
    arrived = {name.lower() for name, _ in origins.seen[-1].headers}
    return {name for name in names if name.lower() in arrived}


OVERRIDES = [
    name for header in (*METHOD_HEADERS, *PATH_HEADERS) for name in spellings(header)
]
OTHER_HOSTS = [name for header in HOST_HEADERS for name in spellings(header)]


@pytest.mark.parametrize(
    ("host", "passing"), [("good.example", set(OVERRIDES)), ("paths.example", set())]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_header_that_overrides_method_or_path_passes_to_unrestricted_hosts_alone(
    gateway: Gateway,
    origins: Origins,
    scheme: str,
    method: str,
    host: str,
    passing: set[str],
) -> None:
    headers = [
        *sent(OVERRIDES),
        *sent(map(str.swapcase, OVERRIDES)),
        "Content-Length: 0",
        "X-Other: stays",
    ]
    with (
        tunnel(gateway, f"{host}:443") if scheme == "https" else Raw(gateway) as client
    ):
        target = "/open/x" if scheme == "https" else f"http://{host}/open/x"
        reply = client.get(target, host, *headers, method=method)
    assert reply.status == 200
    assert passed(origins, OVERRIDES) == passing
    assert passed(origins, ["X-Other"]) == {"X-Other"}


@pytest.mark.parametrize("host", ["good.example", "paths.example"])
def test_no_header_that_names_another_host_passes(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    with tunnel(gateway, f"{host}:443") as client:
        reply = client.get("/open/x", host, *sent(OTHER_HOSTS), "X-Other: stays")
    assert reply.status == 200
    assert passed(origins, [*OTHER_HOSTS, "X-Other"]) == {"X-Other"}


def test_a_line_of_the_operators_own_lets_such_a_header_pass(
    open_gateway: Gateway, origins: Origins
) -> None:
    with tunnel(open_gateway, "good.example:443") as client:
        client.get("/x", "good.example", *sent(OTHER_HOSTS))
    assert passed(origins, OTHER_HOSTS) == {"X-Forwarded-Host"}


# ── Ports, schemes, methods ───────────────────────────────────────────────────────────

PORTS = [
    Attack("an odd port", request("http://good.example:81/", "good.example"), "default"),
    Attack("http to the https port", request("http://good.example:443/", "good.example"), "default"),
    Attack("port 0", request("http://good.example:0/", "good.example"), REFUSED),
    Attack("a negative port", request("http://good.example:-80/", "good.example"), REFUSED),
    Attack("a port too large", request("http://good.example:65616/", "good.example"), REFUSED),
    Attack("a port far too large", request("http://good.example:4294967376/", "good.example"), "http://good.example/"),
    Attack("a port with a space", request("http://good.example: 80/", "good.example"), REFUSED),
    Attack("a port in hex", request("http://good.example:0x50/", "good.example"), REFUSED),
    Attack("a denied host on any port", request("http://closed.example:12345/", "closed.example"), "closed"),
    Attack("http to an https-only rule", request("http://secure.example/", "secure.example"), "default"),
    Attack("http to an https-only rule's port", request("http://secure.example:443/", "secure.example"), "default"),
    Attack("ftp", request("ftp://good.example/x", "good.example"), "invalid-request"),
    Attack("gopher", request("gopher://good.example/x", "good.example"), REFUSED),
    Attack("urn", request("urn:isbn:1", "good.example"), "invalid-request"),
    Attack("whois", request("whois://good.example/x", "good.example"), "invalid-request"),
    Attack("coap", request("coap://good.example/x", "good.example"), REFUSED),
    Attack("file", request("file:///etc/passwd", "good.example"), REFUSED),
    Attack("ws", request("ws://good.example/x", "good.example"), REFUSED),
    Attack("cache_object", request("cache_object://127.0.0.1/info", "127.0.0.1"), REFUSED),
    Attack("the cache manager", request("/squid-internal-mgr/menu", "squidkeeper"), "invalid-request"),
    Attack("the cache manager by name", request("http://squidkeeper/squid-internal-mgr/menu"), "invalid-request"),
    Attack("Squid's icons", request("/squid-internal-static/icons/SN.png", "squidkeeper"), REFUSED),
    Attack("no proxy request", request("/x", "good.example"), REFUSED),
    Attack("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    Attack("HTTP/0.9", "GET http://good.example/\r\n\r\n", REFUSED),
    Attack("garbage", b"\x00\xff\x16\x03\x01garbage\r\n\r\n", REFUSED),
    Attack("TLS on the plain port", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n", REFUSED),
]  # fmt: skip
# Authorities to CONNECT to. What Squid reads as good.example:443 is asked for as that,
# and is 200.
ASKED_FOR = {
    200: (
        *(
            "good.example:443",
            "good.example:00443",
            "good.example",
            "good.example:",
            "good.example:443x",
        ),
        *(
            "good.example:443:22",
            "good.example:443/x",
            "good.example:443#x",
            "good.example:443 ",
        ),
    ),
    "default": (
        *(
            "good.example:22",
            "good.example:80",
            "good.example:8443",
            "good.example:444",
            "other.example:80",
        ),
        *("nobody.example:443",),
    ),
    "closed": ("closed.example:22",),
    REFUSED: (
        *(
            "good.example:0",
            "good.example:-443",
            "good.example:65979",
            "https://good.example:443",
        ),
        *(
            "http://good.example:443/",
            "u:p@good.example:443",
            "closed.example:443@good.example",
            ":443",
            "*:443",
        ),
        *("[::1", "good.example,closed.example:443", "a" * 7000 + ":443", ""),
    ),
    "invalid-request": ("good.example@closed.example:443",),
}
CONNECTS = [
    (request, becomes) for becomes, group in ASKED_FOR.items() for request in group
]


@pytest.mark.parametrize("attack", PORTS, ids=ids(PORTS))
def test_ports_and_schemes(gateway: Gateway, origins: Origins, attack: Attack) -> None:
    try_out(attack, gateway, origins)


@pytest.mark.parametrize(
    ("authority", "becomes"), CONNECTS, ids=[str(a)[:40] for a, _ in CONNECTS]
)
def test_tunnels(
    gateway: Gateway, origins: Origins, authority: str, becomes: str | int
) -> None:
    before = len(gateway.log())
    host = "good.example" if becomes in (200, REFUSED) else authority
    with Raw(gateway) as client:
        reply = client.connect(authority)
        if reply.status == 200:
            reply = client.tls(None).get("/x", host)
    if becomes == 200:
        assert (reply.status, origins.urls()) == (200, ["https://good.example/x"]), (
            reply
        )
        return
    assert origins.connections == []
    assert not reply or reply.status >= 400
    if becomes != REFUSED:
        assert (reply.status, reply.rule) == (403, becomes)
        if becomes != "invalid-request":  # that is denied at the CONNECT
            wait_for(
                lambda: ("deny", becomes) in verdicts(gateway, authority, before),
                "the denied CONNECT in the log",
            )
        assert "allow" not in [
            verdict for verdict, _ in verdicts(gateway, authority, before)
        ]


@pytest.mark.parametrize(
    "host", ["good.example", "good.example:443", "other.example", "closed.example"]
)
@pytest.mark.parametrize(
    "authority", ["good.example:22", "closed.example:443", "nobody.example:443"]
)
def test_a_tunnel_that_is_denied_is_another_ones_for_no_request_in_it(
    gateway: Gateway, origins: Origins, authority: str, host: str
) -> None:
    for target in ("/open/x", f"https://{host}/open/x", f"http://{host}/open/x"):
        with tunnel(gateway, authority, host.partition(":")[0]) as client:
            reply = client.get(target, host)
        assert (reply.status, origins.connections) == (403, [])


NO_TLS = {
    "HTTP": request("/x", "good.example"),
    "SSH": b"SSH-2.0-x\r\n",
    "zeros": b"\x00" * 64,
    "a record that is too long": b"\x16\x03\x01\xff\xff" + b"\x01" * 200,
}


@pytest.mark.parametrize("data", NO_TLS.values(), ids=list(NO_TLS))
def test_bytes_that_are_no_tls_reach_no_origin(
    gateway: Gateway, origins: Origins, data: str | bytes
) -> None:
    with Raw(gateway) as client:
        answer = client.connect(GOOD)
        assert answer.status == 200
        client.send(data).finish().answer()
    assert origins.seen == []


API, V1, HOPS = "api.example", "/v1/x", "Max-Forwards: "
METHODS = [
    Attack("lower case", request("/v1/x", "api.example", "get"), "https://api.example/v1/x", "api.example:443"),
    Attack("unknown", request("/v1/x", "api.example", "FROB"), "default", "api.example:443"),
    Attack("not listed", request("/v1/x", "api.example", "DELETE"), "default", "api.example:443"),
    Attack("unknown, where any is allowed", request("/x", "good.example", "FROB"), "https://good.example/x", GOOD),
    Attack("TRACE", request("/v1/x", "api.example", "TRACE"), "invalid-request", "api.example:443"),
    Attack("TRACE, no hops left", request(V1, API, "TRACE", HOPS + "0"), "invalid-request", f"{API}:443"),
    Attack("TRACE, some hops left", request(V1, API, "TRACE", HOPS + "3"), "invalid-request", f"{API}:443"),
    Attack("TRACE over http", request("http://good.example/", "good.example", "TRACE"), "invalid-request"),
    Attack("TRACE, http, last", request("http://good.example/", None, "TRACE", HOPS + "0"), "invalid-request"),
    Attack("TRACK", request("/x", "good.example", "TRACK"), "invalid-request", GOOD),
    Attack("track", request("/x", "good.example", "track"), "invalid-request", GOOD),
    Attack("OPTIONS of a closed path", request("/v2/x", "api.example", "OPTIONS"), "default", "api.example:443"),
    Attack("OPTIONS *", request("*", "api.example", "OPTIONS"), REFUSED, "api.example:443"),
    Attack("PURGE", request("http://closed.example/", "closed.example", "PURGE"), "invalid-request"),
]  # fmt: skip


@pytest.mark.parametrize("attack", METHODS, ids=ids(METHODS))
def test_methods(gateway: Gateway, origins: Origins, attack: Attack) -> None:
    try_out(attack, gateway, origins)


def test_no_other_method_carries_a_credential_out(
    gateway: Gateway, origins: Origins
) -> None:
    for method in ("OPTIONS", "TRACE", "FROB"):
        Attack("", request("/v1/x", "api.example", method), "", "api.example:443").run(
            gateway
        )
    # OPTIONS, bare
    assert [seen.values("Authorization") for seen in origins.seen] == [[]]


POST = "POST http://good.example/x HTTP/1.1\r\nHost: good.example\r\n"
SMUGGLED = [
    POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    POST + "Content-Length: 0\r\nContent-Length: 70\r\n\r\n",
    "GET http://good.example/x HTTP/1.1\r\nHost: good.example\r\nX: a\nGET /smuggled HTTP/1.1\r\n\r\n",
    "GET http://good.example/x HTTP/1.1\r\nHost: good.example\r\n GET /smuggled HTTP/1.1\r\n\r\n",
    "GET http://good.example/x HTTP/1.1 \r\nHost: good.example\r\n\r\n",
]


@pytest.mark.parametrize("head", SMUGGLED, ids=range(len(SMUGGLED)))
def test_no_second_request_is_smuggled_inside_a_first(
    gateway: Gateway, origins: Origins, head: str
) -> None:
    inner = request("/smuggled", "closed.example")
    with Raw(gateway) as client:
        client.send(head + inner).answer()
        client.send(request("http://good.example/after", "good.example")).answer()
    assert not [
        seen
        for seen in origins.seen
        if "smuggled" in seen.target or "closed.example" in seen.values("Host")
    ]


# ── One agent against another ─────────────────────────────────────────────────────────


def resident_megabytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(
            int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS")
        )


def test_thousands_of_long_urls_and_hosts_make_nothing_grow(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "http://other.example/closed")
    squid = resident_megabytes(gateway.pid)
    with Raw(gateway) as client:
        for number in range(3000):
            padding = "a" * (7900 if number % 2 else 100)
            host = "other.example" if number % 2 else f"h{number}.example"
            reply = client.get(f"http://{host}/{number}/{padding}", host)
            assert reply.status == 403
    assert resident_megabytes(gateway.pid) - squid < 60
    for pid in gateway.helpers("acl"):
        assert resident_megabytes(pid) < 75
    assert origins.connections == []


def test_a_client_that_floods_does_not_shut_another_out(
    gateway: Gateway, origins: Origins
) -> None:
    """Hundreds of questions stand in the queue of one helper while another client goes
    on working.
    """
    origins.answers["good.example/other"] = Answer()
    clients = [Raw(gateway, "127.0.0.9") for _ in range(700)]
    try:
        for number, client in enumerate(clients):
            client.send(request(f"http://other.example/{number}", "other.example"))
        assert (
            curl(gateway, "https://good.example/other", client="127.0.0.8").status
            == 200
        )
        answers = [client.answer() for client in clients]
    finally:
        for client in clients:
            client.close()
    assert {(answer.status, answer.rule) for answer in answers if answer} == {
        (403, "default")
    }
    assert len([answer for answer in answers if answer]) == len(clients)
    assert "queue overload" not in gateway.cache_log()


@pytest.fixture(scope="module", autouse=True)
def squid_lived_through_it(gateway: Gateway, open_gateway: Gateway) -> Iterator[None]:
    """After all of it: the same processes, every log line JSON, and no complaint that
    ends a Squid.
    """
    pids = (gateway.pid, open_gateway.pid)
    yield
    assert (gateway.pid, open_gateway.pid) == pids
    for attacked in (gateway, open_gateway):
        attacked.log()
        assert "FATAL" not in attacked.cache_log()
        assert "assertion failed" not in attacked.cache_log()
