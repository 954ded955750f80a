"""What leaves the gateway in an export: nothing that must not, and in each format what
its readers expect.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from squidkeeper.record.export import cef, ecs, ocsf, otlp
from squidkeeper.record.export.facts import ExportOptions, clean, facts_of
from squidkeeper.record.export.formats import FORMATS, MessageEncoder
from squidkeeper.record.export.messages import ArchiveHead, Gap
from squidkeeper.record.log.record import LENGTHS, NONE, Record, parse_record
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageState,
    usage_entry,
)
from tests.documents import mapping_table
from tests.records import NOON, record
from tests.siem_formats import (
    CHECKS,
    VERSION,
    attributes_of,
    check_cef,
    check_ecs,
    parse_cef,
    valid_activity,
    validator,
)

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ExportOptions(version=VERSION, gateway="egress-1")
SECRETS = {
    "url": "https://open.example/x?token=LEAK#LEAK",
    "fetched": quote("https://other.example/x?token=LEAK#LEAK", safe=":/"),
    "referrer": quote("https://user:LEAK@from.example/a?q=LEAK#LEAK", safe=""),
}
GAP = Gap(
    "2026-11-25T12:00:00.000Z", "2026-11-25T13:00:00.000Z", 17, "the log was deleted"
)
HEAD = ArchiveHead("2026-11-25T12:00:00.000Z", 5, "ab" * 32)


def encoder(
    name: str, *, full_urls: bool = False, longest: int | None = None
) -> MessageEncoder:
    return MessageEncoder(
        name,
        ExportOptions(
            version=VERSION, gateway="egress-1", full_urls=full_urls, longest=longest
        ),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_no_query_fragment_or_password_leaves(name: str) -> None:
    message = encoder(name).record(record(**SECRETS))
    assert b"open.example/x" in message
    assert b"LEAK" not in message
    assert b"token" not in message


@pytest.mark.parametrize("name", FORMATS)
def test_whole_urls_leave_if_the_operator_wants_them_but_never_the_referrers_query(
    name: str,
) -> None:
    message = encoder(name, full_urls=True).record(record(**SECRETS))
    assert b"LEAK" in message
    assert b"from.example/a" in message
    assert b"LEAK" not in encoder(name, full_urls=True).record(
        record(referrer=SECRETS["referrer"])
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("length", [256, 64, 17])
def test_a_referrer_that_is_cut_off_within_its_password_does_not_leave(
    name: str, length: int
) -> None:
    cut = f"https://user:{'LEAK' * 100}"[:256]
    assert b"LEAK" not in encoder(name).record(record(referrer=cut))
    whole = record(referrer=f"https://user:{'LEAK' * 40}@from.example/")
    assert b"LEAK" not in encoder(name, longest=600 + length).record(whole)


ODD_REFERRERS = (
    "//u:LEAK@h/x",
    "https:/u:LEAK@h/x",
    "https:u:LEAK@h/x",
    "https:///u:LEAK@h/x",
    "https:\\\\u:LEAK@h/x",
    "https://\\u:LEAK@h/x",
    "https://\t/u:LEAK@h/x",
    "https://\\@u:LEAK@h/x",
    "view-source:https://u:LEAK@h/",
    "blob:https://u:LEAK@h/x",
    "u:LEAK@h",
    "LEAK:x",
)


@pytest.mark.parametrize("referrer", ODD_REFERRERS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_password_in_an_odd_referrer_does_not_leave(name: str, referrer: str) -> None:
    assert b"LEAK" not in encoder(name, full_urls=True).record(
        record(referrer=quote(referrer, safe=""))
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_message_is_as_short_as_its_transport_needs_it(name: str) -> None:
    long = record(
        url="https://long.example/" + "a" * 4000, rule="r" * 1200, user_agent="%22" * 80
    )
    assert len(encoder(name).record(long)) > 5000
    message = encoder(name, longest=3000).record(long)
    assert len(message) <= 3000
    assert b"long.example" in message


@pytest.mark.parametrize("name", FORMATS)
def test_a_body_over_https_has_every_message(name: str) -> None:
    encoding = encoder(name)
    body = encoding.body(
        [
            encoding.record(record(url=f"http://a{number}.example/"))
            for number in range(3)
        ]
    )
    assert all(f"a{number}.example".encode() in body for number in range(3))


# ── json ──────────────────────────────────────────────────────────────────────────────


def test_json_is_a_line_of_the_access_log() -> None:
    given = record(url="https://a.example/%22x", user_agent="a%0Ab", gateway="egress-7")
    assert parse_record(encoder("json").record(given)) == given


def test_json_tells_a_gap_and_the_head_of_the_archive() -> None:
    gap, head = (
        json.loads(message)
        for message in (encoder("json").gap(GAP), encoder("json").archive_head(HEAD))
    )
    assert gap == {
        "notice": "gap",
        "time": GAP.end,
        "gateway": "egress-1",
        "message": f"records missing: 17, from {GAP.start} to {GAP.end}: the log was deleted",
        "from": GAP.start,
        "to": GAP.end,
        "records": 17,
        "reason": "the log was deleted",
    }
    assert (head["notice"], head["time"], head["number"], head["digest"]) == (
        "archive-head",
        HEAD.time,
        5,
        "ab" * 32,
    )


def test_a_gap_of_which_little_is_known_has_no_empty_values() -> None:
    told = json.loads(encoder("json").gap(Gap("", "", None, "unknown")))
    assert {"from", "to", "records"} & {*told} == set()
    assert (
        told["message"]
        == "records missing: unknown, from the beginning to now: unknown"
    )
    assert told["time"].endswith("Z")


# ── Every kind of record ──────────────────────────────────────────────────────────────

FULL: dict[str, Any] = {
    "time": "2026-11-25T12:00:00.250Z",
    "user": "ci%20bot",
    "url": "https://api.example:8443/v1/x?a=b",
    "status": 201,
    "bytes": 1500,
    "duration_ms": 40,
    "credential": "one,two",
    "fetched": "https%3A//real.example/v1",
    "sni": "api.example",
    "tunnel": "api.example%3A8443",
    "upstream": "203.0.113.10",
    "upstream_ms": "35",
    "user_agent": "curl/8",
    "request_id": "1795608000.250.12.51872",
    "request_bytes": 700,
    "client_port": "51872",
    "content_type": "application/json",
    "referrer": "https://from.example/a",
    "gateway": "egress-7",
    "worker": "2",
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": FULL,
    "denied": {
        "verdict": "deny",
        "status": 403,
        "error": "403:ERR_SQUIDKEEPER_DENIED",
        "squid": "TCP_DENIED/HIER_NONE",
    },
    "a quota": {
        "verdict": "deny",
        "status": 403,
        "rule": "quota",
        "found": "quota:per-vm",
    },
    "a secret": {
        "verdict": "deny",
        "status": 403,
        "rule": "secret-leaving",
        "found": "secret:token",
        "url": "-",
    },
    "connect": {
        "method": "CONNECT",
        "url": "api.example:443",
        "squid": "NONE_NONE/HIER_NONE",
    },
    "ipv6": {
        "client": "2001:db8::2",
        "upstream": "2001:db8::10",
        "url": "https://[2001:db8::10]/x",
    },
    "no host": {"url": "http://-"},
    "another method": {"method": "BREW"},
    "no verdict": {
        "verdict": "-",
        "rule": "-",
        "revision": "-",
        "status": 502,
        "error": "ERR_CONNECT_FAIL",
    },
    "no request": {
        "method": "-",
        "url": "error:transaction-end-before-headers",
        "verdict": "-",
        "rule": "-",
        "status": 0,
        "bytes": 0,
    },
    "withheld": dict.fromkeys(("url", "fetched", "sni", "tunnel", "user_agent"), "-"),
    "older": {"request_bytes": 0},
    "hostile": {
        "user_agent": quote('"},\n\r\t\x00\x1b[2J\u2028=|\\ act=x cs1=y'),
        "rule": quote("ru=le|\\ \n"),
        "sni": quote(b"\xff\xfe\xc3("),
        "url": "http://x.example/" + "%0A|=%5C" * 500,
        "user": quote("\x85\u202eadmin\ud7ff"),
        "method": "%22%7D%0A",
    },
    "impossible": {
        "time": "never",
        "status": -7,
        "bytes": 2**70,
        "duration_ms": -(2**70),
        "client": "nobody",
    },
    "long ago": {
        "time": "0002-01-01T00:00:00.000Z",
        "duration_ms": 2**60,
        "upstream_ms": "9" * 40,
    },
}

ESCAPED = st.binary(max_size=60).map(lambda data: quote(data, safe=""))
TEXT = st.one_of(
    ESCAPED,
    st.text(st.characters(max_codepoint=0x2FF), max_size=60),
    st.sampled_from(["-", "", "%", "@"]),
)
URL = st.builds("{}://{}{}".format, st.sampled_from(["http", "https", "x"]), TEXT, TEXT)
NUMBER = st.one_of(st.integers(0, 1000), st.integers())


@st.composite
def hostile_records(draw: st.DrawFn) -> Record:
    fields: dict[str, Any] = {}
    for name, kind in get_type_hints(Record).items():
        if kind is int and draw(st.booleans()):
            fields[name] = draw(NUMBER)
        elif kind is str and draw(st.booleans()):
            fields[name] = draw(
                st.one_of(TEXT, URL) if name in ("url", "fetched", "referrer") else TEXT
            )
    return record(**fields)


def messages(name: str) -> tuple[bytes, bytes, bytes]:
    """The notices in a format: a gap, the head of the archive, a gap of which little is
    known.
    """
    encoding = encoder(name)
    return (
        encoding.gap(GAP),
        encoding.archive_head(HEAD),
        encoding.gap(Gap("", "", None, "=|\\ x")),
    )


def check_messages(record: Record) -> None:
    """Each fact is printable and of its kind.

    Each message is what its readers take, one line, with the facts whole.
    """
    facts = facts_of(record, OPTIONS)
    for name, fact in facts.items():
        assert fact not in ("", []), name
        for text in fact if isinstance(fact, list) else [str(fact)]:
            assert text.isprintable(), (name, text)
        assert not isinstance(fact, int) or 0 <= fact < 2**63, name
    for name in FORMATS:
        CHECKS[name](message := encoder(name).record(record))
        CHECKS[name](encoder(name, full_urls=True).record(record))
        assert FORMATS[name].is_text == (name != "otlp")
        assert name == "otlp" or not {"\n", "\r", "\0"} & {*message.decode()}, name
        assert name in ("json", "otlp") or message.decode().isprintable(), name
    values, attributes = (
        check_cef(encoder("cef").record(record)),
        attributes_of(encoder("otlp").record(record)),
    )
    for fact, key in {
        "user_agent": "requestClientApplication",
        "rule": "cs1",
        "user": "suser",
    }.items():
        assert values.get(key) == facts.get(fact)
    assert attributes.get("user_agent.original") == facts.get("user_agent")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_is_what_the_readers_of_each_format_take(
    kind: str,
) -> None:
    check_messages(record(**KINDS[kind]))


@pytest.mark.system
@given(hostile_records())
@settings(max_examples=50, deadline=None)
def test_any_record_is_what_the_readers_of_each_format_take(one: Record) -> None:
    check_messages(one)


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_a_text_is_cleaned_of_what_is_not_printable_and_of_nothing_else(
    text: str,
) -> None:
    cleaned = clean(text) or ""
    assert cleaned.isprintable()
    assert text.isprintable() is (cleaned == text)


# ── ocsf ──────────────────────────────────────────────────────────────────────────────


def test_the_schema_of_ocsf_rejects_what_it_should() -> None:
    event = json.loads(encoder("ocsf").record(record()))
    for broken in (
        {**event, "severity_id": 77},
        {**event, "mine": 1},
        {**event, "metadata": {"version": "1.8.0"}},
    ):
        assert not validator("http_activity", *ocsf.PROFILES).is_valid(broken)


def test_ocsf_tells_who_asked_for_what_and_what_was_decided() -> None:
    event = valid_activity(encoder("ocsf", full_urls=True).record(record(**FULL)))
    assert (
        event["activity_name"],
        event["type_uid"],
        event["disposition"],
        event["status_id"],
    ) == (*("Get", 400203, "Allowed", 1),)
    assert event["http_request"] == {
        "uid": FULL["request_id"],
        "length": 700,
        "referrer": "https://from.example/a",
        "user_agent": "curl/8",
        "http_method": "GET",
        "url": {
            "url_string": FULL["url"],
            "scheme": "https",
            "hostname": "api.example",
            "port": 8443,
            "path": "/v1/x",
            "query_string": "a=b",
        },
    }
    assert event["http_response"] == {
        "code": 201,
        "length": 1500,
        "content_type": "application/json",
        "latency": 35,
    }
    assert event["src_endpoint"] == {"ip": "192.168.137.2", "port": 51872}
    assert event["dst_endpoint"] == {
        "hostname": "api.example",
        "ip": "203.0.113.10",
        "port": 8443,
    }
    assert event["traffic"] == {"bytes_out": 700, "bytes_in": 1500, "bytes": 2200}
    assert (event["actor"], event["firewall_rule"]) == (
        {"user": {"name": "ci bot"}},
        {"name": "open"},
    )
    assert event["policy"] == {"uid": "0123456789ab", "name": "squidkeeper"}
    assert (event["proxy_endpoint"]["hostname"], event["unmapped"]["credential"]) == (
        "egress-7",
        ["one", "two"],
    )
    assert (event["start_time"], event["time"], event["duration"]) == (
        1795608000210,
        1795608000250,
        40,
    )


def test_ocsf_tells_a_denial_and_a_secret_that_was_about_to_leave() -> None:
    denied, found = (
        valid_activity(encoder("ocsf").record(record(**KINDS[kind])))
        for kind in ("denied", "a secret")
    )
    assert (denied["action"], denied["disposition"], denied["status"]) == (
        "Denied",
        "Blocked",
        "Failure",
    )
    assert (denied["severity"], denied["is_alert"]) == ("Low", False)
    assert (found["severity"], found["is_alert"], found["unmapped"]["found"]) == (
        "High",
        True,
        ["secret:token"],
    )


def test_notices_are_valid_base_events_of_ocsf() -> None:
    events = [json.loads(message) for message in messages("ocsf")]
    for event in events:
        validator("base_event").validate(event)
    assert [event["unmapped"]["notice"] for event in events] == [
        "gap",
        "archive-head",
        "gap",
    ]
    assert (events[0]["unmapped"]["records"], events[1]["unmapped"]["number"]) == (
        17,
        5,
    )
    assert "records" not in events[2]["unmapped"]


# ── ecs ───────────────────────────────────────────────────────────────────────────────


def test_ecs_tells_who_asked_for_what_and_what_was_decided() -> None:
    told = check_ecs(encoder("ecs").record(record(**FULL)))
    assert told["@timestamp"] == FULL["time"]
    assert told["event"]["type"] == ["access", "allowed"]
    assert (told["event"]["outcome"], told["event"]["duration"]) == (
        "success",
        40_000_000,
    )
    assert told["event"]["start"] == "2026-11-25T12:00:00.210Z"
    assert told["url"] == {
        "original": "https://api.example:8443/v1/x",
        "full": "https://api.example:8443/v1/x",
        "scheme": "https",
        "domain": "api.example",
        "port": 8443,
        "path": "/v1/x",
    }
    assert told["source"] == {
        "address": "192.168.137.2",
        "ip": "192.168.137.2",
        "port": 51872,
        "bytes": 700,
    }
    assert told["related"] == {
        "ip": ["192.168.137.2", "203.0.113.10"],
        "hosts": ["api.example"],
        "user": ["ci bot"],
    }
    assert (told["rule"], told["observer"]["name"]) == (
        {"name": "open", "version": "0123456789ab"},
        "egress-7",
    )
    assert (
        told["squidkeeper"]["content_type"],
        "mime_type" in told["http"]["response"],
    ) == ("application/json", False)
    denied = check_ecs(encoder("ecs").record(record(**KINDS["denied"])))
    assert (denied["event"]["type"], denied["event"]["outcome"]) == (
        ["access", "denied", "error"],
        "failure",
    )


def test_notices_in_ecs_have_fields_of_the_schema_alone() -> None:
    gap, head, _ = map(check_ecs, messages("ecs"))
    assert (gap["event"]["kind"], gap["event"]["action"]) == ("pipeline_error", "gap")
    assert gap["squidkeeper"] == {
        "from": GAP.start,
        "to": GAP.end,
        "records": 17,
        "reason": "the log was deleted",
    }
    assert (head["event"]["action"], head["squidkeeper"]["digest"]) == (
        "archive-head",
        HEAD.digest,
    )


# ── cef ───────────────────────────────────────────────────────────────────────────────


def test_cef_tells_who_asked_for_what_and_what_was_decided() -> None:
    values = check_cef(encoder("cef").record(record(**FULL)))
    assert (values["act"], values["requestMethod"], values["request"]) == (
        *("allowed", "GET", "https://api.example:8443/v1/x"),
    )
    assert (values["src"], values["spt"], values["suser"], values["dst"]) == (
        *("192.168.137.2", "51872", "ci bot", "203.0.113.10"),
    )
    assert (values["in"], values["out"], values["cn1Label"], values["cn1"]) == (
        "700",
        "1500",
        "status",
        "201",
    )
    assert (values["cs1Label"], values["cs1"], values["cs3"]) == (
        "rule",
        "open",
        "one,two",
    )
    assert (
        values["cs6"]
        == "content_type=application/json squid=TCP_MISS/HIER_DIRECT connection=1 worker=2"
    )
    six = check_cef(encoder("cef").record(record(**KINDS["ipv6"])))
    assert (six["c6a2"], six["c6a3"], "src" in six) == (
        "2001:db8::2",
        "2001:db8::10",
        False,
    )
    assert parse_cef(encoder("cef").record(record(**KINDS["a secret"])))[0][4:] == [
        *("found", "Request that holds a secret, a canary or a placeholder", "9"),
    ]


def test_notices_in_cef_can_be_parsed() -> None:
    gap, head, unknown = map(check_cef, messages("cef"))
    assert (
        gap["cs6"]
        == f"from={GAP.start} to={GAP.end} records=17 reason=the log was deleted"
    )
    assert head["cs6"] == f"number=5 digest={HEAD.digest}"
    assert unknown["msg"].endswith("=|\\ x")


# ── otlp ──────────────────────────────────────────────────────────────────────────────


def test_a_body_of_otlp_is_decoded_by_the_official_protobufs() -> None:
    encoding = encoder("otlp")
    request = ExportLogsServiceRequest.FromString(
        encoding.body([encoding.record(record())] * 3)
    )
    [resource] = request.resource_logs
    about = {
        attribute.key: attribute.value.string_value
        for attribute in resource.resource.attributes
    }
    assert about == {
        "service.name": "squidkeeper",
        "service.version": "1.2.3",
        "service.instance.id": "egress-1",
    }
    [scope] = resource.scope_logs
    assert len(scope.log_records) == 3
    assert "squidkeeper.gateway" in attributes_of(
        scope.log_records[0].SerializeToString()
    )


def test_otlp_tells_who_asked_for_what_and_what_was_decided() -> None:
    message = encoder("otlp").record(record(**FULL))
    log, attributes = LogRecord.FromString(message), attributes_of(message)
    assert (log.time_unix_nano, log.severity_text, log.event_name) == (
        *(1795608000250000000, "INFO", "squidkeeper.request"),
    )
    expected = {
        "http.request.method": "GET",
        "url.full": "https://api.example:8443/v1/x",
        "server.address": "api.example",
        "server.port": 8443,
        "client.address": "192.168.137.2",
        "client.port": 51872,
        "http.response.status_code": 201,
        "http.request.header.referer": ["https://from.example/a"],
        "squidkeeper.rule": "open",
        "squidkeeper.credential": ["one", "two"],
    }
    assert expected.items() <= attributes.items()
    other = attributes_of(encoder("otlp").record(record(method="BREW")))
    assert (other["http.request.method"], other["http.request.method_original"]) == (
        "_OTHER",
        "BREW",
    )
    assert (
        LogRecord.FromString(
            encoder("otlp").record(record(verdict="deny"))
        ).severity_text
        == "WARN"
    )


def test_notices_in_otlp_are_decoded() -> None:
    gap, head, _ = map(attributes_of, messages("otlp"))
    assert (gap["squidkeeper.records"], head["squidkeeper.digest"]) == (17, HEAD.digest)


# ── What each format leaves out ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "rows"),
    [("ocsf", ocsf.ROWS), ("ecs", ecs.ROWS), ("otlp", otlp.ROWS)],
)
def test_a_format_has_every_field_of_a_record(name: str, rows: dict[str, str]) -> None:
    implied = {"v", "time", "duration_ms"} if name == "otlp" else {"v"}
    derived = {"status": "status_text", "duration_ms": "duration_ns"}
    used = {*rows.values()}
    missing = {
        field
        for field in Record.__struct_fields__
        if field not in used and derived.get(field) not in used
    }
    told_by_action = {"verdict"} if "action" in used else set()
    assert missing - told_by_action <= implied


def test_cef_has_every_field_of_a_record() -> None:
    used = {
        *cef.ROWS.values(),
        *cef.ADDRESSES,
        *(fact for _, fact in cef.LABELLED.values()),
        *cef.OTHER,
    }
    assert {*Record.__struct_fields__} - used == {"v", "time", "verdict"}
    assert {"time_ms", "action"} <= used
    assert set(LENGTHS) <= {*Record.__struct_fields__}
    assert NONE not in used


def test_the_document_tells_what_stands_where() -> None:
    page = (REPOSITORY / "squid/observe/EXPORT.md").read_text()
    assert mapping_table.render(page) == page
    assert (
        "| `client` | `src_endpoint.ip` | `source.address`<br>`source.ip` | `src`<br>`c6a2` |"
        in page
    )
    facts = {
        *ocsf.ROWS.values(),
        *ecs.ROWS.values(),
        *cef.ROWS.values(),
        *otlp.ROWS.values(),
    }
    assert facts <= {*mapping_table.DERIVED, *Record.__struct_fields__}


def test_each_format_has_a_check_that_is_not_of_its_own_making() -> None:
    assert {*CHECKS} == {*FORMATS}


def test_the_document_names_every_format() -> None:
    page = (REPOSITORY / "squid/observe/EXPORT.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| \[?an? ", page, re.MULTILINE) == [*FORMATS]


@pytest.mark.system
def test_no_other_format_imports_the_protobufs() -> None:
    code = (
        "import sys; from squidkeeper.record.export.formats import MessageEncoder; from tests.records import record;"
        "from squidkeeper.record.export.facts import ExportOptions;"
        "one = MessageEncoder('ocsf', ExportOptions(version='1', gateway='g')); one.body([one.record(record())]);"
        "sys.exit('google.protobuf' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=REPOSITORY
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    "found",
    ["body:the%20body%20is%20not%20plain%20JSON", "body:it%20is%20long,%20and%20cut"],
)
def test_a_denial_by_a_body_is_no_finding_of_a_secret(found: str) -> None:
    [denied, by_body] = (
        record(**{**KINDS["denied"], **more}) for more in ({}, {"found": found})
    )
    assert cef_severity(by_body) == cef_severity(denied)


def cef_severity(found: Record) -> list[str]:
    return parse_cef(encoder("cef").record(found))[0][4:]


def test_a_denial_by_a_quota_is_no_finding_of_a_secret() -> None:
    quota, denied, secret = (
        record(**KINDS[kind]) for kind in ("a quota", "denied", "a secret")
    )
    severities = [
        parse_cef(encoder("cef").record(record))[0][4:]
        for record in (quota, denied, secret)
    ]
    assert severities[0] == severities[1] != severities[2]
    alerts = [
        json.loads(encoder("ocsf").record(record))["is_alert"]
        for record in (quota, denied, secret)
    ]
    assert alerts == [False, False, True]


# ── usage ─────────────────────────────────────────────────────────────────────────────

USED = usage_entry(
    MeteredRequest(
        "gw.1.2.3", "192.0.2.1", "ci%20bot", "models", "0123456789ab", "llm.example"
    ),
    NOON,
    "gpt-4o\n|=",
    Amounts(800, 120, 3_200, cached_in=512),
    Amounts(1000, 4096, 41_200),
    UsageState.METERED,
)


def test_what_a_request_used_is_a_notice_in_each_format() -> None:
    told = json.loads(encoder("json").usage(USED))
    assert (told["notice"], told["model"], told["user"], told["cost"]) == (
        "usage",
        "gpt-4o%0A|=",
        "ci bot",
        3200,
    )
    assert told["message"] == "metered: 800 tokens in and 120 out of gpt-4o%0A|="
    assert "reason" not in told
    event = json.loads(encoder("ocsf").usage(USED))
    validator("base_event").validate(event)
    assert (event["severity"], event["unmapped"]["tokens_in"]) == ("Informational", 800)
    ecs_event = check_ecs(encoder("ecs").usage(USED))
    assert (ecs_event["event"]["action"], ecs_event["squidkeeper"]["tokens_out"]) == (
        "usage",
        120,
    )
    values = check_cef(encoder("cef").usage(USED))
    assert "tokens_in=800 cached_in=512" in values["cs6"]
    assert "model=gpt-4o%0A|= state=metered" in values["cs6"]


def test_what_a_request_used_has_opentelemetrys_own_names() -> None:
    attributes = attributes_of(encoder("otlp").usage(USED))
    assert {
        name: attributes[name]
        for name in attributes
        if not name.startswith("squidkeeper.")
    } == {
        "client.address": "192.0.2.1",
        "user.name": "ci bot",
        "server.address": "llm.example",
        "gen_ai.response.model": "gpt-4o%0A|=",
        "gen_ai.usage.input_tokens": 800,
        "gen_ai.usage.cache_read.input_tokens": 512,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.output_tokens": 120,
    }
    assert (attributes["squidkeeper.state"], attributes["squidkeeper.cost"]) == (
        "metered",
        3200,
    )
