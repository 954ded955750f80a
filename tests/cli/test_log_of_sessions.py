"""`squidkeeper log` and `report` by sessions: one that is named, and counts by session,
role and label, also after their ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from squidkeeper.base.places import sessions_folder
from squidkeeper.record.log import filters
from squidkeeper.record.log.recorded_sessions import RecordedSessions
from squidkeeper.serving.sessions.store import FILE, SessionRow

from ..records import record
from ..session_records import DENIED, RecordedGateway

GONE = "5"  # a session that the store has forgotten


@pytest.fixture
def gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RecordedGateway]:
    for place in ("record.table.database", "cli.log_table"):  # of this process
        monkeypatch.setattr(f"squidkeeper.{place}.yield_to_squid", lambda: None)
    made = RecordedGateway(tmp_path)
    with closing(made.store):
        yield made


@pytest.fixture
def sessions(gateway: RecordedGateway) -> dict[str, SessionRow]:
    """Write requests of an ended session, its successor, and others."""
    first = gateway.session("vm-7", "10.20.0.7", labels={"task": "4711"})
    gateway.store.end(first.number, "deleted")
    again = gateway.session("vm-7", "10.20.0.7", labels={"task": "4712"})
    token = gateway.session("ci-1", role="bot", labels={})
    gateway.record("https://git.example/acme/app/x", first)
    gateway.record("https://docs.example/a", first)
    gateway.record("https://git.example/acme/app/y", again)
    gateway.record("https://docs.example/b", token)
    gateway.record("https://closed.example/", token, **DENIED)
    gateway.record("https://docs.example/c", GONE)
    gateway.record("https://docs.example/d", client="192.0.2.5", **DENIED)
    return {"first": first, "again": again, "token": token}


def urls(text: str) -> list[str]:
    return [json.loads(line)["url"] for line in text.splitlines()]


def test_a_session_is_found_by_its_number_and_by_its_name(
    gateway: RecordedGateway, sessions: dict[str, SessionRow]
) -> None:
    of_first = ["https://git.example/acme/app/x", "https://docs.example/a"]
    number = sessions["first"].number
    found = gateway.run("log", gateway.log, "--json", "--session", number)
    assert urls(found.stdout) == of_first
    found = gateway.run("log", gateway.log, "--json", "--session", "vm-7")
    assert urls(found.stdout) == [*of_first, "https://git.example/acme/app/y"]
    both = ("--session", number, "--session", "ci-1", "--verdict", "deny")
    found = gateway.run("log", gateway.log, "--json", *both)
    assert urls(found.stdout) == ["https://closed.example/"]
    found = gateway.run("log", gateway.log, "--json", "--session", GONE)
    assert urls(found.stdout) == ["https://docs.example/c"]
    assert not found.stderr


def test_a_name_that_no_session_has_is_said(
    gateway: RecordedGateway, sessions: dict[str, SessionRow]
) -> None:
    assert sessions
    found = gateway.run("log", gateway.log, "--session", "vm-9")
    assert not found.stdout
    folder = sessions_folder(gateway.state)
    assert found.stderr.splitlines()[0] == (
        f"--session vm-9: {folder} knows no session of this name."
        " Those that ended are forgotten after the days of the archive: give its number."
    )


def test_a_name_holds_for_a_session_that_begins_while_the_log_is_followed(
    gateway: RecordedGateway,
) -> None:
    known = RecordedSessions.of_gateway(gateway.state)
    wanted = filters.of_session(["vm-7"], known.name_of)
    before = gateway.session("vm-7", "10.20.0.7")
    assert wanted.holds(record(session=str(before.number)))
    gateway.store.end(before.number, "deleted")
    after = gateway.session("vm-7", "10.20.0.7")
    other = gateway.session("vm-8", "10.20.0.8")
    assert wanted.holds(record(session=str(after.number)))
    assert not wanted.holds(record(session=str(other.number)))
    assert not wanted.holds(record())


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (
            "session",
            {"{first} vm-7": 2, "{again} vm-7": 1, "{token} ci-1": 2}
            | {"5 (session unknown)": 1, "-": 1},
        ),
        ("role", {"agent": 3, "bot": 2, "session unknown": 1, "-": 1}),
        ("label:task", {"4711": 2, "4712": 1, "session unknown": 1, "-": 3}),
    ],
)
def test_requests_are_counted_by_what_sessions_were(
    gateway: RecordedGateway,
    sessions: dict[str, SessionRow],
    by: str,
    expected: dict[str, int],
) -> None:
    numbers = {name: row.number for name, row in sessions.items()}
    wanted = {key.format_map(numbers): count for key, count in expected.items()}
    found = gateway.run("log", gateway.log, "--by", by, "--json")
    counts = [json.loads(line) for line in found.stdout.splitlines()]
    assert {one[by]: one["requests"] for one in counts} == wanted
    denied = {one[by]: one["denied"] for one in counts}
    assert denied[next(key for key in wanted if key.startswith("-"))] >= 1

    report = gateway.run("report", gateway.log, "--by", by, "--json")
    figures = json.loads(report.stdout)
    clients = figures["traffic"]["clients"]
    assert {one["client"]: one["allowed"] + one["denied"] for one in clients} == wanted
    assert figures["clients_by"] == by
    assert figures["summary"]["requests"] == 7
    page = gateway.run("report", gateway.log, "--by", by, "--html", "-").stdout
    assert f"<dd>by {by}<" in page.replace("</dd>", "<")
    text = gateway.run("report", gateway.log, "--by", by).stdout
    assert f"Clients are counted by {by}.\n" in text


def test_without_by_a_client_of_the_report_is_an_address(
    gateway: RecordedGateway, sessions: dict[str, SessionRow]
) -> None:
    assert sessions
    figures = json.loads(gateway.run("report", gateway.log, "--json").stdout)
    assert figures["clients_by"] == "client"
    names = {one["client"] for one in figures["traffic"]["clients"]}
    assert names == {"10.20.0.7", "10.20.0.9 ci-1", "10.20.0.99", "192.0.2.5"}


def test_what_no_label_can_be_is_refused(gateway: RecordedGateway) -> None:
    gateway.record("https://docs.example/")
    found = gateway.run("log", gateway.log, "--by", "label:Not One")
    assert found.exit_code == 2
    assert "'label:NAME'" in found.stderr


def test_a_store_that_cannot_be_read_is_said(
    gateway: RecordedGateway, sessions: dict[str, SessionRow]
) -> None:
    assert sessions
    file = sessions_folder(gateway.state) / FILE
    gateway.store.close()
    file.write_bytes(b"no database" * 1000)
    for options in (["--by", "role"], ["--session", "vm-7"]):
        found = gateway.run("log", gateway.log, *options)
        assert found.exit_code == 2
        assert f"{file}: file is not a database" in found.stderr
    # a number needs no store
    number = sessions["first"].number
    found = gateway.run("log", gateway.log, "--session", number, "--json")
    assert len(urls(found.stdout)) == 2
    os.remove(file)
    found = gateway.run("log", gateway.log, "--by", "role")
    assert "session unknown" in found.stdout


def test_what_an_ended_session_was_for_is_erased_with_it(
    gateway: RecordedGateway,
) -> None:
    """Of the files too, while the service has them open."""
    folder = sessions_folder(gateway.state)
    told = "9f3c-erase-me"
    row = gateway.session("vm-7", "10.20.0.7", labels={"task": told})
    gateway.record("https://docs.example/", row)
    gateway.store.end(row.number, "deleted")
    held = [path.read_bytes() for path in folder.iterdir()]
    assert any(told.encode() in content for content in held)
    assert told in gateway.run("log", gateway.log, "--by", "label:task").stdout
    ended = gateway.store.by_number(row.number)
    assert ended
    assert ended.ended
    gateway.store.purge(ended.ended)  # one that ended just then stays
    assert gateway.store.by_number(row.number)
    gateway.store.purge(ended.ended + 1)
    assert not any(told.encode() in path.read_bytes() for path in folder.iterdir())
    counted = gateway.run("log", gateway.log, "--by", "label:task").stdout
    assert counted.splitlines()[1].endswith("session unknown")
