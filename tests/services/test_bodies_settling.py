"""What is reserved and settled of metered requests, without a Squid, and what fails
meanwhile.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import Rule
from squidkeeper.policy.usage.tokens import NOTHING_USED, Unmetered, Usage
from squidkeeper.record.usage_ledger import (
    UsageEntry,
    UsageState,
    latest,
    ledger_file,
    ledger_files,
    read_entries,
)
from squidkeeper.services.bodies import settlement
from squidkeeper.services.bodies.body_judgement import Judgement
from squidkeeper.services.bodies.body_question import AskedBody
from squidkeeper.services.bodies.denials import Pages
from squidkeeper.services.bodies.policies import Policies
from squidkeeper.services.bodies.settlement import Metered, Settler
from squidkeeper.serving.quotas import reserves
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.reserves import ReservedCounts
from tests.conftest import compiled_of
from tests.serving.quota_workers import Clock
from tests.waiting import wait_for

POLICY = """
quotas:
  - {name: daily, tokens: 1000, per: client, every: day}
  - {name: other, tokens_out: 1, per: client, clients: [bob], every: day}
clients: {bob: {networks: [192.0.2.9]}}
prices: [{model: "*", in: 1, out: 2}]
rules:
  - {name: ünlimited, action: allow, hosts: [llm.example], meter: tokens, reserve: 50, ask_usage: true}
"""
CHAT = b'{"model": "gpt-x", "max_tokens": 100, "stream": true}'


class Service:
    """What counts, and what it has written."""

    def __init__(self, policy: CompiledPolicy, folder: Path) -> None:
        self.policy = policy
        self.state = folder / "state"
        (self.state / "bodies").mkdir(parents=True, exist_ok=True)
        self.counted: list[tuple[str, ...]] = []
        policies = Policies(
            lambda: policy, folder / "revisions", folder, ThreadPoolExecutor(1)
        )
        self.settler = Settler(
            folder / "policy",
            self.state,
            policies,
            Pages(Layout.of(None)),
            self.counted.extend,
        )

    async def reserve(
        self,
        number: str,
        body: bytes = CHAT,
        client: str = "192.0.2.1",
        call: str = "POST /v1/chat/completions",
        encoding: str = "identity",
        user: str | None = None,
        worker: str = "1",
        accept: str = "application/json",
    ) -> Judgement:
        headers = [
            ("Content-Type", "application/json"),
            ("Accept", accept),
            ("Content-Encoding", encoding),
        ]
        method, target = call.split()
        sent = SentRequest(method, target, headers, body)
        asked = AskedBody(
            sent,
            "https://llm.example/v1/x",
            self.policy.revision,
            "r0",
            client,
            f"gw.{number}",
            None,
            user,
            worker,
        )
        rule = self.policy.source.rules[0]
        judgement = Judgement(self.policy.decision_by(rule), meter=(self.policy, rule))
        judgement, self.body = await self.settler.reserve(judgement, asked)
        return judgement

    async def settle(
        self, judgement: Judgement, outcome: Usage | Unmetered, *, whole: bool = True
    ) -> UsageEntry:
        metered = Metered.parse(judgement.metered)
        self.settler.settle(metered, outcome, whole=whole)
        await self.settler.finish()
        return latest(self.lines())[metered.request.request_id]

    def lines(self) -> list[UsageEntry]:
        return [*read_entries(ledger_files(self.state))]

    def held(self) -> int:
        """How many rows hold something."""
        with closing(
            sqlite3.connect(self.state / "bodies/quotas/counts.db")
        ) as database:
            return int(database.execute("SELECT count(*) FROM held").fetchone()[0])

    def used(self) -> int:
        with closing(LocalCounts(self.state / "bodies")) as counts:
            return sum(use.used for use in counts.uses() if use.count.quota == "daily")


def run(
    scenario: Callable[[Service], Coroutine[None, None, None]], folder: Path
) -> None:
    policy = compiled_of(folder / "policy", POLICY)

    async def whole() -> None:
        service = Service(policy, folder)
        try:
            await scenario(service)
        finally:
            await service.settler.finish()
            service.settler._thread.submit(service.settler._reserves.close).result()

    asyncio.run(whole())


TOKENS_IN = -(-len(CHAT) // 4)
RESERVE = TOKENS_IN + 100


@pytest.mark.parametrize(
    ("outcome", "whole", "state", "tokens", "cost"),
    [
        (Usage("gpt-x-1", 7, 5), True, UsageState.METERED, 12, 17),
        (Usage("", 7, 500, cached_in=3), False, UsageState.METERED, 507, 1_007),
        (NOTHING_USED, True, UsageState.METERED, 0, 0),
        (
            Unmetered("It reports none."),
            True,
            UsageState.UNMETERED,
            RESERVE,
            TOKENS_IN + 200,
        ),
        (
            Unmetered("It was cut.", tokens_out=7),
            False,
            UsageState.RESERVED,
            RESERVE,
            TOKENS_IN + 200,
        ),
        (
            Unmetered("It was cut.", tokens_in=90, tokens_out=300),
            False,
            UsageState.RESERVED,
            390,
            690,
        ),
    ],
)
def test_a_request_counts_for_what_is_reported_or_for_its_reserve(
    tmp_path: Path,
    outcome: Usage | Unmetered,
    whole: bool,
    state: UsageState,
    tokens: int,
    cost: int,
) -> None:
    async def scenario(service: Service) -> None:
        judgement = await service.reserve("1")
        assert judgement.headers["X-SK-Metered"] == judgement.metered
        assert service.used() == RESERVE
        entry = await service.settle(judgement, outcome, whole=whole)
        assert (entry.state, entry.tokens_in + entry.tokens_out, entry.cost) == (
            state,
            tokens,
            cost,
        )
        assert (entry.reserved_in, entry.reserved_out) == (TOKENS_IN, 100)
        assert (entry.rule, entry.model) == (
            "%C3%BCnlimited",
            "gpt-x-1" if outcome == Usage("gpt-x-1", 7, 5) else "gpt-x",
        )
        assert service.used() == tokens

    run(scenario, tmp_path)


def test_a_stream_is_asked_for_its_usage(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        await service.reserve("1")
        assert service.body is not None
        assert b'"include_usage": true' in service.body
        await service.reserve("2", b"{}")
        assert service.body is None

    run(scenario, tmp_path)


def test_a_quota_denies_and_nothing_is_held(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        denied = await service.reserve("1", b'{"max_tokens": 2000}')
        assert (denied.allowed, denied.decision.rule, denied.metered) == (
            False,
            "quota",
            "",
        )
        assert denied.headers["X-SK-Found"] == "quota:daily"
        assert b"may use 2,005 tokens" in (denied.answer or (b"", b""))[1]
        assert ("squidkeeper_quota_denials_total", "quota", "daily") in service.counted
        assert (await service.reserve("2", client="192.0.2.9")).headers[
            "X-SK-Found"
        ] == "quota:other"
        assert service.lines() == []
        assert service.used() == 0

    run(scenario, tmp_path)


@pytest.mark.parametrize(("tokens", "never"), [(990, False), (995, False), (996, True)])
def test_a_request_that_never_fits_is_told_that_no_reset_helps(
    tmp_path: Path, tokens: int, *, never: bool
) -> None:
    """Its prompt counts for five more; another one has used three."""

    async def scenario(service: Service) -> None:
        used = await service.reserve("0")
        await service.settle(used, Usage("gpt-x", 2, 10))
        denied = await service.reserve("1", b'{"max_tokens": %d }' % tokens)
        page = json.loads((denied.answer or (b"", b""))[1])
        assert denied.headers["X-SK-Found"] == "quota:daily"
        assert (page["title"], page["rule"]) == (
            "DENIED by a quota of this gateway",
            "quota",
        )
        assert (page["retryable"], "resets" in page) == (not never, not never)
        assert (
            "more than the whole quota daily (1,000 tokens a day for each client)"
            in page["reason"]
        ) == never
        text = await service.reserve(
            "2", b'{"max_tokens": %d }' % tokens, accept="text/plain"
        )
        assert (b"\nRetry: does not help\n" in (text.answer or (b"", b""))[1]) == never

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("user", "options"),
    [
        ("alice", " --user=alice"),
        ("a.b@c-d", " --user=a.b@c-d"),
        (None, ""),
        ("a'; reboot; '", ""),
        ("a</xmp>", ""),
        ("a\nb", ""),
        ("é", ""),
    ],
)
def test_the_command_on_the_page_names_the_user_where_that_is_safe_to_paste(
    tmp_path: Path, user: str | None, options: str
) -> None:
    async def scenario(service: Service) -> None:
        for accept in ("text/plain", "text/html"):
            denied = await service.reserve(
                "1", b'{"max_tokens": 2000}', user=user, accept=accept
            )
            page = (denied.answer or (b"", b""))[1].decode()
            assert (
                f"squidkeeper explain --client 192.0.2.1{options} 'POST' 'https://llm.example/v1/x'\n"
                in page
            )

    run(scenario, tmp_path)


def test_requests_of_two_workers_with_the_same_id_both_count(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        first = await service.reserve("1", worker="1")
        # Squid asks again where a process was killed
        again = await service.reserve("1", worker="1")
        second = await service.reserve("1", worker="2", client="192.0.2.1")
        assert (first.metered, service.held()) == (again.metered, 2)
        for judgement in (first, second):
            await service.settle(judgement, Usage("gpt-x", 30, 40))
        assert (service.held(), service.used()) == (0, 2 * 70)

    run(scenario, tmp_path)


def test_requests_that_have_not_ended_hold_what_another_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service) -> None:
        held = [
            await service.reserve(str(number), b'{"max_tokens": 300}')
            for number in range(3)
        ]
        assert all(judgement.allowed for judgement in held)
        denied = await service.reserve("3", b'{"max_tokens": 300}')
        assert "requests that have not ended hold" in (denied.decision.reason or "")
        monkeypatch.setattr(settlement, "_AGAIN_SECONDS", (0.02,) * 1_000)
        waiting = asyncio.create_task(service.reserve("4", b'{"max_tokens": 300}'))
        await service.settle(held[0], NOTHING_USED)
        assert (await waiting).allowed

    run(scenario, tmp_path)


def test_what_cannot_be_counted_is_denied(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        await service.settler.finish()
        (service.state / "bodies/quotas").write_text("no folder")
        denied = await service.reserve("1")
        assert denied.headers["X-SK-Found"] == "quota-unavailable:daily"
        assert "cannot be counted at the moment" in (denied.decision.reason or "")
        (service.state / "bodies/quotas").unlink()
        assert (await service.reserve("2")).allowed

    run(scenario, tmp_path)


def test_a_request_that_uses_nothing_has_no_line(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        judgement = await service.reserve("1", b"", call="GET /v1/models")
        assert judgement.allowed
        metered = Metered.parse(judgement.metered)
        service.settler.settle(metered, Unmetered("It reports none."), whole=True)
        await service.settler.finish()
        assert (service.lines(), service.held()) == ([], 0)
        judgement = await service.reserve("2", b"", call="GET /v1/models")
        entry = await service.settle(judgement, Usage("gpt-x-1", 7, 5))
        assert (entry.tokens_in, entry.tokens_out) == (7, 5)

    run(scenario, tmp_path)


def test_a_request_waits_while_another_process_writes_the_counts(
    tmp_path: Path,
) -> None:
    async def scenario(service: Service) -> None:
        await service.reserve("1")
        counts = service.state / "bodies/quotas/counts.db"
        with closing(sqlite3.connect(counts, check_same_thread=False)) as database:
            database.execute("BEGIN IMMEDIATE")
            reserved = asyncio.create_task(service.reserve("2"))
            await asyncio.to_thread(
                wait_for, lambda: service.settler._problem, "the first try"
            )
            database.rollback()
        judgement = await reserved
        assert judgement.allowed, judgement.decision.reason

    run(scenario, tmp_path)


def test_a_settlement_that_fails_is_made_later(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        judgement = await service.reserve("1")
        (service.state / "bodies/quotas").rename(service.state / "bodies/away")
        (service.state / "bodies/quotas").write_text("no folder")
        assert not (await service.settle(judgement, Usage("m", 3, 4))).settled
        (service.state / "bodies/quotas").unlink()
        (service.state / "bodies/away").rename(service.state / "bodies/quotas")
        service.settler.tick()
        await service.settler.finish()
        assert latest(service.lines())["gw.1"].settled
        assert service.used() == 7

    run(scenario, tmp_path)


@contextmanager
def locked(bodies: Path) -> Iterator[None]:
    """Another process keeps the counts to itself, and hangs."""
    with closing(
        sqlite3.connect(bodies / "quotas/counts.db", isolation_level=None)
    ) as database:
        database.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def full(bodies: Path) -> Iterator[None]:
    """The disk of counts and ledger has no room."""
    ballast = bodies / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    ballast.unlink()


@pytest.mark.system
@pytest.mark.parametrize("trouble", [locked, full])
def test_while_counts_cannot_be_written_requests_are_denied_and_what_was_used_counts_afterwards(
    tmp_path: Path, trouble: Callable[[Path], AbstractContextManager[None]]
) -> None:
    async def scenario(service: Service) -> None:
        bodies = service.state / "bodies"
        begun = [
            await service.reserve(str(number), b'{"max_tokens": 90}')
            for number in range(2)
        ]
        with trouble(bodies):
            assert (await service.reserve("7")).headers[
                "X-SK-Found"
            ] == "quota-unavailable:daily"
            for judgement in begun:
                assert not (await service.settle(judgement, Usage("m", 30, 40))).settled
            service.settler.tick()
            assert (await service.reserve("8")).headers[
                "X-SK-Found"
            ] == "quota-unavailable:daily"
        service.settler.tick()
        await service.settler.finish()
        assert (service.used(), service.held()) == (2 * 70, 0)
        assert (
            sum(
                entry.tokens_in + entry.tokens_out
                for entry in latest(service.lines()).values()
            )
            == 2 * 70
        )
        assert (await service.reserve("9")).allowed

    (tmp_path / "state/bodies").mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "state/bodies"],
        check=True,
    )
    try:
        run(scenario, tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "state/bodies"], check=True)


def test_a_clock_that_is_set_back_a_day_gives_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service) -> None:
        judgement, held = (
            await service.reserve("1"),
            await service.reserve("2", b'{"max_tokens": 200}'),
        )
        await service.settle(judgement, Usage("m", 600, 100))
        clock.now -= 86_400
        assert not (await service.reserve("3")).allowed
        assert (await service.settle(held, Usage("m", 50, 50))).settled
        assert (await service.reserve("4", b'{"max_tokens": 150}')).allowed
        assert not (await service.reserve("5", b'{"max_tokens": 50}')).allowed

    clock = Clock()
    monkeypatch.setattr(ReservedCounts.__init__, "__defaults__", (clock,))
    run(scenario, tmp_path)


def test_a_line_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        ledger = ledger_file(service.state)
        ledger.parent.mkdir()
        ledger.mkdir()
        judgement = await service.reserve("1")
        assert judgement.allowed
        ledger.rmdir()
        assert (await service.settle(judgement, Usage("m", 3, 4))).settled
        service.settler.tick()
        await service.settler.finish()
        assert [entry.settled for entry in service.lines()] == [True, False]
        assert latest(service.lines())["gw.1"].tokens_in == 3

    run(scenario, tmp_path)


def test_an_answer_that_is_read_again_counts_once(tmp_path: Path) -> None:
    """A response in the background reports its usage in a later answer, which can be
    read often.
    """

    async def scenario(service: Service) -> None:
        begun = await service.settle(
            await service.reserve("1"), Unmetered("later", answer_id="resp_1")
        )
        assert (begun.tokens_in, begun.tokens_out) == (TOKENS_IN, 100)
        told = Usage("m", 5, 130, answer_id="resp_1")
        get = "GET /v1/responses/resp_1"
        read = await service.settle(await service.reserve("2", b"", call=get), told)
        assert (read.tokens_in, read.tokens_out) == (0, 30)
        again = await service.reserve("3", b"", call=get)
        service.settler.settle(Metered.parse(again.metered), told, whole=True)
        await service.settler.finish()
        assert "gw.3" not in latest(service.lines()), "it uses nothing more"
        assert service.used() == TOKENS_IN + 130

    run(scenario, tmp_path)


def test_a_client_that_chooses_the_id_of_its_answers_pays_for_each(
    tmp_path: Path,
) -> None:
    async def scenario(service: Service) -> None:
        for number in ("1", "2"):
            told = await service.settle(
                await service.reserve(number), Usage("m", 5, 130, answer_id="mine")
            )
            assert (told.tokens_in, told.tokens_out) == (5, 130)
        assert service.used() == 270

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b'{"max_tokens": 1, "max_tokens": 64000}', "identity", "plain JSON"),
        (b'{"max_tokens": "64000"}', "identity", "no whole number"),
        (
            CHAT,
            "br",
            "the body is compressed, and the rule ünlimited has ask_usage: send it plain",
        ),
        (gzip.compress(CHAT, mtime=0), "gzip", "the body is compressed"),
    ],
)
def test_a_request_is_denied_whose_use_cannot_be_told(
    tmp_path: Path, body: bytes, encoding: str, reason: str
) -> None:
    async def scenario(service: Service) -> None:
        denied = await service.reserve("1", body, encoding=encoding)
        assert (denied.decision.rule, denied.metered) == ("invalid-request", "")
        assert reason in (denied.decision.reason or "")
        found = denied.headers["X-SK-Found"].encode("latin-1").decode()
        assert (
            denied.decision.reason
            == f"The gateway cannot tell what this request may use: {found.removeprefix('body:')}."
        )
        assert service.lines() == []

    run(scenario, tmp_path)


def test_a_body_that_inflates_has_a_thread_and_a_client_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(b'{"messages": "' + bytes(32 << 20) + b'"}')
    read, at_once, most = settlement._metered, 0, 0

    def metered(
        policy: CompiledPolicy, rule: Rule, asked: AskedBody
    ) -> tuple[Metered, bytes | None]:
        nonlocal at_once, most
        assert threading.current_thread() is not threading.main_thread()
        at_once += 1
        most = max(most, at_once)
        try:
            return read(policy, rule, asked)
        finally:
            at_once -= 1

    async def scenario(service: Service) -> None:
        monkeypatch.setattr(settlement, "_metered", metered)
        sent = [
            service.reserve(str(n), bomb, call="POST /v1/messages", encoding="gzip")
            for n in range(3)
        ]
        assert not any(judgement.allowed for judgement in await asyncio.gather(*sent))
        assert most == 1

    run(scenario, tmp_path)


def test_a_flood_of_requests_without_answers_leaves_few_rows_and_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve of a long answer is merged with theirs.

    What it uses beyond that counts all the same.
    """
    monkeypatch.setattr(reserves, "ROWS_AT_MOST", 10)

    async def scenario(service: Service) -> None:
        long = await service.reserve("1")
        flood = [
            await service.reserve(f"2{number:02}", b"", call="GET /v1/responses/x")
            for number in range(60)
        ]
        assert service.held() <= 11
        assert service.used() == RESERVE
        await service.settle(long, Usage("m", 400, 300))
        assert service.used() == 700
        await service.settle(flood[-1], Usage("m", 10, 20))
        assert service.used() == 730

    run(scenario, tmp_path)


def test_what_cannot_be_priced_costs_its_reserve(tmp_path: Path) -> None:
    async def scenario(service: Service) -> None:
        judgement = await service.reserve("1")
        metered = Metered.parse(judgement.metered)
        service.settler._settle(metered, Usage("m", 7, 500), None, whole=True)
        await service.settler.finish()
        entry = latest(service.lines())["gw.1"]
        assert (entry.state, entry.tokens_out, entry.cost) == (
            UsageState.UNMETERED,
            500,
            TOKENS_IN + 200,
        )

    run(scenario, tmp_path)


def test_the_line_of_a_killed_process_is_written_by_the_next_one(
    tmp_path: Path,
) -> None:
    async def scenario(service: Service) -> None:
        await service.reserve("1")
        # as if it had been killed ahead of this
        ledger_file(service.state).write_text("")
        other = Service(service.policy, tmp_path)
        await other.settler.finish()
        other.settler._thread.submit(other.settler._reserves.close).result()
        assert [entry.request_id for entry in service.lines()] == ["gw.1"]

    run(scenario, tmp_path)
