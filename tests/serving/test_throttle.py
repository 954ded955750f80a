"""When a client learns that it is denied: turns, surplus, and the helper that holds
answers, as a process on pipes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.client_network import client_network
from squidkeeper.policy.protocol.lines import Result, format_reply, reply_limit
from squidkeeper.serving.counters.reader import read_counter_files
from squidkeeper.serving.helpers.throttle import (
    SPARE_LOOKUPS,
    SURPLUS_SECONDS,
    Clients,
    Limits,
    Surplus,
    Throttle,
    answer_surplus,
)
from tests.waiting import pause

from .conftest import Program

# an eighth of a second is exact in binary
LIMITS = Limits(per_second=8, burst=5, longest_seconds=2)
NOW = 1000.0


def no_release(until: float) -> None:
    raise AssertionError(f"nothing is pushed out, but {until} was")


@given(st.lists(st.floats(0, 0.5), max_size=300))
def test_a_client_never_has_more_turns_than_its_burst_and_its_rate(
    pauses: list[float],
) -> None:
    clients, now, turns = Clients(LIMITS), NOW, []
    for seconds in pauses:
        now += seconds
        due = clients.due("192.0.2.1", now)
        if due is not None:
            assert now <= due <= now + LIMITS.longest_seconds
            turns.append(due)
    assert turns == sorted(turns)
    for first, start in enumerate(turns):
        within = sum(start <= due < start + 1 for due in turns[first:])
        assert within <= LIMITS.burst + LIMITS.per_second


def test_a_burst_is_answered_at_once_then_one_after_another_then_not_at_all() -> None:
    clients = Clients(LIMITS)
    dues = [clients.due("192.0.2.1", NOW) for _ in range(30)]
    assert dues[:5] == [NOW] * 5
    assert dues[5:21] == [NOW + turn / 8 for turn in range(1, 17)]
    assert dues[21:] == [None] * 9
    assert clients.due("192.0.2.2", NOW) == NOW, "another client waits for nobody"
    assert clients.due("192.0.2.1", NOW + 3) == NOW + 3, (
        "after a quiet time it may again"
    )


def test_the_clients_that_are_remembered_are_bounded_and_the_busiest_are_kept() -> None:
    clients = Clients(LIMITS, at_most=100)
    for _ in range(20):
        clients.due("192.0.2.1", NOW)
    for number in range(1000):
        assert clients.due(f"198.51.100.{number}", NOW) == NOW
    assert len(clients._full_at) <= 100
    due = clients.due("192.0.2.1", NOW)
    assert due is not None
    assert due > NOW + 1


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "::/64"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one_client(client: str, network: str) -> None:
    assert client_network(client) == network


def test_surplus_is_due_one_after_another_within_a_minute() -> None:
    surplus = Surplus(10, no_release)
    dues = [surplus.due(NOW) for _ in range(1000)]
    assert dues == sorted(dues)
    assert dues[:3] == pytest.approx([NOW, NOW + 0.1, NOW + 0.2])
    assert dues[-1] == NOW + SURPLUS_SECONDS


def test_surplus_beyond_the_bound_pushes_out_the_oldest() -> None:
    released: list[float] = []
    surplus = Surplus(10, released.append, at_most=100)
    dues = [surplus.due(NOW + number / 1000) for number in range(150)]
    assert released == [due for due in dues if due > NOW + 0.15][: len(released)]
    assert len(released) >= 45
    assert len(surplus._waiting) <= 100


def test_a_client_that_waits_too_long_is_sent_on_with_a_turn_among_the_surplus() -> (
    None
):
    throttle = Throttle(LIMITS, 600, no_release)
    answers = [throttle.answer(b"192.0.2.1 -", NOW, held) for held in range(22)]
    assert [late.reply.result for late in answers] == [Result.OK] * 21 + [Result.ERR]
    assert answers[-1].due == NOW
    assert format_reply(answers[-1].reply, b"7") == b"7 ERR held_until_=1000.00\n"
    assert [late.reply.counts[0][-1] for late in answers] == ["at_once"] * 5 + [
        "held"
    ] * 16 + ["surplus"]


def test_after_a_long_head_a_client_waits_by_the_size_of_its_heads() -> None:
    throttle = Throttle(LIMITS, 600, no_release)
    answers = [throttle.answer(b"192.0.2.1 16 head", NOW, 0) for _ in range(7)]
    assert [late.due - NOW for late in answers[:4]] == [0] * 4
    assert NOW < answers[4].due < NOW + LIMITS.longest_seconds
    assert answers[6].reply.result is Result.ERR
    assert not any(late.reply.counts for late in answers), "they are no denials"
    assert throttle.answer(b"192.0.2.1 16 -", NOW, 0).due == NOW, "a denial"
    assert throttle.answer(b"192.0.2.2 16 head", NOW, 0).due == NOW, "another client"


def test_lookups_stay_free_for_clients_below_their_rate() -> None:
    """However many others wait: a client with turns left needs no slot to wait in."""
    throttle = Throttle(LIMITS, 600, no_release)
    assert (
        throttle.answer(b"192.0.2.1 -", NOW, 600 - SPARE_LOOKUPS - 1).reply.result
        is Result.OK
    )
    others = [
        throttle.answer(b"192.0.2.2 -", NOW, 600 - SPARE_LOOKUPS) for _ in range(6)
    ]
    assert [late.reply.result for late in others] == [Result.OK] * 5 + [Result.ERR]
    assert [late.due for late in others] == [NOW] * 6


def test_the_longest_reply_fits_the_bound_of_its_concurrency() -> None:
    throttle = Throttle(
        Limits(per_second=8, burst=1, longest_seconds=2), 600, no_release
    )
    reply = [
        throttle.answer(b"192.0.2.1 -", 999_999_999.99, 600).reply for _ in range(2)
    ][-1]
    assert format_reply(reply, b"9" * 19, reply_limit(600)).endswith(
        b" ERR held_until_=999999999.99\n"
    )


@pytest.mark.parametrize(
    ("request_", "due"),
    [
        (b"1012.50 -", 1012.5),
        (b"999.00 -", NOW),
        (b"- -", NOW),
        (b"x -", NOW),
        (b"nan -", NOW),
        (b"inf -", NOW + SURPLUS_SECONDS),
        (b"5000 -", NOW + SURPLUS_SECONDS),
    ],
)
def test_surplus_is_answered_at_the_time_that_the_line_names(
    request_: bytes, due: float
) -> None:
    late = answer_surplus(request_, NOW, 0)
    assert (late.due, late.reply.result) == (due, Result.OK)


# The process


def answers(helper: Program, number: int) -> list[tuple[str, float]]:
    """Each answer, and when it came."""
    return [(helper.answer(), time.monotonic()) for _ in range(number)]


Start = Callable[..., Program]


@pytest.fixture
def start(program: Callable[..., Program], tmp_path: Path) -> Start:
    return lambda *options: program(
        "throttle", "--state", str(tmp_path / "state"), *options
    )


def release(until: float) -> None:
    """Tell the helper that this process started, as its sibling does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(repr(until).encode(), f"\0squidkeeper-throttle-{os.getpid()}")


CLIENT = ("--scope", "client", "--rate", "5", "--burst", "2")


def test_answers_come_late_and_another_clients_ahead_of_them(start: Start) -> None:
    helper = start(*CLIENT)
    begun = time.monotonic()
    helper.send(
        "1 192.0.2.1 -\n2 192.0.2.1 -\n3 192.0.2.1 -\n4 192.0.2.1 -\n5 192.0.2.2 -"
    )
    came = answers(helper, 5)
    assert [line for line, _ in came] == [
        "1 OK\n",
        "2 OK\n",
        "5 OK\n",
        "3 OK\n",
        "4 OK\n",
    ]
    third, fourth = (moment - begun for _, moment in came[3:])
    assert third >= 0.2
    assert fourth >= 0.4


def test_the_end_of_input_answers_all_that_is_held_at_once(start: Start) -> None:
    helper = start(
        "--scope", "client", "--rate", "1", "--burst", "1", "--longest", "100"
    )
    helper.send(*(f"{number} 192.0.2.1 -" for number in range(1, 51)))
    assert answers(helper, 1)[0][0] == "1 OK\n"
    begun = time.monotonic()
    out, _ = helper.end()
    assert out.decode().split("\n")[:-1] == [f"{number} OK" for number in range(2, 51)]
    assert time.monotonic() - begun < 25  # they are held for up to 49 seconds


def test_more_lines_at_once_than_may_be_held_are_no_surplus(start: Start) -> None:
    helper = start("--scope", "client")
    helper.send(*(f"{number} 192.0.2.{number % 200} -" for number in range(1, 601)))
    assert {line.split()[1] for line, _ in answers(helper, 600)} == {"OK"}


def test_a_line_that_is_not_understood_is_answered_at_once_unless_it_has_no_channel(
    start: Start, tmp_path: Path
) -> None:
    helper = start(*CLIENT)
    helper.send("1 a b c d\nno channel\n2 192.0.2.1 -")
    assert [line for line, _ in answers(helper, 2)] == ["1 OK\n", "2 OK\n"]
    out, err = helper.end()
    assert out == b""
    assert "4 tokens, expected 1 or 2" in err
    assert "has no channel-ID: does squid.conf say concurrency=600?" in err
    (slot,) = read_counter_files(tmp_path / "state/helpers")
    counted = {(name, *labels.values()): value for name, labels, value in slot.samples}
    assert counted["squidkeeper_protocol_errors_total", "throttle"] == 2
    assert counted["squidkeeper_denials_throttled_total", "at_once"] == 1


def test_surplus_is_held_until_its_time_or_until_it_is_released(start: Start) -> None:
    helper, now = start("--scope", "surplus", "--concurrency", "100"), time.monotonic()
    helper.send(f"1 {now + 30:.2f} -\n2 - -\n3 {now + 31:.2f} -\n4 {now + 50:.2f} -")
    assert answers(helper, 1)[0][0] == "2 OK\n"
    release(now + 40)  # of the same parent process
    assert [line for line, _ in answers(helper, 2)] == ["1 OK\n", "3 OK\n"]
    assert time.monotonic() - now < 20
    assert helper.end()[0] == b"4 OK\n"


def test_another_local_account_releases_nothing(start: Start) -> None:
    helper, now = start("--scope", "surplus", "--concurrency", "100"), time.monotonic()
    helper.send(f"1 - -\n2 {now + 30:.2f} -")
    assert answers(helper, 1)[0][0] == "1 OK\n"
    code = "import socket, sys; socket.socket(1, 2).sendto(b'inf', '\\0squidkeeper-throttle-' + sys.argv[1])"
    as_nobody = (
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        code,
        str(os.getpid()),
    )
    subprocess.run(as_nobody, check=True)
    helper.send("3 - -")
    assert answers(helper, 1)[0][0] == "3 OK\n"
    assert helper.end()[0] == b"2 OK\n"


def test_the_name_of_a_helper_that_has_ended_is_taken_over(start: Start) -> None:
    first, second = (
        start("--scope", "surplus", "--concurrency", "100") for _ in range(2)
    )
    for helper in (first, second):
        helper.send("1 - -")
        assert answers(helper, 1)[0][0] == "1 OK\n"
    first.end()
    second.send("2 - -")
    assert answers(second, 1)[0][0] == "2 OK\n"
    now = time.monotonic()
    second.send(f"3 {now + 30:.2f} -")
    pause(0.2, "the line waits for its turn")
    release(now + 40)
    assert answers(second, 1)[0][0] == "3 OK\n"
    assert time.monotonic() - now < 20
