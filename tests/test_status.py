"""The status page: whether anything is wrong, what to do, and nothing from outside that could do harm."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from squidkeeper.exporter.certificate import Certificate
from squidkeeper.exporter.conditions import conditions
from squidkeeper.exporter.disks import Disk
from squidkeeper.exporter.process import program_called
from squidkeeper.exporter.recent import DENIALS_KEPT, Denial, DriftSeen, RecentDenials
from squidkeeper.exporter.status import (
    AccessLogStatus,
    AnswerStatus,
    DriftStatus,
    GatewayStatus,
    HelperProcessStatus,
    PolicyStatus,
    RuleStatus,
    SecretStatus,
    SquidStatus,
)
from squidkeeper.exporter.status_page import explain_command, page
from squidkeeper.maintenance_status import MaintenanceStatus
from squidkeeper.policy.faults import Fault, FaultCode, Location
from squidkeeper.record.record import Record, parse_record

from .markup import ATTRIBUTES, HOSTILE, INVISIBLE, TAGS, Page

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DIRECTORY = Path("/etc/squidkeeper/policy")
PROGRAM = "squidkeeper"
POLICY = PolicyStatus(DIRECTORY, "9f31c2a7b04e", NOW - timedelta(hours=1), "deny")
RECORD = AccessLogStatus(Path("/var/log/squid/access.log"), readable=True, last_line=NOW)
CA = Certificate(Path("/ca.crt"), "CN=ca", NOW + timedelta(days=400))
SQUID = SquidStatus("127.0.0.1:3128", up=True)
WELL = GatewayStatus(
    at=NOW,
    version="0.1.0",
    policy=POLICY,
    rules=(),
    denials=(),
    helpers=(),
    secrets=(),
    ca=CA,
    record=RECORD,
    drift=DriftStatus(),
    squid=SQUID,
    upkeep=MaintenanceStatus(runs=True),
)
DISK = Disk("log", Path("/var/log/squid"), 5_000_000_000, 10_000_000_000)
HELPER = HelperProcessStatus("host", 4117, NOW, POLICY.revision, False, False, NOW, 12)
FINDING = DriftSeen(NOW - timedelta(hours=2), "192.0.2.1", "GET", "https://a.example/x?q=TOPSECRET", "no", "allowed")


def denial(**values: object) -> Record:
    """The record of a denied GET, unless it says otherwise."""
    usual: dict[str, object] = dict.fromkeys(Record.__struct_fields__, "-")
    usual |= {"v": 1, "time": "2026-11-24T11:59:00.000Z", "client": "192.0.2.1", "method": "GET"}
    usual |= {
        "url": "https://a.example/x",
        "status": 403,
        "bytes": 1,
        "duration_ms": 1,
        "verdict": "deny",
        "rule": "no",
    }
    return Record(**(usual | values))  # type: ignore[arg-type] # the fields are as a record has them


def denials_of(records: Iterable[Record]) -> tuple[Denial, ...]:
    kept = RecentDenials()
    for record in records:
        kept.add(record)
    return kept.newest()


def text_of(status: GatewayStatus) -> str:
    return " ".join(Page(page(status, PROGRAM)).text.split())


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_a_gateway_that_is_well_has_nothing_to_do() -> None:
    assert conditions(WELL) == ()
    assert "All is well: nothing to do." in text_of(WELL)


FAULT = Fault(Location("policy.yaml", 41, 11), FaultCode.INVALID_HOST, "'.org' is a wildcard, expected '.example.org'")
UNAVAILABLE = RuleStatus("policy-unavailable", "deny", 0, 1, NOW - timedelta(minutes=3), built_in=True)
WRONG = {
    "squid down": (replace(WELL, squid=replace(SQUID, up=False, problem="refused")), "now", "does not answer on 127"),
    "cache manager closed": (
        replace(WELL, squid=replace(SQUID, problem="403")),
        "soon",
        "counters cannot be read (403)",
    ),
    "no policy": (replace(WELL, policy=replace(POLICY, revision=None)), "now", "everything is denied"),
    "bad policy": (replace(WELL, policy=replace(POLICY, faults=(FAULT,))), "now", "does not load (1 fault)"),
    "warning": (
        replace(WELL, policy=replace(POLICY, warnings=(FAULT,))),
        "soon",
        "A warning of the policy: policy.yaml",
    ),
    "unanswered": (
        replace(WELL, rules=(UNAVAILABLE,)),
        "now",
        "no helper answers (policy-unavailable), last 3",
    ),
    "upstream": (
        replace(WELL, answers=AnswerStatus(10, 6)),
        "now",
        "6 of the last 10 requests that were let through",
    ),
    "drift": (replace(WELL, drift=DriftStatus(1, 0, (FINDING,))), "now", "not what the policy says, last 2 h ago"),
    "stuck": (replace(WELL, helpers=(replace(HELPER, stuck=True),)), "now", "1 helper without a sign of life"),
    "outdated": (replace(WELL, helpers=(replace(HELPER, outdated=True),)), "now", "by another revision"),
    "without": (
        replace(WELL, helpers=(replace(HELPER, outdated=True, revision=None),)),
        "now",
        "1 helper without a policy: all that it is asked is denied",
    ),
    "secret": (replace(WELL, secrets=(SecretStatus("key", "env KEY", "KEY is not set"),)), "now", "key is unavailable"),
    "ca ended": (replace(WELL, ca=replace(CA, not_after=NOW)), "now", "has ended"),
    "ca ends": (replace(WELL, ca=replace(CA, not_after=NOW + timedelta(days=29))), "soon", "ends in 29 days"),
    "no ca": (replace(WELL, ca=Certificate(Path("/ca.crt"), problem="no such file")), "soon", "CA cannot be read"),
    "blind": (replace(WELL, record=replace(RECORD, readable=False)), "now", "access log is gone, or cannot be read"),
    "behind": (replace(WELL, record=replace(RECORD, backlog_bytes=20_000_000)), "soon", "20 MB of the access log"),
    "no maintenance": (
        replace(WELL, upkeep=MaintenanceStatus(runs=False)),
        "now",
        "maintenance process gives no sign of life",
    ),
    "resolver": (
        replace(
            WELL, upkeep=MaintenanceStatus(runs=True, failures={"rotation": "", "resolver": "unbound does not answer"})
        ),
        "now",
        "The gateway's resolver does not work",
    ),
    "own addresses": (
        replace(
            WELL, upkeep=MaintenanceStatus(runs=True, failures={"own-addresses": "[Errno 28] No space left on device"})
        ),
        "now",
        "New addresses of the gateway itself stay open",
    ),
    "rotation": (
        replace(WELL, upkeep=MaintenanceStatus(runs=True, failures={"rotation": "[Errno 13] Permission denied"})),
        "soon",
        "Squid's logs are not bounded",
    ),
    "no throttle": (
        replace(WELL, throttle_missing_since=NOW - timedelta(minutes=2)),
        "soon",
        "No throttle runs, although a denial asked for it 2 min ago",
    ),
    "full disk": (replace(WELL, state_writable=False), "soon", "cannot keep its counts"),
    "little room": (
        replace(WELL, disks=(replace(DISK, available_bytes=900_000_000), replace(DISK, folder="state"))),
        "soon",
        "900 MB of 10 GB left on the disk of /var/log/squid",
    ),
}


@pytest.mark.parametrize(("status", "urgency", "what"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_stands_first_with_what_to_do(status: GatewayStatus, urgency: str, what: str) -> None:
    (trouble,) = conditions(status)
    assert trouble.urgency == urgency
    assert what in trouble.what
    assert trouble.remedy
    text = text_of(status)
    assert "All is well" not in text
    assert text.index(what) < text.index("Recent denials")


def test_a_stuck_helper_is_killed_as_one_that_is_stopped_must_be() -> None:
    (trouble,) = conditions(replace(WELL, helpers=(replace(HELPER, stuck=True),)))
    assert "`kill -9 4117`" in trouble.remedy


def test_no_new_helpers_are_advised_while_the_policy_on_disk_is_bad() -> None:
    helpers = (replace(HELPER, outdated=True, revision=None), replace(HELPER, outdated=True, revision="older"))
    well, bad = (replace(WELL, helpers=helpers, policy=replace(POLICY, faults=faults)) for faults in ((), (FAULT,)))
    assert ["reconfigure" in trouble.remedy for trouble in conditions(well)] == [True, True]
    assert ["reconfigure" in trouble.remedy for trouble in conditions(bad)] == [False, False, False]


def test_the_most_urgent_stands_first() -> None:
    ends_soon = replace(CA, not_after=NOW + timedelta(days=3))
    status = replace(WELL, ca=ends_soon, record=replace(RECORD, readable=False))
    assert [trouble.urgency for trouble in conditions(status)] == ["now", "soon"]
    assert "2 things are wrong, 1 of them to be mended now." in text_of(status)


def test_drift_of_days_ago_and_helpers_in_the_midst_of_a_reload_are_nothing_to_do() -> None:
    old = replace(FINDING, time=NOW - timedelta(days=2))
    assert conditions(replace(WELL, drift=DriftStatus(1, 0, (old,)))) == ()
    reloading = replace(POLICY, loaded_at=NOW - timedelta(seconds=2))
    assert conditions(replace(WELL, policy=reloading, helpers=(replace(HELPER, outdated=True),))) == ()


def test_denials_without_a_helper_and_failures_are_nothing_to_do_when_they_are_over_or_few() -> None:
    over = replace(UNAVAILABLE, last_matched=NOW - timedelta(minutes=5))
    assert conditions(replace(WELL, rules=(over, replace(UNAVAILABLE, last_matched=None)))) == ()
    assert [conditions(replace(WELL, answers=few)) for few in (AnswerStatus(9, 9), AnswerStatus(10, 5))] == [(), ()]


def test_faults_stand_with_file_line_and_column() -> None:
    text = text_of(replace(WELL, policy=replace(POLICY, faults=(FAULT,))))
    assert f"policy.yaml:41:11 {FAULT.message}" in text


def test_rules_stand_in_their_order_with_hits_and_expiry() -> None:
    rules = (
        RuleStatus("first", "deny", 0, 1234, NOW - timedelta(minutes=3), None, "ops"),
        RuleStatus("second", "allow", 5, 0, None, NOW - timedelta(days=1), tunnels=36),
        RuleStatus("default", "deny", 0, 7, built_in=True),
    )
    text = text_of(replace(WELL, rules=rules))
    assert text.index("first") < text.index("second") < text.index("default")
    assert "1 first deny 1,234" in text
    assert re.search(r"2 second allow 5 .*36 never lapsed", text)
    assert "3 min ago" in text
    assert "lapsed" in text


def test_of_very_many_rules_those_that_count_are_shown() -> None:
    rules = [RuleStatus(f"rule-{number}", "allow") for number in range(2000)]
    rules[1500] = replace(rules[1500], denied=3)
    text = text_of(replace(WELL, rules=tuple(rules)))
    assert "1501 rule-1500 allow 3" in text
    assert "1,999 rules not shown" in text
    assert "rule-7" not in text


def test_of_very_many_faults_the_first_are_shown() -> None:
    text = text_of(replace(WELL, policy=replace(POLICY, faults=(FAULT,) * 70)))
    assert text.count("policy.yaml:41:11") == 50
    assert "and 20 more: squidkeeper check shows all" in text


def test_of_very_many_warnings_the_first_are_shown() -> None:
    assert len(conditions(replace(WELL, policy=replace(POLICY, warnings=(FAULT,) * 70)))) == 5


def test_secrets_that_cannot_be_had_are_one_thing_to_do() -> None:
    (trouble,) = conditions(replace(WELL, secrets=tuple(SecretStatus(name, "file /x", "gone") for name in "abc")))
    assert trouble.what == "3 secrets are unavailable: requests that need them are denied."
    assert trouble.remedy == "See below: a, b, c."


def test_a_secret_that_cannot_be_read_is_told_with_who_must_be_able_to() -> None:
    reason = "secret key: the file /x cannot be read: Permission denied"
    closed = SecretStatus("key", "file /x", reason, code=FaultCode.SECRET_UNREADABLE)
    empty = SecretStatus("other", "file /y", "secret other: the file /y is empty", code=FaultCode.SECRET_EMPTY)
    hint = "Squid's account must be able to read the file: mode 0640, that account's group, and its folders open to it."
    remedies = [conditions(replace(WELL, secrets=some))[0].remedy for some in ((closed,), (empty,), (closed, empty))]
    assert remedies == [
        f"The file /x cannot be read: Permission denied. {hint}",
        "The file /y is empty.",
        f"See below: key, other. {hint}",
    ]


def test_a_ca_that_has_ended_is_told_otherwise_than_one_that_will() -> None:
    ended, ends = (
        conditions(replace(WELL, ca=replace(CA, not_after=NOW + left)))[0] for left in (timedelta(), timedelta(days=3))
    )
    assert ended.remedy == "Make a new one now, have the clients trust it, and run `./install.sh --ca-dir DIR` with it."
    assert ends.remedy.startswith(
        "Make a new one before it ends, have the clients trust it beside the old one, and run"
    )


def test_helpers_and_secrets_are_named_and_judged() -> None:
    secrets = (
        SecretStatus("a-key", "file /secrets/a", None, ("api",)),
        SecretStatus("b-key", "file /secrets/b", "it is empty"),
        SecretStatus("c-key", "env C"),
    )
    throttle = replace(HELPER, kind="throttle", pid=4120, revision=None, judges=False)
    helpers = (HELPER, replace(HELPER, pid=4118, stuck=True), replace(HELPER, pid=4119, outdated=True), throttle)
    text = text_of(replace(WELL, secrets=secrets, helpers=helpers))
    assert "a-key yes file /secrets/a api" in text
    assert "b-key no: it is empty file /secrets/b" in text
    assert "c-key not looked at: it is in Squid's environment env C" in text
    assert "host well 4117" in text
    assert "host stuck 4118" in text
    assert "host outdated 4119" in text
    assert "throttle well 4120" in text
    assert text.count("needs none") == 1
    assert "denies everything" not in text


# --- recent denials -------------------------------------------------------------------------------------------------


def test_only_denials_are_kept_and_the_same_again_counts_up() -> None:
    again = denial(time="2026-11-24T11:59:30.000Z", url="https://a.example/x?other=query")
    first, second = denials_of([denial(), denial(verdict="allow"), denial(rule="other"), again])
    assert (first.rule, first.times, first.url) == ("no", 2, "https://a.example/x")
    assert first.time == datetime(2026, 11, 24, 11, 59, 30, tzinfo=UTC)
    assert (second.rule, second.times) == ("other", 1)


def test_the_newest_are_kept_and_no_more_than_the_bound() -> None:
    kept = denials_of(denial(url=f"https://a.example/{number}") for number in range(200))
    assert len(kept) == DENIALS_KEPT
    assert kept[0].url == "https://a.example/199"


def test_a_client_with_many_denials_does_not_push_out_those_of_another() -> None:
    many = [denial(client="192.0.2.66", url=f"https://a.example/{number}") for number in range(500)]
    kept = denials_of([denial(), *many, denial(client="192.0.2.2")])
    assert [one.client for one in (kept[0], kept[-1])] == ["192.0.2.2", "192.0.2.1"]
    assert len(kept) == DENIALS_KEPT


def test_denials_live_through_a_restart_in_their_order() -> None:
    kept = denials_of(denial(url=f"https://a.example/{number}") for number in range(5))
    assert RecentDenials(kept).newest() == kept


def test_the_connect_of_a_denied_tunnel_is_shown_as_the_request_inside() -> None:
    tunnel = "a.example%3A443%20denied%20by%20no"
    connect = denial(method="CONNECT", url="a.example:443", tunnel=tunnel, connection="7")
    inside = denial(tunnel=tunnel, connection="7", squid="NONE_NONE/HIER_NONE")
    assert [(one.method, one.times) for one in denials_of([connect, inside])] == [("GET", 1)]
    assert [(one.method, one.times) for one in denials_of([connect, connect, inside])] == [("GET", 1), ("CONNECT", 1)]
    assert [one.method for one in denials_of([connect])] == ["CONNECT"]


def test_a_tunnel_that_was_denied_for_its_private_address_is_shown_once() -> None:
    private = {"rule": "private-address", "tunnel": "nas.example:443", "connection": "7"}
    connect = denial(method="CONNECT", url="nas.example:443", squid="TCP_DENIED/HIER_NONE", **private)
    inside = denial(url="https://nas.example/", squid="NONE_NONE/HIER_NONE", **private)
    judged = denial(url="https://nas.example/", squid="TCP_DENIED/HIER_NONE", **private)
    assert [(one.method, one.times) for one in denials_of([connect, inside])] == [("GET", 1)]
    assert [(one.method, one.times) for one in denials_of([connect, judged])] == [("GET", 1), ("CONNECT", 1)]


def test_a_policy_that_only_root_can_read_is_checked_as_another() -> None:
    message = "permission denied for the account proxy; as installed, root can"
    unreadable = Fault(Location("policy.yaml"), FaultCode.PERMISSION_DENIED, message)
    for fault, said in ((unreadable, True), (FAULT, False)):
        (trouble,) = conditions(replace(WELL, policy=replace(POLICY, faults=(fault,))))
        assert ("run it as the account that the fault names" in trouble.remedy) is said


# --- the ready command ----------------------------------------------------------------------------------------------


def command_for(**values: object) -> str | None:
    (kept,) = denials_of([denial(**values)])
    return explain_command(kept, PROGRAM, DIRECTORY)


def test_the_command_asks_what_was_denied_without_its_query() -> None:
    assert command_for(url="https://a.example/x?q=1") == (
        "squidkeeper explain --policy /etc/squidkeeper/policy --client 192.0.2.1 -- GET https://a.example/x"
    )
    assert command_for(method="CONNECT", url="a.example:443", client="fd00::1", user="ci-bot") == (
        "squidkeeper explain --policy /etc/squidkeeper/policy --client fd00::1 --user=ci-bot -- CONNECT a.example:443"
    )
    (kept,) = denials_of([denial(client="error")])
    assert explain_command(kept, "/my gateway/bin/squidkeeper", Path("/my policy")) == (
        "'/my gateway/bin/squidkeeper' explain --policy '/my policy' -- GET https://a.example/x"
    )


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("authority-mismatch", "squidkeeper explain --record - says which"),
        ("credential-unavailable", "a secret was not available"),
        ("policy-unavailable", "no helper answered"),
    ],
)
def test_there_is_no_command_that_would_give_another_verdict(rule: str, said: str) -> None:
    assert command_for(rule=rule) is None
    text = text_of(replace(WELL, denials=denials_of([denial(rule=rule)])))
    assert "No command: " in text
    assert said in text


def test_served_requests_that_could_not_be_checked_are_told_with_the_cause() -> None:
    text = text_of(replace(WELL, drift=DriftStatus(0, 3, (), 7)))
    assert "3 could not be checked, their revision is no longer kept" in text
    assert "7 could not be checked, the record cuts off the URL that decides" in text


def test_the_command_calls_the_program_by_its_name_only_where_that_is_the_one_on_the_path(tmp_path: Path) -> None:
    place, link, other = tmp_path / "bin/squidkeeper", tmp_path / "link", tmp_path / "other"
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


@pytest.mark.parametrize("url", NASTY)
def test_a_shell_takes_the_command_for_nothing_but_words(url: str, tmp_path: Path) -> None:
    method = "CONNECT" if url.endswith(":443") else "GET"
    (kept,) = denials_of([denial(url=url, method=method, user="%22;$(id)!!'")])
    command = explain_command(kept, PROGRAM, DIRECTORY)
    assert command is not None
    assert command.isascii()
    assert command.isprintable()
    words = ["explain", "--policy", str(DIRECTORY), "--client", "192.0.2.1", "--user=\";$(id)!!'", "--", method]
    words.append(kept.url.replace("\\", "%5C"))
    show = "squidkeeper() { for word; do printf '%s\\n' \"<$word>\"; done; }\n"
    for shell in (["sh"], ["bash"], ["bash", "--norc", "--noprofile", "-i", "-o", "histexpand"]):
        done = subprocess.run(
            shell, input=f"{show}{command}\n", capture_output=True, text=True, cwd=tmp_path, check=False, timeout=20
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
def test_there_is_no_command_for_what_is_too_long_or_could_do_harm(values: dict[str, object]) -> None:
    assert command_for(**values) is None


# --- the page -------------------------------------------------------------------------------------------------------


HOSTILE_FAULTS = tuple(Fault(Location(text, 1, 1), FaultCode.UNKNOWN_KEY, text) for text in HOSTILE)


def hostile() -> GatewayStatus:
    """Every text in every field that comes from outside, and in those of the operator's."""
    records = [
        denial(url=f"https://evil.example/{text}?q=TOPSECRET", method=text, rule=text, user=text, client=text)
        for text in HOSTILE
    ]
    return GatewayStatus(
        at=NOW,
        version="0.1.0",
        policy=replace(POLICY, faults=HOSTILE_FAULTS, warnings=HOSTILE_FAULTS),
        rules=tuple(RuleStatus(text, "deny", 1, 1, NOW, NOW, text) for text in HOSTILE),
        denials=denials_of(records),
        helpers=tuple(replace(HELPER, kind=text, revision=text) for text in HOSTILE),
        secrets=tuple(SecretStatus(text, text, text, (text,)) for text in HOSTILE),
        ca=replace(CA, subject=HOSTILE[0]),
        record=RECORD,
        drift=DriftStatus(1, 1, tuple(DriftSeen(NOW, text, text, f"https://x/{text}", text, text) for text in HOSTILE)),
        squid=replace(SQUID, problem=HOSTILE[0]),
        upkeep=MaintenanceStatus(runs=True, failures={text: text for text in HOSTILE}),
    )


def test_nothing_from_outside_becomes_markup() -> None:
    html = page(hostile(), PROGRAM)
    found = Page(html)
    assert found.names() <= TAGS | {"a"}
    assert found.attributes() <= ATTRIBUTES | {"href"}
    links = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
    assert links == {"#faults", "#denials", "#rules", "#helpers", "#secrets", "#drift"}
    assert "alert(1)" in found.text  # it is shown, as text
    assert not INVISIBLE.search(html)


def test_no_query_and_no_password_is_on_the_page() -> None:
    with_password = denial(url="https://user:hunter2@a.example/x?q=TOPSECRET#TOPSECRET")
    html = page(replace(WELL, denials=denials_of([with_password]), drift=DriftStatus(1, 0, (FINDING,))), PROGRAM)
    assert "https://***@a.example/x" in html
    assert "TOPSECRET" not in html
    assert "hunter2" not in html


def test_the_page_lets_nothing_else_in() -> None:
    found = Page(page(WELL, PROGRAM))
    policy = next(attributes for _, attributes in found.tags if "http-equiv" in attributes)["content"]
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
        replace(WELL, denials=denials_of([parse_record(line)]))
    )
