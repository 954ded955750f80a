"""The count of a grant's uses: never more than it has, over processes, restarts and
failures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from squidkeeper.base.faults import Location
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.model import Action, Match, Rule
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.serving.helpers.acl import RequestScope, answer_url

from ..conftest import NOW, compiled_of

GRANT = Rule("g", Location("grants.yaml"), Action.ALLOW, Match(), uses=3, made=NOW)
POLICY = """
grants:
  - {name: few, any_client: true, hosts: [a.example], uses: 2, expires: 2036-01-01T00:00:00Z, reason: x}
  - {name: more, any_client: true, hosts: [a.example], paths: [/more], uses: 1,
     expires: 2036-01-01T00:00:00Z, reason: x}
"""
LINE = b"192.0.2.7 - GET https a.example 443 - a.example%%3A443 - https%%3A%%2F%%2Fa.example%s -"


def test_a_grant_is_used_as_often_as_it_says_and_no_more(tmp_path: Path) -> None:
    uses = GrantUses(tmp_path)
    assert uses.left(GRANT) == 3
    assert [uses.take(GRANT) for _ in range(5)] == [True, True, True, False, False]
    assert uses.left(GRANT) == 0
    assert GrantUses(tmp_path).take(GRANT) is False  # after a restart
    # a later one of the same name
    assert uses.left(replace(GRANT, made=NOW.replace(hour=13))) == 3
    assert uses.left(replace(GRANT, uses=None)) is None
    [file] = (tmp_path / "grant-uses").iterdir()
    assert file.stat().st_size == 3  # what is denied writes nothing


WORKER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.model import Action, Match, Rule
uses = GrantUses(Path(sys.argv[1]))
grant = Rule("g", Location("grants.yaml"), Action.ALLOW, Match(), uses=50, made=datetime(2026, 11, 24, 12, tzinfo=UTC))
sys.stdin.readline()
print(sum(uses.take(grant) for _ in range(40)), flush=True)
"""


@pytest.mark.system
def test_processes_that_count_at_once_never_give_more_uses_than_there_are(
    tmp_path: Path,
) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert sum(int(worker.communicate()[0]) for worker in workers) == 50


def test_a_use_that_another_process_took_meanwhile_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses, write = GrantUses(tmp_path), os.write
    assert uses.take(GRANT)
    assert uses.take(GRANT)
    monkeypatch.setattr(
        "squidkeeper.policy.grant_uses.os.write",
        lambda file, one: write(file, one) + write(file, one),
    )
    assert not uses.take(GRANT)


@pytest.mark.system
def test_a_process_that_is_stopped_holds_up_no_other(tmp_path: Path) -> None:
    uses = GrantUses(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], stdin=subprocess.PIPE, text=True
    ) as worker:
        worker.send_signal(signal.SIGSTOP)
        assert uses.take(GRANT)
        worker.kill()


@pytest.mark.parametrize("what", ["a link", "a folder", "no folder"])
def test_a_use_that_cannot_be_counted_is_denied(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    scope = RequestScope(compiled_of(tmp_path / "policy", POLICY), GrantUses(tmp_path))
    assert answer_url(scope, LINE % b"%2F").result is Result.OK
    folder = tmp_path / "grant-uses"
    [file] = folder.iterdir()
    file.unlink()
    if what == "a link":
        (tmp_path / "elsewhere").write_bytes(b"")
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "a folder":
        file.mkdir()
    else:
        folder.rmdir()
        folder.write_bytes(b"")
    for _ in range(2):
        reply = answer_url(scope, LINE % b"%2F")
        assert (reply.result, dict(reply.annotations)["rule_"]) == (
            Result.ERR,
            "default",
        )
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the uses of grants cannot be counted, so these allow nothing"
    ]


def test_at_request_scope_each_answer_is_a_use_and_the_next_grant_follows(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(tmp_path / "policy", POLICY)
    # two helpers
    first, second = (RequestScope(compiled, GrantUses(tmp_path)) for _ in range(2))
    scopes = [first, second, first, second, first]
    replies = [answer_url(scope, LINE % b"%2Fmore") for scope in scopes]
    assert [dict(reply.annotations)["rule_"] for reply in replies] == [
        "few",
        "few",
        "more",
        "default",
        "default",
    ]
    assert answer_url(first, LINE % b"%2F").result is Result.ERR


@pytest.mark.parametrize(
    "watched",
    [
        "paths: ['/secret/**']",
        "query: {q: x}",
        "paths: [/more]",
        "methods: [GET]",
        "paths: ['/**']",
    ],
)
def test_what_a_rule_observes_of_the_host_is_counted_too(
    tmp_path: Path, watched: str
) -> None:
    rule = f"rules:\n  - {{name: watched, action: deny, observe: true, hosts: [a.example], {watched}}}\n"
    scope = RequestScope(
        compiled_of(tmp_path / "policy", POLICY + rule), GrantUses(tmp_path)
    )
    rules = [
        dict(answer_url(scope, LINE % b"%2Fmore").annotations)["rule_"]
        for _ in range(5)
    ]
    assert rules == ["few", "few", "more", "default", "default"]


def test_what_a_default_observes_is_recorded_when_a_grant_has_no_uses_left(
    tmp_path: Path,
) -> None:
    default = "defaults: {action: deny, observe: true}\n"
    scope = RequestScope(
        compiled_of(tmp_path / "policy", default + POLICY), GrantUses(tmp_path)
    )
    replies = [answer_url(scope, LINE % b"%2F") for _ in range(3)]
    assert [reply.result for reply in replies] == [Result.OK] * 3
    assert [dict(reply.annotations).get("observed_") for reply in replies] == [
        None,
        None,
        "deny:default",
    ]


def test_without_a_place_to_count_a_grant_with_uses_allows_nothing(
    tmp_path: Path,
) -> None:
    scope = RequestScope(compiled_of(tmp_path / "policy", POLICY))
    assert answer_url(scope, LINE % b"%2F").result is Result.ERR


def test_counts_of_grants_that_are_gone_are_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    uses = GrantUses(tmp_path)
    other = replace(GRANT, name="other")
    uses.take(GRANT)
    uses.take(other)
    (tmp_path / "grant-uses" / "else").write_bytes(b"")
    uses.forget([other], time.time() - 60)
    assert (uses.left(GRANT), uses.left(other)) == (2, 2)  # helpers may still count it
    uses.forget([other], time.time() + 60)
    assert (uses.left(GRANT), uses.left(other)) == (3, 2)
    assert (tmp_path / "grant-uses" / "else").exists()


def test_counts_are_not_removed_behind_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    GrantUses(elsewhere).take(GRANT)
    state = tmp_path / "state"
    state.mkdir()
    (state / "grant-uses").symlink_to(elsewhere / "grant-uses")
    GrantUses(state).forget([], time.time() + 60)
    assert GrantUses(elsewhere).left(GRANT) == 2
    assert os.listdir(state) == ["grant-uses"]
