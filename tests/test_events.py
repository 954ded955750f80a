"""A CONNECT and what came through its tunnel are one event."""

import random
from collections.abc import Iterable
from itertools import count

import pytest

from squidkeeper.record import events as module
from squidkeeper.record.events import Events, Judgement, LoggedRecord
from squidkeeper.record.record import NONE, Record, parse_record

from . import plain_reading
from .records import after_noon, record

DENIED: dict[str, object] = {
    "verdict": "deny",
    "rule": "closed",
    "error": "403:ERR_SQUIDKEEPER_DENIED",
    "tunnel": "closed.example:443%20denied%20by%20closed",
}


def entry(second: float = 0, **fields: object) -> LoggedRecord:
    return LoggedRecord(b"", record(**{"time": after_noon(second), **fields}))


def get(second: float = 0, connection: str = "1", **fields: object) -> LoggedRecord:
    return entry(second, connection=connection, **fields)


def denied_connect(second: float = 0, connection: str = "2", **fields: object) -> LoggedRecord:
    own = {"method": "CONNECT", "url": "closed.example:443", "squid": "TCP_DENIED/HIER_NONE", "duration_ms": 0}
    return entry(second, connection=connection, **{**DENIED, **own, **fields})


def denied_inside(second: float = 0, connection: str = "2", **fields: object) -> LoggedRecord:
    own = {"url": "https://closed.example/secret?x", "status": 403, "squid": "NONE_NONE/HIER_NONE"}
    return entry(second, connection=connection, **{**DENIED, **own, **fields})


def fronted_inside(second: float = 0, connection: str = "2", **fields: object) -> LoggedRecord:
    """Make a request inside whose Host is another than the tunnel's."""
    return denied_inside(second, connection, **{"url": "https://good.example/secret?x", **fields})


def withheld_inside(second: float = 0, connection: str = "2", **fields: object) -> LoggedRecord:
    return denied_inside(second, connection, **{"url": NONE, "tunnel": NONE, "sni": NONE, **fields})


def opened_connect(second: float = 0, connection: str = "3", **fields: object) -> LoggedRecord:
    own = {"method": "CONNECT", "url": "open.example:443", "tunnel": "open.example:443"}
    return entry(second, connection=connection, **{**own, "squid": "NONE_NONE/HIER_DIRECT", **fields})


def opened_in_denied(second: float, connection: str) -> LoggedRecord:
    return opened_connect(second, connection, tunnel=DENIED["tunnel"])


def told(found: Events, entries: Iterable[LoggedRecord]) -> list[LoggedRecord]:
    given = list(entries)
    out = [*found.feed(given), *found.flush()]
    assert len(out) + found.connects + found.merged == len(given)
    return out


def test_plain_requests_are_events_as_they_are() -> None:
    given = [get(1), get(2, connection="9")]
    assert told(Events(), given) == given


def test_a_denied_connect_and_its_request_are_the_request() -> None:
    inside = denied_inside(1)
    found = Events()
    assert told(found, [denied_connect(0), inside]) == [inside]
    assert (found.merged, found.connects) == (1, 0)


def test_each_further_request_in_a_denied_tunnel_is_an_event_of_its_own() -> None:
    inside = [denied_inside(second) for second in range(1, 4)]
    assert told(Events(), [denied_connect(0), *inside]) == inside


def test_a_denied_connect_without_a_request_is_the_event() -> None:
    connect = denied_connect(0)
    assert told(Events(), [connect, get(1)]) == [connect, get(1)]


def test_a_connect_denied_for_its_private_address_and_its_request_are_one_event() -> None:
    inside = denied_inside(1, tunnel="closed.example:443", rule="private-address")
    assert told(Events(), [denied_connect(0, tunnel="closed.example:443"), inside]) == [inside]


def test_a_request_has_what_was_observed_of_its_denied_tunnel() -> None:
    connect = denied_connect(0, observed="allow:draft")
    inside = denied_inside(1, verdict=NONE, rule=NONE, revision=NONE)
    (event,) = told(Events(), [connect, inside])
    assert (event.record.url, event.record.observed) == (inside.record.url, "allow:draft")
    judged = denied_inside(1)  # which was judged itself, and nothing was observed
    assert told(Events(), [connect, judged]) == [judged]


def test_a_client_that_left_during_tls_is_told_at_once() -> None:
    gone = denied_connect(0, squid="NONE_NONE_ABORTED/HIER_NONE", error="ERR_CLIENT_GONE")
    assert list(Events().feed([gone])) == [gone]


FAILED_CONNECT: dict[str, object] = {
    "method": "CONNECT",
    "url": "nowhere.example:443",
    "tunnel": "nowhere.example:443",
    "error": "503:ERR_SQUIDKEEPER_NO_ADDRESS",
    "squid": "TCP_DENIED/HIER_NONE",
    "duration_ms": 35_000,
}
UNJUDGED: dict[str, object] = {
    "method": "PUT",
    "url": "https://nowhere.example/x",
    "tunnel": "nowhere.example:443",
    "error": "503:ERR_SQUIDKEEPER_NO_ADDRESS",
    "squid": "NONE_NONE/HIER_NONE",
    "status": 503,
    "duration_ms": 2,
    **dict.fromkeys(("verdict", "rule", "revision"), NONE),
}


def test_a_request_that_nobody_judged_has_the_verdict_that_the_policy_of_its_connect_gives_it() -> None:
    asked: list[Record] = []

    def judge(record: Record) -> Judgement:
        asked.append(record)
        return Judgement("deny", "default", "deny:later")

    (event,) = told(Events(decide=judge), [entry(0, **FAILED_CONNECT), entry(1, **UNJUDGED)])
    assert [(one.method, one.url, one.revision) for one in asked] == [
        ("PUT", "https://nowhere.example/x", "0123456789ab")
    ]
    assert (event.record.verdict, event.record.rule, event.record.revision) == ("deny", "default", "0123456789ab")
    assert event.record.observed == "deny:later"
    assert parse_record(event.line) == event.record


def test_a_request_that_nobody_judged_is_not_allowed_because_its_connect_was() -> None:
    (event,) = told(Events(), [entry(0, **FAILED_CONNECT), entry(1, **UNJUDGED)])
    assert (event.record.verdict, event.record.rule, event.record.revision) == (NONE, NONE, NONE)
    assert event.record.status == 503


def test_a_request_that_nobody_judged_is_judged_and_shown_with_the_user_of_its_connect() -> None:
    connect, inside = entry(0, **FAILED_CONNECT, user="alice"), entry(1, **UNJUDGED)
    events = Events(decide=lambda record: Judgement("allow" if record.user == "alice" else "deny", "for-alice"))
    (event,) = told(events, [connect, inside])
    assert (event.record.user, event.record.verdict, event.record.rule) == ("alice", "allow", "for-alice")
    assert parse_record(event.line) == event.record


def test_a_request_names_the_denial_of_its_tunnel() -> None:
    private = {"error": "403:ERR_SQUIDKEEPER_PRIVATE", "rule": "private-address", "tunnel": "private.example:443"}
    inside = denied_inside(1, **{**private, "revision": NONE})
    (event,) = told(Events(), [denied_connect(0, **private), inside])
    assert (event.record.verdict, event.record.rule) == ("deny", "private-address")
    assert event.record.revision == "0123456789ab"


def test_an_event_lasts_as_long_as_its_client_waited() -> None:
    (event,) = told(Events(), [entry(0, **FAILED_CONNECT), entry(1, **UNJUDGED)])
    assert event.record.duration_ms == 35_002
    assert parse_record(event.line) == event.record
    (event,) = told(Events(), [denied_connect(0, duration_ms=9000), denied_inside(1, duration_ms=4)])
    assert event.record.duration_ms == 9004


def test_a_client_whose_tls_failed_is_told_at_once() -> None:
    distrusting = opened_connect(0, error="ERR_SECURE_ACCEPT_FAIL")
    assert list(Events().feed([distrusting])) == [distrusting]


def test_requests_of_other_connections_do_not_stand_for_a_denied_connect() -> None:
    strangers = [
        denied_inside(1, connection="7"),
        denied_inside(2, client="192.168.137.3"),
        denied_inside(2, worker="2"),
        denied_inside(3, tunnel="other.example:443%20denied%20by%20closed"),
    ]
    connect = denied_connect(0)
    assert told(Events(), [connect, *strangers]) == [connect, *strangers]


def test_the_order_is_kept_while_a_connect_waits() -> None:
    found = Events()
    connect, others, inside = denied_connect(0), [get(1), get(2)], denied_inside(3)
    assert list(found.feed([connect, *others])) == []
    assert list(found.feed([inside])) == [*others, inside]


def test_a_connect_waits_ten_seconds() -> None:
    found = Events()
    connect, others = denied_connect(0), [get(1), get(10), get(10.001)]
    assert list(found.feed([connect, *others[:2]])) == []
    assert list(found.feed(others[2:])) == [connect, *others]
    late = denied_inside(11)
    assert list(found.feed([late])) == [late]
    assert found.merged == 0


@pytest.mark.parametrize(("second", "merged"), [(10, 1), (10.001, 0)])
def test_a_request_that_comes_too_late_is_an_event_of_its_own(second: float, merged: int) -> None:
    found = Events()
    connect, inside = denied_connect(0), denied_inside(second)
    assert told(found, [connect, inside]) == [connect, inside][merged:]
    assert found.merged == merged


def test_another_connect_on_the_connection_ends_the_wait() -> None:
    found = Events()
    told(found, [denied_connect(0), denied_connect(1, status=403), denied_inside(2)])
    assert found.merged == 0


def test_what_was_served_does_not_end_the_wait() -> None:
    served, inside = get(1, connection="2"), denied_inside(2)
    assert told(Events(), [denied_connect(0), served, inside]) == [served, inside]


@pytest.mark.parametrize(
    "url",
    [
        "https://good.example/x",
        "https://closed.example:8443/x",
        "https://closed.example.good.example/",
        "https://good.example/https://closed.example/",
        "http://closed.example/",
        "http://:80*",  # OPTIONS *
        "urn:x",
        "error:invalid-request",
        "closed.example:443",
    ],
)
def test_a_request_that_names_another_host_does_not_hide_the_denied_one(url: str) -> None:
    both = [denied_connect(0), fronted_inside(1, url=url)]
    assert told(Events(), both) == both


def test_a_request_for_the_port_of_its_tunnel_stands_for_both() -> None:
    there = {"tunnel": "closed.example:8443%20denied%20by%20closed"}
    connect = denied_connect(0, url="closed.example:8443", **there)
    inside, other = (denied_inside(1, url=f"https://closed.example{port}/x", **there) for port in (":8443", ""))
    assert told(Events(), [connect, inside]) == [inside]
    assert told(Events(), [connect, other]) == [connect, other]


def test_a_request_for_another_host_in_a_tunnel_that_failed_is_not_judged() -> None:
    both = [entry(0, **FAILED_CONNECT), entry(1, **{**UNJUDGED, "url": "https://good.example/x"})]
    assert told(Events(decide=lambda _: Judgement("allow", "good")), both) == both


def test_a_connect_stands_for_the_withheld_request_inside() -> None:
    found, connect = Events(), denied_connect(0)
    further = withheld_inside(2)
    assert told(found, [connect, withheld_inside(1), further]) == [connect, further]
    assert found.merged == 1


def test_events_are_those_of_the_plain_reading() -> None:
    """Records of few tunnels, in any order of kinds and times."""
    chosen = random.Random(13)
    kinds = [get, denied_connect, denied_connect, denied_inside, fronted_inside, withheld_inside, opened_in_denied]
    for _ in range(500):
        seconds = sorted(chosen.choice([0, 0.001, 3, 9.999, 10, 10.001]) + chosen.randrange(3) for _ in range(8))
        given = [chosen.choice(kinds)(at, connection=chosen.choice("23")) for at in seconds]
        found, expected = Events(), plain_reading.fold([one.record for one in given])
        assert [one.record for one in told(found, given)] == expected.requests
        assert (found.connects, found.merged) == (expected.tunnels, expected.merged)


def test_no_more_than_a_bound_waits_behind_connects() -> None:
    found = Events()
    many = [denied_connect(0, connection=str(number)) for number in range(module.QUEUED_RECORDS_LIMIT + 500)]
    assert list(found.feed(many)) == many[:500]
    assert (len(found._queue), len(found._waiting)) == (module.QUEUED_RECORDS_LIMIT, module.QUEUED_RECORDS_LIMIT)
    assert list(found.feed([get(0)])) == [many[500]]
    assert list(found.flush()) == [*many[501:], get(0)]


def test_no_more_than_a_bound_of_bytes_waits_behind_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, long_ones = denied_connect(0), [get(0)._replace(line=b"x" * 1000) for _ in range(12)]
    monkeypatch.setattr(module, "QUEUED_BYTES_LIMIT", len(connect.line) + 10_000)
    found = Events()
    assert list(found.feed([connect, *long_ones[:10]])) == []
    assert list(found.feed(long_ones[10:])) == [connect, *long_ones]
    assert list(found.feed([connect, *long_ones[:10]])) == [], "what has left no longer counts"


def test_thousands_of_denied_tunnels_at_once_find_their_requests() -> None:
    tunnels = [str(number) for number in range(5000)]
    inside = [denied_inside(1, connection=number) for number in tunnels]
    found = Events()
    assert told(found, [*(denied_connect(0, connection=number) for number in tunnels), *inside]) == inside
    assert found.merged == len(tunnels)


def test_a_connection_number_used_again_after_a_restart_loses_nothing() -> None:
    first, second, inside = denied_connect(0), denied_connect(1), denied_inside(2)
    assert told(Events(), [first, second, inside]) == [first, inside]


def test_an_opened_tunnel_is_no_event_and_is_counted() -> None:
    found = Events()
    inside = get(1, connection="3", tunnel="open.example:443")
    assert told(found, [opened_connect(0), inside]) == [inside]
    assert (found.connects, found.merged) == (1, 0)


def test_a_tunnel_that_passed_through_is_an_event_when_it_ends() -> None:
    found = Events()
    ended = opened_connect(9, squid="TCP_TUNNEL/HIER_DIRECT", bytes=9_000)
    cut_off = opened_connect(10, squid="TCP_TUNNEL_ABORTED/HIER_DIRECT")
    assert told(found, [opened_connect(0), ended, cut_off]) == [ended, cut_off]
    assert (found.connects, found.merged) == (1, 0)


def test_a_tunnel_that_came_to_nothing_is_an_event() -> None:
    clock = count()
    nothing = [
        opened_connect(next(clock), error="ERR_PROTOCOL_UNKNOWN"),
        opened_connect(next(clock), squid="NONE_NONE_ABORTED/HIER_NONE"),
        opened_connect(next(clock), verdict=NONE, rule=NONE),  # nobody was asked
        opened_connect(next(clock), status=403, verdict="deny", squid="TCP_DENIED/HIER_NONE"),
    ]
    assert told(Events(), nothing) == nothing
