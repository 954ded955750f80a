"""A client has a share of a helper's time: what it sends beyond that is left to the
late lane, unparsed.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from squidkeeper.policy.protocol.lines import Reply, Result
from squidkeeper.serving.helpers import client_shares
from squidkeeper.serving.helpers.client_shares import BURST_SECONDS, SHARE, ClientShares
from squidkeeper.serving.helpers.policy_helper import _LineAnswering

POLICY = "version: 1\nrules:\n" + "".join(
    f'  - {{name: path-{number}, action: allow, hosts: [open.example], paths: ["/**/{number}/*.js"]}}\n'
    for number in range(50)
)
CLIENT, OTHER, NEIGHBOUR = b"2001%3Adb8%3A%3A1", b"192.0.2.1", b"2001%3Adb8%3A%3A2"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, by which shares are renewed."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_client_has_a_burst_and_then_its_share(now: list[float]) -> None:
    shares = ClientShares()
    shares.charge(CLIENT, BURST_SECONDS * 0.9)
    assert not shares.is_used_up(CLIENT)
    shares.charge(CLIENT, BURST_SECONDS * 0.2)
    assert shares.is_used_up(CLIENT)
    assert shares.is_used_up(NEIGHBOUR), "a client chooses its addresses within a /64"
    assert not shares.is_used_up(OTHER)
    now[0] += BURST_SECONDS * 0.1 / SHARE + 0.001
    assert not shares.is_used_up(CLIENT)


@pytest.mark.usefixtures("now")
def test_the_number_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_shares, "_AT_MOST", 100)
    shares = ClientShares()
    for number in range(1000):
        shares.charge(b"192.0.2.%d" % number, 1.0)
        assert shares.is_used_up(b"192.0.2.%d" % number)
        assert len(shares._client_of) <= 100
        assert len(shares._unused_at) <= 100


def test_a_client_is_not_charged_for_what_others_took_of_the_processor(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)

    def wait(_line: bytes) -> Reply:
        now[0] += BURST_SECONDS * 2
        return Reply(Result.OK)

    shares = ClientShares()
    _LineAnswering(wait, 16, "acl", shares).reply(b"1 " + CLIENT, [])
    assert not shares.is_used_up(CLIENT)


def lines(client: bytes, path: bytes, count: int) -> bytes:
    rest = (
        b"- GET http open.example 80 - - - http%%3A%%2F%%2Fopen.example%%2F%b -\n"
        % path
    )
    return b"".join(b"%d %b %b" % (number, client, rest) for number in range(count))


@pytest.mark.system
def test_the_first_lane_leaves_what_is_over_a_share_to_the_late_lane(
    tmp_path: Path,
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/policy.yaml").write_text(POLICY)
    (tmp_path / "state").mkdir()
    sent = lines(CLIENT, b"%5C" * 8_000, 100) + lines(OTHER, b"a%2F49%2Fb.js", 20)
    command = [
        sys.executable,
        "-m",
        "squidkeeper",
        "acl",
        "--scope",
        "request",
        "--concurrency",
        "32",
    ]
    command += [
        "--policy",
        str(tmp_path / "policy"),
        "--state",
        str(tmp_path / "state"),
    ]
    answers = {}
    for lane in ("first", "late", "only"):
        done = subprocess.run(
            [*command, "--lane", lane],
            input=sent,
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        answers[lane] = [line.partition(b" ")[2] for line in done.stdout.splitlines()]
    costly, other = answers["first"][:100], answers["first"][100:]
    assert costly[0].startswith(b"ERR rule_=default ")
    assert costly.count(b"ERR later_=yes") > 50
    assert all(answer.startswith(b"OK rule_=path-49 ") for answer in other)
    decided = [answer.replace(b" later_=no", b"") for answer in answers["late"]]
    assert all(b" later_=no" in answer for answer in answers["late"])
    assert decided == answers["only"]
