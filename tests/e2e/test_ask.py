"""A policy that asks, on a live Squid: the ticket, its page, nothing that leaves before
approval, and the approval.
"""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.serving.tickets.store import PENDING_AT_MOST, Ticket, TicketStore
from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .expect import allowed, denied, ruled
from .gateway import Gateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply

POLICY = """
version: 1
defaults: {ask: true}
clients:
  vm: {networks: [127.0.0.1/32]}
  neighbour: {networks: [127.0.0.2/32]}
  hostile: {networks: [127.0.9.0/24]}
rules:
  - {name: watched, action: deny, observe: true, hosts: ['**.example'], paths: ['/secret/**']}
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: open, action: allow, hosts: [open.example]}
  - {name: part, action: allow, hosts: [part.example], paths: [/open/**]}
  - {name: asked, action: ask, hosts: [asked.example], reason: 'Ask "Ann" & <Bob>.'}
"""
TICKET = re.compile(r"[a-z2-7]{12}")


def ticket_of(reply: Reply) -> str:
    [number] = re.findall(r"^Ticket: (\S+)$", reply.text, re.MULTILINE)
    assert TICKET.fullmatch(number)
    return str(number)


def asked(
    gateway: Gateway,
    origins: Origins,
    url: str,
    rule: str = "default",
    client: str = "127.0.0.1",
) -> str:
    """Expect a denial with a ticket."""
    return ticket_of(denied(gateway, origins, url, rule, client=client))


def state_of(gateway: Gateway, number: str, client: str = "127.0.0.1") -> Reply:
    return curl(gateway, f"http://squidkeeper.internal/tickets/{number}", client=client)


def tickets(gateway: Gateway) -> list[Ticket]:
    with closing(TicketStore(gateway.root / "state")) as store:
        return store.pending(0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_leaves_before_a_person_approves_no_look_up_of_the_name_either(
    gateway: Gateway, origins: Origins, names: Names, scheme: str
) -> None:
    url = f"{scheme}://{scheme}-unknown.example/a?b=c"
    number = asked(gateway, origins, url)
    assert names.asked(f"{scheme}-unknown.example") == []
    assert origins.connections == []
    [ticket] = [ticket for ticket in tickets(gateway) if ticket.number == number]
    assert (ticket.client, ticket.user, ticket.method) == ("127.0.0.1", "", "GET")
    assert (ticket.url, ticket.rule) == (url, "default")


def test_the_same_question_has_the_same_ticket_and_counts(
    gateway: Gateway, origins: Origins
) -> None:
    numbers = {asked(gateway, origins, "https://again.example/x") for _ in range(3)}
    [number] = numbers
    assert [ticket.times for ticket in tickets(gateway) if ticket.number == number] == [
        3
    ]
    assert (
        asked(gateway, origins, "https://again.example/x", client="127.0.0.2") != number
    )
    assert asked(gateway, origins, "https://again.example/x?y") != number


def test_a_rule_that_asks_names_itself_on_the_page(
    gateway: Gateway, origins: Origins
) -> None:
    reply = denied(
        gateway,
        origins,
        "https://asked.example/x",
        "asked",
        reason='Ask "Ann" & <Bob>.',
    )
    number = ticket_of(reply)
    assert (
        f"State of the ticket: http://squidkeeper.internal/tickets/{number}"
        in reply.text
    )
    assert (
        with_commands(f"sudo squidkeeper ask approve {number}", gateway.layout)
        in reply.text
    )
    assert ruled(gateway, "https://asked.example/x", 0) == {"asked"}


def test_the_page_of_a_ticket_comes_as_json_and_html(
    gateway: Gateway, origins: Origins
) -> None:
    number = asked(gateway, origins, "https://asked.example/forms", "asked")
    told = json.loads(
        curl(
            gateway, "https://asked.example/forms", "-H", "Accept: application/json"
        ).body
    )
    assert (told["type"], told["ticket"], told["rule"]) == (
        "urn:squidkeeper:asked",
        number,
        "asked",
    )
    assert told["ticket_state"] == f"http://squidkeeper.internal/tickets/{number}"
    assert told["reason"] == 'Ask "Ann" & <Bob>.'
    page = curl(gateway, "https://asked.example/forms", "-H", "Accept: text/html")
    assert page.line("Ticket") == number
    assert page.reason == 'Ask "Ann" & <Bob>.'


def test_other_rules_decide_as_before(gateway: Gateway, origins: Origins) -> None:
    allowed(gateway, origins, "https://open.example/x", "open")
    allowed(gateway, origins, "https://part.example/open/x", "part")
    asked(gateway, origins, "https://part.example/other")
    assert (
        "Ticket"
        not in denied(gateway, origins, "https://closed.example/x", "closed").text
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_reads_the_state_of_its_ticket(
    gateway: Gateway, origins: Origins, names: Names, scheme: str
) -> None:
    number = asked(gateway, origins, "https://poll.example/x")
    url = f"{scheme}://squidkeeper.internal/tickets/{number.upper() if scheme == 'http' else number}"
    before = len(gateway.log())
    reply = curl(gateway, url)
    assert reply.status == 200
    assert reply.json == {
        "ticket": number,
        "state": "pending",
        "until": None,
        "reason": None,
    }
    assert reply.header("Content-Type") == "application/json"
    assert reply.header("Cache-Control") == "no-store"
    assert names.asked("squidkeeper.internal") == []
    assert origins.connections == []
    line = gateway.logged(url, before)
    assert (line["rule"], line["verdict"], line["status"]) == (
        "ticket-page",
        "allow",
        200,
    )


def test_a_ticket_is_shown_only_to_the_client_that_asked(
    gateway: Gateway, origins: Origins
) -> None:
    number = asked(gateway, origins, "https://poll.example/mine")
    other = state_of(gateway, number, client="127.0.0.2")
    unknown = state_of(gateway, "a" * 12)
    assert (
        (other.status, other.rule)
        == (unknown.status, unknown.rule)
        == (403, "ticket-page")
    )
    assert other.reason == unknown.reason == "This client has no ticket of this number."


BESIDE_TICKETS = [
    "/",
    "/tickets/",
    "/tickets/../metrics",
    "/tickets/%2e%2e/metrics",
    "/tickets/{number}/",
]
BESIDE_TICKETS += [
    "/tickets/{number}?x=1",
    "/tickets/{number};x",
    "//tickets/{number}",
    "/x/../tickets/{number}",
]
BESIDE_TICKETS += ["/tickets/%61{number}", ":8080/tickets/{number}", "/metrics"]


@pytest.mark.parametrize("target", BESIDE_TICKETS)
def test_nothing_else_is_answered_under_the_name_of_the_gateway(
    gateway: Gateway, origins: Origins, names: Names, target: str
) -> None:
    number = asked(gateway, origins, "https://poll.example/raw")
    scheme = "https" if target == "/metrics" else "http"
    denied(
        gateway,
        origins,
        f"{scheme}://squidkeeper.internal{target.format(number=number)}",
        "ticket-page",
    )
    assert names.asked("squidkeeper.internal") == []


def test_another_method_or_a_header_of_ours_shows_nothing_more(
    gateway: Gateway, origins: Origins
) -> None:
    number = asked(gateway, origins, "https://poll.example/method")
    url = f"http://squidkeeper.internal/tickets/{number}"
    denied(gateway, origins, url, "ticket-page", "-X", "POST", "-d", "x")
    headers = [
        "-H",
        "X-Forwarded-For: 127.0.0.1",
        "-H",
        "X-Squidkeeper-Client: 127.0.0.1",
    ]
    denied(gateway, origins, url, "ticket-page", *headers, client="127.0.0.2")


def test_a_client_with_too_many_questions_leaves_the_tickets_of_others_alone(
    gateway: Gateway, origins: Origins
) -> None:
    kept = asked(gateway, origins, "https://kept.example/x", client="127.0.0.2")
    ask_many(gateway, PENDING_AT_MOST + 20)
    reply = denied(
        gateway, origins, "https://more.example/x", "default", client="127.0.9.1"
    )
    assert (
        "It has no ticket: this client has as many open questions as it may have, and an answer"
        in reply.text
    )
    assert "\nTicket:" not in reply.text
    assert (
        len([ticket for ticket in tickets(gateway) if ticket.client == "127.0.9.1"])
        == PENDING_AT_MOST
    )
    assert (
        json.loads(state_of(gateway, kept, client="127.0.0.2").body)["state"]
        == "pending"
    )
    assert asked(gateway, origins, "https://kept.example/y", client="127.0.0.2")


def ask_many(gateway: Gateway, count: int, connections: int = 8) -> None:
    def ask(first: int) -> None:
        with Raw(gateway, "127.0.9.1") as raw:
            for n in range(first, count, connections):
                url = f"http://many.example/{n}"
                reply = raw.get(url, "many.example")
                assert reply.status == 403

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(ask, range(connections)))


def test_a_store_that_cannot_be_written_still_denies(
    gateway: Gateway, origins: Origins
) -> None:
    folder = gateway.root / "state/tickets"
    away = folder.rename(folder.with_name("tickets.away"))
    folder.write_text("no folder")
    reply = denied(gateway, origins, "https://unknown.example/x", "default")
    folder.unlink()
    away.rename(folder)
    assert "It has no ticket: the gateway cannot keep one now." in reply.text
    wait_for(
        lambda: "no ticket can be kept" in gateway.cache_log(),
        "the failure in cache.log",
    )


def command(
    gateway: Gateway, *words: str, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    """Call `squidkeeper ask …` as root does, for this gateway."""
    log = () if "deny" in words else ("--access-log", gateway.root / "log/access.log")
    return gateway.command("ask", *words, *gateway.places[:-1], *log, answer=answer)


def approve(gateway: Gateway, *words: str) -> str:
    """Approve, and give the name of the grant."""
    done = command(gateway, "approve", *words, "--yes", "--json", "--for", "1h")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["grant"])


def decisions(gateway: Gateway) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (gateway.policy_folder.parent / "decisions.jsonl")
        .read_text()
        .splitlines()
    ]


APPROVED = {  # what is asked, and how it is approved
    "http": ("http://approved-http.example/a?b=c", "--reason", "Needed for ticket 7."),
    "https": (
        "https://approved-https.example/a?b=c",
        "--reason",
        "Needed for ticket 7.",
    ),
    "in tunnel": ("https://part.example/later",),
    "private": ("https://inside.example/x",),
    "path": ("https://scope-path.example/a?q", "--scope", "path"),
    "host": ("https://scope-host.example/a?q", "--scope", "host"),
    "forged": ("https://forged.example/x",),
}
NOT_TRIED = {"forged"}  # before the test does: the certificate is kept


@dataclass(frozen=True)
class Approvals:
    """Questions that were approved at the same time, and are allowed now; the statuses
    in a tunnel around that.
    """

    numbers: dict[str, str]
    grants: dict[str, str]
    in_tunnel: tuple[int, ...]


@pytest.fixture(scope="module")
def approved(gateway: Gateway, all_origins: Origins, names: Names) -> Approvals:
    """Approve questions by commands that run at once: the policy is loaded once for all
    of them.
    """
    names.set("inside.example", ["10.0.0.5"])
    numbers = {
        name: ticket_of(curl(gateway, url)) for name, (url, *_) in APPROVED.items()
    }
    with (
        tunnel(gateway, "part.example:443") as raw,
        ThreadPoolExecutor(len(APPROVED)) as pool,
    ):
        first = raw.get("/open/x", "part.example")
        made = {
            name: pool.submit(approve, gateway, numbers[name], *how)
            for name, (_, *how) in APPROVED.items()
        }
        grants = {name: future.result() for name, future in made.items()}
        for name in APPROVED.keys() - NOT_TRIED:
            wait_for(
                partial(is_decided, gateway, APPROVED[name][0]), f"the grant: {name}"
            )
        second = raw.get("/later", "part.example")
    return Approvals(
        numbers, grants, tuple(answer.status for answer in (first, second) if answer)
    )


def is_decided(gateway: Gateway, url: str) -> bool:
    return "Ticket: " not in curl(gateway, url).text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_approved_request_is_fetched_and_nothing_else(
    gateway: Gateway, origins: Origins, approved: Approvals, scheme: str
) -> None:
    url, number, grant = (
        APPROVED[scheme][0],
        approved.numbers[scheme],
        approved.grants[scheme],
    )
    allowed(gateway, origins, url, grant)
    told = json.loads(state_of(gateway, number).body)
    assert (told["state"], told["reason"]) == ("approved", None)
    assert told["until"] > f"{datetime.now(UTC):%Y-%m-%dT%H:%M}"
    asked(gateway, origins, f"{url}d")
    asked(gateway, origins, url, client="127.0.0.2")
    assert ticket_of(curl(gateway, url, "-X", "POST", "-d", "x")) != number
    [kept] = [
        decision for decision in decisions(gateway) if decision["ticket"] == number
    ]
    assert (kept["decision"], kept["grant"], kept["scope"]) == (
        "approved",
        grant,
        "url",
    )
    assert (kept["client"], kept["clients"], kept["url"]) == ("127.0.0.1", ["vm"], url)
    assert kept["reason"] == "Needed for ticket 7."
    assert kept["who"]


def test_an_open_tunnel_takes_what_is_approved_meanwhile(approved: Approvals) -> None:
    assert approved.in_tunnel == (200, 200)


def test_a_certificate_of_another_name_and_a_private_address_stay_closed(
    gateway: Gateway, origins: Origins, approved: Approvals
) -> None:
    origins.certificates["forged.example"] = ("other.example",)
    denied(gateway, origins, "https://inside.example/x", "private-address")
    assert wait_for(
        lambda: curl(gateway, "https://forged.example/x").status == 503, "the failure"
    )


def test_a_wider_scope_opens_more(
    gateway: Gateway, origins: Origins, approved: Approvals
) -> None:
    for opened in (
        "https://scope-path.example/a?other",
        "https://scope-host.example/b",
    ):
        assert curl(gateway, opened).status == 200
    for closed in ("https://scope-path.example/b", "http://scope-host.example/a"):
        asked(gateway, origins, closed)


def test_a_denied_question_stays_denied_and_its_client_reads_why(
    gateway: Gateway, origins: Origins
) -> None:
    number = asked(gateway, origins, "https://refused.example/x")
    reason = 'Use the "mirror" <here> & \\ everywhere: ü.'
    done = command(gateway, "deny", number, "--reason", reason)
    assert done.returncode == 0, done.stderr
    told = {"ticket": number, "state": "denied", "until": None, "reason": reason}
    assert state_of(gateway, number).json == told
    again = denied(gateway, origins, "https://refused.example/x", "default")
    assert f"A person has denied it (ticket {number}): Use the " in again.text
    assert "until a person approves it" not in again.text
    assert number not in {ticket.number for ticket in tickets(gateway)}
    [kept] = [
        decision for decision in decisions(gateway) if decision["ticket"] == number
    ]
    assert (kept["decision"], kept["reason"]) == ("denied", reason)
