"""The image and compose.yaml, built and run with podman: the walkthrough's two requests
from the agent's container.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from squidkeeper.operate.demo.network import internet, run
from tests.e2e.dns import Names
from tests.e2e.gateway import NAMESERVER
from tests.e2e.origin import Origins
from tests.operate.test_container_files import pins
from tests.pull_servers import WebServer, allowed_signer, make_key, serving
from tests.waiting import wait_for

from .podman import REPOSITORY, Podman

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]

POLICY = (REPOSITORY / "squid/kubernetes/policy.yaml").read_text()
FLEET = REPOSITORY / "squid/FLEET.md"
PROJECT = "squidkeeper-test"
GATEWAY, AGENT, PLAIN = (
    f"{PROJECT}_{name}_1" for name in ("gateway", "agent", "plain")
)
BRIDGE = "squidkeeper0"  # of the agents' network
RIGHTS = (
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)
WEB = "203.0.113.77"
PORT_53 = ("--sysctl", "net.ipv4.ip_unprivileged_port_start=53")
# Podman's resolver, in the network of the agents, by the name of a container there.
ASK_THE_NETWORKS_RESOLVER = f"""
import socket
words = b"".join(bytes([len(word)]) + word for word in b"{AGENT}".split(b"."))
question = b"sk\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + words + b"\\0\\0\\1\\0\\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    asked.settimeout(5)
    asked.sendto(question, ("192.168.137.254", 53))
    assert asked.recv(512)[:2] == b"sk"
"""
CODE = ("-sS", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}")


@dataclass(frozen=True, slots=True)
class Stack:
    """compose.yaml at work, in a network in which every address outside is this
    machine.
    """

    podman: Podman
    policy: Path
    origins: Origins
    names: Names  # whom the gateway asks
    strangers: Names  # whom an agent's question would reach on the host

    def agent(self, *words: str, name: str = AGENT) -> tuple[int, str]:
        done = self.podman.run("exec", name, *words, check=False)
        return done.returncode, done.stdout

    def answers(self, url: str, code: str) -> bool:
        return self.agent("curl", *CODE, url) == (0, code)

    def gateway(self, *words: str) -> tuple[int, str]:
        done = self.podman.run("exec", GATEWAY, *words, check=False)
        return done.returncode, done.stdout

    def is_healthy(self) -> bool:
        """Run the image's health check: without systemd nobody else does."""
        return (
            self.podman.run("healthcheck", "run", GATEWAY, check=False).returncode == 0
        )

    def turn_ipv6_on(self) -> None:
        [agent] = self.podman.run(
            "inspect", AGENT, "--format", "{{.State.Pid}}"
        ).stdout.split()
        run(
            "nsenter",
            "-t",
            agent,
            "-n",
            "sh",
            "-c",
            "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
        )

    def log(self) -> list[dict[str, str]]:
        return [
            json.loads(line)
            for line in self.gateway("cat", "/gateway/log/access.log")[1].splitlines()
        ]


def swap(policy: Path, number: int, text: str) -> None:
    """Put a ConfigMap in place as the kubelet does: a new folder, a new link to it, and
    one rename of that link.
    """
    folder = policy / f"..2026_11_27_00_00_{number:02}"
    folder.mkdir()
    (folder / "policy.yaml").write_text(text)
    (policy / "..data_tmp").symlink_to(folder.name)
    former = (
        (policy / "..data").readlink() if (policy / "..data").is_symlink() else None
    )
    (policy / "..data_tmp").rename(policy / "..data")
    if former is None:
        (policy / "policy.yaml").symlink_to("..data/policy.yaml")
    else:
        shutil.rmtree(policy / former)


def without_proxy_settings() -> dict[str, Any]:
    """The gateway's command by the comments of compose.yaml, and a second agent,
    `plain`.
    """
    text = (REPOSITORY / "compose.yaml").read_text()
    services = yaml.safe_load(text.replace("# - ./", "- ./"))["services"]
    [added] = re.findall(r"without proxy settings add: (.*)", text)
    left = {
        name: value
        for name, value in services["agent"]["environment"].items()
        if "proxy" not in name.lower()
    }
    command = [*services["gateway"]["command"], *added.split(", ")]
    return {
        "gateway": {"command": command},
        "plain": services["agent"] | {"environment": left},
    }


@pytest.fixture(scope="module")
def stack(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = podman.folder / "stack"
    shutil.rmtree(folder, ignore_errors=True)
    policy, config = folder / "policy", folder / "config"
    policy.mkdir(parents=True)
    config.mkdir()
    swap(policy, 1, POLICY)
    with internet():
        names, strangers = Names(NAMESERVER), Names("127.0.0.1")
        origins = Origins(tmp_path_factory.mktemp("origins"))
        shutil.copy(origins.authority.certificate, config / "upstream.crt")
        (config / "local.conf").write_text(
            "tls_outgoing_options cafile=/gateway/etc/upstream.crt\n"
        )
        other = without_proxy_settings()
        other["gateway"] |= {"dns": [NAMESERVER], "volumes": [f"{config}:/config:ro"]}
        (folder / "other.yaml").write_text(json.dumps({"services": other}))
        podman.environment["POLICY"] = str(policy)
        files = (
            "-f",
            "compose.yaml",
            "-f",
            str(folder / "other.yaml"),
            "-p",
            PROJECT,
            "--in-pod",
            "false",
        )
        stack = Stack(podman, policy, origins, names, strangers)
        try:
            up = podman.start(
                *files, "up", "--detach", "--no-build", program="podman-compose"
            )
            try:
                wait_for(
                    stack.is_healthy,
                    lambda: podman.run("logs", GATEWAY, check=False).stdout,
                    180,
                )
                assert up.wait(60) == 0  # it waits for a healthy gateway
            finally:
                up.kill()
                up.wait()
            yield stack
        finally:
            podman.run(
                *files,
                "down",
                "--volumes",
                "--timeout",
                "1",
                program="podman-compose",
                check=False,
            )
            origins.stop()
            names.stop()
            strangers.stop()


def test_the_two_requests_of_the_walkthrough_from_the_agents_container(
    stack: Stack,
) -> None:
    assert stack.agent("curl", *CODE, "https://example.com/") == (0, "200")
    assert stack.agent("curl", *CODE, "https://en.wikipedia.org/") == (0, "403")
    assert stack.origins.urls() == ["https://example.com/"]
    requests = {line["url"]: line for line in stack.log() if line["method"] == "GET"}
    assert requests["https://example.com/"]["rule"] == "example"
    assert requests["https://en.wikipedia.org/"]["rule"] == "no-wikipedia"
    assert {line["gateway"] for line in requests.values()} == {"gw-1"}
    assert requests["https://example.com/"]["client"].startswith("192.168.137.")


def test_an_agent_without_proxy_settings_is_served_as_the_other(stack: Stack) -> None:
    for url, code in (
        ("https://example.com/", "200"),
        ("http://example.com/", "200"),
        ("https://x.example/", "403"),
    ):
        assert stack.agent("curl", *CODE, url, name=PLAIN) == (0, code)
    stack.names.queries.clear()
    _, told = stack.agent("getent", "ahostsv4", "stolen-data.evil.example", name=PLAIN)
    assert {line.split()[0] for line in told.splitlines()} == {"192.168.137.1"}
    assert (stack.names.queries, stack.strangers.queries) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "https://203.0.113.10/",
        "http://203.0.113.10/",
        "http://10.0.0.5/",
        "http://169.254.169.254/",
    ],
)
def test_the_agent_has_no_way_past_the_gateway(stack: Stack, url: str) -> None:
    before = list(stack.origins.connections)
    code, told = stack.agent("curl", "-sS", "-m", "5", "-k", "--noproxy", "*", url)
    assert (code, "Could not connect" in told or "Failed to connect" in told) == (
        7,
        True,
    ), told
    assert stack.origins.connections == before


def test_the_rules_of_the_document_keep_agents_from_the_host(stack: Stack) -> None:
    """By IPv4 and IPv6: a bridge has an address of each, whatever the network was made
    with.
    """
    [bridge] = json.loads(
        run("ip", "-6", "-json", "addr", "show", "dev", BRIDGE, "scope", "link")
    )
    urls = (
        "http://192.168.137.254/",
        f"http://[{bridge['addr_info'][0]['local']}%25eth0]/",
    )
    hosts = [("curl", *CODE, "-m", "5", "--noproxy", "*", url) for url in urls]
    [rules] = re.findall(
        r"^table inet squidkeeper_agents \{\n.*?^\}\n",
        FLEET.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    # IPv6 is off in the agent
    assert [stack.agent(*host)[0] for host in hosts] == [
        0,
        7,
    ]
    stack.turn_ipv6_on()
    # Without the rules. An address of IPv6 is usable a second after it was made.
    wait_for(
        lambda: [stack.agent(*host) for host in hosts] == [(0, "200")] * 2,
        f"the host at {urls}",
    )
    run("nft", rules)
    try:
        assert [stack.agent(*host)[0] for host in hosts] == [28, 28]
        assert stack.gateway("python3", "-c", ASK_THE_NETWORKS_RESOLVER) == (0, "")
        assert stack.agent("getent", "ahosts", "gateway")[0] == 2
        assert stack.agent("curl", *CODE, "https://example.com/") == (0, "200")
    finally:
        run("nft", "delete table inet squidkeeper_agents")


def test_names_do_not_resolve_in_the_agent_and_nobody_is_asked_for_them(
    stack: Stack,
) -> None:
    stack.names.queries.clear()
    assert stack.agent("getent", "ahosts", "stolen-data.evil.example") == (2, "")
    assert (
        stack.agent(
            "curl", "-sS", "--noproxy", "*", "https://stolen-data.evil.example/"
        )[0]
        == 6
    )
    assert (stack.names.queries, stack.strangers.queries) == ([], [])


def test_a_denied_name_is_not_resolved_for_the_agent_either(stack: Stack) -> None:
    stack.names.queries.clear()
    assert stack.agent("curl", *CODE, "https://stolen-data.evil.example/") == (0, "403")
    assert (stack.names.queries, stack.strangers.queries) == ([], [])


def test_the_agent_sees_the_root_and_no_key(stack: Stack) -> None:
    assert stack.agent("ls", "/etc/squidkeeper") == (0, "bundle.crt\nca.crt\n")
    assert (
        "PRIVATE"
        not in stack.agent(
            "cat", "/etc/squidkeeper/bundle.crt", "/etc/squidkeeper/ca.crt"
        )[1]
    )
    assert stack.agent("touch", "/etc/squidkeeper/x")[0] == 1


def test_every_process_of_the_gateway_is_squids_account_without_rights(
    stack: Stack,
) -> None:
    script = 'for one in /proc/[0-9]*; do grep -E "^(Name|Uid|CapPrm|CapEff|CapBnd|NoNewPrivs):" $one/status; done'
    told = stack.gateway("bash", "-c", script)[1]
    found = [
        dict(re.findall(r"^(\w+):\t(.*)$", word, re.MULTILINE))
        for word in told.split("Name:")[1:]
    ]
    nothing = {"CapPrm": "0" * 16, "CapEff": "0" * 16, "CapBnd": "0" * 16}
    assert len(found) > 8
    for process in found:
        assert process == {"Uid": "\t".join(["13"] * 4), **nothing, "NoNewPrivs": "1"}


def test_the_root_file_system_of_the_gateway_is_read_only(stack: Stack) -> None:
    code, told = stack.gateway("touch", "/opt/squidkeeper/x")
    assert (code, "Read-only file system" in told) == (1, True)


def test_the_commands_find_the_gateway(stack: Stack) -> None:
    code, told = stack.gateway(
        "squidkeeper", "explain", "GET", "https://en.wikipedia.org/"
    )
    assert (code, told.startswith("DENY ")) == (1, True)
    code, told = stack.gateway("squidkeeper", "doctor")
    assert (code, "No findings: " in told, "Not checked" in told) == (0, True, False), (
        told
    )
    code, told = stack.gateway("squidkeeper", "env", "--format", "dotenv")
    assert (code, "\nHTTPS_PROXY=http://192.168.137.1:3129\n" in told) == (0, True), (
        told
    )
    code, told = stack.gateway("squidkeeper", "reload")
    assert (code, told.endswith(" is in force\n")) == (0, True), told
    code, told = stack.gateway("squidkeeper", "log", "--since", "1h")
    assert (code, "en.wikipedia.org" in told) == (0, True), told


def test_commands_tell_what_is_wrong_with_the_policy(stack: Stack) -> None:
    swap(
        stack.policy,
        5,
        POLICY.replace("[example.com]", "[example.com]\n    strip: [X-Secret]"),
    )
    wait_for(
        lambda: (
            "override-headers, pages, strip" in stack.gateway("squidkeeper", "check")[1]
        ),
        "the new part",
    )
    assert "[not-rendered]" not in stack.gateway("squidkeeper", "check")[1]
    swap(stack.policy, 6, "version: 1\nrules: [{name: x, action: alow}]\n")
    code, told = stack.gateway("squidkeeper", "doctor", "--strict")
    assert (code, "The policy on disk does not load (policy-not-loaded)" in told) == (
        1,
        True,
    ), told
    assert stack.is_healthy(), "the last good policy serves"
    swap(stack.policy, 7, POLICY)
    code, told = stack.gateway("squidkeeper", "reload")
    assert (code, told.endswith(" is in force\n")) == (0, True), told


def revisions_in_force(stack: Stack) -> list[str]:
    told = stack.podman.run("logs", GATEWAY).stdout
    return re.findall(r"^exporter: .*: revision (\w+) is in force$", told, re.MULTILINE)


def faults_told(stack: Stack) -> int:
    told = stack.podman.run("logs", GATEWAY).stdout
    return told.count("does not load, the last good policy goes on")


def test_a_config_map_that_is_swapped_is_one_reload(stack: Stack) -> None:
    before = revisions_in_force(stack)
    swap(stack.policy, 2, POLICY.replace("example.com", "other.example"))
    wait_for(lambda: len(revisions_in_force(stack)) > len(before), "the new revision")
    assert stack.agent("curl", *CODE, "https://other.example/") == (0, "200")
    assert stack.agent("curl", *CODE, "https://example.com/") == (0, "403")
    # what does not load changes nothing
    told = faults_told(stack)
    swap(stack.policy, 3, "version: 1\nrules: [{name: x, action: alow}]\n")
    wait_for(lambda: faults_told(stack) > told, "the fault")
    assert stack.is_healthy()
    assert stack.agent("curl", *CODE, "https://other.example/") == (0, "200")
    assert (
        stack.gateway("gateway", "ready")[0],
        stack.gateway("gateway", "alive")[0],
    ) == (0, 0)
    swap(stack.policy, 4, POLICY)
    wait_for(
        lambda: len(revisions_in_force(stack)) == len(before) + 2, "the former policy"
    )


def test_a_drained_gateway_is_not_ready_and_alive(stack: Stack) -> None:
    stack.gateway("squidkeeper", "drain", "--for", "1s")
    wait_for(
        lambda: stack.gateway("gateway", "ready")[0] == 1, "a gateway that is not ready"
    )
    assert (stack.gateway("gateway", "alive")[0], stack.is_healthy()) == (0, False)
    stack.gateway("squidkeeper", "drain", "--cancel")
    wait_for(
        lambda: stack.gateway("gateway", "ready")[0] == 0, "a gateway that is ready"
    )


def test_grants_and_approvals_are_made_in_the_container(stack: Stack) -> None:
    swap(
        stack.policy,
        8,
        POLICY.replace(
            "rules:", "rules:\n  - {name: asks, action: ask, hosts: [ask.example]}"
        ),
    )
    granted = ("--any-client", "--for", "1h", "--reason", "a test")
    wait_for(
        lambda: "asks" in stack.agent("curl", "-sS", "https://ask.example/")[1],
        "the question",
    )
    ticket = wait_for(
        lambda: re.search(r"^[a-z0-9]{12}", stack.gateway("squidkeeper", "ask")[1]),
        "a ticket",
    )[0]
    code, told = stack.gateway(
        "squidkeeper", "ask", "approve", "--yes", ticket, *granted
    )
    assert code == 0, told
    code, told = stack.gateway(
        "squidkeeper", "grant", "https://granted.example/", *granted
    )
    assert (code, "in /gateway/etc/grants.yaml" in told) == (0, True), told
    for host in ("ask.example", "granted.example"):
        wait_for(partial(stack.answers, f"https://{host}/", "200"), host)
    swap(stack.policy, 9, POLICY)


def test_an_edit_starts_what_inspects_bodies_and_so_does_the_next_start(
    stack: Stack,
) -> None:
    rule = "{name: models, action: allow, hosts: [models.example], methods: [POST], body: {json: {/model: [small]}}}"
    swap(stack.policy, 10, POLICY.replace("rules:", f"rules:\n  - {rule}"))

    def answers(model: str, code: str) -> bool:
        sent = (
            "-H",
            "Content-Type: application/json",
            "--data",
            json.dumps({"model": model}),
        )
        return stack.agent("curl", *CODE, *sent, "https://models.example/chat") == (
            0,
            code,
        )

    def are_inspected() -> bool:
        return answers("small", "200") and answers("large", "403")

    wait_for(are_inspected, lambda: stack.podman.run("logs", GATEWAY).stdout, 180)
    stack.podman.run("restart", "--time", "10", GATEWAY)
    wait_for(stack.is_healthy, "a healthy gateway", 180)
    wait_for(are_inspected, lambda: stack.podman.run("logs", GATEWAY).stdout)
    assert "No findings" in stack.gateway("squidkeeper", "doctor")[1]
    swap(stack.policy, 11, POLICY)


def test_sigterm_drains_and_a_new_start_has_the_same_ca_and_is_ready(
    stack: Stack,
) -> None:
    root = stack.agent("cat", "/etc/squidkeeper/ca.crt")
    # the default of podman and Docker: then they kill
    stack.podman.run("stop", "--time", "10", GATEWAY)
    told = stack.podman.run("logs", GATEWAY).stdout
    assert "drained already: /healthz is unhealthy, and open connections go on" in told
    assert "Squid is stopped" in told
    assert (
        stack.podman.run("inspect", GATEWAY, "--format", "{{.State.ExitCode}}").stdout
        == "0\n"
    )
    stack.podman.run("start", GATEWAY)
    wait_for(stack.is_healthy, "a healthy gateway", 180)
    assert stack.agent("cat", "/etc/squidkeeper/ca.crt") == root
    assert stack.agent("curl", *CODE, "https://example.com/") == (0, "200")


def test_a_squid_whose_master_is_killed_is_started_again(stack: Stack) -> None:
    killed = stack.gateway("cat", "/gateway/run/squid.pid")[1]
    # the image has no other `kill`
    assert stack.gateway("bash", "-c", f"kill -KILL {killed}") == (
        0,
        "",
    )
    wait_for(
        lambda: stack.gateway("cat", "/gateway/run/squid.pid")[1] not in ("", killed),
        "another Squid",
    )
    wait_for(lambda: stack.answers("https://example.com/", "200"), "an answer by it")
    assert (
        "squid: supervise: squid ended with status 137"
        in stack.podman.run("logs", GATEWAY).stdout
    )


# A signed policy


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes bundles over https, as PULL.md says, and the files of a gateway that
    pulls them.
    """

    stack: Stack
    server: WebServer
    config: Path

    def publish(self, number: int, policy: str, key: Path) -> None:
        folder, bundle = (
            self.config.parent / "policy",
            self.server.root / "policy.bundle",
        )
        (folder / "policy.yaml").write_text(policy)
        program = (sys.executable, "-m", "squidkeeper", "pull", "bundle")
        subprocess.run(
            [*program, str(folder), "--number", str(number), "--output", str(bundle)],
            check=True,
        )
        bundle.with_name("policy.bundle.sig").unlink(missing_ok=True)
        sign = ("ssh-keygen", "-q", "-Y", "sign", "-n", "squidkeeper-policy", "-f")
        subprocess.run([*sign, str(key), str(bundle)], check=True)

    def inside(self, *words: str) -> tuple[int, str]:
        done = self.stack.podman.run("exec", "pulls", *words, check=False)
        return done.returncode, done.stdout

    def shows(self, url: str, told: str) -> bool:
        return self.inside("squidkeeper", "explain", "GET", url)[1].startswith(told)


@pytest.fixture
def publisher(stack: Stack) -> Iterator[Publisher]:
    with (
        tempfile.TemporaryDirectory(dir=stack.podman.folder) as place,
        serving(Path(place, "served"), WEB) as server,
    ):
        config, key = Path(place, "config"), make_key(Path(place, "key"))
        for folder in (config, Path(place, "policy")):
            folder.mkdir()
        Path(place).chmod(0o755)
        (config / "server.pem").write_bytes(server.ca.read_bytes())
        (config / "local.yaml").write_text("version: 1\n")
        (config / "allowed_signers").write_text(allowed_signer(key))
        source = f"source: {{bundle: '{server.url}/policy.bundle', ca: /etc/squidkeeper/server.pem}}\n"
        settings = (
            f"{source}allowed_signers: /etc/squidkeeper/allowed_signers\nevery: 5s\n"
        )
        (config / "pull.yaml").write_text(settings)
        publisher = Publisher(stack, server, config)
        publisher.publish(1, POLICY, key)
        network = ("--network", f"{PROJECT}_outside", "--dns", NAMESERVER)
        volumes = ("--volume", f"{config}:/config:ro")
        try:
            stack.podman.run(
                "run",
                "-d",
                "--name",
                "pulls",
                *network,
                *RIGHTS,
                *PORT_53,
                *volumes,
                "squidkeeper",
            )
            yield publisher
        finally:
            stack.podman.run(
                "rm", "--force", "--volumes", "--time", "1", "pulls", check=False
            )


def test_a_signed_bundle_is_the_policy_of_a_container(publisher: Publisher) -> None:
    key = publisher.config.with_name("key")
    logs = lambda: publisher.stack.podman.run("logs", "pulls", check=False).stdout  # noqa: E731 - shown once
    wait_for(lambda: publisher.inside("gateway", "ready")[0] == 0, logs, 180)
    assert publisher.shows("https://example.com/", "ALLOW ")
    publisher.publish(2, POLICY.replace("[example.com]", "[other.example]"), key)
    wait_for(lambda: publisher.shows("https://other.example/", "ALLOW "), logs, 60)
    publisher.publish(3, POLICY, make_key(publisher.config.with_name("strange")))
    wait_for(
        lambda: "is refused" in publisher.inside("squidkeeper", "pull", "--status")[1],
        logs,
        60,
    )
    assert publisher.shows("https://other.example/", "ALLOW ")
    status = wait_for(
        lambda: publisher.inside("squidkeeper", "pull", "--status")[1], logs
    )
    assert "in force   " in status


# Single containers


def refused(podman: Podman, *options: str) -> str:
    done = podman.run(
        "run", "--rm", "--network", "none", *options, "squidkeeper", check=False
    )
    assert done.returncode == 1
    return done.stdout


def test_what_is_missing_is_refused_with_what_to_do(
    podman: Podman, tmp_path: Path
) -> None:
    policy = ("--volume", f"{REPOSITORY}/squid/kubernetes:/policy:ro")
    empty, unreadable = tmp_path / "empty", tmp_path / "unreadable"
    for folder in (empty, unreadable):
        folder.mkdir()
        folder.chmod(0o755)
    (unreadable / "ca.crt").write_text("")
    (unreadable / "ca.key").touch(0o600)
    for options, what in {
        (): "there is no *.yaml file in /policy",
        ("--user", "0", *policy): "this runs as 0:0",
        (*policy,): "the resolver may not listen on port 53",
        (
            *policy,
            *PORT_53,
            "--volume",
            f"{empty}:/ca:ro",
        ): "/ca is empty and cannot be written",
        (
            *policy,
            *PORT_53,
            "--volume",
            f"{unreadable}:/ca:ro",
        ): "/ca has no ca.crt and ca.key that user 13 can read",
    }.items():
        assert refused(podman, *options).startswith(f"gateway: {what}\n  to do: ")


def test_a_volume_for_agents_that_cannot_be_written_is_refused(
    podman: Podman, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    policy = (
        "--volume",
        f"{REPOSITORY}/squid/kubernetes/policy.yaml:/policy/policy.yaml:ro",
    )
    told = refused(podman, *policy, *PORT_53, "--volume", f"{tmp_path}:/trust")
    assert told.startswith(
        "gateway: /trust is mounted and cannot be written, so agents would not trust this gateway\n"
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A gateway that is prepared again and again, with other files."""

    podman: Podman
    folder: Path

    def start(self, *command: str) -> tuple[int, str]:
        volumes = [
            f"{self.folder}/policy:/policy:ro",
            f"{self.folder}/config:/config:ro",
        ]
        volumes += [f"{name}-prepared:/{name}" for name in ("gateway", "ca")]
        mounted = [word for volume in volumes for word in ("--volume", volume)]
        common = ("--network", "none", *RIGHTS, *PORT_53, *mounted)
        done = self.podman.run(
            "run",
            "--rm",
            "--timeout",
            "120",
            *common,
            "squidkeeper",
            *command,
            check=False,
        )
        return done.returncode, done.stdout

    def within(self, script: str) -> str:
        common = (
            "--network",
            "none",
            "--entrypoint",
            "bash",
            "--volume",
            "gateway-prepared:/gateway",
        )
        return self.podman.run(
            "run",
            "--rm",
            *common,
            "--volume",
            "ca-prepared:/ca",
            "squidkeeper",
            "-c",
            script,
        ).stdout


@pytest.fixture
def prepared(podman: Podman) -> Iterator[Prepared]:
    folder = podman.folder / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("policy", "config/export"):
        (folder / name).mkdir(parents=True)
    (folder / "policy/policy.yaml").write_text(POLICY)
    yield Prepared(podman, folder)
    podman.run(
        "volume", "rm", "--force", "gateway-prepared", "ca-prepared", check=False
    )


def test_what_config_no_longer_holds_is_gone_and_a_failed_setup_leaves_all_as_it_was(
    prepared: Prepared,
) -> None:
    local, etc = (
        prepared.folder / "config/local.conf",
        "cd /gateway/etc && cat local.conf; ls -a export /gateway",
    )
    local.write_text("http_access allow all\n")
    (prepared.folder / "config/export/none.txt").write_text("")
    code, told = prepared.start("setup")
    assert code == 0, told
    before = prepared.within(etc)
    assert before.startswith("http_access allow all\n")
    assert "\nnone.txt\n" in before

    local.write_text("no_such_directive on\n")
    (prepared.folder / "config/export/none.txt").unlink()
    (prepared.folder / "config/new.txt").write_text("")
    code, told = prepared.start()
    assert (code, 'step "configuration" failed' in told) == (1, True), told
    assert told.endswith("  What was in place before is as it was.\n")
    assert prepared.within(etc) == before
    assert prepared.within("ls /gateway/etc/new.txt || true").startswith("ls: ")

    local.unlink()
    code, told = prepared.start("setup")
    assert code == 0, told
    after = prepared.within(etc)
    assert after.startswith("# Your own Squid lines")
    assert "none.txt" not in after


def test_what_setup_refuses_ends_the_container_with_its_message(
    prepared: Prepared,
) -> None:
    policy = prepared.folder / "policy/policy.yaml"
    policy.write_text("version: 1\nrules: [{name: x, action: alow}]\n")
    code, told = prepared.start()
    assert (code, "'action' is 'alow', expected one of allow, deny, ask" in told) == (
        1,
        True,
    ), told
    assert told.endswith("  What was in place before is as it was.\n")
    policy.write_text(POLICY)
    assert prepared.start("setup")[0] == 0
    prepared.within(
        "openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-256 -out /ca/ca.key"
    )
    code, told = prepared.start()
    assert (code, 'step "CA" failed' in told) == (1, True), told
    assert told.endswith("  What was in place before is as it was.\n")


def test_what_runs_needs_no_key_of_the_ca(podman: Podman) -> None:
    policy, gateway = (
        f"{REPOSITORY}/squid/kubernetes/policy.yaml:/policy/policy.yaml:ro",
        "split-gateway:/gateway",
    )
    volumes = ("--volume", policy, "--volume", gateway)
    common = ("--network", "none", *RIGHTS, *PORT_53, *volumes)
    try:
        told = podman.run(
            "run",
            "--rm",
            *common,
            "--volume",
            "split-ca:/ca",
            "squidkeeper",
            "setup",
            "--gateway",
            "gw-2",
        )
        assert "a new CA is made there" in told.stdout
        podman.run(
            "run",
            "--detach",
            "--name",
            "split",
            *common,
            "--volume",
            "split-none:/ca:ro",
            "squidkeeper",
            "run",
        )
        wait_for(
            lambda: (
                podman.run("exec", "split", "gateway", "ready", check=False).returncode
                == 0
            ),
            "readiness",
            180,
        )
        assert (
            podman.run(
                "exec", "split", "find", "/ca", "/gateway", "-name", "ca.key"
            ).stdout
            == ""
        )
    finally:
        podman.run("rm", "--force", "--time", "1", "split", check=False)
        podman.run(
            "volume",
            "rm",
            "--force",
            "split-gateway",
            "split-ca",
            "split-none",
            check=False,
        )


def test_the_list_of_parts_is_what_is_installed(podman: Podman) -> None:
    def inside(*command: str) -> str:
        entry, *words = command
        return podman.run(
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            entry,
            "squidkeeper",
            *words,
        ).stdout

    listed = json.loads(inside("cat", "/opt/squidkeeper/sbom.json"))
    # sbom.py has asked its schema
    assert (listed["bomFormat"], listed["specVersion"]) == (
        "CycloneDX",
        "1.6",
    )
    assert [one["name"] for one in listed["components"] if "licenses" not in one] == []
    told = inside("squidkeeper", "--version").strip()
    assert told == f"squidkeeper, version {listed['metadata']['component']['version']}"
    parts = {
        (one["purl"].partition("/")[0], one["name"], one["version"])
        for one in listed["components"]
    }
    debian = inside(
        "dpkg-query", "--show", "--showformat", r"${Package} ${Version}\n"
    ).split("\n")
    assert {
        f"{name} {version}" for kind, name, version in parts if kind == "pkg:deb"
    } == {*filter(None, debian)}
    python = {
        name.lower().replace("_", "-").replace(".", "-"): v
        for kind, name, v in parts
        if kind == "pkg:pypi"
    }
    assert python.pop("squidkeeper")
    assert python == pins("requirements.lock")


def test_the_image_holds_no_key_and_no_pip(podman: Podman) -> None:
    script = "find / -xdev -name '*.key' -not -path '/usr/share/*' 2>/dev/null; ls /opt/squidkeeper/venv/bin; id"
    told = podman.run(
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "bash",
        "squidkeeper",
        "-c",
        script,
    ).stdout
    assert ".key" not in told
    assert "pip" not in told
    assert "uid=13(proxy)" in told


def test_the_image_keeps_nothing_of_apts(podman: Podman) -> None:
    """A base image without Debian's settings for containers lets apt keep packages, and
    indexes of all packages.
    """
    command = (
        "--entrypoint",
        "du",
        "squidkeeper",
        "-sm",
        "/var/cache/apt",
        "/var/lib/apt/lists",
    )
    sizes = podman.run("run", "--rm", "--network", "none", *command).stdout.split()[::2]
    assert sizes == ["1", "1"]


def test_the_image_has_its_health_check(podman: Podman) -> None:
    told = json.loads(podman.run("image", "inspect", "squidkeeper").stdout)[0]
    assert told["ManifestType"].startswith("application/vnd.docker.")  # OCI's has none
    assert (told.get("HealthCheck") or told["Healthcheck"])["Test"] == [
        "CMD",
        "gateway",
        "healthy",
    ]
    assert told["User"] == "proxy:proxy"
    assert os.fspath(REPOSITORY) not in json.dumps(told)
