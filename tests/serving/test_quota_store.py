"""Counts that gateways share: a real Valkey with TLS, the users of the documentation,
and everything that can fail.
"""

from __future__ import annotations

import calendar
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from valkey.exceptions import NoPermissionError, ResponseError

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.base.faults import Location
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.cli import main
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.services.exporter.certificate import StoreCertificate
from squidkeeper.serving.quotas import valkey_counts
from squidkeeper.serving.quotas.counts import LEASE_AT_MOST, QuotaCount, exactly, share
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter, Refusal
from squidkeeper.serving.quotas.notices import StoreProblem, read_store_problem
from squidkeeper.serving.quotas.opening import AWAY_SECONDS, GatewayCounts, SharedCounts
from squidkeeper.serving.quotas.reserves import Reserves
from squidkeeper.serving.quotas.store_settings import (
    FILE,
    OnUnavailable,
    read_quota_store,
)
from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

from ..receivers import dripping_server
from ..valkey_server import (
    GATEWAYS,
    OPERATOR,
    PASSWORD,
    REPOSITORY,
    LossyRelay,
    ValkeyServer,
    rights,
)
from ..waiting import wait_for
from .quota_workers import Clock, check_that_no_limit_is_passed

pytestmark = pytest.mark.system

QUOTA = Quota(
    "per vm:1", Location("p"), QuotaUnit.REQUESTS, 2000, Window.DAY, Counted.ALL
)
COUNT = QuotaCount.of(QUOTA, "2001:db8::/64")
CountsOf = Callable[..., ValkeyCounts]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey", saves=True).start()
    yield server
    server.kill()


@pytest.fixture
def counts_of() -> Iterator[CountsOf]:
    made: list[ValkeyCounts] = []

    def make(server: ValkeyServer, user: str = GATEWAYS[0]) -> ValkeyCounts:
        made.append(ValkeyCounts(server.settings(user=user)))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def counts(server: ValkeyServer, counts_of: CountsOf) -> ValkeyCounts:
    server.command("FLUSHALL")
    return counts_of(server)


@pytest.fixture
def operator(server: ValkeyServer, counts_of: CountsOf) -> ValkeyCounts:
    return counts_of(server, OPERATOR)


def test_a_server_that_drips_holds_no_look_up(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_counts, "_ANSWER_SECONDS", 0.3)
    with dripping_server(lambda connection: connection.sendall(b"$100000\r\n")) as port:
        counts = ValkeyCounts(replace(server.settings(), port=port, tls_ca=None))
        begun = time.monotonic()
        with pytest.raises(CountsUnavailable, match="none that is whole within"):
            counts.take(COUNT, 10, 1)
    assert time.monotonic() - begun < 5


def test_a_ca_that_is_a_pipe_holds_no_look_up(
    server: ValkeyServer, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "ca.crt")
    counts = ValkeyCounts(replace(server.settings(), tls_ca=tmp_path / "ca.crt"))
    with pytest.raises(CountsUnavailable, match="not a regular file"):
        counts.take(COUNT, 10, 1)


def test_the_exporter_reads_when_the_certificate_of_the_store_expires(
    own_server: ValkeyServer, tmp_path: Path
) -> None:
    own_server.write_settings(tmp_path, "deny", 3, GATEWAYS[0])
    certificate = StoreCertificate(tmp_path / "policy")
    certificate.ask()
    [served] = x509.load_pem_x509_certificates(
        (tmp_path / "valkey/server.crt").read_bytes()
    )
    assert certificate.not_after == served.not_valid_after_utc
    own_server.kill()
    certificate.ask()
    assert certificate.not_after == served.not_valid_after_utc, "what it has shown"
    (tmp_path / "quota-store.yaml").unlink()
    certificate.ask()
    assert certificate.not_after is None


# --- the users and the function -------------------------------------------------------


def test_gateways_count_together_and_the_operator_lists_and_forgets(
    server: ValkeyServer,
    counts: ValkeyCounts,
    operator: ValkeyCounts,
    counts_of: CountsOf,
) -> None:
    other = QuotaCount("other", QuotaUnit.BYTES_IN, Window.HOUR, "all")
    counts.add(COUNT, 5)
    counts_of(server, GATEWAYS[1]).add(COUNT, 3)
    taken = counts.take(COUNT, 10, 1)
    assert (taken.given, taken.used, taken.left) == (1, 9, 1)
    assert counts_of(server, GATEWAYS[2]).take(COUNT, 9, 1).given == 0
    counts.add(other, 10**15)
    hostile = counts_of(server, GATEWAYS[1])._connected()
    for odd in (
        b"\xff:\xff:\xff:\xff:\xff:\xff",
        b"requests:day:q",
        b"requests:day:\xff:all:2000000000",
    ):
        hostile.incrby(b"squidkeeper:quota:gw-2:" + odd, 5)
    assert {(use.count, use.used) for use in operator.uses()} == {
        (COUNT, 9),
        (other, 10**15),
    }
    assert operator.forget(COUNT.quota, f"{COUNT.holder[:-1]}*") == 0
    assert operator.forget(COUNT.quota, COUNT.holder) == 1
    assert [use.count for use in operator.uses()] == [other]


OWN, OTHERS = (f"squidkeeper:quota:{name}:requests:day:q:all" for name in GATEWAYS[:2])
REFUSED = (
    *("KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "MONITOR"),
    *(
        "FLUSHALL",
        f"DEL {OWN}",
        f"UNLINK {OWN}",
        f"RENAME {OTHERS} {OWN}",
        f"SET {OWN} 0",
        f"GETDEL {OTHERS}",
    ),
    *(
        f"INCRBY {OTHERS} -5",
        f"EXPIREAT {OTHERS} 1",
        "MGET elsewhere",
        "INCRBY elsewhere 1",
    ),
    *(
        "EVAL x 0",
        "EVAL_RO x 0",
        "EVALSHA x 0",
        "EVALSHA_RO x 0",
        "SCRIPT LOAD x",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
    ),
    *(
        "FUNCTION LOAD x",
        "FUNCTION DELETE squidkeeper",
        "FUNCTION FLUSH",
        "FUNCTION RESTORE x",
        "FUNCTION LIST",
    ),
    *(
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "ACL SETUSER x",
        "CLIENT KILL ID 1",
        "CLIENT PAUSE 9",
    ),
    *(
        "SHUTDOWN",
        "REPLICAOF NO ONE",
        "SAVE",
        "BGREWRITEAOF",
        "SELECT 1",
        "SUBSCRIBE x",
        "PUBLISH x x",
        "MULTI",
    ),
)


def test_a_gateway_that_was_taken_over_may_do_nothing_but_count_for_itself(
    counts: ValkeyCounts,
) -> None:
    raw = counts._connected()
    for command in REFUSED:
        with pytest.raises(NoPermissionError):
            raw.execute_command(*command.split())


def test_the_default_user_who_has_all_rights_cannot_log_in(
    server: ValkeyServer,
) -> None:
    assert server.command_as(None, "PING") == "NOAUTH Authentication required."
    for password in ("", "x", PASSWORD):
        assert server.command_as(None, "AUTH", "default", password).startswith(
            "WRONGPASS "
        )


def test_a_gateway_that_was_taken_over_cannot_let_others_give_more_than_the_limit(
    server: ValkeyServer, counts: ValkeyCounts, counts_of: CountsOf
) -> None:
    assert counts.take(COUNT, 2, 1).given == 1
    [own] = server.command("--scan").splitlines()
    another = own.replace(GATEWAYS[0], GATEWAYS[1])
    hostile = counts_of(server, GATEWAYS[1])._connected()
    with pytest.raises(ResponseError, match="No permissions to access a key"):
        hostile.fcall(
            "squidkeeper_take", 0, GATEWAYS[0], "requests:day:q:all", 86_400, 9, 1, 0
        )
    for amount in (
        -(2**53),
        -(2**62),
        2**62,
        2**62,
        2**62 - 1 + 2**53,
        -10,
    ):  # to the smallest number, and the largest
        hostile.incrby(another, amount)
        taken = counts.take(COUNT, 10**15, 0)
        assert (taken.used > 0, taken.left) == (True, max(0, 10**15 - taken.used))
    assert counts.take(COUNT, 2, 1).given == 0
    hostile.expireat(another, 1)
    assert [counts.take(COUNT, 2, 1).given for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("right", rights())
def test_each_right_is_needed_and_one_that_is_missing_is_named(
    own_server: ValkeyServer, right: str
) -> None:
    store = ValkeyCounts(own_server.settings())
    own_server.command("ACL", "SETUSER", GATEWAYS[0], f"-{right}")
    with pytest.raises(CountsUnavailable) as caught:
        store.take(COUNT, 10, 1)
    assert f"User gw-1 has no permissions to run the '{right}' command" in str(
        caught.value
    )
    assert str(caught.value).endswith(
        ": give the user gw-1 the rights that squid/FLEET.md lists"
    )
    store.close()


def test_rights_on_keys_and_a_function_that_are_missing_are_told_with_what_to_do(
    own_server: ValkeyServer,
) -> None:
    store = ValkeyCounts(own_server.settings())
    breaks = {
        (
            "ACL",
            "SETUSER",
            GATEWAYS[0],
            "resetkeys",
        ): "access a key.*: give the user gw-1 the rights that squid/",
        (
            "FUNCTION",
            "FLUSH",
        ): "Function not found: load squid/quotas.lua as squid/FLEET.md shows$",
    }
    for command, problem in breaks.items():
        own_server.command(*command)
        with pytest.raises(CountsUnavailable, match=problem):
            store.take(COUNT, 10, 1)
    own_server.load_function()
    unknown = ValkeyCounts(own_server.settings(user=OPERATOR))
    own_server.command("ACL", "SETUSER", OPERATOR, "+fcall")
    expected = "the function counts no user operator: load squid/quotas.lua with the names of all users, as"
    with pytest.raises(CountsUnavailable, match=expected):
        unknown.take(COUNT, 10, 1)
    unknown.close()
    store.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 10**15), st.integers(0, 10**15), st.integers(1, LEASE_AT_MOST))
@example(480, 0, LEASE_AT_MOST)  # less than a lease, and more than one unit
def test_the_function_gives_what_a_store_gives(
    counts: ValkeyCounts, operator: ValkeyCounts, limit: int, used: int, asked: int
) -> None:
    operator.forget(COUNT.quota)
    if used:
        counts.add(COUNT, used)
    taken = counts.take(COUNT, limit, asked)
    assert (taken.given, taken.used) == (
        share(limit, used, asked),
        used + share(limit, used, asked),
    )
    assert 0 < taken.ends_in <= 86_400
    assert counts.take(COUNT, limit, 0).used == taken.used


def test_a_window_goes_by_the_clock_of_the_server_and_has_a_count_of_its_own(
    server: ValkeyServer, counts: ValkeyCounts, operator: ValkeyCounts
) -> None:
    count = QuotaCount("q", QuotaUnit.REQUESTS, Window.DAY, "all")
    now = int(server.command("TIME").split()[0])
    ends = now - now % 86_400 + 86_400
    before, current, after = (
        f"squidkeeper:quota:gw-2:requests:day:q:all:{ends + day * 86_400}"
        for day in (-1, 0, 1)
    )
    for key, used in (
        (before, "5"),
        (current, "1"),
        (after, "6"),
    ):  # as a clock that was set back leaves them
        server.command("INCRBY", key, used)
    assert [counts.take(count, 2, 1).given for _ in range(2)] == [1, 0]
    assert [
        (use.count, use.used, use.ends_in <= 86_400) for use in operator.uses()
    ] == [(count, 2, True)]
    assert server.command("MGET", before, current, after).split() == ["5", "1", "6"]
    kept = int(server.command("EXPIRETIME", current.replace("gw-2", "gw-1")))
    assert kept == ends + 86_400


def windows_by_lua(
    server: ValkeyServer, times: list[int], window: Window
) -> list[tuple[int, int]]:
    """Ask the server, which runs the function's file, when the windows of some times
    begin and end.
    """
    script = (
        (REPOSITORY / "squid/quotas.lua")
        .read_text()
        .partition("\n")[2]
        .rpartition("redis.register_function")[0]
    )
    script += """
    local found = {}
    for number = 2, #ARGV do
        local began, ends = window_of(ARGV[number], ARGV[1])
        found[#found + 1] = string.format('%.0f %.0f', began, ends)
    end
    return found
    """
    asked = (str(valkey_counts.windows_of(window)), *map(str, times))
    lines = server.command(
        "EVAL", script.replace("{GATEWAYS}", "{}"), "0", *asked
    ).splitlines()
    return [(int(began), int(ends)) for began, ends in map(str.split, lines)]


FIRSTS = [
    calendar.timegm((year, month, 1, 0, 0, 0))
    for year in range(1999, 2102)
    for month in range(1, 13)
]


@given(
    st.sampled_from(Window),
    st.lists(st.integers(0, 7_000_000_000), min_size=100, max_size=200),
)
@example(Window.MONTH, [*FIRSTS, *(first - 1 for first in FIRSTS)])
@settings(max_examples=10)
def test_the_function_has_the_windows_of_the_language(
    server: ValkeyServer, window: Window, times: list[int]
) -> None:
    assert windows_by_lua(server, times, window) == [
        (window.begin(at), window.end(at)) for at in times
    ]


@pytest.mark.parametrize("window", Window)
def test_a_count_of_each_window_ends_with_it(
    server: ValkeyServer, counts: ValkeyCounts, window: Window
) -> None:
    count = QuotaCount("q", QuotaUnit.TOKENS, window, "all")
    counts.add(count, 5)
    taken, now = counts.take(count, 7, 0), int(server.command("TIME").split()[0])
    assert (taken.used, taken.left) == (5, 2)
    assert taken.ends_in == pytest.approx(window.end(now) - now, abs=2)
    [key] = server.command("KEYS", "*").split()
    assert key.endswith(f":{window.end(now)}")
    kept = int(server.command("EXPIRETIME", key)) - window.end(now)
    assert kept == window.end(now) - window.begin(now)


def test_a_function_of_an_older_version_says_that_it_knows_no_months(
    server: ValkeyServer, counts: ValkeyCounts
) -> None:
    script = (
        (REPOSITORY / "squid/quotas.lua").read_text().replace("{GATEWAYS}", "{'gw-1'}")
    )
    old = re.sub(
        r"    if windows == 'week'.*?    end\n(?=    return now)",
        "",
        script,
        flags=re.DOTALL,
    )
    assert old != script
    server.command("FUNCTION", "LOAD", "REPLACE", old)
    try:
        with pytest.raises(
            CountsUnavailable, match=r"load squid/quotas\.lua of this version"
        ):
            counts.take(QuotaCount("q", QuotaUnit.TOKENS, Window.MONTH, "all"), 7, 0)
        assert (
            counts.take(
                QuotaCount("q", QuotaUnit.TOKENS, Window.DAY, "all"), 7, 1
            ).given
            == 1
        )
    finally:
        server.load_function()


POLICY = """
version: 1
rules: [{name: all, action: allow, hosts: [.example]}]
quotas: [{name: per-vm, per: client, requests: 50, every: day}]
"""


def gateway(
    folder: Path,
    server: ValkeyServer,
    on_unavailable: str = "deny",
    gateways: int = 2,
    user: str = GATEWAYS[0],
) -> Path:
    """Write what one gateway has of its own."""
    folder.mkdir()
    server.write_settings(folder, on_unavailable, gateways, user)
    return folder


@pytest.mark.long
def test_helpers_of_several_gateways_that_are_killed_at_random_never_take_more_than_the_limit(
    server: ValkeyServer, counts: ValkeyCounts, tmp_path: Path
) -> None:
    folders = [gateway(tmp_path / name, server, user=name) for name in GATEWAYS]
    check_that_no_limit_is_passed([*folders, *folders])


def test_the_command_lists_and_resets_with_the_operators_settings(
    server: ValkeyServer, counts: ValkeyCounts, tmp_path: Path
) -> None:
    counts.add(QuotaCount("per-vm", QuotaUnit.REQUESTS, Window.DAY, "192.0.2.7"), 5)
    folder = gateway(tmp_path / "gateway", server)
    (folder / "policy").mkdir()
    (folder / "policy/policy.yaml").write_text(POLICY)

    def quota(*options: str) -> str:
        places = ("--policy", str(folder / "policy"), "--state", str(folder))
        return CliRunner().invoke(main, ["quota", *places, *options]).output

    refused = f"Error: {folder}/quota-store.yaml: all gateways share the counts, and this one may not reset them: "
    assert (
        quota("--reset", "per-vm")
        == f"{refused}add --store FILE, with the settings of the operator's user (squid/FLEET.md)\n"
    )
    assert not (folder / "decisions.jsonl").exists()
    shown = quota(
        "--store", str(gateway(tmp_path / "operator", server, user=OPERATOR) / FILE)
    )
    assert "192.0.2.7  5 requests, resets in " in shown
    reset = quota(
        "--store",
        str(tmp_path / "operator" / FILE),
        "--reset",
        "per-vm",
        "--holder",
        "192.0.2.7",
    )
    assert "Reset per-vm of 192.0.2.7: 5 requests to zero.\n" in reset
    assert "nothing is used" in reset
    assert "User gw-1 has no permissions to run the 'scan' command" in quota(
        "--store", str(folder / FILE)
    )


SHARED = """
version: 1
clients:
  vm: {networks: [192.0.2.7, "2001:db8::1"]}
  agent: {token_sha256: HASH}
  net: {networks: [198.51.100.0/24]}
rules:
  - {name: all, action: allow, hosts: [.example]}
  - {name: llm, action: allow, hosts: [llm.example], meter: tokens, reserve: 100}
quotas:
  - {name: per-vm, per: client, requests: 50, every: day}
  - {name: of-rule, per: rule, requests: 50, every: day}
  - {name: tokens, per: client, tokens: 1000, every: day}
""".replace("HASH", "a" * 64)


def test_a_gateway_shows_what_all_have_used_and_finds_the_store_by_itself(
    server: ValkeyServer, counts: ValkeyCounts, counts_of: CountsOf, tmp_path: Path
) -> None:
    def count(
        quota: str, holder: str, unit: QuotaUnit = QuotaUnit.REQUESTS
    ) -> QuotaCount:
        return QuotaCount(quota, unit, Window.DAY, holder)

    other = counts_of(server, GATEWAYS[1])
    for holder in ("192.0.2.7", "2001:db8::/64", "user:agent", "198.51.100.9"):
        counts.add(count("per-vm", holder), 5)
        other.add(count("per-vm", holder), 6)
    other.add(count("of-rule", "rule:llm"), 7)
    other.add(count("tokens", "192.0.2.7", QuotaUnit.TOKENS), 250)
    folder = gateway(tmp_path / "gateway", server)
    (folder / BODIES_FOLDER).mkdir()
    with closing(LocalCounts(folder / BODIES_FOLDER)) as local:
        reserved = count("tokens", "198.51.100.9", QuotaUnit.TOKENS)
        local.hold("request", reserved, 1000, exactly(100))
    (folder / "policy").mkdir()
    (folder / "policy/policy.yaml").write_text(SHARED)

    def quota(*options: str) -> tuple[int, dict[str, dict[str, int]], str]:
        places = ("--policy", str(folder / "policy"), "--state", str(folder))
        done = CliRunner().invoke(main, ["quota", *places, *options, "--json"])
        shown = json.loads(done.stdout or "[]")
        used = {
            one["quota"]: {use["holder"]: use["used"] for use in one["used"]}
            for one in shown
        }
        return done.exit_code, used, done.stderr + done.output

    status, used, said = quota()
    assert (status, used) == (
        0,
        {
            "per-vm": {"192.0.2.7": 11, "2001:db8::/64": 11, "user:agent": 11},
            "of-rule": {"rule:llm": 7},
            "tokens": {"192.0.2.7": 250, "198.51.100.9": 100},
        },
    )
    assert "--holder HOLDER asks for another one" in said
    assert quota("--holder", "198.51.100.9")[1] == {
        "per-vm": {"198.51.100.9": 11},
        "of-rule": {},
        "tokens": {"198.51.100.9": 100},
    }
    server.signal(signal.SIGSTOP)
    status, _, said = quota()
    server.signal(signal.SIGCONT)
    assert (status, "the counts cannot be read: Valkey on 127.0.0.1" in said) == (
        1,
        True,
    )


# --- what can fail --------------------------------------------------------------------


def fill(server: ValkeyServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1")


FAULTS: dict[
    str, tuple[Callable[[ValkeyServer], object], Callable[[ValkeyServer], object], str]
] = {
    "killed": (ValkeyServer.kill, ValkeyServer.start, "refused|Connection"),
    "hanging": (
        lambda s: s.signal(signal.SIGSTOP),
        lambda s: s.signal(signal.SIGCONT),
        "[Tt]ime",
    ),
    "read-only": (
        lambda s: s.command("REPLICAOF", "127.0.0.1", "1"),
        lambda s: s.command("REPLICAOF", "NO", "ONE"),
        "read only",
    ),
    "out of memory": (
        fill,
        lambda s: s.command("CONFIG", "SET", "maxmemory", "0"),
        "maxmemory",
    ),
    "another password": (
        lambda s: ended(s, "ACL", "SETUSER", GATEWAYS[0], "resetpass", ">another"),
        lambda s: s.command("ACL", "SETUSER", GATEWAYS[0], f">{PASSWORD}"),
        "WRONGPASS|invalid username-password",
    ),
}


def ended(server: ValkeyServer, *command: str) -> None:
    """Change a setting, and end the connections of the gateways."""
    server.command(*command)
    server.command("CLIENT", "KILL", "USER", GATEWAYS[0])


@pytest.mark.parametrize("on_unavailable", OnUnavailable)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_gives_nothing_or_this_gateways_part_and_is_asked_again(
    own_server: ValkeyServer,
    tmp_path: Path,
    fault: str,
    on_unavailable: OnUnavailable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaks, fixes, problem = FAULTS[fault]
    clock, told = Clock(), list[str]()
    own_server.command("FLUSHALL")
    chosen = own_server.settings(on_unavailable, gateways=3)
    store, local = ValkeyCounts(chosen), LocalCounts(tmp_path)
    shared = SharedCounts(store, local, chosen, told.append, clock)
    quota = replace(QUOTA, limit=10)
    assert shared.take(COUNT, quota.limit, 1).given == 1
    breaks(own_server)
    meter = Meter(shared, clock)
    first = [meter.take([(quota, COUNT.holder)]) for _ in range(5)]
    if on_unavailable is OnUnavailable.DENY:
        assert all(count is not None and count.unavailable for count in first)
    else:
        assert [count is None for count in first] == [True] * 3 + [
            False
        ] * 2  # a third of the limit
    failures = [line for line in told if line]
    assert len(failures) == 1  # then it counts as away
    assert re.search(problem, failures[0])
    assert PASSWORD not in failures[0]
    if fault == "killed":
        clock.now += AWAY_SECONDS + 1
        # it fails as before, and is not logged again
        meter.take([(quota, COUNT.holder)])
    logged = f"quotas are counted on this gateway alone, up to 1/3 of each limit: {failures[0]}"
    # else whoever asks logs it
    assert caplog.messages == (
        [logged] if on_unavailable is OnUnavailable.LOCAL else []
    )
    fixes(own_server)
    clock.now += AWAY_SECONDS + 1
    assert meter.take([(quota, COUNT.holder)]) is None
    assert told[-1] == ""
    unread = 1 if fault == "hanging" else 0  # what it did when it went on, for nobody
    # appendonly has kept what was used before
    assert shared.take(COUNT, quota.limit, 0).used == 2 + unread
    store.close()
    local.close()


def test_a_store_that_hangs_holds_a_request_for_no_longer_than_its_time_and_the_next_ones_not_at_all(
    own_server: ValkeyServer, tmp_path: Path
) -> None:
    asked: list[int] = []
    chosen = own_server.settings(OnUnavailable.DENY)
    store = ValkeyCounts(chosen)

    class Noted:
        def __getattr__(self, name: str) -> object:
            asked.append(1)
            return getattr(store, name)

    clock = Clock()
    shared = SharedCounts(Noted(), LocalCounts(tmp_path), chosen, clock=clock)  # type: ignore[arg-type] # it has all of its methods
    own_server.signal(signal.SIGSTOP)
    for _ in range(50):
        with pytest.raises(CountsUnavailable):
            shared.take(COUNT, 10, 1)
    assert len(asked) == 1
    pauses = []
    for _ in range(5):
        clock.now = shared._away_until
        with pytest.raises(CountsUnavailable):
            shared.take(COUNT, 10, 1)
        pauses.append(shared._away_until - clock.now)
    assert pauses == [2, 4, AWAY_SECONDS, AWAY_SECONDS, AWAY_SECONDS]
    store.close()


def test_a_store_that_would_forget_counts_when_it_is_full_is_refused(
    own_server: ValkeyServer,
) -> None:
    store = ValkeyCounts(own_server.settings())
    assert store.take(COUNT, 10, 1).given == 1
    own_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store._check_at = 0.0  # a minute later
    expected = "its maxmemory-policy is allkeys-lru, expected noeviction"
    for _ in range(2):
        with pytest.raises(CountsUnavailable, match=expected):
            store.take(COUNT, 10, 1)
    own_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert store.take(COUNT, 10, 1).given == 1
    store.close()


def test_a_store_that_is_restarted_empty_begins_again(own_server: ValkeyServer) -> None:
    store = ValkeyCounts(own_server.settings())
    assert store.take(COUNT, 1, 1).given == 1
    own_server.command("FLUSHALL")
    # one limit more in this window, as documented
    assert store.take(COUNT, 1, 1).given == 1
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_keeps_counts_and_costs_no_request(
    own_server: ValkeyServer, number: signal.Signals
) -> None:
    store = ValkeyCounts(own_server.settings())
    assert store.take(COUNT, 10, 1).given == 1
    own_server.kill(number)
    own_server.start()
    assert store.take(COUNT, 10, 1).used == 2
    store.close()
    assert "NOPERM" not in (own_server.folder / "log.txt").read_text()


def test_what_is_added_is_never_sent_twice_although_the_answer_is_lost(
    own_server: ValkeyServer,
) -> None:
    """The server has counted it by then: bytes would count twice."""
    relay = LossyRelay((own_server.address, own_server.port))
    with (
        relay,
        closing(ValkeyCounts(replace(own_server.settings(), port=relay.port))) as store,
    ):
        store.add(COUNT, 5)
        relay.lose_next_answer()
        with pytest.raises(CountsUnavailable):
            store.add(COUNT, 5)
        assert store.take(COUNT, 100, 0).used == 10
        relay.lose_next_answer()
        assert store.take(COUNT, 100, 1).used == 12, (
            "a lease is asked for again, and one is wasted"
        )


def test_a_certificate_of_another_ca_or_for_another_address_is_refused(
    server: ValkeyServer, own_server: ValkeyServer, counts: ValkeyCounts
) -> None:
    wrong = ValkeyCounts(replace(server.settings(), tls_ca=own_server.ca))
    with pytest.raises(CountsUnavailable, match="certificate"):
        wrong.take(COUNT, 10, 1)
    wrong.close()
    other = ValkeyCounts(
        replace(server.settings(), address=type(server.settings().address)("127.0.0.2"))
    )
    with pytest.raises(CountsUnavailable, match="not valid for"):
        other.take(COUNT, 10, 1)
    other.close()


def test_threads_of_two_gateways_share_one_limit(
    server: ValkeyServer, counts: ValkeyCounts, tmp_path: Path
) -> None:
    passed: list[int] = []
    quota = replace(QUOTA, limit=300)

    def use(user: str) -> None:
        store = ValkeyCounts(server.settings(user=user))
        meter = Meter(
            SharedCounts(store, LocalCounts(tmp_path), server.settings(user=user))
        )
        passed.append(sum(meter.take([(quota, "all")]) is None for _ in range(400)))
        store.close()

    threads = [threading.Thread(target=use, args=[name]) for name in GATEWAYS[:2] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 300 - 4 * LEASE_AT_MOST <= sum(passed) <= 300


# --- the settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("address: 127.0.0.1", "address: valkey.example", "is not ADDRESS:PORT"),
        (
            "address: 127.0.0.1",
            "address: 192.0.2.7",
            "without TLS the store must be on this machine",
        ),
        ("gateways: 2", "gateways: 0", "expected the number of gateways"),
        ("on_unavailable: deny", "on_unavailable: allow", "on_unavailable"),
        ("user: gw-1", "users: gw-1", "expected address, user, password_file"),
        ("password_file: ", "password_file: /nowhere", "cannot be read"),
    ],
)
def test_settings_that_are_wrong_make_every_count_unavailable(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    server = ValkeyServer(tmp_path / "valkey", tls=False)
    folder = gateway(tmp_path / "gateway", server)
    file = folder / FILE
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CountsUnavailable, match=problem):
        read_quota_store(file)
    counts = GatewayCounts(folder / "policy", folder)
    for asked in (lambda: counts.take(COUNT, 10, 1), lambda: counts.add(COUNT, 1)):
        with pytest.raises(CountsUnavailable, match=problem):
            asked()
    assert problem.split(" ")[0] in read_store_problem(
        folder, (folder / "quotas/store-away").stat().st_mtime
    )


def test_a_password_that_everybody_can_read_is_refused_and_never_shown(
    tmp_path: Path,
) -> None:
    folder = gateway(tmp_path / "gateway", ValkeyServer(tmp_path / "valkey", tls=False))
    (folder / "quota-store.password").chmod(0o644)
    with pytest.raises(CountsUnavailable, match="chmod 0640") as caught:
        read_quota_store(folder / FILE)
    assert PASSWORD not in str(caught.value)
    (folder / "quota-store.password").chmod(0o640)
    assert PASSWORD not in repr(read_quota_store(folder / FILE))


def test_without_the_file_a_gateway_counts_by_itself(tmp_path: Path) -> None:
    assert read_quota_store(tmp_path / FILE) is None
    assert GatewayCounts(tmp_path / "policy", tmp_path).are_local


def test_a_change_of_the_settings_is_in_force_within_a_second(
    tmp_path: Path, own_server: ValkeyServer, server: ValkeyServer
) -> None:
    """Also of the password alone.

    One that cannot be used leaves the last good one in force, and is told.
    """
    now = [100.0]
    server.command("FLUSHALL")
    folder = gateway(tmp_path / "gateway", own_server)
    file, password = folder / FILE, folder / "quota-store.password"
    with closing(
        GatewayCounts(folder / "policy", folder, clock=lambda: now[0])
    ) as counts:

        def used() -> int:
            """Take a unit; a second later the file is read again."""
            now[0] += 1
            return counts.take(COUNT, 10, 1).used

        def told() -> str:
            return read_store_problem(
                folder, (folder / "quotas/store-away").stat().st_mtime
            )

        first = file.read_text()
        assert [used(), used()] == [1, 2]
        file.write_text(
            first.replace(str(own_server.port), str(server.port)).replace(
                str(own_server.ca), str(server.ca)
            )
        )
        assert used() == 1, "of the other server"
        good = file.read_text()
        file.write_text("address: ")
        assert (used(), "expected" in told()) == (2, True)
        file.write_text(good)
        password.write_text("another")
        with pytest.raises(
            CountsUnavailable, match=r"WRONGPASS|invalid username-password"
        ):
            used()
        password.write_text(PASSWORD)
        assert used() == 3
        assert not (folder / "quotas/store-away").exists()
        file.unlink()
        assert (used(), counts.are_local) == (1, True)


def test_a_store_that_is_away_is_reported_until_it_answers_or_nobody_asks(
    tmp_path: Path,
) -> None:
    now = 1_800_000_000.0
    assert read_store_problem(tmp_path, now) == ""
    problem = StoreProblem(tmp_path)
    problem.note("no route\nto it")
    at = (tmp_path / "quotas/store-away").stat().st_mtime
    assert read_store_problem(tmp_path, at) == "no route\nto it"
    assert read_store_problem(tmp_path, at + 60) == ""
    StoreProblem(tmp_path).note("")  # of another process, which has seen nothing
    assert read_store_problem(tmp_path, at) != ""
    problem.note("")
    assert read_store_problem(tmp_path, at) == ""
    (tmp_path / "quotas/store-away").symlink_to("/etc/hostname")
    assert read_store_problem(tmp_path, at) == ""


def reserves_of(server: ValkeyServer, folder: Path, user: str) -> Reserves:
    """What counts for metered requests on one gateway."""
    (folder / user / "policy").mkdir(parents=True)
    (folder / user / "state").mkdir()
    server.write_settings(folder / user, "deny", 2, user)
    return Reserves(folder / user / "policy", folder / user / "state")


def test_what_metered_requests_use_counts_for_all_gateways_and_what_they_reserve_on_one(
    own_server: ValkeyServer, tmp_path: Path
) -> None:
    tokens = replace(QUOTA, unit=QuotaUnit.TOKENS, limit=1_000)
    wanted, used = [(tokens, "all")], {QuotaUnit.TOKENS: 700}
    first, second = (reserves_of(own_server, tmp_path, user) for user in GATEWAYS[:2])
    with closing(first), closing(second):
        assert first.hold("a", wanted, used, b"1") is True
        assert isinstance(first.hold("b", wanted, used, b"2"), Refusal)
        assert second.hold("c", wanted, used, b"3") is True
        first.settle("a", {QuotaUnit.TOKENS: 250}, b"4")
        refusal = first.hold("d", wanted, {QuotaUnit.TOKENS: 751}, b"5")
        assert isinstance(refusal, Refusal)
        assert (refusal.left, refusal.held) == (750, False)
        own_server.kill()
        with pytest.raises(CountsUnavailable):
            second.settle("c", used, b"6")
        with pytest.raises(CountsUnavailable):
            second.hold("e", wanted, used, b"7")
        own_server.start()
        wait_for(lambda: settled(second, "c", used), "the server to be asked again")
        refusal = first.hold("f", wanted, {QuotaUnit.TOKENS: 51}, b"8")
        assert isinstance(refusal, Refusal)
        assert (refusal.left, refusal.held) == (50, False)


def settled(reserves: Reserves, request: str, used: dict[QuotaUnit, int]) -> bool:
    with suppress(CountsUnavailable):
        reserves.settle(request, used, b"9")
        return True
    return False
