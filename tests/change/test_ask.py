"""`squidkeeper ask`: tickets as root reads them, answers that are kept or not given,
and how wide an approval is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import Connection, connect
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.base.errors import EditRefused
from squidkeeper.change.approvals import remove_grant
from squidkeeper.change.approvals.answers import Approval, approve_ticket, deny_ticket
from squidkeeper.change.approvals.decisions import DecisionLog
from squidkeeper.change.approvals.scopes import (
    approved_fields,
    clients_that_asked,
    reach,
)
from squidkeeper.change.approvals.waiting import (
    find_ticket,
    note_decision,
    waiting_tickets,
)
from squidkeeper.cli import main
from squidkeeper.policy.engine.own_host import _PATH
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.approvals import ApprovalScope
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.protocol import lines
from squidkeeper.policy.protocol.lines import Reply
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.published.places import mark_in_force
from squidkeeper.record.table.questions import Question
from squidkeeper.serving.helpers.asking import Asking
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.tickets.store import FOLDER, Ticket, TicketState, TicketStore
from squidkeeper.serving.tickets.ticket import (
    NUMBER,
    AskedRequest,
    Holder,
    ticket_number,
)

from ..conftest import NOW, decided, write_policy

POLICY = """
defaults: {ask: true}
clients:
  agents: {networks: [192.168.137.0/24]}
  one: {networks: [192.168.137.10/32]}
  people: {networks: [192.168.137.0/24], users: [ann]}
rules:
  - {name: closed, action: deny, hosts: [a.example], paths: [/closed/**]}
  - {name: open, action: allow, hosts: [a.example], paths: [/open/**]}
"""
URL = "https://a.example/x?y=1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "etc/policy", POLICY)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def asked(
    state: Path,
    url: str = URL,
    client: str = "192.168.137.10",
    user: str = "",
    method: str = "GET",
) -> str:
    with closing(TicketStore(state)) as store:
        return str(
            store.ask(
                AskedRequest(client, user, method, url),
                Holder("192.168.137.0/24", client),
                "default",
                time.time(),
            )
        )


def run(directory: Path, state: Path, *words: str, answer: str = "") -> Result:
    places = ["--policy", str(directory), "--state", str(state)]
    log = [] if "deny" in words else ["--access-log", str(state / "none")]
    return CliRunner().invoke(main, ["ask", *words, *places, *log], input=answer)


def decisions(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (directory.parent / "decisions.jsonl").read_text().splitlines()
    ]


def ticket(
    url: str = URL, client: str = "192.168.137.10", user: str = "", method: str = "GET"
) -> Ticket:
    return Ticket("a" * 12, client, user, method, url, "default", 1, 0.0, 0.0)


# ── What root reads ───────────────────────────────────────────────────────────────────


def test_the_page_of_a_ticket_has_the_form_of_its_number(state: Path) -> None:
    number = asked(state)
    assert NUMBER.fullmatch(number)
    assert _PATH.fullmatch(f"/tickets/{number}")


@pytest.mark.parametrize(
    "number", ["", "a", "a" * 13, "0" * 12, "../../../etc", "a" * 11 + "\n", "%61" * 4]
)
def test_no_other_text_is_the_number_of_a_ticket(state: Path, number: str) -> None:
    with pytest.raises(EditRefused, match="is not the number of a ticket"):
        find_ticket(state, number)


def test_a_number_may_be_typed_in_capitals(state: Path) -> None:
    assert find_ticket(state, asked(state).upper()).url == URL


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="another account is needed")
def test_root_reads_tickets_with_the_rights_of_the_account_that_writes_them(
    state: Path, tmp_path: Path
) -> None:
    """What only root may read stays closed, though the account puts a link to
    it there.
    """
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    secret = tmp_path / "secret"
    secret.mkdir()
    asked(secret)
    secret.chmod(0o700)
    (state / FOLDER).symlink_to(secret / FOLDER)
    os.chown(state, 65534, 65534)
    with pytest.raises(EditRefused, match="Permission denied"):
        waiting_tickets(state)


def changed(state: Path, number: str, change: str) -> None:
    """Change a row, and give it the number of what it holds then, as who has the key
    can.
    """
    with closing(TicketStore(state)) as store:
        key = store.key
        with store._database.opened() as database:
            database.execute(f"UPDATE tickets SET {change} WHERE number = ?", (number,))
            query = "SELECT client, user, method, url FROM tickets WHERE number = ?"
            found = database.execute(query, (number,)).fetchone()
            client, user, method, url = map(str, found)
            row = AskedRequest(client, user, method, url)
            database.execute(
                "UPDATE tickets SET number = ? WHERE number = ?",
                (ticket_number(key, row), number),
            )


CHANGES = [
    "first = 1e300",
    "last = 'never', first = 9e999",
    "client = '127.0.0.1' || char(10)",
    "client = x'00ff'",
    "url = 'no url'",
    "url = CAST(x'ff' AS TEXT)",
    "method = '--yes'",
    "times = 'many'",
    "user = x'ff'",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_no_helper_writes_is_named_and_hides_no_other(
    directory: Path, state: Path, change: str
) -> None:
    faulty, other = asked(state, "https://b.example/"), asked(state)
    changed(state, faulty, change)
    done = run(directory, state)
    assert done.exit_code == 0, done.output
    assert f"{other}  192.168.137.10" in done.output
    assert (
        "  cannot be read: it holds what no helper writes\n1 question waiting."
        in done.output
    )
    found = waiting_tickets(state)
    assert json.loads(run(directory, state, "--json").output)["unreadable"] == [
        *found.unreadable
    ]
    with pytest.raises(EditRefused, match="holds what no helper writes"):
        find_ticket(state, *found.unreadable)


@pytest.mark.parametrize(
    "change",
    ["url = 'https://evil.example/'", "client = '192.168.137.11'", "method = 'POST'"],
)
def test_a_number_that_was_read_cannot_become_another_question(
    directory: Path, state: Path, change: str
) -> None:
    number = asked(state)
    with closing(TicketStore(state)) as store, store._database.opened() as database:
        database.execute(f"UPDATE tickets SET {change}")
    for words in (
        ("approve", number, "--for", "2h", "--yes"),
        ("deny", number, "--reason", "No."),
    ):
        done = run(directory, state, *words)
        assert (done.exit_code, "holds what no helper writes" in done.output) == (
            1,
            True,
        )
    assert not (directory.parent / "grants.yaml").exists()


def test_a_state_that_no_helper_writes_is_told(state: Path) -> None:
    number = asked(state)
    with closing(TicketStore(state)) as store, store._database.opened() as database:
        database.execute("UPDATE tickets SET state = 'granted'")
    with pytest.raises(EditRefused, match="cannot be read"):
        find_ticket(state, number)


def test_what_is_no_utf_8_is_a_question_like_others(
    directory: Path, state: Path
) -> None:
    number = asked(state, "https://a.example/\udcff")
    assert find_ticket(state, number).url == "https://a.example/\\udcff"
    assert asked(state, "https://a.example/\udcff") == number


@pytest.mark.parametrize(
    ("is_folder", "told"),
    [(True, "cannot be read"), (False, "not a folder: remove it")],
)
def test_a_store_that_cannot_be_read_is_told(
    directory: Path, state: Path, is_folder: bool, told: str
) -> None:
    if is_folder:
        (state / FOLDER).mkdir()
    (state / FOLDER / "tickets.db" if is_folder else state / FOLDER).write_bytes(
        b"x" * 5000
    )
    done = run(directory, state)
    assert (done.exit_code, told in done.output) == (1, True)


def test_what_a_client_sent_reaches_a_terminal_escaped(
    directory: Path, state: Path
) -> None:
    asked(state, "https://a.example/%1b\\x1b?x=%1b", user="\x1b[1m\x07\u202e")
    # which is denied as no URL before it is asked about
    asked(state, "https://a.example/\x1b[2J\u202eevil\x07")
    with closing(TicketStore(state)) as store, store._database.opened() as database:
        database.execute(
            "UPDATE tickets SET number = ? WHERE user = ''", ("\x1b[2J\u202e\x07",)
        )
    done = run(directory, state)
    assert done.exit_code == 0, done.output
    assert not {"\x1b", "\x07", "\u202e"} & set(done.output)
    assert "\\x07" in done.output
    assert "1 question waiting." in done.output


def test_an_internationalized_host_is_shown_in_punycode(
    directory: Path, state: Path
) -> None:
    asked(state, "https://b\u00fccher.example/x")
    assert "https://xn--bcher-kva.example/x" in run(directory, state).output


# ── Answers ───────────────────────────────────────────────────────────────────────────


def test_an_approval_is_kept_with_who_when_and_why(
    directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "ann")
    number = asked(state)
    done = run(
        directory,
        state,
        "approve",
        number,
        "--for",
        "2h",
        "--reason",
        "For ticket 7.",
        "--yes",
    )
    assert done.exit_code == 0, done.output
    [kept] = decisions(directory)
    assert (kept["who"], kept["decision"], kept["reason"]) == (
        "ann",
        "approved",
        "For ticket 7.",
    )
    assert (kept["ticket"], kept["client"], kept["method"], kept["url"]) == (
        number,
        "192.168.137.10",
        "GET",
        URL,
    )
    assert (kept["scope"], kept["clients"], kept["uses"]) == ("url", ["one"], None)
    [grant] = load(directory, datetime.now(UTC)).compiled.source.grants
    assert kept["grant"] == grant.name
    found = find_ticket(state, number)
    assert found.state is TicketState.APPROVED
    assert waiting_tickets(state).tickets == ()


def test_what_cannot_be_kept_is_not_approved(directory: Path, state: Path) -> None:
    (directory.parent / "decisions.jsonl").mkdir()
    number = asked(state)
    for words in (
        ("approve", number, "--for", "2h", "--yes"),
        ("deny", number, "--reason", "No."),
    ):
        done = run(directory, state, *words)
        assert done.exit_code == 1
        assert "decisions.jsonl cannot be written" in done.output
    assert not (directory.parent / "grants.yaml").exists()
    assert [ticket.number for ticket in waiting_tickets(state).tickets] == [number]


def test_a_disk_that_fills_takes_an_approval_back(
    directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("squidkeeper.change.approvals.decisions.DecisionLog.keep", full)
    number = asked(state)
    done = run(directory, state, "approve", number, "--for", "2h", "--yes")
    assert done.exit_code == 1
    assert "nothing was approved" in done.output
    assert load(directory, datetime.now(UTC)).compiled.source.grants == ()


def lock(state: Path) -> Connection:
    """Lock the tickets as a process does that writes one."""
    other = connect(state / FOLDER / "tickets.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


@pytest.mark.parametrize("opened_before", [False, True])
def test_an_approval_is_told_and_kept_while_the_tickets_are_locked(
    directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch, opened_before: bool
) -> None:
    monkeypatch.setattr("squidkeeper.change.approvals.waiting._WAIT_SECONDS", 0.01)
    number = asked(state)
    approve = ("approve", number, "--for", "2h", "--yes")
    if opened_before:
        edit(directory, OPENED)
    with closing(lock(state)):
        done, told = (
            run(directory, state, *approve),
            run(directory, state, *approve, "--json"),
        )
    assert (done.exit_code, told.exit_code) == (0, 0)
    by = "more" if opened_before else "grant-a-example"
    assert (
        f"Open already, by {by} (" if opened_before else f"Granted {by} until "
    ) in done.output
    warning = f"it is approved and kept, but ticket {number} is not marked: the tickets in {state} cannot be read: "
    assert f"  warning     {warning}" in done.output
    assert json.loads(told.output)["warnings"][0].startswith(warning)
    assert [
        (decision["decision"], decision["grant"]) for decision in decisions(directory)
    ] == [("approved", by)] * 2
    assert [ticket.number for ticket in waiting_tickets(state).tickets] == [number]
    assert "warning" not in run(directory, state, *approve).output
    assert waiting_tickets(state).tickets == ()


def test_a_denial_that_is_kept_and_not_in_force_says_so(
    directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.change.approvals.waiting._WAIT_SECONDS", 0.01)
    number = asked(state)
    with closing(lock(state)):
        done = run(directory, state, "deny", number, "--reason", "No.")
    assert done.exit_code == 1
    kept = f"The denial is kept in {directory.parent}/decisions.jsonl, but its client does not read it yet: deny it"
    assert kept in done.output
    assert [decision["decision"] for decision in decisions(directory)] == ["denied"]
    assert shown_state(directory, state, number) == ("pending", None)
    assert run(directory, state, "deny", number, "--reason", "No.").exit_code == 0
    assert shown_state(directory, state, number) == ("denied", "No.")


def test_a_command_waits_for_what_a_helper_writes(directory: Path, state: Path) -> None:
    number = asked(state)
    with closing(lock(state)) as helper:
        done: list[Result] = []
        denial = Thread(
            target=lambda: done.append(
                run(directory, state, "deny", number, "--reason", "No.")
            )
        )
        denial.start()
        denial.join(0.5)
        assert denial.is_alive()
        helper.execute("COMMIT")
        denial.join()
    assert done[0].exit_code == 0


def test_the_file_of_decisions_only_grows_and_is_for_root_alone(
    directory: Path, state: Path
) -> None:
    for n in range(3):
        run(
            directory,
            state,
            "deny",
            asked(state, f"https://a.example/{n}"),
            "--reason",
            f"No. {n}",
        )
    assert [decision["reason"] for decision in decisions(directory)] == [
        "No. 0",
        "No. 1",
        "No. 2",
    ]
    assert (directory.parent / "decisions.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("client", "words", "told"),
    [
        ("192.168.137.10", ("--client", "people"), "whom this would not help"),
        ("10.0.0.1", (), "no client of the policy has the address 10.0.0.1"),
        ("192.168.137.10", ("--reason", "two\nlines"), "--reason: expected"),
    ],
)
def test_an_approval_for_nobody_is_refused(
    directory: Path, state: Path, client: str, words: tuple[str, ...], told: str
) -> None:
    done = run(
        directory,
        state,
        "approve",
        asked(state, client=client),
        "--for",
        "2h",
        "--yes",
        *words,
    )
    assert done.exit_code == 1
    assert told in done.output
    assert not (directory.parent / "grants.yaml").exists()


@pytest.mark.parametrize(
    ("words", "clients"),
    [(("--client", "agents"), {"agents"}), (("--any-client",), None)],
)
def test_an_approval_can_be_for_more(
    directory: Path, state: Path, words: tuple[str, ...], clients: set[str] | None
) -> None:
    run(directory, state, "approve", asked(state), "--for", "2h", "--yes", *words)
    [grant] = load(directory, datetime.now(UTC)).compiled.source.grants
    assert grant.match.clients == clients


def test_the_client_with_the_fewest_addresses_is_the_one_that_asked(
    directory: Path,
) -> None:
    policy = load(directory, NOW).compiled
    assert clients_that_asked(policy, ticket()) == ("one", "agents")
    assert clients_that_asked(policy, ticket(client="192.168.137.11")) == ("agents",)
    assert clients_that_asked(policy, ticket(client="192.168.137.11", user="ann")) == (
        "people",
        "agents",
    )


# ── How wide it is ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scope", list(ApprovalScope))
def test_an_approval_is_for_the_port_that_was_asked_for(
    directory: Path, state: Path, scope: ApprovalScope
) -> None:
    number, port = asked(state, "https://a.example:8443/x"), "https://a.example:8443/x"
    assert (
        run(
            directory,
            state,
            "approve",
            number,
            "--for",
            "2h",
            "--scope",
            scope.value,
            "--yes",
        ).exit_code
        == 0
    )
    compiled = load(directory, datetime.now(UTC)).compiled
    opened = [
        decided(
            compiled, request_to("GET", url, "192.168.137.10", None), datetime.now(UTC)
        ).allowed
        for url in (port, "https://a.example/x", "https://a.example:9443/x")
    ]
    assert opened == [True, False, False]


def test_what_else_an_approval_lets_through_is_on_the_same_port(
    directory: Path,
) -> None:
    recorded = [
        question("https://a.example/x?y=2", count=100),
        question("https://a.example/z", count=100),
        question("https://a.example:8443/x?y=2", count=2),
        question("https://a.example:8443/z", count=3),
    ]
    waiting = ticket("https://a.example:8443/x?y=1")
    found = reach(load(directory, NOW).compiled, [waiting], recorded, NOW)
    assert found[waiting.number] == {ApprovalScope.PATH: 2, ApprovalScope.HOST: 5}


def test_a_star_in_a_path_is_no_wildcard_of_an_approval(
    directory: Path, state: Path
) -> None:
    with pytest.raises(EditRefused, match="holds a \\*"):
        approved_fields(ticket("https://a.example/x/**"), ApprovalScope.PATH)
    run(
        directory,
        state,
        "approve",
        asked(state, "https://a.example/x/**?q=*"),
        "--for",
        "2h",
        "--yes",
    )
    [grant] = load(directory, datetime.now(UTC)).compiled.source.grants
    assert [url.text for url in grant.match.urls or ()] == [
        "https://a.example/x/**?q=*"
    ]
    assert grant.match.paths is None


def question(
    url: str, client: str = "192.168.137.10", method: str = "GET", count: int = 1
) -> Question:
    host, _, port = url.split("/")[2].partition(":")
    at = NOW
    tunnel = f"{host}:{port or 443}"
    known = (client, "-", method, url, "-", tunnel, "-", "-", host)
    return Question(*known, count, 0, 0, at, at, "default", "-", "-", "-", 0, "1.1.1.1")


def test_what_else_an_approval_lets_through_is_what_the_policy_asks_about(
    directory: Path,
) -> None:
    policy = load(directory, NOW).compiled
    recorded = [
        question(URL, count=5),  # the question itself
        question("https://a.example/x?y=2", count=2),
        question("https://a.example/z", count=3),
        question("https://a.example/closed/1", count=100),  # which a rule denies
        question("https://a.example/open/1", count=100),  # which is open
        question("https://a.example/z", method="POST", count=100),  # another method
        question("https://b.example/x?y=1", count=100),  # another host
        question(URL, client="192.168.137.11", count=100),  # of agents, not of one
    ]
    [found] = reach(policy, [ticket()], recorded, NOW).values()
    assert dict(found) == {ApprovalScope.PATH: 2, ApprovalScope.HOST: 5}
    [found] = reach(policy, [ticket(client="192.168.137.11")], recorded, NOW).values()
    assert found[ApprovalScope.URL] == 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("approve", "a" * 12, "--for", "1h"), "there is no ticket aaaaaaaaaaaa"),
        (("approve", "../../etc", "--for", "1h"), "is not the number of a ticket"),
        (("deny", "a" * 12, "--reason", "x"), "there is no ticket aaaaaaaaaaaa"),
        (
            ("deny", "a" * 12, "--reason", "a\x1b[2J"),
            "--reason: expected 1 to 1,000 printable characters",
        ),
    ],
)
def test_what_cannot_be_answered_is_told(
    directory: Path, state: Path, words: tuple[str, ...], told: str
) -> None:
    asked(state)
    done = run(directory, state, *words)
    assert done.exit_code == 1
    assert told in done.stderr
    assert "\x1b" not in done.stderr


# ── What else has opened or closed it ─────────────────────────────────────────────────


def shown_state(directory: Path, state: Path, number: str) -> tuple[str, str | None]:
    """Return the state and the reason that the client reads."""
    policy = load(directory, datetime.now(UTC)).compiled
    asking = Asking(state, Meter(LocalCounts(state)))
    found = find_ticket(state, number)
    tokens = (
        f"{found.client} - GET https a.example 443 a.example a.example%3A443 -".encode()
    )
    with closing(asking._store):
        page = asking.show(
            Reply(lines.Result.OK),
            tokens,
            f"https://squidkeeper.internal/tickets/{number}",
            policy,
        )
    told = json.loads(dict(page.annotations)["ticket_state_"])
    return told["state"], told["reason"]


def edit(directory: Path, text: str) -> None:
    write_policy(directory, text)


OPENED = POLICY + "  - {name: more, action: allow, hosts: [a.example]}\n"
CLOSED = (
    POLICY + "  - {name: less, action: deny, hosts: [a.example], reason: Not here.}\n"
)


def test_a_question_that_is_open_is_not_denied_and_the_refusal_names_what_opens_it(
    directory: Path, state: Path
) -> None:
    number = asked(state)
    run(directory, state, "approve", number, "--for", "2h", "--yes")
    done = run(directory, state, "deny", number, "--reason", "No.")
    assert done.exit_code == 1
    assert f"ticket {number} is open, by grant-a-example" in done.output
    assert "squidkeeper grant --revoke grant-a-example" in done.output
    assert find_ticket(state, number).state is TicketState.APPROVED
    assert [decision["decision"] for decision in decisions(directory)] == ["approved"]
    remove_grant(directory, "grant-a-example", datetime.now(UTC))
    assert run(directory, state, "deny", number, "--reason", "No.").exit_code == 0
    assert shown_state(directory, state, number) == ("denied", "No.")
    edit(directory, OPENED)
    assert (
        "by more (" in run(directory, state, "deny", number, "--reason", "No.").output
    )
    edit(directory, POLICY)
    name = "x; $(touch y) 'z"
    grant = {
        "name": name,
        "any_client": True,
        "hosts": ["a.example"],
        "expires": "2099-01-01T00:00:00Z",
        "reason": "x",
    }
    write_policy(directory, f"grants: [{json.dumps(grant)}]", "grants.yaml")
    told = run(directory, state, "deny", number, "--reason", "No.").output
    [command] = re.findall(r"\((squidkeeper grant .*)\); nothing", told)
    assert shlex.split(command) == ["squidkeeper", "grant", "--revoke", name], (
        "as a shell reads it"
    )


def test_an_approval_sees_a_denial_that_was_given_meanwhile(
    directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = asked(state)
    seen = find_ticket(state, number)
    deny_ticket(directory, state, number, "Not today.")
    approval = Approval(ApprovalScope.URL, timedelta(hours=1))
    policy = load(directory, NOW).compiled
    with pytest.raises(
        EditRefused, match=r"was denied meanwhile \(Not today.\); nothing was approved"
    ):
        approve_ticket(directory, state, policy, seen, approval, datetime.now(UTC))
    assert not (directory.parent / "grants.yaml").exists()


def test_of_two_answers_at_once_the_later_one_waits_and_sees_the_other(
    directory: Path, state: Path
) -> None:
    number, told = asked(state), list[Result]()
    log = DecisionLog(directory)  # as an approval has it, until its result is written
    denial = Thread(
        target=lambda: told.append(
            run(directory, state, "deny", number, "--reason", "No.")
        )
    )
    denial.start()
    denial.join(0.3)
    assert denial.is_alive()
    edit(directory, OPENED)
    log.close()
    denial.join()
    assert "is open, by more (" in told[0].output


def test_a_question_whose_grant_is_used_up_is_approved_again(
    directory: Path, state: Path
) -> None:
    number = asked(state)
    run(directory, state, "approve", number, "--for", "2h", "--uses", "1", "--yes")
    [grant] = load(directory, datetime.now(UTC)).compiled.source.grants
    assert (
        "Open already, by grant-a-example"
        in run(directory, state, "approve", number, "--for", "2h", "--yes").output
    )
    assert GrantUses(state).take(grant)
    done = run(
        directory, state, "approve", number, "--for", "2h", "--uses", "1", "--yes"
    )
    assert "Granted grant-a-example-2 until " in done.output
    assert shown_state(directory, state, number) == ("approved", None)


def test_approving_what_something_else_has_opened_ends_its_wait(
    directory: Path, state: Path
) -> None:
    number = asked(state)
    edit(directory, OPENED)
    assert shown_state(directory, state, number) == ("approved", None)
    done = run(directory, state, "approve", number, "--for", "2h")
    assert done.exit_code == 0
    assert "Open already, by more (" in done.output
    assert waiting_tickets(state).tickets == ()
    [kept] = decisions(directory)
    assert (kept["decision"], kept["reason"], kept["until"]) == (
        "approved",
        "Open already, by more",
        "",
    )


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        ("", 2, "nobody answered, because standard input is no terminal: --yes"),
        ("n\n", 1, "Aborted!"),
        ("y\n", 0, "grant-a-example"),
    ],
)
def test_an_approval_without_a_terminal_names_the_option_that_answers(
    directory: Path,
    state: Path,
    as_json: tuple[str, ...],
    answer: str,
    status: int,
    told: str,
) -> None:
    number = asked(state)
    command = ("approve", number, "--for", "1h", *as_json)
    done = run(directory, state, *command, answer=answer)
    assert (done.exit_code, told in done.output) == (status, True)
    assert ("nobody answered" in done.output) == (not answer)
    assert bool(waiting_tickets(state).tickets) == (status != 0)


def test_questions_are_listed_and_denied_while_the_policy_does_not_load(
    directory: Path, state: Path
) -> None:
    number = asked(state)
    sources = read_sources(directory)
    store_revision(sources, sources.revision, state / "revisions")
    mark_in_force(state / "revisions", sources.revision)
    (directory / "more.yaml").write_text("version: 1\nrules: no\n")
    assert number in run(directory, state).output
    done = run(directory, state, "approve", number, "--for", "2h", "--yes")
    assert done.exit_code == 1
    assert "does not load: fix it first" in done.output
    assert "\\n" not in done.output
    assert run(directory, state, "deny", number, "--reason", "No.").exit_code == 0
    (directory / "more.yaml").write_text("version: 1\n")
    number = asked(state, "https://b.example/")
    told = json.loads(
        run(
            directory, state, "approve", number, "--for", "2h", "--yes", "--json"
        ).output
    )
    assert told == {
        "ticket": number,
        "grant": "grant-b-example",
        "open_before": [],
        "waits_for_edit": True,
        "warnings": [],
    }


def test_the_list_has_only_what_the_policy_still_asks_about(
    directory: Path, state: Path
) -> None:
    asked(state)
    asked(state, "https://b.example/")
    edit(directory, CLOSED)
    told = run(directory, state).output
    assert "https://a.example" not in told
    assert told.endswith(
        "1 question waiting. The policy opens or denies 1 more by now.\n"
    )
    listed = json.loads(run(directory, state, "--json").output)
    assert listed["decided_by_policy"] == 1
    [ticket] = listed["waiting"]
    [shown] = waiting_tickets(state).tickets[1:]
    assert (ticket["ticket"], "number" in ticket) == (shown.number, False)


def test_the_client_reads_what_the_policy_says_now(
    directory: Path, state: Path
) -> None:
    number = asked(state)
    assert shown_state(directory, state, number) == ("pending", None)
    edit(directory, CLOSED)
    assert shown_state(directory, state, number) == ("denied", "Not here.")
    edit(directory, POLICY)
    run(directory, state, "approve", number, "--for", "2h", "--yes")
    assert shown_state(directory, state, number) == ("approved", None)
    remove_grant(directory, "grant-a-example", datetime.now(UTC))
    note_decision(state, number, TicketState.APPROVED, time.time() + 7200, "")
    # as before the helper has the grant
    assert shown_state(directory, state, number) == (
        "pending",
        None,
    )
    with closing(TicketStore(state)) as store:
        store.decide(
            number, TicketState.APPROVED, time.time() - 60, time.time() + 7200, ""
        )
    assert shown_state(directory, state, number) == ("lapsed", None)


def test_what_a_person_has_denied_says_so_and_waits_no_longer(
    directory: Path, state: Path
) -> None:
    policy = load(directory, datetime.now(UTC)).compiled
    number = asked(state)
    denial = Reply(lines.Result.ERR, message="Ask the team.")
    tokens = b"192.168.137.10 - GET https a.example 443 a.example a.example%3A443 -"
    asking = Asking(state, Meter(LocalCounts(state)))
    with closing(asking._store):
        first = asking.deny(denial, tokens, URL, "default", policy)
        run(directory, state, "deny", number, "--reason", "Not for builds.")
        again = asking.deny(denial, tokens, URL, "default", policy)
    assert first.annotations == (("ticket_", number),)
    assert again.annotations == ()
    assert (
        again.message
        == f"Ask the team. A person has denied it (ticket {number}): Not for builds."
    )
