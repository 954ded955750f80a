"""The official SDKs of MCP through a gateway: each line of Python and TypeScript, at
servers of both eras.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import wait_for

from .clients import gateway_variables
from .curl import clean
from .dns import PUBLIC
from .gateway import Gateway
from .network import run
from .origin import Origins

PROGRAMS = Path(__file__).parent / "mcp_programs"
POLICY = """
version: 1
clients: {agents: {networks: [127.0.0.0/8]}}
rules:
  - name: tools
    action: allow
    hosts: [tools.example]
    ports: [9441, 9442]
    paths: [/mcp]
    body: {mcp: {tools: [search, read_file, slow, proceed, announce], arguments: {read_file: {/path: "/data/*"}}}}
  - name: notes
    action: allow
    hosts: [notes.example]
    ports: [9441, 9442]
    paths: [/mcp]
    body: {mcp: {methods: [resources/read]}}
"""
# the revisions of the Python SDK of line 1 and of line 2
SERVERS = {
    "2025": 9441,
    "2025 and 2026": 9442,
}
CLIENTS = (
    "python 1",
    "python 2 legacy",
    "python 2 auto",
    "typescript 1",
    "typescript legacy",
    "typescript auto",
)


class Denied(str):
    """What a client shows of a denial: the rules that could allow, and why
    they do not.
    """

    def __eq__(self, shown: object) -> bool:
        start = "squidkeeper: denied by rule default: "
        return isinstance(shown, str) and start in shown and f": {self}." in shown

    __hash__ = str.__hash__


@pytest.fixture(scope="session")
def sdks(shared_folder: Path) -> Path:
    """The SDKs, from the registries of their languages: once a run, on the machine's
    own network.
    """
    folder = shared_folder / "mcp-sdks"
    with (shared_folder / "mcp-sdks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            # the wheels of tests/run are not these
            install = (
                "env",
                "-u",
                "PIP_NO_INDEX",
            )
            for line, wanted in (("1", "mcp<2"), ("2", "mcp>=2,<3")):
                run("/usr/bin/python3", "-m", "venv", folder / line)
                run(
                    *install,
                    folder / line / "bin/pip",
                    "install",
                    "-q",
                    wanted,
                    "uvicorn",
                )
            packages = [
                f"@modelcontextprotocol/{name}" for name in ("sdk@1", "client@2")
            ]
            run("npm", "install", "--silent", "--prefix", folder, "node@24", *packages)
            (folder / "client.mjs").write_bytes((PROGRAMS / "client.mjs").read_bytes())
            (folder / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def servers(
    sdks: Path, all_origins: Origins, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The servers, started; their logs."""
    folder = tmp_path_factory.mktemp("mcp-servers")
    leaf = folder / "leaf.pem"
    leaf.write_bytes(all_origins.authority.leaf("tools.example", "notes.example"))
    running = []
    for line, port in zip("12", SERVERS.values(), strict=True):
        with (folder / f"{port}.log").open("wb") as log:
            command: list[str | Path] = [
                sdks / line / "bin/python",
                PROGRAMS / "server.py",
                PUBLIC,
                f"{port}",
                leaf,
                leaf,
            ]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
    for port in SERVERS.values():
        wait_for(
            partial(run, "ss", "-Hltn", f"sport = :{port}"),
            f"the server at {port}; see {folder}",
        )
    yield folder
    for server in running:
        server.kill()
        server.wait()


def ask(
    sdks: Path, gateway: Gateway, client: str, url: str, *steps: object
) -> list[object]:
    """Take the steps with a client; return what each came to."""
    language, *mode = client.split()
    if language == "python":
        line, how = mode[0], mode[-1]
        command: list[str | Path] = [
            sdks / line / "bin/python",
            PROGRAMS / "client.py",
            how,
            url,
        ]
    else:
        command = [sdks / "node_modules/.bin/node", sdks / "client.mjs", mode[0], url]
    environment = {
        **clean(),
        **gateway_variables(
            gateway,
            "--proxy",
            f"http://{gateway.authority}",
            "--bundle-path",
            gateway.ca,
        ),
    }
    done = subprocess.run(
        command,
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


STEPS: tuple[
    tuple[list[object], object], ...
] = (  # what a client does, and what it shows
    (["list"], ["announce", "delete_file", "proceed", "read_file", "search", "slow"]),
    (["call", "search", {"query": "x"}], "found x"),
    (["call", "delete_file", {"path": "/data/x"}], Denied("the tool is not listed")),
    (["call", "read_file", {"path": "/data/x"}], "content of /data/x"),
    (
        ["call", "read_file", {"path": "/etc/passwd"}],
        Denied("/arguments/path is not what the rule lists"),
    ),
    (["read", "notes://one"], Denied("the method is not listed")),
    (["stream"], "done"),
    (["listen"], "changed"),
    (["call", "search", {"query": "y"}], "found y"),
)


@pytest.mark.clients
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_session_goes_on_after_denials(
    gateway: Gateway, sdks: Path, servers: Path, client: str, server: str
) -> None:
    log = servers / f"{SERVERS[server]}.log"
    ended = log.read_text().count("DELETE /mcp")
    url = f"https://tools.example:{SERVERS[server]}/mcp"
    seen = ask(sdks, gateway, client, url, *(step for step, _ in STEPS))
    assert seen == [*(shown for _, shown in STEPS), "ended"]
    assert "read /data/x\n" in log.read_text()
    assert "read /etc/passwd" not in log.read_text()
    assert "deleted" not in log.read_text()
    has_session = not (client.endswith("auto") and server == "2025 and 2026")
    assert log.read_text().count("DELETE /mcp") == ended + has_session


@pytest.mark.clients
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_listed_method_passes(
    gateway: Gateway, sdks: Path, servers: Path, client: str, server: str
) -> None:
    url = f"https://notes.example:{SERVERS[server]}/mcp"
    seen = ask(
        sdks,
        gateway,
        client,
        url,
        ["read", "notes://one"],
        ["call", "search", {"query": "x"}],
    )
    assert seen == ["a note", Denied("the tool is not listed"), "ended"]


@pytest.mark.clients
@pytest.mark.parametrize("client", CLIENTS)
def test_a_body_that_is_too_long_ends_the_session_of_one_sdk_alone(
    gateway: Gateway, sdks: Path, servers: Path, client: str
) -> None:
    url = f"https://tools.example:{SERVERS['2025 and 2026']}/mcp"
    steps = [
        ["call", "search", {"query": query}] for query in ("x", "y" * 1_100_000, "z")
    ]
    if client == "python 1":
        with pytest.raises(AssertionError, match="400 Bad Request"):
            ask(sdks, gateway, client, url, *steps)
    else:
        first, refused, *rest = ask(sdks, gateway, client, url, *steps)
        assert (first, rest) == ("found x", ["found z", "ended"])
        assert "rror" in f"{refused}"
