"""The exporter beside a real gateway, scraped by a real Prometheus: every request
counted once, whatever happens.
"""

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from squidkeeper.base.helper_metrics import MetricKind
from squidkeeper.base.metrics import METRICS
from squidkeeper.services.exporter.collector import COUNTERS as COUNTERS_OF_SQUID
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .load import PAUSE_SECONDS
from .network import run
from .observer import GATEWAY, Exporter, Prometheus, fetch
from .origin import Origins
from .raw import Raw, tunnel

POLICY = """
version: 1
clients:
  ann: {networks: [127.0.0.2]}
  bob: {networks: [127.0.0.3]}
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: posts, action: allow, hosts: [posts.example], methods: [POST]}
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: never-asked-for, action: allow, clients: [bob], hosts: [never.example]}
"""
ADDRESSES = {"ann": "127.0.0.2", "bob": "127.0.0.3", "none": "127.0.0.4"}
ON_ONE_CONNECTION = 15
KILLS = 2
COUNTERS = [metric.name for metric in METRICS if metric.kind is MetricKind.COUNTER]
COUNTERS += [
    f"{metric.name}_{part}"
    for metric in METRICS
    if metric.buckets
    for part in ("bucket", "count", "sum")
]

# client, method class, status class, verdict ("" for a CONNECT: it is not told)
Sent = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def prometheus(
    exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    prometheus = Prometheus(
        tmp_path_factory.mktemp("prometheus") / "own", 9090, exporter.port
    )
    yield prometheus
    prometheus.stop()


class Sender(threading.Thread):
    """One client that keeps what it was answered; `cut_off` are requests without an
    answer.

    Of these there are a few: a helper that dies in the instant in which Squid writes to
    it ("helperDispatch: … has crashed") costs the request, which may or may not be
    logged, and its connection. At times Squid's worker dies of it, which costs each
    client one; until it is back, connections are refused, and nothing is asked.
    """

    def __init__(self, gateway: Gateway, client: str, scheme: str, host: str) -> None:
        super().__init__()
        self.sent: Counter[Sent] = Counter()
        self.cut_off = 0
        self.ending = threading.Event()
        self._gateway, self.client, self._scheme, self._host = (
            gateway,
            client,
            scheme,
            host,
        )

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                with self._open() as connection:
                    self._ask(connection)
            except ConnectionRefusedError:
                self.ending.wait(PAUSE_SECONDS)
            except OSError:
                self.cut_off += 1
                self.ending.wait(PAUSE_SECONDS)

    def _open(self) -> Raw:
        address = ADDRESSES[self.client]
        if self._scheme == "http":
            return Raw(self._gateway, address)
        opened = tunnel(self._gateway, f"{self._host}:443", client=address)
        self.sent[self.client, "connect", "2xx", ""] += 1
        return opened

    def _ask(self, connection: Raw) -> None:
        for number in range(ON_ONE_CONNECTION):
            method, method_class = (
                ("POST", "write") if number % 3 == 0 else ("GET", "read")
            )
            target = (
                f"/{number}"
                if self._scheme == "https"
                else f"http://{self._host}/{number}"
            )
            reply = connection.get(
                target, self._host, "Content-Length: 0", method=method
            )
            if not reply:
                self.cut_off += 1
                return
            verdict = {200: "allow", 403: "deny"}[reply.status]
            self.sent[
                self.client, method_class, f"{reply.status // 100}xx", verdict
            ] += 1
            if (
                reply.header("Connection") == "close"
                or reply.denial == "ERR_ACCESS_DENIED"
            ):
                # Squid ends a tunnel to an origin that it has answered a request in by
                # itself
                return
            self.ending.wait(PAUSE_SECONDS)


@contextmanager
def traffic(gateway: Gateway) -> Iterator[list[Sender]]:
    senders = [
        Sender(gateway, client, scheme, host)
        for client, scheme, host in (
            ("ann", "http", "open.example"),
            ("ann", "https", "closed.example"),
            ("bob", "https", "open.example"),
            ("bob", "http", "closed.example"),
            ("none", "http", "posts.example"),
        )
    ]
    for sender in senders:
        sender.start()
    try:
        yield senders
    finally:
        for sender in senders:
            sender.ending.set()
        for sender in senders:
            sender.join()


def answered(senders: list[Sender]) -> int:
    return sum(sum(list(sender.sent.values())) for sender in senders)


def go_on(senders: list[Sender], more: int) -> None:
    goal = answered(senders) + more
    wait_for(lambda: answered(senders) >= goal, f"{more} more answers")


def kill_helpers(gateway: Gateway) -> int:
    return len(wait_for(lambda: gateway.kill_helpers("acl"), "a helper"))


def rotate(gateway: Gateway) -> None:
    """As logrotate does: compress the older one, rename, tell Squid."""
    log, older = gateway.root / "log/access.log", gateway.root / "log/access.log.1"
    if older.exists():
        run("gzip", older)
        older.with_name("access.log.1.gz").rename(older.with_name("access.log.2.gz"))
    log.rename(older)
    gateway.rotate()
    wait_for(log.exists, "a new access log")


def test_totals_equal_what_was_sent_through_kills_rotations_edits_and_restarts(
    gateway: Gateway, origins: Origins, exporter: Exporter, prometheus: Prometheus
) -> None:
    with traffic(gateway) as senders:
        go_on(senders, 200)
        killed = kill_helpers(gateway)
        prometheus.scrape(2)
        rotate(gateway)
        gateway.write(
            "policy.yaml",
            POLICY + "  - {name: added, action: allow, hosts: [added.example]}\n",
        )
        prometheus.scrape(1)
        exporter.end(signal.SIGKILL)
        go_on(senders, 200)
        exporter.start()
        killed += kill_helpers(gateway)
        gateway.write("policy.yaml", "version: 1\nrules: nonsense\n")
        prometheus.scrape(2)
        assert exporter.end(signal.SIGTERM) == 0
        go_on(senders, 100)
        rotate(gateway)
        gateway.write("policy.yaml", POLICY)
        exporter.start()
        go_on(senders, 200)
        prometheus.scrape(2)
    wait_for(
        lambda: counted(prometheus) + denied_tunnels(prometheus) >= answered(senders),
        "every request to be counted",
    )
    prometheus.scrape(1)
    check_totals(prometheus, senders)
    assert prometheus.query(
        "squidkeeper_record_invalid_lines_total + squidkeeper_record_lost_total"
    ) == {(GATEWAY, "127.0.0.1:9129", "squidkeeper"): 0}
    assert resets(prometheus) == dict.fromkeys(COUNTERS, 0)
    assert prometheus.query("sum(squidkeeper_helper_starts_total)")[()] > killed
    assert prometheus.query("sum(squidkeeper_enforcement_drift_total)") == {(): 0}


def resets(prometheus: Prometheus) -> dict[str, float]:
    """How often each counter went back, in any scrape so far."""
    return {
        name: sum(prometheus.query(f"resets({name}[1h])").values()) for name in COUNTERS
    }


def counted(prometheus: Prometheus) -> float:
    both = (
        prometheus.query(f"sum(squidkeeper_{what}_total)")
        for what in ("requests", "tunnels")
    )
    return sum(value for found in both for value in found.values())


def denied_tunnels(prometheus: Prometheus) -> float:
    """The CONNECTs with which the first request inside, a POST here, counts as one."""
    return sum(
        prometheus.query(
            'sum(squidkeeper_requests_total{method_class="connect", status_class="2xx"})'
        ).values()
    )


def check_totals(prometheus: Prometheus, senders: list[Sender]) -> None:
    """Compare every class of requests with what the clients have of it.

    A helper that dies can end a tunnel in the middle of a request, and whether that is
    logged cannot be told from outside: such a client's classes may have as many more,
    the others none.
    """
    expected: Counter[tuple[str, ...]] = Counter()
    for sender in senders:
        for (client, method, status, verdict), number in sender.sent.items():
            expected[client, method, status] += number
            if verdict:
                expected[client, method, verdict] += number
    cut_off = {
        client: sum(sender.cut_off for sender in senders if sender.client == client)
        for client in ADDRESSES
    }
    # one under way, one not yet accepted
    assert max(sender.cut_off for sender in senders) <= 2 * KILLS
    found = prometheus.query(
        "sum by (client, method_class, status_class) (squidkeeper_requests_total) > 0"
    )
    requests = 'squidkeeper_requests_total{method_class!="connect"}'
    found |= prometheus.query(
        f"sum by (client, method_class, verdict) ({requests}) > 0"
    )
    # An exporter that is ended may leave a connection to Squid on which it has asked
    # for nothing yet: two were.
    unasked = [found.pop(("none", "other", class_), 0) for class_ in ("none", "other")]
    assert max(unasked) <= 2
    for client in ADDRESSES:
        for how in ("4xx", "deny"):
            # see `denied_tunnels`
            expected[client, "write", how] -= int(
                found.get((client, "connect", "2xx"), 0)
            )
    tunnels = prometheus.query("sum by (client, rule) (squidkeeper_tunnels_total) > 0")
    assert tunnels.keys() == {("bob", "open")}
    found["bob", "connect", "2xx"] = (
        found.get(("bob", "connect", "2xx"), 0) + tunnels["bob", "open"]
    )
    too_many = {
        labels: found.get(labels, 0) - expected[labels]
        for labels in found.keys() | expected.keys()
    }
    assert {
        labels: more
        for labels, more in too_many.items()
        if not 0 <= more <= cut_off[labels[0]]
    } == {}


def test_the_page_is_as_prometheus_would_have_it(
    gateway: Gateway, origins: Origins, exporter: Exporter
) -> None:
    curl(gateway, "http://open.example/lint", client=ADDRESSES["ann"])
    page = fetch(exporter.port, "/metrics")
    lint = subprocess.run(
        ["promtool", "check", "metrics"],
        input=page.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
    assert "squid_up 1.0\n" in page.text
    assert [
        name for _, name, _ in COUNTERS_OF_SQUID if f"\n{name} " not in page.text
    ] == []
    families = {
        line.split(" ")[2]
        for line in page.text.splitlines()
        if line.startswith("# TYPE")
    }
    assert {metric.name for metric in METRICS} - families == set()
    never = 'client="bob",method_class="read",rule="never-asked-for",status_class="2xx",verdict="allow"'
    assert f"squidkeeper_requests_total{{{never}}} 0.0\n" in page.text


def gateway_is_idle(exporter: Exporter) -> bool:
    return (
        'squidkeeper_helper_processes{helper="host"} 0.0\n'
        in fetch(exporter.port, "/metrics").text
    )


def test_without_squid_the_page_is_whole_and_says_so(
    gateway: Gateway, exporter: Exporter
) -> None:
    gateway.stop()
    page = fetch(exporter.port, "/metrics").text
    assert "squid_up 0.0\n" in page
    assert "squidkeeper_requests_total{" in page
    wait_for(lambda: gateway_is_idle(exporter), "the helpers' end")
    # helpers that Squid has not started are idle, not ill
    status, conditions = exporter.health()
    assert (status, set(conditions)) == (503, {"squid-down"})
    gateway.start()
    wait_for(
        lambda: "squid_up 1.0\n" in fetch(exporter.port, "/metrics").text,
        "Squid's own counters",
    )


@pytest.mark.long
def test_what_it_may_not_read_keeps_it_from_nothing(new_gateway: NewGateway) -> None:
    gateway = new_gateway(POLICY)
    gateway.policy_folder.chmod(0o700)  # root's
    (gateway.root / "log/access.log").write_text("")
    (gateway.root / "log/access.log").chmod(0o600)
    with Exporter(gateway, 9131) as exporter:
        status, wrong = exporter.health()
        found, shown = exporter.conditions(), fetch(exporter.port, "/").text
    assert (status, set(wrong)) == (503, {"squid-down", "no-policy"})
    assert {"policy-not-loaded", "access-log-unreadable"} < found
    assert "the policy directory cannot be read: permission denied" in shown
