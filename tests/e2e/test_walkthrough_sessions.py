"""The walkthrough's section on sessions, as its page has it: the role, the commands,
and a VM whose git holds no token.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.waiting import wait_for

from .gateway import Gateway, NewGateway
from .network import WALKTHROUGH, VirtualMachine, inside, run
from .origin import Answer, Origins, Seen, Stream
from .registries import git_http_backend
from .reply import Reply
from .session_service import Service

TOKEN = "ghs_e2eTokenOfOneRepository+02"
OWN, OTHER = (f"https://github.com/acme/{name}.git" for name in ("app", "other"))


def section() -> str:
    text = WALKTHROUGH.read_text()
    [found] = re.findall(r"^## 7\. .*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    return str(found)


POLICY = section().split("```yaml\n")[1].partition("```")[0]
[CREATE] = re.findall("^sudo (squidkeeper session create .*) < token$", section(), re.M)
[END] = re.findall("^sudo (squidkeeper session end .*)$", section(), re.M)
[SETTINGS] = re.findall("^echo '(.*?)' [|] sudo tee", section(), re.M | re.S)


@pytest.fixture(scope="module")
def service(new_gateway: NewGateway, vm: VirtualMachine) -> Iterator[Service]:
    gateway = new_gateway(POLICY, at=vm.gateway, port=3129)
    gateway.remember(TOKEN)  # it is searched for in all files of this run
    vm.trust(gateway.ca)
    gateway.start()
    service = Service(gateway)
    gateway.layout.sessions_settings.write_text(SETTINGS)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, gateway.layout.sessions_run)
        stack.callback(service.kill)
        service.start()
        yield service


def operator(gateway: Gateway, command: str, given: str = "") -> str:
    """Run a command of the page, on this gateway and for the address of its VM."""
    words = shlex.split(command.replace("192.168.137.2 ", f"{VirtualMachine.address} "))
    words[0] = f"{gateway.root}/bin/squidkeeper"
    words += ["--socket", str(gateway.layout.sessions_socket)]
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def serve(repositories: Path, seen: Seen) -> Answer:
    """Serve the repositories to whoever has the token."""
    basic = b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    if seen.values("Authorization") != [f"Basic {basic}"]:
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="private"'})
    return git_http_backend(repositories, seen)


def test_a_vm_has_its_own_repository_while_its_session_lasts(
    service: Service, vm: VirtualMachine, origins: Origins, tmp_path: Path
) -> None:
    gateway, proxy = service.gateway, f"http://{service.gateway.authority}"
    for name in ("app", "other"):
        bare = tmp_path / f"acme/{name}.git"
        run("git", "init", "--quiet", "--bare", "--initial-branch", "main", bare)
        run("git", "-C", bare, "config", "http.receivepack", "true")
    origins.fallback = lambda seen: serve(tmp_path, seen)
    origins.answers["github.com/acme/app.git/slow"] = Stream(
        events=(b"data: event\n\n",) * 3000, pause=0.1
    )
    home = tmp_path / "vm"

    def git(*words: str | Path) -> Reply:
        named = ("-c", "user.name=agent", "-c", "user.email=agent@example.com")
        return inside(vm, proxy, "git", *named, *words, GIT_TERMINAL_PROMPT="0")

    assert "403" in git("clone", "--quiet", OWN, home).text
    assert "session-required" in inside(vm, proxy, "curl", "-sS", OWN).text
    operator(gateway, CREATE, TOKEN)
    assert git("clone", "--quiet", OWN, home).status == 0
    (home / "file").write_text("written in the VM\n")
    for words in (
        ["add", "file"],
        ["commit", "-qm", "Add"],
        ["push", "origin", "main"],
    ):
        done = git("-C", home, *words)
        assert done.status == 0, done.text
    assert run("git", "-C", tmp_path / "acme/app.git", "show", "main:file")
    assert "403" in git("clone", "--quiet", OTHER, tmp_path / "refused").text
    assert TOKEN not in run("grep", "-ro", "ghs_[A-Za-z0-9+]*", home, check=False)

    command = vm.command("curl", "-sSN", "--proxy", proxy, f"{OWN}/slow")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as streaming:
        assert streaming.stdout
        assert streaming.stdout.readline() == b"data: event\n"
        operator(gateway, END)
        wait_for(lambda: streaming.poll() is not None, "the end of what is under way")
        assert streaming.returncode != 0
    assert "session-required" in inside(vm, proxy, "curl", "-sS", OWN).text
