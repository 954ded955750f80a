"""Tickets: their numbers, and where they are kept: bounded for each client, by several
processes, whatever fails.
"""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.shared_database import _PAGES_AT_MOST
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.serving.tickets.judgement import settle
from squidkeeper.serving.tickets.store import (
    FOLDER,
    KEPT_DAYS,
    LONGEST_URL,
    PENDING_AT_MOST,
    NoTicket,
    TicketState,
    TicketStore,
)
from squidkeeper.serving.tickets.ticket import (
    NUMBER,
    PLACES,
    AskedRequest,
    Holder,
    holder_of,
    ticket_key,
    ticket_number,
)
from tests.conftest import compiled_of
from tests.waiting import wait_for

NOW = 1_800_000_000.0
DAY = 86_400
VM, OTHER = "192.168.137.10", "192.168.137.11"


def asked(
    url: str = "https://a.example/x",
    client: str = VM,
    user: str = "",
    method: str = "GET",
) -> AskedRequest:
    return AskedRequest(client, user, method, url)


def ask(store: TicketStore, request: AskedRequest, at: float = NOW) -> str | NoTicket:
    return store.ask(request, Holder("192.168.137.0/24", request.client), "default", at)


def fill(store: TicketStore, client: str = VM, length: int = 0) -> list[str | NoTicket]:
    urls = [f"https://a.example/{n}".ljust(length, "x") for n in range(PENDING_AT_MOST)]
    numbers = [ask(store, asked(url, client)) for url in urls]
    assert all(not isinstance(number, NoTicket) for number in numbers)
    return numbers


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TicketStore]:
    store = TicketStore(tmp_path)
    yield store
    store.close()


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=8, max_size=8)
)
def test_two_questions_have_two_numbers(parts: list[str]) -> None:
    a, b, c, d, *others = parts
    e, f, g, h = others
    one, other = AskedRequest(a, b, c, d), AskedRequest(e, f, g, h)
    assert (ticket_number(b"k", one) == ticket_number(b"k", other)) == (one == other)


def test_a_number_is_twelve_letters_and_digits_of_its_gateway(
    store: TicketStore,
) -> None:
    assert NUMBER.fullmatch(ask(store, asked()))
    assert ticket_number(b"one", asked()) != ticket_number(b"other", asked())


@pytest.mark.system
def test_every_process_has_the_key_that_the_first_one_made(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        keys = pool.map(ticket_key, [file] * 16)
    assert len(set(keys)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"k" * 32)
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        ticket_key(tmp_path / "key")


def test_the_same_question_has_one_ticket_which_counts(store: TicketStore) -> None:
    first = ask(store, asked())
    assert ask(store, asked(), NOW + 60) == first
    with closing(TicketStore(store._folder.parent)) as another:
        assert ask(another, asked(), NOW + 90) == first
    [ticket] = store.pending(NOW + 90)
    assert (ticket.times, ticket.first, ticket.last) == (3, NOW, NOW + 90)
    assert ticket.asked == asked()


@pytest.mark.parametrize(
    "other",
    [
        asked(client=OTHER),
        asked(user="ci"),
        asked(method="POST"),
        asked("https://a.example/x?"),
        asked("http://a.example/x"),
    ],
    ids=repr,
)
def test_another_client_user_method_or_url_is_another_question(
    store: TicketStore, other: AskedRequest
) -> None:
    assert ask(store, asked()) != ask(store, other)
    assert len(store.pending(NOW)) == 2


def test_a_client_at_its_bound_gets_no_new_ticket_and_takes_no_place_of_another(
    store: TicketStore,
) -> None:
    other = ask(store, asked(client=OTHER))
    numbers = fill(store)
    assert ask(store, asked("https://a.example/more")) is NoTicket.TOO_MANY
    assert ask(store, asked("https://a.example/0")) == numbers[0]
    assert {ticket.number for ticket in store.pending(NOW)} == {*numbers, other}
    assert ask(store, asked("https://b.example/", OTHER)) not in list(NoTicket)
    with closing(
        sqlite3.connect(store._database._file, isolation_level=None)
    ) as another:
        # a client at its bound waits for no process that writes
        another.execute("BEGIN IMMEDIATE")
        assert ask(store, asked("https://a.example/more")) is NoTicket.TOO_MANY


def test_long_urls_count_towards_the_bound_of_a_client(store: TicketStore) -> None:
    given_out = [
        ask(store, asked(f"https://a.example/{n:04}/".ljust(LONGEST_URL, "x")))
        for n in range(60)
    ]
    assert 40 < given_out.index(NoTicket.TOO_MANY) < 60


@pytest.mark.parametrize(
    "method", ["A|B", "--yes", "null", "-", "get", "CONNECT", "TRACE", "ALL", ""]
)
def test_a_method_that_no_grant_can_have_and_a_url_that_is_too_long_get_no_ticket(
    store: TicketStore, method: str
) -> None:
    assert ask(store, asked(method=method)) is NoTicket.NO_METHOD
    assert (
        ask(
            store,
            asked("https://a.example/".ljust(LONGEST_URL + 1, "x"), method=method),
        )
        is NoTicket.TOO_LONG
    )
    assert not store.exists


def asks(
    store: TicketStore,
    policy: CompiledPolicy,
    client: str,
    url: str = "https://a.example/x",
) -> bool:
    request = asked(url, client)
    return not isinstance(
        store.ask(request, holder_of(policy, request), "default", NOW), NoTicket
    )


CLIENTS = """
clients:
  agents: {networks: [10.0.0.0/8]}
  vm: {networks: [10.0.0.7, 10.0.1.7]}
  guests: {networks: ["2001:db8::/32"]}
"""
# Where an attacker has its addresses, and who must get a ticket all the same.
ATTACKERS: dict[str, tuple[Callable[[int], str], tuple[str, ...]]] = {
    "a client of the policy": (
        lambda n: f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}",
        ("10.0.1.7", "2001:db8::1", "192.0.2.9", "fd00::1"),
    ),
    "an IPv6 network": (
        lambda n: f"fd00:0:0:{n & 65_535:x}::1",
        ("10.0.0.7", "2001:db8::1", "192.0.2.9", "fd00:1::1"),
    ),
    "an IPv6 network that the policy names": (
        lambda n: f"2001:db8:{n >> 8:x}:{n & 255:x}::1",
        ("10.0.0.7", "192.0.2.9", "fd00::1"),
    ),
    "many networks that the policy does not name": (
        lambda n: f"172.{n & 15}.{n >> 12}.{n >> 4 & 255}",
        ("10.0.0.7", "2001:db8::1"),
    ),
}


@pytest.mark.parametrize(
    ("places", "count"),
    [(64, 200), pytest.param(PLACES, 100_000, marks=pytest.mark.long)],
)
@pytest.mark.parametrize(("address", "others"), ATTACKERS.values(), ids=ATTACKERS)
def test_however_many_addresses_one_network_has_clients_of_others_get_tickets(
    store: TicketStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: Callable[[int], str],
    others: tuple[str, ...],
    places: int,
    count: int,
) -> None:
    monkeypatch.setattr("squidkeeper.serving.tickets.ticket.PLACES", places)
    policy = compiled_of(tmp_path / "policy", CLIENTS)
    given_out = Counter(asks(store, policy, address(n)) for n in range(count))
    assert given_out[False] > 0
    assert given_out[True] <= places
    assert [client for client in others if not asks(store, policy, client)] == []


def test_a_network_takes_half_of_the_places_and_the_next_one_half_of_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("squidkeeper.serving.tickets.ticket.PLACES", 16)
    taken = set[str]()
    for network in ("a", "b", "c"):
        for n in range(100):
            if (holder := Holder(network, str(n))).has_room(taken):
                taken.add(holder.place)
    assert Counter(place[0] for place in taken) == {"a": 8, "b": 4, "c": 2}
    # the clients that the policy names have places of their own
    assert Holder("client x", "1").has_room(taken)


def test_a_machine_that_has_a_place_keeps_it(
    store: TicketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.serving.tickets.ticket.PLACES", 4)
    clients = [f"192.168.137.{n}" for n in (10, 11, 12)]
    assert [
        ask(store, asked(client=client)) in list(NoTicket) for client in clients
    ] == [False, False, True]
    assert ask(store, asked(client=clients[2])) is NoTicket.NO_PLACE
    number = str(ask(store, asked(client=VM)))
    store.decide(number, TicketState.DENIED, NOW, 0, "No.")
    assert ask(store, asked("https://b.example/", VM)) not in list(NoTicket)


def test_who_asks_is_a_machine_in_the_smallest_client_or_in_its_network(
    tmp_path: Path,
) -> None:
    policy = compiled_of(tmp_path / "policy", CLIENTS)
    found = {
        client: holder_of(policy, asked(client=client))
        for client in ("10.0.0.7", "10.0.1.7", "10.0.0.8")
    }
    assert [*found.values()] == [Holder("client vm", "client vm")] * 2 + [
        Holder("client agents", "10.0.0.8")
    ]
    assert holder_of(policy, asked(client="192.0.2.9")) == Holder(
        "192.0.2.0/24", "192.0.2.9"
    )
    assert holder_of(policy, asked(client="fd00:0:0:1::9")) == Holder(
        "fd00::/48", "fd00:0:0:1::/64"
    )


def test_what_the_policy_decides_by_now_waits_no_longer_and_gives_room(
    store: TicketStore, tmp_path: Path
) -> None:
    numbers, holder = fill(store), Holder("192.168.137.0/24", VM)
    closing_some = "defaults: {ask: true}\nrules: [{name: closed, action: deny, hosts: [a.example], paths: [/1, /2]}]"
    policy = compiled_of(tmp_path / "policy", closing_some)
    settle(
        store,
        policy,
        lambda _: False,
        store.pending_of(holder),
        datetime.fromtimestamp(NOW, UTC),
    )
    assert store.count_pending(NOW) == PENDING_AT_MOST - 2
    settled = store.find(str(numbers[1]))
    assert settled is not None
    assert settled.state is TicketState.SETTLED
    assert [
        ask(store, asked(f"https://b.example/{n}")) in list(NoTicket) for n in range(3)
    ] == [False, False, True]
    # the policy asks about it again
    assert ask(store, asked("https://a.example/1")) == numbers[1]
    found = store.find(str(numbers[1]))
    assert found is not None
    assert found.state is TicketState.PENDING


def test_what_the_policy_decides_pushes_out_nothing_that_people_have_denied(
    store: TicketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.serving.tickets.store._DECIDED_AT_MOST", 3)
    numbers = [str(ask(store, asked(f"https://a.example/{n}"))) for n in range(8)]
    store.decide(numbers[0], TicketState.DENIED, NOW, 0, "No.")
    store.settle(numbers[1:], NOW + 1)
    ask(store, asked("https://b.example/"))
    left = store._select("state != 'pending'")
    assert (len(left), numbers[0] in {grant.number for grant in left}) == (3, True)


def test_what_nobody_asks_for_a_week_leaves(store: TicketStore) -> None:
    fill(store)
    later = NOW + KEPT_DAYS * DAY + 1
    assert store.pending(later) == []
    assert ask(store, asked("https://a.example/new"), later) not in list(NoTicket)
    # the others are gone
    assert [ticket.url for ticket in store.pending(0)] == ["https://a.example/new"]


def test_a_decision_ends_the_wait_and_gives_room(store: TicketStore) -> None:
    numbers = fill(store)
    store.decide(str(numbers[0]), TicketState.DENIED, NOW, 0, "Not for agents.")
    assert numbers[0] not in {ticket.number for ticket in store.pending(NOW)}
    found = store.find(str(numbers[0]))
    assert found is not None
    assert (found.state, found.reason) == (TicketState.DENIED, "Not for agents.")
    assert ask(store, asked("https://a.example/more")) not in list(NoTicket)


def test_a_denied_question_stays_denied_when_it_is_asked_again(
    store: TicketStore,
) -> None:
    number = str(ask(store, asked()))
    store.decide(number, TicketState.DENIED, NOW, 0, "No.")
    ask(store, asked(), NOW + DAY)
    assert store.pending(NOW + DAY) == []
    ask(store, asked(), NOW + KEPT_DAYS * DAY + 1)
    assert len(store.pending(NOW + KEPT_DAYS * DAY + 1)) == 1


def test_an_approved_question_that_is_still_denied_waits_again_and_is_told_again(
    store: TicketStore,
) -> None:
    number = str(ask(store, asked()))
    store.tell([number])
    store.decide(number, TicketState.APPROVED, NOW, NOW + 3600, "")
    ask(store, asked(), NOW + 5)  # the edit is not in force yet
    assert store.pending(NOW + 5) == []
    ask(store, asked(), NOW + 20)  # the grant was revoked, or is used up
    [ticket] = store.pending(NOW + 20)
    assert (ticket.times, ticket.told) == (3, 0)


def test_decided_questions_of_a_client_are_bounded(
    store: TicketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.serving.tickets.store._DECIDED_AT_MOST", 3)
    for n in range(6):
        number = str(ask(store, asked(f"https://a.example/{n}"), NOW + n))
        store.decide(number, TicketState.DENIED, NOW + n, 0, "No.")
    ask(store, asked(), NOW + 10)
    left = [ticket.url for ticket in store._select("state = 'denied' ORDER BY decided")]
    assert left == [f"https://a.example/{n}" for n in (3, 4, 5)]


def test_the_clients_at_their_bound_do_not_fill_the_file(store: TicketStore) -> None:
    fill(store, length=500)
    assert ask(store, asked()) is NoTicket.TOO_MANY
    store.close()
    assert store._database._file.stat().st_size * 2 * PLACES < _PAGES_AT_MOST * 4096


def test_a_full_file_gives_no_new_ticket_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.base.shared_database._PAGES_AT_MOST", 20)
    with closing(TicketStore(tmp_path)) as store:
        with pytest.raises(OSError, match="full"):
            fill(store, length=490)
        kept = store.pending(NOW)
        assert kept
        assert ask(store, kept[0].asked) == kept[0].number


def _ask_forever(state: Path, name: int) -> None:
    store = TicketStore(state)
    for n in range(1_000_000):
        ask(store, asked(f"https://a.example/{name}/{n % 50}", f"10.0.0.{name}"))


@pytest.mark.system
def test_processes_that_are_killed_leave_no_lock_and_no_torn_ticket(
    tmp_path: Path, store: TicketStore
) -> None:
    started = [
        multiprocessing.get_context("fork").Process(
            target=_ask_forever, args=(tmp_path, n)
        )
        for n in range(4)
    ]
    for process in started:
        process.start()

    def are_at_work() -> bool:
        with suppress(
            OSError
        ):  # one of them has written for longer than a process waits
            return store.count_pending(NOW) >= 20
        return False

    wait_for(are_at_work, "questions of four processes")
    for process in started:
        process.kill()
        process.join()
    assert ask(store, asked()) not in list(NoTicket)
    assert all(
        ticket.url.startswith("https://a.example/") for ticket in store.pending(NOW)
    )


@pytest.mark.system
def test_processes_together_stay_within_the_bound(
    tmp_path: Path, store: TicketStore
) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_ask_many, [(tmp_path, n) for n in range(4)])
    assert len(store.pending(NOW)) == PENDING_AT_MOST


def _ask_many(state: Path, name: int) -> None:
    with closing(TicketStore(state)) as store:
        for n in range(100):
            with suppress(OSError):  # another one wrote for longer than a helper waits
                ask(store, asked(f"https://a.example/{name}/{n}"))


def test_a_store_that_cannot_be_written_says_so(store: TicketStore) -> None:
    (store._folder.parent / FOLDER).write_text("no folder")
    with pytest.raises(OSError, match="tickets"):
        ask(store, asked())


def test_a_damaged_store_says_so_and_works_when_it_is_removed(
    store: TicketStore,
) -> None:
    ask(store, asked())
    store.close()
    file = store._folder / "tickets.db"
    file.write_bytes(b"x" * 8192)
    with pytest.raises(OSError, match="not a database"):
        ask(store, asked())
    for path in store._folder.iterdir():
        path.unlink()
    assert ask(store, asked()) not in list(NoTicket)


def test_a_folder_that_is_removed_is_made_again(store: TicketStore) -> None:
    ask(store, asked())
    for file in store._folder.iterdir():
        file.unlink()
    store._folder.rmdir()
    assert ask(store, asked()) not in list(NoTicket)
    assert len(store.pending(NOW)) == 1
