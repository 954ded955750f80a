"""The alert rules fire in a real Prometheus when the fault is made on a real gateway;
every panel's query is answered.

Time runs sixty times as fast in the copy of the rules: Prometheus scrapes and evaluates
each second, a minute of a range is a second, a day is 24 minutes, and a minute of `for`
is a fifth of a second. Helpers do not start as much faster: the range of their starts
stays.
"""

import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
import yaml

from squidkeeper.base.helper_metrics import TRANSPARENT_CONNECTIONS, TransparentResult
from squidkeeper.base.places import TRANSPARENT_FOLDER
from squidkeeper.record.archive_status import ArchiveStatus, DeletedLogs
from squidkeeper.record.export_status import ExportState, ExportStore
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    make_intermediate,
)
from squidkeeper.serving.counters.layout import FOLDER, counter_key
from squidkeeper.serving.counters.writer import CounterWriter
from tests.waiting import pause, wait_for

from .curl import CurlFailed, curl
from .fetching import Fetching, put_command
from .gateway import NAMESERVER, REPOSITORY, Gateway, NewGateway
from .load import load
from .models import CHAT, JSON, chat
from .network import run
from .observer import GATEWAY, Exporter, Maintenance, Prometheus, fetch
from .origin import Answer, Origins
from .raw import Raw

OBSERVE = REPOSITORY / "squid/observe"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((OBSERVE / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
PANELS = json.loads((OBSERVE / "dashboard.json").read_text())["panels"]
QUERIES = [
    (panel["title"], target["expr"])
    for panel in PANELS
    for target in panel.get("targets", ())
    # a helper has another revision only where it cannot read what was published; no
    # program makes sessions here
    if not re.search("helper_processes_outdated|squidkeeper_sessions", target["expr"])
]
# A fault below makes every other alert fire. These take a log that grows faster than it
# can be read, more edits than revisions are stored, a judge of edits, a source of the
# policy, an API of models, or a second gateway: promtool has them.
NOT_MADE_HERE = {
    "SquidkeeperCasDiffer",
    "SquidkeeperDrained",
    "SquidkeeperHelperUncounted",
    "SquidkeeperHelpersOutdated",
    "SquidkeeperPolicyNotPublished",
    "SquidkeeperSessionsUnavailable",
    "SquidkeeperSquidCrashed",
    "SquidkeeperRecordBehind",
    "SquidkeeperDriftUnchecked",
    "SquidkeeperCertificateRefused",
    "SquidkeeperReloadGated",
    "SquidkeeperPullFailing",
    "SquidkeeperPullRefused",
    "SquidkeeperPullAltered",
    "SquidkeeperPullDiffers",
    "SquidkeeperQuotaNearlyUsed",
    "SquidkeeperQuotaStoreCertificateEndsSoon",
    "SquidkeeperQuotaStoreUnavailable",
}
HOST_HELPER = "acl --scope host --concurrency 16"
FROM_THE_START = {"SquidkeeperCaEndsSoon", "SquidkeeperRuleLapsesSoon"}

POLICY = """
version: 1
clients:
  agents: {networks: [127.0.0.2]}
rules:
  - {name: watched, action: deny, observe: true, hosts: [open.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
  - {name: open, action: allow, hosts: [open.example, injected.example, rewritten.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
  - {name: limited, action: allow, hosts: [limited.example]}
  - {name: read, action: allow, hosts: [read.example], body: {json: {/model: [small]}}}
  - {name: metered, action: allow, hosts: [llm.example], meter: tokens}
  - {name: window, action: allow, hosts: [window.example], expires: "EXPIRES"}
quotas:
  - {name: few, per: all, rules: [limited], requests: 1, every: day}
prices:
  - {model: "*", in: 1, out: 5}
rewrites:
  - {name: away, hosts: [rewritten.example], to: "https://open.example{path}"}
secrets:
  token: {file: secrets/token}
  fetched: {command: {run: [give]}}
canaries:
  bait: {file: secrets/bait}
credentials:
  - {name: fetched, hosts: [fetched.example], bearer: fetched}
  - {name: api, hosts: [injected.example], bearer: token}
"""
BAIT = "e2e-bait-under-alerts"
# A secret that is renewed every few seconds.
GIVE = """printf '{"value": "e2e-fetched", "expires_at": "%s"}' "$(date -u -d '+5 seconds' +%FT%TZ)\""""
# Lines of an operator's that let one host past the policy, and that name a helper as
# nobody documents it.
LOCAL_CONF = """
cache allow all
acl bypass dstdomain bypass.example
http_access allow bypass
external_acl_type short ttl=0 negative_ttl=0 children-max=1 children-startup=0 concurrency=4 %#>a %#>rm \\
    ROOT/bin/squidkeeper acl --scope host --concurrency 4 --policy ROOT/etc/policy --state ROOT/state
acl short_asked external short
acl short_host dstdomain short.example
http_access deny short_host !short_asked
"""


def hastened(*files: str) -> str:
    """The rules of files with faster time; what is compared with time() stays."""
    groups = [group for file in files for group in yaml.safe_load(file)["groups"]]
    for rule in (rule for group in groups for rule in group["rules"]):
        if rule.get("alert") == "SquidkeeperHelperRestarts":
            continue
        if rule.get("alert") == "SquidkeeperHelperStuck":
            rule["for"] = (
                # the exporter ends such a helper after some seconds, which are no less
                # here
                "0s"
            )
        # it waits the longest
        minute = 0.5 if rule.get("alert") == "SquidkeeperRecordSilent" else 1
        rule["expr"] = with_minutes_of(minute, rule["expr"])
        if "alert" in rule:
            rule["for"] = with_minutes_of(0.2, rule.get("for", "0s"))
    return yaml.safe_dump({"groups": groups})


def with_minutes_of(seconds: float, text: str) -> str:
    text = re.sub(r"\b(\d+)d\b", lambda days: f"{int(days[1]) * 1440}m", text)
    return re.sub(
        r"\b(\d+)m\b",
        lambda minutes: f"{int(int(minutes[1]) * seconds * 1000)}ms",
        text,
    )


class Watched:
    """A gateway with its exporter and its maintenance process, and the Prometheus that
    watches it.
    """

    def __init__(
        self,
        gateway: Gateway,
        exporter: Exporter,
        maintenance: Maintenance,
        fetching: Fetching,
        prometheus: Prometheus,
        connections: "ConnectionsCounted",
    ) -> None:
        self.gateway = gateway
        self.fetching = fetching
        self.exporter = exporter
        self.maintenance = maintenance
        self.prometheus = prometheus
        self.connections = connections
        self.log = gateway.root / "log/access.log"
        self.state = gateway.root / "state/exporter"
        self.since = time.time()
        self._stopped: int | None = None  # a descriptor of the stopped helper

    def stop_a_helper(self) -> None:
        """Stop a helper as a whole, unless one is stopped now.

        Whoever is its parent then, it ends with the fixture.
        """
        if self._stopped is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._stopped, signal.SIGSTOP)
                return
            os.close(self._stopped)
        [helper, *_] = wait_for(
            lambda: self.gateway.helpers("rewrite"), "a helper to stop"
        )
        self._stopped = os.pidfd_open(helper)
        signal.pidfd_send_signal(self._stopped, signal.SIGSTOP)

    def kill_stopped(self) -> None:
        if self._stopped is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._stopped, signal.SIGKILL)
            os.close(self._stopped)

    def firing(self) -> set[str]:
        """The alerts that fire now."""
        return {
            name
            for (name,) in self.prometheus.query(
                'sum by (alertname) (ALERTS{alertstate="firing"})'
            )
        }

    def fired(self) -> set[str]:
        """The alerts that fire, or have fired."""
        ever = 'sum by (alertname) (last_over_time(ALERTS{alertstate="firing"}[10m]))'
        return {name for (name,) in self.prometheus.query(ever)}

    def wait_until_fired(
        self, *names: str, again: Callable[[str], None] | None = None
    ) -> None:
        """Wait for these alerts.

        `again` makes a fault once more whose alert has not fired.
        """
        missing = {f"Squidkeeper{name}" for name in names}

        def all_have_fired() -> bool:
            missing.difference_update(self.fired())
            if again:
                for alert in missing:
                    again(alert.removeprefix("Squidkeeper"))
            return not missing

        wait_for(all_have_fired, lambda: f"the alerts {sorted(missing)}", seconds=120)


class ConnectionsCounted:
    """Counts of the transparent ports, which Squid's account can read."""

    def __init__(self, state: Path) -> None:
        folder = state / TRANSPARENT_FOLDER / FOLDER
        self._writer = CounterWriter(folder, {})
        self.add(TransparentResult.OPENED, 1)
        for place in (folder.parent, folder, *folder.iterdir()):
            shutil.chown(place, group="proxy")

    def add(self, result: TransparentResult, number: int) -> None:
        self._writer.add({counter_key(TRANSPARENT_CONNECTIONS, result): number})
        self._writer.beat(None)


@pytest.fixture(scope="module")
def watched(
    new_gateway: NewGateway,
    all_origins: Origins,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    rules = hastened(
        *((OBSERVE / file).read_text() for file in ("alerts.yaml", "recording.yaml"))
    )
    # It scrapes five seconds after its start, so it starts first.
    prometheus = Prometheus(
        tmp_path_factory.mktemp("alerts") / "prometheus", 9090, 9129, rules=rules
    )
    expires = datetime.now(UTC) + timedelta(days=2)
    gateway = new_gateway(
        POLICY.replace("EXPIRES", expires.isoformat(timespec="seconds"))
    )
    gateway.local_conf(*LOCAL_CONF.replace("ROOT", str(gateway.root)).splitlines())
    gateway.secret("token", "e2e-token-under-alerts")
    gateway.secret("bait", BAIT)
    gateway.render()
    renew_intermediate(gateway, days=20)
    connections = ConnectionsCounted(gateway.root / "state")
    maintenance = Maintenance(gateway, gateway.root / "resolv.conf")
    put_command(gateway, "give", GIVE)
    fetching = Fetching(gateway)
    archive = gateway.root / "archive"
    archive.mkdir(exist_ok=True)
    options = (
        "--tls-certificate",
        gateway.ca.with_name("signing.crt"),
        "--archive",
        archive,
    )
    exporter = Exporter(gateway, 9129, *options, "--fragment", gateway.layout.fragment)
    watched = Watched(gateway, exporter, maintenance, fetching, prometheus, connections)
    try:
        gateway.start_bodies(1)  # beside the one that is there
        gateway.start()
        fetching.start()
        maintenance.use(NAMESERVER)
        maintenance.start()
        exporter.start()
        yield watched
    finally:
        watched.kill_stopped()
        prometheus.stop()
        fetching.stop()
        maintenance.stop()
        exporter.stop()


def renew_intermediate(gateway: Gateway, days: int) -> None:
    """Another intermediate, which ends after so many days."""
    folder = gateway.root / "etc/ca"
    ca = CertificateAuthority(gateway.ca.read_bytes(), (folder / "ca.key").read_bytes())
    signing = make_intermediate(ca, datetime.now(UTC), days)
    (folder / "signing.key").write_bytes(signing.key)
    (folder / "signing.crt").write_bytes(signing.certificate)


@pytest.fixture(scope="module")
def faults(watched: Watched, all_origins: Origins) -> Watched:
    """The gateway after traffic of every kind, in which nothing is wrong, and then
    after every fault.

    Alerts wait for seconds, so faults that do not hide each other are made together.
    """
    all_origins.forget()
    all_origins.answers["open.example/cached"] = Answer(
        headers={"Cache-Control": "public, max-age=600"}
    )
    all_origins.answers[f"llm.example{CHAT}"] = Answer(
        body=json.dumps(chat((200, 50))).encode(), headers=JSON
    )
    traffic_of_every_kind(watched.gateway)
    watched.prometheus.scrape(3)
    # Prometheus was there before the exporter.
    assert watched.fired() - {"SquidkeeperExporterDown"} == FROM_THE_START
    make_faults_that_show_late(watched)
    make_faults_of_secrets(watched)
    make_faults_of_requests(watched, all_origins)
    with load(watched.gateway, ("http", "open.example")):
        make_faults_under_load(watched)
        make_faults_of_the_exporter(watched)
    return watched


def traffic_of_every_kind(gateway: Gateway) -> None:
    for url in (
        "https://open.example/",
        "https://injected.example/",
        "https://rewritten.example/",
        "http://paths.example/open/",
    ):
        assert curl(gateway, url, client="127.0.0.2").status == 200
    for _ in range(3):
        assert (
            curl(gateway, "http://open.example/cached", client="127.0.0.2").status
            == 200
        )
    assert curl(gateway, "http://open.example/", "--data", "x").status == 200
    assert (
        curl(
            gateway, f"http://llm.example{CHAT}", "--data", '{"model": "small"}'
        ).status
        == 200
    )
    assert curl(gateway, "http://closed.example/").status == 403
    assert curl(gateway, "http://asked.example/").status == 403


def make_faults_of_requests(watched: Watched, origins: Origins) -> None:
    """Drift, a line that no helper understands, a missing secret, a canary, a quota,
    many denials, an old CA.
    """
    gateway = watched.gateway
    assert curl(gateway, f"http://open.example/?q={BAIT}").rule == "secret-leaving"
    assert curl(gateway, "http://bypass.example/", client="127.0.0.2").status == 200
    assert [curl(gateway, "http://limited.example/").status for _ in range(2)] == [
        200,
        403,
    ]
    assert curl(gateway, "http://short.example/").status == 403
    (gateway.policy_folder / "secrets/token").unlink()
    wait_for(
        lambda: curl(gateway, "https://injected.example/").status == 403,
        "the secret to be missed",
    )
    deny(gateway, 150)
    renew_intermediate(gateway, days=5)
    watched.connections.add(TransparentResult.NO_SERVER_NAME, 200)
    origins.answers["open.example/failing"] = Answer(503)

    def fired() -> bool:
        for _ in range(5):
            assert curl(gateway, "http://open.example/failing").status == 503
        return "SquidkeeperRequestsFailing" in watched.fired()

    wait_for(fired, "the alert that most requests fail")
    watched.wait_until_fired(
        "Drift",
        "ProtocolErrors",
        "CredentialFailing",
        "SecretLeaving",
        "DenialSurge",
        "TransparentRefusing",
        "CaEndsNow",
        "TlsCertificateEndsNow",
    )


def deny(gateway: Gateway, times: int) -> None:
    with Raw(gateway, "127.0.0.2") as client:
        for number in range(times):
            reply = client.get(f"http://closed.example/{number}", "closed.example")
            assert reply.status == 403


def make_faults_that_show_late(watched: Watched) -> None:
    """Nothing reads bodies; a helper is stuck, and the maintenance process is down,
    after ten seconds of silence.
    """
    watched.stop_a_helper()
    watched.gateway.kill_bodies()
    watched.maintenance.use()
    make_faults_of_an_export(watched.gateway.root / "state")
    make_faults_of_the_archive(watched.gateway.root)
    with watched.log.open("a") as log:
        log.write("not a line of the record\n")
    let_the_state_be_written_by_root_alone(watched.state)
    watched.wait_until_fired("MaintenanceFailing", "BodiesDown")
    watched.maintenance.kill()


def make_faults_of_an_export(state: Path) -> None:
    """Its process has ended, after it told its receiver about a gap."""
    with ExportStore(state, "siem") as store:
        store.write(ExportState(gaps=1))
    file = state / "export/siem.json"
    os.utime(file, (0, 0))
    file.parent.chmod(0o755)  # it is root's here, and Squid's account reads it
    file.chmod(0o644)


def make_faults_of_the_archive(root: Path) -> None:
    """Its runs fail, a log of hours ago is not archived, and another one was deleted
    before it was.
    """
    (root / "log/access.log.9").write_bytes(b"")
    os.utime(root / "log/access.log.9", (time.time() - 14_400, time.time() - 14_400))
    status, deleted = root / "archive/status.json", root / "state/deleted-logs.json"
    status.write_bytes(
        msgspec.json.encode(
            ArchiveStatus(ended=time.time(), succeeded=1.0, failure="No space left")
        )
    )
    deleted.write_bytes(
        msgspec.json.encode(DeletedLogs(1, 1000, "access.log.10", time.time()))
    )
    for file in (status, deleted):
        file.chmod(0o644)


def make_faults_of_secrets(watched: Watched) -> None:
    """The source of a secret fails while its value is about to expire; then nothing is
    fetched at all.
    """
    put_command(watched.gateway, "give", "exit 1")
    watched.wait_until_fired("SecretFetchFailing", "SecretExpiring")
    watched.fetching.stop()
    watched.wait_until_fired("SecretsNotFetched")


def make_faults_under_load(watched: Watched) -> None:
    """Several at once: their alerts wait for minutes, which are seconds here."""
    gateway = watched.gateway
    fragment = gateway.root / "etc/squidkeeper.conf"
    installed = fragment.read_text()
    fragment.write_text(
        re.sub(r"/\S+/squidkeeper throttle ", "/bin/false throttle ", installed)
    )
    log_no_more(gateway)
    wait_for(
        lambda: denied_without_a_throttle(watched), "the alert that no throttle answers"
    )
    fragment.write_text(installed)
    gateway.reconfigure()
    with full_disk_of_the_log(watched):
        gateway.write(
            "zz-bad.yaml", "version: 1\nrules:\n  - {name: x, action: perhaps}\n"
        )
        kill_helpers_again_and_again(gateway, times=12)

        def again(alert: str) -> None:
            """A helper that was killed before it counted its start, or ended between
            two scrapes, tells nobody.
            """
            if alert == "HelperRestarts":
                kill_helpers_again_and_again(gateway, times=1)
            if alert == "HelperStuck":
                watched.stop_a_helper()

        fired = (
            "MaintenanceDown",
            "StateNotWritable",
            "HelperStuck",
            "HelperRestarts",
        )
        more = ("RecordInvalidLines", "ReloadFailed", "DiskSpaceLow", "RecordSilent")
        watched.wait_until_fired(*fired, *more, again=again)


def denied_without_a_throttle(watched: Watched) -> bool:
    for number in range(10):  # hosts of their own: Squid caches the reply for one
        with suppress(
            CurlFailed
        ):  # Squid restarts after it has started too many throttles
            assert (
                curl(
                    watched.gateway, f"http://{time.monotonic_ns()}-{number}.example/"
                ).status
                == 403
            )
    return "SquidkeeperThrottleDown" in watched.fired()


def let_the_state_be_written_by_root_alone(folder: Path) -> None:
    shutil.chown(folder, "root", "root")
    folder.chmod(0o555)


def kill_helpers_again_and_again(gateway: Gateway, times: int) -> None:
    killed: set[int] = set()
    for number in range(times):
        [helper, *_] = wait_for(
            lambda: set(gateway.helpers(HOST_HELPER)) - killed, "a helper"
        )
        os.kill(helper, signal.SIGKILL)
        killed.add(helper)
        try:
            curl(gateway, f"http://asked-{number}.example/")  # starts the next helper
        except CurlFailed:  # Squid may fail an assertion when a helper dies
            pause(
                10,
                "Squid gives a worker up that dies within ten seconds of its start, four times",
            )


def log_no_more(gateway: Gateway) -> None:
    for configuration in (
        gateway.root / "etc/squid.conf",
        gateway.root / "etc/squidkeeper.conf",
    ):
        configuration.write_text(
            re.sub(r"(?m)^access_log .*$", "access_log none", configuration.read_text())
        )
    gateway.reconfigure()


def make_faults_of_the_exporter(watched: Watched) -> None:
    """It does not run; then it starts without Squid, with a bad policy where none was
    in force, and with another log that it may not read.
    """
    watched.exporter.stop()
    watched.gateway.stop()
    wait_for(
        lambda: "SquidkeeperExporterDown" in watched.firing(),
        "the alert that the exporter is down",
    )
    last_line = watched.log.read_bytes().splitlines(keepends=True)[-1]
    watched.log.unlink()
    watched.log.write_bytes(last_line)
    watched.log.chmod(0)
    shutil.rmtree(watched.gateway.root / "state/revisions")
    watched.exporter.start()
    watched.wait_until_fired("NoPolicy", "RecordUnreadable", "SquidDown")
    watched.log.chmod(0o644)
    watched.wait_until_fired("RecordLost")


@contextmanager
def full_disk_of_the_log(watched: Watched) -> Iterator[None]:
    folder = watched.log.parent
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
    try:
        (folder / "ballast").write_bytes(bytes(60 * 1024))
        yield
    finally:
        run("umount", "--lazy", folder)


@pytest.mark.parametrize("alert", sorted(ALERTS.keys() - NOT_MADE_HERE))
def test_the_alert_has_fired_when_the_fault_was_made(
    faults: Watched, alert: str
) -> None:
    assert alert in faults.fired()


def test_no_other_alert_has_fired(faults: Watched) -> None:
    """Squid has an assertion of its own where helpers die: a crash can be told. A
    helper that was stopped may have another revision. On a full disk, or without a
    helper and the exporter, nobody publishes. The exporter's faults remove the
    revisions, and what was served by one of them cannot be checked for drift.
    """
    possible = {
        "SquidkeeperSquidCrashed",
        "SquidkeeperDriftUnchecked",
        "SquidkeeperHelpersOutdated",
        "SquidkeeperPolicyNotPublished",
    }
    assert sorted(faults.fired() & NOT_MADE_HERE - possible) == []


def test_what_an_alert_tells_is_filled_in(faults: Watched) -> None:
    firing = fetch(faults.prometheus.port, "/api/v1/alerts").json["data"]["alerts"]
    assert firing
    for alert in firing:
        told = " ".join(alert["annotations"].values())
        assert not re.search(r"\{\{|<no value>|<error", told), told
        assert f" on {GATEWAY}" in alert["annotations"]["summary"]


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_a_panels_query_is_answered(faults: Watched, panel: str, query: str) -> None:
    """After traffic and faults of every kind each has something to show, from when
    there was.
    """
    for variable, value in {
        "$job": ".*",
        "$gateway": GATEWAY,
        "$__rate_interval": "5s",
        "$__range": "60s",
    }.items():
        query = query.replace(variable, value)
    asked = {"query": query, "start": faults.since, "end": time.time(), "step": 1}
    answer = fetch(
        faults.prometheus.port, f"/api/v1/query_range?{urlencode(asked)}"
    ).json
    assert answer["status"] == "success", answer
    values = [
        float(value)
        for series in answer["data"]["result"]
        for _, value in series["values"]
    ]
    assert [value for value in values if not math.isnan(value)], query
