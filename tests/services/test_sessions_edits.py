"""What an edit of the policy or of sessions.yaml changes for active sessions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from ..conftest import write_policy
from ..waiting import wait_for
from .test_sessions_calls import (
    CODING,
    OTHER_UID,
    POLICY,
    SETTINGS,
    Service,
    serving,
)

pytestmark = pytest.mark.system
ASKED = {"role": "plain", "address": "10.20.9.1", "labels": {"task": "1"}}


@pytest.fixture
def service() -> Iterator[Service]:
    yield from serving()


def edit(service: Service, old: str, new: str) -> str:
    assert old in POLICY
    write_policy(service.policy, POLICY.replace(old, new))
    return service.publish()


def lives(shown: dict[str, str]) -> timedelta:
    made, ends = (datetime.fromisoformat(shown[key]) for key in ("created", "expires"))
    return ends - made


def test_a_shorter_ttl_of_a_role_moves_the_end_of_its_sessions(
    service: Service,
) -> None:
    whole = service.put("whole", CODING)
    service.put("short", {**CODING, "ttl": 60})
    service.put("plain", {"role": "plain"})
    before = {name: service.get(name) for name in ("whole", "short", "plain")}
    assert lives(before["whole"].body) == timedelta(hours=8)
    edit(service, "ttl: 8h", "ttl: 10m")
    wait_for(lambda: lives(service.get("whole").body) == timedelta(minutes=10))
    after = {name: service.get(name) for name in before}
    assert after["whole"].headers["etag"] != whole.headers["etag"]
    for name in ("short", "plain"):
        assert after[name].headers["etag"] == before[name].headers["etag"]
    row = next(row for row in service.rows() if row.name == "whole")
    assert row.ends - row.created == pytest.approx(600)
    again = service.put("whole", CODING)
    assert (again.status, again.body["extended"]) == (200, False)
    refused = service.call(
        "PATCH", "/v1/sessions/whole", {"ttl": "8h"}, If_Match=again.headers["etag"]
    )
    assert [*refused.fields] == ["/ttl"]
    edit(service, "ttl: 8h", "ttl: 9h")
    wait_for(lambda: service.put("whole", CODING).body["extended"], "its end moves")


def test_a_ttl_that_is_over_by_an_edit_ends_the_session(service: Service) -> None:
    service.put("old", CODING)
    service.end()
    with service.changed_store() as database:
        database.execute("UPDATE sessions SET created = created - 3600")
    service.start()
    assert service.get("old").body["state"] == "active"
    edit(service, "ttl: 8h", "ttl: 30m")
    wait_for(lambda: service.get("old").body["state"] == "ended")
    assert service.get("old").body["reason"] == "expired"


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (f"uid: {OTHER_UID}\n    roles: [plain]", f"uid: {OTHER_UID}\n    roles: [third]", "/role"),
        ("networks: [10.20.9.0/24]", "networks: [10.20.8.0/24]", "/address"),
        ("labels: [task]", "labels: [task, tenant]", "/labels/tenant"),
    ],
)  # fmt: skip
def test_a_right_that_was_taken_holds_for_a_change(
    service: Service, old: str, new: str, field: str
) -> None:
    made = service.put("vm", ASKED, OTHER_UID)
    assert made.status == 201
    assert old in SETTINGS
    service.settings.write_text(SETTINGS.replace(old, new))
    seen = made.headers["etag"]
    for body in ({"ttl": "30m"}, {}):
        refused = service.call(
            "PATCH", "/v1/sessions/vm", body, uid=OTHER_UID, If_Match=seen
        )
        assert (refused.status, [*refused.fields]) == (422, [field])
    assert service.put("vm", ASKED, OTHER_UID).status == 422
    assert service.get("vm", OTHER_UID).headers["etag"] == seen
    assert service.delete("vm", OTHER_UID).status == 204


def test_a_smaller_number_of_sessions_holds_for_a_change(service: Service) -> None:
    seen = service.put("vm", ASKED, OTHER_UID).headers["etag"]
    second = {**ASKED, "address": "10.20.9.2"}
    assert service.put("second", second, OTHER_UID).status == 201
    service.settings.write_text(SETTINGS.replace("sessions: 2", "sessions: 1"))
    change = ("PATCH", "/v1/sessions/vm", {"ttl": "30m"})
    refused = service.call(*change, uid=OTHER_UID, If_Match=seen)
    assert (refused.status, refused.code) == (429, "too-many-sessions")
    assert service.put("vm", ASKED, OTHER_UID).code == "too-many-sessions"
    assert service.delete("second", OTHER_UID).status == 204
    assert service.call(*change, uid=OTHER_UID, If_Match=seen).status == 200


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("      docs: {type: hosts, within: [.example], many: 2}\n", "", "the role coding-agent has no variable docs"),
        ("ttl: 8h", "  more: {type: path, pattern: x}", "the variable more has no value, expected one"),
        ("within: [.example]", "within: [.other]", "'a.example' is not within .other"),
    ],
)  # fmt: skip
def test_what_an_invalid_session_may_reach_says_what_is_missing(
    service: Service, old: str, new: str, reason: str
) -> None:
    service.put("vm", CODING)
    removed = "  - {name: docs, action: allow, clients: [coding-agent], "
    policy = POLICY.replace(old, new)
    if "docs:" not in policy:
        policy = policy.replace(
            f'{removed}hosts: ["{{session.docs}}"]', f"{removed}hosts: [x.example]"
        )
    write_policy(service.policy, policy)
    service.publish()
    wait_for(lambda: service.get("vm").body["state"] == "invalid", "the edit")
    told = service.get("vm/effective")
    assert (told.status, told.body["denied_by"]) == (200, "session-invalid")
    assert told.body["reason"] == reason
    assert told.body["rules"] == told.body["credentials"] == []
    assert service.get("vm/usage").status == 200


def test_what_a_session_of_no_role_may_reach_says_so(service: Service) -> None:
    service.put("vm", {"role": "plain"})
    without = POLICY.replace("  plain: {ttl: 1h}\n", "").replace(", plain]", "]")
    write_policy(service.policy, without.replace("[plain]", "[third]"))
    service.publish()
    wait_for(lambda: service.get("vm").body["state"] == "invalid", "the edit")
    told = service.get("vm/effective").body
    assert (told["denied_by"], told["default"]) == ("session-invalid", "deny")
    assert told["reason"] == "the policy has no role plain"
