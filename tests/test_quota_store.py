"""Counts that gateways share: a real Valkey with TLS, the user of the documentation, and everything that can fail."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squidkeeper.errors import CountsUnavailable
from squidkeeper.policy.faults import Location
from squidkeeper.policy.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.quotas.counts import LEASE_AT_MOST, QuotaCount, share
from squidkeeper.quotas.local_counts import LocalCounts
from squidkeeper.quotas.meter import Meter
from squidkeeper.quotas.opening import open_counts
from squidkeeper.quotas.shared_counts import AWAY_SECONDS, SharedCounts
from squidkeeper.quotas.store_problem import StoreProblem, read_store_problem
from squidkeeper.quotas.store_settings import FILE, OnUnavailable, read_quota_store
from squidkeeper.quotas.valkey_counts import ValkeyCounts

from .valkey_server import PASSWORD, ValkeyServer

QUOTA = Quota("per vm:1", Location("p"), QuotaUnit.REQUESTS, 2000, Window.DAY, Counted.ALL)
COUNT = QuotaCount.of(QUOTA, "2001:db8::/64")


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
def counts_of() -> Iterator[Callable[[ValkeyServer], ValkeyCounts]]:
    made: list[ValkeyCounts] = []

    def make(server: ValkeyServer) -> ValkeyCounts:
        made.append(ValkeyCounts(server.settings()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def counts(server: ValkeyServer, counts_of: Callable[[ValkeyServer], ValkeyCounts]) -> ValkeyCounts:
    server.command("FLUSHALL")
    return counts_of(server)


# --- the script ---------------------------------------------------------------------------------------------------


def test_the_user_of_the_documentation_can_count_list_and_forget_and_nothing_more(
    server: ValkeyServer, counts: ValkeyCounts
) -> None:
    other = QuotaCount("other", QuotaUnit.BYTES_IN, Window.HOUR, "all")
    counts.add(COUNT, 5)
    counts.add(other, 10**15)
    assert sorted((one.count.holder, one.used) for one in counts.uses()) == [("2001:db8::/64", 5), ("all", 10**15)]
    assert counts.forget(COUNT.quota) == 1
    assert [one.count for one in counts.uses()] == [other]
    login = ["--user", "squidkeeper", "--pass", PASSWORD, "--no-auth-warning"]
    for refused in (
        ["GET", "squidkeeper:quota:x"],
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["KEYS", "*"],
        ["ACL", "LIST"],
    ):
        assert server.command(*login, *refused).startswith("NOPERM")
    assert server.command(*login, "HSET", "elsewhere", "a", "1").startswith("NOPERM")
    assert server.command(*login, "EVAL", "return redis.call('GET', KEYS[1])", "1", "elsewhere").startswith("NOPERM")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 10**15), st.integers(0, 10**15), st.integers(1, LEASE_AT_MOST))
def test_the_script_gives_what_a_store_gives(counts: ValkeyCounts, limit: int, used: int, asked: int) -> None:
    counts.forget(COUNT.quota)
    if used:
        counts.add(COUNT, used)
    taken = counts.take(COUNT, limit, asked)
    assert (taken.given, taken.used) == (share(limit, used, asked), used + share(limit, used, asked))
    assert 0 < taken.ends_in <= 86_400
    assert counts.take(COUNT, limit, 0).used == taken.used


def test_a_window_goes_by_the_clock_of_the_server_and_never_back(server: ValkeyServer, counts: ValkeyCounts) -> None:
    now = int(server.command("TIME").split()[0])
    key = "squidkeeper:quota:requests:minute:q:all"
    count = QuotaCount("q", QuotaUnit.REQUESTS, Window.MINUTE, "all")
    began = now - now % 60
    server.command("HSET", key, "began", str(began + 60), "used", "7")  # the clock was set back
    assert counts.take(count, 7, 1).given == 0
    server.command("HSET", key, "began", str(began - 60), "used", "7")  # the window before
    assert counts.take(count, 7, 1).given == 1
    assert 60 < int(server.command("TTL", key)) <= 120


WORKER = """
import sys
from pathlib import Path
from squidkeeper.policy.faults import Location
from squidkeeper.policy.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.quotas.meter import Meter
from squidkeeper.quotas.opening import open_counts
quota = Quota("q", Location("p"), QuotaUnit.REQUESTS, 2000, Window.DAY, Counted.ALL)
folder = Path(sys.argv[1])
meter = Meter(open_counts(folder / "policy", folder))
sys.stdin.readline()
while True:
    refused = meter.take([(quota, "all")])
    print("-" if refused and not refused.unavailable else refused.unavailable if refused else "+", flush=True)
    if refused:
        break
"""


def gateway(folder: Path, server: ValkeyServer, on_unavailable: str = "deny", gateways: int = 2) -> Path:
    """Write what one gateway has of its own."""
    folder.mkdir()
    password = folder / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o640)
    told = f"address: 127.0.0.1:{server.port}\nuser: squidkeeper\npassword_file: {password}\n"
    told += f"on_unavailable: {on_unavailable}\ngateways: {gateways}\n" + (
        f"tls_ca: {server.ca}\n" if server.ca else ""
    )
    (folder / FILE).write_text(told)
    return folder


@pytest.mark.long
def test_helpers_of_several_gateways_that_are_killed_at_random_never_take_more_than_the_limit(
    server: ValkeyServer, counts: ValkeyCounts, tmp_path: Path
) -> None:
    folders = [gateway(tmp_path / str(number), server) for number in range(3)]
    workers = [_worker(folder) for folder in folders for _ in range(2)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    killed = random.Random().choice(workers)
    assert killed.stdout
    first = [killed.stdout.readline() for _ in range(50)]
    killed.send_signal(signal.SIGKILL)
    taken = [*first, killed.stdout.read(), *(one.communicate()[0] for one in workers if one is not killed)]
    killed.communicate()
    passed = sum(one.count("+") for one in taken)
    assert set("".join(taken)) <= set("+-\n")
    assert 2000 - LEASE_AT_MOST * len(workers) <= passed <= 2000


def _worker(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- what can fail ------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fill(server: ValkeyServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1")


FAULTS: dict[str, tuple[Callable[[ValkeyServer], object], Callable[[ValkeyServer], object], str]] = {
    "killed": (ValkeyServer.kill, ValkeyServer.start, "refused|Connection"),
    "hanging": (lambda s: s.signal(signal.SIGSTOP), lambda s: s.signal(signal.SIGCONT), "[Tt]ime"),
    "read-only": (
        lambda s: s.command("REPLICAOF", "127.0.0.1", "1"),
        lambda s: s.command("REPLICAOF", "NO", "ONE"),
        "read only",
    ),
    "out of memory": (fill, lambda s: s.command("CONFIG", "SET", "maxmemory", "0"), "maxmemory"),
    "another password": (
        lambda s: ended(s, "ACL", "SETUSER", "squidkeeper", "resetpass", ">another"),
        lambda s: s.command("ACL", "SETUSER", "squidkeeper", f">{PASSWORD}"),
        "WRONGPASS|invalid username-password",
    ),
}


def ended(server: ValkeyServer, *command: str) -> None:
    """Change a setting, and end the connections of the gateways."""
    server.command(*command)
    server.command("CLIENT", "KILL", "USER", "squidkeeper")


@pytest.mark.parametrize("on_unavailable", OnUnavailable)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_gives_nothing_or_this_gateways_part_and_is_asked_again(
    own_server: ValkeyServer, tmp_path: Path, fault: str, on_unavailable: OnUnavailable
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
        assert all(one is not None and one.unavailable for one in first)
    else:
        assert [one is None for one in first] == [True] * 3 + [False] * 2  # a third of the limit
    failures = [one for one in told if one]
    assert len(failures) == 1  # then it counts as away
    assert re.search(problem, failures[0])
    assert PASSWORD not in failures[0]
    fixes(own_server)
    clock.now += AWAY_SECONDS + 1
    assert meter.take([(quota, COUNT.holder)]) is None
    assert told[-1] == ""
    unread = 1 if fault == "hanging" else 0  # what it did when it went on, for nobody
    assert shared.take(COUNT, quota.limit, 0).used == 2 + unread  # appendonly has kept what was used before
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


def test_a_store_that_would_forget_counts_when_it_is_full_is_refused(own_server: ValkeyServer) -> None:
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
    assert store.take(COUNT, 1, 1).given == 1  # one limit more in this window, as documented
    store.close()


def test_a_connection_that_the_server_has_ended_costs_no_request(own_server: ValkeyServer) -> None:
    store = ValkeyCounts(own_server.settings())
    assert store.take(COUNT, 10, 1).given == 1
    own_server.kill()
    own_server.start()
    assert store.take(COUNT, 10, 1).used == 2
    store.close()


def test_a_certificate_of_another_ca_or_for_another_address_is_refused(
    server: ValkeyServer, own_server: ValkeyServer, counts: ValkeyCounts
) -> None:
    wrong = ValkeyCounts(replace(server.settings(), tls_ca=own_server.ca))
    with pytest.raises(CountsUnavailable, match="certificate"):
        wrong.take(COUNT, 10, 1)
    wrong.close()
    other = ValkeyCounts(replace(server.settings(), address=type(server.settings().address)("127.0.0.2")))
    with pytest.raises(CountsUnavailable, match="not valid for"):
        other.take(COUNT, 10, 1)
    other.close()


def test_threads_of_two_gateways_share_one_limit(server: ValkeyServer, counts: ValkeyCounts) -> None:
    passed: list[int] = []
    quota = replace(QUOTA, limit=300)

    def use() -> None:
        store = ValkeyCounts(server.settings())
        meter = Meter(store)
        passed.append(sum(meter.take([(quota, "all")]) is None for _ in range(400)))
        store.close()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 300 - 4 * LEASE_AT_MOST <= sum(passed) <= 300


# --- the settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("address: 127.0.0.1", "address: valkey.example", "is not ADDRESS:PORT"),
        ("address: 127.0.0.1", "address: 192.0.2.7", "without TLS the store must be on this machine"),
        ("gateways: 2", "gateways: 0", "expected the number of gateways"),
        ("on_unavailable: deny", "on_unavailable: allow", "on_unavailable"),
        ("user: squidkeeper", "users: squidkeeper", "expected address, user, password_file"),
        ("password_file: ", "password_file: /nowhere", "cannot be read"),
    ],
)
def test_settings_that_are_wrong_make_every_count_unavailable(tmp_path: Path, old: str, new: str, problem: str) -> None:
    server = ValkeyServer(tmp_path / "valkey", tls=False)
    folder = gateway(tmp_path / "gateway", server)
    file = folder / FILE
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CountsUnavailable, match=problem):
        read_quota_store(file)
    counts = open_counts(folder / "policy", folder)
    for asked in (lambda: counts.take(COUNT, 10, 1), lambda: counts.add(COUNT, 1), counts.uses):
        with pytest.raises(CountsUnavailable, match=problem):
            asked()
    assert problem.split(" ")[0] in read_store_problem(folder, (folder / "quotas/store-away").stat().st_mtime)


def test_a_password_that_everybody_can_read_is_refused_and_never_shown(tmp_path: Path) -> None:
    folder = gateway(tmp_path / "gateway", ValkeyServer(tmp_path / "valkey", tls=False))
    (folder / "password").chmod(0o644)
    with pytest.raises(CountsUnavailable, match="chmod 0640") as caught:
        read_quota_store(folder / FILE)
    assert PASSWORD not in str(caught.value)
    (folder / "password").chmod(0o640)
    assert PASSWORD not in repr(read_quota_store(folder / FILE))


def test_without_the_file_a_gateway_counts_by_itself(tmp_path: Path) -> None:
    assert read_quota_store(tmp_path / FILE) is None
    assert isinstance(open_counts(tmp_path / "policy", tmp_path), LocalCounts)


def test_a_store_that_is_away_is_reported_until_it_answers_or_nobody_asks(tmp_path: Path) -> None:
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
