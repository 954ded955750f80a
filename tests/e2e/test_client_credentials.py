"""git, pip and npm at servers that want a password or a token: the clients hold none,
and get what they ask for.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leak_hunt import Hunt

from .clients import gateway_variables
from .curl import clean
from .gateway import Gateway
from .network import run
from .origin import Answer, Origins, Seen
from .registries import git_http_backend, tar, wheel

POLICY = """
version: 1
clients: {agents: {networks: [127.0.0.0/8]}}
rules:
  - {name: git, action: allow, hosts: [git.example], paths: [/acme/**]}
  - {name: packages, action: allow, methods: [GET, HEAD], hosts: [pypi.example, npm.example]}
secrets:
  git: {file: secrets/git}
  pypi: {file: secrets/pypi}
  npm: {file: secrets/npm}
credentials:
  - {name: git, hosts: [git.example], paths: [/acme/**], basic: {username: x-access-token, password: git}}
  - {name: pypi, hosts: [pypi.example], basic: {username: __token__, password: pypi}}
  - {name: npm, hosts: [npm.example], bearer: npm}
"""
MANIFEST = json.dumps({"name": "private-package", "version": "1.0.0"})
SECRETS = {
    "git": "ghs_e2eTokenOfTheRepository+01",
    "pypi": "pypi-e2eTokenOfTheIndex/02",
    "npm": "npm_e2eTokenOfTheRegistry03",
}


def basic(username: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def private(authorization: str, serve: Callable[[Seen], Answer], seen: Seen) -> Answer:
    """Serve a request with this header alone."""
    if seen.values("Authorization") != [authorization]:
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="private"'})
    return serve(seen)


class Machine:
    """A client's machine: a home folder, and the environment that the gateway's clients
    have.
    """

    def __init__(self, gateway: Gateway, home: Path) -> None:
        self.home = home
        variables = gateway_variables(gateway, "--proxy", f"http://{gateway.authority}")
        # tests/conftest.py has pip install from a folder alone
        self._environment = {
            **{
                key: value
                for key, value in clean().items()
                if not key.startswith("PIP_")
            },
            **{
                key: str(gateway.ca) if value.endswith(".crt") else value
                for key, value in variables.items()
            },
            "GIT_SSL_CAINFO": str(gateway.ca),  # a VM has the CA in its own trust store
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",  # a client that is asked for a password fails
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "npm_config_audit": "false",
            "npm_config_fund": "false",
        }

    def run(self, *command: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        printed = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == status, printed
        return printed

    def holds(self) -> list[str]:
        """Name the secrets that this machine has."""
        return Hunt(SECRETS).in_folder(self.home)


@pytest.fixture
def machine(gateway: Gateway, tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(gateway, home)


def test_git_clones_and_pushes_to_a_private_repository(
    gateway: Gateway, origins: Origins, machine: Machine, tmp_path: Path
) -> None:
    repository = tmp_path / "acme/app.git"
    git = ("git", "-c", "user.name=agent", "-c", "user.email=agent@example.com")
    run("git", "init", "--quiet", "--bare", "--initial-branch", "main", repository)
    run("git", "-C", repository, "config", "http.receivepack", "true")
    wanted = basic("x-access-token", SECRETS["git"])
    origins.fallback = lambda seen: private(
        wanted, lambda request: git_http_backend(tmp_path, request), seen
    )
    url = "https://git.example/acme/app.git"
    machine.run("git", "clone", "--quiet", url, "first")
    # more than git sends in one piece
    (machine.home / "first/large").write_bytes(os.urandom(2_000_000))
    for command in (
        "checkout -q -B main",
        "add large",
        "commit -qm Add",
        "push origin main",
    ):
        machine.run(*git, "-C", "first", *command.split())
    machine.run("git", "clone", "--quiet", url, "second")
    assert (machine.home / "second/large").read_bytes() == (
        machine.home / "first/large"
    ).read_bytes()
    assert [
        seen.target for seen in origins.seen if seen.values("Authorization") != [wanted]
    ] == []
    assert any(seen.target.endswith("/git-receive-pack") for seen in origins.seen)
    assert machine.holds() == []


@pytest.mark.long
def test_pip_installs_from_a_private_index(
    gateway: Gateway, origins: Origins, machine: Machine
) -> None:
    name = "private_package-1.0-py3-none-any.whl"
    page = f'<!DOCTYPE html><html><body><a href="/files/{name}">{name}</a></body></html>'.encode()
    answers = {
        "/simple/private-package/": Answer(
            body=page, headers={"Content-Type": "text/html"}
        ),
        f"/files/{name}": Answer(
            body=wheel("private_package", "ANSWER = 42\n"),
            headers={"Content-Type": "application/octet-stream"},
        ),
    }
    wanted = basic("__token__", SECRETS["pypi"])
    origins.fallback = lambda seen: private(
        wanted, lambda request: answers.get(request.target, Answer(404)), seen
    )
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        machine.home / "packages",
    )
    machine.run(*pip, "--index-url", "https://pypi.example/simple/", "private-package")
    assert (machine.home / "packages/private_package.py").exists()
    assert {tuple(seen.values("Authorization")) for seen in origins.seen} == {(wanted,)}
    assert machine.holds() == []


@pytest.mark.clients
@pytest.mark.parametrize(
    "npmrc",
    ["", "//npm.example/:_authToken=the-gateway-has-it\n"],
    ids=["nothing", "placeholder"],
)
def test_npm_installs_from_a_private_registry(
    gateway: Gateway, origins: Origins, machine: Machine, npmrc: str
) -> None:
    (machine.home / ".npmrc").write_text(npmrc)
    package, url = (
        tar({"package/package.json": MANIFEST}),
        "https://npm.example/private-package/-/private-package-1.0.0.tgz",
    )
    version = {
        "name": "private-package",
        "version": "1.0.0",
        "dist": {
            "tarball": url,
            "shasum": hashlib.sha1(package, usedforsecurity=False).hexdigest(),
        },
    }
    listing = {
        "name": "private-package",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": version},
    }
    answers = {
        "/private-package": Answer(
            body=json.dumps(listing).encode(),
            headers={"Content-Type": "application/json"},
        ),
        "/private-package/-/private-package-1.0.0.tgz": Answer(body=package),
    }
    wanted = f"Bearer {SECRETS['npm']}"
    origins.fallback = lambda seen: private(
        wanted, lambda request: answers.get(request.target, Answer(404)), seen
    )
    machine.run(
        "npm",
        "install",
        "--prefix",
        ".",
        "--registry",
        "https://npm.example/",
        "private-package",
    )
    assert (machine.home / "node_modules/private-package/package.json").exists()
    assert {tuple(seen.values("Authorization")) for seen in origins.seen} == {(wanted,)}
    assert machine.holds() == []
