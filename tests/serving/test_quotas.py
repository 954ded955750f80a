"""Quotas: which requests they count, and that no number of processes takes more than a
limit.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import CountsUnavailable, PatternError
from squidkeeper.base.faults import FaultCode, Location
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.base.squid_account import Account, call_as, call_as_owner
from squidkeeper.change.approvals.decisions import who_decides
from squidkeeper.cli import main
from squidkeeper.policy.engine import Stage, decide
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.engine.quotas import counting, ticket_quotas
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.quotas import (
    SMALL_ANSWER,
    Counted,
    Quota,
    QuotaUnit,
    Window,
    parse_size,
)
from squidkeeper.policy.protocol.lines import Reply, Result
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import parse_address
from squidkeeper.serving.helpers.acl import HostScope, answer_host
from squidkeeper.serving.helpers.meter import QuotaScope, answer
from squidkeeper.serving.quotas.counts import (
    LEASE_AT_MOST,
    SHARE,
    QuotaCount,
    Taken,
    at_most,
    exactly,
    holder,
    share,
)
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Announced, Meter
from squidkeeper.serving.quotas.opening import SharedCounts
from squidkeeper.serving.quotas.store_settings import OnUnavailable, QuotaStoreSettings

from ..conftest import NOW, compiled_of
from .quota_workers import Clock, check_that_no_limit_is_passed, start_worker

PLACE = Location("policy.yaml", 1, 1)
REQUESTS = Quota("q", PLACE, QuotaUnit.REQUESTS, 100, Window.DAY, Counted.CLIENT)
COUNT = QuotaCount.of(REQUESTS, "192.0.2.1")
POLICY = """
clients:
  agents: {networks: [192.0.2.0/24]}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
  - {name: llm, action: allow, hosts: [llm.example], paths: [/v1/**]}
  - {name: fetched, action: allow, hosts: [fetched.example]}
  - {name: rest, action: allow, hosts: [llm.example, open.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
quotas:
  - {name: per-vm, per: client, clients: [agents], requests: 5, every: minute}
  - {name: tunnels, per: client, clients: [agents], tunnels: 3, every: hour}
  - {name: uploads, per: client, rules: [llm], bytes_out: 1GB, every: day}
  - {name: downloads, per: client, rules: [fetched], bytes_in: 1GB, every: day}
  - {name: pinned-bytes, per: rule, rules: [pinned], bytes_in: 1GB, every: day}
  - {name: questions, per: client, rules: [asked], tickets: 2, every: day}
"""


def line(
    host: str,
    rule: str,
    *,
    client: str = "192.0.2.7",
    user: str = "-",
    length: str = "-",
    encoding: str = "-",
    number: int = 1,
    about: str = "- -",
) -> bytes:
    told = f"{rule} {length} {encoding} 1.001 {number} 5 {about}"
    return f"{client} {user} GET http {host} 80 - - - {told}".encode()


def connect(host: str, rule: str) -> bytes:
    """What Squid says about a CONNECT whose tunnel has got its name."""
    return f"192.0.2.7 - CONNECT - {host} 443 - {host}%3A443 - {rule} - - 1.001 1 5 - -".encode()


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every file of counts that a test has opened."""
    made: list[LocalCounts] = []
    make = LocalCounts.__init__

    def noted(self: LocalCounts, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(self)

    monkeypatch.setattr(LocalCounts, "__init__", noted)
    yield
    for counts in made:
        counts.close()


@pytest.fixture
def scope(tmp_path: Path) -> QuotaScope:
    return QuotaScope(
        compiled_of(tmp_path / "policy", POLICY), Meter(LocalCounts(tmp_path))
    )


# --- which requests are under a quota -------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "client", "is_counted"),
    [
        ("GET http://open.example/", "192.0.2.7", True),
        (
            "GET http://open.example/",
            "198.51.100.7",
            False,
        ),  # no client that a quota is for
        (
            "GET https://llm.example/v1/x",
            "198.51.100.7",
            True,
        ),  # by the rule, which its URL may match
        ("CONNECT open.example:443", "192.0.2.7", True),
        (
            "CONNECT llm.example:443",
            "198.51.100.7",
            False,
        ),  # its requests are seen, and counted themselves
        (
            "CONNECT pinned.example:443",
            "198.51.100.7",
            True,
        ),  # its bytes are those of the tunnel
        ("GET http://closed.example/", "192.0.2.7", False),
        ("GET http://asked.example/", "198.51.100.7", False),
    ],
)
def test_only_requests_that_a_quota_may_count_are_asked_about(
    tmp_path: Path, asked: str, client: str, *, is_counted: bool
) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY)
    method, _, target = asked.partition(" ")
    decision = decide(
        policy, policy.match(request_to(method, target, client)), NOW, Stage.HOST
    )
    assert decision.outlook.under_quota is is_counted
    assert not (decision.final and is_counted)


def test_a_policy_without_quotas_puts_nothing_under_one(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY.partition("quotas:")[0])
    match = policy.match(request_to("GET", "http://open.example/", "192.0.2.7"))
    decision = decide(policy, match, NOW, Stage.HOST)
    assert (match.candidates.quotas, decision.outlook.under_quota, decision.final) == (
        (),
        False,
        True,
    )


def test_a_request_counts_by_the_rule_that_allowed_it(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY)
    match = policy.match(request_to("POST", "https://llm.example/v1/x", "192.0.2.7"))
    by_rule = {
        rule: [
            quota.name
            for quota in counting(
                match.candidates.quotas, rule, is_tunnel=False, passthrough=False
            )
        ]
        for rule in ("llm", "rest")
    }
    assert by_rule == {"llm": ["per-vm", "uploads"], "rest": ["per-vm"]}
    assert [quota.name for quota in ticket_quotas(policy.source, (), "asked")] == [
        "questions"
    ]
    assert ticket_quotas(policy.source, (), "default") == ()


@pytest.mark.parametrize(
    ("per", "address", "user", "named"),
    [
        (Counted.CLIENT, "192.0.2.7", None, "192.0.2.7"),
        (Counted.CLIENT, "2001:db8:1:2:3::4", None, "2001:db8:1:2::/64"),
        (Counted.CLIENT, "192.0.2.7", "ci-bot", "user:ci-bot"),
        (Counted.RULE, "192.0.2.7", "ci-bot", "rule:llm"),
        (Counted.ALL, "192.0.2.7", None, "all"),
    ],
)
def test_a_count_belongs_to_a_login_an_address_a_network_or_a_rule(
    per: Counted, address: str, user: str | None, named: str
) -> None:
    assert (
        holder(
            Quota("q", PLACE, QuotaUnit.REQUESTS, 1, Window.DAY, per),
            address,
            user,
            "llm",
        )
        == named
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1GB", 10**9), ("500KB", 500_000), ("1000TB", 10**15)),
        *(
            (text, None)
            for text in ("1GiB", "0MB", "1.5GB", "1 GB", "1001TB", "12", "MB", "1gb")
        ),
    ],
)
def test_a_size_is_read_in_powers_of_a_thousand(text: str, size: int | None) -> None:
    with nullcontext() if size else pytest.raises(PatternError):
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("quota", "warned"),
    [
        ("rules: [closed], requests: 5", True),
        ("rules: [closed], bytes_out: 5MB", True),
        ("rules: [pinned], requests: 5", True),
        ("rules: [pinned], tunnels: 5", False),
        ("rules: [rest], tickets: 5", True),
        ("rules: [asked, rest], tickets: 5", False),
        ("rules: [default], requests: 5", False),
        ("requests: 5", False),
    ],
)
def test_a_quota_that_never_counts_anything_is_warned_about(
    tmp_path: Path, quota: str, *, warned: bool
) -> None:
    rules = POLICY.partition("quotas:")[0]
    text = f"{rules}quotas:\n  - {{name: q, per: client, every: day, {quota}}}\n"
    found = {
        fault.code for fault in lint(compiled_of(tmp_path / "policy", text).source, NOW)
    }
    assert (FaultCode.QUOTA_NEVER in found) is warned


@pytest.mark.parametrize(
    ("asked", "client", "named"),
    [
        ("GET http://open.example/", "192.0.2.7", ["per-vm"]),
        ("GET https://llm.example/v1/x", "198.51.100.7", ["uploads"]),
        ("GET https://llm.example/other", "198.51.100.7", []),
        ("CONNECT pinned.example:443", "192.0.2.7", ["tunnels", "pinned-bytes"]),
        ("CONNECT open.example:443", "192.0.2.7", ["tunnels"]),
        ("GET http://asked.example/", "192.0.2.7", ["questions"]),
        ("GET http://closed.example/", "192.0.2.7", []),
    ],
)
def test_explain_names_the_quotas_that_count_a_request(
    tmp_path: Path, asked: str, client: str, named: list[str]
) -> None:
    method, _, target = asked.partition(" ")
    found = explain(
        compiled_of(tmp_path / "policy", POLICY),
        request_to(method, target, client),
        NOW,
    )
    assert [quota.name for quota in found.quotas] == named


# --- what the helper answers ----------------------------------------------------------


def result(reply: Reply) -> tuple[Result, str]:
    found = dict(reply.annotations)
    return reply.result, found.get("found_", found["rule_"])


@pytest.mark.system
def test_each_line_counts_once_and_what_is_used_up_is_denied_with_its_reason(
    scope: QuotaScope,
) -> None:
    replies = [answer(scope, line("open.example", "rest")) for _ in range(7)]
    assert [result(reply) for reply in replies] == [(Result.OK, "rest")] * 5 + [
        (Result.ERR, "quota:per-vm")
    ] * 2
    denied = dict(replies[-1].annotations)
    assert (denied["rule_"], denied["verdict_"]) == ("quota", "deny")
    assert (
        replies[-1].message
        == "The quota per-vm (5 requests a minute for each client) is used up."
    )
    assert 0 < int(denied["resets_in_"]) <= 60
    assert ("squidkeeper_quota_denials_total", "quota", "per-vm") in replies[-1].counts
    assert result(answer(scope, line("open.example", "rest", client="192.0.2.8"))) == (
        Result.OK,
        "rest",
    )
    assert result(answer(scope, line("open.example", "rest", user="ci"))) == (
        Result.OK,
        "rest",
    )


def test_a_tunnel_counts_when_it_opens_and_not_when_it_is_spliced(
    scope: QuotaScope,
) -> None:
    spliced = b"192.0.2.7 - CONNECT - pinned.example 443 pinned.example pinned.example%3A443 - -"
    assert (
        dict(answer_host(HostScope(scope.policy), spliced).annotations)["quota_"]
        == "no"
    )
    for _ in range(3):
        assert answer(scope, connect("pinned.example", "pinned")).result is Result.OK
    denied = answer(scope, connect("open.example", "rest"))
    assert result(denied) == (Result.ERR, "quota:tunnels")
    tag = dict(denied.annotations)["clt_conn_tag"]
    line_in = b"192.0.2.7 - GET https open.example 443 open.example %b -"
    inside = (
        line_in % quote(authority).encode() for authority in (tag, "open.example:443")
    )
    answers = [result(answer_host(HostScope(scope.policy), asked)) for asked in inside]
    # nothing inside passes
    assert answers == [
        (Result.ERR, "authority-mismatch"),
        (Result.OK, "rest"),
    ]


def test_no_unit_of_one_quota_is_used_where_another_refuses(tmp_path: Path) -> None:
    quotas = """quotas:
  - {name: wide, per: all, requests: 3, every: day}
  - {name: narrow, per: client, requests: 1, every: day}
"""
    policy = compiled_of(tmp_path / "policy", POLICY.partition("quotas:")[0] + quotas)
    scope = QuotaScope(policy, Meter(LocalCounts(tmp_path)))
    first = [answer(scope, line("open.example", "rest")).result for _ in range(4)]
    second = [
        answer(scope, line("open.example", "rest", client="192.0.2.8")).result
        for _ in range(2)
    ]
    third = [
        answer(scope, line("open.example", "rest", client="192.0.2.9")).result
        for _ in range(2)
    ]
    assert [replies.count(Result.OK) for replies in (first, second, third)] == [1, 1, 1]
    assert result(answer(scope, line("open.example", "rest", client="192.0.2.10"))) == (
        Result.ERR,
        "quota:wide",
    )


def test_a_request_without_a_policy_is_denied() -> None:
    assert result(answer(None, line("open.example", "rest"))) == (
        Result.ERR,
        "unavailable:no-policy",
    )


class Broken:
    """A store that is away."""

    def take(self, *_: Any) -> Taken:
        raise CountsUnavailable("no store")

    add: Any = take
    hold: Any = take
    release: Any = take
    uses: Any = take
    forget: Any = take


def test_what_cannot_be_counted_is_denied_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scope = QuotaScope(compiled_of(tmp_path / "policy", POLICY), Meter(Broken()))
    for _ in range(2):
        reply = answer(scope, line("open.example", "rest"))
        assert result(reply) == (Result.ERR, "quota-unavailable:per-vm")
        assert (
            reply.message
            == "The quota per-vm (5 requests a minute for each client) cannot be counted at the moment."
        )
    assert [record.message for record in caplog.records] == [
        "quotas cannot be counted, so requests under quota are denied: no store"
    ]


def test_counts_whose_file_cannot_be_opened_refuse(tmp_path: Path) -> None:
    (tmp_path / "quotas").write_text("no folder")
    refused = Meter(LocalCounts(tmp_path)).take([(REQUESTS, "all")])
    assert refused is not None
    assert "File exists" in refused.unavailable


@pytest.mark.parametrize(
    ("length", "passes"),
    [("999999999", True), ("1000000001", False), ("x", True), ("-", True)],
)
def test_a_request_that_would_send_more_than_is_left_is_denied(
    scope: QuotaScope, length: str, *, passes: bool
) -> None:
    reply = answer(
        scope, line("llm.example", "llm", client="198.51.100.7", length=length)
    )
    assert (reply.result is Result.OK) is passes
    if not passes:
        assert reply.message == (
            "The quota uploads (1.0 GB out a day for each client) has less left than this request would send."
        )


def passes(
    scope: QuotaScope, number: int, *, length: str = "-", encoding: str = "-"
) -> bool:
    asked = line(
        "llm.example",
        "llm",
        client="198.51.100.7",
        length=length,
        encoding=encoding,
        number=number,
    )
    return answer(scope, asked).result is Result.OK


def test_announced_bytes_are_taken_at_the_beginning_and_settled_at_the_end(
    scope: QuotaScope, tmp_path: Path
) -> None:
    counts = LocalCounts(tmp_path)
    assert passes(scope, 1, length="600000000")
    assert not passes(scope, 2, length="600000000")
    assert passes(scope, 3, length="400000000")
    assert passes(scope, 4)  # without a body it needs nothing of what is held
    assert [use.used for use in counts.uses()] == [1_000_000_000]
    counts.release(["1.001.1.5"])
    assert not passes(scope, 5, length="600000001")
    assert passes(scope, 5, length="600000000")


def fetches(scope: QuotaScope, number: int, length: str = "") -> tuple[Result, str]:
    """Ask about a request, or about its answer; return what its answer may have."""
    about = f"{length} answer" if length else "- -"
    asked = line(
        "fetched.example",
        "fetched",
        client="198.51.100.7",
        number=number,
        about=about,
    )
    reply = answer(scope, asked)
    return reply.result, dict(reply.annotations).get("answer_", "")


def test_an_answer_holds_its_length_until_it_has_ended(
    scope: QuotaScope, tmp_path: Path
) -> None:
    first = line("fetched.example", "fetched", client="198.51.100.7")
    assert dict(answer(scope, first).annotations)["answers_"] == "yes"
    assert fetches(scope, 1, "990000000") == (Result.OK, "whole")
    assert fetches(scope, 1, "990000000") == (Result.OK, "whole"), "asked again"
    assert fetches(scope, 2)[0] is Result.OK
    assert fetches(scope, 2, "990000000") == (Result.ERR, "refused")
    assert fetches(scope, 2, "5000000") == (Result.OK, "whole")
    LocalCounts(tmp_path).release(["1.001.1.5"])
    assert fetches(scope, 3, "990000000") == (Result.OK, "whole")
    assert fetches(scope, 4, "5000001") == (Result.ERR, "refused")


def test_an_answer_of_unknown_length_has_a_share_that_leaves_others_some(
    scope: QuotaScope,
) -> None:
    shares = []
    for number in range(60):
        fetches(scope, number)
        shares.append(fetches(scope, number, "-"))
    assert [int(share) for _, share in shares[:5]] == [
        *(2**28, 2**28, 2**27, 2**27, 2**23)
    ]
    sizes = [
        int(share or SMALL_ANSWER) for result, share in shares if result is Result.OK
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= 10**9
    assert len(sizes) == 60
    assert all(size & (size - 1) == 0 for size in sizes if size > SMALL_ANSWER)


def test_requests_under_way_hold_a_small_answer_each(scope: QuotaScope) -> None:
    fetches(scope, 1)
    assert fetches(scope, 1, str(10**9 - 2 * SMALL_ANSWER)) == (Result.OK, "whole")
    assert [fetches(scope, number)[0] for number in (2, 3, 4)] == [
        Result.OK,
        Result.OK,
        Result.ERR,
    ]


@pytest.mark.parametrize("length", ["-", "0000000000000000001", "1,1", "1%2C%201"])
def test_a_request_with_chunks_or_no_plain_length_takes_all_that_is_left_until_it_ends(
    scope: QuotaScope, tmp_path: Path, length: str
) -> None:
    assert passes(scope, 1, length=length, encoding="chunked" if length == "-" else "-")
    assert not passes(scope, 2, encoding="chunked")
    assert not passes(scope, 3, length="1")
    LocalCounts(tmp_path).release(["1.001.1.5"])
    assert passes(scope, 3, length="1")


def test_what_is_held_ends_with_its_window_and_with_a_reset(tmp_path: Path) -> None:
    clock = Clock()
    counts = LocalCounts(tmp_path, clock)
    count = QuotaCount("q", QuotaUnit.BYTES_OUT, Window.HOUR, "all")
    assert counts.hold("1", count, 100, exactly(100)).given == 100
    assert counts.hold("2", count, 100, exactly(1)).given == 0
    clock.now += 3600
    assert counts.hold("2", count, 100, at_most(10**9)).given == 100
    counts.forget("q")
    assert counts.hold("3", count, 100, exactly(100)).given == 100


def test_nothing_is_held_for_a_request_that_another_quota_refuses(
    tmp_path: Path,
) -> None:
    counts = LocalCounts(tmp_path)
    small, large = (
        Quota(f"q{n}", PLACE, QuotaUnit.BYTES_OUT, n, Window.DAY, Counted.ALL)
        for n in (10, 100)
    )
    assert (
        Meter(counts).take(
            [(large, "all"), (small, "all")],
            Announced("1", QuotaUnit.BYTES_OUT, exactly(50)),
        )
        is not None
    )
    assert counts.uses() == []


# --- the counts -----------------------------------------------------------------------


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, LEASE_AT_MOST))
def test_a_share_is_never_more_than_is_left_and_shrinks_to_one(
    limit: int, used: int, asked: int
) -> None:
    given_units = share(limit, used, asked)
    left = max(0, limit - used)
    assert given_units <= min(left, asked)
    assert given_units >= (left > 0)
    if left < 2 * SHARE:
        assert given_units <= 1


def test_a_count_begins_again_with_its_window_by_the_clock_in_utc(
    tmp_path: Path,
) -> None:
    clock = Clock(datetime(2026, 11, 26, 23, 59, 50, tzinfo=UTC).timestamp())
    counts = LocalCounts(tmp_path, clock)
    assert counts.take(COUNT, 2, 9) == Taken(1, 1, 1, 10)
    assert counts.take(COUNT, 2, 1).given == 1
    assert counts.take(COUNT, 2, 1) == Taken(0, 2, 0, 10)
    clock.now += 11
    assert counts.take(COUNT, 2, 1) == Taken(1, 1, 1, 86_399)


@pytest.mark.parametrize(
    ("window", "began", "end"),
    [
        (
            Window.WEEK,
            datetime(2026, 11, 23, tzinfo=UTC),
            datetime(2026, 11, 30, tzinfo=UTC),
        ),
        (
            Window.MONTH,
            datetime(2026, 11, 1, tzinfo=UTC),
            datetime(2026, 12, 1, tzinfo=UTC),
        ),
    ],
)
def test_a_budget_begins_again_on_monday_or_on_the_first(
    tmp_path: Path, window: Window, began: datetime, end: datetime
) -> None:
    clock = Clock(began.timestamp())
    counts, count = (
        LocalCounts(tmp_path, clock),
        QuotaCount("q", QuotaUnit.TOKENS, window, "all"),
    )
    counts.add(count, 7)
    assert counts.hold("request", count, 10, exactly(3)) == Taken(
        3, 7, 3, end.timestamp() - clock.now
    )
    clock.now = end.timestamp() - 1
    assert counts.take(count, 10, 0) == Taken(0, 7, 3, 1)
    assert counts.hold("other", count, 10, exactly(1)).given == 0, (
        "three are still held"
    )
    clock.now += 1
    assert counts.take(count, 10, 0).used == 0
    assert counts.hold("other", count, 10, exactly(10)).given == 10
    counts.add(count, 1)
    clock.now -= 7_200  # set back: the window that has begun goes on
    assert counts.take(count, 10, 0).used == 1


def test_a_count_goes_no_higher_than_lua_can_count(tmp_path: Path) -> None:
    counts = LocalCounts(tmp_path)
    for _ in range(2):
        counts.add(COUNT, 10**30)
    assert counts.take(COUNT, 10, 0).used == 2**53


def test_a_clock_that_is_set_back_gives_nothing_again(tmp_path: Path) -> None:
    clock = Clock(datetime(2026, 11, 26, 0, 0, 5, tzinfo=UTC).timestamp())
    counts = LocalCounts(tmp_path, clock)
    assert [counts.take(COUNT, 2, 1).given for _ in range(3)] == [1, 1, 0]
    clock.now -= 3600
    assert counts.take(COUNT, 2, 1) == Taken(0, 2, 0, 86_400 + 3595)
    clock.now -= 30 * 86_400  # the clock was wrong before
    assert counts.take(COUNT, 2, 1).given == 1


def test_counts_survive_a_restart_and_old_ones_are_removed(tmp_path: Path) -> None:
    clock = Clock()
    LocalCounts(tmp_path, clock).take(COUNT, 100, 1)
    assert [use.used for use in LocalCounts(tmp_path, clock).uses()] == [1]
    clock.now += 3 * 86_400
    counts = LocalCounts(tmp_path, clock)
    assert counts.uses() == []
    other = QuotaCount("other", QuotaUnit.BYTES_IN, Window.HOUR, "all")
    counts.add(other, 10**15)
    assert [(use.count, use.used) for use in counts.uses()] == [(other, 10**15)]
    with closing(sqlite3.connect(tmp_path / "quotas/counts.db")) as database:
        assert database.execute("SELECT quota FROM counts").fetchall() == [("other",)]


def test_a_quota_is_forgotten_alone(tmp_path: Path) -> None:
    counts = LocalCounts(tmp_path)
    assert counts.forget("q") == 0
    counts.add(COUNT, 5)
    counts.add(QuotaCount("other", QuotaUnit.REQUESTS, Window.DAY, "all"), 7)
    assert counts.forget("q") == 1
    assert [use.used for use in counts.uses()] == [7]


def test_one_holder_of_a_quota_is_forgotten_with_what_is_held_and_no_other(
    tmp_path: Path,
) -> None:
    counts = LocalCounts(tmp_path)
    alice, bob = (
        QuotaCount("q", QuotaUnit.COST, Window.DAY, f"user:{name}")
        for name in ("alice", "bob")
    )
    for number, count in enumerate((alice, bob)):
        counts.add(count, 5)
        counts.hold(f"r{number}", count, 100, exactly(10))
    assert counts.forget("q", "user:al*") == 0
    assert counts.forget("q", "user:alice") == 1
    assert [(use.count, use.used) for use in counts.uses()] == [(bob, 15)]


def test_another_limit_goes_on_from_what_was_used(tmp_path: Path) -> None:
    counts = LocalCounts(tmp_path)
    counts.add(COUNT, 5)
    assert counts.take(COUNT, 5, 1).given == 0
    assert counts.take(COUNT, 6, 1).given == 1
    assert counts.take(COUNT, 3, 1).given == 0


@pytest.mark.system
@settings(deadline=None)
@given(
    st.integers(1, 200),
    st.lists(
        st.tuples(st.sampled_from(["take", "die", "tick"]), st.integers(0, 3)),
        max_size=400,
    ),
)
def test_no_number_of_processes_that_end_at_any_time_passes_a_limit(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[str, int]]
) -> None:
    quota = Quota("q", PLACE, QuotaUnit.REQUESTS, limit, Window.MINUTE, Counted.CLIENT)
    clock = Clock()
    counts = LocalCounts(tmp_path_factory.mktemp("counts"), clock)
    meters = [Meter(counts, clock) for _ in range(4)]
    passed: dict[int, int] = {}
    for step, which in steps:
        if step == "die":
            meters[which] = Meter(counts, clock)
        elif step == "tick":
            clock.now += 7
        elif meters[which].take([(quota, "all")]) is None:
            window = int(clock.now // 60)
            passed[window] = passed.get(window, 0) + 1
    assert max(passed.values(), default=0) <= limit


@pytest.mark.system
def test_processes_that_are_killed_at_random_never_take_more_than_the_limit(
    tmp_path: Path,
) -> None:
    check_that_no_limit_is_passed([tmp_path] * 3)


@pytest.mark.system
def test_a_process_that_is_stopped_in_the_middle_holds_up_no_other(
    tmp_path: Path,
) -> None:
    with start_worker(tmp_path) as worker:
        worker.send_signal(signal.SIGSTOP)
        assert Meter(LocalCounts(tmp_path)).take([(REQUESTS, "all")]) is None
        worker.kill()


def test_the_last_units_are_given_one_by_one_and_a_used_up_count_is_asked_about_once_a_second(
    tmp_path: Path,
) -> None:
    clock, asked = Clock(), []
    counts = LocalCounts(tmp_path, clock)

    class Noted(Broken):
        def take(self, count: QuotaCount, limit: int, asked_units: int) -> Taken:
            asked.append(asked_units)
            return counts.take(count, limit, asked_units)

    meter = Meter(Noted(), clock)
    take: Callable[[], bool] = lambda: meter.take([(REQUESTS, "all")]) is None  # noqa: E731
    assert sum(take() for _ in range(200)) == 100
    in_first_lookups, after = asked[:4], len(asked)
    assert in_first_lookups == [1, 2, 4, 8]
    assert sum(take() for _ in range(50)) == 0
    assert len(asked) == after
    counts.forget("q")
    clock.now += 1
    assert take()


def test_of_bytes_too_a_gateway_gives_its_part_alone_while_the_store_is_away(
    tmp_path: Path,
) -> None:
    chosen = QuotaStoreSettings(
        parse_address("127.0.0.1"), 1, "u", "p", None, OnUnavailable.LOCAL, gateways=4
    )
    quota = Quota("q", PLACE, QuotaUnit.BYTES_OUT, 1000, Window.DAY, Counted.CLIENT)
    with closing(LocalCounts(tmp_path)) as local:
        local.add(QuotaCount.of(quota, "192.0.2.1"), 200)
        meter = Meter(SharedCounts(Broken(), local, chosen))
        refused = meter.take(
            [(quota, "192.0.2.1")], Announced("1", QuotaUnit.BYTES_OUT, exactly(51))
        )
        assert refused is not None
        assert refused.left == 50
        assert (
            meter.take(
                [(quota, "192.0.2.1")], Announced("2", QuotaUnit.BYTES_OUT, exactly(50))
            )
            is None
        )


# --- the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("policy", "the policy does not load: {}: the policy directory cannot be read"),
        (
            "state",
            "the counts cannot be read: [Errno 2] No such file or directory: '{}'",
        ),
    ],
)
def test_a_place_that_cannot_be_read_is_named_with_its_option(
    tmp_path: Path, wrong: str, expected: str
) -> None:
    (tmp_path / "here/policy").mkdir(parents=True)
    (tmp_path / "here/policy/policy.yaml").write_text("version: 1\n")
    (tmp_path / "here/state").mkdir()
    places = {name: tmp_path / "here" / name for name in ("policy", "state")} | {
        wrong: tmp_path / "nowhere"
    }
    done = CliRunner().invoke(
        main,
        ["quota", "--policy", str(places["policy"]), "--state", str(places["state"])],
    )
    assert done.exit_code == 1
    assert expected.format(tmp_path / "nowhere") in done.output
    assert f" by --{wrong} DIR" in done.output


def test_tokens_are_listed_and_reset_in_the_counts_of_their_own_account(
    tmp_path: Path,
) -> None:
    policy, state = tmp_path / "policy", tmp_path / "state"
    policy.mkdir()
    (state / BODIES_FOLDER).mkdir(parents=True)
    rules = (
        "rules:\n  - {name: llm, action: allow, hosts: [llm.example], meter: tokens}\n"
    )
    quotas = (
        "prices: [{model: '*', in: 2.5, out: 10}]\n"
        "quotas:\n"
        "  - {name: budget, per: client, cost: 20, every: month}\n"
        "  - {name: tokens, per: all, tokens: 1000, every: week}\n"
        "  - {name: calls, per: all, requests: 10, every: day}\n"
    )
    (policy / "policy.yaml").write_text(f"version: 1\n{rules}{quotas}")
    counted = {
        state / BODIES_FOLDER: {
            QuotaCount("budget", QuotaUnit.COST, Window.MONTH, "192.0.2.1"): 17_000_000,
            QuotaCount("budget", QuotaUnit.COST, Window.MONTH, "user:bob"): 1_000_000,
            QuotaCount("tokens", QuotaUnit.TOKENS, Window.WEEK, "all"): 250,
        },
        state: {QuotaCount("calls", QuotaUnit.REQUESTS, Window.DAY, "all"): 4},
    }
    for folder, amounts in counted.items():
        with closing(LocalCounts(folder)) as counts:
            counts.add_all(amounts)

    def said(*options: str) -> list[str]:
        places = ("--policy", str(policy), "--state", str(state))
        return [line.partition(", resets")[0] for line in run_quota(*places, *options)]

    assert said() == [
        "budget: 20.00 of cost a month for each client",
        "   85 %  192.0.2.1  17.00 of cost",
        "    5 %  user:bob  1.00 of cost",
        "tokens: 1,000 tokens a week for all together",
        "   25 %  all  250 tokens",
        "calls: 10 requests a day for all together",
        "   40 %  all  4 requests",
    ]
    assert said("--reset", "budget", "--holder", "192.0.2.1")[:3] == [
        "Reset budget of 192.0.2.1: 17.00 of cost to zero.",
        "budget: 20.00 of cost a month for each client",
        "    5 %  user:bob  1.00 of cost",
    ]
    nobody = "Nothing to reset: quota budget is not used by alice (a holder is named as the table shows it)."
    assert said("--reset", "budget", "--holder", "alice")[0] == nobody
    assert said("--reset", "budget")[::2][:2] == [
        "Reset budget of user:bob: 1.00 of cost to zero.",
        "         nothing is used",
    ]
    assert said("--holder", "all")[2:] == [
        "tokens: 1,000 tokens a week for all together",
        "   25 %  all  250 tokens",
        "calls: 10 requests a day for all together",
        "   40 %  all  4 requests",
    ]
    uncounted = [
        "   25 %  all  250 tokens",
        "calls: 10 requests a day for all together",
        "   40 %  all  4 requests",
    ]
    assert said()[3:] == uncounted
    kept = [
        json.loads(line)
        for line in (tmp_path / "decisions.jsonl").read_text().splitlines()
    ]
    assert [
        (one["decision"], one["who"], one["quota"], one["holder"]) for one in kept
    ] == [
        ("reset", who_decides(), "budget", holder)
        for holder in ("192.0.2.1", "alice", "")
    ]
    (tmp_path / "decisions.jsonl").unlink()
    (tmp_path / "decisions.jsonl").mkdir()
    reset = ("--reset", "tokens", "--policy", str(policy), "--state", str(state))
    refused = CliRunner().invoke(main, ["quota", *reset])
    assert (
        refused.exit_code,
        "decisions.jsonl cannot be written" in refused.output,
    ) == (1, True)
    assert said()[3:] == uncounted


as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can call something as another account"
)


def run_quota(*options: str) -> list[str]:
    done = CliRunner().invoke(main, ["quota", *options])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.mark.system
@as_root
def test_counts_of_an_account_without_a_name_are_read_with_its_rights(
    open_folder: Path,
) -> None:
    with closing(LocalCounts(open_folder)) as counts:
        counts.add(COUNT, 3)
    for path in (open_folder / "quotas", *(open_folder / "quotas").iterdir()):
        os.chown(path, 61_999, 61_999)
    read = call_as_owner(
        open_folder / "quotas",
        lambda: [os.geteuid(), LocalCounts(open_folder).uses()[0].used],
    )
    assert read == [61_999, 3]


@pytest.mark.system
@as_root
def test_another_account_of_the_group_reads_the_counts_while_they_are_written(
    open_folder: Path,
) -> None:
    """As the exporter reads the counts of tokens."""
    with closing(LocalCounts(open_folder)) as counts:
        counts.add(COUNT, 3)
        for path, mode in (
            (open_folder / "quotas", 0o750),
            *((one, 0o640) for one in (open_folder / "quotas").iterdir()),
        ):
            os.chown(path, 61_999, 61_998)
            path.chmod(mode)
        counts.add(COUNT, 4)
        reader = Account("#61997", 61_997, 61_998)
        assert call_as(reader, lambda: LocalCounts(open_folder).uses()[0].used) == 7


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
