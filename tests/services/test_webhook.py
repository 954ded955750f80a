"""The webhook: people are told that questions wait, signed, escaped, and not more often
than once a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from hmac import digest
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import WebhookFailed
from squidkeeper.base.faults import Location
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force
from squidkeeper.services.maintenance.process import read_maintenance_status
from squidkeeper.services.webhook import (
    Webhook,
    WebhookFormat,
    quota_body,
    read_webhook_settings,
    webhook_body,
)
from squidkeeper.serving.quotas.counts import QuotaCount
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.token_uses import TokenUse
from squidkeeper.serving.tickets.store import Ticket, TicketStore
from squidkeeper.serving.tickets.ticket import AskedRequest, Holder
from tests.receivers import HttpsReceiver, dripping_receiver, https_receiver
from tests.waiting import wait_for

pytestmark = pytest.mark.system

KEY = b"a key of the gateway, 32 bytes.."
NOW = 1_800_000_000.0
VM = "192.168.137.10"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[HttpsReceiver]:
    with https_receiver(tmp_path) as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squidkeeper.record.export.messages.FIRST_SECONDS", 0.01)


def write(folder: Path, *lines: str, mode: int = 0o640) -> Path:
    (folder / "key").write_bytes(KEY)
    (folder / "key").chmod(0o640)
    file = folder / "webhook.yaml"
    file.write_text("\n".join(lines))
    file.chmod(mode)
    return file


def configure(folder: Path, receiver: HttpsReceiver, form: str = "json") -> Path:
    return write(
        folder,
        f"url: {receiver.url}",
        f"format: {form}",
        f"key_file: {folder}/key",
        f"ca_file: {receiver.ca}",
    )


def ask(state: Path, url: str, client: str = VM) -> str:
    with closing(TicketStore(state)) as store:
        return str(
            store.ask(
                AskedRequest(client, "", "GET", url),
                Holder("192.168.137.0/24", client),
                "default",
                time.time(),
            )
        )


def run_until(task: Webhook, holds: Any, what: str) -> None:
    def checked() -> Any:
        task.check()
        return holds()

    wait_for(checked, what)


def failure_of(task: Webhook) -> str:
    failures: list[str] = []

    def checked() -> bool:
        try:
            task.check()
        except WebhookFailed as error:
            failures.append(str(error))
        return bool(failures)

    wait_for(checked, "the failure of the task")
    return failures[0]


def test_a_question_is_told_once_and_signed(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    number = ask(tmp_path, "https://a.example/x?token=t0ken")
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    run_until(task, lambda: receiver.taken, "the message")
    [sent] = receiver.taken
    signed = sent.headers["X-Squidkeeper-Timestamp"].encode() + b"." + sent.body
    assert (
        sent.headers["X-Squidkeeper-Signature"]
        == f"v1={digest(KEY, signed, sha256).hex()}"
    )
    told = json.loads(sent.body)
    assert (told["event"], told["new"]) == ("questions-waiting", 1)
    [question] = told["questions"]
    assert (question["ticket"], question["client"], question["method"]) == (
        number,
        VM,
        "GET",
    )
    assert question["url"] == "https://a.example/x?…"
    with closing(TicketStore(tmp_path)) as store:
        wait_for(lambda: store.pending(0)[0].told, "the note that people were told")


def test_a_row_that_no_helper_writes_keeps_no_question_from_people(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    faulty, number = (
        ask(tmp_path, "https://b.example/"),
        ask(tmp_path, "https://a.example/"),
    )
    with closing(TicketStore(tmp_path)) as store, store._database.opened() as database:
        database.execute("UPDATE tickets SET first = 1e300 WHERE number = ?", (faulty,))
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    run_until(task, lambda: receiver.taken, "the message")
    told = json.loads(receiver.taken[0].body)
    assert (told["new"], [question["ticket"] for question in told["questions"]]) == (
        1,
        [number],
    )


def test_questions_of_a_minute_leave_in_one_message(
    tmp_path: Path, receiver: HttpsReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    ask(tmp_path, "https://a.example/0")
    run_until(task, lambda: receiver.taken, "the first message")
    for n in range(1, 30):
        ask(tmp_path, f"https://a.example/{n}")
    wait_for(
        lambda: not task._thread or not task._thread.is_alive(),
        "the end of the first one",
    )
    task.check()
    assert not task._thread or not task._thread.is_alive()  # the next one is not due
    assert len(receiver.asked) == 1
    monkeypatch.setattr(task, "_next", 0.0)
    run_until(task, lambda: len(receiver.taken) == 2, "the second message")
    told = json.loads(receiver.taken[1].body)
    assert (told["new"], len(told["questions"])) == (29, 10)


def test_no_client_keeps_the_question_of_another_out_of_a_message(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    for n in range(30):
        ask(tmp_path, f"https://a.example/{n}")
    number = ask(tmp_path, "https://b.example/", client="192.168.137.99")
    run_until(
        Webhook(configure(tmp_path, receiver), tmp_path),
        lambda: receiver.taken,
        "the message",
    )
    told = json.loads(receiver.taken[0].body)
    assert (
        told["new"],
        number in [question["ticket"] for question in told["questions"]],
    ) == (31, True)


def test_without_new_questions_nothing_is_sent(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    task.check()
    wait_for(
        lambda: task._thread and not task._thread.is_alive(), "the end of the check"
    )
    assert receiver.asked == []


def test_a_receiver_that_fails_is_asked_again_and_the_task_says_so(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    answers = iter([500])
    receiver.answer = lambda _: (next(answers, 200), {}, b"")
    ask(tmp_path, "https://a.example/x")
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    told = failure_of(task)
    assert (
        told
        == f"questions wait, and nobody is told: 127.0.0.1:{receiver.port}: status 500"
    )
    wait_for(lambda: _is_well(task), "the second attempt")
    assert len(receiver.taken) == 1


DRIPS = {
    "its headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "a body of a known length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n",
        b".",
    ),
    "a body until it closes": (b"HTTP/1.0 200 OK\r\n\r\n", b"."),
}


@pytest.mark.parametrize("parts", DRIPS.values(), ids=DRIPS)
def test_a_receiver_that_drips_its_answer_holds_no_message_for_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, bytes]
) -> None:
    monkeypatch.setattr("squidkeeper.record.export.https._SECONDS", 0.3)
    ask(tmp_path, "https://a.example/x")
    with dripping_receiver(tmp_path, *parts) as receiver:
        told = failure_of(Webhook(configure(tmp_path, receiver), tmp_path))
    assert told.endswith(
        f"127.0.0.1:{receiver.port}: no answer: none that is whole within 0.3 s"
    )
    with closing(TicketStore(tmp_path)) as store:
        assert not store.pending(0)[0].told


def _is_well(task: Webhook) -> bool:
    try:
        task.check()
    except WebhookFailed:
        return False
    return True


def test_the_file_is_taken_up_without_a_restart_and_told_while_it_is_faulty(
    tmp_path: Path, receiver: HttpsReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, task = tmp_path / "webhook.yaml", Webhook(tmp_path / "webhook.yaml", tmp_path)
    task.check()  # without a file
    write(
        tmp_path,
        f"url: {receiver.url}",
        f"key_file: {tmp_path}/key",
        f"ca_file: {tmp_path}/none",
    )
    # before any question waits
    assert failure_of(task).startswith(f"ca_file {tmp_path}/none: cannot be used")
    ask(tmp_path, "https://a.example/x")
    receiver.answer = lambda _: (500, {}, b"")
    configure(tmp_path, receiver)
    monkeypatch.setattr("squidkeeper.record.export.messages.FIRST_SECONDS", 3600)
    task._backoff.reset()
    assert "status 500" in failure_of(task)
    file.write_text("url: [")
    assert failure_of(task).startswith(f"{file}: ")
    receiver.answer = lambda _: (200, {}, b"")
    configure(tmp_path, receiver, "slack")
    run_until(task, lambda: receiver.taken, "the message by the new file")
    wait_for(
        lambda: not task._thread or not task._thread.is_alive(),
        "the end of the message",
    )
    file.unlink()
    task.check()


def test_the_maintenance_process_follows_the_file_and_reports_its_fault(
    tmp_path: Path,
) -> None:
    file, told = tmp_path / "webhook.yaml", partial(read_maintenance_status, tmp_path)
    places = (
        "--state",
        tmp_path,
        "--access-log",
        tmp_path / "access.log",
        "--cache-log",
        tmp_path / "cache.log",
    )
    command = (
        sys.executable,
        "-m",
        "squidkeeper",
        "maintain",
        "--webhook",
        file,
        *places,
    )
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(
                lambda: told(time.time()).failures.get("webhook") == "", "the task"
            )
            write(tmp_path, "url: http://a.example/", f"key_file: {tmp_path}/key")
            fault = f"{file}: url is not one of https://HOST/PATH"
            wait_for(
                lambda: told(time.time()).failures["webhook"] == fault, "the fault"
            )
        finally:
            process.terminate()


def test_a_redirect_is_not_followed(tmp_path: Path, receiver: HttpsReceiver) -> None:
    receiver.answer = lambda _: (307, {"Location": receiver.url + "/elsewhere"}, b"")
    ask(tmp_path, "https://a.example/x")
    assert "redirects are not followed" in failure_of(
        Webhook(configure(tmp_path, receiver), tmp_path)
    )
    assert {request.path for request in receiver.asked} == {"/in"}


def test_a_receiver_whose_certificate_is_not_valid_is_sent_nothing(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    # without ca_file
    file = write(tmp_path, f"url: {receiver.url}", f"key_file: {tmp_path}/key")
    ask(tmp_path, "https://a.example/x")
    assert "certificate" in failure_of(Webhook(file, tmp_path))
    assert receiver.asked == []


def test_no_message_shows_the_url_of_the_receiver(
    tmp_path: Path, receiver: HttpsReceiver
) -> None:
    receiver.answer = lambda _: (404, {}, b"")
    ask(tmp_path, "https://a.example/x")
    assert "/in" not in failure_of(
        Webhook(configure(tmp_path, receiver, "slack"), tmp_path)
    )


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["url: http://127.0.0.1/x", "key_file: {folder}/key"],
            "url is not one of https://HOST/PATH",
        ),
        (
            ["url: https://u:p@a.example/x", "key_file: {folder}/key"],
            "url is not one of https://HOST/PATH",
        ),
        (["url: https://a.example/x"], "key_file is missing"),
        (["url: https://a.example/x", "key_file: {folder}/none"], "No such file"),
        (
            ["url: https://a.example/x", "key_file: {folder}/short"],
            "expected 16 bytes at least",
        ),
        (["url: https://a.example/x", "formt: slack"], "formt"),
        (["format: slack"], "url"),
        (["["], "expected url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_faulty_file_is_told_without_its_secrets(
    tmp_path: Path, lines: list[str], told: str
) -> None:
    (tmp_path / "short").write_text("short")
    (tmp_path / "short").chmod(0o640)
    file = write(tmp_path, *(line.format(folder=tmp_path) for line in lines))
    with pytest.raises(WebhookFailed, match=told) as failed:
        read_webhook_settings(file)
    assert "u:p@" not in str(failed.value)


def test_a_file_that_everybody_can_read_is_not_used(tmp_path: Path) -> None:
    file = write(tmp_path, "url: https://a.example/x", "format: slack", mode=0o644)
    with pytest.raises(WebhookFailed, match="everybody can read it"):
        read_webhook_settings(file)


HOSTILE = "https://a.example/<!channel>&`*_~|x`\n<http://evil|click>?q=secret"


@pytest.mark.parametrize("form", list(WebhookFormat))
def test_what_a_client_sent_is_no_markup(form: WebhookFormat) -> None:
    ticket = Ticket(
        "abcdefgh2345", VM, "<@U1>", "G`ET", HOSTILE, "default", 1, NOW, NOW
    )
    body = webhook_body(form, [ticket], "gw<1>", NOW)
    text = json.dumps(json.loads(body)).replace("gw<1>", "")
    assert "secret" not in text
    assert not set("<>") & set(text)
    assert "`*" not in text
    assert "\\n<" not in text


def test_slack_gets_the_questions_as_lines() -> None:
    urls = [f"https://a.example/{n}" for n in range(12)]
    tickets = [
        Ticket("abcdefgh2342", VM, "", "GET", url, "default", 1, NOW, NOW)
        for url in urls
    ]
    lines = json.loads(webhook_body(WebhookFormat.SLACK, tickets, "gw", NOW))[
        "text"
    ].splitlines()
    assert (
        lines[0]
        == "12 new questions wait on the gateway gw. Decide there: squidkeeper ask"
    )
    assert lines[1] == f"`abcdefgh2342` {VM}  `GET https://a.example/0`"
    assert (len(lines), lines[-1]) == (12, "and 2 more")


# --- quotas ---------------------------------------------------------------------------

BUDGET = """version: 1
prices: [{model: "*", in: 2.5, out: 10}]
rules:
  - {name: models, action: allow, hosts: [llm.example], meter: tokens}
quotas:
  - {name: budget, per: client, cost: 20, every: month}
"""


def use(state: Path, holder: str, amount: int) -> None:
    (state / BODIES_FOLDER).mkdir(exist_ok=True)
    with closing(LocalCounts(state / BODIES_FOLDER)) as counts:
        counts.add(QuotaCount("budget", QuotaUnit.COST, Window.MONTH, holder), amount)


def put_in_force(folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / "policy/policy.yaml").write_text(BUDGET)
    sources = read_sources(folder / "policy")
    revision = load(folder / "policy", datetime.now(UTC)).compiled.revision
    store_revision(sources, revision, folder / "revisions")
    mark_in_force(folder / "revisions", revision)


def test_a_quota_that_is_nearly_used_is_told_once(
    tmp_path: Path, receiver: HttpsReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_force(tmp_path)
    monkeypatch.setattr("squidkeeper.serving.quotas.token_uses._EVERY_SECONDS", 0.0)
    task = Webhook(configure(tmp_path, receiver), tmp_path)
    use(tmp_path, VM, 15_999_999)
    run_until(
        task,
        lambda: task._thread and not task._thread.is_alive(),
        "the quotas to be read",
    )
    assert receiver.asked == []
    use(tmp_path, VM, 1)
    monkeypatch.setattr(task, "_next", 0.0)
    run_until(task, lambda: receiver.taken, "the message")
    told = json.loads(receiver.taken[0].body)
    assert (told["event"], told["new"]) == ("quota-nearly-used", 1)
    [quota] = told["quotas"]
    assert quota.pop("resets").endswith("-01T00:00:00Z")
    about = {"quota": "budget", "unit": "cost", "limit": 20_000_000, "every": "month"}
    assert quota == about | {"holder": VM, "used": 16_000_000}
    wait_for(lambda: task._nearly_used._told, "the note that people were told")
    use(tmp_path, VM, 1_000_000)
    use(tmp_path, "user:<@U1>", 19_000_000)
    wait_for(
        lambda: not task._thread or not task._thread.is_alive(),
        "the end of the first one",
    )
    monkeypatch.setattr(task, "_next", 0.0)
    run_until(task, lambda: len(receiver.taken) == 2, "the second message")
    assert [one["holder"] for one in json.loads(receiver.taken[1].body)["quotas"]] == [
        "user:%3C%40U1%3E"
    ]


def test_slack_gets_quotas_as_lines() -> None:
    quota = Quota(
        "budget",
        Location("p", 1, 1),
        QuotaUnit.COST,
        20_000_000,
        Window.MONTH,
        Counted.CLIENT,
    )
    body = quota_body(
        WebhookFormat.SLACK,
        [TokenUse(quota, "user:<@U1>", 17_000_000, 7200.0)] * 12,
        "gw",
        NOW,
    )
    lines = json.loads(body)["text"].splitlines()
    assert lines[:2] == [
        "Nearly used on the gateway gw. Who uses it: squidkeeper quota",
        "`user:%3C%40U1%3E` 85% of budget (20.00 of cost a month for each client), begins again in 2 h",
    ]
    assert len(lines) == 11
