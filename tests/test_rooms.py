"""A room imports only from rooms below it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import squidkeeper

PACKAGE = Path(squidkeeper.__file__).parent
FLOORS = {
    "errors": 0,
    "formatting": 0,
    "bounded_cache": 1,
    "certificates": 1,
    "metrics": 1,
    "url": 1,
    "destination": 2,
    "protocol": 2,
    "policy": 2,
    "counters": 3,
    "deadline": 3,
    "engine": 3,
    "extras": 3,
    "layout": 3,
    "presets": 3,
    "atomic_write": 3,
    "untrusted_file": 3,
    "approvals": 7,
    "archive": 7,
    "archive_status": 4,
    "client_kit": 4,
    "credentials": 4,
    "grant_uses": 4,
    "parts": 4,
    "difference": 4,
    "drained": 4,
    "verified_tls": 4,
    "editor": 4,
    "gateway_commands": 4,
    "maintenance_status": 4,
    "policy_store": 4,
    "pull_settings": 4,
    "pull_status": 4,
    "quotas": 4,
    "replies": 4,
    "rotated_logs": 4,
    "shared_database": 3,
    "squid_account": 4,
    "squid_conf": 4,
    "squid_counters": 4,
    "squid_crashes": 4,
    "squid_runs": 4,
    "squid_version": 4,
    "tickets": 4,
    "webhook_settings": 4,
    "chain": 5,
    "fetching": 5,
    "helpers": 5,
    "maintenance": 5,
    "policy_edit": 5,
    "rendering": 5,
    "record": 5,
    "export_status": 6,
    "pages": 6,
    "table": 6,
    "why": 6,
    "export": 7,
    "exporter": 7,
    "learning": 7,
    "pulling": 7,
    "replay": 7,
    "report": 7,
    "setup": 7,
    "demo": 8,
    "doctor": 8,
    "fleet": 8,
    "tightening": 8,
    "notifying": 8,
    "cli": 9,
    "__main__": 10,
}
HOUSE = PACKAGE.parent / "README.md"
IMPURE = {"logging", "os", "random", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}
ALLOWED_IMPURE = {  # inet_aton is arithmetic
    "url": {"socket"},
    "counters": {"logging", "os", "threading"},
    "untrusted_file": {"os"},
    "atomic_write": {"os"},
    "deadline": {"socket", "threading"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
    return found


def rooms_imported(path: Path) -> set[str]:
    ours = (name.split(".") for name in imports(path) if name.startswith("squidkeeper."))
    return {parts[1] for parts in ours}


def of_type_checking_alone(path: Path, room: str) -> bool:
    return room_of(path) == "errors" and room == "policy"  # PolicyError names the type of its faults


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below_or_its_own_room(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert rooms_imported(path) == set()
        return
    for other in rooms_imported(path):
        assert other == room or FLOORS[other] < FLOORS[room] or of_type_checking_alone(path, other), f"{room} → {other}"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if FLOORS.get(room_of(path), 9) <= 3],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_floors_1_to_3_are_pure(path: Path) -> None:
    impure = {name.split(".")[0] for name in imports(path)} & IMPURE
    assert impure <= ALLOWED_IMPURE.get(room_of(path), set())


def test_only_the_process_that_fetches_secrets_can_fetch_one() -> None:
    """`check`, `explain` and every other command runs no program of a policy and asks no server for a token."""
    importing = {str(path.relative_to(PACKAGE)) for path in MODULES if "fetching" in rooms_imported(path)}
    assert {name for name in importing if not name.startswith("fetching/")} == {"cli/secrets.py"}


def test_only_what_must_go_on_after_any_error_catches_everything() -> None:
    catching = [path for path in MODULES if "except Exception" in path.read_text()]
    assert [str(path.relative_to(PACKAGE)) for path in catching] == [
        "archive/archiver.py",
        "cli/setup.py",
        "doctor/examination.py",
        "exporter/log_counter.py",
        "helpers/loop.py",
        "policy_store/policy_watcher.py",
        "pulling/puller.py",
        "pulling/reading.py",
    ]


def test_the_map_of_the_house_has_these_floors() -> None:
    rows = re.findall(r"^\| (\d+) \| (`.*) \|$", HOUSE.read_text(), re.MULTILINE)
    named = {
        name.removesuffix("/").removesuffix(".py"): int(floor)
        for floor, names in rows
        for name in names.replace("`", "").split(", ")
    }
    assert named == FLOORS


def test_a_module_names_the_floor_that_it_is_on() -> None:
    named = {path: re.findall(r"\(floor (\d+)\)", path.read_text().partition('"""\n')[0]) for path in MODULES}
    wrong = [
        (path, floors) for path, floors in named.items() if any(int(one) != FLOORS[room_of(path)] for one in floors)
    ]
    assert wrong == []


def test_a_class_name_occurs_once_in_the_program() -> None:
    nodes = ((path, node) for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    owners: dict[str, list[str]] = {}
    for path, node in nodes:
        if isinstance(node, ast.ClassDef):
            owners.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}
