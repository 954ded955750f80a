"""Parent proxies: what goes through them, what goes past them, and that nothing does so
by accident.
"""

import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.waiting import wait_for

from .curl import CurlFailed, answer, curl
from .dns import PUBLIC, Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway, Site
from .network import run
from .origin import Origins
from .parent import SOURCE, Parent
from .raw import Raw, tunnel
from .test_passthrough import put_in_force

POLICY = """
version: 1
rules:
  - {name: asks, action: ask, hosts: [asked.corp.example]}
  - {name: ports, action: allow, hosts: [ports.corp.example], ports: [80, 443, 8080, 8443]}
  - {name: pinned, action: allow, hosts: [pinned.corp.example], tls: passthrough}
  - {name: all, action: allow, hosts: [.corp.example, .partner.example, .straight.example, 10.0.0.5, 127.0.0.1]}
  - {name: inside, action: allow, hosts: [inside.partner.test], private: true}
grants:
  - name: granted
    any_client: true
    urls: ["https://asked.corp.example/x"]
    expires: 2046-01-01T00:00:00Z
    reason: of a test
rewrites:
  - {name: to-corp, hosts: [rewritten.corp.example], paths: [/r/**], to: "https://target.corp.example{path}"}
  - {name: to-straight, hosts: [leaves.corp.example], to: "https://target.straight.example{path}"}
  - {name: plain, hosts: [plain.straight.example], schemes: [http], to: "http://plain.corp.example{path}"}
secrets:
  password: {file: secrets/password}
  token: {file: secrets/token}
credentials:
  - {name: target, hosts: [target.corp.example, keyed.corp.example], bearer: token}
upstreams:
  - {name: straight, hosts: [.straight.example], direct: true}
  - name: partner
    hosts: [.partner.example, .partner.test, 10.0.0.0/8]
    url: http://127.0.0.1:4129
    resolve: upstream
  - name: corp
    hosts: ["*"]
    url: http://127.0.0.1:4128
    basic: {username: "svc agents", password: password}
"""
READY = "Accepting SSL bumped"
PASSWORD = "e2e parent's p@ss:w%rd"
TOKEN = "e2e-upstream-token-0123456789"
LOGIN = "Basic c3ZjIGFnZW50czplMmUgcGFyZW50J3MgcEBzczp3JXJk"


@pytest.fixture(scope="module")
def all_parents(internet: None) -> Iterator[tuple[Parent, Parent]]:
    both = Parent(4128), Parent(4129)
    yield both
    for parent in both:
        parent.stop()


@pytest.fixture
def corp(all_parents: tuple[Parent, Parent]) -> Parent:
    all_parents[0].forget()
    all_parents[0].password = LOGIN
    return all_parents[0]


@pytest.fixture
def partner(all_parents: tuple[Parent, Parent]) -> Parent:
    all_parents[1].forget()
    return all_parents[1]


def make(
    new_gateway: NewGateway, *local_conf: str, policy: str = POLICY, upstream: str = ""
) -> Gateway:
    gateway = new_gateway(
        policy, *local_conf, secrets={"password": PASSWORD, "token": TOKEN}
    )
    gateway.render(upstream)
    return gateway.start()


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, all_parents: object) -> Gateway:
    return make(new_gateway)


def reached(origins: Origins) -> set[str]:
    """Who has connected to an origin."""
    return set(origins.peers)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_goes_through_its_parent_and_never_directly(
    gateway: Gateway, origins: Origins, corp: Parent, partner: Parent, scheme: str
) -> None:
    allowed(gateway, origins, f"{scheme}://a.corp.example/x", "all")
    assert (reached(origins), len(corp.heads), len(partner.heads)) == ({SOURCE}, 1, 0)
    allowed(gateway, origins, f"{scheme}://a.partner.example/x", "all")
    assert (reached(origins), len(corp.heads), len(partner.heads)) == ({SOURCE}, 1, 1)
    assert gateway.logged(f"{scheme}://a.partner.example/x")["upstream"] == "127.0.0.1"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_direct_goes_past_every_parent(
    gateway: Gateway, origins: Origins, corp: Parent, partner: Parent, scheme: str
) -> None:
    allowed(gateway, origins, f"{scheme}://a.straight.example/x", "all")
    assert SOURCE not in reached(origins)
    assert len(corp.heads) + len(partner.heads) == 0


@pytest.mark.parametrize(
    "url", ["http://ports.corp.example:8080/x", "https://ports.corp.example:8443/x"]
)
def test_another_port_goes_through_the_parent_too(
    gateway: Gateway, origins: Origins, corp: Parent, url: str
) -> None:
    allowed(gateway, origins, url, "ports")
    assert (reached(origins), len(corp.heads)) == ({SOURCE}, 1)


@pytest.mark.long
def test_a_tunnel_that_passes_through_goes_through_the_parent(
    gateway: Gateway, origins: Origins, corp: Parent, site: Site, names: Names
) -> None:
    names.set("pinned.corp.example", [PUBLIC])
    reply = curl(gateway, "https://pinned.corp.example/x", "--cacert", site.upstream_ca)
    assert reply.status == 200
    assert (reached(origins), corp.lines()) == (
        {SOURCE},
        ["CONNECT pinned.corp.example:443 HTTP/1.1"],
    )
    names.set("pinned.corp.example", ["10.0.0.5"])
    wait_for(lambda: is_refused(gateway, site), "the name's new address")
    corp.forget()
    assert is_refused(gateway, site)
    assert corp.heads == []


def is_refused(gateway: Gateway, site: Site) -> bool:
    return (
        answer(
            gateway, "https://pinned.corp.example/x", "--cacert", site.upstream_ca
        ).status
        != 200
    )


def test_only_the_parent_gets_its_password_and_it_gets_no_credential(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    login = ("-H", "Proxy-Authorization: Basic of-the-client")
    for scheme in ("http", "https"):  # no client has a token: nobody reads the login
        assert curl(gateway, f"{scheme}://keyed.corp.example/x", *login).status == 200
    assert [head.count(f"Proxy-Authorization: {LOGIN}\r\n") for head in corp.heads] == [
        1,
        1,
    ]
    assert not any("of-the-client" in head or TOKEN in head for head in corp.heads)
    assert [seen.values("Proxy-Authorization") for seen in origins.seen] == [[], []]
    assert origins.seen[-1].values("Authorization") == [f"Bearer {TOKEN}"]
    commands = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert not [
        command
        for command in commands.splitlines()
        if "e2e%20parent" in command or PASSWORD in command
    ]


def test_a_tunnel_that_has_lost_its_parent_shows_none_of_its_headers(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    """Squid would open another tunnel with the headers of the request, if it tried
    again.
    """
    with tunnel(gateway, "keyed.corp.example:443") as client:
        reply = client.get("/1", "keyed.corp.example")
        assert reply.status == 200
        corp.down()
        corp.up()
        with suppress(TimeoutError):  # no answer is right, too
            client.get("/2", "keyed.corp.example", "Cookie: of-the-client")
    assert len(origins.seen) == 1
    assert not any(
        TOKEN in head or "of-the-client" in head or "/2" in head for head in corp.heads
    )


@pytest.mark.parametrize("flaw", ["untrusted", "another name"])
def test_the_origins_certificate_is_verified_through_the_parent(
    gateway: Gateway, origins: Origins, corp: Parent, flaw: str
) -> None:
    host = f"{flaw.split()[0]}.corp.example"
    if flaw == "untrusted":
        origins.untrusted.add(host)
    else:
        origins.certificates[host] = ("thief.example",)
    assert curl(gateway, f"https://{host}/x", "--insecure").status in (502, 503)
    assert (origins.seen, corp.lines()) == ([], [f"CONNECT {host}:443 HTTP/1.1"])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_parent_that_is_down_is_a_page_at_once_and_is_used_again_when_it_is_back(
    gateway: Gateway, origins: Origins, corp: Parent, scheme: str
) -> None:
    corp.down()
    replies = [
        curl(gateway, f"{scheme}://down.corp.example/{turn}") for turn in range(12)
    ]
    corp.up()
    assert {reply.status for reply in replies} <= {502, 503}
    assert [
        reply.text
        for reply in replies
        if "the parent proxy of the gateway" not in reply.text
    ] == []
    assert origins.connections == []
    wait_for(
        lambda: curl(gateway, f"{scheme}://down.corp.example/x").status == 200,
        "the parent to be used again",
    )
    assert reached(origins) == {SOURCE}


def test_a_parent_that_refuses_the_password_is_a_failure_and_no_question_to_the_client(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    corp.password = "Basic another"
    reply = curl(gateway, "http://a.corp.example/refused")
    assert (reply.status, reply.header("Proxy-Authenticate")) == (500, None)
    assert "parent proxy" in reply.text
    # Squid passes the status on, and nothing else
    reply = curl(gateway, "https://a.corp.example/refused")
    assert (reply.status, reply.header("Proxy-Authenticate"), reply.text) == (
        407,
        None,
        "",
    )
    assert "the parent proxy refuses this gateway" in (
        reply.header("Proxy-Status") or ""
    )
    assert origins.connections == []


def test_a_private_address_is_closed_through_a_parent_too(
    gateway: Gateway, origins: Origins, corp: Parent, partner: Parent, names: Names
) -> None:
    names.set("private.corp.example", ["10.0.0.5"])
    names.set("private.partner.example", ["10.0.0.5"])
    denied(gateway, origins, "https://private.corp.example/", "private-address")
    for host in (
        "private.corp.example",
        "private.partner.example",
        "10.0.0.5",
        "127.0.0.1",
    ):
        denied(gateway, origins, f"http://{host}/", "private-address")
    assert len(corp.heads) + len(partner.heads) == 0


@pytest.mark.one_worker(
    "each worker remembers names for itself: what one looks up again, another does not"
)
def test_a_tunnel_whose_name_becomes_private_reaches_no_parent(
    gateway: Gateway, origins: Origins, corp: Parent, names: Names
) -> None:
    """CONNECT while the name is public; TLS when it has become private: never_direct
    alone would forward it.
    """
    host = "waits.corp.example"
    names.set(host, [PUBLIC])
    with Raw(gateway) as client:
        assert client.connect(f"{host}:443")
        names.set(host, ["127.0.0.1"])
        wait_for(
            lambda: curl(gateway, f"http://{host}/").rule == "private-address",
            "Squid to look the name up again",
        )
        with suppress(OSError):  # refused in the handshake
            client.tls(host)
            client.get("/x", host)
    assert [line for line in corp.lines() if line.startswith("CONNECT")] == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_the_gateway_cannot_resolve_passes_only_where_the_parent_is_to_resolve_it(
    gateway: Gateway,
    origins: Origins,
    corp: Parent,
    partner: Parent,
    names: Names,
    scheme: str,
) -> None:
    for host in (
        "nowhere.corp.example",
        "nowhere.straight.example",
        "known.partner.example",
    ):
        names.set(host, [])
    for host in ("nowhere.corp.example", "nowhere.straight.example"):
        assert curl(gateway, f"{scheme}://{host}/x").status == 503
    assert (origins.connections, len(corp.heads)) == ([], 0)
    allowed(gateway, origins, f"{scheme}://known.partner.example/x", "all")
    assert (reached(origins), len(partner.heads)) == ({SOURCE}, 1)


def test_a_rewrite_over_https_goes_past_the_parent_or_nowhere(
    gateway: Gateway, origins: Origins, corp: Parent, partner: Parent
) -> None:
    """Squid would send the headers of the request to the parent, the credential
    included.
    """
    for path in ("/r/x", "/x"):
        reply = curl(
            gateway,
            f"https://rewritten.corp.example{path}",
            "-H",
            "Cookie: of-the-client",
        )
        assert (reply.status, reply.rule) == (403, "not-rendered")
    assert (origins.connections, len(corp.heads) + len(partner.heads)) == ([], 0)
    assert curl(gateway, "https://leaves.corp.example/x").status == 200
    assert (origins.urls(), SOURCE in reached(origins)) == (
        ["https://target.straight.example/x"],
        False,
    )
    assert curl(gateway, "http://plain.straight.example/x").status == 200
    assert origins.urls()[1:] == ["http://plain.corp.example/x"]
    assert corp.lines() == ["GET http://plain.corp.example/x HTTP/1.1"]


def test_what_is_asked_about_goes_through_no_parent_over_https(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    """As with rewrites: the tunnel through the parent would be opened with the headers
    of the request.
    """
    assert (
        "Ticket: "
        in denied(gateway, origins, "https://asked.corp.example/y", "asks").text
    )
    denied(gateway, origins, "https://asked.corp.example/x", "not-rendered")
    assert corp.heads == []


def test_a_tunnel_that_was_opened_for_rewrites_reaches_no_parent_when_they_are_gone(
    new_gateway: NewGateway, origins: Origins, corp: Parent
) -> None:
    gateway = make(new_gateway)
    with tunnel(gateway, "rewritten.corp.example:443") as client:
        gateway.write(
            "policy.yaml",
            POLICY.replace(
                "hosts: [rewritten.corp.example]", "hosts: [other.corp.example]"
            ),
        )
        wait_for(
            lambda: curl(gateway, "https://rewritten.corp.example/r/1").status == 200,
            "the edit to be in force",
        )
        wait_for(
            lambda: is_closed(client, "rewritten.corp.example"),
            "it in force for requests in tunnels",
        )
        corp.forget()
        reply = client.get("/r/2", "rewritten.corp.example", "Cookie: of-the-client")
        assert not reply or (reply.status, reply.rule) == (403, "not-rendered")
    assert corp.heads == []


def test_a_slow_parent_keeps_only_its_own_clients_waiting(
    gateway: Gateway, origins: Origins, corp: Parent, partner: Parent
) -> None:
    corp.hold()
    with Raw(gateway) as client:
        client.send(
            "GET http://slow.corp.example/ HTTP/1.1\r\nHost: slow.corp.example\r\n\r\n"
        )
        wait_for(lambda: len(corp.heads) == 1, "the parent to be asked")
        for url in ("https://a.partner.example/x", "https://a.straight.example/x"):
            assert curl(gateway, url).status == 200
        corp.release()
        reply = client.answer()
        assert reply.status == 200


DROPS = """table inet parent {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 4128 drop
    }
}
"""


@pytest.mark.long
def test_a_parent_that_does_not_answer_is_a_page_within_seconds(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    """First it takes the connection and says nothing, then a packet filter drops
    everything.
    """
    corp.hold()
    assert curl(gateway, "https://silent.corp.example/x").status in (502, 504)
    corp.release()
    run("nft", DROPS)
    for scheme in ("http", "https"):
        assert curl(gateway, f"{scheme}://dropped.corp.example/x").status in (
            502,
            503,
            504,
        )
    run("nft", "delete table inet parent")
    assert reached(origins) <= {SOURCE}
    wait_for(
        lambda: curl(gateway, "https://dropped.corp.example/y").status == 200,
        "the parent to be used again",
    )


@pytest.mark.long
def test_a_tunnel_that_passes_through_waits_for_a_silent_parent_as_long_as_squid_reads(
    new_gateway: NewGateway, origins: Origins, corp: Parent, site: Site
) -> None:
    gateway = make(new_gateway, "read_timeout 4 seconds")
    corp.hold()
    with pytest.raises(CurlFailed) as failed:
        curl(gateway, "https://pinned.corp.example/x", "--cacert", site.upstream_ca)
    corp.release()
    assert failed.value.code != 28, "curl's own limit of time"


def test_an_upstream_that_is_not_rendered_yet_denies_until_it_is(
    new_gateway: NewGateway, origins: Origins, corp: Parent, partner: Parent
) -> None:
    gateway = make(new_gateway)
    gateway.renders = False
    with tunnel(gateway, "kept.straight.example:443") as client:
        assert client.get("/1", "kept.straight.example")
        edited = POLICY.replace(
            "{name: straight, hosts: [.straight.example], direct: true}", ""
        ).replace(
            "  - name: partner\n",
            "  - {name: late, hosts: [.straight.example], url: 'http://127.0.0.1:4129'}\n  - name: partner\n",
        )
        put_in_force(gateway, edited.replace("upstreams:\n  - \n", "upstreams:\n"))
        wait_for(
            lambda: is_closed(client, "kept.straight.example"),
            "the edit to be in force on the open tunnel",
        )
    origins.forget()
    for scheme in ("http", "https"):
        denied(gateway, origins, f"{scheme}://a.straight.example/x", "not-rendered")
        allowed(gateway, origins, f"{scheme}://a.corp.example/x", "all")
    assert (len(partner.heads), reached(origins)) == (0, {SOURCE})
    gateway.render()
    gateway.reconfigure()
    wait_for(
        lambda: answer(gateway, "http://a.straight.example/y").status == 200,
        "Squid to know the parent",
    )
    assert (len(partner.heads), reached(origins)) == (1, {SOURCE})


def is_closed(client: Raw, host: str) -> bool:
    """Whether a tunnel that was open takes no request any more."""
    reply = client.get("/x", host)
    return not reply or reply.status == 403


NO_UPSTREAMS = "version: 1\nrules: [{name: all, action: allow, hosts: ['*']}]\n"
ONE_DIRECT = (
    NO_UPSTREAMS
    + "upstreams: [{name: straight, hosts: [.straight.example], direct: true}]\n"
)


def test_the_default_parent_is_for_all_that_the_policy_has_no_upstream_for(
    new_gateway: NewGateway, origins: Origins, partner: Parent, names: Names
) -> None:
    gateway = make(new_gateway, policy=NO_UPSTREAMS, upstream="http://127.0.0.1:4129")
    names.set("private.example", ["10.0.0.5"])
    for turn, scheme in enumerate(("http", "https"), 1):
        allowed(gateway, origins, f"{scheme}://a.straight.example/x", "all")
        assert (reached(origins), len(partner.heads)) == ({SOURCE}, turn)
        denied(gateway, origins, f"{scheme}://private.example/", "private-address")
    gateway.write("policy.yaml", ONE_DIRECT)
    wait_for(
        lambda: goes_past(gateway, origins, "http://a.straight.example/y"),
        "the edit to be in force",
    )
    wait_for(
        lambda: goes_past(gateway, origins, "https://a.straight.example/y"),
        "it in force for tunnels",
    )
    allowed(gateway, origins, "https://b.example/y", "all")
    assert SOURCE in reached(origins)


def goes_past(gateway: Gateway, origins: Origins, url: str) -> bool:
    origins.forget()
    return curl(gateway, url).status == 200 and SOURCE not in reached(origins)


@pytest.mark.long
def test_a_gateway_can_be_the_parent_of_another(
    new_gateway: NewGateway, origins: Origins
) -> None:
    policy = "version: 1\nrules: [{name: all, action: allow, hosts: [.corp.example]}]"
    parent, child = new_gateway(policy), new_gateway(policy)
    # both are copies
    parent.edit(
        "squid.conf",
        "unique_hostname squidkeeper-",
        "unique_hostname squidkeeper-other-",
    )
    child.render(f"http://{parent.start().authority}")
    allowed(child.start(), origins, "http://chained.corp.example/x", "all")
    assert parent.logged("http://chained.corp.example/x")["rule"] == "all"


def test_the_headers_of_a_clients_connect_do_not_reach_the_parent(
    gateway: Gateway, origins: Origins, corp: Parent
) -> None:
    """It could take them for the gateway's: a name of a user, or a credential."""
    sent = (
        "Cookie",
        "Authorization",
        "X-Api-Key",
        "X-Forwarded-User",
        "X-Forwarded-Host",
        "Proxy_Authorization",
    )
    headers = [
        option for name in sent for option in ("--proxy-header", f"{name}: client's")
    ]
    allowed(gateway, origins, "https://headed.corp.example/x", "all", *headers)
    [head] = corp.heads
    assert "client's" not in head
    assert f"Proxy-Authorization: {LOGIN}" in head
    assert "\r\nHost: headed.corp.example:443\r\n" in head


@pytest.mark.long
def test_a_tunnel_that_is_held_back_until_its_parent_is_rendered_no_more_goes_nowhere(
    new_gateway: NewGateway, origins: Origins, corp: Parent
) -> None:
    gateway = make(new_gateway)
    with Raw(gateway) as client:
        assert client.connect("held.corp.example:443")
        gateway.write(
            "policy.yaml", POLICY.replace('username: "svc agents"', "username: other")
        )
        gateway.render()
        before = gateway.cache_log().count(READY)
        gateway.reconfigure()
        wait_for(
            lambda: gateway.cache_log().count(READY) > before,
            "Squid to have reconfigured",
        )
        with suppress(OSError):
            client.tls("held.corp.example").get("/x", "held.corp.example")
    assert reached(origins) == set()
