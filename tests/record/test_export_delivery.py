"""Delivery of an export: each record at least once, through failures of the receiver,
the log and the process.
"""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from squidkeeper.base import atomic_write
from squidkeeper.base.errors import DeliveryFailed, InvalidExport, StateInUse
from squidkeeper.cli import main
from squidkeeper.operate.demo.authority import Authority
from squidkeeper.policy.destination import parse_destination
from squidkeeper.record import export_status
from squidkeeper.record.chain.chain import HEAD
from squidkeeper.record.chain.entries import Head, format_head
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.export import delivery, syslog
from squidkeeper.record.export.messages import (
    LAST_SECONDS,
    Backoff,
    Message,
    MessageKind,
)
from squidkeeper.record.export.process import ExportProcess, delivery_of, run_exports
from squidkeeper.record.export.syslog import MESSAGE_BYTES
from squidkeeper.record.export.targets import ExportTarget, make_target, read_targets
from squidkeeper.record.export_status import ExportState, ExportStore, read_exports
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageState,
    append_entry,
    ledger_file,
    usage_entry,
)
from tests.ports import free_port
from tests.receivers import (
    HttpsReceiver,
    Received,
    TcpReceiver,
    dripping_server,
    https_receiver,
    rsyslog,
)
from tests.records import NOON, after_noon, record_line
from tests.waiting import pause, stays, wait_for

pytestmark = pytest.mark.system

FORKER = """
import os, sys
import squidkeeper.record.export.process
from squidkeeper.cli.export import export
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            export.main(line.split())
        finally:
            os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Gateway:
    """An access log, and exports of it that run in this process."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "access.log"
        self.state = folder / "state"
        self.archive = folder / "archive"
        self._written = 0
        self.log.touch()

    def write(self, number: int, **fields: Any) -> None:
        """Append records, numbered by `connection`, a second apart."""
        with self.log.open("ab") as file:
            for _ in range(number):
                line = record_line(
                    connection=str(self._written),
                    time=after_noon(self._written),
                    **fields,
                )
                file.write(line + b"\n")
                self._written += 1

    def write_head(self, number: int) -> None:
        self.archive.mkdir(exist_ok=True)
        head = Head(
            number=number,
            digest=str(number) * 64,
            time=after_noon(0),
            gateway="gw.example",
        )
        (self.archive / HEAD).write_bytes(format_head(head, ArchiveKey.new()))

    def rotate(self, name: str) -> Path:
        rotated = self.log.with_name(f"access.log.{name}")
        self.log.rename(rotated)
        self.log.touch()
        return rotated

    def status(self, name: str = "x") -> ExportState:
        found = read_exports(self.state, time.time()).get(name)
        return found.state if found else ExportState()

    def wait(self, holds: Callable[[ExportState], bool]) -> ExportState:
        wait_for(lambda: holds(self.status()), "an export that has sent everything")
        return self.status()

    def wait_for_all(self) -> None:
        self.wait(
            lambda state: (
                state.sent + state.lost == self._written and state.waiting_since is None
            )
        )


class Running:
    """One export, in a thread."""

    def __init__(self, gateway: Gateway, target: ExportTarget) -> None:
        self._ending = Event()
        self._store = ExportStore(gateway.state, target.name)
        self._store.__enter__()
        process = ExportProcess(
            gateway.log, gateway.state, gateway.archive, "gw.example"
        )
        self._thread = Thread(
            target=delivery_of(target, self._store, process, self._ending).run
        )
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self._store.__exit__(None, None, None)


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


Start = Callable[..., Running]


@pytest.fixture
def start(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start exports that confirm and try again fast."""
    monkeypatch.setattr(delivery, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(syslog, "_HOLD_SECONDS", 0.1)
    monkeypatch.setattr(Backoff, "seconds", lambda *_: 0.05)
    with ExitStack() as stack:

        def started(
            to: str | None,
            ca: Path | None = None,
            headers: Path | None = None,
            form: str = "json",
            **environment: str,
        ) -> Running:
            target = make_target(
                name="x",
                format_name=form,
                to=to,
                ca=ca,
                headers=headers,
                environment=environment,
            )
            running = Running(gateway, target)
            stack.callback(running.stop)
            return running

        yield started


def send_all(gateway: Gateway, start: Start, *where: Any) -> None:
    """Run an export until the receiver has every record."""
    running = start(*where)
    gateway.wait_for_all()
    running.stop()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[HttpsReceiver]:
    with https_receiver(tmp_path / "receiver") as receiver:
        yield receiver


def numbers(lines: list[Any]) -> list[int]:
    return [int(line["connection"]) for line in lines if "connection" in line]


def notices(lines: list[Any]) -> list[Any]:
    return [line for line in lines if "notice" in line]


def lines_of(file: Path) -> list[Any]:
    """The messages in a file. A process that is killed can leave a torn line."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


# The log: rotations, restarts, gaps


def test_every_record_arrives_once_through_rotations_and_restarts(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(700)
    send_all(gateway, start, f"file:{out}")
    gateway.write(5)
    plain = gateway.rotate("2")
    plain.with_name("access.log.2.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    gateway.write(5)
    gateway.rotate("1")
    gateway.write(5)
    start(f"file:{out}")
    gateway.wait_for_all()
    assert numbers(lines_of(out)) == [*range(715)]
    state = gateway.status()
    assert (state.sent, state.doubled, state.gaps, state.lost, state.unconfirmed) == (
        715,
        0,
        0,
        0,
        0,
    )


def test_a_file_that_is_renamed_is_followed_by_a_new_one(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(2)
    start(f"file:{out}")
    gateway.wait_for_all()
    out.rename(tmp_path / "out.ndjson.1")
    gateway.write(1)
    gateway.wait_for_all()
    assert (numbers(lines_of(tmp_path / "out.ndjson.1")), numbers(lines_of(out))) == (
        [0, 1],
        [2],
    )


def test_a_torn_last_line_of_the_file_gets_an_end(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.ndjson"
    out.write_text('{"torn":')
    gateway.write(1)
    start(f"file:{out}")
    gateway.wait_for_all()
    torn, whole = out.read_text().splitlines()
    assert (torn, json.loads(whole)["connection"]) == ('{"torn":', "0")


def test_rotated_logs_that_are_newer_than_a_deleted_one_are_sent(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(3)
    send_all(gateway, start, f"file:{out}")
    gateway.write(2)
    gateway.rotate("3").unlink()
    gateway.write(10)
    gateway.rotate("2")
    gateway.write(10)
    gateway.rotate("1")
    gateway.write(1)
    start(f"file:{out}")
    gateway.wait(lambda state: state.sent == 24)
    assert numbers(lines_of(out)) == [0, 1, 2, *range(5, 26)]
    (gap,) = notices(lines_of(out))
    assert (gap["notice"], gap["from"], gap["to"]) == (
        "gap",
        after_noon(2),
        after_noon(5),
    )
    assert ("records" in gap, gateway.status().gaps, gateway.status().lost) == (
        False,
        1,
        0,
    )
    assert "deleted before it was sent" in gap["reason"]


def test_a_log_that_is_damaged_is_not_told_as_deleted(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(3)
    send_all(gateway, start, f"file:{out}")
    gateway.rotate("2")
    gateway.write(10)
    gateway.rotate("1").with_suffix(".1.gz").write_bytes(b"garbage")
    gateway.log.with_name("access.log.1").unlink()
    gateway.write(1)
    start(f"file:{out}")
    gateway.wait(lambda state: state.sent == 4)
    (gap,) = notices(lines_of(out))
    assert (numbers(lines_of(out)), gap["from"], gap["to"]) == (
        [0, 1, 2, 13],
        after_noon(2),
        after_noon(13),
    )
    assert "cannot be read" in gap["reason"]


def test_an_export_begins_where_it_was_first_started_although_nothing_was_sent(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    receiver.answer = lambda _: (503, {}, b"")
    gateway.write(3)
    running = start(receiver.url, receiver.ca)
    wait_for(lambda: receiver.asked)
    running.stop()
    gateway.rotate("1")
    gateway.write(2)
    receiver.answer = lambda _: (200, {}, b"")
    start(receiver.url, receiver.ca)
    gateway.wait_for_all()
    assert numbers(receiver.lines) == [*range(5)]


def test_the_head_of_the_archive_is_told_once_for_each_number(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    for number in (1, 2):
        gateway.write_head(number)
        running = start(receiver.url, receiver.ca)
        gateway.write(1)
        gateway.wait_for_all()
        wait_for(lambda: len(notices(receiver.lines)) == gateway.status().archive_head)
        running.stop()
        heads = [
            (notice["number"], notice["digest"]) for notice in notices(receiver.lines)
        ]
        assert (heads, gateway.status().archive_head) == (
            [(day, str(day) * 64) for day in range(1, number + 1)],
            number,
        )
    assert (gateway.status().sent, gateway.status().gaps) == (2, 0)


def test_what_metered_requests_used_is_told_once_also_after_a_restart(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    ledger, reserve, used = (
        ledger_file(gateway.state),
        Amounts(1000, 4096, 900),
        Amounts(800, 120, 70),
    )
    ledger.parent.mkdir(parents=True)
    ledger.write_bytes(b"no line of a ledger\n")
    for number in range(3):
        about = MeteredRequest(
            f"gw.1.2.{number}", "192.0.2.1", "-", "models", "-", "llm.example"
        )
        append_entry(ledger, usage_entry(about, NOON, "gpt-4o", reserve))
        append_entry(
            ledger,
            usage_entry(about, NOON, "gpt-4o", used, reserve, UsageState.METERED),
        )
        running = start(receiver.url, receiver.ca)
        gateway.write(1)
        gateway.wait_for_all()
        wait_for(lambda: len(notices(receiver.lines)) == number + 1)  # noqa: B023 - used at once
        running.stop()
    told = [
        (notice["request_id"], notice["tokens_in"])
        for notice in notices(receiver.lines)
    ]
    assert told == [(f"gw.1.2.{number}", 800) for number in range(3)]
    assert (gateway.status().sent, gateway.status().gaps) == (3, 0)


@pytest.mark.parametrize(
    "content", ["garbage", '{"number":1,"digest":"a","time":"never"}']
)
def test_a_head_that_is_none_does_not_end_the_export(
    gateway: Gateway, start: Start, tmp_path: Path, content: str
) -> None:
    gateway.archive.mkdir()
    (gateway.archive / HEAD).write_text(content)
    gateway.write(1)
    start(f"file:{tmp_path}/out", form="ocsf")
    gateway.wait_for_all()
    assert gateway.status().archive_head == 0


def test_lines_that_are_no_records_are_told_as_a_gap(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    gateway.write(1)
    with gateway.log.open("ab") as file:
        file.write(b"not a record\n{}\n" + record_line(time="never") + b"\n")
    gateway.write(1)
    start(receiver.url, receiver.ca)
    state = gateway.wait(lambda state: state.gaps == 1)
    (gap,) = notices(receiver.lines)
    assert (numbers(receiver.lines), gap["records"], state.lost) == ([0, 1], 3, 3)


def test_a_log_that_is_missing_for_a_moment_is_no_failure(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    gateway.write(1)
    start(f"file:{tmp_path}/out")
    gateway.wait_for_all()
    gateway.log.rename(tmp_path / "access.log.1")
    pause(0.2, "some reads of a log that is missing")
    gateway.write(1)
    gateway.wait_for_all()
    assert (gateway.status().doubled, gateway.status().failure) == (0, "")


def test_a_log_that_cannot_be_read_is_a_failure(
    gateway: Gateway, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_UNREADABLE_SECONDS", 0.1)
    gateway.log.unlink()
    start(f"file:{tmp_path}/out")
    failure = wait_for(lambda: gateway.status().failure)
    assert failure == f"{gateway.log}: cannot be read, or is not there"


# The file of an export


def full(*_: object, **_more: object) -> None:
    # a write does not name the file
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_export_whose_file_cannot_be_written_tries_again_and_names_it(
    gateway: Gateway,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(3)
    with monkeypatch.context() as disk:
        disk.setattr(atomic_write, "replace", full)
        start(f"file:{out}")
        message = (
            f"x: {gateway.state}/export/x.json: No space left on device: trying again"
        )
        wait_for(lambda: message in caplog.messages)
        stays(lambda: not out.exists(), 0.2, "no file, in some attempts")
    gateway.wait_for_all()
    assert (numbers(lines_of(out)), gateway.status().doubled) == ([0, 1, 2], 0)


def test_what_left_before_a_crash_counts_although_the_disk_is_full_then(
    gateway: Gateway,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway.write(3)
    with ExportStore(gateway.state, "x") as store:
        store.write(ExportState(unconfirmed=2))
    with monkeypatch.context() as disk:
        disk.setattr(atomic_write, "replace", full)
        start(f"file:{tmp_path}/out")
        wait_for(lambda: "trying again" in caplog.text)
    gateway.wait_for_all()
    assert gateway.status().doubled == 2


def test_an_export_whose_file_was_removed_makes_it_again(
    gateway: Gateway, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_status, "_BEAT_SECONDS", 0.0)
    gateway.write(1)
    start(f"file:{tmp_path}/out")
    gateway.wait_for_all()
    (gateway.state / "export" / "x.json").unlink()
    state = gateway.wait(lambda state: state.sent == 1)
    assert (state.doubled, state.failure) == (0, "")


def test_a_position_that_cannot_be_read_is_told_and_nothing_is_left_out(
    gateway: Gateway, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.ndjson"
    gateway.write(2)
    send_all(gateway, start, f"file:{out}")
    gateway.rotate("2")
    gateway.write(2)
    gateway.rotate("1")
    gateway.write(2)
    file = gateway.state / "export" / "x.json"
    file.write_bytes(file.read_bytes()[:40])
    out.unlink()
    start(f"file:{out}")
    gateway.wait(lambda state: state.sent == 6)
    (gap,) = notices(lines_of(out))
    assert (numbers(lines_of(out)), gap["to"]) == ([*range(6)], after_noon(0))
    assert "the position on disk could not be read" in gap["reason"]
    assert f"{file}: not a file of this program" in caplog.text


def test_root_does_not_write_into_the_folder_of_another_account(
    gateway: Gateway,
) -> None:
    gateway.state.mkdir()
    os.chown(gateway.state, 1, 1)
    target = make_target(format_name="json", to="file:/dev/null")
    process = ExportProcess(gateway.log, gateway.state, gateway.archive, "gw.example")
    with pytest.raises(
        InvalidExport, match=r"state: belongs to daemon, .*sudo -u daemon squidkeeper"
    ):
        run_exports([target], process)
    assert not [*gateway.state.iterdir()]


# https


def test_a_receiver_that_is_busy_gets_everything_later_and_nothing_twice(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    answers = [(503, {"Retry-After": "0"}, b""), (429, {}, b""), (500, {}, b"")]
    receiver.answer = lambda _: answers.pop() if answers else (202, {}, b"")
    gateway.write(20)
    start(receiver.url, receiver.ca)
    gateway.wait_for_all()
    assert (numbers(receiver.lines), gateway.status().doubled, len(receiver.asked)) == (
        [*range(20)],
        0,
        4,
    )


def test_a_record_that_the_receiver_refuses_is_given_up_and_told(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    def answer(request: Received) -> tuple[int, dict[str, str], bytes]:
        return (400 if {3, 11} & {*numbers(request.lines)} else 200), {}, b""

    receiver.answer = answer
    gateway.write(20)
    start(receiver.url, receiver.ca)
    gateway.wait_for_all()
    assert sorted(numbers(receiver.lines)) == [
        number for number in range(20) if number not in (3, 11)
    ]
    told = [(gap["from"], gap["to"], gap["records"]) for gap in notices(receiver.lines)]
    assert told == [
        (after_noon(3), after_noon(3), 1),
        (after_noon(11), after_noon(11), 1),
    ]
    assert (gateway.status().gaps, gateway.status().lost) == (2, 2)


def test_a_notice_that_the_receiver_refuses_is_no_record_that_was_lost(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    def answer(request: Received) -> tuple[int, dict[str, str], bytes]:
        return (
            (
                400
                if "archive-head"
                in [notice["notice"] for notice in notices(request.lines)]
                else 200
            ),
            {},
            b"",
        )

    receiver.answer = answer
    gateway.write_head(1)
    gateway.write(2)
    start(receiver.url, receiver.ca)
    state = gateway.wait(lambda state: state.gaps == 1)
    assert (numbers(receiver.lines), state.sent, state.lost) == ([0, 1], 2, 0)


def test_a_receiver_that_refuses_everything_makes_nothing_lost(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    receiver.answer = lambda _: (400, {}, b"")
    gateway.write(20)
    start(receiver.url, receiver.ca)
    failure = wait_for(lambda: gateway.status().failure)
    assert (
        failure == f"{receiver.url}: status 400; it takes not even a notice about that"
    )
    receiver.answer = lambda _: (200, {}, b"")
    gateway.wait_for_all()
    assert (numbers(receiver.lines), gateway.status().gaps) == ([*range(20)], 0)


def test_a_redirect_is_not_followed(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    receiver.answer = lambda _: (
        307,
        {"Location": f"https://127.0.0.1:{receiver.port}/other"},
        b"",
    )
    gateway.write(1)
    start(receiver.url, receiver.ca)
    failure = wait_for(lambda: gateway.status().failure)
    assert (
        failure
        == f"{receiver.url}: status 307: redirects are not followed, name the URL itself"
    )
    assert {request.path for request in receiver.asked} == {"/in"}


def test_nothing_is_sent_to_a_receiver_whose_certificate_is_not_valid(
    gateway: Gateway, start: Start, receiver: HttpsReceiver, tmp_path: Path
) -> None:
    gateway.write(1)
    start(receiver.url, Authority(tmp_path / "other").certificate)
    failure = wait_for(lambda: gateway.status().failure)
    assert failure.startswith(f"{receiver.url}: its certificate is not valid: ")
    assert (receiver.asked, gateway.status().doubled) == ([], 0)


def test_headers_are_sent_and_shown_nowhere(
    gateway: Gateway,
    start: Start,
    receiver: HttpsReceiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = tmp_path / "headers"
    headers.write_text("# for the SIEM\nAuthorization: Bearer hunter2\n")
    headers.chmod(0o640)
    receiver.answer = lambda _: (401, {}, b"hunter2 is not valid")
    gateway.write(1)
    target = make_target(format_name="json", to=receiver.url, headers=headers)
    start(receiver.url, receiver.ca, headers)
    failure = wait_for(lambda: gateway.status().failure)
    assert receiver.asked[0].headers["Authorization"] == "Bearer hunter2"
    assert failure == f"{receiver.url}: status 401"
    assert "hunter2" not in f"{target!r} {caplog.text}"


# OTLP


def logged(request: Received) -> list[tuple[str, str]]:
    """Name the event and the connection of each log record in a request."""
    parsed = ExportLogsServiceRequest.FromString(request.body)
    records = [
        one
        for resource in parsed.resource_logs
        for scope in resource.scope_logs
        for one in scope.log_records
    ]
    values = [
        {pair.key: pair.value.string_value for pair in record.attributes}
        for record in records
    ]
    return [
        (one.event_name, of.get("squidkeeper.connection", ""))
        for one, of in zip(records, values, strict=True)
    ]


def test_otlp_goes_where_opentelemetrys_variables_say(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    gateway.write(2)
    start(
        None,
        form="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"https://127.0.0.1:{receiver.port}/",
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(receiver.ca),
        OTEL_EXPORTER_OTLP_HEADERS="api-key=a%20b,other=1",
    )
    gateway.wait_for_all()
    (request,) = receiver.taken
    sent = {
        name: request.headers[name] for name in ("Content-Type", "api-key", "other")
    }
    assert (request.path, sent) == (
        "/v1/logs",
        {"Content-Type": "application/x-protobuf", "api-key": "a b", "other": "1"},
    )
    assert logged(request) == [
        ("squidkeeper.request", "0"),
        ("squidkeeper.request", "1"),
    ]


def test_records_that_an_otlp_receiver_rejects_are_told_as_a_gap(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    partial = ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=2)
    )
    answers = [b"", partial.SerializeToString()]
    receiver.answer = lambda _: (200, {}, answers.pop())
    gateway.write(5)
    start(receiver.url, receiver.ca, form="otlp")
    gateway.wait_for_all()
    state = gateway.status()
    assert (state.sent, state.lost, state.gaps) == (3, 2, 1)
    assert logged(receiver.taken[1]) == [("squidkeeper.gap", "")]


def test_an_otlp_receiver_that_rejects_everything_makes_nothing_lost(
    gateway: Gateway, start: Start, receiver: HttpsReceiver
) -> None:
    partial = ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=1)
    )
    receiver.answer = lambda _: (200, {}, partial.SerializeToString())
    gateway.write(1)
    start(receiver.url, receiver.ca, form="otlp")
    gateway.wait(lambda state: "takes not even a notice" in state.failure)
    receiver.answer = lambda _: (200, {}, b"")
    gateway.wait_for_all()
    assert (gateway.status().sent, gateway.status().lost) == (1, 0)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "name it by --to, or by OTEL_EXPORTER_OTLP_ENDPOINT"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
            "unencrypted only to this machine",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "https://a.example",
                "OTEL_EXPORTER_OTLP_HEADERS": "x y=hunter2",
            },
            "OTEL_EXPORTER_OTLP_HEADERS: expected name=value",
        ),
    ],
)
def test_faulty_variables_of_opentelemetry_are_refused(
    environment: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidExport, match=why) as caught:
        make_target(format_name="otlp", environment=environment)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("to", ["syslog+tls://a.example", "file:/srv/a"])
def test_otlp_needs_https(to: str) -> None:
    with pytest.raises(InvalidExport, match="format otlp travels over https alone"):
        make_target(format_name="otlp", to=to)


# syslog


@pytest.mark.parametrize("scheme", ["syslog+tcp", "syslog+tls"])
def test_records_that_a_receiver_had_not_read_when_it_ended_are_sent_again(
    gateway: Gateway, start: Start, tmp_path: Path, scheme: str
) -> None:
    authority = Authority(tmp_path / "ca")
    receiver = (
        TcpReceiver(1000, 40_000, 0)
        if scheme == "syslog+tcp"
        else TcpReceiver(40_000, context=authority.context("127.0.0.1"))
    )
    gateway.write(300)
    start(f"{scheme}://127.0.0.1:{receiver.port}", authority.certificate)
    gateway.wait_for_all()
    receiver.close()
    counts = Counter(numbers(receiver.lines))
    assert sorted(counts) == [*range(300)]
    assert 0 < counts.total() - len(counts) <= gateway.status().doubled
    assert receiver.connections > (3 if scheme == "syslog+tcp" else 1)


def test_nothing_is_sent_to_a_tls_receiver_whose_name_is_another(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    receiver = TcpReceiver(context=authority.context("siem.example"))
    gateway.write(1)
    running = start(f"syslog+tls://127.0.0.1:{receiver.port}", authority.certificate)
    failure = wait_for(lambda: gateway.status().failure)
    running.stop()
    receiver.close()
    assert "its certificate is not valid: IP address mismatch" in failure
    assert receiver.messages == []


@pytest.mark.parametrize("driver", ["", "ossl", "gtls"])
def test_rsyslog_gets_every_record_whole(
    gateway: Gateway, start: Start, tmp_path: Path, driver: str
) -> None:
    authority, port = Authority(tmp_path / "ca"), free_port()
    hostile = "%0A%0D%00%22%FF%F0%9F%92%A9<13>1%20x" * 100
    leaf = authority.leaf("127.0.0.1") if driver else b""
    with rsyslog(
        tmp_path / "rsyslog", port, driver, leaf, authority.certificate
    ) as received:
        gateway.write(50)
        gateway.write(
            5,
            url=f"https://a.example/{hostile}"[:4096],
            user_agent=hostile[:256],
            verdict="deny",
            tunnel=hostile,
        )
        gateway.write(1, verdict="-", rule="-", status=407)
        running = start(
            f"syslog+{'tls' if driver else 'tcp'}://127.0.0.1:{port}",
            authority.certificate,
        )
        gateway.wait_for_all()
        running.stop()
        wait_for(lambda: received.read_bytes().count(b"\n") >= 56)
        messages = received.read_bytes().splitlines()
    heads = [message.split(b" ", 7)[:7] for message in messages]
    assert heads[0] == [
        b"<134>1",
        after_noon(0).encode(),
        b"gw.example",
        b"squidkeeper",
        b"-",
        b"allowed",
        b"-",
    ]
    assert [head[0::5] for head in heads[-2:]] == [
        [b"<133>1", b"denied"],
        [b"<134>1", b"undecided"],
    ]
    assert max(map(len, messages)) <= MESSAGE_BYTES
    assert numbers([json.loads(message.split(b" ", 7)[7]) for message in messages]) == [
        *range(56)
    ]


def test_nothing_is_lost_while_rsyslog_restarts(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    port = free_port()
    start(f"syslog+tcp://127.0.0.1:{port}")
    found: list[int] = []
    for number in range(3):
        gateway.write(200)
        with rsyslog(tmp_path / f"rsyslog-{number}", port) as received:
            wait_for(lambda received=received: received.read_bytes())  # type: ignore[misc] # of the loop
        found += numbers(
            [
                json.loads(line.split(b" ", 7)[7])
                for line in received.read_bytes().splitlines()
            ]
        )
    with rsyslog(tmp_path / "rsyslog-last", port) as received:
        gateway.wait_for_all()
    found += numbers(
        [
            json.loads(line.split(b" ", 7)[7])
            for line in received.read_bytes().splitlines()
        ]
    )
    counts = Counter(found)
    assert sorted(counts) == [*range(600)]
    assert counts.total() - len(counts) <= gateway.status().doubled


# The process


class Forker:
    """Starts `squidkeeper export` as a process of its own, without the time that its
    imports take.
    """

    def __init__(self) -> None:
        command = (sys.executable, "-c", FORKER)
        self._running = 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, *options: str | Path) -> int:
        assert self._process.stdin
        self._process.stdin.write(" ".join(map(str, options)) + "\n")
        self._process.stdin.flush()
        self._running = self._said()
        return self._running

    def end(self, pid: int, number: int) -> int:
        os.kill(pid, number)
        self._running = 0
        return self._said()

    def close(self) -> None:
        if self._running:
            os.kill(self._running, signal.SIGKILL)
        self._process.communicate()

    def _said(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


@pytest.fixture
def forker() -> Iterator[Forker]:
    forker = Forker()
    yield forker
    forker.close()


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_nothing_is_lost_when_the_process_is_killed(
    gateway: Gateway,
    receiver: HttpsReceiver,
    forker: Forker,
    tmp_path: Path,
    kills: int,
) -> None:
    """At random moments, with three receivers, while Squid writes and the log is
    rotated; what is doubled counts.
    """
    chance, syslog_receiver, out = (
        random.Random(kills),
        TcpReceiver(),
        tmp_path / "out.ndjson",
    )
    config = tmp_path / "export"
    config.mkdir()
    (config / "file.yaml").write_text(f"format: json\nto: file:{out}\n")
    (config / "https.yaml").write_text(
        f"format: json\nto: {receiver.url}\nca: {receiver.ca}\n"
    )
    (config / "syslog.yaml").write_text(
        f"format: json\nto: syslog+tcp://127.0.0.1:{syslog_receiver.port}\n"
    )
    options = (
        "--config",
        config,
        "--access-log",
        gateway.log,
        "--state",
        gateway.state,
        "--archive",
        gateway.archive,
    )
    gateway.write(total := 1)
    # an export begins with the log that there is at its first start
    pid = forker.start(*options)
    wait_for(
        lambda: all(
            gateway.status(name).position.first_line_digest
            for name in ("file", "https", "syslog")
        )
    )
    forker.end(pid, signal.SIGKILL)
    for number in range(kills):
        pid = forker.start(*options)
        for _ in range(3):
            gateway.write(150)
            total += 150
            pause(chance.uniform(0, 0.05), "any moment")
        if number % 3 == 2:
            gateway.rotate(f"{1000 - number}")
        assert forker.end(pid, signal.SIGKILL) == -signal.SIGKILL
    pid = forker.start(*options)
    wait_for(
        lambda: all(gateway.status(name).sent == total for name in ("file", "https"))
    )
    wait_for(lambda: len({*numbers(syslog_receiver.lines)}) == total)
    assert forker.end(pid, signal.SIGTERM) == 0
    syslog_receiver.close()
    got = {
        "file": lines_of(out),
        "https": receiver.lines,
        "syslog": syslog_receiver.lines,
    }
    for name, lines in got.items():
        counts = Counter(numbers(lines))
        assert sorted(counts) == [*range(total)], name
        state = gateway.status(name)
        assert counts.total() - len(counts) <= state.doubled, name
        assert (state.sent, state.gaps, state.unconfirmed) == (total, 0, 0), name


def test_two_processes_do_not_share_an_export(gateway: Gateway) -> None:
    with (
        ExportStore(gateway.state, "x"),
        pytest.raises(StateInUse, match=r"x\.json: another process has this export"),
    ):
        ExportStore(gateway.state, "x").__enter__()


# Options


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("syslog+tls://siem.example", "syslog+tls://siem.example"),
        ("syslog+tls://SIEM.example:7000/", "syslog+tls://siem.example:7000"),
        ("syslog+tcp://[::1]:601", "syslog+tcp://[::1]"),
        ("https://siem.example/in?token=secret", "https://siem.example/in"),
        ("https://siem.example", "https://siem.example/"),
        ("http://127.0.0.1:4318/v1/logs", "http://127.0.0.1:4318/v1/logs"),
        ("http://localhost:4318/v1/logs", "http://localhost:4318/v1/logs"),
        ("file:/srv/records.ndjson", "file:/srv/records.ndjson"),
        ("file:///srv/records.ndjson", "file:/srv/records.ndjson"),
    ],
)
def test_a_destination_is_shown_without_its_query(text: str, shown: str) -> None:
    assert str(parse_destination(text)) == shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("siem.example", "expected syslog"),
        ("syslog+udp://siem.example", "expected syslog"),
        ("syslog+tls:siem.example", "expected syslog"),
        ("https://u:hunter2@siem.example/", "use --headers"),
        ("ftp://u:hunter2@siem.example/", "expected syslog"),
        ("http://siem.example/", "unencrypted only to this machine"),
        ("syslog+tls://siem.example/path", "syslog has no path"),
        ("https://siem.example/a b", "must be encoded"),
        ("https://siem.example:99999/", "destination"),
        ("file:records.ndjson", "the whole path"),
    ],
)
def test_a_faulty_destination_is_refused_and_no_password_shown(
    text: str, why: str
) -> None:
    with pytest.raises(InvalidExport, match=why) as caught:
        parse_destination(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        *(
            (text, 0o640, ":2: expected a header")
            for text in ("Bearer hunter2", "Host: hunter2", "A: hunter2\x01", "A:")
        ),
        ("A B: hunter2", 0o640, ":2: expected a header"),
        (
            "Authorization: Bearer hunter2",
            0o644,
            ": every account can use it: chmod 0640 ",
        ),
    ],
)
def test_a_faulty_file_of_headers_is_refused_without_a_value(
    tmp_path: Path, text: str, mode: int, why: str
) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"X-Good: 1\n{text}\n")
    headers.chmod(mode)
    with pytest.raises(InvalidExport, match=f"{headers}{why}") as caught:
        make_target(format_name="json", to="https://a.example/", headers=headers)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("format: json\n", "Object missing required field `to`"),
        ("format: xml\nto: file:/a\n", "format 'xml': expected "),
        (
            "format: json\nto: file:/a\nurl: full\n",
            "unknown field `url`: expected the keys format, to, urls, ca, headers",
        ),
        ("format: [json\n", "line 2, column 1"),
        ("format: json\nto: file:/a\nurls: all\n", "Invalid enum value 'all'"),
        ("format: json\nto: a.example\n", "expected syslog"),
        ("format: json\nto: file:/a\nheaders: /dev/null\n", "every account can use it"),
    ],
)
def test_a_faulty_file_of_an_export_is_named(
    tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "siem.yaml").write_text(text)
    with pytest.raises(InvalidExport) as caught:
        read_targets(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/siem.yaml: ")
    assert why in str(caught.value)
    assert "byte string" not in str(caught.value)


def test_waits_are_doubled_up_to_a_minute_and_spread() -> None:
    backoff = Backoff()
    waits = [backoff.seconds() for _ in range(12)]
    assert all(
        0.5 * bound <= wait <= bound
        for wait, bound in zip(waits, (1, 2, 4, 8, 16, 32, *(60,) * 6), strict=True)
    )
    assert backoff.seconds(asked=120) == 120
    assert backoff.seconds(asked=10**9) == 600
    backoff.reset()
    assert backoff.seconds() <= 1 < LAST_SECONDS


def test_a_check_finds_a_log_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    log, state = tmp_path / "access.log", tmp_path / "state"
    state.mkdir()

    def checked(to: str) -> tuple[int, str]:
        arguments = [
            "--format",
            "json",
            "--to",
            to,
            "--access-log",
            log,
            "--state",
            state,
        ]
        done = CliRunner().invoke(main, ["export", "--check", *map(str, arguments)])
        return done.exit_code, done.output.splitlines()[-1]

    assert checked(f"file:{tmp_path}/out") == (
        1,
        f"Error: {log}: no such file or directory",
    )
    log.touch()
    assert checked(f"file:{tmp_path}/out") == (
        0,
        f"json-out: json to file:{tmp_path}/out",
    )
    unusable = "there is no such folder that this account can write in"
    assert checked(f"file:{tmp_path}/no/out") == (
        1,
        f"Error: {tmp_path}/no: {unusable}",
    )
    state.rmdir()
    assert checked("syslog+tls://siem.example") == (1, f"Error: {state}: {unusable}")


def test_a_receiver_that_drips_has_not_confirmed_after_the_time_for_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "_CONFIRM_SECONDS", 0.3)
    with dripping_server(read_once) as port, closing(sending_to(port)) as sender:
        begun = time.monotonic()
        with pytest.raises(DeliveryFailed, match="it has not closed the connection"):
            sender.confirm()
    assert time.monotonic() - begun < 5


def read_once(connection: socket.socket) -> None:
    connection.recv(4096)


def sending_to(port: int) -> syslog.SyslogSender:
    sender = syslog.SyslogSender(
        parse_destination(f"syslog+tcp://127.0.0.1:{port}"), None, "gateway"
    )
    sender.open()
    sender.send([Message(MessageKind.ALLOWED, "-", b"{}")])
    return sender
