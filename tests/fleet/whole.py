"""A fleet with all that stands around it: a git server that has its policy, Valkey that
counts its quotas, Prometheus.

Each is on a machine of its own. An editor commits to the policy again and again, and
knows what is right meanwhile.
"""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from squidkeeper.base.layout import Layout
from tests.e2e.gateway import Gateway
from tests.e2e.observer import Prometheus
from tests.pull_servers import Repository, WebServer, allowed_signer
from tests.valkey_server import PASSWORD, ValkeyServer
from tests.waiting import pause, wait_for

from .fleet import CLIENTS, FRONT, Fleet, Member
from .load import Question, always
from .network import Machine

STORE, GIT, WITNESS = "10.99.0.6", "10.99.0.7", "10.99.0.8"
PROBE = "10.99.2.200"  # the client that the editor names
TOKEN = "the-token-of-the-fleet"
LIMIT = 200  # of each quota, for all gateways together
ROUNDS = 30  # each fault has a quota of its own, which nobody has used
# once a gateway decides by an edit, all its helpers do within three, and Squid asks
# again after one
SETTLES_SECONDS = 4
PULL = """
source: {{git: {url}/policies.git, branch: main, ca: {etc}/git.pem}}
allowed_signers: {etc}/allowed_signers
every: 5s
"""
LOCAL = "version: 1\nsecrets: {token: {file: secrets/token, hosts: [secret.example]}}\n"
STORE_SETTINGS = """
address: {address}
user: {user}
password_file: {etc}/quota-store.password
tls_ca: {etc}/quota-store-ca.crt
on_unavailable: {on_unavailable}
gateways: 3
"""


def policy(*, edited_is_open: bool) -> str:
    """The policy that all gateways pull."""
    counted = [f"counted-{number}" for number in range(ROUNDS)]
    rules = [
        f"  - {{name: {name}, action: allow, hosts: [{name}.example]}}"
        for name in counted
    ]
    quotas = [
        f"  - {{name: {name}, per: rule, rules: [{name}], requests: {LIMIT}, every: day}}"
        for name in counted
    ]
    action = "allow" if edited_is_open else "deny"
    return "\n".join(
        [
            "version: 1",
            "rules:",
            "  - {name: open, action: allow, hosts: [open.example, secret.example]}",
            f"  - {{name: edited, action: {action}, hosts: [edited.example]}}",
            *rules,
            "quotas:",
            *quotas,
            "credentials:",
            "  - {name: token, hosts: [secret.example], bearer: token}",
            "",
        ]
    )


def set_up_pull(gateway: Gateway, server: WebServer, key: Path) -> None:
    """Write what is the gateway's own of a pulled policy, as policy/PULL.md has it."""
    etc = gateway.root / "etc"
    shutil.copy(server.ca, etc / "git.pem")
    (etc / "allowed_signers").write_text(allowed_signer(key))
    (etc / "pull.yaml").write_text(PULL.format(url=server.url, etc=etc))
    (etc / "local.yaml").write_text(LOCAL)
    (etc / "secrets").mkdir()
    (etc / "secrets/token").write_text(TOKEN)
    for name, mode in (
        ("local.yaml", 0o640),
        ("secrets", 0o750),
        ("secrets/token", 0o640),
    ):
        shutil.chown(etc / name, group="proxy")
        (etc / name).chmod(mode)
    gateway.remember(TOKEN, "token")


def set_up_counts(member: Member, valkey: ValkeyServer, on_unavailable: str) -> None:
    """Write where a gateway counts, as squid/FLEET.md has it."""
    etc = member.gateway.root / "etc"
    (etc / "quota-store.password").write_text(PASSWORD)
    shutil.copy(valkey.folder / "ca.crt", etc / "quota-store-ca.crt")
    address = f"{STORE}:{valkey.port}"
    told = STORE_SETTINGS.format(
        address=address, user=member.name, etc=etc, on_unavailable=on_unavailable
    )
    (etc / "quota-store.yaml").write_text(told)
    for name in ("quota-store.password", "quota-store.yaml"):
        shutil.chown(etc / name, group="proxy")
        (etc / name).chmod(0o640)


class Pull:
    """`squidkeeper pull` of one gateway, as its unit runs it."""

    def __init__(self, member: Member) -> None:
        self._member = member
        root = member.gateway.root
        unit = (root / "etc/squidkeeper-pull.service").read_text()
        self._command = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)[0].split()
        self.folder = root / "pulled"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and let the gateway follow its link once there is a version."""
        root, owner = (
            self._member.gateway.root,
            Layout.of(self._member.gateway.root).user_without_systemd("pull"),
        )
        shutil.chown(self.folder, owner, "proxy")
        as_puller = [
            "setpriv",
            "--reuid",
            f"{owner}",
            "--regid",
            "proxy",
            "--clear-groups",
            "--pdeathsig",
            "KILL",
        ]
        with (root / "log/pull.txt").open("ab") as out, self._member.machine.entered():
            self._process = subprocess.Popen(
                [*as_puller, *self._command], stdout=out, stderr=out
            )
        wait_for(
            (self.folder / "current/policy.yaml").exists,
            f"the first version; see {root}/log/pull.txt",
        )
        link = root / "etc/policy"
        if not link.is_symlink():
            link.rename(root / "etc/policy.before-pull")
            link.symlink_to(self.folder / "current")

    def status(self) -> dict[str, object]:
        """What the last pull has come to."""
        told: dict[str, object] = json.loads((self.folder / "status.json").read_text())
        return told

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(30)


@dataclass
class Whole:
    """The fleet and what is around it."""

    fleet: Fleet
    pulls: tuple[Pull, ...]
    repository: Repository
    git: Machine
    server: WebServer
    valkey: ValkeyServer
    store: Machine
    prometheus: Prometheus
    witness: Machine
    editor: "Editor" = field(init=False)

    def __post_init__(self) -> None:
        self.editor = Editor(self)

    def questions(self, round_: int) -> tuple[Question, ...]:
        """What the clients ask while one fault is made."""
        return (
            always("open.example", 200),
            always("closed.example", 403),
            always("secret.example", 200, scheme="https"),
            Question("edited.example", self.editor.right),
            always(f"counted-{round_}.example", 200, 403),
        )

    def count_by(self, on_unavailable: str) -> None:
        """Let all gateways do this while Valkey is away."""
        for member in self.fleet.members:
            set_up_counts(member, self.valkey, on_unavailable)
            member.restart_squid()
            member.exporter.stop()
            with member.machine.entered():
                member.exporter.start()
        self.fleet.wait_until_up(*(gateway.name for gateway in self.fleet.members))
        for (
            address
        ) in CLIENTS:  # the helpers of each gateway start with the first requests
            wait_for(
                lambda address=address: self._serves(address),  # type: ignore[misc] # mypy does not take a default in a lambda
                f"an answer for {address}",
            )

    def _serves(self, address: str) -> bool:
        reply = self.fleet.ask(address, "/started", "secret.example", "https")
        return reply.status == 200

    def alerts(self, seconds: float) -> set[str]:
        """The alerts that have fired, or begun to wait for their time, in the last
        seconds.
        """
        with self.witness.entered():
            found = self.prometheus.query(
                f"max by (alertname) (max_over_time(ALERTS[{max(1, round(seconds))}s]))"
            )
        return {name for (name,) in found}


class Editor:
    """Opens and closes edited.example by signed commits."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._right = frozenset({403})
        self.is_open = False
        self.alone = threading.Lock()  # whoever writes the repository
        self.agreed_seconds: list[
            float
        ] = []  # of each edit, from its commit until every gateway decided by it

    def right(self) -> frozenset[int]:
        """The statuses of edited.example that are right now: while an edit is under
        way, both.
        """
        return self._right

    def edit(self, *, settle: bool = True) -> None:
        """Make one edit, and wait until all gateways have it."""
        with self.alone:
            self._right = frozenset({200, 403})
            self.is_open = not self.is_open
            expected = 200 if self.is_open else 403
            self._whole.repository.write(
                "policy.yaml", policy(edited_is_open=self.is_open)
            )
            begun = time.monotonic()
            self._whole.repository.commit()
            wait_for(
                lambda: self._all_say(expected), "all gateways to have the edit", 240
            )
            self.agreed_seconds.append(time.monotonic() - begun)
            if settle:
                pause(SETTLES_SECONDS, "answers under way are given by either policy")
                self._right = frozenset({expected})

    def _all_say(self, expected: int) -> bool:
        return all(
            self._status(member) == expected for member in self._whole.fleet.members
        )

    def _status(self, member: Member) -> int:
        """Ask one gateway itself, as HAProxy does; 0 without an answer."""
        host, port = member.gateway.address
        head = f"PROXY TCP4 {PROBE} {FRONT[0]} 40000 {port}\r\nGET http://edited.example/probe HTTP/1.1\r\n"
        with (
            suppress(OSError),
            self._whole.fleet.front.entered(),
            socket.create_connection((host, port), timeout=3) as probe,
        ):
            probe.sendall(
                f"{head}Host: edited.example\r\nConnection: close\r\n\r\n".encode()
            )
            first = probe.recv(64).split(b" ")
            return int(first[1]) if len(first) > 1 else 0
        return 0

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Make one edit after another meanwhile."""
        stop, failed = threading.Event(), []

        def edit_on() -> None:
            try:
                while not stop.is_set():
                    self.edit()
                    stop.wait(1)
            except Exception as error:  # noqa: BLE001 - it is raised below, in the thread of the test
                failed.append(error)

        thread = threading.Thread(target=edit_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]
