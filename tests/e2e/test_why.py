"""`squidkeeper why` on a gateway where requests fail for each cause that it knows."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.policy.language.model import Token
from squidkeeper.record.log.record import endpoint_of
from squidkeeper.serving.tickets.store import TicketStore
from tests.waiting import wait_for

from .curl import clean, curl
from .dns import PUBLIC, Names
from .gateway import Gateway, NewGateway
from .network import run
from .odd_certificates import DAY, origin_context
from .origin import Answer, Origins
from .raw import Raw, tunnel

TOKEN = "why-token-of-this-test-0001"
POLICY = f"""\
version: 1
defaults: {{reason: Ask for a host.}}
clients:
  vm-7: {{token_sha256: {Token.of(TOKEN).sha256}}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example], reason: It is closed.}}
  - {{name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}}
  - {{name: open, action: allow, hosts: [.open.example], ports: [80, 443, 8080, 8085, 8086]}}
  - {{name: keyed, action: allow, hosts: [keyed.example]}}
  - {{name: of-vm, action: allow, clients: [vm-7], hosts: [vm.example]}}
  - {{name: paid, action: ask, hosts: [pay.example], reason: Ask Ann.}}
secrets:
  missing: {{file: secrets/missing}}
credentials:
  - {{name: no-token, hosts: [keyed.example], bearer: missing}}
"""
SHORT = (
    *("negative_dns_ttl 1 second", "connect_timeout 1 second", "read_timeout 1 second", "forward_timeout 2 seconds"),
    "max_filedescriptors 128",
)
CERTIFICATES = {
    "expired.open.example": ("has expired", "Renew it at the origin."),
    "early.open.example": ("is not valid yet", "correct the gateway's clock"),
    "self.open.example": ("is self-signed", "tls_outgoing_options cafile="),
    "wrong.open.example": ("is for another name", "Let the client ask for a name that the certificate has"),
    "untrusted.open.example": (
        "is of an unknown CA, or the origin sends no intermediate",
        "tls_outgoing_options cafile=",
    ),
}


@contextmanager
def silent_port() -> Iterator[None]:
    """A port of the public origin that answers no connection: its queue is full."""
    with socket.create_server((PUBLIC, 8086), backlog=0), ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((PUBLIC, 8086))
        yield


def without_ca(gateway: Gateway, url: str) -> None:
    """Ask as a client that trusts no CA of the gateway's."""
    command = ["curl", "-q", "-sS", "--proxy", f"http://{gateway.authority}", url]
    assert subprocess.run(command, env=clean(), capture_output=True, check=False).returncode == 60


def send_in_tunnel(gateway: Gateway, host: str, data: bytes) -> None:
    with Raw(gateway) as client:
        client.connect(f"{host}:443")
        client.send(data)
        client.answer()


def speak_tls_to_the_proxy(gateway: Gateway) -> None:
    with socket.create_connection(gateway.address) as client, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(client, server_hostname="proxy.example")


def ask_in_tunnel(gateway: Gateway, connect: str, sni: str, host: str) -> None:
    with tunnel(gateway, f"{connect}:443", sni) as client:
        client.get("/", host)


def lose_helper(gateway: Gateway) -> None:
    """Ask while the helper that decides hangs, and end it."""
    curl(gateway, "http://before.open.example/")
    helpers = gateway.helpers("acl --scope host")
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)
    with Raw(gateway) as client:
        client.send("GET http://unasked.open.example/ HTTP/1.1\r\nHost: unasked.open.example\r\n\r\n")
        wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        answer = client.answer()
    assert answer is not None
    assert answer.status == 403


def use_up_descriptors(gateway: Gateway) -> None:
    with ExitStack() as idle:

        def fill() -> bool:
            """Open a few connections, no more than wait for Squid to take them."""
            for _ in range(10):
                client = idle.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(gateway.address)
            return "running out of filedescriptors" in gateway.cache_log()

        wait_for(fill, "Squid to run out")


def make_origins_fail(origins: Origins, names: Names, folder: Path) -> None:
    authority, contexts = origins.authority, origins.contexts
    for name, starts, ends in (("expired.open.example", -9, -1), ("early.open.example", 1, 9)):
        contexts[name] = origin_context(
            authority, folder, name, [x509.DNSName(name)], starts=starts * DAY, ends=ends * DAY
        )
    contexts["self.open.example"] = origin_context(
        None, folder, "self.open.example", [x509.DNSName("self.open.example")]
    )
    origins.certificates["wrong.open.example"] = ("other.example",)
    origins.untrusted.add("untrusted.open.example")
    names.set("private.open.example", ["10.0.0.5"])
    names.set("none.open.example", [])


TRIALS: list[Callable[[Gateway], object]] = [
    lambda gateway: curl(gateway, "https://closed.example/a/b?token=TOPSECRET"),
    lambda gateway: curl(gateway, "https://paths.example/closed?token=TOPSECRET"),
    lambda gateway: curl(gateway, "https://paths.example/open/%2e%2e/x"),
    lambda gateway: curl(gateway, "https://paths.example/%1b"),
    lambda gateway: curl(gateway, "http://169.254.169.254/latest/meta-data/"),
    lambda gateway: curl(gateway, "http://10.0.0.9/"),
    lambda gateway: curl(gateway, "https://private.open.example/"),
    lambda gateway: curl(gateway, "https://keyed.example/"),
    lambda gateway: curl(gateway, "https://none.open.example/"),
    lambda gateway: curl(gateway, "https://refused.open.example:8085/"),
    *(lambda gateway, name=name: curl(gateway, f"https://{name}/") for name in CERTIFICATES),
    lambda gateway: without_ca(gateway, "https://distrust.open.example/"),
    lambda gateway: without_ca(gateway, "https://unseen.closed.example/"),
    speak_tls_to_the_proxy,
    lambda gateway: send_in_tunnel(gateway, "ssh.open.example", b"SSH-2.0-OpenSSH_9.6\r\n"),
    lambda gateway: ask_in_tunnel(gateway, "a.open.example", "a.open.example", "b.open.example"),
    lambda gateway: ask_in_tunnel(gateway, "c.open.example", "d.open.example", "c.open.example"),
    lambda gateway: curl(gateway, "http://vm.example/?wrong", "--proxy-user", "vm-7:wrong"),
    lambda gateway: curl(gateway, "http://vm.example/none"),
    lambda gateway: curl(gateway, "https://pay.example/a?b=c"),
    lambda gateway: curl(gateway, "http://fine.open.example/"),
    lose_helper,
    use_up_descriptors,
]
SLOW: list[Callable[[Gateway], object]] = [  # these wait for Squid's time limits
    lambda gateway: curl(gateway, "http://silent.open.example:8086/"),
    lambda gateway: curl(gateway, "http://slow.open.example/x"),
]


def why(gateway: Gateway, *arguments: str | Path, nameserver: str = "127.0.0.53") -> subprocess.CompletedProcess[str]:
    """Run the command on a machine that asks this name server."""
    resolv = gateway.root / "resolv.conf"
    resolv.write_text(f"nameserver {nameserver}\noptions timeout:1 attempts:1\n")
    root = gateway.root
    options: list[str | Path] = [
        "--policy",
        root / "etc/policy",
        "--state",
        root / "state",
        "--run",
        root / "run",
        root / "log/access.log",
    ]
    script = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'
    command: list[str | Path] = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        root / "bin/squidkeeper",
        "why",
        *arguments,
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def gateway(
    new_gateway: NewGateway, all_origins: Origins, names: Names, tmp_path_factory: pytest.TempPathFactory
) -> Gateway:
    """A gateway at which requests have failed for each cause."""
    gateway = new_gateway(POLICY, *SHORT)
    gateway.remember(TOKEN)
    gateway.start()
    all_origins.forget()
    make_origins_fail(all_origins, names, tmp_path_factory.mktemp("certificates"))
    gate = all_origins.gate()
    all_origins.answers["slow.open.example/x"] = Answer(gate=gate)
    with silent_port(), ThreadPoolExecutor(len(SLOW)) as pool:
        waiting = [pool.submit(one, gateway) for one in SLOW]
        for trial in TRIALS[:-2]:
            trial(gateway)
        for one in waiting:
            one.result()
    for trial in TRIALS[-2:]:
        trial(gateway)
    gate.open()
    wait_for(lambda: any("unasked" in line["url"] for line in gateway.log()), "the last line")
    return gateway


@pytest.fixture(scope="module")
def found(gateway: Gateway) -> list[dict[str, Any]]:
    done = why(gateway, "--json", "-n", "100")
    assert done.returncode == 1, done.stderr
    assert "TOPSECRET" not in done.stdout
    answer = json.loads(done.stdout)
    assert answer["invalid_lines"] == 0
    assert answer["cache_log_problem"] is None
    return list(answer["causes"])


# The URL of the newest request, its cause, the sentence, and a part of what to do. POLICY and SECRETS are paths of the
# gateway. Only `no-descriptors` has no request.
EXPECTED = [
    (
        "https://closed.example/a/b",
        "policy",
        "The rule closed (POLICY:6) denies it: It is closed.",
        "add above closed: `- {name: allow-closed-example, action: allow, hosts: [closed.example], methods: [GET], "
        "paths: [/a/b]}`.",
    ),
    (
        "https://paths.example/closed",
        "no-rule",
        "No rule allows paths.example: Ask for a host. The rule paths (POLICY:7) does not match: paths.",
        "add this rule: `- {name: allow-paths-example, action: allow, hosts: [paths.example], methods: [GET], "
        "paths: [/closed]}`.",
    ),
    (
        "https://paths.example/open/%2e%2e/x",
        "ambiguous-path",
        "The policy decides differently for some readings of the path.",
        "Allow both spellings",
    ),
    (
        "https://paths.example/%1b",
        "invalid-request",
        "Not a request that can be judged: the path holds a control character.",
        "another kind of request",
    ),
    (
        "http://169.254.169.254/latest/meta-data/",
        "machine-address",
        "169.254.169.254 is an address at which a cloud machine gets its credentials, and the rule default denies it.",
        "Do not open it",
    ),
    (
        "http://10.0.0.9/",
        "no-rule",
        "No rule allows 10.0.0.9: Ask for a host.",
        'hosts: ["10.0.0.9"], methods: [GET], paths: [/], private: true}`, which opens a private address',
    ),
    (
        "https://private.open.example/",
        "private-address",
        "private.open.example has a private address (DNS gives 10.0.0.5 now), and the rule open (POLICY:8) lacks "
        "`private: true`.",
        "set `private: true` on the rule open (POLICY:8).",
    ),
    (
        "https://keyed.example/",
        "credential-unavailable",
        "The credential no-token is unavailable: secret missing: the file SECRETS/missing cannot be read: No such "
        "file or directory.",
        "store one line of printable ASCII",
    ),
    (
        "https://none.open.example/",
        "name-unresolved",
        "The name none.open.example does not resolve: it does not exist, or the gateway's name server does not answer.",
        "`getent hosts NAME`",
    ),
    (
        "https://refused.open.example:8085/",
        "origin-refused",
        "refused.open.example:8085 (203.0.113.10) refused the connection, or no route leads to it.",
        "openssl s_client -connect refused.open.example:8085",
    ),
    (
        "http://silent.open.example:8086/",
        "origin-silent",
        "silent.open.example:8086 (203.0.113.10) did not answer the connection in time.",
        "packet filter",
    ),
    (
        "http://slow.open.example/x",
        "origin-slow",
        "slow.open.example:80 (203.0.113.10) took the request and did not send its whole answer in time.",
        "It may have carried out the request",
    ),
    *(
        (
            f"https://{name}/",
            "origin-certificate",
            f"The certificate of {name}:443 {fault}.",
            cure,
        )
        for name, (fault, cure) in CERTIFICATES.items()
    ),
    (
        "distrust.open.example:443",
        "ca-not-trusted",
        "The client does not trust the gateway's CA: it ended TLS with the alert `unknown CA`.",
        "Add the gateway's ca.crt",
    ),
    (
        "unseen.closed.example:443",
        "no-rule",
        "No rule allows unseen.closed.example: Ask for a host. The client did not see that: it does not trust the "
        "gateway's CA (alert `unknown CA`).",
        "add this rule: `- {name: allow-unseen-closed-example, action: allow, hosts: [unseen.closed.example]}`.",
    ),
    (
        "error:invalid-request",
        "tls-to-plain-port (likely)",
        "The client speaks TLS to the proxy, which has none on this port; or it speaks no HTTP.",
        "sudo ./install.sh --tls",
    ),
    (
        "ssh.open.example:443",
        "no-tls-in-tunnel",
        "The client sent something other than TLS in a tunnel to ssh.open.example:443.",
        "Only TLS passes",
    ),
    (
        "https://b.open.example/",
        "authority-mismatch",
        "The request is for b.open.example, in a tunnel to a.open.example:443 with the TLS server name a.open.example: "
        "they differ, or the certificate of the server does not cover the host.",
        "Let the client open a tunnel for each host",
    ),
    (
        "https://c.open.example/",
        "authority-mismatch",
        "The request is for c.open.example, in a tunnel to c.open.example:443 with the TLS server name d.open.example: "
        "they differ, or the certificate of the server does not cover the host.",
        "with the same name in TLS and Host",
    ),
    (
        "http://vm.example/?wrong",
        "login-refused",
        "The login at the proxy is wrong: no client has this name with this token, the token has expired, or the "
        "address is not in the client's networks.",
        "squidkeeper client add",
    ),
    (
        "http://vm.example/none",
        "login-needed",
        "vm.example is open to clients that log in, and this one sent no login.",
        "squidkeeper client add",
    ),
    (
        "https://pay.example/a",
        "asked",
        "The rule paid (POLICY:11) asks about pay.example: the request is denied until a person approves it: Ask Ann. "
        "Its ticket NUMBER is pending now.",
        "`sudo squidkeeper ask approve NUMBER --for 2h`",
    ),
    (
        "http://unasked.open.example/",
        "no-helper",
        "No helper of the gateway answered, so the request was denied.",
        "can Squid's account run the program",
    ),
    (
        None,
        "no-descriptors",
        "Squid is out of file descriptors, and takes no connection until others end.",
        "max_filedescriptors 16384",
    ),
]


@pytest.mark.parametrize(
    ("url", "cause", "sentence", "remedy"), EXPECTED, ids=[f"{one[1]}-{one[0]}" for one in EXPECTED]
)
def test_a_failure_has_its_cause_its_sentence_and_what_to_do(
    gateway: Gateway, found: list[dict[str, Any]], url: str | None, cause: str, sentence: str, remedy: str
) -> None:
    shown = url.partition("?")[0] if url else None
    code, _, likely = cause.partition(" ")
    [one] = [
        one
        for one in found
        if one["cause"] == code
        and {*(request["url"] for request in one["newest"])} <= {shown, endpoint_of(shown or "-")}
    ]
    paths = {"POLICY": f"{gateway.policy_folder}/policy.yaml", "SECRETS": f"{gateway.policy_folder}/secrets"}
    with closing(TicketStore(gateway.root / "state")) as store:
        paths["NUMBER"] = store.pending(0)[0].number
    for name, path in paths.items():
        sentence, remedy = sentence.replace(name, path), remedy.replace(name, path)
    assert one["sentence"] == sentence
    assert with_commands(remedy, gateway.layout) in one["remedy"]
    assert one["likely"] is bool(likely)


def test_nothing_else_failed(found: list[dict[str, Any]]) -> None:
    assert len(found) == len(EXPECTED)
    assert "fine.open.example" not in json.dumps(found)


def test_a_page_names_the_id_by_which_its_cause_is_found(gateway: Gateway) -> None:
    page = curl(gateway, "https://closed.example/by-id")
    request_id = page.line("Request ID")
    assert request_id
    done = why(gateway, request_id)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("policy: once, last ")
    assert f"GET https://closed.example/by-id  ({request_id})\n" in done.stdout
    assert done.stdout.count("To do:") == 1


def test_the_command_on_the_page_of_a_failure_tells_its_cause(gateway: Gateway) -> None:
    page = curl(gateway, "https://keyed.example/by-id")
    *_, command = re.findall("^For the operator: sudo (.*)$", page.text, re.MULTILINE)
    assert command.endswith(f" {page.line('Request ID')}")
    assert run("sh", "-c", command, check=False).startswith("credential-unavailable: once, last ")


def test_a_name_that_is_public_now_is_said_to_be_so(gateway: Gateway, names: Names) -> None:
    names.set("turned.open.example", ["10.0.0.5"])
    curl(gateway, "https://turned.open.example/")
    names.set("turned.open.example", [PUBLIC])
    done = why(gateway, "--host", "turned.open.example")
    assert "had a private address, or one of the gateway's own (DNS gives 203.0.113.10 now)" in done.stdout


def test_the_rule_that_is_proposed_opens_the_request(gateway: Gateway, origins: Origins, tmp_path: Path) -> None:
    answer = json.loads(why(gateway, "--json", "--url", "https://closed.example/a/b").stdout)
    [opens] = [one["details"]["opens"] for one in answer["causes"] if one["cause"] == "policy"]
    (tmp_path / "policy.yaml").write_text(POLICY.replace("rules:\n", f"rules:\n  {opens}\n"))
    (tmp_path / "secrets").mkdir()
    asked: list[str | Path] = [f"{gateway.root}/bin/squidkeeper", "explain", "--policy", tmp_path]
    assert run(*asked, "GET", "https://closed.example/a/b").startswith("ALLOW")
    assert run(*asked, "GET", "https://closed.example/a/c", check=False).startswith("DENY")
