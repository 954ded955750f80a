"""An area imports only from those above it in the list, and inside an area the subjects
form no cycle.
"""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import squidkeeper

PACKAGE = Path(squidkeeper.__file__).parent
AREAS = [
    "base",
    "policy",
    "serving",
    "record",
    "configuration",
    "change",
    "services",
    "operate",
    "cli",
]
HOUSE = PACKAGE.parent / "README.md"
IMPURE = {
    "logging",
    "os",
    "random",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
PURE = {  # subjects, with what they may import all the same; inet_aton is arithmetic
    "base.atomic_write": {"os"},
    "base.bounded_cache": set(),
    "base.deadline": {"socket", "threading"},
    "base.errors": set(),
    "base.faults": set(),
    "base.formatting": set(),
    "base.layout": set(),
    "base.metrics": set(),
    "base.untrusted_file": {"os"},
    "configuration.error_pages": set(),
    "configuration.log_format": set(),
    "configuration.rendering": set(),
    "policy.destination": set(),
    "policy.bodies": set(),
    "policy.engine": set(),
    "policy.extras": set(),
    "policy.language": set(),
    "policy.presets": set(),
    "policy.protocol": set(),
    "policy.url": {"socket"},
    "policy.usage": set(),
    "serving.certificates": set(),
    "serving.counters": {"logging", "os", "threading"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def subject_of(name: str) -> str:
    """A package or module of an area: `record.why` of `record.why.causes`."""
    return ".".join(name.split(".")[:2])


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.update(
                {module}
                if module.count(".") > 1
                else {f"{module}.{name.name}" for name in node.names}
            )
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
    return found


def module_imports(path: Path) -> set[str]:
    """Return what is imported, each also as the module that it may be in."""
    return {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        for name in (node.module, f"{node.module}.{alias.name}")
    }


def subjects_imported(path: Path) -> set[str]:
    ours = (
        name.removeprefix("squidkeeper.")
        for name in imports(path)
        if name.startswith("squidkeeper.")
    )
    return {subject_of(name) for name in ours}


def test_an_area_imports_only_from_those_above_it() -> None:
    assert {name_of(path).split(".")[0] for path in MODULES} == set(AREAS)
    upward = [
        f"{name_of(path)} → {other}"
        for path in MODULES
        for other in subjects_imported(path)
        if AREAS.index(other.split(".")[0]) > AREAS.index(name_of(path).split(".")[0])
    ]
    assert upward == []


def test_no_modules_import_each_other() -> None:
    """Late imports count, and those for types."""
    modules = {f"squidkeeper.{name_of(path)}": path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        inside = {one for one in module_imports(path) if one in modules}
        graph[name] = inside - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_subjects_of_an_area_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        subject = subject_of(name_of(path))
        if not subject.startswith("cli"):  # the commands start each other's
            graph.setdefault(subject, set()).update(subjects_imported(path) - {subject})
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("subject", PURE)
def test_what_decides_is_pure(subject: str) -> None:
    paths = [path for path in MODULES if subject_of(name_of(path)) == subject]
    assert paths
    assert {
        name.split(".")[0] for path in paths for name in imports(path)
    } & IMPURE <= PURE[subject]


def test_only_the_process_that_fetches_secrets_can_fetch_one() -> None:
    """`check`, `explain` and every other command runs no program of a policy and asks
    no server for a token.
    """
    importing = {
        name_of(path)
        for path in MODULES
        if "services.fetching" in subjects_imported(path)
    }
    assert {name for name in importing if subject_of(name) != "services.fetching"} == {
        "cli.secrets"
    }


def test_only_what_must_go_on_after_any_error_catches_everything() -> None:
    catching = [path for path in MODULES if "except Exception" in path.read_text()]
    assert [name_of(path) for path in catching] == [
        "cli.setup",
        "operate.doctor.examination",
        "policy.policy_store.policy_watcher",
        "policy.published.reader",
        "record.archive.archiver",
        "services.exporter.log_counter",
        "services.pulling.puller",
        "services.pulling.reading",
        "services.transparent.relay",
        "serving.helpers.loop",
    ]


def test_the_map_of_the_house_names_the_areas_and_their_subjects() -> None:
    rows = re.findall(
        r"^\| `(\w+)/` \| [^|]* \| (`.*) \|$", HOUSE.read_text(), re.MULTILINE
    )
    assert [area for area, _ in rows] == AREAS[:-1]
    named = {
        f"{area}.{re.sub(r'/|[.]py', '', name)}"
        for area, names in rows
        for name in re.findall(r"`(.*?)`", names)
    }
    assert named == {
        subject_of(name_of(path)) for path in MODULES if "." in name_of(path)
    } - {
        name
        for name in map(subject_of, map(name_of, MODULES))
        if name.startswith("cli.")
    }


def test_a_class_name_occurs_once_in_the_program() -> None:
    nodes = (
        (path, node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
    )
    owners: dict[str, list[str]] = {}
    for path, node in nodes:
        if isinstance(node, ast.ClassDef):
            owners.setdefault(node.name, []).append(name_of(path))
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}
