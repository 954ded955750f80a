"""Two of the example policies, live: what agents may push, and whose key a
model sees.
"""

import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.policy.test_json_schema import EXAMPLE_POLICIES
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Answer, Origins
from .registries import git_http_backend
from .test_client_credentials import Machine, basic, private

AGENT = "127.0.0.1"
GIT = [
    "git",
    "-c",
    "user.name=agent",
    "-c",
    "user.email=agent@example.com",
    "-C",
    "clone",
]
TOKEN, KEY = "ghs_e2eTokenOfTheExample+01", "sk-ant-e2eKeyOfTheExample-02"


def example(name: str) -> str:
    """The text of an example, whose agents are the clients of these tests."""
    return (
        (EXAMPLE_POLICIES / name / "policy.yaml")
        .read_text()
        .replace("192.168.137.0/24", "127.0.0.0/8")
        .replace("192.168.137.10", AGENT)
    )


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    secrets = {
        "github-token": TOKEN,
        "anthropic-key": KEY,
        "openai-key": "sk-e2eOtherKeyOfTheExample-03",
    }
    return new_gateway(example("github-sandboxes"), secrets=secrets).start()


def test_agents_push_to_sandboxes_alone(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    for name in ("sandbox-1", "app"):
        run(
            "git",
            "init",
            "--quiet",
            "--bare",
            "--initial-branch",
            "main",
            tmp_path / f"acme/{name}.git",
        )
        run(
            "git",
            "-C",
            tmp_path / f"acme/{name}.git",
            "config",
            "http.receivepack",
            "true",
        )
    wanted = basic("x-access-token", TOKEN)
    origins.fallback = lambda seen: private(
        wanted, lambda request: git_http_backend(tmp_path, request), seen
    )
    home = tmp_path / "home"
    home.mkdir()
    machine = Machine(gateway, home)
    machine.run("git", "clone", "--quiet", "https://github.com/acme/app.git", "clone")
    machine.run(*GIT, "checkout", "-q", "-B", "main")
    machine.run(*GIT, "commit", "-q", "--allow-empty", "-m", "Change")
    machine.run(*GIT, "push", "https://github.com/acme/sandbox-1.git", "main")
    with pytest.raises(AssertionError, match="Push to a repository acme/sandbox-"):
        machine.run(*GIT, "push", "https://github.com/acme/app.git", "main")
    assert machine.holds() == []
    heads = subprocess.run(
        ["git", "-C", tmp_path / "acme/app.git", "branch"],
        capture_output=True,
        check=True,
    )
    assert heads.stdout == b""


def test_agents_push_to_their_own_branches_alone(
    new_gateway: NewGateway, origins: Origins, tmp_path: Path
) -> None:
    secrets = {"github-token": TOKEN, "gitlab-token": "glpat-e2eTokenOfTheExample-04"}
    gateway = new_gateway(example("agent-branches"), secrets=secrets).start()
    repository, home = tmp_path / "acme/app.git", tmp_path / "home"
    run("git", "init", "--quiet", "--bare", "--initial-branch", "main", repository)
    run("git", "-C", repository, "config", "http.receivepack", "true")
    home.mkdir()
    machine = Machine(gateway, home)
    machine.run("git", "init", "--quiet", "--initial-branch", "main", "clone")
    machine.run(*GIT, "commit", "-q", "--allow-empty", "-m", "Change")
    for host, user, token in (
        ("github.com", "x-access-token", "github-token"),
        ("gitlab.com", "oauth2", "gitlab-token"),
    ):
        serve = partial(
            private, basic(user, secrets[token]), partial(git_http_backend, tmp_path)
        )
        origins.fallback = serve
        url = f"https://{host}/acme/app.git"
        machine.run(*GIT, "push", url, f"HEAD:agent/{host}")
        machine.run("git", "clone", "--quiet", url, host)
        printed = machine.run(*GIT, "push", url, "main", status=1)
        assert (
            "[remote rejected] main -> main (squidkeeper: rule other-pushes)" in printed
        )
        assert (
            "remote: Push to a branch below agent/, without push options, and open a pull request."
            in printed
        )
    pull = '{"title": "Fix", "head": "agent/fix", "base": "main"}'
    contents = ("-X", "PUT", "-d", "{}", "-H", "Content-Type: application/json")
    origins.fallback = Answer(201)
    api = "https://api.github.com/repos/acme/app"
    assert (
        curl(
            gateway, f"{api}/pulls", "-d", pull, "-H", "Content-Type: application/json"
        ).status
        == 201
    )
    seen = len(origins.seen)
    assert curl(gateway, f"{api}/contents/README.md", *contents).rule == "default"
    assert len(origins.seen) == seen
    assert machine.holds() == []


def test_a_model_sees_the_key_of_the_gateway_whatever_the_client_sends(
    gateway: Gateway, origins: Origins
) -> None:
    gateway.write("policy.yaml", example("llm-apis"))
    gateway.render()
    url = "https://api.anthropic.com/v1/messages"
    asked = (
        "-H",
        "Content-Type: application/json",
        "-d",
        '{"model": "claude-sonnet-5"}',
    )
    origins.fallback = Answer(body=b"{}")
    wait_for(
        lambda: curl(gateway, url, *asked).status == 200, "the example to be in force"
    )
    origins.forget()
    origins.fallback = Answer(body=b"{}")
    for sent in (
        "X-Api-Key: sk-ant-placeholder-of-the-gateway",
        "X-Api-Key: sk-ant-of-the-client",
        "Authorization: Bearer sk",
    ):
        assert curl(gateway, url, *asked, "-H", sent).status == 200
    assert [
        (seen.values("X-Api-Key"), seen.values("Authorization"))
        for seen in origins.seen
    ] == [([KEY], [])] * 3
    placeholder = "Cookie: a=sk-ant-placeholder-of-the-gateway"
    other = "https://api.openai.com/v1/responses"
    seen = len(origins.seen)
    reply = curl(gateway, other, "-d", "{}", "-H", placeholder)
    assert (reply.status, reply.rule, len(origins.seen)) == (
        403,
        "placeholder-misdirected",
        seen,
    )
    reply = curl(gateway, url, *asked[:-1], '{"model": "claude-opus-5"}')
    assert (reply.status, reply.rule, len(origins.seen)) == (403, "other-models", seen)
