"""The status page: whether anything is wrong, what to do, and nothing from outside that
could do harm.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.helper_metrics import TRANSPARENT_CONNECTIONS
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_counters import COUNTER, SquidCounters
from squidkeeper.base.squid_version import SquidVersion
from squidkeeper.policy.language.model import Action, Match, Policy, Rule, Strip
from squidkeeper.policy.language.secret_sources import (
    FileSource,
    NamedSecret,
    source_key,
)
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.record.archive_status import ArchiveStatus, DeletedLogs
from squidkeeper.record.export_status import ExportState, ExportStatus
from squidkeeper.record.log.record import Record, parse_record
from squidkeeper.services.exporter.certificate import Certificate
from squidkeeper.services.exporter.checkpoint import Checkpoint
from squidkeeper.services.exporter.conditions import CONDITIONS, active_conditions
from squidkeeper.services.exporter.counts import RequestCounts
from squidkeeper.services.exporter.process import program_called
from squidkeeper.services.exporter.recent import (
    DENIALS_LIMIT,
    Denial,
    DriftSeen,
    RecentAnswer,
    RecentDenials,
)
from squidkeeper.services.exporter.snapshot import Disk, SessionsView, Snapshot
from squidkeeper.services.exporter.status_page import explain_command, page
from squidkeeper.services.maintenance.own_addresses import OwnAddresses
from squidkeeper.services.maintenance.process import MaintenanceStatus
from squidkeeper.services.maintenance.resolver import Resolver
from squidkeeper.services.maintenance.rotation import Rotation
from squidkeeper.services.pulling.settings import PullStatus
from squidkeeper.serving.counters.layout import HelperStatus, counter_key
from squidkeeper.serving.counters.reader import CounterFile
from squidkeeper.serving.credentials.fetch_status import FetchStatus, SecretStatus
from squidkeeper.serving.credentials.fetched_values import (
    FetchedValue,
    format_value,
    value_file,
)
from squidkeeper.serving.squid_crashes import SquidCrash

from ..conftest import compiled_of
from ..markup import ATTRIBUTES, HOSTILE, INVISIBLE, TAGS, Page
from ..records import record
from ..snapshots import changed, snapshot_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DIRECTORY = Path("/etc/squidkeeper/policy")
PROGRAM = "squidkeeper"
LAYOUT = Layout.of(None)
POLICY = PolicyState("9f31c2a7b04e", (NOW - timedelta(hours=1)).timestamp(), ok=True)
CHECKPOINT = Checkpoint(since="2026-11-20T12:00:00.000+00:00")
CA = Certificate(Path("/ca.crt"), "CN=ca", NOW + timedelta(days=400))
WELL = snapshot_of(
    now=NOW.timestamp(),
    directory=DIRECTORY,
    access_log=Path("/var/log/squid/access.log"),
    state=Path("/var/lib/squidkeeper"),
    squid_address="127.0.0.1:3128",
    checkpoint=CHECKPOINT,
    log_readable=True,
    backlog_bytes=0,
    state_writable=True,
    policy=None,
    policy_state=POLICY,
    counter_files=(),
    totals={},
    certificate=CA,
    squid=SquidCounters({}, answers=True),
    maintenance=MaintenanceStatus(runs=True),
)
DISK = Disk("log", Path("/var/log/squid"), 5_000_000_000, 10_000_000_000)
HELPER = HelperStatus("host", 4117, WELL.now, WELL.now, POLICY.revision, reload_ok=True)
STRIPS = Policy(
    "r",
    rules=(
        Rule(
            "wiki",
            Location("policy.yaml", 3, 5),
            Action.ALLOW,
            Match(),
            strip=Strip.of(["Cookie"]),
        ),
    ),
)
FINDING = DriftSeen(
    NOW - timedelta(hours=2),
    "192.0.2.1",
    "GET",
    "https://a.example/x?q=TOPSECRET",
    "no",
    "allowed",
)


def denial(**values: object) -> Record:
    """Make the record of a denied GET, unless it has other values."""
    usual = {
        "time": "2026-11-24T11:59:00.000Z",
        "client": "192.0.2.1",
        "url": "https://a.example/x",
        "status": 403,
    }
    return record(
        **{**usual, "verdict": "deny", "rule": "no", "revision": "-", **values}
    )


def denials_of(records: Iterable[Record]) -> tuple[Denial, ...]:
    kept = RecentDenials()
    for served in records:
        kept.add(served)
    return kept.newest()


def text_of(view: Snapshot) -> str:
    return " ".join(Page(page(view, PROGRAM)).text.split())


def with_helpers(*helpers: HelperStatus) -> Snapshot:
    return changed(
        WELL,
        counter_files=tuple(
            CounterFile(n, True, "x", helper) for n, helper in enumerate(helpers)
        ),
    )


def with_export(*, runs: bool = True, **fields: Any) -> Snapshot:
    return changed(WELL, exports={"siem": ExportStatus(runs, ExportState(**fields))})


def with_task(task: str, failure: str) -> Snapshot:
    return changed(
        WELL,
        maintenance=MaintenanceStatus(runs=True, failures={"other": "", task: failure}),
    )


def with_drift(*findings: DriftSeen, unchecked: int = 0, cut: int = 0) -> Snapshot:
    counts = RequestCounts(
        drift=[(("none", "no"), len(findings))],
        drift_unchecked=unchecked,
        drift_cut=cut,
    )
    return changed(
        WELL,
        checkpoint=msgspec.structs.replace(CHECKPOINT, counts=counts, drift=findings),
    )


def with_denials(denials: tuple[Denial, ...]) -> Snapshot:
    return changed(
        WELL, checkpoint=msgspec.structs.replace(CHECKPOINT, denials=denials)
    )


def with_faults(*faults: Fault, revision: str | None = POLICY.revision) -> Snapshot:
    return changed(
        WELL, policy_state=replace(POLICY, revision=revision, ok=False, faults=faults)
    )


def matched(rule: str, at: datetime) -> Snapshot:
    counts = RequestCounts(last_matched={rule: at.isoformat()})
    return changed(WELL, checkpoint=msgspec.structs.replace(CHECKPOINT, counts=counts))


def observing(passed: int) -> Snapshot:
    policy = Policy("0", observe_default=Location("policy.yaml", 3, 3))
    counts = RequestCounts(observed=[(("default", "deny"), passed)])
    return changed(
        WELL,
        policy=policy,
        checkpoint=msgspec.structs.replace(CHECKPOINT, counts=counts),
    )


def answered(*failed: bool) -> Snapshot:
    return changed(
        WELL,
        answers=tuple(
            RecentAnswer("2026-11-24T11:59:00.000Z", answered) for answered in failed
        ),
    )


def codes(view: Snapshot) -> list[str]:
    return [condition.condition.code for condition in active_conditions(view)]


# --- what is wrong --------------------------------------------------------------------


def test_a_gateway_that_is_well_has_nothing_to_do() -> None:
    assert active_conditions(WELL) == ()
    assert "All is well: nothing to do." in text_of(WELL)
    assert "0 to 0" not in text_of(WELL)
    assert "The policy has none." in text_of(WELL)


PULLED = PullStatus(
    "https://git.example/p main",
    30,
    WELL.now,
    WELL.now - 60,
    "a" * 40,
    "alice@example.com",
    WELL.now - 3600,
)

FAULT = Fault(
    Location("policy.yaml", 41, 11),
    FaultCode.INVALID_HOST,
    "'.org' is a wildcard, expected '.example.org'",
)
WRONG = {
    "squid-down": (
        changed(WELL, squid=SquidCounters({}, "refused")),
        "does not answer: 127.0.0.1:3128 (refused).",
    ),
    "squid-counters-unreadable": (
        changed(WELL, squid=SquidCounters({}, "403", answers=True)),
        "Squid's counters cannot be read: 403.",
    ),
    "squid-crashed": (
        changed(
            WELL,
            crashes=(
                SquidCrash(at=WELL.now - 90_000, told="FATAL: x", in_flight=1),
                SquidCrash(
                    at=WELL.now - 120,
                    told='assertion failed: stmem.cc:298: "candidate.offset >= 0"',
                    in_flight=7,
                    origins=("evil.example:443", "other.example:80"),
                    clients=("192.0.2.1",),
                ),
            ),
        ),
        'Squid has crashed: 2 min ago, assertion failed: stmem.cc:298: "candidate.offset >= 0"; newest origins:'
        " evil.example:443, other.example:80; clients: 192.0.2.1.",
    ),
    "drained": (
        changed(WELL, drained_since=WELL.now - 180),
        "This gateway is drained, so that new clients go to others: 3 min ago.",
    ),
    "squid-outdated": (
        changed(
            WELL, squid_version=SquidVersion("squid-openssl 6.13-2+deb13u3", False)
        ),
        "Squid has a known flaw: squid-openssl 6.13-2+deb13u3 is older than 6.13-2+deb13u4, which fixes CVE-2026",
    ),
    "sessions-unavailable": (
        changed(WELL, sessions=SessionsView(is_wanted=True)),
        "Programs cannot make sessions: the service does not answer.",
    ),
    "quota-store-unavailable": (
        changed(WELL, quota_store_problem="Valkey on 10.0.0.5 port 6379: refused"),
        "The store that counts quotas for all gateways is away: Valkey on 10.0.0.5 port 6379: refused.",
    ),
    "quota-store-certificate-expiring": (
        changed(WELL, quota_store_not_after=NOW + timedelta(days=29)),
        "The certificate of the store that counts quotas expires soon: 29 days left.",
    ),
    "policy-not-loaded": (
        with_faults(FAULT),
        "does not load: 1 fault; policy.yaml:41:11: '.org' is a wildcard, expected '.example.org' [invalid-host]; "
        "revision 9f31c2a7b04e stays in force",
    ),
    "observing": (
        observing(3),
        "The default observes: what no rule decides is ALLOWED: policy.yaml:3:3; 3 requests passed that would have",
    ),
    "policy-warning": (
        changed(WELL, policy_state=replace(POLICY, warnings=(FAULT,))),
        "The policy has warnings: policy.yaml:41:11",
    ),
    "policy-lines-outdated": (
        changed(
            WELL,
            policy=STRIPS,
            fragment="acl --in-force core,certificates,override-headers,pages,websocket",
        ),
        "are not in force: squidkeeper.conf: Squid's configuration does not have strip, strip.cookie yet",
    ),
    "policy-unavailable": (
        changed(
            matched("policy-unavailable", NOW - timedelta(minutes=3)),
            counter_files=with_helpers(HELPER).processes.counter_files,
        ),
        "or a helper has no policy: last 3 min ago.",
    ),
    "no-helper": (
        matched("policy-unavailable", NOW - timedelta(minutes=3)),
        "No helper with a policy runs: requests were denied 3 min ago, as policy-unavailable.",
    ),
    "requests-failing": (
        answered(*[True] * 6, *[False] * 4),
        "fail: 6 of the last 10 that were allowed.",
    ),
    "drift": (with_drift(FINDING), "that the policy denies: last 2 h ago."),
    "helper-stuck": (
        with_helpers(replace(HELPER, beat=0.0)),
        "helper host, process 4117: no heartbeat for",
    ),
    "helper-uncounted": (
        changed(WELL, uncounted_helpers=(4117, 4118)),
        "A helper cannot write to the state folder: process 4117, 4118.",
    ),
    "bodies-down": (
        changed(
            WELL,
            fragment="acl --in-force core,bodies,certificates,override-headers,pages,websocket",
        ),
        "Nothing inspects bodies: squidkeeper-bodies-1 and squidkeeper-bodies-2 do not run.",
    ),
    "helper-outdated": (
        with_helpers(replace(HELPER, revision="other"), replace(HELPER, revision=None)),
        "process 4117: revision other is in force there; revision 9f31c2a7b04e is the last good one",
    ),
    "ca-unreadable": (
        changed(WELL, certificate=Certificate(Path("/ca.crt"), problem="no such file")),
        "The CA cannot be read: /ca.crt (no such file).",
    ),
    "ca-expiring": (
        changed(WELL, certificate=replace(CA, not_after=NOW + timedelta(days=29))),
        "The CA, or its intermediate, expires soon: 29 days left for CN=ca.",
    ),
    "ca-expires-now": (
        changed(WELL, certificate=replace(CA, not_after=NOW + timedelta(days=6))),
        "The CA, or its intermediate, expires within days: 6 days left for CN=ca.",
    ),
    "ca-expired": (
        changed(
            WELL,
            certificate=replace(
                CA, subject="CN=squidkeeper intermediate CA 0a1b2c3d", not_after=NOW
            ),
        ),
        "The CA, or its intermediate, has expired, and no https passes: CN=squidkeeper intermediate CA 0a1b2c3d,"
        " 2026-11-24 12:00:00.",
    ),
    "tls-certificate-expiring": (
        changed(WELL, tls_certificate=replace(CA, not_after=NOW + timedelta(days=6))),
        "The certificate of the TLS port expires within days: 6 days left.",
    ),
    "access-log-unreadable": (
        changed(WELL, log_readable=False),
        "The access log cannot be read: /var/log/squid/access.log.",
    ),
    "export-behind": (
        with_export(
            waiting_since=NOW.timestamp() - 600,
            failure="syslog+tls://siem.example: no connection",
        ),
        "An export does not send what the access log holds: siem: nothing taken for 10 min: syslog+tls://siem.example",
    ),
    "access-log-behind": (
        changed(WELL, backlog_bytes=20_000_000),
        "20 MB are not counted yet",
    ),
    "policy-not-published": (
        changed(WELL, publisher_silent_seconds=16.0),
        "Edits of the policy do not come into force: they are not published: no publisher runs, or it hangs.",
    ),
    "maintenance-not-running": (
        changed(WELL, maintenance=MaintenanceStatus(runs=False)),
        "The maintenance process does not run.",
    ),
    "resolver-failing": (
        with_task("resolver", "unbound does not answer"),
        "The maintenance task resolver fails: unbound does not answer.",
    ),
    "own-addresses-failing": (
        with_task("own-addresses", "[Errno 28] No space left on device"),
        "The maintenance task own-addresses fails: [Errno 28]",
    ),
    "rotation-failing": (
        with_task("rotation", "[Errno 13] Permission denied"),
        "The maintenance task rotation fails: [Errno 13]",
    ),
    "reload-gated": (
        with_faults(
            Fault(
                Location("policy"),
                FaultCode.RELOAD_GATED,
                "the reload gate refuses revision 2",
            )
        ),
        "The reload gate refuses an edit of the policy: the reload gate refuses revision 2; revision",
    ),
    "reload-held": (
        changed(WELL, policy_state=replace(POLICY, ok=False, held="0a1b2c3d4e5f")),
        "An edit waits for the reload gate: revision 0a1b2c3d4e5f, while 9f31c2a7b04e stays in force.",
    ),
    "tls-failing": (
        with_task("tls", "HAProxy does not answer"),
        "The maintenance task tls fails: HAProxy does not answer.",
    ),
    "transparent-failing": (
        with_task("transparent", "192.168.137.1 is not on this machine"),
        "The maintenance task transparent fails: 192.168.137.1 is not on this machine.",
    ),
    "webhook-failing": (
        with_task(
            "webhook",
            "questions wait, and nobody is told: https://hooks.example: status 500",
        ),
        "The maintenance task webhook fails: questions wait, and nobody is told: https://hooks.example: status 500.",
    ),
    "throttle-not-running": (
        changed(
            with_helpers(replace(HELPER, started=0.0)),
            checkpoint=msgspec.structs.replace(
                CHECKPOINT,
                denials=(
                    Denial(
                        NOW - timedelta(minutes=2),
                        "192.0.2.1",
                        None,
                        "GET",
                        "/",
                        0,
                        "no",
                    ),
                ),
            ),
        ),
        "No throttle answers: a denial asked for it 2 min ago.",
    ),
    "state-not-writable": (
        changed(WELL, state_writable=False),
        "The exporter cannot save its counts.",
    ),
    "pull-failing": (
        changed(
            WELL,
            pull=PullStatus(
                "https://git.example/p main",
                30,
                succeeded=WELL.now - 7200,
                failure="no route",
            ),
        ),
        "The source of the policy cannot be read: last read 2 h ago; no route.",
    ),
    "pull-refused": (
        changed(
            WELL, pull=replace(PULLED, refused="b" * 40, reason="it is not signed")
        ),
        f"A version of the pulled policy is refused: {'b' * 40}, {'a' * 40} stays in place: it is not signed.",
    ),
    "pull-altered": (
        changed(WELL, pull=replace(PULLED, altered=True)),
        f"What is in place of the pulled policy is not what the source has: {'a' * 40}, from {PULLED.source}.",
    ),
    "archive-failing": (
        changed(
            WELL,
            archive=ArchiveStatus(
                WELL.now - 60, WELL.now - 7200, "No space left on device"
            ),
        ),
        "The access log is not archived: No space left on device.",
    ),
    "archive-behind": (
        changed(
            WELL,
            archive=ArchiveStatus(WELL.now, WELL.now),
            unarchived_since=WELL.now - 4 * 3600,
        ),
        "A rotated log has not been archived for hours: a rotated log ended 4 h ago.",
    ),
    "archive-incomplete": (
        changed(
            WELL,
            deleted_logs=DeletedLogs(3, 700_000_000, "access.log.7", WELL.now - 7200),
        ),
        "their records are lost: 3 files of 700 MB so far, the last access.log.7 2 h ago.",
    ),
    "disk-full": (
        changed(
            WELL,
            disks=(replace(DISK, available_bytes=0), replace(DISK, folder="archive")),
        ),
        "A disk that the gateway needs is full: 0 B of 10 GB free on the disk of /var/log/squid.",
    ),
    "disk-space-low": (
        changed(
            WELL,
            disks=(
                replace(DISK, available_bytes=900_000_000),
                replace(DISK, folder="state"),
            ),
        ),
        "900 MB of 10 GB free on the disk of /var/log/squid.",
    ),
}


@pytest.mark.parametrize(
    ("code", "view", "what"), [(code, *case) for code, case in WRONG.items()], ids=WRONG
)
def test_what_is_wrong_stands_first_with_what_to_do(
    code: str, view: Snapshot, what: str
) -> None:
    (active,) = active_conditions(view)
    assert active.condition.code == code
    assert what in active.text
    assert active.condition.remedy
    text = text_of(view)
    assert "All is well" not in text
    assert text.index(what) < text.index(f" {code} ") < text.index("Recent denials")
    assert f"1 {active.condition.severity} condition." in text


def test_a_rule_that_observes_shows_what_it_would_have_decided() -> None:
    watched = Rule(
        "no-push", Location("policy.yaml", 5, 3), Action.DENY, Match(), observe=True
    )
    counts = RequestCounts(observed=[(("no-push", "deny"), 1_234)])
    checkpoint = msgspec.structs.replace(CHECKPOINT, counts=counts)
    text = text_of(
        changed(WELL, policy=Policy("0", rules=(watched,)), checkpoint=checkpoint)
    )
    assert "no-push observes deny × 1,234" in text
    assert "ALLOWS" not in text
    assert "ALLOWS and records what it would deny if no rule matches" in text_of(
        observing(0)
    )


def test_a_policy_that_is_pulled_shows_its_version_signer_and_source() -> None:
    view = changed(WELL, pull=PULLED)
    assert codes(view) == []
    text = text_of(view)
    assert (
        f"Pulled policy {'a' * 40} in place 1 h ago, signed by alice@example.com"
        in text
    )
    assert (
        "https://git.example/p main, read 1 min ago no ceiling: whoever signs may open everything"
        in text
    )
    assert "no ceiling" not in text_of(
        changed(WELL, pull=replace(PULLED, has_ceiling=True))
    )
    assert "Pulled policy" not in text_of(WELL)
    assert "none yet" in text_of(
        changed(WELL, pull=PullStatus("https://git.example/p main", 30))
    )


def test_a_source_that_is_read_seldom_is_not_missed_before() -> None:
    seldom = replace(PULLED, every_seconds=86400, succeeded=WELL.now - 100_000)
    assert codes(changed(WELL, pull=seldom)) == []


def test_an_archive_that_runs_and_what_was_lost_days_ago_are_nothing_to_do() -> None:
    runs = changed(
        WELL,
        archive=ArchiveStatus(WELL.now, WELL.now - 3000, "busy"),
        unarchived_since=WELL.now - 10_000,
    )
    assert codes(runs) == []
    assert (
        codes(
            changed(
                WELL, deleted_logs=DeletedLogs(3, 7, "access.log.7", WELL.now - 90_000)
            )
        )
        == []
    )
    ended = changed(WELL, archive=ArchiveStatus(WELL.now - 7200, WELL.now - 7200))
    assert "The access log is not archived: it ran last 2 h ago." in text_of(ended)


@pytest.mark.parametrize(("requests", "codes"), [(0.0, set()), (1.0, {"no-helper"})])
def test_a_squid_that_has_just_started_needs_no_helper_yet(
    requests: float, codes: set[str]
) -> None:
    view = matched("policy-unavailable", NOW - timedelta(minutes=3))
    view = changed(view, squid=SquidCounters({COUNTER: requests}, answers=True))
    assert {condition.condition.code for condition in active_conditions(view)} == codes


def test_bodies_need_one_process_and_none_where_no_rule_asks_for_them() -> None:
    asked = WRONG["bodies-down"][0]
    assert (
        codes(
            changed(
                asked,
                counter_files=with_helpers(
                    replace(HELPER, helper="bodies")
                ).processes.counter_files,
            )
        )
        == []
    )
    assert (
        codes(changed(asked, fragment=asked.proxy.fragment.replace("bodies,", "")))
        == []
    )


def test_an_edit_that_a_full_disk_keeps_out_is_told_with_the_disk() -> None:
    full = replace(DISK, folder="state", path=Path("/state"), available_bytes=0)
    view = changed(WELL, publisher_silent_seconds=16.0, disks=(full,))
    told = "do not come into force: they are not published: 0 B of 10 GB free on the disk of /state."
    assert told in text_of(view)


def test_each_condition_has_a_case_here() -> None:
    """These come with others, and have a test of their own."""
    here = {"no-policy", "quota-nearly-used", "model-without-price"}
    here |= {
        "secret-unavailable",
        "secrets-not-fetched",
        "secret-fetch-failing",
        "secret-expiring",
    }
    assert {
        condition.code for condition in CONDITIONS if condition.find
    } - WRONG.keys() == here


def test_each_condition_has_a_code_of_its_own_and_says_what_to_do() -> None:
    assert len({condition.code for condition in CONDITIONS}) == len(CONDITIONS)
    for condition in CONDITIONS:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", condition.code)
        assert bool(condition.remedy) is (condition.find is not None)
        assert not condition.summary.endswith(".")


def test_each_task_of_the_maintenance_process_has_a_condition() -> None:
    for task in (OwnAddresses, Resolver, Rotation):
        assert codes(with_task(task.name, "it failed")) == [f"{task.name}-failing"]


def test_without_a_policy_everything_is_denied() -> None:
    assert codes(with_faults(FAULT, revision=None)) == [
        "no-policy",
        "policy-not-loaded",
    ]
    text = text_of(with_faults(FAULT, revision=None))
    assert "No policy has loaded: everything is denied." in text
    assert (
        "Run squidkeeper check. If it finds nothing as root, run it as Squid's account."
        in text
    )
    lines = changed(with_faults(FAULT), fragment_file=Path("/gw/etc/squidkeeper.conf"))
    assert "squidkeeper check --fragment /gw/etc/squidkeeper.conf" in text_of(lines)


def test_what_to_do_is_written_for_the_gateway_of_the_page() -> None:
    below_root = changed(
        WELL,
        directory=Path("/gw/etc/policy"),
        state=Path("/gw/state"),
        squid=SquidCounters({}, "refused"),
        drained_since=1,
        pull=replace(
            PULLED,
            refused="b" * 40,
            reason="no rewind; `squidkeeper pull --once --accept b` takes it",
        ),
    )
    text = text_of(below_root)
    assert "/gw/bin/squidkeeper pull --once --accept b" in text
    assert "/gw/bin/squidkeeper drain --cancel lets clients come again." in text
    assert (
        "Read pgrep -af /gw/etc/squid.conf and the end of cache.log, and fix what it says."
        in text
    )
    assert "systemctl" not in text


def test_a_refusal_of_the_reload_gate_is_told_as_one() -> None:
    place = Location("/etc/squidkeeper/policy")
    texts = (
        "the reload gate refuses revision 2",
        "client 192.0.2.1 would be denied",
        "client 192.0.2.2 would be",
    )
    view = with_faults(*(Fault(place, FaultCode.RELOAD_GATED, text) for text in texts))
    (condition,) = active_conditions(view)
    assert condition.condition.code == "reload-gated"
    assert (
        condition.detail
        == f"the reload gate refuses revision 2; revision {POLICY.revision} stays in force"
    )
    assert "`squidkeeper reload --force`" in condition.condition.remedy
    assert "does not load" not in text_of(view)
    assert all(text in text_of(view) for text in texts)


def test_the_most_severe_stands_first() -> None:
    expires_soon = replace(CA, not_after=NOW + timedelta(days=20))
    view = changed(WELL, certificate=expires_soon, log_readable=False)
    assert codes(view) == ["access-log-unreadable", "ca-expiring"]
    assert "2 conditions, 1 of them critical." in text_of(view)
    assert "2 conditions." in text_of(
        changed(view, log_readable=True, state_writable=False)
    )


def test_what_is_over_stands_below_what_is_now() -> None:
    crashed = changed(WRONG["squid-crashed"][0], state_writable=False)
    assert codes(crashed) == ["state-not-writable", "squid-crashed"]
    lost = changed(
        crashed, deleted_logs=DeletedLogs(3, 7, "access.log.7", WELL.now - 60)
    )
    assert codes(lost) == ["state-not-writable", "archive-incomplete", "squid-crashed"]
    assert "3 conditions, 1 of them critical." in text_of(lost)
    shown = page(lost, PROGRAM)
    assert '<section class="health critical"' in shown
    assert shown.count('<li class="over">') == 2


def test_a_condition_with_many_cases_shows_one_and_folds_the_others() -> None:
    texts = [f"fault number {number}" for number in range(7)]
    place = Location("policy.yaml", 41, 11)
    warnings = tuple(Fault(place, FaultCode.INVALID_HOST, text) for text in texts)
    shown = page(
        changed(WELL, policy_state=replace(POLICY, warnings=warnings)), PROGRAM
    )
    [folded] = re.findall(r"<details>.*?</details>", shown, re.DOTALL)
    assert "<summary>6 more</summary>" in folded
    assert [text in folded for text in texts] == [False] + [True] * 6
    assert texts[0] in shown


def test_drift_of_days_ago_and_helpers_during_a_reload_are_nothing_to_do() -> None:
    assert codes(with_drift(replace(FINDING, time=NOW - timedelta(days=2)))) == []
    reloading = replace(POLICY, loaded=WELL.now - 2)
    assert (
        codes(
            changed(
                with_helpers(replace(HELPER, revision="other")), policy_state=reloading
            )
        )
        == []
    )


def test_denials_without_a_helper_and_failures_are_nothing_to_do_when_they_are_over_or_few() -> (
    None
):
    assert codes(matched("policy-unavailable", NOW - timedelta(minutes=5))) == []
    # install.sh has rendered it since
    assert codes(matched("not-rendered", NOW - timedelta(seconds=7))) == []
    assert [codes(answered(*few)) for few in ([True] * 9, [True, False] * 5)] == [
        [],
        [],
    ]


def policy_of(folder: Path, text: str) -> Policy:
    return compiled_of(folder, text).source


def test_rules_stand_in_their_order_with_hits_and_expiry(tmp_path: Path) -> None:
    rules = """
rules:
  - {name: first, action: deny, hosts: [a.example], owner: ops}
  - {name: second, action: allow, hosts: [b.example], expires: 2026-11-23T12:00:00Z}
"""
    counts = RequestCounts(
        requests=[
            (("none", "first", "deny", "read", "4xx"), 1234),
            (("none", "second", "allow", "read", "2xx"), 5),
            (("none", "default", "deny", "read", "4xx"), 7),
        ],
        tunnels=[(("none", "second"), 36)],
        last_matched={"first": (NOW - timedelta(minutes=3)).isoformat()},
    )
    checkpoint = msgspec.structs.replace(CHECKPOINT, counts=counts)
    text = text_of(
        changed(WELL, policy=policy_of(tmp_path, rules), checkpoint=checkpoint)
    )
    assert text.index("first") < text.index("second") < text.index("default")
    assert "1 first deny 1,234" in text
    assert re.search(r"2 second allow 5 .*36 never expired", text)
    assert "3 min ago" in text
    assert "default deny 7" in text


def test_grants_and_what_asks_stand_among_the_rules(tmp_path: Path) -> None:
    policy = """
defaults: {ask: true}
rules:
  - {name: asks, action: ask, hosts: [a.example]}
grants:
  - {name: granted, any_client: true, hosts: [a.example], expires: 2026-11-23T12:00:00Z, reason: x, by: ops}
"""
    text = text_of(changed(WELL, policy=policy_of(tmp_path, policy)))
    assert "; ask if no rule matches" in text
    assert "1 asks ask" in text
    assert re.search(r"2 granted allow .*never expired .*ops", text)


def test_of_very_many_rules_those_that_count_are_shown(tmp_path: Path) -> None:
    rules = "".join(
        f"  - {{name: rule-{n}, action: allow, hosts: [h{n}.example]}}\n"
        for n in range(2000)
    )
    counts = RequestCounts(
        requests=[(("none", "rule-1500", "allow", "read", "2xx"), 3)]
    )
    checkpoint = msgspec.structs.replace(CHECKPOINT, counts=counts)
    text = text_of(
        changed(
            WELL, policy=policy_of(tmp_path, f"rules:\n{rules}"), checkpoint=checkpoint
        )
    )
    assert "1501 rule-1500 allow 3" in text
    assert "1,999 rules not shown" in text
    assert "1 rule-0 " not in text


def test_of_very_many_faults_and_warnings_the_first_are_shown() -> None:
    text = text_of(with_faults(*[FAULT] * 70))
    assert text.count("policy.yaml:41:11") == 50 + 1  # one in the condition
    assert "and 20 more: squidkeeper check shows all" in text
    (active,) = active_conditions(
        changed(WELL, policy_state=replace(POLICY, warnings=(FAULT,) * 70))
    )
    assert active.text.count("policy.yaml") == 5
    assert active.text.endswith("; and 65 more.")


@pytest.fixture
def fetched(tmp_path: Path) -> Callable[..., Snapshot]:
    """A gateway with a secret that is fetched; its value is there."""
    text = """
rules: [{name: open, action: allow, hosts: [a.example]}]
secrets: {token: {command: {run: [give-token, "argument"]}}}
credentials: [{name: api, hosts: [a.example], bearer: token}]
"""
    policy = policy_of(tmp_path, text)
    value_file(tmp_path, source_key("token", policy.secrets)).write_bytes(
        format_value(FetchedValue("TOPSECRET"))
    )

    def view(*, runs: bool = True, problem: str = "", **status: Any) -> Snapshot:
        usual = {
            "source": "command give-token",
            "last_success": WELL.now - 180,
            "next_fetch": WELL.now + 120,
        }
        secret = SecretStatus(**{**usual, "expires_at": WELL.now + 3600, **status})
        return changed(
            WELL,
            policy=policy,
            fetched=tmp_path,
            fetching=FetchStatus(runs, {"token": secret, "former": secret}, problem),
        )

    return view


def test_a_secret_that_is_fetched_is_on_the_page_with_its_times(
    fetched: Callable[..., Snapshot],
) -> None:
    assert codes(fetched()) == []
    shown = text_of(fetched())
    assert (
        "token yes fetched 3 min ago, next fetch in 2 min, expires in 1 h command give-token api"
        in shown
    )
    assert "TOPSECRET" not in page(fetched(), PROGRAM)


FAILS: dict[str, Any] = {"failures": 3, "failure": "the command exited with status 1"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            {"runs": False},
            ["The process that fetches secrets does not run, or is stuck: token."],
        ),
        (
            {"problem": "the folder is full"},
            ["A secret cannot be fetched: the folder is full."],
        ),
        (
            FAILS,
            ["A secret cannot be fetched: token: the command exited with status 1."],
        ),
        (
            {**FAILS, "expires_at": WELL.now + 590},
            [
                "The value of a secret expires, and its renewal fails: token expires in 9 min.",
                "A secret cannot be fetched: token: the command exited with status 1.",
            ],
        ),
        (
            {"expires_at": WELL.now + 5},
            [],
        ),  # a short one that is renewed as it should be
    ],
)
def test_a_secret_that_is_not_fetched_is_a_condition(
    fetched: Callable[..., Snapshot], status: dict[str, Any], expected: list[str]
) -> None:
    assert [
        condition.text for condition in active_conditions(fetched(**status))
    ] == expected


def test_a_fetched_secret_without_a_value_is_unavailable(
    fetched: Callable[..., Snapshot], tmp_path: Path
) -> None:
    for file in tmp_path.glob("*.value"):
        file.unlink()
    assert codes(fetched(**FAILS, last_success=None, expires_at=None)) == [
        "secret-unavailable",
        "secret-fetch-failing",
    ]


def test_secrets_that_are_unavailable_are_one_condition(tmp_path: Path) -> None:
    text = """
secrets:
  {a: {file: a}, b: {file: b}, c: {file: c}, d: {env: D}, e: {session: true, hosts: [a.example]}}
rules: [{name: open, action: allow, hosts: [a.example]}]
credentials: [{name: api, hosts: [a.example], bearer: a}]
"""
    policy = policy_of(tmp_path, text)
    (tmp_path / "a").write_text("value")
    (tmp_path / "b").touch()
    view = changed(WELL, policy=policy)
    (active,) = (
        condition
        for condition in active_conditions(view)
        if condition.condition.code == "secret-unavailable"
    )
    assert active.details == (
        f"secret b: the file {tmp_path}/b is empty",
        f"secret c: the file {tmp_path}/c cannot be read: No such file or directory",
    )
    shown = text_of(view)
    assert f"a yes file {tmp_path}/a api" in shown
    assert f"b no: secret b: the file {tmp_path}/b is empty file {tmp_path}/b" in shown
    assert "d not checked: it is in Squid's environment env D" in shown
    assert "e not checked: each session brings it session" in shown


def test_helpers_are_named_and_judged() -> None:
    throttle = replace(HELPER, helper="throttle", pid=4120, revision=None)
    stuck, outdated = (
        replace(HELPER, pid=4118, beat=0.0),
        replace(HELPER, pid=4119, revision="other"),
    )
    text = text_of(with_helpers(HELPER, stuck, outdated, throttle))
    assert "host well 4117" in text
    assert "host stuck 4118" in text
    assert "host outdated 4119" in text
    assert "throttle well 4120" in text
    assert text.count("needs none") == 1
    assert "denies everything" not in text


# --- recent denials -------------------------------------------------------------------


def test_only_denials_are_kept_and_the_same_again_counts_up() -> None:
    again = denial(
        time="2026-11-24T11:59:30.000Z", url="https://a.example/x?other=query"
    )
    first, second = denials_of(
        [denial(), denial(verdict="allow"), denial(rule="other"), again]
    )
    assert (first.rule, first.times, first.url) == ("no", 2, "https://a.example/x")
    assert first.time == datetime(2026, 11, 24, 11, 59, 30, tzinfo=UTC)
    assert (second.rule, second.times) == ("other", 1)


def test_a_client_with_many_denials_does_not_push_out_those_of_another() -> None:
    many = [
        denial(client="192.0.2.66", url=f"https://a.example/{number}")
        for number in range(500)
    ]
    kept = denials_of([denial(), *many, denial(client="192.0.2.2")])
    assert [denial.client for denial in (kept[0], kept[-1])] == [
        "192.0.2.2",
        "192.0.2.1",
    ]
    assert len(kept) == DENIALS_LIMIT


def test_denials_live_through_a_restart_in_their_order() -> None:
    kept = denials_of(denial(url=f"https://a.example/{number}") for number in range(5))
    assert RecentDenials(kept).newest() == kept


def test_the_connect_of_a_denied_tunnel_is_shown_as_the_request_inside() -> None:
    tunnel = "a.example%3A443%20first"
    connect = denial(
        method="CONNECT",
        url="a.example:443",
        status=200,
        error="-",
        tunnel=tunnel,
        connection="7",
    )
    inside = denial(tunnel=tunnel, connection="7")
    assert [
        (denial.method, denial.times) for denial in denials_of([connect, inside])
    ] == [("GET", 1)]
    assert [
        (one.method, one.times) for one in denials_of([connect, connect, inside])
    ] == [("GET", 1), ("CONNECT", 1)]
    assert [denial.method for denial in denials_of([connect])] == ["CONNECT"]
    # a client hides no host behind another
    other = denial(tunnel=tunnel, connection="7", url="https://good.example/x")
    assert [
        (denial.method, denial.times) for denial in denials_of([connect, other])
    ] == [("GET", 1), ("CONNECT", 1)]


def test_a_tunnel_that_was_denied_for_its_private_address_is_shown_once() -> None:
    private = {
        "rule": "private-address",
        "tunnel": "nas.example:443",
        "connection": "7",
    }
    connect = denial(
        method="CONNECT",
        url="nas.example:443",
        status=200,
        squid="TCP_DENIED/HIER_NONE",
        **private,
    )
    inside = denial(url="https://nas.example/", squid="NONE_NONE/HIER_NONE", **private)
    judged = denial(
        url="https://nas.example/",
        squid="TCP_DENIED/HIER_NONE",
        **{**private, "connection": "8"},
    )
    assert [
        (denial.method, denial.times) for denial in denials_of([connect, inside])
    ] == [("GET", 1)]
    assert [
        (denial.method, denial.times) for denial in denials_of([connect, judged])
    ] == [("GET", 1), ("CONNECT", 1)]


# --- the ready command ----------------------------------------------------------------


def command_for(**values: object) -> str | None:
    (kept,) = denials_of([denial(**values)])
    return explain_command(kept, LAYOUT, PROGRAM)


def test_the_command_asks_what_was_denied_without_its_query() -> None:
    assert command_for(url="https://a.example/x?q=1") == (
        "squidkeeper explain --client 192.0.2.1 -- GET https://a.example/x"
    )
    assert command_for(
        method="CONNECT", url="a.example:443", client="fd00::1", user="ci-bot"
    ) == ("squidkeeper explain --client fd00::1 --user=ci-bot -- CONNECT a.example:443")
    by_body = command_for(method="POST", found="body:chat:%20x")
    assert (
        by_body
        == "squidkeeper explain --body FILE --client 192.0.2.1 -- POST https://a.example/x"
    )
    (kept,) = denials_of([denial(client="error")])
    assert explain_command(
        kept,
        Layout.around(Path("/my policy"), LAYOUT.state),
        "/my gateway/bin/squidkeeper",
    ) == (
        "'/my gateway/bin/squidkeeper' explain --policy '/my policy' -- GET https://a.example/x"
    )


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "authority-mismatch",
            "| tail -n 1 | squidkeeper explain --record - shows what does not match",
        ),
        (
            "credential-unavailable",
            "A credential that the request needs is unavailable.",
        ),
        ("policy-unavailable", "The gateway could not decide the request"),
        ("not-rendered", "lacks lines that the policy needs"),
        ("login-refused", "was revoked, or has expired"),
        ("quota", "No command: what was used decided, and not the request."),
        ("quota", "--reset NAME --holder HOLDER"),
    ],
)
def test_there_is_no_command_that_would_give_another_verdict(
    rule: str, said: str
) -> None:
    assert command_for(rule=rule) is None
    text = text_of(with_denials(denials_of([denial(rule=rule)])))
    assert "No command: " in text
    assert said in text


def test_a_denial_has_the_sentence_of_its_cause_beside_it_and_what_to_do() -> None:
    rule = Rule(
        "no",
        Location("policy.yaml", 3, 5),
        Action.DENY,
        Match(),
        reason="It is closed.",
    )
    view = changed(
        with_denials(denials_of([denial()])), policy=Policy("r", rules=(rule,))
    )
    text = text_of(view)
    assert "The rule no (policy.yaml:3) denies it: It is closed." in text
    assert (
        "If the request is meant to pass, add a rule that allows it, or change the one that denies it."
        in text
    )
    assert "The rule no denies it." in text_of(changed(view, policy=None))


def test_only_denials_that_are_kept_are_judged() -> None:
    kept = RecentDenials()
    tunnel = "a.example%3A443%20first"
    inside = {"rule": "default", "tunnel": tunnel, "connection": "7"}
    kept.add(denial(method="CONNECT", url="a.example:443", status=200, **inside))
    kept.add(denial(squid="NONE_NONE/HIER_NONE", **inside))
    for number in range(3 * DENIALS_LIMIT):
        kept.add(denial(client="192.0.2.66", url=f"https://a.example/{number}"))
    assert [request.cause for request in kept.newest()] == ["policy"] * (
        DENIALS_LIMIT - 1
    ) + ["no-rule"]


def test_a_denial_that_an_earlier_release_kept_has_no_sentence() -> None:
    kept = Denial(NOW, "192.0.2.1", None, "GET", "https://a.example/x", 0, "no")
    saved = msgspec.json.encode(kept).replace(b',"cause":"","facts":{}', b"")
    assert b"cause" not in saved
    text = text_of(with_denials((msgspec.json.decode(saved, type=Denial),)))
    assert "https://a.example/x" in text
    assert "denies it" not in text


def test_served_requests_that_could_not_be_checked_are_told_with_the_cause() -> None:
    text = text_of(with_drift(unchecked=3, cut=7))
    assert "3 could not be checked, because their revision is no longer on disk" in text
    assert "7 could not be checked, because the access log cuts off their URL" in text


def test_the_command_calls_the_program_by_its_name_only_where_that_is_the_one_on_the_path(
    tmp_path: Path,
) -> None:
    place, link, other = (
        tmp_path / "bin/squidkeeper",
        tmp_path / "link",
        tmp_path / "other",
    )
    place.parent.mkdir()
    place.touch()
    other.touch()
    link.symlink_to(place)
    assert program_called(str(place), str(link)) == "squidkeeper"
    assert program_called(str(place), str(other)) == str(place)
    assert program_called(str(place), None) == str(place)
    assert program_called("/somewhere/squidkeeper/__main__.py", None) == "squidkeeper"


NASTY = (
    "https://a.example/$(touch /tmp/x)`id`",
    "https://a.example/'; touch x; echo '",
    "https://a.example/\\' ; touch x #",
    'https://a.example/"$HOME"!!!$!-1',
    "https://a.example/~/*?{a,b}[c]<d>|e&f;g(h)",
    "https://a.example/\n\r\x1b]0;title\x07\x03\x04\x16\u202e\u200b\ud800",
    "https://a.example/caf\u00e9/%E2%80%AE",
    "--policy:443",
    "-h:443",
)


@pytest.mark.system
@pytest.mark.parametrize("url", NASTY)
def test_a_shell_takes_the_command_for_nothing_but_words(
    url: str, tmp_path: Path
) -> None:
    method = "CONNECT" if url.endswith(":443") else "GET"
    (kept,) = denials_of([denial(url=url, method=method, user="%22;$(id)!!'")])
    command = explain_command(kept, LAYOUT, PROGRAM)
    assert command is not None
    assert command.isascii()
    assert command.isprintable()
    words = ["explain", "--client", "192.0.2.1", "--user=\";$(id)!!'", "--", method]
    words.append(kept.url.replace("\\", "%5C"))
    show = "squidkeeper() { for word; do printf '%s\\n' \"<$word>\"; done; }\n"
    for shell in (
        ["sh"],
        ["bash"],
        ["bash", "--norc", "--noprofile", "-i", "-o", "histexpand"],
    ):
        done = subprocess.run(
            shell,
            input=f"{show}{command}\n",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        said = [line[1:-1] for line in done.stdout.splitlines() if line.startswith("<")]
        assert said == words, (shell, done.stderr)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"url": "https://a.example/" + "x" * 8000},
        {"url": "error:transaction-end-before-headers"},
        {"url": "ftp://a.example/"},
        {"url": "--policy=/tmp/x:443", "method": "CONNECT"},
        {"url": "-"},
        {"method": "-h"},
        {"method": "GE\x1bT"},
        {"method": "X" * 200},
        {"user": "%E2%80%AEbot"},
        {"user": "%1B%5B2J"},
        {"user": "x" * 500},
    ],
)
def test_there_is_no_command_for_what_is_too_long_or_could_do_harm(
    values: dict[str, object],
) -> None:
    assert command_for(**values) is None


# --- the page -------------------------------------------------------------------------


HOSTILE_FAULTS = tuple(
    Fault(Location(text, 1, 1), FaultCode.UNKNOWN_KEY, text) for text in HOSTILE
)


def hostile(folder: Path) -> Snapshot:
    """Every text in every field that comes from outside, and in those of the
    operator's.
    """
    records = [
        denial(
            url=f"https://evil.example/{text}?q=TOPSECRET",
            method=text,
            rule=text,
            user=text,
            client=text,
        )
        for text in HOSTILE
    ]
    policy = compiled_of(
        folder, "rules: [{name: open, action: allow, hosts: [a.example]}]"
    ).source
    rules = tuple(
        replace(policy.rules[0], name=text, owner=text, expires=NOW) for text in HOSTILE
    )
    secrets = {
        text: NamedSecret(text, Location(text), FileSource(Path(f"/{text}")))
        for text in HOSTILE
        if text.isprintable()
    }
    checkpoint = Checkpoint(
        since=CHECKPOINT.since,
        denials=denials_of(records),
        drift=tuple(
            DriftSeen(NOW, text, text, f"https://x/{text}", text, text)
            for text in HOSTILE
        ),
    )
    return changed(
        with_helpers(
            *(replace(HELPER, helper=text, revision=text) for text in HOSTILE)
        ),
        directory=Path(HOSTILE[0]),
        policy=replace(policy, rules=rules, secrets=secrets),
        policy_state=PolicyState(
            HOSTILE[0], WELL.now, False, HOSTILE_FAULTS, HOSTILE_FAULTS
        ),
        checkpoint=checkpoint,
        certificate=replace(CA, subject=HOSTILE[0]),
        squid=SquidCounters({}, HOSTILE[0]),
        maintenance=MaintenanceStatus(
            runs=True,
            failures={text: text for text in HOSTILE} | {"resolver": HOSTILE[0]},
        ),
    )


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    html = page(hostile(tmp_path), PROGRAM)
    found = Page(html)
    assert found.names() <= TAGS | {"a"}
    assert found.attributes() <= ATTRIBUTES | {"href"}
    links = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
    assert links == {"#faults", "#denials", "#rules", "#helpers", "#secrets", "#drift"}
    assert "alert(1)" in found.text  # it is shown, as text
    assert not INVISIBLE.search(html)


def test_no_query_and_no_password_is_on_the_page() -> None:
    with_password = denial(url="https://user:hunter2@a.example/x?q=TOPSECRET#TOPSECRET")
    view = with_drift(FINDING)
    checkpoint = msgspec.structs.replace(
        view.log.checkpoint, denials=denials_of([with_password])
    )
    html = page(changed(view, checkpoint=checkpoint), PROGRAM)
    assert "https://***@a.example/x" in html
    assert "TOPSECRET" not in html
    assert "hunter2" not in html


def test_the_page_counts_connections_to_the_transparent_ports_where_they_are() -> None:
    counts = {"opened": 1200.0, "ended": 1100.0, "no_server_name": 3.0}
    totals = {
        counter_key(TRANSPARENT_CONNECTIONS, result): number
        for result, number in counts.items()
    }
    assert "Without proxy settings 1,200 connections 3 × no server name" in text_of(
        changed(WELL, totals=totals)
    )
    assert "Without proxy settings" not in text_of(WELL)


def test_the_page_lets_nothing_else_in() -> None:
    found = Page(page(WELL, PROGRAM))
    policy = next(
        attributes for _, attributes in found.tags if "http-equiv" in attributes
    )["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_a_line_of_the_record_is_what_is_shown() -> None:
    line = (
        b'{"v":1,"time":"2026-11-24T11:58:59.877Z","client":"192.0.2.1","user":"-","method":"GET",'
        b'"url":"https://a.example/%3Cb%3E?x","status":403,"bytes":1,"duration_ms":1,"verdict":"deny","rule":"no%20way",'
        b'"revision":"-","credential":"-","fetched":"-","sni":"-","tunnel":"-","upstream":"-","upstream_ms":"-",'
        b'"error":"-","user_agent":"-","squid":"TCP_DENIED/HIER_NONE","connection":"1"}'
    )
    assert "1 min ago 192.0.2.1 no way GET https://a.example/%3Cb%3E" in text_of(
        with_denials(denials_of([parse_record(line)]))
    )


@pytest.mark.parametrize(
    ("view", "detail"),
    [
        (with_export(), ""),
        (with_export(waiting_since=NOW.timestamp() - 60), ""),
        (with_export(runs=False), "siem: its process does not run, or is stuck"),
        (
            with_export(waiting_since=NOW.timestamp() - 600),
            "siem: nothing taken for 10 min",
        ),
        (with_export(backlog_bytes=20_000_000), "siem: 20 MB are not sent yet"),
    ],
)
def test_an_export_is_behind_if_it_is_down_waits_or_has_much_to_send(
    view: Snapshot, detail: str
) -> None:
    found = {
        condition.condition.code: condition.detail
        for condition in active_conditions(view)
    }
    assert found.get("export-behind", "") == detail
