"""The exporter as a process without a gateway, and its parts: pages, checks, metrics,
what is missing.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.client import BadStatusLine, HTTPConnection
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from squidkeeper.base.errors import ListenFailed
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.helper_metrics import (
    DECISION_DURATION,
    TRANSPARENT_CONNECTIONS,
    TransparentResult,
)
from squidkeeper.base.metrics import METRICS
from squidkeeper.base.squid_counters import SquidCounters, parse_counters, read_counters
from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.record.export_status import ExportState, ExportStore, read_exports
from squidkeeper.record.log.record import format_time
from squidkeeper.services.bounded_connection import BoundedConnection
from squidkeeper.services.exporter import server
from squidkeeper.services.exporter.certificate import Certificate, read_certificate
from squidkeeper.services.exporter.checkpoint import Checkpoint
from squidkeeper.services.exporter.collector import (
    GatewayCollector,
    expected_series,
    observed_series,
    squid_families,
)
from squidkeeper.services.exporter.conditions import CONDITIONS, active_conditions
from squidkeeper.services.exporter.counts import (
    SERIES_LIMIT,
    RequestCounter,
    RequestCounts,
)
from squidkeeper.services.exporter.process import _bound
from squidkeeper.services.exporter.recent import Denial, RecentAnswer
from squidkeeper.services.exporter.server import Application
from squidkeeper.services.exporter.snapshot import (
    HELPER_PATIENCE_SECONDS,
    Disk,
    SessionsView,
    Snapshot,
    read_disks,
)
from squidkeeper.services.exporter.status_page import page
from squidkeeper.services.exporter.status_rows import (
    helper_rows,
    rule_rows,
    secret_rows,
)
from squidkeeper.services.maintenance.process import MaintenanceStatus, TaskRunner
from squidkeeper.serving.certificates.authority import make_ca, make_intermediate
from squidkeeper.serving.counters.layout import (
    HelperStatus,
    Key,
    counter_key,
    histogram_keys,
    make_key,
)
from squidkeeper.serving.counters.reader import CounterFile

from ..conftest import compiled_of
from ..ports import free_port
from ..snapshots import changed, snapshot_of
from ..waiting import pause, wait_for
from .test_log_counter import line, record

NOW = 1_800_000_000.0
POLICY = """
clients: {lab: {networks: [192.0.2.7]}, ops: {networks: [192.0.2.8]}}
secrets: {token: {file: token}, gone: {file: gone}, from-env: {env: SQUIDKEEPER_TEST_NOT_SET}}
rules:
  - {name: open, action: allow, hosts: [a.example]}
  - {name: closed, action: deny, hosts: [b.example], clients: [ops], expires: 2030-01-01T00:00:00Z}
credentials:
  - {name: api, hosts: [a.example], bearer: token}
"""
SECRET = "never-to-be-shown-in-any-page"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return policy_in(tmp_path)


def policy_in(parent: Path) -> Path:
    folder = parent / "policy"
    folder.mkdir()
    (folder / "token").write_text(SECRET)
    (folder / "token").chmod(0o600)
    (folder / "policy.yaml").write_text(
        "version: 1\n" + POLICY.replace(", gone: {file: gone}", "")
    )
    return folder


# ── The process ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


class Process:
    """An exporter that was started by the command."""

    def __init__(self, folder: Path, *options: str, inside: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.log = folder / "access.log"
        self.state = folder / "state"
        command = [
            sys.executable,
            "-m",
            "squidkeeper",
            "exporter",
            "--listen",
            f"127.0.0.1:{self.port}",
        ]
        command += [
            "--policy",
            str(folder / "policy"),
            "--access-log",
            str(self.log),
            "--state",
            str(self.state),
        ]
        command += [
            "--run",
            str(folder / "run"),
            "--ca",
            str(folder / "ca.crt"),
            "--squid",
            "127.0.0.1:1",
            *options,
        ]
        self.process = subprocess.Popen(
            [*inside, *command], stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> Process:
        """Wait until it answers."""
        wait_for(self._answers, "the first answer")
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate(timeout=60)
        try:
            return self.get("/healthz").status > 0
        except (OSError, BadStatusLine):  # a port that connects to itself says this
            return False

    def get(
        self,
        path: str,
        method: str = "GET",
        *,
        source: str = "127.0.0.1",
        patience_seconds: float = 60,
    ) -> Answer:
        asked = HTTPConnection(
            "127.0.0.1", self.port, patience_seconds, source_address=(source, 0)
        )
        with closing(asked) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            return Answer(
                response.status, dict(response.getheaders()), response.read().decode()
            )

    def unhealthy(self) -> set[str]:
        """The codes of /healthz, with a maintenance process that runs."""
        if self.state.is_dir():
            TaskRunner([], self.state).check()
        answer = self.get("/healthz")
        codes = {row["code"] for row in json.loads(answer.text)["conditions"]}
        assert answer.status == (503 if codes else 200)
        return codes

    def value(self, series: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        values = (
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"{series} ")
        )
        return next(values, math.nan)

    def wait_for_value(self, series: str, value: float) -> None:
        wait_for(lambda: self.value(series) == value, f"{series} to be {value}")

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(by)
        _, told = self.process.communicate(timeout=60)
        return self.process.returncode, told


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Process]:
    process = Process(folder, *options)
    try:
        yield process.wait()
    finally:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)


ALWAYS = {"squid-down"}  # no Squid runs here
REQUESTS = 'squidkeeper_requests_total{client="lab",method_class="read",rule="open",status_class="2xx",verdict="allow"}'


@pytest.mark.system
def test_it_starts_with_nothing_there_and_takes_up_what_comes(tmp_path: Path) -> None:
    with running(tmp_path) as exporter:
        assert exporter.unhealthy() == {
            "no-policy",
            *ALWAYS,
        }
        assert [
            exporter.value(f"squidkeeper_{name}")
            for name in ("record_readable", "policy_rules")
        ] == [0, 0]
        assert [
            exporter.value(name)
            for name in ("squid_up", "squidkeeper_policy_last_reload_successful")
        ] == [0, 0]
        assert (
            "\nsquidkeeper_ca_certificate_expiry_timestamp_seconds "
            not in exporter.get("/metrics").text
        )
        assert exporter.get("/").status == 200
        (tmp_path / "policy").mkdir()
        (tmp_path / "policy/policy.yaml").write_text(
            "version: 1\nclients: {lab: {networks: [192.0.2.7]}}\n"
            "rules: [{name: open, action: allow, hosts: [a.example]}]\n"
        )
        exporter.wait_for_value("squidkeeper_policy_rules", 1)
        exporter.log.write_bytes(line())
        exporter.wait_for_value("squidkeeper_record_readable", 1)
        exporter.wait_for_value(REQUESTS, 1)
        assert exporter.unhealthy() == ALWAYS
        status, told = exporter.end(signal.SIGINT)
        assert status == 0
        lines = [line.split("squidkeeper: ")[-1] for line in told.splitlines()]
        on_a_slow_machine = ": no policy after "
        assert sorted(
            line for line in lines if on_a_slow_machine not in line
        ) == sorted(exporter_log(exporter, tmp_path))


def exporter_log(exporter: Process, folder: Path) -> list[str]:
    """Say what the exporter logs, and the publisher that it has started."""
    revision = load(folder / "policy", datetime.now(UTC)).compiled.revision
    return [
        f"{folder}/policy does not load, everything is denied:",
        f"{folder}/policy: the policy directory cannot be read: no such file or directory [unreadable]",
        f"metrics, health and status page are on 127.0.0.1:{exporter.port}",
        f"{folder}/policy: revision {revision} is in force",
    ]


@pytest.mark.system
def test_what_was_served_never_goes_back_even_when_killed_and_the_log_is_gone(
    tmp_path: Path, policy: Path
) -> None:
    (tmp_path / "access.log").write_bytes(line() * 3)
    for number, by in enumerate((signal.SIGTERM, signal.SIGKILL)):
        with running(tmp_path) as exporter:
            exporter.wait_for_value(REQUESTS, 3 + number)
            with exporter.log.open("ab") as log:
                log.write(line())
            exporter.wait_for_value(REQUESTS, 4 + number)
            assert exporter.end(by)[0] == (
                -signal.SIGKILL if by is signal.SIGKILL else 0
            )
    kept = json.loads((tmp_path / "state/exporter/counts.json").read_bytes())["counts"][
        "requests"
    ]
    assert sum(number for _, number in kept) == 5
    exporter.log.write_bytes(line(connection="2"))
    with running(tmp_path) as exporter:
        assert exporter.value(REQUESTS) == 6
        assert exporter.value("squidkeeper_record_lost_total") == 1


@pytest.mark.system
def test_a_read_only_state_costs_its_counts_alone(tmp_path: Path, policy: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    (tmp_path / "access.log").write_bytes(line())
    with running(tmp_path) as exporter:
        exporter.wait_for_value(REQUESTS, 1)
        assert exporter.value("squidkeeper_exporter_state_writable") == 0
        assert exporter.unhealthy() == {"maintenance-not-running", *ALWAYS}
        _, told = exporter.end()
    assert told.count("counts cannot be saved for a restart") == 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An exporter of one policy and one record, which no test ends."""
    folder = tmp_path_factory.mktemp("served")
    policy_in(folder)
    (folder / "access.log").write_bytes(line())
    with running(folder) as exporter:
        yield exporter


@pytest.mark.system
def test_a_second_one_is_refused_by_name(served: Process) -> None:
    second = Process(served.log.parent)
    _, told = second.process.communicate(timeout=60)
    assert second.process.returncode == 1
    another = f"{served.state}/exporter: another exporter uses this folder: stop it or choose another"
    assert told.endswith(f"Error: {another}\n")
    assert served.unhealthy() == ALWAYS


@pytest.mark.system
def test_a_port_that_is_taken_is_named_and_nobody_else_opens_its_own_while_it_counts_what_there_is() -> (
    None
):
    with _bound(("127.0.0.1", 0)) as bound, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(bound.getsockname())
        port = bound.getsockname()[1]
        with pytest.raises(
            ListenFailed,
            match=f"cannot listen on 127.0.0.1 port {port}: Address already in use",
        ):
            _bound(("127.0.0.1", port))


@pytest.mark.system
@pytest.mark.parametrize(
    "listen", ["9129", "localhost:9129", "127.0.0.1", "127.0.0.1:x", "::1:9129"]
)
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    done = CliRunner().invoke(main, ["exporter", "--listen", listen])
    assert done.exit_code == 2
    assert f"Invalid value for '--listen': {listen!r}" in done.output


@pytest.mark.system
def test_no_secret_and_no_query_is_on_any_page_or_in_a_core_dump(
    tmp_path: Path, policy: Path
) -> None:
    denied = line(
        verdict="deny",
        rule="closed",
        status=403,
        url=f"http://u:{SECRET}@b.example/seen?key={SECRET}",
    )
    (tmp_path / "access.log").write_bytes(denied)
    with running(tmp_path) as exporter:
        assert resource.prlimit(exporter.process.pid, resource.RLIMIT_CORE) == (0, 0)
        pages = [exporter.get(path).text for path in ("/", "/metrics", "/healthz")]
        _, told = exporter.end()
    assert "b.example/seen" in pages[0]
    assert [text for text in (*pages, told) if SECRET in text] == []


@pytest.mark.system
def test_an_address_of_the_network_leaves_the_one_of_this_machine(
    tmp_path: Path, policy: Path
) -> None:
    """In a network of its own.

    Only who was named sees the page there; without a name, nobody does.
    """
    network = (
        "unshare",
        "--net",
        "sh",
        "-c",
        'ip link set lo up; ip address add 192.0.2.7 dev lo; exec "$@"',
        "sh",
    )
    code = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
    for named, shown in (
        ((), "403"),
        (("--status-from", "127.0.0.0/8", "--status-from", "192.0.2.0/24"), "200"),
    ):
        exporter = Process(
            tmp_path, "--listen", "192.0.2.7:9129", *named, inside=network
        )
        asked = ("nsenter", "--net", "--target", str(exporter.process.pid), *code)

        def answer(host: str, path: str = "", asked: tuple[str, ...] = asked) -> str:
            url = f"http://{host}:9129/{path}"
            return subprocess.run(
                [*asked, url], capture_output=True, text=True, check=False
            ).stdout

        try:
            wait_for(
                lambda: answer("192.0.2.7", "metrics") == "200", "the first answer"
            )
            assert (
                answer("127.0.0.1"),
                answer("127.0.0.1", "metrics"),
                answer("192.0.2.7"),
            ) == ("200", "200", shown)
        finally:
            assert exporter.end()[0] == 0


@pytest.mark.system
@pytest.mark.parametrize("addresses", [1, 8])
def test_half_sent_requests_keep_nobody_out(served: Process, addresses: int) -> None:
    half_sent = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:
        for number in range(300):
            source = (f"127.0.0.{10 + number % addresses}", 0)
            idle = socket.create_connection(
                ("127.0.0.1", served.port), source_address=source
            )
            stack.callback(idle.close)
            if number % 2:
                idle.sendall(half_sent)
        other = served.get("/metrics", source="127.0.0.9", patience_seconds=10)
        same = served.get("/metrics", source="127.0.0.10", patience_seconds=10)
        assert (other.status, same.status) == (200, 200)
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        assert int(status.split("Threads:")[1].split()[0]) < 12


@pytest.mark.system
def test_answers_that_nobody_reads_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BoundedConnection, "in_all", 4)
    page = "x" * 12_000_000  # more than the sockets hold
    networks = (ip_network("127.0.0.0/8"),)
    bound = socket.create_server(("127.0.0.1", 0))
    application = Application(CollectorRegistry(), lambda: (), lambda: page, networks)
    serving = server.serve(application, bound)
    threading.Thread(target=serving.run, daemon=True).start()
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(
                socket.create_connection(bound.getsockname(), timeout=60)
            )
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1)
        wait_for(lambda: is_healthy(bound.getsockname()[1]), "an answer")
    wait_for(lambda: not serving.active_channels, "the end of the connections")
    serving.close()


def is_healthy(port: int) -> bool:
    """Whether /healthz answers; a connection is closed while all others are served."""
    with (
        closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection,
        suppress(ConnectionError),
    ):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


@pytest.mark.system
def test_health_writes_nothing_however_often_it_is_asked(served: Process) -> None:
    counts, files, begun = (
        served.state / "exporter/counts.json",
        set(),
        time.monotonic(),
    )
    for _ in range(20):
        with served.log.open("ab") as log:
            log.write(line())
        pause(0.05, "the log is read four times a second")
        served.get("/healthz")
        files.add(counts.stat().st_mtime_ns if counts.exists() else None)
    saves = (time.monotonic() - begun) / 5 + 1
    assert len(files) <= 1 + saves, "the exporter itself saves once in five seconds"


@pytest.mark.system
def test_a_request_that_trickles_in_does_not_keep_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_IDLE_SECONDS", 1)
    monkeypatch.setattr(server, "_CLEANUP_SECONDS", 1)
    bound = socket.create_server(("127.0.0.1", 0))
    serving = server.serve(Application(CollectorRegistry(), lambda: (), str, ()), bound)
    threading.Thread(target=serving.run, daemon=True).start()
    with (
        socket.create_connection(bound.getsockname()) as client,
        pytest.raises(ConnectionError),
    ):
        trickle(client)
    serving.close()


def trickle(client: socket.socket) -> None:
    client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    for _ in range(50):
        client.sendall(b"x")
        pause(0.1, "a slow client")


# ── The pages ─────────────────────────────────────────────────────────────────────────


def answer(
    peer: str = "127.0.0.1",
    path: str = "/",
    method: str = "GET",
    host: str = "127.0.0.1:9129",
    headers: dict[str, str] | None = None,
    *,
    on_loopback: bool = True,
    about: Snapshot | None = None,
) -> Answer:
    """Ask an application as a WSGI server does."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(lambda: view(None)))
    networks = tuple(map(ip_network, ("127.0.0.0/8", "::1/128", "192.0.2.0/24")))
    application = Application(
        registry,
        lambda: active_conditions(about or seen(), unhealthy_only=True),
        lambda: "<html>",
        networks,
        on_loopback,
    )
    told: list[tuple[str, dict[str, str]]] = []

    def start(status: str, given: list[tuple[str, str]], *_: object) -> object:
        told.append((status, dict(given)))
        return None

    environ = {
        "PATH_INFO": path,
        "REQUEST_METHOD": method,
        "REMOTE_ADDR": peer,
        "HTTP_HOST": host,
        **(headers or {}),
    }
    body = b"".join(application(environ, start))  # type: ignore[arg-type] # a write that nobody calls
    ((status, given),) = told
    return Answer(int(status[:3]), given, body.decode())


def view(policy: Path | None) -> Snapshot:
    compiled = compiled_of(policy.parent / "judged", POLICY) if policy else None
    return snapshot_of(
        now=NOW,
        directory=Path("/policy"),
        access_log=Path("/access.log"),
        state=Path("/state"),
        squid_address="127.0.0.1:3129",
        checkpoint=Checkpoint(since="2026-11-25T12:00:00.000+00:00"),
        log_readable=True,
        backlog_bytes=0,
        state_writable=True,
        policy=compiled.source if compiled else None,
        policy_state=PolicyState(
            compiled.revision if compiled else None, NOW - 100, ok=True
        ),
        counter_files=(),
        totals={},
        certificate=Certificate(Path("/ca.crt")),
        squid=SquidCounters({}, "refused"),
    )


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        *(
            (peer, 200)
            for peer in (
                "127.0.0.1",
                "127.9.9.9",
                "::1",
                "::ffff:127.0.0.1",
                "192.0.2.77",
            )
        ),
        *(
            (peer, 403)
            for peer in ("192.0.3.1", "::2", "::ffff:192.0.3.1", "fe80::1%eth0")
        ),
    ],
)
def test_the_page_is_shown_to_whom_it_is_opened_alone(peer: str, status: int) -> None:
    assert answer(peer).status == status
    shown_to = "127.0.0.0/8, ::1/128, 192.0.2.0/24"
    told = f"The status page is for {shown_to} only. --status-from NETWORK opens it to others.\n"
    assert answer(peer).text == ("<html>" if status == 200 else told)
    assert answer(peer, "/metrics").status == answer(peer, "/healthz").status == 200


def test_the_page_is_shown_under_an_address_and_not_under_a_name_or_by_a_proxy_that_could_be_anybodys() -> (
    None
):
    for host in (
        "localhost",
        "localhost:9129",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]:9129",
        "192.0.2.1:9129",
    ):
        assert answer(host=host).status == 200, host
    names = (
        "",
        "evil.example",
        "evil.example:9129",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "x@y",
    )
    for host in names:
        assert answer(host=host, on_loopback=False).status == 403, host
        assert answer(host=host, path="/metrics", on_loopback=False).status == 200, (
            "elsewhere it is scraped by name"
        )
        assert [
            answer(host=host, path=path).status
            for path in ("/", "/metrics", "/healthz")
        ] == [403] * 3, host
    for header in ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR"):
        assert answer(headers={header: "192.0.2.9"}).status == 403, header
        assert answer(path="/metrics", headers={header: "192.0.2.9"}).status == 200, (
            header
        )


@pytest.mark.system
@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nothing"])
def test_every_answer_lets_nothing_in(path: str) -> None:
    headers = answer(path=path).headers
    assert headers["Content-Security-Policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline';"
    )
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == (
        "nosniff",
        "no-store",
    )


def test_other_paths_and_methods_are_refused() -> None:
    assert (
        answer(path="/metrics/").status == answer(path="/../etc/passwd").status == 404
    )
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"):
        assert answer(path="/metrics", method=method).status == 405
        assert answer(path="/metrics", method=method).headers["Allow"] == "GET, HEAD"
    whole, head = answer(path="/healthz"), answer(path="/healthz", method="HEAD")
    assert (head.text, head.headers) == ("", whole.headers)


def test_metrics_are_served_as_text_and_as_openmetrics() -> None:
    plain = answer(path="/metrics")
    assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    wanted = {
        "HTTP_ACCEPT": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    }
    opened = answer(path="/metrics", headers=wanted)
    assert opened.headers["Content-Type"].startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    assert opened.text.endswith("# EOF\n")
    families = parse_openmetrics(opened.text)  # type: ignore[no-untyped-call] # the library has no types for it
    assert {family.name for family in families} == {
        family.name for family in parse_text(plain.text)
    }


@pytest.mark.parametrize("version", ["x.y", "\xff", "1", "", "1.0.0.0.0"])
def test_metrics_are_served_whatever_is_asked_for(version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        assert (
            answer(
                path="/metrics",
                headers={"HTTP_ACCEPT": f"{kind};version={version};escaping=x"},
            ).status
            == 200
        )


# ── Health ────────────────────────────────────────────────────────────────────────────

GOOD = PolicyState("aaaa", NOW - 100, ok=True)
HELPER = HelperStatus(
    "host", 77, NOW - 50, NOW - 1, "aaaa", reload_ok=True, reloaded=NOW - 50
)


def seen(
    state: PolicyState = GOOD, *helpers: HelperStatus, running: bool = True
) -> Snapshot:
    """A gateway with these helpers, and with nothing else wrong."""
    files = tuple(
        CounterFile(number, running, "x", status)
        for number, status in enumerate(helpers)
    )
    squid, maintenance = SquidCounters({}, answers=True), MaintenanceStatus(runs=True)
    return changed(
        view(None),
        policy_state=state,
        counter_files=files,
        squid=squid,
        maintenance=maintenance,
    )


def wrong(about: Snapshot) -> dict[str, str]:
    return {
        condition.condition.code: condition.detail
        for condition in active_conditions(about)
        if condition.condition.code != "ca-unreadable"
    }


def test_all_is_well_with_helpers_and_without() -> None:
    assert wrong(seen(GOOD, HELPER)) == wrong(seen()) == {}
    healthy = answer(path="/healthz")
    assert (healthy.status, json.loads(healthy.text)) == (
        200,
        {"healthy": True, "conditions": []},
    )


def test_health_gives_each_condition_with_its_code() -> None:
    ill = answer(
        path="/healthz",
        about=changed(seen(), maintenance=MaintenanceStatus(runs=False)),
    )
    assert ill.status == 503
    assert json.loads(ill.text) == {
        "healthy": False,
        "conditions": [
            {
                "code": "maintenance-not-running",
                "severity": "critical",
                "detail": "The maintenance process does not run.",
            }
        ],
    }


def test_health_is_bad_where_the_gateway_does_not_serve_and_nowhere_else() -> None:
    assert {condition.code for condition in CONDITIONS if condition.unhealthy} == {
        "disk-full",
        "squid-down",
        "drained",
        "no-policy",
        "no-helper",
        "helper-stuck",
        "bodies-down",
        "ca-expired",
        "maintenance-not-running",
        "resolver-failing",
        "tls-failing",
        "transparent-failing",
    }


BAD = Fault(Location("policy.yaml", 3, 1), FaultCode.UNKNOWN_KEY, "unknown key 'x'")
UNAVAILABLE = Checkpoint(
    since="2026-11-25T12:00:00.000+00:00",
    counts=RequestCounts(
        last_matched={
            "policy-unavailable": format_time(datetime.fromtimestamp(NOW, UTC))
        }
    ),
)


@pytest.mark.parametrize(
    ("helper", "revision", "unhealthy"),
    [
        (HELPER, "aaaa", set()),
        (replace(HELPER, revision=None), "aaaa", {"no-helper"}),
        (replace(HELPER, revision=None), None, {"no-policy"}),
    ],
)
def test_a_typo_in_the_policy_is_unhealthy_where_no_helper_has_the_last_good_one(
    helper: HelperStatus, revision: str | None, unhealthy: set[str]
) -> None:
    bad = replace(GOOD, revision=revision, ok=False, faults=(BAD,))
    about = changed(seen(bad, helper), checkpoint=UNAVAILABLE)
    found = active_conditions(about, unhealthy_only=True)
    assert {condition.condition.code for condition in found} == unhealthy
    assert "policy-not-loaded" in wrong(about)


def test_a_helper_that_needs_no_policy_is_not_asked_for_its_revision() -> None:
    throttle = replace(HELPER, helper="throttle", revision=None, reload_ok=True)
    assert wrong(seen(GOOD, throttle)) == {}
    assert wrong(seen(GOOD, replace(throttle, beat=NOW - 11))) == {
        "helper-stuck": "helper throttle, process 77: no heartbeat for 11 s"
    }


@pytest.mark.parametrize(
    ("helper", "code", "detail"),
    [
        (
            replace(HELPER, beat=NOW - HELPER_PATIENCE_SECONDS - 1),
            "helper-stuck",
            "no heartbeat for 11 s",
        ),
        (replace(HELPER, busy_since=NOW - 12), "helper-stuck", "no reply for 12 s"),
        (
            replace(HELPER, reload_ok=False),
            "helper-outdated",
            "the policy on disk does not load there: revision aaaa is in force there",
        ),
        (
            replace(HELPER, revision=None, reload_ok=False),
            "helper-outdated",
            "the policy on disk does not load there: that helper denies everything",
        ),
        (
            replace(HELPER, revision="bbbb"),
            "helper-outdated",
            "revision bbbb is in force there; revision aaaa is the last good one",
        ),
        (
            replace(HELPER, revision=None),
            "helper-outdated",
            "that helper denies everything; revision aaaa is the last good one",
        ),
    ],
)
def test_a_helper_that_is_ill_is_named(
    helper: HelperStatus, code: str, detail: str
) -> None:
    assert wrong(seen(GOOD, HELPER, helper)) == {
        code: f"helper host, process 77: {detail}"
    }


def test_a_helper_has_time_to_answer_and_to_take_up_an_edit_and_is_idle_once_it_has_ended() -> (
    None
):
    assert wrong(seen(GOOD, replace(HELPER, beat=NOW - 9, busy_since=NOW - 9))) == {}
    assert (
        wrong(seen(replace(GOOD, loaded=NOW - 9), replace(HELPER, revision="bbbb")))
        == {}
    )
    assert (
        wrong(
            seen(
                GOOD,
                replace(HELPER, beat=0.0, revision="old", reload_ok=False),
                running=False,
            )
        )
        == {}
    )


# ── The metrics ───────────────────────────────────────────────────────────────────────


def samples(about: Snapshot) -> dict[str, float]:
    """Every sample that is served, by its series as text."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(lambda: about))
    lines = generate_latest(registry).decode().splitlines()
    return {
        series: float(value)
        for series, _, value in (
            line.rpartition(" ") for line in lines if line[0] != "#"
        )
    }


def test_each_entry_of_the_table_is_served_by_its_name_kind_and_meaning(
    policy: Path,
) -> None:
    registry = CollectorRegistry()
    registry.register(GatewayCollector(lambda: view(policy)))
    told = generate_latest(registry).decode().splitlines()
    for metric in METRICS:
        assert f"# TYPE {metric.name} {metric.kind}" in told
        assert f"# HELP {metric.name} {metric.help}" in told


def test_the_questions_that_wait_are_a_number_once_a_client_has_asked() -> None:
    asked = samples(changed(seen(), questions_waiting=3))
    assert asked["squidkeeper_questions_waiting"] == 3
    assert "squidkeeper_questions_waiting" not in samples(seen())


def test_active_sessions_are_counted_by_role(tmp_path: Path) -> None:
    text = "roles: {agent: {ttl: 1h}, idle: {ttl: 1h}}\n"
    compiled = compiled_of(tmp_path / "policy", text)
    known = changed(seen(), policy=compiled.source)

    def shown(active: dict[str, int] | None) -> dict[str, float]:
        found = samples(changed(known, sessions=SessionsView(active=active)))
        prefix = "squidkeeper_sessions{"
        return {name: n for name, n in found.items() if name.startswith(prefix)}

    agent, idle = (
        f'squidkeeper_sessions{{role="{name}"}}' for name in ("agent", "idle")
    )
    # no series for roles that the policy had
    assert shown({"agent": 3, "gone": 1}) == {agent: 3, idle: 0}
    assert shown({}) == {agent: 0, idle: 0}
    assert shown(None) == {}


def test_what_the_policy_names_is_there_before_it_counts(policy: Path) -> None:
    found = samples(view(policy))
    for client in ("lab", "ops", "none"):
        series = f'client="{client}",method_class="read",rule="open",status_class="2xx",verdict="allow"'
        assert found[f"squidkeeper_requests_total{{{series}}}"] == 0
        assert (
            found[
                f'squidkeeper_enforcement_drift_total{{client="{client}",rule="default"}}'
            ]
            == 0
        )
    closed = [
        series
        for series in found
        if 'rule="closed"' in series and "requests_total" in series
    ]
    assert closed == [
        'squidkeeper_requests_total{client="ops",method_class="read",rule="closed",status_class="4xx",verdict="deny"}'
    ]
    tunnels = {line for line in found if line.startswith("squidkeeper_tunnels_total")}
    expected = {
        f'squidkeeper_tunnels_total{{client="{client}",rule="open"}}'
        for client in ("lab", "ops", "none")
    }
    assert tunnels == expected
    assert found['squidkeeper_rule_last_matched_timestamp_seconds{rule="closed"}'] == 0
    assert (
        found['squidkeeper_rule_expiry_timestamp_seconds{rule="closed"}']
        == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    )
    assert found['squidkeeper_credential_failures_total{credential="api"}'] == 0
    assert [
        found[f'squidkeeper_helper_processes{{helper="{helper}"}}']
        for helper in ("host", "request")
    ] == [0, 0]


def test_a_grant_and_an_ask_have_series_and_a_grant_no_expiry_to_be_warned_about(
    tmp_path: Path,
) -> None:
    text = """
    defaults: {ask: true}
    rules: [{name: asks, action: ask, hosts: [a.example]}]
    grants: [{name: granted, any_client: true, hosts: [a.example], expires: 2030-01-01T00:00:00Z, reason: x}]
    """
    found = samples(
        changed(view(None), policy=compiled_of(tmp_path / "granted", text).source)
    )
    labels = (
        'client="none",method_class="read",rule="{}",status_class="{}",verdict="{}"'
    )
    assert (
        found[
            f"squidkeeper_requests_total{{{labels.format('granted', '2xx', 'allow')}}}"
        ]
        == 0
    )
    assert (
        found[f"squidkeeper_requests_total{{{labels.format('asks', '4xx', 'deny')}}}"]
        == 0
    )
    assert (
        found[
            f"squidkeeper_requests_total{{{labels.format('default', '4xx', 'deny')}}}"
        ]
        == 0
    )
    assert found['squidkeeper_rule_last_matched_timestamp_seconds{rule="granted"}'] == 0
    assert [
        series for series in found if series.startswith("squidkeeper_rule_expiry")
    ] == []


@pytest.mark.system
def test_a_policy_of_thousands_makes_no_series_without_end(tmp_path: Path) -> None:
    clients = "".join(
        f"  c{number}: {{networks: [10.0.{number}.0/24]}}\n" for number in range(200)
    )
    rules = "".join(
        f"  - {{name: r{number}, action: allow, hosts: [h{number}.example]}}\n"
        for number in range(3000)
    )
    policy = compiled_of(
        tmp_path / "many", f"clients:\n{clients}rules:\n{rules}"
    ).source
    assert 0 < len(expected_series(policy)) <= SERIES_LIMIT // 2


def test_counts_of_the_record_are_served(policy: Path) -> None:
    counter = RequestCounter(RequestCounts())
    for milliseconds in (5, 6, 400_000):
        counter.count(record(duration_ms=milliseconds), "lab")
    counter.count_drift("lab", "closed")
    checkpoint = Checkpoint(
        since="2026-11-25T12:00:00.000+00:00", counts=counter.counts()
    )
    found = samples(
        changed(
            view(policy),
            checkpoint=checkpoint,
            backlog_bytes=7,
            log_readable=False,
            state_writable=False,
        )
    )
    assert found[REQUESTS] == 3
    assert (
        found[
            'squidkeeper_response_bytes_total{client="lab",rule="open",verdict="allow"}'
        ]
        == 300
    )
    bucket = 'squidkeeper_request_duration_seconds_bucket{le="%s",method_class="read",verdict="allow"}'
    assert [found[bucket % bound] for bound in ("0.005", "0.01", "300.0", "+Inf")] == [
        1,
        2,
        2,
        3,
    ]
    assert (
        found[
            'squidkeeper_request_duration_seconds_sum{method_class="read",verdict="allow"}'
        ]
        == 400.011
    )
    assert found['squidkeeper_enforcement_drift_total{client="lab",rule="closed"}'] == 1
    at = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
    assert found['squidkeeper_rule_last_matched_timestamp_seconds{rule="open"}'] == at
    assert found["squidkeeper_record_last_line_timestamp_seconds"] == at
    assert [
        found[f"squidkeeper_{name}"]
        for name in (
            "record_backlog_bytes",
            "record_readable",
            "exporter_state_writable",
        )
    ] == [7, 0, 0]


def test_what_an_export_reports_is_served_as_its_file_has_it(
    policy: Path, tmp_path: Path
) -> None:
    with ExportStore(tmp_path, "siem") as store:
        store.write(
            ExportState(
                sent=7, doubled=6, gaps=5, lost=4, backlog_bytes=3, waiting_since=1000.0
            )
        )
    (tmp_path / "export/other.json").write_text("no state")
    now = view(policy).now
    os.utime(tmp_path / "export/siem.json", (now, now))
    found = samples(changed(view(policy), exports=read_exports(tmp_path, now)))
    values = {
        name: value
        for name, value in found.items()
        if name.startswith("squidkeeper_export_")
    }
    expected: dict[str, float] = {
        "up": 1,
        "records_total": 7,
        "doubled_total": 6,
        "gaps_total": 5,
        "lost_records_total": 4,
    }
    expected |= {"backlog_bytes": 3, "waiting_seconds": now - 1000}
    assert values == {
        f'squidkeeper_export_{name}{{export="siem"}}': value
        for name, value in expected.items()
    }
    assert not read_exports(tmp_path, now + 121)["siem"].runs


@pytest.mark.system
def test_the_room_on_disk_is_served_of_each_folder_that_is_there(
    policy: Path, tmp_path: Path
) -> None:
    """As df(1) has it, for an account that is not root's."""
    disks = tuple(read_disks({"log": tmp_path, "state": tmp_path / "missing"}))
    found = samples(changed(view(policy), disks=disks))
    shown = subprocess.run(
        ["df", "-B1", "--output=size", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found['squidkeeper_filesystem_size_bytes{folder="log"}'] == int(
        shown.stdout.split()[-1]
    )
    assert (
        0
        < found['squidkeeper_filesystem_avail_bytes{folder="log"}']
        < int(shown.stdout.split()[-1])
    )
    assert not any('folder="state"' in name for name in found)


@pytest.mark.parametrize(
    ("available", "size", "low"),
    [
        (1e9, 1e10, False),
        (9.9e8, 1e10, True),
        (1e10, 1e12, False),
        (9.9e9, 1e12, True),
        (0, 1e6, True),
    ],
)
def test_a_disk_is_low_with_a_tenth_of_it_left_and_little_by_itself(
    available: int, size: int, low: bool
) -> None:
    assert Disk("log", Path("/var/log/squid"), available, size).is_low is low


def test_the_maintenance_process_is_served_with_each_of_its_tasks(policy: Path) -> None:
    about = changed(
        view(policy),
        maintenance=MaintenanceStatus(
            runs=True, failures={"resolver": "unbound is silent", "rotation": ""}
        ),
    )
    found = samples(about)
    assert found["squidkeeper_maintenance_up"] == 1
    assert found['squidkeeper_maintenance_task_success{task="resolver"}'] == 0
    assert found['squidkeeper_maintenance_task_success{task="rotation"}'] == 1
    assert samples(view(policy))["squidkeeper_maintenance_up"] == 0


def test_connections_to_the_transparent_ports_are_served_with_each_result_and_without_these_ports_not_at_all(
    policy: Path,
) -> None:
    name = "squidkeeper_transparent_connections_total"
    assert not [series for series in samples(view(policy)) if series.startswith(name)]
    opened = counter_key(TRANSPARENT_CONNECTIONS, TransparentResult.OPENED)
    found = samples(changed(view(policy), totals={opened: 7.0}))
    assert {series: found[series] for series in found if series.startswith(name)} == {
        f'{name}{{result="{result}"}}': 7 if result == "opened" else 0
        for result in TransparentResult
    }


DENIED_AT = datetime.fromtimestamp(NOW - 20, UTC)
DENIED = Denial(
    DENIED_AT, "192.0.2.1", None, "GET", "http://closed.example/", 0, "closed"
)
THROTTLE_HELPER = replace(HELPER, helper="throttle", revision=None)


@pytest.mark.parametrize(
    ("denial", "helpers", "missing"),
    [
        (DENIED, (HELPER,), True),
        (DENIED, (HELPER, THROTTLE_HELPER), False),
        (DENIED, (), False),  # Squid has just ended
        (
            DENIED,
            (replace(HELPER, started=NOW - 19),),
            False,
        ),  # Squid has restarted since
        (
            replace(DENIED, time=datetime.fromtimestamp(NOW - 2, UTC)),
            (HELPER,),
            False,
        ),  # it takes a moment to start
        (
            replace(DENIED, time=datetime.fromtimestamp(NOW - 301, UTC)),
            (replace(HELPER, started=0.0),),
            False,
        ),
        (replace(DENIED, rule="policy-unavailable"), (HELPER,), False),
        (replace(DENIED, rule="not-rendered"), (HELPER,), False),
        (replace(DENIED, facts={"error": "ERR_SQUIDKEEPER_TEXT"}), (HELPER,), True),
        (
            replace(DENIED, rule="quota", facts={"error": "-"}),
            (HELPER,),
            False,
        ),  # the service for bodies has denied it
    ],
)
def test_denials_without_a_throttle_are_on_the_status_page(
    policy: Path, denial: Denial, helpers: tuple[HelperStatus, ...], missing: bool
) -> None:
    files = tuple(
        CounterFile(number, True, "x", status) for number, status in enumerate(helpers)
    )
    about = changed(
        view(policy),
        checkpoint=Checkpoint(since="", denials=(denial,)),
        counter_files=files,
    )
    found = {
        condition.condition.code: condition.detail
        for condition in active_conditions(about)
    }
    assert found.get("throttle-not-running") == (
        "a denial asked for it 20 s ago" if missing else None
    )


def test_what_helpers_count_is_served(policy: Path) -> None:
    *buckets, total = histogram_keys(
        DECISION_DURATION.name, {"helper": "host"}, DECISION_DURATION.buckets
    )
    totals: dict[Key, float] = {
        make_key(
            "squidkeeper_decisions_total",
            {"helper": "host", "rule": "open", "verdict": "allow"},
        ): 5,
        make_key("squidkeeper_protocol_errors_total", {"helper": "rewrite"}): 2,
        make_key("squidkeeper_credential_injections_total", {"credential": "api"}): 3,
        make_key("squidkeeper_helper_starts_total", {"what": "of another release"}): 9,
        make_key("unknown_total", {}): 9,
        buckets[0]: 4,
        buckets[-1]: 1,
        total: 2.5,
    }
    about = changed(view(policy), totals=totals)
    stuck = replace(
        HELPER, beat=NOW - 20, revision=about.policies.policy_state.revision
    )
    found = samples(
        changed(
            about,
            counter_files=(
                CounterFile(0, True, "x", HELPER),
                CounterFile(1, True, "y", stuck),
                CounterFile(2, False, "z", stuck),
            ),
        )
    )
    assert (
        found['squidkeeper_decisions_total{helper="host",rule="open",verdict="allow"}']
        == 5
    )
    assert found['squidkeeper_protocol_errors_total{helper="rewrite"}'] == 2
    assert found['squidkeeper_credential_injections_total{credential="api"}'] == 3
    assert found['squidkeeper_helper_starts_total{helper="host"}'] == 0
    duration = "squidkeeper_decision_duration_seconds"
    assert [
        found[f'{duration}_bucket{{helper="host",le="{bound}"}}']
        for bound in ("1e-05", "1.0", "+Inf")
    ] == [
        4,
        4,
        5,
    ]
    assert (
        found[f'{duration}_count{{helper="host"}}'],
        found[f'{duration}_sum{{helper="host"}}'],
    ) == (5, 2.5)
    processes = [
        found[f'squidkeeper_helper_processes{more}{{helper="host"}}']
        for more in ("", "_outdated", "_stuck")
    ]
    assert processes == [2, 1, 1]


def test_each_condition_that_the_exporter_sees_is_served(policy: Path) -> None:
    found = {
        series: value
        for series, value in samples(view(policy)).items()
        if series.startswith("squidkeeper_cond")
    }
    names = {
        condition.code: f'squidkeeper_condition{{code="{condition.code}",severity="{condition.severity}"}}'
        for condition in CONDITIONS
    }
    assert found.keys() == {
        names[condition.code] for condition in CONDITIONS if condition.find
    }
    active = {
        "squid-down",
        "ca-unreadable",
        "maintenance-not-running",
        "secret-unavailable",
        "policy-warning",
    }
    assert {series for series, value in found.items() if value} == {
        names[code] for code in active
    }
    well = {
        series: value
        for series, value in samples(seen()).items()
        if series.startswith("squidkeeper_cond")
    }
    assert [series for series, value in well.items() if value] == [
        names["ca-unreadable"]
    ]


def test_no_series_is_served_twice(policy: Path) -> None:
    counter = RequestCounter(RequestCounts())
    for rule in ("open", "closed", "default", "gone"):
        counter.count(record(rule=rule), "lab")
    registry = CollectorRegistry()
    registry.register(
        GatewayCollector(
            lambda: changed(
                view(policy), checkpoint=Checkpoint(since="x", counts=counter.counts())
            )
        )
    )
    series = [
        line.rpartition(" ")[0]
        for line in generate_latest(registry).decode().splitlines()
        if line[0] != "#"
    ]
    assert len(series) == len(set(series))


# ── The status page ───────────────────────────────────────────────────────────────────


def test_the_status_page_is_filled(policy: Path) -> None:
    counter = RequestCounter(RequestCounts())
    counter.count(record(), "lab")
    counter.count(record(verdict="deny", rule="default"), "lab")
    checkpoint = Checkpoint(
        since="2026-11-25T12:00:00.000+00:00", counts=counter.counts()
    )
    about = changed(
        view(policy),
        checkpoint=checkpoint,
        counter_files=(
            CounterFile(
                0, True, "x", HELPER, (("squidkeeper_decisions_total", {}, 5.0),)
            ),
        ),
    )
    at = datetime(2026, 11, 25, 12, tzinfo=UTC)
    rows = [
        (row.name, row.action, row.allowed, row.denied, row.last_matched, row.built_in)
        for row in rule_rows(about)
    ]
    assert rows == [
        ("open", "allow", 1, 0, at, False),
        ("closed", "deny", 0, 0, None, False),
        ("default", "deny", 0, 1, at, True),
    ]
    (helper,) = helper_rows(about)
    assert (helper.kind, helper.outdated, helper.stuck, helper.answered) == (
        "host",
        True,
        False,
        5,
    )
    secrets = tuple(secret_rows(about))
    assert {secret.name: secret.problem is None for secret in secrets} == {
        "token": False,
        "gone": False,
        "from-env": True,  # of Squid's environment this process knows nothing
    }
    assert secrets[0].used_by == ("api",)
    assert "127.0.0.1:3129" in page(about, "squidkeeper")


def test_allowed_tunnels_stand_apart_from_a_rules_hits_on_the_status_page(
    policy: Path,
) -> None:
    counter = RequestCounter(RequestCounts())
    for verdict, rule, times in (("allow", "open", 36), ("deny", "closed", 2)):
        for _ in range(times):
            counter.count(record(method="CONNECT", verdict=verdict, rule=rule), "lab")
    counter.count(record(), "lab")
    checkpoint = Checkpoint(
        since="2026-11-25T12:00:00.000+00:00", counts=counter.counts()
    )
    about = changed(view(policy), checkpoint=checkpoint)
    rows = [
        (row.name, row.allowed, row.denied, row.tunnels) for row in rule_rows(about)
    ]
    assert rows == [("open", 1, 0, 36), ("closed", 0, 2, 0)]


def test_what_is_observed_is_counted_by_rule_and_verdict_without_tunnels(
    tmp_path: Path,
) -> None:
    rules = "[{name: no-push, action: deny, observe: true}, {name: later, action: allow, observe: true}]"
    policy = compiled_of(
        tmp_path,
        f"rules: {rules}\n    defaults: {{observe: true}}".replace("\n    ", "\n"),
    ).source
    counter = RequestCounter(RequestCounts())
    for observed in ("deny:no-push", "deny:no-push", "deny:default", "-"):
        counter.count(record(observed=observed), "lab")
    # an allowed tunnel
    counter.count(record(method="CONNECT", observed="deny:no-push"), "lab")
    counter.count(
        record(method="CONNECT", verdict="deny", observed="allow:other%20one"), "lab"
    )
    counts = RequestCounter(counter.counts()).counts()  # as after a restart
    assert sorted(counts.observed) == [
        (("default", "deny"), 1),
        (("no-push", "deny"), 2),
        (("other one", "allow"), 1),
    ]
    assert observed_series(policy) == [
        ("no-push", "deny"),
        ("later", "allow"),
        ("default", "deny"),
    ]


def warnings(about: Snapshot) -> tuple[str, ...]:
    found = {
        condition.condition.code: condition.details
        for condition in active_conditions(about)
    }
    return found["policy-warning"]


@pytest.mark.system
def test_the_warnings_of_a_policy_are_on_the_status_page_but_not_those_of_secrets(
    policy: Path,
) -> None:
    (policy / "empty").touch()
    (policy / "list.yaml").write_text(
        "version: 1\nlists: {none: {file: empty}}\nrules: [{name: listed, action: deny, lists: [none]}]\n"
    )
    watcher = PolicyWatcher(policy, None, lambda compiled: compiled)
    while not watcher.state.ok:
        watcher.check()
    assert len(watcher.state.warnings) == 2
    about = changed(view(None), policy_state=watcher.state)
    (warning,) = warnings(about)
    assert warning == (
        f"{policy}/empty: the list holds no host pattern, so an entry that names it matches nothing [list-empty]"
    )


def test_what_lacks_an_extra_is_unavailable_and_no_mere_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.policy.extras.find_spec", lambda _: None)
    policy = compiled_of(
        tmp_path, "secrets: {key: {file: key}}\nsealed_tokens: {keys: [key]}\n"
    ).source
    found = {
        condition.condition.code: condition
        for condition in active_conditions(changed(view(None), policy=policy))
    }
    assert "run ./install.sh --extras sealed" in found["secret-unavailable"].detail
    assert "policy-warning" not in found


def test_the_warnings_of_check_are_on_the_status_page(policy: Path) -> None:
    (policy / "more.yaml").write_text(
        "version: 1\nclients: {idle: {networks: [192.0.2.0/24]}}\n"
        "rules: [{name: lapsed, action: allow, hosts: [l.example], expires: 2020-01-01T00:00:00Z}]\n"
    )
    loaded = load(policy, datetime.fromtimestamp(NOW, UTC))
    about = changed(view(policy), policy=loaded.compiled.source)
    checked = CliRunner().invoke(
        main, ["check", "--json", "--account", "root", "--policy", str(policy)]
    )
    lines = {
        (
            f"{warning['file']}:{warning['line']}:{warning['column']}",
            f"{warning['message']} [{warning['code']}]",
        )
        for warning in json.loads(checked.stdout)["warnings"]
    }
    secrets = {line for line in lines if "unavailable" in line[1]}
    assert set(warnings(about)) == {": ".join(parts) for parts in lines - secrets}
    assert any("client 'idle' is not used" in warning for warning in warnings(about))
    assert "All is well" not in page(about, "squidkeeper")


def test_only_answers_of_the_last_minutes_count() -> None:
    old, new = (
        format_time(datetime.fromtimestamp(NOW - seconds, UTC))
        for seconds in (301, 299)
    )
    failing = [RecentAnswer(new, True)] * 6 + [RecentAnswer(new, False)] * 4
    for answers, detail in (
        (
            [*failing, *[RecentAnswer(old, False)] * 9],
            "6 of the last 10 that were allowed",
        ),
        ([RecentAnswer(old, True)] * 20, None),
    ):
        found = {
            one.condition.code: one.detail
            for one in active_conditions(changed(seen(), answers=tuple(answers)))
        }
        assert found.get("requests-failing") == detail


# ── The CA and Squid ──────────────────────────────────────────────────────────────────


def test_of_an_intermediate_and_its_ca_the_one_that_expires_first_is_reported(
    tmp_path: Path,
) -> None:
    file, ca, now = (
        tmp_path / "signing.crt",
        make_ca(datetime.now(UTC)),
        datetime.now(UTC),
    )
    for days, subject in (
        (90, "CN=squidkeeper intermediate CA "),
        (None, "CN=squidkeeper egress CA"),
    ):
        file.write_bytes(make_intermediate(ca, now, days).certificate)
        found = read_certificate(file)
        assert str(found.subject).startswith(subject)
        assert found.not_after is not None
        assert (found.not_after - now).days in ((90, 89) if days else (3650, 3649))
        expiry = samples(changed(view(None), certificate=found))[
            "squidkeeper_ca_certificate_expiry_timestamp_seconds"
        ]
        assert expiry == found.not_after.timestamp()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file or directory"),
        (b"x", "it is not a certificate"),
        (b"", "it is not a certificate"),
    ],
)
def test_a_ca_that_cannot_be_read_says_why(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "ca.crt").write_bytes(content)
    found = read_certificate(tmp_path / "ca.crt")
    assert found.not_after is None
    assert problem in str(found.problem)


def test_counters_are_parsed_and_the_rest_is_passed_over() -> None:
    others = b"sample_time = 1.5 (Wed, 25 Nov)\nx = nan\ny = -1\nz\n\xff = 1e9\n = \n"
    assert parse_counters(b"client_http.requests = 12\ncpu_time = 0.25\n" + others) == {
        "client_http.requests": 12,
        "cpu_time": 0.25,
    }


@pytest.mark.system
@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "is answered 403: does squid.conf open it",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "holds no counters"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
        (b"", "closed connection"),
    ],
)
def test_what_is_no_squid_says_why(told: bytes, problem: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=answer_once, args=(server, told))
        thread.start()
        found = read_counters("127.0.0.1", server.getsockname()[1])
        thread.join()
    assert found.values == {}
    assert problem in str(found.problem)
    assert found.answers is told.startswith(b"HTTP/1.")
    assert [
        sample.value for metric in squid_families(found) for sample in metric.samples
    ] == [found.answers]


def answer_once(server: socket.socket, told: bytes) -> None:
    connection, _ = server.accept()
    with closing(connection):
        connection.recv(4096)
        connection.sendall(told)


@pytest.mark.system
@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nswap.ins = 1",
        b"HTTP/1.1 200 OK\r\nA: ",
    ],
)
def test_a_squid_that_answers_byte_by_byte_is_not_waited_for(told: bytes) -> None:
    ended = threading.Event()

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with closing(connection), suppress(OSError):
            connection.recv(4096)
            connection.sendall(told)
            while not ended.wait(0.2):
                connection.sendall(b"2")

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        found = read_counters("127.0.0.1", server.getsockname()[1])
        ended.set()
        thread.join()
    assert (found.values, found.problem) == ({}, "timed out")


@pytest.mark.system
def test_a_squid_that_hangs_is_not_waited_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        found = read_counters("127.0.0.1", server.getsockname()[1])
    assert found.problem == "timed out"
