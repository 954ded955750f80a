"""The questions of a log are those of a plain count; each is judged as the requests
that it stands for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import duckdb
import msgspec
import pytest
from hypothesis import strategies as st

from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.record import NONE, Record, host_of, is_spliced
from squidkeeper.record.log.requests import NOT_BY_THE_POLICY, request_of
from squidkeeper.record.table.questions import (
    COLUMNS,
    SET_APART,
    Question,
    QuestionTable,
)
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table

from ..conftest import few_and_many, hold_for
from ..plain_reading import fold, time_of
from ..record_tables import insert_records
from ..records import after_noon, record, record_line

HOST, OTHER = "a.example", "b.example"
DENIED = f"{HOST}%3A443%20first"
RECORDS = st.builds(
    lambda after, **values: record(time=after_noon(after / 2), **values),
    after=st.integers(0, 20),
    client=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    user=st.sampled_from([NONE, NONE, "c%C3%AFlia", "u" * 256]),
    method=st.sampled_from(["GET", "GET", "POST", "CONNECT", NONE]),
    url=st.sampled_from(
        [
            *(
                f"https://{HOST}/",
                f"https://{HOST}/x?q=1",
                f"https://{OTHER}/",
                f"http://{HOST}/",
                f"{HOST}:443",
                NONE,
            ),
            *(
                "http://10.0.0.1/",
                "http://[fd00::1]/",
                f"http://{HOST}/{'x' * (4096 - len(HOST) - 8)}",
            ),
        ]
    ),
    status=st.sampled_from([200, 200, 0, 101, 304, 400, 403, 404, 503]),
    duration_ms=st.sampled_from([0, 3, 50]),
    verdict=st.sampled_from(["allow", "allow", "deny", NONE]),
    rule=st.sampled_from(
        [
            "yes",
            "no",
            "default",
            "private-address",
            "authority-mismatch",
            "secret-leaving",
            NONE,
        ]
    ),
    revision=st.sampled_from(["0123456789ab", NONE]),
    credential=st.sampled_from([NONE, "token", "other"]),
    sni=st.sampled_from([HOST, NONE]),
    tunnel=st.sampled_from([f"{HOST}%3A443", DENIED, NONE]),
    hidden=st.sampled_from([NONE, NONE, "fragment"]),
    error=st.sampled_from([NONE, NONE, NONE, "ERR_CLIENT_GONE", "ERR_CONNECT_FAIL"]),
    squid=st.sampled_from(
        ["TCP_MISS/HIER_DIRECT", "TCP_TUNNEL/HIER_DIRECT", "TCP_DENIED/HIER_NONE"]
    ),
    request_id=st.uuids().map(str),
    request_bytes=st.integers(0, 1000),
    observed=st.sampled_from([NONE, "deny%3Adefault"]),
    connection=st.sampled_from(["1", "2"]),
)


def asked(path: Path) -> tuple[list[Question], dict[str, int]]:
    with open_table(TableSources(files=(path,)), threads=1, columns=COLUMNS) as table:
        questions = QuestionTable(table.connection)
        return list(questions.each()), dict(questions.set_apart)


def as_logged(tmp_path: Path, *lines: bytes) -> tuple[list[Question], dict[str, int]]:
    path = tmp_path / "access.log"
    path.write_bytes(b"\n".join([*lines, b""]))
    return asked(path)


# --- plain reference ------------------------------------------------------------------


def reason(record: Record) -> str | None:
    """Tell why a request cannot be asked about again."""
    if record.rule == NONE:
        return "unasked"
    if record.rule in NOT_BY_THE_POLICY:
        return record.rule
    if record.rule == "private-address" and host_of(record.url).address is None:
        return "private-name"
    if record.rule == "authority-mismatch" and record.revision == NONE:
        return "certificate"
    if NONE in (record.url, record.method):
        return "withheld"
    return "cut" if len(record.url) == 4096 or len(record.user) == 256 else None


def key(record: Record) -> tuple[str, ...]:
    """Return what is asked: a CONNECT about its own tunnel, a request as in the tunnel
    that was opened.
    """
    asks_splice = is_spliced(record) or (
        record.method == CONNECT
        and record.squid.startswith("TCP_DENIED")
        and record.status != 200
    )
    sni, tunnel = record.sni, record.tunnel.partition("%20")[0]
    if record.method == CONNECT and not asks_splice and record.revision != NONE:
        sni = tunnel = NONE
    return (
        record.client,
        record.user,
        record.method,
        record.url,
        sni,
        tunnel,
        record.hidden,
    )


def was_used(record: Record) -> bool:
    return (
        record.verdict == "allow"
        and record.error in (NONE, "ERR_CLIENT_GONE")
        and 100 <= record.status <= 399
    )


# --- properties -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def check_questions(
    connection: duckdb.DuckDBPyConnection, records: list[Record]
) -> None:
    requests = fold(sorted(records, key=time_of)).requests
    insert_records(connection, "requests", requests)
    table = QuestionTable(connection)
    questions, set_apart = list(table.each()), dict(table.set_apart)
    assert set_apart == dict(
        Counter(found for one in requests if (found := reason(one)))
    )
    assert SET_APART.keys() >= set_apart.keys()
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for request in requests:
        if reason(request) is None:
            groups[key(request)].append(request)
    assert len(questions) == len(groups)
    for question in questions:
        group = groups[key(question.record())]
        assert (question.count, question.first, question.last) == (
            len(group),
            min(map(time_of, group)),
            max(map(time_of, group)),
        )
        assert question.used == sum(map(was_used, group))
        assert question.allowed == sum(one.verdict == "allow" for one in group)
        assert question.request_bytes == sum(one.request_bytes for one in group)
        assert question.host == host_of(question.url).text
        newest = [one for one in group if time_of(one) == question.last]
        assert question.request_id in [one.request_id for one in newest]
        assert question.rule in [one.rule for one in newest]
        for request in group:
            opened = msgspec.structs.replace(
                request, tunnel=request.tunnel.partition("%20")[0]
            )
            assert request_of(question.record()) == request_of(opened), (
                "judged as each request that it stands for"
            )


@few_and_many(50, 1000)
def test_questions_are_those_of_a_plain_count(
    connection: duckdb.DuckDBPyConnection, examples: int
) -> None:
    hold_for(
        lambda records: check_questions(connection, records),
        st.lists(RECORDS, max_size=20),
        examples=examples,
    )


# --- examples -------------------------------------------------------------------------


def test_a_question_is_asked_once_however_often_and_however_it_was_answered(
    tmp_path: Path,
) -> None:
    lines = [
        record_line(
            time=after_noon(at),
            status=status,
            verdict=verdict,
            rule=rule,
            request_id=str(at),
        )
        for at, (status, verdict, rule) in enumerate(
            [
                (200, "allow", "open"),
                (404, "allow", "open"),
                (403, "deny", "closed"),
                (302, "allow", "newer"),
            ]
        )
    ]
    ((question,), set_apart) = as_logged(tmp_path, *lines)
    assert (question.count, question.allowed, question.used, question.rule) == (
        4,
        3,
        2,
        "newer",
    )
    assert question.last - question.first == timedelta(seconds=3)
    assert (question.request_id, question.request_bytes, set_apart) == ("3", 480, {})


def test_a_request_in_a_denied_tunnel_is_asked_about_as_if_the_tunnel_had_been_opened(
    tmp_path: Path,
) -> None:
    inside = {"url": f"https://{HOST}/x", "sni": HOST}
    (question,), _ = as_logged(
        tmp_path,
        record_line(
            time=after_noon(0),
            verdict="deny",
            rule="no",
            status=403,
            tunnel=DENIED,
            **inside,
        ),
        record_line(time=after_noon(1), tunnel=f"{HOST}%3A443", **inside),
    )
    assert (unquote(question.tunnel), question.count, question.used) == (
        f"{HOST}:443",
        2,
        1,
    )


def test_the_connect_of_an_opened_tunnel_is_no_question_and_a_denied_one_is(
    tmp_path: Path,
) -> None:
    connect = {
        "method": CONNECT,
        "url": f"{HOST}:443",
        "tunnel": f"{HOST}%3A443",
        "squid": "NONE_NONE/HIER_NONE",
    }
    denied = {
        **connect,
        "client": "192.0.2.9",
        "verdict": "deny",
        "tunnel": DENIED,
        "squid": "TCP_DENIED/HIER_NONE",
    }
    (question,), _ = as_logged(tmp_path, record_line(**connect), record_line(**denied))
    assert (question.client, question.method, question.url) == (
        "192.0.2.9",
        CONNECT,
        f"{HOST}:443",
    )
    assert (question.tunnel, question.sni, question.allowed) == (NONE, NONE, 0)


def test_what_a_client_ended_was_used_and_what_failed_was_not(tmp_path: Path) -> None:
    lines = [
        record_line(url=f"https://{HOST}/{place}", status=status, error=error)
        for place, (status, error) in enumerate(
            [(200, "ERR_CLIENT_GONE"), (0, "ERR_CLIENT_GONE"), (503, "ERR_DNS")]
        )
    ]
    questions, _ = as_logged(tmp_path, *lines)
    assert [question.used for question in questions] == [1, 0, 0]


@pytest.mark.parametrize("rule", sorted(SET_APART.keys() & NOT_BY_THE_POLICY.keys()))
def test_a_denial_that_does_not_follow_from_the_policy_is_set_apart(
    tmp_path: Path, rule: str
) -> None:
    questions, set_apart = as_logged(
        tmp_path, record_line(verdict="deny", rule=rule, status=403)
    )
    assert (questions, set_apart) == ([], {rule: 1})
    assert SET_APART[rule]
