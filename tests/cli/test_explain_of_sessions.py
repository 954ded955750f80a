"""`explain` and `why` for sessions: those of the store, and those of records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from squidkeeper.base.places import sessions_folder

from ..session_records import DENIED, POLICY, RecordedGateway

APP = "https://git.example/acme/app/x"
OTHER = "https://git.example/acme/other/x"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RecordedGateway]:
    made = RecordedGateway(tmp_path)
    with closing(made.store):
        yield made


def explained(gateway: RecordedGateway, *options: object) -> Result:
    return gateway.run("explain", "--policy", gateway.policy_folder, *options)


def test_the_active_session_of_a_name_is_explained_or_else_the_last(
    gateway: RecordedGateway,
) -> None:
    first = gateway.session("vm-7", "10.20.0.7")
    gateway.store.end(first.number, "deleted")
    found = explained(gateway, "--session", "vm-7", "GET", APP)
    assert found.exit_code == 0
    assert f"session      vm-7 ({first.number}, ended " in found.stdout
    assert ", deleted): role agent; repo acme/app\n" in found.stdout
    again = gateway.session("vm-7", "10.20.0.7", variables={"repo": ("acme/other",)})
    found = explained(gateway, "--session", "vm-7", "GET", APP)
    assert found.exit_code == 1
    assert f"session      vm-7 ({again.number}, active until " in found.stdout
    assert explained(gateway, "--session", "vm-7", "GET", OTHER).exit_code == 0
    number = first.number
    assert explained(gateway, "--session", number, "GET", APP).exit_code == 0
    found = explained(gateway, "--json", "--session", number, "GET", APP)
    told = json.loads(found.stdout)["session"]
    assert told.pop("state").endswith(", deleted")
    assert told == {
        "name": "vm-7",
        "number": number,
        "role": "agent",
        "variables": {"repo": ["acme/app"]},
    }


def test_a_session_with_a_token_is_explained_by_its_login(
    gateway: RecordedGateway,
) -> None:
    gateway.session("ci-1")
    assert explained(gateway, "--session", "ci-1", "GET", APP).exit_code == 0


def test_a_session_that_is_not_there_is_said(gateway: RecordedGateway) -> None:
    found = explained(gateway, "--session", "vm-9", "GET", APP)
    assert found.exit_code == 2
    where = sessions_folder(gateway.state)
    assert f"--session: 'vm-9' is no session in {where}, expected" in found.stderr


def test_a_session_that_the_policy_does_not_know_any_longer_is_denied(
    gateway: RecordedGateway,
) -> None:
    """As helpers do: also where a rule names a variable that it has no value for."""
    gateway.session("vm-7", "10.20.0.7")
    edited = POLICY.replace("variables: {repo", "variables: {base").replace(
        "session.repo", "session.base"
    )
    gateway.write_policy(edited)
    found = explained(gateway, "--session", "vm-7", "GET", APP)
    assert found.exit_code == 1
    assert "rule         session-invalid" in found.stdout
    assert (
        "The role agent no longer takes what the session vm-7 was given" in found.stdout
    )


def test_a_record_is_explained_by_its_own_session(gateway: RecordedGateway) -> None:
    first = gateway.session("vm-7", "10.20.0.7")
    gateway.record(APP, first)
    gateway.store.end(first.number, "deleted")
    gateway.session("vm-7", "10.20.0.7", variables={"repo": ("acme/other",)})
    found = explained(gateway, "--record", gateway.log)
    assert found.exit_code == 0
    told = f"session      vm-7 ({first.number}): role agent; repo acme/app\n"
    assert told in found.stdout
    gateway.store.purge(float("inf"))
    found = explained(gateway, "--record", gateway.log)
    assert found.exit_code == 2
    assert f"cannot be explained: it is of session {first.number}," in found.stderr


def test_what_a_session_was_denied_is_proposed_for_its_role(
    gateway: RecordedGateway,
) -> None:
    row = gateway.session("vm-7", "10.20.0.7")
    gateway.store.end(row.number, "deleted")
    for number in (row, "5"):
        gateway.lines.clear()
        gateway.record("https://new.example/a", number, **DENIED)
        found = gateway.run(
            *("why", gateway.log, "--policy", gateway.policy_folder, "--json")
        )
        (cause,) = json.loads(found.stdout)["causes"]
        assert cause["cause"] == "no-rule"
        if number is row:
            assert cause["details"]["opens"] == (
                '- {name: allow-new-example, action: allow, clients: ["agent"],'
                " hosts: [new.example], methods: [GET], paths: [/a]}"
            )
        else:
            assert cause["details"]["opens"] is None
            assert "its session 5 is not known any more" in cause["remedy"]
