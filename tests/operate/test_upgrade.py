"""Gateways upgraded from older revisions of this repository, on a machine that systemd
has booted: what an edit needs for the first time is there.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from squidkeeper.serving.parts import Part, read_in_force
from tests.waiting import wait_for

from .test_install import REPOSITORY, Gateway, base, free_port, gateway, source
from .test_install_fresh import Machine, booted, property_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

__all__ = ["base", "gateway", "source"]  # fixtures

POLICY = Path("/etc/squidkeeper/policy")
PORT = 8000  # of the origin
ADDRESS = "10.53.53.1"  # of the ports for clients without proxy settings
TOKEN, SECRET = "sqk_token-of-the-upgrade-0123456789", "e2e-upgrade-secret-0123456789"
PROGRAM = "/opt/squidkeeper/bin/squidkeeper"
REVISIONS = (
    pytest.param("0b3c7fe821226d5e34bc674ad62809c117099a3b", id="before bodies"),
    pytest.param(
        "0254da42f25e32d2210abe27bf1c32ba44a8be4a",
        id="before parts",
        marks=pytest.mark.long,
    ),
)


@dataclass(frozen=True, slots=True)
class Use:
    """An edit that uses parts for the first time, and a request that is denied without
    it.
    """

    rule: Mapping[str, object]
    parts: tuple[Part, ...]
    more: Mapping[str, object] = field(default_factory=dict)
    status: str = "404"  # of the origin, which has no such file
    ask: tuple[str, ...] = ()
    url: str = f"http://127.0.0.1:{PORT}/"

    def text(self, name: str) -> str:
        """The file of the policy."""
        at_origin = {"hosts": ["127.0.0.1"], "ports": [PORT], "private": True}
        usual = {"name": name, "action": "allow"}
        rule = {
            **usual,
            **({} if "hosts" in self.rule else at_origin),
            **self.rule,
        }
        if rule["hosts"] == at_origin["hosts"]:
            rule["paths"] = [f"/{name}"]
        return json.dumps({"version": 1, "rules": [rule], **self.more})


def credential(name: str, host: str, form: dict[str, object]) -> dict[str, object]:
    """A credential for a host, and its secret."""
    return {
        "secrets": {name: {"file": "secrets/key"}},
        "credentials": [{"name": name, "hosts": [host], **form}],
    }


POST = ("--header", "Content-Type: application/json", "--data", '{"model": "small"}')
SIGNED = dict.fromkeys(("access_key_id", "secret_access_key"), "aws")
USES = {
    "body": Use(
        {"body": {"json": {"/model": ["small"]}}},
        (Part.BODIES, Part.PRIVATE),
        status="501",  # of an origin that takes no POST
        ask=POST,
    ),
    "meter": Use(
        {"meter": "tokens"},
        (Part.METER,),
        {"quotas": [{"name": "m", "tokens": 9000000, "per": "all", "every": "day"}]},
    ),
    "quotas": Use(
        {},
        (Part.QUOTAS,),
        {"quotas": [{"name": "q", "requests": 9000, "per": "all", "every": "day"}]},
    ),
    "strip": Use({"strip": ["X-Debug"]}, (Part.STRIP,)),
    "single": Use({"connections": "single"}, (Part.SINGLE,)),
    "watch": Use(
        {},
        (Part.WATCH, Part.READ_HEADERS),
        {
            "secrets": {"watched": {"file": "secrets/key"}},
            "defaults": {"watch_secrets": True},
        },
    ),
    "ask": Use(
        {"hosts": ["asked.example"], "action": "ask"},
        (Part.ASK,),
        status="403",
        url="http://asked.example/",
    ),
    "rewrites": Use(
        {"hosts": ["moved.example"]},
        (Part.REWRITES,),
        {
            "rewrites": [
                {
                    "name": "moved",
                    "hosts": ["moved.example"],
                    "schemes": ["http"],
                    "to": f"http://127.0.0.1:{PORT}/moved",
                    "private": True,
                }
            ]
        },
        url="http://moved.example/",
    ),
    "credentials": Use(
        {},
        (Part.CREDENTIALS,),
        credential("own", "keyed.example", {"headers": {"X-Own": "{own}"}}),
    ),
    "signatures": Use(
        {},
        (Part.CREDENTIALS_BY_HEADERS,),
        credential(
            "aws", ".s3.example", {"aws_sigv4": {**SIGNED, "region": "eu-central-1"}}
        ),
    ),
    "upstreams": Use(
        {"hosts": ["parent.example"]},
        (Part.UPSTREAMS,),
        {
            "upstreams": [
                {
                    "name": "parent",
                    "hosts": ["parent.example"],
                    "url": f"http://127.0.0.1:{PORT}",
                    "resolve": "upstream",
                }
            ]
        },
        url="http://parent.example/",
    ),
    "logins": Use(
        {"clients": ["bot"]},
        (Part.LOGIN,),
        {"clients": {"bot": {"token_sha256": sha256(TOKEN.encode()).hexdigest()}}},
        ask=("--proxy-user", f"bot:{TOKEN}"),
    ),
    "passthrough": Use(
        {"hosts": ["passed.example"], "tls": "passthrough"},
        (Part.PASSTHROUGH,),
        status="403",  # which it passes for no plain request
        url="http://passed.example/",
    ),
    "websocket": Use({"websocket": True}, (Part.WEBSOCKET,)),
    "shared": Use(
        {
            "hosts": ["any.example"],
            "methods": ["GET", "HEAD"],
            "connections": "shared",
        },
        (Part.SHARED,),
        status="503",  # a name that no resolver knows
        url="http://any.example/",
    ),
}
ALWAYS = {Part.CERTIFICATES, Part.OVERRIDE_HEADERS, Part.PAGES}
QUICK = ("body", "meter")


def test_each_part_has_an_edit_that_uses_it_first() -> None:
    used = {part for use in USES.values() for part in use.parts}
    assert used | ALWAYS == {*Part}


def unpack(commit: str, folder: Path) -> Path:
    """The sources of a commit of this repository.

    It fails where the history does not go back so far.
    """
    command = ["git", "archive", "--format=tar", commit]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode:
        pytest.fail(
            f"this clone has no commit {commit}, from which the test upgrades"
            f" ({done.stderr.decode().strip()}): git fetch --unshallow"
        )
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=REVISIONS)
def upgraded(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    source: Path,
    wheels: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A machine whose gateway was installed by an older revision, and then upgraded."""
    old = unpack(request.param, source.with_name(f"old-{request.param[:8]}"))
    with booted(gateway, tmp_path_factory.mktemp("machine")) as machine:
        listen = f"127.0.0.1:{free_port()}"
        done = machine.run(old / "install.sh", "--wheels", wheels, "--listen", listen)
        assert done.returncode == 0, done.stdout + done.stderr
        machine.path(f"{POLICY}/policy.yaml").write_text("version: 1\n")
        # the environment that takes long to build, which the older revision removed
        venv = gateway.place("bin/squidkeeper").resolve().parent.parent
        machine.run("ln", "--symbolic", venv, "/opt/squidkeeper/")
        # the older revision had no file of settings
        settings = machine.path("/etc/squidkeeper/gateway.yaml")
        settings.write_text(f"version: 1\nlisten: {listen}\n")
        # not restarted: clients keep their connections
        assert "squid         reconfigured" in upgrade(machine, source)
        origin = ("python3", "-m", "http.server", str(PORT))
        machine.run("systemd-run", "--quiet", "--unit", "origin", *origin)
        secrets = machine.path(f"{POLICY}/secrets")
        secrets.mkdir()
        (secrets / "key").write_text(SECRET)
        (secrets / "key").chmod(0o640)
        yield machine


def upgrade(machine: Machine, source: Path, *options: str) -> str:
    done = machine.run(source / "install.sh", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listen_of(machine: Machine) -> str:
    return machine.path("/opt/squidkeeper/applied").read_text().split()[0]


def asked(machine: Machine, *words: str) -> str:
    code = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
    proxy = ("--max-time", "20", "--proxy", f"http://{listen_of(machine)}")
    return machine.run("curl", *code, *proxy, *words).stdout


def test_doctor_finds_nothing_after_the_upgrade(upgraded: Machine) -> None:
    done = upgraded.run(PROGRAM, "doctor")
    assert "No findings" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.long)
        for name in USES
    ],
)
def test_an_edit_is_in_force_that_uses_a_part_first(
    upgraded: Machine, name: str
) -> None:
    use, fragment = USES[name], upgraded.path("/etc/squid/squidkeeper.conf")
    url = f"{use.url}{name}" if str(PORT) in use.url else use.url
    if use.parts != (Part.ASK,):
        assert asked(upgraded, *use.ask, url) in ("403", "407")
    edit = upgraded.path(f"{POLICY}/{name}.yaml")
    edit.with_suffix(".new").write_text(use.text(name))
    edit.with_suffix(".new").rename(edit)

    def in_force() -> bool:
        there = read_in_force(fragment.read_text())
        return there >= {*use.parts} and asked(upgraded, *use.ask, url) == use.status

    log = ("journalctl", "--no-pager", "--lines", "30", "--unit", "squidkeeper-render")
    wait_for(in_force, lambda: upgraded.run(*log).stdout, 60)
    if name == "ask":
        assert "asked.example" in upgraded.run(PROGRAM, "ask").stdout


@pytest.mark.long
def test_what_install_sh_is_told_first_after_the_upgrade_starts(
    upgraded: Machine, source: Path
) -> None:
    """The ports for clients without proxy settings, and the fetching of secrets."""
    upgraded.run("ip", "address", "add", f"{ADDRESS}/24", "dev", "lo")
    program = upgraded.path("/etc/squidkeeper/commands/give-token")
    program.write_text("#!/bin/sh\nprintf value-of-the-command\n")
    program.chmod(0o755)
    text = {
        "version": 1,
        "secrets": {"fetched": {"command": {"run": ["give-token"]}}},
    }
    upgraded.path(f"{POLICY}/fetched.yaml").write_text(json.dumps(text))
    upgrade(upgraded, source, "--transparent", ADDRESS)
    for service in ("transparent", "dns", "secrets", "archive", "exporter"):
        assert property_of(upgraded, "User", service).startswith("squidkeeper-") or (
            service == "exporter"
        )
        state = property_of(upgraded, "ActiveState", service)
        assert state == "active" or service == "archive"
    where = ("--resolve", f"en.wikipedia.org:80:{ADDRESS}", "http://en.wikipedia.org/")
    code = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
    assert upgraded.run("curl", *code, *where).stdout == "403"
