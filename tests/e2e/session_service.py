"""The service of sessions of a gateway, as its unit runs it, and calls to it."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import wait_for

from .gateway import Gateway
from .raw import Raw

NO_PORT = "127.0.0.1:1"
SETTINGS = (
    "version: 1\n"
    "orchestrators: {local: {roles: [agent, reader, writer], approves: [writer]}}\n"
)


@dataclass(frozen=True)
class Answered:
    status: int
    body: Any
    etag: str | None


class Service:
    """The process that makes the sessions of a gateway, with Squid's group."""

    def __init__(self, gateway: Gateway, *listen: str, settings: str = "") -> None:
        self.gateway, self.layout = gateway, gateway.layout
        self.listen = listen or (gateway.authority,)
        self.layout.sessions_settings.write_text(settings or SETTINGS)
        for folder, mode in (
            (self.layout.sessions, 0o2750),
            (self.layout.sessions_run, 0o755),
            (self.layout.sessions_audit.parent, 0o750),
        ):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, group="proxy")
            folder.chmod(mode)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        layout = self.layout
        options = {
            "--policy": layout.policy,
            "--state": layout.state,
            "--sessions": layout.sessions,
            "--run": layout.sessions_run,
            "--config": layout.sessions_settings,
            "--audit-log": layout.sessions_audit,
            "--access-log": layout.access_log,
            "--proxy": f"http://{self.gateway.authority}",
        }
        words = [str(word) for pair in options.items() for word in pair]
        words += [word for place in self.listen for word in ("--listen", place)]
        account = ("setpriv", "--pdeathsig", "KILL", "--regid", "proxy")
        command = [*account, "--clear-groups", f"{self.gateway.root}/bin/squidkeeper"]
        with (self.gateway.root / "log/sessions.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "sessions", *words], stdout=out, stderr=out
            )
        wait_for(self.answers, "the service of sessions")
        with Raw(self.gateway) as client:  # whose helpers publish the policy
            client.get("http://nowhere.example/", "nowhere.example")
        wait_for(self.knows_policy, "the policy")

    def answers(self) -> bool:
        assert self.process
        told = self.gateway.root / "log/sessions.log"
        assert self.process.poll() is None, told.read_text()
        try:
            return self.call("GET", "/v1/openapi.json").status == 200
        except OSError:
            return False

    def knows_policy(self) -> bool:
        return self.call("GET", "/v1/sessions").status == 200

    def kill(self) -> None:
        """Kill it, if it was started."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    @contextmanager
    def without_cut(self) -> Iterator[None]:
        """Run it meanwhile as one that finds no connection to cut."""
        listen = self.listen
        self._restart(NO_PORT)
        try:
            yield
        finally:
            self._restart(*listen)

    def _restart(self, *listen: str) -> None:
        self.kill()
        self.listen = listen
        self.start()

    def call(
        self, method: str, where: str, body: object = None, match: str = ""
    ) -> Answered:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        with closing(connection):
            connection.sock.connect(str(self.layout.sessions_socket))
            data = None if body is None else json.dumps(body)
            headers = {"If-Match": match} if match else {}
            connection.request(method, where, data, headers)
            answer = connection.getresponse()
            read = answer.read()
        return Answered(
            answer.status, json.loads(read) if read else None, answer.headers["ETag"]
        )

    def put(self, name: str, role: str = "agent", **more: object) -> dict[str, Any]:
        if role == "agent":
            more = {"variables": {"repo": "acme/app"}, **more}
        answer = self.call("PUT", f"/v1/sessions/{name}", {"role": role, **more})
        assert answer.status == 201, answer
        made: dict[str, Any] = answer.body
        return made

    def delete(self, name: str) -> Answered:
        return self.call("DELETE", f"/v1/sessions/{name}")

    def secret_file(self, number: int) -> Path:
        return self.layout.sessions_run / "secrets" / str(number)
