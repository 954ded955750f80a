"""Why requests failed: each cause by a record as Squid writes it, and what a command
makes of a log.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from click.testing import CliRunner, Result

from squidkeeper.cli import main
from squidkeeper.configuration.error_pages import FAILURES
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import OPENS_NONE, SEALED, VERDICT_NAMES
from squidkeeper.policy.url import parse_address
from squidkeeper.record.log.record import NONE, Record, endpoint_of
from squidkeeper.record.log.requests import request_of
from squidkeeper.record.why import CAUSES, facts_of, judge
from squidkeeper.record.why.answer import crashes
from squidkeeper.record.why.cache_log import CacheLog, parse_lines
from squidkeeper.record.why.details import Surroundings, detail_of
from squidkeeper.record.why.proposal import Proposal, propose
from squidkeeper.record.why.search import Failure, failures_among, group
from squidkeeper.serving.squid_crashes import SquidCrash
from squidkeeper.serving.tickets.store import TicketState, TicketStore
from squidkeeper.serving.tickets.ticket import AskedRequest, Holder

from ..conftest import NOW, compiled_of, decided, write_policy
from ..documents.code_tables import render
from ..markup import HOSTILE
from ..records import after_noon, record, record_line

DOCUMENT = Path(__file__).parents[2] / "squid/TROUBLESHOOTING.md"
DENIED = {
    "status": 403,
    "verdict": "deny",
    "squid": "TCP_DENIED/HIER_NONE",
    "error": "403:ERR_SQUIDKEEPER_TEXT",
}
NOT_JUDGED = {"verdict": NONE, "rule": NONE, "revision": NONE}
CONNECT = {
    "method": "CONNECT",
    "url": "a.example:443",
    "sni": "a.example",
    "tunnel": "a.example:443",
}
IN_TUNNEL = {
    "url": "https://a.example/x",
    "sni": "a.example",
    "tunnel": "a.example:443",
    **NOT_JUDGED,
}


def code(case: Record) -> str | None:
    found = judge(case)
    return found.code if found else None


def sentence(**fields: Any) -> str:
    case = record(**fields)
    found = judge(case)
    assert found
    return found.say(facts_of(case))


def advice(**fields: Any) -> str:
    case = record(**fields)
    found = judge(case)
    assert found
    return found.advise(facts_of(case))


FAILED = {
    "status": 502,
    "squid": "TCP_DENIED_REPLY_ABORTED/HIER_DIRECT",
    "upstream": "203.0.113.10",
}
# As Squid 6.13 has written them: tests/e2e/test_why.py has most of them live.
RECORDS: dict[str, dict[str, Any]] = {
    "login-refused": {"status": 407, "error": "ERR_CACHE_ACCESS_DENIED", **NOT_JUDGED},
    "login-needed": {
        "status": 407,
        "error": "ERR_CACHE_ACCESS_DENIED",
        "verdict": "deny",
        "rule": "default",
    },
    "token-revoked": {**DENIED, "rule": "login-refused"},
    "no-helper": {**DENIED, "rule": "policy-unavailable", "error": "ERR_ACCESS_DENIED"},
    "bodies-unanswered": {
        **DENIED,
        "rule": "policy-unavailable",
        "error": "ERR_ICAP_FAILURE",
        "status": 500,
    },
    "undecided": {**DENIED, "rule": "policy-unavailable"},
    **{
        code: {
            **DENIED,
            "rule": "policy-unavailable",
            "found": f"unavailable%3A{code}",
        }
        for code in (
            "no-policy",
            "policy-changed",
            "not-passed-on",
            "body-over-share",
            "body-late",
        )
    },
    "body": {
        **DENIED,
        "rule": "default",
        "found": "body:chat:%20/model%20is%20not%20what%20the%20rule%20lists",
    },
    "no-rule": {**DENIED, "rule": "default"},
    "policy": {**DENIED, "rule": "closed"},
    "asked": {**DENIED, "rule": "default", "page": "asked"},
    "squid-conf": {"status": 403, "error": "ERR_ACCESS_DENIED", **NOT_JUDGED},
    "name-unresolved": {
        "status": 503,
        "error": "503:ERR_DNS_FAIL",
        "page": "no-address",
    },
    "parent-failed": {
        **FAILED,
        "error": "ERR_CONNECT_FAIL",
        "squid": "TCP_DENIED_REPLY_ABORTED/FIRSTUP_PARENT",
    },
    "origin-refused": {**FAILED, "error": "ERR_CONNECT_FAIL"},
    "origin-silent": {
        **FAILED,
        "error": "ERR_CONNECT_FAIL",
        "squid": "TCP_DENIED_REPLY_TIMEDOUT/HIER_DIRECT",
    },
    "origin-slow": {**FAILED, "error": "ERR_READ_TIMEOUT"},
    "origin-certificate": {
        **FAILED,
        "error": "ERR_SECURE_CONNECT_FAIL",
        "tls_error": "X509_V_ERR_CERT_HAS_EXPIRED%40depth%3D0",
    },
    "origin-tls": {**FAILED, "error": "ERR_SECURE_CONNECT_FAIL"},
    "origin-broke-off": {**FAILED, "error": "ERR_ZERO_SIZE_OBJECT"},
    "ca-not-trusted": {**CONNECT, "error": "ERR_SECURE_ACCEPT_FAIL"},
    "no-tls-in-tunnel": {**CONNECT, "error": "ERR_PROTOCOL_UNKNOWN"},
    "tls-to-plain-port": {
        **NOT_JUDGED,
        "method": NONE,
        "url": "error:invalid-request",
        "status": 400,
        "error": "ERR_PROTOCOL_UNKNOWN",
    },
    "client-left": {
        **CONNECT,
        "error": "ERR_CLIENT_GONE",
        "squid": "NONE_NONE_ABORTED/HIER_NONE",
    },
    "client-left-body": {
        **NOT_JUDGED,
        "status": 0,
        "error": "ERR_CLIENT_GONE",
        "found": "unavailable%3Abody-unanswered",
        "squid": "NONE_NONE_ABORTED/HIER_NONE",
    },
    "certificate-fetch": {**DENIED, "client": NONE, "rule": "invalid-request"},
    "unmetered-request": {
        **DENIED,
        "rule": "invalid-request",
        "found": "body:the%20body%20is%20not%20plain%20JSON",
    },
    "parent-refused": {
        "status": 500,
        "error": "ERR_ICAP_FAILURE",
        "squid": "TCP_MISS/FIRSTUP_PARENT",
    },
    "not-forwarded": {**FAILED, "error": "ERR_CANNOT_FORWARD"},
    "invalid-answer": {**FAILED, "error": "ERR_ICAP_FAILURE"},
    "too-large": {"status": 413, "error": "ERR_TOO_BIG"},
    "not-cached": {"status": 504, "error": "ERR_ONLY_IF_CACHED_MISS"},
    "not-http": {**NOT_JUDGED, "status": 505, "error": "ERR_UNSUP_HTTPVERSION"},
    "gateway-failed": {"status": 503, "error": "ERR_SHUTTING_DOWN"},
    "origin-error": {"status": 503},
    "quota-unavailable": {
        **DENIED,
        "rule": "quota",
        "found": "quota-unavailable:per-vm",
    },
    "machine-address": {
        **DENIED,
        "rule": "default",
        "url": "http://169.254.169.254/latest/meta-data/",
    },
    **{
        rule: {**DENIED, "rule": rule}
        for rule in sorted(
            VERDICT_NAMES - {"default", "login-refused", "policy-unavailable"}
        )
    },
}


def test_each_cause_that_leaves_a_record_is_in_that_table() -> None:
    assert {cause.code for cause in CAUSES if cause.holds} == set(RECORDS)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"status": 404},
        {"status": 407, "url": "https://a.example/of-the-origin"},
        {"status": 304, "squid": "TCP_MEM_HIT/HIER_NONE"},
        CONNECT,
        {
            **NOT_JUDGED,
            "method": NONE,
            "url": "error:transaction-end-before-headers",
            "error": "ERR_CLIENT_GONE",
        },
        {
            **NOT_JUDGED,
            "method": NONE,
            "url": "error:transaction-end-before-headers",
            "status": 0,
        },
    ],
)
def test_what_did_not_fail_has_no_cause(fields: dict[str, Any]) -> None:
    assert code(record(**fields)) is None


def test_each_error_of_squids_that_has_a_page_has_a_cause() -> None:
    errors = [error for failure in FAILURES for error in failure.errors]
    assert [
        error for error in errors if code(record(status=502, error=error)) is None
    ] == []


PRECEDENCE = (  # the first cause that holds counts
    (
        "login-needed",
        {**DENIED, "rule": "closed", "status": 407, "error": "ERR_CACHE_ACCESS_DENIED"},
    ),
    (
        "authority-mismatch",
        {**DENIED, "rule": "authority-mismatch", "error": "ERR_SECURE_CONNECT_FAIL"},
    ),
    (
        "policy",
        {
            **CONNECT,
            **DENIED,
            "status": 200,
            "rule": "closed",
            "tls_error": "X509_V_ERR_CERT_HAS_EXPIRED",
        },
    ),
    (
        "parent-failed",
        {
            **RECORDS["origin-silent"],
            "squid": "TCP_DENIED_REPLY_TIMEDOUT/FIRSTUP_PARENT",
        },
    ),
    (
        "origin-certificate",
        {**RECORDS["origin-tls"], "tls_error": "X509_V_ERR_AKID_SKID_MISMATCH"},
    ),
)


@pytest.mark.parametrize(("cause", "fields"), [*RECORDS.items(), *PRECEDENCE])
def test_a_record_has_its_cause(cause: str, fields: dict[str, Any]) -> None:
    assert code(record(**fields)) == cause


def test_every_sentence_and_remedy_can_be_written_from_a_record_alone() -> None:
    for cause, fields in RECORDS.items():
        case = record(**fields)
        found = judge(case)
        assert found
        for text in (found.say(facts_of(case)), found.advise(facts_of(case))):
            assert text.endswith((".", "`", "?")), (cause, text)
            assert "{" not in text
            assert ".." not in text


# --- sentences ------------------------------------------------------------------------


def test_what_is_wrong_with_a_certificate_is_said_in_words() -> None:
    usual = RECORDS["origin-certificate"]
    assert sentence(**usual) == "The certificate of open.example:443 has expired."
    # another CA would change nothing
    assert "tls_outgoing_options" not in advice(**usual)
    wrong_name = {**usual, "tls_error": "SQUID_X509_V_ERR_DOMAIN_MISMATCH%40depth%3D0"}
    assert advice(**wrong_name).startswith(
        "Let the client ask for a name that the certificate has"
    )
    private_ca = {
        **usual,
        "tls_error": "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY%40depth%3D0",
    }
    assert "`tls_outgoing_options cafile=`" in advice(**private_ca)
    detail = {
        "tls_error": NONE,
        "error_detail": "X509_V_ERR_CERT_HAS_EXPIRED%2Bbroken_cert",
    }
    assert (
        sentence(**{**usual, **detail})
        == "The certificate of open.example:443 has expired."
    )
    unknown = sentence(
        **{**usual, "tls_error": "X509_V_ERR_AKID_SKID_MISMATCH%40depth%3D1"}
    )
    assert (
        unknown
        == "The certificate of open.example:443 is not valid: X509_V_ERR_AKID_SKID_MISMATCH."
    )


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://a.example/x:1", "a.example:443"),
        ("http://user@a.example", "a.example:80"),
        ("https://[2001:db8::1]/", "[2001:db8::1]:443"),
        ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
        ("a.example:8443", "a.example:8443"),
        ("-h:443", "-h:443"),
    ],
)
def test_a_sentence_names_host_and_port(url: str, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint
    assert endpoint in sentence(**{**FAILED, "error": "ERR_CONNECT_FAIL"}, url=url)


def test_a_private_address_that_the_client_named_is_called_one() -> None:
    told = sentence(
        **{**DENIED, "rule": "private-address", "url": "http://10.0.0.5:8080/"}
    )
    assert (
        told
        == "10.0.0.5 is a private address, which the rule that allows it does not open."
    )


@pytest.mark.parametrize(
    "value",
    [*HOSTILE, "\x1b[2J", "{0.__class__}", "{at}", "%1B%5B2J", "%E2%80%AE", "x" * 9000],
)
def test_hostile_values_stay_text_of_bounded_length(value: str) -> None:
    for cause, fields in RECORDS.items():
        hostile = dict.fromkeys(
            ("url", "sni", "tunnel", "user", "found", "upstream", "tls_error"), value
        )
        case = record(
            **{
                **fields,
                **{name: text for name, text in hostile.items() if name not in fields},
            }
        )
        found = judge(case)
        assert found, cause
        facts = facts_of(case)
        for text in (found.say(facts), found.advise(facts)):
            assert text.isprintable()
            assert len(text) < 1500


# --- groups ---------------------------------------------------------------------------


def test_failures_are_grouped_by_cause_sentence_and_host_newest_first() -> None:
    denied = {**DENIED, "rule": "closed"}
    records = [
        record(**denied, url="https://a.example/1", time=after_noon(0)),
        record(**denied, url="https://b.example/", time=after_noon(1)),
        record(url="https://fine.example/", time=after_noon(2)),
        *(
            record(
                **denied,
                url=f"https://a.example/{n}",
                client=f"192.0.2.{n}",
                time=after_noon(n),
            )
            for n in range(3, 8)
        ),
    ]
    groups, beyond = group(failures_among(reversed(records)), 1)
    assert [(group.count, group.first, group.last) for group in groups] == [
        (6, after_noon(0), after_noon(7)),
        (1, after_noon(1), after_noon(1)),
    ]
    assert [request.record.url[-1] for request in groups[0].newest] == ["7", "6", "5"]
    assert groups[1].newest == [], "only what is shown is kept"
    assert beyond == 0


def test_a_request_that_was_judged_itself_is_told_of_its_own_host() -> None:
    fronting = {
        **DENIED,
        "rule": "authority-mismatch",
        "url": "https://b.example/",
        "tunnel": "a.example:443",
    }
    for revision in ("0123456789ab", NONE):  # of a helper's, and of Squid's
        assert sentence(**fronting, revision=revision).startswith(
            "The request is for b.example, in a tunnel to a.exa"
        )


BODIES = """
  - {name: chat, action: allow, hosts: [api.example], body: {json: {/model: [small]}}}
  - {name: tools, action: allow, hosts: [api.example], body: {mcp: {tools: [search]}}}
  - {name: rest, action: deny, hosts: [api.example], reason: Ask for it.}
"""
OF_BODY = {
    **DENIED,
    "method": "POST",
    "revision": NONE,
    "url": "https://api.example/v1",
    "tunnel": "api.example:443",
}


def test_a_denial_by_the_body_tells_what_did_not_hold_and_what_to_change(
    log: Path,
) -> None:
    write_policy(log.parent / "policy", f"rules:{BODIES}")
    for found in (
        "chat: /model is not what the rule lists",
        "tools: the tool is not allowed",
    ):
        add(log, **OF_BODY, rule="rest", found=f"body:{quote(found)}")
    tools, chat = json.loads(why(log, "--json").output)["causes"]
    place = f"{log.parent}/policy/policy.yaml"
    assert chat["sentence"] == (
        f"The rule rest ({place}:5) denies it: Ask for it. Its body decided: chat: /model is not what the rule lists."
    )
    assert chat["remedy"] == (
        f"If the request is meant to pass, change the `body` of chat ({place}:3), tools ({place}:4), or what the client"
        " sends."
    )
    assert tools["sentence"].endswith(
        "Its body decided: tools: the tool is not allowed."
    )


def test_a_denial_by_the_default_after_a_body_does_not_say_that_no_rule_is_for_the_host(
    log: Path,
) -> None:
    write_policy(log.parent / "policy", f"rules:{BODIES.rpartition('  -')[0]}")
    add(log, **OF_BODY, rule="default", found="body:no%20rule%20allows%20this%20body")
    [found] = json.loads(why(log, "--json").output)["causes"]
    assert (
        found["sentence"]
        == "The rule default denies it. Its body decided: no rule allows this body."
    )
    assert "change the `body` of chat (" in found["remedy"]


def test_a_body_that_a_later_policy_allows_needs_no_edit(log: Path) -> None:
    write_policy(
        log.parent / "policy",
        "rules: [{name: open, action: allow, hosts: [api.example]}]\n",
    )
    add(log, **OF_BODY, rule="rest", found="body:chat:%20x")
    assert (
        "do nothing: the policy was edited since, and allows it now" in why(log).output
    )


# --- the rule that opens a request ----------------------------------------------------

DENIED_URLS = [
    "https://a.example/x/y",
    "http://a.example/",
    "https://a.example:8443/x",
    "http://a.example:443/x",
    "https://[2001:db8::1]/x",
    "http://203.0.113.7:8080/",
    "https://xn--bcher-kva.example/b%C3%BC",
    "https://a.example/@scope%2Fname,b:c+d=e",
    "https://a.example/it%27s%20%22quoted%22",
    "https://a.example/*/{a}[b]",
    "https://a.example/a:%20b%23c",
    "https://no/null",
    "https://1e3.example/~",
    f"https://a.example/{'x' * 300}",
    "https://a.example/x?query=1",
]


@pytest.mark.parametrize(
    ("method", "url"),
    [
        *(("GET", url) for url in DENIED_URLS),
        *((method, DENIED_URLS[0]) for method in ("NO", "on", "BREW")),
        *(("CONNECT", DENIED_URLS[place]) for place in (0, 2, 4)),
    ],
)
def test_the_rule_that_is_proposed_allows_the_request(
    tmp_path: Path, method: str, url: str
) -> None:
    text = "clients:\n  'a: b \U0001f600': {networks: [192.168.137.0/24]}\nrules:\n"
    before = compiled_of(
        tmp_path / "before",
        f"{text}  - {{name: allow-a-example, action: deny, hosts: ['*']}}\n",
    )
    is_tunnel = method == "CONNECT" or url.startswith("https:")
    connect = endpoint_of(url)
    target, tunnel = (
        (connect, NONE)
        if method == "CONNECT"
        else (url, connect if is_tunnel else NONE)
    )
    denied = record(
        **{**DENIED, "rule": "allow-a-example"},
        url=target,
        method=method,
        tunnel=tunnel,
    )
    proposal = propose(denied, before)
    assert proposal
    assert proposal.line
    line = proposal.line
    after = compiled_of(
        tmp_path / "after",
        f"{text}  {line}\n  - {{name: allow-a-example, action: deny, hosts: ['*']}}\n",
    )
    assert not decided(before, request_of(denied), NOW).allowed
    assert decided(after, request_of(denied), NOW).allowed, line
    others = [{"client": "192.0.2.1"}, {"url": "https://other.example/"}]
    others += [{"url": url.partition("?")[0] + "/more"}] if "paths:" in line else []
    others += [{"method": "DELETE"}] if "methods:" in line else []
    for other in others:
        assert not decided(
            after, request_of(msgspec.structs.replace(denied, **other)), NOW
        ).allowed, (line, other)


PROPOSED_FOR = """
clients:
  vms: {networks: [192.168.137.0/24]}
rewrites:
  - {name: mirror, hosts: [mirrored.example], to: "https://10.0.0.9/{path}"}
"""


def proposed(folder: Path, **fields: Any) -> Proposal | None:
    return propose(
        record(**{**DENIED, "rule": "default", **fields}),
        compiled_of(folder, PROPOSED_FOR),
    )


def test_a_rule_for_a_private_address_is_proposed_with_what_it_needs(
    tmp_path: Path,
) -> None:
    proposal = proposed(tmp_path, url="http://10.0.0.5/x")
    assert proposal == Proposal(
        '- {name: allow-10-0-0-5, action: allow, clients: ["vms"], hosts: ["10.0.0.5"], methods: [GET], paths: [/x], '
        "private: true}",
        private=True,
    )


@pytest.mark.parametrize("private", [False, True])
def test_a_rule_above_a_deny_is_private_where_the_allow_below_is(
    tmp_path: Path, private: bool
) -> None:
    allow = f"{{name: open, action: allow, hosts: [in.example], private: {str(private).lower()}}}"
    rules = f"rules: [{{name: closed, action: deny, hosts: [in.example], paths: [/x]}}, {allow}]\n"
    proposal = propose(
        record(**DENIED, rule="closed", url="http://in.example/x"),
        compiled_of(tmp_path, rules),
    )
    assert proposal
    assert (proposal.private, ", private: true}" in (proposal.line or "")) == (
        private,
        private,
    )


def test_a_private_address_that_only_a_grant_allows_needs_a_rule(log: Path) -> None:
    grant = "{name: g, any_client: true, hosts: [in.example], expires: 2099-01-01T00:00:00Z, reason: x}"
    (log.parent / "grants.yaml").write_text(f"version: 1\ngrants: [{grant}]\n")
    add(
        log,
        **DENIED,
        rule="private-address",
        revision=NONE,
        url="http://in.example/",
        tunnel=NONE,
    )
    [found] = json.loads(why(log, "--json").output)["causes"]
    assert found["sentence"].endswith(", which a grant does not open.")
    assert found["remedy"].startswith(
        "If it is meant, add a rule that allows it with `private: true`: grants have none."
    )


def test_what_one_rule_does_not_open_gets_no_rule_but_the_reason(
    tmp_path: Path,
) -> None:
    tunnel = {"sni": "mirrored.example", "tunnel": "mirrored.example:443"}
    proposal = proposed(tmp_path, url="https://mirrored.example/x", **tunnel)
    assert proposal
    assert (proposal.line, proposal.obstacle) == (
        None,
        "10.0.0.9 is a private address, which the rewrite mirror does not open (private: true).",
    )


def test_the_host_that_a_client_writes_into_a_denied_tunnel_gets_no_rule(
    tmp_path: Path,
) -> None:
    inside = {"url": "https://good.example/x", "tunnel": "evil.example:443%20first"}
    proposal = proposed(tmp_path, **inside)
    assert proposal
    assert proposal.line is None
    assert "The tunnel was opened to evil.example:443" in proposal.obstacle


@pytest.mark.parametrize("rule", ["default", "private-address", "closed"])
@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "[::ffff:169.254.169.254]"],
)
def test_no_rule_is_proposed_for_the_address_of_a_machines_credentials(
    log: Path, host: str, rule: str
) -> None:
    add(
        log,
        **{**DENIED, "rule": rule, "revision": NONE},
        url=f"http://{host}/latest/meta-data/",
    )
    [found] = json.loads(why(log, "--json").output)["causes"]
    assert found["cause"] == "machine-address"
    at = f" ({log.parent}/policy/policy.yaml:6)" if rule == "closed" else ""
    assert found["sentence"].endswith(
        f"gets its credentials, and the rule {rule}{at} denies it."
    )
    assert "action: allow" not in json.dumps(found)
    assert found["remedy"].startswith(
        "Do not open it: a client that reaches it can act as the gateway's machine."
    )


def test_private_true_for_a_name_with_a_link_local_address_is_advised_with_a_warning(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.cli.why._addresses", lambda _: (parse_address("169.254.169.254"),)
    )
    add(
        log,
        **{**DENIED, "rule": "private-address"},
        url="http://metadata.open.example/",
    )
    [found] = json.loads(why(log, "--json").output)["causes"]
    assert found["cause"] == "private-address"
    assert found["remedy"].startswith(
        "The address is one at which a cloud machine gets its credentials: a client that"
    )


# --- invalid requests -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"url": "https://a.example/%1b"}, "the path holds a control character"),
        (
            {"url": "https://a.example/a%252f%5c..;x/b%252f..%5c;y/c%252f..;z//d"},
            "can be read in more than 24 ways",
        ),
        (
            {"url": "https://a.example/%2525252525252e"},
            "the path is escaped more than four times over",
        ),
        (
            {"url": "http://a.example:99/%1b", "tunnel": NONE},
            "the path holds a control character",
        ),
        (
            {"method": "TRACE"},
            "the method TRACE returns a request's headers to whoever asks",
        ),
        ({"url": "https://a.example/", "hidden": "userinfo"}, "user"),
        ({"url": "https://a.example/", "hidden": "fragment"}, "fragment"),
        ({"url": "ftp://a.example/", "tunnel": NONE}, "ftp"),
        ({**CONNECT, "sni": "a.example"}, "A CONNECT inside a tunnel is not allowed"),
        (
            {"url": "https://a.example/", "tunnel": NONE},
            "An https URL needs a CONNECT first",
        ),
    ],
)
def test_an_invalid_request_has_the_reason_of_its_decision(
    fields: dict[str, Any], reason: str
) -> None:
    usual = {**IN_TUNNEL, **DENIED, "rule": "invalid-request"}
    told = sentence(**{**usual, **fields})
    assert reason in told
    assert "TRACE, TRACK" not in told


def test_an_invalid_request_whose_reason_the_record_does_not_hold_may_have_one_of_several() -> (
    None
):
    told = sentence(**{**DENIED, "rule": "invalid-request", "url": "http://a.example/"})
    assert told.startswith(
        "No policy allows such a request: TRACE, TRACK or PURGE; a scheme other than http"
    )
    assert "too many readings" in told


def test_a_metered_request_that_cannot_be_counted_has_the_reason_of_the_record() -> (
    None
):
    told = sentence(**RECORDS["unmetered-request"])
    assert told.endswith(
        "has `meter`, and the gateway cannot tell what the request may use: the body is not plain JSON."
    )


# --- cache.log ------------------------------------------------------------------------

REFUSED = (
    "ERROR: failure while accepting a TLS connection on conn120 local=127.0.0.1:3130 remote={client}:45126 FD 13 "
    "flags=1: SQUID_TLS_ERR_ACCEPT+TLS_LIB_ERR=A000418+TLS_IO_ERR=1"
)
LINES = {
    "WARNING: Your cache is running out of filedescriptors": ("no-descriptors", {}),
    "FATAL: Unable to open HTTP Socket": (
        "squid-ended",
        {"reason": "Unable to open HTTP Socket"},
    ),
    REFUSED.format(client="192.0.2.1"): (
        "ca-not-trusted",
        {"connection": "120", "client": "192.0.2.1", "port": "45126", "alert": "418"},
    ),
    REFUSED.format(client="[2001:db8::1]"): (
        "ca-not-trusted",
        {"connection": "120", "client": "2001:db8::1", "port": "45126", "alert": "418"},
    ),
    "squidkeeper: credential no-token: secret x: unset": (
        "credential-unavailable",
        {"told": "no-token: secret x: unset"},
    ),
    "WARNING: external_acl_type #Hlpr1 exited": ("no-helper", {}),
    "squidkeeper: /p does not load, everything is denied:": ("no-policy", {}),
}


@pytest.mark.parametrize("kid", ["", " kid1"])
@pytest.mark.parametrize("text", LINES)
def test_a_line_of_cache_log_belongs_to_its_cause(text: str, kid: str) -> None:
    [line] = parse_lines([f"2026/11/26 16:34:27{kid}| {text}".encode()])
    assert (line.cause, line.parts) == LINES[text]
    assert line.at == datetime(2026, 11, 26, 16, 34, 27).astimezone(UTC)


@pytest.mark.parametrize(
    "line",
    [
        b"FATAL: without a time",
        b"2026/11/26 16:34:27 kid1| helper 'FATAL: in the middle'",
        b"2026/13/45 16:34:27 kid1| FATAL: at no time",
        b"\xff\xfe",
        b"2026/11/26 16:34:27 kid1| WARNING: external ACL key: FATAL: of a client",
    ],
)
def test_another_line_of_cache_log_counts_for_nothing(line: bytes) -> None:
    assert [*parse_lines([line])] == []


# --- the command ----------------------------------------------------------------------

POLICY = """
clients:
  vms: {networks: [192.168.137.0/24]}
rules:
  - {name: closed, action: deny, hosts: [closed.example], reason: "It is\\n closed."}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_policy(tmp_path / "policy", POLICY)
    file = tmp_path / "access.log"
    file.write_bytes(b"")
    (tmp_path / "cache.log").write_bytes(b"")
    return file


def add(log: Path, **fields: Any) -> None:
    with log.open("ab") as file:
        file.write(record_line(**fields) + b"\n")


def why(log: Path, *arguments: str) -> Result:
    folder = log.parent
    options = [
        "--policy",
        str(folder / "policy"),
        "--state",
        str(folder / "state"),
        "--run",
        str(folder / "run"),
    ]
    return CliRunner().invoke(main, ["why", *arguments, *options, str(log)])


def causes(log: Path, *arguments: str) -> list[str]:
    result = why(log, "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    return [cause["cause"] for cause in json.loads(result.output)["causes"]]


def test_with_transparent_ports_the_place_of_what_they_refused_is_named(
    log: Path,
) -> None:
    place = "`journalctl -u squidkeeper-transparent`"
    assert place not in why(log).output
    (log.parent / "state/transparent").mkdir(parents=True)
    assert place in why(log).output
    assert place not in why(log, "gw-1.1795714530.880.73.57132").output


def test_a_log_without_failures_says_so(log: Path) -> None:
    add(log)
    result = why(log)
    assert (result.exit_code, result.output) == (
        0,
        "No such failure.\n1 request read, 0 failed.\n",
    )


def test_a_failure_is_told_with_its_place_in_the_policy_and_the_rule_that_opens_it(
    log: Path,
) -> None:
    add(
        log,
        **DENIED,
        rule="closed",
        revision=NONE,
        url="https://closed.example/a?token=TOPSECRET",
        tunnel="closed.example:443%20first",
        request_id="1795608000.5.7.9",
    )
    result = why(log)
    place = f"{log.parent}/policy/policy.yaml:6"
    assert result.exit_code == 1
    assert result.output == (
        "policy: once, last 2026-11-25T12:00:00.000Z, by 192.168.137.2\n"
        f"  The rule closed ({place}) denies it: It is closed.\n"
        "  To do: If the request is meant to pass, add above closed: `- {name: allow-closed-example, action: allow, "
        'clients: ["vms"], hosts: [closed.example], methods: [GET], paths: [/a]}`.\n'
        "  2026-11-25T12:00:00.000Z  192.168.137.2  403  GET https://closed.example/a  (1795608000.5.7.9)\n"
        "\n1 request read, 1 failed.\n"
    )


CLOSED = "rules:\n  - {name: closed, action: deny, hosts: [a.example]}\n"


def facts_where(
    folder: Path, now: str, in_force: str | None = None
) -> tuple[CompiledPolicy, Mapping[str, str]]:
    """Explain a denial by a policy that was edited since; `in_force`: `then` is its
    revision.
    """
    then, current = (
        compiled_of(folder / "then", CLOSED),
        compiled_of(folder / "now", now),
    )
    case = record(**{**DENIED, "rule": "closed", "url": "http://a.example/x"})
    known = Surroundings(
        lambda _: then,
        lambda: current,
        lambda _: (),
        lambda *_: None,
        lambda _: None,
        CacheLog(),
    )
    if in_force is not None:
        known = replace(known, in_force=in_force and then.revision)
    cause = judge(case)
    assert cause
    return then, detail_of(Failure(case, cause), known).facts


@pytest.mark.parametrize(
    ("now", "at", "opens"),
    [
        (CLOSED, ")", "add above closed: `- {name: allow-a-example"),
        (
            f"# edited\n{CLOSED}",
            "; the policy was edited since)",
            "add above closed: `- {name: allow-a-example",
        ),
        (
            CLOSED.replace("deny", "allow"),
            "; the policy was edited since)",
            "do nothing: the policy was edited since",
        ),
    ],
)
def test_a_place_in_a_policy_that_was_edited_since_says_so(
    tmp_path: Path, now: str, at: str, opens: str
) -> None:
    then, facts = facts_where(tmp_path, now)
    assert facts["at"].endswith(at)
    assert (then.revision in facts["at"]) == ("edited" in at)
    assert facts["opens"].startswith(opens)


@pytest.mark.parametrize("in_force", ["the former", ""])
def test_an_edit_that_allows_a_request_and_is_not_in_force_is_not_called_the_cure(
    tmp_path: Path, in_force: str
) -> None:
    opens = facts_where(tmp_path, CLOSED.replace("deny", "allow"), in_force)[1]["opens"]
    assert ("squidkeeper check" in opens) == bool(in_force)
    assert ("do nothing" in opens) != bool(in_force)


def test_a_token_that_the_gateway_cannot_open_is_not_blamed() -> None:
    missing = f"{OPENS_NONE}, as the extra 'sealed' is not installed: run ./install.sh --extras sealed"
    refused = {
        **DENIED,
        "rule": "sealed-token-refused",
        "found": quote(f"{SEALED}{missing}"),
    }
    assert sentence(**refused) == f"The sealed token is refused: {missing}."
    assert (
        advice(**refused)
        == "Install it by that command. The token need not be another."
    )
    assert "make another token" in advice(
        **{**refused, "found": quote(f"{SEALED}it is for another host")}
    )


def test_the_advice_for_a_quota_names_who_may_reset_its_counts(log: Path) -> None:
    add(log, **RECORDS["quota"], found="quota:per-vm")
    asks = f"`squidkeeper quota --policy {log.parent}/policy --state {log.parent}/state"
    assert f"To do: {asks}` shows what is used" in why(log).output
    (log.parent / "quota-store.yaml").touch()
    assert f"To do: {asks}` shows what is used" in why(log).output
    assert "--reset NAME --holder HOLDER --store FILE`" in why(log).output


WITH_QUOTAS = """
clients:
  vms: {networks: [192.168.137.0/24], users: [alice, bob]}
rules:
  - {name: llm, action: allow, clients: [vms], hosts: [a.example], meter: tokens}
prices: [{model: "*", in: 1, out: 2}]
quotas:
  - {name: day, per: client, cost: 20, every: day}
  - {name: of rule, per: rule, requests: 5, every: hour}
"""


@pytest.mark.parametrize(
    ("fields", "told", "holder"),
    [
        (
            {"user": "alice"},
            "of alice: quota:day (20.00 of cost a day for each client).",
            "day --holder user:alice",
        ),
        (
            {"user": NONE},
            "of the client: quota:day (20.00 of cost",
            "day --holder 192.168.137.9",
        ),
        (
            {"found": "quota:of%20rule"},
            "(5 requests an hour for each rule)",
            "'of rule' --holder HOLDER",
        ),
        ({"found": "quota:gone"}, "quota:gone.", "NAME --holder HOLDER"),
        ({"user": "a'b"}, "of a'b", """day --holder 'user:a'"'"'b'"""),
    ],
)
def test_a_denial_by_a_quota_says_whose_count_it_is_its_limit_and_how_it_begins_again(
    log: Path, fields: dict[str, Any], told: str, holder: str
) -> None:
    write_policy(log.parent / "policy", WITH_QUOTAS)
    denied = {
        **RECORDS["quota"],
        "found": "quota:day",
        "revision": NONE,
        "client": "192.168.137.9",
    }
    add(log, **{**denied, **fields})
    output = why(log).output
    assert told in output
    assert re.search(f"--reset {re.escape(holder)}`", output)
    assert ("its reset at " in output) == ("gone" not in told)


def test_one_cause_of_a_quota_is_of_one_login(log: Path) -> None:
    for user in ("alice", "bob"):
        add(log, **{**RECORDS["quota"], "found": "quota:day", "user": user})
    assert causes(log) == ["quota", "quota"]


WITH_SECRET = """
rules:
  - {name: keyed, action: allow, hosts: [keyed.example]}
secrets:
  key: {file: secrets/key}
credentials:
  - {name: "my key", hosts: [keyed.example], bearer: key}
"""


def test_an_unavailable_credential_is_named_with_the_reason_of_then_or_of_now(
    log: Path,
) -> None:
    write_policy(log.parent / "policy", WITH_SECRET)
    denied = {
        **DENIED,
        "rule": "credential-unavailable",
        "revision": NONE,
        "url": "https://keyed.example/",
    }
    add(log, **denied, sni="keyed.example", tunnel="keyed.example:443")
    secret = log.parent / "policy/secrets/key"
    now = f"The credential my key is unavailable. Now: secret key: the file {secret} cannot be read: No such file or"
    assert now in why(log).output
    lines = [
        f"2026/11/25 {at}| squidkeeper: credential my key: secret key: {why}"
        for at, why in (("00:00:00", "of then"), ("00:00:01", "of another:"))
    ]
    (log.parent / "cache.log").write_text(
        "\n".join(
            [
                *lines,
                "2026/12/01 00:00:00| squidkeeper: credential my key: of later",
                "",
            ]
        )
    )
    assert (
        "The credential my key is unavailable: secret key: of another:."
        in why(log).output
    )
    (log.parent / "cache.log").write_text("")
    secret.parent.mkdir()
    secret.write_text("value-of-the-secret\n")
    secret.chmod(0o640)
    result = why(log, "--json")
    assert (
        "The credential my key was unavailable, and is available now." in result.output
    )
    assert "value-of-the-secret" not in result.output


ASKING = """
rules:
  - {name: paid, action: ask, hosts: [pay.example], reason: Ask Ann.}
"""


def test_what_waits_for_a_person_is_told_with_its_ticket_and_what_has_become_of_it(
    log: Path,
) -> None:
    write_policy(log.parent / "policy", ASKING)
    add(
        log,
        **RECORDS["asked"] | {"rule": "paid", "revision": NONE},
        url="http://pay.example/x?y=TOPSECRET",
    )
    told = f"The rule paid ({log.parent}/policy/policy.yaml:4) asks about pay.example: the request is denied until a"
    told += " person approves it: Ask Ann."
    assert (
        f"  {told}\n  To do: `sudo squidkeeper ask approve --policy {log.parent}/policy"
        in why(log).output
    )
    (log.parent / "state").mkdir()
    with closing(TicketStore(log.parent / "state")) as store:
        asked = AskedRequest(
            "192.168.137.2", "", "GET", "http://pay.example/x?y=TOPSECRET"
        )
        number = str(
            store.ask(
                asked, Holder("192.168.137.0/24", asked.client), "paid", time.time()
            )
        )
        [found] = json.loads(why(log, "--json").output)["causes"]
        assert found["sentence"] == f"{told} Its ticket {number} is pending now."
        approve = rf"`sudo squidkeeper ask approve --policy \S+ --state \S+ {number} --for 2h` opens this request"
        assert re.search(approve, found["remedy"])
        assert (found["details"]["ticket"], found["details"]["ticket_state"]) == (
            number,
            "pending",
        )
        store.decide(
            number, TicketState.DENIED, time.time(), 0.0, "Not\x1b[2J for builds."
        )
    output = why(log).output
    assert (
        f"{told} Its ticket {number} is denied now: Not%1B[2J for builds.\n" in output
    )
    assert "TOPSECRET" not in output


def test_a_failure_of_each_cause_is_read_from_a_log(log: Path) -> None:
    for number, fields in enumerate(RECORDS.values()):
        add(log, **fields, connection=str(number))
    assert {*causes(log, "-n", "100")} == {*RECORDS}


def test_options_choose_failures(log: Path) -> None:
    add(
        log,
        **{**DENIED, "rule": "closed", "revision": NONE},
        url="https://closed.example/",
        request_id="1795608000.1.2.3",
    )
    add(log, **RECORDS["origin-error"], client="198.51.100.1", user="vm-7")
    add(log, **RECORDS["login-refused"], client="198.51.100.9")
    every = ["policy", "origin-error", "login-refused"]
    assert sorted(causes(log)) == sorted(every)
    assert causes(log, "--client", "192.168.137.2") == ["policy"]
    assert causes(log, "--client", "192.168.137.0/24") == ["policy"]
    assert causes(log, "--client", "vms") == ["policy"]
    assert causes(log, "--host", "closed.example") == ["policy"]
    assert causes(log, "--url", "https://closed.example/") == ["policy"]
    assert causes(log, "--url", "https://closed.example") == ["policy"]
    assert causes(log, "--url", "https://closed.example/other") == []
    for option in ("--last", "--since"):
        assert causes(log, option, "2026-11-25T12:00:01Z") == []
        assert sorted(causes(log, option, "2026-11-25T11:59:59Z")) == sorted(every)
    assert sorted(causes(log, "--user", "vm-7")) == ["login-refused", "origin-error"]
    assert causes(log, "1795608000.1.2.3") == ["policy"]


def test_the_time_from_which_it_reads_is_shown_as_the_record_has_it(log: Path) -> None:
    assert why(log, "--since", "2026-11-25T11:59:59Z").output.endswith(
        "0 requests read, 0 failed since 2026-11-25T11:59:59.000Z.\n"
    )


def test_an_id_that_no_request_has_is_named_with_what_was_read_and_how_an_id_looks(
    log: Path,
) -> None:
    add(log, **RECORDS["origin-error"], request_id="1795608000.1.2.3")
    result = why(log, "1795608000.1.2.4", "1795608000.1.2.3")
    assert result.exit_code == 2
    told = f"No request has the ID 1795608000.1.2.4 in {log}: an ID looks like gw-1.1795714530.880.73.57132"
    assert told in result.output
    assert "since 2026-11-26T00:00:00.000Z" not in result.output
    assert "No such failure." not in result.output
    assert result.output.startswith("origin-error: once")
    assert json.loads(why(log, "--json", "1795608000.1.2.4").output)["unknown_ids"] == [
        "1795608000.1.2.4"
    ]


@pytest.mark.parametrize(
    "request_id",
    ["1795608000.1.2.-", "gw-1.1795608000.1.-.3", "a_b.c-2.9.1795608000.1.2.3"],
)
def test_an_id_of_which_squid_does_not_have_a_part_is_one(
    log: Path, request_id: str
) -> None:
    add(log, **RECORDS["origin-error"], request_id=request_id)
    assert causes(log, request_id) == ["origin-error"]


@pytest.mark.parametrize(
    "given", ["foo", "1795608000", "1795608000.1.2", "1795608000.1.2.3x"]
)
def test_what_is_neither_an_id_nor_a_file_is_refused(log: Path, given: str) -> None:
    result = why(log, given)
    assert result.exit_code == 2
    assert (
        f"{given}: no such file, and no request ID, which looks like gw-1.1795714530.880.73.57132"
        in result.output
    )


@pytest.mark.parametrize("url", ["closed.example", "/a/b", "closed.example/a"])
def test_what_is_no_url_is_refused(log: Path, url: str) -> None:
    result = why(log, "--url", url)
    assert result.exit_code == 2
    assert (
        "expected a URL with its scheme, such as https://example.com/, or HOST:PORT of a CONNECT"
        in result.output
    )


def test_a_client_that_the_policy_does_not_have_is_named(log: Path) -> None:
    add(log)
    assert (
        f"--client nobody: not an address, network, client or user of the policy in {log.parent}/policy."
        in (why(log, "--client", "nobody").output)
    )


def test_a_refused_login_is_likely_only_where_a_user_is_asked_about(log: Path) -> None:
    add(log, **RECORDS["login-refused"])
    for given, likely in (((), False), (("--user", "x"), True)):
        assert (
            json.loads(why(log, "--json", *given).output)["causes"][0]["likely"]
            is likely
        )


def test_a_url_finds_the_connect_that_no_request_followed(log: Path) -> None:
    add(log, **RECORDS["ca-not-trusted"])
    assert causes(log, "--url", "https://a.example/any") == ["ca-not-trusted"]
    assert causes(log, "--url", "https://a.example:8443/any") == []


def test_an_id_of_a_request_that_did_not_fail_is_answered(log: Path) -> None:
    add(log, request_id="1795608000.5.7.9")
    result = why(log, "1795608000.5.7.9")
    assert result.exit_code == 0
    assert (
        "1795608000.5.7.9 did not fail: GET, status 200, allow by open."
        in result.output
    )


def test_the_id_of_a_record_that_counts_with_another_finds_that_one(log: Path) -> None:
    denied = {**DENIED, "rule": "default"}
    connect = {
        "method": "CONNECT",
        "url": "closed.example:443",
        "tunnel": "closed.example:443%20first",
        "status": 200,
    }
    tunnel = {"time": "2026-11-25T11:59:59.998Z", "request_id": "1795607999.998.6.9"}
    inside = {
        "time": "2026-11-25T12:00:00.001Z",
        "request_id": "1795608000.000.7.9",
        "url": "https://closed.example/",
    }
    add(log, **{**denied, **connect, "error": NONE}, **tunnel)
    add(log, **denied, **inside)
    assert (
        causes(log, "1795607999.998.6.9")
        == causes(log, "1795608000.000.7.9")
        == ["no-rule"]
    )
    log.write_bytes(b"")  # as a former release wrote them
    add(log, **{**denied, **connect}, **tunnel)
    add(log, **{**denied, **NOT_JUDGED}, **inside)
    assert (
        causes(log, "1795607999.998.6.9")
        == causes(log, "1795608000.000.7.9")
        == ["no-rule"]
    )


def test_cache_log_makes_a_distrusted_ca_certain(log: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    add(
        log,
        **{
            **RECORDS["ca-not-trusted"],
            "connection": "120",
            "client": "192.0.2.1",
            "time": now.isoformat(),
        },
    )
    assert why(log).output.startswith("ca-not-trusted (likely): once")
    stamp = now.astimezone().strftime("%Y/%m/%d %H:%M:%S")
    (log.parent / "cache.log").write_text(
        f"{stamp} kid1| {REFUSED.format(client='192.0.2.1')}\n"
    )
    result = why(log)
    assert result.output.startswith("ca-not-trusted: once")
    assert "it ended TLS with the alert `unknown CA`." in result.output
    log.write_bytes(b"")
    add(
        log,
        **{
            **RECORDS["ca-not-trusted"],
            "connection": "120",
            "client": "192.0.2.1",
            "time": now.isoformat(),
        },
        client_port="1",
    )
    # of another worker
    assert why(log).output.startswith("ca-not-trusted (likely): once")


def test_what_has_no_record_is_read_from_cache_log(log: Path) -> None:
    (log.parent / "cache.log").write_text(
        "2026/11/26 16:34:27 kid1| FATAL: Unable to open HTTP Socket\x1b[2J\n"
    )
    result = why(log)
    assert result.exit_code == 1
    assert "squid-ended: once, last 2026-11-26T" in result.output
    assert "Squid ended: Unable to open HTTP Socket%1B[2J." in result.output


def test_the_command_that_lists_the_readings_of_a_path_names_its_request(
    log: Path,
) -> None:
    add(log, **DENIED, rule="ambiguous-path", request_id="gw-1.1795608000.1.2.3")
    assert (
        " -n 1 --request-id gw-1.1795608000.1.2.3 --json`. Allow every reading"
        in why(log).output
    )


@pytest.mark.parametrize("loads", [False, True])
def test_a_policy_that_did_not_load_is_told_with_its_first_fault_and_whether_it_loads_now(
    log: Path, loads: bool
) -> None:
    at = datetime(2026, 11, 25, 12, tzinfo=UTC).astimezone()
    told = (
        f"{at:%Y/%m/%d %H:%M:%S}| squidkeeper: /p does not load, everything is denied:"
    )
    (log.parent / "cache.log").write_text(
        f"{told}\n{told}\n/p/a.yaml:1:1: no rules\n/p/a.yaml:2:1: another\n"
    )
    if not loads:
        write_policy(log.parent / "policy", "rulez: []\n")
    add(log, **RECORDS["no-policy"])
    text = why(log).output
    assert "everything is denied: /p/a.yaml:1:1: no rules\n" in text
    assert ("the policy on disk loads by now" in text, "fix what it lists" in text) == (
        loads,
        not loads,
    )


def test_a_cache_log_that_cannot_be_read_is_named(log: Path) -> None:
    (log.parent / "cache.log").unlink()
    add(log)
    result = why(log)
    assert (
        f"cache.log was not read: {log.parent}/cache.log: no such file or directory"
        in result.output
    )


def test_an_access_log_that_cannot_be_read_ends_with_status_2(log: Path) -> None:
    log.unlink()
    result = why(log)
    assert (result.exit_code, "no such file" in result.output) == (2, True)


def test_invalid_lines_are_counted(log: Path) -> None:
    log.write_bytes(b"nothing\n")
    assert f"1 invalid line skipped; the first: {log}:1: " in why(log).output


def test_the_newest_causes_are_shown_and_the_rest_counted(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[str] = []
    monkeypatch.setattr(
        "squidkeeper.record.why.details.propose",
        lambda request, *_: explained.append(request.url),
    )
    for number in range(12):
        add(
            log,
            **{**DENIED, "rule": "closed", "revision": NONE},
            url=f"http://h{number}.example/",
            time=after_noon(number),
        )
    result = why(log, "-n", "2")
    assert result.output.index("h11.example") < result.output.index("h10.example")
    assert "h9.example" not in result.output
    assert (
        "10 older causes not shown: `-n` shows more. In all: policy 12.\n"
        in result.output
    )
    assert len(explained) == 2, "only what is shown is explained"


def test_of_very_many_the_newest_failures_are_read(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.cli.why_table.NEWEST", 2)
    for number in (3, 1, 2):
        add(
            log,
            **{
                **RECORDS["origin-error"],
                "url": f"https://h{number}.example/",
                "time": after_noon(number),
            },
        )
    result = why(log)
    assert [host for host in ("h1", "h2", "h3") if host in result.output] == [
        "h2",
        "h3",
    ]
    left = "1 older request that may have failed not read: choose a shorter time.\n"
    assert left in result.output
    assert "3 requests read, 2 failed." in result.output


def test_without_a_policy_the_rule_is_named_all_the_same(log: Path) -> None:
    (log.parent / "policy/policy.yaml").unlink()
    add(log, **DENIED, rule="closed")
    assert "The rule closed denies it." in why(log).output


def test_an_unknown_client_is_made_known_and_no_host_is_opened_to_everybody(
    log: Path,
) -> None:
    write_policy(
        log.parent / "policy",
        "clients:\n  vms: {networks: [10.0.0.0/8]}\n"
        "rules: [{name: closed, action: deny, hosts: [closed.example]}]\n",
    )
    for rule, host in (("default", "new.example"), ("closed", "closed.example")):
        of_rule = {**DENIED, "rule": rule, "revision": NONE, "tunnel": NONE}
        add(log, **of_rule, url=f"http://{host}/")
    for found in json.loads(why(log, "--json").output)["causes"]:
        assert "make the client known: 192.168.137.2 is no client" in found["remedy"]
        assert "squidkeeper client add" in found["remedy"]
        assert "action: allow" not in found["remedy"]
        assert found["details"]["opens"] is None


def test_crashes_of_which_squid_said_the_same_are_one_cause() -> None:
    known = [
        SquidCrash(at=at, told=told, in_flight=1, origins=(f"o{at}.example",))
        for at, told in ((10, "assertion a"), (30, "assertion a"), (20, "signal 11"))
    ]
    found = list(crashes(known, ""))
    assert [(one.count, one.first[17:23], one.last[17:23]) for one in found] == [
        (2, "10.000", "30.000"),
        (1, "20.000", "20.000"),
    ]
    assert "Newest origins: o30.example, o10.example." in found[0].sentence


# --- the document ---------------------------------------------------------------------


def test_the_document_has_the_table_of_causes() -> None:
    page = DOCUMENT.read_text()
    assert "<!-- rendered: causes -->" in page
    assert page == render(page), (
        "python -m tests.documents.code_tables squid/TROUBLESHOOTING.md"
    )
