"""When the service of bodies fails, nothing passes unread, and what can deny beside it
denies ahead of it.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from squidkeeper.services.bodies.icap import (
    Mark,
    format_chunk,
    format_echo,
    format_unchanged,
)
from tests.waiting import pause, wait_for

from .curl import CurlFailed, curl
from .dns import Names
from .gateway import Gateway, NewGateway
from .icap_stub import ALLOWED, Asked, IcapStub, echo, skip
from .origin import Origins
from .raw import Raw
from .reply import NO_ANSWER, Reply

SECRET = "bodies-canary-" + "x" * 20
POLICY = """
version: 1
secrets:
  key: {file: secrets/key}
  lost: {file: secrets/lost}
rules:
  - {name: chat, action: allow, hosts: [llm.example, inside.example, gone.example, lost.example], methods: [POST],
     body: {json: {/model: [small]}, max: 4MB}}
  - {name: open, action: allow, hosts: [open.example]}
credentials:
  - {name: llm, hosts: [llm.example], bearer: key}
  - {name: without, hosts: [lost.example], bearer: lost}
"""
JSON = ("-H", "Content-Type: application/json", "-H", "Expect:")


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    made = new_gateway(POLICY, secrets={"key": SECRET})
    made.reads_bodies = False
    made.render()
    made.edit("squidkeeper.d/bodies.conf", "icap_io_timeout 20", "icap_io_timeout 4")
    return made


@pytest.fixture(scope="module")
def shared_stub(gateway: Gateway) -> Iterator[IcapStub]:
    with IcapStub(gateway.layout.bodies) as stub:
        gateway.start()
        yield stub


@pytest.fixture
def stub(shared_stub: IcapStub) -> Iterator[IcapStub]:
    shared_stub.requests.clear()
    shared_stub.received = b""
    yield shared_stub
    shared_stub.behaves = skip


def post(gateway: Gateway, url: str, size: int = 1_000) -> Reply:
    body = json.dumps({"model": "small", "text": "x" * size})
    try:
        return curl(gateway, url, *JSON, "--data-binary", f"@{file_of(gateway, body)}")
    except CurlFailed:
        return NO_ANSWER


def file_of(gateway: Gateway, body: str) -> Path:
    file = gateway.root / "body"
    file.write_text(body)
    return file


def test_a_request_is_judged_with_what_the_client_sent_and_never_sees_the_credential(
    gateway: Gateway, stub: IcapStub, origins: Origins
) -> None:
    for behaves, size in ((skip, 1_000), (echo, 200_000)):
        stub.behaves = behaves
        assert post(gateway, f"https://llm.example/{size}", size).status == 200
        assert origins.seen[-1].values("Authorization") == [f"Bearer {SECRET}"]
        line = gateway.logged(f"https://llm.example/{size}")
        assert (line["rule"], line["verdict"], line["credential"]) == (
            "stub",
            "allow",
            "llm",
        )
    assert len(stub.requests) == 2
    assert SECRET.encode() not in stub.received
    assert {
        request.headers["x-sk-asked"].split(" ")[1] for request in stub.requests
    } == {"r0,d"}


def test_nothing_else_is_asked_about(
    gateway: Gateway, stub: IcapStub, origins: Origins
) -> None:
    assert post(gateway, "https://open.example/x").status == 200
    assert curl(gateway, "https://open.example/x").status == 200
    assert stub.requests == []


def just(data: bytes) -> object:
    def answer(asked: Asked) -> None:
        asked.preview()
        asked.send(data)

    return answer


def close_at_head(asked: Asked) -> None:
    asked.close()


def close_at_preview(asked: Asked) -> None:
    asked.preview()
    asked.close()


def close_in_the_rest(asked: Asked) -> None:
    if asked.preview() is Mark.PREVIEW_ENDS:
        asked.more(1)
    asked.close()


def close_in_an_echo(asked: Asked) -> None:
    asked.preview()
    asked.send(
        format_echo(asked.request.http, ALLOWED) + format_chunk(asked.body[:500])
    )
    asked.close()


def hang(asked: Asked) -> None:
    asked.preview()
    asked.preview()


def go_on_after_the_end(asked: Asked) -> None:
    asked.preview()
    asked.send(b"ICAP/1.0 100 Continue\r\n\r\n" * 2)
    asked.preview()


def hang_in_an_echo(asked: Asked) -> None:
    asked.preview()
    asked.send(
        format_echo(asked.request.http, ALLOWED) + format_chunk(asked.body[:500])
    )
    asked.preview()


FAILURES = {
    "closes at the head": close_at_head,
    "closes in the preview": close_at_preview,
    "closes in the rest": close_in_the_rest,
    "closes in an echo": close_in_an_echo,
    "hangs": hang,
    "goes on after the end": go_on_after_the_end,
    "hangs in an echo": hang_in_an_echo,
    "answers HTTP": just(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "answers bytes": just(b"\x00\xff" * 100 + b"\r\n\r\n"),
    "answers an error": just(
        b"ICAP/1.0 500 Error\r\nISTag: x\r\nEncapsulated: null-body=0\r\n\r\n"
    ),
    "answers 404": just(b"ICAP/1.0 404 Not Found\r\nISTag: x\r\n\r\n"),
    "answers 200 with nothing": just(
        b"ICAP/1.0 200 OK\r\nISTag: x\r\nEncapsulated: null-body=0\r\n\r\n"
    ),
    "answers no verdict": just(format_unchanged({})),
    "answers a denial by 204": just(
        format_unchanged(ALLOWED | {"X-SK-Verdict": "deny"})
    ),
    "answers another verdict": just(
        format_unchanged(ALLOWED | {"X-SK-Verdict": "maybe"})
    ),
    "answers a head without an end": just(b"ICAP/1.0 204 No"),
}


@pytest.mark.parametrize("size", [1_000, 300_000])
@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_passes_when_the_service(
    gateway: Gateway, stub: IcapStub, origins: Origins, failure: str, size: int
) -> None:
    stub.behaves = FAILURES[failure]  # type: ignore[assignment] # each is a behaviour
    url = f"https://llm.example/{failure.replace(' ', '-')}/{size}"
    reply = post(gateway, url, size)
    assert reply.status in (0, 403, 500, 502)
    assert origins.seen == []
    line = gateway.logged(url)
    assert line["verdict"] in ("deny", "allow" if "echo" in failure else "deny")
    if "echo" not in failure and reply.status != 403:
        assert line["found"] == "unavailable:body-unanswered"
    stub.behaves = skip
    assert post(gateway, "https://llm.example/after").status == 200


DENIED_BESIDE = (
    ("https://inside.example", 403, "private-address"),
    ("http://inside.example", 403, "private-address"),
    ("https://lost.example", 403, "credential-unavailable"),
    ("http://gone.example", 503, "chat"),
)


@pytest.mark.parametrize("size", [1_000, 300_000])
def test_what_denies_beside_the_body_denies_ahead_of_the_service(
    gateway: Gateway, stub: IcapStub, origins: Origins, names: Names, size: int
) -> None:
    names.set("inside.example", ["10.0.0.5"])
    names.set("gone.example", [])
    for origin, status, rule in DENIED_BESIDE:
        reply = post(gateway, f"{origin}/{size}", size)
        # Squid closes without reading the rest of an upload: the page of a long one can
        # be lost with the connection.
        assert reply.status in ((status,) if size < 10_000 else (0, status))
        line = gateway.logged(f"{origin}/{size}")
        assert (line["status"], line["rule"]) == (status, rule), origin
    assert stub.requests == []
    assert origins.seen == []


def test_nothing_passes_while_no_service_is_there(
    new_gateway: NewGateway, origins: Origins
) -> None:
    made = new_gateway(POLICY, secrets={"key": SECRET})
    made.reads_bodies = False
    made.start()
    for size in (1_000, 300_000):
        assert post(made, f"https://llm.example/{size}", size).status == 500
        line = made.logged(f"https://llm.example/{size}")
        assert (line["rule"], line["verdict"]) == ("policy-unavailable", "deny")
    assert post(made, "https://open.example/x").status == 200
    assert [seen.url for seen in origins.seen] == ["https://open.example/x"]


def load(gateway: Gateway, seconds: float) -> Counter[int]:
    """Post by several clients at once; returns how often each status came, 0
    for none.
    """
    until = time.monotonic() + seconds
    statuses: Counter[int] = Counter()

    def client(number: int) -> None:
        body = json.dumps(
            {"model": "small", "text": "x" * (200_000 if number % 4 == 0 else 2_000)}
        ).encode()
        lines = (
            "POST http://llm.example/load HTTP/1.1",
            "Host: llm.example",
            "Content-Type: application/json",
        )
        whole = (
            "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
            + body
        )
        while time.monotonic() < until:
            with Raw(gateway) as raw:
                for _ in range(50):
                    try:
                        reply = raw.send(whole).answer()
                    except OSError:
                        reply = NO_ANSWER
                    statuses[reply.status] += 1
                    if reply.status != 200:
                        break

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(client, number) for number in range(12)]:
            done.result()
    return statuses


@pytest.mark.parametrize(
    "by", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_a_restart_loses_nothing_and_a_kill_what_was_under_way(
    new_gateway: NewGateway, origins: Origins, by: signal.Signals
) -> None:
    made = new_gateway(POLICY, secrets={"key": SECRET})
    made.reads_bodies = False
    made.start_bodies(2)
    made.start()

    def restart() -> None:
        for _ in range(6):
            pause(1, "the pace of restarts")
            process = made.bodies.pop(0)
            process.send_signal(by)
            process.wait(30)
            made.start_bodies()

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        statuses = load(made, 20)
        restarting.result()
    assert statuses[200] > 500
    assert {*statuses} == {200} if by is signal.SIGTERM else statuses[500] < 50


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_squid_and_the_service_stay_as_they_are_after_10_000_denials_and_10_000_echoes(
    new_gateway: NewGateway, origins: Origins
) -> None:
    made = new_gateway(POLICY, secrets={"key": SECRET}).start()
    [service] = made.bodies
    processes = (psutil.Process(made.pid), psutil.Process(service.pid))
    bodies = [
        chat(model, size) for model in ("small", "large") for size in (100_000, 1_000)
    ]

    def client(turns: int) -> None:
        for turn in range(turns):
            raw = Raw(made)
            for _ in range(25):
                reply = raw.send(bodies[turn % len(bodies)]).answer()
                assert reply.status in (200, 403)
                if reply.header("Connection") == "close":
                    raw.close()
                    raw = Raw(made)
            raw.close()
            origins.seen.clear()

    def held() -> list[tuple[int, int]]:
        return [
            (process.num_fds(), process.memory_info().rss >> 20)
            for process in processes
        ]

    def post(turns: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(client, turns) for _ in range(8)]:
                done.result()

    post(20)
    before = held()
    post(200)  # of 25 requests, by 8 clients: 10,000 of each of the four bodies
    wait_for(
        lambda: held()[0][0] <= before[0][0] + 20,
        lambda: f"descriptors: {before} before, {held()} after",
    )
    after = held()
    assert all(
        later[1] <= earlier[1] + 30
        for earlier, later in zip(before, after, strict=True)
    ), f"{before} {after}"


def chat(model: str, size: int) -> bytes:
    body = json.dumps({"model": model, "text": "x" * size}).encode()
    lines = (
        "POST http://llm.example/load HTTP/1.1",
        "Host: llm.example",
        "Content-Type: application/json",
    )
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.long
def test_two_workers_of_squid_are_judged_by_two_processes(
    new_gateway: NewGateway, origins: Origins
) -> None:
    made = new_gateway(POLICY, options=("--workers", "2"), secrets={"key": SECRET})
    made.reads_bodies = False
    made.start_bodies(2)
    made.start()
    for number in range(24):
        with Raw(made) as raw:
            model, size = (
                ("small", "large")[number % 2],
                (1_000, 100_000)[number % 3 == 0],
            )
            reply = raw.send(chat(model, size)).answer()
        assert reply.status == (200 if model == "small" else 403)
    assert len(origins.seen) == 12
    for process in made.bodies:
        process.send_signal(signal.SIGSTOP)
    made.kill_bodies()
    with Raw(made) as raw:
        assert raw.send(chat("small", 1_000)).answer().status == 500
    assert len(origins.seen) == 12


@pytest.mark.long
def test_a_service_that_is_stopped_passes_nothing(
    new_gateway: NewGateway, origins: Origins
) -> None:
    made = new_gateway(POLICY, secrets={"key": SECRET})
    made.render()
    made.edit("squidkeeper.d/bodies.conf", "icap_io_timeout 20", "icap_io_timeout 10")
    made.start()
    assert post(made, "http://llm.example/before").status == 200
    made.bodies[0].send_signal(signal.SIGSTOP)
    replies = [
        post(made, f"http://llm.example/{size}", size) for size in (1_000, 200_000)
    ]
    assert [reply.status for reply in replies] == [500, 500]
    assert [seen.target for seen in origins.seen] == ["/before"]
    made.bodies[0].send_signal(signal.SIGCONT)
    assert post(made, "http://llm.example/after").status == 200


@pytest.mark.long
def test_a_slow_denied_upload_is_answered_after_a_minute(
    new_gateway: NewGateway, origins: Origins
) -> None:
    made = new_gateway(POLICY, secrets={"key": SECRET}).start()
    # over the limit: it is denied then
    whole, before = (
        chat("large", 5_000_000),
        4_500_000,
    )
    with Raw(made) as raw:
        raw.send(whole[:before])
        for place in range(before, before + 70):
            pause(1, "a slow client")
            raw.send(whole[place : place + 1])
        assert raw.answer().status == 403
    assert origins.seen == []
