"""The leak hunt: canary secrets go through all that can happen to a request, and are
then looked for everywhere.
"""

import base64
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from squidkeeper.policy.language.model import Token
from squidkeeper.policy.language.sealed_tokens import format_content
from squidkeeper.serving.credentials.sealing import SealingPrivateKey, seal_bytes
from tests.leak_hunt import Hunt
from tests.waiting import wait_for

from . import canaries
from .curl import CurlFailed, curl
from .fetching import Fetching, put_command
from .gateway import Gateway, NewGateway
from .observer import Exporter, fetch
from .origin import Answer, Origins, Seen
from .raw import Raw, tunnel

LOGIN = "canary-Login+of/the=hunt~0011"  # the token of a client
MORE = {  # secrets of forms and sources that are not planted in each gateway
    "canary-named": "canary-Named+of/the=hunt~0012",
    "canary-client-secret": "canary-ClientSecret+of/the=hunt~0013",
    "canary-command": "canary-Command+of/the=hunt~0014",
    "canary-oauth2": "canary-OAuth2+of/the=hunt~0015",
    "canary-github": "canary-GitHub+of/the=hunt~0016",
    "canary-sealed": "canary-Sealed+of/the=hunt~0017",
    "canary-parameter": "canary-Parameter+of/the=hunt~0020",
    "canary-aws-id": "AKIACANARYOFTHEHUNT0021",
    "canary-aws-key": "canary-AwsKey+of/the=hunt~0022",
    "canary-aws-session": "canary-AwsSession+of/the=hunt~0023",
}
NEVER_SENT = {"canary-aws-key"}  # it makes a signature
BAIT = "canary-Bait+of/the=hunt~0018"  # of `canaries:`; clients send it
PLACEHOLDER = "canary-Placeholder-0019"  # no secret
SERVER = "203.0.113.10"  # of tokens
POLICY = f"""
version: 1
clients:
  canary: {{token_sha256: {Token.of(LOGIN).sha256}}}
rules:
  - {{name: closed, action: deny, hosts: [basic.canary.example], paths: [/closed/**], reason: This is closed.}}
  - {{name: login, action: allow, clients: [canary], hosts: [login.example]}}
  - {{name: more, action: allow, hosts: [.more.example]}}
secrets:
  canary-named: {{file: secrets/canary-named}}
  canary-parameter: {{file: secrets/canary-parameter}}
  canary-sealing-key: {{file: secrets/canary-sealing-key}}
  canary-aws-id: {{file: secrets/canary-aws-id}}
  canary-aws-key: {{file: secrets/canary-aws-key}}
  canary-aws-session: {{file: secrets/canary-aws-session}}
  canary-client-secret: {{file: secrets/canary-client-secret}}
  canary-app-key: {{file: secrets/canary-app-key}}
  canary-command: {{command: {{run: [give-canary]}}}}
  canary-oauth2:
    oauth2: {{token_url: "https://{SERVER}/token", grant: client_credentials, client_id: canary,
             client_secret: canary-client-secret, ca: upstream.crt}}
  canary-github:
    github_app: {{api_url: "https://{SERVER}", app_id: 1, installation_id: 2, private_key: canary-app-key,
                 repositories: [app], permissions: {{contents: read}}, ca: upstream.crt}}
canaries:
  canary-bait: {{file: secrets/canary-bait}}
sealed_tokens: {{keys: [canary-sealing-key]}}
credentials:
  - {{name: held, hosts: [held.more.example], paths: [/v1/**], bearer: canary-named, placeholder: {PLACEHOLDER}}}
  - name: several
    hosts: [named.more.example]
    headers: {{X-Canary-Key: "{{canary-named}}", Authorization: "Bearer {{canary-named}}", Api-Key: plain}}
  - name: parameter
    hosts: [parameter.more.example, broken.more.example]
    parameters: {{key: "{{canary-parameter}}"}}
  - {{name: command, hosts: [command.more.example], bearer: canary-command}}
  - {{name: oauth2, hosts: [oauth2.more.example], bearer: canary-oauth2}}
  - {{name: github, hosts: [github.more.example], bearer: canary-github}}
  - name: aws
    hosts: [aws.more.example]
    aws_sigv4: {{access_key_id: canary-aws-id, secret_access_key: canary-aws-key, session_token: canary-aws-session,
                region: eu-central-1, service: s3}}
"""
DOMAIN = canaries.DOMAIN
APP_KEY = (
    rsa.generate_private_key(65537, 2048)
    .private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    .decode()
)
SEALING_KEY = SealingPrivateKey.new()
# no file may hold it whole
GIVE_CANARY = f"printf '%s%s' {MORE['canary-command'][:9]} {MORE['canary-command'][9:]}"


@dataclass
class Told:
    """What clients and operators were told, by place."""

    gateway: Gateway
    parts: dict[str, str] = field(default_factory=dict)

    def get(self, url: str, *options: str) -> int:
        """Ask for a URL as a client, and keep the page."""
        with suppress(CurlFailed):
            reply = curl(self.gateway, url, "--max-time", "20", *options)
            self.keep(f"the page of {url}", f"{reply.headers}\n{reply.text}")
            return reply.status
        return 0

    def run(self, *command: str | Path) -> None:
        """Run a command of the gateway's, and keep what it prints."""
        done = self.gateway.command(*command)
        assert "Traceback" not in done.stderr, done.stderr
        self.keep(f"squidkeeper {command[0]}", done.stdout + done.stderr)

    def keep(self, place: str, text: str) -> None:
        self.parts[f"{place} #{len(self.parts)}"] = text


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, all_origins: Origins) -> Gateway:
    planted = (
        "named",
        "client-secret",
        "parameter",
        "aws-id",
        "aws-key",
        "aws-session",
    )
    secrets: dict[str, bytes | str] = {
        f"canary-{name}": MORE[f"canary-{name}"] for name in planted
    }
    secrets |= {
        "canary-app-key": APP_KEY,
        "canary-sealing-key": SEALING_KEY.reveal(),
        "canary-bait": BAIT,
    }
    gateway = new_gateway(POLICY, "half_closed_clients off", secrets=secrets)
    canaries.plant(gateway)
    gateway.write("upstream.crt", all_origins.authority.certificate.read_text())
    put_command(gateway, "give-canary", GIVE_CANARY)
    with core_dumps():
        return gateway.start()


@contextmanager
def core_dumps() -> Iterator[None]:
    """Let what is started meanwhile dump core, unless it forbids that itself."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(
        resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture(scope="module")
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    with core_dumps(), Exporter(gateway, 9190) as exporter:
        yield exporter


@pytest.fixture(scope="module")
def fetcher(gateway: Gateway, all_origins: Origins) -> Iterator[Fetching]:
    """The fetching process, which runs until the last test of this module has ended."""
    all_origins.forget()
    all_origins.fallback = Answer()
    all_origins.answers[f"{SERVER}/token"] = token_answer(
        "access_token", "canary-oauth2"
    )
    all_origins.answers[f"{SERVER}/app/installations/2/access_tokens"] = token_answer(
        "token", "canary-github"
    )
    fetcher = Fetching(gateway)
    with core_dumps():
        fetcher.start()
    yield fetcher
    fetcher.stop()


@pytest.fixture(scope="module")
def told(
    gateway: Gateway, exporter: Exporter, fetcher: Fetching, all_origins: Origins
) -> Told:
    """A gateway after the whole mix of traffic, with all that it told."""
    told = Told(gateway)
    for part in (
        more_forms,
        every_canary,
        bad_answers,
        malformed,
        methods,
        broken_policy,
        rotation,
        killed_helpers,
    ):
        part(told, all_origins)
    ask_the_operators_commands(told)
    for path in ("/", "/metrics", "/healthz", "/status.json"):
        told.keep(f"the exporter's {path}", fetch(exporter.port, path).text)
    all_origins.fallback = Answer()
    return told


def token_answer(field: str, name: str) -> Answer:
    """The answer of a server of tokens."""
    body = json.dumps(
        {field: MORE[name], "token_type": "bearer", "expires_in": 3600}
    ).encode()
    return Answer(
        201 if field == "token" else 200, body, {"Content-Type": "application/json"}
    )


def more_forms(told: Told, origins: Origins) -> None:
    """Secrets that are fetched, several headers of any name, and the login of a client:
    right and wrong.
    """
    for host in ("named", "command", "oauth2", "github"):
        wait_for(
            lambda host=host: told.get(f"https://{host}.more.example/") == 200,  # type: ignore[misc]
            f"the secret of {host}",
        )
    assert (
        told.get("https://sealed.more.example/", "-H", f"X-Api-Key: {sealed()}") == 200
    )
    assert told.get("https://parameter.more.example/?q=1") == 200
    assert told.get("https://aws.more.example/bucket/x?q=1") == 200
    assert told.get("https://aws.more.example/bucket/x?X-Amz-Date=1") == 403
    heads = b"".join(seen.head for seen in origins.seen).decode("latin-1")
    arrived = {
        found.split(": ")[1].split(" ")[0]
        for found in Hunt(MORE).in_data("origins", heads)
    }
    assert arrived == set(MORE) - NEVER_SENT, "no hunt without traffic"
    assert told.get("https://login.example/", "--proxy-user", f"canary:{LOGIN}") == 200
    for login in (f"canary:{LOGIN}x", f"other:{LOGIN}", f"{LOGIN}:{LOGIN}"):
        told.get("http://login.example/", "--proxy-user", login)
    told.get(
        "https://login.example/",
        "--proxy-user",
        f"canary:{LOGIN}",
        "--header",
        "Proxy-Authorization: x",
    )
    malformed_logins(told)
    parameters(told, origins)
    sealed_tokens(told)
    secrets_of_clients(told, origins)
    origins.seen.clear()


def sealed(**fields: str | list[str]) -> str:
    """A token for one host, with these fields too."""
    content = {
        "hosts": ["sealed.more.example"],
        "secret": MORE["canary-sealed"],
        **fields,
    }
    return seal_bytes(format_content(content), SEALING_KEY.public)


def malformed_logins(told: Told) -> None:
    """A login with a line end behind its token, one of another scheme, and one behind a
    NUL.
    """
    line_end = base64.b64encode(f"canary:{LOGIN}\n".encode()).decode()
    for login in (f"Basic {line_end}", f"Bearer {LOGIN}", f"Digest {LOGIN}"):
        assert (
            told.get(
                "http://login.example/", "--header", f"Proxy-Authorization: {login}"
            )
            == 407
        )
    with Raw(told.gateway) as client:
        client.send(
            f"GET http://login.example/ HTTP/1.1\r\nHost: login.example\r\nAccept: \0{LOGIN}\r\n\r\n"
        )
        assert getattr(client.answer(), "status", None) == 400


def parameters(told: Told, origins: Origins) -> None:
    """A secret in the query of the URL that is fetched, from an origin that fails in
    each way.
    """
    for number, answer in enumerate(BAD):
        origins.answers[f"parameter.more.example/bad/{number}"] = answer
        told.get(f"https://parameter.more.example/bad/{number}?key=mine&q=1")
    origins.untrusted.add("broken.more.example")
    assert (
        told.get("https://broken.more.example/?q=1", "-H", "Accept: text/html") == 503
    )
    assert told.get("http://parameter.more.example/?q=1") == 200


def sealed_tokens(told: Told) -> None:
    """Sealed tokens that are refused, each for another reason."""
    url, token = "https://sealed.more.example/", sealed()
    altered = f"{token[:-6]}{'AAAAAA' if token[-6:] != 'AAAAAA' else 'BBBBBB'}"
    for refused in (
        altered,
        sealed(expires="2020-01-01T00:00:00Z"),
        sealed(methods=["POST"]),
        f"{token} {token}",
    ):
        assert told.get(url, "-H", f"Authorization: Bearer {refused}") == 403
    assert (
        told.get("https://named.more.example/", "-H", f"Authorization: Bearer {token}")
        == 403
    )
    assert (
        told.get(f"{url}?token={token}")
        == told.get(url, "-H", f"Cookie: a={token}")
        == 403
    )


def secrets_of_clients(told: Told, origins: Origins) -> None:
    """A client sends secrets and placeholders where they do not belong: the denials
    tell none of them.
    """
    before = len(origins.seen)

    def status(*asked: str) -> int:
        return curl(
            told.gateway, *asked
        ).status  # not its page, which shows the client the URL that it sent

    for value in (
        BAIT,
        MORE["canary-named"],
        canaries.FILES["canary-bearer"],
        MORE["canary-command"],
    ):
        coded = base64.b64encode(f"x:{value}".encode()).decode()
        for place in (
            f"?key={quote(value, safe='')}",
            f"{quote(value, safe='')}/x",
            f"?key={value.encode().hex()}",
        ):
            assert status(f"https://bearer.{DOMAIN}/{place}") == 403
            assert status(f"http://bearer.{DOMAIN}/{place}") == 403
        for header in (
            "Authorization: Bearer",
            "User-Agent:",
            "Referer:",
            "Cookie: key=",
            "X-Api-Key:",
            "Range: bytes=",
        ):
            assert status(f"https://bearer.{DOMAIN}/", "-H", f"{header} {value}") == 403
        assert (
            status(f"https://bearer.{DOMAIN}/", "-H", f"Authorization: Basic {coded}")
            == 403
        )
    assert (
        status(
            "https://bearer.canary.example/",
            "-H",
            f"Authorization: Bearer {PLACEHOLDER}",
        )
        == 403
    )
    assert len(origins.seen) == before
    assert (
        status(
            "https://held.more.example/v1/x",
            "-H",
            f"Authorization: Bearer {PLACEHOLDER}",
        )
        == 200
    )


def every_canary(told: Told, origins: Origins) -> None:
    """Each canary arrives, once allowed and once on a denied path."""
    assert canaries.send(told.gateway) == len(canaries.HOSTS)
    heads = b"".join(seen.head for seen in origins.seen).decode("latin-1")
    arrived = {
        found.split(": ")[1].split(" ")[0]
        for found in Hunt(canaries.SECRETS).in_data("origins", heads)
    }
    assert arrived == set(canaries.SECRETS) - {"canary-unused", "canary-new"}, (
        "no hunt without traffic"
    )
    for path in ("/closed/x", "/closed/%2e%2e/x?q=1"):
        assert told.get(f"https://basic.{DOMAIN}{path}") == 403
    told.get(f"http://bearer.{DOMAIN}/plain")


BAD: tuple[Answer | Callable[[Seen], Answer], ...] = (
    Answer(500, b"failed"),
    Answer(302, headers={"Location": "https://elsewhere.example/"}),
    Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
    Answer(407, headers={"Proxy-Authenticate": 'Basic realm="x"'}),
    Answer(headers={"Content-Length": "no number"}),
    Answer(headers={"Content-Length": "5", "Transfer-Encoding": "chunked"}),
    Answer(headers={"X-Large": "x" * 70_000}),
    Answer(headers={"Connection": "Authorization", "X\x01": "odd"}),
    Answer(101, b"", {"Upgrade": "websocket", "Connection": "Upgrade"}),
)


def bad_answers(told: Told, origins: Origins) -> None:
    """Origins that fail, redirect or answer what is no HTTP; and those whose
    certificates are wrong.
    """
    for number, answer in enumerate(BAD):
        origins.answers[f"header.{DOMAIN}/bad/{number}"] = answer
        told.get(
            f"https://header.{DOMAIN}/bad/{number}",
            "--location",
            "-H",
            "Accept: text/html",
        )
        told.get(
            f"https://header.{DOMAIN}/bad/{number}", "-H", "Accept: application/json"
        )
    origins.untrusted.add(f"untrusted.{DOMAIN}")
    origins.certificates[f"silent.{DOMAIN}"] = ("another.example",)
    assert (
        told.get(f"https://untrusted.{DOMAIN}/")
        == told.get(f"https://silent.{DOMAIN}/")
        == 503
    )


def malformed(told: Told, origins: Origins) -> None:
    """Requests that Squid or a helper refuses, in a tunnel to a host with a
    credential.
    """
    host = f"both.{DOMAIN}"
    for head in (
        "GET /x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/9.9\r\nHost: {host}\r\n\r\n",
        "GET /x#y HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nHost: {host}\r\nX: \0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: {host}\r\nExpect: nonsense\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: {host}\r\nX-Big: " + "x" * 70_000 + "\r\n\r\n",
        "GET https://u:p@{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "GET /" + "x" * 8_150 + " HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "no http at all\r\n\r\n",
    ):
        with suppress(OSError), tunnel(told.gateway, f"{host}:443") as client:
            reply = client.send(head.format(host=host)).answer()
            told.keep(f"the page of {head[:30]!r}", f"{reply}")
    with Raw(told.gateway) as client:
        told.keep(
            "the page of a request that is none",
            str(client.send(b"\0\0\r\n\r\n").answer()),
        )


def methods(told: Told, origins: Origins) -> None:
    """Methods, ranges, conditions and clients that go away in the middle."""
    url = f"https://both.{DOMAIN}/"
    for method in ("HEAD", "POST", "OPTIONS", "TRACE", "FROB"):
        told.get(url, *(["--head"] if method == "HEAD" else ["--request", method]))
    told.get(url, "-H", "Max-Forwards: 0", "--request", "TRACE")
    told.get(
        url,
        "-H",
        "Range: bytes=0-1",
        "-H",
        'If-None-Match: "x"',
        "-H",
        "Cache-Control: only-if-cached",
    )
    gate = origins.gate()
    origins.answers[f"both.{DOMAIN}/gone"] = Answer(gate=gate)
    with tunnel(told.gateway, f"both.{DOMAIN}:443") as client:
        client.send(f"GET /gone HTTP/1.1\r\nHost: both.{DOMAIN}\r\n\r\n")
        wait_for(lambda: gate.waiting, "the request at the origin")
    gate.open()


def broken_policy(told: Told, origins: Origins) -> None:
    """A reload with a policy that is wrong: the last good one stays in force."""
    gateway = told.gateway
    gateway.write(
        "yy-broken.yaml",
        "version: 1\nsecrets: {canary-bearer: {file: secrets/canary-bearer, nonsense: 1}}\n",
    )
    told.run("check", "--policy", gateway.policy_folder)
    wait_for(
        lambda: "yy-broken.yaml" in gateway.cache_log(),
        "the helpers to read the broken policy",
    )
    told.get(f"https://bearer.{DOMAIN}/with-a-broken-policy")
    (gateway.policy_folder / "yy-broken.yaml").unlink()


def rotation(told: Told, origins: Origins) -> None:
    """Secrets that are rotated, removed, empty, split, or no longer readable."""
    gateway, numbers = told.gateway, count()
    gateway.secret("canary-rotated", canaries.NEW)

    def arrives() -> bool:
        told.get(f"https://rotated.{DOMAIN}/{next(numbers)}")
        return canaries.NEW.encode() in origins.seen[-1].head

    wait_for(arrives, "the new value at the origin")
    file = gateway.policy_folder / "secrets/canary-removed"
    for value in (
        b"",
        b"canary-Removed+of/the=hunt~0007\r\nX: y",
        b"canary-Removed+of/the=hunt~0007\xff",
    ):
        file.write_bytes(value)
        assert told.get(f"https://removed.{DOMAIN}/") == 403
    file.chmod(0o600)
    os.chown(file, 0, 0)
    assert told.get(f"https://removed.{DOMAIN}/") == 403
    file.unlink()
    assert told.get(f"https://removed.{DOMAIN}/") == 403


def killed_helpers(told: Told, origins: Origins) -> None:
    """Helpers that are killed in the middle of a lookup, by signals that dump core."""
    for kind in ("credential", "acl --scope host", "rewrite"):
        killed = set(
            wait_for(
                lambda kind=kind: told.gateway.helpers(kind),  # type: ignore[misc]
                f"{kind} to be killed",
            )
        )
        told.gateway.kill_helpers(kind, signal.SIGABRT)
        wait_for(
            lambda: told.get(f"https://front.{DOMAIN}/killed") == 200,
            f"{kind} to be there again",
        )
        assert not killed & {*told.gateway.helpers(kind)}


def ask_the_operators_commands(told: Told) -> None:
    """Everything that people ask the gateway for."""
    gateway = told.gateway
    policy, log = gateway.policy_folder, gateway.root / "log/access.log"
    explain = ("explain", "--policy", policy, "--fragment", gateway.layout.fragment)
    commands: list[tuple[str | Path, ...]] = [
        ("check", "--policy", policy),
        ("doctor", "--root", gateway.root),
        ("doctor", "--root", gateway.root, "--json"),
        (*explain, "GET", f"https://front.{DOMAIN}/x"),
        (*explain, "--json", "GET", f"https://bearer.{DOMAIN}/x"),
        (*explain, "GET", f"https://removed.{DOMAIN}/x"),
        ("log", log),
        ("log", "--json", log),
        ("log", "--drift", *gateway.places),
        ("report", "--html", "-", *gateway.places),
        ("report", "--json", *gateway.places),
    ]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda command: told.run(*command), commands))


@pytest.fixture(scope="module")
def hunt() -> Hunt:
    body = max(APP_KEY.splitlines(), key=len)
    return Hunt(
        {
            **canaries.SECRETS,
            **MORE,
            "canary-login": LOGIN,
            "canary-app-key": body,
            "canary-bait": BAIT,
        },
        canaries.PLACES,
    )


def test_no_page_metric_or_command_tells_a_secret(told: Told, hunt: Hunt) -> None:
    assert len(told.parts) > 55
    assert [
        found
        for place, text in told.parts.items()
        for found in hunt.in_data(place, text)
    ] == []


def test_no_file_of_the_gateway_holds_a_secret(told: Told, hunt: Hunt) -> None:
    assert hunt.in_folder(told.gateway.root) == []


def test_nobody_reads_a_secret_in_a_process(told: Told, hunt: Hunt) -> None:
    assert hunt.in_processes() == []


def test_the_fetching_process_has_values_in_their_files_alone(
    told: Told, fetcher: Fetching, hunt: Hunt
) -> None:
    folder = told.gateway.root / "run/secrets"
    values = "".join(file.read_text() for file in folder.glob("*.value"))
    assert all(
        MORE[f"canary-{name}"] in values for name in ("command", "oauth2", "github")
    ), "no hunt without values"
    assert {file.name for file in folder.iterdir() if file.suffix != ".value"} == {
        "status.json"
    }
    for part in ("cmdline", "environ"):
        assert (
            hunt.in_data(part, Path(f"/proc/{fetcher.pid}/{part}").read_bytes()) == []
        )


def test_the_hunt_finds_what_is_planted_in_each_of_these_places(
    told: Told, hunt: Hunt
) -> None:
    root, value = told.gateway.root, canaries.FILES["canary-unused"]
    places = (
        "log/cache.log",
        "log/access.log",
        "state/maintenance.json",
        "run/secrets/secrets.log",
    )
    for place in (*places, "etc/policy/secrets.bak", "core.1"):
        file = root / place
        before = file.read_bytes() if file.exists() else None
        file.write_bytes((before or b"") + f"\n# {value}\n".encode())
        assert hunt.in_folder(root) == [f"{file}: canary-unused (plain)"]
        file.unlink() if before is None else file.write_bytes(before)
    assert hunt.in_data("a page", "".join(told.parts.values()) + value) == [
        "a page: canary-unused (plain)"
    ]


def core_size(pid: int) -> list[str]:
    """The soft and the hard limit of a process for the size of a core dump."""
    [line] = [
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if "core file" in line
    ]
    return line.split()[4:6]


HELPERS = (
    *("acl --scope host", "acl --scope request", "rewrite", "credential"),
    *("throttle", "certificate", "login", "watch"),
)


def test_no_process_that_has_secrets_may_dump_core(
    told: Told, exporter: Exporter, fetcher: Fetching
) -> None:
    assert "0" not in core_size(told.gateway.pid), (
        "Squid, which starts the helpers, may"
    )
    # a rotation of the logs starts them again
    processes = wait_for(lambda: asked_helpers(told), "every helper")
    processes |= {"exporter": [exporter.pid], "secrets": [fetcher.pid]}
    limits = {
        kind: [core_size(pid) for pid in pids] for kind, pids in processes.items()
    }
    assert limits == {
        kind: [["0", "0"]] * len(pids) for kind, pids in processes.items()
    }


def asked_helpers(told: Told) -> dict[str, list[int]] | None:
    """Ask each helper; give their processes, once all are there."""
    told.get(f"https://front.{DOMAIN}/%22")
    told.get("http://login.example/", "--proxy-user", f"{time.monotonic_ns()}:wrong")
    processes = {kind: told.gateway.helpers(kind) for kind in HELPERS}
    return processes if all(processes.values()) else None


def test_a_helper_that_aborts_leaves_no_core_dump(told: Told) -> None:
    folders = {
        Path.cwd(),
        told.gateway.root,
        Path(f"/proc/{told.gateway.pid}/cwd").resolve(),
        Path("/"),
    }
    assert [
        file for folder in folders for file in folder.glob("core*") if file.is_file()
    ] == []
