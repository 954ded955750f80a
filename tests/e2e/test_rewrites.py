"""Rewrites on a live Squid: to another https host, to a path, to a redirect; and what
pip does through them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from .curl import clean, curl
from .dns import PUBLIC, Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Answer, Origins
from .raw import tunnel
from .registries import wheel

POLICY = """
version: 1
rules:
  - {name: packages, action: allow, hosts: [.packages.example, npm.example], ports: [80, 443, 8443]}
  - {name: no-secrets, action: deny, hosts: [mirrored.example], paths: [/secret/**]}
  - {name: others, action: allow, hosts: [mirrored.example, plain.example, moved.example, upgrade.example]}
  - {name: more, action: allow, hosts: [inside.example, half.example]}
  - {name: rest, action: allow, hosts: [badcert.example, unproved.example, tenant.example]}
rewrites:
  - {name: half, hosts: [half.example], paths: [/away/**], to: "https://target.example"}
  - {name: mirror, hosts: [packages.example], paths: [/simple/**], to: "https://registry.example/python{path}{query}"}
  - {name: files, hosts: [packages.example], paths: [/files/**], to: "https://registry.example{path}"}
  - name: npm  # which asks for a scoped package with an escaped slash
    hosts: [npm.example]
    paths: [/left-pad, /@scope/*, "/@scope%2f*"]
    to: https://registry.example/npm{path}
  - {name: re, hosts: [npm.example], paths: ['regex:/v(?P<v>[0-9]+)/(?P<n>.*)'], to: "https://n.example/{n}?v={v}"}
  - {name: whole, hosts: [mirrored.example], to: "https://target.example{path}{query}"}
  - {name: upgrade, hosts: [upgrade.example], schemes: [http], to: "https://{host}{path}{query}"}
  - {name: https-only, hosts: [moved.example], schemes: [http], to: "https://{host}{path}{query}", redirect: 308}
  - {name: opened, hosts: [inside.example], paths: [/opened/**], to: "https://private.example{path}", private: true}
  - {name: into-closed, hosts: [inside.example], to: "https://private.example{path}"}
  - {name: bad-certificate, hosts: [badcert.example], to: "https://wrongname.example{path}"}
  - {name: unproved, hosts: [unproved.example], to: "https://untrusted.example{path}"}
  - {name: port, hosts: [plain.example], to: "https://target.example:8443{path}"}
  - {name: tenant, hosts: [tenant.example], to: "https://{host}.target.example{path}"}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, names: Names) -> Gateway:
    names.set("private.example", ["10.0.0.5"])
    return new_gateway(POLICY).start()


REWRITTEN = [
    (
        "https://packages.example/simple/requests/?x=1",
        "https://registry.example/python/simple/requests/?x=1",
    ),
    (
        "http://packages.example/simple/requests/",
        "https://registry.example/python/simple/requests/",
    ),
    ("https://npm.example/left-pad", "https://registry.example/npm/left-pad"),
    ("https://npm.example/@scope/name", "https://registry.example/npm/@scope/name"),
    ("https://npm.example/@scope%2fname", "https://registry.example/npm/@scope%2Fname"),
    ("https://npm.example/v2/x/y", "https://n.example/x/y?v=2"),
    ("https://mirrored.example/a/b?c=d", "https://target.example/a/b?c=d"),
    (
        "https://mirrored.example/a%20b?c=%2f%26",
        "https://target.example/a%20b?c=%2f%26",
    ),
    ("http://upgrade.example/x?y", "https://upgrade.example/x?y"),
    ("https://plain.example/x", "https://target.example:8443/x"),
    ("https://tenant.example/x", "https://tenant.example.target.example/x"),
]


@pytest.mark.parametrize(
    ("url", "arrives"), REWRITTEN, ids=[url for url, _ in REWRITTEN]
)
def test_a_rewritten_request_arrives_at_its_target_over_tls(
    gateway: Gateway, origins: Origins, url: str, arrives: str
) -> None:
    reply = curl(gateway, url)
    assert reply.status == 200, reply.text
    assert [seen.url for seen in origins.seen] == [arrives]
    assert origins.seen[0].sni == arrives.split("/")[2].split(":")[0]
    line = gateway.logged(url)
    assert (line["status"], line["verdict"]) == (200, "allow")


TARGET = "https://target.example/"
LONGEST = "a" * (8000 - len(TARGET))  # what makes a target of 8,000 characters


def test_the_longest_rewrite_arrives_at_its_target(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "mirrored.example:443") as client:
        reply = client.get(f"/{LONGEST}", "mirrored.example")
    assert reply.status == 200
    assert origins.urls() == [TARGET + LONGEST]


@pytest.mark.parametrize("host", ["mirrored.example", "inside.example"])
@pytest.mark.parametrize(
    "tail",
    ["opened/" + LONGEST, "opened/" + "a" * 8150, "opened/" + "\u00c3\u00a9" * 3000],
)
def test_a_rewrite_that_squid_could_not_parse_reaches_nobody(
    gateway: Gateway, origins: Origins, host: str, tail: str
) -> None:
    """Squid would fetch the client's own URL, with the credentials of the target and
    where it may be private.
    """
    with tunnel(gateway, f"{host}:443") as client:
        reply = client.get(f"/{tail}"[: 8190 - len(f"https://{host}")], host)
    assert (reply.status, reply.rule) == (403, "invalid-request")
    assert origins.seen == []


def test_what_no_rewrite_matches_goes_where_it_was_sent(
    gateway: Gateway, origins: Origins
) -> None:
    assert (
        allowed(gateway, origins, "https://packages.example/other", "packages").url
        == "https://packages.example/other"
    )
    # a rewrite without ports covers 443 alone
    url = "https://packages.example:8443/simple/x"
    assert allowed(gateway, origins, url, "packages").url == url


def test_requests_of_one_tunnel_go_to_their_own_targets(
    gateway: Gateway, origins: Origins
) -> None:
    paths = ["/simple/a/", "/other", "/files/b", "/simple/c/"]
    with tunnel(gateway, "packages.example:443") as client:
        answers = [client.get(path, "packages.example") for path in paths]
    assert [answer.status for answer in answers if answer] == [200] * 4
    assert origins.urls() == [
        "https://registry.example/python/simple/a/",
        "https://packages.example/other",
        "https://registry.example/files/b",
        "https://registry.example/python/simple/c/",
    ]


def test_the_targets_certificate_is_verified(
    gateway: Gateway, origins: Origins
) -> None:
    origins.certificates["wrongname.example"] = ("another.example",)
    origins.untrusted.add("untrusted.example")
    assert curl(gateway, "https://badcert.example/").status == 503
    assert curl(gateway, "https://unproved.example/").status == 503
    assert origins.seen == []


def test_a_redirect_is_answered_to_the_client_and_reaches_no_origin(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(gateway, "http://moved.example/a?b=c")
    assert (reply.status, reply.header("Location")) == (
        308,
        "https://moved.example/a?b=c",
    )
    assert origins.connections == []
    assert gateway.logged("http://moved.example/a?b=c")["status"] == 308


def test_a_client_that_follows_the_redirect_arrives(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(
        gateway,
        "http://moved.example/followed",
        "--location",
        "--data",
        "body",
        "--output",
        "/dev/stdout",
    )
    assert reply.status == 308  # the first of the two answers; the second follows it
    assert [(seen.url, seen.body) for seen in origins.seen] == [
        ("https://moved.example/followed", b"body")
    ]


def test_a_rewrite_into_a_private_network_needs_its_own_leave(
    gateway: Gateway, origins: Origins
) -> None:
    assert curl(gateway, "https://inside.example/opened/x").status == 200
    assert [(seen.url, seen.address) for seen in origins.seen] == [
        ("https://private.example/opened/x", "10.0.0.5")
    ]
    connections = len(origins.connections)
    reply = curl(gateway, "https://inside.example/other")
    assert (reply.status, reply.rule) == (403, "private-address")
    assert origins.connections[connections:] == []
    assert gateway.logged("https://inside.example/other")["rule"] == "private-address"


def test_a_private_name_with_a_rewrite_is_closed_where_the_rewrite_does_not_match(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("half.example", ["10.0.0.5"])
    assert curl(gateway, "https://half.example/away/x").status == 200
    for scheme in ("http", "https"):
        reply = curl(gateway, f"{scheme}://half.example/x")
        assert (reply.status, reply.rule) == (403, "private-address")
    assert origins.urls() == ["https://target.example/"]
    assert {address for address, _ in origins.connections} <= {PUBLIC}


def test_what_the_policy_denies_is_not_rewritten(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(gateway, "https://mirrored.example/secret/x")
    assert (reply.status, reply.rule) == (403, "no-secrets")
    assert origins.connections == []


def test_the_target_itself_is_not_opened_by_a_rewrite_to_it(
    gateway: Gateway, origins: Origins
) -> None:
    denied(gateway, origins, "https://target.example/", "default")
    denied(gateway, origins, "https://registry.example/python/simple/x/", "default")


def test_a_denial_reads_the_path_as_servers_do(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(gateway, "https://mirrored.example/public/..%2fsecret/x")
    assert (reply.status, reply.rule) == (403, "ambiguous-path")
    assert origins.seen == []


def test_pip_installs_from_an_index_that_is_rewritten_to_a_mirror(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    name, text, target = (
        "mirrored_demo-1.0-py3-none-any.whl",
        "HELLO = 'from the mirror'\n",
        tmp_path / "site",
    )
    index = f'<a href="/files/{name}">{name}</a>'.encode()
    html = {"Content-Type": "text/html"}
    origins.answers["registry.example/python/simple/mirrored-demo/"] = Answer(
        body=index, headers=html
    )
    origins.answers[f"registry.example/files/{name}"] = Answer(
        body=wheel("mirrored_demo", text)
    )
    pip = (sys.executable, "-m", "pip", "--isolated", "--no-cache-dir")
    command: list[str | Path] = [*pip, "install", "--target", target]
    options: list[str | Path] = [
        "--proxy",
        f"http://{gateway.authority}",
        "--cert",
        gateway.ca,
    ]
    options += ["--index-url", "https://packages.example/simple/", "mirrored-demo"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=clean(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (target / "mirrored_demo.py").read_text() == text
