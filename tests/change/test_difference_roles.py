"""What a difference tells about sessions, whose values no policy knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from squidkeeper.change.difference.report import report
from squidkeeper.policy.engine import CompiledPolicy

from ..conftest import NOW, compiled_of

POLICY = """
clients: {dev: {networks: [192.0.2.0/24]}, bot: {users: [bot]}}
roles:
  agent:
    variables: {repo: {type: path, pattern: "[a-z]+/[a-z]+"}}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [github.com], paths: ["/{session.repo}/**"]}
  - {name: closed, action: deny, clients: [agent], hosts: [github.com], paths: [/acme/secret/**]}
  - {name: dev, action: allow, clients: [dev], hosts: [dev.example]}
  - {name: bot, action: allow, clients: [bot], hosts: [bot.example]}
"""


def compiled(tmp_path: Path, name: str, text: str) -> CompiledPolicy:
    (tmp_path / name).mkdir()
    return compiled_of(tmp_path / name, text)


@pytest.mark.parametrize(
    ("old", "new", "roles"),
    [
        ("", "", ()),
        ("[bot.example]", "[other.example]", ()),
        ("/{session.repo}/**", "/{session.repo}/x", ("agent",)),
        ("/{session.repo}/**", "/acme/**", ("agent",)),
        ("[a-z]+/[a-z]+", "[a-z]+/[a-z-]+", ("agent",)),
        ("[dev.example]", "[other.example]", ("agent",)),
        ("name: closed, action: deny", "name: closed, action: allow", ("agent",)),
    ],
)
def test_what_can_hold_for_a_session_is_unproven_once_it_differs(
    tmp_path: Path, old: str, new: str, roles: tuple[str, ...]
) -> None:
    before = compiled(tmp_path, "old", POLICY)
    after = compiled(tmp_path, "new", POLICY.replace(old, new) if old else POLICY)
    for ceiling in (False, True):
        found = report((before, after), ("old", "new"), NOW, is_ceiling=ceiling)
        assert found.roles == roles
        assert found.same is (not old)


def test_another_order_of_entries_is_unproven(tmp_path: Path) -> None:
    first, second = POLICY.splitlines()[7:9]
    turned = POLICY.replace(f"{first}\n{second}", f"{second}\n{first}")
    found = report(
        (compiled(tmp_path, "old", POLICY), compiled(tmp_path, "new", turned)),
        ("old", "new"),
        NOW,
    )
    assert (found.differences, found.roles, found.same) == ((), ("agent",), False)


def test_a_role_is_a_setting(tmp_path: Path) -> None:
    without = POLICY.split("roles:")[0]
    found = report(
        (compiled(tmp_path, "old", without), compiled(tmp_path, "new", POLICY)),
        ("old", "new"),
        NOW,
        is_ceiling=True,
    )
    shown = [(one.name, one.before, one.after) for one in found.settings]
    assert ("role agent", "none", "ttl 28800 s, repo path [a-z]+/[a-z]+ (1)") in shown
