"""A connection of Squid's, without a Squid: what is read, when it is judged, and what
is answered.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from squidkeeper.base.layout import Layout
from squidkeeper.configuration.error_pages import Form
from squidkeeper.policy.bodies.json_form import ParsedJson
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine import CompiledPolicy, Decision, deny
from squidkeeper.policy.language.body_values import LARGEST_BODY
from squidkeeper.policy.language.model import Action
from squidkeeper.policy.language.roles import Session
from squidkeeper.services.bodies.body_judgement import Judgement
from squidkeeper.services.bodies.body_question import AskedBody
from squidkeeper.services.bodies.connection import (
    REST_BYTES,
    REST_SECONDS,
    SILENT_SECONDS,
    IcapConnection,
)
from squidkeeper.services.bodies.denials import DenialTurns, Pages, form_of
from squidkeeper.services.bodies.icap import CONTINUE, PREVIEW, format_chunk
from squidkeeper.services.bodies.judge import (
    BYTES_AT_MOST,
    DECIDE_SECONDS,
    EDITED_SECONDS,
    LATE,
    BodyJudge,
    Room,
    describe_place,
)
from squidkeeper.services.bodies.policies import Policies
from squidkeeper.serving.helpers.throttle import Limits
from tests.conftest import compiled_of
from tests.pushes import PUSH_TYPE, push

POLICY = """
defaults: {contact: ann@example.com}
rules:
  - {name: chat, action: allow, hosts: [llm.example], body: {json: {/model: [small]}, max: 2MB}}
  - {name: ünlike, action: deny, hosts: [llm.example], methods: [PUT], reason: No., body: {json: {/model: [large]}}}
  - {name: put, action: allow, hosts: [llm.example], methods: [PUT]}
  - {name: branches, action: allow, hosts: [git.example], body: {git: {push: [refs/heads/agent/**]}}}
"""
SMALL, LARGE = b'{"model": "small"}', b'{"model": "large"}'


class Transport:
    """What asyncio would send to, and whether it reads."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = self.aborted = False
        self.reads = True
        self.left = 0  # bytes that Squid has not taken

    def write(self, data: bytes) -> None:
        self.sent += data

    def writelines(self, data: Iterable[bytes]) -> None:
        self.sent += b"".join(data)

    def get_write_buffer_size(self) -> int:
        return self.left

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def take(self) -> bytes:
        taken, self.sent = self.sent, b""
        return taken


class Service:
    """A connection, and what its process has."""

    def __init__(
        self,
        policy: CompiledPolicy,
        folder: Path,
        at: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self.counted: list[tuple[str, ...]] = []
        self.pool = ThreadPoolExecutor(2)
        self.policies = Policies(
            lambda: policy, folder / "revisions", folder, self.pool
        )
        turns = DenialTurns(Limits(5, 100, 5), at)
        self.judge = BodyJudge(
            self.policies, Pages(Layout.of(None)), turns, self.pool, self._count
        )
        self.revision = policy.revision
        self.transport = Transport()
        self.connection = self.connect(self.transport)

    def _count(self, key: tuple[str, ...], seconds: float) -> None:
        assert 0 < seconds < 60
        self.counted.append(key)

    def connect(self, transport: Transport) -> IcapConnection:
        connection = IcapConnection(self.judge)
        connection.connection_made(cast(asyncio.Transport, transport))
        return connection

    def receive(self, *data: bytes) -> bytes:
        for piece in data:
            self.connection.data_received(piece)
        return self.transport.take()

    def asked(
        self,
        method: str = "POST",
        *,
        body: str = "req",
        listed: str = "r0,d",
        accept: str = "*/*",
        preview: bool = True,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        http = f"{method} https://llm.example/x HTTP/1.1\r\nHost: llm.example\r\nAccept: {accept}\r\n"
        http += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        http += "Content-Type: application/json\r\n\r\n"
        head = "REQMOD icap://127.0.0.1:344/ ICAP/1.0\r\n" + (
            f"Preview: {PREVIEW}\r\n" if preview else ""
        )
        noted = f"{self.revision} {listed.replace(',', '%2C')} - 192.0.2.1 gw.1.2.3"
        head += f"X-SK-Asked: {noted}\r\n"
        return f"{head}Encapsulated: req-hdr=0, {body}-body={len(http)}\r\n\r\n{http}".encode()


@pytest.fixture
def policy(tmp_path: Path) -> CompiledPolicy:
    return compiled_of(tmp_path / "policy", POLICY)


def run(
    scenario: Callable[[Service], Coroutine[Any, Any, None]],
    policy: CompiledPolicy,
    folder: Path,
) -> None:
    async def whole() -> None:
        service = Service(policy, folder, asyncio.get_running_loop().call_at)
        await scenario(service)
        service.connection.connection_lost(None)
        assert service.judge.room.held == 0
        service.pool.shutdown()

    asyncio.run(whole())


@pytest.fixture
def service(policy: CompiledPolicy, tmp_path: Path) -> Iterator[Service]:
    """A service whose threads are not needed."""
    waiting: list[Callable[[], None]] = []
    made = Service(policy, tmp_path, lambda _, then: waiting.append(then))
    yield made
    made.connection.connection_lost(None)
    assert made.judge.room.held == 0
    made.pool.shutdown()


def whole(body: bytes) -> bytes:
    return format_chunk(body) + b"0; ieof\r\n\r\n"


def test_a_body_within_the_preview_passes_by_204(service: Service) -> None:
    answer = service.receive(service.asked(), whole(SMALL))
    assert answer.startswith(b"ICAP/1.0 204 No Content\r\n")
    assert b"\r\nX-SK-Rule: chat\r\nX-SK-Verdict: allow\r\n\r\n" in answer
    assert service.receive(service.asked(), whole(SMALL)).startswith(
        b"ICAP/1.0 204 "
    ), "the connection is used again"
    assert (
        service.counted
        == [
            (
                "squidkeeper_decisions_total",
                "helper",
                "bodies",
                "rule",
                "chat",
                "verdict",
                "allow",
            )
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("method", "listed", "status"),
    [("GET", "r0,d", b"200 OK"), ("PUT", "r1,r2", b"204 No Content")],
)
def test_a_request_without_a_body_is_judged_too(
    service: Service, method: str, listed: str, status: bytes
) -> None:
    assert service.receive(
        service.asked(method, body="null", listed=listed)
    ).startswith(b"ICAP/1.0 " + status)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/plain"),
        ("application/json", "application/problem+json"),
        ("text/html, */*;q=0.1", "text/html"),
    ],
)
def test_a_denial_has_the_page_in_the_form_that_the_client_accepts(
    service: Service, accept: str, kind: str
) -> None:
    answer = service.receive(service.asked(accept=accept), whole(LARGE)).decode()
    assert answer.startswith("ICAP/1.0 200 OK\r\n")
    assert (
        "\r\nX-SK-Rule: default\r\nX-SK-Verdict: deny\r\nX-SK-Found: body:chat: "
        in answer
    )
    assert f"\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Type: {kind}" in answer
    for shown in (
        "ann@example.com",
        "gw.1.2.3",
        "192.0.2.1",
        "https://llm.example/x",
        "chat: /model",
    ):
        assert shown in answer
    command = "For the operator: sudo squidkeeper explain --body FILE --client 192.0.2.1 'POST' 'https://llm.example/x'"
    assert (command in answer) is (kind != "application/problem+json")
    assert "large" not in answer


def test_a_rule_is_named_as_it_is(service: Service) -> None:
    answer = service.receive(
        service.asked("PUT", listed="r1,r2"), whole(LARGE)
    ).decode()
    assert "\r\nX-SK-Rule: ünlike\r\n" in answer
    assert "\nRule: ünlike\nReason: No." in answer


def test_a_longer_body_is_read_judged_and_echoed(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        body = json.dumps({"model": "small", "text": "x" * 200_000}).encode()
        first, rest = body[:PREVIEW], body[PREVIEW:]
        assert service.receive(service.asked(), format_chunk(first)) == b""
        assert service.receive(b"0\r\n\r\n") == CONTINUE
        service.receive(format_chunk(rest), b"0\r\n\r\n")
        assert not service.transport.reads
        await judged(service)
        answer = service.transport.take()
        assert answer.startswith(b"ICAP/1.0 200 OK\r\n")
        assert b"POST https://llm.example/x HTTP/1.1\r\n" in answer
        assert format_chunk(body) in answer
        assert service.transport.reads

    run(scenario, policy, tmp_path)


GZIP = {"Content-Encoding": "gzip"}
MANY_VALUES = b'{"model":"small","a":[' + b"{}," * 15_000 + b"{}]}"


@pytest.mark.parametrize(
    ("headers", "body", "at_once"),
    [
        ({}, json.dumps({"model": "small", "text": "x" * 60_000}).encode(), True),
        ({"Content-Encoding": "identity"}, SMALL, True),
        (GZIP, gzip.compress(SMALL), False),
        ({"content-ENCODING": "br"}, SMALL, False),
        ({}, MANY_VALUES, False),
        ({}, json.dumps({"model": "small", "text": "x" * 70_000}).encode(), False),
    ],
    ids=["text", "identity", "gzip", "unknown encoding", "values", "long text"],
)
def test_what_may_take_long_is_judged_by_a_thread(
    service: Service, headers: dict[str, str], body: bytes, *, at_once: bool
) -> None:
    asked = whole_of(body, headers)
    asked.revision = service.revision
    assert (service.judge.at_once(asked) is not None) is at_once
    asked.listed = ",".join(["r0"] * 63 + ["d"])
    assert service.judge.at_once(asked) is None or len(body) < 100, (
        "each rule may read it"
    )


def test_a_compressed_body_is_judged_and_denied_by_a_thread(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        assert (
            service.receive(
                service.asked(headers=GZIP), whole(gzip.compress(MANY_VALUES))
            )
            == b""
        )
        await judged(service)
        assert service.transport.take().startswith(b"ICAP/1.0 204 ")
        assert (
            service.receive(service.asked(headers=GZIP), whole(gzip.compress(LARGE)))
            == b""
        )
        await judged(service)
        assert b"X-SK-Rule: default" in service.transport.take()

    run(scenario, policy, tmp_path)


def test_a_client_has_one_thread_also_when_its_connections_are_lost(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    """Otherwise a client that does not wait for its answers would have all threads."""
    under_way = Busy()

    async def scenario(service: Service) -> None:
        under_way.watch(service)
        for number in range(8):
            connection = service.connect(Transport())
            head = service.asked(headers=GZIP).replace(
                b"192.0.2.1", b"192.0.2.%d" % (1 + number // 7)
            )
            connection.data_received(head + whole(gzip.compress(SMALL)))
            for _ in range(3):
                await next_turn()
            connection.connection_lost(None)
        await asyncio.gather(*service.judge._under_way)
        assert under_way.most == {"192.0.2.1": 1, "192.0.2.2": 1}
        assert under_way.order.index("192.0.2.2") <= 2, "another client has its turn"
        assert service.judge.room.held == 0

    run(scenario, policy, tmp_path)


def test_large_bodies_are_judged_one_at_a_time(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path / "policy", POLICY.replace("2MB", "60MB"))
    under_way = Busy()

    async def scenario(service: Service) -> None:
        under_way.watch(service)
        for number in range(4):
            head = service.asked(headers=GZIP).replace(
                b"192.0.2.1", b"192.0.2.%d" % number
            )
            service.connect(Transport()).data_received(
                head + whole(gzip.compress(SMALL))
            )
        await next_turn()
        await asyncio.gather(*service.judge._under_way)
        assert under_way.most_of_all == 1
        for connection in [*service.judge.connections]:
            connection.connection_lost(None)

    run(scenario, policy, tmp_path)


async def next_turn() -> None:
    """Let the event loop call what is ready."""
    turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(turn.set)
    await turn.wait()


class Busy:
    """Counts how many judgements are under way, of each client and in all."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_of_all = 0
        self.order: list[str] = []
        self._lock = threading.Lock()

    def watch(self, service: Service) -> None:
        judge = service.judge._judge

        def watched(policy: CompiledPolicy, asked: AskedBody) -> Judgement | None:
            with self._lock:
                self.order.append(asked.client)
                self.now[asked.client] += 1
                self.most |= self.now
                self.most_of_all = max(self.most_of_all, self.now.total())
            threading.Event().wait(0.01)
            try:
                return judge(policy, asked)
            finally:
                with self._lock:
                    self.now[asked.client] -= 1

        service.judge._judge = watched  # type: ignore[method-assign]


def test_an_echo_reads_no_faster_than_squid_takes_it(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        body = json.dumps({"model": "small"}).encode()
        service.receive(service.asked(preview=False), format_chunk(body))
        service.connection._decide(service.judge.decide(policy, whole_of(body)))
        service.connection.pause_writing()
        assert not service.transport.reads
        service.connection.resume_writing()
        assert service.transport.reads
        assert service.receive(format_chunk(b"more"), b"0\r\n\r\n").endswith(
            b"4\r\nmore\r\n0\r\n\r\n"
        )

    run(scenario, policy, tmp_path)


def whole_of(
    body: bytes, headers: Mapping[str, str] = MappingProxyType({})
) -> AskedBody:
    sent = SentRequest(
        "POST", "/x", (("Content-Type", "application/json"), *headers.items()), body
    )
    return AskedBody(
        sent, "https://llm.example/x", "", "r0,d", "192.0.2.1", "gw.1.2.3", None
    )


def test_a_denied_upload_is_read_to_its_end_first(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        assert (
            service.receive(service.asked(), format_chunk(b"{" * PREVIEW), b"0\r\n\r\n")
            == CONTINUE
        )
        for _ in range(60):
            service.receive(format_chunk(b"x" * 100_000))
            await judged(service)
        assert service.transport.sent == b""
        assert service.judge.room.held < 2000, "the denial alone is held"
        assert service.receive(b"0\r\n\r\n").startswith(b"ICAP/1.0 200 OK\r\n")

    run(scenario, policy, tmp_path)


async def judged(service: Service) -> None:
    """Wait until no judgement is under way."""
    while (task := service.connection._task) is not None:
        await task


def long_push(service: Service, ref: str) -> tuple[bytes, bytes]:
    """Return the preview of a push, and the rest of its body."""
    body = push(ref) + bytes(PREVIEW)
    http = b"POST https://git.example/acme/app/git-receive-pack HTTP/1.1\r\nHost: git.example\r\n"
    http += f"Content-Type: {PUSH_TYPE}\r\n\r\n".encode()
    head = service.asked(listed="r3,d").partition(b"Encapsulated")[0]
    head += f"Encapsulated: req-hdr=0, req-body={len(http)}\r\n\r\n".encode()
    preview = head + http + format_chunk(body[:PREVIEW]) + b"0\r\n\r\n"
    return preview, format_chunk(body[PREVIEW:]) + b"0\r\n\r\n"


def test_the_pack_of_an_allowed_push_is_not_read(service: Service) -> None:
    preview, _ = long_push(service, "refs/heads/agent/a")
    assert service.receive(preview).startswith(b"ICAP/1.0 204 ")


def test_a_long_denied_push_is_answered_in_the_words_of_git(service: Service) -> None:
    preview, rest = long_push(service, "refs/heads/main")
    assert service.receive(preview) == CONTINUE
    answer = service.receive(rest)
    assert b"Content-Type: application/x-git-receive-pack-result\r\n" in answer
    assert b"ng refs/heads/main squidkeeper: rule default\n" in answer


def denied(service: Service, size: int = 100) -> None:
    """Bring a request to where it is denied, and the rest of its body is read."""
    service.receive(service.asked(preview=False), format_chunk(b"x" * size))
    service.connection._refuse(deny("default", "No."))


def test_the_rest_of_a_denied_body_has_bounds(service: Service) -> None:
    denied(service)
    service.connection._rest = REST_BYTES
    assert b"X-SK-Rule: default" in service.receive(format_chunk(b"x"))
    assert service.receive(format_chunk(b"x"), b"0\r\n\r\n") == b"", (
        "the denial is not lost, as Squid may still send"
    )
    assert service.receive(service.asked(), whole(SMALL)).startswith(b"ICAP/1.0 204 ")


def test_a_client_that_sends_on_after_its_denial_is_cut_off(service: Service) -> None:
    denied(service)
    service.connection._rest = REST_BYTES
    service.receive(format_chunk(b"x"))
    now = service.connection._heard
    service.connection._heard = now + REST_SECONDS
    service.connection.check(now + REST_SECONDS - 1)
    assert not service.transport.aborted
    service.connection.check(now + REST_SECONDS + 2)
    assert service.transport.aborted


@pytest.mark.parametrize(
    ("comes", "seconds", "outcome"),
    [
        ("half a body", DECIDE_SECONDS, b"policy-unavailable"),
        ("the rest of a denied body", REST_SECONDS, b"X-SK-Rule: default"),
        ("half a body, then nothing", SILENT_SECONDS, None),
        ("half a head, then nothing", SILENT_SECONDS, None),
    ],
)
def test_what_takes_too_long_ends(
    service: Service, comes: str, seconds: float, outcome: bytes | None
) -> None:
    now = service.connection._heard
    if comes.startswith("half a head"):
        service.receive(service.asked()[:50])
    elif comes.startswith("half a body"):
        service.receive(service.asked(), format_chunk(SMALL[:5]))
    else:
        denied(service)
    service.connection._heard = now + (0 if outcome is None else seconds)
    service.connection.check(now + seconds - 1)
    assert service.transport.sent == b""
    service.connection.check(now + seconds + 2)
    if outcome is None:
        assert service.transport.aborted
    elif comes == "half a body":
        answer = service.receive(format_chunk(b"x"), b"0; ieof\r\n\r\n")
        assert b"X-SK-Rule: policy-unavailable" in answer
        assert b"X-SK-Found: unavailable:body-late\r\n" in answer
    else:
        assert outcome in service.transport.sent


def test_an_idle_connection_stays(service: Service) -> None:
    service.receive(service.asked(), whole(SMALL))
    service.connection.check(service.connection._heard + 1e6)
    assert not service.transport.is_closing()


def test_what_squid_does_not_send_closes_the_connection(service: Service) -> None:
    assert service.receive(b"GET / HTTP/1.1\r\n\r\n").startswith(
        b"ICAP/1.0 400 Bad Request\r\n"
    )
    assert service.transport.closed


def test_a_request_without_the_notes_of_squid_is_refused(service: Service) -> None:
    sent = service.asked().replace(b" gw.1.2.3", b"")
    assert service.receive(sent, whole(SMALL)).startswith(
        b"ICAP/1.0 400 Bad Request\r\n"
    )


@pytest.mark.parametrize(
    ("seconds", "passes"), [(EDITED_SECONDS - 1, True), (EDITED_SECONDS + 1, False)]
)
def test_an_edit_reaches_a_body_that_comes_late(
    service: Service,
    policy: CompiledPolicy,
    tmp_path: Path,
    seconds: float,
    *,
    passes: bool,
) -> None:
    """Otherwise an agent could keep heads of requests as a reserve against a rule that
    is removed.
    """
    edited = compiled_of(tmp_path / "edited", POLICY.replace("[small]", "[smaller]"))
    service.receive(service.asked(), format_chunk(SMALL[:5]))
    service.policies.at_hand(policy.revision)
    service.policies._in_force = lambda: edited
    service.connection._came -= seconds
    answer = service.receive(format_chunk(SMALL[5:]), b"0; ieof\r\n\r\n")
    assert answer.startswith(b"ICAP/1.0 204 ") is passes
    assert (b"X-SK-Rule: policy-unavailable" in answer) is not passes
    assert (b"X-SK-Found: unavailable:policy-changed\r\n" in answer) is not passes


def test_a_late_body_is_judged_by_the_policy_in_force(service: Service) -> None:
    service.receive(service.asked(), format_chunk(SMALL[:5]))
    service.connection._came -= DECIDE_SECONDS - 1
    assert service.receive(format_chunk(SMALL[5:]), b"0; ieof\r\n\r\n").startswith(
        b"ICAP/1.0 204 "
    )


@pytest.mark.parametrize("listed", ["", "r9,d", "r0", "r0,r0", "x", "r0,d,d"])
def test_a_list_that_is_none_of_the_policy_denies(
    service: Service, listed: str
) -> None:
    answer = service.receive(service.asked(listed=listed), whole(SMALL))
    assert b"X-SK-Rule: policy-unavailable\r\nX-SK-Verdict: deny\r\n" in answer
    assert b"X-SK-Found: unavailable:not-passed-on\r\n" in answer


def test_a_revision_that_is_not_stored_denies(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        service.revision = "0123456789ab"
        service.receive(service.asked(), whole(SMALL))
        await judged(service)
        assert (
            b"X-SK-Rule: policy-unavailable\r\nX-SK-Verdict: deny\r\n"
            in service.transport.sent
        )

    run(scenario, policy, tmp_path)


def test_a_process_that_ends_closes_after_the_answer(service: Service) -> None:
    other = Transport()
    idle = service.connect(other)
    service.receive(service.asked())
    service.judge.drains = True
    for connection in [*service.judge.connections]:
        connection.drain()
    assert other.closed
    assert not service.transport.closed
    assert b"\r\nConnection: close\r\n" in service.receive(whole(SMALL))
    assert service.transport.closed
    idle.connection_lost(None)


def test_no_more_is_held_than_a_rule_may_need(
    policy: CompiledPolicy, tmp_path: Path
) -> None:
    async def scenario(service: Service) -> None:
        service.receive(
            service.asked(), format_chunk(b'"' + b"x" * (PREVIEW - 1)), b"0\r\n\r\n"
        )
        most = 0
        for _ in range(80):
            service.receive(format_chunk(b"x" * 50_000))
            most = max(most, service.judge.room.held)
            await judged(service)
        assert 1_900_000 < most < 2_000_000 + 2 * PREVIEW
        assert b"X-SK-Rule: default" in service.receive(b"0\r\n\r\n")

    run(scenario, policy, tmp_path)


def test_a_denial_within_the_preview_stays_one(service: Service) -> None:
    service.receive(service.asked("PUT", listed="r1,r2"), format_chunk(b"x" * 10))
    service.connection._refuse(LATE)
    assert service.receive(format_chunk(b"x" * 10), b"0\r\n\r\n") == CONTINUE
    assert b"X-SK-Rule: policy-unavailable" in service.receive(b"0\r\n\r\n")


def test_one_client_holds_a_third_of_the_room() -> None:
    room = Room(900)
    assert room.take("192.0.2.1", 300)
    assert not room.take("192.0.2.1", 1)
    assert room.take("2001:db8::1", 250)
    assert not room.take("2001:db8::2", 51), "the same network"
    room.take("192.0.2.1", -301)
    assert room.take("192.0.2.1", 300)
    assert LARGEST_BODY < BYTES_AT_MOST // 3 < 65 << 20


def test_headers_count_as_what_is_held(service: Service) -> None:
    many = {f"x{number}": "y" for number in range(2000)}
    service.receive(service.asked(headers=many))
    service.receive(format_chunk(SMALL))
    assert 400_000 < service.judge.room.held < 500_000
    service.receive(b"0; ieof\r\n\r\n")
    assert service.judge.room.held == 0


def test_a_denial_counts_as_what_is_held_until_its_turn(service: Service) -> None:
    while service.receive(service.asked(), whole(LARGE)):
        pass
    assert service.connection._judgement is not None
    assert service.judge.room.held == service.connection._judgement.size > 100
    assert service.connection._request is None
    assert service.connection._asked is not None
    assert service.connection._asked.sent.headers == ()


def test_a_denial_for_which_there_is_no_room_is_the_page(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview, rest = long_push(service, "refs/heads/main")
    # the body, and no report
    monkeypatch.setattr(service.connection, "_hold", lambda size: size > PREVIEW)
    assert b"Content-Type: text/plain; charset=utf-8\r\n" in service.receive(
        preview, rest
    )


def test_a_lost_connection_holds_nothing(service: Service) -> None:
    while service.receive(service.asked(), whole(LARGE)):
        pass
    service.connection.connection_lost(None)
    connection = service.connection
    assert (connection._asked, connection._request, connection._judgement) == (
        None,
        None,
        None,
    )
    assert service.judge.room.held == 0
    connection._write_denial()
    assert service.transport.sent == b""


def test_an_echo_counts_until_squid_has_taken_it(service: Service) -> None:
    service.receive(service.asked(preview=False), format_chunk(SMALL))
    service.transport.left = 1000
    service.connection.pause_writing()
    service.connection._decide(Judgement(Decision(Action.ALLOW, "chat")))
    assert service.judge.room.held == 1000
    service.transport.left = 1010
    service.receive(format_chunk(b"more"), b"0\r\n\r\n")
    assert service.judge.room.held == 1010, "also after the request"
    service.connection.resume_writing()
    assert service.judge.room.held == 0


def test_a_body_for_which_there_is_no_room_is_denied(service: Service) -> None:
    service.judge.room = Room(40)
    answer = service.receive(service.asked(), whole(SMALL))
    assert b"X-SK-Rule: policy-unavailable\r\nX-SK-Verdict: deny\r\n" in answer
    assert b"X-SK-Found: unavailable:body-over-share\r\n" in answer


def test_denials_of_one_client_are_throttled() -> None:
    at: list[tuple[float, Callable[[], None]]] = []
    done: list[int] = []
    turns = DenialTurns(Limits(5, 3, 5), lambda due, then: at.append((due, then)))
    for number in range(1_100):
        turns.wait("192.0.2.1", 100.0, lambda number=number: done.append(number))  # type: ignore[misc]
    assert done[:3] == [0, 1, 2]
    assert max(due for due, _ in at) <= 100.0 + 10.1
    assert len(done) == 75, "what is over the bound is answered at once"
    turns.wait("192.0.2.2", 100.0, lambda: done.append(-1))
    assert done[-1] == -1, "another client does not wait"
    for _, then in sorted(at, key=lambda turn: turn[0]):
        then()
    assert sorted(done) == sorted([*range(1_100), -1]), "each is answered once"


def test_a_denial_that_waits_for_its_turn_holds_nothing_of_its_body(
    service: Service,
) -> None:
    """A parsed document is up to 25 times as long as its body."""
    while service.receive(service.asked(), whole(LARGE)):
        pass
    assert not [found for found in gc.get_objects() if isinstance(found, ParsedJson)]


def test_the_form_of_a_page_is_chosen_as_squid_chooses_it() -> None:
    conf = (Path(__file__).parents[2] / "squid/parts/pages.conf").read_text()
    from squidkeeper.services.bodies.denials import WANTS

    for form, name in ((Form.HTML, "html"), (Form.JSON, "json")):
        line = next(
            line
            for line in conf.splitlines()
            if line.startswith(f"acl sk_is_{name}_wanted ")
        )
        written = (
            line.partition("-i ")[2]
            .replace("[[:space:]]", r"\s")
            .replace("[,\\s]", "[,\\s]")
        )
        assert written.replace("[,[:space:]]", r"[,\s]") == WANTS[form].pattern
    assert form_of([]) is Form.TEXT
    assert form_of(["text/plain", "application/json;q=0"]) is Form.TEXT


def test_an_error_is_told_without_its_text() -> None:
    with pytest.raises(ValueError, match="double quotes") as caught:
        json.loads("{secret")
    assert describe_place(caught.value).startswith("JSONDecodeError in ")
    assert "double quotes" not in describe_place(caught.value)


def test_a_body_of_a_session_is_judged_while_the_session_is_active(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = {17: Session(17, "vm-1", "agent", {})}
    monkeypatch.setattr(service.judge, "_find_session", active.get)
    asked = service.asked(listed="r0,d@17")
    assert service.receive(asked, whole(SMALL)).startswith(b"ICAP/1.0 204 ")
    active.clear()
    answer = service.receive(asked, whole(SMALL))
    assert b"\r\nX-SK-Rule: session-required\r\nX-SK-Verdict: deny\r\n" in answer
    assert b"The session of this request has ended since it began." in answer
