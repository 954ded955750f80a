"""Rules on a live Squid: allow-list only, paths, methods, ports, clients, private
addresses by number and by name.
"""

import pytest

from tests.waiting import pause, wait_for

from .curl import CurlFailed, curl
from .dns import PUBLIC, Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Answer, Origins
from .raw import Raw

POLICY = """
version: 1
defaults: {reason: Ask the platform team to open a host.}
clients:
  builders: {networks: [127.0.0.2/32]}
lists:
  opened: {file: lists/opened.txt}
rules:
  - {name: exact, action: allow, hosts: [exact.example]}
  - {name: domain, action: allow, hosts: [.domain.example]}
  - {name: one-label, action: allow, hosts: ["*.label.example"]}
  - {name: listed, action: allow, lists: [opened]}
  - {name: no-push, action: deny, hosts: [git.example], paths: ["/**/git-receive-pack"], reason: Read-only.}
  - {name: repositories, action: allow, hosts: [git.example], paths: ["/acme/**"]}
  - {name: reading, action: allow, hosts: [api.example], methods: [GET, HEAD], paths: ["/v1/**"]}
  - {name: writing, action: allow, hosts: [api.example], methods: [POST], paths: ["/v1/jobs"]}
  - {name: pages, action: allow, hosts: [query.example], query: {page: "*"}}
  - {name: only-https, action: allow, hosts: [secure.example], schemes: [https]}
  - {name: odd-port, action: allow, hosts: [ports.example], ports: [8443, 8080]}
  - {name: deny-every-port, action: deny, hosts: [closed.example]}
  - {name: builders-only, action: allow, clients: [builders], hosts: [build.example]}
  - {name: internal, action: allow, hosts: [internal.example, 10.0.0.5], private: true}
  - {name: by-number, action: allow, hosts: [203.0.113.0/24, "2001:db8::/32", 127.0.0.0/8, "::1", 10.1.0.0/16]}
  - {name: by-name, action: allow, hosts: [.rebind.example]}
presets: [pypi@2, {preset: npm@2, clients: [builders]}]
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    lists = {"lists/opened.txt": "# ours\nlisted.example\n"}
    return new_gateway(POLICY, files=lists).start()


def test_neither_the_client_nor_squid_is_told_to_the_origin_and_the_record_has_the_request(
    gateway: Gateway, origins: Origins
) -> None:
    url = "https://exact.example/a/path?with=query&and=more"
    seen = allowed(gateway, origins, url, "exact")
    assert b"127.0.0.1" not in seen.head
    assert b"6.13" not in seen.head
    line = gateway.logged(url)
    assert (line["client"], line["method"], line["sni"]) == (
        "127.0.0.1",
        "GET",
        "exact.example",
    )
    assert (line["tunnel"], line["upstream_ms"].isdecimal()) == (
        "exact.example:443",
        True,
    )
    assert line["bytes"] > 0
    assert line["duration_ms"] >= 0
    assert line["time"].endswith("Z")


ALLOWED = [
    ("https://exact.example/any/path?and=query", "exact"),
    ("http://exact.example/", "exact"),
    ("https://domain.example/", "domain"),
    ("https://a.b.domain.example/", "domain"),
    ("https://a.label.example/", "one-label"),
    ("https://listed.example/", "listed"),
    ("https://git.example/acme/app/info/refs", "repositories"),
    ("https://api.example/v1/models", "reading"),
    ("https://query.example/x?page=2", "pages"),
    ("https://secure.example/", "only-https"),
    ("https://ports.example:8443/", "odd-port"),
    ("http://ports.example:8080/", "odd-port"),
    ("http://203.0.113.20/", "by-number"),
    ("http://[2001:db8::10]/", "by-number"),
    ("http://10.0.0.5/", "internal"),
    ("https://pypi.org/simple/sample/", "pypi@2/index"),
]


@pytest.mark.parametrize(("url", "rule"), ALLOWED, ids=[url for url, _ in ALLOWED])
def test_what_a_rule_allows_arrives(
    gateway: Gateway, origins: Origins, url: str, rule: str
) -> None:
    assert allowed(gateway, origins, url, rule).url == url


def test_a_tunnel_opens_whose_name_has_a_ttl_of_0_and_whose_client_hello_is_late(
    gateway: Gateway,
) -> None:
    with Raw(gateway) as client:
        assert client.connect("late.domain.example:443").status == 200
        pause(2, "a slow client")
        client.tls("late.domain.example")
        assert client.get("/", "late.domain.example").status == 200


DENIED = [
    ("https://other.example/", "default"),
    ("http://other.example/", "default"),
    ("https://sub.exact.example/", "default"),
    ("https://label.example/", "default"),
    ("https://a.b.label.example/", "default"),
    ("https://domain.example.evil.example/", "default"),
    ("https://notdomain.example/", "default"),
    ("https://exact.example:8443/", "default"),
    ("http://exact.example:81/", "default"),
    ("https://exact.example:80/", "default"),
    ("http://exact.example:443/", "default"),
    ("http://secure.example/", "default"),
    ("https://ports.example/", "default"),
    ("https://closed.example/", "deny-every-port"),
    ("https://closed.example:444/", "deny-every-port"),
    ("http://closed.example:81/", "deny-every-port"),
    ("https://build.example/", "default"),
    ("http://build.example/", "default"),
    ("https://127.0.0.1/", "private-address"),
    ("http://127.0.0.1/", "private-address"),
    ("http://[::1]/", "private-address"),
    ("http://10.1.2.3/", "private-address"),
    ("http://169.254.169.254/latest/meta-data/", "default"),
    ("https://registry.npmjs.org/sample", "default"),  # of a preset for other clients
]


@pytest.mark.parametrize(("url", "rule"), DENIED, ids=[url for url, _ in DENIED])
def test_what_no_rule_allows_is_denied_and_never_resolved(
    gateway: Gateway, origins: Origins, names: Names, url: str, rule: str
) -> None:
    asked = len(names.queries)
    # Squid names the address as a host name in its certificate
    by_number = ["--insecure"] if "//127" in url else []
    denied(gateway, origins, url, rule, *by_number)
    assert names.queries[asked:] == []


# Denied within a tunnel that had to be opened, because something else is allowed there.
DENIED_INSIDE = [
    ("https://git.example/other/app", "default"),
    ("https://git.example/acme", "default"),
    ("https://git.example/acme/app/git-receive-pack", "no-push"),
    ("https://api.example/v2/models", "default"),
    ("https://api.example/v1x", "default"),
    ("https://query.example/x?pages=2", "default"),
]


@pytest.mark.parametrize(
    ("url", "rule"), DENIED_INSIDE, ids=[url for url, _ in DENIED_INSIDE]
)
def test_a_denied_path_in_an_opened_tunnel_does_not_arrive(
    gateway: Gateway, origins: Origins, url: str, rule: str
) -> None:
    before = len(gateway.log())
    reply = curl(gateway, url)
    assert (reply.status, reply.rule) == (403, rule), reply.text
    assert origins.seen == []
    line = gateway.logged(url, before)
    assert (line["status"], line["verdict"], line["rule"]) == (403, "deny", rule)


def test_methods_decide_between_rules(gateway: Gateway, origins: Origins) -> None:
    url = "https://api.example/v1/jobs"
    assert allowed(gateway, origins, url, "writing", "--data", "job").body == b"job"
    assert allowed(gateway, origins, url, "reading").method == "GET"
    reply = curl(gateway, url, "--request", "DELETE")
    assert (reply.status, reply.rule, reply.reason) == (
        403,
        "default",
        "Ask the platform team to open a host.",
    )
    assert [seen.method for seen in origins.seen] == ["POST", "GET"]


def test_a_client_is_known_by_its_network(gateway: Gateway, origins: Origins) -> None:
    allowed(
        gateway, origins, "https://build.example/", "builders-only", client="127.0.0.2"
    )
    denied(gateway, origins, "https://build.example/", "default", client="127.0.0.3")
    allowed(
        gateway, origins, "http://build.example/", "builders-only", client="127.0.0.2"
    )
    denied(gateway, origins, "http://build.example/", "default", client="127.0.0.1")


def test_an_https_origin_known_by_its_address_alone_cannot_be_verified(
    gateway: Gateway, origins: Origins
) -> None:
    """Squid 6 compares no address in a certificate: nothing is proved, and Squid
    refuses.
    """
    assert curl(gateway, "https://203.0.113.10/", "--insecure").status == 503
    assert origins.seen == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_answer_is_cached_unless_caching_is_turned_on(
    gateway: Gateway, origins: Origins, scheme: str
) -> None:
    origins.answers["exact.example/kept"] = Answer(
        headers={"Cache-Control": "public, max-age=3600"}
    )
    for _ in range(2):
        assert curl(gateway, f"{scheme}://exact.example/kept").status == 200
    assert len(origins.seen) == 2


def test_a_client_is_known_by_its_proxy_user(
    new_gateway: NewGateway, origins: Origins
) -> None:
    policy = """
    version: 1
    clients:
      bot: {users: [ci-bot]}
      local-bot: {users: [ci-bot], networks: [127.0.0.2/32]}
    rules:
      - {name: by-user, action: allow, clients: [bot], hosts: [user.example]}
      - {name: by-both, action: allow, clients: [local-bot], hosts: [both.example]}
      - {name: pinned, action: allow, clients: [bot], hosts: [pinned.example], tls: passthrough}
    """
    gateway = new_gateway(policy)
    passwords = gateway.write(
        "passwords", f"ci-bot:{run('openssl', 'passwd', '-apr1', 'pw').strip()}\n"
    )
    gateway.local_conf(
        f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}",
        "acl known proxy_auth REQUIRED",
        "http_access deny !known",
    )
    gateway.start()
    user = ("--proxy-user", "ci-bot:pw")
    for scheme in ("http", "https"):
        url = f"{scheme}://user.example/"
        seen = allowed(gateway, origins, url, "by-user", *user)
        assert seen.values("Proxy-Authorization") == []
        assert gateway.logged(url)["user"] == "ci-bot"
        allowed(
            gateway,
            origins,
            f"{scheme}://both.example/",
            "by-both",
            *user,
            client="127.0.0.2",
        )
        denied(gateway, origins, f"{scheme}://both.example/", "default", *user)
    assert curl(gateway, "http://user.example/").status == 407
    pinned = ("--cacert", origins.authority.certificate)
    assert curl(gateway, "https://pinned.example/", *pinned, *user).status == 200
    spliced = wait_for(
        lambda: [line for line in gateway.log() if "pinned.example" in line["url"]][1:],
        "its second line",
    )
    assert {line["user"] for line in spliced} == {"ci-bot"}
    with pytest.raises(CurlFailed):
        curl(gateway, "https://pinned.example/", *pinned)


def test_a_rule_may_open_a_private_address_by_name(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("internal.example", ["10.0.0.5"])
    assert (
        allowed(gateway, origins, "https://internal.example/", "internal").address
        == "10.0.0.5"
    )


def test_a_name_that_resolves_to_a_private_address_is_denied_in_a_tunnel(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    """test_attacks.py has all networks."""
    for address in ("10.0.0.5", "::1", "64:ff9b::7f00:1"):
        host = f"at-{address.replace(':', '-').replace('.', '-')}.rebind.example"
        names.set(host, [address])
        denied(gateway, origins, f"https://{host}/", "private-address")


@pytest.mark.parametrize(
    "addresses", [[PUBLIC, "10.0.0.5"], ["10.0.0.5", PUBLIC], [PUBLIC, "::1"]]
)
def test_a_name_with_a_public_and_a_private_address_never_reaches_the_private_one(
    gateway: Gateway, origins: Origins, names: Names, addresses: list[str]
) -> None:
    host = f"both-{addresses.index(PUBLIC)}-{'v6' if '::1' in addresses else 'v4'}.rebind.example"
    names.set(host, addresses)
    for scheme in ("http", "https"):
        curl(gateway, f"{scheme}://{host}/")
    assert {address for address, _ in origins.connections} <= {PUBLIC}
