"""What a helper loads of the program: what stands between a client and the internet.

helpers/REVIEW.md lists the modules for whoever reviews them. A module that a helper
imports in the middle of a session counts.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tokenize
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import write_policy

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
REVIEW = ROOT / "helpers/REVIEW.md"
# Runs a command, and writes at its end which modules are there.
RECORDING = """
import atexit, sys
from pathlib import Path
from squidkeeper.cli import main

def write() -> None:
    names = [name for name in sys.modules if name.split(".")[0] == "squidkeeper"]
    Path(sys.argv[1]).write_text("\\n".join(names))

atexit.register(write)
main(sys.argv[2:])
"""
EVERYTHING = """
clients:
  agents: {networks: [192.0.2.0/24]}
  bot: {token_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}
defaults: {watch_secrets: true}
rules:
  - {name: closed, action: deny, hosts: [closed.example], reason: Closed.}
  - {name: ask, action: ask, hosts: [ask.example]}
  - {name: chat, action: allow, hosts: [chat.example], methods: [POST], body: {json: {/model: [small]}}, meter: tokens}
  - {name: push, action: allow, hosts: [git.example], body: {git: {push: [refs/heads/agent/**]}}}
  - {name: tools, action: allow, hosts: [mcp.example], body: {mcp: {tools: [search]}}}
  - {name: worktime, action: allow, hosts: [day.example], when: {days: [mon-fri], timezone: Europe/Berlin}}
  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
  - {name: inside, action: allow, hosts: [inside.internal, 10.0.0.0/8], private: true}
  - {name: bare, action: allow, hosts: [bare.example], strip: [Cookie], websocket: true}
  - {name: api, action: allow, hosts: [api.example], paths: ["regex:/v(?P<n>[0-9])/.*"], query: {q: "*"}}
  - {name: open, action: allow, hosts: [open.example, packages.example], methods: [GET, HEAD]}
presets: ["npm@1"]
rewrites:
  - {name: mirror, hosts: [packages.example], paths: [/simple/**], to: "https://inside.internal/p{path}"}
upstreams:
  - {name: company, hosts: [open.example], url: "http://proxy.internal:3128"}
secrets:
  token: {file: token}
  decoy: {file: decoy}
credentials:
  - {name: api, hosts: [api.example], bearer: token}
quotas:
  - {name: requests, per: client, requests: 600, every: minute}
  - {name: budget, per: client, tokens: 1000000, every: day}
"""
AT = "192.0.2.1 - {method} https {host} 443 {host} {host}%3A443 -"
HOSTS = (
    *("closed.example", "ask.example", "chat.example", "git.example", "mcp.example"),
    *("day.example", "pinned.example", "inside.internal", "bare.example"),
    *("api.example", "open.example", "packages.example", "registry.npmjs.org"),
)
NINE = [AT.format(method="POST", host=host) for host in HOSTS]
URLS = [
    f"{nine} https://{host}/v1/a?q=b" for nine, host in zip(NINE, HOSTS, strict=True)
]
# The session of each helper, and how many tokens of ours it may load: with the policy
# that is installed, and with one that uses everything.
HELPERS = {
    "acl --scope host": (
        [f"{n} {line} -" for n, line in enumerate(NINE)],
        69_000,
        69_000,
    ),
    "acl --scope request": (
        [f"{n} {line} -" for n, line in enumerate(URLS)],
        69_000,
        91_000,
    ),
    "rewrite": (
        [f"https://{h}/simple/x {n}" for h, n in zip(HOSTS, NINE, strict=True)],
        71_000,
        79_000,
    ),
    "credential": ([f"{n} {line} - -" for n, line in enumerate(URLS)], 76_500, 85_000),
    "meter": (
        [f"{n} {line} open - - 1 2 3 -" for n, line in enumerate(NINE)],
        73_500,
        73_500,
    ),
    "login": (["1 bot secret 192.0.2.1 -"], 64_000, 64_000),
    "throttle --scope client": (["1 192.0.2.1", "2 192.0.2.2"], 12_500, 12_500),
    "certificate": ([], 14_500, 14_500),
}
WITHOUT_POLICY = ("throttle", "certificate")
# folders, whose first file says what they hold and little else
PACKAGES = {
    ".".join(path.relative_to(ROOT / "helpers").parent.parts)
    for path in (ROOT / "helpers/squidkeeper").rglob("__init__.py")
}


def loaded(command: str, lines: list[str], policy: Path, folder: Path) -> list[str]:
    """Run a helper through a session; return the modules that it has loaded."""
    kind = command.split()[0]
    arguments = ["--state", str(folder / "state")]
    if kind not in WITHOUT_POLICY:
        arguments += ["--policy", str(policy)]
    if kind == "rewrite":
        arguments += ["--concurrency", "0"]
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            RECORDING,
            folder / "modules",
            *command.split(),
            *arguments,
        ],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(said.stdout.splitlines()) == len(lines), said.stdout + said.stderr
    assert "does not load" not in said.stderr
    assert "policy-unavailable" not in said.stdout, said.stdout
    return (folder / "modules").read_text().splitlines()


def listed(section: str = "") -> set[str]:
    """Return the modules that the review names, in one section or in all."""
    text = REVIEW.read_text()
    part = text.split(f"\n## {section}", 1)[1].split("\n## ")[0] if section else text
    paths = re.findall(r"`(?!tests/)([a-z_/]+)\.py`", part)
    return {f"squidkeeper.{path.replace('/', '.')}" for path in paths}


def tokens(modules: list[str]) -> int:
    """Count what a reviewer reads: names, numbers, texts and operators."""
    read = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)
    count = 0
    for name in modules:
        spec = find_spec(name)
        assert spec
        assert spec.origin
        text = Path(spec.origin).read_text()
        found = tokenize.generate_tokens(io.StringIO(text).readline)
        count += sum(token.type in read for token in found)
    return count


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    policy = tmp_path / "policy"
    shutil.copytree(ROOT / "policy/lists", policy / "lists")
    shutil.copy(ROOT / "policy/policy.yaml", policy)
    return policy


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    policy = write_policy(tmp_path / "policy", EVERYTHING)
    for name in ("token", "decoy"):
        (policy / name).write_text(f"the-value-of-{name}\n")
        (policy / name).chmod(0o600)
    return policy


@pytest.mark.parametrize("command", HELPERS)
@pytest.mark.parametrize("uses", ["installed", "everything"])
def test_a_helper_loads_what_the_review_lists_and_no_more(
    command: str, uses: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lines, *most = HELPERS[command]
    modules = loaded(command, lines, request.getfixturevalue(uses), tmp_path)
    unlisted = set(modules) - listed() - PACKAGES
    assert unlisted == set(), (
        "a reviewer has to know these: list them, or load them later"
    )
    assert tokens(modules) <= most[uses == "everything"]


def test_the_review_lists_what_is_there() -> None:
    assert [name for name in sorted(listed()) if find_spec(name) is None] == []
    assert tokens(sorted(listed("Read these"))) <= 60_000
