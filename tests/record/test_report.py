"""The report: figures of a span of time, exact as far as it says, as a page that
nothing in the record can break.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.record.log.drift import DriftChecker, PastPolicies
from squidkeeper.record.log.record import parse_record
from squidkeeper.record.report import figures
from squidkeeper.record.report.builder import COLUMNS, OF_DENIALS, build_report
from squidkeeper.record.report.page import page
from squidkeeper.record.report.period import Period
from squidkeeper.record.report.text import text as text_of
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageState,
    append_entry,
    ledger_file,
    usage_entry,
)

from ..conftest import write_policy
from ..markup import ATTRIBUTES, HOSTILE, INVISIBLE, TAGS, Page
from ..records import NOON, after_noon, record_line

PAGES = Path(__file__).parents[2] / "squid/observe/PAGES.md"


def line(after_seconds: float = 0, **values: object) -> bytes:
    """A line of the access log: an allowed GET unless it has other values."""
    usual: dict[str, object] = {
        "time": after_noon(after_seconds),
        "client": "192.168.137.10",
        "url": "https://a.example/",
        "rule": "a",
    }
    usual |= {
        "bytes": 1000,
        "duration_ms": 20,
        "upstream": "203.0.113.1",
        "upstream_ms": "10",
        "revision": "-",
    }
    return record_line(**{**usual, "connection": str(after_seconds), **values})


def denied(after_seconds: float = 0, **values: object) -> bytes:
    return line(
        after_seconds,
        **{
            "status": 403,
            "verdict": "deny",
            "rule": "no",
            "upstream": "-",
            "upstream_ms": "-",
        }
        | {"error": "ERR_ACCESS_DENIED", "squid": "TCP_DENIED/HIER_NONE"}
        | values,
    )


def report_of(
    *lines: bytes, since: datetime | None = None, until: datetime | None = None
) -> figures.Report:
    with NamedTemporaryFile() as log:
        log.writelines(b"%b\n" % line for line in lines)
        log.flush()
        with open_table(
            TableSources((Path(log.name),)), columns=COLUMNS, partial=OF_DENIALS
        ) as table:
            return build_report(
                table.connection,
                Period(since, until),
                files=["access.log"],
                now=NOON,
                reasons=lambda rule, _: {"no": "Because."}.get(rule),
                invalid=table.skipped.count,
            )


# --- figures --------------------------------------------------------------------------


def test_requests_are_summed_up_by_verdict() -> None:
    summary = report_of(
        line(0, duration_ms=10),
        line(1, client="192.168.137.11", url="https://b.example/x"),
        line(2, status=502),
        denied(3, url="https://c.example/", bytes=500),
    ).summary
    assert (summary.requests, summary.allowed, summary.denied, summary.failed) == (
        4,
        3,
        1,
        1,
    )
    assert (
        summary.clients,
        summary.hosts,
        summary.hosts_allowed,
        summary.response_bytes,
    ) == (2, 3, 2, 3500)


def test_what_is_observed_and_asked_about_is_counted() -> None:
    report = report_of(
        *(
            line(n, observed="deny:later", url=f"https://{n}.example/")
            for n in range(3)
        ),
        line(4, observed="deny:default"),
        denied(5, error="403:ERR_SQUIDKEEPER_JSON", page="asked"),
    )
    assert report.observed == figures.ObservedFigures(
        total=4,
        asked=1,
        rows=(
            figures.ObservedRow("deny:default", 1, 1, 1),
            figures.ObservedRow("deny:later", 3, 1, 3),
        ),
    )
    shown = page(report)
    assert "4 requests about which a rule that observes would have decided" in shown
    assert "1 denial with a ticket" in shown
    assert "Observed and asked" not in page(report_of(line(0)))


def test_a_tunnel_is_counted_apart_and_a_denied_one_is_one_with_the_request_inside() -> (
    None
):
    tunnel = "c.example%3A443%20first"
    report = report_of(
        line(0, method="CONNECT", url="a.example:443", connection="1"),
        line(1, connection="1"),
        denied(
            2,
            method="CONNECT",
            url="c.example:443",
            status=200,
            error="-",
            tunnel=tunnel,
            connection="2",
        ),
        denied(3, url="https://c.example/x", tunnel=tunnel, connection="2"),
    )
    assert (report.summary.requests, report.summary.denied, report.summary.tunnels) == (
        2,
        1,
        1,
    )
    assert report.left_out == (
        figures.Count("CONNECTs and requests that count with another", 1),
    )


def test_who_went_where_names_the_busiest_and_sums_up_the_rest() -> None:
    many = [line(n, url=f"https://h{n % 60}.example/") for n in range(600)]
    few = [
        denied(700 + n, client=f"10.0.0.{n}", url="https://h1.example/")
        for n in range(12)
    ]
    traffic = report_of(*many, *few).traffic
    assert len(traffic.clients) == 8
    assert traffic.other_clients == 5
    assert traffic.hosts[0].host == "h1.example"
    assert (traffic.hosts[0].allowed, traffic.hosts[0].denied) == (10, 12)
    assert traffic.hosts[0].by_client[0] == figures.Visits(10, 0)
    assert traffic.hosts[0].by_client[-1] == figures.Visits(0, 5)
    assert traffic.other_hosts == 35
    assert traffic.rest is not None
    assert traffic.rest.allowed == 350
    assert sum(host.allowed for host in traffic.hosts) + traffic.rest.allowed == 600


def test_hosts_with_few_requests_count_as_their_domain() -> None:
    often = [line(n, url="https://www.example.org/") for n in range(300)]
    names = [f"n{n}.t.example.co.uk" for n in range(250)]
    names += [f"n{n}.example.org" for n in range(5)]
    names += [
        "one.github.io",
        "two.github.io",
        "192.0.2.1",
        "192.0.2.2",
        "alone.example.net",
    ]
    seldom = [line(400 + n, url=f"https://{name}/") for n, name in enumerate(names)]
    report = report_of(*often, *seldom)
    found = [(host.host, host.hosts, host.allowed) for host in report.traffic.hosts]
    assert found == [
        ("www.example.org", 1, 300),
        ("*.example.co.uk", 250, 250),
        ("*.example.org", 5, 5),
        ("alone.example.net", 1, 1),
        ("one.github.io", 1, 1),
        ("two.github.io", 1, 1),
        ("192.0.2.1", 1, 1),
        ("192.0.2.2", 1, 1),
    ]
    assert (report.traffic.other_hosts, report.traffic.rest) == (0, None)
    assert "*.example.co.uk (250)" in text_of(report)
    shown = " ".join(Page(page(report)).text.split())
    assert "*.example.co.uk 250 hosts 250" in shown


def test_denials_are_by_rule_with_its_reason_and_how_often_they_were_asked_again() -> (
    None
):
    denials = report_of(
        denied(0, url="https://c.example/x?a=1"),
        denied(60, url="https://c.example/x?a=2"),
        denied(120, url="https://c.example/x"),
        denied(121, url="https://c.example/x", method="POST"),
        denied(122, url="https://c.example/x", client="192.168.137.11"),
        denied(123, url="https://d.example/", rule="default"),
    ).denials
    assert [
        (rule.rule, rule.reason, rule.denied, rule.retried) for rule in denials.rules
    ] == [
        ("no", "Because.", 5, 2),
        ("default", None, 1, 0),
    ]
    assert denials.rules[0].hosts == (figures.Count("c.example", 5),)
    assert denials.retried == 2
    assert [(retry.method, retry.url, retry.denied) for retry in denials.retries] == [
        ("GET", "https://c.example/x", 3)
    ]
    assert denials.retries[0].last - denials.retries[0].first == timedelta(seconds=120)


def test_long_urls_that_differ_only_at_their_end_are_different_requests() -> None:
    start = "https://c.example/" + "x" * 8000
    denials = report_of(
        denied(0, url=start + "1"),
        denied(1, url=start + "2"),
        denied(2, url=start + "2"),
    ).denials
    assert denials.retried == 1
    assert len(denials.retries[0].url) + denials.retries[0].cut == len(start) + 1


def test_denials_over_time_share_the_steps_of_the_whole() -> None:
    report = report_of(line(0), denied(3600), denied(3601), line(7200))
    assert sum(step.denied for step in report.timeline.steps) == 2
    assert sum(step.allowed for step in report.timeline.steps) == 2
    assert len(report.denials.rules[0].over_time) == len(report.timeline.steps)
    assert max(report.denials.rules[0].over_time) == 2


def test_credentials_are_named_with_host_and_what_became_of_the_requests() -> None:
    credentials = report_of(
        line(0, credential="token"),
        line(1, credential="token", status=401),
        line(
            2,
            credential="token%2Cother",
            url="https://a.example/",
            fetched="https%3A%2F%2Fmirror.example%2Fx",
        ),
        line(3, credential="token", status=503, error="ERR_CONNECT_FAIL"),
        denied(4, rule="credential-unavailable", url="https://d.example/"),
    ).credentials
    assert credentials.uses == (
        figures.CredentialUse("other", "mirror.example", 1, 0, 0),
        figures.CredentialUse("token", "a.example", 3, 1, 1),
        figures.CredentialUse("token", "mirror.example", 1, 0, 0),
    )
    assert credentials.unavailable == (figures.Count("d.example", 1),)


def test_a_host_is_new_where_nothing_before_the_span_had_asked_for_it() -> None:
    lines = [
        line(0),
        line(100, url="https://A.example:443/x"),
        line(101, url="https://new.example/"),
        denied(102),
    ]
    compared = report_of(*lines, since=NOON + timedelta(seconds=50)).first_seen
    assert (compared.compared, compared.compared_since) == (1, NOON)
    assert [host.host for host in compared.hosts] == ["new.example"]
    alone = report_of(*lines).first_seen
    assert (alone.compared, alone.compared_since) == (0, None)
    assert [host.host for host in alone.hosts] == ["new.example", "a.example"]


def test_upstreams_have_quantiles_their_own_errors_and_squids() -> None:
    slow = [
        line(n, url="https://slow.example/", upstream_ms=str(1000 + 10 * n))
        for n in range(100)
    ]
    failing = [
        *(line(n, url="https://bad.example/", status=502) for n in range(3)),
        *(
            line(
                n,
                url="https://bad.example/",
                status=503,
                error="ERR_CONNECT_FAIL",
                upstream="-",
            )
            for n in range(4)
        ),
    ]
    upstreams = report_of(
        *slow, *failing, line(0, upstream="-", upstream_ms="-")
    ).upstreams
    assert [row.host for row in upstreams.slowest] == ["slow.example"]
    assert upstreams.slowest[0].median_ms == 1490
    assert upstreams.slowest[0].p95_ms == 1940
    assert upstreams.slowest[0].longest_ms == 1990
    (bad,) = upstreams.failing
    assert (bad.host, bad.requests, bad.server_errors) == ("bad.example", 7, 3)
    assert bad.errors == (figures.Count("ERR_CONNECT_FAIL", 4),)


DISTRUSTING: dict[str, object] = {
    "method": "CONNECT",
    "url": "a.example:443",
    "error": "ERR_SECURE_ACCEPT_FAIL",
    "squid": "NONE_NONE/HIER_DIRECT",
}
LEFT: dict[str, object] = {
    "error": "ERR_CLIENT_GONE",
    "status": 0,
    "squid": "NONE_NONE_ABORTED/HIER_NONE",
}
UNJUDGED: dict[str, object] = {
    "verdict": "-",
    "rule": "-",
    "upstream": "-",
    "upstream_ms": "-",
}


def test_what_was_passed_on_unread_is_a_request_without_a_duration() -> None:
    unread = {
        "squid": "TCP_TUNNEL/HIER_DIRECT",
        "duration_ms": 90_000,
        "upstream_ms": "90000",
    }
    tunnel = {"method": "CONNECT", "url": "pinned.example:443"}
    report = report_of(
        line(0, **tunnel, squid="NONE_NONE/HIER_NONE"),
        *(line(n, **tunnel, **unread) for n in range(100)),
        *(
            line(n, url="https://chat.example/", status=101, **unread)
            for n in range(100)
        ),
        line(100),
    )
    assert (report.summary.requests, report.summary.tunnels, report.summary.p95_ms) == (
        201,
        1,
        20,
    )
    assert report.upstreams.slowest == ()


def test_a_client_that_does_not_trust_the_ca_is_no_failing_upstream() -> None:
    report = report_of(
        line(0, **DISTRUSTING),
        line(1, **{**DISTRUSTING, "url": "b.example:443"}),
        line(2, client="192.168.137.11", user="ci", **DISTRUSTING),
        line(3),
    )
    assert report.upstreams.failing == ()
    assert (report.summary.failed, report.client_errors.total) == (0, 3)
    mistrust = "TLS with the client failed: it does not trust the gateway's CA, or it disconnected"
    assert [
        (row.client, row.requests, row.host, row.meaning)
        for row in report.client_errors.rows
    ] == [
        ("192.168.137.10", 2, "b.example", mistrust),
        ("192.168.137.11 ci", 1, "a.example", mistrust),
    ]
    assert report.client_errors.rows[0].last == NOON + timedelta(seconds=1)
    assert "it does not trust the gateway&#39;s CA" in page(report)


def test_a_client_that_left_before_an_answer_is_no_failure_of_a_host_and_no_denial() -> (
    None
):
    report = report_of(
        line(0),
        line(1, **LEFT),
        line(2, **LEFT, **UNJUDGED),
        line(3, **LEFT, **UNJUDGED),
    )
    assert (report.summary.requests, report.summary.denied, report.summary.failed) == (
        2,
        0,
        0,
    )
    assert report.upstreams.failing == ()
    assert [(row.error, row.requests) for row in report.client_errors.rows] == [
        ("ERR_CLIENT_GONE", 3)
    ]
    assert report.left_out == (
        figures.Count("requests whose client disconnected before a decision", 2),
    )


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "ERR_INVALID_URL"),
        (407, "ERR_CACHE_ACCESS_DENIED"),
        (403, "ERR_ACCESS_DENIED"),
        (501, "ERR_UNSUP_REQ"),
    ],
)
def test_what_squid_refuses_by_itself_is_no_failure_of_a_host(
    status: int, error: str
) -> None:
    report = report_of(
        line(0),
        line(1, status=status, error=error, squid="TCP_DENIED/HIER_NONE", **UNJUDGED),
    )
    assert (
        report.summary.requests,
        report.summary.failed,
        report.upstreams.failing,
    ) == (1, 0, ())
    assert report.left_out == (
        figures.Count("requests that Squid refused before a rule was asked", 1),
    )
    assert "\n1 request that Squid refused before a rule was asked\n" in text_of(report)


def test_a_client_cannot_hide_a_request_by_its_method() -> None:
    report = report_of(
        line(0, method="-", url="http://open.example/x"), denied(1, method="-")
    )
    assert (report.summary.requests, report.summary.denied, report.left_out) == (
        2,
        1,
        (),
    )


def test_what_is_not_in_the_figures_is_named() -> None:
    report = report_of(
        line(-10),
        line(0),
        line(10),
        line(1, method="-", url="error:transaction-end-before-headers", verdict="-"),
        b"no record",
        line(2, time="yesterday"),
        line(2, time="2026-11-25T12:00:02"),
        line(2, time="0001-01-01T00:00:00+14:00"),
        since=NOON,
        until=NOON + timedelta(seconds=10),
    )
    assert report.summary.requests == 1
    assert {(left_out.name, left_out.count) for left_out in report.left_out} == {
        ("records before the period", 1),
        ("records after the period", 1),
        ("connections that ended without a request", 1),
        ("invalid lines", 4),
    }


# --- the page -------------------------------------------------------------------------


def hostile_lines() -> Iterator[bytes]:
    """Every text in every field that comes from outside."""
    for number, text in enumerate(HOSTILE):
        for again in range(2):
            at = number + again / 10
            yield denied(
                at, url=f"https://evil.example/{text}?q={text}", user=text, rule=text
            )
            yield denied(at, url=f"https://{text}.example/", client=text, method=text)
            yield line(
                at,
                credential=text,
                error=text,
                url=f"https://user:hunter2@x.example/{text}",
                fetched=text,
            )


def test_nothing_in_the_record_becomes_markup() -> None:
    html = page(report_of(*hostile_lines()))
    found = Page(html)
    assert found.names() <= TAGS
    assert found.attributes() <= ATTRIBUTES
    assert "alert(1)" in found.text  # it is shown, as text
    assert not INVISIBLE.search(html)


def test_the_page_needs_nothing_else_and_lets_nothing_else_in() -> None:
    found = Page(page(report_of(line())))
    assert not found.names() & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    }
    policy = next(
        attributes for _, attributes in found.tags if "http-equiv" in attributes
    )["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_queries_and_passwords_are_on_no_page_and_in_no_json() -> None:
    lines = [
        make(
            at,
            url="https://user:hunter2@a.example/x?token=TOPSECRET#TOPSECRET",
            fetched=fetched,
        )
        for at, make in enumerate([line, denied, denied])
        for fetched in ("-", "https%3A%2F%2Fb.example%2F%3Ftoken%3DTOPSECRET")
    ]
    report = report_of(*lines)
    for text in (page(report), figures.as_json(report)):
        assert "TOPSECRET" not in text
        assert "hunter2" not in text
    assert "https://***@a.example/x" in page(report)


def test_a_chart_says_in_words_what_it_shows() -> None:
    found = Page(page(report_of(line(0), denied(600), line(1200))))
    pictures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert pictures
    assert all(
        attributes["role"] == "img" and attributes["aria-label"]
        for attributes in pictures
    )
    assert "2 allowed requests" in found.text


def test_an_empty_span_makes_a_page_that_says_so() -> None:
    assert "No request in this period" in page(report_of())
    other = page(report_of(line(0), since=NOON + timedelta(hours=1)))
    assert "No request in this period" in other
    assert "records before the period (1)" in other


def test_the_page_says_what_hosts_were_compared_with() -> None:
    assert "There are no older records" in page(report_of(line(0)))
    compared = page(
        report_of(
            line(0),
            line(10, url="https://b.example/"),
            since=NOON + timedelta(seconds=5),
        )
    )
    assert "1 host not in the 1 request before this period" in compared


# --- JSON -----------------------------------------------------------------------------


def keys_of(kind: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of the JSON with where it stands: `timeline.steps[]`, `start`."""
    for name, of in get_type_hints(kind).items():
        yield path, name
        repeated = "[]" if "tuple" in str(of) else ""
        for inner in (
            inner_kind for inner_kind in (of, *get_args(of)) if is_dataclass(inner_kind)
        ):
            yield from keys_of(inner, f"{path}{'.' if path else ''}{name}{repeated}")


def the_keys() -> str:
    return PAGES.read_text().partition("### The keys of")[2].partition("\n## ")[0]


def documented_keys() -> Iterator[tuple[str, str]]:
    """Yield every key of the document's table; `.allowed` stands where the key before
    it does.
    """
    for cell in re.findall(r"^\| (`.*?) \|", the_keys(), re.MULTILINE):
        path = ""
        for key in re.findall(r"`([a-z0-9_.\[\]]+)`", cell):
            above, _, name = key.rpartition(".")
            path = above or path
            yield path, name


def test_the_json_has_the_keys_that_are_documented() -> None:
    sections = (
        "summary",
        "timeline",
        "traffic",
        "denials",
        "observed",
        "credentials",
        "first_seen",
        "upstreams",
    )
    named = {*sections, "client_errors", "usage", "drift"}  # by the keys inside
    keys = {key for key in keys_of(figures.Report) if key[0] or key[1] not in named}
    leads = "".join(
        re.findall(
            r"(?:^- |\. )((?:`\w+`(?:, )?)+): ",
            the_keys().partition("\n| ")[0],
            re.MULTILINE,
        )
    )
    everywhere = re.findall(r"\w+", leads)
    assert len(everywhere) == 13
    assert {*documented_keys()} <= keys
    assert {
        key for key in keys - {*documented_keys()} if key[1] not in everywhere
    } == set()


def test_the_json_is_the_report() -> None:
    report = report_of(line(0), denied(1))
    parsed = json.loads(figures.as_json(report))
    assert list(parsed) == [field.name for field in fields(figures.Report)]
    assert parsed["format"] == 2
    assert parsed["summary"]["denied"] == 1
    assert parsed["since"] == "2026-11-25T12:00:00Z"


# --- the command ----------------------------------------------------------------------


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "access.log"
    file.write_bytes(line(0) + b"\n" + denied(1) + b"\n")
    return file


def test_the_command_writes_a_page_and_json(log: Path, tmp_path: Path) -> None:
    code, output = run(log, "--html", tmp_path / "report.html", "--policy", tmp_path)
    assert code == 0, output
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.html").stat().st_mode & 0o007 == 0  # as is the record
    # over a page of before
    assert run(log, "--html", tmp_path / "report.html", "--policy", tmp_path)[0] == 0
    code, output = run(log, "--json", "--policy", tmp_path)
    assert json.loads(output[output.index("{") :])["summary"]["requests"] == 2


def test_the_command_reads_the_policys_reasons(log: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nrules:\n- {name: 'no', action: deny, hosts: [a.example], reason: Not here.}\n"
    )
    code, output = run(log, "--json", "--policy", tmp_path)
    assert code == 0, output
    assert json.loads(output)["denials"]["rules"][0]["reason"] == "Not here."


def test_a_denial_has_the_reason_that_the_policy_gave_then(tmp_path: Path) -> None:
    policy, state, log = (tmp_path / name for name in ("policy", "state", "access.log"))
    revisions = []
    for reason in ("Then.", "Now."):
        write_policy(policy, f"defaults: {{action: deny, reason: {reason}}}\n")
        sources = read_sources(policy)
        revisions.append(load_sources(sources, NOON).compiled.revision)
        store_revision(sources, revisions[-1], state / "revisions")
    for revision, reason in zip(revisions, ("Then.", "Now."), strict=True):
        log.write_bytes(denied(1, rule="default", revision=revision) + b"\n")
        _, output = run(log, "--json", "--policy", policy, "--state", state)
        [rule] = json.loads(output)["denials"]["rules"]
        assert rule["reason"] == reason


SERVED: dict[str, object] = {
    "squid": "TCP_MISS/HIER_DIRECT",
    "tunnel": "a.example%3A443",
    "sni": "a.example",
}


class Site(NamedTuple):
    """A policy, the state that keeps its revisions, and an access log."""

    policy: Path
    state: Path
    log: Path

    @classmethod
    def below(cls, folder: Path) -> Site:
        return cls(folder / "policy", folder / "state", folder / "access.log")

    def store(self, rule: str) -> str:
        """Write a policy of one rule, and store its revision."""
        write_policy(self.policy, f"rules:\n- {rule}\n")
        sources = read_sources(self.policy)
        revision = load_sources(sources, NOON).compiled.revision
        store_revision(sources, revision, self.state / "revisions")
        return revision


def test_the_command_holds_what_was_served_against_the_revisions_that_are_kept(
    tmp_path: Path,
) -> None:
    site = Site.below(tmp_path)
    policy, state, log = site
    revision = site.store(
        "{name: 'no', action: deny, hosts: [a.example], reason: Not here.}"
    )
    lines = [
        line(0, revision=revision, **SERVED),
        line(1, revision="0123456789ab", **SERVED),
        denied(2),
    ]
    log.write_bytes(b"\n".join(lines) + b"\n")
    code, output = run(log, "--json", "--policy", policy, "--state", state)
    assert code == 0, output
    drift = json.loads(output)["drift"]
    assert (drift["total"], drift["unchecked"], drift["kinds"]) == (
        1,
        1,
        [{"name": "allowed", "count": 1}],
    )
    (found,) = drift["latest"]
    assert (found["rule"], found["reason"], found["url"]) == (
        "no",
        "Not here.",
        "https://a.example/",
    )
    page = run(log, "--html", "-", "--policy", policy, "--state", state)[1]
    assert "1 request served although the policy in force denied it (allowed 1)" in page
    code, output = run(log, "--json", "--policy", policy, "--state", tmp_path)
    assert code == 2
    assert "no folder of revisions" in output


def test_drift_is_that_of_each_record_of_the_period_the_newest_first(
    tmp_path: Path,
) -> None:
    site = Site.below(tmp_path)
    policy, state, log = site
    revision = site.store(
        "{name: part, action: allow, hosts: [a.example], paths: [/ok/**]}"
    )
    lines = [
        line(
            n,
            url=f"https://a.example/{path}",
            **(SERVED | {"revision": revision} | values),
        )
        for n, (path, values) in enumerate(
            [
                ("ok/1", {}),
                *((f"no/{n % 40}", {}) for n in range(120)),
                ("ok/2", {"rule": "-", "revision": "-"}),
                ("ok/3", {"verdict": "deny"}),
                ("ok/4", {"credential": "undue"}),
                ("ok/5", {"revision": "0123456789ab"}),
            ]
        )
    ]
    log.write_bytes(b"\n".join(lines) + b"\n")
    since = after_noon(11)
    code, output = run(
        log, "--json", "--policy", policy, "--state", state, "--since", since
    )
    assert code == 0, output
    found = json.loads(output)["drift"]
    past = PastPolicies(state / "revisions")
    checker = DriftChecker(past, replacing=past.replacing)
    records = [record for record in map(parse_record, lines) if record.time >= since]
    findings = [
        (record, finding) for record in records if (finding := checker.check(record))
    ]
    assert found["total"] == len(findings) == 113
    assert found["unchecked"] == checker.unchecked == 1
    assert {kind["name"]: kind["count"] for kind in found["kinds"]} == Counter(
        str(one.kind) for _, one in findings
    )
    assert [
        (row["time"], row["url"], row["kind"], row["rule"], row["reason"])
        for row in found["latest"]
    ] == [
        (
            format_json(record.time),
            record.url,
            finding.kind,
            finding.rule,
            finding.reason,
        )
        for record, finding in reversed(findings[-50:])
    ]


def format_json(time: str) -> str:
    """Write the time of a record as the report has it."""
    return str(json.loads(msgspec.json.encode(datetime.fromisoformat(time))))


def test_the_command_does_not_write_over_a_log(log: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    for read in (log, tmp_path / "report.html"):
        code, output = run(read, "--html", log)
        assert code == 2
        assert "is not an HTML page" in output
        assert log.read_bytes() == before


def test_the_command_writes_one_form(log: Path) -> None:
    assert run(log, "--json", "--html", "-")[0] == 2


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    code, output = run(tmp_path / "none.log", "--json", "--policy", tmp_path)
    assert code == 2
    assert "none.log" in output
    assert (
        "no\\x1b[31m.log"
        in run(tmp_path / "no\x1b[31m.log", "--json", "--policy", tmp_path)[1]
    )


@pytest.mark.system
def test_the_report_as_text_says_the_sums_and_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    file = tmp_path / "access.log"
    refused = {
        "verdict": "-",
        "rule": "-",
        "status": 400,
        "error": "ERR_INVALID_REQ",
        "upstream": "-",
    }
    gone = {
        "verdict": "-",
        "rule": "-",
        "method": "-",
        "url": "error:transaction-end-before-headers",
        "status": 0,
    }
    hostile = line(
        4, url="https://b.example/", client="192.168.137.11", user="a%1B%5B2J"
    )
    file.write_bytes(
        b"".join(
            text + b"\n"
            for text in (
                line(0),
                denied(1),
                line(2, **refused),
                line(3, **gone),
                hostile,
            )
        )
    )
    status, out = run(file)
    assert status == 0
    assert (
        "3 requests: 2 allowed, 1 denied; 0 failed. 2 clients, 2 hosts, 0 tunnels, "
        in out
    )
    assert re.search(
        r"^HOST +ALLOWED +DENIED +SENT\na.example +1 +1 +2.0 KB$", out, re.MULTILINE
    )
    assert "RULE  DENIED  RETRIED  REASON\nno         1        0  -" in out
    assert "\x1b" not in out
    assert (
        "With those that no rule decided, `squidkeeper query` counts 5 requests.\n"
        in out
    )
    assert "`squidkeeper query` counts 5 requests." in re.sub(
        "</?code>", "`", run(file, "--html", "-")[1]
    )
    assert "squidkeeper query" not in run(file, "--until", after_noon(2))[1]
    # which confines its process
    query = [
        "query",
        "--format",
        "csv",
        "SELECT count(*) AS n FROM requests",
        str(file),
    ]
    counted = subprocess.run(
        [sys.executable, "-m", "squidkeeper", *query],
        capture_output=True,
        text=True,
        check=True,
    )
    assert counted.stdout == "n\n5\n"


def test_the_address_of_a_client_stands_on_one_line() -> None:
    shown = page(report_of(line(0), line(1, client="2001:db8::1", user="a b")))
    assert "<span>192.168.137.10</span>" in shown
    assert "<span>2001:db8::1 a b</span>" in shown
    assert re.search(r"th\.client > span \{[^}]*writing-mode: vertical-rl", shown)


# --- tokens ---------------------------------------------------------------------------


def test_what_metered_requests_used_is_a_section_with_a_chart(tmp_path: Path) -> None:
    ledger = ledger_file(tmp_path)
    ledger.parent.mkdir(parents=True)
    reserve, used = Amounts(1000, 4096, 41_200), Amounts(800, 120, 3_200, cached_in=512)
    for number, model in enumerate(["gpt-4o", "<b>\n", "gpt-4o"]):
        about = MeteredRequest(
            f"1.2.3.{number}", "192.0.2.1", "ci", "models", "-", "a.example"
        )
        append_entry(
            ledger, usage_entry(about, NOON + timedelta(seconds=number), model, reserve)
        )
        if number != 1:
            at = NOON + timedelta(seconds=number + 1)
            append_entry(
                ledger, usage_entry(about, at, model, used, reserve, UsageState.METERED)
            )
    log = tmp_path / "access.log"
    log.write_bytes(line(0) + b"\n" + line(4) + b"\n")
    (tmp_path / "revisions").mkdir()

    def run(*options: str) -> str:
        return (
            CliRunner()
            .invoke(main, ["report", "--policy", str(tmp_path), *options, str(log)])
            .stdout
        )

    with_state = ("--state", str(tmp_path))
    report = json.loads(run("--json", *with_state))
    sums = ("requests", "reserved", "tokens_in", "cached_in", "tokens_out", "cost")

    def row(name: str, *numbers: int) -> dict[str, object]:
        return {"name": name, **dict(zip(sums, numbers, strict=True))}

    assert report["usage"] == {
        "total": row("", 3, 1, 2600, 1024, 4336, 47_600),
        "models": [
            row("<b>%0A", 1, 1, 1000, 0, 4096, 41_200),
            row("gpt-4o", 2, 0, 1600, 1024, 240, 6_400),
        ],
        "clients": [row("192.0.2.1 ci", 3, 1, 2600, 1024, 4336, 47_600)],
        "over_time": [0, 920 + 5096, 0, 920, 0],
    }
    assert "gpt-4o         2         0       1600    1024         240  0.0064" in run(
        *with_state
    )
    html = run("--html", "-", *with_state)
    shown = Page(html)
    assert shown.names() <= TAGS
    assert (
        "3 metered requests used 2,600 tokens in and 4,336 out, at a cost of 0.0476."
        in shown.text
    )
    assert "6,936 tokens, at most 6,016 each second" in html
    for options in ((), ("--html", "-")):
        assert "tokens" not in run(*options).lower()
    assert json.loads(run("--json"))["usage"] is None
