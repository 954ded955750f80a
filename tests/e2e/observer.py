"""The exporter of a gateway as a process, and Debian's Prometheus that scrapes it every
second.
"""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from tests.waiting import wait_for

from .gateway import Gateway
from .network import run

AS_SQUID = [
    "setpriv",
    "--reuid",
    "proxy",
    "--regid",
    "proxy",
    "--clear-groups",
    "--pdeathsig",
    "KILL",
]

UNASKED_RESOLVER = "127.53.0.1"  # of a gateway whose Squid asks the tests' DNS server
_BIND = "-all,+net_bind_service"


class Answer:
    """What a page of either was answered."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.text = body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def fetch(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Fetch a page of this machine's."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


class Exporter:
    """`squidkeeper exporter` of one gateway, run by Squid's account."""

    def __init__(self, gateway: Gateway, port: int, *options: str | Path) -> None:
        self.gateway = gateway
        self.port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Exporter":
        """Start it; it answers when this returns."""
        root = self.gateway.root
        command = [
            *AS_SQUID,
            f"{root}/bin/squidkeeper",
            "exporter",
            "--listen",
            f"127.0.0.1:{self.port}",
        ]
        command += [
            "--policy",
            f"{root}/etc/policy",
            "--access-log",
            f"{root}/log/access.log",
        ]
        command += [
            "--state",
            f"{root}/state",
            "--ca",
            f"{root}/etc/ca/signing.crt",
            "--squid",
            self.gateway.authority,
        ]
        command += ["--run", f"{root}/run", *map(str, self._options)]
        with (root / "log/exporter.txt").open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        wait_for(
            self._answers, f"the exporter's first answer; see {root}/log/exporter.txt"
        )
        return self

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (
            self.gateway.root / "log/exporter.txt"
        ).read_text()
        try:
            return fetch(self.port, "/metrics").status == 200
        except OSError:
            return False

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it, by a signal; gives its exit status."""
        assert self._process is not None
        self._process.send_signal(by)
        return self._process.wait(60)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self.end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def health(self) -> tuple[int, dict[str, str]]:
        """The status of /healthz, and the conditions by code; most gateways here have
        no maintenance process.
        """
        heartbeat = self.gateway.root / "state/maintenance.json"
        with suppress(OSError):
            if not heartbeat.exists() or heartbeat.read_text() == "{}":
                heartbeat.write_text("{}")
        answer = fetch(self.port, "/healthz")
        found = {row["code"]: row["detail"] for row in answer.json["conditions"]}
        assert answer.json["healthy"] is (found == {})
        return answer.status, found

    def conditions(self) -> set[str]:
        """The codes of all conditions that hold, whether or not they make the gateway
        unhealthy.
        """
        served = fetch(self.port, "/metrics").text
        return set(
            re.findall(
                r'^squidkeeper_condition\{code="([a-z-]+)".*\} 1\.0$', served, re.M
            )
        )


class Maintenance:
    """`squidkeeper maintain` of one gateway, as its unit starts it, with a resolv.conf
    of its own.
    """

    def __init__(self, gateway: Gateway, resolv_conf: Path) -> None:
        self.gateway = gateway
        self.resolv_conf = resolv_conf
        self._process: subprocess.Popen[bytes] | None = None
        unit = (gateway.root / "etc/squidkeeper-maintenance.service").read_text()
        self._command = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)[0].split()
        if "--resolver" not in self._command:
            self._command += ["--resolver", UNASKED_RESOLVER]
        self.address = self._command[self._command.index("--resolver") + 1]

    def use(self, *servers: str) -> None:
        """Name these name servers in resolv.conf, put in place by rename, as most
        programs do.
        """
        new = self.resolv_conf.with_suffix(".new")
        new.write_text("".join(f"nameserver {server}\n" for server in servers))
        new.rename(self.resolv_conf)

    def start(self) -> "Maintenance":
        """Start it; the resolver listens when this returns."""
        root = self.gateway.root
        rights = [
            option
            for kind in ("bounding-set", "inh-caps", "ambient-caps")
            for option in (f"--{kind}", _BIND)
        ]
        command = [
            *AS_SQUID[:-2],
            *rights,
            *self._command,
            "--resolv-conf",
            str(self.resolv_conf),
        ]
        with (root / "log/maintenance.txt").open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        wait_for(lambda: self.unbound, f"unbound; see {root}/log/maintenance.txt")
        return self

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def unbound(self) -> int:
        """The process that listens on the resolver's address; 0 between one and the
        next.
        """
        found = re.search(
            r'"unbound",pid=(\d+)', run("ss", "-Hlunp", "src", f"{self.address}:53")
        )
        return int(found[1]) if found else 0

    def kill(self) -> None:
        """End it without a chance to end unbound."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process and self.runs:
            self._process.terminate()
            self._process.wait(60)


GATEWAY = "gw-1"  # as what is scraped is labelled


class Prometheus:
    """A Prometheus that scrapes and evaluates rules every second.

    An exporter: a port here, or (name, ADDRESS:PORT).
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *scraped: int | tuple[str, str],
        rules: str = "groups: []",
    ) -> None:
        self.port = port
        folder.mkdir()
        targets = [
            target if isinstance(target, tuple) else (GATEWAY, f"127.0.0.1:{target}")
            for target in scraped
        ]
        static = json.dumps(
            [
                {"targets": [place], "labels": {"gateway": name}}
                for name, place in targets
            ]
        )
        config = folder / "prometheus.yaml"
        (folder / "rules.yaml").write_text(rules)
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\n"
            f"scrape_configs: [{{job_name: squidkeeper, static_configs: {static}}}]\n"
        )
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "prometheus",
            f"--config.file={config}",
            "--log.level=warn",
        ]
        command += [
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        # by default its first scrape is five seconds later
        command += ["--scrape.discovery-reload-interval=100ms"]
        with (folder / "log.txt").open("wb") as out:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        wait_for(self._is_ready, f"Prometheus; see {folder}/log.txt")

    def _is_ready(self) -> bool:
        try:
            return fetch(self.port, "/-/ready").status == 200
        except OSError:
            return False

    def query(self, text: str) -> dict[tuple[str, ...], float]:
        """Ask in PromQL; gives the value by the values of the labels, in the order of
        their names.
        """
        answer = fetch(self.port, f"/api/v1/query?{urlencode({'query': text})}").json
        assert answer["status"] == "success", answer
        rows = answer["data"]["result"]
        return {
            tuple(value for _, value in sorted(row["metric"].items())): float(
                row["value"][1]
            )
            for row in rows
        }

    def scrape(self, times: int) -> None:
        """Wait for so many more scrapes that succeed."""
        goal = self._scraped() + times
        wait_for(lambda: self._scraped() >= goal, f"{times} scrapes")

    def _scraped(self) -> float:
        return sum(self.query("sum_over_time(up[1h])").values())

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
