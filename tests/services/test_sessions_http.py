"""What the service of sessions makes of HTTP, and what one caller can hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from waitress import wasyncore

from squidkeeper.cli import main
from squidkeeper.services.exporter.sources import is_answered
from squidkeeper.services.sessions.server import bind, serve

from ..waiting import wait_for
from .test_sessions_calls import (
    CODING,
    OTHER_UID,
    SETTINGS,
    STRANGER_UID,
    Answered,
    Service,
    connected,
    serving,
)

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

pytestmark = pytest.mark.system
PLAIN = {"role": "plain", "labels": {"task": "1"}}
GET = b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    yield from serving()


@pytest.fixture(autouse=True)
def nothing_is_left(service: Service) -> Iterator[None]:
    yield
    for uid in (0, OTHER_UID):
        service.call("PUT", "/v1/sessions", {"sessions": []}, uid=uid)


def answer_of(connection: socket.socket) -> HTTPResponse:
    from http.client import HTTPResponse

    answer = HTTPResponse(connection)
    answer.begin()
    return answer


def asked(service: Service, sent: bytes, uid: int = 0) -> tuple[int, bytes]:
    """Send bytes; return the status and the body of the first answer."""
    with service.connect(uid) as connection:
        with suppress(BrokenPipeError):  # it is refused before it is sent
            connection.sendall(sent)
        with closing(answer_of(connection)) as answer:
            return answer.status, answer.read()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end is closed, without an answer; waits for that."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_who_is_no_orchestrator_is_closed_before_a_byte_is_read(
    service: Service,
) -> None:
    for _ in range(300):
        with service.connect(STRANGER_UID) as stranger:
            assert is_closed(stranger)
    for size in (b"100", b"9999999"):
        with service.connect(STRANGER_UID) as stranger:
            with suppress(OSError):
                stranger.sendall(
                    b"PUT /v1/sessions HTTP/1.1\r\nContent-Length: "
                    + size
                    + b"\r\n\r\n"
                )
            assert is_closed(stranger)
    assert service.put("vm", CODING).status == 201


def test_a_caller_whose_right_is_gone_is_refused_on_an_open_connection(
    service: Service,
) -> None:
    with service.connect(OTHER_UID) as connection:
        connection.sendall(GET)
        with closing(answer_of(connection)) as answer:
            assert (answer.status, bool(answer.read())) == (200, True)
        others = SETTINGS.replace(str(OTHER_UID), str(STRANGER_UID))
        service.settings.write_text(others)
        try:
            connection.sendall(GET)
            with closing(answer_of(connection)) as answer:
                assert answer.status == 403
            with service.connect(OTHER_UID) as new:
                assert is_closed(new)
        finally:
            service.settings.write_text(SETTINGS)


def test_connections_of_one_orchestrator_keep_no_other_one_out(
    service: Service,
) -> None:
    begun = b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"
    slow = [service.connect(OTHER_UID) for _ in range(80)]
    try:
        for one in slow:
            with suppress(OSError):  # it has made room for another one of its own
                one.sendall(begun)
        kept = service.connect()
        with kept:
            kept.sendall(GET)
            with closing(answer_of(kept)) as answer:
                assert answer.status == 200
        assert service.put("vm", CODING).status == 201
    finally:
        for one in slow:
            one.close()


@contextmanager
def served(application: WSGIApplication) -> Iterator[Path]:
    """Serve an application to everybody in this process; yield the socket."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # each user can reach it
    folder.chmod(0o755)
    server = serve(application, bind(folder / "socket"), lambda _: True)
    ended, sockets = threading.Event(), vars(server)["_map"]

    def loop() -> None:
        while not ended.is_set():
            wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield folder / "socket"
    finally:
        ended.set()
        thread.join()
        server.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)
        shutil.rmtree(folder)


def test_calls_that_wait_keep_the_threads_of_their_own_caller_alone() -> None:
    goes_on = threading.Event()

    def application(environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            goes_on.wait(60)
        start("204 No Content", [])
        return []

    with served(application) as path, ExitStack() as stack:
        waiting = [stack.enter_context(connected(path)) for _ in range(60)]
        for one in waiting:
            one.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
        other = stack.enter_context(connected(path, OTHER_UID))
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with closing(answer_of(other)) as answer:
            assert answer.status == 204
        assert not goes_on.is_set()
        goes_on.set()
        for one in waiting:
            with closing(answer_of(one)) as answer:
                assert answer.status == 204


def test_a_body_that_says_to_be_too_long_is_refused_before_it_is_read(
    service: Service,
) -> None:
    for where, length in (("/v1/sessions/a", 65_537), ("/v1/sessions", 8_388_609)):
        long = f"PUT {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        assert asked(service, long.encode())[0] == 413
    full = b'{"role": "plain"}'.ljust(65_536)
    head = b"PUT /v1/sessions/full HTTP/1.1\r\nContent-Length: 65536\r\n\r\n"
    assert asked(service, head + full)[0] == 201


def test_one_caller_cannot_send_more_than_two_whole_lists_at_a_time(
    service: Service,
) -> None:
    begun = (
        b"PUT /v1/sessions HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n",
        b"PUT /v1/sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    slow = [service.connect(OTHER_UID) for _ in begun]
    try:
        for one, head in zip(slow, begun, strict=True):
            one.sendall(head + b"1")
        third = b"PUT /v1/sessions HTTP/1.1\r\nContent-Length: 800000\r\n\r\n"
        wait_for(lambda: asked(service, third, OTHER_UID)[0] == 429, "the bound")
        status, body = asked(service, third, OTHER_UID)
        assert (status, b'"too-much-at-once"' in body) == (429, True)
        listed = {"sessions": [{"name": "vm", **CODING}]}
        assert service.call("PUT", "/v1/sessions", listed).status == 200
    finally:
        for one in slow:
            one.close()


def test_bodies_and_answers_reach_no_disk(service: Service) -> None:
    """They hold secrets and tokens."""
    assert service.process
    sessions = [{"name": f"vm-{n}", **CODING} for n in range(30)]
    padded = b'{"sessions": [' + b" " * 3_000_000
    with service.connect() as connection:
        connection.sendall(
            b"PUT /v1/sessions HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" + padded
        )
        other = service.call("PUT", "/v1/sessions", {"sessions": sessions})
        assert other.status == 200
        links = Path(f"/proc/{service.process.pid}/fd").iterdir()
        own = [link for link in links if int(link.name) > 2]  # not those of the test
        names = [str(link.readlink()) for link in own if link.is_symlink()]
        assert names
        assert not [name for name in names if "(deleted)" in name]


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
        b"PUT /v1/sessions/a HTTP/1.1\r\nTransfer-Encoding:\r\nContent-Length: 2",
        b"PUT /v1/sessions/a HTTP/1.0\r\nTransfer-Encoding: chunked",
        b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3",
        b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: +2",
        b"PUT /v1/sessions/a HTTP/1.1\r\nContent-Length: " + b"9" * 5000,
        b"GET /v1/sessions/a%2Feffective HTTP/1.1",
        b"GET /v1/sessions%2Fa HTTP/1.1",
        b"DELETE /v1/sessions/a#b HTTP/1.1",
        b"GET http://[x/ HTTP/1.1",
        b"get /v1/sessions HTTP/1.1",
        b"what is this",
    ],
)
def test_what_others_may_read_in_another_way_is_refused(
    service: Service, head: bytes
) -> None:
    status, body = asked(service, head + b"\r\n\r\n{}")
    assert (status, b'"invalid-request"' in body) == (400, True)


def test_targets_and_methods_are_those_of_http(service: Service) -> None:
    assert service.put("vm", CODING).status == 201
    whole = b"GET http://gateway/v1/sessions/vm HTTP/1.1\r\nHost: gateway\r\n\r\n"
    assert asked(service, whole)[0] == 200
    for target in (b"*", b"/v1/sessions/vm/", b"/v1/./sessions"):
        assert asked(service, b"GET " + target + b" HTTP/1.1\r\n\r\n")[0] == 404
    unicode_name = "GET /v1/sessions/v\u00fc HTTP/1.1\r\n\r\n".encode()
    assert asked(service, unicode_name)[0] == 400
    for method in ("HEAD", "OPTIONS", "TRACE", "POST"):
        refused = service.call(method, "/v1/sessions/vm")
        assert refused.status == 405
        assert refused.headers["allow"] == "GET, PUT, PATCH, DELETE"
        assert (refused.body is None) == (method == "HEAD")


def test_requests_in_one_piece_are_answered_in_order(service: Service) -> None:
    body = b'{"role": "plain"}'
    put = b"PUT /v1/sessions/one HTTP/1.1\r\nContent-Length: 17\r\n\r\n" + body
    with service.connect() as connection:
        connection.sendall(
            put + GET + b"DELETE /v1/sessions/one HTTP/1.1\r\n\r\n" + GET
        )
        read = b""
        while read.count(b'{"sessions": [') < 2:
            part = connection.recv(65_536)
            assert part, read
            read += part
    parts = read.split(b"HTTP/1.1 ")[1:]
    assert [part[:3] for part in parts] == [b"201", b"200", b"200", b"200"]
    assert (b'"one"' in parts[1], b'"one"' in parts[3]) == (True, False)


def test_half_a_request_makes_nothing(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(
            b"PUT /v1/sessions/half HTTP/1.1\r\nContent-Length: 40\r\n\r\n"
            b'{"role": "plain"}'
        )
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)
    assert service.get("half").status == 404


def test_editors_know_the_settings() -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema", "--sessions"]).stdout)
    Draft202012Validator(schema).validate(yaml.safe_load(SETTINGS))
    assert CliRunner().invoke(main, ["schema", "--sessions", "--gateway"]).exit_code


def audited(service: Service, call: Callable[[], Answered]) -> list[tuple[str, str]]:
    """Make a call; return the sessions and results of its lines."""
    before = len(service.audit.read_text().splitlines())
    assert call().status in (200, 204)
    lines = service.audit.read_text().splitlines()[before:]
    found = [json.loads(line) for line in lines]
    assert {line["orchestrator"] for line in found} == {"local"}
    assert all("number" in line or line["result"] == "refused" for line in found)
    return [(line["session"], line["result"]) for line in found]


def test_a_whole_list_has_an_entry_in_the_audit_log_for_each_session(
    service: Service,
) -> None:
    for name in ("kept", "other", "gone"):
        service.put(name, {**CODING, "labels": {"task": "1"}})
    service.put("taken", PLAIN, OTHER_UID)
    listed = [
        {"name": "kept", **CODING, "labels": {"task": "1"}},
        {"name": "other", **PLAIN},
        {"name": "new", **PLAIN},
        {"name": "taken", **PLAIN},
    ]
    put = partial(service.call, "PUT", "/v1/sessions", {"sessions": listed})
    assert audited(service, put) == [
        ("gone", "ended"),
        ("other", "ended"),
        ("other", "replaced"),
        ("new", "created"),
        ("taken", "refused"),
    ]
    end = partial(service.call, "DELETE", "/v1/sessions?label=task=1")
    ended = [("kept", "ended"), ("new", "ended"), ("other", "ended")]
    assert sorted(audited(service, end)) == ended


def test_an_end_goes_by_the_version_that_was_seen(service: Service) -> None:
    seen = service.put("vm", CODING).headers["etag"]
    end = partial(service.call, "DELETE", "/v1/sessions/vm")
    for tag in (f"W/{seen}", '"1-1"', seen.strip('"')):
        refused = end(If_Match=tag)
        assert (refused.status, refused.code) == (412, "changed-meanwhile")
    assert end(If_Match=f'"1-1", {seen}').status == 200
    assert end(If_Match=seen).status == 204, "it is gone"
    again = service.put("vm", CODING)
    assert end(If_Match=seen).status == 412, "another session"
    change = partial(service.call, "PATCH", "/v1/sessions/vm", {"ttl": 600})
    assert change(If_Match=f"W/{again.headers['etag']}").status == 412
    assert change(If_Match="*").status == 200


def test_the_command_tells_a_stranger_who_may_call(service: Service) -> None:
    words = ["session", "list", "--socket", str(service.socket)]
    assert CliRunner().invoke(main, words).exit_code == 0
    os.seteuid(STRANGER_UID)
    try:
        refused = CliRunner().invoke(main, words)
    finally:
        os.seteuid(0)
    assert refused.exit_code == 2
    expected = f"sessions.yaml does not name the user {STRANGER_UID}"
    assert expected in refused.stderr


def test_the_exporter_sees_a_service_that_it_may_not_call(service: Service) -> None:
    os.seteuid(STRANGER_UID)
    try:
        assert is_answered(service.socket)
    finally:
        os.seteuid(0)
    assert is_answered(service.socket)
    assert service.process
    service.process.send_signal(signal.SIGSTOP)
    try:
        assert not is_answered(service.socket)
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert not is_answered(service.root / "nothing")
